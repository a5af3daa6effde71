"""What runs record by `current_run().record()`, and the metrics of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.debug import DebugExecutor

from apscheduler_telemetry import current_run, instrument
from apscheduler_telemetry.core.current_run import MAX_QUANTITIES, CurrentRun
from apscheduler_telemetry.core.model import Outcome
from tests.executors.matrix.schedulers import OwnExecutor
from tests.helpers import jobs
from tests.helpers.custom_executors import Executing
from tests.helpers.interruptions import interrupt, raise_timeout
from tests.helpers.metrics import registry_of
from tests.helpers.recorder_rig import RecorderRig
from tests.helpers.rigs import HandRig, hand_driven_rig, live_rig, live_rig_async
from tests.helpers.schedulers import HandDriven, forkserver_pool, hand_driven_scheduler
from tests.helpers.waiting import run_in_thread, wait_until_async

RECORDED = "apscheduler_job_recorded_total"
LAST_RECORDED = "apscheduler_job_last_recorded"


def exported(rig: Any, name: str, quantity: str = "rows", job_id: str = "job") -> float | None:
    """Return the value of a series of a quantity; None if there is no such series."""
    labels = {"scheduler": "default", "job_id": job_id, "quantity": quantity}
    value: float | None = registry_of(rig.telemetry).get_sample_value(name, labels)
    return value


@pytest.fixture
def rig() -> Iterator[HandRig]:
    """Start a scheduler that runs its jobs in the thread of the test."""
    with hand_driven_rig({"default": DebugExecutor()}) as rig:
        yield rig


def run_each(rig: HandRig, *functions: Callable[[], Any]) -> None:
    """Let each run of a job call one of the functions."""
    remaining = iter(functions)

    def call_next() -> None:
        next(remaining)()

    rig.add(call_next, "interval", seconds=10)
    for _ in functions:
        rig.after(10)


def call_for_each(executor: BaseExecutor, job: Any, run_times: Sequence[datetime]) -> None:
    """Run a job without the help of APScheduler's ``run_job``."""
    events = []
    for due in run_times:
        job.func(*job.args, **job.kwargs)
        events.append(JobExecutionEvent(EVENT_JOB_EXECUTED, job.id, "default", due))
    executor._run_job_success(job.id, events)


EXECUTORS: Mapping[str, Callable[[], Any]] = {
    "debug": DebugExecutor,
    "other thread": OwnExecutor,
    "own loop": lambda: Executing(call_for_each),
}
"""Executors in which a job may run another scheduler."""


class TestMetrics:
    """The counter and the gauge of a quantity."""

    def test_recordings_of_a_run_add_up(self, rig: HandRig) -> None:
        """Several calls in a run, and several runs, add up; the gauge has the latest run."""

        def work() -> None:
            current_run().record(rows=17, megabytes=3.5)
            current_run().record(rows=1)

        run_each(rig, work, lambda: current_run().record(rows=2))
        assert exported(rig, RECORDED) == 20
        assert exported(rig, RECORDED, "megabytes") == 3.5
        assert exported(rig, LAST_RECORDED) == 2
        assert exported(rig, LAST_RECORDED, "megabytes") == 0

    def test_failures_count_and_leave_the_last_success(self, rig: HandRig) -> None:
        """What a failed run has recorded is in the counter, and not in the gauge."""

        def fail() -> None:
            current_run().record(rows=5)
            jobs.fail()

        run_each(rig, fail)
        assert (exported(rig, RECORDED), exported(rig, LAST_RECORDED)) == (5, None)
        rig.scheduler.remove_job("job")
        run_each(rig, lambda: current_run().record(rows=2), fail)
        assert (exported(rig, RECORDED), exported(rig, LAST_RECORDED)) == (12, 2)

    def test_success_without_a_recording_is_zero(self, rig: HandRig) -> None:
        """A success that records nothing sets the gauge to 0 once the quantity is known."""
        run_each(rig, jobs.nothing, lambda: current_run().record(rows=2), jobs.nothing)
        assert (exported(rig, RECORDED), exported(rig, LAST_RECORDED)) == (2, 0)

    def test_job_that_records_nothing_has_no_series(self, rig: HandRig) -> None:
        """Without a recording there is no series, also if the run is asked for or records none."""
        run_each(rig, jobs.nothing, current_run, lambda: current_run().record())
        assert (exported(rig, RECORDED), exported(rig, LAST_RECORDED)) == (None, None)

    def test_zero_is_a_recording(self, rig: HandRig) -> None:
        """A job that has recorded 0 has both series."""
        run_each(rig, lambda: current_run().record(rows=0))
        assert (exported(rig, RECORDED), exported(rig, LAST_RECORDED)) == (0, 0)

    def test_further_quantities_share_a_series(self, rig: HandRig) -> None:
        """A run with very many quantities, and a job with ever new ones, have eleven series."""

        def many() -> None:
            for number in range(1_000):
                current_run().record(**{f"quantity_{number}": 1})
            assert len(current_run().recorded) == MAX_QUANTITIES + 1

        run_each(rig, many, lambda: current_run().record(another=5))
        stats = rig.job().snapshot.stats
        assert len(stats.recorded) == len(stats.last_recorded) == MAX_QUANTITIES + 1
        assert exported(rig, RECORDED, "quantity_0") == 1
        assert exported(rig, RECORDED, "__overflow__") == 1_000 - MAX_QUANTITIES + 5
        assert exported(rig, LAST_RECORDED, "__overflow__") == 5
        assert exported(rig, LAST_RECORDED, "quantity_0") == 0

    @pytest.mark.parametrize("outcome", [Outcome.LOST, Outcome.MISSED, Outcome.SKIPPED])
    def test_runs_without_a_result_record_nothing(self, outcome: Outcome) -> None:
        """What a lost run has recorded does not count."""
        rig = RecorderRig()
        (run,) = rig.submit()
        run.get_or_create_current_run().record(rows=1)
        rig.finish(run, outcome)
        assert rig.job().stats.recorded == {}

    def test_sum_that_is_too_large_is_infinite(self, rig: HandRig) -> None:
        """A sum that no float holds is +Inf, and the scrape goes on."""
        run_each(rig, *[lambda: current_run().record(rows=1.7e308)] * 2)
        assert exported(rig, RECORDED) == float("inf")


