"""
Plays one world of the matrix in a process of its own.

    python -c 'import support_worlds; support_worlds.main()' WORLD

It has to be its own: monkey patches, a reactor and a Qt application are there once per process
and for good. Prints a line of JSON: the traceback of what went wrong, by cell and fault, None
where all was well.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import logging
import queue
import re
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apscheduler.events import JobExecutionEvent
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

import support_matrix as matrix
from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3 import loop_liveness as _loop
from apscheduler_telemetry.core.model import SchedulerErrorKind
from support import (
    JobState,
    Rig,
    check_counts,
    errors_of,
    job_states,
    outcomes,
    processes,
    recorder_of,
    sample,
)
from support_jobs import PATIENCE, fail, nap, nothing, result_without_pickle
from support_matrix import Cell
from support_scenes import FaultyStore, ago, ahead

HELD = 0.1
"""Seconds for which a run is held up where its duration matters."""


LATE = 0.3
"""Seconds after which a loop counts as overdue here."""
MANY = 10
"""Runs at a time, where nothing limits them."""


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
        return processes() if alias == "processpool" else DebugExecutor()

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


class Stage:
    """An instrumented scheduler in its world, on which one cell after another is played."""

    def __init__(self, world: World, scheduler: Any, directory: str) -> None:
        self.world = world
        self.scheduler = scheduler
        self.directory = directory
        self.spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.rig = Rig(scheduler, tracer_provider=provider)
        self.until = world.until

    def add(self, job_id: str, cell: Cell, func: Any, *args: Any, **options: Any) -> str:
        """Add a job that is due now, and again in an hour."""
        options = {
            "trigger": "interval",
            "hours": 1,
            "next_run_time": ago(0.1),
            "misfire_grace_time": None,
            "executor": cell.executor,
            "id": job_id,
            **options,
        }
        self.world.call(lambda: self.scheduler.add_job(func, args=args, **options))
        return job_id

    def hold(self, job_id: str, cell: Cell) -> str:
        """Add a job that runs until it is let go."""
        func = matrix.KINDS[cell.kind].hold
        return self.add(job_id, cell, func, self.directory, job_id)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the loop see all jobs that are added meanwhile in one pass."""
        self.world.call(self.scheduler.pause)
        yield
        self.world.call(self.scheduler.resume)

    def wait_for_run(self, job_id: str) -> None:
        self.until(Path(self.directory, f"{job_id}.in").exists, f"{job_id} to start")

    def let_go(self, *job_ids: str) -> None:
        for job_id in job_ids:
            Path(self.directory, f"{job_id}.out").touch()

    def ends(self, job_id: str, **expected: int) -> Any:
        """Wait until all of a job's runs have ended, and return the last event of them."""
        self.until(lambda: sum(self.outcomes(job_id).values()) >= sum(expected.values()), job_id)
        assert expected == outcomes(self.rig.telemetry, job_id)  # as a scrape shows them
        if not {"success", "error", "missed"} & set(expected):
            return None
        return self.until(lambda: self.events(job_id), f"an event of {job_id}")[-1]

    def outcomes(self, job_id: str) -> dict[str, int]:
        counted = self.job(job_id).outcomes
        return {outcome.value: count for outcome, count in counted.items() if count}

    def job(self, job_id: str) -> JobState:
        return self.rig.job(job_id)

    def events(self, job_id: str) -> list[Any]:
        """Return what listeners were told of runs that were executed, failed or came too late."""
        return [
            event
            for event in list(self.rig.events)
            if hasattr(event, "retval") and event.job_id == job_id
        ]

    def workers(self, cell: Cell) -> float:
        """Return the number of workers of an executor, as a scrape shows it."""
        return sample(self.rig.telemetry, "apscheduler_executor_workers", executor=cell.executor)

    def load(self, cell: Cell) -> tuple[int, int]:
        """Return the running and the queued runs of an executor."""
        _, running, queued = recorder_of(self.rig.telemetry).executors()[cell.executor]
        return running, queued

    def span_of(self, job_id: str) -> tuple[str, str]:
        """Return the ids of a job's one span, which must be a root."""
        (span,) = [s for s in self.spans.get_finished_spans() if s.name == job_id]
        assert span.parent is None
        context = span.get_span_context()
        assert context is not None
        return f"{context.trace_id:032x}", f"{context.span_id:016x}"

    def settle(self) -> None:
        """Check what holds after every cell: the law, a live loop, and no failure of ours."""
        self.until(self.rig.is_quiet, "runs to end")
        check_counts(self.rig.telemetry)
        assert not any(errors_of(self.rig.telemetry).counts().values())
        self.until(lambda: self.rig.telemetry._exported_scheduler.liveness().up, "life")
        assert self.rig.telemetry.health()["status"] == "healthy"
        self.until(self._is_told, "listeners to be told")

    def _is_told(self) -> bool:
        told, counted = self.rig._as_told(), self.rig._as_counted()
        # Nobody is told of a run that was due when its job was removed: it is missed all the same.
        return told.pop("missed") <= counted.pop("missed") and told == counted

    def stop(self) -> None:
        """Shut the scheduler down, and see that it counts as stopped."""
        if self.scheduler.running:
            self.world.call(self.scheduler.shutdown)
            self.until(lambda: not self.scheduler.running, "the shutdown")
        (reason,) = self.rig.telemetry._exported_scheduler.liveness().reasons
        assert reason[0] == "stopped"
        self.rig.telemetry.uninstrument()


