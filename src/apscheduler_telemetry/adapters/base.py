"""
What an adapter must do, and what it may call. There is one adapter for each kind of scheduler.

An adapter watches one scheduler. It records jobs and runs with a `Recorder`, and passes runs on to
an `ObserverGroup` when their callables start and end, and when they are finished. It does not
depend on Prometheus, OpenTelemetry or HTTP, and only adapters depend on the scheduler's library.

A run may be due in one process and run in another. Then each process records only what happens in
it: the process that calls `Recorder.run_submitted` also records the end of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from apscheduler_telemetry.core.expectation_resolver import ExpectationResolver
from apscheduler_telemetry.core.findings import Finding
from apscheduler_telemetry.core.labels import JobLabeller
from apscheduler_telemetry.core.model import CaptureOptions, SchedulerStatusProvider
from apscheduler_telemetry.core.observers import ErrorReporter, ObserverGroup
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.timetable import Timetable


class OriginPropagator(Protocol):
    """Determines in which span a job is added, or a run triggered, so that runs link to it."""

    def find_current_origin(self, reason: str) -> Any:
        """Return the current origin, None outside of a trace; `reason` is that of the link."""

    def dump(self, origin: Any) -> Mapping[str, str]:
        """Return an origin as texts."""

    def load(self, reason: str, texts: Mapping[str, str]) -> Any:
        """Return the origin that was dumped."""


@dataclass(frozen=True, kw_only=True)
class AdapterDependencies:
    """
    What an adapter may call.

    Attributes:
        recorder: the metrics state, the only place to write numbers to.
        observers: observe single runs.
        error_reporter: counts failures of telemetry itself; none of them may reach the scheduler.
        labeller: chooses the ``job_id`` label of a job.
        expectation_resolver: finds out what is expected of a job, for the alert rules.
        origin_propagator: determines where a job is added, so that its runs link to it.
        context_store: stores origins across restarts; None if they are not stored.
        capture: which data of a job may be exported.
        attach_empty_context: removes the current OpenTelemetry context, and returns the argument
            for `detach_empty_context`, or None if there is nothing to restore.
        detach_empty_context: makes that context current again.
        suppressing_tracing: a context manager in which no span is current and none is created.
        on_scheduler_started: to be called when the scheduler has started.
        on_scheduler_stopped: to be called when the scheduler was shut down.
    """

    recorder: Recorder
    observers: ObserverGroup
    error_reporter: ErrorReporter
    labeller: JobLabeller
    expectation_resolver: ExpectationResolver
    origin_propagator: OriginPropagator
    context_store: MutableMapping[str, str] | None
    capture: CaptureOptions
    attach_empty_context: Callable[[], Any]
    detach_empty_context: Callable[[Any], None]
    suppressing_tracing: Callable[[], AbstractContextManager[None]]
    on_scheduler_started: Callable[[], None]
    on_scheduler_stopped: Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class SchedulerImportFacts:
    """
    What was seen of a scheduler while its application was imported.

    Attributes:
        was_started: whether the application has called its ``start()``.
        was_paused: whether it was started as paused, to add jobs without running them.
        has_configured_timezone: whether a time zone was given to it.
        local_triggers: triggers that were created without a time zone, so that they have that of
            the machine: by a scheduler without one, or by the application itself.
        looked_up_job_ids: the ids of jobs that were added after the start, and after the
            application had looked for them in the job stores or had removed them there.
        calls_shutdown: whether the application's modules mention ``shutdown``.
        keeps_main_thread: whether the application or a web server keeps the main thread from
            ending.
    """

    was_started: bool = False
    was_paused: bool = False
    has_configured_timezone: bool = True
    local_triggers: Sequence[Any] = ()
    looked_up_job_ids: Collection[str] = ()
    calls_shutdown: bool = True
    keeps_main_thread: bool = True


class SchedulerAdapter(SchedulerStatusProvider, Timetable, Protocol):
    """Watches one scheduler."""

    def __init__(self, scheduler: Any, dependencies: AdapterDependencies) -> None:
        """Prepare to watch a scheduler; it is not changed before `install`."""

    @staticmethod
    def find_scheduler(candidate: object) -> Any:
        """
        Return the scheduler that this adapter can watch if it gets `candidate`; None if it cannot.

        It is `candidate` itself, or the one that it wraps.
        """

    @staticmethod
    def describe_rejected_candidate(candidate: object) -> str | None:
        """Return advice for the caller of `instrument` about an object without a scheduler."""

    @staticmethod
    def check_imported(
        scheduler: Any, facts: SchedulerImportFacts, others: Sequence[Any]
    ) -> Sequence[Finding]:
        """
        Return the risks of a scheduler that was not started, without changing it.

        Args:
            scheduler: the scheduler.
            facts: what was seen of it.
            others: further schedulers of the application, that run jobs as well.
        """

    def check(self) -> Sequence[Finding]:
        """
        Return the risks of the scheduler and its jobs, as they are now.

        Raises what a job store raises that cannot be read.
        """

    def check_in_background(self, on_checked: Callable[[Sequence[Finding]], None]) -> None:
        """Call `on_checked` with what `check` returns, in another thread."""

    def install(self) -> None:
        """Begin to watch; if that fails, revert everything before the exception is raised."""

    def uninstall(self) -> None:
        """
        Revert everything, and call `ObserverGroup.stop`.

        Runs in flight are no longer recorded. But observers must be notified of the end of runs
        that they already observe, or spans would stay open: patches for that may stay until then.
        """

    def call_at_next_start(self, callback: Callable[[], None]) -> None:
        """Call back, once, when the scheduler is started the next time; also if uninstalled."""


class AutomaticInstrumentation(Protocol):
    """Calls back whenever a scheduler is started in this process, for zero code."""

    def install(self, on_scheduler_start: Callable[[Any], None]) -> None:
        """Call back with each scheduler that is running already, or starts later."""

    def uninstall(self) -> None:
        """Stop calling back."""


class StartPrevention(Protocol):
    """Keeps schedulers from starting, while an application is imported to be checked."""

    def __init__(self, on_start: Callable[[], None]) -> None:
        """Prepare; `on_start` is called when the application tries to start a scheduler."""

    def install(self) -> None:
        """Let no scheduler start that is created from now on."""

    def uninstall(self) -> None:
        """Let schedulers start again that are created from now on."""

    def created_schedulers(self) -> Sequence[tuple[Any, SchedulerImportFacts]]:
        """Return the schedulers that were created meanwhile, and what was seen of each."""
