"""
Hooks on a job store: every change of a job passes through its store.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.base import STATE_STOPPED

from apscheduler_telemetry.adapters.apscheduler3.changes_during_reading import ChangesDuringReading
from apscheduler_telemetry.adapters.apscheduler3.job_change_handler import JobChangeHandler
from apscheduler_telemetry.adapters.apscheduler3.job_deserializer import (
    JobDeserializer,
    UndeserializableJob,
)
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from apscheduler_telemetry.adapters.apscheduler3.patching import PatchSet
from apscheduler_telemetry.adapters.apscheduler3.scheduler_loop import SchedulerLoop
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.model import Clock, SchedulerErrorKind
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.times import to_datetime

ERROR_COMPONENT = "adapter"


class JobStoreHooks:
    """
    The hooks on one job store of a scheduler.

    Args:
        scheduler: an APScheduler 3 scheduler.
        store: one of its job stores.
        alias: of the store.
        patches: replaces the methods of the store.
        job_change_handler: handles changes of jobs.
        loop: shows whether the scheduler's loop is making a change.
        recorder: counts failures of the store.
        error_reporter: counts failures of telemetry.
        suppressing_tracing: returns a context manager in which no spans are created.
        clock: returns Unix seconds.

    Attributes:
        is_persistent: whether the store may outlive the process, and others may change it.
    """

    def __init__(  # noqa: PLR0913  # the parts that it works with, by name
        self,
        scheduler: Any,
        store: Any,
        alias: str,
        *,
        patches: PatchSet,
        job_change_handler: JobChangeHandler,
        loop: SchedulerLoop,
        recorder: Recorder,
        error_reporter: ErrorReporter,
        suppressing_tracing: Callable[[], AbstractContextManager[None]],
        clock: Clock,
    ) -> None:
        self.is_persistent = not isinstance(store, MemoryJobStore)
        self._scheduler = scheduler
        self._store = store
        self._patches = patches
        self._job_change_handler = job_change_handler
        self._scheduler_loop = loop
        self._recorder = recorder
        self._error_reporter = error_reporter
        self._original_get_due_jobs = store.get_due_jobs
        self._changes_during_reading = ChangesDuringReading()
        self.on_added_to_scheduler(alias)
        self._deserializer = JobDeserializer(store, patches=patches, recorder=recorder)
        self._poller = JobStorePoller(
            scheduler,
            store,
            is_local=not self.is_persistent,
            changes=self._changes_during_reading,
            deserializer=self._deserializer,
            patches=patches,
            job_change_handler=job_change_handler,
            loop=loop,
            recorder=recorder,
            error_reporter=error_reporter,
            suppressing_tracing=suppressing_tracing,
            clock=clock,
        )
        self._patch_store()  # last, as another thread may use the store

    @property
    def alias(self) -> str | None:
        """The alias of the store; None while the scheduler does not have it."""
        return self._changes_during_reading.alias

    def on_added_to_scheduler(self, alias: str) -> None:
        """Note that the scheduler has the store, under this alias."""
        self._changes_during_reading.set_alias(alias)
        self._recorder.jobstore_added(alias, is_local=not self.is_persistent)

    def on_removed_from_scheduler(self) -> None:
        """Note that the store was removed from the scheduler."""
        self._changes_during_reading.clear_alias()
        self._poller.cancel_scheduled_reading()

    def start_polling(self) -> None:
        """Read the jobs that are in the store, as the scheduler has started."""
        self._poller.start()

    def stop_polling(self) -> None:
        """Read no more."""
        self._poller.stop()

    def list_jobs(self) -> list[Any]:
        """Return the jobs that are in the store, without those that cannot be deserialized."""
        if not self.is_persistent:
            return list(self._store.get_all_jobs())
        if not self._deserializer.is_supported:  # it would delete them
            return []
        with self._deserializer.preserving_rows():
            jobs = list(self._store.get_all_jobs())
        return [job for job in jobs if not isinstance(job, UndeserializableJob)]

    # The replaced methods

    def _patch_store(self) -> None:
        patch, store = self._patches.patch, self._store
        patch(store, "add_job", self._wrap_add_job)
        patch(store, "update_job", self._wrap_update_job)
        patch(store, "remove_job", self._wrap_remove_job)
        patch(store, "remove_all_jobs", self._wrap_remove_all_jobs)
        patch(store, "get_due_jobs", self._wrap_get_due_jobs)
        patch(store, "get_all_jobs", self._wrap_get_all_jobs)
        if type(store) is not MemoryJobStore:  # that one cannot fail, and every pass calls it
            patch(store, "get_next_run_time", self._wrap_counting_errors)

    def _wrap_add_job(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def add_job(job: Any) -> None:
            with self._changes_during_reading.changing_job(job.id):
                original(job)
                self._call_with_alias(self._job_change_handler.on_job_added, job)

        return add_job

    def _wrap_update_job(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        update_counting_errors = self._wrap_counting_errors(original)

        def update_job(job: Any) -> None:
            if not self._scheduler_loop.is_setting_next_run(job.id):
                self._track_before_change(job.id)
            with self._changes_during_reading.changing_job(job.id):
                update_counting_errors(job)
                self._call_with_alias(self._job_change_handler.on_job_updated, job)

        if self.is_persistent:
            return update_job
        return self._wrap_update_job_of_memory_store(original, fallback=update_job)

    def _wrap_update_job_of_memory_store(
        self, original: Callable[[Any], None], fallback: Callable[[Any], None]
    ) -> Callable[[Any], None]:
        # This runs after every run of a job in memory, so it is short. It needs no lock: a memory
        # store is read under the scheduler's lock, which the loop holds now.
        patches, loop = self._patches, self._scheduler_loop
        job_change_handler = self._job_change_handler

        def update_job(job: Any) -> None:
            submission = loop.pop_submission_awaiting_next_run(job)
            if submission is None or not patches.is_active:
                fallback(job)
                return
            try:
                original(job)
            except BaseException:
                self._count_jobstore_error()
                raise
            try:
                tracked = submission.tracked
                if tracked.is_removed:  # while it ran, and added again
                    self._call_with_alias(job_change_handler.on_job_rescheduled_by_loop, job)
                else:
                    job_change_handler.on_job_advanced(tracked, job)
            except BaseException:  # noqa: BLE001  # the job has objects of the user's
                self._error_reporter.exception(ERROR_COMPONENT)

        return update_job

    def _wrap_remove_job(self, original: Callable[[str], None]) -> Callable[[str], None]:
        remove_counting_errors = self._wrap_counting_errors(original)

        def remove_job(job_id: str) -> None:
            if not self._scheduler_loop.is_called_by_loop:
                self._track_before_change(job_id)
            with self._changes_during_reading.changing_job(job_id):
                remove_counting_errors(job_id)
                self._call_with_alias(self._job_change_handler.on_job_removed, job_id)

        return remove_job

    def _wrap_remove_all_jobs(self, original: Callable[[], None]) -> Callable[[], None]:
        def remove_all_jobs() -> None:
            if self._scheduler.state == STATE_STOPPED:
                # A memory store empties itself when the scheduler is shut down. That cancels no
                # run, so that alerts detect a process that ends and never comes back.
                original()
                return
            self._track_due_jobs_before_removal()
            with self._changes_during_reading.changing_all_jobs():
                original()
                self._call_with_alias(self._job_change_handler.on_all_jobs_removed)

        return remove_all_jobs

    def _wrap_get_due_jobs(self, original: Callable[[datetime], Any]) -> Callable[[datetime], Any]:
        patches, loop = self._patches, self._scheduler_loop
        list_due_jobs = original
        if self.is_persistent:
            list_due_jobs = self._wrap_get_due_jobs_of_persistent_store(original)

        def get_due_jobs(now: datetime) -> Any:
            if not patches.is_active:
                return original(now)
            try:
                if loop.pass_thread_id is None or loop.is_pass_bypassing_patch:
                    loop.on_bypassing_pass_start()
            except Exception:  # noqa: BLE001
                self._error_reporter.exception(ERROR_COMPONENT)
            try:
                jobs = list_due_jobs(now)
                if type(jobs) is not list:
                    jobs = _to_sequence(jobs)
            except BaseException:
                self._count_jobstore_error()
                raise
            try:
                loop.set_due_jobs(jobs)
                jobs = self._job_change_handler.make_run_times_observable(jobs)
                if self._poller.must_be_read_in_pass and loop.is_called_by_loop:
                    self._poller.read_in_pass()
            except BaseException:  # noqa: BLE001  # as above
                self._error_reporter.exception(ERROR_COMPONENT)
            return jobs

        return get_due_jobs

    def _wrap_get_due_jobs_of_persistent_store(
        self, original: Callable[[datetime], Any]
    ) -> Callable[[datetime], Any]:
        def list_due_jobs(now: datetime) -> Any:
            with self._changes_during_reading.listing_jobs():
                with self._deserializer.counting_failures() as failures:
                    jobs = _to_sequence(original(now))
                self._call_with_alias(self._job_change_handler.sync_due_jobs, jobs)
                if failures.total:
                    self._call_with_alias(self._record_jobs_deleted_as_undeserializable, jobs, now)
            return jobs

        return list_due_jobs

    def _wrap_get_all_jobs(self, original: Callable[[], Any]) -> Callable[[], Any]:
        def get_all_jobs() -> Any:
            if self._deserializer.is_preserving_rows_in_this_thread or self.alias is None:
                return original()
            with self._changes_during_reading.listing_jobs():
                with self._deserializer.counting_failures() as failures:
                    jobs = _to_sequence(original())
                if failures.total:
                    self._call_with_alias(self._record_jobs_deleted_as_undeserializable, jobs, None)
            return jobs

        return get_all_jobs

    def _wrap_counting_errors(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            try:
                return original(*args)
            except BaseException:
                self._count_jobstore_error()
                raise

        return call

    def _count_jobstore_error(self) -> None:
        # The user's code gets the exception; the loop only logs it, or ends with it.
        if self._patches.is_active and self._scheduler_loop.is_called_by_loop:
            self._recorder.count_scheduler_error(SchedulerErrorKind.JOBSTORE)

    def _call_with_alias(self, handler: Callable[..., object], *args: Any) -> None:
        """Call `handler` with `args` and the store's alias, if it is in the scheduler."""
        alias = self.alias
        if alias is None or not self._patches.is_active:
            return
        try:
            handler(*args, alias)
        except BaseException:  # noqa: BLE001  # as above
            self._error_reporter.exception(ERROR_COMPONENT)

    # Reading before a change

    def _track_before_change(self, job_id: str) -> None:
        """
        Track a job that is not known yet, in its state before the application changes it.

        After a start, this finds the runs that were due while no process was running.
        """
        alias = self.alias
        if alias is None or not self.is_persistent or not self._patches.is_active:
            return
        if self._job_change_handler.tracked_jobs.get((alias, job_id)) is not None:
            return
        try:
            job = self._store.lookup_job(job_id)
        except BaseException as error:  # noqa: BLE001  # the change itself will raise it again
            raise_if_interruption(error)
            return
        if job is not None:
            self._call_with_alias(self._job_change_handler.on_job_read, job)

    def _track_due_jobs_before_removal(self) -> None:
        """Do the same for all jobs that are due, before all jobs are removed."""
        alias = self.alias
        if alias is None or not self._deserializer.is_supported or not self._patches.is_active:
            return
        try:
            with self._deserializer.preserving_rows():  # so that nothing is deleted or logged
                jobs = list(self._original_get_due_jobs(datetime.now(self._scheduler.timezone)))
        except BaseException as error:  # noqa: BLE001  # as above
            raise_if_interruption(error)
            return
        for job in jobs:
            if isinstance(job, UndeserializableJob):
                continue
            if self._job_change_handler.tracked_jobs.get((alias, job.id)) is None:
                self._call_with_alias(self._job_change_handler.on_job_read, job)

    def _record_jobs_deleted_as_undeserializable(
        self, deserialized_jobs: Any, now: datetime | None, alias: str
    ) -> None:
        """
        Note which jobs the store has just deleted, because it could not deserialize them.

        Only their number is known; they are the tracked jobs that are not listed.

        Args:
            deserialized_jobs: the jobs that it could deserialize.
            now: the time up to which these jobs are due; None if all jobs were listed.
            alias: of the store.
        """
        listed_ids = {job.id for job in deserialized_jobs}
        for tracked in self._job_change_handler.tracked_jobs.list_jobs_in_jobstore(alias):
            if tracked.job_key[1] in listed_ids:
                continue
            due: datetime | None = None
            if now is not None:
                next_run = tracked.next_run
                if next_run is None or next_run > now.timestamp():
                    continue
                due = to_datetime(next_run, now.tzinfo)
            self._job_change_handler.on_undeserializable_job_deleted(tracked, due)


def _to_sequence(jobs: Any) -> Any:
    # A user's store may return a generator, which can be read only once.
    return jobs if isinstance(jobs, (list, tuple)) else list(jobs)
