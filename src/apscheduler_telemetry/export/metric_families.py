"""
The table of metrics, and the samples of each: one for all exporters.

Names, units, labels and meanings are the contract of ``docs/metrics.md``; alert rules and
dashboards build on them.
"""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from operator import attrgetter
from typing import Protocol, TypeVar

from apscheduler_telemetry.core.expectation_resolver import MIN_DEFAULT_GRACE_SECONDS
from apscheduler_telemetry.core.labels import label_value
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children, synchronized
from apscheduler_telemetry.core.model import (
    NOTHING_EXPECTED,
    SUCCESS,
    SchedulerStatusProvider,
)
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobSnapshot
from apscheduler_telemetry.core.stats import Histogram
from apscheduler_telemetry.errors import DuplicateNameError

_T = TypeVar("_T")

SCHEDULER_STATES = ("running", "paused", "stopped")


class InstrumentedScheduler(SchedulerStatusProvider, Protocol):
    """
    One instrumented scheduler, as exporters see it.

    Attributes:
        name: the value of the ``scheduler`` label.
        recorder: its metrics state.
        error_reporter: counts the failures of telemetry itself.
    """

    name: str
    recorder: Recorder
    error_reporter: ErrorReporter


class MetricKind(Enum):
    """How values behave over time, and whether the sum of several series means anything."""

    COUNTER = auto()
    """Only grows."""
    GAUGE = auto()
    """Rises and falls; the sum means nothing."""
    UP_DOWN_COUNTER = auto()
    """Rises and falls, and may be added up; a gauge for Prometheus."""
    HISTOGRAM = auto()


@dataclass(frozen=True, eq=False)
class MetricFamily:
    """
    The series of one metric.

    Attributes:
        name: the name in OpenTelemetry; see `prometheus_family_name`.
        kind: how its values behave.
        unit: by UCUM: ``s``, or in braces what is counted, which is no unit.
        description: one sentence, the HELP text in Prometheus.
        labels: names of its labels.
    """

    name: str
    kind: MetricKind
    unit: str
    description: str
    labels: tuple[str, ...]

    @property
    def prometheus_family_name(self) -> str:
        """
        The name into which Prometheus translates `name`, without ``_total`` for counters.

        By https://prometheus.io/docs/guides/opentelemetry/, underscores replace all that is not a
        letter or digit, and the unit becomes the suffix.
        """
        return self.name.replace(".", "_") + ("_seconds" if self.unit == "s" else "")


_JOB_LABELS = ("scheduler", "job_id")
_SCHEDULER_LABELS = ("scheduler",)
_EXECUTOR_LABELS = ("scheduler", "executor")
_JOB_INFO_LABELS = ("name", "func", "trigger", "executor", "jobstore", "persistent")
_SCHEDULER_INFO_LABELS = ("type", "version", "hostname", "pid", "timezone", "singleton")

_families_in_order: list[MetricFamily] = []


def _add_family(
    name: str, kind: MetricKind, unit: str, labels: tuple[str, ...], description: str
) -> MetricFamily:
    """Create a family, and append it to those that are exposed."""
    family = MetricFamily(f"apscheduler.{name}", kind, unit, description, labels)
    _families_in_order.append(family)
    return family


