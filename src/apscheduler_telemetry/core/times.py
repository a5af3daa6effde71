"""
Conversions between datetimes and Unix seconds that also work at both ends of the calendar.
"""

from __future__ import annotations

from datetime import date, datetime, timezone, tzinfo

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
