"""Bounds on memory, labels and the cost of hostile input."""

from __future__ import annotations

import gc
import inspect
import subprocess
import sys
import threading
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, tzinfo
from functools import partial
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.triggers.base import BaseTrigger
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from apscheduler_telemetry import current_run
from apscheduler_telemetry.core.recorder import MAX_RUNS_NOT_ADDED_UP
from apscheduler_telemetry.core.run_history import DEFAULT_HISTORY, MAX_KEPT_MESSAGE_LENGTH
from tests.helpers.clocks import at
from tests.helpers.jobs import fail, nothing
from tests.helpers.metrics import recorder_of, registry_of
from tests.helpers.paths import ROOT
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.schedulers import APSCHEDULER
from tests.helpers.waiting import wait_until


@pytest.fixture(autouse=True, scope="module")
def no_garbage_of_other_tests() -> None:
    """Collect what tests before have left, such as connections to servers that are gone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class Thing:
    """An object that can be weakly referenced, for jobs to work on."""


def give_back(_: Thing) -> Thing:
    return Thing()


def keep_failing(_: Thing) -> None:
    fail()


class Hostile:
    """A callable that has no name, and raises whatever it is asked."""

    __signature__ = inspect.Signature()  # else APScheduler does not take it

    def __call__(self) -> None:
        """Do nothing."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise RuntimeError

    __str__ = __repr__


class BoundMethod:
    def method(self) -> None:
        """Do nothing."""


class Raises(BaseTrigger):
    """A trigger that fires once, and raises from then on, or whatever else it is asked."""

    def get_next_fire_time(self, previous: datetime | None, _: datetime) -> datetime | None:
        if previous is None:
            return at(10)
        raise ValueError("hostile")

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


class Nowhere(tzinfo):
    """A time zone that is UTC, and cannot be written out."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    dst = utcoffset

    def tzname(self, at: datetime | None) -> str:
        if at is None:
            return "nowhere"  # which APScheduler calls
        raise ValueError

    def __str__(self) -> str:
        raise ValueError

    __repr__ = __str__


def labels(rig: HandRig) -> Iterator[str]:
    """Scrape, and return the jobs that are in it, as a parser finds them."""
    encode, _ = choose_encoder("")
    exposition = encode(registry_of(rig.telemetry)).decode()
    for family in text_string_to_metric_families(exposition):
        if family.name == "apscheduler_job_runs":
            yield from {s.labels["job_id"] for s in family.samples}


@pytest.mark.slow
class TestSoak:
    def test_runs_and_one_off_jobs_leave_nothing_behind(self) -> None:
        """20,000 runs and 10,000 one-off jobs leave no memory behind; see `make soak`."""
        script = ROOT / "benchmarks" / "soak.py"
        command = [sys.executable, str(script), "--runs", "20000", "--jobs", "10000"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, done.stdout.splitlines()[-1:]) == (0, ["bounded"]), done


class TestReferences:
    @pytest.mark.parametrize("func", [give_back, keep_failing])
    def test_jobs_arguments_and_results_are_not_kept(
        self, func: Callable[[Thing], Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """After its run, a job, its arguments and its result are freed."""
        caplog.set_level(
            "CRITICAL", "apscheduler"
        )  # as pytest keeps what is logged, and exceptions
        thing = Thing()
        with hand_driven_rig() as rig:
            job = rig.add(func, args=[thing])
            references = [weakref.ref(thing), weakref.ref(job)]
            results: list[Any] = []
            rig.scheduler.add_listener(lambda e: results.append(weakref.ref(e.retval)), 4096)
            rig.after(1)
            rig.settle()
            del thing, job

            def is_gone() -> bool:
                rig.events.clear()  # which have the exception, and so its frames
                gc.collect()
                return bool(results) == (func is give_back) and not any(
                    reference() for reference in references + results
                )

            # Listeners get the event just after the run has ended.
            wait_until(is_gone, "the job to be freed")
            rig.checks_events = False


def raise_text(text: str) -> None:
    raise ValueError(text)


def report_text(text: str) -> None:
    current_run().fail(text)


class TestLongTexts:
    @pytest.mark.parametrize("give_text", [raise_text, report_text])
    def test_history_keeps_the_beginning_only(
        self, give_text: Callable[[str], None], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Of a long message or reason, no more than the history shows stays in memory."""
        caplog.set_level("CRITICAL", "apscheduler")  # as pytest keeps what is logged
        lengths = [1]
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            rig.checks_events = False
            rig.add(lambda: give_text("x" * lengths[0]), "interval", seconds=10)

            def fill_history(length: int) -> int:
                """Return the bytes that are in use when the history has only such runs."""
                lengths[0] = length
                for _ in range(DEFAULT_HISTORY):
                    rig.after(10)
                    rig.events.clear()  # which have the exception
                kept = [run.error_message for run in recorder_of(rig.telemetry).recent_runs()]
                assert kept == ["x" * min(length, MAX_KEPT_MESSAGE_LENGTH)] * DEFAULT_HISTORY
                del kept
                gc.collect()
                return tracemalloc.get_traced_memory()[0]

            tracemalloc.start()
            try:
                fill_history(1)
                with_short_texts = fill_history(1)
                with_long_texts = fill_history(50_000)
            finally:
                tracemalloc.stop()
        more_for_each = (with_long_texts - with_short_texts) / DEFAULT_HISTORY
        assert more_for_each < 2 * MAX_KEPT_MESSAGE_LENGTH


