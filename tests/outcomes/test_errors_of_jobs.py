"""Runs that raise, also `BaseException` and cancellation."""

from __future__ import annotations

import asyncio

import pytest
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor

from tests.helpers.rigs import hand_driven_rig, live_rig_async
from tests.helpers.waiting import wait_until_async

BASE = [SystemExit, KeyboardInterrupt, asyncio.CancelledError, BaseException, GeneratorExit]


CANCELLED = "asyncio.exceptions.CancelledError"


class TestWhatJobsRaise:
    """Exceptions that jobs usually do not raise; APScheduler counts each as an error."""

    @pytest.mark.parametrize("exception", BASE)
    @pytest.mark.parametrize("executor", [ThreadPoolExecutor, DebugExecutor])
    def test_function_that_raises_is_one_error(
        self, executor: type[BaseExecutor], exception: type[BaseException]
    ) -> None:
        """A function that raises is one error, with the type of its exception."""

        def throw() -> None:
            raise exception

        with hand_driven_rig({"default": executor()}) as rig:
            rig.add(throw)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"error": 1}
            name = CANCELLED if exception is asyncio.CancelledError else exception.__name__
            assert {name: 1} == rig.job().exceptions
        (in_event,) = [e.exception for e in rig.events if getattr(e, "exception", None)]
        assert exception is type(in_event)

    @pytest.mark.parametrize("exception", [e for e in BASE if e is not GeneratorExit])
    def test_coroutine_that_raises_is_one_error(self, exception: type[BaseException]) -> None:
        """A coroutine that raises is one error."""

        async def throw() -> None:
            raise exception

        async def main() -> None:
            async with live_rig_async() as rig:
                rig.add(throw)
                await wait_until_async(lambda: rig.codes().count("error"))
                assert rig.outcomes() == {"error": 1}

        asyncio.run(main())

    def test_exception_without_a_text_is_one_error(self) -> None:
        """An exception whose text fails is an error like any other."""

        class MuteError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        def throw() -> None:
            raise MuteError

        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            rig.add(throw)
            rig.scheduler.turn()
            assert rig.outcomes() == {"error": 1}