class TestRuns:
    """Each run has its own record."""

    def test_each_run_of_a_burst_has_its_own(self) -> None:
        """Of several runs in one submission, each records for itself."""
        seen: list[Any] = []

        def work() -> None:
            seen.append(dict(current_run().recorded))
            current_run().record(rows=1 + len(seen))

        with hand_driven_rig() as rig:
            rig.add(work, "interval", seconds=10, coalesce=False, max_instances=3)
            rig.after(30)
            rig.settle()
            assert seen == [{}, {}, {}]
            assert (exported(rig, RECORDED), exported(rig, LAST_RECORDED)) == (2 + 3 + 4, 4)

    def test_next_job_of_a_worker_starts_without_a_record(self) -> None:
        """A job in the same thread as a job before has a record of its own."""
        from apscheduler.executors.pool import ThreadPoolExecutor as Threads

        with hand_driven_rig({"default": Threads(1)}) as rig:
            rig.add(lambda: current_run().record(rows=3), id="job")
            rig.add(lambda: current_run().record(cells=4), id="other")
            rig.after(1)
            rig.settle()
            assert exported(rig, RECORDED, "cells") is None
            assert exported(rig, RECORDED, "rows", "other") is None
            assert exported(rig, RECORDED, "cells", "other") == 4

    @pytest.mark.parametrize("make_inner", EXECUTORS.values(), ids=EXECUTORS)
    @pytest.mark.parametrize("make_outer", EXECUTORS.values(), ids=EXECUTORS)
    def test_job_that_runs_another_scheduler_keeps_its_record(
        self, make_outer: Callable[[], Any], make_inner: Callable[[], Any]
    ) -> None:
        """The job of a scheduler that a job runs records for itself, and the outer one after it."""
        with hand_driven_rig({"default": make_inner()}, telemetry={"name": "inner"}) as inner:
            inner.add(lambda: current_run().record(rows=1), "interval", seconds=10)

            def work() -> None:
                current_run().record(rows=10)
                inner.after(1)
                inner.settle()
                current_run().record(rows=100)

            outer = HandRig(inner.clock, HandDriven(executors={"default": make_outer()}))
            outer.scheduler.start()
            outer.add(work)
            inner.clock.advance(10)
            outer.scheduler.turn()
            outer.settle()
            outer.scheduler.shutdown()
            assert exported(outer, RECORDED) == 110
            assert inner.job().recorded == {"rows": 1}
            outer.telemetry.uninstrument()

    def test_job_of_a_loop_inside_of_a_job_records_for_itself(self) -> None:
        """A coroutine and its tasks record for their run, not for the one that runs the loop."""

        async def in_task() -> None:
            current_run().record(rows=1)

        async def inner_work() -> None:
            current_run().record(rows=1)
            await asyncio.gather(in_task())

        async def run_loop() -> None:
            async with live_rig_async() as inner:
                inner.add(inner_work, misfire_grace_time=None)
                await wait_until_async(lambda: inner.outcomes() == {"success": 1})
                assert exported(inner, RECORDED) == 2

        def outer_work() -> None:
            asyncio.run(run_loop())
            current_run().record(rows=100)

        with live_rig(hand_driven_scheduler()) as outer:
            outer.add(outer_work)
            outer.scheduler.turn()
            assert exported(outer, RECORDED) == 100

    def test_object_works_in_other_threads(self, rig: HandRig) -> None:
        """Threads of a run may record at the same time, and nothing is lost."""

        def work() -> None:
            run = current_run()
            with ThreadPoolExecutor(8) as threads:
                for _ in range(4_000):
                    threads.submit(run.record, rows=1)

        run_each(rig, work)
        assert exported(rig, RECORDED) == 4_000

    def test_recordings_after_the_end_are_ignored(self, rig: HandRig) -> None:
        """A thread or a task that outlives its run records nothing any more."""
        kept: list[CurrentRun] = []
        run_each(rig, lambda: kept.append(current_run()))
        kept[0].record(rows=1)
        kept[0].fail("too late")
        rig.after(0)
        assert rig.outcomes() == {"success": 1}
        assert exported(rig, RECORDED) is None

    async def _outlive(self) -> None:
        tasks: list[Any] = []
        may_go_on = asyncio.Event()

        async def late() -> None:
            await may_go_on.wait()
            current_run().record(rows=1)

        async def work() -> None:
            tasks.append(asyncio.create_task(late()))

        async with live_rig_async({"default": AsyncIOExecutor()}) as rig:
            rig.add(work)
            await wait_until_async(lambda: rig.outcomes() == {"success": 1})
            may_go_on.set()
            await asyncio.gather(*tasks)
            assert exported(rig, RECORDED) is None

    def test_task_that_outlives_its_run_records_nothing(self) -> None:
        """A task of an asyncio job that goes on after the run records nothing."""
        asyncio.run(self._outlive())


