"""The runtimes of the matrix: schedulers and executors in their kinds of loops."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import ThreadPoolExecutor as Threads
from typing import Any

from apscheduler.events import JobExecutionEvent
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler

from tests.helpers.schedulers import forkserver_pool

CELL_TIMEOUT = 30.0
"""Seconds after which a cell fails; short enough for the process to report which cell it is."""


class Runtime:
    """
    What a scheduler needs to run in: an event loop, a reactor, a Qt application, or only threads.

    This class is the runtime of schedulers that have a thread of their own.
    """

    def run(self, main: Callable[[], None]) -> None:
        """Run the loop until `main`, in another thread, has returned."""
        main()

    def scheduler(self, **options: Any) -> Any:
        """Return a scheduler for this runtime."""
        return BackgroundScheduler(**options)

    def executor(self, alias: str) -> Any:
        """Return an executor with one worker, or without a limit if it cannot have one."""
        if alias == "threadpool":
            return ThreadPoolExecutor(1)
        if alias == "processpool":
            return forkserver_pool()
        return DebugExecutor() if alias == "debug" else self.own_executor()

    def own_executor(self) -> Any:
        """Return an executor of the kind that only this runtime has."""
        raise NotImplementedError

    def start(self, scheduler: Any) -> None:
        self.call(scheduler.start)

    def call(self, function: Callable[[], Any]) -> Any:
        """Call a function in a thread in which this runtime allows a scheduler to be changed."""
        return function()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def lose_timer(self, scheduler: Any) -> None:
        """Cancel the timer of the next pass; to be called in the loop."""
        raise NotImplementedError

    def in_loop(self, function: Callable[[], Any]) -> None:
        """Call a function in the thread of the loop, and wait for its end."""
        raise NotImplementedError

    def until(self, condition: Callable[[], Any], what: Any = "") -> Any:
        """Wait until `condition` holds, and return what it returned."""
        deadline = time.perf_counter() + CELL_TIMEOUT
        while not (met := condition()):
            assert time.perf_counter() < deadline, f"waited too long for {what or condition}"
            self.sleep(0.002)
        return met


class Background(Runtime):
    """A scheduler with a thread."""


class Blocking(Runtime):
    """A scheduler whose `start` returns when it is shut down."""

    def scheduler(self, **options: Any) -> Any:
        return BlockingScheduler(**options)

    def start(self, scheduler: Any) -> None:
        threading.Thread(target=scheduler.start, daemon=True).start()
        self.until(lambda: scheduler.running, "the start")


class AsyncIO(Runtime):
    """An event loop in the main thread."""

    loop: asyncio.AbstractEventLoop

    def run(self, main: Callable[[], None]) -> None:
        asyncio.run(self._run(main))

    async def _run(self, main: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(Threads(1))
        self.loop.set_exception_handler(lambda *_: None)  # for passes that tests let fail
        with Threads(1) as threads:
            await self.loop.run_in_executor(threads, main)

    def scheduler(self, **options: Any) -> Any:
        return AsyncIOScheduler(event_loop=self.loop, **options)

    def own_executor(self) -> Any:
        from apscheduler.executors.asyncio import AsyncIOExecutor

        return AsyncIOExecutor()

    def lose_timer(self, scheduler: Any) -> None:
        scheduler._timeout.cancel()

    def in_loop(self, function: Callable[[], Any]) -> None:
        async def call() -> Any:
            return function()

        asyncio.run_coroutine_threadsafe(call(), self.loop).result(CELL_TIMEOUT)


class Tornado(AsyncIO):
    """Tornado, which wraps the event loop of asyncio."""

    async def _run(self, main: Callable[[], None]) -> None:
        from tornado.ioloop import IOLoop

        self.io_loop = IOLoop.current()
        await super()._run(main)

    def scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.tornado import TornadoScheduler

        return TornadoScheduler(io_loop=self.io_loop, **options)

    def own_executor(self) -> Any:
        from apscheduler.executors.tornado import TornadoExecutor

        return TornadoExecutor(max_workers=1)

    def lose_timer(self, scheduler: Any) -> None:
        self.io_loop.remove_timeout(scheduler._timeout)


def set_outcome(future: Future[Any], function: Callable[[], Any]) -> None:
    """Call a function, and give what it returns or raises to a future."""
    try:
        future.set_result(function())
    except BaseException as error:  # noqa: BLE001  # raised again by Future.result
        future.set_exception(error)


def thread_beside_loop(
    main: Callable[[], None], stop: Callable[[], Any]
) -> tuple[threading.Thread, Future[None]]:
    """Return a thread that calls `main` and then stops the loop, and a future for its outcome."""
    future: Future[None] = Future()

    def run() -> None:
        set_outcome(future, main)
        stop()

    return threading.Thread(target=run), future


class Twisted(Runtime):
    """A reactor in the main thread."""

    def run(self, main: Callable[[], None]) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.reactor.suggestThreadPoolSize(1)
        thread, outcome = thread_beside_loop(
            main, lambda: self.reactor.callFromThread(self.reactor.stop)
        )
        self.reactor.callWhenRunning(thread.start)
        self.reactor.run()
        outcome.result()

    def scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.twisted import TwistedScheduler

        return TwistedScheduler(**options)

    def own_executor(self) -> Any:
        from apscheduler.executors.twisted import TwistedExecutor

        return TwistedExecutor()

    def lose_timer(self, scheduler: Any) -> None:
        for call in self.reactor.getDelayedCalls():
            call.cancel()

    def in_loop(self, function: Callable[[], Any]) -> None:
        from twisted.internet.threads import blockingCallFromThread

        blockingCallFromThread(self.reactor, function)


class Gevent(Runtime):
    """Greenlets in the main thread; other threads are real where nothing is patched."""

    def scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.gevent import GeventScheduler

        return GeventScheduler(**options)

    def own_executor(self) -> Any:
        from apscheduler.executors.gevent import GeventExecutor

        return GeventExecutor()

    def sleep(self, seconds: float) -> None:
        import gevent

        gevent.sleep(seconds)


class BackgroundPatched(Gevent):
    """A BackgroundScheduler whose thread is a greenlet, as gevent has patched threads."""

    def scheduler(self, **options: Any) -> Any:
        return BackgroundScheduler(**options)


class Qt(Runtime):
    """A Qt application in the main thread; its scheduler must not be used from another thread."""

    def run(self, main: Callable[[], None]) -> None:
        from PySide6.QtCore import QCoreApplication, QObject, QTimer, Signal

        class Caller(QObject):
            called = Signal(object)

        self.application = QCoreApplication([])
        self._caller = Caller()
        self._caller.called.connect(lambda function: function())
        thread, outcome = thread_beside_loop(main, lambda: self.call(self.application.quit))
        QTimer.singleShot(0, thread.start)
        self.application.exec()
        outcome.result()

    def scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.qt import QtScheduler

        return QtScheduler(**options)

    def call(self, function: Callable[[], Any]) -> Any:
        future: Future[Any] = Future()
        self._caller.called.emit(lambda: set_outcome(future, function))
        return future.result(CELL_TIMEOUT)


class OwnScheduler(BackgroundScheduler):
    """A user's scheduler that overrides every part of the loop."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        self._ticks: queue.SimpleQueue[bool] = queue.SimpleQueue()
        BaseScheduler.start(self, *args, **kwargs)
        self._ticker = threading.Thread(target=self._main_loop, daemon=True)
        self._ticker.start()

    def shutdown(self, wait: bool = True) -> None:
        BaseScheduler.shutdown(self, wait)
        self._ticks.put(False)
        self._ticker.join()

    def wakeup(self) -> None:
        self._ticks.put(True)

    def _main_loop(self) -> None:
        wait: float | None = None
        while True:
            try:
                if not self._ticks.get(timeout=wait):
                    return
            except queue.Empty:
                pass
            wait = self._tick()

    def _tick(self) -> float | None:
        # This loop never calls self._process_jobs().
        seconds: float | None = super()._process_jobs()
        return seconds

    def _process_jobs(self) -> Any:
        raise AssertionError


