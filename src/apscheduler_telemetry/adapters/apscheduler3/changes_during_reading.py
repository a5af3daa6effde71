"""
Tracks which jobs of a store this process is changing, while another thread reads the store.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable
from contextlib import AbstractContextManager

from apscheduler_telemetry.core.locks import renew_lock_in_forked_children, synchronized


class _StoreWideChange:
    """A change that concerns no single job."""


_ALL_JOBS, _LISTING = _StoreWideChange(), _StoreWideChange()


class ReadingInProgress:
    """
    One reading of a store by the telemetry, and the jobs that have changed since it began.

    Attributes:
        alias: of the store when the reading began.
    """

    def __init__(self, alias: str, changed: Iterable[object]) -> None:
        self.alias = alias
        self._changed_scopes = set(changed)

    def add_change(self, scope: object) -> None:
        """Note what is being changed: the id of a job, or a `_StoreWideChange`."""
        self._changed_scopes.add(scope)

    def has_job_changed_since_start(self, job_id: Hashable) -> bool:
        """Return whether a job may have changed since it was read."""
        return job_id in self._changed_scopes or _ALL_JOBS in self._changed_scopes


class ChangesDuringReading:
    """
    The changes in progress in one job store.

    A reading must not undo changes that are made during it: a job that is removed after it was read
    would come back. So the read state of a job that has changed is dropped.

    Attributes:
        alias: of the store; None while the scheduler does not have it.
    """

    def __init__(self) -> None:
        self.alias: str | None = None
        self._lock = threading.RLock()
        self._counts_of_changes_in_progress: dict[object, int] = {}
        self._readings: set[ReadingInProgress] = set()
        renew_lock_in_forked_children(self)

    @synchronized
    def set_alias(self, alias: str) -> None:
        """Note that the scheduler has the store, under this alias."""
        self.alias = alias

    @synchronized
    def clear_alias(self) -> None:
        """Note that the scheduler does not have the store any more."""
        self.alias = None

    # By the hooks

    def changing_job(self, job_id: Hashable) -> AbstractContextManager[None]:
        """Note that one job is being changed in this context."""
        return _ChangeInProgress(self, job_id)

    def changing_all_jobs(self) -> AbstractContextManager[None]:
        """Note that all jobs are being changed in this context."""
        return _ChangeInProgress(self, _ALL_JOBS)

    def listing_jobs(self) -> AbstractContextManager[None]:
        """Note that jobs are being listed in this context, which may delete some of them."""
        return _ChangeInProgress(self, _LISTING)

    @synchronized
    def begin_change(self, scope: object) -> None:
        """Note that a change begins: the id of a job, or a `_StoreWideChange`."""
        self._counts_of_changes_in_progress[scope] = (
            self._counts_of_changes_in_progress.get(scope, 0) + 1
        )
        for reading in self._readings:
            reading.add_change(scope)

    @synchronized
    def end_change(self, scope: object) -> None:
        """Note that a change is over."""
        self._counts_of_changes_in_progress[scope] -= 1
        if not self._counts_of_changes_in_progress[scope]:
            del self._counts_of_changes_in_progress[scope]

    # By a reading

    @synchronized
    def start_reading(self) -> ReadingInProgress | None:
        """Begin to note what changes; return None if the scheduler does not have the store."""
        if self.alias is None:
            return None
        # A change in progress may be in the store already, but not in the metrics state.
        reading = ReadingInProgress(self.alias, self._counts_of_changes_in_progress)
        self._readings.add(reading)
        return reading

    @synchronized
    def end_reading(self, reading: ReadingInProgress) -> None:
        """Note nothing more for a reading."""
        self._readings.discard(reading)

    @synchronized
    def apply_if_unchanged(
        self, reading: ReadingInProgress, job_id: Hashable, apply: Callable[[], None]
    ) -> None:
        """Call `apply` for a job that was read, unless the job has changed since."""
        if self.alias == reading.alias and not reading.has_job_changed_since_start(job_id):
            apply()

    @synchronized
    def apply_removal_if_unchanged(
        self, reading: ReadingInProgress, job_id: Hashable, apply: Callable[[], None]
    ) -> None:
        """Call `apply` for a job that a reading did not find, unless the job has changed since."""
        # A listing may be deleting a row that it cannot deserialize. It will report that itself.
        if _LISTING not in self._counts_of_changes_in_progress:
            self.apply_if_unchanged(reading, job_id, apply)


class _ChangeInProgress(AbstractContextManager[None]):
    """The context in which a change is in progress."""

    def __init__(self, changes: ChangesDuringReading, scope: object) -> None:
        self._changes = changes
        self._scope = scope

    def __enter__(self) -> None:
        self._changes.begin_change(self._scope)

    def __exit__(self, *_: object) -> None:
        self._changes.end_change(self._scope)
