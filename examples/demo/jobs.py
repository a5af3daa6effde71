"""
The jobs of the demo: one for each kind of problem that an on-call engineer meets.

They are in a module of their own because a persistent job store and a process pool find functions
by name.
"""

import asyncio
import itertools
import os
import random
import signal
import threading
import time
from pathlib import Path

application_ends = threading.Event()
"""Set on the way out, so that the job that hangs does not keep the process alive."""

_begin = time.monotonic()
_pulls = itertools.count(1)


def refresh_cache() -> int:
    """Do what a healthy job does: start on time, take a moment, succeed."""
    time.sleep(random.uniform(0.02, 0.2))
    return 42


def pull_rates() -> None:
    """Fail now and then, as a job that depends on another server may."""
    time.sleep(random.uniform(0.01, 0.05))
    if next(_pulls) % 3 == 0:
        msg = "exchange rates: 503 Service Unavailable"
        raise ConnectionError(msg)


def import_orders() -> None:
    """Fail for the first ten seconds, while the shop is down, and recover."""
    if time.monotonic() - _begin < 10:
        msg = "shop: connection refused"
        raise ConnectionError(msg)


def build_report() -> None:
    """Take longer than the interval, so that runs are skipped."""
    application_ends.wait(2.5)


def crunch(directory: str) -> int:
    """Compute in a process pool; every third time the kernel, short of memory, kills the worker."""
    marks = list(Path(directory).iterdir())
    if len(marks) == 2:
        for mark in marks:
            mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    (Path(directory) / str(len(marks))).touch()
    return sum(i * i for i in range(300_000))


def sync_stock() -> None:
    """Hang, like a read from a socket without a timeout."""
    application_ends.wait()


def archive() -> None:
    """Run once a night, which the demo does not see."""


async def poll_queue() -> None:
    """Run on the event loop of the asyncio scheduler."""
    await asyncio.sleep(random.uniform(0.05, 0.15))
