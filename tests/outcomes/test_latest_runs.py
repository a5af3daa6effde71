"""The latest runs of a scheduler, which the handle lists, for each outcome."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor

from apscheduler_telemetry import ArgumentTypeError, ArgumentValueError, current_run, instrument
from tests.helpers import jobs
from tests.helpers.rigs import Gate, HandRig, hand_driven_rig, live_rig_async
from tests.helpers.schedulers import forkserver_pool, hand_driven_scheduler
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until_async


def rows(rig: HandRig, *names: str, job_id: str | None = None) -> list[tuple[Any, ...]]:
    """Return some fields of each run, the latest first."""
    return [tuple(run[name] for name in names) for run in rig.telemetry.runs(job_id)]


class TestOutcomes:
    def test_success_has_its_times(self) -> None:
        """A run that succeeds is listed with when it was due, its start, end and duration."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.settle()

            (run,) = rig.telemetry.runs()

        duration = run.pop("duration")
        assert 0 <= duration < 60
        assert run.pop("number") > 0
        assert run.pop("end_time").startswith("2030-01-01T00:0")
        assert run == {
            "scheduler": "default",
            "job_id": "job",
            "scheduled_time": "2030-01-01T00:00:00.000+00:00",
            "start_time": "2030-01-01T00:00:00.000+00:00",
            "outcome": "success",
            "error_type": None,
            "error_message": None,
            "trace_id": None,
        }

    def test_error_has_type_and_message_without_any_sdk(self) -> None:
        """A run that raises is listed with the type and the message, without an SDK of traces."""
        with hand_driven_rig() as rig:
            rig.add(lambda: jobs.fail("Database connection refused"))
            rig.scheduler.turn()
            rig.settle()

            assert rows(rig, "outcome", "error_type", "error_message") == [
                ("error", "ValueError", "Database connection refused")
            ]

    def test_reported_failure_has_its_reason(self) -> None:
        """A run whose callable calls ``fail`` is an error with the reason as its message."""
        with hand_driven_rig() as rig:
            rig.checks_events = False  # for APScheduler it is a success
            rig.add(lambda: current_run().fail("no file for today"))
            rig.scheduler.turn()
            rig.settle()

            assert rows(rig, "outcome", "error_type", "error_message") == [
                ("error", "__fail__", "no file for today")
            ]

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"capture_message": False}, None), ({"redact": lambda _: "redacted"}, "redacted")],
    )
    def test_message_is_what_may_be_exported(
        self, options: dict[str, Any], message: str | None
    ) -> None:
        """`capture_message` and `redact` hold for the list, too."""
        with hand_driven_rig(telemetry=options) as rig:
            rig.checks_events = False  # one is a success for APScheduler
            rig.add(lambda: jobs.fail("password=secret"), id="raises")
            rig.add(lambda: current_run().fail("password=secret"), id="reports")
            rig.scheduler.turn()
            rig.settle()

            assert rows(rig, "outcome", "error_message") == [("error", message)] * 2

    @pytest.mark.parametrize("coalesce", [True, False])
    def test_backlog_lists_each_run(self, coalesce: bool) -> None:
        """Runs that were coalesced or skipped are listed with their due times."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, every(10), coalesce=coalesce)
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(30)
            gate.open()
            rig.settle()

            listed = sorted(rows(rig, "scheduled_time", "outcome", "start_time", "duration"))

        assert [(due[17:19], outcome) for due, outcome, _, _ in listed] == [
            ("00", "success"),
            ("10", "coalesced" if coalesce else "skipped"),
            ("20", "coalesced" if coalesce else "skipped"),
            ("30", "skipped"),
        ]
        assert all(start is duration is None for *_, start, duration in listed[1:])

    def test_missed_run_is_listed(self) -> None:
        """A run that the loop finds too late is listed as missed, with when that was noticed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(60), misfire_grace_time=30)
            rig.after(45)
            rig.settle()

            assert rows(rig, "outcome", "scheduled_time", "end_time", "start_time") == [
                ("missed", "2030-01-01T00:00:00.000+00:00", "2030-01-01T00:00:45.000+00:00", None)
            ]

    def test_lost_run_has_the_reason(self) -> None:
        """A run that the pool refuses is listed as lost, with the exception."""
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            rig.add(jobs.nothing)
            rig.scheduler._executors["default"]._pool.shutdown()
            rig.scheduler.turn()

            assert rows(rig, "outcome", "error_type", "start_time") == [
                ("lost", "RuntimeError", None)
            ]

    def test_each_run_is_listed_once(self) -> None:
        """Any number of readings lists each run once."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            for _ in range(5):
                rig.scheduler.turn()
                rig.settle()
                rig.telemetry.runs()
                rig.clock.advance(10)

            due = [due[17:19] for (due,) in rows(rig, "scheduled_time")]
        assert due == ["40", "30", "20", "10", "00"]

    def test_run_in_a_child_process_is_listed(self) -> None:
        """A run in a process pool has its start, its duration and its error."""
        with hand_driven_rig({"default": forkserver_pool()}) as rig:
            rig.add(jobs.fail, args=["in the child"])
            rig.scheduler.turn()
            rig.settle()

            ((outcome, message, duration),) = rows(rig, "outcome", "error_message", "duration")

        assert (outcome, message) == ("error", "in the child")
        assert duration >= 0

    def test_coroutine_is_listed(self) -> None:
        """A run of a coroutine is listed."""

        async def work() -> None:
            """Do nothing."""

        async def main() -> None:
            async with live_rig_async() as rig:
                rig.add(work)
                await wait_until_async(rig.telemetry.runs)

                assert [run["outcome"] for run in rig.telemetry.runs("job")] == ["success"]

        asyncio.run(main())

    def test_job_that_is_removed_is_listed_for_some_time(self) -> None:
        """The runs of a one-off job can be listed after it has ended, for 15 minutes."""
        with hand_driven_rig() as rig:
            rig.checks_events = False  # the counts end with the job
            rig.add(jobs.nothing)
            rig.scheduler.turn()
            rig.settle()
            rig.clock.advance(800)
            assert rows(rig, "job_id") == [("job",)]

            rig.clock.advance(200)
            assert rows(rig, "job_id") == []


class TestOption:
    @pytest.mark.parametrize("history", [-1, 1_001, 10**400])
    def test_impossible_number_is_refused(self, history: int) -> None:
        """A history is 0 to 1,000 runs."""
        with pytest.raises(ArgumentValueError, match="history must be 0 to 1,000, got"):
            instrument(hand_driven_scheduler(), registry=None, history=history)

    @pytest.mark.parametrize("history", [True, "20", 2.0, math.inf, None])
    def test_anything_else_is_refused(self, history: Any) -> None:
        """A history is a whole number."""
        with pytest.raises(ArgumentTypeError, match="history must be a number of runs, got"):
            instrument(hand_driven_scheduler(), registry=None, history=history)

    def test_history_can_be_switched_off(self) -> None:
        """Without a history, nothing is listed."""
        with hand_driven_rig(telemetry={"history": 0}) as rig:
            rig.add(jobs.fail)
            rig.scheduler.turn()
            rig.settle()

            assert rig.telemetry.runs() == []
            assert rig.outcomes() == {"error": 1}

    def test_message_is_not_asked_for_without_history(self) -> None:
        """Without history and spans, the text of an exception is not made."""

        class SlowError(Exception):
            def __str__(self) -> str:
                raise AssertionError

        def work() -> None:
            raise SlowError

        with hand_driven_rig(telemetry={"history": 0}) as rig:
            rig.add(work)
            rig.scheduler.turn()
            rig.settle()

            assert rig.outcomes() == {"error": 1}


class TestUnreadableErrors:
    def test_exception_whose_text_fails_is_listed(self) -> None:
        """An exception whose ``__str__`` raises is listed with its type."""

        class UnreadableError(Exception):
            def __str__(self) -> str:
                raise SystemExit

        def work() -> None:
            raise UnreadableError

        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            rig.add(work)
            rig.scheduler.turn()
            rig.settle()

            ((kind, message),) = rows(rig, "error_type", "error_message")

        assert kind.endswith("UnreadableError")
        assert message == "<exception whose __str__ failed>"
