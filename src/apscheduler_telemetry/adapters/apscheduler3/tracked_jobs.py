"""
Follows the jobs of a scheduler: what happens to them in their stores becomes metrics state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import MAXYEAR, datetime
from typing import Any, NamedTuple

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.fire_time_searcher import (
    PROBLEM_RETRY_SECONDS,
    BackgroundFireTimeSearcher,
)
from apscheduler_telemetry.adapters.apscheduler3.triggers import FireTimeSearch
from apscheduler_telemetry.core.model import JobInfo, RemovalReason
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobKey, JobRecord
from apscheduler_telemetry.core.times import to_unix_seconds

MIN_INTERVALS_VALID_SECONDS = 60.0
"""
Seconds for which the intervals of a job are not computed again, however short they are.

Otherwise the trigger of a job that runs every second would be called twice as often.
"""
MAX_TRIGGER_TIME_SHARE = 0.01
"""The largest share of time for which the trigger of one job may be called for its intervals."""


MAX_OBSERVED_INTERVALS = 10
"""Latest intervals that are kept of a trigger that is not called; ten are kept of others, too."""


class ObservedIntervals:
    """
    The latest intervals of a job whose trigger only APScheduler calls.

    Attributes:
        interval_range: the shortest and the longest of them in seconds; None if none is known.
    """

    __slots__ = (
        "_holds_uncertain_interval",
        "_latest_seconds",
        "_latest_trigger_fire_time",
        "interval_range",
    )

    def __init__(self) -> None:
        self.interval_range: tuple[float, float] | None = None
        self._latest_seconds: deque[float] = deque(maxlen=MAX_OBSERVED_INTERVALS)
        self._latest_trigger_fire_time: float | None = None  # the latest of the trigger
        self._holds_uncertain_interval = False

    def add_interval(self, first_due: float | None, last_due: float, next_run: float) -> None:
        """
        Note what the trigger has returned in a pass over due jobs.

        An interval that begins at a time of the application's own, as of ``modify(next_run_time=)``
        and perhaps of ``add_job``, says little. It is used while no other is known.

        Args:
            first_due: the first run time in that pass, in Unix seconds.
            last_due: the last one.
            next_run: the next run of the job.
        """
        is_uncertain = last_due == first_due != self._latest_trigger_fire_time
        self._latest_trigger_fire_time = next_run
        seconds = round(next_run - last_due, 6)
        if seconds <= 0 or (is_uncertain and self._latest_seconds):
            return
        if self._holds_uncertain_interval:
            self._latest_seconds.clear()
        self._holds_uncertain_interval = is_uncertain
        self._latest_seconds.append(seconds)
        self.interval_range = min(self._latest_seconds), max(self._latest_seconds)


class TrackedJob:
    """
    The adapter's state of one job.

    Attributes:
        record: what the recorder has of it.
        trigger: its trigger, when that was last looked at.
        intervals_search: the latest search from which its intervals are computed.
        observed_intervals: its intervals, if they cannot be computed, as its trigger is the user's.
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
        *("intervals_search", "last_submitted_due", "link_origins", "next_run_origin"),
        *("observed_intervals", "record", "trigger"),
    )

    def __init__(self, record: JobRecord, *, is_from_other_process: bool) -> None:
        self.record = record
        self.trigger: Any = None
        self.intervals_search: FireTimeSearch | None = None
        self.observed_intervals: ObservedIntervals | None = None
        self.coalesce = False
        self.last_submitted_due: datetime | None = None
        self.is_from_other_process = is_from_other_process
        self.is_removed = False
        self.intervals_expiry: float | None = None
        self.added_origin: Any = None
        self.next_run_origin: Any = None
        self.link_origins: tuple[Any, ...] = ()

    @property
    def job_key(self) -> JobKey:
        """The alias of the job's store, and its id."""
        return self.record.job_key

    @property
    def next_run(self) -> float | None:
        """Unix seconds of the next run; None if there is none."""
        return self.record.next_run

    @property
    def has_observed_interval(self) -> bool:
        """Whether an interval has been observed."""
        observed = self.observed_intervals
        return observed is not None and observed.interval_range is not None

    @property
    def has_outdated_intervals(self) -> bool:
        """Whether its intervals have to be computed again, as the next run is beyond them."""
        expiry, next_run = self.intervals_expiry, self.next_run
        return expiry is not None and next_run is not None and next_run > expiry

    def update(self, record: JobRecord, trigger: Any, coalesce: bool) -> None:  # noqa: FBT001
        """Note what the job is now."""
        self.record = record
        self.trigger = trigger
        self.coalesce = coalesce

    def mark_removed(self) -> None:
        """Note that it is not tracked any more."""
        self.is_removed = True

    def clear_is_from_other_process(self) -> None:
        """Note that this process has changed the job."""
        self.is_from_other_process = False

    def set_last_submitted_due(self, due: datetime) -> None:
        """Note the latest fire time that is being submitted to an executor."""
        self.last_submitted_due = due

    def set_trigger(self, trigger: Any) -> None:
        """Note what its trigger is."""
        self.trigger = trigger

    def set_intervals_source(
        self, search: FireTimeSearch | None, observed: ObservedIntervals | None = None
    ) -> None:
        """Note from which search the intervals are computed, or that they are observed."""
        self.intervals_search = search
        self.observed_intervals = observed
        self.intervals_expiry = None

    def set_intervals_expiry(self, expiry: float) -> None:
        """Note when the intervals have to be computed again."""
        self.intervals_expiry = expiry

    def set_origins(self, added_origin: Any, next_run_origin: Any) -> None:
        """Set where the job was added, and where the user has set its next run."""
        self.added_origin, self.next_run_origin = added_origin, next_run_origin
        self.link_origins = tuple(filter(None, (added_origin, next_run_origin)))


