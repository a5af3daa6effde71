"""
Schedulers of every kind, driven by hand: each runs due jobs on request.

A driver waits until all runs have ended, so that a pass holds the whole of their cost. Where an
executor has threads or processes, it has one: the order is fixed then, and so is what a pass does.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor as Threads
from datetime import datetime, timezone
from typing import Any

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.schedulers import base
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from .jobs import work

START = datetime(2020, 1, 1, tzinfo=timezone.utc)  # no run is too early, none is ever too late


class Frozen(datetime):
    """The scheduler's clock, moved by hand."""

    at = START

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # noqa: ARG003
        """Return the moment that was set."""
        return cls.at


class DrivenByHand:
    """Keeps a scheduler of any kind from running a loop of its own."""

    def start(self: Any, paused: bool = False) -> None:  # noqa: FBT001, FBT002
        """Start without a loop."""
        base.BaseScheduler.start(self, paused)

    def shutdown(self: Any, wait: bool = True) -> None:  # noqa: FBT001, FBT002
        """Shut down without a loop."""
        base.BaseScheduler.shutdown(self, wait)

    def wakeup(self) -> None:
        """Do nothing, as the driver says when to run what is due."""


class PlainScheduler(DrivenByHand, base.BaseScheduler):
    """A scheduler that needs no framework."""


class DebugDriver:
    """Runs jobs inline, by the debug executor; the drivers below only say what they do else."""

    runs_coroutines = False

    def __init__(self, executors: int = 1) -> None:
        self.executors = [self.make_executor() for _ in range(executors)]
        self.executor = self.executors[0]
        names = ["default", *map(str, range(1, executors))]
        named = dict(zip(names, self.executors, strict=True))
        self.scheduler = self.make_scheduler(timezone="UTC", executors=named)

    def make_executor(self) -> Any:
        """Return an executor, whose pool, if any, has one worker."""
        return DebugExecutor()

    def make_scheduler(self, **options: Any) -> Any:
        """Return a scheduler that is driven by hand."""
        return PlainScheduler(**options)

    def run_due(self) -> None:
        """Run what is due, and return when all of it has ended."""
        self.scheduler._process_jobs()  # noqa: SLF001

    def cpu_time(self) -> float:
        """Return the seconds of CPU time that were used so far, by workers as well."""
        return time.process_time()

    def worker_pids(self) -> list[int]:
        """Return the processes that run jobs, besides this one."""
        return []

    def is_running(self) -> bool:
        """Return whether an executor has runs that have not ended."""
        return any(any(executor._instances.values()) for executor in self.executors)  # noqa: SLF001

    def close(self) -> None:
        """Stop what would keep the process from ending."""
        self.scheduler.shutdown()


class ThreadPoolDriver(DebugDriver):
    """Runs jobs in a thread pool."""

    def make_executor(self) -> Any:
        return ThreadPoolExecutor(1)

    def run_due(self) -> None:
        super().run_due()
        self.executor._pool.submit(work).result()  # noqa: SLF001  # the only worker takes it last
        while self.is_running():
            time.sleep(0)


class ProcessPoolDriver(DebugDriver):
    """Runs jobs in a process pool."""

    _worker_cpu_time = 0.0

    def make_executor(self) -> Any:
        return ProcessPoolExecutor(1)

    def run_due(self) -> None:
        super().run_due()
        # The only worker takes it last, and says how long it has worked.
        self._worker_cpu_time = self.executor._pool.submit(time.process_time).result()  # noqa: SLF001
        while self.is_running():
            time.sleep(0)

    def cpu_time(self) -> float:
        return super().cpu_time() + self._worker_cpu_time

    def worker_pids(self) -> list[int]:
        return list(self.executor._pool._processes)  # noqa: SLF001


class AsyncioScheduler(DrivenByHand, AsyncIOScheduler):
    """The scheduler for asyncio."""


