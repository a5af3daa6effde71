"""Loops of asyncio schedulers: lost timers; closed, moved or blocked event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.loop_liveness import OVERDUE_SECONDS
from tests.helpers import jobs
from tests.helpers.faults import FaultyStore
from tests.helpers.loops import Monotonic, add_due, state, store_of
from tests.helpers.metrics import adapter_of, registry_of
from tests.helpers.waiting import wait_until_async
from tests.helpers.watching import Watched, watched


class TestAsyncio:
    def test_lost_timer_is_reported_and_recovers(self) -> None:
        """A lost timer is reported, until the next pass succeeds."""

        async def main() -> None:
            scheduler = AsyncIOScheduler(jobstores={"default": FaultyStore()})
            with watched(scheduler) as seen, quiet_loop():
                scheduler.start()
                await wait_until_async(
                    lambda: seen.telemetry._exported_scheduler.last_pass_ended_at
                )
                store_of(seen).faults = {"update_job"}
                add_due(seen)
                await wait_until_async(lambda: seen.errors() == {"jobstore": 1, "loop": 1})
                assert scheduler._timeout is None
                assert (seen.up(), state(seen), seen.reasons()) == (0, "running", ["loop_failed"])
                assert scheduler._timeout is None  # reported, not repaired
                store_of(seen).faults.clear()
                scheduler.wakeup()
                await wait_until_async(lambda: seen.up() == 1)
                assert seen.reasons() == []

        asyncio.run(main())

    def test_stopped_or_closed_event_loop_is_reported(self) -> None:
        """An event loop that is stopped or closed is reported."""
        loop = asyncio.new_event_loop()

        async def start() -> None:
            scheduler.start()
            await wait_until_async(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
            assert (seen.up(), seen.reasons()) == (1, [])

        async def look() -> None:
            assert (seen.up(), seen.reasons()) == (1, [])

        scheduler = AsyncIOScheduler(event_loop=loop)
        with watched(scheduler) as seen:
            loop.run_until_complete(start())
            assert (seen.up(), seen.reasons()) == (0, ["event_loop_stopped"])
            loop.run_until_complete(look())
            assert (seen.up(), seen.reasons()) == (0, ["event_loop_stopped"])
            loop.close()
            assert (seen.up(), seen.reasons()) == (0, ["event_loop_closed"])
            scheduler.state = 0  # its shutdown() needs the loop

    def test_event_loop_may_move_to_another_thread(self) -> None:
        """An event loop may be run by several threads, one after another."""
        loop = asyncio.new_event_loop()
        scheduler = AsyncIOScheduler(event_loop=loop)

        async def start() -> None:
            scheduler.start()
            await wait_until_async(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)

        async def look() -> None:
            assert (seen.up(), seen.reasons()) == (1, [])

        with watched(scheduler) as seen:
            thread = threading.Thread(target=loop.run_until_complete, args=(start(),))
            thread.start()
            thread.join()
            loop.run_until_complete(look())
            loop.close()
            scheduler.state = 0

    def test_wakeup_in_the_middle_of_a_pass_is_due_at_once(self) -> None:
        """After a wakeup during a pass, the next pass is due at once."""
        executors = {"default": DebugExecutor()}
        late: list[list[str]] = []

        async def main() -> None:
            with watched(AsyncIOScheduler(executors=executors)) as seen:
                clock = Monotonic(seen)

                def block() -> None:
                    clock.now += OVERDUE_SECONDS + 1
                    late.append(seen.reasons())

                def wake_up() -> None:
                    asyncio.get_running_loop().call_soon(block)  # before the pass after the wakeup
                    seen.scheduler.wakeup()

                seen.scheduler.start()
                await wait_until_async(
                    lambda: seen.telemetry._exported_scheduler.last_pass_ended_at
                )
                add_due(seen, wake_up)
                await wait_until_async(lambda: late)
                assert late == [["overdue"]]
                await wait_until_async(lambda: seen.up() == 1)
                seen.scheduler.shutdown()

        asyncio.run(main())

    def test_blocked_event_loop_is_reported_until_its_pass(self) -> None:
        """A blocked event loop is reported until its next pass."""

        async def main() -> None:
            with watched(AsyncIOScheduler()) as seen:
                clock = Monotonic(seen)
                seen.scheduler.start()
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id="job")
                loop = adapter_of(seen.telemetry)._scheduler_loop
                await wait_until_async(
                    lambda: (
                        loop._wait_start_and_seconds is not None and loop._wait_start_and_seconds[1]
                    )
                )
                clock.now += 3600 + OVERDUE_SECONDS - 1
                assert seen.reasons() == []
                clock.now += 2
                assert (seen.up(), seen.reasons()) == (0, ["overdue"])
                seen.scheduler.wakeup()
                await wait_until_async(lambda: seen.up() == 1)

        asyncio.run(main())

    def test_unanswered_wakeup_is_overdue(self) -> None:
        """An event loop that does not run a pass after a wakeup is overdue."""

        async def main() -> None:
            with watched(AsyncIOScheduler()) as seen:
                clock = Monotonic(seen)
                seen.scheduler.start()
                await wait_until_async(
                    lambda: seen.telemetry._exported_scheduler.last_pass_ended_at
                )
                seen.scheduler.wakeup()
                clock.now += OVERDUE_SECONDS + 1  # and no await: the loop is blocked
                assert seen.reasons() == ["overdue"]
                await wait_until_async(lambda: seen.reasons() == [])

        asyncio.run(main())

    def test_shut_down_scheduler_is_stopped(self) -> None:
        """A scheduler that was shut down is stopped, whatever its event loop does."""

        async def main() -> Watched:
            scheduler = AsyncIOScheduler()
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            seen = Watched(scheduler, telemetry, registry_of(telemetry))
            scheduler.start()
            scheduler.shutdown()
            await wait_until_async(lambda: not scheduler.running)
            return seen

        seen = asyncio.run(main())
        assert (seen.up(), seen.reasons()) == (0, ["stopped"])
        seen.telemetry.uninstrument()


@contextmanager
def quiet_loop() -> Iterator[None]:
    """Keep the event loop from writing about exceptions that are meant."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *args: None)
    yield
    loop.set_exception_handler(None)
