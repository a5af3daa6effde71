"""Telemetry's own failures: counted, logged once, kept away from jobs and from each other."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from apscheduler_telemetry.core.model import Outcome, RunError, RunView
from apscheduler_telemetry.core.observers import COMPONENTS, Guard, Pipeline
from support_scenes import Boom

RUN: Any = object()  # observers only pass it on


def fail_often(guard: Guard, times: int) -> None:
    for _ in range(times):
        guard.failed("spans")


class Observer:
    """Writes down what it is told."""

    component = "spans"

    def __init__(
        self, name: str, journal: list[Any], carrier: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.journal = journal
        self.carrier = carrier

    def enter(self, run: RunView) -> None:
        self.journal.append((self.name, "enter", run))

    def leave(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:
        self.journal.append((self.name, "leave", run, outcome, error))

    def settle(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:
        self.journal.append((self.name, "settle", run, outcome, error))

    def is_awake(self) -> bool:
        return True

    def carry(self, run: RunView) -> Mapping[str, str] | None:
        self.journal.append((self.name, "carry", run))
        return self.carrier


class Failing:
    """Raises whatever it is told."""

    def __init__(self, exception: type[BaseException] = Boom, component: str = "spans") -> None:
        self.exception = exception
        self.component = component

    def is_awake(self) -> bool:
        return True

    def _fail(self, *args: Any) -> Any:
        raise self.exception

    enter = leave = settle = carry = _fail


class TestGuard:
    def test_components_start_at_zero(self) -> None:
        """Every component has a count before it fails, so that an increase can be seen."""
        assert Guard().counts() == dict.fromkeys(COMPONENTS, 0)

    def test_counts_by_component(self) -> None:
        """Each failure raises the count of its component alone."""
        guard = Guard()
        for component in ("spans", "spans", "http"):
            guard.failed(component)
        assert guard.counts() == {**dict.fromkeys(COMPONENTS, 0), "spans": 2, "http": 1}

    def test_counts_what_it_does_not_know(self) -> None:
        """A component that is not listed is counted rather than a reason to raise."""
        guard = Guard()
        guard.failed("new")
        assert guard.counts()["new"] == 1

    def test_logs_the_first_failure_of_a_component(self, caplog: pytest.LogCaptureFixture) -> None:
        """The log gets one record per component, with the traceback."""
        guard = Guard()
        with caplog.at_level(logging.ERROR, "apscheduler_telemetry"):
            for component in ("spans", "http", "spans", "http"):
                try:
                    raise Boom("why it failed")
                except Boom:
                    guard.failed(component)
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
        assert all(record.exc_info for record in caplog.records)
        assert "'spans'" in caplog.messages[0]
        assert "why it failed" in caplog.text

    def test_notes_a_failure_from_elsewhere(self, caplog: pytest.LogCaptureFixture) -> None:
        """A failure in another process is logged by the words that came home."""
        guard = Guard()
        with caplog.at_level(logging.ERROR, "apscheduler_telemetry"):
            guard.noted("spans", "RuntimeError('in the child')")
        assert "RuntimeError('in the child')" in caplog.text
        assert guard.counts()["spans"] == 1

    def test_counts_from_many_threads(self) -> None:
        """No failure is lost when threads fail at once."""
        guard = Guard()
        threads = [threading.Thread(target=fail_often, args=(guard, 500)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert guard.counts()["spans"] == 2_000

    def test_survives_a_fork_under_lock(self) -> None:
        """A lock that another thread holds during a fork does not stay held in the child."""
        script = """
            import os, signal
            from apscheduler_telemetry.core.observers import Guard
            guard = Guard()
            with guard._lock:
                child = os.fork()
                if child == 0:
                    signal.alarm(10)
                    guard.failed("spans")
                    os._exit(guard.counts()["spans"] - 1)
                status = os.waitpid(child, 0)[1]
            raise SystemExit(status)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
        assert done.returncode == 0


