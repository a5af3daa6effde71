"""
Telemetry never changes the job: the same scenario, with and without, is the same to the user.

Each scenario is played twice on a clock that stands still, and whatever a user can see of it is
compared: events, results, exceptions and their tracebacks, log records, stored bytes, threads.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import pickletools
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from apscheduler import events as ev
from apscheduler.executors.base import run_job
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import CollectorRegistry

import support_jobs as jobs
import support_scenes as scenes
from apscheduler_telemetry import instrument
from support import (
    Gate,
    HandDriven,
    errors_of,
    eventually,
    frozen,
    job_states,
    processes,
    until,
)
from support_scenes import watched

NOON = datetime(2020, 1, 1, 12, tzinfo=timezone.utc)
"""Long ago, so that also a child of a process pool, whose clock is the real one, is too late."""
ENDS = ev.EVENT_JOB_EXECUTED | ev.EVENT_JOB_ERROR | ev.EVENT_JOB_MISSED
both = pytest.mark.parametrize("instrumented", [False, True], ids=["without", "with"])


class AsyncHandDriven(AsyncIOScheduler):
    """An asyncio scheduler whose loop turns when the test says so."""

    def wakeup(self) -> None:
        """Do nothing: see `turn`."""

    def turn(self) -> None:
        self._process_jobs()


class Recording:
    """Everything that a user can see of a scenario."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.logs: list[Any] = []

    def listen(self, event: Any) -> None:
        attributes = dict(vars(event))
        attributes["exception"] = described(attributes.get("exception"))
        job_id = attributes.get("job_id", "")
        self.events.append((type(event).__name__, type(job_id), attributes))

    def ended(self, count: int) -> bool:
        """Tell whether this many runs have ended."""
        codes = [attributes["code"] for _, _, attributes in list(self.events)]
        return sum(1 for code in codes if code & ENDS) >= count

    def codes(self) -> set[int]:
        return {attributes["code"] for _, _, attributes in self.events}


def described(exception: BaseException | None) -> Any:
    """Return everything about an exception, and what it came from, but its identity."""
    if exception is None:
        return None
    frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(exception.__traceback__)]
    return {
        "type": type(exception),
        "args": exception.args,
        "frames": frames,
        "cause": described(exception.__cause__),
        "context": described(exception.__context__),
        "suppressed": exception.__suppress_context__,
    }