RUNS = _add_family(
    "job.runs", MetricKind.COUNTER, "{run}", (*_JOB_LABELS, "outcome"), "Due runs by outcome."
)
EXCEPTIONS = _add_family(
    "job.exceptions",
    MetricKind.COUNTER,
    "{run}",
    (*_JOB_LABELS, "exception"),
    "Runs that raised an exception, by its type.",
)
RECORDED = _add_family(
    "job.recorded",
    MetricKind.COUNTER,
    "{quantity}",
    (*_JOB_LABELS, "quantity"),
    "Quantities that runs recorded by current_run().record().",
)
DURATIONS = _add_family(
    "job.run.duration",
    MetricKind.HISTOGRAM,
    "s",
    _JOB_LABELS,
    "Duration of runs that succeeded or failed.",
)
DELAYS = _add_family(
    "job.start_delay", MetricKind.HISTOGRAM, "s", _JOB_LABELS, "Actual start minus scheduled time."
)
NEXT_RUN = _add_family(
    "job.next_run.timestamp",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "Scheduled time of the next run; 0 if there is none.",
)
LAST_RUN_DUE = _add_family(
    "job.last_run.timestamp",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "Scheduled time of the latest run that started.",
)
LAST_SUCCESS = _add_family(
    "job.last_success.timestamp",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "When the latest successful run ended.",
)
LAST_FAILURE = _add_family(
    "job.last_failure.timestamp",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "When the latest failed or lost run ended.",
)
LAST_DURATION = _add_family(
    "job.last_run.duration",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "Duration of the run that ended last.",
)
LAST_RECORDED = _add_family(
    "job.last_recorded",
    MetricKind.GAUGE,
    "{quantity}",
    (*_JOB_LABELS, "quantity"),
    "Quantities that the latest successful run recorded.",
)
CONSECUTIVE_FAILURES = _add_family(
    "job.consecutive_failures",
    MetricKind.GAUGE,
    "{run}",
    _JOB_LABELS,
    "Failed and lost runs since the last success.",
)
RUNNING = _add_family(
    "job.running",
    MetricKind.UP_DOWN_COUNTER,
    "{run}",
    _JOB_LABELS,
    "Runs that have started and have no outcome yet.",
)
RUNNING_SINCE = _add_family(
    "job.running_since.timestamp",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "Start of the oldest run whose callable has not ended; 0 if there is none.",
)
CANCELLED_RUN_DUE = _add_family(
    "job.withdrawn_run.timestamp",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "Scheduled time of the latest cancelled run.",
)
SHORTEST_UPCOMING_INTERVAL = _add_family(
    "job.shortest_interval",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "Shortest time between two consecutive fire times of the next ten.",
)
LONGEST_UPCOMING_INTERVAL = _add_family(
    "job.longest_interval",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "Longest time between two consecutive fire times of the next ten.",
)
GRACE = _add_family(
    "job.grace",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "How late a run may start before an alert fires.",
)
MAX_DURATION = _add_family(
    "job.max_duration",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "How long a run may take before it counts as stuck.",
)
MIN_DURATION = _add_family(
    "job.min_duration",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "How long a successful run takes at least.",
)
DEADLINE = _add_family(
    "job.deadline.timestamp",
    MetricKind.GAUGE,
    "s",
    _JOB_LABELS,
    "When the next run has to have succeeded.",
)
MAX_FAILURES = _add_family(
    "job.max_failures",
    MetricKind.GAUGE,
    "{run}",
    _JOB_LABELS,
    "How many runs in a row fail before the job counts as failing.",
)
MIN_RECORDED = _add_family(
    "job.min_recorded",
    MetricKind.GAUGE,
    "{quantity}",
    (*_JOB_LABELS, "quantity"),
    "The least that a successful run records of the quantity.",
)
ALERT_INFO = _add_family(
    "job.alert_info",
    MetricKind.GAUGE,
    "{job}",
    (*_JOB_LABELS, "severity", "owner", "runbook_url"),
    "Severity, owner and runbook of alerts on the job; always 1.",
)
JOB_INFO = _add_family(
    "job.info",
    MetricKind.GAUGE,
    "{job}",
    (*_JOB_LABELS, *_JOB_INFO_LABELS),
    "Description of the job; always 1.",
)
UP = _add_family(
    "scheduler.up",
    MetricKind.GAUGE,
    "{scheduler}",
    _SCHEDULER_LABELS,
    "1 if the scheduler loop is alive in this process and not overdue.",
)
STATE = _add_family(
    "scheduler.state",
    MetricKind.GAUGE,
    "{scheduler}",
    (*_SCHEDULER_LABELS, "state"),
    "1 for the state that APScheduler reports.",
)
STARTED_AT = _add_family(
    "scheduler.start.timestamp",
    MetricKind.GAUGE,
    "s",
    _SCHEDULER_LABELS,
    "When the scheduler was started, or instrumented if that was later.",
)
LAST_PASS_END = _add_family(
    "scheduler.last_wakeup.timestamp",
    MetricKind.GAUGE,
    "s",
    _SCHEDULER_LABELS,
    "End of the latest pass over due jobs.",
)
JOBS = _add_family(
    "scheduler.jobs",
    MetricKind.UP_DOWN_COUNTER,
    "{job}",
    (*_SCHEDULER_LABELS, "jobstore"),
    "Known jobs.",
)
JOBSTORE_LAST_READ = _add_family(
    "jobstore.last_read.timestamp",
    MetricKind.GAUGE,
    "s",
    (*_SCHEDULER_LABELS, "jobstore"),
    "Start of the latest successful read of the store; for a store in memory, the scrape.",
)
JOBSTORE_READ_FAILURES = _add_family(
    "jobstore.read_failures",
    MetricKind.COUNTER,
    "{reading}",
    (*_SCHEDULER_LABELS, "jobstore"),
    "Reads of the store by the telemetry that failed.",
)
SCHEDULER_ERRORS = _add_family(
    "scheduler.errors",
    MetricKind.COUNTER,
    "{error}",
    (*_SCHEDULER_LABELS, "kind"),
    "Errors other than exceptions that jobs raise, by kind.",
)
WORKERS = _add_family(
    "executor.workers",
    MetricKind.GAUGE,
    "{worker}",
    _EXECUTOR_LABELS,
    "Runs that the executor can run at the same time; +Inf if it has no limit.",
)
EXECUTOR_RUNNING = _add_family(
    "executor.running",
    MetricKind.UP_DOWN_COUNTER,
    "{run}",
    _EXECUTOR_LABELS,
    "Runs that have started and have no outcome yet.",
)
EXECUTOR_QUEUED = _add_family(
    "executor.queued",
    MetricKind.UP_DOWN_COUNTER,
    "{run}",
    _EXECUTOR_LABELS,
    "Runs that wait for a worker.",
)
SCHEDULER_INFO = _add_family(
    "scheduler.info",
    MetricKind.GAUGE,
    "{scheduler}",
    (*_SCHEDULER_LABELS, *_SCHEDULER_INFO_LABELS),
    "Description of the scheduler; always 1.",
)
TELEMETRY_ERRORS = _add_family(
    "telemetry.errors",
    MetricKind.COUNTER,
    "{error}",
    (*_SCHEDULER_LABELS, "component"),
    "Errors of the telemetry itself, by component.",
)

