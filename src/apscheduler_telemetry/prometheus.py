"""
Shows the books to Prometheus: a collector that renders the ledgers of a registry on a scrape.

Names, labels and meanings are the contract of ``docs/metrics.md``; alert rules and dashboards
build on them. No ``_created`` series: nothing here reads them, and they would add a third.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from apscheduler_telemetry._labels import text
from apscheduler_telemetry._ledger import Account, Histogram, Ledger
from apscheduler_telemetry._pipeline import Guard, renew_lock_after_fork
from apscheduler_telemetry._record import Liveness
from apscheduler_telemetry.errors import ArgumentValueError, DuplicateNameError

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


INFO_LABELS = ("type", "version", "hostname", "pid", "timezone", "singleton")


class Families:
    """The metric families of one scrape, empty at first."""

    def __init__(self) -> None:
        job = ("scheduler", "job_id")
        scheduler = ("scheduler",)
        executor = ("scheduler", "executor")
        self.all: list[Metric] = []
        self.runs = self._counter(
            "apscheduler_job_runs", "Due runs by how they ended.", (*job, "outcome")
        )
        self.exceptions = self._counter(
            "apscheduler_job_exceptions", "Runs that raised, by type.", (*job, "exception")
        )
        self.durations = self._histogram(
            "apscheduler_job_run_duration_seconds",
            "Time inside the callable, of runs that succeeded and of runs that failed.",
            job,
        )
        self.delays = self._histogram(
            "apscheduler_job_start_delay_seconds", "Actual start minus scheduled time.", job
        )
        self.next_run = self._gauge(
            "apscheduler_job_next_run_timestamp_seconds",
            "When the next run is promised; 0 when nothing is.",
            job,
        )
        self.last_run = self._gauge(
            "apscheduler_job_last_run_timestamp_seconds",
            "Scheduled time of the latest run that started.",
            job,
        )
        self.last_success = self._gauge(
            "apscheduler_job_last_success_timestamp_seconds",
            "When the latest successful run ended.",
            job,
        )
        self.last_failure = self._gauge(
            "apscheduler_job_last_failure_timestamp_seconds",
            "When the latest failed or lost run ended.",
            job,
        )
        self.last_duration = self._gauge(
            "apscheduler_job_last_run_duration_seconds",
            "Time inside the callable of the run that ended last.",
            job,
        )
        self.consecutive_failures = self._gauge(
            "apscheduler_job_consecutive_failures", "Errors and losses since the last success.", job
        )
        self.running = self._gauge("apscheduler_job_running", "Runs inside the callable now.", job)
        self.running_since = self._gauge(
            "apscheduler_job_running_since_timestamp_seconds",
            "Start of the oldest run that is inside the callable; 0 when none is.",
            job,
        )
        self.withdrawn = self._gauge(
            "apscheduler_job_withdrawn_run_timestamp_seconds",
            "The latest promised run that was taken back on purpose.",
            job,
        )
        self.shortest = self._gauge(
            "apscheduler_job_shortest_interval_seconds",
            "Shortest gap between the next ten fire times.",
            job,
        )
        self.longest = self._gauge(
            "apscheduler_job_longest_interval_seconds",
            "Longest gap between the next ten fire times.",
            job,
        )
        self.grace = self._gauge(
            "apscheduler_job_grace_seconds", "Lateness that is tolerated before an alert.", job
        )
        self.max_duration = self._gauge(
            "apscheduler_job_max_duration_seconds",
            "Time that a run may take before it counts as stuck.",
            job,
        )
        self.alert_info = self._gauge(
            "apscheduler_job_alert_info",
            "Severity and owner of alerts on the job; always 1.",
            (*job, "severity", "owner"),
        )
        self.job_info = self._gauge(
            "apscheduler_job_info",
            "What the job is; always 1.",
            (*job, "name", "func", "trigger", "executor", "jobstore", "persistent"),
        )
        self.up = self._gauge(
            "apscheduler_scheduler_up",
            "1 if the loop lives in this process and is not overdue.",
            scheduler,
        )
        self.state = self._gauge(
            "apscheduler_scheduler_state",
            "1 for the state that APScheduler believes itself in.",
            (*scheduler, "state"),
        )
        self.started_at = self._gauge(
            "apscheduler_scheduler_start_timestamp_seconds",
            "When the scheduler was started, or instrumented if that was later.",
            scheduler,
        )
        self.last_wakeup = self._gauge(
            "apscheduler_scheduler_last_wakeup_timestamp_seconds",
            "End of the latest pass over due jobs.",
            scheduler,
        )
        self.jobs = self._gauge(
            "apscheduler_scheduler_jobs", "Known jobs.", (*scheduler, "jobstore")
        )
        self.errors = self._counter(
            "apscheduler_scheduler_errors",
            "What APScheduler only logs, by kind.",
            (*scheduler, "kind"),
        )
        self.workers = self._gauge(
            "apscheduler_executor_workers",
            "Runs that the executor can work on at once; +Inf where nothing limits it.",
            executor,
        )
        self.executor_running = self._gauge(
            "apscheduler_executor_running", "Runs inside their callables.", executor
        )
        self.executor_queued = self._gauge(
            "apscheduler_executor_queued", "Runs that wait for a worker.", executor
        )
        self.scheduler_info = self._gauge(
            "apscheduler_scheduler_info",
            "What the scheduler is; always 1.",
            (*scheduler, *INFO_LABELS),
        )
        self.telemetry_errors = self._counter(
            "apscheduler_telemetry_errors",
            "Failures of the telemetry itself, by component.",
            (*scheduler, "component"),
        )

    def _counter(self, name: str, about: str, labels: Sequence[str]) -> CounterMetricFamily:
        family = CounterMetricFamily(name, about, labels=labels)
        self.all.append(family)
        return family

    def _gauge(self, name: str, about: str, labels: Sequence[str]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(name, about, labels=labels)
        self.all.append(family)
        return family

    def _histogram(self, name: str, about: str, labels: Sequence[str]) -> HistogramMetricFamily:
        family = HistogramMetricFamily(name, about, labels=labels)
        self.all.append(family)
        return family


class LedgerCollector(Collector):
    """
    The collector of one registry, for all schedulers that are instrumented on it.

    One for all, as an exposition must not name a metric family twice.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        # Weakly both: whoever forgets a scheduler, or a registry, need not uninstrument it.
        self._registry = weakref.ref(registry)
        self._sources: weakref.WeakValueDictionary[str, Source] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()
        renew_lock_after_fork(self)

    def describe(self) -> Iterable[Metric]:
        """Name the families without collecting, for the registry's check of duplicates."""
        return Families().all

    def collect(self) -> Iterator[Metric]:
        """Render all books. What fails is counted and left out; a scrape never raises."""
        families = Families()
        with self._lock:
            sources = sorted(self._sources.items())
        for name, source in sources:
            _try(source, lambda: _add_scheduler(families, source))  # noqa: B023  # called at once
            for account in _try(source, lambda: _accounts(source)) or ():  # noqa: B023
                _try(source, lambda: _add_job(families, name, account))  # noqa: B023
        for name, source in sources:
            for component, count in sorted(source.guard.counts().items()):
                families.telemetry_errors.add_metric((name, component), count)
        yield from families.all

    def check_free(self, name: str) -> None:
        """
        Check that no scheduler of this name is shown.

        Raises:
            DuplicateNameError: there is one.
        """
        if name in self._sources:
            msg = (
                f"a scheduler named {name!r} is instrumented on this registry already, and their "
                "series could not be told apart: pass instrument(..., name=...) with a name of "
                "its own for each scheduler, or another registry, or uninstrument() the first"
            )
            raise DuplicateNameError(msg)

    def add(self, source: Source) -> None:
        """Show another scheduler, whose name is free."""
        with self._lock:
            self._sources[source.name] = source

    def remove(self, source: Source) -> None:
        """Show a scheduler no more; the last one takes the collector out of the registry."""
        with _lock:
            with self._lock:
                if self._sources.get(source.name) is source:
                    del self._sources[source.name]
                empty = not self._sources
            registry = self._registry()
            if registry is not None and empty and _collectors.get(registry) is self:
                del _collectors[registry]
                registry.unregister(self)


