"""
Hooks on a job store: whatever happens to a job, by whatever way, goes through its store.

Nothing here reads a store on its own, except `StoreHook.read`, and that deletes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.base import STATE_STOPPED

from apscheduler_telemetry._ledger import Entry, Removal
from apscheduler_telemetry._pipeline import renew_lock_after_fork
from apscheduler_telemetry._record import ErrorKind, Outcome
from apscheduler_telemetry._v3 import _schedule

if TYPE_CHECKING:
    from apscheduler_telemetry._v3 import Adapter

_RESTORE = "_reconstitute_job"
"""How all persistent stores of APScheduler 3, and django-apscheduler's, unpickle one row."""


class StoreHook:
    """What is laid over the methods of one job store."""

    def __init__(self, adapter: Adapter, store: Any, alias: str) -> None:
        self._adapter = adapter
        self._store = store
        self._ledger = adapter.ledger
        self._lock = threading.Lock()
        self._reading: _Reading | None = None
        self._unrestored: int | None = None
        self.open(alias)
        lay = adapter.shadows.lay
        lay(store, "add_job", self._add_job)
        lay(store, "update_job", self._update_job)
        lay(store, "remove_job", self._remove_job)
        lay(store, "remove_all_jobs", self._remove_all_jobs)
        lay(store, "get_due_jobs", self._get_due_jobs)
        lay(store, "get_all_jobs", self._get_all_jobs)
        lay(store, "get_next_run_time", self._get_next_run_time)
        if hasattr(store, _RESTORE):
            lay(store, _RESTORE, self._reconstitute_job)
        renew_lock_after_fork(self)

    def open(self, alias: str) -> None:
        """Count the jobs of the store under this alias."""
        self.alias: str | None = alias
        self._ledger.open_store(alias)

    def close(self) -> None:
        """Take no more note of the store, which was removed from the scheduler."""
        with self._lock:
            self.alias = None

    @property
    def persistent(self) -> bool:
        return not isinstance(self._store, MemoryJobStore)

    def read(self) -> None:
        """
        Take the jobs into the books that are in the store already.

        Called once after a start, for a persistent store off the scheduler's thread. What changes
        meanwhile is known better from the hooks, and is left as they found it.
        """
        if not self.persistent:
            # Its lists are not made to be read while they change; and it is quick.
            with self._adapter.scheduler._jobstores_lock:  # noqa: SLF001
                self._read()
        elif hasattr(self._store, _RESTORE):  # else reading it may delete what it cannot restore
            self._read()

    def _read(self) -> None:
        if not self._adapter.active or self._adapter.scheduler.state == STATE_STOPPED:
            return
        with self._lock:
            alias = self.alias
            if alias is None:
                return
            self._reading = reading = _Reading(threading.get_ident())
        try:
            before = self._ledger.entries(alias)
            jobs = self._store.get_all_jobs()
            for job in jobs:
                if not isinstance(job, _Unrestored):
                    self._found(job, alias, reading)
            there = {job.id for job in jobs}
            if None not in there:
                self._forget([e for e in before if e.key[1] not in there], reading)
        finally:
            self._reading = None

    def _found(self, job: Any, alias: str, reading: _Reading) -> None:
        try:
            info = self._adapter.describe(job, alias)  # without the lock: it asks the user's code
            with self._lock:
                if self.alias == alias and not reading.is_outdated(job.id):
                    self._adapter.enter(info, job)
        except Exception:  # noqa: BLE001  # one job's, so that the others are known
            self._adapter.guard.failed("adapter")

    def _forget(self, entries: list[Entry], reading: _Reading) -> None:
        """Take jobs out of the books that went unseen, as when a memory store was shut down."""
        with self._lock:
            for entry in entries:
                if not reading.is_outdated(entry.key[1]):
                    self._ledger.remove(entry, Removal.BROKEN)

    def _add_job(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def add_job(job: Any) -> None:
            original(job)
            self._note(job.id, lambda alias: self._adapter.added(job, alias))

        return add_job

    def _update_job(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def update_job(job: Any) -> None:
            self._counting_errors(lambda: original(job))
            self._note(job.id, lambda alias: self._adapter.updated(job, alias))

        return update_job

    def _remove_job(self, original: Callable[[str], None]) -> Callable[[str], None]:
        def remove_job(job_id: str) -> None:
            self._counting_errors(lambda: original(job_id))
            self._note(job_id, lambda alias: self._adapter.removed(job_id, alias))

        return remove_job

    def _remove_all_jobs(self, original: Callable[[], None]) -> Callable[[], None]:
        def remove_all_jobs() -> None:
            original()
            # A memory store empties itself when the scheduler is shut down. That takes no
            # promise back: a process that goes and never comes back must be missed.
            if self._adapter.scheduler.state != STATE_STOPPED:
                self._note(None, self._withdraw_all)

        return remove_all_jobs

    def _get_due_jobs(self, original: Callable[[datetime], Any]) -> Callable[[datetime], Any]:
        def get_due_jobs(now: datetime) -> Any:
            jobs, unrestored = self._listed(lambda: self._counting_errors(lambda: original(now)))
            if not isinstance(jobs, (list, tuple)):
                jobs = list(jobs)  # a store of the user's may give what can be read only once
            self._note(None, lambda alias: self._adapter.due(jobs, alias))
            if unrestored:
                self._note(None, lambda alias: self._drop_unrestored(alias, jobs, now))
            return jobs

        return get_due_jobs

    def _get_all_jobs(self, original: Callable[[], Any]) -> Callable[[], Any]:
        def get_all_jobs() -> Any:
            if self._is_reading:
                return original()
            jobs, unrestored = self._listed(original)
            if unrestored:
                self._note(None, lambda alias: self._drop_unrestored(alias, jobs, None))
            return jobs

        return get_all_jobs

    def _get_next_run_time(self, original: Callable[[], Any]) -> Callable[[], Any]:
        def get_next_run_time() -> Any:
            return self._counting_errors(original)

        return get_next_run_time

    def _reconstitute_job(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def reconstitute_job(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            except BaseException:
                if self._is_reading:
                    return _Unrestored()  # so that the store does not delete the row
                if self._unrestored is not None and self._adapter.active and self.alias is not None:
                    self._unrestored += 1
                    self._ledger.error(ErrorKind.RESTORE)
                raise

        return reconstitute_job

    @property
    def _is_reading(self) -> bool:
        return self._reading is not None and self._reading.thread == threading.get_ident()

    def _listed(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """
        Return the jobs that `call` lists, and how many it could not restore.

        Listing deletes these and only logs it; whoever looks up a single one is told.
        """
        self._unrestored = 0
        try:
            jobs = call()
            return jobs, self._unrestored
        finally:
            self._unrestored = None

    def _counting_errors(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except BaseException:
            # Elsewhere the caller is told; inside the loop it is only logged, or kills the loop.
            if self._adapter.active and self._adapter.loop.is_inside:
                self._ledger.error(ErrorKind.JOBSTORE)
            raise

    def _note(self, job_id: str | None, what: Callable[[str], None]) -> None:
        """Do `what`, which is given the alias; about one job if there is a `job_id`, or all."""
        if not self._adapter.active:
            return
        try:
            with self._lock:
                alias = self.alias
                if self._reading is not None and job_id is not None:
                    self._reading.changed.add(job_id)
            if alias is not None:
                what(alias)
        except Exception:  # noqa: BLE001
            self._adapter.guard.failed("adapter")

    def _withdraw_all(self, alias: str) -> None:
        with self._lock:
            if self._reading is not None:
                self._reading.all_changed = True
        for entry in self._ledger.entries(alias):
            self._ledger.remove(entry, Removal.WITHDRAWN)

    def _drop_unrestored(self, alias: str, restored: Any, now: datetime | None) -> None:
        """
        Take the jobs out of the books whose rows the store has just deleted.

        It tells their number only; which ones they are follows from those that are missing.
        """
        there = {job.id for job in restored}
        for entry in self._ledger.entries(alias):
            was_due = entry.promise is not None and now is not None
            was_due = was_due and entry.promise <= now.timestamp()  # type: ignore[operator, union-attr]
            if entry.key[1] in there or (now is not None and not was_due):
                continue
            if was_due:
                at = datetime.fromtimestamp(entry.promise, now.tzinfo)  # type: ignore[arg-type, union-attr]
                self._adapter.never_ran(entry, Outcome.LOST, _schedule.Backlog(1, [at]))
            self._ledger.remove(entry, Removal.BROKEN)


class _Reading:
    """
    One reading of a store for telemetry, and what has changed since it began.

    Attributes:
        thread: identifier of the thread that reads.
        changed: ids of jobs that were added, updated or removed meanwhile.
        all_changed: whether all of them were removed meanwhile.
    """

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.changed: set[str] = set()
        self.all_changed = False

    def is_outdated(self, job_id: str) -> bool:
        """Tell whether what was read of a job may not be so any more."""
        return self.all_changed or job_id in self.changed


class _Unrestored:
    """Stands for a job that cannot be restored, while the store is read for telemetry."""

    id = None
    next_run_time = None
