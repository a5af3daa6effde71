"""
Patches the three methods of an executor that take submissions and their results.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from concurrent.futures import ProcessPoolExecutor as ProcessPool
from datetime import datetime
from itertools import islice
from traceback import walk_tb
from typing import Any

from apscheduler.executors.base import MaxInstancesReachedError
from apscheduler.executors.debug import DebugExecutor

from apscheduler_telemetry.adapters.apscheduler3 import child_process
from apscheduler_telemetry.adapters.apscheduler3.job_change_handler import JobChangeHandler
from apscheduler_telemetry.adapters.apscheduler3.patching import PatchSet
from apscheduler_telemetry.adapters.apscheduler3.runs import RunTracker, Submission, outcome_of
from apscheduler_telemetry.adapters.apscheduler3.scheduler_loop import SchedulerLoop
from apscheduler_telemetry.adapters.apscheduler3.unsubmitted_runs import UnsubmittedRunRecorder
from apscheduler_telemetry.core.forks import reset_in_forked_children
from apscheduler_telemetry.core.model import Clock, Outcome, SchedulerErrorKind
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.core.times import without_timezone


class ExecutorHooks:
    """
    The patches of one executor.

    Args:
        scheduler: the scheduler that it belongs to.
        executor: the executor.
        alias: under which the scheduler has it.
        patches: what was patched for the scheduler.
        result_patches: the patches of methods that receive results; `uninstrument` restores them
            only when the last span has ended.
        job_change_handler: has the tracked jobs.
        loop: the scheduler's loop.
        unsubmitted_run_recorder: records runs that are coalesced into a submitted one.
        run_tracker: measures and records runs.
        recorder: the metrics state.
        error_reporter: counts failures of telemetry itself.
        clock: returns Unix seconds.
    """

    def __init__(  # noqa: PLR0913  # each part that a run passes, by name
        self,
        *,
        scheduler: Any,
        executor: Any,
        alias: str,
        patches: PatchSet,
        result_patches: PatchSet,
        job_change_handler: JobChangeHandler,
        loop: SchedulerLoop,
        unsubmitted_run_recorder: UnsubmittedRunRecorder,
        run_tracker: RunTracker,
        recorder: Recorder,
        error_reporter: ErrorReporter,
        clock: Clock,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._patches = patches
        self._job_change_handler = job_change_handler
        # A dictionary's own method, as every run calls it.
        self._find_tracked_job = job_change_handler.tracked_jobs.get
        self._scheduler_loop = loop
        self._unsubmitted_run_recorder = unsubmitted_run_recorder
        self.run_tracker = run_tracker
        self._recorder = recorder
        self._error_reporter = error_reporter
        self._clock = clock
        # By the identity of the latest run time's object, and in the order of submission, which is
        # the order in which a process pool starts them.
        self._open_submissions_by_id: dict[int, Submission] = {}
        # Runs from before the executor was patched, by job id.
        self._run_counts_before_patching = Counter(getattr(executor, "_instances", {}))
        self.on_added_to_scheduler(alias)
        patches.patch(executor, "submit_job", self._wrap_submit_job)
        result_patches.patch(executor, "_run_job_success", self._wrap_run_job_success)
        result_patches.patch(executor, "_run_job_error", self._wrap_run_job_error)
        reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Forget the submissions of the parent, for which errors of the child could be taken."""
        self._open_submissions_by_id.clear()

    def on_added_to_scheduler(self, alias: str) -> None:
        """Record the load of the executor under this alias."""
        self._alias = alias
        runs_in_children = is_process_pool(self._executor)
        self.measurement_sink_id = child_process.register_sink(self) if runs_in_children else None
        # Those of a fresh pool, too.
        self._max_workers = _max_workers_of(pool_of(self._executor)) or 0
        self._recorder.executor_added(alias, lambda: worker_capacity(self._executor))

    # The patches

    def _wrap_submit_job(self, original: Callable[..., None]) -> Callable[..., None]:
        executor, patches = self._executor, self._patches
        # Not another scheduler, which may have the executor after its removal from ours.
        owners = self._scheduler, None

        def submit_job(job: Any, run_times: Sequence[datetime]) -> None:
            is_instrumented, submission = patches.is_active, None
            runs: list[Run] = []
            try:
                try:
                    is_instrumented = is_instrumented and executor._scheduler in owners  # noqa: SLF001
                    if is_instrumented:
                        submission = self._create_submission(job, run_times, runs)
                except Exception:  # noqa: BLE001  # telemetry never changes the job
                    self._error_reporter.exception("adapter")
                original(job, run_times if submission is None else submission)
            except BaseException as error:
                try:
                    if is_instrumented:
                        self._on_submit_failed(error, submission, job, run_times, runs)
                except Exception:  # noqa: BLE001  # the scheduler must see its own exception
                    self._error_reporter.exception("adapter")
                raise
            finally:  # or the loop's next change of the job would be taken for the user's
                self._scheduler_loop.on_job_submitted(job, submission)
            if self.measurement_sink_id is not None and submission is not None:
                self._record_pool_of_submission(submission)

        self._scheduler_loop.add_user_code_boundary(submit_job.__code__)
        return submit_job

    def _wrap_run_job_success(self, original: Callable[..., None]) -> Callable[..., None]:
        def run_job_success(job_id: str, events: Any) -> None:
            try:
                if isinstance(events, list) or not isinstance(events, Iterator):
                    self._on_result(job_id, events)
            except BaseException as error:
                self._finish_runs_after_interrupted_recording(job_id, events)
                if not isinstance(error, Exception):
                    raise
                self._error_reporter.exception("adapter")
            finally:  # also if Ctrl-C has come in between
                if isinstance(events, list) or not isinstance(events, Iterator):
                    original(job_id, events)
                else:  # of a user's executor
                    self._record_events_while_forwarding(original, job_id, events)

        return run_job_success

    def _wrap_run_job_error(self, original: Callable[..., None]) -> Callable[..., None]:
        def run_job_error(job_id: str, exc: BaseException, traceback: Any = None) -> None:
            try:
                self._on_result_lost(job_id, exc)
            except BaseException as error:
                self._lose_runs_after_interrupted_recording(job_id, exc)
                if not isinstance(error, Exception):
                    raise
                self._error_reporter.exception("adapter")
            finally:  # also if Ctrl-C has come in between
                original(job_id, exc, traceback)

        return run_job_error

    # Submissions

    def _create_submission(
        self, job: Any, run_times: Sequence[datetime], runs: list[Run]
    ) -> Submission:
        """
        Create the submission of a job and its runs.

        Args:
            job: APScheduler's job.
            run_times: when its runs are due.
            runs: a list that gets the runs, so that it has them also if Ctrl-C comes in between.
        """
        latest, alias = run_times[-1], job._jobstore_alias  # noqa: SLF001
        find_tracked_job = self._find_tracked_job
        tracked = find_tracked_job((alias, job.id))
        if tracked is None:
            tracked = self._job_change_handler.get_or_track(job, alias)
        # The first due time is the very object of the job's next run, unless runs are coalesced.
        if job.coalesce and run_times[0] is not job.next_run_time:
            self._unsubmitted_run_recorder.record_coalesced_runs(tracked, job, run_times[0])
        key = id(latest)
        if key in self._open_submissions_by_id:
            # The object belongs to a run that is in flight, for example because the application
            # has set the next run to the same time twice. Events are distinguished by objects.
            run_times = [*run_times[:-1], latest.replace()]
            key = id(run_times[-1])
        submission = self._open_submissions_by_id[key] = Submission(
            key, job, tracked, run_times, runs, self
        )
        tracked.set_last_submitted_due(latest)
        record, alias, link_origins = tracked.record, self._alias, tracked.link_origins
        create_run, run_submitted = self._recorder.create_run, self._recorder.run_submitted
        for due in run_times:
            run = create_run(record, due, alias, link_origins)
            # Its end is sure to be recorded before it is recorded, as Ctrl-C may come at any line.
            runs.append(run)
            run_submitted(run)
        if self.run_tracker.captures_arguments:
            self.run_tracker.capture_arguments(job, runs)
        return submission

    def _complete_interrupted_creation(
        self, job: Any, run_times: Sequence[datetime], runs: list[Run]
    ) -> Submission:
        """Return what `_create_submission` would have, which an exception has ended early."""
        tracked = self._job_change_handler.get_or_track(job, job._jobstore_alias)  # noqa: SLF001
        tracked.set_last_submitted_due(run_times[-1])
        runs.extend(
            self._recorder.create_run(tracked.record, due, self._alias, tracked.link_origins)
            for due in run_times[len(runs) :]
        )
        for run in runs:  # to record one twice is the same as once
            self._recorder.run_submitted(run)
        for submission in list(self._open_submissions_by_id.values()):
            if submission.runs is runs:
                return submission
        key = id(runs)  # under which no event looks for it
        return self._open_submissions_by_id.setdefault(
            key, Submission(key, job, tracked, run_times, runs, self)
        )

    def _record_pool_of_submission(self, submission: Submission) -> None:
        try:
            pool = pool_of(self._executor)  # a fresh one, if the one before was broken
            submission.set_pool(pool)
            if len(self._open_submissions_by_id) <= self._max_workers:  # else it has to wait
                self._estimate_starts_in_pool(pool)
        except Exception:  # noqa: BLE001  # the executor has taken the job
            self._error_reporter.exception("adapter")

    def _on_submit_failed(
        self,
        error: BaseException,
        submission: Submission | None,
        job: Any,
        run_times: Sequence[datetime],
        runs: list[Run],
    ) -> None:
        is_refusal = isinstance(error, MaxInstancesReachedError)
        if not is_refusal:
            self._recorder.count_scheduler_error(SchedulerErrorKind.SUBMIT)
        if submission is None:  # as Ctrl-C has come in between
            submission = self._complete_interrupted_creation(job, run_times, runs)
        if is_refusal:
            self._finish_remaining_runs(submission, Outcome.SKIPPED)
        else:
            self._abandon_submission(submission, error)

    # Results

    def _on_result(self, job_id: str, events: Any) -> None:
        try:
            submission = self._open_submissions_by_id.get(id(events[-1].scheduled_run_time))
        except (AttributeError, LookupError, TypeError):  # no events, or objects of the user's
            events = list(events) if isinstance(events, Iterable) else []
            submission = None
        if submission is None or submission.job.id != job_id:
            submission = self._find_submission_of_events(job_id, events)
            if submission is None:
                return
        if len(events) == len(submission.runs):
            self.run_tracker.finish_runs_by_events(submission.runs, events)
        else:
            self._record_matching_events(submission, events)
        # The last step, as it is to be found after an exception from outside.
        self._open_submissions_by_id.pop(submission.submission_id, None)
        if submission.pool is not None:
            self._estimate_starts_in_pool(submission.pool)

    def _finish_runs_after_interrupted_recording(self, job_id: str, events: Any) -> None:
        """End the runs of a result whose recording an exception from outside has ended early."""
        try:
            submission = self._open_submissions_by_id.get(id(events[-1].scheduled_run_time))
            if submission is None or submission.job.id != job_id:
                return  # `_on_result` has ended its runs, or they are another job's
            self._finish_runs_by_outcome_alone(submission, events)
        except Exception:  # noqa: BLE001  # no events, or objects of the user's
            self._error_reporter.exception("adapter")

    def _finish_runs_by_outcome_alone(self, submission: Submission, events: Iterable[Any]) -> None:
        """End the runs that have not ended, by no more of their events than the outcome."""
        for run, event in zip(submission.runs, events, strict=False):
            run.finish(outcome_of(event, run))
        self._finish_remaining_runs(submission, Outcome.LOST)

    def _record_matching_event(self, submission: Submission, event: Any) -> None:
        """Record an event of a user's executor with the run that it is about, if there is one."""
        run = _find_run_of_event(event, submission.runs)
        if run is not None:
            self.run_tracker.finish_runs_by_events([run], [event])

    def _record_matching_events(self, submission: Submission, events: Iterable[Any]) -> None:
        """Record the events of a user's executor, which has more or fewer of them than runs."""
        for event in events:
            self._record_matching_event(submission, event)
        self._finish_remaining_runs(submission, Outcome.LOST)  # those that no event is about

    def _record_events_while_forwarding(
        self, original: Callable[..., None], job_id: str, events: Iterator[Any]
    ) -> None:
        """Pass on events that can be read only once, each after it was recorded."""
        found: list[Submission | None] = []  # the submission, once the first event is read

        def record_and_yield() -> Iterator[Any]:
            for event in events:
                try:
                    if not found:
                        found.append(self._find_submission_of_events(job_id, [event]))
                    if found[0] is not None:
                        self._record_matching_event(found[0], event)
                except Exception:  # noqa: BLE001
                    self._error_reporter.exception("adapter")
                yield event

        try:
            original(job_id, record_and_yield())
        finally:  # however many of them were read
            submission = found[0] if found else self._find_submission_of_events(job_id, ())
            if submission is not None:
                self._finish_remaining_runs(submission, Outcome.LOST)

    def _on_result_lost(self, job_id: str, error: BaseException) -> None:
        """Record that an executor got no result for one of the submissions of a job."""
        waiting = [each for each in self._iter_open_submissions(job_id) if not each.is_abandoned]
        if isinstance(error, BrokenExecutor):  # the executor may have a fresh pool already
            waiting = [each for each in waiting if _is_pool_broken(each.pool)] or waiting
        submission = _find_submission_in_traceback(error, waiting)
        if (
            submission is None and self._run_counts_before_patching[job_id]
        ):  # the oldest, most likely
            self._run_counts_before_patching[job_id] -= 1
            return
        if submission is None and waiting:
            submission = next((each for each in waiting if not each.has_started), waiting[0])
        if submission is not None:
            self._abandon_submission(submission, error)

    def _abandon_submission(self, submission: Submission, error: BaseException) -> None:
        """Record that no result of a submission will come, unless a thread still works on it."""
        if (
            submission.mark_abandoned_and_check_not_running()
            and submission.submission_id in self._open_submissions_by_id
        ):
            self._finish_remaining_runs(submission, Outcome.LOST, error)

    def _lose_runs_after_interrupted_recording(self, job_id: str, error: BaseException) -> None:
        """Do the same as `_on_result_lost`, which an exception from outside has ended early."""
        try:
            abandoned = [each for each in self._iter_open_submissions(job_id) if each.is_abandoned]
            for submission in abandoned:
                self._abandon_submission(submission, error)
            if not abandoned:
                self._on_result_lost(job_id, error)
        except Exception:  # noqa: BLE001  # the scheduler must hear of the error
            self._error_reporter.exception("adapter")

    def on_abandoned_submission_end(self, submission: Submission) -> None:
        """Record the end of a submission that its executor had given up before."""
        if (
            submission.submission_id in self._open_submissions_by_id
        ):  # unless `_abandon_submission` was quicker
            self._finish_remaining_runs(submission, Outcome.LOST)

    def _finish_remaining_runs(
        self, submission: Submission, outcome: Outcome, error: BaseException | None = None
    ) -> None:
        """End the runs of a submission that have not ended."""
        reason = None if error is None else self.run_tracker.describe_error(error)
        for run in submission.runs:
            self.run_tracker.finish_run(run, outcome, reason)
        self._open_submissions_by_id.pop(submission.submission_id, None)
        if submission.pool is not None:
            self._estimate_starts_in_pool(submission.pool)

    def receive_measurement(  # noqa: PLR0913, PLR0917  # as of `MeasurementSink`
        self,
        submission_id: int,
        due: datetime,
        position: int,
        started_at: float,
        duration: float,
        telemetry_error: str | None,
        recorded: Mapping[str, float] | None = None,
        failure_reason: str | None = None,
    ) -> datetime:
        """Take the measurement of a run from a child process; see `MeasurementSink`."""
        submission = self._open_submissions_by_id.get(submission_id)
        runs = () if submission is None else submission.runs[position : position + 1]
        if not runs or not _is_same_time(runs[0].due, due):
            return due  # abandoned in the meantime
        run = runs[0]
        try:
            if run.try_start(started_at):
                if recorded is not None:
                    run.get_or_create_current_run().record(**recorded)
                if failure_reason is not None:
                    run.get_or_create_current_run().fail(failure_reason)
                run.set_duration(duration)
            if telemetry_error:
                self.run_tracker.report_child_error(telemetry_error)
        except Exception:  # noqa: BLE001  # raised while it is unpickled, it would break the pool
            self.run_tracker.report_telemetry_exception()
        return run.due

    # Open submissions

    def _find_submission_of_events(self, job_id: str, events: Sequence[Any]) -> Submission | None:
        """Return the open submission that events are about, None if there is none."""
        if not events:
            return next(self._iter_open_submissions(job_id), None)
        due = getattr(events[-1], "scheduled_run_time", None)
        submission = self._open_submissions_by_id.get(id(due))
        if submission is not None and submission.job.id == job_id:
            return submission
        for submission in self._iter_open_submissions(job_id):
            if due is None or _find_run_of_event(events[-1], submission.runs) is not None:
                return submission
        if self._run_counts_before_patching[job_id]:
            self._run_counts_before_patching[job_id] -= 1
            return None
        if not self._patches.is_active:
            return None  # it was submitted since, and is not ours
        # `_on_result_lost` has chosen the wrong one: it was another that got no result.
        return next(self._iter_open_submissions(job_id), None)

    def _iter_open_submissions(self, job_id: str) -> Iterator[Submission]:
        """Yield the open submissions of a job, the oldest first."""
        for submission in list(self._open_submissions_by_id.values()):  # other threads change it
            if (
                submission.job.id == job_id
                and submission.submission_id in self._open_submissions_by_id
            ):
                yield submission

    def _estimate_starts_in_pool(self, pool: Any) -> None:
        """
        Estimate which runs a process pool works on now.

        A child cannot report a start before it returns. But a pool starts submissions in their
        order, so with n workers the n oldest ones are running.
        """
        if _is_pool_broken(pool):
            return  # nothing starts in it any more
        now = self._clock()
        # At once, as other threads change it.
        for submission in list(islice(self._open_submissions_by_id.values(), self._max_workers)):
            if submission.pool is pool:  # so it has its runs: another thread may be adding them
                run = submission.runs[0]
                run.try_set_estimated_start(now, submission.misfire_grace_time)


