"""
Plain data that every layer shares: outcomes, jobs, runs and errors.

This module does not depend on APScheduler, Prometheus or OpenTelemetry.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import time
from enum import Enum
from typing import NamedTuple, Protocol

from apscheduler_telemetry.core.current_run import REPORTED_FAILURE_ERROR_TYPE
from apscheduler_telemetry.core.interruptions import raise_if_interruption

GENERATED_ID_LENGTH = 32
"""APScheduler names a job that has no id of its own with this many hex digits."""

MAX_MESSAGE_LENGTH = 4_096
"""
Characters of an exception's message.

A database driver that quotes its statement produces messages of megabytes. They would be kept until
the next scrape, and a collector would reject a whole batch of spans because of one.
"""

MAX_NAME_LENGTH = 200
"""Characters of a name, such as that of a type, and of a label value."""

Clock = Callable[[], float]
"""Returns Unix seconds."""


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
    """Rejected, because ``max_instances`` runs of the job were in flight."""
    COALESCED = "coalesced"
    """Merged into a later run (``coalesce=True``)."""
    LOST = "lost"
    """Lost by its executor or with its process, or could not be submitted to an executor."""

    __hash__ = str.__hash__  # that of Enum is Python code, which would slow down every run


# Before Python 3.12 a member of an enumeration is looked up by Python code, in every run.
SUCCESS, ERROR, MISSED, LOST = Outcome.SUCCESS, Outcome.ERROR, Outcome.MISSED, Outcome.LOST
FAILED_OUTCOMES = frozenset({ERROR, LOST})


INTERRUPTED_ERROR_TYPE = "interrupted"
"""
What stands for the type of the exception of a run that was lost because its process ended.

It is the value of ``exception`` in ``apscheduler_job_exceptions_total``, and of ``error.type``.
"""


class SchedulerErrorKind(str, Enum):
    """
    Errors other than exceptions that jobs raise.

    The values are the ``kind`` label of ``apscheduler_scheduler_errors_total``.
    """

    JOBSTORE = "jobstore"
    RESTORE = "restore"
    EXECUTOR_LOOKUP = "executor_lookup"
    SUBMIT = "submit"
    LOOP = "loop"
    LISTENER = "listener"
    NOT_AWAITED = "not_awaited"
    """A job's callable only returned a coroutine or a generator, whose code nothing runs."""


class RemovalReason(Enum):
    """Why a job was removed, which decides what happens to its next run."""

    CANCELLED = "cancelled"
    """By the application: the next run is cancelled."""
    FINISHED = "finished"
    """It has no next run: its schedule has ended, or its remaining runs are already overdue."""
    FAILED = "failed"
    """By APScheduler because of an error: the next run is still expected, and will be missed."""


class JobExpectations(NamedTuple):
    """
    What is expected of a job besides its grace, for the alert rules; `Expectations` explains it.

    Attributes:
        max_duration: seconds; None for no limit, as in the others.
        min_duration: seconds.
        deadline: seconds after the run was due, or a time of day in its time zone.
        max_failures: runs in a row.
        min_recorded: the name of each quantity, and the least of it.
        severity: of alerts on the job; empty for the severity of each rule.
        owner: who is responsible for the job, as a label value; empty if none is named.
        runbook_url: the application's own; empty if there is none.
    """

    max_duration: float | None = None
    min_duration: float | None = None
    deadline: float | time | None = None
    max_failures: int | None = None
    min_recorded: tuple[tuple[str, float], ...] = ()
    severity: str = ""
    owner: str = ""
    runbook_url: str = ""


NOTHING_EXPECTED = JobExpectations()
"""Of most jobs."""