class JobComparedByTrigger(NamedTuple):
    """
    What is found out about a job by calling code of the user's, before the job is tracked.

    Attributes:
        info: its description.
        has_copy_of_known_trigger: whether its trigger is a copy of the one that is known, as its
            store has made.
    """

    info: JobInfo
    has_copy_of_known_trigger: bool


class TrackedJobs:
    """
    The jobs of one scheduler by store and id.

    Args:
        recorder: where they are recorded.
        fire_time_searcher: calls their triggers for upcoming fire times.

    Attributes:
        get: returns the job of a key, or None; a dictionary's own method, as every run calls it.
    """

    def __init__(self, recorder: Recorder, fire_time_searcher: BackgroundFireTimeSearcher) -> None:
        self._recorder = recorder
        self._fire_time_searcher = fire_time_searcher
        self._jobs: dict[JobKey, TrackedJob] = {}
        self.get: Callable[[JobKey], TrackedJob | None] = self._jobs.get

    def list_jobs_in_jobstore(self, alias: str) -> list[TrackedJob]:
        """Return all jobs of the store of this alias."""
        jobs = self._jobs.copy()  # at once, as other threads change it
        return [tracked for (jobstore, _), tracked in jobs.items() if jobstore == alias]

    def list_jobs(self, label: str | None = None) -> list[TrackedJob]:
        """Return all jobs, or those with a value of the ``job_id`` label."""
        jobs = self._jobs.copy()  # at once, as other threads change it
        return [job for job in jobs.values() if label is None or job.record.series.label == label]

    def compare_with_known_trigger(self, info: JobInfo, job: Any) -> JobComparedByTrigger:
        """
        Find out whether a job still has the trigger that is known; this calls the user's code.

        Args:
            info: its description.
            job: APScheduler's job.
        """
        tracked, trigger = self._jobs.get((info.jobstore, info.id)), job.trigger
        # Intervals that were observed cannot be computed again, and a persistent store makes a copy
        # of the trigger each time. A memory store has another object only if the user passes one.
        has_copy_of_known_trigger = (
            info.persistent
            and tracked is not None
            and tracked.has_observed_interval
            and tracked.trigger is not trigger
            and triggers.have_same_state(tracked.trigger, trigger)
        )
        return JobComparedByTrigger(info, has_copy_of_known_trigger)

    def upsert(
        self, inspected: JobComparedByTrigger, job: Any, *, is_from_other_process: bool = False
    ) -> TrackedJob:
        """
        Note that there is a job, or what it is now. This calls no code of the user's.

        Args:
            inspected: what `compare_with_known_trigger` has returned.
            job: APScheduler's job.
            is_from_other_process: whether another process has stored it; ignored if it is known
                already.
        """
        info, trigger = inspected.info, job.trigger
        tracked = self._jobs.get((info.jobstore, info.id))
        text_before = None if tracked is None else tracked.record.info.trigger
        record = self._recorder.job_upserted(info, job.next_run_time)
        if tracked is None:
            tracked = self._jobs[record.job_key] = TrackedJob(
                record, is_from_other_process=is_from_other_process
            )
        before = tracked.trigger
        if tracked.record is not record:  # under another label, which has no intervals yet
            before = None
        is_same = before is trigger
        if before is not None and not is_same:
            # A job that is read again from its store has another object that means the same.
            is_same = inspected.has_copy_of_known_trigger or (
                is_from_other_process
                and tracked.observed_intervals is None  # the text of the user's may be anything
                and type(before) is type(trigger)
                and text_before == info.trigger
                and not tracked.has_outdated_intervals
            )
        tracked.update(record, trigger, job.coalesce)
        if not is_same:
            self.update_intervals(tracked, job)
        return tracked

    def remove(self, tracked: TrackedJob, reason: RemovalReason) -> None:
        """Note that a job is gone, and why."""
        self._recorder.job_removed(tracked.record, reason)
        tracked.mark_removed()
        if self._jobs.get(tracked.job_key) is tracked:
            del self._jobs[tracked.job_key]

    def remove_jobstore(self, alias: str) -> None:
        """Note that a job store was removed from the scheduler."""
        self._recorder.jobstore_removed(alias)
        for tracked in self.list_jobs_in_jobstore(alias):
            tracked.mark_removed()
            self._jobs.pop(tracked.job_key, None)

    def observe_interval(self, tracked: TrackedJob, intervals: ObservedIntervals, job: Any) -> None:
        """
        Note the next run that the scheduler sets after a run, before the recorder gets it.

        Args:
            tracked: the job.
            intervals: those of the job.
            job: APScheduler's job, whose next run is what its trigger has returned.
        """
        tracked.set_trigger(job.trigger)  # whose state may have changed
        next_run: datetime = job.next_run_time
        due, before = tracked.last_submitted_due, intervals.interval_range
        if due is None or next_run.year == MAXYEAR:  # the last year has sentinels for "never"
            return
        intervals.add_interval(tracked.next_run, to_unix_seconds(due), to_unix_seconds(next_run))
        if intervals.interval_range != before:
            self._recorder.job_intervals_changed(tracked.record, intervals.interval_range)

    def update_intervals(self, tracked: TrackedJob, job: Any) -> None:
        """Find out the shortest and the longest interval between upcoming runs, if not paused."""
        trigger, next_run, recorder = job.trigger, job.next_run_time, self._recorder
        if not triggers.has_no_custom_part(trigger):
            tracked.set_intervals_source(None, ObservedIntervals())
            recorder.job_intervals_changed(tracked.record, None)
            return
        if next_run is None:
            tracked.set_trigger(None)  # paused: when it is resumed
            return
        tracked.set_intervals_source(None)
        if triggers.has_constant_interval_range(trigger):
            # Ten calls of it, and waking a thread for them, would be most of what adding costs.
            recorder.job_intervals_changed(
                tracked.record, triggers.get_constant_interval_range(trigger)
            )
            return
        search = triggers.create_upcoming_fire_time_search(trigger, next_run)
        tracked.set_intervals_source(search)

        def is_wanted() -> bool:  # not if the job was removed or has got another trigger meanwhile
            return tracked.intervals_search is search and not tracked.is_removed

        def record_intervals(search: FireTimeSearch) -> None:
            upcoming = search.upcoming_interval_range
            if not is_wanted():
                return
            if upcoming.interval_range is not None or search.problem is None:  # else they stay
                recorder.job_intervals_changed(tracked.record, upcoming.interval_range)
            seconds = max(
                MIN_INTERVALS_VALID_SECONDS, search.elapsed_seconds / MAX_TRIGGER_TIME_SHARE
            )
            if search.problem is not None:
                seconds = max(seconds, PROBLEM_RETRY_SECONDS)
            tracked.set_intervals_expiry(
                max(upcoming.last_known_fire_time, to_unix_seconds(next_run) + seconds)
            )

        self._fire_time_searcher.submit(
            search, tracked.record.info, record_intervals, is_wanted=is_wanted
        )
