"""Runs in the child of a process pool, with APScheduler's ``run_job`` and real pickling."""

from __future__ import annotations

import asyncio
import gc
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.executors.asyncio import run_coroutine_job
from apscheduler.executors.base import run_job

from apscheduler_telemetry.adapters.apscheduler3 import child_process
from apscheduler_telemetry.adapters.apscheduler3.child_process import (
    DueTimeWithMeasurement,
    MeasuringRunTimes,
)
from tests.helpers import jobs

NOW = datetime.now(timezone.utc)
TIMES = [NOW, NOW + timedelta(seconds=1), NOW + timedelta(seconds=2)]
KEY = 5


class Measurement(NamedTuple):
    """What a sink gets of one run."""

    key: int
    due: datetime
    position: int
    started: float
    duration: float
    telemetry_error: str | None


MEASUREMENT = Measurement(KEY, NOW, position=0, started=1.0, duration=2.0, telemetry_error=None)


class Sink:
    """A sink that keeps what it gets."""

    def __init__(self, times: list[datetime]) -> None:
        self.times = times
        self.measurements: list[Measurement] = []

    def receive_measurement(self, *measurement: Any) -> datetime:
        self.measurements.append(Measurement(*measurement))
        return self.times[self.measurements[-1].position]


def job(
    func: Callable[..., Any] = jobs.nothing, *args: Any, misfire_grace_time: int | None = None
) -> Any:
    """Return what ``run_job`` needs to know of a job."""
    return SimpleNamespace(
        id="job", func=func, args=args, kwargs={}, misfire_grace_time=misfire_grace_time
    )


def run_in_child(job: Any, sink: Sink, carriers: Any = ()) -> list[Any]:
    """Run a job as a child does, and return its events as the parent gets them."""
    return list(pickle.loads(sent_by_child(job, sink, carriers)))


def sent_by_child(job: Any, sink: Sink, carriers: Any = ()) -> bytes:
    """Run a job as a child does, and return its events as the child sends them."""
    times = MeasuringRunTimes(sink.times, carriers, child_process.register_sink(sink), KEY)
    return pickle.dumps(run_job(job, "default", times, "apscheduler.executors.default"))


class Asked(list[datetime]):
    """Run times that note whether who iterates over them runs jobs."""

    answers: list[bool]

    def __iter__(self) -> Iterator[datetime]:
        self.answers = [child_process.is_job_runner(sys._getframe(1))]
        yield from self[:]


class TestRunsJobs:
    """`is_job_runner`: which functions run a job, and are measured."""

    def test_run_job_of_apscheduler_is_recognised(self) -> None:
        """APScheduler's `run_job`, which most executors use, is recognised."""
        times = Asked(TIMES)
        run_job(job(), "default", times, "apscheduler")
        assert times.answers == [True]

    def test_run_coroutine_job_of_apscheduler_is_recognised(self) -> None:
        """APScheduler's `run_coroutine_job` is recognised."""

        async def nothing() -> None: ...

        times = Asked(TIMES)
        asyncio.run(run_coroutine_job(job(nothing), "default", times, "apscheduler"))
        assert times.answers == [True]

    def test_a_replacement_that_calls_the_job_runs_jobs(self) -> None:
        """A replacement is recognised by its use of ``func``, ``args`` and ``kwargs``."""

        def run_mine(job: Any, run_times: Any) -> None:
            for _ in run_times:
                job.func(*job.args, **job.kwargs)

        run_mine(job(), times := Asked(TIMES))
        assert times.answers == [True]

    def test_a_long_replacement_that_calls_the_job_runs_jobs(self) -> None:
        """A replacement is recognised if its loop is so long that Python uses EXTENDED_ARG."""
        lines = ["def run_mine(job, run_times):", " for _ in run_times:"]
        lines += ["  job.func(*job.args, **job.kwargs)", *["  _ = _"] * 400]
        names: dict[str, Any] = {}
        exec("\n".join(lines), names)
        names["run_mine"](job(), times := Asked(TIMES))
        assert times.answers == [True]

    @pytest.mark.parametrize("copy", [list, tuple, sorted, set])
    def test_a_copy_of_the_run_times_runs_none(self, copy: Any) -> None:
        """Copying the run times does not count, also if the function then calls the job."""

        def run_mine(job: Any, run_times: Any) -> None:
            for _ in copy(run_times):
                job.func(*job.args, **job.kwargs)

        run_mine(job(), times := Asked(TIMES))
        assert times.answers == [False]

    def test_a_comprehension_that_copies_the_run_times_runs_none(self) -> None:
        """A comprehension does not count, also since Python 3.12, which inlines it."""

        def run_mine(job: Any, run_times: Any) -> None:
            for _ in [each for each in run_times]:  # noqa: C416  # not the same to is_job_runner
                job.func(*job.args, **job.kwargs)

        run_mine(job(), times := Asked(TIMES))
        assert times.answers == [False]

    def test_a_replacement_that_looks_at_the_run_times_first_runs_jobs_in_its_loop(self) -> None:
        """A function that copies the run times runs no job by that, but in its loop."""
        answers: list[list[bool]] = []

        def run_mine(job: Any, run_times: Any) -> None:
            list(run_times)
            answers.append(run_times.answers)
            for _ in run_times:
                job.func(*job.args, **job.kwargs)

        run_mine(job(), times := Asked(TIMES))
        assert [*answers, times.answers] == [[False], [True]]

    def test_a_loop_that_never_calls_the_job_runs_none(self) -> None:
        """A function that never reads ``func`` does not count."""
        times = Asked(TIMES)
        for _ in times:
            pass
        assert times.answers == [False]


