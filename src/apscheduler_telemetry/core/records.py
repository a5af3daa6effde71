"""
The data of the recorder: runs, jobs, and the series that jobs with one label share.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from datetime import datetime, timezone
from operator import attrgetter
from typing import Any, NamedTuple

from apscheduler_telemetry.core.current_run import MeasuredRun
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.model import (
    ERROR,
    MISSED,
    SUCCESS,
    Clock,
    ErrorDescription,
    JobInfo,
    Outcome,
    SpanIds,
)
from apscheduler_telemetry.core.run_history import (
    History,
    keep_latest_runs,
    reduce_error_to_history,
)
from apscheduler_telemetry.core.stats import JobStats, compute_start_delay
from apscheduler_telemetry.core.times import find_deadline, to_unix_seconds

JobKey = tuple[str, Hashable]
"""Identifies a job: the alias of its job store, and its id."""


class InFlightSummary(NamedTuple):
    """
    The runs of one ``job_id`` label that are in flight.

    Attributes:
        queued: how many wait for their start.
        running: how many have started.
        oldest_queued_due_at: when the oldest of those that wait was due, in Unix seconds; 0 if
            none waits.
        oldest_start_at: Unix seconds of the oldest start; 0 if none has started.
    """

    queued: int = 0
    running: int = 0
    oldest_queued_due_at: float = 0.0
    oldest_start_at: float = 0.0


class JobSnapshot(NamedTuple):
    """
    The state of one ``job_id`` label at one moment, for readers.

    Attributes:
        label: the value of the ``job_id`` label.
        info: what the job is; of several that share the label, one of them.
        stats: its numbers, not to be changed.
        in_flight_summary: its runs that have not ended.
        next_run: Unix seconds of the next run; 0 if there is none, and None if no job has had the
            label yet, but only runs of a process that has ended.
        cancelled_run_due_at: Unix seconds of the latest next run that the user has cancelled; None
            if there was none.
        interval_range: the shortest and the longest gap in seconds between coming runs, if known.
        history: its latest runs that have ended.
        version: changes whenever anything of the above does.
    """

    label: str
    info: JobInfo
    stats: JobStats
    in_flight_summary: InFlightSummary
    next_run: float | None
    cancelled_run_due_at: float | None
    interval_range: tuple[float, float] | None
    history: History
    version: int

    @property
    def due_count(self) -> int:
        """How many runs fell due: those that have ended, and those in flight."""
        return (
            sum(self.stats.outcomes.values())
            + self.in_flight_summary.queued
            + self.in_flight_summary.running
        )

    @property
    def deadline_at(self) -> float | None:
        """When the next run has to have succeeded, in Unix seconds; None if never."""
        deadline = self.info.expectations.deadline
        if deadline is None or not self.next_run:
            return None
        return find_deadline(self.next_run, deadline)


_NO_RUNS_IN_FLIGHT = InFlightSummary()
_SeriesRunState = tuple[JobStats, History, Sequence["Run"], Sequence["Run"], InFlightSummary]
"""
The runs of one label, replaced as a whole: each run is either in the numbers or in flight.

