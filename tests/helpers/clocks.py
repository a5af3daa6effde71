"""The clock of this process, frozen, and a clock that a test sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import time_machine

START = datetime(2030, 1, 1, tzinfo=timezone.utc)
"""
Where fake clocks start: later than now, so that a child of a process pool, whose clock cannot be
faked, finds no run too late.
"""


def at(seconds: float) -> datetime:
    """Return the time that is some seconds after `START`."""
    return START + timedelta(seconds=seconds)


class FrozenClock:
    """The time of this process, which only the test moves."""

    def __init__(self, traveller: Any) -> None:
        self._traveller = traveller

    @property
    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def advance(self, seconds: float) -> None:
        self._traveller.shift(timedelta(seconds=seconds))

    def move_to(self, at: datetime) -> None:
        self._traveller.move_to(at)


@contextmanager
def freeze_time(at: datetime = START) -> Iterator[FrozenClock]:
    """Freeze the clock of this process."""
    with time_machine.travel(at, tick=False) as traveller:
        yield FrozenClock(traveller)


class ManualClock:
    """A clock that a test sets, in Unix seconds; it is called as `time.time` is."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now