# The cells


def success(stage: Stage, cell: Cell) -> None:
    job = stage.add("success", cell, matrix.KINDS[cell.kind].give_back, "value")
    assert stage.ends(job, success=1).retval == "value"
    state = stage.job(job)
    assert sum(state.durations.counts) == sum(state.delays.counts) == 1
    assert 0 <= state.last_duration < state.delays.sum  # it was due 0.1 s before
    assert state.last_success is not None
    assert state.last_failure is None


def error(stage: Stage, cell: Cell) -> None:
    job = stage.add("error", cell, matrix.KINDS[cell.kind].throw, ValueError("on purpose"))
    event = stage.ends(job, error=1)
    assert repr(event.exception) == "ValueError('on purpose')"
    assert "raise exception" in event.traceback
    assert "apscheduler_telemetry" not in event.traceback
    state = stage.job(job)
    assert state.exceptions == {"ValueError": 1}
    assert sum(state.durations.counts) == 1
    assert state.consecutive_failures == 1


def slow(stage: Stage, cell: Cell) -> None:
    since = time.time()
    job = stage.hold("slow", cell)
    stage.wait_for_run(job)
    seen = time.perf_counter()
    stage.until(lambda: stage.job(job).running == 1)
    assert since <= stage.job(job).running_since <= time.time()
    assert stage.load(cell) == (1, 0)
    stage.world.sleep(HELD)
    held = time.perf_counter() - seen
    stage.let_go(job)
    stage.ends(job, success=1)
    state = stage.job(job)
    assert held <= state.last_duration <= time.time() - since
    assert state.running == 0
    assert stage.load(cell) == (0, 0)


def queued(stage: Stage, cell: Cell) -> None:
    first, second = stage.hold("first", cell), "second"
    stage.wait_for_run(first)
    stage.add(second, cell, matrix.KINDS[cell.kind].give_back, 2)
    stage.until(lambda: stage.job(second).queued == 1)
    seen = time.perf_counter()
    stage.until(lambda: stage.load(cell) == (1, 1))
    if cell.executor != "own":  # which does not say how many it has
        expected = float("inf") if cell.executor == "asyncio" else 1
        assert expected == stage.workers(cell)
    stage.world.sleep(HELD)
    waited = time.perf_counter() - seen
    stage.let_go(first)
    stage.ends(second, success=1)
    state = stage.job(second)
    assert state.delays.sum >= waited + 0.1
    assert state.last_duration < waited
    stage.ends(first, success=1)


def not_queued(stage: Stage, cell: Cell) -> None:
    """Each of many runs at a time gets its own worker at once."""
    many = [stage.hold(f"one of many {number}", cell) for number in range(MANY)]
    for job in many:
        stage.wait_for_run(job)
    stage.until(lambda: stage.load(cell) == (MANY, 0))
    # Tornado's has threads as well, for functions.
    assert stage.workers(cell) == (1 if cell.executor == "tornado" else float("inf"))
    stage.let_go(*many)
    for job in many:
        stage.ends(job, success=1)


def not_queued_in_the_loop(stage: Stage, cell: Cell) -> None:
    """A run that waits for the loop is not handed over, nor queued."""
    with stage.at_once():
        first = stage.hold("first", cell)
        second = stage.add("second", cell, matrix.KINDS[cell.kind].give_back, 2)
    stage.wait_for_run(first)
    assert (stage.workers(cell), *stage.load(cell)) == (1, 1, 0)
    assert (stage.job(second).queued, stage.job(second).due_count) == (0, 0)
    stage.world.sleep(HELD)
    stage.let_go(first)
    stage.ends(second, success=1)
    assert stage.job(second).delays.sum >= HELD