FAMILIES = tuple(_families_in_order)
"""All families, in the order of the exposition."""
JOB_FAMILIES = tuple(family for family in FAMILIES if "job_id" in family.labels)
"""The families about single jobs."""

VALUES_OMITTED_FROM_SCRAPES: Mapping[MetricFamily, float] = {
    RUNS: 0,
    CONSECUTIVE_FAILURES: 0,
    RUNNING: 0,
    RUNNING_SINCE: 0,
    GRACE: MIN_DEFAULT_GRACE_SECONDS,
}
"""What a scrape leaves out; see `scraped_job_samples`."""

Sample = tuple[MetricFamily, tuple[str, ...], "float | Histogram"]
"""A family, the values of its labels, and the value: a `Histogram` if that is its kind."""


def all_samples(
    scheduler: InstrumentedScheduler, component: str, *, is_scrape: bool = False
) -> Iterator[Sample]:
    """
    Yield all samples of a scheduler.

    Args:
        scheduler: the scheduler.
        component: of which failures are reported; samples that fail are left out.
        is_scrape: leave out what `scraped_job_samples` leaves out.
    """
    samples_of = scraped_job_samples if is_scrape else job_samples
    yield from scheduler_samples(scheduler, component)
    for job in sorted_job_snapshots(scheduler, component):
        yield from yield_until_error(
            scheduler.error_reporter, component, samples_of(scheduler.name, job)
        )
    yield from telemetry_samples(scheduler)


def scheduler_samples(scheduler: InstrumentedScheduler, component: str) -> Iterator[Sample]:
    """Yield the samples that are not about single jobs; see `all_samples`."""
    yield from yield_until_error(
        scheduler.error_reporter, component, _read_scheduler_samples(scheduler)
    )


