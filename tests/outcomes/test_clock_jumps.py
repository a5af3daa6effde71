"""Wall clocks that jump: no negative times, no missed or extra runs, correct next runs."""

from __future__ import annotations

from typing import Any

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from tests.helpers.clocks import START, at, freeze_time
from tests.helpers.jobs import nothing
from tests.helpers.rigs import Gate, HandRig, hand_driven_rig, live_rig
from tests.helpers.waiting import wait_until

HOUR = 3600.0
JUMPS = pytest.mark.parametrize("jump", [-5 * HOUR, -1.0, 0.5, 5 * HOUR], ids=str)
"""Seconds: what a time server does to a clock, and what people do; a leap second is one back."""


def seconds_to_next_run(rig: HandRig) -> float:
    return float(rig.job().next_run - START.timestamp())


class TestDuringRuns:
    @JUMPS
    def test_clock_jump_during_a_run_leaves_its_duration(self, jump: float) -> None:
        """The duration does not change, and the end is the start plus the duration."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, "interval", seconds=10)
            rig.after(10)
            gate.wait_for_run()
            rig.clock.advance(jump)
            gate.open()
            rig.settle()
            account = rig.job()
            assert account.last_duration is not None
            assert account.last_success_at is not None
            assert 0 <= account.last_duration < 60
            assert account.last_success_at == pytest.approx(at(10).timestamp(), abs=60)
            assert account.oldest_start_at == 0
            assert rig.outcomes() == {"success": 1}

    @pytest.mark.parametrize("jump", [-5 * HOUR, -1.0], ids=str)
    def test_clock_set_back_while_queued_gives_a_delay_of_0(self, jump: float) -> None:
        """A run that starts before its due time has a delay of 0, and is not missed."""
        gate = Gate()
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            rig.add(gate.hold, "interval", seconds=10, id="first")
            rig.add(nothing, "interval", seconds=10, misfire_grace_time=1)
            rig.after(10)
            gate.wait_for_run()
            rig.clock.advance(jump)
            gate.open()
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert rig.job().delays.sum == 0

    @pytest.mark.parametrize("jump", [-5 * HOUR, 5 * HOUR], ids=str)
    def test_span_never_ends_before_it_began(self, jump: float) -> None:
        """A span ends neither before its start nor before spans of the job."""
        pytest.importorskip("opentelemetry.sdk")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
            InMemorySpanExporter,
        )

        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        with hand_driven_rig(telemetry={"tracer_provider": provider}) as rig:
            rig.add(lambda: rig.clock.advance(jump), "interval", seconds=10)
            rig.after(10)
            rig.settle()
            [span] = exporter.get_finished_spans()
            assert span.start_time is not None
            assert span.end_time is not None
            assert span.end_time >= span.start_time


class TestBetweenRuns:
    @pytest.mark.parametrize("jump", [-5 * HOUR, -1.0], ids=str)
    def test_clock_set_back_misses_no_run(self, jump: float) -> None:
        """The next run stays, no run is missed, and the run happens once at its time."""
        with hand_driven_rig() as rig:
            rig.add(nothing, "interval", seconds=10)
            rig.after(10)
            rig.settle()
            rig.after(jump)
            assert seconds_to_next_run(rig) == 20
            assert rig.job().last_run_due_at == at(10).timestamp()
            assert (rig.job().due_count, rig.job().cancelled_run_due_at) == (1, None)
            rig.clock.move_to(at(20))
            rig.after(0)
            rig.settle()
            assert rig.outcomes() == {"success": 2}

    def test_clock_set_forward_makes_passed_runs_due(self) -> None:
        """Runs whose time was skipped are due at once, and the next run is in the future."""
        with hand_driven_rig() as rig:
            rig.add(nothing, "interval", seconds=10, coalesce=True)
            rig.after(HOUR)
            rig.settle()
            assert rig.outcomes() == {"success": 1, "coalesced": 359}
            assert seconds_to_next_run(rig) == HOUR + 10

    def test_clock_set_back_and_forth_makes_no_run_due_twice(self) -> None:
        """A clock that is set back and forth makes no run due twice."""
        with hand_driven_rig() as rig:
            rig.add(nothing, "interval", seconds=10, coalesce=False)
            for step in (10, -10, 10, -3, 3, 10, -HOUR, HOUR):
                rig.after(step)
                rig.settle()
            assert rig.outcomes() == {"success": 2}
            assert seconds_to_next_run(rig) == 30

    def test_leap_second_has_one_run(self) -> None:
        """A cron job for each second runs once in a second that is repeated."""
        with hand_driven_rig() as rig:
            rig.add(nothing, "cron", second="*")
            before = rig.job().next_run
            for step in (1, 1, -1, 1, 1):
                rig.after(step)
                rig.settle()
            runs = rig.job().outcomes
            assert sum(runs.values()) == rig.job().next_run - before


class TestLiveness:
    @JUMPS
    def test_clock_jump_does_not_make_the_loop_overdue(
        self, jump: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whether the loop is overdue depends on elapsed time, not on the wall clock."""
        with live_rig(BackgroundScheduler(timezone="UTC")) as rig:
            adapter: Any = rig.telemetry._exported_scheduler.adapter
            rig.add(nothing, "interval", hours=1)
            wait_until(lambda: adapter._scheduler_loop._wait_start_and_seconds is not None)
            now = adapter._scheduler_loop._clock()
            monkeypatch.setattr(adapter._scheduler_loop, "_clock", lambda: now + jump)
            with freeze_time() as clock:
                clock.advance(jump)
                assert rig.telemetry._exported_scheduler.liveness().up