def missed(stage: Stage, cell: Cell) -> None:
    func = matrix.KINDS[cell.kind].give_back
    job = stage.add("missed", cell, func, 1, next_run_time=ago(60), misfire_grace_time=1)
    event = stage.ends(job, missed=1)
    assert event.retval is None
    assert sum(stage.job(job).durations.counts) == 0


def skipped(stage: Stage, cell: Cell) -> None:
    job = stage.hold("skipped", cell)
    stage.wait_for_run(job)
    stage.world.call(lambda: stage.scheduler.modify_job(job, next_run_time=ago(0.1)))
    stage.until(lambda: stage.outcomes(job) == {"skipped": 1})
    stage.let_go(job)
    stage.ends(job, success=1, skipped=1)


def not_skipped(stage: Stage, cell: Cell) -> None:
    """A job that takes longer than its interval is late, and never refused."""
    options = {"hours": 0, "seconds": 0.01, "coalesce": True}
    job = stage.add("overrun", cell, nap, 0.03, **options)
    stage.until(lambda: stage.outcomes(job).get("success", 0) >= 3)
    stage.world.call(lambda: stage.scheduler.remove_job(job))
    counted = stage.outcomes(job)
    counted.pop("missed", None)  # the run that was due when the job was removed, if there was one
    assert set(counted) == {"success", "coalesced"}


def coalesced(stage: Stage, cell: Cell) -> None:
    options = {"hours": 0, "seconds": 60, "next_run_time": ago(630), "coalesce": True}
    job = stage.add("coalesced", cell, matrix.KINDS[cell.kind].give_back, 1, **options)
    stage.ends(job, success=1, coalesced=10)


def lost(stage: Stage, cell: Cell) -> None:
    if cell.executor == "processpool":
        job = stage.add("lost", cell, result_without_pickle)
        stage.ends(job, lost=1)
    else:
        # What APScheduler does not expect to fail: its own log, in the middle of run_job.
        logger = logging.getLogger(f"apscheduler.executors.{cell.executor}")

        def fault(record: logging.LogRecord) -> bool:
            return not record.getMessage().startswith('Running job "lost') or fail("log")

        logger.addFilter(fault)
        try:
            func = matrix.KINDS[cell.kind].give_back
            job = stage.add("lost", cell, func, 1, name="lost")
            stage.ends(job, lost=1)
        finally:
            logger.removeFilter(fault)
    assert stage.events(job) == []
    assert stage.job(job).consecutive_failures == 1


def span(stage: Stage, cell: Cell) -> None:
    together = cell.executor == "gevent" or cell.kind == "coroutine"
    a, b = stage.hold("a", cell), "b"
    stage.wait_for_run(a)
    if not together:
        stage.let_go(a)
    stage.hold(b, cell)
    stage.wait_for_run(b)
    stage.let_go(a)
    first = stage.ends(a, success=1)
    stage.let_go(b)
    second = stage.ends(b, success=1)
    assert stage.span_of(a) != stage.span_of(b)
    assert [stage.span_of(a)] * 2 == first.retval
    assert [stage.span_of(b)] * 2 == second.retval


def identity(stage: Stage, cell: Cell) -> None:
    kind = matrix.KINDS[cell.kind]
    value, exception = matrix.Value(), ValueError("on purpose")
    works = stage.add("works", cell, kind.give_back, value)
    fails = stage.add("fails", cell, kind.throw, exception)
    returned, raised = stage.ends(works, success=1), stage.ends(fails, error=1)
    if cell.executor == "processpool":
        assert returned.retval == value
        assert repr(raised.exception) == repr(exception)
    else:
        assert returned.retval is value
        assert raised.exception is exception
    for event in returned, raised:
        assert type(event) is (OwnEvent if cell.executor == "own" else JobExecutionEvent)
        assert event.jobstore == "default"
        if cell.executor != "own":  # its events are its own business
            assert type(event.job_id) is str
    # Which comes first is APScheduler's to say: a worker may be faster than the loop.
    assert sorted(stage.rig.codes(works)) == ["executed", "submitted"]
    assert sorted(stage.rig.codes(fails)) == ["error", "submitted"]


