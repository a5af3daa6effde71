"""The schedulers of the matrix, each in its own kind of loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

from apscheduler.events import JobExecutionEvent
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler

from tests.helpers.jobs import PATIENCE
from tests.helpers.schedulers import spawning_pool


class World:
    """A scheduler where it is at home, and how to live beside it; by default with threads."""

    def run(self, main: Callable[[], None]) -> None:
        """Turn the loop until `main`, which runs beside it, is through."""
        main()

    def scheduler(self, **options: Any) -> Any:
        """Return a scheduler that runs in this world."""
        return BackgroundScheduler(**options)

    def executor(self, alias: str) -> Any:
        """Return an executor with one worker, or without a limit where it knows none."""
        if alias == "threadpool":
            return ThreadPoolExecutor(1)
        return spawning_pool() if alias == "processpool" else DebugExecutor()

    def start(self, scheduler: Any) -> None:
        self.call(scheduler.start)

    def call(self, what: Callable[[], Any]) -> Any:
        """Do something where this world allows it to be done to a scheduler."""
        return what()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def lose_timer(self, scheduler: Any) -> None:
        """Take away what would turn the loop again; to be called in the loop."""
        raise NotImplementedError

    def in_loop(self, what: Callable[[], Any]) -> None:
        """Do something in the thread of the loop, and wait for it."""
        raise NotImplementedError

    def until(self, condition: Callable[[], Any], what: Any = "") -> Any:
        """Wait until `condition` holds, and return what it returned."""
        deadline = time.perf_counter() + PATIENCE
        while not (met := condition()):
            assert time.perf_counter() < deadline, f"waited too long for {what or condition}"
            self.sleep(0.002)
        return met


class Background(World):
    """The plain one."""


class Blocking(World):
    """Its `start` returns when it is shut down."""

    def scheduler(self, **options: Any) -> Any:
        return BlockingScheduler(**options)

    def start(self, scheduler: Any) -> None:
        threading.Thread(target=scheduler.start, daemon=True).start()
        self.until(lambda: scheduler.running, "the start")


class AsyncIO(World):
    """An event loop in the main thread."""

    loop: asyncio.AbstractEventLoop

    def run(self, main: Callable[[], None]) -> None:
        asyncio.run(self._run(main))

    async def _run(self, main: Callable[[], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_default_executor(concurrent.futures.ThreadPoolExecutor(1))
        self.loop.set_exception_handler(lambda *_: None)  # passes that are meant to fail
        self.started()
        with concurrent.futures.ThreadPoolExecutor(1) as beside:
            await self.loop.run_in_executor(beside, main)

    def started(self) -> None:
        """Note what else belongs to the loop."""

    def scheduler(self, **options: Any) -> Any:
        return AsyncIOScheduler(event_loop=self.loop, **options)

    def executor(self, alias: str) -> Any:
        if alias == "asyncio":
            from apscheduler.executors.asyncio import AsyncIOExecutor

            return AsyncIOExecutor()
        return super().executor(alias)

    def lose_timer(self, scheduler: Any) -> None:
        scheduler._timeout.cancel()

    def in_loop(self, what: Callable[[], Any]) -> None:
        async def call() -> Any:
            return what()

        asyncio.run_coroutine_threadsafe(call(), self.loop).result(PATIENCE)


class Tornado(AsyncIO):
    """Tornado's way to the same event loop."""

    def started(self) -> None:
        from tornado.ioloop import IOLoop

        self.io_loop = IOLoop.current()

    def scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.tornado import TornadoScheduler

        return TornadoScheduler(io_loop=self.io_loop, **options)

    def executor(self, alias: str) -> Any:
        if alias == "tornado":
            from apscheduler.executors.tornado import TornadoExecutor

            return TornadoExecutor(max_workers=1)
        return super().executor(alias)

    def lose_timer(self, scheduler: Any) -> None:
        self.io_loop.remove_timeout(scheduler._timeout)


