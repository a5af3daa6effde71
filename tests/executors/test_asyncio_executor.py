"""The asyncio executor: coroutines, functions in threads, and cancellation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor as Threads
from datetime import timedelta
from functools import partial
from typing import Any

from apscheduler.executors.asyncio import AsyncIOExecutor

from tests.helpers import jobs
from tests.helpers.clocks import START, freeze_time
from tests.helpers.metrics import check_counts
from tests.helpers.rigs import Gate, live_rig_async
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until_async


class TestAsyncio:
    """Coroutines, and other callables, which the asyncio executor runs in threads."""

    def test_coroutines_and_functions_are_counted_by_how_they_end(self) -> None:
        """Coroutines and functions are counted as successes or errors."""

        async def succeed() -> None:
            await asyncio.sleep(0)

        async def fail() -> None:
            await asyncio.sleep(0)
            jobs.fail()

        async def main() -> None:
            async with live_rig_async() as rig:
                funcs: dict[str, Callable[..., Any]] = {
                    "a": succeed,
                    "b": fail,
                    "c": jobs.nothing,
                    "d": jobs.fail,
                    "e": partial(succeed),
                }
                for job_id, func in funcs.items():
                    rig.add(func, id=job_id, name=job_id)
                ends = {"executed", "error"}
                await wait_until_async(lambda: all(ends & set(rig.codes(name)) for name in "abcde"))
                assert [rig.outcomes(job_id) for job_id in "ace"] == [{"success": 1}] * 3
                assert [rig.outcomes(job_id) for job_id in "bd"] == [{"error": 1}] * 2

        asyncio.run(main())

    def test_overlapping_bursts_are_kept_apart(self) -> None:
        """Runs of a coroutine that overlap in one thread are counted separately."""

        async def main() -> None:
            with freeze_time() as clock:
                first, second = asyncio.Event(), asyncio.Event()
                waiting = iter([first, second, first])

                async def wait() -> None:
                    await next(waiting).wait()

                async with live_rig_async() as rig:
                    rig.add(wait, every(10), max_instances=3, coalesce=False)
                    await wait_until_async(lambda: rig.job().running == 1)
                    clock.advance(20)
                    rig.scheduler.wakeup()
                    await wait_until_async(lambda: rig.job().running == 2)
                    assert rig.job().queued == 1, "the second run of the burst"
                    second.set()
                    await wait_until_async(lambda: rig.job().running == 3)
                    assert START.timestamp() + 20 == rig.job().last_run_due_at
                    assert rig.outcomes() == {}, "the events of the burst come at its end"
                    first.set()
                    await wait_until_async(lambda: rig.outcomes() == {"success": 3})

        asyncio.run(main())

    def test_a_cancelled_coroutine_is_an_error(self) -> None:
        """A coroutine that is cancelled by the shutdown is an error, as its event says."""

        async def forever() -> None:
            await asyncio.Event().wait()

        async def main() -> None:
            async with live_rig_async() as rig:
                rig.add(forever)
                await wait_until_async(lambda: rig.job().running)
                rig.scheduler.shutdown()
                await wait_until_async(rig.is_quiet)
                assert rig.outcomes() == {"error": 1}
                assert rig.job().exceptions == {"asyncio.exceptions.CancelledError": 1}

        asyncio.run(main())

    def test_a_coroutine_that_is_cancelled_before_its_start_is_lost(self) -> None:
        """A coroutine that shutdown cancels before its first step is lost."""

        async def never() -> None:
            raise AssertionError

        async def main() -> None:
            with freeze_time():
                async with live_rig_async({"default": (executor := AsyncIOExecutor())}) as rig:
                    job = rig.add(never, every(1), next_run_time=START + timedelta(seconds=1))
                    rig.scheduler.shutdown()  # in the loop's next turn, before the task's first
                    executor.submit_job(job, [START])
                    assert rig.job().queued == 1
                    await wait_until_async(rig.is_quiet)
                    assert rig.outcomes() == {"lost": 1}

        asyncio.run(main())

    def test_a_thread_that_asyncio_has_given_up_ends_as_lost(self) -> None:
        """After the shutdown, a thread's run counts as running until it ends, and is then lost."""
        gate = Gate()

        async def main() -> None:
            async with live_rig_async() as rig:
                rig.add(gate.hold, id="a")
                rig.add(partial(hold_and_fail, gate), id="b", name="b")
                await wait_until_async(lambda: rig.job("a").running + rig.job("b").running == 2)
                rig.scheduler.shutdown()
                await wait_until_async(lambda: not rig.scheduler.running)
                for _ in range(10):  # the callbacks of what was cancelled
                    await asyncio.sleep(0)
                assert (rig.job("a").running, rig.job("b").running) == (1, 1)
                check_counts(rig.telemetry)
                gate.open()
                await wait_until_async(rig.is_quiet)
                assert (rig.outcomes("a"), rig.outcomes("b")) == ({"lost": 1}, {"lost": 1})
                rig.checks_events = False

        asyncio.run(main())

    def test_a_burst_in_a_thread_that_asyncio_has_given_up_ends_as_lost(self) -> None:
        """All runs of a burst in such a thread are lost, also those that were too late to run."""
        gate = Gate()

        async def main() -> None:
            with freeze_time() as clock:
                async with live_rig_async() as rig:
                    rig.scheduler.pause()
                    rig.add(gate.hold, every(10), coalesce=False, misfire_grace_time=100)
                    clock.advance(25)
                    rig.scheduler.resume()
                    await wait_until_async(lambda: rig.job().running)
                    rig.scheduler.shutdown()
                    await wait_until_async(lambda: not rig.scheduler.running)
                    for _ in range(10):
                        await asyncio.sleep(0)
                    assert (rig.job().running, rig.job().queued) == (1, 2)
                    clock.advance(90)  # 115, 105 and 95 s late
                    gate.open()
                    await wait_until_async(rig.is_quiet)
                    assert rig.outcomes() == {"lost": 3}
                    rig.checks_events = False

        asyncio.run(main())

    def test_a_function_that_is_cancelled_before_its_start_is_lost(self) -> None:
        """A function that still waits for a thread at the shutdown is lost."""
        gate = Gate()

        async def main() -> None:
            asyncio.get_running_loop().set_default_executor(Threads(1))
            async with live_rig_async() as rig:
                rig.add(gate.hold, id="a")
                await wait_until_async(lambda: rig.job("a").running)
                rig.add(jobs.nothing)
                await wait_until_async(lambda: rig.job().queued)
                rig.scheduler.shutdown()
                await wait_until_async(lambda: rig.outcomes() == {"lost": 1})
                gate.open()
                await wait_until_async(rig.is_quiet)
                assert rig.outcomes("a") == {"lost": 1}, "asyncio has given up its thread as well"
                rig.checks_events = False

        asyncio.run(main())


def hold_and_fail(gate: Gate) -> None:
    gate.hold()
    jobs.fail()
