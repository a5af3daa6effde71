"""
What scrapes do to jobs: the start delay of a job of 20 Hz, and the lag of an event loop.

Usage: interference.py [--jobs 1000 10000] [--seconds 8]

A separate process runs a scheduler with this number of jobs, one percent of which run each second,
and one job that is due every 50 ms. First it is not scraped, and then scraped without pauses; a
real Prometheus scrapes every 15 seconds. The output is the median, the 99th percentile and the
maximum of how late that job starts; for asyncio, of how late a timer of 10 ms is.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument

PERIOD = 0.05  # seconds: 20 Hz
SPREAD = 100  # seconds in which each of the other jobs runs once
TICK = 0.01  # seconds of the timer that tells how late the event loop is
HEADERS = {
    "Accept": "application/openmetrics-text;version=1.0.0",
    "Accept-Encoding": "gzip",
}
"""What Prometheus sends."""
late: list[float] = []


def work() -> None:
    """Do nothing."""


async def work_async() -> None:
    """Do nothing."""


class Watched(ThreadPoolExecutor):
    """A thread pool that notes how late the job of 20 Hz is handed over."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        if job.id == "fast":
            late.append(time.time() - run_times[-1].timestamp())
        super()._do_submit_job(job, run_times)


def fill(scheduler: Any, jobs: int, func: Any) -> int:
    """Give a scheduler its jobs, start it and serve it; return the port."""
    telemetry = instrument(scheduler, registry=CollectorRegistry(), max_labels=jobs + 1)
    now = datetime.now(timezone.utc)
    options = {"misfire_grace_time": None, "coalesce": True}
    for number in range(jobs):
        first = now + timedelta(seconds=5 + SPREAD * number / jobs)
        scheduler.add_job(
            func, "interval", seconds=SPREAD, start_date=first, id=f"job-{number}", **options
        )
    scheduler.add_job(func, "interval", seconds=PERIOD, id="fast", **options)
    scheduler.start()
    return telemetry.start_http_server(0).port


def answer(port: int) -> None:
    """Print the port, and for each line of input the delays since the previous one."""
    print(port, flush=True)
    for _ in sys.stdin:
        values, late[:] = sorted(late), []
        print(json.dumps(values), flush=True)


def serve(kind: str, jobs: int) -> None:
    """Be the process that is measured."""
    if kind == "threads":
        executors = {"default": ThreadPoolExecutor(4), "watched": Watched(1)}
        scheduler = BackgroundScheduler(executors=executors)
        port = fill(scheduler, jobs, work)
        scheduler.modify_job("fast", executor="watched")
        answer(port)
        return

    async def main() -> None:
        scheduler = AsyncIOScheduler(executors={"default": AsyncIOExecutor()})
        port = fill(scheduler, jobs, work_async)
        threading.Thread(target=answer, args=[port], daemon=True).start()
        while True:
            due = time.perf_counter() + TICK
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - due)

    asyncio.run(main())


def measure(kind: str, jobs: int, seconds: float) -> None:
    """Print what a process is late by, alone and while it is scraped."""
    command = [sys.executable, __file__, "--serve", kind, str(jobs)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None  # noqa: S101  # as it was asked for
        assert process.stdout is not None  # noqa: S101
        port = int(process.stdout.readline())
        url = f"http://127.0.0.1:{port}/metrics"
        for scraped in (False, True):
            scrapes = 0
            scrape(url)
            time.sleep(1)
            ask(process)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if scraped:
                    scrape(url)
                    scrapes += 1
                else:
                    time.sleep(0.1)
            values = ask(process)
            ms = [1000 * value for value in values]
            print(
                f"{kind:8} {jobs:6} {scrapes:8} {len(ms):6} {statistics.median(ms):8.2f}"
                f" {ms[int(0.99 * len(ms))]:8.2f} {ms[-1]:8.2f}",
                flush=True,
            )
        process.kill()


def ask(process: Any) -> list[float]:
    """Return what was late since it was asked the last time, ascending."""
    process.stdin.write("\n")
    values: list[float] = json.loads(process.stdout.readline())
    return values


def scrape(url: str) -> None:
    """Scrape as Prometheus does."""
    request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310  # our own server
    with urllib.request.urlopen(request) as reply:  # noqa: S310
        reply.read()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return
    print("           jobs  scrapes  times   p50 ms   p99 ms   max ms")
    for kind in ("threads", "asyncio"):
        for jobs in options.jobs:
            measure(kind, jobs, options.seconds)


if __name__ == "__main__":
    main()
