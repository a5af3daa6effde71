"""
Hooks on an executor: every run goes in through one of its methods and comes out of two others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor as ProcessPool
from concurrent.futures import ThreadPoolExecutor as ThreadPool
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from apscheduler.executors.base import MaxInstancesReachedError
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import BasePoolExecutor, ProcessPoolExecutor

from apscheduler_telemetry._ledger import State
from apscheduler_telemetry._record import ErrorKind, Outcome
from apscheduler_telemetry._v3._submission import (
    JobView,
    PlainView,
    Submission,
    SubmissionId,
    is_at_work,
    is_of,
    key_of,
    let_go,
    submission_of,
)
from apscheduler_telemetry._worker import RunTimes

if TYPE_CHECKING:
    from apscheduler_telemetry._ledger import Entry
    from apscheduler_telemetry._v3 import Adapter


_NEVER_AWAIT = {
    cls._do_submit_job for cls in (BasePoolExecutor, ProcessPoolExecutor, DebugExecutor)
}
"""How executors run a job that call a coroutine function like any other; the user's may await."""


_DONE = State.DONE  # looked up in the enumeration, it would cost every run; see _ledger

CROWDED = 1_000
"""
Submissions under way from which on those are looked for that have ended.

Each costs a few hundred bytes; more than that wait only in the queue of a pool that is far behind.
"""


