"""
Reads a job store after a start, and every few seconds from then on.

A store is never read for a scrape, and nothing in it is changed or deleted.
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from apscheduler.schedulers.base import STATE_STOPPED

from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.changes_during_reading import (
    ChangesDuringReading,
    ReadingInProgress,
)
from apscheduler_telemetry.adapters.apscheduler3.job_change_handler import JobChangeHandler
from apscheduler_telemetry.adapters.apscheduler3.job_deserializer import (
    JobDeserializer,
    UndeserializableJob,
)
from apscheduler_telemetry.adapters.apscheduler3.jobstore_reader import (
    BATCH_SIZE,
    JobStoreReader,
    SeparateConnectionUnsafeError,
    create_reader_if_supported,
)
from apscheduler_telemetry.adapters.apscheduler3.patching import PatchSet
from apscheduler_telemetry.adapters.apscheduler3.scheduler_loop import SchedulerLoop
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import TrackedJob
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.labels import label_value
from apscheduler_telemetry.core.model import Clock, RemovalReason, shorten_name
from apscheduler_telemetry.core.observers import ErrorReporter, logger
from apscheduler_telemetry.core.recorder import Recorder

ERROR_COMPONENT = "adapter"

NEXT_RUN_TOLERANCE_SECONDS = 1e-3
"""Seconds by which a stored next run may differ from that of the job: databases round."""


class JobStorePoller:
    """
    Keeps the metrics state up to date with one job store.

    The hooks report changes by this process. To find changes by other processes, the store is read
    every few seconds, if that is cheap. A store without a `JobStoreReader` is read once after each
    start.

    Args:
        scheduler: an APScheduler 3 scheduler.
        store: one of its job stores.
        is_local: whether only this process changes the store.
        changes: what this process is changing in the store.
        deserializer: deserializes the store's rows.
        patches: shows whether the scheduler is still instrumented.
        job_change_handler: handles the jobs that were read.
        loop: shows in which process the scheduler was started.
        recorder: records when the store was read, and failures.
        error_reporter: counts failures of telemetry.
        suppressing_tracing: returns a context manager in which no spans are created.
        clock: returns Unix seconds.

    Attributes:
        must_be_read_in_pass: whether the store is to be read by `read_in_pass`, because it cannot
            be read over another connection.
    """

    POLL_INTERVAL_SECONDS = 5.0
    """Seconds between two readings: the next scrape should show changes by other processes."""
    MAX_DUTY_CYCLE = 0.05
    """
    The largest share of time that readings may take.

    After a reading that took a second there is none for 20 seconds, so that a slow store does not
    become even slower.
    """

    def __init__(  # noqa: PLR0913  # the parts that it works with, by name
        self,
        scheduler: Any,
        store: Any,
        *,
        is_local: bool,
        changes: ChangesDuringReading,
        deserializer: JobDeserializer,
        patches: PatchSet,
        job_change_handler: JobChangeHandler,
        loop: SchedulerLoop,
        recorder: Recorder,
        error_reporter: ErrorReporter,
        suppressing_tracing: Callable[[], AbstractContextManager[None]],
        clock: Clock,
    ) -> None:
        self._scheduler = scheduler
        self._store = store
        self._is_local = is_local
        self._changes_during_reading = changes
        self._deserializer = deserializer
        self._patches = patches
        self._job_change_handler = job_change_handler
        self._scheduler_loop = loop
        self._recorder = recorder
        self._error_reporter = error_reporter
        self._clock = clock
        # Each store has its own worker, because a server that does not answer blocks it.
        self._worker = BackgroundWorker(error_reporter, suppressing_tracing)
        self._reader: JobStoreReader | None = None
        self._scheduled_reading_token = object()
        self._has_last_reading_failed = False
        self._undeserializable_next_runs: dict[str, float | None] = {}
        self.must_be_read_in_pass = False

    def start(self) -> None:
        """Read the jobs in the store, and continue to read it if other processes may change it."""
        if self._is_local:
            # This is quick, and the lists of a memory store must not change meanwhile.
            with self._scheduler._jobstores_lock:  # noqa: SLF001
                self._read_and_apply_jobs_reporting_errors()
            return
        self.cancel_scheduled_reading()
        self._undeserializable_next_runs = {}
        self._has_last_reading_failed = False
        self._reader = None
        try:
            self._reader = create_reader_if_supported(self._store)
        except SeparateConnectionUnsafeError:
            self.must_be_read_in_pass = True
            return
        # Otherwise reading the store may delete rows that it cannot deserialize.
        if self._reader is not None or self._deserializer.is_supported:
            # In another thread: a slow server must not block start() or make a due job late.
            self._schedule_reading(0)

    def cancel_scheduled_reading(self) -> None:
        """Cancel the reading that is scheduled."""
        self._scheduled_reading_token = object()

    def stop(self) -> None:
        """Read no more; this cannot be undone."""
        self._worker.discard_tasks_and_stop()

    def read_in_pass(self) -> None:
        """
        Read the store once, in the scheduler's thread and over its connection.

        The store has just ended its own transaction there, so this reading disturbs none.
        """
        self.must_be_read_in_pass = False
        self._read_and_apply_jobs_reporting_errors()

    def _read_and_apply_jobs_reporting_errors(self) -> None:
        try:
            self._read_and_apply_jobs()
        except BaseException:  # noqa: BLE001  # also the store's, which may be the user's
            self._error_reporter.exception(ERROR_COMPONENT)

    # In the background

    def _schedule_reading(self, seconds: float) -> None:
        get_poller, token = weakref.ref(self), self._scheduled_reading_token

        def read() -> None:
            # A weak reference: this may wait for long, and must not keep the scheduler alive.
            poller = get_poller()
            if poller is not None and poller._scheduled_reading_token is token:  # noqa: SLF001  # ours
                poller._poll_and_reschedule()  # noqa: SLF001

        self._worker.submit(ERROR_COMPONENT, read, after=seconds)

    def _poll_and_reschedule(self) -> None:
        """Read the store, and schedule the next reading if there is to be one."""
        if not self._is_reading_allowed:
            return
        started_at = time.perf_counter()
        is_finished = False
        try:
            self._read_and_apply_jobs()
            is_finished = self._reader is None
        except _JobStoreError as error:
            self._report_failure(error)
        except BaseException:  # noqa: BLE001  # the next reading may succeed
            self._error_reporter.exception(ERROR_COMPONENT)
        if not is_finished:
            spent = time.perf_counter() - started_at
            self._schedule_reading(max(self.POLL_INTERVAL_SECONDS, spent / self.MAX_DUTY_CYCLE))

    @property
    def _is_reading_allowed(self) -> bool:
        """Whether the scheduler runs, in this process: a fork must not use its connections."""
        is_running = (
            self._scheduler.state != STATE_STOPPED
            and self._scheduler_loop.started_in_pid == os.getpid()
        )
        return (
            is_running
            and self._patches.is_active
            and self._changes_during_reading.alias is not None
        )

    def _report_failure(self, error: _JobStoreError) -> None:
        """Record that the store failed, and log the first failure after a success."""
        alias = self._changes_during_reading.alias
        if alias is None:
            return
        self._recorder.jobstore_read_failed(alias)
        if not self._has_last_reading_failed:
            self._has_last_reading_failed = True
            logger.warning(
                "apscheduler-telemetry could not read the job store %r (%s). It will try again; "
                "until then metrics show the jobs as they were at "
                "apscheduler_jobstore_last_read_timestamp_seconds",
                label_value(alias),
                shorten_name(type(error.__cause__).__name__),
            )

    # One reading

    def _read_and_apply_jobs(self) -> None:
        """Read the store once, if it may be read."""
        read_at = self._clock()
        reading = self._changes_during_reading.start_reading() if self._is_reading_allowed else None
        if reading is None:
            return
        try:
            if self._reader is None:
                self._read_all_jobs(reading)
            else:
                self._read_changed_jobs(reading, self._reader)
        finally:
            self._changes_during_reading.end_reading(reading)
        self._recorder.jobstore_read(reading.alias, read_at)
        self._has_last_reading_failed = False

    def _read_all_jobs(self, reading: ReadingInProgress) -> None:
        """Read all jobs through the store itself, which deserializes each of them."""
        known = self._tracked_jobs_by_id(reading)
        with _convert_store_errors(), self._deserializer.preserving_rows():
            jobs = list(self._store.get_all_jobs())
        found = [job for job in jobs if not isinstance(job, UndeserializableJob)]
        for job in found:
            self._apply_read_job(job, reading)
        if len(found) < len(jobs):
            return  # any job that was not found may be the one that cannot be deserialized
        vanished = known.keys() - {job.id for job in found}
        self._apply_removals((known[job_id] for job_id in vanished), reading, RemovalReason.FAILED)

    def _read_changed_jobs(self, reading: ReadingInProgress, reader: JobStoreReader) -> None:
        """Ask the store for the next run of each job, and for the jobs whose next run changed."""
        known = self._tracked_jobs_by_id(reading)
        try:
            with _convert_store_errors():
                next_runs = reader.fetch_next_runs()
            changed = [
                job_id
                for job_id, next_run in next_runs.items()
                if self._has_next_run_changed(known.get(job_id), job_id, next_run)
            ]
            for start in range(0, len(changed), BATCH_SIZE):
                with _convert_store_errors():
                    states = reader.fetch_pickled_jobs(changed[start : start + BATCH_SIZE])
                for job_id, state in states:
                    self._apply_pickled_job(job_id, state, next_runs[job_id], reading)
        finally:
            reader.disconnect()
        vanished = [tracked for job_id, tracked in known.items() if job_id not in next_runs]
        # Other processes usually remove single jobs. If all of several jobs are gone at once, the
        # store has probably lost them, and their runs are not cancelled.
        is_store_emptied = not next_runs and len(vanished) > 1
        reason = RemovalReason.FAILED if is_store_emptied else RemovalReason.CANCELLED
        self._apply_removals(vanished, reading, reason)
        for job_id in self._undeserializable_next_runs.keys() - next_runs:
            del self._undeserializable_next_runs[job_id]

    def _tracked_jobs_by_id(self, reading: ReadingInProgress) -> dict[Hashable, TrackedJob]:
        return {
            tracked.job_key[1]: tracked
            for tracked in self._job_change_handler.tracked_jobs.list_jobs_in_jobstore(
                reading.alias
            )
        }

    def _has_next_run_changed(
        self, tracked: TrackedJob | None, job_id: str, next_run: float | None
    ) -> bool:
        undeserializable = self._undeserializable_next_runs
        if job_id in undeserializable and undeserializable[job_id] == next_run:
            return False  # it could not be deserialized this time either
        if tracked is None:
            return True
        if next_run is None or tracked.next_run is None:
            return next_run is not tracked.next_run
        return abs(next_run - tracked.next_run) > NEXT_RUN_TOLERANCE_SECONDS

    def _apply_pickled_job(
        self, job_id: str, state: bytes, next_run: float | None, reading: ReadingInProgress
    ) -> None:
        job = self._deserializer.deserialize_job(state)
        if isinstance(job, UndeserializableJob):
            self._undeserializable_next_runs[job_id] = next_run
        else:
            self._apply_read_job(job, reading)

    def _apply_read_job(self, job: Any, reading: ReadingInProgress) -> None:
        handler, alias = self._job_change_handler, reading.alias
        try:
            inspected = handler.describe_and_compare_trigger(
                job, alias
            )  # without a lock: this calls the user's code
            apply = partial(handler.on_job_read, job, alias, inspected)
            self._changes_during_reading.apply_if_unchanged(reading, job.id, apply)
        except BaseException:  # noqa: BLE001  # of one job; the others are still applied
            self._error_reporter.exception(ERROR_COMPONENT)

    def _apply_removals(
        self, vanished: Iterable[TrackedJob], reading: ReadingInProgress, reason: RemovalReason
    ) -> None:
        for tracked in vanished:
            apply = partial(self._job_change_handler.on_job_vanished, tracked, reason)
            self._changes_during_reading.apply_removal_if_unchanged(
                reading, tracked.job_key[1], apply
            )


class _JobStoreError(Exception):
    """The store, and not telemetry, failed while it was read."""


@contextmanager
def _convert_store_errors() -> Iterator[None]:
    """Distinguish failures of the store from failures of telemetry."""
    try:
        yield
    except BaseException as error:
        raise_if_interruption(error)
        raise _JobStoreError from error
