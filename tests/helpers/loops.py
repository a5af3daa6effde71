"""Schedulers whose loop a test breaks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.helpers import jobs, watching
from tests.helpers.faults import FaultyStore
from tests.helpers.metrics import adapter_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.watching import Watched, watched


class Monotonic:
    """A clock for the adapter, with which a test makes the loop overdue."""

    def __init__(self, seen: Watched) -> None:
        self.now = 1_000.0
        adapter_of(seen.telemetry)._scheduler_loop._monotonic_clock = lambda: self.now


@contextmanager
def driven(**options: Any) -> Iterator[Watched]:
    """Start a scheduler whose passes are started by the test, on a store that can fail."""
    options.setdefault("jobstores", {"default": FaultyStore()})
    with watched(hand_driven_scheduler(**options)) as seen:
        seen.scheduler.start()
        yield seen


def add_due(seen: Watched, func: Callable[..., Any] = jobs.nothing, **options: Any) -> Any:
    """Add a job that is due now and again in an hour."""
    options = {"id": "job", "trigger": "interval", "hours": 1, **options}
    if not isinstance(options["trigger"], str):
        del options["hours"]
    return seen.scheduler.add_job(
        func, next_run_time=watching.ago(0.1), misfire_grace_time=None, **options
    )


def store_of(seen: Watched) -> FaultyStore:
    store: FaultyStore = seen.scheduler._jobstores["default"]
    return store


def state(seen: Watched) -> str:
    """Return the state whose series is 1."""
    (on,) = [
        s for s in ("running", "paused", "stopped") if seen.value("scheduler_state", state=s) == 1
    ]
    return on


def end_thread(scheduler: Any, exception: type[BaseException]) -> None:
    """Make the thread of a scheduler end while it waits."""
    scheduler.start()
    interrupt(scheduler, exception)
    scheduler._thread.join(jobs.WAIT_TIMEOUT)
    assert not scheduler._thread.is_alive()


def interrupt(scheduler: Any, exception: type[BaseException]) -> None:
    """Make the thread of a scheduler raise an exception when it waits again."""

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise exception

    event, scheduler._event = scheduler._event, Interrupted()
    event.set()
