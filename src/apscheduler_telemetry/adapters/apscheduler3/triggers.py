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

LOOK_AHEAD = 10
"""Coming fire times from which the shortest and the longest interval are computed."""
MAX_TIMES = 1_000
"""
Past fire times that are returned; earlier ones are only counted.

A job that should run every second has 600,000 of them after a week, too many for spans.
"""


class FireTimes(NamedTuple):
    """
    Past fire times of a trigger.

    Attributes:
        total: how many there are.
        latest: the latest of them, at most `MAX_TIMES`, in ascending order.
    """

    total: int
    latest: Sequence[datetime]


def fire_times_before(job: Any, until: datetime, trigger: Any = None) -> FireTimes:
    """
    Return the fire times of a job from its next run time up to, but not including, `until`.

    Args:
        job: the job, before its next run time is advanced.
        until: the latest fire time that is due, as the job's trigger returned it.
        trigger: a snapshot of the job's trigger, if its answers depend on how often it was called;
            see `snapshot`.
    """
    return _fire_times_between(job.next_run_time, until.timestamp(), trigger or job.trigger)


def due_times(
    first: datetime | None, trigger: Any, now: datetime, following: datetime | None = None
) -> FireTimes:
    """
    Return the fire times of a trigger from `first` up to and including `now`.

    Args:
        first: the earliest of them; None if there is none.
        trigger: the trigger.
        now: the end of the range.
        following: if it is before `now`, the end of the range instead, and not included.
    """
    until = now.timestamp() + _TICK
    if following is not None:
        until = min(until, following.timestamp() - _TICK)
    if type(trigger) is IntervalTrigger and first is not None and first.timestamp() < until:
        # The first fire time that is not due, as `_fire_times_between` counts whole steps.
        step = _mean_interval(trigger)
        until = first.timestamp() + math.ceil((until - first.timestamp()) / step) * step
    return _fire_times_between(first, until, trigger)


def snapshot(trigger: Any) -> Any:
    """
    Return a copy of a trigger whose answers may depend on how often it was called, or None.

    Take it before the scheduler's loop calls the trigger: then the copy can be called again for
    the fire times that the loop got.
    """
    if type(trigger) in STATELESS or _is_stateless(trigger):
        return None
    return _copy(trigger)


def _fire_times_between(at: datetime | None, until: float, trigger: Any) -> FireTimes:
    # Compared as timestamps: datetimes of one time zone are compared by their wall-clock time,
    # which is wrong in the hour that is repeated when daylight saving time ends.
    if at is None or at.timestamp() >= until:
        return FireTimes(0, ())
    zone = at.tzinfo
    if type(trigger) is IntervalTrigger:
        # Computed without a loop, as this runs while the scheduler holds its lock.
        step = _mean_interval(trigger)
        count = max(1, round((until - at.timestamp()) / step))
        kept = range(min(count, MAX_TIMES), 0, -1)
        return FireTimes(count, [datetime.fromtimestamp(until - n * step, zone) for n in kept])
    trigger, jitter = _copy_without_jitter(trigger)
    # The jitter of each fire time is not known any more; its average is one half of the limit.
    mean_jitter = jitter / 2
    now = datetime.fromtimestamp(until, zone)
    latest: deque[datetime] = deque(maxlen=MAX_TIMES)
    count = 0
    while at is not None and (not count or at.timestamp() < until - mean_jitter):
        latest.append(at)
        count += 1
        at = _next_fire_time(trigger, at, now)
        if at is not None and mean_jitter:
            at = datetime.fromtimestamp(at.timestamp() + mean_jitter, zone)
    return FireTimes(count, list(latest))  # unlike a deque, a list can be sliced


def intervals(trigger: Any, next_run: datetime) -> tuple[tuple[float, float] | None, float]:
    """
    Compute the shortest and the longest interval between the next `LOOK_AHEAD` fire times.

    Returns:
        Both in seconds, or None if fewer than two fire times are left; and the Unix seconds up to
        which this is valid.
    """
    if isinstance(trigger, DateTrigger):
        return None, math.inf
    if type(trigger) is CronTrigger:
        return _cron_intervals(_CronSchedule(trigger, next_run))
    return _intervals(trigger, next_run)


def _intervals(trigger: Any, next_run: datetime) -> tuple[tuple[float, float] | None, float]:
    trigger, _ = _copy_without_jitter(trigger)
    times = [next_run]
    while len(times) < LOOK_AHEAD and (at := _next_fire_time(trigger, times[-1], times[-1])):
        times.append(at)
    stamps = [at.timestamp() for at in times]
    gaps = [round(b - a, 6) for a, b in pairwise(stamps)]
    return (min(gaps), max(gaps)) if gaps else None, stamps[-1]


class _CronSchedule:
    """A cron trigger and a next run; it equals all with the same fire times, but for jitter."""

    def __init__(self, trigger: CronTrigger, next_run: datetime) -> None:
        self.trigger = trigger
        self.next_run = next_run
        fields = tuple(map(str, trigger.fields))
        limits = trigger.start_date, trigger.end_date
        # A timestamp, as the two datetimes of an hour that comes twice are equal.
        self._key = fields, trigger.timezone, limits, next_run.timestamp()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CronSchedule) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=256)
def _cron_intervals(schedule: _CronSchedule) -> tuple[tuple[float, float] | None, float]:
    # Each question to a cron trigger takes as long as a fourth of `add_job`, and an application
    # that adds jobs for each of its customers adds thousands with the same schedule.
    return _intervals(schedule.trigger, schedule.next_run)


def has_constant_interval(trigger: Any) -> bool:
    """Tell whether `constant_interval` can be used instead of `intervals`."""
    kind = type(trigger)
    return kind is DateTrigger or (kind is IntervalTrigger and trigger.end_date is None)


def constant_interval(trigger: Any) -> tuple[float, float] | None:
    """Return what `intervals` computes, for a trigger with a constant interval or one run."""
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
    except Exception:  # noqa: BLE001  # user code; the job is counted all the same
        return type(trigger).__qualname__


def _next_fire_time(trigger: Any, previous: datetime, now: datetime) -> datetime | None:
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

    A trigger of the user's may count its calls, and jitter draws from the random number generator
    that the user may have seeded. Telemetry must change neither.
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


STATELESS = frozenset({CronTrigger, DateTrigger, IntervalTrigger})
"""The triggers of most jobs, recognised by their type alone."""
_TICK = 1e-6
"""The resolution of a datetime, in seconds."""