class OwnExecutor(BaseExecutor):
    """A user's executor: a queue, a thread, and events of a class of its own."""

    def start(self, scheduler: Any, alias: str) -> None:
        super().start(scheduler, alias)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def shutdown(self, wait: bool = True) -> None:
        self._queue.put(None)

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        self._queue.put((job, run_times))

    def _work(self) -> None:
        while (submitted := self._queue.get()) is not None:
            job, run_times = submitted
            try:
                events = run_job(job, job._jobstore_alias, run_times, self._logger.name)
            except BaseException as error:  # noqa: BLE001  # as APScheduler's executors do
                self._run_job_error(job.id, error)
            else:
                self._run_job_success(job.id, (OwnEvent(event) for event in events))


class OwnEvent:
    """An event with the attributes of APScheduler's, but of another class."""

    __slots__ = ("_event",)

    def __init__(self, event: JobExecutionEvent) -> None:
        self._event = event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)


class Own(Runtime):
    """A scheduler and an executor as a user may write them."""

    def scheduler(self, **options: Any) -> Any:
        return OwnScheduler(**options)

    def own_executor(self) -> Any:
        return OwnExecutor()


RUNTIMES: dict[str, type[Runtime]] = {
    "background": Background,
    "blocking": Blocking,
    "asyncio": AsyncIO,
    "tornado": Tornado,
    "twisted": Twisted,
    "gevent": Gevent,
    "gevent patched": Gevent,
    "background patched": BackgroundPatched,
    "qt": Qt,
    "own": Own,
}
