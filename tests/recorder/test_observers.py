"""Errors of telemetry: counted, logged once, and without effect on jobs and other observers."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from typing import Any

import pytest

from apscheduler_telemetry.core import observers as observers_module
from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.core.observers import (
    ERROR_COMPONENTS,
    STALE_SECONDS_AFTER_END,
    ErrorReporter,
    ObservedRuns,
    ObserverGroup,
)
from apscheduler_telemetry.core.records import Run
from tests.helpers.faults import Boom
from tests.helpers.interruptions import interrupt, raise_timeout
from tests.helpers.recorder_rig import RecorderRig
from tests.helpers.waiting import run_in_thread

RUN: Any = object()  # observers only receive it


def fail_often(errors: ErrorReporter, times: int) -> None:
    for _ in range(times):
        errors.exception("spans")


class Observer:
    """Keeps all calls that it receives."""

    component = "spans"

    def __init__(self, name: str, calls: list[Any], carrier: dict[str, str] | None = None) -> None:
        self.name = name
        self.calls = calls
        self.carrier = carrier

    def is_enabled(self) -> bool | None:
        return True

    def on_callable_start(self, run: Run) -> None:
        self.calls.append((self.name, "on_callable_start", run))

    def on_callable_end(self, run: Run) -> None:
        self.calls.append((self.name, "on_callable_end", run))

    def create_trace_carrier(self, run: Run) -> Mapping[str, str] | None:
        self.calls.append((self.name, "create_trace_carrier", run))
        return self.carrier

    def on_run_finished(self, run: Run) -> None:
        self.calls.append((self.name, "on_run_finished", run))

    def ignore_new_runs(self) -> None:
        self.calls.append((self.name, "stop", None))

    def has_open_runs(self) -> bool:
        return False


class Failing:
    """Raises in each call."""

    def __init__(self, exception: type[BaseException] = Boom, component: str = "spans") -> None:
        self.exception = exception
        self.component = component

    def is_enabled(self) -> bool | None:
        return True

    def _fail(self, *args: Any) -> Any:
        raise self.exception

    on_callable_start = on_callable_end = on_run_finished = _fail
    create_trace_carrier = ignore_new_runs = has_open_runs = _fail


class TestErrorReporter:
    def test_components_start_at_zero(self) -> None:
        """Every component has a count of 0 at first, so that an increase can be seen."""
        assert ErrorReporter().counts() == dict.fromkeys(ERROR_COMPONENTS, 0)

    def test_counts_by_component(self) -> None:
        """Each failure increases the count of its component only."""
        errors = ErrorReporter()
        for component in ("spans", "spans", "http"):
            errors.exception(component)
        assert errors.counts() == {**dict.fromkeys(ERROR_COMPONENTS, 0), "spans": 2, "http": 1}

    def test_counts_unknown_components(self) -> None:
        """A component that is not listed is counted as well."""
        errors = ErrorReporter()
        errors.exception("new")
        assert errors.counts()["new"] == 1

    def test_logs_the_first_failure_of_a_component(self, caplog: pytest.LogCaptureFixture) -> None:
        """The first failure of each component is logged, with its traceback."""
        errors = ErrorReporter()
        with caplog.at_level(logging.ERROR, "apscheduler_telemetry"):
            for component in ("spans", "http", "spans", "http"):
                try:
                    raise Boom("why it failed")
                except Boom:
                    errors.exception(component)
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
        assert all(record.exc_info for record in caplog.records)
        assert "'spans'" in caplog.messages[0]
        assert "why it failed" in caplog.text

    def test_reports_a_failure_that_happened_elsewhere(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A failure in another process is logged with its description."""
        errors = ErrorReporter()
        with caplog.at_level(logging.ERROR, "apscheduler_telemetry"):
            errors.report("spans", "RuntimeError('in the child')")
        assert "RuntimeError('in the child')" in caplog.text
        assert errors.counts()["spans"] == 1

    def test_counts_from_many_threads(self) -> None:
        """No failure is lost if threads report at the same time."""
        errors = ErrorReporter()
        threads = [threading.Thread(target=fail_often, args=(errors, 500)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors.counts()["spans"] == 2_000

    def test_survives_a_fork_under_lock(self) -> None:
        """A lock that another thread holds during a fork is free in the child."""
        script = """
            import os, signal
            from apscheduler_telemetry.core.observers import ErrorReporter
            errors = ErrorReporter()
            with errors._lock:
                child = os.fork()
                if child == 0:
                    signal.alarm(10)
                    errors.exception("spans")
                    os._exit(errors.counts()["spans"] - 1)
                status = os.waitpid(child, 0)[1]
            raise SystemExit(status)
        """
        done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
        assert done.returncode == 0

    def test_an_exception_at_any_line(self) -> None:
        """An exception from a signal handler leaves no lock held, at any line."""
        line = 0
        while True:
            errors = ErrorReporter()

            def report() -> None:
                errors.report("spans", "why")  # noqa: B023
                errors.counts()  # noqa: B023

            if not interrupt(report, ("core/observers.py", "core/locks.py"), raise_timeout, line):
                break
            assert run_in_thread(errors.counts)["spans"] <= 1
            line += 1
        assert line > 5


class Undecided(Observer):
    """Says whether it is enabled: now, for good, or by an error."""

    def __init__(self, answer: Any) -> None:
        super().__init__("undecided", [])
        self.answer = answer

    def is_enabled(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Following(Observer):
    """Has begun with a run."""

    def __init__(self) -> None:
        super().__init__("following", [])
        self.is_stopped = False
        self.is_following = True

    def ignore_new_runs(self) -> None:
        self.is_stopped = True

    def has_open_runs(self) -> bool:
        return self.is_following


class TestObserverGroup:
    @pytest.mark.parametrize(
        ("answers", "enabled", "settled"),
        [
            ([], False, True),
            ([None], False, True),
            ([False], False, False),
            ([None, False], False, False),
            ([False, None], False, False),
            ([True], True, True),
            ([False, True], True, False),
            ([None, True], True, True),
            ([False, Boom()], True, False),
            ([None, Boom()], True, True),
        ],
    )
    def test_refresh(self, answers: list[Any], enabled: bool, settled: bool) -> None:
        """`update_enabled_observers` is needed while an observer may still become enabled."""
        errors = ErrorReporter()
        group = ObserverGroup(errors, map(Undecided, answers))
        assert (group.has_enabled_observers, group.are_enabled_observers_final) == (
            enabled,
            settled,
        )
        assert errors.counts()["spans"] == sum(isinstance(answer, Boom) for answer in answers)

    def test_an_observer_that_becomes_enabled(self) -> None:
        """`update_enabled_observers` finds an observer that has become enabled, which is called."""
        observer, other = Undecided(False), Observer("other", [])
        group = ObserverGroup(ErrorReporter(), [observer, other])
        observer.answer = True
        group.on_run_finished(RUN)
        assert (observer.calls, len(other.calls)) == ([], 1)
        group.update_enabled_observers()
        assert (group.has_enabled_observers, group.are_enabled_observers_final) == (True, True)
        group.on_run_finished(RUN)
        assert (len(observer.calls), len(other.calls)) == (1, 2)

    def test_starts_in_order_and_ends_in_reverse(self) -> None:
        """Observers are called in order at the start and in reverse at the end."""
        calls: list[Any] = []
        group = ObserverGroup(ErrorReporter(), [Observer("a", calls), Observer("b", calls)])
        group.on_callable_start(RUN)
        group.on_callable_end(RUN)
        group.on_run_finished(RUN)
        assert calls == [
            ("a", "on_callable_start", RUN),
            ("b", "on_callable_start", RUN),
            ("b", "on_callable_end", RUN),
            ("a", "on_callable_end", RUN),
            ("b", "on_run_finished", RUN),
            ("a", "on_run_finished", RUN),
        ]

    def test_joins_carriers(self) -> None:
        """The entries that observers inject are joined in one carrier."""
        carriers = {"a": {"x": "1"}, "b": None, "c": {"y": "2"}}
        observers = [Observer(name, [], carrier) for name, carrier in carriers.items()]
        assert ObserverGroup(ErrorReporter(), observers).create_trace_carrier(RUN) == {
            "x": "1",
            "y": "2",
        }

    def test_injects_nothing(self) -> None:
        """If no observer injects anything, the carrier is empty."""
        assert ObserverGroup(ErrorReporter(), [Observer("a", [])]).create_trace_carrier(RUN) == {}
        assert ObserverGroup(ErrorReporter()).create_trace_carrier(RUN) == {}

    def test_an_observer_that_fails_harms_no_other(self) -> None:
        """An observer that raises is counted, and the others are called."""
        errors = ErrorReporter()
        calls: list[Any] = []
        failing = Failing(), Failing(component="meter")
        observers: list[Any] = [failing[0], Observer("a", calls, {"x": "1"}), failing[1]]
        group = ObserverGroup(errors, observers)
        group.on_callable_start(RUN)
        group.on_callable_end(RUN)
        group.on_run_finished(RUN)
        assert group.create_trace_carrier(RUN) == {"x": "1"}
        assert [call[1] for call in calls] == [
            "on_callable_start",
            "on_callable_end",
            "on_run_finished",
            "create_trace_carrier",
        ]
        assert {part: n for part, n in errors.counts().items() if n} == {"spans": 4, "meter": 4}

    def test_stop_waits_for_runs_that_observers_have_begun_with(self) -> None:
        """`stop_after_open_runs` calls back once, when the last open run is finished."""
        observer, done = Following(), list[str]()
        group = ObserverGroup(ErrorReporter(), [Observer("a", []), observer])
        group.stop_after_open_runs(lambda: done.append("done"))
        for _ in range(2):
            group.on_run_finished(RUN)
        assert (observer.is_stopped, group.has_enabled_observers, done) == (True, True, [])
        observer.is_following = False
        for _ in range(2):
            group.on_run_finished(RUN)
        assert done == ["done"]

    def test_stop_is_done_at_once_if_no_observer_has_open_runs(self) -> None:
        """`stop_after_open_runs` calls back at once if there are no open runs, or if it fails."""
        errors, done = ErrorReporter(), list[str]()
        ObserverGroup(errors, [Failing(), Observer("a", [])]).stop_after_open_runs(
            lambda: done.append("done")
        )
        assert done == ["done"]
        assert errors.counts()["spans"] == 2

    @pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
    def test_does_not_swallow_what_ends_the_program(self, exception: type[BaseException]) -> None:
        """KeyboardInterrupt and SystemExit in an observer are raised."""
        with pytest.raises(exception):
            ObserverGroup(ErrorReporter(), [Failing(exception)]).on_callable_start(RUN)


class TestObservedRuns:
    def test_drops_runs_that_ended_some_time_ago(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Runs in flight and runs that ended recently are kept, whatever their number."""
        monkeypatch.setattr(observers_module, "MAX_ENDED_RUNS_HELD", 3)
        rig = RecorderRig()
        monkeypatch.setattr(time, "time", rig.clock)
        kept: ObservedRuns[int] = ObservedRuns()
        assert kept.cleanup_threshold == 3
        stale, recent, in_flight = rig.submit(0, 10, 20)
        for run in (stale, recent, in_flight):
            kept[run] = 1
        rig.finish(stale, Outcome.LOST)
        rig.clock.now += STALE_SECONDS_AFTER_END + 1
        rig.finish(recent, Outcome.LOST)
        kept.drop_stale_runs()
        assert list(kept) == [recent, in_flight]
        assert kept.cleanup_threshold == 5
