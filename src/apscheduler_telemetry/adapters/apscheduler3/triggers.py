"""
Fire times of APScheduler's own triggers, found with jitter disabled.

Only APScheduler calls a trigger of the user's, because such a trigger may wait, hold a lock that
the scheduler's loop needs, take each fire time out of a queue, or go by the clock.
"""

from __future__ import annotations

import copy
import functools
import math
import pickle
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from datetime import MAXYEAR, datetime, tzinfo
from itertools import pairwise
from typing import Any, NamedTuple

from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.model import exception_type_name
from apscheduler_telemetry.core.times import to_datetime, to_unix_seconds

MAX_UPCOMING_FIRE_TIMES = 10
"""Upcoming fire times from which the shortest and the longest interval are computed."""
MAX_LISTED_FIRE_TIMES = 1_000
"""
Past fire times that are listed; earlier ones are only counted.

A job that should run every second has 600,000 of them after a week, too many for spans.
"""
MAX_AND_TRIGGER_STEPS = 100
"""
Steps in which the parts of an `AndTrigger` must agree on a fire time.

They need three at most, as the fire time before stays the same: see `_get_common_fire_time`.
"""
MAX_FIRST_AND_TRIGGER_STEPS = 10_000
"""The same for the first fire time, before which there is none; about 0.5 seconds."""
NO_COMMON_FIRE_TIME = "no common fire time"
"""The kind of the problem with an `AndTrigger` that stops the scheduler."""


class FoundFireTimes(NamedTuple):
    """
    Fire times of a trigger.

    Attributes:
        found_count: how many there are.
        latest_times: the latest of them, at most `MAX_LISTED_FIRE_TIMES`, in ascending order.
    """

    found_count: int
    latest_times: Sequence[datetime]

    def without_last(self) -> FoundFireTimes:
        """Return all but the last of them."""
        return FoundFireTimes(self.found_count - 1, self.latest_times[:-1])

    def only_last(self) -> FoundFireTimes:
        """Return the last of them only."""
        return FoundFireTimes(1, self.latest_times[-1:])


class UpcomingIntervalRange(NamedTuple):
    """
    What is known of the upcoming runs of a job.

    Attributes:
        interval_range: the shortest and the longest interval in seconds; None for fewer than two
            runs.
        last_known_fire_time: the last run that is known, in Unix seconds.
    """

    interval_range: tuple[float, float] | None
    last_known_fire_time: float


def to_found_fire_times(times: Sequence[datetime]) -> FoundFireTimes:
    """Return fire times that are known, such as those that APScheduler has found."""
    return FoundFireTimes(len(times), times[-MAX_LISTED_FIRE_TIMES:])


