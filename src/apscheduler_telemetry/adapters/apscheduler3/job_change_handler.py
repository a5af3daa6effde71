"""
Determines whether the application, the scheduler's loop or another process has changed a job.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from apscheduler_telemetry.adapters.apscheduler3.job_describer import JobDescriber
from apscheduler_telemetry.adapters.apscheduler3.scheduler_loop import SchedulerLoop
from apscheduler_telemetry.adapters.apscheduler3.trace_links import TraceLinks
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import (
    JobComparedByTrigger,
    TrackedJob,
    TrackedJobs,
)
from apscheduler_telemetry.adapters.apscheduler3.unsubmitted_runs import UnsubmittedRunRecorder
from apscheduler_telemetry.core.model import Clock, RemovalReason, SchedulerErrorKind
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.times import to_unix_seconds


class JobChangeHandler:
    """
    Handles the events in the job stores of one scheduler.

    Args:
        jobs: the jobs by store and id.
        recorder: counts jobs whose executor does not exist.
        loop: shows whether the scheduler's loop is making a change.
        describer: describes jobs.
        links: where jobs were added and runs were triggered.
        unsubmitted_run_recorder: records due runs that never reach an executor.
        clock: returns Unix seconds.

    Attributes:
        make_run_times_observable: see `UnsubmittedRunRecorder`; to be called with the due jobs
            that the loop gets.
    """

    def __init__(  # noqa: PLR0913  # each part by name
        self,
        *,
        jobs: TrackedJobs,
        recorder: Recorder,
        loop: SchedulerLoop,
        describer: JobDescriber,
        links: TraceLinks,
        unsubmitted_run_recorder: UnsubmittedRunRecorder,
        clock: Clock,
    ) -> None:
        self.tracked_jobs = jobs
        self._get_tracked_job = jobs.get
        self._recorder = recorder
        self._scheduler_loop = loop
        self._job_describer = describer
        self._trace_links = links
        self._unsubmitted_run_recorder = unsubmitted_run_recorder
        # The method itself, as every pass calls it.
        self.make_run_times_observable = unsubmitted_run_recorder.make_run_times_observable
        self._clock = clock

    # What this process does

    def on_job_added(self, job: Any, alias: str) -> None:
        """Note that a job was added to a store."""
        self._trace_links.on_job_added(self._upsert(job, alias))

    def on_job_updated(self, job: Any, alias: str) -> None:
        """Note that a job was changed in its store, by the user or by the loop."""
        # If Ctrl-C has prevented the loop's patch from noting the submission, the stack shows it.
        if (
            self._scheduler_loop.is_setting_next_run(job.id)
            or self._scheduler_loop.is_called_by_loop
        ):
            self.on_job_rescheduled_by_loop(job, alias)
            return
        tracked = self._get_tracked_job((alias, job.id))
        before = None if tracked is None else tracked.next_run
        if tracked is not None:
            next_run = job.next_run_time
            has_moved = _to_unix_seconds_or_none(next_run) != before
            is_dropped = has_moved and self._unsubmitted_run_recorder.record_dropped_runs(
                tracked, next_run
            )
            # A start that replaces a stored job cancels no run, although it may postpone one.
            is_restart = job.pending and tracked.is_from_other_process
            self._recorder.job_rescheduled(
                tracked.record, next_run, cancels=not is_dropped and not is_restart
            )
        tracked = self._upsert(job, alias)
        tracked.clear_is_from_other_process()
        if job.pending:  # it was already stored, and add_job() has replaced it
            self._trace_links.on_job_added(tracked)
        elif tracked.next_run != before:
            self._trace_links.on_next_run_set_by_user(tracked)

    def on_job_rescheduled_by_loop(self, job: Any, alias: str) -> None:
        """Note that the loop has submitted the next run of a job, and set another one."""
        self._scheduler_loop.clear_job_awaiting_next_run()
        tracked = self._get_tracked_job((alias, job.id))
        if tracked is None or tracked.last_submitted_due is None:
            # The job was removed while it ran, and perhaps added again.
            self._upsert(job, alias)
            return
        self.on_job_advanced(tracked, job)

    def on_job_advanced(self, tracked: TrackedJob, job: Any) -> None:
        """
        Note the next run of a job whose run was submitted.

        Args:
            tracked: what was known of the job when it was submitted.
            job: APScheduler's job.
        """
        if (intervals := tracked.observed_intervals) is not None:
            self.tracked_jobs.observe_interval(tracked, intervals, job)
        self._recorder.job_advanced(tracked.record, job.next_run_time)
        # Most jobs have neither, and a property would cost a call after every run.
        if tracked.intervals_expiry is not None and tracked.has_outdated_intervals:
            self.tracked_jobs.update_intervals(tracked, job)
        if tracked.next_run_origin is not None:
            self._trace_links.drop_next_run_origin(tracked)

    def on_job_removed(self, job_id: str, alias: str) -> None:
        """Note that a job was removed from its store, and find out why."""
        tracked = self._get_tracked_job((alias, job_id))
        reason = RemovalReason.CANCELLED
        if self._scheduler_loop.is_setting_next_run(job_id):
            self._scheduler_loop.clear_job_awaiting_next_run()
            reason = RemovalReason.FINISHED
        elif self._scheduler_loop.is_called_by_loop:
            # Before it is submitted, the loop removes a job only if its executor does not exist.
            self._recorder.count_scheduler_error(SchedulerErrorKind.EXECUTOR_LOOKUP)
            reason = RemovalReason.FAILED
            job = self._scheduler_loop.find_due_job(job_id)
            if tracked is not None and job is not None:
                self._unsubmitted_run_recorder.record_all_due_runs_lost(tracked, job)
        if tracked is None:
            return
        if reason is RemovalReason.CANCELLED:
            self._on_removed_by_user(tracked)
        else:
            self._remove(tracked, reason)

    def on_all_jobs_removed(self, alias: str) -> None:
        """Note that the user has removed all jobs of a store."""
        for tracked in self.tracked_jobs.list_jobs_in_jobstore(alias):
            self._on_removed_by_user(tracked)

    def sync_due_jobs(self, jobs: Iterable[Any], alias: str) -> None:
        """Note due jobs that another process has added or changed."""
        for job in jobs:
            tracked = self._get_tracked_job((alias, job.id))
            if tracked is None or tracked.next_run != _to_unix_seconds_or_none(job.next_run_time):
                self._trace_links.load_origins(self._upsert(job, alias))

    def get_or_track(self, job: Any, alias: str) -> TrackedJob:
        """Return the tracked job; if the job is not tracked yet, start to track it."""
        return self._get_tracked_job((alias, job.id)) or self._upsert(job, alias)

    # What other processes do, this one's predecessors among them

    def describe_and_compare_trigger(self, job: Any, alias: str) -> JobComparedByTrigger:
        """Describe a job; this calls the user's code."""
        return self.tracked_jobs.compare_with_known_trigger(
            self._job_describer.describe(job, alias), job
        )

    def on_job_read(
        self, job: Any, alias: str, inspected: JobComparedByTrigger | None = None
    ) -> None:
        """
        Note a job that another process may have added or changed.

        Args:
            job: as it was read from its store.
            alias: of the store.
            inspected: of it, if there is one already.
        """
        tracked = self._get_tracked_job((alias, job.id))
        next_run = job.next_run_time
        has_changed = tracked is None or _to_unix_seconds_or_none(next_run) != tracked.next_run
        if tracked is not None and has_changed:
            cancels = not self._is_due_unprocessed(tracked)
            self._recorder.job_rescheduled(tracked.record, next_run, cancels=cancels)
        inspected = inspected or self.describe_and_compare_trigger(job, alias)
        self._unsubmitted_run_recorder.note_if_unrecomputable(job.trigger)
        tracked = self.tracked_jobs.upsert(inspected, job, is_from_other_process=True)
        if has_changed:
            self._trace_links.load_origins(tracked)

    def on_job_vanished(self, tracked: TrackedJob, reason: RemovalReason) -> None:
        """Note that a job is not in its store any more, removed by another process."""
        if reason is RemovalReason.CANCELLED and self._is_due_unprocessed(tracked):
            reason = RemovalReason.FAILED
        self._remove(tracked, reason)

    def on_undeserializable_job_deleted(self, tracked: TrackedJob, due: datetime | None) -> None:
        """
        Note that the store has deleted a job that it could not deserialize.

        Args:
            tracked: the job.
            due: when its run was due; None if no run was due.
        """
        if due is not None:
            self._unsubmitted_run_recorder.record_run_lost(tracked, due)
        self.tracked_jobs.remove(tracked, RemovalReason.FAILED)

    def _upsert(self, job: Any, alias: str) -> TrackedJob:
        inspected = self.describe_and_compare_trigger(job, alias)
        self._unsubmitted_run_recorder.note_if_unrecomputable(job.trigger)
        return self.tracked_jobs.upsert(inspected, job)

    def _remove(self, tracked: TrackedJob, reason: RemovalReason) -> None:
        self.tracked_jobs.remove(tracked, reason)
        self._trace_links.on_job_removed(tracked)

    def _on_removed_by_user(self, tracked: TrackedJob) -> None:
        # Runs that are already due are missed, and cannot be cancelled.
        is_dropped = self._unsubmitted_run_recorder.record_dropped_runs(tracked)
        reason = RemovalReason.FINISHED if is_dropped else RemovalReason.CANCELLED
        self._remove(tracked, reason)

    def _is_due_unprocessed(self, tracked: TrackedJob) -> bool:
        """Return whether a job is due, and the loop has not looked for due jobs since then."""
        next_run, last_pass_ended_at = tracked.next_run, self._scheduler_loop.last_pass_ended_at
        if next_run is None or next_run > self._clock():
            return False
        return last_pass_ended_at is None or last_pass_ended_at < next_run


def _to_unix_seconds_or_none(at: datetime | None) -> float | None:
    return None if at is None else to_unix_seconds(at)