class AsyncioDriver(DebugDriver):
    """Runs coroutines in an asyncio loop."""

    runs_coroutines = True

    def __init__(self, executors: int = 1) -> None:
        self.loop = asyncio.new_event_loop()
        super().__init__(executors)

    def make_executor(self) -> Any:
        return AsyncIOExecutor()

    def make_scheduler(self, **options: Any) -> Any:
        return AsyncioScheduler(event_loop=self.loop, **options)

    def run_due(self) -> None:
        self.loop.run_until_complete(self._run_due())

    async def _run_due(self) -> None:
        super().run_due()
        await self._until_ended()

    async def _until_ended(self) -> None:
        while self.is_running():  # noqa: ASYNC110  # an event would have to be set by a listener
            await asyncio.sleep(0)


class AsyncioThreadsDriver(AsyncioDriver):
    """Runs plain functions, which asyncio's executor gives to the default pool of the loop."""

    runs_coroutines = False

    def __init__(self, executors: int = 1) -> None:
        super().__init__(executors)
        self.pool = Threads(1)
        self.loop.set_default_executor(self.pool)

    async def _run_due(self) -> None:
        self.scheduler._process_jobs()  # noqa: SLF001
        await self.loop.run_in_executor(None, work)  # the only worker takes it last
        await self._until_ended()


class TornadoDriver(AsyncioDriver):
    """Runs coroutines in a loop of Tornado, which is one of asyncio underneath."""

    def __init__(self, executors: int = 1) -> None:
        from tornado.ioloop import IOLoop  # noqa: PLC0415  # only where it is measured

        self.io_loop: Any = IOLoop(make_current=False)
        super().__init__(executors)
        self.loop = self.io_loop.asyncio_loop

    def make_executor(self) -> Any:
        from apscheduler.executors.tornado import TornadoExecutor  # noqa: PLC0415

        return TornadoExecutor(1)

    def make_scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.tornado import TornadoScheduler  # noqa: PLC0415

        made = type("DrivenTornadoScheduler", (DrivenByHand, TornadoScheduler), {})
        return made(io_loop=self.io_loop, **options)


class TornadoThreadsDriver(TornadoDriver):
    """Runs plain functions, for which Tornado's executor has a thread pool of its own."""

    runs_coroutines = False

    async def _run_due(self) -> None:
        self.scheduler._process_jobs()  # noqa: SLF001
        self.executor.executor.submit(work).result()  # the only worker takes it last
        await self._until_ended()


class TwistedDriver(DebugDriver):
    """Runs jobs in the thread pool of Twisted's reactor."""

    def __init__(self, executors: int = 1) -> None:
        from twisted.internet import reactor  # noqa: PLC0415  # only where it is measured

        self.reactor: Any = reactor
        # Jobs need nothing of it but its pool, which starts with it; its loop never has to turn.
        self.reactor.startRunning(installSignalHandlers=False)
        self.reactor.suggestThreadPoolSize(1)
        super().__init__(executors)

    def make_executor(self) -> Any:
        from apscheduler.executors.twisted import TwistedExecutor  # noqa: PLC0415

        return TwistedExecutor()

    def make_scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.twisted import TwistedScheduler  # noqa: PLC0415

        made = type("DrivenTwistedScheduler", (DrivenByHand, TwistedScheduler), {})
        return made(reactor=self.reactor, **options)

    def run_due(self) -> None:
        super().run_due()
        ended = threading.Event()
        self.reactor.getThreadPool().callInThread(ended.set)  # the only worker takes it last
        ended.wait()

    def close(self) -> None:
        super().close()
        self.reactor.getThreadPool().stop()


class GeventDriver(DebugDriver):
    """Runs jobs in greenlets; to be used where gevent has patched the standard library."""

    def __init__(self, executors: int = 1) -> None:
        import gevent  # noqa: PLC0415  # only where it is measured

        self.sleep: Callable[[float], None] = gevent.sleep
        super().__init__(executors)

    def make_executor(self) -> Any:
        from apscheduler.executors.gevent import GeventExecutor  # noqa: PLC0415

        return GeventExecutor()

    def make_scheduler(self, **options: Any) -> Any:
        from apscheduler.schedulers.gevent import GeventScheduler  # noqa: PLC0415

        return type("DrivenGeventScheduler", (DrivenByHand, GeventScheduler), {})(**options)

    def run_due(self) -> None:
        super().run_due()
        while self.is_running():
            self.sleep(0)