class FireTimeSearch:
    """
    Finds fire times of a trigger, one after the other, as far as that is possible.

    The trigger is called only in `run`, and does not change. One that is not APScheduler's own is
    never called, so that nothing but the first fire time is known.

    Args:
        trigger: the trigger.
        first: the first fire time; None if there is none.
        end: Unix seconds up to which fire times are looked for, without the end itself.
        max_count: the most fire times that are looked for.

    Attributes:
        trigger: the trigger.
        is_finished: whether there is nothing more to find.
        problem: why not all fire times could be found; None if they were.
        trigger_call_count: how often the trigger was called.
        elapsed_seconds: for how long.
    """

    def __init__(
        self,
        trigger: Any,
        first: datetime | None,
        *,
        end: float = math.inf,
        max_count: float = math.inf,
    ) -> None:
        self.trigger = trigger
        self.is_finished = False
        self.problem: FireTimeProblem | None = None
        self.trigger_call_count = 0
        self.elapsed_seconds = 0.0
        self._end = end
        self._max_count = max_count
        self._trigger_without_jitter: Any = None
        self._cached_upcoming_interval_range: UpcomingIntervalRange | None = None
        self._mean_jitter = 0.0
        self._found_count = 0
        self._latest_times: deque[datetime] = deque(maxlen=MAX_LISTED_FIRE_TIMES)
        if first is None or to_unix_seconds(first) >= end:
            self.is_finished = True
        elif type(trigger) is IntervalTrigger and end != math.inf:
            self._compute_interval_fire_times(first, trigger)
        else:
            self._add_fire_time(first)
            if not has_no_custom_part(trigger):
                self.stop_early(CUSTOM_TRIGGER_PROBLEM)

    @property
    def found(self) -> FoundFireTimes:
        """What was found up to now."""
        return FoundFireTimes(
            self._found_count, list(self._latest_times)
        )  # a deque cannot be sliced

    @property
    def latest_found(self) -> datetime:
        """The latest of what was found up to now."""
        return self._latest_times[-1]

    @property
    def upcoming_interval_range(self) -> UpcomingIntervalRange:
        """What follows from what was found, once the search is finished."""
        if self._cached_upcoming_interval_range is None:
            times = self.found.latest_times
            self._cached_upcoming_interval_range = UpcomingIntervalRange(
                compute_interval_range(times), to_unix_seconds(times[-1])
            )
        return self._cached_upcoming_interval_range

    def run(self, max_trigger_calls: float = math.inf) -> None:
        """Call the trigger until all is found, or so often; see `is_finished`."""
        if self.is_finished:
            return
        started_at = time.perf_counter()
        try:
            if self._trigger_without_jitter is None:
                self._copy_trigger_without_jitter()
            max_trigger_calls += self.trigger_call_count
            while self.trigger_call_count < max_trigger_calls and self._find_next():
                pass
        except BaseException as error:  # noqa: BLE001  # its time zone may be the user's code
            raise_if_interruption(error)
            self.stop_early(FireTimeProblem.from_exception(error, self._latest_times[-1]))
        finally:
            self.elapsed_seconds += time.perf_counter() - started_at

    def stop_early(self, problem: FireTimeProblem) -> None:
        """Keep what was found up to now, and call the trigger no more."""
        self.problem = problem
        self._finish()

    def _compute_interval_fire_times(self, first: datetime, trigger: Any) -> None:
        # Computed without a loop, as this runs while the scheduler holds its lock.
        step, since, zone = _mean_interval(trigger), to_unix_seconds(first), first.tzinfo
        end = self._end
        if trigger.end_date is not None:
            end = min(end, to_unix_seconds(trigger.end_date) + _DATETIME_RESOLUTION_SECONDS)
        # The first one may be later than the end date, if the user has chosen the next run.
        self._found_count = max(1, math.floor((end - since) / step) + 1)
        kept = range(max(0, self._found_count - MAX_LISTED_FIRE_TIMES), self._found_count)
        self._latest_times.extend(to_datetime(since + n * step, zone) for n in kept)
        self.is_finished = True

    def _copy_trigger_without_jitter(self) -> None:
        self._trigger_without_jitter, max_jitter = _split_off_jitter(self.trigger)
        if self._end != math.inf:
            # The jitter of past fire times is not known; its average is one half of the limit.
            self._mean_jitter = max_jitter / 2

    def _find_next(self) -> bool:
        """Find the next fire time; return False if nothing more is to be found."""
        previous = self._latest_times[-1]
        end = self._end - self._mean_jitter
        if self._found_count >= self._max_count:
            return self._finish()
        now = previous if end == math.inf else to_datetime(self._end, previous.tzinfo)
        self.trigger_call_count += 1
        at = _get_later_fire_time(self._trigger_without_jitter, previous, now)
        if at is not None and self._mean_jitter:
            at = to_datetime(to_unix_seconds(at) + self._mean_jitter, at.tzinfo)
        # In the last year of the calendar are the sentinels for "never".
        if at is None or to_unix_seconds(at) >= end or at.year == MAXYEAR:
            return self._finish()
        self._add_fire_time(at)
        return True

    def _finish(self) -> bool:
        self.is_finished = True
        return False

    def _add_fire_time(self, at: datetime) -> None:
        self._latest_times.append(at)
        self._found_count += 1


def create_search_before(first: datetime | None, end: datetime, trigger: Any) -> FireTimeSearch:
    """Return a search for the fire times from `first` up to, but not including, `end`."""
    # Compared as timestamps: datetimes of one time zone are compared by their wall-clock time,
    # which is wrong in the hour that is repeated when daylight saving time ends.
    return FireTimeSearch(trigger, first, end=to_unix_seconds(end) - _DATETIME_RESOLUTION_SECONDS)