class Twisted(World):
    """A reactor in the main thread."""

    def run(self, main: Callable[[], None]) -> None:
        from twisted.internet import reactor

        self.reactor: Any = reactor
        self.reactor.suggestThreadPoolSize(1)
        errors: list[BaseException] = []

        def beside() -> None:
            try:
                main()
            except BaseException as error:  # noqa: BLE001  # raised again in the main thread
                errors.append(error)
            finally:
                self.reactor.callFromThread(self.reactor.stop)

        self.reactor.callWhenRunning(threading.Thread(target=beside).start)
        self.reactor.run()
        if errors:
            raise errors[0]

    def scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.twisted import TwistedScheduler

        return TwistedScheduler(**options)

    def executor(self, alias: str) -> Any:
        if alias == "twisted":
            from apscheduler.executors.twisted import TwistedExecutor

            return TwistedExecutor()
        return super().executor(alias)

    def lose_timer(self, scheduler: Any) -> None:
        for call in self.reactor.getDelayedCalls():
            call.cancel()

    def in_loop(self, what: Callable[[], Any]) -> None:
        from twisted.internet.threads import blockingCallFromThread

        blockingCallFromThread(self.reactor, what)


class Gevent(World):
    """Greenlets in the main thread; threads are threads where nothing is patched."""

    def scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.gevent import GeventScheduler

        return GeventScheduler(**options)

    def executor(self, alias: str) -> Any:
        if alias == "gevent":
            from apscheduler.executors.gevent import GeventExecutor

            return GeventExecutor()
        return super().executor(alias)

    def sleep(self, seconds: float) -> None:
        import gevent

        gevent.sleep(seconds)


class BackgroundPatched(Gevent):
    """The plain one, whose thread is a greenlet."""

    def scheduler(self, **options: Any) -> Any:
        return BackgroundScheduler(**options)


class Qt(World):
    """A Qt application in the main thread, which must not be asked from another one."""

    def run(self, main: Callable[[], None]) -> None:
        from PySide6.QtCore import QCoreApplication, QObject, QTimer, Signal

        class Caller(QObject):
            called = Signal(object)

        self.application = QCoreApplication([])
        self._caller = Caller()
        self._caller.called.connect(lambda what: what())
        errors: list[BaseException] = []

        def beside() -> None:
            try:
                main()
            except BaseException as error:  # noqa: BLE001  # raised again in the main thread
                errors.append(error)
            finally:
                self.call(self.application.quit)

        QTimer.singleShot(0, lambda: threading.Thread(target=beside).start())
        self.application.exec()
        if errors:
            raise errors[0]

    def scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.qt import QtScheduler

        return QtScheduler(**options)

    def call(self, what: Callable[[], Any]) -> Any:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def call() -> None:
            try:
                future.set_result(what())
            except BaseException as error:  # noqa: BLE001  # raised again where it was asked for
                future.set_exception(error)

        self._caller.called.emit(call)
        return future.result(PATIENCE)


class OwnScheduler(BackgroundScheduler):
    """A scheduler of the user's that overrides all that makes up a loop."""

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
        # Not by way of self._process_jobs(), which nobody calls here.
        seconds: float | None = super()._process_jobs()
        return seconds

    def _process_jobs(self) -> Any:
        raise AssertionError


class OwnExecutor(BaseExecutor):
    """An executor of the user's: a queue, a thread, and events that are its own."""

    def start(self, scheduler: Any, alias: str) -> None:
        super().start(scheduler, alias)
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def shutdown(self, wait: bool = True) -> None:
        self._queue.put(None)

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        self._queue.put((job, run_times))

    def _work(self) -> None:
        while (taken := self._queue.get()) is not None:
            job, run_times = taken
            try:
                events = run_job(job, job._jobstore_alias, run_times, self._logger.name)
            except BaseException as error:  # noqa: BLE001  # as APScheduler's executors do
                self._run_job_error(job.id, error)
            else:
                self._run_job_success(job.id, (OwnEvent(event) for event in events))


class OwnEvent:
    """An event that is like APScheduler's, and no more than that."""

    __slots__ = ("_event",)

    def __init__(self, event: JobExecutionEvent) -> None:
        self._event = event

    def __getattr__(self, name: str) -> Any:
        return getattr(self._event, name)


class Own(World):
    """What users build."""

    def scheduler(self, **options: Any) -> Any:
        return OwnScheduler(**options)

    def executor(self, alias: str) -> Any:
        return OwnExecutor() if alias == "own" else super().executor(alias)


WORLDS: dict[str, type[World]] = {
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
