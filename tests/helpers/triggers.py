"""Triggers whose first fire time is `START`, unless options change it."""

from __future__ import annotations

from datetime import timezone
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
