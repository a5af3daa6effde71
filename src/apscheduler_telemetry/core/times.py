"""
Conversions between datetimes and Unix seconds that also work at both ends of the calendar.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, time, timedelta, timezone, tzinfo

from apscheduler_telemetry.core.interruptions import raise_if_interruption


def to_unix_seconds(at: datetime) -> float:
    """
    Return the Unix seconds of a datetime.

    If its time zone fails, as some do at the ends of the calendar, it is taken for UTC. The methods
    are those of `datetime` itself, as a subclass of the user's may have others.
    """
    try:
        return datetime.timestamp(at)
    except BaseException as error:  # noqa: BLE001  # the time zone may be the user's code
        raise_if_interruption(error)
        return without_timezone(at).replace(tzinfo=timezone.utc).timestamp()


def without_timezone(at: datetime) -> datetime:
    """Return what a datetime shows, without its time zone; also for a class of the user's."""
    return datetime.combine(date.fromordinal(datetime.toordinal(at)), datetime.time(at))


def to_datetime(timestamp: float, zone: tzinfo | None = timezone.utc) -> datetime:
    """
    Return Unix seconds as a datetime, or the nearest datetime that there is in this time zone.

    `datetime.max.timestamp()` itself is rounded up to a second that no datetime has.
    """
    try:
        return datetime.fromtimestamp(timestamp, zone)
    except BaseException as error:  # noqa: BLE001  # OverflowError, or any of the zone's own
        raise_if_interruption(error)
        limits = datetime.min.replace(tzinfo=zone), datetime.max.replace(tzinfo=zone)
        return limits[timestamp > 0]


def to_iso(timestamp: float | None) -> str | None:
    """Return Unix seconds in ISO 8601, in UTC and with milliseconds; None stays None."""
    if timestamp is None:
        return None
    return to_datetime(timestamp).isoformat(timespec="milliseconds")


def find_deadline(due_at: float, deadline: float | time) -> float | None:
    """
    Return when the deadline of a run is, in Unix seconds.

    Args:
        due_at: when the run is due, in Unix seconds.
        deadline: seconds after that, or a time of day with its time zone: then the first one after
            the run is due.

    Returns:
        None at the end of the calendar, or if the time zone fails.
    """
    if not isinstance(deadline, time):
        return due_at + deadline
    try:
        today = to_datetime(due_at, deadline.tzinfo).date()
        # Clocks that are set back may show a part of yesterday again.
        days = (today + timedelta(number) for number in range(-1, 3))
        coming = (
            at for day in days for at in _find_times_of_day(day, deadline, due_at) if at > due_at
        )
        return next(coming, None)
    except Exception:  # noqa: BLE001  # OverflowError, or the zone's own
        return None


def start_of_day(day: date, zone: tzinfo) -> float:
    """Return when a day begins, in Unix seconds; if there is no midnight, when clocks skip it."""
    day_before = datetime.combine(day, time(), timezone.utc).timestamp() - 86_400.0
    return _find_times_of_day(day, time(tzinfo=zone), day_before)[0]


def _find_times_of_day(day: date, time_of_day: time, due_at: float) -> Sequence[float]:
    """
    Return when it is this time of day on a day, in Unix seconds; twice if clocks are set back.

    If clocks are set forward and skip it, it is when it would have been without that, as in RFC
    5545; but not for a run that is due later than this change, whose deadline is the next day. The
    offsets of the zone are looked up at Unix seconds, which `zoneinfo` and `pytz` do alike.
    """
    zone = time_of_day.tzinfo
    shown = datetime.combine(day, time_of_day, timezone.utc).timestamp()
    # Before and after any change of clocks; there are never two within two days.
    before, after = (_utc_offset(shown + seconds, zone) for seconds in (-86_400.0, 86_400.0))
    found = [
        shown - offset
        for offset in ((before,) if before == after else (before, after))
        if _utc_offset(shown - offset, zone) == offset
    ]
    if not found and _utc_offset(due_at, zone) == before:
        return [shown - before]
    return found


def _utc_offset(timestamp: float, zone: tzinfo | None) -> float:
    offset = to_datetime(timestamp, zone).utcoffset()
    return 0.0 if offset is None else offset.total_seconds()