class Handler(logging.Handler):
    """Writes down log records as they are when they are made."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(logging.DEBUG)
        self.recording = recording

    def emit(self, record: logging.LogRecord) -> None:
        # A thread may write about a job before or after the loop has moved it on.
        message = re.sub(r"next run at: [^)]*", "next run at: ...", record.getMessage())
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self.recording.logs.append(
            (
                record.name,
                record.levelname,
                message,
                f"{record.pathname}:{record.lineno} {record.funcName}",
                record.threadName,
                trace,
            )
        )


@contextmanager
def recorded(scheduler: Any, instrumented: bool) -> Iterator[Recording]:
    """Record what happens, with or without telemetry; see in the end that it was one of both."""
    recording = Recording()
    logger = logging.getLogger("apscheduler")
    handler, level = Handler(recording), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    telemetry = instrument(scheduler, registry=CollectorRegistry()) if instrumented else None
    scheduler.add_listener(recording.listen)
    try:
        yield recording
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        if scheduler.running:
            with suppress(RuntimeError):  # its event loop may be closed
                scheduler.shutdown(wait=False)
        if telemetry is not None:
            telemetry.uninstrument()
    if telemetry is not None:
        assert sum(job.due_count for job in job_states(telemetry))
        assert set(errors_of(telemetry).counts().values()) == {0}


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "nothing": jobs.nothing,
    "give_back": jobs.give_back,
    "fail": jobs.fail,
    "fail_with_cause": jobs.fail_with_cause,
    "fail_with_context": jobs.fail_with_context,
}


def as_coroutine(func: Callable[..., Any]) -> Callable[..., Any]:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return func(*args, **kwargs)

    return coroutine


COROUTINES = {name: as_coroutine(func) for name, func in FUNCTIONS.items()}
MARKER = ("the very", "object")


def add_all(
    scheduler: Any, work: dict[str, Callable[..., Any]], busy: Callable[..., Any], *args: Any
) -> int:
    """Add a job of every kind; `busy` keeps the only worker busy. Return how many runs end."""

    def add(job_id: str, func: Callable[..., Any], **options: Any) -> None:
        options = {"trigger": "interval", "misfire_grace_time": None, **options}
        if options["trigger"] == "interval":
            options = {"hours": 1, **options}
        scheduler.add_job(func, id=job_id, next_run_time=options.pop("at", NOON), **options)

    add("busy", busy, args=args, at=NOON - timedelta(hours=3), hours=0, minutes=1)
    add("1 once", work["give_back"], args=[MARKER], trigger="date")
    add("2 again", work["give_back"], kwargs={"value": ("a", 1)})
    add("3 plain", work["fail"])
    add("4 cause", work["fail_with_cause"])
    add("5 context", work["fail_with_context"])
    add("6 late", work["nothing"], at=NOON - timedelta(seconds=100), misfire_grace_time=1)
    add("7 burst", work["give_back"], args=[7], at=NOON - timedelta(hours=2), coalesce=False)
    add("8 lost", work["nothing"], executor="gpu")
    return 1 + 2 + 3 + 1 + 3


def change_all(scheduler: Any) -> None:
    """Do with jobs what users do."""
    scheduler.pause_job("2 again")
    scheduler.resume_job("2 again")
    scheduler.modify_job("3 plain", name="other")
    scheduler.reschedule_job("5 context", trigger="interval", minutes=7)
    scheduler.remove_job("4 cause")


def assert_rich(recording: Recording) -> None:
    """Check that a scenario has what it is meant to have."""
    codes = {attributes["code"] for _, _, attributes in recording.events}
    assert codes >= {
        ev.EVENT_JOB_ADDED,
        ev.EVENT_JOB_SUBMITTED,
        ev.EVENT_JOB_EXECUTED,
        ev.EVENT_JOB_ERROR,
        ev.EVENT_JOB_MODIFIED,
        ev.EVENT_JOB_REMOVED,
    }
    assert {kind for _, kind, _ in recording.events} == {str}
    for _, _, attributes in recording.events:
        if attributes["code"] == ev.EVENT_JOB_ERROR:
            assert "child_process" not in attributes["traceback"]
            assert attributes["exception"] is not None


class TestScenario:
    """Every event, log record, exception and traceback is the same, in the same order."""

    def compare(self, play: Callable[[bool], Recording]) -> None:
        alone, observed = play(False), play(True)
        assert observed.events == alone.events
        # Sorted, as threads write in whatever order they come.
        assert sorted(observed.logs) == sorted(alone.logs)
        assert_rich(alone)
        assert_rich(observed)

    def test_threads(self) -> None:
        """Jobs in a thread pool."""

        def play(instrumented: bool) -> Recording:
            executor = ThreadPoolExecutor(1, pool_kwargs={"thread_name_prefix": "pool"})
            scheduler = HandDriven(executors={"default": executor}, timezone=timezone.utc)
            gate = Gate()
            with frozen(NOON) as clock, recorded(scheduler, instrumented) as recording:
                scheduler.start()
                count = add_all(scheduler, FUNCTIONS, gate.hold)
                scheduler.turn()
                gate.wait_for_run()
                clock.advance(60)
                scheduler.turn()
                change_all(scheduler)
                gate.open()
                until(lambda: recording.ended(count))
                scheduler.shutdown()
            assert recording.codes() >= {ev.EVENT_JOB_MAX_INSTANCES, ev.EVENT_JOB_MISSED}
            return recording

        self.compare(play)

    def test_processes(self, tmp_path: Path) -> None:
        """Jobs in another process: what comes home is the same."""

        def play(instrumented: bool) -> Recording:
            directory = tmp_path / str(instrumented)
            directory.mkdir()
            scheduler = HandDriven(executors={"default": processes(1)}, timezone=timezone.utc)
            with frozen(NOON) as clock, recorded(scheduler, instrumented) as recording:
                scheduler.start()
                count = add_all(scheduler, FUNCTIONS, jobs.hold, str(directory))
                scheduler.turn()
                until((directory / "gate.in").exists)
                clock.advance(60)
                scheduler.turn()
                change_all(scheduler)
                (directory / "gate.out").touch()
                until(lambda: recording.ended(count))
                scheduler.shutdown()
            events = [e for _, _, e in recording.events if e.get("retval")]
            (busy,) = [e for e in events if e["job_id"] == "busy"]
            busy["retval"] = "a process id"
            assert recording.codes() >= {ev.EVENT_JOB_MAX_INSTANCES, ev.EVENT_JOB_MISSED}
            return recording

        self.compare(play)

    def test_inline(self) -> None:
        """Jobs of the debug executor, in the middle of a pass."""

        def play(instrumented: bool) -> Recording:
            scheduler = HandDriven(executors={"default": DebugExecutor()}, timezone=timezone.utc)
            with frozen(NOON) as clock, recorded(scheduler, instrumented) as recording:
                scheduler.start()
                count = add_all(scheduler, FUNCTIONS, jobs.nothing)
                scheduler.turn()
                clock.advance(60)
                scheduler.turn()
                change_all(scheduler)
                assert recording.ended(count + 1)
                scheduler.shutdown()
            assert recording.codes() >= {ev.EVENT_JOB_MISSED}
            return recording

        self.compare(play)

    @pytest.mark.parametrize("work", [FUNCTIONS, COROUTINES], ids=["functions", "coroutines"])
    def test_event_loop(self, work: dict[str, Callable[..., Any]]) -> None:
        """Functions and coroutines of an asyncio scheduler."""

        async def main(instrumented: bool) -> Recording:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(futures.ThreadPoolExecutor(1, thread_name_prefix="pool"))
            scheduler = AsyncHandDriven(timezone=timezone.utc)
            gate, inside, opened = Gate(), asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                inside.set()
                await opened.wait()

            with frozen(NOON) as clock, recorded(scheduler, instrumented) as recording:
                scheduler.start()
                count = add_all(scheduler, work, gate.hold if work is FUNCTIONS else hold)
                scheduler.turn()
                if work is FUNCTIONS:
                    gate.wait_for_run()
                else:
                    await inside.wait()
                clock.advance(60)
                scheduler.turn()
                change_all(scheduler)
                gate.open()
                opened.set()
                await eventually(lambda: recording.ended(count))
                scheduler.shutdown()
                await eventually(lambda: not scheduler.running)
            assert recording.codes() >= {ev.EVENT_JOB_MAX_INSTANCES, ev.EVENT_JOB_MISSED}
            return recording

        self.compare(lambda instrumented: asyncio.run(main(instrumented)))


class Ran:
    """
    One job that was run, and what its events said.

    Attributes:
        events: of a run's end.
        scheduler: which still knows the job.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.events: list[Any] = []
        scheduler.add_listener(self.events.append, ENDS)

    def add(self, func: Callable[..., Any], runs: int, **options: Any) -> None:
        at = datetime.now(timezone.utc) - timedelta(hours=runs - 1, seconds=1)
        options = {"misfire_grace_time": None, "coalesce": False, **options}
        self.job = self.scheduler.add_job(
            func, "interval", hours=1, next_run_time=at, id="job", **options
        )

    def has_ended(self, count: int) -> bool:
        """Tell whether so many runs have ended."""
        return len(self.events) == count

    @property
    def event(self) -> Any:
        (event,) = self.events
        return event


