"""
Hooks on a job store: whatever happens to a job, by whatever way, goes through its store.

A store is read on its own after a start and every few seconds from then on, and before the user
changes or removes a job that is not known yet; never for a scrape, and nothing is deleted.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.base import STATE_STOPPED

from apscheduler_telemetry.adapters.apscheduler3 import triggers as _schedule
from apscheduler_telemetry.adapters.apscheduler3.background_worker import Aside
from apscheduler_telemetry.adapters.apscheduler3.jobstore_reader import (
    BATCH,
    NotSharedError,
    Rows,
    rows_of,
)
from apscheduler_telemetry.core.model import ErrorKind, Outcome
from apscheduler_telemetry.core.observers import logger, renew_lock_after_fork
from apscheduler_telemetry.core.recorder import Entry, Removal

if TYPE_CHECKING:
    from apscheduler_telemetry.adapters.apscheduler3.adapter import Adapter

_ALL, _LISTING = object(), object()
"""What may be under way besides the change of one job: of all of them, or a listing of them."""
_TOLERANCE = 1e-3
"""Seconds by which the time in a row may differ from that of the job: databases round."""
_RESTORE = "_reconstitute_job"
"""How all persistent stores of APScheduler 3, and django-apscheduler's, unpickle one row."""


class StoreHook:
    """What is laid over the methods of one job store."""

    EVERY = 5.0
    """Seconds between two readings: what other processes do is to be seen by the next scrape."""
    SHARE = 0.05
    """
    Of the time that readings may take at most; after one that took a second, none for 20 seconds.

    A store that is slow is not made slower still.
    """

    def __init__(self, adapter: Adapter, store: Any, alias: str) -> None:
        self._adapter = adapter
        self._store = store
        self.persistent = not isinstance(store, MemoryJobStore)
        self._ledger = adapter.ledger
        self._lock = threading.RLock()
        # Of its own, as a server that does not answer holds it up.
        self._aside = Aside(adapter.guard, adapter.untraced)
        self._rows: Rows | None = None
        self._round = 0
        self._failing = False
        self._in_next_pass = False
        self._spoilt: dict[str, float | None] = {}
        self._reading: _Reading | None = None
        self._peeking: int | None = None
        self._under_way: Counter[object] = Counter()
        self._unrestored: int | None = None
        self.open(alias)
        lay = adapter.shadows.lay
        self._due_jobs = store.get_due_jobs
        lay(store, "add_job", self._add_job)
        lay(store, "update_job", self._update_job)
        lay(store, "remove_job", self._remove_job)
        lay(store, "remove_all_jobs", self._remove_all_jobs)
        lay(store, "get_due_jobs", self._get_due_jobs)
        lay(store, "get_all_jobs", self._get_all_jobs)
        if type(store) is not MemoryJobStore:  # whose cannot fail, and is called in every pass
            lay(store, "get_next_run_time", self._get_next_run_time)
        if hasattr(store, _RESTORE):
            lay(store, _RESTORE, self._reconstitute_job)
        renew_lock_after_fork(self)

    def open(self, alias: str) -> None:
        """Count the jobs of the store under this alias."""
        self.alias: str | None = alias
        self._ledger.open_store(alias, exact=not self.persistent)

    def close(self) -> None:
        """Take no more note of the store, which was removed from the scheduler."""
        with self._lock:
            self.alias = None
            self._round += 1

    def stop(self) -> None:
        """Read no more."""
        self._aside.stop()

    def read(self) -> None:
        """
        Take the jobs into the books that are in the store already, and keep them up to date.

        Called after a start. What this process changes is known better from the hooks; what others
        change is seen by reading the store again and again, where that is cheap.
        """
        if not self.persistent:
            # Its lists are not made to be read while they change; and it is quick.
            with self._adapter.scheduler._jobstores_lock:  # noqa: SLF001
                self._read_all()
            return
        with self._lock:
            self._round += 1
            self._spoilt.clear()
        self._failing = False
        try:
            self._rows = rows_of(self._store)
        except NotSharedError:
            self._in_next_pass = True
            return
        # Else reading it may delete what it cannot restore.
        if self._rows is not None or hasattr(self._store, _RESTORE):
            # Aside: a slow server must neither hold up start() nor make a due job late.
            self._read_later(0)

    # Reading aside

    def _read_later(self, seconds: float) -> None:
        itself, number = weakref.ref(self), self._round

        def read() -> None:
            hook = itself()  # weakly: this may wait for long, and is to keep no scheduler alive
            if hook is not None and hook._round == number:  # noqa: SLF001  # ours
                hook._read_now()  # noqa: SLF001

        self._aside.do("adapter", read, after=seconds)

    def _read_now(self) -> None:
        """Read the store, and again after a while if that is to be done."""
        if not self._is_to_be_read:
            return
        begin = time.perf_counter()
        again = True
        try:
            if self._rows is None:
                self._read_all()
                again = False
            else:
                self._read_changes(self._rows)
        except _ReadingError as error:
            self._could_not_read(error)
        except Exception:  # noqa: BLE001  # the next time may do better
            self._adapter.guard.failed("adapter")
        if again:
            spent = time.perf_counter() - begin
            self._read_later(max(self.EVERY, spent / self.SHARE))

    @property
    def _is_to_be_read(self) -> bool:
        """Whether the scheduler runs, in this process: a fork must not use its connections."""
        adapter = self._adapter
        runs = adapter.scheduler.state != STATE_STOPPED and adapter.loop.pid == os.getpid()
        return runs and adapter.active and self.alias is not None

    def _could_not_read(self, error: _ReadingError) -> None:
        """Note that the store failed us: no failure of telemetry, and said once until it ends."""
        alias, cause = self.alias, error.__cause__
        if alias is None:
            return
        self._ledger.store_read(alias, None)
        if not self._failing:
            self._failing = True
            logger.warning(
                "apscheduler-telemetry could not read the job store %r (%s); it tries again, and "
                "shows meanwhile what it knew at "
                "apscheduler_jobstore_last_read_timestamp_seconds",
                alias,
                type(cause).__name__,
            )

    def _read_all(self, _: str | None = None) -> None:
        """Read the store once by its own means, which unpickle all that is in it."""
        with self._begun_reading() as reading:
            if reading is None:
                return
            before = {entry.key[1]: entry for entry in self._ledger.entries(reading.alias)}
            with _asking():
                jobs = self._store.get_all_jobs()
            there = set()
            for job in jobs:
                there.add(job.id)
                if not isinstance(job, _Unrestored):
                    self._found(job, reading)
            if None not in there:
                gone = [entry for job_id, entry in before.items() if job_id not in there]
                self._forget(gone, reading, Removal.BROKEN)

    def _read_changes(self, rows: Rows) -> None:
        """Ask the store which jobs it has and when they run, and for those that are news."""
        with self._begun_reading() as reading:
            if reading is None:
                return
            before = {entry.key[1]: entry for entry in self._ledger.entries(reading.alias)}
            try:
                with _asking():
                    listing = rows.listing()
                news = [i for i, at in listing.items() if self._is_news(before.get(i), i, at)]
                for start in range(0, len(news), BATCH):
                    with _asking():
                        states = rows.states(news[start : start + BATCH])
                    for job_id, state in states:
                        self._restore(job_id, state, listing[job_id], reading)
            finally:
                rows.close()
            gone = [entry for job_id, entry in before.items() if job_id not in listing]
            # Who removes jobs in another process removes this or that. If nothing is left of
            # several, the store has lost them: nobody takes back so many promises at once.
            lost = not listing and len(gone) > 1
            self._forget(gone, reading, Removal.BROKEN if lost else Removal.WITHDRAWN)
            for job_id in self._spoilt.keys() - listing:
                del self._spoilt[job_id]

    def _is_news(self, entry: Entry | None, job_id: str, at: float | None) -> bool:
        if job_id in self._spoilt and self._spoilt[job_id] == at:
            return False  # it would not be restored this time either
        if entry is None:
            return True
        if at is None or entry.promise is None:
            return at is not entry.promise
        return abs(at - entry.promise) > _TOLERANCE

    def _restore(self, job_id: str, state: bytes, at: float | None, reading: _Reading) -> None:
        job = getattr(self._store, _RESTORE)(state)
        if isinstance(job, _Unrestored):
            self._spoilt[job_id] = at
        else:
            self._found(job, reading)

    @contextmanager
    def _begun_reading(self) -> Iterator[_Reading | None]:
        """Take note of what changes meanwhile; None if the store is not to be read at all."""
        alias, begin = self.alias, self._adapter.clock()
        if alias is None or not self._is_to_be_read:
            yield None
            return
        with self._lock:
            # What is being changed just now may be in the store already, and not in the books.
            self._reading = reading = _Reading(alias, self._under_way)
        try:
            yield reading
        finally:
            self._reading = None
        self._ledger.store_read(alias, begin)
        self._failing = False

    def _found(self, job: Any, reading: _Reading) -> None:
        try:
            alias = reading.alias
            info = self._adapter.describe(job, alias)  # without the lock: it asks the user's code
            with self._lock:
                if self.alias == alias and not reading.is_outdated(job.id):
                    self._adapter.found(job, alias, info)
        except Exception:  # noqa: BLE001  # one job's, so that the others are known
            self._adapter.guard.failed("adapter")

    def _forget(self, entries: Iterable[Entry], reading: _Reading, removal: Removal) -> None:
        """Take jobs out of the books that went unseen."""
        with self._lock:
            if self._under_way[_LISTING]:
                return  # which may be deleting what it cannot restore, and tell us in a moment
            for entry in entries:
                if not reading.is_outdated(entry.key[1]):
                    self._adapter.went(entry, removal)

    # Reading before a change

    def _look_up(self, job_id: str) -> None:
        """
        Take a job into the books that is not known yet, as it was before the user changes it.

        At a start this is how to learn what was due while no process was there to run it.
        """
        alias = self.alias
        if not (alias and self.persistent and self._adapter.active):
            return
        if self._ledger.entry(alias, job_id) is not None:
            return
        try:
            job = self._store.lookup_job(job_id)
        except Exception:  # noqa: BLE001  # it cannot be restored, or the user will hear of it
            return
        if job is not None:
            self._note(self._adapter.found, job)

    def _look_up_due(self) -> None:
        """Do the same for all jobs that are due."""
        alias = self.alias
        if not (alias and self._adapter.active and hasattr(self._store, _RESTORE)):
            return
        self._peeking = threading.get_ident()  # so that nothing is deleted, nor logged
        try:
            jobs = self._due_jobs(datetime.now(self._adapter.scheduler.timezone))
        except Exception:  # noqa: BLE001
            return
        finally:
            self._peeking = None
        for job in jobs:
            if not isinstance(job, _Unrestored) and self._ledger.entry(alias, job.id) is None:
                self._note(self._adapter.found, job)

    # The hooks

    def _add_job(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def add_job(job: Any) -> None:
            with self._changing(job.id):
                original(job)
                self._note(self._adapter.added, job)

        return add_job

    def _update_job(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        adapter, loop, is_exact = self._adapter, self._adapter.loop, not self.persistent

        def update_job(job: Any) -> None:
            if job is loop.job and (entry := loop.entry) is not None and is_exact:
                # After every run. Nobody reads it meanwhile, as that takes the scheduler's lock.
                try:
                    original(job)
                except BaseException:
                    self._failed()
                    raise
                next_run, until = job.next_run_time, entry.steady_until
                if until is None or next_run < until:
                    loop.job = None
                    entry.next_run = next_run
                    entry.account.has_changed = True
                else:
                    self._note(adapter.updated, job)
                return
            if not loop.goes_on(job.id):
                self._look_up(job.id)
            with self._changing(job.id):
                self._counting_errors(original, job)
                self._note(adapter.updated, job)

        return update_job

    def _remove_job(self, original: Callable[[str], None]) -> Callable[[str], None]:
        def remove_job(job_id: str) -> None:
            if not self._adapter.loop.is_inside:
                self._look_up(job_id)
            with self._changing(job_id):
                self._counting_errors(original, job_id)
                self._note(self._adapter.removed, job_id)

        return remove_job

    def _remove_all_jobs(self, original: Callable[[], None]) -> Callable[[], None]:
        def remove_all_jobs() -> None:
            # A memory store empties itself when the scheduler is shut down. That takes no
            # promise back: a process that goes and never comes back must be missed.
            if self._adapter.scheduler.state == STATE_STOPPED:
                original()
                self._note(self._ledger.let_go)
                return
            self._look_up_due()
            with self._changing(_ALL):
                original()
                self._note(self._adapter.removed_all)

        return remove_all_jobs

    def _get_due_jobs(self, original: Callable[[datetime], Any]) -> Callable[[datetime], Any]:
        adapter, loop = self._adapter, self._adapter.loop

        def get_due_jobs(now: datetime) -> Any:
            if loop.inside is None or loop.is_bypassed:
                loop.begins_past_the_hook()
            if not self.persistent:
                try:
                    jobs = original(now)
                    if type(jobs) is not list:
                        jobs = _as_list(jobs)
                except BaseException:
                    self._failed()
                    raise
                adapter.due = jobs
                if adapter.has_stateful:
                    self._note(adapter.remember, jobs)
                return jobs
            with self._changing(_LISTING):
                jobs, unrestored = self._listed(lambda: self._counting_errors(original, now))
                jobs = _as_list(jobs)
                self._note(adapter.recognise, jobs)
                adapter.due = jobs
                if adapter.has_stateful:
                    self._note(adapter.remember, jobs)
                if unrestored:
                    self._note(lambda alias: self._drop_unrestored(alias, jobs, now))
            if self._in_next_pass and loop.is_inside:
                # By the scheduler's own connection, in its own thread, where it has just ended a
                # transaction of its own: a moment at which ours changes nothing for anybody.
                self._in_next_pass = False
                self._note(self._read_all)
            return jobs

        return get_due_jobs

    def _get_all_jobs(self, original: Callable[[], Any]) -> Callable[[], Any]:
        def get_all_jobs() -> Any:
            if self._is_reading:
                return original()
            with self._changing(_LISTING):
                jobs, unrestored = self._listed(original)
                if unrestored:
                    self._note(lambda alias: self._drop_unrestored(alias, jobs, None))
            return jobs

        return get_all_jobs

    def _get_next_run_time(self, original: Callable[[], Any]) -> Callable[[], Any]:
        def get_next_run_time() -> Any:
            try:
                return original()
            except BaseException:
                self._failed()
                raise

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
        """Whether it is telemetry that reads the store in this thread."""
        reading = self._reading
        thread = threading.get_ident()
        return self._peeking == thread or (reading is not None and reading.thread == thread)

    @contextmanager
    def _changing(self, what: object) -> Iterator[None]:
        """Take note that a job (its id), or `_ALL`, is being changed, for a reading meanwhile."""
        with self._lock:
            self._under_way[what] += 1
            if self._reading is not None:
                self._reading.changed.add(what)
        try:
            yield
        finally:
            with self._lock:
                self._under_way[what] -= 1
                if not self._under_way[what]:
                    del self._under_way[what]

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

    def _counting_errors(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except BaseException:
            self._failed()
            raise

    def _failed(self) -> None:
        # Elsewhere the caller is told; inside the loop it is only logged, or kills the loop.
        if self._adapter.active and self._adapter.loop.is_inside:
            self._ledger.error(ErrorKind.JOBSTORE)

    def _note(self, what: Callable[..., object], *about: Any) -> None:
        """Do `what`, which is given what it is about and the alias."""
        alias = self.alias
        if alias is None or not self._adapter.active:
            return
        try:
            what(*about, alias)
        except Exception:  # noqa: BLE001
            self._adapter.guard.failed("adapter")

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


def _as_list(jobs: Any) -> Any:
    # A store of the user's may give what can be read only once.
    return jobs if isinstance(jobs, (list, tuple)) else list(jobs)


class _Reading:
    """
    One reading of a store for telemetry, and what has changed since it began.

    Attributes:
        alias: of the store.
        thread: identifier of the thread that reads.
        changed: ids of jobs that were added, updated or removed meanwhile, or `_ALL`.
    """

    def __init__(self, alias: str, changed: Iterable[object]) -> None:
        self.alias = alias
        self.thread = threading.get_ident()
        self.changed = set(changed)

    def is_outdated(self, job_id: str) -> bool:
        """Tell whether what was read of a job may not be so any more."""
        return job_id in self.changed or _ALL in self.changed


class _ReadingError(Exception):
    """The store, and not telemetry, failed while it was read."""


@contextmanager
def _asking() -> Iterator[None]:
    """Tell failures of the store from our own."""
    try:
        yield
    except Exception as error:
        raise _ReadingError from error


class _Unrestored:
    """Stands for a job that cannot be restored, while the store is read for telemetry."""

    id = None
    next_run_time = None
