"""
Trace links: which spans the runs of each job link to, also after a restart.

Each run links to the span in which its job was added. A run whose time the application has set also
links to the span in which that was done. Job stores have no place for links, and telemetry does not
change what they pickle: to keep links across restarts, the application passes a mapping.
"""

from __future__ import annotations

import atexit
import json
import threading
import time
import weakref
from collections.abc import MutableMapping
from typing import Any

from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import TrackedJob
from apscheduler_telemetry.adapters.base import OriginPropagator
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children
from apscheduler_telemetry.core.observers import ErrorReporter

ERROR_COMPONENT = "spans"

MAX_FLUSH_SECONDS = 1.0
"""Seconds for which the end of the process may wait until links are stored."""


class TraceLinks:
    """
    Finds the origins that runs link to, stores them, and loads them after a restart.

    Args:
        origin_propagator: finds the current origin.
        context_store: stores origins across restarts; None if they are not stored.
        worker: writes to the store.
        error_reporter: counts failures of `origin_propagator` and `context_store`.
    """

    def __init__(
        self,
        origin_propagator: OriginPropagator,
        context_store: MutableMapping[str, str] | None,
        worker: BackgroundWorker,
        error_reporter: ErrorReporter,
    ) -> None:
        self._origin_propagator = origin_propagator
        self._context_store = context_store
        self._worker = worker
        self._error_reporter = error_reporter
        self._origins_of_pending_jobs: dict[str, Any] = {}
        self._pending_write_count = 0
        self._all_written_event = threading.Event()
        self._lock = threading.RLock()
        if context_store is not None:
            _links_to_flush_at_exit.add(self)
            renew_lock_in_forked_children(self)

    def on_pending_job_added(self, job_id: str) -> None:
        """Note the origin of a job that will enter its store when the scheduler starts."""
        self._origins_of_pending_jobs[job_id] = self._find_current_origin("added")

    def clear_origins_of_pending_jobs(self) -> None:
        """Note that no job is pending any more."""
        self._origins_of_pending_jobs.clear()

    def on_job_added(self, tracked: TrackedJob) -> None:
        """Note the origin of a job that has entered its store, or replaced another one there."""
        job_id = tracked.job_key[1]
        if job_id in self._origins_of_pending_jobs:
            added_origin = self._origins_of_pending_jobs.pop(job_id)
        else:
            added_origin = self._find_current_origin("added")
        tracked.set_origins(added_origin, None)
        self._persist_in_background(tracked)

    def on_next_run_set_by_user(self, tracked: TrackedJob) -> None:
        """Note where the user has set the next run of a job; only that run links to it."""
        is_paused = tracked.next_run is None
        next_run_origin = None if is_paused else self._find_current_origin("triggered")
        tracked.set_origins(tracked.added_origin, next_run_origin)
        self._persist_in_background(tracked)

    def drop_next_run_origin(self, tracked: TrackedJob) -> None:
        """Note that the run whose time was set by the user is submitted."""
        tracked.set_origins(tracked.added_origin, None)
        self._persist_in_background(tracked)

    def on_job_removed(self, tracked: TrackedJob) -> None:
        """Forget the origins of a job that was removed."""
        tracked.set_origins(None, None)
        self._persist_in_background(tracked)

    def load_origins(self, tracked: TrackedJob) -> None:
        """Load the origins of a job that this process, or another one, has stored."""
        if self._context_store is None or not tracked.record.info.persistent:
            return
        try:
            stored = self._context_store.get(_context_store_key(tracked))
            if stored is None:
                return
            origins = json.loads(stored)
            added_origin, next_run_origin = tracked.added_origin, None
            if "added" in origins:
                added_origin = (
                    self._origin_propagator.load("added", origins["added"]) or added_origin
                )
            if "triggered" in origins and origins["due"] == tracked.next_run:
                next_run_origin = self._origin_propagator.load("triggered", origins["triggered"])
            tracked.set_origins(added_origin, next_run_origin)
        except BaseException:  # noqa: BLE001  # the mapping is the user's
            self._error_reporter.exception(ERROR_COMPONENT)

    def flush(self, timeout: float) -> None:
        """Wait until all origins are stored, for at most `timeout` seconds."""
        with self._lock:
            if not self._pending_write_count:
                return
            self._all_written_event.clear()
        self._all_written_event.wait(timeout)

    def _find_current_origin(self, reason: str) -> Any:
        try:
            return self._origin_propagator.find_current_origin(reason)
        except Exception:  # noqa: BLE001
            self._error_reporter.exception(ERROR_COMPONENT)
            return None

    def _persist_in_background(self, tracked: TrackedJob) -> None:
        """Store the origins of a job in the background, if the job outlives the process itself."""
        store = self._context_store
        if store is None or not tracked.record.info.persistent:
            return
        origins: dict[str, Any] = {}
        try:
            if tracked.added_origin is not None:
                origins["added"] = self._origin_propagator.dump(tracked.added_origin)
            if tracked.next_run_origin is not None:
                origins["triggered"] = self._origin_propagator.dump(tracked.next_run_origin)
                origins["due"] = tracked.next_run
        except Exception:  # noqa: BLE001
            self._error_reporter.exception(ERROR_COMPONENT)
        key, value = _context_store_key(tracked), json.dumps(origins) if origins else None

        def write() -> None:
            try:
                if value is None:
                    store.pop(key, None)
                else:
                    store[key] = value
            finally:
                with self._lock:
                    self._pending_write_count -= 1
                    if not self._pending_write_count:
                        self._all_written_event.set()

        with self._lock:
            self._pending_write_count += 1
        self._worker.submit(ERROR_COMPONENT, write)


def _context_store_key(tracked: TrackedJob) -> str:
    return json.dumps(tracked.job_key)


def _flush_all_at_exit() -> None:
    deadline = time.monotonic() + MAX_FLUSH_SECONDS
    for links in list(_links_to_flush_at_exit):
        links.flush(max(0.0, deadline - time.monotonic()))


_links_to_flush_at_exit: weakref.WeakSet[TraceLinks] = weakref.WeakSet()
atexit.register(_flush_all_at_exit)
