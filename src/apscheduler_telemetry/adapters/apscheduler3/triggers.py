"""
Fire times of triggers, computed on a copy of the trigger, with jitter disabled.
"""

from __future__ import annotations

import copy
import functools
import math
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

MAX_COMING_FIRE_TIMES = 10
"""Coming fire times from which the shortest and the longest interval are computed."""
MAX_LISTED_FIRE_TIMES = 1_000
"""
Past fire times that are returned; earlier ones are only counted.

A job that should run every second has 600,000 of them after a week, too many for spans.
"""


class PastFireTimes(NamedTuple):
    """
    Past fire times of a trigger.

    Attributes:
        total: how many there are.
        latest_times: the latest of them, at most `MAX_LISTED_FIRE_TIMES`, in ascending order.
    """

    total: int
    latest_times: Sequence[datetime]


def fire_times_before(job: Any, end: datetime, trigger: Any = None) -> PastFireTimes:
    """
    Return the fire times of a job from its next run time up to, but not including, `end`.

    Args:
        job: the job, before its next run time is advanced.
        end: the latest fire time that is due, as the job's trigger returned it.
        trigger: a copy of the job's trigger, if its answers depend on how often it was called;
            see `copy_if_stateful`.
    """
    return _fire_times_between(job.next_run_time, end.timestamp(), trigger or job.trigger)


def list_due_times(
    first: datetime | None, trigger: Any, now: datetime, before: datetime | None = None
) -> PastFireTimes:
    """
    Return the fire times of a trigger from `first` up to and including `now`.

    Args:
        first: the earliest of them; None if there is none.
        trigger: the trigger.
        now: the end of the range.
        before: if it is before `now`, the end of the range instead, and not included.
    """
    end = now.timestamp() + _TICK
    if before is not None:
        end = min(end, before.timestamp() - _TICK)
    if type(trigger) is IntervalTrigger and first is not None and first.timestamp() < end:
        # The first fire time that is not due, as `_fire_times_between` counts whole steps.
        step = _mean_interval(trigger)
        end = first.timestamp() + math.ceil((end - first.timestamp()) / step) * step
    return _fire_times_between(first, end, trigger)


def copy_if_stateful(trigger: Any) -> Any:
    """
    Return a copy of a trigger whose answers may depend on how often it was called, or None.

    Take it before the scheduler's loop calls the trigger: then the copy can be called again for
    the fire times that the loop got.
    """
    if type(trigger) in STATELESS_TRIGGER_TYPES or _is_stateless(trigger):
        return None
    return _copy(trigger)


def _fire_times_between(first: datetime | None, end: float, trigger: Any) -> PastFireTimes:
    # Compared as timestamps: datetimes of one time zone are compared by their wall-clock time,
    # which is wrong in the hour that is repeated when daylight saving time ends.
    if first is None or first.timestamp() >= end:
        return PastFireTimes(0, ())
    zone = first.tzinfo
    if type(trigger) is IntervalTrigger:
        # Computed without a loop, as this runs while the scheduler holds its lock.
        step = _mean_interval(trigger)
        count = max(1, round((end - first.timestamp()) / step))
        kept = range(min(count, MAX_LISTED_FIRE_TIMES), 0, -1)
        return PastFireTimes(count, [datetime.fromtimestamp(end - n * step, zone) for n in kept])
    trigger, jitter = _copy_without_jitter(trigger)
    # The jitter of each fire time is not known any more; its average is one half of the limit.
    mean_jitter = jitter / 2
    now = datetime.fromtimestamp(end, zone)
    latest: deque[datetime] = deque(maxlen=MAX_LISTED_FIRE_TIMES)
    count = 0
    at: datetime | None = first
    while at is not None and (not count or at.timestamp() < end - mean_jitter):
        latest.append(at)
        count += 1
        at = _get_later_fire_time(trigger, at, now)
        if at is not None and mean_jitter:
            at = datetime.fromtimestamp(at.timestamp() + mean_jitter, zone)
    return PastFireTimes(count, list(latest))  # unlike a deque, a list can be sliced


def compute_intervals(trigger: Any, next_run: datetime) -> tuple[tuple[float, float] | None, float]:
    """
    Compute the shortest and the longest interval between coming fire times.

    These are the next `MAX_COMING_FIRE_TIMES` of them, if there are so many.

    Returns:
        Both in seconds, or None if fewer than two fire times are left; and the Unix seconds up to
        which this is valid.
    """
    if isinstance(trigger, DateTrigger):
        return None, math.inf
    if type(trigger) is CronTrigger:
        return _compute_cron_intervals(_CronIntervalsKey(trigger, next_run))
    return _compute_intervals_from_copy(trigger, next_run)


