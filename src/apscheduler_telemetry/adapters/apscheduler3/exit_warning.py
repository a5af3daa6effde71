"""
Logs a warning when the process ends while a scheduler still has jobs to run.

A `BackgroundScheduler` runs in a daemon thread, and others may be started in one. Python ends it
together with the main thread, and without a message. The event loop of an `AsyncIOScheduler` ends
as silently when the coroutine returns that `asyncio.run` runs.

If the main thread was that of a web server, a test runner or a shell, or was interrupted, the
process was meant to end, and the message has level INFO.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakMethod, ref

from apscheduler.schedulers.base import STATE_RUNNING

from apscheduler_telemetry.core.forks import is_thread_alive
from apscheduler_telemetry.core.labels import label_value
from apscheduler_telemetry.core.observers import ErrorReporter, logger
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.times import to_datetime


def register_exit_warning(
    scheduler: Any,
    get_thread: Callable[[], threading.Thread | None],
    recorder: Recorder,
    error_reporter: ErrorReporter,
) -> None:
    """
    Check at the end of the process whether a scheduler has jobs to run.

    This refers to its arguments weakly.

    Args:
        scheduler: an APScheduler 3 scheduler.
        get_thread: a method that returns the thread of its latest pass over due jobs; None if that
            is not known.
        recorder: has the next runs of its jobs.
        error_reporter: counts a check that fails.
    """
    # By its identity, because a user's scheduler may not be hashable.
    key = id(scheduler)
    _pending_jobs_checks[key] = _PendingJobsCheck(
        ref(scheduler, lambda _: _pending_jobs_checks.pop(key, None)),
        WeakMethod(get_thread),
        ref(recorder),
        ref(error_reporter),
        was_registered_in_pytest=_is_pytest_running(),
    )


def cancel_exit_warning(scheduler: Any) -> None:
    """Do not check a scheduler any more."""
    _pending_jobs_checks.pop(id(scheduler), None)


def describe_pending_jobs_at_exit(
    scheduler: Any, thread: threading.Thread | None, recorder: Recorder, *, is_exit_intended: bool
) -> str | None:
    """
    Return what to log if the process ended now, or None if there are no jobs to run.

    Args:
        scheduler: an APScheduler 3 scheduler.
        thread: that of its latest pass over due jobs; None if that is not known.
        recorder: has the next runs of its jobs.
        is_exit_intended: as of the function.
    """
    if scheduler.state != STATE_RUNNING:
        return None
    thread = getattr(scheduler, "_thread", None) or thread  # a BackgroundScheduler knows its own
    # It is not alive in a forked child.
    if thread is not None and thread.daemon and is_thread_alive(thread):
        cause = "runs in a daemon thread, which ends with the main thread"
        advice = "Keep the main thread alive, or use a BlockingScheduler in it"
    elif _has_event_loop_ended(scheduler):
        cause = "runs in an event loop, which has ended"
        advice = "Keep the event loop running, such as by `await asyncio.Event().wait()`"
    else:
        return None
    next_runs = recorder.next_runs()
    if not next_runs:
        return None
    (_, job_id), next_run = min(next_runs.items(), key=lambda item: item[1])
    at = to_datetime(next_run, scheduler.timezone).isoformat(timespec="seconds")
    pending = (
        f"Exiting with {len(next_runs)} pending job(s) in scheduler {recorder.scheduler_name!r}"
    )
    following = f"Next: {label_value(job_id)!r} at {at}"
    if is_exit_intended:
        return f"{pending}. {following}. To let runs in progress end, call its shutdown() first."
    return (
        f"{pending}: it {cause}. {following}. {advice}; if this is intended, call the scheduler's "
        "shutdown() first."
    )


def is_exit_intended() -> bool:
    """
    Return whether this process ends because something has ended it, and not as its script ran out.

    Python does not say which signals came, so this looks for what had the main thread.
    """
    main = sys.modules.get("__main__")
    program = getattr(getattr(main, "__spec__", None), "name", None) or ""
    return (
        any(module in sys.modules for module in _MODULES_OWNING_MAIN_THREAD)
        or program.startswith("unittest.")
        # Set by Werkzeug's server, which is Flask's; importing Flask loads the module.
        or ("werkzeug.serving" in sys.modules and "WERKZEUG_SERVER_FD" in os.environ)
        or hasattr(sys, "ps1")  # a shell
        or issubclass(getattr(sys, "last_type", None) or object, KeyboardInterrupt)
        or callable(signal.getsignal(signal.SIGTERM))  # it knows how to end
    )


def _has_event_loop_ended(scheduler: Any) -> bool:
    """Return whether this is an AsyncIOScheduler without a loop that runs it."""
    event_loop = getattr(scheduler, "_eventloop", None)
    return event_loop is not None and not event_loop.is_running()


def _has_event_loop_served_jobs(scheduler: Any, recorder: Recorder) -> bool:
    """
    Return whether an event loop that has ended had run jobs before.

    Then the application has kept it running, and a signal, of which asyncio leaves no trace, has
    probably ended it.
    """
    return _has_event_loop_ended(scheduler) and any(
        any(job.stats.outcomes.values()) for job in recorder.job_snapshots()
    )


def _is_pytest_running() -> bool:
    """
    Return whether pytest is running, and not only imported.

    Its variables are gone when the process ends. Programs that a test starts inherit them, but they
    do not load pytest.
    """
    return "_pytest.main" in sys.modules and (
        "PYTEST_VERSION" in os.environ or "PYTEST_CURRENT_TEST" in os.environ
    )


def _log_pending_jobs_at_exit() -> None:
    for check in list(_pending_jobs_checks.values()):
        scheduler, recorder = check.scheduler_ref(), check.recorder_ref()
        error_reporter, get_thread = check.error_reporter_ref(), check.get_thread_ref()
        if scheduler is None or recorder is None or error_reporter is None:
            continue
        try:
            is_intended = (
                check.was_registered_in_pytest
                or is_exit_intended()
                or _has_event_loop_served_jobs(scheduler, recorder)
            )
            thread = None if get_thread is None else get_thread()
            message = describe_pending_jobs_at_exit(
                scheduler, thread, recorder, is_exit_intended=is_intended
            )
        except Exception:  # noqa: BLE001  # the process must still end
            error_reporter.exception("adapter")
            continue
        if message is not None:
            logger.log(logging.INFO if is_intended else logging.WARNING, "%s", message)


_MODULES_OWNING_MAIN_THREAD = (
    "aiohttp.web",
    "bjoern",
    "cheroot.server",
    "daphne.server",
    "django.core.servers.basehttp",
    "eventlet.wsgi",
    "gevent.pywsgi",
    "granian.server",
    "gunicorn.arbiter",
    "hypercorn.run",
    "mod_wsgi",
    "tornado.platform.asyncio",  # as long as there is no event loop, tornado does not load it
    "twisted.web.server",
    "uvicorn.lifespan.off",  # loaded by a server that starts, and not by ``import uvicorn``
    "uvicorn.lifespan.on",
    "uwsgi",
    "waitress.server",
    # test runners
    "django.test.runner",
    # notebooks and shells
    "IPython.terminal.ipapp",
    "ipykernel.kernelapp",
)
"""Modules that are loaded where something else than a script has the main thread until the end."""


class _PendingJobsCheck(NamedTuple):
    scheduler_ref: ref[Any]
    get_thread_ref: WeakMethod[Callable[[], threading.Thread | None]]
    recorder_ref: ref[Recorder]
    error_reporter_ref: ref[ErrorReporter]
    was_registered_in_pytest: bool


_pending_jobs_checks: dict[int, _PendingJobsCheck] = {}
# Registered on import, so that functions that the application registers later run before it: they
# may shut the scheduler down. By then Python has joined all threads that are not daemons.
atexit.register(_log_pending_jobs_at_exit)
