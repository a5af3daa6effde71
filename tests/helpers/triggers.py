"""Triggers whose first fire time is `START`, unless options change it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from tests.helpers.clocks import START

UTC = timezone.utc


def every(seconds: float, **options: Any) -> IntervalTrigger:
    """Return a trigger that fires at `START` for the first time."""
    return IntervalTrigger(seconds=seconds, start_date=START, timezone=UTC, **options)


def calendar(**options: Any) -> BaseTrigger:
    """Return a trigger of every day at midnight, which APScheduler 3.10 does not have."""
    module = pytest.importorskip("apscheduler.triggers.calendarinterval")
    trigger: BaseTrigger = module.CalendarIntervalTrigger(
        days=1, start_date=START.date(), timezone=UTC, **options
    )
    return trigger


def cron(**options: Any) -> CronTrigger:
    return CronTrigger(timezone=UTC, **options)


class Every(BaseTrigger):
    """A trigger of the user's, without a text that shows its interval; it fires at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return now if previous is None else previous + timedelta(seconds=self.seconds)

    def __getstate__(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def __setstate__(self, state: dict[str, float]) -> None:  # which combined triggers call
        self.seconds = state["seconds"]


class Moment(datetime):
    """A datetime of the user's whose own methods fail; APScheduler calls none of these."""

    @classmethod
    def of(cls, at: datetime) -> Moment:
        return cls.combine(at.date(), at.timetz())

    def timestamp(self) -> float:
        raise OverflowError

    def isoformat(self, *_: Any, **__: Any) -> str:
        raise OverflowError

    def replace(self, *_: Any, **__: Any) -> Any:
        raise OverflowError


class Moments(BaseTrigger):
    """Fires every 10 seconds, at datetimes of that class."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> Moment:
        return Moment.of(START if previous is None else previous + timedelta(seconds=10))
