"""The same scenario with and without telemetry has equal results, events, logs and jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent import futures
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler import events as ev
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor

from tests.helpers import jobs
from tests.helpers.clocks import freeze_time
from tests.helpers.recording import AsyncHandDriven, Recording, as_coroutine, recorded
from tests.helpers.rigs import Gate
from tests.helpers.schedulers import HandDriven, forkserver_pool
from tests.helpers.waiting import wait_until, wait_until_async

NOON = datetime(2020, 1, 1, 12, tzinfo=timezone.utc)
"""Long ago, so that also a child of a process pool, whose clock is the real one, is too late."""


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "nothing": jobs.nothing,
    "give_back": jobs.give_back,
    "fail": jobs.fail,
    "fail_with_cause": jobs.fail_with_cause,
    "fail_with_context": jobs.fail_with_context,
}


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
    """Events, log records, exceptions and tracebacks are equal and in the same order."""

    def compare(self, play: Callable[[bool], Recording]) -> None:
        alone, observed = play(False), play(True)
        assert observed.events == alone.events
        # Sorted, as threads write in whatever order they come.
        assert sorted(observed.logs) == sorted(alone.logs)
        assert_rich(alone)
        assert_rich(observed)

    def test_scenario_in_threads_is_the_same(self) -> None:
        """Jobs in a thread pool behave as without telemetry."""

        def play(instrumented: bool) -> Recording:
            executor = ThreadPoolExecutor(1, pool_kwargs={"thread_name_prefix": "pool"})
            scheduler = HandDriven(executors={"default": executor}, timezone=timezone.utc)
            gate = Gate()
            with freeze_time(NOON) as clock, recorded(scheduler, instrumented) as recording:
                scheduler.start()
                count = add_all(scheduler, FUNCTIONS, gate.hold)
                scheduler.turn()
                gate.wait_for_run()
                clock.advance(60)
                scheduler.turn()
                change_all(scheduler)
                gate.open()
                wait_until(lambda: recording.ended(count))
                scheduler.shutdown()
            assert recording.codes() >= {ev.EVENT_JOB_MAX_INSTANCES, ev.EVENT_JOB_MISSED}
            return recording

        self.compare(play)

    def test_scenario_in_processes_is_the_same(self, tmp_path: Path) -> None:
        """Jobs in a process pool behave as without telemetry."""

        def play(instrumented: bool) -> Recording:
            directory = tmp_path / str(instrumented)
            directory.mkdir()
            scheduler = HandDriven(executors={"default": forkserver_pool(1)}, timezone=timezone.utc)
            with freeze_time(NOON) as clock, recorded(scheduler, instrumented) as recording:
                scheduler.start()
                count = add_all(scheduler, FUNCTIONS, jobs.hold, str(directory))
                scheduler.turn()
                wait_until((directory / "gate.in").exists)
                clock.advance(60)
                scheduler.turn()
                change_all(scheduler)
                (directory / "gate.out").touch()
                wait_until(lambda: recording.ended(count))
                scheduler.shutdown()
            events = [e for _, _, e in recording.events if e.get("retval")]
            (busy,) = [e for e in events if e["job_id"] == "busy"]
            busy["retval"] = "a process id"
            assert recording.codes() >= {ev.EVENT_JOB_MAX_INSTANCES, ev.EVENT_JOB_MISSED}
            return recording

        self.compare(play)

    def test_scenario_of_the_debug_executor_is_the_same(self) -> None:
        """Jobs of the debug executor behave as without telemetry."""

        def play(instrumented: bool) -> Recording:
            scheduler = HandDriven(executors={"default": DebugExecutor()}, timezone=timezone.utc)
            with freeze_time(NOON) as clock, recorded(scheduler, instrumented) as recording:
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
    def test_scenario_on_an_event_loop_is_the_same(
        self, work: dict[str, Callable[..., Any]]
    ) -> None:
        """Functions and coroutines of an asyncio scheduler behave as without telemetry."""

        async def main(instrumented: bool) -> Recording:
            loop = asyncio.get_running_loop()
            loop.set_default_executor(futures.ThreadPoolExecutor(1, thread_name_prefix="pool"))
            scheduler = AsyncHandDriven(timezone=timezone.utc)
            gate, inside, opened = Gate(), asyncio.Event(), asyncio.Event()

            async def hold() -> None:
                inside.set()
                await opened.wait()

            with freeze_time(NOON) as clock, recorded(scheduler, instrumented) as recording:
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
                await wait_until_async(lambda: recording.ended(count))
                scheduler.shutdown()
                await wait_until_async(lambda: not scheduler.running)
            assert recording.codes() >= {ev.EVENT_JOB_MAX_INSTANCES, ev.EVENT_JOB_MISSED}
            return recording

        self.compare(lambda instrumented: asyncio.run(main(instrumented)))