class Asleep(Observer):
    """Has nothing to do, for now or for good, or does not say."""

    def __init__(self, answer: Any) -> None:
        super().__init__("asleep", [])
        self.answer = answer

    def is_awake(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class TestPipeline:
    @pytest.mark.parametrize(
        ("answers", "followed", "settled"),
        [
            ([], False, True),
            ([None], False, True),
            ([False], False, False),
            ([None, False], False, False),
            ([False, None], False, False),
            ([True], True, True),
            ([False, True], True, True),
            ([None, True], True, True),
            ([False, Boom()], True, True),
        ],
    )
    def test_looks(self, answers: list[Any], followed: bool, settled: bool) -> None:
        """It looks for as long as somebody may still wake up, and nobody has."""
        guard = Guard()
        pipeline = Pipeline(guard, map(Asleep, answers))
        assert (pipeline.is_followed, pipeline.is_settled) == (followed, settled)
        assert guard.counts()["spans"] == sum(isinstance(answer, Boom) for answer in answers)
        pipeline.observers = ()
        pipeline.look()
        assert (pipeline.is_followed, pipeline.is_settled) == (False, True)

    def test_enters_in_order_and_leaves_in_reverse(self) -> None:
        """Observers wrap each other around a run like context managers."""
        journal: list[Any] = []
        pipeline = Pipeline(Guard(), [Observer("a", journal), Observer("b", journal)])
        pipeline.enter(RUN)
        pipeline.leave(RUN, Outcome.SUCCESS, None)
        assert [entry[:2] for entry in journal] == [
            ("a", "enter"),
            ("b", "enter"),
            ("b", "leave"),
            ("a", "leave"),
        ]

    def test_passes_on_what_it_is_told(self) -> None:
        """An observer sees the very run, outcome and error."""
        journal: list[Any] = []
        error = RunError(type="Boom", message="")
        pipeline = Pipeline(Guard(), [Observer("a", journal)])
        pipeline.leave(RUN, Outcome.ERROR, error)
        pipeline.settle(RUN, Outcome.LOST, error)
        assert journal == [
            ("a", "leave", RUN, Outcome.ERROR, error),
            ("a", "settle", RUN, Outcome.LOST, error),
        ]

    def test_joins_carriers(self) -> None:
        """What several observers have to carry travels together."""
        carriers = {"a": {"x": "1"}, "b": None, "c": {"y": "2"}}
        observers = [Observer(name, [], carrier) for name, carrier in carriers.items()]
        assert Pipeline(Guard(), observers).carry(RUN) == {"x": "1", "y": "2"}

    def test_carries_nothing(self) -> None:
        """Without anything to carry there is no carrier."""
        assert Pipeline(Guard(), [Observer("a", [])]).carry(RUN) is None
        assert Pipeline(Guard()).carry(RUN) is None

    def test_an_observer_that_fails_harms_nobody(self) -> None:
        """An observer that raises is counted, and the others are told all the same."""
        guard = Guard()
        journal: list[Any] = []
        failing = Failing(), Failing(component="meter")
        observers: list[Any] = [failing[0], Observer("a", journal, {"x": "1"}), failing[1]]
        pipeline = Pipeline(guard, observers)
        pipeline.enter(RUN)
        pipeline.leave(RUN, Outcome.SUCCESS, None)
        pipeline.settle(RUN, Outcome.LOST, None)
        assert pipeline.carry(RUN) == {"x": "1"}
        assert [entry[1] for entry in journal] == ["enter", "leave", "settle", "carry"]
        assert {part: n for part, n in guard.counts().items() if n} == {"spans": 4, "meter": 4}

    @pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
    def test_does_not_swallow_what_ends_the_program(self, exception: type[BaseException]) -> None:
        """Ctrl-C in an observer is still Ctrl-C."""
        with pytest.raises(exception):
            Pipeline(Guard(), [Failing(exception)]).enter(RUN)
