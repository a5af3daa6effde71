"""
The metrics state of one scheduler: the only writer, with the only lock.

Adapters write through the ``job_*``, ``run_*``, ``executor_*`` and ``jobstore_*`` methods, and
measure and end each `Run` by its own methods; readers get snapshots. The accounting invariant:
every due run ends in exactly one outcome, and at any moment
``due = sum(outcomes) + running + queued``.

A run costs little where it runs. `run_submitted` registers it, and `Run.finish` ends it by setting
its outcome, without a lock. Finished runs are added up at each reading, or when there are
`MAX_RUNS_NOT_ADDED_UP` more than after the last time. Removing them from the register is the last
step: an exception from outside, at any line, loses no run and counts none twice.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from apscheduler_telemetry.core.forks import reset_in_forked_children
from apscheduler_telemetry.core.journal_file import JournalEntry
from apscheduler_telemetry.core.labels import DEFAULT_MAX_LABELS, OVERFLOW_LABEL
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children, synchronized
from apscheduler_telemetry.core.model import (
    INTERRUPTED_ERROR_TYPE,
    Clock,
    ErrorDescription,
    JobInfo,
    Outcome,
    RemovalReason,
    SchedulerErrorKind,
)
from apscheduler_telemetry.core.records import (
    JobKey,
    JobRecord,
    JobSeries,
    JobSnapshot,
    NeverSubmittedRuns,
    Run,
)
from apscheduler_telemetry.core.run_history import (
    DEFAULT_HISTORY,
    MAX_RUNS_OF_ALL_JOBS,
    RunRecord,
    list_run_records,
)
from apscheduler_telemetry.core.run_journal import JournaledRun, RunJournal
from apscheduler_telemetry.core.stats import DELAY_BUCKETS, DURATION_BUCKETS, JobStats
from apscheduler_telemetry.core.times import to_datetime

REMOVED_JOB_SECONDS = 900.0
"""
Seconds for which a removed job stays visible, so that every scrape sees its last numbers; counted
from the end of its last run, if that comes later.
"""
MAX_RUNS_NOT_ADDED_UP = 4096
"""
Finished runs that may wait to be added up, in one and a half megabytes.

Adding up copies the numbers of each job, so that a few runs at a time would make each dearer.
"""
MAX_RUNS_NOT_ADDED_UP_OF_MANY_LABELS = 1024
"""
The same if there are more than `MANY_LABELS` labels, each of which takes as long as ten runs.

