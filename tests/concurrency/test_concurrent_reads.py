"""
Metrics that are read while jobs run or change, at each line of the reading.

The thread that reads is stopped at a line of the package, and continues when other threads have
done something or wait for it. So each case is one fixed order of events, which is the same in every
run.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client.registry import Collector

import apscheduler_telemetry
from tests.helpers.jobs import WAIT_TIMEOUT, fail, nothing
from tests.helpers.metrics import registry_of
from tests.helpers.rigs import hand_driven_rig

PACKAGE = str(Path(apscheduler_telemetry.__file__).parent)
PAUSE = 0.02
"""Seconds after which a thread that has not come to its end is waiting for a lock."""


class StoppedThread:
    """
    A thread that does something, and stops on the way at a line of the package.

    Attributes:
        lines: how many lines of the package it has run.
        places: the number of the first of them for each place in the source.

    Args:
        action: what it does.
        line: how many lines of the package it runs before it stops; 0 to go on to the end.
        before: what it does first, and does not stop in.
        trace: begins to follow the action; by default in this thread and at once.
    """

    def __init__(
        self,
        action: Callable[[], Any],
        line: int = 0,
        *,
        before: Callable[[], Any] | None = None,
        trace: Callable[[Any], object] = sys.settrace,
    ) -> None:
        self.lines = 0
        self.places: dict[tuple[Any, int], int] = {}
        self.result: Any = None
        self._action, self._line = action, line
        self._before, self._begin_trace = before, trace
        self._go_on, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def wait_until_stopped(self) -> None:
        """Wait until it has stopped or ended, or hardly moves as others hold a lock."""
        self._stopped.wait(PAUSE)

    def go_on(self) -> None:
        """Continue the thread, and wait until it has ended or waits for others."""
        self._go_on.set()
        self._thread.join(PAUSE)

    def end(self) -> Any:
        """Continue the thread to its end, and return what its action returned or raised."""
        self._go_on.set()
        self._thread.join(WAIT_TIMEOUT)
        assert not self._thread.is_alive(), "a deadlock"
        return self.result

    def _run(self) -> None:
        try:
            if self._before is not None:
                self._before()
            self._begin_trace(self._trace)
            self.result = self._action()
        except Exception as error:  # noqa: BLE001  # which is not what the test expects
            self.result = error
        finally:
            sys.settrace(None)
            self._stopped.set()

    def _trace(self, frame: Any, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            self.lines += 1
            self.places.setdefault((frame.f_code, frame.f_lineno), self.lines)
            if self.lines == self._line:
                self._stopped.set()
                assert self._go_on.wait(WAIT_TIMEOUT)
        return self._trace


def lines_of(action: Callable[[], Any], parts: int, **options: Any) -> Iterator[int]:
    """Yield lines at which to stop an action, so many and all over it."""
    thread = StoppedThread(action, **options)
    thread.end()
    return iter(range(1, thread.lines, max(1, thread.lines // parts)))


def places_of(action: Callable[[], Any], **options: Any) -> list[int]:
    """Return lines at which to stop an action: one for each place in the source."""
    thread = StoppedThread(action, **options)
    thread.end()
    return list(thread.places.values())


class TracingCollector(Collector):
    """A collector of an application, which has no metrics and is asked where answers are made."""

    def __init__(self) -> None:
        self._traces: list[Any] = []

    def trace_next(self, trace: Any) -> None:
        """Follow what the thread does that makes the next answer, after it has come here."""
        self._traces.append(trace)

    def collect(self) -> Iterator[Any]:
        sys.settrace(self._traces.pop(0) if self._traces else None)
        return iter(())


@pytest.mark.slow
class TestAnswersAtTheSameTime:
    """Two requests for ``/metrics`` that are answered at the same time."""

    def test_each_is_complete_while_jobs_come(self) -> None:
        """Both responses show each job that existed all the time, once in each family."""
        stable = [f"stable-{number}" for number in range(2)]
        new = [f"new-{number}" for number in range(2)]
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            for job_id in stable:
                rig.add(nothing, "interval", hours=1, id=job_id)

            def add_new() -> None:
                for job_id in new:
                    rig.add(nothing, "interval", hours=1, id=job_id)

            def answer() -> str:
                environ: dict[str, Any] = {}
                setup_testing_defaults(environ)
                environ["PATH_INFO"] = "/metrics"
                statuses: list[str] = []
                body = b"".join(
                    rig.telemetry.wsgi_app(environ, lambda status, *_: statuses.append(status))
                )
                return f"{statuses[0]}\n{body.decode()}"

            collector = TracingCollector()
            registry_of(rig.telemetry).register(collector)
            trace = collector.trace_next
            answer()  # which makes what later ones find
            for job_id in stable:  # so that the text of each is made anew, as below
                rig.scheduler.reschedule_job(job_id, trigger="interval", hours=1)
            sampled = list(lines_of(answer, 6, trace=trace))
            for job_id in stable:
                rig.scheduler.reschedule_job(job_id, trigger="interval", hours=1)
            whole = [(line, 0) for line in places_of(answer, trace=trace)]
            for line, line_of_other in [*product(sampled, sampled), *whole]:
                for job_id in stable:  # so that the text of each is made anew
                    rig.scheduler.reschedule_job(job_id, trigger="interval", hours=1)
                one = StoppedThread(answer, line, trace=trace)
                one.wait_until_stopped()
                other = StoppedThread(answer, line_of_other, before=add_new, trace=trace)
                other.wait_until_stopped()
                one.go_on()
                other.go_on()
                for text in (one.end(), other.end()):
                    assert isinstance(text, str), text
                    assert text.startswith("200 OK\n"), text
                    for name in ("next_run_timestamp_seconds", "info", "runs_total"):
                        pattern = rf'^apscheduler_job_{name}{{.*?job_id="(.*?)"'
                        shown = re.findall(pattern, text, re.MULTILINE)
                        assert len(shown) == len(set(shown))
                        assert set(stable) <= set(shown) <= {*stable, *new}
                for job_id in new:
                    rig.scheduler.remove_job(job_id)
                rig.clock.advance(1000)  # by when what was removed is not shown any more
                answer()


@pytest.mark.slow
class TestReadingWhileJobsRun:
    """A reading of the metrics while a job runs."""

    @pytest.mark.parametrize("func", [nothing, fail], ids=["succeeds", "fails"])
    def test_numbers_of_the_job_agree_with_each_other(self, func: Callable[[], Any]) -> None:
        """In every reading, the number of ended runs equals the number of durations."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            registry = registry_of(rig.telemetry)
            rig.add(func, "interval", seconds=10)

            def read() -> dict[str, float]:
                values: dict[str, float] = {}
                for metric in registry.collect():
                    for sample in metric.samples:
                        if "job_id" in sample.labels and "le" not in sample.labels:
                            values[sample.name] = values.get(sample.name, 0) + sample.value
                return values

            rig.after(10)
            runs = 1
            for line in lines_of(read, 400):
                reading = StoppedThread(read, line)
                reading.wait_until_stopped()
                rig.clock.advance(10)
                run = StoppedThread(rig.scheduler.turn)
                run.wait_until_stopped()
                values = reading.end()
                run.end()
                runs += 1
                ended = values["apscheduler_job_runs_total"]
                assert ended in (runs - 1, runs)
                assert values["apscheduler_job_run_duration_seconds_count"] == ended, line
            assert sum(rig.outcomes().values()) == runs