def _find_submission_in_traceback(
    error: BaseException, waiting: Sequence[Submission]
) -> Submission | None:
    """
    Return the submission on which the code worked that has raised an exception, if that shows.

    APScheduler says only to which job an exception belongs. But a function in its stack trace has
    had the submission, or one of its run times, in a variable, unless the function ran in another
    process.
    """
    for frame, _ in walk_tb(error.__traceback__):
        values = set(map(id, frame.f_locals.values()))
        for submission in waiting:
            if not values.isdisjoint(map(id, (submission, *submission))):
                return submission
    return None


def _find_run_of_event(event: Any, runs: Sequence[Run]) -> Run | None:
    """Return the first run that an event may be about and that has not ended."""
    due = getattr(event, "scheduled_run_time", None)
    matching = (run for run in runs if run.outcome is None and due in (None, run.due))
    return next(matching, None)


def _is_same_time(due: datetime, copy: datetime) -> bool:
    """Tell whether the second may be a copy of the first that was pickled."""
    # In an hour that comes twice, times whose zones are two objects are never equal.
    return due == copy or without_timezone(due) == without_timezone(copy)


def pool_of(executor: Any) -> Any:
    """Return the `concurrent.futures` pool of an APScheduler executor; None if it has none."""
    # Tornado's has a pool for functions, and runs coroutine functions beside it.
    pool = getattr(executor, "_pool", None)
    return getattr(executor, "executor", None) if pool is None else pool


def is_process_pool(executor: Any) -> bool:
    """Return whether an APScheduler executor runs its jobs in a pool of processes."""
    return isinstance(pool_of(executor), ProcessPool)


def _is_pool_broken(pool: Any) -> bool:
    # Neither has this one.
    return bool(getattr(pool, "_broken", False))


def _max_workers_of(pool: Any) -> int | None:
    # Neither APScheduler nor concurrent.futures has a public name for it.
    # Not by `getattr`, which may call code of the user's that creates a pool.
    return getattr(pool, "__dict__", {}).get("_max_workers")


def worker_capacity(executor: Any) -> float:
    """Return how many runs an executor can work on at once; infinity if nothing limits it."""
    if isinstance(executor, DebugExecutor):
        return 1
    limit = _max_workers_of(pool_of(executor))
    if limit is None:
        # Twisted's reactor makes its pool when it is first asked for; that must not be by us.
        pool = getattr(getattr(executor, "_reactor", None), "threadpool", None)
        limit = getattr(pool, "max", None)
    return limit or math.inf
