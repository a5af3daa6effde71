"""
A scheduler in the main thread, which a signal handler interrupts to read its metrics.

Prints ``complete`` if all runs were counted; after a deadlock, faulthandler prints the traceback.
"""

import faulthandler
import logging
import signal
import sys
import time
from datetime import datetime, timedelta, timezone
from typing import Any

from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers import base
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core.model import Outcome
from tests.helpers.metrics import errors_of, job_states

SECONDS = 2.0
START = datetime(2040, 1, 1, tzinfo=timezone.utc)


class Frozen(datetime):
    """The scheduler's clock, which the script sets."""

    at = START

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return cls.at


class Scheduler(base.BaseScheduler):
    """A real scheduler whose passes are started by the script."""

    def wakeup(self) -> None:
        """Do nothing."""

    def shutdown(self, wait: bool = True) -> None:
        super().shutdown(wait)

    def turn(self) -> None:
        self._process_jobs()


def fail() -> None:
    """Raise ValueError, which is recorded as the type of an error."""
    raise ValueError


faulthandler.dump_traceback_later(40, exit=True)
logging.disable()
base.datetime = Frozen
scheduler = Scheduler(timezone="UTC", executors={"default": DebugExecutor()})
registry = CollectorRegistry()
telemetry = instrument(scheduler, registry=registry)
for number in range(10):
    options: Any = {"id": f"job-{number}", "misfire_grace_time": None}
    first = START + timedelta(seconds=1)
    scheduler.add_job(fail, "interval", seconds=1, start_date=first, **options)
scheduler.start()
signals = 0


def interrupt(*_: Any) -> None:
    """Do what handlers do before an exit: write the metrics, and read the health report."""
    global signals  # noqa: PLW0603
    signals += 1
    generate_latest(registry)
    telemetry.health()
    signal.setitimer(signal.ITIMER_REAL, 0.002)


signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.002)
passes, end = 0, time.monotonic() + SECONDS
while time.monotonic() < end or signals < 100:
    passes += 1
    Frozen.at += timedelta(seconds=1)
    scheduler.turn()
signal.signal(signal.SIGALRM, signal.SIG_IGN)
jobs = job_states(telemetry)
assert [job.stats.outcomes[Outcome.ERROR] for job in jobs] == [passes] * 10, jobs
assert [job.due_count for job in jobs] == [passes] * 10, jobs
assert not any(errors_of(telemetry).counts().values()), errors_of(telemetry).counts()
sys.stdout.write("complete\n")
