"""Jobs and listeners get the same objects as without telemetry."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import pytest
from apscheduler import events as ev
from apscheduler.executors.base import run_job
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.job import Job

from tests.helpers import jobs
from tests.helpers.clocks import freeze_time
from tests.helpers.faults import Boom
from tests.helpers.recording import ENDS, AsyncHandDriven, as_coroutine
from tests.helpers.schedulers import HandDriven
from tests.helpers.waiting import wait_until, wait_until_async
from tests.helpers.watching import watched

NOON = datetime(2020, 1, 1, 12, tzinfo=timezone.utc)
"""Long ago, so that also a child of a process pool, whose clock is the real one, is too late."""


both = pytest.mark.parametrize("instrumented", [False, True], ids=["without", "with"])


class Ran:
    """
    One job that was run, and its events.

    Attributes:
        events: the events of the run's end.
        scheduler: the scheduler, which still has the job.
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
        """Return whether so many runs have ended."""
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
            await wait_until_async(lambda: len(ran.events) == runs)
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
        wait_until(lambda: len(ran.events) == runs)
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
    """Arguments, results and exceptions are the user's objects, not copies."""

    def test_listener_gets_the_object_that_the_job_returned(
        self, kind: str, instrumented: bool
    ) -> None:
        """A listener gets the same object that the job returned."""
        result = object()
        assert run_here(kind, instrumented, lambda: result).event.retval is result

    def test_listener_gets_the_exception_that_the_job_raised(
        self, kind: str, instrumented: bool
    ) -> None:
        """A listener gets the same exception that the job raised, without frames of telemetry."""
        cause = KeyError("cause")
        error = Boom("on purpose")

        def fail() -> None:
            raise error from cause

        event = run_here(kind, instrumented, fail).event
        assert event.exception is error
        assert error.__cause__ is cause
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        run = "run_coroutine_job" if kind == "task" else "run_job"
        assert names == [run, *(["coroutine"] if kind == "task" else []), "fail"]
        assert names == re.findall(r", in (\w+)$", event.traceback, re.MULTILINE)

    def test_exception_raised_by_every_run_stays_the_same(
        self, kind: str, instrumented: bool
    ) -> None:
        """An exception object that every run raises has the same traceback as without telemetry."""
        error = Boom("on purpose")

        def fail() -> None:
            raise error

        ran = run_here(kind, instrumented, fail, runs=3)
        frames = traceback.extract_tb(error.__traceback__)
        assert {event.exception for event in ran.events} == {error}
        assert "apscheduler_telemetry" not in "".join(frame.filename for frame in frames)

    def test_job_gets_the_arguments_that_it_was_added_with(
        self, kind: str, instrumented: bool
    ) -> None:
        """A job gets the same argument objects that it was added with."""
        positional, named = [1], {"a": 1}
        got: list[Any] = []

        def job(*args: Any, **kwargs: Any) -> None:
            got.extend((args, kwargs))

        run_here(kind, instrumented, job, args=[positional], kwargs={"named": named})
        (args, kwargs) = got
        assert args[0] is positional
        assert kwargs["named"] is named
        assert len(args) == len(kwargs) == 1

    def test_job_that_is_looked_up_is_the_users(self, kind: str, instrumented: bool) -> None:
        """`get_job` returns a Job with the user's callable."""

        def job() -> None: ...

        ran = run_here(kind, instrumented, job)
        assert type(ran.job) is Job
        if kind != "task":
            assert ran.job.func is job
        module = as_coroutine.__module__ if kind == "task" else __name__
        assert ran.job.func.__module__ == module

    def test_id_in_an_event_is_a_plain_string(self, kind: str, instrumented: bool) -> None:
        """The id in an event is a plain `str`."""
        event = run_here(kind, instrumented, jobs.nothing).event
        assert (event.job_id, type(event.job_id)) == ("job", str)
        assert type(event.scheduled_run_time) is datetime
        assert type(event) is ev.JobExecutionEvent

    def test_job_may_have_an_argument_of_any_name(self, kind: str, instrumented: bool) -> None:
        """A job may have an argument of any name."""
        got: dict[str, Any] = {}
        names = {"self": 1, "func": 2, "args": 3, "owner": 4}
        run_here(kind, instrumented, lambda **kwargs: got.update(kwargs), kwargs=names)
        assert got == names

    def test_context_variable_lives_as_without_telemetry(
        self, kind: str, instrumented: bool
    ) -> None:
        """A context variable that a run sets is visible to the next one as without telemetry."""
        variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
        seen: list[int] = []

        def job() -> None:
            seen.append(variable.get())
            variable.set(variable.get() + 1)

        contextvars.copy_context().run(run_here, kind, instrumented, job, runs=3)
        assert seen == [0, 1, 2]


@here
class TestThreadOfTheJob:
    def test_job_runs_in_the_same_thread(self, kind: str) -> None:
        """A job runs in the thread in which it would run without telemetry."""

        def where(instrumented: bool) -> str:
            ran = run_here(kind, instrumented, lambda: threading.current_thread().name)
            return re.sub(r"-\d+_", "-N_", ran.event.retval)

        assert where(True) == where(False)


@pytest.mark.parametrize("coroutine", [False, True])
def test_executors_see_the_kind_of_callable(coroutine: bool) -> None:
    """An executor recognises a coroutine function, also in a partial."""
    threads: list[str] = []

    def job() -> None:
        threads.append(threading.current_thread().name)

    run_here("task" if coroutine else "executor", True, job)
    assert (threads == [threading.main_thread().name]) is coroutine


class Passing(ThreadPoolExecutor):
    """A user's executor on a thread pool."""

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
    """If the user has replaced APScheduler's ``run_job``, it gets the job's own callable."""

    def test_it_sees_the_callable_itself(
        self, kind: Any, instrumented: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A user's executor sees the user's callable: identity, name, attributes, signature."""
        calls: list[int] = []
        retried: list[Any] = []
        annotated = Annotated({flaky: "of payments"})
        monkeypatch.setattr("apscheduler.executors.pool.run_job", annotated.run_job)
        scheduler = HandDriven(executors={"default": kind(1)}, timezone=timezone.utc)

        def retry(event: Any) -> None:
            if event.code == ev.EVENT_JOB_ERROR:
                retried.append(event.func(*event.func_args))

        scheduler.add_listener(retry, ENDS)
        with freeze_time(NOON) as clock, maybe_watched(scheduler, instrumented):
            scheduler.start()
            ran = Ran(scheduler)
            scheduler.add_job(
                flaky, "interval", seconds=10, id="job", args=[calls], next_run_time=NOON
            )
            for number in (1, 2):
                scheduler.turn()
                wait_until(partial(ran.has_ended, number))
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
