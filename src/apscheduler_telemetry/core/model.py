"""
The words that every layer shares: outcomes, runs and what observes them.

Nothing here knows APScheduler, Prometheus or OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Protocol

GENERATED_ID_LENGTH = 32
"""APScheduler names a job that has no id of its own with this many hex digits."""


class Outcome(str, Enum):
    """
    How a due run ended. Each due run ends in exactly one of these.

    The values are the ``outcome`` label of ``apscheduler_job_runs_total``.
    """

    SUCCESS = "success"
    ERROR = "error"
    MISSED = "missed"
    """Started too late: APScheduler dropped it (misfire)."""
    SKIPPED = "skipped"
    """Refused, as ``max_instances`` runs of the job were under way."""
    COALESCED = "coalesced"
    """Folded into a later run (``coalesce=True``)."""
    LOST = "lost"
    """Handed to an executor, or due to be, and never heard of again."""


class ErrorKind(str, Enum):
    """
    What APScheduler only logs: the ``kind`` label of ``apscheduler_scheduler_errors_total``.
    """

    JOBSTORE = "jobstore"
    RESTORE = "restore"
    EXECUTOR_LOOKUP = "executor_lookup"
    SUBMIT = "submit"
    LOOP = "loop"
    LISTENER = "listener"


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """
    What telemetry keeps of a job: texts and numbers, never the job or its arguments.

    Attributes:
        id: the job's own id, as the user knows it.
        label: the value of the ``job_id`` label; several jobs may share one.
        name: the job's description.
        func: ``module:qualname`` of the callable.
        trigger: the trigger in words.
        executor: alias of the executor.
        jobstore: alias of the job store.
        persistent: whether the job store outlives the process.
        grace: seconds of lateness that the user tolerates before an alert.
        max_duration: seconds that a run may take, None where nobody says.
        severity: of alerts on this job, empty for that of each rule.
        owner: who is to hear of it, empty where nobody says.
    """

    id: str
    label: str
    name: str
    func: str
    trigger: str
    executor: str
    jobstore: str
    persistent: bool
    grace: float
    max_duration: float | None = None
    severity: str = ""
    owner: str = ""


@dataclass(frozen=True, kw_only=True)
class RunError:
    """
    Why a run ended as ``error`` or ``lost``.

    Attributes:
        type: fully qualified type name; builtins without their module, as OpenTelemetry's
            ``error.type`` and ``exception.type`` have it.
        message: the text of the exception.
        traceback: the stack trace as Python prints it, empty unless it may be told.
    """

    type: str
    message: str
    traceback: str = field(default="", repr=False)

    @classmethod
    def of(cls, exception: BaseException, traceback: str = "") -> RunError:
        """Describe `exception`, surviving one whose ``__str__`` raises."""
        try:
            message = str(exception)
        except Exception:  # noqa: BLE001  # user code: anything may happen in __str__
            message = "<exception whose text cannot be had>"
        return cls(type=qualified_name(type(exception)), message=message, traceback=traceback)


@dataclass(frozen=True, kw_only=True)
class Capture:
    """
    What of a job's own data may leave the process; nothing, unless the application asks.

    Attributes:
        arguments: what its callable is called with.
        result: what it returns.
        stacktrace: of what it raises.
    """

    arguments: bool = False
    result: bool = False
    stacktrace: bool = False


@dataclass(frozen=True, kw_only=True)
class Liveness:
    """
    Whether a scheduler's loop really lives.

    Attributes:
        state: ``running``, ``paused`` or ``stopped``, as APScheduler believes.
        up: whether the loop is alive and not overdue.
        reasons: why not, as pairs of a code and a sentence; empty when nothing is wrong.
    """

    state: str
    up: bool
    reasons: Sequence[tuple[str, str]] = ()


class SpanIds(Protocol):
    """Where a span is found; OpenTelemetry's span contexts have both."""

    @property
    def trace_id(self) -> int: ...

    @property
    def span_id(self) -> int: ...


class RunView(Protocol):
    """
    What an observer sees of one due run.

    Attributes:
        job: the job it belongs to.
        label: the value of the ``job_id`` label under which it is counted.
        scheduler: the value of the ``scheduler`` label.
        scheduled: when it was due (timezone aware).
        start_delay: seconds from `scheduled` to the start in the callable; None before it.
        started: Unix seconds of the start in the callable; None before it.
        ended: Unix seconds of the end of the callable; None before it, or where it never ran.
        duration: seconds inside the callable; None before its end, or where it never ran.
        links: where the job was added and where the run was triggered by hand, as far as is known.
        arguments: what the callable is called with, in brief; None unless it may be told.
        result: what it returned, likewise.
        span: free for the span observer: its state between the calls below.
        exemplar: set by the span observer to the ids of the span where that was sampled, or left
            None.
    """

    job: JobInfo
    scheduled: datetime
    started: float | None
    duration: float | None
    links: Sequence[Any]
    arguments: str | None
    result: str | None
    span: Any
    exemplar: SpanIds | None

    @property
    def ended(self) -> float | None: ...

    @property
    def scheduler(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def start_delay(self) -> float | None: ...


class RunObserver(Protocol):
    """
    Something that follows single runs, as spans do.

    Each run ends in exactly one call of `leave` or `settle`. An error in an observer is counted,
    logged once and goes no further.

    Attributes:
        component: under what its errors are counted.
    """

    component: str

    def is_awake(self) -> bool | None:
        """
        Tell whether there is anything to do for it, from now on.

        Asked before each pass over due jobs, until that is so.

        Returns:
            None where there never will be.
        """

    def enter(self, run: RunView) -> None:
        """Called where the callable is about to run: same thread, same context, before it."""

    def leave(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:
        """Called after `enter`, in the same thread and context, when the callable has ended."""

    def carry(self, run: RunView) -> Mapping[str, str] | None:
        """
        Called when the run is about to be sent to another process.

        Returns:
            A W3C carrier for the other process, or None where there is nothing to carry.
        """

    def settle(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:
        """
        Called when a run ends that was not entered in this process.

        Either it ran in another process (``run.started`` and ``run.ended`` are set) or it never
        ran (missed, skipped, coalesced, lost).
        """


Clock = Callable[[], float]


def qualified_name(cls: type) -> str:
    """Return ``module.qualname`` of `cls`, without the module for builtins."""
    module = cls.__module__
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"
