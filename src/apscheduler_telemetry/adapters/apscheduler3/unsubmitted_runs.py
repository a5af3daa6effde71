"""
Due runs that never reach an executor: coalesced into a later one, dropped, or lost.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.due_jobs_reporting_run_times import (
    DueJobsReportingRunTimes,
    create_observed_job_class,
)
from apscheduler_telemetry.adapters.apscheduler3.fire_time_searcher import (
    BackgroundFireTimeSearcher,
)
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import TrackedJob
from apscheduler_telemetry.adapters.apscheduler3.triggers import FireTimeSearch, FoundFireTimes
from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.core.observers import ErrorReporter, ObserverGroup
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobRecord
from apscheduler_telemetry.core.times import to_datetime, to_unix_seconds

MAX_TRIGGER_CALLS_PER_JOB_IN_PASS = 200
"""
Calls of a cron trigger in a pass over due jobs, at about 0.01 milliseconds each.

More calls are made in the background.
"""

MIN_OVERDUE_SECONDS_TO_BE_DROPPED = 1.0
"""
How long a run must be overdue when the application changes its job, to count as dropped.

Shortly after the due time, the change was only faster than the loop, which takes milliseconds to
wake up. Then it cancels the run, as a moment before. A second is APScheduler's own default for a
run that starts in time, `misfire_grace_time`.
"""


class UnsubmittedRunRecorder:
    """
    Records the due runs of one scheduler that never reach an executor.

    Args:
        scheduler: an APScheduler 3 scheduler.
        recorder: where they are recorded.
        observers: who follows single runs.
        error_reporter: counts failures of telemetry.
        fire_time_searcher: finds due runs that APScheduler does not look for.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        recorder: Recorder,
        observers: ObserverGroup,
        error_reporter: ErrorReporter,
        fire_time_searcher: BackgroundFireTimeSearcher,
    ) -> None:
        self._scheduler = scheduler
        self._recorder = recorder
        self._observers = observers
        self._error_reporter = error_reporter
        self._fire_time_searcher = fire_time_searcher
        self._has_unrecomputable_triggers = False
        self._latest_found_run_times: FoundFireTimes | None = None
        self._job_subclass_reporting_run_times = create_observed_job_class(self._on_run_times_found)

    def record_runs(
        self,
        record: JobRecord,
        link_origins: Sequence[Any],
        outcome: Outcome,
        fire_times: FoundFireTimes,
    ) -> None:
        """Record that due runs of a job have ended without being submitted."""
        if not fire_times.found_count:
            return
        listed = fire_times.latest_times
        if not self._observers.has_enabled_observers:  # only the history is to know of them
            listed = listed[max(0, len(listed) - self._recorder.history) :]
        for run in self._recorder.runs_unsubmitted(
            record, outcome, fire_times.found_count, listed, link_origins
        ):
            self._observers.on_run_finished(run)

    def record_all_due_runs_lost(self, tracked: TrackedJob, job: Any) -> None:
        """Record that all due runs of a job are lost, as its executor does not exist."""
        now = datetime.now(self._scheduler.timezone)
        search = triggers.create_due_fire_time_search(job.next_run_time, job.trigger, now)
        record, link_origins = tracked.record, tracked.link_origins
        self._search_now_or_in_background(
            search,
            record,
            lambda found: self.record_runs(record, link_origins, Outcome.LOST, found),
        )

    def record_run_lost(self, tracked: TrackedJob, due: datetime) -> None:
        """Record that one due run of a job is lost, as its store could not deserialize it."""
        self.record_runs(
            tracked.record, tracked.link_origins, Outcome.LOST, FoundFireTimes(1, [due])
        )

    def record_coalesced_runs(self, tracked: TrackedJob, job: Any, until: datetime) -> None:
        """Record the due runs of a job that APScheduler coalesces into the one due at `until`."""
        record, link_origins = tracked.record, tracked.link_origins
        found, self._latest_found_run_times = self._latest_found_run_times, None
        try:
            if found is not None and found.latest_times[-1] is until:
                self.record_runs(record, link_origins, Outcome.COALESCED, found.without_last())
                return
            self._search_now_or_in_background(
                triggers.create_search_before(job.next_run_time, until, job.trigger),
                record,
                lambda found: self.record_runs(record, link_origins, Outcome.COALESCED, found),
            )
        except Exception:  # noqa: BLE001  # the run itself is to be recorded all the same
            self._error_reporter.exception("schedule")

    def note_if_unrecomputable(self, trigger: Any) -> None:
        """Note whether the past fire times of any job cannot be found again afterwards."""
        if not triggers.can_recompute_fire_times(trigger):
            self._has_unrecomputable_triggers = True

    def make_run_times_observable(self, jobs: Sequence[Any]) -> Sequence[Any]:
        """Return due jobs for the loop, so that it is seen which run times it finds."""
        if not self._has_unrecomputable_triggers:
            return jobs
        self._latest_found_run_times = None
        return DueJobsReportingRunTimes(
            jobs,
            self._job_subclass_reporting_run_times,
            lambda job: job.coalesce and not triggers.can_recompute_fire_times(job.trigger),
        )

    def _on_run_times_found(self, run_times: Sequence[datetime]) -> None:
        self._latest_found_run_times = (
            triggers.to_found_fire_times(run_times) if len(run_times) > 1 else None
        )

    def _search_now_or_in_background(
        self,
        search: FireTimeSearch,
        job_record: JobRecord,
        on_found: Callable[[FoundFireTimes], None],
    ) -> None:
        """Search at once if that is quick, and else in the background."""
        if triggers.can_recompute_fire_times(search.trigger):
            search.run(MAX_TRIGGER_CALLS_PER_JOB_IN_PASS)
        if search.is_finished and search.problem is None:
            on_found(search.found)
            return
        self._fire_time_searcher.submit(
            search, job_record.info, lambda search: on_found(search.found)
        )

    def record_dropped_runs(
        self, tracked: TrackedJob, new_next_run: datetime | None = None
    ) -> bool:
        """
        Record the due runs of a job that are dropped because the application changes it.

        They were due, for example while no process was running, and APScheduler will not run them
        any more. Runs that APScheduler would have merged are coalesced, the others are missed.
        Nothing is recorded if the first of them has been due for less than a second.

        Args:
            tracked: the job, before it is changed.
            new_next_run: its next run after the change; runs from then on are not dropped.

        Returns:
            Whether any run was dropped.
        """
        next_run, last_submitted_due = tracked.next_run, tracked.last_submitted_due
        now = datetime.now(self._scheduler.timezone)
        if next_run is None or now.timestamp() - next_run < MIN_OVERDUE_SECONDS_TO_BE_DROPPED:
            return False
        if last_submitted_due is not None and next_run <= to_unix_seconds(last_submitted_due):
            return False
        if new_next_run is not None and to_unix_seconds(new_next_run) <= next_run:
            return True  # the loop will reach it after earlier runs
        record = copy.copy(tracked.record)  # as it is before the change
        coalesce, link_origins = tracked.coalesce, tracked.link_origins

        def on_found(search: FireTimeSearch) -> None:
            found = search.found
            if coalesce and found.found_count > 1:
                self.record_runs(record, link_origins, Outcome.COALESCED, found.without_last())
                found = found.only_last()
            self.record_runs(record, link_origins, Outcome.MISSED, found)

        first = to_datetime(next_run, now.tzinfo)
        search = triggers.create_due_fire_time_search(first, tracked.trigger, now, new_next_run)
        # In the background, as many runs must not hold up the user's start.
        self._fire_time_searcher.submit(search, record.info, on_found)
        return True