class TestNobodyReads:
    """The number of runs that wait to be added up is bounded, also without scrapes."""

    @pytest.mark.parametrize("func", [nothing, pytest.param(fail, marks=pytest.mark.slow)])
    def test_ended_runs_that_nobody_reads_are_bounded(self, func: Callable[[], None]) -> None:
        """Without scrapes, about `MAX_RUNS_NOT_ADDED_UP` ended runs are kept, and no more."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            for number in range(2):
                rig.add(func, "interval", seconds=10, id=f"job-{number}")
            recorder = recorder_of(rig.telemetry)
            most = 0
            for _ in range(MAX_RUNS_NOT_ADDED_UP):  # in each pass, both jobs run
                rig.after(10)
                most = max(most, len(recorder._runs_not_added_up))
            assert MAX_RUNS_NOT_ADDED_UP <= most <= MAX_RUNS_NOT_ADDED_UP + 2
            outcome = "success" if func is nothing else "error"
            for job_id in ("job-0", "job-1"):
                assert rig.outcomes(job_id) == {outcome: MAX_RUNS_NOT_ADDED_UP}
            assert not recorder._runs_not_added_up


class TestHostile:
    @pytest.mark.parametrize(
        "func",
        [
            pytest.param(
                Hostile(),
                marks=pytest.mark.skipif(
                    APSCHEDULER < (3, 11), reason="APScheduler 3.10 does not take it"
                ),
            ),
            partial(partial(nothing)),
            BoundMethod().method,
            lambda: None,
            partial(Hostile()),
        ],
        ids=["raises", "partial", "bound method", "lambda", "partial of one that raises"],
    )
    def test_any_callable_is_run_and_counted(self, func: Callable[[], Any]) -> None:
        """Any callable is run and counted, also if its attributes raise."""
        with hand_driven_rig() as rig:
            rig.add(func, "interval", seconds=10, name="job")
            rig.after(10)
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            module, _, name = rig.job().info.func.partition(":")
            assert module.rpartition(".")[2] in {"test_bounded_memory", "jobs"}
            assert name

    def test_any_id_is_one_bounded_label_value(self) -> None:
        """Any id is one label value that a parser reads back, of at most 200 characters."""
        ids = ['"quotes"', "new\nline", "nul\0", "\N{PILE OF POO}", "\ud800", "x" * 10_000, "\\n"]
        with hand_driven_rig() as rig:
            for job_id in ids:
                rig.add(nothing, "interval", seconds=10, id=job_id)
            rig.after(10)
            rig.settle()
            seen = set(labels(rig))
            assert {'"quotes"', "new\nline", "nul\0", "\N{PILE OF POO}", "\\ud800", "\\n"} < seen
            assert (len(seen), max(map(len, seen))) == (len(ids), 200)

    def test_trigger_that_raises_ends_the_loop_as_without_telemetry(self) -> None:
        """A trigger that raises ends the loop, as without telemetry; the run before it counts."""
        with hand_driven_rig() as rig:
            rig.add(nothing, Raises(), name="job")
            with pytest.raises(ValueError, match="hostile"):
                rig.after(10)
            assert rig.errors_of("loop") == 1
            assert set(labels(rig)) == {"job"}

    def test_time_zone_that_raises_stops_no_run_and_no_scrape(self) -> None:
        """A time zone whose text raises stops neither runs nor scrapes."""
        with hand_driven_rig(zone=Nowhere()) as rig:
            rig.add(nothing, "interval", seconds=10)
            rig.after(10)
            rig.settle()
            assert rig.outcomes() == {"success": 1}
            assert set(labels(rig)) == {"job"}

    def test_slow_job_label_is_not_called_for_runs_and_scrapes(self) -> None:
        """`job_label` is called when a job is added or changed, never for a run or a scrape."""
        asked: list[str] = []

        def label(job: Any) -> str:
            asked.append(threading.current_thread().name)
            return str(job.id)

        with hand_driven_rig(telemetry={"job_label": label}) as rig:
            rig.add(nothing, "interval", seconds=10)
            assert len(asked) == 1
            for _ in range(5):
                rig.after(10)
                rig.settle()
                assert set(labels(rig)) == {"job"}
            assert len(asked) == 1
