"""
Applications in every kind of trouble, for the dashboards' queries; each prints its port.

Usage: dashboards_app.py troubled SECONDS EXCEPTION | doomed PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import Any

from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler

from apscheduler_telemetry import instrument

ODD = """report.v2 "nightly" it's 100% (a|b) c:\\dir + [x] $1"""
"""An id with everything that a query may trip over."""

ended = threading.Event()


def ok(seconds: float) -> None:
    """Succeed after a while."""
    time.sleep(seconds)


def fails(name: str) -> None:
    """Raise an exception of a type that only this application has."""
    raise type(name, (Exception,), {})


def hangs() -> None:
    """Hang until the application ends."""
    ended.wait()


def killed() -> None:
    """Be killed, as by a kernel that is short of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


async def awaits() -> None:
    """Run on an event loop."""
    await asyncio.sleep(0.01)


class FlakyStore(MemoryJobStore):
    """A job store that fails now and then."""

    _calls = itertools.count()

    def get_due_jobs(self, now: Any) -> Any:
        """Fail every other time."""
        if next(self._calls) % 2:
            msg = "connection lost"
            raise ConnectionError(msg)
        return super().get_due_jobs(now)


def label(job: Any) -> str:
    """Fail for one job, which telemetry counts and survives."""
    if job.id == "unlabelled":
        msg = "no label"
        raise ValueError(msg)
    return str(job.id)


def disturb(_: object) -> None:
    """Raise, as a listener."""
    msg = "disturbed"
    raise RuntimeError(msg)


def provider() -> Any:
    """Return what gives runs a trace, so that there are exemplars."""
    with contextlib.suppress(ImportError):
        from opentelemetry.sdk.trace import TracerProvider

        return TracerProvider()
    return None


def troubled_scheduler(seconds: float, exception: str) -> BackgroundScheduler:
    """Return a scheduler with a job for every kind of trouble."""
    scheduler = BackgroundScheduler(
        executors={
            "default": ThreadPoolExecutor(8),
            "small": ThreadPoolExecutor(1),
            "processes": ProcessPoolExecutor(1),
        },
        jobstores={"flaky": FlakyStore()},
        job_defaults={"misfire_grace_time": 60},
    )

    def add(function: Any, job: str, every: float, **options: Any) -> None:
        scheduler.add_job(function, "interval", id=job, seconds=every, **options)

    add(ok, "report", 0.5, args=[seconds])
    add(ok, ODD, 0.5, args=[0.01])
    add(fails, "fails", 0.5, args=[exception])
    add(hangs, "hangs", 3600, next_run_time=datetime.now(timezone.utc))
    add(killed, "killed", 1, executor="processes")
    add(ok, "skips", 0.5, args=[0.8])
    # One worker, and two seconds of work for it every second: a queue, and runs that are too late.
    add(ok, "late", 1, args=[1], executor="small", misfire_grace_time=1, max_instances=9)
    add(ok, "later", 1, args=[1], executor="small", misfire_grace_time=1, max_instances=9)
    add(ok, "folded", 0.1, args=[0], coalesce=True)
    add(ok, "paused", 60, args=[0])
    add(ok, "flaky", 1, args=[0], jobstore="flaky")
    add(ok, "unlabelled", 60, args=[0])
    scheduler.add_listener(disturb)
    return scheduler


async def troubled(seconds: float, exception: str) -> None:
    """Run until SIGTERM."""
    main = troubled_scheduler(seconds, exception)
    background = BackgroundScheduler()
    background.add_job(ok, "interval", id="resting", seconds=1, args=[0])
    on_the_loop = AsyncIOScheduler()
    on_the_loop.add_job(awaits, "interval", id="awaits", seconds=0.5)
    tracers = provider()
    telemetry = instrument(
        main,
        name="main",
        tracer_provider=tracers,
        job_label=label,
        grace=5,
        max_duration=lambda job: 0.5 if job.id == "hangs" else 20,
        owner=lambda job: "reports" if job.id == "report" else None,
    )
    instrument(background, name="resting", tracer_provider=tracers)
    instrument(on_the_loop, name="loop", tracer_provider=tracers)
    print(telemetry.start_http_server(0).port, flush=True)  # noqa: T201  # for the test
    main.start()
    background.start(paused=True)
    on_the_loop.start()
    main.pause_job("paused")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    while not stop.is_set():
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(stop.wait(), 1)
        # Runs that are behind are folded into one.
        behind = datetime.now(timezone.utc) - timedelta(seconds=0.5)
        with contextlib.suppress(Exception):
            main.modify_job("folded", next_run_time=behind)
    ended.set()
    for scheduler in (main, background, on_the_loop):
        scheduler.shutdown(wait=False)


def doomed(port: int) -> None:
    """Promise a run, and wait to be killed."""
    scheduler = BackgroundScheduler()
    telemetry = instrument(scheduler, name="doomed", grace=1)
    print(telemetry.start_http_server(port).port, flush=True)  # noqa: T201  # for the test
    scheduler.start()
    scheduler.add_job(ok, "interval", id="archive", seconds=2.5, args=[0])
    threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "troubled":
        asyncio.run(troubled(float(sys.argv[2]), sys.argv[3]))
    else:
        doomed(int(sys.argv[2]))