The thread that submits a run must not stop for many milliseconds: it takes 4 to add up 4,096 runs
of 100 labels, and 10 for 1,024 runs of as many labels.
"""
MANY_LABELS = 256


class JobStoreState(NamedTuple):
    """
    What is known of one job store.

    Attributes:
        job_count: how many jobs are known.
        is_local: whether only this process changes it, so that all its jobs are always known.
        last_read_at: when it was last read without a failure, in Unix seconds; None before that.
        read_failure_count: how often it could not be read.
    """

    job_count: int = 0
    is_local: bool = False
    last_read_at: float | None = None
    read_failure_count: int = 0


class ExecutorState(NamedTuple):
    """
    The load of one executor.

    Attributes:
        workers: how many runs it can work on at once; infinity if nothing limits it.
        running: how many of its runs have started.
        queued: how many of its runs wait for their start.
    """

    workers: float
    running: int
    queued: int


class Recorder:
    """
    The metrics state of one scheduler.

    Args:
        scheduler_name: the value of the ``scheduler`` label.
        duration_buckets: upper bounds in seconds, ascending, without +Inf.
        delay_buckets: likewise.
        max_labels: values of the ``job_id`` label before further jobs share ``__overflow__``.
        history: how many runs are kept of each label; see `MAX_RUNS_OF_ALL_JOBS`.
        clock: returns Unix seconds.

    Attributes:
        history: how many runs are kept of each label at most.
        create_run: creates a run that is about to be submitted; takes the arguments of `Run`.
        run_submitted: records that a due run is being submitted to an executor, in which it is
            queued. Its end has to be recorded by `Run.finish` from then on, whatever happens. It
            takes no lock, and to record a run twice is the same as once.
    """

    def __init__(  # noqa: PLR0913  # keyword-only, each with a default
        self,
        scheduler_name: str,
        *,
        duration_buckets: Sequence[float] = DURATION_BUCKETS,
        delay_buckets: Sequence[float] = DELAY_BUCKETS,
        max_labels: int = DEFAULT_MAX_LABELS,
        history: int = DEFAULT_HISTORY,
        clock: Clock = time.time,
    ) -> None:
        self.scheduler_name = scheduler_name
        self._duration_and_delay_buckets = tuple(duration_buckets), tuple(delay_buckets)
        self._max_labels = max_labels
        self.history = self._history_size = history
        self._clock = clock
        self._lock = threading.RLock()
        self._series_by_label: dict[str, JobSeries] = {}
        self._jobs: dict[str, dict[Hashable, JobRecord]] = {}
        self._jobstores: dict[str, JobStoreState] = {}
        self._worker_count_getters: dict[str, Callable[[], float]] = {}
        self._scheduler_error_counts = dict.fromkeys(SchedulerErrorKind, 0)
        # Those that stay expected after an error has removed their job: series, time of removal.
        self._expected_runs_of_jobs_removed_by_error: dict[JobKey, tuple[JobSeries, float]] = {}
        self._runs_not_added_up: dict[Run, None] = {}
        # The class, and the dictionary's own method, as each run takes this way.
        self.create_run: type[Run] = Run
        self.run_submitted: Callable[[Run], None] = self._runs_not_added_up.setdefault
        self._journal: RunJournal | None = None
        self._add_up_threshold = MAX_RUNS_NOT_ADDED_UP_OF_MANY_LABELS
        self._last_label_cleanup_at = -math.inf
        # At the last adding up; those with runs to be added up are put into it then.
        self._series_to_be_updated: set[JobSeries] = set()
        self._version_numbers = itertools.count(1)
        renew_lock_in_forked_children(self)
        reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Forget the runs in flight: they are those of the parent, which counts them."""
        if self._journal is not None:  # first, or the ends below would be written
            self._journal.reset_after_fork()
        for run in list(self._runs_not_added_up):
            if run.outcome is None:
                del self._runs_not_added_up[run]
                run.finish(Outcome.LOST)  # so that no observer here waits for their end

    def use_journal(self, journal: RunJournal) -> None:
        """Write each run that is submitted from now on into a journal, too."""
        self._journal, self.create_run = journal, JournaledRun
        self.run_submitted = journal.create_run_writer(self._runs_not_added_up.setdefault)

    # Jobs

    def find_job_record(self, jobstore: str, job_id: Hashable) -> JobRecord | None:
        """Return what is known of a job, or None."""
        jobs = self._jobs.get(jobstore)
        return None if jobs is None else jobs.get(job_id)

    @synchronized
    def job_records_of_jobstore(self, jobstore: str) -> list[JobRecord]:
        """Return all known jobs of a job store."""
        return list(self._jobs.get(jobstore, {}).values())

    @synchronized
    def next_runs(self) -> dict[JobKey, float]:
        """Return the next run of each job that has one, in Unix seconds."""
        records = [record for jobs in self._jobs.values() for record in jobs.values()]
        next_runs = {record.job_key: record.next_run for record in records}
        return {key: next_run for key, next_run in next_runs.items() if next_run is not None}

    @synchronized
    def executor_aliases_of_jobs(self) -> set[str]:
        """Return the labels of the executors that the known jobs are to run in."""
        return {record.info.executor for jobs in self._jobs.values() for record in jobs.values()}

    @synchronized
    def job_upserted(self, info: JobInfo, next_run: datetime | float | None) -> JobRecord:
        """
        Record that there is a job, or what it is now.

        Args:
            info: the job.
            next_run: its next run, a datetime or Unix seconds, or None.
        """
        jobstore, job_id = key = info.jobstore, info.id
        record = self.find_job_record(jobstore, job_id)
        if record is not None and record.info.label != info.label:
            self._remove_record(record, keep_next_run=False)
            record = None
        if record is None:
            record = JobRecord(key, info, self._series_for(info))
            self._jobs.setdefault(jobstore, {})[job_id] = record
            self._jobstores.setdefault(jobstore, _NEW_JOBSTORE)
            record.series.add_job(record)
        record.set_info(info)
        if key in self._expected_runs_of_jobs_removed_by_error:
            series, _ = self._expected_runs_of_jobs_removed_by_error.pop(key)
            series.drop_expected_run_of_job_removed_by_error(key)
        record.set_next_run(next_run)
        return record

    @synchronized
    def job_rescheduled(
        self, record: JobRecord, next_run: datetime | float | None, *, cancels: bool
    ) -> None:
        """
        Record that the next run of a job was changed from outside of the scheduler's loop.

        Args:
            record: the job.
            next_run: a datetime or Unix seconds, or None if it is paused.
            cancels: whether that cancels the next run before it, on purpose.
        """
        before = record.next_run
        record.set_next_run(next_run)
        if cancels and before != record.next_run:
            record.series.note_cancelled_run(before)

    def job_advanced(self, record: JobRecord, next_run: datetime) -> None:
        """Record that the scheduler has submitted the next run of a job, and set another one."""
        # Without the lock, as it is one assignment after every run.
        record.set_next_run(next_run)

    @synchronized
    def job_removed(self, record: JobRecord, reason: RemovalReason) -> None:
        """Record that a job is gone; its label stays for `REMOVED_JOB_SECONDS`."""
        if not record.is_current:
            return
        if reason is RemovalReason.CANCELLED:
            record.series.note_cancelled_run(record.next_run)
        self._remove_record(record, keep_next_run=reason is RemovalReason.FAILED)

    def job_intervals_changed(
        self, record: JobRecord, interval_range: tuple[float, float] | None
    ) -> None:
        """Record the shortest and the longest gap in seconds between coming runs of a job."""
        # Without the lock, as in `job_advanced`.
        record.series.set_interval_range(interval_range)

    # Runs

    def add_up_runs_if_many(self) -> None:
        """Add up finished runs if as many as may wait for it have come since the last time."""
        if len(self._runs_not_added_up) >= self._add_up_threshold:
            self._add_up_finished_runs()

    def runs_unsubmitted(
        self,
        record: JobRecord,
        outcome: Outcome,
        count: int,
        due_times: Iterable[datetime] = (),
        link_origins: Sequence[Any] = (),
    ) -> Sequence[Run]:
        """
        Record `count` due runs that have ended and were never submitted to an executor.

        Args:
            record: the job.
            outcome: how they have ended.
            count: how many.
            due_times: when those were due that observers and the history are to know.
            link_origins: where the job was added and where the user has set the times of its runs,
                if known.

        Returns:
            Those, as runs that have ended.
        """
        runs = NeverSubmittedRuns(record, outcome, count, due_times, link_origins)
        self._runs_not_added_up[runs] = None  # they are counted at the next reading
        return runs.runs_for_history

    def runs_interrupted(self, entries: Iterable[JournalEntry]) -> list[Run]:
        """
        Record runs that were in flight in a process that has ended; they are lost.

        They count under their label, also if there is no job of that label any more. That they
        have started was counted by their own process.

        Args:
            entries: the runs, from the journal of that process.

        Returns:
            The runs; their start, if they had one, is that in the journal.
        """
        runs = []
        for entry in entries:
            run = Run(self._job_record_for(entry), to_datetime(entry.due_at), entry.executor)
            if entry.started_at is not None:
                run.try_set_estimated_start(entry.started_at)
            if entry.span is not None:
                run.set_exemplar_span(entry.span)
            message = "the process ended during the run"
            if entry.started_at is None:
                message = "the process ended before the run started"
            run.finish(
                Outcome.LOST,
                ErrorDescription(type=INTERRUPTED_ERROR_TYPE, message=message),
            )
            runs.append(run)
        self._runs_not_added_up.update(dict.fromkeys(runs))  # all of them at once
        return runs

    # Executors, job stores, errors

    @synchronized
    def executor_added(self, alias: str, get_workers: Callable[[], float]) -> None:
        """
        Record that the scheduler has an executor.

        Args:
            alias: its alias.
            get_workers: returns how many runs it can work on at once; infinity if nothing limits
                it.
        """
        self._worker_count_getters[alias] = get_workers

    @synchronized
    def executor_removed(self, alias: str) -> None:
        """Record that the scheduler has an executor no more; its runs in flight go on."""
        self._worker_count_getters.pop(alias, None)

    @synchronized
    def jobstore_added(self, alias: str, *, is_local: bool) -> None:
        """Record that the scheduler has a job store; see `JobStoreState`."""
        store = self._jobstores.get(alias, _NEW_JOBSTORE)
        self._jobstores[alias] = store._replace(is_local=is_local)

    @synchronized
    def jobstore_read(self, alias: str, at: float) -> None:
        """Record that the jobs in a job store are known as of `at`, in Unix seconds."""
        store = self._jobstores.get(alias)
        if store is not None:  # else it was removed meanwhile
            self._jobstores[alias] = store._replace(last_read_at=at)

    @synchronized
    def jobstore_read_failed(self, alias: str) -> None:
        """Record that a job store could not be read."""
        store = self._jobstores.get(alias)
        if store is not None:
            self._jobstores[alias] = store._replace(read_failure_count=store.read_failure_count + 1)

    @synchronized
    def jobstore_removed(self, alias: str) -> None:
        """Record that a job store, and its jobs, were removed from the scheduler."""
        for record in self.job_records_of_jobstore(alias):
            self.job_removed(record, RemovalReason.CANCELLED)
        self._jobstores.pop(alias, None)

    @synchronized
    def count_scheduler_error(self, kind: SchedulerErrorKind) -> None:
        """Count something that APScheduler only logs."""
        self._scheduler_error_counts[kind] += 1

    # Reading

    def job_snapshots(self, *, is_export: bool = True) -> Iterator[JobSnapshot]:
        """Yield a snapshot of each label; see `job_snapshots_since`."""
        for _, snapshot in self.job_snapshots_since({}, is_export=is_export):
            if snapshot is not None:
                yield snapshot

    def job_snapshots_since(
        self, known: Mapping[str, int], *, is_export: bool = True
    ) -> Iterator[tuple[str, JobSnapshot | None]]:
        """
        Yield each label with its snapshot, or with None if nothing has changed.

        The lock is held for one label at a time, so that no job waits for a whole scrape.

        Args:
            known: the version that the reader already has, by label.
            is_export: whether the reader exports the counts. Then the journal need not keep the
                interrupted runs that are among them.

        Raises:
            Exception: a label has no snapshot. All others come before.
        """
        failure: Exception | None = None
        journal = self._journal
        shown = () if journal is None else journal.on_reading_start()
        for series in self._update_and_list_series():
            label = series.label
            if series.is_unchanged_since(known.get(label)):
                yield label, None
                continue
            try:
                snapshot = self._create_snapshot(series)
            except Exception as error:  # noqa: BLE001  # raised below
                failure = error
                continue
            yield label, snapshot
        if failure is not None:
            raise failure
        if journal is not None and is_export:
            journal.on_reading_end(shown)

    def recent_runs(self, label: str | None = None) -> list[RunRecord]:
        """
        Return the runs that are kept, the latest first.

        Args:
            label: the value of the ``job_id`` label; None for all.
        """
        return list_run_records(
            series.history
            for series in self._update_and_list_series()
            if label is None or series.label == label
        )

    def executors(self) -> Mapping[str, ExecutorState]:
        """Return the load of each executor by alias."""
        running: Counter[str] = Counter()
        queued: Counter[str] = Counter()
        for run in list(self._runs_not_added_up):
            if run.outcome is None:
                (queued if run.measured_or_estimated_start_at is None else running)[
                    run.executor
                ] += 1
        return {
            alias: ExecutorState(get_workers(), running[alias], queued[alias])
            for alias, get_workers in self._worker_count_getters.copy().items()
        }

    @synchronized
    def scheduler_error_counts(self) -> Mapping[SchedulerErrorKind, int]:
        """Return how often APScheduler only logged something, by kind."""
        return dict(self._scheduler_error_counts)

    @synchronized
    def jobstores(self) -> Mapping[str, JobStoreState]:
        """Return what is known of each job store by alias."""
        now = self._clock()
        return {
            alias: store._replace(
                job_count=len(self._jobs.get(alias, ())),
                last_read_at=now if store.is_local else store.last_read_at,
            )
            for alias, store in self._jobstores.items()
        }

    # Under the lock

    @synchronized
    def _add_up_finished_runs(self) -> None:
        """Add up the runs that have ended, and note which are in flight."""
        runs: dict[JobSeries, list[Run]] = defaultdict(list)
        for run in list(self._runs_not_added_up):
            runs[run.series].append(run)
        self._series_to_be_updated.update(runs)
        now, history_size = self._clock(), self._history_size_of_a_label()
        if history_size < self._history_size:  # others have to keep fewer, too
            self._series_to_be_updated.update(self._series_by_label.values())
        self._history_size = history_size
        for series in list(self._series_to_be_updated):
            series.add_up_finished_runs(
                runs.get(series, ()), self._runs_not_added_up, now, history_size
            )
            if not series.has_runs_in_flight:
                self._series_to_be_updated.discard(series)
        has_many_labels = len(self._series_by_label) > MANY_LABELS
        may_wait = (
            MAX_RUNS_NOT_ADDED_UP_OF_MANY_LABELS if has_many_labels else MAX_RUNS_NOT_ADDED_UP
        )
        self._add_up_threshold = len(self._runs_not_added_up) + may_wait

    def _history_size_of_a_label(self) -> int:
        share = MAX_RUNS_OF_ALL_JOBS // max(1, len(self._series_by_label))
        return min(self.history, max(1, share))

    @synchronized
    def _update_and_list_series(self) -> list[JobSeries]:
        """Return all series, without those that were removed some time ago."""
        self._add_up_finished_runs()
        self._drop_expired_series()
        return list(self._series_by_label.values())

    @synchronized
    def _create_snapshot(self, series: JobSeries) -> JobSnapshot:
        return series.create_snapshot(self._version_numbers)

    @synchronized
    def _job_record_for(self, entry: JournalEntry) -> JobRecord:
        """Return a record for a run of a former process, whose job may not be known here."""
        info = _create_interrupted_job_info(entry)
        series = self._series_for(info)
        if series.has_had_job:
            if series.label == entry.label:
                info = series.info._replace(id=entry.job_id)
        elif series.removed_at is None:
            series.set_removed_at(self._clock())
        return JobRecord((info.jobstore, entry.job_id), info, series)

    def _series_for(self, info: JobInfo) -> JobSeries:
        series = self._series_by_label.get(info.label)
        if series is None and self._is_label_limit_reached() and not self._try_to_free_labels():
            series = self._series_by_label.get(OVERFLOW_LABEL)
            if series is None:
                info = _create_overflow_job_info(info)
        if series is None:
            series = JobSeries(
                self.scheduler_name, info, JobStats(*self._duration_and_delay_buckets), self._clock
            )
            self._series_by_label[info.label] = series
        return series

    def _try_to_free_labels(self) -> bool:
        """Forget what was removed some time ago, as no label is left; tell whether one is now."""
        # Not for every further job, as this looks at all labels; in a second, little has changed.
        now = self._clock()
        if 0 <= now - self._last_label_cleanup_at < 1:
            return False
        self._last_label_cleanup_at = now
        self._add_up_finished_runs()
        self._drop_expired_series()
        return not self._is_label_limit_reached()

    def _is_label_limit_reached(self) -> bool:
        return (
            len(self._series_by_label) - (OVERFLOW_LABEL in self._series_by_label)
            >= self._max_labels
        )

    def _remove_record(self, record: JobRecord, *, keep_next_run: bool) -> None:
        jobstore, job_id = record.job_key
        now = self._clock()
        record.series.remove_job(record, now, keep_next_run=keep_next_run)
        record.set_next_run(None)
        del self._jobs[jobstore][job_id]
        if keep_next_run:
            self._expected_runs_of_jobs_removed_by_error[record.job_key] = record.series, now

    def _drop_expired_series(self) -> None:
        """Forget what was removed some time ago."""
        deadline = self._clock() - REMOVED_JOB_SECONDS
        # Not pairs of label and series: Python collects garbage after some hundred new objects,
        # which holds up all threads.
        for series in list(self._series_by_label.values()):
            removed_at = series.removed_at
            if removed_at is not None and removed_at <= deadline and series.is_unused:
                self._series_by_label.pop(series.label, None)
        for key, (series, since) in list(self._expected_runs_of_jobs_removed_by_error.items()):
            if since <= deadline:
                series.drop_expected_run_of_job_removed_by_error(key)
                self._expected_runs_of_jobs_removed_by_error.pop(key, None)


_NEW_JOBSTORE = JobStoreState()


def _create_interrupted_job_info(entry: JournalEntry) -> JobInfo:
    """Return what a journal says about the job of a run; the rest is empty."""
    return JobInfo(
        id=entry.job_id,
        label=entry.label,
        name="",
        func="",
        trigger="",
        executor=entry.executor,
        jobstore="",
        persistent=False,
        grace=0.0,
    )


def _create_overflow_job_info(info: JobInfo) -> JobInfo:
    """Return what jobs beyond the limit of labels have in common."""
    return JobInfo(
        id=OVERFLOW_LABEL,
        label=OVERFLOW_LABEL,
        name=OVERFLOW_LABEL,
        func=OVERFLOW_LABEL,
        trigger="",
        executor=info.executor,
        jobstore=info.jobstore,
        persistent=info.persistent,
        grace=info.grace,
    )
