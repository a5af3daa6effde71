"""
What the books say, as series: one table of metrics for every reader, whatever it feeds.

Names, units, labels and meanings are the contract of ``docs/metrics.md``; alert rules and
dashboards build on them.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeVar

from apscheduler_telemetry.core.labels import text
from apscheduler_telemetry.core.model import Liveness
from apscheduler_telemetry.core.observers import Guard, renew_lock_after_fork
from apscheduler_telemetry.core.recorder import Account, Histogram, Ledger
from apscheduler_telemetry.errors import DuplicateNameError

_T = TypeVar("_T")

STATES = ("running", "paused", "stopped")


class Source(Protocol):
    """
    One instrumented scheduler, as its readers see it.

    Attributes:
        name: the value of the ``scheduler`` label.
        ledger: its books.
        guard: counts telemetry's own failures.
        started_at: Unix seconds of its start, None before it.
        last_wakeup: Unix seconds of the end of the latest pass over due jobs, None before it.
    """

    name: str
    ledger: Ledger
    guard: Guard

    @property
    def started_at(self) -> float | None:
        """See above."""

    @property
    def last_wakeup(self) -> float | None:
        """See above."""

    def liveness(self) -> Liveness:
        """Tell whether the loop really lives."""

    def facts(self) -> Mapping[str, str]:
        """Return the labels of ``apscheduler_scheduler_info``, without ``scheduler``."""


class Kind(Enum):
    """What becomes of values: over time, and when series are added up."""

    COUNTER = auto()
    """Only grows."""
    GAUGE = auto()
    """Comes and goes, and means nothing in sum."""
    LOAD = auto()
    """Comes and goes, and may be added up: a gauge for Prometheus."""
    HISTOGRAM = auto()


@dataclass(frozen=True, eq=False)
class Family:
    """
    The series of one metric.

    Attributes:
        name: OpenTelemetry's; for Prometheus, see `prometheus_name`.
        kind: how its values behave.
        unit: as UCUM has it: ``s``, or in braces what is counted, which is no unit.
        about: what it tells, in a sentence.
        labels: names of its labels.
    """

    name: str
    kind: Kind
    unit: str
    about: str
    labels: tuple[str, ...]

    @property
    def prometheus_name(self) -> str:
        """
        The name that Prometheus' translation of OTLP gives it, a counter's ``_total`` left out.

        https://prometheus.io/docs/guides/opentelemetry/: what is no letter or digit is an
        underscore, and a unit is the end of the name.
        """
        return self.name.replace(".", "_") + ("_seconds" if self.unit == "s" else "")


_JOB = ("scheduler", "job_id")
_SCHEDULER = ("scheduler",)
_EXECUTOR = ("scheduler", "executor")
_WORDS = ("name", "func", "trigger", "executor", "jobstore", "persistent")
_FACTS = ("type", "version", "hostname", "pid", "timezone", "singleton")

_families: list[Family] = []


def _family(name: str, kind: Kind, unit: str, labels: tuple[str, ...], about: str) -> Family:
    family = Family(f"apscheduler.{name}", kind, unit, about, labels)
    _families.append(family)
    return family


RUNS = _family("job.runs", Kind.COUNTER, "{run}", (*_JOB, "outcome"), "Due runs by how they ended.")
EXCEPTIONS = _family(
    "job.exceptions", Kind.COUNTER, "{run}", (*_JOB, "exception"), "Runs that raised, by type."
)
DURATIONS = _family(
    "job.run.duration",
    Kind.HISTOGRAM,
    "s",
    _JOB,
    "Time inside the callable, of runs that succeeded and of runs that failed.",
)
DELAYS = _family("job.start_delay", Kind.HISTOGRAM, "s", _JOB, "Actual start minus scheduled time.")
NEXT_RUN = _family(
    "job.next_run.timestamp",
    Kind.GAUGE,
    "s",
    _JOB,
    "When the next run is promised; 0 when nothing is.",
)
LAST_RUN = _family(
    "job.last_run.timestamp",
    Kind.GAUGE,
    "s",
    _JOB,
    "Scheduled time of the latest run that started.",
)
LAST_SUCCESS = _family(
    "job.last_success.timestamp",
    Kind.GAUGE,
    "s",
    _JOB,
    "When the latest successful run ended.",
)
LAST_FAILURE = _family(
    "job.last_failure.timestamp",
    Kind.GAUGE,
    "s",
    _JOB,
    "When the latest failed or lost run ended.",
)
LAST_DURATION = _family(
    "job.last_run.duration",
    Kind.GAUGE,
    "s",
    _JOB,
    "Time inside the callable of the run that ended last.",
)
CONSECUTIVE_FAILURES = _family(
    "job.consecutive_failures",
    Kind.GAUGE,
    "{run}",
    _JOB,
    "Errors and losses since the last success.",
)
RUNNING = _family("job.running", Kind.LOAD, "{run}", _JOB, "Runs inside the callable now.")
RUNNING_SINCE = _family(
    "job.running_since.timestamp",
    Kind.GAUGE,
    "s",
    _JOB,
    "Start of the oldest run that is inside the callable; 0 when none is.",
)
WITHDRAWN = _family(
    "job.withdrawn_run.timestamp",
    Kind.GAUGE,
    "s",
    _JOB,
    "The latest promised run that was taken back on purpose.",
)
SHORTEST = _family(
    "job.shortest_interval",
    Kind.GAUGE,
    "s",
    _JOB,
    "Shortest gap between the next ten fire times.",
)
LONGEST = _family(
    "job.longest_interval",
    Kind.GAUGE,
    "s",
    _JOB,
    "Longest gap between the next ten fire times.",
)
GRACE = _family("job.grace", Kind.GAUGE, "s", _JOB, "Lateness that is tolerated before an alert.")
MAX_DURATION = _family(
    "job.max_duration",
    Kind.GAUGE,
    "s",
    _JOB,
    "Time that a run may take before it counts as stuck.",
)
ALERT_INFO = _family(
    "job.alert_info",
    Kind.GAUGE,
    "{job}",
    (*_JOB, "severity", "owner"),
    "Severity and owner of alerts on the job; always 1.",
)
JOB_INFO = _family("job.info", Kind.GAUGE, "{job}", (*_JOB, *_WORDS), "What the job is; always 1.")
UP = _family(
    "scheduler.up",
    Kind.GAUGE,
    "{scheduler}",
    _SCHEDULER,
    "1 if the loop lives in this process and is not overdue.",
)
STATE = _family(
    "scheduler.state",
    Kind.GAUGE,
    "{scheduler}",
    (*_SCHEDULER, "state"),
    "1 for the state that APScheduler believes itself in.",
)
STARTED_AT = _family(
    "scheduler.start.timestamp",
    Kind.GAUGE,
    "s",
    _SCHEDULER,
    "When the scheduler was started, or instrumented if that was later.",
)
LAST_WAKEUP = _family(
    "scheduler.last_wakeup.timestamp",
    Kind.GAUGE,
    "s",
    _SCHEDULER,
    "End of the latest pass over due jobs.",
)
JOBS = _family("scheduler.jobs", Kind.LOAD, "{job}", (*_SCHEDULER, "jobstore"), "Known jobs.")
LAST_READ = _family(
    "jobstore.last_read.timestamp",
    Kind.GAUGE,
    "s",
    (*_SCHEDULER, "jobstore"),
    "As of when the jobs in the store are known.",
)
READ_FAILURES = _family(
    "jobstore.read_failures",
    Kind.COUNTER,
    "{reading}",
    (*_SCHEDULER, "jobstore"),
    "Readings of the store for telemetry that failed.",
)
ERRORS = _family(
    "scheduler.errors",
    Kind.COUNTER,
    "{error}",
    (*_SCHEDULER, "kind"),
    "What APScheduler only logs, by kind.",
)
WORKERS = _family(
    "executor.workers",
    Kind.GAUGE,
    "{worker}",
    _EXECUTOR,
    "Runs that the executor can work on at once; +Inf where nothing limits it.",
)
EXECUTOR_RUNNING = _family(
    "executor.running", Kind.LOAD, "{run}", _EXECUTOR, "Runs inside their callables."
)
EXECUTOR_QUEUED = _family(
    "executor.queued", Kind.LOAD, "{run}", _EXECUTOR, "Runs that wait for a worker."
)
SCHEDULER_INFO = _family(
    "scheduler.info",
    Kind.GAUGE,
    "{scheduler}",
    (*_SCHEDULER, *_FACTS),
    "What the scheduler is; always 1.",
)
TELEMETRY_ERRORS = _family(
    "telemetry.errors",
    Kind.COUNTER,
    "{error}",
    (*_SCHEDULER, "component"),
    "Failures of the telemetry itself, by component.",
)

FAMILIES = tuple(_families)
"""All of them, in the order in which they are shown."""
JOB_FAMILIES = tuple(family for family in FAMILIES if "job_id" in family.labels)
"""Those about single jobs."""

Sample = tuple[Family, tuple[str, ...], "float | Histogram"]
"""A family, the values of its labels, and the value: a `Histogram` if that is its kind."""


def read(source: Source, component: str) -> Iterator[Sample]:
    """
    Yield what the books of a scheduler say now.

    Args:
        source: the scheduler.
        component: who reads. What fails is left out, and counted as a failure of it.
    """
    yield from of_scheduler(source, component)
    for account in what_can_be_had(source, component, _accounts(source)):
        yield from what_can_be_had(source, component, of_job(source.name, account))
    yield from of_telemetry(source)


def of_scheduler(source: Source, component: str) -> Iterator[Sample]:
    """Yield what is not about single jobs; see `read`."""
    yield from what_can_be_had(source, component, _of_scheduler(source))


def of_telemetry(source: Source) -> Iterator[Sample]:
    """Yield what failed in telemetry itself; to be asked last, as reading may fail, too."""
    for part, count in sorted(source.guard.counts().items()):
        yield TELEMETRY_ERRORS, (source.name, part), count


def what_can_be_had(source: Source, component: str, items: Iterable[_T]) -> Iterator[_T]:
    """Yield `items` up to what fails, which is counted as a failure of `component`."""
    try:
        yield from items
    except Exception:  # noqa: BLE001  # readers show what can be shown
        source.guard.failed(component)


def _accounts(source: Source) -> Iterator[Account]:
    yield from sorted(source.ledger.accounts(), key=lambda account: account.label)


def _of_scheduler(source: Source) -> Iterator[Sample]:
    name, ledger = source.name, source.ledger
    liveness = source.liveness()
    yield UP, (name,), int(liveness.up)
    for state in STATES:
        yield STATE, (name, state), int(state == liveness.state)
    yield from _known((name,), (STARTED_AT, source.started_at), (LAST_WAKEUP, source.last_wakeup))
    for alias, store in ledger.stores().items():
        labels = (name, text(alias))
        yield JOBS, labels, store.jobs
        yield from _known(labels, (LAST_READ, store.last_read))
        yield READ_FAILURES, labels, store.failures
    for kind, count in ledger.errors().items():
        yield ERRORS, (name, kind.value), count
    for alias, (workers, running, queued) in ledger.executors().items():
        labels = (name, text(alias))
        yield WORKERS, labels, workers
        yield EXECUTOR_RUNNING, labels, running
        yield EXECUTOR_QUEUED, labels, queued
    facts = source.facts()
    yield SCHEDULER_INFO, (name, *(text(facts[label]) for label in _FACTS)), 1


def of_job(scheduler: str, account: Account) -> Iterator[Sample]:
    """Yield what the account of a job says."""
    labels = (scheduler, account.label)
    for outcome, count in account.outcomes.items():
        yield RUNS, (*labels, outcome.value), count
    for exception, count in sorted(account.exceptions.items()):
        yield EXCEPTIONS, (*labels, text(exception)), count
    yield DURATIONS, labels, account.durations
    yield DELAYS, labels, account.delays
    info = account.info
    shortest, longest = account.intervals or (None, None)
    yield from _known(
        labels,
        (NEXT_RUN, account.next_run),
        (LAST_RUN, account.last_run),
        (LAST_SUCCESS, account.last_success),
        (LAST_FAILURE, account.last_failure),
        (LAST_DURATION, account.last_duration),
        (CONSECUTIVE_FAILURES, account.consecutive_failures),
        (RUNNING, account.running),
        (RUNNING_SINCE, account.running_since),
        (WITHDRAWN, account.withdrawn),
        (SHORTEST, shortest),
        (LONGEST, longest),
        (GRACE, info.grace),
        (MAX_DURATION, info.max_duration),
    )
    if info.severity or info.owner:
        yield ALERT_INFO, (*labels, info.severity, info.owner), 1
    persistent = "true" if info.persistent else "false"
    words = (info.name, info.func, info.trigger, info.executor, info.jobstore, persistent)
    yield JOB_INFO, (*labels, *words), 1


def _known(labels: tuple[str, ...], *values: tuple[Family, float | None]) -> Iterator[Sample]:
    """Yield what is known; what is not known yet is absent, and not 0."""
    for family, value in values:
        if value is not None:
            yield family, labels, value


class Reader:
    """
    What shows several schedulers at once, each under a name of its own.

    Weakly, as whoever forgets a scheduler need not uninstrument it.

    Args:
        where: in a word for messages, what they share.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._sources: weakref.WeakValueDictionary[str, Source] = weakref.WeakValueDictionary()
        self._lock = threading.RLock()
        renew_lock_after_fork(self)

    def check_free(self, name: str) -> None:
        """
        Check that no scheduler of this name is shown.

        A forked child has a copy of what its parent shows. That is no scheduler of its own, and
        gives way.

        Raises:
            DuplicateNameError: there is one.
        """
        other = self._sources.get(name)
        if other is not None and "forked" not in dict(other.liveness().reasons):
            msg = (
                f"a scheduler named {name!r} is instrumented on this {self._where} already, and "
                "their series could not be told apart: pass instrument(..., name=...) with a name "
                f"of its own for each scheduler, or another {self._where}, or uninstrument() the "
                "first"
            )
            raise DuplicateNameError(msg)

    def add(self, source: Source) -> None:
        """Show another scheduler, whose name is free."""
        with self._lock:
            self._sources[source.name] = source

    def remove(self, source: Source) -> None:
        """Show a scheduler no more."""
        with self._lock:
            if self._sources.get(source.name) is source:
                del self._sources[source.name]

    def sources(self) -> list[Source]:
        """Return the schedulers by name."""
        with self._lock:
            return [source for _, source in sorted(self._sources.items())]
