"""
Renders pages in threads that never delay the exit of the interpreter, once for equal requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from math import inf
from typing import Any

from apscheduler_telemetry.core.forks import create_daemon_thread, reset_in_forked_children
from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.messages import assume_client_connected


def _return_unchanged(result: Any) -> Any:
    return result


@dataclass(frozen=True)
class _Waiter:
    """
    A request that waits for a rendering.

    Attributes:
        future: gets what `convert_result` returns; cancelled if no client waits any more.
        check_client_gone: returns whether the client has disconnected.
        convert_result: makes of the result what the request gets.
    """

    future: Future[Any]
    check_client_gone: Callable[[], bool]
    convert_result: Callable[[Any], Any]


@dataclass(eq=False)
class _Rendering:
    """A call, and the requests that wait for its result."""

    key: Hashable
    render: Callable[[], Any]
    waiters: list[_Waiter] = field(default_factory=list)

    def drop_waiters_without_client(self) -> None:
        """Forget waiters that are cancelled, or whose client has disconnected."""
        for waiter in self.waiters:
            if waiter.check_client_gone():
                waiter.future.cancel()
        self.waiters = [waiter for waiter in self.waiters if not waiter.future.cancelled()]

    def run(self) -> None:
        """Call, and give the result to all waiters."""
        waiters = [w for w in self.waiters if w.future.set_running_or_notify_cancel()]
        self.waiters = []  # the thread keeps this object longer than its waiters need their results
        try:
            result = self.render()
            accepted = [waiter.convert_result(result) for waiter in waiters]
        except BaseException as error:  # noqa: BLE001  # re-raised by future.result()
            # sys.exit() in a collector must not end the caller's thread.
            raised = error if isinstance(error, Exception) else RuntimeError(repr(error))
            for waiter in waiters:
                waiter.future.set_exception(raised)
        else:
            for waiter, value in zip(waiters, accepted, strict=True):
                waiter.future.set_result(value)


class RenderQueue:
    """
    Renders in at most `limits.MAX_THREADS_PER_PAGE` daemon threads, which end when idle.

    One stays for `limits.IDLE_THREAD_SECONDS`, as memory is reused less well by new threads.

    Requests with equal keys that wait at the same time share one result, which is rendered after
    the last of them arrived. Renderings run one after the other, whatever their keys, unless one of
    them takes longer than `limits.PARALLEL_RENDER_AFTER_SECONDS`: at the same time they would not
    be faster, and take more memory. Nothing is rendered if all clients that wait for it have
    disconnected.

    This is not a `concurrent.futures.ThreadPoolExecutor` because the interpreter joins the threads
    of that one at exit, which would block forever if a collector hangs. It also accepts nothing
    more once the main thread has ended.
    """

    def __init__(self) -> None:
        self.reset_after_fork()
        reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Start over with an empty queue and no threads."""
        self._condition = threading.Condition()
        self._pending: dict[Hashable, _Rendering] = {}
        self._started_at_by_rendering: dict[_Rendering, float] = {}
        self._thread_count = 0
        self._last_thread: int | None = None

    def submit(
        self,
        key: Hashable,
        render: Callable[[], Any],
        check_client_gone: Callable[[], bool] = assume_client_connected,
        convert_result: Callable[[Any], Any] = _return_unchanged,
    ) -> Future[Any]:
        """
        Render in a thread, or in this one if no thread can be started.

        Args:
            key: equal for requests that can share a result.
            render: produces the result.
            check_client_gone: returns whether the client has disconnected; must not block.
            convert_result: called with the result as soon as it is there, before anything else is
                rendered; must not block.

        Returns:
            What `convert_result` returns, by default the result. It is cancelled if the client has
            disconnected before the rendering. A `BaseException` that is no `Exception` becomes a
            `RuntimeError`.

        Raises:
            RuntimeError: `limits.MAX_PENDING_REQUESTS` requests are waiting.
        """
        waiter = _Waiter(Future(), check_client_gone, convert_result)
        with self._condition:
            self._reject_if_full()
            rendering = self._pending.setdefault(key, _Rendering(key, render))
            rendering.waiters.append(waiter)
            if not self._should_start_another_thread() or self._try_start_thread():
                self._condition.notify()
                return waiter.future
            del self._pending[key]
        rendering.run()
        return waiter.future

    def _reject_if_full(self) -> None:
        if self._count_waiters() < limits.MAX_PENDING_REQUESTS:
            return
        for rendering in list(self._pending.values()):
            rendering.drop_waiters_without_client()
            if not rendering.waiters:
                del self._pending[rendering.key]
        if self._count_waiters() >= limits.MAX_PENDING_REQUESTS:
            msg = (
                f"{limits.MAX_PENDING_REQUESTS} requests are already waiting; "
                "does a collector hang?"
            )
            raise RuntimeError(msg)

    def _count_waiters(self) -> int:
        return sum(len(rendering.waiters) for rendering in self._pending.values())

    def _should_start_another_thread(self) -> bool:
        """Return whether no thread is idle, and another one is allowed."""
        return not self._count_idle_threads() and self._thread_count < limits.MAX_THREADS_PER_PAGE

    def _count_idle_threads(self) -> int:
        return self._thread_count - len(self._started_at_by_rendering)

    def _try_start_thread(self) -> bool:
        """Start a thread; return False if that is impossible, as after the main thread's end."""
        name = "apscheduler-telemetry-collect"
        try:
            create_daemon_thread(self._render_until_idle, name=name).start()
        except RuntimeError:
            return False
        self._thread_count += 1
        return True

    def _render_until_idle(self) -> None:
        rendering = None
        while (rendering := self._take_next_rendering(rendering)) is not None:
            rendering.run()

    def _take_next_rendering(self, ended: _Rendering | None) -> _Rendering | None:
        """Wait for a rendering that may start; return None if this thread is to end."""
        this_thread = threading.get_ident()
        with self._condition:
            if ended is not None:
                del self._started_at_by_rendering[ended]
                self._last_thread = this_thread
                self._condition.notify_all()
            while True:
                # The thread that has rendered last goes on: others would take memory of their own.
                if self._count_idle_threads() > 1 and this_thread != self._last_thread:
                    self._condition.notify()  # pass on what this thread may have been woken for
                    break
                rendering, seconds_to_wait = self._pop_startable_rendering()
                if rendering is not None:
                    self._started_at_by_rendering[rendering] = time.monotonic()
                    if self._pending and self._should_start_another_thread():
                        self._try_start_thread()  # it waits until this rendering has taken too long
                    return rendering
                if not self._condition.wait(seconds_to_wait) and not self._pending:
                    break
            self._thread_count -= 1
            return None

    def _pop_startable_rendering(self) -> tuple[_Rendering | None, float]:
        """Return a rendering that may start, or for how many seconds to wait."""
        last_start = max(self._started_at_by_rendering.values(), default=-inf)
        seconds_to_wait = last_start + limits.PARALLEL_RENDER_AFTER_SECONDS - time.monotonic()
        if seconds_to_wait > 0:
            return None, seconds_to_wait
        for key, rendering in list(self._pending.items()):
            del self._pending[key]
            rendering.drop_waiters_without_client()
            if rendering.waiters:
                return rendering, 0.0
        return None, limits.IDLE_THREAD_SECONDS
