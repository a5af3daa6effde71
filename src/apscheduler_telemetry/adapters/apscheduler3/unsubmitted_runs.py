"""
Due runs that never reach an executor: coalesced into a later one, dropped, or lost.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import TrackedJob
from apscheduler_telemetry.adapters.apscheduler3.triggers import PastFireTimes
from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.core.observers import ErrorReporter, ObserverGroup
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobRecord


class UnsubmittedRunRecorder:
    """
    Records the due runs of one scheduler that never reach an executor.

    Args:
        scheduler: an APScheduler 3 scheduler.
        recorder: where they are recorded.
        observers: observe single runs.
        error_reporter: counts triggers that fail.
        worker: calls the triggers of jobs that the application changes, which may take long.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        recorder: Recorder,
        observers: ObserverGroup,
        error_reporter: ErrorReporter,
        worker: BackgroundWorker,
    ) -> None:
        self._scheduler = scheduler
        self._recorder = recorder
        self._observers = observers
        self._error_reporter = error_reporter
        self._worker = worker
        self._trigger_copies: dict[str, Any] = {}
        self._has_stateful_triggers = False

    def record_runs(
        self,
        record: JobRecord,
        link_origins: Sequence[Any],
        outcome: Outcome,
        fire_times: PastFireTimes,
    ) -> None:
        """Record that due runs of a job have ended without being submitted."""
        if not fire_times.total:
            return
        latest: Sequence[datetime] = fire_times.latest_times if self._observers.is_enabled else ()
        for run in self._recorder.runs_unsubmitted(
            record, outcome, fire_times.total, latest, link_origins
        ):
            self._observers.on_run_finished(run)

    def record_all_due_runs_lost(self, tracked: TrackedJob, job: Any) -> None:
        """Record that all due runs of a job are lost, as its executor does not exist."""
        now = datetime.now(self._scheduler.timezone)
        fire_times = triggers.list_due_times(job.next_run_time, job.trigger, now)
        self.record_runs(tracked.record, tracked.link_origins, Outcome.LOST, fire_times)

    def record_run_lost(self, tracked: TrackedJob, due: datetime) -> None:
        """Record that one due run of a job is lost, as its store could not deserialize it."""
        self.record_runs(
            tracked.record, tracked.link_origins, Outcome.LOST, PastFireTimes(1, [due])
        )

    def record_coalesced_runs(self, tracked: TrackedJob, job: Any, until: datetime) -> None:
        """Record the due runs of a job that APScheduler coalesces into the one due at `until`."""
        try:
            trigger = self._trigger_copies.pop(job.id, None)
            fire_times = triggers.fire_times_before(job, until, trigger)
            self.record_runs(tracked.record, tracked.link_origins, Outcome.COALESCED, fire_times)
        except Exception:  # noqa: BLE001  # a trigger may be the user's code
            self._error_reporter.exception("schedule")

    def detect_stateful_trigger(self, trigger: Any) -> None:
        """Note whether any job has a trigger that may depend on how often it was called."""
        if type(trigger) not in triggers.STATELESS_TRIGGER_TYPES:
            self._has_stateful_triggers = True

    def copy_stateful_triggers(self, jobs: Iterable[Any]) -> None:
        """Copy the triggers of due jobs that change when the loop calls them for the next run."""
        if not self._has_stateful_triggers:
            return
        self._trigger_copies.clear()
        for job in jobs:
            if type(job.trigger) in triggers.STATELESS_TRIGGER_TYPES or not job.coalesce:
                continue
            try:
                trigger_copy = triggers.copy_if_stateful(job.trigger)
            except Exception:  # noqa: BLE001  # the user's trigger may be impossible to copy
                self._error_reporter.exception("schedule")
                continue
            if trigger_copy is not None:
                self._trigger_copies[job.id] = trigger_copy

    def record_dropped_runs(
        self, tracked: TrackedJob, new_next_run: datetime | None = None
    ) -> bool:
        """
        Record the due runs of a job that are dropped because the application changes it.

        They were due, for example while no process was running, and APScheduler will not run them
        any more. Runs that APScheduler would have merged are coalesced, the others are missed.

        Args:
            tracked: the job, before it is changed.
            new_next_run: its next run after the change; runs from then on are not dropped.

        Returns:
            Whether any run was dropped.
        """
        next_run, last_submitted_due = tracked.next_run, tracked.last_submitted_due
        now = datetime.now(self._scheduler.timezone)
        if next_run is None or next_run > now.timestamp():
            return False
        if last_submitted_due is not None and next_run <= last_submitted_due.timestamp():
            return False
        if new_next_run is not None and new_next_run.timestamp() <= next_run:
            return True  # the loop will reach it after earlier runs
        record = copy.copy(tracked.record)  # as it is before the change
        trigger, coalesce = tracked.intervals_trigger, tracked.coalesce
        link_origins = tracked.link_origins
        first = datetime.fromtimestamp(next_run, now.tzinfo)

        def compute_and_record() -> None:
            try:
                fire_times = triggers.list_due_times(first, trigger, now, new_next_run)
            except Exception:  # noqa: BLE001  # the user's trigger; one run is known in any case
                self._error_reporter.exception("schedule")
                fire_times = PastFireTimes(1, [first])
            if coalesce and fire_times.total > 1:
                merged = PastFireTimes(fire_times.total - 1, fire_times.latest_times[:-1])
                self.record_runs(record, link_origins, Outcome.COALESCED, merged)
                fire_times = PastFireTimes(1, fire_times.latest_times[-1:])
            self.record_runs(record, link_origins, Outcome.MISSED, fire_times)

        # In the background, because many runs must not block the start of the application.
        self._worker.submit("schedule", compute_and_record)
        return True