def collector_of(registry: CollectorRegistry) -> LedgerCollector:
    """
    Return the collector of `registry`, registered now if it was not.

    Raises:
        ArgumentValueError: somebody else's metrics on that registry have our names.
    """
    with _lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = LedgerCollector(registry)
            try:
                registry.register(collector)
            except ValueError as error:
                msg = (
                    "the registry has metrics of the same names as ours, which are not ours: pass "
                    f"instrument(..., registry=...) with another registry. {error}"
                )
                raise ArgumentValueError(msg) from error
            _collectors[registry] = collector
        return collector


def _try(source: Source, what: Callable[[], _T]) -> _T | None:
    try:
        return what()
    except Exception:  # noqa: BLE001  # a scrape shows what can be shown
        source.guard.failed("collector")
        return None


def _accounts(source: Source) -> list[Account]:
    return sorted(source.ledger.accounts(), key=lambda account: account.label)


def _add_scheduler(families: Families, source: Source) -> None:
    name, ledger = source.name, source.ledger
    liveness = source.liveness()
    families.up.add_metric((name,), int(liveness.up))
    for state in STATES:
        families.state.add_metric((name, state), int(state == liveness.state))
    _add_known(families.started_at, (name,), source.started_at)
    _add_known(families.last_wakeup, (name,), source.last_wakeup)
    for jobstore, count in ledger.jobs_per_store().items():
        families.jobs.add_metric((name, text(jobstore)), count)
    for kind, count in ledger.errors().items():
        families.errors.add_metric((name, kind.value), count)
    for alias, (workers, running, queued) in ledger.executors().items():
        labels = (name, text(alias))
        families.workers.add_metric(labels, workers)
        families.executor_running.add_metric(labels, running)
        families.executor_queued.add_metric(labels, queued)
    facts = source.facts()
    families.scheduler_info.add_metric((name, *(text(facts[label]) for label in INFO_LABELS)), 1)


