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
from apscheduler_telemetry.adapters.apscheduler3.triggers import FireTimes
from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.core.observers import ErrorReporter, ObserverGroup
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobRecord


class UnsubmittedRuns:
    """
    Records the due runs of one scheduler that never reach an executor.

    Args:
        scheduler: an APScheduler 3 scheduler.
        recorder: where they are recorded.
        observers: who follows single runs.
        errors: counts triggers that fail.
        worker: asks the triggers of jobs that the user changes, which may take long.
    """

    def __init__(
        self,
        scheduler: Any,
        *,
        recorder: Recorder,
        observers: ObserverGroup,
        errors: ErrorReporter,
        worker: BackgroundWorker,
    ) -> None:
        self._scheduler = scheduler
        self._recorder = recorder
        self._observers = observers
        self._errors = errors
        self._worker = worker
        self._trigger_snapshots: dict[str, Any] = {}
        self._has_stateful_triggers = False

    def record(
        self, record: JobRecord, links: Sequence[Any], outcome: Outcome, times: FireTimes
    ) -> None:
        """Record that due runs of a job have ended without being submitted."""
        if not times.total:
            return
        latest: Sequence[datetime] = times.latest if self._observers.is_enabled else ()
        for run in self._recorder.runs_unsubmitted(record, outcome, times.total, latest, links):
            self._observers.on_run_finished(run)

    def record_lost(self, tracked: TrackedJob, job: Any) -> None:
        """Record that all due runs of a job are lost, as its executor does not exist."""
        now = datetime.now(self._scheduler.timezone)
        times = triggers.due_times(job.next_run_time, job.trigger, now)
        self.record(tracked.record, tracked.links, Outcome.LOST, times)

    def record_lost_run(self, tracked: TrackedJob, due: datetime) -> None:
        """Record that one due run of a job is lost, as its store could not deserialize it."""
        self.record(tracked.record, tracked.links, Outcome.LOST, FireTimes(1, [due]))

    def record_coalesced(self, tracked: TrackedJob, job: Any, until: datetime) -> None:
        """Record the due runs of a job that APScheduler coalesces into the one due at `until`."""
        try:
            trigger = self._trigger_snapshots.pop(job.id, None)
            times = triggers.fire_times_before(job, until, trigger)
            self.record(tracked.record, tracked.links, Outcome.COALESCED, times)
        except Exception:  # noqa: BLE001  # a trigger may be the user's code
            self._errors.exception("schedule")

    def register_trigger(self, trigger: Any) -> None:
        """Note which trigger a job has: some remember how often they were asked."""
        if type(trigger) not in triggers.STATELESS:
            self._has_stateful_triggers = True

    def snapshot_triggers(self, jobs: Iterable[Any]) -> None:
        """Copy the triggers of due jobs that change when the loop asks them for the next run."""
        if not self._has_stateful_triggers:
            return
        self._trigger_snapshots.clear()
        for job in jobs:
            if type(job.trigger) in triggers.STATELESS or not job.coalesce:
                continue
            try:
                snapshot = triggers.snapshot(job.trigger)
            except Exception:  # noqa: BLE001  # the user's trigger may be impossible to copy
                self._errors.exception("schedule")
                continue
            if snapshot is not None:
                self._trigger_snapshots[job.id] = snapshot

    def record_dropped(self, tracked: TrackedJob, following: datetime | None = None) -> bool:
        """
        Record the due runs of a job that are dropped, as the user changes it.

        They fell due, for example while no process was there to run them, and APScheduler will not
        run them any more. They are counted as it would have: what it would have merged is
        coalesced, the rest is missed.

        Args:
            tracked: the job, before it is changed.
            following: its next run from now on; what is due from then on is not dropped.

        Returns:
            Whether any run was dropped.
        """
        next_run, done = tracked.next_run, tracked.last_submitted
        now = datetime.now(self._scheduler.timezone)
        if next_run is None or next_run > now.timestamp():
            return False
        if done is not None and next_run <= done.timestamp():
            return False
        if following is not None and following.timestamp() <= next_run:
            return True  # the loop will reach it after earlier runs
        record = copy.copy(tracked.record)  # as it is before the change
        trigger, coalesce, links = tracked.trigger, tracked.coalesce, tracked.links
        first = datetime.fromtimestamp(next_run, now.tzinfo)

        def record_dropped_runs() -> None:
            try:
                times = triggers.due_times(first, trigger, now, following)
            except Exception:  # noqa: BLE001  # the user's trigger; one run is known all the same
                self._errors.exception("schedule")
                times = FireTimes(1, [first])
            if coalesce and times.total > 1:
                merged = FireTimes(times.total - 1, times.latest[:-1])
                self.record(record, links, Outcome.COALESCED, merged)
                times = FireTimes(1, times.latest[-1:])
            self.record(record, links, Outcome.MISSED, times)

        self._worker.submit(
            "schedule", record_dropped_runs
        )  # many runs must not hold up the user's start
        return True