def run_here(
    kind: str, instrumented: bool, func: Callable[..., Any], runs: int = 1, **options: Any
) -> Ran:
    """Run a job in this process: inline, in a thread, an event loop's executor or a task."""

    async def on_event_loop() -> Ran:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(futures.ThreadPoolExecutor(1))
        scheduler = AsyncHandDriven()
        with maybe_watched(scheduler, instrumented):
            scheduler.start()
            ran = Ran(scheduler)
            ran.add(as_coroutine(func) if kind == "task" else func, runs, **options)
            scheduler.turn()
            await eventually(lambda: len(ran.events) == runs)
        return ran

    if kind in {"executor", "task"}:
        return asyncio.run(on_event_loop())
    executor = DebugExecutor() if kind == "inline" else ThreadPoolExecutor(1)
    scheduler = HandDriven(executors={"default": executor})
    with maybe_watched(scheduler, instrumented):
        scheduler.start()
        ran = Ran(scheduler)
        ran.add(func, runs, **options)
        scheduler.turn()
        until(lambda: len(ran.events) == runs)
    return ran


@contextmanager
def maybe_watched(scheduler: Any, instrumented: bool) -> Iterator[None]:
    if instrumented:
        with watched(scheduler) as seen:
            yield
            assert sum(seen.runs().values())
            assert seen.own_errors() == {}
    else:
        yield
        scheduler.shutdown(wait=False)