def _add_job(families: Families, scheduler: str, account: Account) -> None:
    labels = (scheduler, account.label)
    for outcome, count in account.outcomes.items():
        families.runs.add_metric((*labels, outcome.value), count)
    for exception, count in sorted(account.exceptions.items()):
        families.exceptions.add_metric((*labels, text(exception)), count)
    _add_histogram(families.durations, labels, account.durations)
    _add_histogram(families.delays, labels, account.delays)
    families.next_run.add_metric(labels, account.next_run)
    _add_known(families.last_run, labels, account.last_run)
    _add_known(families.last_success, labels, account.last_success)
    _add_known(families.last_failure, labels, account.last_failure)
    _add_known(families.last_duration, labels, account.last_duration)
    families.consecutive_failures.add_metric(labels, account.consecutive_failures)
    families.running.add_metric(labels, account.running)
    families.running_since.add_metric(labels, account.running_since)
    _add_known(families.withdrawn, labels, account.withdrawn)
    if account.intervals is not None:
        families.shortest.add_metric(labels, account.intervals[0])
        families.longest.add_metric(labels, account.intervals[1])
    info = account.info
    families.grace.add_metric(labels, info.grace)
    _add_known(families.max_duration, labels, info.max_duration)
    if info.severity or info.owner:
        families.alert_info.add_metric((*labels, info.severity, info.owner), 1)
    persistent = "true" if info.persistent else "false"
    words = (info.name, info.func, info.trigger, info.executor, info.jobstore, persistent)
    families.job_info.add_metric((*labels, *words), 1)


def _add_known(family: GaugeMetricFamily, labels: tuple[str, ...], value: float | None) -> None:
    """Add a value that is absent, and not 0, until it is known."""
    if value is not None:
        family.add_metric(labels, value)


def _add_histogram(
    family: HistogramMetricFamily, labels: tuple[str, ...], histogram: Histogram
) -> None:
    buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
    total = 0
    for index, count in enumerate(histogram.counts):
        total += count
        bound = histogram.bounds[index] if index < len(histogram.bounds) else float("inf")
        le: str = floatToGoString(bound)  # type: ignore[no-untyped-call]
        seen = histogram.exemplars.get(index)
        if seen is None:
            buckets.append((le, total))
        else:
            exemplar = Exemplar(dict(seen.labels), seen.value, seen.timestamp)
            buckets.append((le, total, exemplar))
    family.add_metric(labels, buckets, histogram.sum)


_lock = threading.Lock()
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, LedgerCollector] = (
    weakref.WeakKeyDictionary()
)
