"""
Logs a warning when the process ends while a scheduler still has jobs to run.

A `BackgroundScheduler` runs in a daemon thread. Python ends it together with the main thread, and
without a message.
"""

from __future__ import annotations

import atexit
from datetime import datetime
from typing import Any, NamedTuple
from weakref import ref

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_RUNNING

from apscheduler_telemetry.core.labels import label_value
from apscheduler_telemetry.core.observers import ErrorReporter, logger
from apscheduler_telemetry.core.recorder import Recorder


def warn_of_scheduled_jobs_at_exit(
    scheduler: Any, recorder: Recorder, error_reporter: ErrorReporter
) -> None:
    """
    Check at the end of the process whether a scheduler has jobs to run.

    This refers to its arguments weakly.

    Args:
        scheduler: an APScheduler 3 scheduler.
        recorder: has the next runs of its jobs.
        error_reporter: counts a check that fails.
    """
    # By its identity, because a user's scheduler may not be hashable.
    key = id(scheduler)
    _exit_checks[key] = _ExitCheck(
        ref(scheduler, lambda _: _exit_checks.pop(key, None)), ref(recorder), ref(error_reporter)
    )


def cancel_exit_warning(scheduler: Any) -> None:
    """Do not check a scheduler any more."""
    _exit_checks.pop(id(scheduler), None)


def scheduled_jobs_warning(scheduler: Any, recorder: Recorder) -> str | None:
    """Return the warning to log if the process ended now, or None if there is no reason for one."""
    thread = getattr(scheduler, "_thread", None)
    if (
        not isinstance(scheduler, BackgroundScheduler)
        or scheduler.state != STATE_RUNNING
        or thread is None
        or not (thread.daemon and thread.is_alive())  # it is not alive in a forked child
    ):
        return None
    next_runs = recorder.next_runs()
    if not next_runs:
        return None
    (_, job_id), next_run = min(next_runs.items(), key=lambda item: item[1])
    at = datetime.fromtimestamp(next_run, scheduler.timezone).isoformat(timespec="seconds")
    return (
        f"Exiting with {len(next_runs)} pending job(s) in scheduler {recorder.scheduler_name!r}: "
        f"it runs in a daemon thread, which ends with the main thread. Next: "
        f"{label_value(job_id)!r} at {at}. Keep the main thread alive or use BlockingScheduler; if "
        "this is intended, call the scheduler's shutdown() first."
    )


def _warn_of_scheduled_jobs() -> None:
    for check in list(_exit_checks.values()):
        scheduler, recorder = check.scheduler_ref(), check.recorder_ref()
        error_reporter = check.error_reporter_ref()
        if scheduler is None or recorder is None or error_reporter is None:
            continue
        try:
            message = scheduled_jobs_warning(scheduler, recorder)
        except Exception:  # noqa: BLE001  # the process must still end
            error_reporter.exception("adapter")
            continue
        if message is not None:
            logger.warning("%s", message)


class _ExitCheck(NamedTuple):
    scheduler_ref: ref[Any]
    recorder_ref: ref[Recorder]
    error_reporter_ref: ref[ErrorReporter]


_exit_checks: dict[int, _ExitCheck] = {}
# Registered on import, so that functions that the application registers later run before it: they
# may shut the scheduler down. By then Python has joined all threads that are not daemons.
atexit.register(_warn_of_scheduled_jobs)