def record_two() -> None:
    """Record in a child process."""
    current_run().record(rows=2)
    current_run().record(rows=0.5, cells=1)


@pytest.mark.slow
class TestProcessPools:
    """Runs in the children of process pools."""

    def test_child_records(self) -> None:
        """What a child records comes back with its measurement, for each run of a burst."""
        with hand_driven_rig({"default": forkserver_pool()}) as rig:
            rig.add(record_two, "interval", seconds=10, coalesce=False, max_instances=2)
            rig.after(20)
            rig.settle()
            assert exported(rig, RECORDED) == 5
            assert exported(rig, LAST_RECORDED) == 2.5
            assert exported(rig, LAST_RECORDED, "cells") == 1


class TestOutside:
    """Code that runs outside of a run, or without telemetry."""

    def test_nothing_happens_outside_of_a_run(self) -> None:
        """Outside of a run, nothing is recorded and nothing raised."""
        current_run().record(rows=1)
        current_run().fail("no run")
        assert (dict(current_run().recorded), current_run().failure_reason) == ({}, None)

        def record() -> bool:
            current_run().record(rows=1)
            return True

        assert run_in_thread(record)

    def test_nothing_happens_without_telemetry(self) -> None:
        """Jobs of a scheduler that is not instrumented record nothing."""
        done = threading.Event()

        def work() -> None:
            current_run().record(rows=1)
            done.set()

        scheduler = HandDriven(executors={"default": DebugExecutor()})
        scheduler.start()
        scheduler.add_job(work)
        scheduler.turn()
        scheduler.shutdown()
        assert done.is_set()

    def test_uninstrument_during_a_run_is_harmless(self) -> None:
        """A run that is in progress at `uninstrument` records and fails without an error."""
        scheduler = HandDriven(executors={"default": DebugExecutor()})
        telemetry = instrument(scheduler, registry=None)
        done: list[bool] = []

        def work() -> None:
            telemetry.uninstrument()
            current_run().record(rows=1)
            current_run().fail("it does not matter")
            done.append(True)

        scheduler.start()
        scheduler.add_job(work)
        scheduler.turn()
        scheduler.shutdown()
        assert done == [True]


class TestInterruptions:
    """An exception of a signal handler at any line."""

    def test_recording_is_all_or_nothing(self) -> None:
        """An interrupted recording adds all of its quantities or none, and later ones work."""
        line = 0
        while True:
            run = CurrentRun()

            def record() -> None:
                run.record(rows=1, cells=2)  # noqa: B023

            if not interrupt(record, ("core/current_run.py",), raise_timeout, line):
                break
            assert run.recorded in ({}, {"rows": 1.0, "cells": 2.0})
            before = run.recorded.get("rows", 0.0)
            record()
            assert run.recorded["rows"] == before + 1
            line += 1
        assert line > 10

    def test_recording_in_a_recording_counts_both(self) -> None:
        """If a signal handler records during a recording, both count."""
        line = 0
        while True:
            run = CurrentRun()

            def record() -> None:
                run.record(rows=1)  # noqa: B023

            if not interrupt(record, ("core/current_run.py",), record, line):
                break
            assert run.recorded == {"rows": 2.0}
            line += 1
        assert line > 10

    def test_interrupted_reading_adds_a_recording_once(self) -> None:
        """After an exception at any line of a reading, the next one has each quantity once."""
        line = 0
        while True:
            rig = RecorderRig()
            for run, rows in zip(rig.submit(0, 10), (1, 2), strict=True):
                run.get_or_create_current_run().record(rows=rows)
                rig.finish(run)
            files = ("core/records.py", "core/recorder.py", "core/stats.py", "core/current_run.py")
            if not interrupt(rig.job, files, raise_timeout, line):
                break
            stats = rig.job().stats
            assert (stats.recorded, stats.last_recorded) == ({"rows": 3.0}, {"rows": 2.0})
            line += 1
        assert line > 50
