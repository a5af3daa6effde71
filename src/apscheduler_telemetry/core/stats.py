"""
The numbers of one job: histograms, counters and times. No threads, no locks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from math import inf
from typing import NamedTuple, Protocol

from apscheduler_telemetry.core.current_run import OTHER_QUANTITIES_NAME, CurrentRun, add_quantities
from apscheduler_telemetry.core.model import (
    ERROR,
    FAILED_OUTCOMES,
    INTERRUPTED_ERROR_TYPE,
    MISSED,
    SUCCESS,
    ErrorDescription,
    Outcome,
    SpanIds,
)

DURATION_BUCKETS = (
    *(0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0),
)
"""
Seconds. Jobs are not requests: they last from some milliseconds, as a cache refresh does, to the
two hours of a nightly batch. The buckets are dense between 0.1 s and 10 min, where most jobs are
and a slowdown matters; the round minutes are the intervals that people configure.
"""
DELAY_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""
Seconds. A healthy loop starts a job within 10 ms. 1 s is APScheduler's default
``misfire_grace_time``, after which a run is dropped; those who allow more think in minutes.
"""
MAX_EXCEPTION_TYPES = 20
"""Exception types that are counted separately for each job; the rest share `OTHER_EXCEPTIONS`."""
OTHER_EXCEPTIONS = "__other__"


class Exemplar(NamedTuple):
    """One observation with the labels of the trace that it belongs to."""

    labels: Mapping[str, str]
    value: float
    timestamp: float


_NO_EXEMPLARS: Mapping[int, Exemplar] = {}


class FinishedRun(Protocol):
    """What a run that has ended adds to the numbers; see `Run`."""

    due_timestamp: float
    started_at: float | None
    estimated_start_at: float | None
    duration: float | None
    outcome: Outcome | None
    error: ErrorDescription | None
    finished_at: float
    exemplar_span: SpanIds | None
    current_run: CurrentRun | None
    count: int

    @property
    def recorded(self) -> Mapping[str, float]: ...


class Histogram:
    """
    Counts per bucket (not cumulative), their sum, and the latest exemplar of each bucket.

    It is replaced and never changed, so that copies of the numbers of a job share it.
    """

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(
        self,
        bounds: Sequence[float],
        counts: list[int] | None = None,
        total: float = 0.0,
        exemplars: Mapping[int, Exemplar] = _NO_EXEMPLARS,
    ) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1) if counts is None else counts
        self.sum = total
        self.exemplars = exemplars

    def with_values(self, values: list[float]) -> Histogram:
        """Return a histogram that counts these values, too; the list is sorted."""
        if not values:
            return self
        bounds, counts = self.bounds, self.counts.copy()
        total = sum(values, self.sum)
        values.sort()
        first = bisect_left(bounds, values[0])
        if first == len(bounds) or values[-1] <= bounds[first]:  # all in one, as for most jobs
            counts[first] += len(values)
        else:
            for value in values:
                counts[bisect_left(bounds, value)] += 1
        return Histogram(bounds, counts, total, self.exemplars)

    def with_exemplars(self, observations: Iterable[tuple[float, SpanIds, float]]) -> Histogram:
        """
        Return a histogram in which counted values are the latest exemplars of their buckets.

        Args:
            observations: a value, its span, and its Unix time in seconds, for each exemplar.
        """
        exemplars = {
            bisect_left(self.bounds, value): Exemplar(_exemplar_labels(span), value, at)
            for value, span, at in observations
        }
        return Histogram(self.bounds, self.counts, self.sum, {**self.exemplars, **exemplars})

    def cumulative_buckets(self) -> Iterator[tuple[int, Exemplar | None]]:
        """Yield, bound by bound and then for +Inf, how many are within, and an exemplar."""
        for bucket, total in enumerate(accumulate(self.counts)):
            yield total, self.exemplars.get(bucket)


