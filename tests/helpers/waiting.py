"""Wait for something that happens in another thread, task or process, and fail if it does not."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tests.helpers.jobs import WAIT_TIMEOUT

T = TypeVar("T")


def wait_until(condition: Callable[[], Any], what: str = "", timeout: float = WAIT_TIMEOUT) -> Any:
    """Wait until `condition` holds, and return what it returned; fail after `timeout` seconds."""
    deadline = time.perf_counter() + timeout
    while not (met := condition()):
        assert time.perf_counter() < deadline, f"waited too long for {what or condition}"
        time.sleep(0.001)
    return met


async def wait_until_async(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait like `wait_until`, and let the event loop run meanwhile."""
    deadline = time.perf_counter() + WAIT_TIMEOUT
    while not (met := condition()):
        assert time.perf_counter() < deadline, f"waited too long for {what or condition}"
        await asyncio.sleep(0.001)
    return met


def run_in_thread(do: Callable[[], Any]) -> Any:
    """Return what `do` returns in another thread, which has ten seconds for it."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(do()), daemon=True)
    thread.start()
    thread.join(10)
    assert results, "it failed, or waits for a lock"
    return results[0]


def wait_for_answer(probe: Callable[[], T], timeout: float = WAIT_TIMEOUT) -> T:
    """
    Wait until `probe` returns something true, and return that.

    A probe may fail, as the first requests to a server do. After `timeout` seconds, the test fails
    with what the probe returned or raised last.
    """
    end = time.monotonic() + timeout
    last: Any = None
    while time.monotonic() < end:
        try:
            last = probe()
            if last:
                return last  # type: ignore[no-any-return]
        except (OSError, LookupError, AssertionError) as error:
            last = error
        time.sleep(0.05)
    msg = f"not within {timeout:g} s; last: {last!r}"
    raise AssertionError(msg)
