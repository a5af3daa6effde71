"""
Follows the jobs of a scheduler: what happens to them in their stores becomes metrics state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.core.model import JobInfo, RemovalReason
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobKey, JobRecord, Run

INTERVALS_VALID_SECONDS = 60.0
"""
Seconds for which the intervals of a job are not computed again, however short they are.

Otherwise the trigger of a job that runs every second would be called twice as often.
"""


class TrackedJob:
    """
    The adapter's state of one job.

    Attributes:
        record: the recorder's state of the job.
        intervals_trigger: the trigger from which its intervals were computed.
        coalesce: whether late runs are merged into one.
        last_submitted_due: the latest fire time that was submitted to an executor or refused by it;
            None before the first.
        is_from_other_process: whether another process, such as this one's predecessor, has stored
            the job, and this one has not changed it yet.
        intervals_expiry: Unix seconds of the next run after which its intervals have to be
            computed again; None if never.
        added_origin: the OpenTelemetry origin where the job was added, if known.
        next_run_origin: the same where the user has set its next run; None if it is the trigger's.
        link_origins: those of both that are known; its runs link to them.
        is_removed: whether it is not tracked any more.
    """

    __slots__ = (
        *("added_origin", "coalesce", "intervals_expiry", "is_from_other_process", "is_removed"),
        *("intervals_trigger", "last_submitted_due", "link_origins", "next_run_origin", "record"),
    )

    def __init__(self, record: JobRecord, *, is_from_other_process: bool) -> None:
        self.record = record
        self.intervals_trigger: Any = None
        self.coalesce = False
        self.last_submitted_due: datetime | None = None
        self.is_from_other_process = is_from_other_process
        self.is_removed = False
        self.intervals_expiry: float | None = None
        self.added_origin: Any = None
        self.next_run_origin: Any = None
        self.link_origins: tuple[Any, ...] = ()

    @property
    def key(self) -> JobKey:
        """The alias of the job's store, and its id."""
        return self.record.key

    @property
    def next_run(self) -> float | None:
        """Unix seconds of the next run; None if there is none."""
        return self.record.next_run

    @property
    def needs_intervals(self) -> bool:
        """Whether its intervals have to be computed again, as the next run is beyond them."""
        expiry, next_run = self.intervals_expiry, self.next_run
        return expiry is not None and next_run is not None and next_run > expiry

    def update_record(self, record: JobRecord, *, coalesce: bool) -> None:
        """Note what the job is now."""
        self.record = record
        self.coalesce = coalesce

    def mark_removed(self) -> None:
        """Note that it is not tracked any more."""
        self.is_removed = True

    def clear_is_from_other_process(self) -> None:
        """Note that this process has changed the job."""
        self.is_from_other_process = False

    def create_run(self, due: datetime, executor: str) -> Run:
        """Return a run that is due at a fire time and is being submitted to an executor."""
        self.last_submitted_due = due
        return Run(self.record, due, executor, self.link_origins)

    def set_intervals_trigger(self, trigger: Any) -> None:
        """Note from which trigger the intervals are computed."""
        self.intervals_trigger = trigger
        self.intervals_expiry = None

    def set_intervals_expiry(self, trigger: Any, expiry: float | None) -> None:
        """Note when the intervals of a trigger have to be computed again, None if never."""
        if self.intervals_trigger is trigger:
            self.intervals_expiry = expiry

    def set_origins(self, added_origin: Any, next_run_origin: Any) -> None:
        """Set where the job was added, and where the user has set its next run."""
        self.added_origin, self.next_run_origin = added_origin, next_run_origin
        self.link_origins = tuple(filter(None, (added_origin, next_run_origin)))


class TrackedJobs:
    """
    The jobs of one scheduler by store and id.

    Args:
        recorder: where they are recorded.
        worker: asks the triggers that take long to answer.

    Attributes:
        get: returns the job of a key, or None; a dictionary's own method, as every run calls it.
    """

    def __init__(self, recorder: Recorder, worker: BackgroundWorker) -> None:
        self._recorder = recorder
        self._worker = worker
        self._jobs: dict[JobKey, TrackedJob] = {}
        self.get: Callable[[JobKey], TrackedJob | None] = self._jobs.get

    def in_jobstore(self, alias: str) -> list[TrackedJob]:
        """Return all jobs of the store of this alias."""
        jobs = self._jobs.copy()  # at once, as other threads change it
        return [tracked for (jobstore, _), tracked in jobs.items() if jobstore == alias]

    def upsert(self, info: JobInfo, job: Any, *, is_from_other_process: bool = False) -> TrackedJob:
        """
        Note that there is a job, or what it is now. This calls no code of the user's.

        Args:
            info: its description.
            job: APScheduler's job.
            is_from_other_process: whether another process has stored it; ignored if it is known
                already.
        """
        record = self._recorder.job_upserted(info, job.next_run_time)
        tracked = self._jobs.get(record.key)
        if tracked is None:
            tracked = self._jobs[record.key] = TrackedJob(
                record, is_from_other_process=is_from_other_process
            )
        if tracked.record is not record:  # under another label, which has no intervals yet
            tracked.set_intervals_trigger(None)
        tracked.update_record(record, coalesce=job.coalesce)
        if tracked.intervals_trigger is not job.trigger:
            self.update_intervals(tracked, job)
        return tracked

    def remove(self, tracked: TrackedJob, reason: RemovalReason) -> None:
        """Note that a job is gone, and why."""
        self._recorder.job_removed(tracked.record, reason)
        tracked.mark_removed()
        if self._jobs.get(tracked.key) is tracked:
            del self._jobs[tracked.key]

    def remove_jobstore(self, alias: str) -> None:
        """Note that a job store was removed from the scheduler."""
        self._recorder.jobstore_removed(alias)
        for tracked in self.in_jobstore(alias):
            tracked.mark_removed()
            self._jobs.pop(tracked.key, None)

    def update_intervals(self, tracked: TrackedJob, job: Any) -> None:
        """Compute the shortest and the longest interval between coming runs, if not paused."""
        trigger, next_run, recorder = job.trigger, job.next_run_time, self._recorder
        if next_run is None:
            return  # paused: when it is resumed
        tracked.set_intervals_trigger(trigger)
        if triggers.has_constant_intervals(trigger):
            # Asking it ten times, and waking a thread for that, would be most of what adding costs.
            recorder.job_intervals_changed(tracked.record, triggers.get_constant_intervals(trigger))
            return

        def compute() -> None:
            intervals, until = triggers.compute_intervals(trigger, next_run)
            if tracked.intervals_trigger is not trigger:
                return  # the job has got another one meanwhile
            recorder.job_intervals_changed(tracked.record, intervals)
            valid_until = max(until, next_run.timestamp() + INTERVALS_VALID_SECONDS)
            tracked.set_intervals_expiry(trigger, None if until == math.inf else valid_until)

        self._worker.submit("schedule", compute)