here = pytest.mark.parametrize("kind", ["inline", "thread", "executor", "task"])


@both
@here
class TestIdentity:
    """What goes in and what comes out are the user's own objects, not copies."""

    def test_result(self, kind: str, instrumented: bool) -> None:
        """A listener gets the very object that the job returned."""
        result = object()
        assert run_here(kind, instrumented, lambda: result).event.retval is result

    def test_exception(self, kind: str, instrumented: bool) -> None:
        """A listener gets the very exception that the job raised, with nothing of ours in it."""
        cause = KeyError("cause")
        error = scenes.Boom("on purpose")

        def fail() -> None:
            raise error from cause

        event = run_here(kind, instrumented, fail).event
        assert event.exception is error
        assert error.__cause__ is cause
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        run = "run_coroutine_job" if kind == "task" else "run_job"
        assert names == [run, *(["coroutine"] if kind == "task" else []), "fail"]
        assert names == re.findall(r", in (\w+)$", event.traceback, re.MULTILINE)

    def test_exception_that_is_raised_again_and_again(self, kind: str, instrumented: bool) -> None:
        """So with an exception that every run raises, whose traceback grows as it does alone."""
        error = scenes.Boom("on purpose")

        def fail() -> None:
            raise error

        ran = run_here(kind, instrumented, fail, runs=3)
        frames = traceback.extract_tb(error.__traceback__)
        assert {event.exception for event in ran.events} == {error}
        assert "apscheduler_telemetry" not in "".join(frame.filename for frame in frames)

    def test_arguments(self, kind: str, instrumented: bool) -> None:
        """The job gets the very arguments that it was added with."""
        positional, named = [1], {"a": 1}
        got: list[Any] = []

        def job(*args: Any, **kwargs: Any) -> None:
            got.extend((args, kwargs))

        run_here(kind, instrumented, job, args=[positional], kwargs={"named": named})
        (args, kwargs) = got
        assert args[0] is positional
        assert kwargs["named"] is named
        assert len(args) == len(kwargs) == 1

    def test_job(self, kind: str, instrumented: bool) -> None:
        """The job that the user looks up is a job, and its callable the user's."""

        def job() -> None: ...

        ran = run_here(kind, instrumented, job)
        assert type(ran.job) is Job
        if kind != "task":
            assert ran.job.func is job
        assert ran.job.func.__module__ == __name__

    def test_id(self, kind: str, instrumented: bool) -> None:
        """The id in an event is a string and nothing more."""
        event = run_here(kind, instrumented, jobs.nothing).event
        assert (event.job_id, type(event.job_id)) == ("job", str)
        assert type(event.scheduled_run_time) is datetime
        assert type(event) is ev.JobExecutionEvent

    def test_self_referring_keyword(self, kind: str, instrumented: bool) -> None:
        """A job may have an argument of any name."""
        got: dict[str, Any] = {}
        names = {"self": 1, "func": 2, "args": 3, "owner": 4}
        run_here(kind, instrumented, lambda **kwargs: got.update(kwargs), kwargs=names)
        assert got == names

    def test_context(self, kind: str, instrumented: bool) -> None:
        """A context variable that one run sets is seen by the next as it is without telemetry."""
        variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
        seen: list[int] = []

        def job() -> None:
            seen.append(variable.get())
            variable.set(variable.get() + 1)

        contextvars.copy_context().run(run_here, kind, instrumented, job, runs=3)
        assert seen == [0, 1, 2]