class ExecutorHook:
    """What is laid over the methods of one executor."""

    def __init__(self, adapter: Adapter, executor: Any, alias: str) -> None:
        self._adapter = adapter
        self._executor = executor
        self.active = True
        self.ledger = adapter.ledger
        self.pipeline = adapter.pipeline
        self.guard = adapter.guard
        self.capture = adapter.capture
        submits = getattr(type(executor), "_do_submit_job", None)
        self.may_await = submits not in _NEVER_AWAIT
        # By run_job itself, in this process, and never given up before its end.
        in_thread = isinstance(pool_of(executor), ThreadPool) or isinstance(executor, DebugExecutor)
        tells = self.capture.arguments or self.capture.result
        self._is_plain = not self.may_await and in_thread and not tells
        self.open(alias)
        # In the order of submission, which is the order in which a pool takes them.
        self._under_way: dict[Hashable, JobView] = {}
        self._crowded = CROWDED
        lay = adapter.shadows.lay
        lay(executor, "submit_job", self._submit_job)
        lay(executor, "_run_job_success", self._run_job_success)
        lay(executor, "_run_job_error", self._run_job_error)

    def open(self, alias: str) -> None:
        """Keep an account of the executor's load under this alias."""
        self.account = self.ledger.executor(alias, lambda: capacity(self._executor))

    def stop(self) -> None:
        """Follow no run any more; hooks that cannot be lifted do nothing from now on."""
        self.active = False
        for view in list(self._under_way.values()):
            let_go(view)

    def _submit_job(self, original: Callable[..., None]) -> Callable[..., None]:
        # All that a run needs at hand: what happens to most is done here, without a call more.
        executor, scheduler, loop = self._executor, self._adapter.scheduler, self._adapter.loop
        under_way, find, hand_over = self._under_way, self.ledger.find, self.ledger.hand_over_one

        def submit_job(job: Any, run_times: Sequence[datetime]) -> None:
            owner = executor._scheduler  # noqa: SLF001
            # An executor that was removed from our scheduler may serve another.
            if not self.active or (owner is not scheduler and owner is not None):
                original(job, run_times)
                return
            entry = view = None
            try:
                job_id = job.id
                entry = find((job._jobstore_alias, job_id))  # noqa: SLF001
                if (
                    self._is_plain
                    and entry is not None
                    and run_times[0] is entry.next_run  # as promised, and nothing folded into it
                    and len(run_times) == 1
                    and job_id not in under_way
                ):
                    run = hand_over(entry, self.account, run_times[0])
                    view = under_way[job_id] = PlainView(job, run, self, job_id)
                    entry.accounted = run.due
            except Exception:  # noqa: BLE001  # not from a scheduler: hardly a job
                self.guard.failed("adapter")
            if view is None:
                self._submit(original, job, run_times)
                return
            try:
                original(view, run_times)
            except BaseException as exception:
                self._was_not_taken(view, exception)
                raise
            finally:
                loop.has_handed_over(job_id, entry)

        loop.calls_out(submit_job.__code__)
        return submit_job

    def _submit(
        self, original: Callable[..., None], job: Any, run_times: Sequence[datetime]
    ) -> None:
        """Submit what takes the long way."""
        try:
            # The first due time is the very object that was promised, unless some were folded.
            if job.coalesce and run_times[0] is not job.next_run_time:
                self._fold(job, run_times)
        except Exception:  # noqa: BLE001  # not from a scheduler: no due time, or hardly a job
            self.guard.failed("adapter")
        entry, view = self._open(job, run_times)
        try:
            # Else with a list that tells where run_job is in it.
            is_plain = view is None or type(view) is PlainView
            times = run_times if is_plain else RunTimes(submission_of(view), run_times)
            original(job if view is None else view, times)
        except BaseException as exception:
            self._was_not_taken(view, exception)
            raise
        finally:
            self._adapter.loop.has_handed_over(job.id, entry)
        if not is_plain:
            submission_of(view).pool = pool_of(self._executor)  # a fresh one, if it was broken
            self._note(self._infer_starts)

    def _was_not_taken(self, view: JobView | None, why: BaseException) -> None:
        refused = isinstance(why, MaxInstancesReachedError)
        if not refused:
            self.ledger.error(ErrorKind.SUBMIT)
        if view is None:
            return
        if is_at_work(view) and pool_of(self._executor) is not None:
            # A thread has got it, before Ctrl-C or the lack of another thread came in between.
            self._under_way.pop(key_of(view), None)
            return
        submission = submission_of(view)
        self._close(view, submission.refused if refused else submission.failed, why)

    def _run_job_success(self, original: Callable[..., None]) -> Callable[..., None]:
        under_way = self._under_way

        def run_job_success(job_id: str, events: Iterable[Any]) -> None:
            if type(job_id) is str and type(events) is list and len(events) == 1:
                # What happens most: the one run has ended, and its event needs no touch.
                view, event = under_way.get(job_id), events[0]
                if type(view) is PlainView:
                    run = view.run
                    if (
                        run.state is _DONE
                        and event.scheduled_run_time is run.scheduled
                        and event.exception is None
                        and type(event.job_id) is str
                    ):
                        del under_way[job_id]
                        original(job_id, events)
                        return
            view = self._view(job_id)
            if view is not None:
                if not isinstance(events, Sequence):
                    events = self._unlisted(view, events)
                elif is_of(view, events):
                    self._close(view, submission_of(view).returned, events)
            original(str(job_id), events)

        return run_job_success

    def _run_job_error(self, original: Callable[..., None]) -> Callable[..., None]:
        def run_job_error(job_id: str, exc: BaseException, traceback: Any = None) -> None:
            view = self._view(job_id)
            if view is not None:
                self._close(view, submission_of(view).failed, exc)
            original(str(job_id), exc, traceback)

        return run_job_error

    def _fold(self, job: Any, run_times: Sequence[datetime]) -> None:
        """Post what was folded into the first of `run_times`."""
        try:
            folded = self._adapter.folded(job, run_times[0])
            if folded.total:
                self._adapter.never_ran(self._adapter.know(job), Outcome.COALESCED, folded)
        except Exception:  # noqa: BLE001  # triggers are user code, too
            self.guard.failed("schedule")

    def _open(self, job: Any, run_times: Sequence[datetime]) -> tuple[Entry | None, JobView | None]:
        try:
            entry = self._adapter.know(job)
            key: Hashable = entry.key[1]
            if key in self._under_way:
                key = object()  # the job's id means the one before
            view: JobView
            if self._is_plain and len(run_times) == 1:
                run = self.ledger.hand_over_one(entry, self.account, run_times[0])
                view = PlainView(job, run, self, key)
            else:
                runs = self.ledger.hand_over(entry, self.account, run_times)
                run = runs[-1]
                submission = Submission(self, job, runs)
                if self.capture.arguments:
                    submission.tell_arguments()
                view = JobView(job, submission, key)
                if len(self._under_way) >= self._crowded:
                    self._forget()
            entry.accounted = run.due
            self._under_way[key] = view
        except Exception:  # noqa: BLE001
            self.guard.failed("adapter")
            return None, None
        return entry, view

    def _unlisted(self, view: JobView, events: Any) -> Any:
        """Take a result of a user's executor that is no list, and return what to pass on."""
        if isinstance(events, Iterator):
            return self._one_by_one(view, events)
        if isinstance(events, Iterable):  # the values of a dictionary, say: as often as one likes
            self._close(view, submission_of(view).returned, list(events))
            return events
        # No result at all, such as that of a greenlet that was killed before it began.
        self._close(view, submission_of(view).returned, ())
        return events

    def _one_by_one(self, view: JobView, events: Iterator[Any]) -> Iterator[Any]:
        """Take note of events that can be read only once, of each before it is told."""
        submission = submission_of(view)
        try:
            for event in events:
                self._note(submission.told, event)
                yield event
        finally:
            self._close(view, submission.returned, ())

    def _forget(self) -> None:
        """Drop submissions that have ended, of which an executor of the user's does not tell."""
        for view in list(self._under_way.values()):
            if submission_of(view).done:
                self._under_way.pop(key_of(view), None)
        self._crowded = max(CROWDED, 2 * len(self._under_way))

    def _close(self, view: JobView, end: Callable[[Any], None], what: Any) -> None:
        self._under_way.pop(key_of(view), None)
        self._note(end, what)
        if type(view) is not PlainView:
            self._note(self._infer_starts)

    def _note(self, post: Callable[..., None], *what: Any) -> None:
        try:
            post(*what)
        except Exception:  # noqa: BLE001  # telemetry never changes the job
            self.guard.failed("adapter")

    def _view(self, job_id: str) -> JobView | None:
        if isinstance(job_id, SubmissionId):
            view = job_id.view
            return view if view._hook is self else None  # noqa: SLF001  # ours
        if self.may_await:
            # An executor of the user's may have kept the plain id: the one that has come to its
            # end, or the oldest.
            views = [view for view in list(self._under_way.values()) if view._job.id == job_id]  # noqa: SLF001
            ended = (view for view in views if submission_of(view).done)
            return next(ended, views[0] if views else None)
        return self._under_way.get(job_id)

    def _infer_starts(self) -> None:
        """
        Note which runs a process pool works on now.

        A child has no way to say so before it returns. But a pool takes its work in the order of
        submission, so with n workers the oldest n submissions are being worked on.
        """
        pool = pool_of(self._executor)
        # In a broken pool, and in the one before it, nothing starts any more.
        if not isinstance(pool, ProcessPool) or getattr(pool, "_broken", False):
            return
        now = self._adapter.clock()
        # Copied at one go, as callbacks of the pool's thread take out what has ended.
        submissions = (submission_of(view) for view in list(self._under_way.values()))
        in_pool = (submission for submission in submissions if submission.pool is pool)
        for submission in islice(in_pool, int(capacity(self._executor))):
            run, grace = submission.runs[0], submission.job.misfire_grace_time
            too_late = grace is not None and now - run.due > grace
            if run.state is State.QUEUED and not too_late:  # too late: run_job will drop it
                self.ledger.start(run, now, certain=False)


def pool_of(executor: Any) -> Any:
    """Return the `concurrent.futures` pool of an APScheduler executor, None if it has none."""
    # Tornado's has a pool for functions, and runs coroutine functions beside it.
    pools = getattr(executor, "_pool", None), getattr(executor, "executor", None)
    return next((pool for pool in pools if pool is not None), None)


def capacity(executor: Any) -> float:
    """Return how many runs an executor can work on at once; infinity where nothing limits it."""
    if isinstance(executor, DebugExecutor):
        return 1
    # Neither APScheduler nor concurrent.futures tells its number of workers in public.
    limit = getattr(pool_of(executor), "_max_workers", None)
    if limit is None:
        # Twisted's reactor makes its pool when it is first asked for, and we must not be the first.
        pool = getattr(getattr(executor, "_reactor", None), "threadpool", None)
        limit = getattr(pool, "max", None)
    return limit or math.inf
