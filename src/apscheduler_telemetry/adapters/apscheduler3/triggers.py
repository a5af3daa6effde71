"""
Questions to triggers, asked so that no trigger notices: on a copy, and without dice.
"""

from __future__ import annotations

import copy
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
"""Fire times that the shortest and the longest interval are taken from (DESIGN section 4)."""
MAX_TIMES = 1_000
"""
Fire times that are kept of a backlog that was folded; more are only counted.

A job of every second that was down for a week has 600,000 of them, and nobody reads so many spans.
"""


class Backlog(NamedTuple):
    """
    Fire times before the one that a job is run for.

    Attributes:
        total: how many.
        latest: the latest of them, `MAX_TIMES` at most, ascending.
    """

    total: int
    latest: Sequence[datetime]


def backlog(job: Any, until: datetime, trigger: Any = None) -> Backlog:
    """
    Return the fire times of `job` from its next run time up to, but without, `until`.

    Args:
        job: the job, before it goes on to its next run.
        until: the latest fire time that is due, as its trigger gave it.
        trigger: the job's trigger as it was before it was asked, where it remembers that; see
            `memory_of`.
    """
    return _before(job.next_run_time, until.timestamp(), trigger or job.trigger)


def due_times(
    first: datetime | None, trigger: Any, now: datetime, following: datetime | None = None
) -> Backlog:
    """
    Return the fire times of a trigger from `first` up to and including `now`.

    Args:
        first: the earliest of them, None where there is none.
        trigger: what they come from.
        now: until when.
        following: if it is before `now`, until then, and without it.
    """
    until = now.timestamp() + _TICK
    if following is not None:
        until = min(until, following.timestamp() - _TICK)
    if type(trigger) is IntervalTrigger and first is not None and first.timestamp() < until:
        # The first fire time that is not due, as `_before` counts whole steps.
        step = _step(trigger)
        until = first.timestamp() + math.ceil((until - first.timestamp()) / step) * step
    return _before(first, until, trigger)


def memory_of(trigger: Any) -> Any:
    """
    Return a copy of a trigger that may remember how often it was asked, None for all others.

    To be made before the loop asks it, so that it can be asked once more what the loop asked.
    """
    if type(trigger) in STATELESS or _is_stateless(trigger):
        return None
    return _copy(trigger)


def _before(at: datetime | None, until: float, trigger: Any) -> Backlog:
    # Compared as timestamps: two datetimes of one time zone are compared by what the clock on
    # the wall shows, which is wrong in the hour that comes twice.
    if at is None or at.timestamp() >= until:
        return Backlog(0, ())
    zone = at.tzinfo
    if type(trigger) is IntervalTrigger:
        # In closed form, as this runs while the scheduler holds its lock.
        step = _step(trigger)
        count = max(1, round((until - at.timestamp()) / step))
        kept = range(min(count, MAX_TIMES), 0, -1)
        return Backlog(count, [datetime.fromtimestamp(until - n * step, zone) for n in kept])
    trigger, jitter = _undisturbed(trigger)
    # What the dice said is not known any more; on average it was the half.
    thrown = jitter / 2
    now = datetime.fromtimestamp(until, zone)
    latest: deque[datetime] = deque(maxlen=MAX_TIMES)
    count = 0
    while at is not None and (not count or at.timestamp() < until - thrown):
        latest.append(at)
        count += 1
        at = _following(trigger, at, now)
        if at is not None and thrown:
            at = datetime.fromtimestamp(at.timestamp() + thrown, zone)
    return Backlog(count, list(latest))  # which, unlike a deque, can be taken apart


def intervals(trigger: Any, next_run: datetime) -> tuple[tuple[float, float] | None, float]:
    """
    Look `LOOK_AHEAD` fire times ahead.

    Returns:
        The shortest and the longest gap in seconds, None where there are not two fire times; and
        the Unix seconds up to which that holds.
    """
    if isinstance(trigger, DateTrigger):
        return None, math.inf
    trigger, _ = _undisturbed(trigger)
    times = [next_run]
    while len(times) < LOOK_AHEAD and (at := _following(trigger, times[-1], times[-1])):
        times.append(at)
    stamps = [at.timestamp() for at in times]
    gaps = [round(b - a, 6) for a, b in pairwise(stamps)]
    return (min(gaps), max(gaps)) if gaps else None, stamps[-1]


def is_plain(trigger: Any) -> bool:
    """Tell whether `plain_intervals` knows all about a trigger, without asking it."""
    kind = type(trigger)
    return kind is DateTrigger or (kind is IntervalTrigger and trigger.end_date is None)


def plain_intervals(trigger: Any) -> tuple[float, float] | None:
    """Return what `intervals` finds of most triggers, for next to nothing."""
    if type(trigger) is DateTrigger:
        return None
    step = round(float(trigger.interval_length), 6)
    return step, step


def describe(trigger: Any) -> str:
    """Return the trigger in words; those that fire once share one, as their dates differ."""
    if isinstance(trigger, DateTrigger):
        return "date"
    try:
        return str(trigger)
    except Exception:  # noqa: BLE001  # user code, and no reason not to count the job's runs
        return type(trigger).__qualname__


def _following(trigger: Any, previous: datetime, now: datetime) -> datetime | None:
    """Return the fire time after `previous`, None also where a trigger does not move on."""
    at: datetime | None = trigger.get_next_fire_time(previous, now)
    return at if at is not None and at.timestamp() > previous.timestamp() else None


def _step(trigger: Any) -> float:
    """Return the seconds between two runs of an interval trigger, on average if it throws dice."""
    return float(trigger.interval_length + (trigger.jitter or 0) / 2)


def _is_stateless(trigger: Any) -> bool:
    if type(trigger) in (AndTrigger, OrTrigger):
        return all(_is_stateless(part) for part in trigger.triggers)
    return type(trigger).__module__.startswith("apscheduler.triggers.")


def _copy(trigger: Any) -> Any:
    if type(trigger) in (AndTrigger, OrTrigger):
        # Left to themselves, they copy only parts that keep to APScheduler's way of pickling.
        return type(trigger)([_copy(part) for part in trigger.triggers], trigger.jitter)
    return copy.deepcopy(trigger)


def _undisturbed(trigger: Any) -> tuple[Any, float]:
    """
    Return a copy of `trigger` to ask, and the seconds of jitter that were taken from it.

    A trigger of the user's may count its calls, and jitter draws from the random numbers that the
    user may have seeded: neither must see that telemetry asked.
    """
    trigger = _copy(trigger)
    pending, taken = [trigger], 0.0
    while pending:
        part = pending.pop()
        if jitter := getattr(part, "jitter", None):
            part.jitter = None
            taken = max(taken, jitter)
        pending.extend(getattr(part, "triggers", ()))
    return trigger, taken


STATELESS = frozenset({CronTrigger, DateTrigger, IntervalTrigger})
"""Those that most jobs have, told from others without looking into them."""
_TICK = 1e-6
"""Seconds: the resolution of a datetime."""