class JobStats:
    """
    The numbers of one ``job_id`` label.

    Timestamps are Unix seconds, None before the first.

    Args:
        duration_buckets: upper bounds in seconds, ascending, without +Inf.
        delay_buckets: likewise.
    """

    __slots__ = (
        *("consecutive_failures", "delays", "durations", "exceptions", "last_duration"),
        *("last_failure_at", "last_outcome", "last_recorded", "last_run_due_at"),
        *("last_success_at", "outcomes", "recorded"),
    )

    def __init__(self, duration_buckets: Sequence[float], delay_buckets: Sequence[float]) -> None:
        self.durations = Histogram(duration_buckets)
        self.delays = Histogram(delay_buckets)
        self.outcomes = _ZERO_OUTCOME_COUNTS.copy()
        self.exceptions: Mapping[str, int] = {}
        self.consecutive_failures = 0
        self.last_outcome: Outcome | None = None
        self.last_run_due_at: float | None = None
        self.last_success_at: float | None = None
        self.last_failure_at: float | None = None
        self.last_duration: float | None = None
        # By the name of the quantity.
        self.recorded: Mapping[str, float] = {}
        self.last_recorded: Mapping[str, float] = {}

    def copy(self) -> JobStats:
        """Return a copy that can be changed independently."""
        copy = JobStats.__new__(JobStats)
        copy.outcomes = self.outcomes.copy()
        # All others are replaced and never changed, so that copies share them.
        copy.durations = self.durations
        copy.delays = self.delays
        copy.exceptions = self.exceptions
        copy.consecutive_failures = self.consecutive_failures
        copy.last_outcome = self.last_outcome
        copy.last_run_due_at = self.last_run_due_at
        copy.last_success_at = self.last_success_at
        copy.last_failure_at = self.last_failure_at
        copy.last_duration = self.last_duration
        copy.recorded = self.recorded
        copy.last_recorded = self.last_recorded
        return copy

    def add_started_run(self, due: float, started_at: float | None) -> None:
        """
        Add a run that has started.

        Args:
            due: when it was due, in Unix seconds.
            started_at: when it started; None if that is only estimated.
        """
        if self.last_run_due_at is None or due > self.last_run_due_at:
            self.last_run_due_at = due
        if started_at is not None:
            self.delays = self.delays.with_values([compute_start_delay(due, started_at)])

    def add_finished_runs(  # noqa: C901  # calls cost more
        self, runs: Sequence[FinishedRun]
    ) -> None:
        """Add runs that have ended, in the order of their ends."""
        delays: list[float] = []
        durations: list[float] = []
        exemplars: list[tuple[float, SpanIds, float]] = []
        successes, has_reported = 0, False
        last_run_due_at = -inf if self.last_run_due_at is None else self.last_run_due_at
        for run in runs:
            outcome, started_at = run.outcome, run.started_at
            due = run.due_timestamp
            if started_at is not None:
                delays.append(started_at - due if started_at > due else 0.0)
                if due > last_run_due_at:  # noqa: PLR1730  # max() is a call
                    last_run_due_at = due
            elif run.estimated_start_at is not None and outcome is not MISSED:
                last_run_due_at = max(due, last_run_due_at)
            duration = run.duration
            if duration is not None and (outcome is SUCCESS or outcome is ERROR):
                durations.append(duration)
                if run.exemplar_span is not None:
                    exemplars.append((duration, run.exemplar_span, run.finished_at))
            if outcome is SUCCESS:  # as most are
                successes += 1
                self.last_success_at = run.finished_at
                self.consecutive_failures = 0
            elif outcome is not None:
                error = None if run.error is None else run.error.type
                self.add_outcome(outcome, run.finished_at, error, run.count)
            if run.current_run is not None:
                has_reported = True
        self.last_outcome = runs[-1].outcome
        self.outcomes[SUCCESS] += successes
        self.last_run_due_at = None if last_run_due_at == -inf else last_run_due_at
        if durations:
            self.last_duration = durations[-1]
        self.delays = self.delays.with_values(delays)
        self.durations = self.durations.with_values(durations)
        if exemplars:
            self.durations = self.durations.with_exemplars(exemplars)
        if has_reported or self.recorded:
            self._add_recorded(runs)

    def add_outcome(
        self, outcome: Outcome, at: float, error: str | None = None, count: int = 1
    ) -> None:
        """
        Add runs that have ended, of which only the outcome is known.

        Args:
            outcome: how they ended.
            at: when they ended, in Unix seconds.
            error: the type of the exception, if there was one and it is known.
            count: how many runs.
        """
        self.outcomes[outcome] += count
        self.last_outcome = outcome
        if outcome is SUCCESS:
            self.last_success_at = at
            self.consecutive_failures = 0
        elif outcome in FAILED_OUTCOMES:
            self.last_failure_at = at
            self.consecutive_failures += count
            if error is not None and (outcome is ERROR or error == INTERRUPTED_ERROR_TYPE):
                self._count_exception_type(error)

    def _add_recorded(self, runs: Sequence[FinishedRun]) -> None:
        """Add the quantities that runs have recorded."""
        for run in runs:
            if run.recorded:
                self.recorded = add_quantities(self.recorded, run.recorded)
        last_success = next((run for run in reversed(runs) if run.outcome is SUCCESS), None)
        if last_success is not None and self.recorded:
            # A success is 0 of what it has not recorded.
            last = dict.fromkeys(self.recorded, 0.0)
            for name, amount in last_success.recorded.items():
                last[name if name in last else OTHER_QUANTITIES_NAME] += amount
            self.last_recorded = last

    def _count_exception_type(self, name: str) -> None:
        known = self.exceptions
        if name not in known and len(known) >= MAX_EXCEPTION_TYPES:
            name = OTHER_EXCEPTIONS
        self.exceptions = {**known, name: known.get(name, 0) + 1}


def compute_start_delay(due: float, started_at: float) -> float:
    """Return the seconds from `due` to `started_at`; never negative, whatever the clock did."""
    return started_at - due if started_at > due else 0.0


_ZERO_OUTCOME_COUNTS = dict.fromkeys(Outcome, 0)  # to list an enumeration for each job takes long


def _exemplar_labels(span: SpanIds) -> Mapping[str, str]:
    """Return the labels of an exemplar: ids in hex, as W3C and Grafana write them."""
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
