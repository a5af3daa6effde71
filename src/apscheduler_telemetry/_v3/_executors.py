"""
Hooks on an executor: every run goes in through two of its methods and comes out of two others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor as ProcessPool
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from apscheduler.executors.base import MaxInstancesReachedError
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import BasePoolExecutor, ProcessPoolExecutor

from apscheduler_telemetry._ledger import Entry, State
from apscheduler_telemetry._record import ErrorKind, Outcome, RunError
from apscheduler_telemetry._v3 import _schedule
from apscheduler_telemetry._v3._submission import JobView, Submission, SubmissionId
from apscheduler_telemetry._worker import RunTimes

if TYPE_CHECKING:
    from apscheduler_telemetry._v3 import Adapter


_NEVER_AWAIT = {
    cls._do_submit_job for cls in (BasePoolExecutor, ProcessPoolExecutor, DebugExecutor)
}
"""How executors run a job that call a coroutine function like any other; the user's may await."""


class ExecutorHook:
    """What is laid over the methods of one executor."""

    def __init__(self, adapter: Adapter, executor: Any, alias: str) -> None:
        self._adapter = adapter
        self._executor = executor
        self.ledger = adapter.ledger
        self.pipeline = adapter.pipeline
        self.guard = adapter.guard
        self.capture = adapter.capture
        self.may_await = getattr(type(executor), "_do_submit_job", None) not in _NEVER_AWAIT
        self.open(alias)
        # In the order of submission, which is the order in which a pool takes them.
        self._under_way: dict[Submission, None] = {}
        self._handed: Sequence[datetime] | None = None
        lay = adapter.shadows.lay
        lay(executor, "submit_job", self._submit_job)
        lay(executor, "_do_submit_job", self._do_submit_job)
        lay(executor, "_run_job_success", self._run_job_success)
        lay(executor, "_run_job_error", self._run_job_error)

    def open(self, alias: str) -> None:
        """Keep an account of the executor's load under this alias."""
        self.account = self.ledger.executor(alias, lambda: capacity(self._executor))

    @property
    def active(self) -> bool:
        """Whether telemetry is on; hooks that could not be lifted do nothing when it is not."""
        return self._adapter.active

    @property
    def _serves(self) -> bool:
        """Whether jobs come from our scheduler; an executor that was removed may serve another."""
        owner = self._executor._scheduler  # noqa: SLF001
        return self.active and (owner is None or owner is self._adapter.scheduler)

    def _submit_job(self, original: Callable[..., None]) -> Callable[..., None]:
        def submit_job(job: Any, run_times: Sequence[datetime]) -> None:
            if not self._serves:
                return original(job, run_times)
            self._adapter.loop.processing(None)
            self._handed = None
            entry = self._before(job, run_times)
            try:
                original(job, run_times)
            except MaxInstancesReachedError:
                self._never_ran(entry, Outcome.SKIPPED, run_times)
                raise
            except BaseException as exception:
                self.ledger.error(ErrorKind.SUBMIT)
                if self._handed is not run_times:  # else its runs are in the books already
                    self._never_ran(entry, Outcome.LOST, run_times, RunError.of(exception))
                raise
            finally:
                self._adapter.loop.processing(job.id)

        return submit_job

    def _do_submit_job(self, original: Callable[..., None]) -> Callable[..., None]:
        def do_submit_job(job: Any, run_times: Sequence[datetime]) -> None:
            submission = self._open(job, run_times) if self._serves else None
            if submission is None:
                original(job, run_times)
                return
            try:
                # The executor keeps no other reference to the job than the view.
                original(JobView(job, submission), RunTimes(submission, run_times))
            except BaseException as exception:
                self._close(submission, submission.failed, exception)
                raise
            submission.pool = pool_of(self._executor)  # a fresh one, if it was broken
            self._note(self._infer_starts)

        return do_submit_job

    def _run_job_success(self, original: Callable[..., None]) -> Callable[..., None]:
        def run_job_success(job_id: str, events: Sequence[Any]) -> None:
            submission = self._submission(job_id)
            if submission is not None:
                self._close(submission, submission.returned, events)
            original(str(job_id), events)

        return run_job_success

    def _run_job_error(self, original: Callable[..., None]) -> Callable[..., None]:
        def run_job_error(job_id: str, exc: BaseException, traceback: Any = None) -> None:
            submission = self._submission(job_id)
            if submission is not None:
                self._close(submission, submission.failed, exc)
            original(str(job_id), exc, traceback)

        return run_job_error

    def _before(self, job: Any, run_times: Sequence[datetime]) -> Entry | None:
        """Post what was folded into the first of `run_times`, and find the job's entry."""
        try:
            entry = self._adapter.know(job)
            entry.accounted = run_times[-1].timestamp()
            if job.coalesce:
                folded = self._adapter.folded(job, run_times[0])
                if folded.total:
                    self._adapter.never_ran(entry, Outcome.COALESCED, folded)
        except Exception:  # noqa: BLE001  # triggers are user code, too
            self.guard.failed("schedule")
            return self._adapter.ledger.entry(job._jobstore_alias, job.id)  # noqa: SLF001
        return entry

    def _never_ran(
        self,
        entry: Entry | None,
        outcome: Outcome,
        run_times: Sequence[datetime],
        error: RunError | None = None,
    ) -> None:
        try:
            if entry is not None:
                times = _schedule.Backlog(len(run_times), run_times)
                self._adapter.never_ran(entry, outcome, times, error)
        except Exception:  # noqa: BLE001
            self.guard.failed("adapter")

    def _open(self, job: Any, run_times: Sequence[datetime]) -> Submission | None:
        try:
            submission = Submission(self, job, self._adapter.know(job), run_times)
            self._under_way[submission] = None
            self._handed = run_times
        except Exception:  # noqa: BLE001
            self.guard.failed("adapter")
            return None
        return submission

    def _close(self, submission: Submission, end: Callable[[Any], None], what: Any) -> None:
        self._under_way.pop(submission, None)
        self._note(end, what)
        self._note(self._infer_starts)

    def _note(self, post: Callable[..., None], *what: Any) -> None:
        try:
            post(*what)
        except Exception:  # noqa: BLE001  # telemetry never changes the job
            self.guard.failed("adapter")

    def _submission(self, job_id: str) -> Submission | None:
        if isinstance(job_id, SubmissionId):
            submission = job_id.submission
            return submission if submission.hook is self else None
        # An executor of the user's that kept the plain id: the one that has come to its end, or
        # the oldest.
        candidates = [s for s in list(self._under_way) if s.job.id == job_id]
        return next((s for s in candidates if s.done), candidates[0] if candidates else None)

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
        in_pool = (submission for submission in list(self._under_way) if submission.pool is pool)
        for submission in islice(in_pool, int(capacity(self._executor))):
            run, grace = submission.runs[0], submission.job.misfire_grace_time
            too_late = grace is not None and now - run.due > grace
            if run.state is State.QUEUED and not too_late:  # too late: run_job will drop it
                self.ledger.start(run, now, certain=False)


def pool_of(executor: Any) -> Any:
    """Return the `concurrent.futures` pool of an APScheduler executor, None if it has none."""
    return getattr(executor, "_pool", None)


def capacity(executor: Any) -> float:
    """Return how many runs an executor can work on at once; infinity where nothing limits it."""
    if isinstance(executor, DebugExecutor):
        return 1
    # Neither APScheduler nor concurrent.futures tells its number of workers in public.
    return getattr(pool_of(executor), "_max_workers", None) or math.inf