@here
class TestThreadOfTheJob:
    def test_same_thread(self, kind: str) -> None:
        """A job runs in the thread in which it would run without telemetry."""

        def where(instrumented: bool) -> str:
            ran = run_here(kind, instrumented, lambda: threading.current_thread().name)
            return re.sub(r"-\d+_", "-N_", ran.event.retval)

        assert where(True) == where(False)


@pytest.mark.parametrize("coroutine", [False, True])
def test_executors_see_the_kind_of_callable(coroutine: bool) -> None:
    """A coroutine function is one to the executor, wrapped in a partial or not."""
    threads: list[str] = []

    def job() -> None:
        threads.append(threading.current_thread().name)

    run_here("task" if coroutine else "executor", True, job)
    assert (threads == [threading.main_thread().name]) is coroutine


class Passing(ThreadPoolExecutor):
    """An executor of the user's on a thread pool."""

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        super()._do_submit_job(job, run_times)


class Annotated:
    """
    A replacement of ``run_job``, as applications have it that retry a job in a listener.

    Each event gets the callable of its job, and what is seen of it while the job runs.
    """

    def __init__(self, owners: dict[Any, str]) -> None:
        self._owners = owners

    def run_job(self, job: Any, alias: str, run_times: Any, logger_name: str) -> Any:
        func, events = job.func, run_job(job, alias, run_times, logger_name)
        for event in events:
            event.func, event.func_args = func, job.args
            event.seen = {
                "name": (func.__name__, func.__qualname__, func.__module__),
                "doc": func.__doc__,
                "attribute": func.owner,
                "key": self._owners.get(func),
                "signature": str(inspect.signature(func)),
                "job": (type(job) is Job, job.func is func, job.func_ref),
            }
        return events


def flaky(calls: list[int]) -> int:
    """Fail the first time."""
    calls.append(len(calls))
    if len(calls) == 1:
        jobs.fail()
    return len(calls)


flaky.owner = "payments"  # type: ignore[attr-defined]