PLAYS: dict[str, Callable[[Stage, Cell], None]] = {
    play.__name__: play
    for play in (success, error, slow, queued, missed, skipped, coalesced, lost, span, identity)
}
PROOFS: dict[tuple[str, str], Callable[[Stage, Cell], None]] = {
    ("queued", "debug"): not_queued_in_the_loop,
    ("queued", "gevent"): not_queued,
    ("queued", "coroutine"): not_queued,
    ("skipped", "debug"): not_skipped,
}


def play_of(cell: Cell) -> Callable[[Stage, Cell], None]:
    """Return what shows that a behaviour is there, or that it cannot be."""
    if cell.impossible is None:
        return PLAYS[cell.behaviour]
    by_executor = PROOFS.get((cell.behaviour, cell.executor))
    return by_executor or PROOFS[cell.behaviour, cell.kind]


# The faults


class Patient:
    """A scheduler on a store that can fail, to be broken, and its health as it is served."""

    def __init__(self, world: World, *, start: bool = True) -> None:
        self.world = world
        self.store = FaultyStore()
        self.scheduler = world.scheduler(jobstores={"default": self.store})
        self.telemetry = instrument(self.scheduler, registry=CollectorRegistry())
        self.server = self.telemetry.start_http_server(0)
        if start:
            self.start()

    def start(self) -> None:
        self.world.start(self.scheduler)
        self.world.until(
            lambda: self.telemetry._exported_scheduler.last_pass_ended_at, "the first pass"
        )

    def add_due(self, seconds: float, func: Callable[[], Any] = nothing) -> None:
        """Add a job that is due in so many seconds."""
        self.world.call(
            lambda: self.scheduler.add_job(
                func, "interval", hours=1, next_run_time=ahead(seconds), misfire_grace_time=None
            )
        )

    def ran(self) -> bool:
        return any(sum(a.outcomes.values()) for a in job_states(self.telemetry))

    def reasons(self) -> list[str]:
        return [code for code, _ in self.telemetry._exported_scheduler.liveness().reasons]

    def is_told(self, *reasons: str) -> None:
        """Check what is served: 200 and up, or 503 and down for these reasons."""
        url = f"http://127.0.0.1:{self.server.port}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=PATIENCE) as answer:
                status, health = answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                status, health = error.code, json.load(error)
        with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as answer:
            (up,) = re.findall(r"(?m)^apscheduler_scheduler_up\{.*\} (.*)$", answer.read().decode())
        codes = [reason["code"] for reason in health["reasons"]]
        assert codes == list(reasons), health["reasons"]
        assert (status, float(up)) == ((503, 0) if reasons else (200, 1))

    def close(self) -> None:
        if self.scheduler.running:
            self.world.call(self.scheduler.shutdown)
            self.world.until(lambda: not self.scheduler.running, "the shutdown")
        self.telemetry.uninstrument()


def failed_pass(world: World) -> None:
    patient = Patient(world)
    patient.is_told()
    patient.store.faults = {"update_job"}
    patient.add_due(0)
    world.until(lambda: patient.reasons() != [], "the failure")
    # A loop of the user's that does not call its own method is known by its end only.
    patient.is_told("thread_dead" if isinstance(world, Own) else "loop_failed")
    assert patient.scheduler.running
    assert recorder_of(patient.telemetry).scheduler_error_counts()[SchedulerErrorKind.JOBSTORE] == 1
    if isinstance(world, (AsyncIO, Twisted, Qt)):
        patient.store.faults.clear()
        world.call(patient.scheduler.wakeup)
        world.until(lambda: patient.reasons() == [], "recovery")
        patient.is_told()
    patient.close()


def lost_timer(world: World) -> None:
    patient = Patient(world)
    lost: list[bool] = []

    def lose() -> None:
        timer = getattr(patient.scheduler, "_timeout", None) or patient.scheduler._delayedcall
        if timer is not None and not patient.ran():
            world.lose_timer(patient.scheduler)
            lost.append(True)

    patient.add_due(2 * LATE)
    while not lost:
        world.in_loop(lose)
        if patient.ran():  # it was faster, on a busy machine
            patient.close()
            patient = Patient(world)
            patient.add_due(2 * LATE)
    world.until(lambda: patient.reasons() != [], "the loss")
    patient.is_told("overdue")
    assert not patient.ran()
    world.call(patient.scheduler.wakeup)
    world.until(patient.ran, "the run")
    world.until(lambda: patient.reasons() == [], "recovery")
    patient.is_told()
    patient.close()