def job_samples(scheduler: str, job: JobSnapshot) -> Iterator[Sample]:
    """
    Yield the samples of one ``job_id`` label.

    Args:
        scheduler: the value of the ``scheduler`` label.
        job: the state of the label.
    """
    labels = (scheduler, job.label)
    stats, info = job.stats, job.info
    for outcome, count in stats.outcomes.items():
        yield RUNS, (*labels, outcome.value), count
    for exception, count in sorted(stats.exceptions.items()):
        yield EXCEPTIONS, (*labels, label_value(exception)), count
    for quantity, amount in sorted(stats.recorded.items()):
        yield RECORDED, (*labels, quantity), amount
    yield DURATIONS, labels, stats.durations
    yield DELAYS, labels, stats.delays
    shortest, longest = job.interval_range or (None, None)
    yield from _samples_unless_none(
        labels,
        (NEXT_RUN, job.next_run),
        (LAST_RUN_DUE, stats.last_run_due_at),
        (LAST_SUCCESS, stats.last_success_at),
        (LAST_FAILURE, stats.last_failure_at),
        (LAST_DURATION, stats.last_duration),
        (CONSECUTIVE_FAILURES, stats.consecutive_failures),
        (RUNNING, job.in_flight_summary.running),
        (RUNNING_SINCE, job.in_flight_summary.oldest_start_at),
        (CANCELLED_RUN_DUE, job.cancelled_run_due_at),
        (SHORTEST_UPCOMING_INTERVAL, shortest),
        (LONGEST_UPCOMING_INTERVAL, longest),
        (GRACE, None if job.next_run is None else info.grace),
    )
    for quantity, amount in sorted(stats.last_recorded.items()):
        yield LAST_RECORDED, (*labels, quantity), amount
    if info.expectations is not NOTHING_EXPECTED:
        yield from _expectation_samples(labels, job)
    if job.next_run is None:
        return  # nothing describes the job
    persistent = "true" if info.persistent else "false"
    texts = (
        info.name,
        info.func,
        info.trigger,
        info.executor,
        label_value(info.jobstore),
        persistent,
    )
    yield JOB_INFO, (*labels, *texts), 1


def scraped_job_samples(scheduler: str, job: JobSnapshot) -> Iterator[Sample]:
    """
    Yield the samples of `job_samples`, without those that have their usual value.

    They would be a fifth of the series of a job without trouble. The rules and dashboards take an
    absent sample for its usual value. `success` is always shown, as it says that the job is known.
    """
    shortest, _ = job.interval_range or (None, None)
    for sample in job_samples(scheduler, job):
        family, labels, value = sample
        usual = (
            shortest
            if family is LONGEST_UPCOMING_INTERVAL
            else VALUES_OMITTED_FROM_SCRAPES.get(family)
        )
        if value != usual or labels[2:] == (SUCCESS.value,):
            yield sample


def _expectation_samples(labels: tuple[str, ...], job: JobSnapshot) -> Iterator[Sample]:
    """Yield what the application expects of a job."""
    expected = job.info.expectations
    yield from _samples_unless_none(
        labels,
        (MAX_DURATION, expected.max_duration),
        (MIN_DURATION, expected.min_duration),
        (DEADLINE, job.deadline_at),
        (MAX_FAILURES, expected.max_failures),
    )
    for quantity, least in expected.min_recorded:
        yield MIN_RECORDED, (*labels, quantity), least
    texts = (expected.severity, expected.owner, expected.runbook_url)
    if any(texts):
        yield ALERT_INFO, (*labels, *texts), 1


def telemetry_samples(scheduler: InstrumentedScheduler) -> Iterator[Sample]:
    """Yield the failures of telemetry; read these last, as reading the others may fail, too."""
    for component, count in sorted(scheduler.error_reporter.counts().items()):
        yield TELEMETRY_ERRORS, (scheduler.name, component), count


def yield_until_error(
    error_reporter: ErrorReporter, component: str, items: Iterable[_T]
) -> Iterator[_T]:
    """Yield `items` until one raises, which is reported as a failure of `component`."""
    try:
        yield from items
    except Exception:  # noqa: BLE001  # exporters show the rest
        error_reporter.exception(component)


def sorted_job_snapshots(
    scheduler: InstrumentedScheduler, component: str, *, is_export: bool = True
) -> list[JobSnapshot]:
    """
    Return all jobs by label; those that fail are reported as failures of `component`.

    Args:
        scheduler: the scheduler.
        component: of which failures are reported.
        is_export: as of `Recorder.job_snapshots_since`.
    """
    jobs = yield_until_error(
        scheduler.error_reporter,
        component,
        scheduler.recorder.job_snapshots(is_export=is_export),
    )
    return sorted(jobs, key=attrgetter("label"))


