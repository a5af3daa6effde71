"""The recorder, with interruptions at any line and with several threads."""

from __future__ import annotations

import random
import threading
from typing import Any

import pytest
from opentelemetry.trace import SpanContext

from apscheduler_telemetry.core.model import ErrorDescription, Outcome, RemovalReason
from apscheduler_telemetry.core.recorder import MAX_RUNS_NOT_ADDED_UP
from tests.helpers.interruptions import interrupt, raise_timeout
from tests.helpers.recorder_rig import AT, RecorderRig, job_info
from tests.helpers.waiting import run_in_thread

SPAN = SpanContext(1, 2, is_remote=False)


BOOM = ErrorDescription(type="shop.Boom", message="boom")


FILES = ("core/records.py", "core/recorder.py", "core/stats.py", "core/locks.py")


def busy_rig() -> tuple[RecorderRig, dict[str, Any]]:
    """Return a recorder with finished, running and queued runs of two labels, and what is right."""
    rigs = []
    for _ in range(2):
        rig = RecorderRig()
        other = rig.recorder.job_upserted(job_info("other"), AT + 5)
        good, bad, running, _queued = rig.submit(0, 10, 20, 30)
        lost, _other_queued = rig.submit(0, 10, record=other)
        removed = rig.recorder.job_upserted(job_info("removed"), AT)
        (late,) = rig.submit(0, record=removed)
        rig.recorder.job_removed(removed, RemovalReason.FAILED)
        good.set_exemplar_span(SPAN)
        rig.finish(bad, Outcome.ERROR, BOOM, started=AT + 11, duration=3)
        rig.finish(good, started=AT + 1, duration=2)
        running.try_start(AT + 21)
        rig.finish(lost, Outcome.LOST)
        rig.finish(late, started=AT, duration=1)
        rigs.append(rig)
    rig, twin = rigs
    return rig, {label: twin.numbers(label) for label in ("job", "other", "removed")}


def check_after(rig: RecorderRig, right: dict[str, Any], known: dict[str, int]) -> None:
    """Check that another thread can read, and that a reader of changes sees the same."""
    assert run_in_thread(lambda: {label: rig.numbers(label) for label in right}) == right
    assert run_in_thread(rig.recorder.executors) == {"default": (4, 1, 2)}
    assert len(rig.recorder._runs_not_added_up) == 3
    for label, job in rig.recorder.job_snapshots_since(known):
        if job is None:
            assert rig.job(label).version == known[label]


