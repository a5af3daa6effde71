"""
Says so when a process ends whose scheduler still had jobs to run.

A `BackgroundScheduler` lives in a daemon thread, which Python kills without a word when the main
thread is through. People find that out when nothing has run.
"""

from __future__ import annotations

import atexit
import weakref
from datetime import datetime
from typing import TYPE_CHECKING

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_RUNNING

from apscheduler_telemetry.core.labels import text
from apscheduler_telemetry.core.observers import logger

if TYPE_CHECKING:
    from apscheduler_telemetry.adapters.apscheduler3.adapter import Adapter


def watch(adapter: Adapter) -> None:
    """Look at the scheduler of `adapter` when the process ends, if both are still there."""
    _adapters.add(adapter)


def unwatch(adapter: Adapter) -> None:
    """Do not look at it."""
    _adapters.discard(adapter)


def what_is_left(adapter: Adapter) -> str | None:
    """Return what to say if the process ended now, None if nothing that is not meant."""
    scheduler = adapter.scheduler
    thread = getattr(scheduler, "_thread", None)
    if (
        not isinstance(scheduler, BackgroundScheduler)
        or scheduler.state != STATE_RUNNING
        or thread is None
        or not (thread.daemon and thread.is_alive())  # which it is not after a fork
    ):
        return None
    promises = adapter.ledger.promises()
    if not promises:
        return None
    (_, job_id), at = min(promises.items(), key=lambda item: item[1])
    when = datetime.fromtimestamp(at, scheduler.timezone).isoformat(timespec="seconds")
    return (
        f"The process ends, and with it the scheduler {adapter.ledger.scheduler!r}, which runs in "
        f"a daemon thread and has {len(promises)} job(s) to run; {text(job_id)!r} would be next, "
        f"at {when}. Keep the main thread alive, or use BlockingScheduler. If this is meant, call "
        "the scheduler's shutdown() first."
    )


def _at_exit() -> None:
    for adapter in list(_adapters):
        try:
            message = what_is_left(adapter)
        except Exception:  # noqa: BLE001  # the end of the process is the user's
            adapter.guard.failed("adapter")
            continue
        if message is not None:
            logger.warning("%s", message)


_adapters: weakref.WeakSet[Adapter] = weakref.WeakSet()
# When this is imported, so that what the application registers is called before: it may be a
# shutdown. Python has joined all threads by then that are no daemons.
atexit.register(_at_exit)
