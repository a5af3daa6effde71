"""
What an adapter has to do, and what it may call. There is one for each kind of scheduler.

An adapter watches one scheduler. It records jobs and runs with a `Recorder`, and passes runs on to
an `ObserverGroup` where their callables start and end, and when they are finished; it knows nothing
of Prometheus, OpenTelemetry or HTTP, and nothing outside of it knows the scheduler's library.

A run may be due in one process and run in another. Then each process records what happens in it:
`Recorder.run_submitted` where the run waits for its executor, and its end in that same process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from apscheduler_telemetry.core.alert_policy import AlertPolicy
from apscheduler_telemetry.core.labels import JobLabeller
from apscheduler_telemetry.core.model import Capture, SchedulerStatus
from apscheduler_telemetry.core.observers import ErrorReporter, ObserverGroup
from apscheduler_telemetry.core.recorder import Recorder


class OriginPropagator(Protocol):
    """Knows in which span a job is added, or a run triggered, for its runs to link to."""

    def current(self, reason: str) -> Any:
        """Return the current origin, None outside of a trace; `reason` becomes the link's."""

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
        observers: who follows single runs.
        error_reporter: counts failures of telemetry itself; none of them may reach the scheduler.
        labeller: finds the ``job_id`` label of a job.
        policy: what the alerts expect of a job.
        origins: knows where a job is added, for its runs to link to.
        context_store: keeps that across restarts; None if it is not to be kept.
        capture: which of a job's own data may be exported.
        attach_empty_context: makes no OpenTelemetry context current, and returns what was, or None.
        restore_context: takes that, unless it is None, and makes it current again.
        suppress_tracing: a context manager under which nothing is current and no span is made.
        on_scheduler_started: to be called when the scheduler is started.
        on_scheduler_stopped: to be called when the scheduler was shut down.
    """

    recorder: Recorder
    observers: ObserverGroup
    error_reporter: ErrorReporter
    labeller: JobLabeller
    policy: AlertPolicy
    origins: OriginPropagator
    context_store: MutableMapping[str, str] | None
    capture: Capture
    attach_empty_context: Callable[[], Any]
    restore_context: Callable[[Any], None]
    suppress_tracing: Callable[[], AbstractContextManager[None]]
    on_scheduler_started: Callable[[], None]
    on_scheduler_stopped: Callable[[], None]


class SchedulerAdapter(SchedulerStatus, Protocol):
    """Watches one scheduler."""

    def __init__(self, scheduler: Any, dependencies: AdapterDependencies) -> None:
        """Prepare to watch a scheduler; nothing of it is touched before `install`."""

    @staticmethod
    def accepts(scheduler: object) -> bool:
        """Tell whether an object is a scheduler that this adapter can watch."""

    @staticmethod
    def rejection_hint(scheduler: object) -> str | None:
        """Return advice for the caller of `instrument` about an object that is not accepted."""

    def install(self) -> None:
        """Begin to watch; if that fails, everything is put back before the exception is raised."""

    def uninstall(self) -> None:
        """
        Put everything back, and call `ObserverGroup.stop`.

        Runs in flight are no longer recorded. But observers have to hear of the end of those that
        they have begun with, or spans would stay open: what is needed for that may stay until then.
        """


class AutomaticInstrumentation(Protocol):
    """Calls back whenever a scheduler is started in this process, for zero code."""

    def install(self, on_scheduler_start: Callable[[Any], None]) -> None:
        """Call back with each scheduler that runs already, and that is started later."""

    def uninstall(self) -> None:
        """Stop calling back."""
