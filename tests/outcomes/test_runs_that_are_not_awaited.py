"""Callables that only return a coroutine or a generator, whose code nothing runs."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import logging
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor

from apscheduler_telemetry.adapters.apscheduler3 import runs
from tests.helpers import jobs
from tests.helpers.rigs import hand_driven_rig, live_rig_async
from tests.helpers.waiting import wait_until_async


@pytest.fixture(autouse=True)
def never_awaited() -> Iterator[None]:
    """Collect the coroutines of a test while Python's warning about them is ignored."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited")
        yield
        gc.collect()


async def coroutine() -> None: ...


async def suspended_coroutine() -> None:
    await asyncio.sleep(0)


async def coroutine_of(argument: int) -> int:
    return argument


def generator() -> Iterator[None]:
    yield


async def async_generator() -> AsyncIterator[None]:
    yield


def step(result: Any) -> Any:
    """Run the code of a coroutine up to where it waits."""
    result.send(None)
    return result


def run(result: Any) -> Any:
    """Run the code of a coroutine to its end."""
    asyncio.run(result)
    return result


def iterate(result: Iterator[None], count: int) -> Iterator[None]:
    list(itertools.islice(result, count))
    return result


def iterate_async(result: AsyncIterator[None], count: int) -> AsyncIterator[None]:
    async def main() -> None:
        for _ in range(count):
            await anext(result, None)

    asyncio.run(main())
    return result


class OwnCoroutine(Coroutine[None, None, None]):
    """What Cython's coroutines look like: nothing tells whether they have started."""

    def send(self, _: None) -> None: ...
    def throw(self, *_: Any) -> None: ...
    def close(self) -> None: ...
    def __await__(self) -> Any: ...


class TestNotAwaited:
    @pytest.mark.parametrize("make_executor", [DebugExecutor, ThreadPoolExecutor])
    @pytest.mark.parametrize(
        ("func", "expected"),
        [
            (coroutine, "a coroutine"),
            (functools.partial(coroutine_of, 5), "a coroutine"),
            (lambda: coroutine(), "a coroutine"),  # noqa: PLW0108  # as people write it
            (generator, "a generator"),
            (async_generator, "an async generator"),
        ],
        ids=["coroutine", "partial", "lambda", "generator", "async generator"],
    )
    def test_a_run_that_executes_nothing_is_a_scheduler_error(
        self,
        func: Callable[..., Any],
        expected: str,
        make_executor: Callable[[], Any],
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """APScheduler calls it a success, and so does its outcome; one warning names the job."""
        with (
            caplog.at_level(logging.WARNING, "apscheduler_telemetry"),
            hand_driven_rig({"default": make_executor()}) as rig,
        ):
            rig.add(func, "interval", seconds=10)
            for _ in range(3):
                rig.after(10)
                rig.settle()
            assert rig.outcomes() == {"success": 3}
            assert rig.errors_of("not_awaited") == 3
        [record] = caplog.records
        assert f"The code of job 'job' did not run: its callable only returned {expected}" in (
            record.getMessage()
        )

    def test_the_number_of_warnings_is_bounded(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One-off jobs may have ever new ids; all their runs are counted."""
        monkeypatch.setattr(runs, "MAX_NOT_AWAITED_WARNINGS", 2)
        with (
            caplog.at_level(logging.WARNING, "apscheduler_telemetry"),
            hand_driven_rig({"default": DebugExecutor()}) as rig,
        ):
            for number in range(4):
                rig.add(generator, id=f"mail-{number}")
            rig.scheduler.turn()
            assert rig.errors_of("not_awaited") == 4
        assert len(caplog.records) == 2

    @pytest.mark.parametrize("result", [None, 5, [], {}, iter(())])
    def test_other_results_are_none_of_these_errors(self, result: Any) -> None:
        """A job may return what it likes, an iterator that has code of no generator included."""
        with hand_driven_rig() as rig:
            rig.add(jobs.give_back, "interval", seconds=10, args=[result])
            rig.after(10)
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert rig.errors_of("not_awaited") == 0

    @pytest.mark.parametrize(
        "make",
        [
            lambda: step(suspended_coroutine()),
            lambda: run(coroutine()),
            lambda: iterate(generator(), 1),
            lambda: iterate(generator(), 2),
            lambda: iterate_async(async_generator(), 1),
            lambda: iterate_async(async_generator(), 2),
            OwnCoroutine,
        ],
        ids=[
            "suspended coroutine",
            "ended coroutine",
            "suspended generator",
            "ended generator",
            "suspended async generator",
            "ended async generator",
            "class of the user's",
        ],
    )
    @pytest.mark.parametrize("make_executor", [DebugExecutor, ThreadPoolExecutor])
    def test_results_whose_code_has_run_are_none_of_these_errors(
        self, make: Callable[[], Any], make_executor: Callable[[], Any]
    ) -> None:
        """A job may return what it has run itself, or what another event loop runs."""
        with hand_driven_rig({"default": make_executor()}) as rig:
            rig.add(make)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert rig.errors_of("not_awaited") == 0

    def test_asyncio_awaits_coroutine_functions_and_no_others(self) -> None:
        """A function that returns a coroutine is not awaited; a task that it starts will run."""

        async def main() -> None:
            loop = asyncio.get_running_loop()

            def start_task() -> Any:
                return asyncio.run_coroutine_threadsafe(coroutine(), loop)

            async with live_rig_async() as rig:
                funcs: dict[str, Callable[..., Any]] = {
                    "coroutine": coroutine,
                    "partial": functools.partial(coroutine_of, 5),
                    "task": start_task,
                    "lambda": lambda: coroutine(),  # noqa: PLW0108
                    "async generator": async_generator,
                }
                for job_id, func in funcs.items():
                    rig.add(func, id=job_id)
                await wait_until_async(
                    lambda: all("executed" in rig.codes(job_id) for job_id in funcs)
                )
                assert rig.errors_of("not_awaited") == 2

        asyncio.run(main())