def create_due_fire_time_search(
    first: datetime | None, trigger: Any, now: datetime, before: datetime | None = None
) -> FireTimeSearch:
    """
    Return a search for the fire times of a trigger from `first` up to and including `now`.

    Args:
        first: the earliest of them; None if there is none.
        trigger: the trigger.
        now: the end of the range.
        before: if it is before `now`, the end of the range instead, and not included.
    """
    end = to_unix_seconds(now) + _DATETIME_RESOLUTION_SECONDS
    if before is not None:
        end = min(end, to_unix_seconds(before) - _DATETIME_RESOLUTION_SECONDS)
    return FireTimeSearch(trigger, first, end=end)


def create_upcoming_fire_time_search(trigger: Any, next_run: datetime) -> FireTimeSearch:
    """Return a search for the next `MAX_UPCOMING_FIRE_TIMES` fire times, if there are so many."""
    if type(trigger) is CronTrigger:
        return _SharedCronSearch(trigger, next_run)
    return FireTimeSearch(trigger, next_run, max_count=MAX_UPCOMING_FIRE_TIMES)


def find_first_fire_time(trigger: Any, now: datetime) -> datetime | None:
    """
    Return the fire time that APScheduler gives a job that is added now; None if there is none.

    Args:
        trigger: one without a part of the user's own class.
        now: the earliest fire time.

    Raises:
        NoCommonFireTimeError: the parts of an `AndTrigger` agree on none for so long that
            APScheduler searches for minutes, or without an end.
    """
    trigger, _ = _split_off_jitter(trigger)
    return _get_next_fire_time(trigger, None, now)


def find_later_fire_time(trigger: Any, previous: datetime) -> datetime | None:
    """Return the fire time after `previous`, without jitter; None if there is none."""
    trigger, _ = _split_off_jitter(trigger)
    return _get_later_fire_time(trigger, previous, previous)


def find_max_jitter(trigger: Any) -> float:
    """Return the longest jitter of a trigger in seconds; 0 for one of the user's own class."""
    return _split_off_jitter(trigger)[1] if has_no_custom_part(trigger) else 0.0


class _SharedCronSearch(FireTimeSearch):
    """
    A search for upcoming fire times that is made once for all cron triggers that are alike.

    Each call of a cron trigger takes as long as a fourth of `add_job`, and an application that
    adds jobs for each of its customers adds thousands with the same schedule.
    """

    def __init__(self, trigger: CronTrigger, next_run: datetime) -> None:
        super().__init__(trigger, None)  # which has nothing to find itself
        self.is_finished = False
        self._next_run = next_run
        self._shared_search: FireTimeSearch | None = None

    def run(self, max_trigger_calls: float = math.inf) -> None:  # noqa: ARG002
        self._shared_search = _search_upcoming_cron_fire_times(
            _CronSchedule(self.trigger, self._next_run)
        )
        self.is_finished, self.problem = True, self._shared_search.problem

    @property
    def found(self) -> FoundFireTimes:
        return super().found if self._shared_search is None else self._shared_search.found

    @property
    def upcoming_interval_range(self) -> UpcomingIntervalRange:
        return (
            super().upcoming_interval_range
            if self._shared_search is None
            else self._shared_search.upcoming_interval_range
        )


class _CronSchedule:
    """A cron trigger and a next run; it equals all with the same fire times, but for jitter."""

    def __init__(self, trigger: CronTrigger, next_run: datetime) -> None:
        self.trigger = trigger
        self.next_run = next_run
        fields = tuple(map(str, trigger.fields))
        limits = trigger.start_date, trigger.end_date
        self._timezone = trigger.timezone  # kept, as it is known by its identity: some have no hash
        # A timestamp, as the two datetimes of an hour that comes twice are equal.
        self._equality_key = fields, id(self._timezone), limits, to_unix_seconds(next_run)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _CronSchedule) and self._equality_key == other._equality_key

    def __hash__(self) -> int:
        return hash(self._equality_key)


@functools.lru_cache(maxsize=256)
def _search_upcoming_cron_fire_times(schedule: _CronSchedule) -> FireTimeSearch:
    search = FireTimeSearch(schedule.trigger, schedule.next_run, max_count=MAX_UPCOMING_FIRE_TIMES)
    search.run()
    return search


def create_schedule_key(trigger: Any, next_run: datetime) -> Hashable:
    """Return what triggers with equal fire times have in common; None if that is not known."""
    return _CronSchedule(trigger, next_run) if type(trigger) is CronTrigger else None


