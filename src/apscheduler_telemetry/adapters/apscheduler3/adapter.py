"""
The adapter for APScheduler 3: puts its parts together and patches one scheduler.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import tzinfo
from importlib.metadata import version
from typing import Any
from weakref import WeakValueDictionary

from apscheduler.events import (
    EVENT_EXECUTOR_ADDED,
    EVENT_EXECUTOR_REMOVED,
    EVENT_JOBSTORE_ADDED,
    EVENT_JOBSTORE_REMOVED,
    EVENT_SCHEDULER_SHUTDOWN,
    EVENT_SCHEDULER_STARTED,
)
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.base import STATE_STOPPED

from apscheduler_telemetry.adapters.apscheduler3 import exit_warning, upcoming_runs
from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.executors import ExecutorHooks
from apscheduler_telemetry.adapters.apscheduler3.fire_time_searcher import (
    BackgroundFireTimeSearcher,
)
from apscheduler_telemetry.adapters.apscheduler3.job_change_handler import JobChangeHandler
from apscheduler_telemetry.adapters.apscheduler3.job_describer import JobDescriber
from apscheduler_telemetry.adapters.apscheduler3.jobstores import JobStoreHooks
from apscheduler_telemetry.adapters.apscheduler3.patching import PatchSet
from apscheduler_telemetry.adapters.apscheduler3.runs import RunTracker
from apscheduler_telemetry.adapters.apscheduler3.scheduler_checks import check_scheduler
from apscheduler_telemetry.adapters.apscheduler3.scheduler_loop import SchedulerLoop
from apscheduler_telemetry.adapters.apscheduler3.scheduler_wrappers import (
    describe_rejected_candidate,
    find_scheduler_started_by,
    is_initialized,
)
from apscheduler_telemetry.adapters.apscheduler3.trace_links import MAX_FLUSH_SECONDS, TraceLinks
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import TrackedJobs
from apscheduler_telemetry.adapters.apscheduler3.unsubmitted_runs import UnsubmittedRunRecorder
from apscheduler_telemetry.adapters.base import AdapterDependencies, SchedulerImportFacts
from apscheduler_telemetry.core.findings import Finding
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.model import Liveness, Outcome
from apscheduler_telemetry.core.timetable import UpcomingRuns


class APScheduler3Adapter:
    """
    Watches one APScheduler 3 scheduler; see `SchedulerAdapter`.

    Args:
        scheduler: the scheduler, started or not.
        dependencies: what the adapter may call.
    """

    def __init__(self, scheduler: Any, dependencies: AdapterDependencies) -> None:
        self._scheduler = scheduler
        self._dependencies = dependencies
        self._patches = PatchSet()
        # Patches of the methods by which executors report results; restored only when the last
        # span has ended.
        self._result_patches = PatchSet()
        # By the identity of the patched object, which owns the hooks. The references are weak
        # because an object may be removed from the scheduler and freed.
        self._hooks_by_executor_id: WeakValueDictionary[int, ExecutorHooks] = WeakValueDictionary()
        self._hooks_by_jobstore_id: WeakValueDictionary[int, JobStoreHooks] = WeakValueDictionary()
        recorder, error_reporter = dependencies.recorder, dependencies.error_reporter
        self._worker = BackgroundWorker(error_reporter, dependencies.suppressing_tracing)
        self._trace_links = TraceLinks(
            dependencies.origin_propagator, dependencies.context_store, self._worker, error_reporter
        )
        self._scheduler_loop = SchedulerLoop(
            scheduler,
            patches=self._patches,
            recorder=recorder,
            observers=dependencies.observers,
            error_reporter=error_reporter,
            attach_empty_context=dependencies.attach_empty_context,
            detach_empty_context=dependencies.detach_empty_context,
            on_survived_fork=self._on_survived_fork,
        )
        fire_time_searcher = BackgroundFireTimeSearcher(
            recorder.scheduler_name, self._worker, error_reporter
        )
        self._unsubmitted_run_recorder = UnsubmittedRunRecorder(
            scheduler,
            recorder=recorder,
            observers=dependencies.observers,
            error_reporter=error_reporter,
            fire_time_searcher=fire_time_searcher,
        )
        self._tracked_jobs = TrackedJobs(recorder, fire_time_searcher)
        self._job_change_handler = JobChangeHandler(
            jobs=self._tracked_jobs,
            recorder=recorder,
            loop=self._scheduler_loop,
            describer=JobDescriber(
                dependencies.labeller,
                dependencies.expectation_resolver,
                is_persistent=self._is_persistent,
                get_timezone=lambda: scheduler.timezone,
            ),
            links=self._trace_links,
            unsubmitted_run_recorder=self._unsubmitted_run_recorder,
            clock=time.time,
        )
        self._run_tracker = RunTracker(
            observers=dependencies.observers,
            recorder=dependencies.recorder,
            error_reporter=error_reporter,
            capture=dependencies.capture,
        )

    @staticmethod
    def find_scheduler(candidate: object) -> Any:
        """Return the scheduler of APScheduler 3 that runs when `candidate` is started, or None."""
        scheduler = find_scheduler_started_by(candidate)
        return scheduler if is_initialized(scheduler) else None

    @staticmethod
    def describe_rejected_candidate(candidate: object) -> str | None:
        """Return advice for the caller of `instrument` about an object without a scheduler."""
        return describe_rejected_candidate(candidate)

    @staticmethod
    def check_imported(
        scheduler: Any, facts: SchedulerImportFacts, others: Sequence[Any]
    ) -> Sequence[Finding]:
        """Return the risks of a scheduler that was not started, without changing it."""
        return check_scheduler(
            scheduler, stored_jobs={}, skipped_runs={}, facts=facts, others=others
        )

    def check(self) -> Sequence[Finding]:
        """Return the risks of the scheduler and its jobs, as they are now."""
        scheduler, stored_jobs = self._scheduler, {}
        if scheduler.state != STATE_STOPPED:
            for alias, store in list(scheduler._jobstores.items()):  # noqa: SLF001
                hooks = self._hooks_by_jobstore_id.get(id(store))
                if hooks is not None:  # else another thread is just adding this store
                    stored_jobs[alias] = hooks.list_jobs()
        return check_scheduler(
            scheduler,
            stored_jobs=stored_jobs,
            skipped_runs={
                job.info.id: job.stats.outcomes.get(Outcome.SKIPPED, 0)
                for job in self._dependencies.recorder.job_snapshots()
            },
            facts=SchedulerImportFacts(),
        )

    def check_in_background(self, on_checked: Callable[[Sequence[Finding]], None]) -> None:
        """Call `on_checked` with what `check` returns, in another thread."""
        self._worker.submit("adapter", lambda: on_checked(self.check()))

    def install(self) -> None:
        """Patch the scheduler; if that fails, revert everything before the exception."""
        try:
            self._patch_scheduler()
        except BaseException:
            self.uninstall()
            raise

    def uninstall(self) -> None:
        """
        Revert everything, in reverse order.

        The patches that receive results stay until the last span of a run in flight has ended,
        because only they show when and how a run ends.
        """
        self._patches.deactivate()
        exit_warning.cancel_exit_warning(self._scheduler)
        self._trace_links.flush(MAX_FLUSH_SECONDS)
        self._worker.discard_tasks_and_stop()
        for hooks in list(self._hooks_by_jobstore_id.values()):
            hooks.stop_polling()
        self._dependencies.observers.stop_after_open_runs(self._result_patches.restore)
        self._patches.restore()
        self._scheduler.remove_listener(self._on_scheduler_event)

    def call_at_next_start(self, callback: Callable[[], None]) -> None:
        """Call back, once, when the scheduler is started the next time; also if uninstalled."""
        scheduler = self._scheduler

        def on_scheduler_started(_: Any) -> None:
            scheduler.remove_listener(on_scheduler_started)
            callback()

        scheduler.add_listener(on_scheduler_started, EVENT_SCHEDULER_STARTED)

    @property
    def started_at(self) -> float | None:
        """When the scheduler was started, in Unix seconds; None before it."""
        return self._scheduler_loop.started_at

    @property
    def last_pass_ended_at(self) -> float | None:
        """When the latest pass over due jobs ended, in Unix seconds; None before it."""
        return self._scheduler_loop.last_pass_ended_at

    def liveness(self) -> Liveness:
        """Return whether the scheduler's loop is alive, and the reasons if it is not."""
        return self._scheduler_loop.liveness()

    def scheduler_info(self) -> Mapping[str, str]:
        """Return the description of the scheduler: ``type``, ``version`` and ``timezone``."""
        return {
            "type": type(self._scheduler).__name__,
            "version": _apscheduler_version(),
            "timezone": _timezone_text(self._scheduler.timezone),
        }

    @property
    def timezone(self) -> tzinfo:
        """The time zone of the scheduler."""
        zone: tzinfo = self._scheduler.timezone
        return zone

    def find_upcoming_runs(
        self, until: float, *, label: str | None = None, max_count: int
    ) -> UpcomingRuns:
        """Return the upcoming runs of all jobs, or of one label; see `Timetable`."""
        jobs = self._tracked_jobs.list_jobs(label)
        return upcoming_runs.find_upcoming_runs(
            jobs, until, max_count=max_count, default_zone=self.timezone
        )

    # Installation

    def _patch_scheduler(self) -> None:
        scheduler = self._scheduler
        exit_warning.register_exit_warning(
            scheduler,
            self._scheduler_loop.get_latest_pass_thread,
            self._dependencies.recorder,
            self._dependencies.error_reporter,
        )
        self._scheduler_loop.install()
        self._patches.patch(scheduler, "add_job", self._wrap_add_job)
        self._patches.patch(scheduler, "_configure", self._wrap_configure)
        if isinstance(scheduler, AsyncIOScheduler):
            self._patches.patch(scheduler, "start", _wrap_asyncio_start_with_hint)
        scheduler.add_listener(
            self._on_scheduler_event,
            EVENT_EXECUTOR_ADDED
            | EVENT_EXECUTOR_REMOVED
            | EVENT_JOBSTORE_ADDED
            | EVENT_JOBSTORE_REMOVED
            | EVENT_SCHEDULER_SHUTDOWN
            | EVENT_SCHEDULER_STARTED,
        )
        for alias in list(scheduler._executors):  # noqa: SLF001
            self._hook_executor(alias)
        for alias in list(scheduler._jobstores):  # noqa: SLF001
            self._hook_jobstore(alias)
        if scheduler.state != STATE_STOPPED:
            self._scheduler_loop.on_scheduler_found_running()
            self._start_polling_jobstores()

    def _wrap_add_job(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def add_job(*args: Any, **kwargs: Any) -> Any:
            job = original(*args, **kwargs)
            if self._patches.is_active and job.pending:
                # It enters its store when the scheduler starts, in another context.
                self._trace_links.on_pending_job_added(job.id)
            return job

        return add_job

    def _wrap_configure(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        def configure(config: Any) -> None:
            original(config)
            if not self._patches.is_active:
                return
            # `_configure` drops executors and job stores without an event, and sets another logger.
            self._scheduler_loop.patch_logger()
            recorder = self._dependencies.recorder
            for alias in recorder.executors().keys() - self._scheduler._executors:  # noqa: SLF001
                recorder.executor_removed(alias)
            for alias in recorder.jobstores().keys() - self._scheduler._jobstores:  # noqa: SLF001
                self._on_jobstore_removed(alias)

        return configure

    # Events of the scheduler

    def _on_scheduler_event(self, event: Any) -> None:
        try:
            if event.code == EVENT_EXECUTOR_ADDED:
                self._hook_executor(event.alias)
            elif event.code == EVENT_EXECUTOR_REMOVED:
                self._dependencies.recorder.executor_removed(event.alias)
            elif event.code == EVENT_JOBSTORE_ADDED:
                hooks = self._hook_jobstore(event.alias)
                if self._scheduler.state != STATE_STOPPED:
                    hooks.start_polling()
            elif event.code == EVENT_JOBSTORE_REMOVED:
                self._on_jobstore_removed(event.alias)
            elif event.code == EVENT_SCHEDULER_STARTED:
                self._trace_links.clear_origins_of_pending_jobs()
                self._on_started_in_this_process()
            elif event.code == EVENT_SCHEDULER_SHUTDOWN:
                self._dependencies.on_scheduler_stopped()
        except Exception:  # noqa: BLE001  # it would count as an error of a user's listener
            self._dependencies.error_reporter.exception("adapter")

    def _on_started_in_this_process(self) -> None:
        self._scheduler_loop.on_scheduler_started()
        self._start_polling_jobstores()
        self._dependencies.on_scheduler_started()

    def _on_survived_fork(self) -> None:
        """Note that the scheduler runs on in this process, a child of the one that started it."""
        self._on_started_in_this_process()
        self._worker.continue_tasks_after_fork()

    def _hook_executor(self, alias: str) -> None:
        executor = self._scheduler._executors[alias]  # noqa: SLF001
        hooks = self._hooks_by_executor_id.get(id(executor))
        if hooks is not None:  # removed and added again
            hooks.on_added_to_scheduler(alias)
            return
        self._hooks_by_executor_id[id(executor)] = ExecutorHooks(
            scheduler=self._scheduler,
            executor=executor,
            alias=alias,
            patches=self._patches,
            result_patches=self._result_patches,
            job_change_handler=self._job_change_handler,
            loop=self._scheduler_loop,
            unsubmitted_run_recorder=self._unsubmitted_run_recorder,
            run_tracker=self._run_tracker,
            recorder=self._dependencies.recorder,
            error_reporter=self._dependencies.error_reporter,
            clock=time.time,
        )

    def _hook_jobstore(self, alias: str) -> JobStoreHooks:
        store = self._scheduler._jobstores[alias]  # noqa: SLF001
        hooks = self._hooks_by_jobstore_id.get(id(store))
        if hooks is not None:  # removed and added again
            hooks.on_added_to_scheduler(alias)
            return hooks
        hooks = self._hooks_by_jobstore_id[id(store)] = JobStoreHooks(
            scheduler=self._scheduler,
            store=store,
            alias=alias,
            patches=self._patches,
            job_change_handler=self._job_change_handler,
            loop=self._scheduler_loop,
            recorder=self._dependencies.recorder,
            error_reporter=self._dependencies.error_reporter,
            suppressing_tracing=self._dependencies.suppressing_tracing,
            clock=time.time,
        )
        return hooks

    def _on_jobstore_removed(self, alias: str) -> None:
        for hooks in list(self._hooks_by_jobstore_id.values()):
            if hooks.alias == alias:
                hooks.on_removed_from_scheduler()
        self._tracked_jobs.remove_jobstore(alias)

    def _start_polling_jobstores(self) -> None:
        for store in list(self._scheduler._jobstores.values()):  # noqa: SLF001
            hooks = self._hooks_by_jobstore_id.get(id(store))
            if hooks is not None:  # else another thread is just adding this store
                hooks.start_polling()

    def _is_persistent(self, alias: str) -> bool:
        store = self._scheduler._jobstores.get(alias)  # noqa: SLF001
        hooks = self._hooks_by_jobstore_id.get(id(store))
        return hooks is not None and hooks.is_persistent


def _wrap_asyncio_start_with_hint(original: Callable[..., Any]) -> Callable[..., Any]:
    def start(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except RuntimeError as error:
            if not _is_event_loop_running() and hasattr(error, "add_note"):  # Python 3.11
                error.add_note(
                    "AsyncIOScheduler.start() needs an event loop that runs: call it in a "
                    "coroutine, such as the one of asyncio.run(), or in the lifespan or startup "
                    "function of the web application"
                )
            raise

    return start


def _is_event_loop_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


@functools.cache
def _apscheduler_version() -> str:
    return version("apscheduler")  # reads files, which is too slow for every scrape


def _timezone_text(timezone: Any) -> str:
    try:
        return str(timezone)
    except BaseException as error:  # noqa: BLE001  # user code; the other labels are still exported
        raise_if_interruption(error)
        return type(timezone).__qualname__
