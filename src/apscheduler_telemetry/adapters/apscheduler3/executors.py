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

from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.base import BaseExecutor, MaxInstancesReachedError
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import BasePoolExecutor, ProcessPoolExecutor
from apscheduler.job import Job

from apscheduler_telemetry.adapters.apscheduler3.child_process import HIDES_FRAMES, RunTimes
from apscheduler_telemetry.adapters.apscheduler3.runs import (
    JobView,
    PlainView,
    Submission,
    SubmissionId,
    is_of,
    key_of,
    let_go,
    plain_views,
    submission_of,
)
from apscheduler_telemetry.core.model import ErrorKind, Outcome
from apscheduler_telemetry.core.recorder import Run, State

if TYPE_CHECKING:
    from apscheduler_telemetry.adapters.apscheduler3.adapter import Adapter
    from apscheduler_telemetry.core.recorder import Entry


_NEVER_AWAIT = {
    cls._do_submit_job for cls in (BasePoolExecutor, ProcessPoolExecutor, DebugExecutor)
}
"""How executors run a job that call a coroutine function like any other; the user's may await."""


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
        as_usual = getattr(type(executor), "submit_job", None) is BaseExecutor.submit_job
        self.is_plain = in_thread and as_usual and not self.may_await and not tells
        self.lane: dict[str, Run] = {}
        self._plain_view = plain_views(self)
        self.open(alias)
        # In the order of submission, which is the order in which a pool takes them.
        self._under_way: dict[Hashable, JobView] = {}
        self._crowded = CROWDED
        self._lay = adapter.shadows.lay
        self._lay(executor, "submit_job", self._submit_job)
        self._lay(executor, "_run_job_error", self._run_job_error)
        self._takes_results = False
        if not (self.is_plain and HIDES_FRAMES):
            self._take_results()

    def open(self, alias: str) -> None:
        """Keep an account of the executor's load under this alias."""
        self.account = self.ledger.executor(alias, lambda: capacity(self._executor), self.lane)

    def stop(self) -> None:
        """Follow no run any more; hooks that cannot be lifted do nothing from now on."""
        self.active = self.is_plain = False
        for view in list(self._under_way.values()):
            let_go(view)

    def _submit_job(self, original: Callable[..., None]) -> Callable[..., None]:
        # All that a run needs at hand: what happens to most is done here, without a call more.
        loop, pipeline, lane = self._adapter.loop, self.pipeline, self.lane
        ledger, known = self.ledger, self.ledger.known

        def submit_job(job: Any, run_times: Sequence[datetime]) -> None:
            try:
                (due,) = run_times
                job_id = job.id
                entry: Any = known[job._jobstore_alias][job_id]  # noqa: SLF001
                run: Any = entry.idle
                if not (
                    run is not None
                    and run._job is job  # noqa: SLF001  # ours
                    and due is entry.next_run  # as promised
                    and self.is_plain
                    and not ledger.has_twins
                ):
                    run = None
            except Exception:  # noqa: BLE001  # not known yet, several runs at once, hardly a job
                run = None
            if run is None:
                run, entry = self._begin(job, run_times)
                if run is None:
                    self._submit(original, job, run_times, entry)
                    return
                job_id, due = run.id, run_times[0]
            entry.idle = None
            run.args, run.kwargs = job.args, job.kwargs
            run.max_instances, run.misfire_grace_time = job.max_instances, job.misfire_grace_time
            if pipeline.is_followed:
                run.job, run.links = entry.info, entry.links
            run.scheduled = entry.accounted = due
            lane[job_id] = run
            try:
                original(run, run_times)
            except BaseException as exception:
                self._was_not_taken(run, exception)
                raise
            finally:
                if loop.inside is not None:
                    loop.job, loop.entry = job, entry

        loop.calls_out(submit_job.__code__)
        return submit_job

    def _begin(
        self, job: Any, run_times: Sequence[datetime]
    ) -> tuple[PlainView | None, Entry | None]:
        """
        See to a run that finds none of its job's to use again.

        Returns:
            A new one, where it may go alone; and the job's entry, where what was folded into this
            run is posted.
        """
        entry = None
        try:
            if not (self.is_plain and type(job) is Job and len(run_times) == 1):
                return None, None
            entry = self.ledger.entry(job._jobstore_alias, job.id)  # noqa: SLF001
            if entry is None:
                return None, None
            if run_times[0] is not entry.next_run:  # not as promised
                entry = self._meet(job, run_times)
            busy = job.id in self.lane or getattr(self._executor, "_instances", {}).get(job.id)
            if entry is None or busy:
                return None, entry
            return self._plain_view(job, entry, run_times[0]), entry
        except Exception:  # noqa: BLE001  # not from a scheduler: hardly a job
            self.guard.failed("adapter")
            return None, entry

    def renew(self, job: Any) -> None:
        """Let a run of the job that waits run what the job is now."""
        for run in self.ledger.alone(self.lane, job.id):
            if isinstance(run, PlainView) and run._job is job:  # noqa: SLF001  # ours
                run.renew()

    def _submit(
        self,
        original: Callable[..., None],
        job: Any,
        run_times: Sequence[datetime],
        entry: Entry | None,
    ) -> None:
        """Submit what does not go alone, or is not to be followed."""
        if not self._is_ours():
            original(job, run_times)
            return
        entry = self._meet(job, run_times) if entry is None else entry
        view = None if entry is None else self._open(entry, job, run_times)
        try:
            # With a list that tells where run_job is in it.
            times = run_times if view is None else RunTimes(submission_of(view), run_times)
            original(job if view is None else view, times)
        except BaseException as exception:
            submission = Submission(self, job, []) if view is None else submission_of(view)
            end = self._refusal(submission, exception)
            if view is not None:
                self._close(view, end, exception)
            raise
        finally:
            self._adapter.loop.has_handed_over(job, entry)
        if view is not None:
            submission_of(view).pool = pool_of(self._executor)  # a fresh one, if it was broken
            self._note(self._infer_starts)

    def _is_ours(self) -> bool:
        """Tell whether the executor serves our scheduler; removed from it, it may serve another."""
        owner = self._executor._scheduler  # noqa: SLF001
        return self.active and (owner is self._adapter.scheduler or owner is None)

    def _meet(self, job: Any, run_times: Sequence[datetime]) -> Entry | None:
        """Return the entry of a job of ours, and post what was folded into its run."""
        if not self._is_ours():
            return None
        try:
            entry = self._adapter.know(job)
            # The first due time is the very object that was promised, unless some were folded.
            if job.coalesce and run_times[0] is not job.next_run_time:
                self._fold(entry, job, run_times)
        except Exception:  # noqa: BLE001  # not from a scheduler: no due time, or hardly a job
            self.guard.failed("adapter")
            return None
        return entry

    def _was_not_taken(self, run: PlainView, why: BaseException) -> None:
        end = self._refusal(Submission(self, None, [run]), why)
        # A thread may have got it, before Ctrl-C or the lack of another thread came in between.
        if run.started is None or pool_of(self._executor) is None:
            self._note(end, why)

    def _refusal(self, submission: Submission, why: BaseException) -> Callable[[Any], None]:
        """Return how a submission ends that the executor did not take, and count its errors."""
        if isinstance(why, MaxInstancesReachedError):
            return submission.refused
        self.ledger.error(ErrorKind.SUBMIT)
        return submission.failed

    def _take_results(self) -> None:
        """
        Take note of results before anybody else.

        What goes alone ends in its callable, and where it does not, as on a misfire, we are told as
        a listener. So this hook is not laid, which every run would pay for, before there is
        something else.
        """
        if not self._takes_results:
            self._takes_results = True
            self._lay(self._executor, "_run_job_success", self._run_job_success)

    def told(self, event: Any) -> None:
        """Take an event that listeners are told of: of a run that went alone and did not end."""
        alone = self._alone(event.job_id)
        if alone.runs:
            self._note(alone.told, event)  # which goes by when it was due

    def _run_job_success(self, original: Callable[..., None]) -> Callable[..., None]:
        def run_job_success(job_id: str, events: Iterable[Any]) -> None:
            if self.is_plain and type(job_id) is str:
                try:
                    fell_short = events[0].code != EVENT_JOB_EXECUTED  # type: ignore[index]
                except Exception:  # noqa: BLE001  # not from run_job
                    fell_short = True
                if fell_short:
                    self._note(self._alone(job_id).returned, events)
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
            if self.is_plain and type(job_id) is str:
                self._note(self._alone(job_id).failed, exc)
            elif (view := self._view(job_id)) is not None:
                self._close(view, submission_of(view).failed, exc)
            original(str(job_id), exc, traceback)

        return run_job_error

    def _alone(self, job_id: str) -> Submission:
        """Return the run of the lane under this id, if it has not ended, as a submission."""
        return Submission(self, None, self.ledger.alone(self.lane, job_id))

    def _fold(self, entry: Entry, job: Any, run_times: Sequence[datetime]) -> None:
        """Post what was folded into the first of `run_times`."""
        try:
            folded = self._adapter.folded(job, run_times[0])
            if folded.total:
                self._adapter.never_ran(entry, Outcome.COALESCED, folded)
        except Exception:  # noqa: BLE001  # triggers are user code, too
            self.guard.failed("schedule")

    def _open(self, entry: Entry, job: Any, run_times: Sequence[datetime]) -> JobView | None:
        try:
            key: Hashable = entry.key[1]
            if self.is_plain or key in self._under_way:
                key = object()  # the job's id means the one in the lane, or the one before
            runs = self.ledger.hand_over(entry, self.account, run_times)
            submission = Submission(self, job, runs)
            if self.capture.arguments:
                submission.tell_arguments()
            view = JobView(job, submission, key)
            if len(self._under_way) >= self._crowded:
                self._forget()
            entry.accounted = runs[-1].scheduled
            self._under_way[key] = view
            self._take_results()
        except Exception:  # noqa: BLE001
            self.guard.failed("adapter")
            return None
        return view

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