@both
@pytest.mark.parametrize("kind", [ThreadPoolExecutor, Passing], ids=["stock", "custom"])
class TestReplacedRunJob:
    """Where the user has replaced APScheduler's ``run_job``, it gets the job's own callable."""

    def test_it_sees_the_callable_itself(
        self, kind: Any, instrumented: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Identity, name, doc, attributes and signature are the user's; a retry just runs it."""
        calls: list[int] = []
        retried: list[Any] = []
        annotated = Annotated({flaky: "of payments"})
        monkeypatch.setattr("apscheduler.executors.pool.run_job", annotated.run_job)
        scheduler = HandDriven(executors={"default": kind(1)}, timezone=timezone.utc)

        def retry(event: Any) -> None:
            if event.code == ev.EVENT_JOB_ERROR:
                retried.append(event.func(*event.func_args))

        scheduler.add_listener(retry, ENDS)
        with frozen(NOON) as clock, maybe_watched(scheduler, instrumented):
            scheduler.start()
            ran = Ran(scheduler)
            scheduler.add_job(
                flaky, "interval", seconds=10, id="job", args=[calls], next_run_time=NOON
            )
            for number in (1, 2):
                scheduler.turn()
                until(partial(ran.has_ended, number))
                clock.advance(10)
        assert (calls, retried) == ([0, 1, 2], [2])
        assert [event.code for event in ran.events] == [ev.EVENT_JOB_ERROR, ev.EVENT_JOB_EXECUTED]
        for event in ran.events:
            assert event.func is flaky
            assert event.seen == {
                "name": ("flaky", "flaky", __name__),
                "doc": "Fail the first time.",
                "attribute": "payments",
                "key": "of payments",
                "signature": "(calls: 'list[int]') -> 'int'",
                "job": (True, True, f"{__name__}:flaky"),
            }


class Holder:
    """Something whose method is a job, so that it is pickled with it."""

    def __init__(self) -> None:
        self.value = 1

    def method(self) -> None: ...


def sql_store(path: Path) -> Any:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

    options = {"poolclass": sqlalchemy.pool.NullPool}
    return SQLAlchemyJobStore(f"sqlite:///{path}", engine_options=options)


def write(path: Path, *, instrumented: bool) -> dict[str, bytes]:
    """Store, run and change jobs; return the rows."""
    scheduler = HandDriven(
        executors={"default": DebugExecutor(), "processes": processes(1)},
        jobstores={"default": sql_store(path)},
        timezone=timezone.utc,
    )
    with frozen(NOON) as clock, recorded(scheduler, instrumented) as recording:
        scheduler.start()
        for job_id, func, executor in (
            ("function", jobs.nothing, "default"),
            ("failing", jobs.fail, "default"),
            ("method", Holder().method, "default"),
            ("process", jobs.nothing, "processes"),
        ):
            scheduler.add_job(
                func,
                "interval",
                hours=1,
                id=job_id,
                executor=executor,
                next_run_time=NOON,
                misfire_grace_time=None,
            )
        scheduler.turn()
        until(lambda: recording.ended(4))
        clock.advance(3600)
        scheduler.turn()
        until(lambda: recording.ended(8))
        for job in scheduler.get_jobs():
            scheduler.modify_job(job.id, name="changed")
        scheduler.shutdown()
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("select id, job_state from apscheduler_jobs"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, dict[str, bytes]]]:
    """Return job stores and their rows, written without and with telemetry."""
    directory = tmp_path_factory.mktemp("stores")
    paths = {instrumented: directory / str(instrumented) for instrumented in (False, True)}
    return {key: (path, write(path, instrumented=key)) for key, path in paths.items()}


class TestStoredJobs:
    """A job store holds nothing of ours, so that it is read without us, and the other way round."""

    def test_bytes(self, written: dict[bool, Any]) -> None:
        """The rows are those that are written without telemetry, to the byte."""
        assert written[True][1] == written[False][1]
        assert len(written[True][1]) == 4

    def test_nothing_of_ours(self, written: dict[bool, Any]) -> None:
        """No pickle names a module of ours."""
        for state in written[True][1].values():
            words = [argument for _, argument, _ in pickletools.genops(state)]
            assert "support_jobs" in str(words) or "Holder" in str(words)
            assert "apscheduler_telemetry" not in str(words)

    def test_read_without_us(self, written: dict[bool, Any]) -> None:
        """A process in which telemetry cannot be imported restores and runs the jobs."""
        path = written[True][0]
        with closing(sqlite3.connect(path)) as connection, connection:
            # Its class is in this module, which imports telemetry.
            connection.execute("delete from apscheduler_jobs where id = 'method'")
        script = f"""
            import sys, threading
            sys.modules["apscheduler_telemetry"] = None
            sys.path[:0] = {sys.path!r}
            from apscheduler.events import EVENT_JOB_EXECUTED
            from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
            from apscheduler.schedulers.background import BackgroundScheduler
            from sqlalchemy.pool import NullPool

            options = {{"poolclass": NullPool}}
            store = SQLAlchemyJobStore("sqlite:///{path}", engine_options=options)
            scheduler = BackgroundScheduler(jobstores={{"default": store}})
            ran = threading.Event()
            scheduler.add_listener(lambda event: ran.set(), EVENT_JOB_EXECUTED)
            scheduler.start(paused=True)
            print(*sorted(job.id for job in scheduler.get_jobs()))
            scheduler.resume()
            assert ran.wait({jobs.PATIENCE})
            scheduler.shutdown()
        """
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["failing", "function", "process"]