def _compute_intervals_from_copy(
    trigger: Any, next_run: datetime
) -> tuple[tuple[float, float] | None, float]:
    trigger, _ = _copy_without_jitter(trigger)
    times = [next_run]
    while len(times) < MAX_COMING_FIRE_TIMES and (
        at := _get_later_fire_time(trigger, times[-1], times[-1])
    ):
        times.append(at)
    stamps = [at.timestamp() for at in times]
    gaps = [round(b - a, 6) for a, b in pairwise(stamps)]
    return (min(gaps), max(gaps)) if gaps else None, stamps[-1]


class _CronIntervalsKey:
    """A cron trigger and a next run; equal to others with the same fire times, without jitter."""

    def __init__(self, trigger: CronTrigger, next_run: datetime) -> None:
        self.trigger = trigger
        self.next_run = next_run
        fields = tuple(map(str, trigger.fields))
        limits = trigger.start_date, trigger.end_date
        self._timezone = trigger.timezone  # kept alive, because its id() is part of the key
        # A timestamp, because the two datetimes of an hour that comes twice are equal.
        self._key = fields, id(self._timezone), limits, next_run.timestamp()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CronIntervalsKey) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=256)
def _compute_cron_intervals(
    schedule: _CronIntervalsKey,
) -> tuple[tuple[float, float] | None, float]:
    # Each call of a cron trigger takes a quarter of the time of `add_job`, and an application may
    # add thousands of jobs with the same schedule, for example one for each customer.
    return _compute_intervals_from_copy(schedule.trigger, schedule.next_run)


def has_constant_intervals(trigger: Any) -> bool:
    """Return whether `get_constant_intervals` can be used instead of `compute_intervals`."""
    kind = type(trigger)
    return kind is DateTrigger or (kind is IntervalTrigger and trigger.end_date is None)


def get_constant_intervals(trigger: Any) -> tuple[float, float] | None:
    """Return what `compute_intervals` does, for a trigger with a constant interval or one run."""
    if type(trigger) is DateTrigger:
        return None
    step = round(float(trigger.interval_length), 6)
    return step, step


def describe(trigger: Any) -> str:
    """Return a trigger as text; triggers that fire once share one text, as their dates differ."""
    if isinstance(trigger, DateTrigger):
        return "date"
    try:
        return str(trigger)
    except Exception:  # noqa: BLE001  # user code; the job still counts
        return type(trigger).__qualname__


def _get_later_fire_time(trigger: Any, previous: datetime, now: datetime) -> datetime | None:
    """Return the fire time after `previous`; None if there is none, or no later one."""
    at: datetime | None = trigger.get_next_fire_time(previous, now)
    return at if at is not None and at.timestamp() > previous.timestamp() else None


def _mean_interval(trigger: Any) -> float:
    """Return the mean seconds between two runs of an interval trigger, with its jitter."""
    return float(trigger.interval_length + (trigger.jitter or 0) / 2)


def _is_stateless(trigger: Any) -> bool:
    if type(trigger) in (AndTrigger, OrTrigger):
        return all(_is_stateless(part) for part in trigger.triggers)
    return type(trigger).__module__.startswith("apscheduler.triggers.")


def _copy(trigger: Any) -> Any:
    if type(trigger) in (AndTrigger, OrTrigger):
        # Their own copying works only for parts that are pickled as APScheduler's triggers are.
        return type(trigger)([_copy(part) for part in trigger.triggers], trigger.jitter)
    return copy.deepcopy(trigger)


def _copy_without_jitter(trigger: Any) -> tuple[Any, float]:
    """
    Return a copy of a trigger without jitter, and its largest jitter in seconds.

    A user's trigger may count its calls, and jitter uses the random number generator, which the
    application may have seeded. Telemetry must not change either of them.
    """
    trigger = _copy(trigger)
    pending, max_jitter = [trigger], 0.0
    while pending:
        part = pending.pop()
        if jitter := getattr(part, "jitter", None):
            part.jitter = None
            max_jitter = max(max_jitter, jitter)
        pending.extend(getattr(part, "triggers", ()))
    return trigger, max_jitter


STATELESS_TRIGGER_TYPES = frozenset({CronTrigger, DateTrigger, IntervalTrigger})
"""The triggers of most jobs, recognised by their type alone."""
_TICK = 1e-6
"""The resolution of a datetime, in seconds."""
