"""
Pauses in long work, in which threads of jobs run.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_T = TypeVar("_T")

PAUSE_SECONDS = 0.0001
"""
Seconds of a pause.

Python lets a thread that waits run only after 5 ms, and again after each time that it has waited
for something, such as a lock. The scheduler and its executor wait several times for each run.
"""


def let_other_threads_run() -> None:
    """Pause for a moment, so that threads that wait can run."""
    time.sleep(PAUSE_SECONDS)


def iterate_with_pauses(items: Iterable[_T], size: int) -> Iterator[_T]:
    """
    Yield items, and let other threads run after each `size` of them.

    Args:
        items: the items.
        size: how many are worked on in about a millisecond.
    """
    for number, item in enumerate(items, 1):
        yield item
        if number % size == 0:
            let_other_threads_run()