def left_behind(world: World) -> Callable[[], None]:
    patient = Patient(world)
    patient.is_told()

    def look() -> None:
        if isinstance(world, Qt):  # which cannot be asked whether it turns
            patient.scheduler.wakeup()
            world.until(lambda: patient.reasons() != [], "the end")
            patient.is_told("overdue")
        else:
            closed = isinstance(world, AsyncIO)  # by asyncio.run; a reactor only stops
            patient.is_told("event_loop_closed" if closed else "event_loop_stopped")
        patient.telemetry.uninstrument()

    return look


def killed(world: World) -> None:
    patient = Patient(world)
    patient.scheduler._greenlet.kill()
    patient.is_told("thread_dead")
    assert patient.scheduler.running
    patient.close()


def killed_early(world: World) -> None:
    patient = Patient(world, start=False)
    patient.scheduler.start()
    patient.scheduler._greenlet.kill()
    patient.is_told("thread_dead")
    patient.telemetry.uninstrument()
    again = instrument(patient.scheduler, registry=CollectorRegistry())
    assert [code for code, _ in again._exported_scheduler.liveness().reasons] == ["thread_dead"]
    again.uninstrument()
    patient.scheduler.shutdown()


def blocked(world: World) -> None:
    patient = Patient(world)
    seen: list[str] = []

    def look() -> None:  # a thread that is one, as the hub does not turn
        deadline = time.perf_counter() + PATIENCE
        while not seen and time.perf_counter() < deadline:
            seen.extend(patient.reasons())
            time.sleep(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    patient.add_due(LATE)
    patient.add_due(0, thread.join)
    world.until(lambda: seen, "the block to be seen")
    assert seen == ["overdue"]
    world.until(lambda: patient.reasons() == [], "recovery")
    patient.close()


def woken_from_a_thread(world: World) -> None:
    patient = Patient(world)
    patient.scheduler.add_job(nothing, next_run_time=ago(0), misfire_grace_time=None)
    world.until(lambda: patient.reasons() != [], "the loss")
    patient.is_told("overdue")
    assert not patient.ran()
    world.call(patient.scheduler.wakeup)
    world.until(patient.ran, "the run")
    world.until(lambda: patient.reasons() == [], "recovery")
    patient.is_told()
    patient.close()


BREAKS: dict[str, Callable[[World], Any]] = {
    "failed pass": failed_pass,
    "lost timer": lost_timer,
    "left behind": left_behind,
    "killed": killed,
    "killed early": killed_early,
    "blocked": blocked,
    "woken from a thread": woken_from_a_thread,
}


# The play


class Played:
    """What came of cells and faults."""

    def __init__(self) -> None:
        self.results: dict[str, str | None] = {}

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        self.results[name] = "did not come to its end"
        try:
            yield
        except Exception:  # noqa: BLE001  # told, so that the others are played
            self.results[name] = traceback.format_exc()
        else:
            self.results[name] = None


def play(name: str, played: Played) -> None:
    """Play all cells and faults of a world."""
    world = WORLDS[name]()

    def main() -> None:
        rows = matrix.WORLDS[name].rows
        cells = [cell for cell in matrix.CELLS if cell.world == name]
        for executor, kind in rows:
            # Each with its own scheduler, so that one cannot spoil the next.
            scheduler = world.scheduler(executors={executor: world.executor(executor)})
            with tempfile.TemporaryDirectory() as directory:
                stage = Stage(world, scheduler, directory)
                world.start(scheduler)
                for cell in cells:
                    if (cell.executor, cell.kind) == (executor, kind):
                        with played.told(str(cell)):
                            play_of(cell)(stage, cell)
                            stage.settle()
                stage.stop()

        # Loops that are late are so sooner, as no test is to wait for it.
        _loop.OVERDUE_SECONDS = LATE
        for fault in matrix.WORLDS[name].faults:
            with played.told(f"{name}: {fault}"):
                then = BREAKS[fault](world)
                if then is not None:
                    afterwards.append((f"{name}: {fault}", then))

    afterwards: list[tuple[str, Callable[[], None]]] = []
    world.run(main)
    for fault, then in afterwards:
        with played.told(fault):
            then()


def main() -> None:
    """Play the world that the command line names."""
    assert PLAYS.keys() == matrix.BEHAVIOURS.keys()
    assert PROOFS.keys() == matrix.IMPOSSIBLE.keys()
    assert BREAKS.keys() == matrix.FAULTS.keys()
    logger = logging.getLogger("apscheduler")
    logger.setLevel(logging.INFO)  # or the fault in the log would have no line to fail in
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    played = Played()
    play(sys.argv[1], played)
    sys.stdout.write(json.dumps(played.results))