class TestMeasuringRunTimes:
    """The list of run times that a child gets."""

    def test_each_run_has_a_measurement_of_its_own(self) -> None:
        """Each run that started has its own measurement, also if it raised."""
        results = iter([None, ValueError, None])

        def take_turns() -> None:
            if (error := next(results)) is not None:
                raise error

        sink = Sink(TIMES)
        begin = time.time()
        events = run_in_child(job(take_turns), sink)
        end = time.time()
        assert [(e.job_id, type(e.job_id)) for e in events] == [("job", str)] * 3
        assert [m.position for m in sink.measurements] == [0, 1, 2]
        assert all(m.telemetry_error is None for m in sink.measurements)
        assert all(0 <= m.duration <= end - begin + 1 for m in sink.measurements)
        assert all(begin - 1 <= m.started <= end + 1 for m in sink.measurements)

    def test_events_have_the_plain_run_times(self) -> None:
        """Events have the same datetime objects as the parent, which identifies runs by them."""
        sink = Sink(TIMES)
        events = run_in_child(job(), sink)
        assert [type(event.scheduled_run_time) for event in events] == [datetime] * 3
        assert all(e.scheduled_run_time is at for e, at in zip(events, TIMES, strict=True))

    def test_a_run_that_came_too_late_keeps_its_place(self) -> None:
        """A run that was too late has a measurement; its start shows that it did not run."""
        sink = Sink([NOW + timedelta(hours=1), NOW - timedelta(hours=1)])
        events = run_in_child(job(misfire_grace_time=1), sink)
        assert [event.code for event in events] == [EVENT_JOB_EXECUTED, EVENT_JOB_MISSED]
        assert [m.position for m in sink.measurements] == [0, 1]
        assert sink.measurements[1].started - sink.times[1].timestamp() > 1

    def test_a_duration_is_that_of_the_callable(self) -> None:
        """A duration is that of one run, not of the whole submission."""
        sink = Sink(TIMES[:2])
        run_in_child(job(jobs.nap, 0.05), sink)
        assert all(0.05 <= m.duration < 3 for m in sink.measurements)

    def test_an_iteration_that_breaks_off_is_measured_up_to_there(self) -> None:
        """If the loop over run times ends with an exception, the run until then is measured."""
        sink = Sink(TIMES)
        times = MeasuringRunTimes(TIMES, (), child_process.register_sink(sink), KEY)

        def run_mine(func: Any) -> Any:
            for at in times:
                yielded.append(at)
                each = SimpleNamespace(func=func, args=(), kwargs={})
                each.func(*each.args, **each.kwargs)

        yielded: list[Any] = []
        with pytest.raises(ValueError, match="as asked"):
            run_mine(jobs.fail)
        gc.collect()
        pickle.loads(pickle.dumps(yielded))
        assert [m.position for m in sink.measurements] == [0]

    def test_it_behaves_like_the_list_of_run_times(self) -> None:
        """For code that does not run the job, it equals the list that it was made from."""
        times = MeasuringRunTimes(TIMES, (), 0, KEY)
        assert times == TIMES
        assert (times[-1], times[1:], len(times)) == (TIMES[2], TIMES[1:], 3)
        assert [type(at) for at in times] == [datetime] * 3
        assert all(copy is at for copy, at in zip(list(times), TIMES, strict=True))

    def test_a_context_that_cannot_be_attached_is_reported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If the context cannot be attached, the job runs without it, and the error is reported."""

        def broken(*_: Any) -> Any:
            raise OSError

        monkeypatch.setattr(child_process, "_attach_context", broken)
        sink = Sink(TIMES[:1])
        (event,) = run_in_child(job(jobs.give_back, 5), sink, [{"traceparent": "x"}])
        assert (event.retval, sink.measurements[0].telemetry_error) == (5, "OSError()")

    def test_a_context_that_cannot_be_detached_is_reported(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If the context cannot be detached, the result is kept, and the error is reported."""

        def broken(*_: Any) -> Any:
            raise OSError

        monkeypatch.setattr(child_process, "_attach_context", lambda carrier: carrier)
        monkeypatch.setattr(child_process, "_detach_context", broken)
        sink = Sink(TIMES[:1])
        (event,) = run_in_child(job(jobs.give_back, 5), sink, [{"traceparent": "x"}])
        assert (event.retval, sink.measurements[0].telemetry_error) == (5, "OSError()")

    def test_a_context_is_attached_for_its_own_run_only(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each run has its own carrier; one without a carrier has no context."""
        steps: list[Any] = []
        monkeypatch.setattr(child_process, "_attach_context", lambda carrier: carrier["id"])
        monkeypatch.setattr(
            child_process, "_detach_context", lambda token: steps.append(("end", token))
        )
        sink = Sink(TIMES)
        run_in_child(job(steps.append, "run"), sink, [{"id": "a"}, {}, {"id": "b"}])
        assert steps == ["run", ("end", "a"), "run", "run", ("end", "b")]


class TestRunTimeWithMeasurement:
    """A run time that carries a measurement."""

    @pytest.mark.parametrize(
        "due",
        [
            NOW,
            datetime(2030, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1),
            datetime(2030, 1, 1, 12, 0, 0, 123456, tzinfo=ZoneInfo("Asia/Kathmandu")),
        ],
        ids=["utc", "second 2:30 of the night", "microseconds"],
    )
    def test_it_is_the_run_time_for_the_job_s_log_and_comparisons(self, due: datetime) -> None:
        """It equals the run time, has the same text, and can be subtracted from a datetime."""
        measured = DueTimeWithMeasurement.copy_of(due)
        assert (measured, measured.fold, measured.tzinfo) == (due, due.fold, due.tzinfo)
        assert (str(measured), measured.timestamp()) == (str(due), due.timestamp())
        moment = due + timedelta(seconds=1)
        assert moment - measured == timedelta(seconds=1)

    def test_without_a_measurement_it_is_pickled_as_the_plain_run_time(self) -> None:
        """Without a measurement it is pickled as a plain datetime."""
        copy = pickle.loads(pickle.dumps(DueTimeWithMeasurement.copy_of(NOW)))
        assert (copy, type(copy)) == (NOW, datetime)

    def test_with_a_measurement_it_is_pickled_with_it(self) -> None:
        """With a measurement, unpickling it passes the measurement to its sink."""
        sink = Sink(TIMES)
        measured = DueTimeWithMeasurement.copy_of(NOW)
        measured.set_measurement(child_process.register_sink(sink), *MEASUREMENT)
        assert pickle.loads(pickle.dumps(measured)) is NOW
        assert sink.measurements == [MEASUREMENT]


class TestDeliver:
    """`register_sink` and `unpickle_measured_time`: how a measurement finds the parent's sink."""

    def test_a_measurement_without_a_sink_is_dropped(self) -> None:
        """If the sink no longer exists, the measurement is dropped and the event is complete."""
        sink = Sink(TIMES[:1])
        sent = sent_by_child(job(), sink)
        del sink
        gc.collect()
        (event,) = pickle.loads(sent)
        assert (event.job_id, type(event.job_id)) == ("job", str)
        assert (event.scheduled_run_time, type(event.scheduled_run_time)) == (NOW, datetime)

    def test_an_address_keeps_no_sink_alive(self) -> None:
        """Each registration has a new address, and holds its sink weakly."""
        before = len(child_process._sinks)
        sink = Sink(TIMES)
        addresses = {child_process.register_sink(sink), child_process.register_sink(sink)}
        assert len(addresses) == 2
        assert len(child_process._sinks) == before + 2
        del sink
        gc.collect()
        assert len(child_process._sinks) == before

    def test_each_sink_gets_its_own_measurements(self) -> None:
        """Each sink gets its own measurements, in whatever order they arrive."""
        sinks = [Sink([at]) for at in TIMES]
        addresses = [child_process.register_sink(sink) for sink in sinks]
        for address, sink in reversed(list(zip(addresses, sinks, strict=True))):
            assert child_process.deliver_measurement(address, *MEASUREMENT) is sink.times[0]
        assert [sink.measurements for sink in sinks] == [[MEASUREMENT]] * 3


def test_a_child_imports_next_to_nothing() -> None:
    """A spawned child that imports the module imports no Prometheus and no OpenTelemetry."""
    script = (
        "import sys, apscheduler_telemetry.adapters.apscheduler3.child_process; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert not loaded & {"apscheduler", "prometheus_client", "opentelemetry", "asyncio", "http"}
    ours = {name for name in done.stdout.split() if name.startswith("apscheduler_telemetry")}
    assert ours == {
        "apscheduler_telemetry",
        "apscheduler_telemetry.adapters",
        "apscheduler_telemetry.adapters.apscheduler3",
        "apscheduler_telemetry.adapters.apscheduler3.child_process",
        "apscheduler_telemetry.core",
        "apscheduler_telemetry.core.current_run",
        "apscheduler_telemetry.errors",
    }