def find_timezone(trigger: Any) -> tzinfo | None:
    """Return the time zone in which one of APScheduler's own triggers counts; None if unknown."""
    if not has_no_custom_part(trigger):
        return None
    zones = (getattr(part, "timezone", None) for part in parts_of(trigger))
    return next((zone for zone in zones if zone is not None), None)


def compute_interval_range(times: Sequence[datetime]) -> tuple[float, float] | None:
    """Return the shortest and the longest interval in seconds; None for fewer than two times."""
    gaps = [round(b - a, 6) for a, b in pairwise(map(to_unix_seconds, times))]
    return (min(gaps), max(gaps)) if gaps else None


def has_constant_interval_range(trigger: Any) -> bool:
    """Return whether `get_constant_interval_range` can be used, without finding fire times."""
    kind = type(trigger)
    return kind is DateTrigger or (kind is IntervalTrigger and trigger.end_date is None)


def get_constant_interval_range(trigger: Any) -> tuple[float, float] | None:
    """Return what `compute_interval_range` would, for a constant interval or a single run."""
    if type(trigger) is DateTrigger:
        return None
    step = round(float(trigger.interval_length), 6)
    return step, step


def can_recompute_fire_times(trigger: Any) -> bool:
    """
    Return whether the past fire times of a trigger can be found again afterwards.

    They cannot with jitter, nor if the trigger has a state. A combined trigger could take long.
    """
    kind = type(trigger)
    return kind in _SIMPLE_TRIGGER_TYPES and not getattr(trigger, "jitter", None)


def has_no_custom_part(trigger: Any) -> bool:
    """Return whether calling a trigger runs no code of the user's."""
    return type(trigger) in _SIMPLE_TRIGGER_TYPES or all(
        str(type(part).__module__).startswith("apscheduler.triggers.") for part in parts_of(trigger)
    )


def have_same_state(trigger: Any, other: Any) -> bool:
    """
    Return whether two triggers have the same state, as one that was read again from its store has.

    This pickles both, as the store does, because a class of the user's rarely has an ``__eq__``.
    """
    if type(trigger) is not type(other):
        return False
    try:
        return pickle.dumps(trigger) == pickle.dumps(other)
    except BaseException as error:  # noqa: BLE001  # user code, or a store that pickles otherwise
        raise_if_interruption(error)
        return False


def describe_trigger(trigger: Any) -> str:
    """
    Return a trigger as text.

    Triggers that fire once share one text, as their dates differ; those without a text of their own
    have that of their class, as Python's would have a memory address.
    """
    try:
        return _trigger_text(trigger)
    except BaseException as error:  # noqa: BLE001  # user code; the job is counted all the same
        raise_if_interruption(error)
        return type(trigger).__qualname__


def _trigger_text(trigger: Any) -> str:
    kind = type(trigger)
    if kind in _SIMPLE_TRIGGER_TYPES and kind is not DateTrigger:
        return str(trigger)
    if issubclass(kind, DateTrigger):
        return "date"
    if _has_default_repr(kind):
        return str(kind.__qualname__)
    if any(_has_default_repr(type(part)) for part in parts_of(trigger)):
        name = "and" if kind is AndTrigger else "or"
        return f"{name}[{', '.join(map(_trigger_text, trigger.triggers))}]"
    return str(trigger)


class FireTimeProblem(NamedTuple):
    """
    Why fire times of a trigger are not known.

    Attributes:
        kind: identifies the reason.
        description: a sentence about the trigger, without its subject and without a full stop.
    """

    kind: str
    description: str

    @classmethod
    def from_exception(cls, error: BaseException, previous: datetime) -> FireTimeProblem:
        """Describe what was raised when a trigger was called for the fire time after `previous`."""
        if isinstance(error, NoCommonFireTimeError):
            return cls(
                NO_COMMON_FIRE_TIME,
                f"has no fire time after {previous} on which its parts agree. At {previous}, "
                "APScheduler will search for one without an end, and from then on no job of the "
                "scheduler will run. Combine only triggers of fixed times of the day with 'and', "
                "or write one cron trigger",
            )
        return cls(
            "raised",
            f"raised {exception_type_name(error)} when it was called for the fire time after "
            f"{previous}. APScheduler will make the same call",
        )


class NoCommonFireTimeError(Exception):
    """The parts of an `AndTrigger` never agree; APScheduler's search would not end."""


