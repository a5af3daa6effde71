"""
The adapter for APScheduler 3: lays hooks over one scheduler and posts what they see.

`_loop` hooks the scheduler, `_stores` its job stores, `_executors` and `_submission` its
executors; `_rows` asks databases, `_schedule` asks triggers, and `_aside` has a thread for both;
`_shadow` lays hooks and lifts them again; `_exit` looks once more when the process ends. Private
names of APScheduler appear in these modules only.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any
from weakref import WeakValueDictionary

from apscheduler.events import (
    EVENT_EXECUTOR_ADDED,
    EVENT_EXECUTOR_REMOVED,
    EVENT_JOB_ERROR,
    EVENT_JOB_MISSED,
    EVENT_JOBSTORE_ADDED,
    EVENT_JOBSTORE_REMOVED,
    EVENT_SCHEDULER_SHUTDOWN,
    EVENT_SCHEDULER_STARTED,
)
from apscheduler.schedulers.base import STATE_STOPPED

from apscheduler_telemetry.adapters.apscheduler3 import exit_warning as _exit
from apscheduler_telemetry.adapters.apscheduler3 import triggers as _schedule
from apscheduler_telemetry.adapters.apscheduler3.background_worker import Aside
from apscheduler_telemetry.adapters.apscheduler3.executors import ExecutorHook
from apscheduler_telemetry.adapters.apscheduler3.jobstores import StoreHook
from apscheduler_telemetry.adapters.apscheduler3.patching import Shadows
from apscheduler_telemetry.adapters.apscheduler3.scheduler_loop import LoopHook
from apscheduler_telemetry.adapters.apscheduler3.trace_links import FLUSH_SECONDS, Links, Origins
from apscheduler_telemetry.core import labels as _labels
from apscheduler_telemetry.core.alert_policy import Expectations
from apscheduler_telemetry.core.labels import Labeller
from apscheduler_telemetry.core.model import (
    Capture,
    ErrorKind,
    JobInfo,
    Liveness,
    Outcome,
    RunError,
)
from apscheduler_telemetry.core.observers import Guard, Pipeline
from apscheduler_telemetry.core.recorder import NEVER, Entry, Ledger, Removal, Run

INTERVALS_HOLD = 60.0
"""
Seconds for which intervals are not looked for again, however short they are.