The numbers of the runs that have ended, never changed; the latest of them; those that may still be
registered; the runs in flight that have started; how many runs are in flight. No named tuple, which
takes ten times as long to make, and there is one for each label whenever runs are added up.
"""


class JobSeries:
    """
    The state of one ``job_id`` label, which several jobs may share; only the recorder changes it.

    Attributes:
        label: the value of the label.
        scheduler_name: the value of the ``scheduler`` label.
        info: what the job is; of several that share the label, one of them.
        removed_at: Unix seconds of when its last job was removed, or of when a run that ended after
            that was added up; None while there is a job.
        has_had_job: whether any job of this process has, or had, the label.
        clock: returns Unix seconds.
    """

    __slots__ = (
        *(
            "_cancelled_run_due_at",
            "_expected_runs_of_jobs_removed_by_error",
            "_has_job_state_changed",
            "_interval_range",
            "_records",
        ),
        *(
            "_run_state",
            "_run_state_in_snapshot",
            "_snapshot_version",
            "clock",
            "has_had_job",
            "info",
            "label",
            "removed_at",
            "scheduler_name",
        ),
    )

    def __init__(self, scheduler_name: str, info: JobInfo, stats: JobStats, clock: Clock) -> None:
        self.scheduler_name = scheduler_name
        self.label = info.label
        self.info = info
        self.removed_at: float | None = None
        self.has_had_job = False
        self.clock = clock
        self._has_job_state_changed = True
        self._run_state: _SeriesRunState = (stats, (), (), (), _NO_RUNS_IN_FLIGHT)
        self._run_state_in_snapshot: _SeriesRunState | None = None  # by the latest snapshot
        self._interval_range: tuple[float, float] | None = None
        self._cancelled_run_due_at: float | None = None
        # Of jobs that an error has removed; they stay expected.
        self._expected_runs_of_jobs_removed_by_error: dict[JobKey, float] = {}
        self._records: set[JobRecord] = set()  # of the jobs that have the label
        self._snapshot_version = 0

    # Jobs

    @property
    def is_unused(self) -> bool:
        """Whether no job and no run has the label any more."""
        return not (self._records or self.has_runs_in_flight)

    @property
    def has_runs_in_flight(self) -> bool:
        """Whether any of its runs were in flight when that was last noted."""
        return self._run_state[-1] is not _NO_RUNS_IN_FLIGHT

    def __contains__(self, record: JobRecord) -> bool:
        """Return whether a job has the label."""
        return record in self._records

    def add_job(self, record: JobRecord) -> None:
        """Let another job share the label."""
        self._records.add(record)
        self.removed_at = None
        self.has_had_job = True
        self._has_job_state_changed = True

    def remove_job(self, record: JobRecord, now: float, *, keep_next_run: bool) -> None:
        """
        Let a job have the label no more.

        Args:
            record: the job.
            now: Unix seconds.
            keep_next_run: whether its next run stays expected.
        """
        next_run = record.next_run
        self._records.remove(record)
        if keep_next_run and next_run is not None:
            self._expected_runs_of_jobs_removed_by_error[record.job_key] = next_run
        if not self._records:
            self.removed_at = now
        self._has_job_state_changed = True

    def set_removed_at(self, now: float) -> None:
        """Let the label end some time after `now`, as no job has it."""
        self.removed_at = now

    def update_info(self, info: JobInfo) -> None:
        """Note what a job with the label is now."""
        if len(self._records) == 1 and self.label == info.label:
            self.info = info
            self._has_job_state_changed = True

    def on_next_run_set(self, next_run: datetime | float | None) -> None:
        """Note that a job with the label has this next run: a datetime, Unix seconds, or None."""
        self._has_job_state_changed = True
        cancelled = self._cancelled_run_due_at
        if (
            cancelled is not None
            and next_run is not None
            and _to_unix_seconds(next_run) == cancelled
        ):
            self._cancelled_run_due_at = None  # it is planned again, so nothing is cancelled

    def note_cancelled_run(self, next_run: float | None) -> None:
        """Note that a next run was cancelled by the user, in Unix seconds."""
        if next_run is not None:
            self._cancelled_run_due_at = max(self._cancelled_run_due_at or 0.0, next_run)
            self._has_job_state_changed = True

    def drop_expected_run_of_job_removed_by_error(self, key: JobKey) -> None:
        """Expect the next run no more of a job that was removed because of an error."""
        if key in self._expected_runs_of_jobs_removed_by_error:
            self._has_job_state_changed = True  # first, as an exception from outside may follow
            self._expected_runs_of_jobs_removed_by_error.pop(key, None)

    def set_interval_range(self, interval_range: tuple[float, float] | None) -> None:
        """Set the shortest and the longest gap in seconds between coming runs."""
        self._interval_range = interval_range
        self._has_job_state_changed = True

    # Runs

    def add_up_finished_runs(
        self,
        runs: Iterable[Run],
        registered: MutableMapping[Run, None],
        now: float,
        history_size: int,
    ) -> None:
        """
        Add up the runs that have ended, each of them once, and note which are in flight.

        All or nothing: an exception from outside, at whatever line, adds all or none of them. Those
        that it adds stay registered until the next call, which knows them.

        Args:
            runs: the runs of the label.
            registered: those that are not in it any more were added up before. Runs that have ended
                are removed from it.
            now: Unix seconds.
            history_size: how many runs that have ended are kept.
        """
        is_done = False
        while not is_done:
            before = self._run_state
            stats, history, added, _, _ = before
            finished: list[Run] = []
            in_flight: list[Run] = []
            # Those that were added come again only if the last call was interrupted.
            for run in _exclude_runs(runs, added) if added else runs:
                if run in registered:  # else a reading that has interrupted this one added it up
                    # Its outcome is looked at once, as the run may end at any moment.
                    (in_flight if run.outcome is None else finished).append(run)
            if finished:
                finished.sort(key=_get_finish_number)
                listed: Sequence[Run] = finished
                if NeverSubmittedRuns in map(type, finished):
                    listed = [one for run in finished for one in run.runs_for_history]
                if self.removed_at is not None and Run in map(type, finished):
                    self.removed_at = now  # so that scrapes see how the last run ended
                history += tuple(listed)
                stats = stats.copy()
                stats.add_finished_runs(finished)
                added = (*added, *finished)
            if len(history) > history_size:
                has_failure = stats.last_failure_at is not None
                history = keep_latest_runs(history, history_size, has_failure=has_failure)
            after = (stats, history, added, *_summarize_in_flight(in_flight))
            is_done = after == before or self._compare_and_swap(before, after)
        while self._run_state[2]:  # added up again unless it is kept here or not registered
            before = self._run_state
            stats, history, added, started_runs, in_flight_summary = before
            for run in added:
                registered.pop(run, None)
            self._compare_and_swap(before, (stats, history, (), started_runs, in_flight_summary))

    def _compare_and_swap(self, expected: _SeriesRunState, new: _SeriesRunState) -> bool:
        """
        Replace the state of the runs, unless it has changed meanwhile.

        The caller holds the recorder's lock, but the handler of a signal may interrupt it and read.
        The comparison and the assignment share one line; Python handles no signal in between.
        """
        is_done = False
        if self._run_state is expected: self._run_state, is_done = new, True  # fmt: skip  # noqa: E701
        return is_done

    # Reading

    @property
    def history(self) -> History:
        """Its latest runs that have ended."""
        return self._run_state[1]

    def is_unchanged_since(self, version: int | None) -> bool:
        """Return whether nothing has changed since a snapshot of this version."""
        is_unchanged = (
            not self._has_job_state_changed and self._run_state is self._run_state_in_snapshot
        )
        return is_unchanged and version == self._snapshot_version

    def create_snapshot(self, version_numbers: Iterator[int]) -> JobSnapshot:
        """Return the state now, under a new version if it has changed."""
        version, run_state = self._snapshot_version, self._run_state
        if self._has_job_state_changed or run_state is not self._run_state_in_snapshot:
            # In this order, so that an exception in between makes readers look again.
            version = self._snapshot_version = next(version_numbers)
            self._run_state_in_snapshot = run_state
            self._has_job_state_changed = False
        stats, history, _, started_runs, in_flight_summary = run_state
        if started_runs:
            stats = stats.copy()
            for run in started_runs:
                run.add_start_to_stats(stats)
        # Copied at once, as jobs come and go meanwhile.
        next_runs = [
            *self._expected_runs_of_jobs_removed_by_error.copy().values(),
            *(record.next_run for record in self._records.copy()),
        ]
        return JobSnapshot(
            label=self.label,
            info=self.info,
            stats=stats,
            in_flight_summary=in_flight_summary,
            next_run=min(
                (at for at in next_runs if at is not None),
                default=0.0 if self.has_had_job else None,
            ),
            cancelled_run_due_at=self._cancelled_run_due_at,
            interval_range=self._interval_range,
            history=history,
            version=version,
        )


class JobRecord:
    """
    One job as the recorder knows it; only the recorder changes it.

    Attributes:
        job_key: the alias of its job store, and its id.
        info: what it is.
        series: the state of its label.
    """

    __slots__ = ("_next_run", "info", "job_key", "series")

    def __init__(self, job_key: JobKey, info: JobInfo, series: JobSeries) -> None:
        self.job_key = job_key
        self.info = info
        self.series = series
        self._next_run: datetime | float | None = None

    @property
    def next_run(self) -> float | None:
        """Unix seconds of the next run; None if there is none."""
        # Converted when it is read, which happens less often than it changes.
        return None if self._next_run is None else _to_unix_seconds(self._next_run)

    def set_next_run(self, next_run: datetime | float | None) -> None:
        """Set the next run: a datetime, Unix seconds, or None."""
        self._next_run = next_run
        self.series.on_next_run_set(next_run)

    @property
    def is_current(self) -> bool:
        """Whether the job is still known, and by this record."""
        return self in self.series

    def set_info(self, info: JobInfo) -> None:
        """Note what the job is now."""
        self.info = info
        self.series.update_info(info)


class Run(MeasuredRun):
    """
    One due run of a job, from its submission to its end.

    `try_start` and `set_duration` are called where the run is measured, and `finish` ends it: from
    then on it counts.

    Attributes:
        series: the state of the label under which it counts.
        job_info: the job as it was when the run was submitted.
        executor: alias of the executor.
        due: when it was due (timezone aware).
        due_timestamp: the same in Unix seconds.
        link_origins: where the job was added and where the user has set the time of the run, as far
            as known.
        arguments: what the callable is called with, in brief; None unless it may be exported.
        result: what it returned, likewise.
        started_at: Unix seconds of the measured start; None before it, and if it never started.
        estimated_start_at: Unix seconds of when it must have started, in a process pool; else None.
        duration: seconds from the start to the end; None before it, and if it is not known.
        current_run: what its callable has reported of it; None if it has not asked for its run.
        outcome: how it ended; None before that.
        error: why it failed; None if it did not, or if that is not known.
        finished_at: Unix seconds of the end.
        finish_number: orders runs by their end, also where the clock stands still.
        exemplar_span: the ids of its span, if that is sampled.
        count: how many runs it stands for.
    """

    count = 1

    __slots__ = (
        *("__weakref__", "_slot", "arguments", "due", "due_timestamp", "error"),
        *(
            "estimated_start_at",
            "executor",
            "exemplar_span",
            "finish_number",
            "finished_at",
            "job_info",
        ),
        *("link_origins", "outcome", "result", "series"),
    )
    estimated_start_at: float | None
    outcome: Outcome | None
    error: ErrorDescription | None
    finished_at: float
    finish_number: int
    arguments: str | None
    result: str | None
    exemplar_span: SpanIds | None
    _slot: int | None  # in a journal; for `JournaledRun`, whose own `__init__` would cost more

    def __init__(  # without that of its base, whose call every run would pay
        self, record: JobRecord, due: datetime, executor: str, link_origins: Sequence[Any] = ()
    ) -> None:
        self.series = record.series
        self.job_info = record.info
        self.executor = executor
        self.due = due
        try:
            self.due_timestamp = _datetime_timestamp(due)
        except BaseException as error:  # noqa: BLE001  # as `to_unix_seconds`, whose call costs time
            raise_if_interruption(error)
            self.due_timestamp = to_unix_seconds(due)
        self.link_origins = link_origins
        # In one statement, as every run pays for it.
        self.started_at = self.estimated_start_at = self.duration = self.outcome = self.error = None
        self.arguments = self.result = self.exemplar_span = self.current_run = self._slot = None

    @property
    def measured_end_at(self) -> float | None:
        """Unix seconds of the measured end; None before it, and if it was not measured."""
        started_at, duration = self.started_at, self.duration
        return None if started_at is None or duration is None else started_at + duration

    @property
    def start_delay(self) -> float | None:
        """Seconds from `due` to the start; None before it. Never negative, whatever the clock."""
        started_at = self.started_at  # read once, as `finish` may reset it in another thread
        return None if started_at is None else compute_start_delay(self.due_timestamp, started_at)

    @property
    def measured_or_estimated_start_at(self) -> float | None:
        """Unix seconds of the start, be it measured or estimated; None before it."""
        started_at = self.started_at
        return self.estimated_start_at if started_at is None else started_at

    @property
    def recorded(self) -> Mapping[str, float]:
        """What its callable has recorded; empty unless it ended as a success or as an error."""
        is_counted = self.outcome is SUCCESS or self.outcome is ERROR
        return self.current_run.recorded if is_counted and self.current_run is not None else {}

    @property
    def failure_reason(self) -> str | None:
        """The reason for which its callable has let it count as an error; None if it has not."""
        return None if self.current_run is None else self.current_run.failure_reason

    @property
    def runs_for_history(self) -> Sequence[Run]:
        """Those that the history lists in its place."""
        return (self,)

    @property
    def label(self) -> str:
        """The value of the ``job_id`` label."""
        return self.series.label

    @property
    def scheduler_name(self) -> str:
        """The value of the ``scheduler`` label."""
        return self.series.scheduler_name

    def try_start(self, at: float, max_delay: float | None = None) -> bool:
        """
        Set the measured start, unless the run does not start now.

        Args:
            at: Unix seconds.
            max_delay: the seconds after its due time up to which it may start; None if forever.

        Returns:
            False if it is too late, or has started or ended before; then nothing changes.
        """
        if self.started_at is not None or self.outcome is not None:
            return False
        if max_delay is not None and at - self.due_timestamp > max_delay:
            return False
        self.started_at = at
        return True

    def try_set_estimated_start(self, at: float, max_delay: float | None = None) -> bool:
        """Set its start until that is measured; arguments and result are those of `try_start`."""
        if self.estimated_start_at is not None:
            return False
        if max_delay is not None and at - self.due_timestamp > max_delay:
            return False
        self.estimated_start_at = at
        return True

    def set_arguments(self, text: str | None) -> None:
        """Keep what the callable is called with, in brief."""
        self.arguments = text

    def set_result(self, text: str | None) -> None:
        """Keep what the callable returned, in brief."""
        self.result = text

    def release_long_texts(self) -> None:
        """Keep no more of its texts than the history shows, as observers know that it has ended."""
        self.arguments = self.result = None
        if self.error is not None:
            self.error = reduce_error_to_history(self.error)
        if self.current_run is not None:
            self.current_run.release_failure_reason()

    def set_exemplar_span(self, span: SpanIds) -> None:
        """Let histograms refer to this span."""
        self.exemplar_span = span

    def finish(self, outcome: Outcome, error: ErrorDescription | None = None) -> bool:
        """
        End the run.

        Args:
            outcome: how it ended.
            error: why it failed, if that is known.

        Returns:
            Whether this call has ended it; False if it had ended before.
        """
        if self.outcome is not None:
            return False
        if outcome is MISSED:
            self.started_at = self.duration = None
        if error is not None:
            self.error = error
        started_at, duration = self.started_at, self.duration
        if started_at is None or duration is None:
            self.finished_at = self.series.clock()
        else:  # by a monotonic duration: the wall clock may have jumped meanwhile
            self.finished_at = started_at + duration
        self.finish_number = next(_finish_numbers)
        is_first = False
        # The last step, by which it counts; in one line, as for `JobSeries._compare_and_swap`.
        if self.outcome is None: self.outcome, is_first = outcome, True  # fmt: skip  # noqa: E701
        return is_first

    def add_start_to_stats(self, stats: JobStats) -> None:
        """Add the start of the run, which may go on, to the numbers of its label."""
        if self.measured_or_estimated_start_at is not None:
            stats.add_started_run(self.due_timestamp, self.started_at)


class NeverSubmittedRuns(Run):
    """
    Due runs of a job that have ended alike, without being submitted to an executor.

    Args:
        record: the job.
        outcome: how they have ended.
        count: how many.
        due_times: when those were due that observers and the history are to know.
        link_origins: as of `Run`.

    Attributes:
        runs_for_history: one for each of `due_times`.
    """

    __slots__ = ("_runs_for_history", "count")

    def __init__(
        self,
        record: JobRecord,
        outcome: Outcome,
        count: int,
        due_times: Iterable[datetime] = (),
        link_origins: Sequence[Any] = (),
    ) -> None:
        executor = record.info.executor
        super().__init__(record, _EPOCH, executor)
        self.count = count
        self._runs_for_history = [Run(record, due, executor, link_origins) for due in due_times]
        for run in self._runs_for_history:
            run.finish(outcome)
        self.finish(outcome)

    @property
    def runs_for_history(self) -> Sequence[Run]:
        return self._runs_for_history


def _exclude_runs(runs: Iterable[Run], others: Iterable[Run]) -> list[Run]:
    excluded = frozenset(others)
    return [run for run in runs if run not in excluded]


def _summarize_in_flight(runs: Sequence[Run]) -> tuple[Sequence[Run], InFlightSummary]:
    """Return which runs in flight have started, and how many there are."""
    if not runs:
        return (), _NO_RUNS_IN_FLIGHT
    started_runs = tuple(run for run in runs if run.measured_or_estimated_start_at is not None)
    oldest_queued_due_at = 0.0
    if len(started_runs) < len(runs):
        oldest_queued_due_at = min(run.due_timestamp for run in _exclude_runs(runs, started_runs))
    # Not of those of a burst that are over already, whose outcomes come at its end.
    active = (run.measured_or_estimated_start_at for run in started_runs if run.duration is None)
    oldest_start_at = min((at for at in active if at is not None), default=0.0)
    return started_runs, InFlightSummary(
        queued=len(runs) - len(started_runs),
        running=len(started_runs),
        oldest_queued_due_at=oldest_queued_due_at,
        oldest_start_at=oldest_start_at,
    )


def _to_unix_seconds(at: datetime | float) -> float:
    return to_unix_seconds(at) if isinstance(at, datetime) else at


_datetime_timestamp = datetime.timestamp
_finish_numbers = itertools.count(1)
_EPOCH = datetime.fromtimestamp(0, timezone.utc)
_get_finish_number = attrgetter("finish_number")