CUSTOM_TRIGGER_PROBLEM = FireTimeProblem(
    "not called",
    "is of a class of the application's own, so only APScheduler calls it. The job was changed or "
    "removed while runs were due, so that APScheduler will not look for them, and only one of them "
    "is counted",
)


def _get_later_fire_time(trigger: Any, previous: datetime, now: datetime) -> datetime | None:
    """Return the fire time after `previous`; None if there is none, or no later one."""
    at = _get_next_fire_time(trigger, previous, now)
    return at if at is not None and to_unix_seconds(at) > to_unix_seconds(previous) else None


def _get_next_fire_time(trigger: Any, previous: datetime | None, now: datetime) -> datetime | None:
    """Call a trigger without jitter; combined ones part by part, as they may search for ever."""
    if type(trigger) is AndTrigger:
        return _get_common_fire_time(trigger.triggers, previous, now)
    if type(trigger) is OrTrigger:
        times = [_get_next_fire_time(part, previous, now) for part in trigger.triggers]
        return min((at for at in times if at is not None), default=None)
    if _might_search_past_last_year(trigger, previous or now):
        return None
    try:
        at: datetime | None = trigger.get_next_fire_time(previous, now)
    except (OverflowError, ValueError):  # no datetime can hold a later fire time
        return None
    return at


def _get_common_fire_time(
    parts: Sequence[Any], previous: datetime | None, now: datetime
) -> datetime | None:
    """
    Return the fire time on which all parts agree, as `AndTrigger` finds it.

    Raises:
        NoCommonFireTimeError: `AndTrigger` would search without an end. Its parts return the same
            if they are called with the same, and in each step only `now` changes; if it does not,
            nothing ever will.
    """
    for _ in range(MAX_FIRST_AND_TRIGGER_STEPS if previous is None else MAX_AND_TRIGGER_STEPS):
        times = [_get_next_fire_time(part, previous, now) for part in parts]
        found = [at for at in times if at is not None]
        if len(found) < len(times):
            return None
        latest = max(found)
        if min(found) == latest:
            return found[0]
        if to_unix_seconds(latest) == to_unix_seconds(now):
            break
        now = latest
    raise NoCommonFireTimeError


def _might_search_past_last_year(trigger: Any, previous: datetime) -> bool:
    """
    Return whether a `CalendarIntervalTrigger` might search beyond the last year, without an end.

    It skips dates that do not exist, such as a 29th of February in 8 of 25 tries in a row.
    """
    if not hasattr(trigger, "months"):
        return False
    years = trigger.years + trigger.months // 12 + 1
    return bool(previous.year + 25 * years > MAXYEAR)


def _has_default_repr(kind: Any) -> bool:
    return kind.__str__ is object.__str__ and kind.__repr__ is object.__repr__


def _mean_interval(trigger: Any) -> float:
    """Return the mean seconds between two runs of an interval trigger, with its jitter."""
    return float(trigger.interval_length + (trigger.jitter or 0) / 2)


def _split_off_jitter(trigger: Any) -> tuple[Any, float]:
    """
    Return a trigger without jitter, and its largest jitter in seconds.

    Jitter draws from the random number generator that the user may have seeded, which telemetry
    must not change. There is no state besides, so that a trigger need not be copied deeply.
    """
    if type(trigger) in _COMBINED_TRIGGER_TYPES:
        parts = [_split_off_jitter(part) for part in trigger.triggers]
        max_jitter = max([trigger.jitter or 0.0, *(jitter for _, jitter in parts)])
        return type(trigger)([part for part, _ in parts]), max_jitter
    jitter = getattr(trigger, "jitter", None)
    if not jitter:
        return trigger, 0.0
    trigger = copy.copy(trigger)
    trigger.jitter = None
    return trigger, jitter


def parts_of(trigger: Any) -> Iterator[Any]:
    """Yield a trigger and all that it combines, each once, as one may even contain itself."""
    seen, pending = {}, [trigger]
    while pending:
        part = pending.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            yield part
            if type(part) in _COMBINED_TRIGGER_TYPES:
                pending.extend(part.triggers)


_SIMPLE_TRIGGER_TYPES = frozenset({CronTrigger, DateTrigger, IntervalTrigger})
_COMBINED_TRIGGER_TYPES = frozenset({AndTrigger, OrTrigger})
_DATETIME_RESOLUTION_SECONDS = 1e-6
"""The resolution of a datetime, in seconds."""