def _read_scheduler_samples(scheduler: InstrumentedScheduler) -> Iterator[Sample]:
    name, recorder = scheduler.name, scheduler.recorder
    liveness = scheduler.liveness()
    yield UP, (name,), int(liveness.up)
    for state in SCHEDULER_STATES:
        yield STATE, (name, state), int(state == liveness.scheduler_state)
    started_at, last_pass_ended_at = scheduler.started_at, scheduler.last_pass_ended_at
    yield from _samples_unless_none(
        (name,), (STARTED_AT, started_at), (LAST_PASS_END, last_pass_ended_at)
    )
    for alias, jobstore in recorder.jobstores().items():
        labels = (name, label_value(alias))
        yield JOBS, labels, jobstore.job_count
        yield from _samples_unless_none(labels, (JOBSTORE_LAST_READ, jobstore.last_read_at))
        yield JOBSTORE_READ_FAILURES, labels, jobstore.read_failure_count
    for kind, count in recorder.scheduler_error_counts().items():
        yield SCHEDULER_ERRORS, (name, kind.value), count
    for alias, executor in recorder.executors().items():
        labels = (name, label_value(alias))
        yield WORKERS, labels, executor.workers
        yield EXECUTOR_RUNNING, labels, executor.running
        yield EXECUTOR_QUEUED, labels, executor.queued
    info = scheduler.scheduler_info()
    yield SCHEDULER_INFO, (name, *(label_value(info[label]) for label in _SCHEDULER_INFO_LABELS)), 1


def _samples_unless_none(
    labels: tuple[str, ...], *values: tuple[MetricFamily, float | None]
) -> Iterator[Sample]:
    """Yield the values that are known; an unknown one is absent rather than 0."""
    for family, value in values:
        if value is not None:
            yield family, labels, value


class Exporter:
    """
    Exports several schedulers at once, each under a unique name.

    It holds them weakly, so that a scheduler which is dropped without `uninstrument` is freed.

    Args:
        target_noun: what to call what they share in messages: ``registry``, for example.
    """

    def __init__(self, target_noun: str) -> None:
        self._target_noun = target_noun
        self._schedulers: weakref.WeakValueDictionary[str, InstrumentedScheduler] = (
            weakref.WeakValueDictionary()
        )
        self._lock = threading.RLock()
        renew_lock_in_forked_children(self)

    def reject_duplicate_name(self, name: str) -> None:
        """
        Check that no scheduler of this name is exported that may run jobs in this process.

        Raises:
            DuplicateNameError: there is one, and it is not garbage.
        """
        if self._is_name_taken(name):
            gc.collect()  # or the answer would depend on when Python did this last
        if self._is_name_taken(name):
            msg = (
                f"a scheduler named {name!r} runs and is instrumented on this {self._target_noun} "
                "already, and their series would be the same: pass instrument(..., name=...) with "
                f"a different name for each scheduler, or another {self._target_noun}, or "
                "shutdown() or uninstrument() the first. In tests and notebooks, shut down the "
                "previous scheduler before you create the next one"
            )
            raise DuplicateNameError(msg)

    def find_scheduler_by_name(self, name: str) -> InstrumentedScheduler | None:
        """Return the scheduler of this name, or None."""
        return self._schedulers.get(name)

    def _is_name_taken(self, name: str) -> bool:
        scheduler = self.find_scheduler_by_name(name)
        return scheduler is not None and scheduler.liveness().may_run_jobs

    @synchronized
    def add_scheduler(self, scheduler: InstrumentedScheduler) -> None:
        """Export another scheduler, whose name is unique."""
        self._schedulers[scheduler.name] = scheduler

    @synchronized
    def remove_scheduler(self, scheduler: InstrumentedScheduler) -> None:
        """Stop exporting a scheduler."""
        if self._schedulers.get(scheduler.name) is scheduler:
            del self._schedulers[scheduler.name]

    @synchronized
    def schedulers(self) -> list[InstrumentedScheduler]:
        """Return the schedulers by name."""
        return [scheduler for _, scheduler in sorted(self._schedulers.items())]