A job of every second would otherwise have its trigger asked twice as often as without us.
"""


class Adapter:
    """
    Connects one scheduler with its ledger.

    Args:
        scheduler: an APScheduler 3 scheduler, started or not.
        ledger: where to post to.
        pipeline: what follows single runs.
        guard: counts our own failures.
        labeller: finds labels of jobs.
        expectations: what the application expects of each job.
        origins: knows where a job is added, for its runs to link to.
        context_store: keeps that across restarts.
        capture: what of a job's own data may be told.
        leave_context: lets nothing be current from now on, and returns what that was, or None.
        return_to_context: is given that unless it is None, and lets it be current again.
        untraced: a context manager under which nothing is current, and no span is made.
        on_start: called when the scheduler is being started.
        on_stop: called when it was shut down.

    Attributes:
        due: the jobs that a store has just said are due; none between passes, as nobody else keeps
            one that has been run.
        has_stateful: whether there ever was a job whose trigger remembers something.
    """

    clock: Callable[[], float] = staticmethod(time.time)
    monotonic: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(  # noqa: PLR0913  # each part of the whole, by name
        self,
        scheduler: Any,
        *,
        ledger: Ledger,
        pipeline: Pipeline,
        guard: Guard,
        labeller: Labeller,
        expectations: Expectations,
        origins: Origins,
        context_store: MutableMapping[str, str] | None,
        capture: Capture,
        leave_context: Callable[[], Any],
        return_to_context: Callable[[Any], None],
        untraced: Callable[[], AbstractContextManager[None]],
        on_start: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self.scheduler = scheduler
        self.ledger = ledger
        self.pipeline = pipeline
        self.guard = guard
        self.active = True
        self.shadows = Shadows()
        self._labeller = labeller
        self._expectations = expectations
        self.capture = capture
        self.leave_context = leave_context
        self.return_to_context = return_to_context
        self.untraced = untraced
        self._on_start = on_start
        self._on_stop = on_stop
        # By the identity of what they are laid over, which keeps them; weakly, as it may be removed
        # from the scheduler and forgotten.
        self._executors: WeakValueDictionary[int, ExecutorHook] = WeakValueDictionary()
        self._stores: WeakValueDictionary[int, StoreHook] = WeakValueDictionary()
        self.due: Sequence[Any] = ()
        self._memories: dict[str, Any] = {}
        self.has_stateful = False
        self._aside = Aside(guard, untraced)
        self.links = Links(origins, context_store, self._aside, guard)
        _exit.watch(self)
        try:
            self._install(scheduler)
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take all hooks off, in mirrored order; runs under way end as if they never were."""
        self.active = False
        _exit.unwatch(self)
        for executor in list(self._executors.values()):
            executor.stop()
        self.links.flush(FLUSH_SECONDS)
        self._aside.stop()
        for hook in list(self._stores.values()):
            hook.stop()
        self.shadows.lift()
        self.scheduler.remove_listener(self._listen)

    def liveness(self) -> Liveness:
        """Tell whether the scheduler's loop really lives, and why not."""
        return self.loop.liveness()

    def _install(self, scheduler: Any) -> None:
        self.loop = LoopHook(self, scheduler)
        self.shadows.lay(scheduler, "add_job", self._add_job)
        self.shadows.lay(scheduler, "_configure", self._configure)
        scheduler.add_listener(
            self._listen,
            EVENT_EXECUTOR_ADDED
            | EVENT_EXECUTOR_REMOVED
            | EVENT_JOBSTORE_ADDED
            | EVENT_JOBSTORE_REMOVED
            | EVENT_JOB_ERROR
            | EVENT_JOB_MISSED
            | EVENT_SCHEDULER_SHUTDOWN
            | EVENT_SCHEDULER_STARTED,
        )
        for alias in list(scheduler._executors):  # noqa: SLF001
            self._hook_executor(alias)
        for alias in list(scheduler._jobstores):  # noqa: SLF001
            self._hook_store(alias)
        if scheduler.state != STATE_STOPPED:
            self.loop.runs_already()
            for store in list(scheduler._jobstores.values()):  # noqa: SLF001
                self._stores[id(store)].read()

    def _listen(self, event: Any) -> None:
        try:
            if event.code in (EVENT_JOB_ERROR, EVENT_JOB_MISSED):
                self._told(event)
            elif event.code == EVENT_EXECUTOR_ADDED:
                self._hook_executor(event.alias)
            elif event.code == EVENT_EXECUTOR_REMOVED:
                self.ledger.remove_executor(event.alias)
            elif event.code == EVENT_JOBSTORE_ADDED:
                hook = self._hook_store(event.alias)
                if self.scheduler.state != STATE_STOPPED:
                    hook.read()
            elif event.code == EVENT_JOBSTORE_REMOVED:
                self._close_store(event.alias)
            elif event.code == EVENT_SCHEDULER_STARTED:
                self._has_started()
            elif event.code == EVENT_SCHEDULER_SHUTDOWN:
                self._on_stop()
        except Exception:  # noqa: BLE001  # a listener's error would count as the user's
            self.guard.failed("adapter")

    def _told(self, event: Any) -> None:
        for executor in list(self._executors.values()):
            executor.told(event)

    def _has_started(self) -> None:
        self.loop.has_started()
        self.links.started()
        for store in list(self.scheduler._jobstores.values()):  # noqa: SLF001
            self._stores[id(store)].read()
        self._on_start()

    def _hook_executor(self, alias: str) -> None:
        executor = self.scheduler._executors[alias]  # noqa: SLF001
        hook = self._executors.get(id(executor))
        if hook is None:
            self._executors[id(executor)] = ExecutorHook(self, executor, alias)
        else:  # removed and added again
            hook.open(alias)

    def _hook_store(self, alias: str) -> StoreHook:
        store = self.scheduler._jobstores[alias]  # noqa: SLF001
        hook = self._stores.get(id(store))
        if hook is None:
            hook = self._stores[id(store)] = StoreHook(self, store, alias)
        else:  # removed and added again
            hook.open(alias)
        return hook

    def _close_store(self, alias: str) -> None:
        for hook in list(self._stores.values()):
            if hook.alias == alias:
                hook.close()
        self.ledger.close_store(alias)

    def _configure(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def configure(config: Any) -> None:
            original(config)
            if not self.active:
                return
            # It drops executors and job stores without an event, and takes another logger.
            self.loop.watch_logger()
            for alias in self.ledger.executors().keys() - self.scheduler._executors:  # noqa: SLF001
                self.ledger.remove_executor(alias)
            for alias in self.ledger.stores().keys() - self.scheduler._jobstores:  # noqa: SLF001
                self._close_store(alias)

        return configure

    def _add_job(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def add_job(*args: Any, **kwargs: Any) -> Any:
            job = original(*args, **kwargs)
            if self.active and job.pending:
                # It enters its store when the scheduler starts, in another context.
                self.links.pending(job.id)
            return job

        return add_job

    # What the hooks report

    def added(self, job: Any, alias: str) -> None:
        """Take a job into the books that was added to a store."""
        self.links.added(self._take(job, alias))

    def updated(self, job: Any, alias: str) -> None:
        """Take note of what a job is now."""
        entry = self.ledger.entry(alias, job.id)
        if entry is not None and self.loop.goes_on(job.id):
            is_added_anew = entry is not self.loop.entry
            self.loop.has_gone_on()
            if is_added_anew:
                # It has removed itself while it ran, and added another: which the loop now
                # replaces by the one that it has run.
                self._take(job, alias)
            elif not self.ledger.goes_on(entry, job.next_run_time):
                self.went_on(entry, job)
            return
        before = None if entry is None else entry.promise
        if entry is not None:
            promise = _timestamp(job.next_run_time)
            overdue = promise != entry.promise and self._forgets(entry, job.next_run_time)
            # A start that replaces what is stored takes nothing back, though it may put it off.
            restarted = job.pending and entry.inherited
            self.ledger.promise(entry, promise, on_purpose=not overdue and not restarted)
        for executor in list(self._executors.values()):
            executor.renew(job)
        entry = self._take(job, alias)
        entry.inherited = False
        if job.pending:  # it was there already, and add_job() has replaced it
            self.links.added(entry)
        elif entry.promise != before:
            self.links.pushed(entry)

    def went_on(self, entry: Entry, job: Any) -> None:
        """Take note of what else there is when the loop has given a job its next run."""
        if entry.promise is not None and entry.promise > entry.intervals_until:
            self._look_ahead(entry, job)
        if entry.push is not None:
            self.links.went_on(entry)

    def removed(self, job_id: str, alias: str) -> None:
        """Take a job out of the books, and find out why it went."""
        entry = self.ledger.entry(alias, job_id)
        removal = Removal.WITHDRAWN
        if self.loop.goes_on(job_id):
            self.loop.has_gone_on()
            removal = Removal.FINISHED
        elif self.loop.is_inside:
            # Before it is handed over, the loop removes a job only if its executor is unknown.
            self.ledger.error(ErrorKind.EXECUTOR_LOOKUP)
            removal = Removal.BROKEN
            job = next((job for job in self.due if job.id == job_id), None)
            if entry is not None and job is not None:
                now = datetime.now(self.scheduler.timezone)
                times = _schedule.due_times(job.next_run_time, job.trigger, now)
                self.never_ran(entry, Outcome.LOST, times)
        if entry is not None:
            if removal is Removal.WITHDRAWN:
                removal = self._taken_back(entry)
            self.ledger.remove(entry, removal)
            self.links.removed(entry)

    def removed_all(self, alias: str) -> None:
        """Take all jobs of a store out of the books, as the user removed them."""
        for entry in self.ledger.entries(alias):
            self.ledger.remove(entry, self._taken_back(entry))
            self.links.removed(entry)

    def found(self, job: Any, alias: str, info: JobInfo | None = None) -> None:
        """Take note of what another process has made of a job, this one's predecessor maybe."""
        entry = self.ledger.entry(alias, job.id)
        promise = _timestamp(job.next_run_time)
        changed = entry is None or promise != entry.promise
        if entry is not None and changed:
            self.ledger.promise(entry, promise, on_purpose=not self._was_left_to_us(entry))
        now_known = self.enter(info or self.describe(job, alias), job, inherited=True)
        if changed:
            self.links.recall(now_known)

    def went(self, entry: Entry, removal: Removal) -> None:
        """Take a job out of the books that is not in its store any more."""
        if removal is Removal.WITHDRAWN and self._was_left_to_us(entry):
            removal = Removal.BROKEN
        self.ledger.remove(entry, removal)
        self.links.removed(entry)

    def remember(self, jobs: Any, _alias: str) -> None:
        """Keep what the triggers of due jobs remember, before they are asked for the next run."""
        self._memories.clear()
        for job in jobs:
            if type(job.trigger) in _schedule.STATELESS or not job.coalesce:
                continue
            if (memory := self._memory_of(job)) is not None:
                self._memories[job.id] = memory

    def recognise(self, jobs: Any, alias: str) -> None:
        """Take note of due jobs that others may have added or changed."""
        for job in jobs:
            entry = self.ledger.entry(alias, job.id)
            if entry is None or entry.promise != _timestamp(job.next_run_time):
                # From before this process, or changed by another one.
                self.links.recall(self._take(job, alias))
            else:
                entry.next_run = job.next_run_time  # the same moment, unpickled anew

    def folded(self, job: Any, until: datetime) -> _schedule.Backlog:
        """Return the due times that APScheduler folds into the one at `until`."""
        return _schedule.backlog(job, until, self._memories.pop(job.id, None))

    def know(self, job: Any, alias: str | None = None) -> Entry:
        """Return the entry of a job, made now if there is none."""
        alias = alias or job._jobstore_alias  # noqa: SLF001
        return self.ledger.entry(alias, job.id) or self._take(job, alias)

    def never_ran(
        self,
        entry: Entry,
        outcome: Outcome,
        times: _schedule.Backlog,
        error: RunError | None = None,
    ) -> None:
        """Post due runs that never reached an executor, and tell whoever follows single runs."""
        self.ledger.never_ran(entry, outcome, times.total)
        for scheduled in times.latest:
            run = Run(entry, scheduled)
            self.pipeline.settle(run, outcome, error)

    def _taken_back(self, entry: Entry) -> Removal:
        # What is late already is missed, and not taken back any more.
        return Removal.FINISHED if self._forgets(entry) else Removal.WITHDRAWN

    def _forgets(self, entry: Entry, following: datetime | None = None) -> bool:
        """
        Account for the due runs of a job that are forgotten, as the user changes it.

        They have fallen due, as while no process was there to run them, and APScheduler will not
        come to them any more. Counted as it counts: what it would have folded is coalesced.

        Args:
            entry: the job, before it is changed.
            following: its next run from now on; what is due from then on is not forgotten.

        Returns:
            Whether there are any.
        """
        promise, done, now = entry.promise, entry.accounted, datetime.now(self.scheduler.timezone)
        if promise is None or promise > now.timestamp():
            return False
        if done is not None and promise <= done.timestamp():
            return False
        if following is not None and following.timestamp() <= promise:
            return True  # the loop will come to it by way of an earlier one
        as_it_was = copy.copy(entry)
        first = datetime.fromtimestamp(promise, now.tzinfo)

        def account() -> None:
            try:
                times = _schedule.due_times(first, as_it_was.trigger, now, following)
            except Exception:  # noqa: BLE001  # a trigger of the user's; one run is known, though
                self.guard.failed("schedule")
                times = _schedule.Backlog(1, [first])
            if as_it_was.coalesce and times.total > 1:
                folded = _schedule.Backlog(times.total - 1, times.latest[:-1])
                self.never_ran(as_it_was, Outcome.COALESCED, folded)
                times = _schedule.Backlog(1, times.latest[-1:])
            self.never_ran(as_it_was, Outcome.MISSED, times)

        self._aside.do("schedule", account)  # a long backlog must not hold up the user's start
        return True

    def _was_left_to_us(self, entry: Entry) -> bool:
        """Tell whether a job was due, and the loop has not looked since whether it still is."""
        promise, looked = entry.promise, self.loop.last_wakeup
        if promise is None or promise > self.clock():
            return False
        return looked is None or looked < promise

    def _take(self, job: Any, alias: str) -> Entry:
        return self.enter(self.describe(job, alias), job)

    def enter(self, info: JobInfo, job: Any, *, inherited: bool = False) -> Entry:
        """Enter a job into the books. No code of the user's is called."""
        next_run = job.next_run_time
        entry = self.ledger.know(info, _timestamp(next_run), inherited=inherited)
        entry.next_run = next_run
        entry.lasts = not info.persistent
        entry.idle = None
        entry.coalesce = job.coalesce
        if type(job.trigger) not in _schedule.STATELESS:
            self.has_stateful = True
        if entry.trigger is not job.trigger:
            self._look_ahead(entry, job)
        return entry

    def describe(self, job: Any, alias: str) -> JobInfo:
        """Tell what there is to know of a job; this asks the user's callbacks."""
        store = self.scheduler._jobstores.get(alias)  # noqa: SLF001
        hook = self._stores.get(id(store))
        return JobInfo(
            id=job.id,
            label=self._labeller.label(job),
            name=_labels.text(job.name),
            func=_labels.function_name(job),
            trigger=_labels.text(_schedule.describe(job.trigger)),
            executor=_labels.text(job.executor),
            jobstore=_labels.text(alias),
            persistent=hook is not None and hook.persistent,
            grace=self._expectations.grace(job),
            max_duration=self._expectations.max_duration(job),
            severity=self._expectations.severity(job),
            owner=self._expectations.owner(job),
        )

    def _memory_of(self, job: Any) -> Any:
        try:
            return _schedule.memory_of(job.trigger)
        except Exception:  # noqa: BLE001  # a trigger of the user's need not be made for copying
            self.guard.failed("schedule")
            return None

    def _look_ahead(self, entry: Entry, job: Any) -> None:
        """Find the shortest and the longest interval, aside from the hot path."""
        trigger, next_run = job.trigger, job.next_run_time
        if next_run is None:
            return  # paused: when it is resumed
        entry.trigger, entry.intervals_until = trigger, math.inf
        if _schedule.is_plain(trigger):
            # Asking it ten times, and waking a thread for that, would be most of what adding costs.
            self.ledger.set_intervals(entry, _schedule.plain_intervals(trigger))
            return

        def look() -> None:
            intervals, until = _schedule.intervals(trigger, next_run)
            self.ledger.set_intervals(entry, intervals)
            if entry.trigger is trigger:
                entry.intervals_until = max(until, next_run.timestamp() + INTERVALS_HOLD)
                entry.steady_until = NEVER

        self._aside.do("schedule", look)


def _timestamp(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()
