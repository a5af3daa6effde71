"""
Counts rows that a job store cannot deserialize, and preserves them while telemetry reads the store.

The persistent stores of APScheduler 3 delete such rows when they list jobs, and only log it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from apscheduler_telemetry.adapters.apscheduler3.patching import PatchSet
from apscheduler_telemetry.core.model import SchedulerErrorKind
from apscheduler_telemetry.core.recorder import Recorder

_DESERIALIZE_METHOD_NAME = "_reconstitute_job"
"""The method of all persistent stores of APScheduler 3, and of django-apscheduler's."""


class UndeserializableJob:
    """Takes the place of a job that cannot be deserialized, while telemetry reads the store."""

    id = None
    next_run_time = None


class FailedRowCounter:
    """
    Counts rows that could not be deserialized.

    Attributes:
        total: how many.
    """

    def __init__(self) -> None:
        self.total = 0

    def increment(self) -> None:
        """Count one more."""
        self.total += 1


class JobDeserializer:
    """
    Deserializes the jobs of one store, and counts those that cannot be deserialized.

    Args:
        store: an APScheduler 3 job store.
        patches: replaces the store's method.
        recorder: counts rows that the store deletes because it cannot deserialize them.

    Attributes:
        is_supported: whether the store has the method. If not, reading the store may delete rows.
    """

    def __init__(self, store: Any, *, patches: PatchSet, recorder: Recorder) -> None:
        self._store = store
        self._patches = patches
        self._recorder = recorder
        self._thread_state = _ThreadFailureHandling()
        self.is_supported = hasattr(store, _DESERIALIZE_METHOD_NAME)
        if self.is_supported:
            patches.patch(store, _DESERIALIZE_METHOD_NAME, self._wrap_reconstitute_job)

    def deserialize_job(self, state: bytes) -> Any:
        """Return the job with this pickled state, or an `UndeserializableJob`."""
        with self.preserving_rows():
            return getattr(self._store, _DESERIALIZE_METHOD_NAME)(state)

    @property
    def is_preserving_rows_in_this_thread(self) -> bool:
        """Whether this thread is in the context of `preserving_rows`."""
        return self._thread_state.is_preserving

    def preserving_rows(self) -> AbstractContextManager[None]:
        """
        Make the store return an `UndeserializableJob` for rows that it would delete.

        This applies only to the current thread, in which telemetry reads the store.
        """
        return self._thread_state.preserving_rows()

    def counting_failures(self) -> AbstractContextManager[FailedRowCounter]:
        """
        Count the rows that the store cannot deserialize while it lists jobs in this thread.

        A lookup of a single job does not count: it raises an exception and deletes nothing.
        """
        return self._thread_state.counting_failures()

    def _wrap_reconstitute_job(self, original: Callable[..., Any]) -> Callable[..., Any]:
        thread_state, patches, recorder = self._thread_state, self._patches, self._recorder

        def reconstitute_job(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except BaseException:  # as the store does, before it deletes the row
                if thread_state.is_preserving:
                    return UndeserializableJob()
                if thread_state.failure_counter is not None and patches.is_active:
                    thread_state.failure_counter.increment()
                    recorder.count_scheduler_error(SchedulerErrorKind.RESTORE)
                raise

        return reconstitute_job


class _ThreadFailureHandling(threading.local):
    is_preserving = False
    failure_counter: FailedRowCounter | None = None

    @contextmanager
    def preserving_rows(self) -> Iterator[None]:
        before = self.is_preserving
        self.is_preserving = True
        try:
            yield
        finally:
            self.is_preserving = before

    @contextmanager
    def counting_failures(self) -> Iterator[FailedRowCounter]:
        before = self.failure_counter
        failure_counter = self.failure_counter = FailedRowCounter()
        try:
            yield failure_counter
        finally:
            self.failure_counter = before
