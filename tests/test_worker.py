"""What runs beside the job, with APScheduler's own ``run_job`` and the pickle of real children."""

from __future__ import annotations

import asyncio
import gc
import inspect
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.executors.base import run_job

import support_jobs as jobs
from apscheduler_telemetry.adapters.apscheduler3 import child_process as _worker
from apscheduler_telemetry.adapters.apscheduler3.child_process import (
    ChildJob,
    Measurement,
    RunTimes,
    TimedCall,
)

NOW = datetime.now(timezone.utc)
TIMES = [NOW, NOW + timedelta(seconds=1), NOW + timedelta(seconds=2)]


class Diary:
    """An owner, and a home, that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def at(self, index: int) -> None:
        self.told.append(index)

    def through(self) -> None:
        self.told.append("through")

    def enter(self) -> str:
        self.told.append("enter")
        return "token"

    def leave(self, token: Any, exception: BaseException | None, result: Any = None) -> None:
        self.told.append((token, exception))

    def measured(self, measurement: Measurement) -> None:
        self.told.append(measurement)

    def __reduce__(self) -> Any:
        return Diary, ()


def job(
    func: Callable[..., Any] = jobs.nothing, *args: Any, misfire_grace_time: int | None = None
) -> Any:
    """Return what ``run_job`` needs to know of a job."""
    return SimpleNamespace(
        id="job", func=func, args=args, kwargs={}, misfire_grace_time=misfire_grace_time
    )


def run_in_child(job: Any, home: Any, times: Any = TIMES[:1], carriers: Any = ()) -> list[Any]:
    """Run a job as a child does, and return its events as the parent gets them."""
    child = _worker.revive(job, carriers, _worker.address_of(home))
    events = run_job(child, "default", RunTimes(child, times), "apscheduler.executors.default")
    return list(pickle.loads(pickle.dumps(events)))


class TestRunTimes:
    """The list of run times that tells which of them is looked at."""

    def test_it_tells_each_and_the_end(self) -> None:
        """Its owner hears of an index before its run time is given out, and of the end."""
        diary = Diary()
        for run_time in RunTimes(diary, TIMES):
            diary.told.append(run_time)
        assert diary.told == [0, TIMES[0], 1, TIMES[1], 2, TIMES[2], "through"]

    def test_it_tells_the_end_of_a_walk_that_breaks_off(self) -> None:
        """Who walks through it and fails is through."""
        diary = Diary()

        def walk() -> None:
            for _ in RunTimes(diary, TIMES):
                jobs.fail()

        with pytest.raises(ValueError, match="as asked"):
            walk()
        assert diary.told == [0, "through"]

    def test_it_is_a_list(self) -> None:
        """For everything else it is the list that it was made from."""
        times = RunTimes(diary := Diary(), TIMES)
        assert times == TIMES
        assert (times[-1], times[1:], len(times)) == (TIMES[2], TIMES[1:], 3)
        assert diary.told == []

    def test_it_travels_with_its_owner(self) -> None:
        """Pickled, it does not take that for a walk, and finds its owner again on the way out."""
        diary = Diary()
        owner, times = pickle.loads(pickle.dumps((diary, RunTimes(diary, TIMES))))
        assert diary.told == []
        assert times == TIMES
        next(iter(times))
        assert owner.told == [0, "through"]


class TestTimedCall:
    """The callable that is measured."""

    def test_a_result(self) -> None:
        """Arguments go in and the very result comes out."""
        result = object()
        diary = Diary()
        call = TimedCall(lambda *args, **kwargs: (args, kwargs, result), diary)
        assert call(1, self=2) == ((1,), {"self": 2}, result)
        assert diary.told == ["enter", ("token", None)]

    def test_an_exception(self) -> None:
        """The very exception comes out, even one that is not meant for jobs."""
        boom = SystemExit()

        def throw() -> None:
            raise boom

        diary = Diary()
        with pytest.raises(SystemExit) as caught:
            TimedCall(throw, diary)()
        assert caught.value is boom
        assert diary.told == ["enter", ("token", boom)]

    def test_it_looks_like_the_callable(self) -> None:
        """Attributes are those of the callable, and so is what a pickle of it holds."""
        call = TimedCall(jobs.nap, Diary())
        assert (call.__name__, call.__qualname__) == ("nap", "nap")
        assert inspect.unwrap(call) is jobs.nap
        assert pickle.loads(pickle.dumps(call)) is jobs.nap

    def test_a_coroutine_function(self) -> None:
        """It stays one, which is what executors ask, and is measured until it has ended."""
        diary = Diary()

        async def double(number: int) -> int:
            await asyncio.sleep(0)
            diary.told.append("inside")
            return 2 * number

        timed = _worker.timed_coroutine(double, diary)
        assert inspect.iscoroutinefunction(timed)
        assert asyncio.run(timed(21)) == 42
        assert diary.told == ["enter", "inside", ("token", None)]

    def test_a_coroutine_that_fails(self) -> None:
        """The very exception comes out of a coroutine, too."""
        boom = KeyboardInterrupt()

        async def throw() -> None:
            raise boom

        diary = Diary()
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(_worker.timed_coroutine(throw, diary)())
        assert diary.told == ["enter", ("token", boom)]


class TestChildJob:
    """The view of a job in another process."""

    def test_a_measurement_for_each_run(self) -> None:
        """Each run that started brings its own measurement home, errors included."""
        results = iter([None, ValueError, None])

        def take_turns() -> None:
            if (error := next(results)) is not None:
                raise error

        diary = Diary()
        begin = time.time()
        events = run_in_child(job(take_turns), diary, TIMES)
        end = time.time()
        assert [(e.job_id, type(e.job_id)) for e in events] == [("job", str)] * 3
        assert [m.position for m in diary.told] == [0, 1, 2]
        assert all(m.failure is None and 0 <= m.duration <= end - begin + 1 for m in diary.told)
        assert all(begin - 1 <= m.started <= end + 1 for m in diary.told)

    def test_none_for_a_run_that_came_too_late(self) -> None:
        """A run that is missed in the child has no measurement, whatever ran before it."""
        times = [NOW + timedelta(hours=1), NOW - timedelta(hours=1)]
        diary = Diary()
        assert len(run_in_child(job(misfire_grace_time=1), diary, times)) == 2
        assert [m.position for m in diary.told] == [0]

    def test_the_duration(self) -> None:
        """What is measured is the callable."""
        diary = Diary()
        run_in_child(job(jobs.nap, 0.05), diary)
        assert 0.05 <= diary.told[0].duration < 3

    def test_nobody_waits_any_more(self) -> None:
        """A measurement that nobody waits for is dropped, and the event is what it is."""
        diary = Diary()
        child = _worker.revive(job(), (), _worker.address_of(diary))
        events = run_job(child, "default", RunTimes(child, TIMES[:1]), "apscheduler")
        on_the_way = pickle.dumps(events)
        del diary
        gc.collect()
        (event,) = pickle.loads(on_the_way)
        assert (event.job_id, type(event.job_id)) == ("job", str)

    def test_homes_are_not_kept(self) -> None:
        """Who has got an address lives no longer for that."""
        before = len(_worker._homes)
        diary = Diary()
        addresses = {_worker.address_of(diary), _worker.address_of(diary)}
        assert len(addresses) == 2
        del diary
        gc.collect()
        assert len(_worker._homes) == before

    def test_a_carrier_that_cannot_be_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A trace that cannot be continued is told of, and the job runs."""

        def broken(*_: Any) -> Any:
            raise OSError

        monkeypatch.setattr(_worker, "_attach", broken)
        diary = Diary()
        (event,) = run_in_child(job(jobs.give_back, 5), diary, carriers=[{"traceparent": "x"}])
        assert (event.retval, "OSError" in diary.told[0].failure) == (5, True)

    def test_a_carrier_that_cannot_be_put_down(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nor does a trace that cannot be left change the job."""

        def broken(*_: Any) -> Any:
            raise OSError

        monkeypatch.setattr(_worker, "_attach", lambda carrier: carrier)
        monkeypatch.setattr(_worker, "_detach", broken)
        diary = Diary()
        (event,) = run_in_child(job(jobs.give_back, 5), diary, carriers=[{"traceparent": "x"}])
        assert (event.retval, "OSError" in diary.told[0].failure) == (5, True)

    def test_it_looks_like_the_job(self) -> None:
        """Its texts and attributes are the job's."""
        child = ChildJob(original := job(), (), 0)
        assert (str(child), repr(child)) == (str(original), repr(original))
        assert child.misfire_grace_time is None


class TestTracebacks:
    """Traces of ours in what listeners get."""

    @staticmethod
    def _raised(depth: int = 1) -> Exception:
        call: Callable[[], Any] = jobs.fail
        for _ in range(depth):
            call = TimedCall(call, Diary())
        try:
            call()
        except ValueError as exception:
            return exception
        raise AssertionError

    @pytest.mark.parametrize("depth", [1, 3])
    def test_our_frames_are_taken_out(self, depth: int) -> None:
        """An exception's traceback goes from APScheduler's frame to the user's, as without us."""
        exception = self._raised(depth)
        _worker.hide_frames(exception)
        frames = traceback.extract_tb(exception.__traceback__)
        assert [frame.name for frame in frames] == ["_raised", "fail"]

    def test_our_frame_on_top(self) -> None:
        """So it is where the outermost frame is ours, as after clear of the others."""
        exception = self._raised()
        assert exception.__traceback__ is not None
        exception.__traceback__ = exception.__traceback__.tb_next
        _worker.hide_frames(exception)
        assert [f.name for f in traceback.extract_tb(exception.__traceback__)] == ["fail"]

    def test_no_traceback(self) -> None:
        """An exception that has none, as from another process, keeps none."""
        exception = ValueError()
        _worker.hide_frames(exception)
        assert exception.__traceback__ is None

    def test_our_entries_are_taken_out_of_the_text(self) -> None:
        """The formatted traceback has the user's entries only, each of them whole."""
        ours = f'  File "{_worker.__file__}", line 1, in __call__\n    result = call()\n'
        entries = traceback.format_tb(self._raised().__traceback__)
        entries = [entry for entry in entries if _worker.__file__ not in entry]  # 3.10 has one
        formatted = "".join([entries[0], ours, *entries[1:]])
        hidden = _worker.hide_entries(formatted)
        assert _worker.__file__ not in hidden
        assert hidden.count('  File "') == 2
        assert hidden.endswith("    raise ValueError(message)\n")
        assert _worker.hide_entries(hidden) is hidden


def test_a_child_imports_next_to_nothing() -> None:
    """A spawned child that imports the module gets nothing of Prometheus or OpenTelemetry."""
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
    }
