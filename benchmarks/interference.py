"""
What reading pages does to jobs: the start delay of a job of 20 Hz, and the lag of an event loop.

Usage: interference.py [--jobs 1000 10000] [--seconds 8] [--readers none scrapes page]

A separate process runs a scheduler with this number of jobs, one percent of which run each second,
and one job that is due every 50 ms. Each of the jobs has run some 20 times before, so that the
status page draws as many runs as it can.

- none: nobody reads anything.
- scrapes: it is scraped without pauses; a real Prometheus scrapes every 15 seconds.
- page: the status page `/` is asked for twice a second; a browser does it every 15 seconds. A page
  lists 1,000 jobs at most, so this is left out with more.

The output is the median, the 99th percentile and the maximum of how late that job starts; for
asyncio, of how late a timer of 10 ms is. Then come the median of the time until a response was
there, and of the CPU time of the process while it was made, which includes that of the jobs.
"""

import argparse
import asyncio
import json
import logging
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

from apscheduler_telemetry import Telemetry, instrument

PERIOD = 0.05  # seconds: 20 Hz
SPREAD = 100  # seconds in which each of the other jobs runs once
RUNS_BEFORE = 20  # of each of these jobs; one less for those that are due next
PAGE_JOBS = 1_000  # as many as a status page lists
PAGE_INTERVAL = 0.5  # seconds
READERS = ("none", "scrapes", "page")
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


def fill(scheduler: Any, jobs: int, func: Any) -> Telemetry:
    """Give a scheduler its jobs, and start it; those that a page may show have run before."""
    telemetry = instrument(scheduler, registry=CollectorRegistry(), max_labels=jobs + 1)
    now = datetime.now(timezone.utc)
    runs_before = RUNS_BEFORE if jobs <= PAGE_JOBS else 0
    for number in range(jobs):
        first = now + timedelta(seconds=5 + SPREAD * (number / jobs - runs_before))
        options = {"start_date": first, "next_run_time": first, "misfire_grace_time": None}
        scheduler.add_job(func, "interval", seconds=SPREAD, id=f"job-{number}", **options)
    options = {"misfire_grace_time": None, "coalesce": True}
    scheduler.add_job(func, "interval", seconds=PERIOD, id="fast", **options)
    scheduler.start()
    return telemetry


def answer_after_runs(telemetry: Telemetry, jobs: int) -> None:
    """Serve a scheduler as soon as the runs of its jobs that were due before have ended."""
    if jobs <= PAGE_JOBS:
        for number in range(jobs):
            while len(telemetry.runs(f"job-{number}")) < RUNS_BEFORE - 1:
                time.sleep(0.01)
    answer(telemetry.start_http_server(0).port)


def answer(port: int) -> None:
    """Print the port, and for each line of input the CPU time, or the delays since the last."""
    print(port, flush=True)
    for line in sys.stdin:
        if line == "cpu\n":
            print(time.process_time(), flush=True)
            continue
        values, late[:] = sorted(late), []
        print(json.dumps(values), flush=True)


def serve(kind: str, jobs: int) -> None:
    """Be the process that is measured."""
    logging.disable()  # runs of the job of 20 Hz that are skipped on a busy machine
    if kind == "threads":
        executors = {"default": ThreadPoolExecutor(4), "watched": Watched(1)}
        scheduler = BackgroundScheduler(executors=executors)
        telemetry = fill(scheduler, jobs, work)
        scheduler.modify_job("fast", executor="watched")
        answer_after_runs(telemetry, jobs)
        return

    async def main() -> None:
        scheduler = AsyncIOScheduler(executors={"default": AsyncIOExecutor()})
        telemetry = fill(scheduler, jobs, work_async)
        threading.Thread(target=answer_after_runs, args=[telemetry, jobs], daemon=True).start()
        while True:
            due = time.perf_counter() + TICK
            await asyncio.sleep(TICK)
            late.append(time.perf_counter() - due)

    asyncio.run(main())


def measure(kind: str, jobs: int, seconds: float, readers: Sequence[str]) -> None:
    """Print what a process is late by, alone and while its pages are read."""
    command = [sys.executable, __file__, "--serve", kind, str(jobs)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None  # noqa: S101  # as it was asked for
        assert process.stdout is not None  # noqa: S101
        port = int(process.stdout.readline())
        for reader in readers:
            if reader == "page" and jobs > PAGE_JOBS:
                continue
            url = f"http://127.0.0.1:{port}/{'' if reader == 'page' else 'metrics'}"
            walls, cpus = [], []
            read(url)
            time.sleep(1)
            ask(process)
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                if reader == "none":
                    time.sleep(0.1)
                    continue
                cpu, since = ask_cpu(process), time.perf_counter()
                read(url)
                walls.append(time.perf_counter() - since)
                cpus.append(ask_cpu(process) - cpu)
                if reader == "page":
                    time.sleep(max(0.0, PAGE_INTERVAL - walls[-1]))
            values = ask(process)
            ms = [1000 * value for value in values]
            costs = [1000 * statistics.median(times) for times in (walls, cpus) if times]
            print(
                f"{kind:8} {jobs:6} {reader:>8} {len(walls):8} {len(ms):6}"
                f" {statistics.median(ms):8.2f} {ms[int(0.99 * len(ms))]:8.2f} {ms[-1]:8.2f}"
                + "".join(f" {cost:8.1f}" for cost in costs),
                flush=True,
            )
        process.kill()


def ask(process: Any) -> list[float]:
    """Return what was late since it was asked the last time, ascending."""
    process.stdin.write("\n")
    values: list[float] = json.loads(process.stdout.readline())
    return values


def ask_cpu(process: Any) -> float:
    """Return the CPU seconds that a process has used."""
    process.stdin.write("cpu\n")
    return float(process.stdout.readline())


def read(url: str) -> None:
    """Read a page as Prometheus and browsers do."""
    request = urllib.request.Request(url, headers=HEADERS)  # noqa: S310  # our own server
    with urllib.request.urlopen(request) as reply:  # noqa: S310
        reply.read()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--readers", nargs="*", choices=READERS, default=list(READERS))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return
    print("           jobs   reader    reads  times   p50 ms   p99 ms   max ms  wall ms   CPU ms")
    for kind in ("threads", "asyncio"):
        for jobs in options.jobs:
            measure(kind, jobs, options.seconds, options.readers)


if __name__ == "__main__":
    main()