class JobInfo(NamedTuple):
    """
    The description of a job: texts and numbers, never the job itself or its arguments.

    Attributes:
        id: the id of the job in APScheduler.
        label: the value of the ``job_id`` label; several jobs may share one.
        name: the job's description.
        func: ``module:qualname`` of the callable.
        trigger: the trigger in words.
        executor: alias of the executor.
        jobstore: alias of the job store.
        persistent: whether the job store outlives the process.
        grace: how many seconds late a run may start before an alert fires.
        expectations: what else the application expects of its runs.
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
    expectations: JobExpectations = NOTHING_EXPECTED


@dataclass(frozen=True, kw_only=True)
class ErrorDescription:
    """
    Why a run ended as ``error`` or ``lost``.

    Attributes:
        type: fully qualified type name; builtins without their module, as OpenTelemetry's
            ``error.type`` and ``exception.type`` have it. `REPORTED_FAILURE_ERROR_TYPE` if the
            callable has reported the failure, and `INTERRUPTED_ERROR_TYPE` if the process ended.
        message: the text of the exception, or the reason; None if it may not be exported.
        traceback: the stack trace as Python prints it; empty unless it may be exported.
    """

    type: str
    message: str | None
    traceback: str = field(default="", repr=False)

    @property
    def was_raised(self) -> bool:
        """Whether there was an exception."""
        return self.type not in {REPORTED_FAILURE_ERROR_TYPE, INTERRUPTED_ERROR_TYPE}

    @classmethod
    def from_exception(cls, exception: BaseException, traceback: str = "") -> ErrorDescription:
        """Describe `exception`, surviving one whose ``__str__`` raises, be it SystemExit."""
        return cls(
            type=exception_type_name(exception),
            message=exception_message(exception),
            traceback=traceback,
        )


@dataclass(frozen=True, kw_only=True)
class CaptureOptions:
    """
    Which data of a job may leave the process; by default only messages of exceptions.

    Attributes:
        captures_arguments: the arguments of its callable.
        captures_result: its return value.
        captures_stacktrace: the stack trace of its exception.
        captures_message: the message of its exception, and of exceptions that this package logs.
        redact: returns the part of a message that may leave the process; None for all of it.
    """

    captures_arguments: bool = False
    captures_result: bool = False
    captures_stacktrace: bool = False
    captures_message: bool = True
    redact: Callable[[str], str] | None = None


@dataclass(frozen=True, kw_only=True)
class Liveness:
    """
    Whether a scheduler's loop is alive.

    Attributes:
        scheduler_state: ``running``, ``paused`` or ``stopped``, as APScheduler reports.
        up: whether the loop is alive and not overdue.
        reasons: why not, as pairs of a code and a sentence; empty if there is no problem.
        has_loop_ended: whether the loop, its thread or its event loop has ended, with or without
            shutdown().
    """

    scheduler_state: str
    up: bool
    reasons: Sequence[tuple[str, str]] = ()
    has_loop_ended: bool = False

    @property
    def is_forked_copy(self) -> bool:
        """Whether this process has only a copy of a scheduler, made by a fork."""
        return any(code == "forked" for code, _ in self.reasons)

    @property
    def may_run_jobs(self) -> bool:
        """Whether the scheduler may run jobs in this process without being started again."""
        return not (self.scheduler_state == "stopped" or self.has_loop_ended or self.is_forked_copy)


class SpanIds(Protocol):
    """Identifies a span; OpenTelemetry's span contexts have both."""

    @property
    def trace_id(self) -> int: ...

    @property
    def span_id(self) -> int: ...


class SchedulerStatusProvider(Protocol):
    """The state of a scheduler as a whole, which its adapter provides to exporters."""

    @property
    def started_at(self) -> float | None:
        """Unix seconds of its start; None before it."""

    @property
    def last_pass_ended_at(self) -> float | None:
        """Unix seconds of the end of the latest pass over due jobs; None before it."""

    def liveness(self) -> Liveness:
        """Return whether the scheduler's loop is alive, and the reasons if it is not."""

    def scheduler_info(self) -> Mapping[str, str]:
        """Return the description of the scheduler: ``type``, ``version`` and ``timezone``."""


def exception_message(exception: BaseException, limit: int = MAX_MESSAGE_LENGTH) -> str:
    """Return the text of an exception, surviving one whose ``__str__`` raises, be it SystemExit."""
    try:
        return str(exception)[:limit]
    except BaseException as error:  # noqa: BLE001  # as the standard library's traceback does
        raise_if_interruption(error)
        return "<exception whose __str__ failed>"


def exception_type_name(exception: BaseException) -> str:
    """Return the qualified name of the type of an exception, surviving one that hides it."""
    try:
        return qualified_class_name(type(exception))
    except BaseException as error:  # noqa: BLE001  # a metaclass is user code, too
        raise_if_interruption(error)
        return "<exception whose type has no name>"


def qualified_class_name(cls: type) -> str:
    """Return ``module.qualname`` of `cls`, shortened, and without the module for builtins."""
    module = cls.__module__
    return shorten_name(
        cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"
    )


def shorten_name(name: str) -> str:
    """
    Return a name of at most `MAX_NAME_LENGTH` characters.

    If it is too long, it is truncated, and a hash of the whole keeps it distinct from similar ones.
    """
    if len(name) <= MAX_NAME_LENGTH:
        return name
    digest = hashlib.sha256(name.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"{name[: MAX_NAME_LENGTH - 10]}..{digest}"
