"""
Checks whether the loop of a scheduler is alive, and finds the reason if it is not.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ProcessPoolExecutor as ProcessPool
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.pool import BasePoolExecutor, ProcessPoolExecutor
from apscheduler.schedulers.base import STATE_PAUSED, STATE_STOPPED

from apscheduler_telemetry.core.forks import is_thread_alive
from apscheduler_telemetry.core.labels import label_value
from apscheduler_telemetry.core.model import Liveness

OVERDUE_SECONDS = 10.0
"""
Seconds that a pass over due jobs may be late, or may take, before the loop counts as overdue.

Long enough for a slow job store or a garbage collection, and shorter than the usual scrape interval
and the ``for`` of any alert. It is also APScheduler's default of ``jobstore_retry_interval``.
"""


class LoopState(NamedTuple):
    """
    The state of a loop at one moment; times are those of a clock that never goes back.

    Attributes:
        started_in_pid: as of `SchedulerLoop`.
        thread: the thread of its latest pass; None if that is not known.
        has_loop_ended: whether the loop itself has returned or failed.
        pass_error_type: the type of the exception that ended the latest pass; None if none did.
        pass_started_at: when the pass in progress has started; None between passes.
        wait_start_and_seconds: when the wait for the next pass was planned, and for how many
            seconds; None if none is planned.
    """

    started_in_pid: int | None
    thread: threading.Thread | None
    has_loop_ended: bool
    pass_error_type: str | None
    pass_started_at: float | None
    wait_start_and_seconds: tuple[float, Any] | None


def check_liveness(
    scheduler: Any,
    loop: LoopState,
    now: float,
    get_executors_of_jobs: Callable[[], Collection[str]],
) -> Liveness:
    """
    Return whether the loop of a scheduler is alive, and why not.

    Args:
        scheduler: an APScheduler 3 scheduler.
        loop: what is known of its loop.
        now: seconds by the same clock.
        get_executors_of_jobs: as of `unusable_pool_reasons`.
    """
    if scheduler.state == STATE_STOPPED:
        reason = ("stopped", "The scheduler has not been started, or was shut down.")
        return Liveness(scheduler_state="stopped", up=False, reasons=[reason])
    state = "paused" if scheduler.state == STATE_PAUSED else "running"
    has_loop_ended = _has_pass_loop_ended(scheduler, loop)
    if loop.started_in_pid is not None and loop.started_in_pid != os.getpid():
        message = (
            f"The scheduler was started in process {loop.started_in_pid}, and has not looked for "
            f"due jobs in this process, {os.getpid()}, since the fork. A fork does not copy the "
            "thread of a scheduler, without which no job runs. Start the scheduler after the fork."
        )
        reasons = [("forked", message)]
    else:
        reasons = [
            *_loop_ended_reasons(scheduler, loop, has_loop_ended=has_loop_ended),
            *_overdue_reasons(loop, state, now),
            *unusable_pool_reasons(scheduler, get_executors_of_jobs),
        ]
    event_loop = _event_loop_of(scheduler)
    return Liveness(
        scheduler_state=state,
        up=not reasons,
        reasons=reasons,
        has_loop_ended=has_loop_ended or (event_loop is not None and event_loop.is_closed()),
    )


def _has_pass_loop_ended(scheduler: Any, loop: LoopState) -> bool:
    """Return whether the loop has returned, or its thread or greenlet has ended."""
    greenlet = getattr(scheduler, "_greenlet", None)
    if loop.has_loop_ended or (greenlet is not None and greenlet.dead):
        return True
    # An event loop may change threads.
    has_thread = _event_loop_of(scheduler) is None and loop.thread is not None
    return has_thread and not is_thread_alive(loop.thread)  # type: ignore[arg-type]  # as just asked


def _loop_ended_reasons(
    scheduler: Any, loop: LoopState, *, has_loop_ended: bool
) -> Iterator[tuple[str, str]]:
    event_loop = _event_loop_of(scheduler)
    if loop.pass_error_type is not None:
        message = (
            f"The latest pass over due jobs ended with {loop.pass_error_type}, which ends the "
            "scheduler's thread or loses its timer: no job runs any more."
        )
        yield "loop_failed", message
    elif has_loop_ended:
        kind = "thread" if getattr(scheduler, "_greenlet", None) is None else "greenlet"
        yield "thread_dead", f"The scheduler's {kind} has ended: no job runs any more."
    if event_loop is not None and event_loop.is_closed():
        yield "event_loop_closed", "The scheduler's event loop was closed."
    elif event_loop is not None and not event_loop.is_running():
        yield "event_loop_stopped", "The scheduler's event loop does not run."


def _overdue_reasons(loop: LoopState, state: str, now: float) -> Iterator[tuple[str, str]]:
    since, late = loop.pass_started_at, _overdue_seconds(loop, now)
    if since is not None and now - since > OVERDUE_SECONDS:
        message = (
            f"The loop has been busy for {now - since:.0f} s in one pass over due jobs: a "
            "job store, a listener or an inline job blocks it."
        )
        yield "overdue", message
    elif state == "running" and late > OVERDUE_SECONDS:
        message = (
            f"The loop should have looked for due jobs {late:.0f} s ago: it is "
            "blocked, or its timer was lost."
        )
        yield "overdue", message


def unusable_pool_reasons(
    scheduler: Any, get_executors_of_jobs: Callable[[], Collection[str]]
) -> Iterator[tuple[str, str]]:
    """
    Yield a reason if the loop lives, but thread pools or process pools of its jobs accept no run.

    Args:
        scheduler: an APScheduler 3 scheduler.
        get_executors_of_jobs: returns the labels of the executors that its jobs need. While it has
            no job, all executors count, as the next job may need any of them.
    """
    executors = {
        alias: executor
        for alias, executor in scheduler._executors.copy().items()  # noqa: SLF001
        if isinstance(executor, BasePoolExecutor)
    }
    has_main_thread_ended = not (threading.main_thread().is_alive() or _new_pools_accept_calls())
    refusing: dict[str, list[str]] = {}
    for alias in sorted(executors):
        code = (
            "main_thread_ended" if has_main_thread_ended else _find_pool_problem(executors[alias])
        )
        if code is not None:
            refusing.setdefault(code, []).append(alias)
    needed = get_executors_of_jobs() if refusing else ()
    for code, aliases in refusing.items():
        names = ", ".join(
            repr(alias) for alias in aliases if not needed or label_value(alias) in needed
        )
        if names:
            yield code, _POOL_PROBLEM_MESSAGES[code].format(names=names)


_POOL_PROBLEM_MESSAGES = {
    "main_thread_ended": (
        "The main thread has ended, after which Python's thread pools and process pools "
        "accept nothing: no job of the executors {names} can be submitted any more. Let the main "
        "thread wait for the others, such as by join()."
    ),
    "executor_shut_down": (
        "The pools of the executors {names} were shut down, such as by the scheduler's shutdown(), "
        "and accept nothing any more: no job of these executors can be submitted. Create a new "
        "scheduler instead of starting this one again."
    ),
    "executor_broken": (
        "The pools of the executors {names} are broken, because their initializer has failed or a "
        "worker was killed: no job of these executors can be submitted any more."
    ),
}


def _find_pool_problem(executor: BasePoolExecutor) -> str | None:
    """Return why the pool of an executor accepts no call; None if it does, or may be replaced."""
    # Not by `getattr`, which may call code of the user's that creates a pool.
    pool = vars(executor).get("_pool")
    if (
        type(executor).submit_job is not BaseExecutor.submit_job
        or type(executor)._do_submit_job not in _APSCHEDULER_SUBMIT_METHODS  # noqa: SLF001
        or getattr(type(pool), "submit", None) not in _POOL_SUBMIT_METHODS
    ):
        return None  # a class of the user's, which may replace or renew its pool
    # A pool is marked as broken first, and then as shut down, too: so asked in the opposite order.
    is_shut_down = any(getattr(pool, flag, False) is True for flag in _SHUT_DOWN_FLAGS)
    if getattr(pool, "_broken", False):
        # That executor replaces its pool when it submits the next run.
        return None if isinstance(executor, ProcessPoolExecutor) else "executor_broken"
    return "executor_shut_down" if is_shut_down else None


_APSCHEDULER_SUBMIT_METHODS = (BasePoolExecutor._do_submit_job, ProcessPoolExecutor._do_submit_job)  # noqa: SLF001
_POOL_SUBMIT_METHODS = (ThreadPoolExecutor.submit, ProcessPool.submit)
_SHUT_DOWN_FLAGS = ("_shutdown", "_shutdown_thread")
"""Of the thread pools and of the process pools of `concurrent.futures`."""


def _new_pools_accept_calls() -> bool:
    """
    Return whether a pool of `concurrent.futures` accepts a call.

    Asked, as what `threading` takes for the main thread may have ended before, as in a program that
    embeds Python.
    """
    pool = ThreadPoolExecutor(1)
    try:
        pool.submit(bool)
    except RuntimeError:
        return False
    else:
        return True
    finally:
        pool.shutdown(wait=False)


def _overdue_seconds(loop: LoopState, now: float) -> float:
    """Return for how many seconds the next pass has been overdue; negative before it is due."""
    since, wait_seconds = loop.wait_start_and_seconds or (now, None)
    if not isinstance(wait_seconds, (int, float)):  # none is planned, or its time is not known
        return -math.inf
    return now - since - wait_seconds


class _ReactorAsEventLoop:
    """Twisted's reactor with two methods of an asyncio event loop."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor

    def is_closed(self) -> bool:
        return False

    def is_running(self) -> bool:
        return bool(getattr(self._reactor, "running", True))  # not every fake one has it


def _event_loop_of(scheduler: Any) -> Any:
    """Return the event loop of a scheduler without a thread of its own; None if it has none."""
    reactor = getattr(scheduler, "_reactor", None)
    if reactor is not None:
        return _ReactorAsEventLoop(reactor)
    io_loop = getattr(scheduler, "_ioloop", None)
    if io_loop is not None:
        return getattr(io_loop, "asyncio_loop", None)
    return getattr(scheduler, "_eventloop", None)
