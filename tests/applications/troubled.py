"""
Applications with many faults, for the queries of the dashboards; each prints its port.

Usage: troubled.py troubled SECONDS EXCEPTION | doomed PORT
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
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

from apscheduler_telemetry import Expectations, instrument

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
    """Be killed, as the kernel does when it is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


async def awaits() -> None:
    """Run on an event loop."""
    await asyncio.sleep(0.01)


class FlakyStore(MemoryJobStore):
    """A job store whose queries fail every other time."""

    _calls = itertools.count()

    def get_due_jobs(self, now: Any) -> Any:
        """Fail every other time."""
        if next(self._calls) % 2:
            msg = "connection lost"
            raise ConnectionError(msg)
        return super().get_due_jobs(now)


def label(job: Any) -> str:
    """Return the id of a job, but fail for one job."""
    if job.id == "unlabelled":
        msg = "no label"
        raise ValueError(msg)
    return str(job.id)


def disturb(_: object) -> None:
    """Raise in a listener."""
    msg = "disturbed"
    raise RuntimeError(msg)


def provider() -> Any:
    """Return a tracer provider, so that there are exemplars; None without an SDK."""
    with contextlib.suppress(ImportError):
        from opentelemetry.sdk.trace import TracerProvider

        return TracerProvider()
    return None


def troubled_scheduler(seconds: float, exception: str) -> BackgroundScheduler:
    """Return a scheduler with a job for each kind of fault."""
    scheduler = BackgroundScheduler(
        executors={
            "default": ThreadPoolExecutor(8),
            "small": ThreadPoolExecutor(1),
            # A killed worker is replaced, and a spawned one would import all of this again.
            "processes": ProcessPoolExecutor(
                1, pool_kwargs={"mp_context": multiprocessing.get_context("fork")}
            ),
        },
        jobstores={"flaky": FlakyStore()},
        job_defaults={"misfire_grace_time": 60},
    )

    def add(function: Any, job: str, every: float, **options: Any) -> None:
        scheduler.add_job(function, "interval", id=job, seconds=every, **options)

    add(ok, "report", 0.5, args=[seconds])
    add(ok, ODD, 0.5, args=[0.01])
    add(fails, "fails", 0.5, args=[exception])
    now = datetime.now(timezone.utc)
    add(hangs, "hangs", 3600, next_run_time=now)
    add(killed, "killed", 1, executor="processes")
    add(ok, "skips", 0.5, args=[0.8])
    # One worker, and two seconds of work for it every second: a queue, and runs that are too late.
    # The first run of each is in time.
    small: dict[str, Any] = {"executor": "small", "misfire_grace_time": 1, "max_instances": 9}
    add(ok, "late", 1, args=[1], **small)
    add(ok, "later", 1, args=[1], next_run_time=now, **small)
    add(ok, "folded", 0.1, args=[0], coalesce=True)
    add(ok, "paused", 60, args=[0])
    add(ok, "flaky", 1, args=[0], jobstore="flaky")
    add(ok, "unlabelled", 1, args=[0])
    scheduler.add_listener(disturb)
    return scheduler


def expected_of(job: Any) -> Expectations:
    """Return what is expected of a job."""
    return Expectations(
        grace=5,
        max_duration=0.5 if job.id == "hangs" else 20,
        owner="reports" if job.id == "report" else None,
    )


class Troubled:
    """
    An application in trouble.

    Attributes:
        telemetry: the handles of its schedulers, that of the main one first.
    """

    def __init__(self, seconds: float, exception: str, **providers: Any) -> None:
        self._main = troubled_scheduler(seconds, exception)
        self._background = BackgroundScheduler()
        self._background.add_job(ok, "interval", id="resting", seconds=1, args=[0])
        self._on_the_loop = AsyncIOScheduler()
        self._on_the_loop.add_job(awaits, "interval", id="awaits", seconds=0.5)
        main = instrument(
            self._main,
            name="main",
            job_label=label,
            expect=expected_of,
            **providers,
        )
        resting = instrument(self._background, name="resting", **providers)
        loop = instrument(self._on_the_loop, name="loop", **providers)
        self.telemetry = (main, resting, loop)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set."""
        self._main.start()
        self._background.start(paused=True)
        self._on_the_loop.start()
        self._main.pause_job("paused")
        while not stop.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), 1)
            # Runs that are behind are folded into one.
            behind = datetime.now(timezone.utc) - timedelta(seconds=0.5)
            with contextlib.suppress(Exception):
                self._main.modify_job("folded", next_run_time=behind)
        ended.set()
        for scheduler in (self._main, self._background, self._on_the_loop):
            scheduler.shutdown(wait=False)


async def troubled(seconds: float, exception: str) -> None:
    """Run until SIGTERM."""
    application = Troubled(seconds, exception, tracer_provider=provider())
    print(application.telemetry[0].start_http_server(0).port, flush=True)  # noqa: T201  # for the test
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await application.run(stop)


def doomed(port: int) -> None:
    """Schedule a run, and wait to be killed."""
    scheduler = BackgroundScheduler()
    telemetry = instrument(scheduler, name="doomed", expect=Expectations(grace=1))
    print(telemetry.start_http_server(port).port, flush=True)  # noqa: T201  # for the test
    scheduler.start()
    scheduler.add_job(ok, "interval", id="archive", seconds=2.5, args=[0])
    threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "troubled":
        asyncio.run(troubled(float(sys.argv[2]), sys.argv[3]))
    else:
        doomed(int(sys.argv[2]))