class TestInterruptions:
    """A reading that is interrupted at any line loses no run, and counts none twice."""

    @pytest.mark.slow
    def test_exception_at_any_line_leaves_the_next_reading_right(self) -> None:
        """After an exception at any line of a reading, the next reading is right."""
        line = 0
        while True:
            rig, right = busy_rig()
            read = lambda: list(rig.recorder.job_snapshots())  # noqa: B023, E731
            if not interrupt(read, FILES, raise_timeout, line):
                break
            check_after(rig, right, {})
            line += 1
        assert line > 200

    def test_two_interrupted_readings_leave_the_next_right(self) -> None:
        """After two interrupted readings, the next one is right."""
        lines = 0
        for line in range(0, 10_000, 7):
            rig, right = busy_rig()
            read = lambda: list(rig.recorder.job_snapshots())  # noqa: B023, E731
            if not interrupt(read, FILES, raise_timeout, line):
                break
            interrupt(read, FILES, raise_timeout, 13 * line % 211)
            check_after(rig, right, {})
            lines += 1
        assert lines > 30

    def test_reading_inside_of_a_reading_is_right(self) -> None:
        """If a signal handler reads during a reading, both and the next one are right."""
        line = 0
        while True:
            rig, right = busy_rig()
            inner: list[Any] = []
            outer: list[Any] = []

            def read() -> None:
                outer.extend(rig.recorder.job_snapshots())  # noqa: B023

            def read_inside() -> None:
                inner.append({label: rig.numbers(label) for label in right})  # noqa: B023

            if not interrupt(read, FILES, read_inside, line):
                break
            assert inner == [right]
            assert {job.label: job.due_count for job in outer} == {
                "job": 4,
                "other": 2,
                "removed": 1,
            }
            check_after(rig, right, {job.label: job.version for job in outer})
            line += 1
        assert line > 200

    def test_exception_in_a_nested_reading_is_harmless(self) -> None:
        """After an exception in a nested reading, the outer one and the next are right."""
        for line in range(0, 10_000, 5):
            rig, right = busy_rig()
            read = lambda: list(rig.recorder.job_snapshots())  # noqa: B023, E731

            def read_inside() -> None:
                interrupt(read, FILES, raise_timeout, 31 * line % 173)  # noqa: B023

            if not interrupt(read, FILES, read_inside, line):
                break
            check_after(rig, right, {})
        assert line > 200

    @pytest.mark.slow
    def test_exception_while_recording_loses_no_ended_run(self) -> None:
        """An exception while runs are added up loses no ended run."""
        line = 0
        while True:
            rig = RecorderRig()
            for _ in range(MAX_RUNS_NOT_ADDED_UP):
                (run,) = rig.submit()
                rig.finish(run)
            if not interrupt(rig.recorder.add_up_runs_if_many, FILES, raise_timeout, line):
                break
            assert rig.job().stats.outcomes[Outcome.SUCCESS] == MAX_RUNS_NOT_ADDED_UP
            line = line + 1 if line < 40 else line + 997
        assert line > 2_000

    def test_nested_unsubmitted_runs_are_both_counted(self) -> None:
        """If a signal handler records during a recording, both are counted."""
        line = 0
        while True:
            rig = RecorderRig()

            def record() -> None:
                rig.recorder.runs_unsubmitted(rig.record, Outcome.SKIPPED, 1)  # noqa: B023

            def record_inside() -> None:
                record()
                rig.job()  # noqa: B023

            if not interrupt(record, FILES, record_inside, line):
                break
            version = rig.job().version
            assert rig.counts() == (2, 0, 0, {"skipped": 2})
            assert rig.job().version == version
            line += 1
        assert line > 20


class TestThreads:
    """Many threads record at the same time, and one reads."""

    def test_every_reading_is_consistent(self) -> None:
        """No count ever decreases, and in the end each run has its outcome."""
        rig = RecorderRig()
        rounds, threads = 300, 8
        expected = dict.fromkeys(Outcome, 0)
        for seed in range(threads):
            for _, outcome in _random_runs(seed, rounds):
                expected[outcome] += 1

        def record(seed: int) -> None:
            for is_started, outcome in _random_runs(seed, rounds):
                (run,) = rig.submit()
                if is_started:
                    run.try_start(AT)
                    run.set_duration(0.1)
                rig.finish(run, outcome)

        working = [threading.Thread(target=record, args=[seed]) for seed in range(threads)]
        for thread in working:
            thread.start()
        before = dict.fromkeys(Outcome, 0)
        while any(thread.is_alive() for thread in working):
            job = rig.job()
            now = job.stats.outcomes
            assert all(now[outcome] >= before[outcome] for outcome in Outcome)
            # Delays of those that have ended and of those that are running, but for missed ones.
            assert sum(job.stats.durations.counts) <= now[Outcome.SUCCESS] + now[Outcome.ERROR]
            before = now
        for thread in working:
            thread.join()
        assert rig.job().stats.outcomes == expected
        assert rig.counts()[0] == rounds * threads
        assert rig.recorder._runs_not_added_up == {}

    def test_run_that_two_threads_end_counts_once(self) -> None:
        """A run that two threads end counts once."""
        rig = RecorderRig()
        runs = rig.submit(*range(2_000))
        barrier = threading.Barrier(2)

        def end(outcome: Outcome) -> None:
            barrier.wait()
            for run in runs:
                rig.finish(run, outcome)

        ending = [
            threading.Thread(target=end, args=[outcome])
            for outcome in (Outcome.SUCCESS, Outcome.LOST)
        ]
        for thread in ending:
            thread.start()
        while any(thread.is_alive() for thread in ending):
            assert rig.job().due_count == len(runs)
        for thread in ending:
            thread.join()
        due, *_, outcomes = rig.counts()
        assert (due, sum(outcomes.values())) == (2_000, 2_000)


def _random_runs(seed: int, rounds: int) -> list[tuple[bool, Outcome]]:
    chance = random.Random(seed)
    return [(chance.random() < 0.5, chance.choice(list(Outcome))) for _ in range(rounds)]
