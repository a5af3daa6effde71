"""Users' executors that create events, or call jobs, in their own way."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MISSED,
    JobExecutionEvent,
)

from tests.helpers import jobs
from tests.helpers.custom_executors import Executing, run
from tests.helpers.faults import Boom
from tests.helpers.rigs import HandRig, hand_driven_rig


def executing(execute: Callable[[Any, Any, Sequence[datetime]], None]) -> Any:
    """Start a scheduler with such an executor."""
    return hand_driven_rig({"default": Executing(execute)})


def run_twice(rig: HandRig) -> Any:
    """Let a job fall due twice in one pass, and return it."""
    job = rig.add(jobs.give_back, "interval", args=[1], seconds=10, coalesce=False)
    rig.after(25)
    return job


class TestEvents:
    """Events that executors report as the result of a submission."""

    def test_events_from_a_generator_are_read_once(self) -> None:
        """Events from a generator are read once, each after listeners got the previous one."""
        counts_of_events: list[int] = []

        def report(events: list[Any]) -> Iterator[Any]:
            for event in events:
                yield event
                counts_of_events.append(rig.codes().count("executed"))

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            executor._run_job_success(job.id, report(run(job, run_times)))

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"success": 2}
            assert counts_of_events == [1, 2]

    def test_jobs_that_share_a_due_time_get_their_own_results(self) -> None:
        """Their next run is one object, and the executor puts that into both events."""
        submitted: list[tuple[Any, datetime]] = []

        def execute(_: Any, job: Any, __: Any) -> None:
            submitted.append((job, job.next_run_time))

        with executing(execute) as rig:
            due = rig.clock.now + timedelta(seconds=10)
            for job_id in ("good", "bad"):
                rig.add(jobs.nothing, "date", run_date=due, id=job_id)
            rig.after(10)
            executor = rig.scheduler._executors["default"]
            for job, at in reversed(submitted):
                code = EVENT_JOB_EXECUTED if job.id == "good" else EVENT_JOB_ERROR
                event = JobExecutionEvent(code, job.id, job._jobstore_alias, at)
                executor._run_job_success(job.id, [event])
            assert rig.outcomes("good") == {"success": 1}
            assert rig.outcomes("bad") == {"error": 1}

    def test_runs_whose_events_are_never_read_are_lost(self) -> None:
        """Runs whose events an executor never reads are lost, and do not stay in flight."""

        class Ignoring(Executing):
            def _run_job_success(self, job_id: str, events: Any) -> None:
                super()._run_job_success(job_id, [])

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            executor._run_job_success(job.id, iter(run(job, run_times)))

        with hand_driven_rig({"default": Ignoring(execute)}) as rig:
            rig.checks_events = False  # the events are not passed on
            run_twice(rig)
            assert rig.outcomes() == {"lost": 2}
            assert (rig.job().running, rig.job().queued) == (0, 0)

    def test_events_before_the_failure_of_a_generator_count(self) -> None:
        """Events before the exception of a generator count; the other runs are lost."""

        def report(job: Any, run_times: Any) -> Iterator[Any]:
            yield JobExecutionEvent(EVENT_JOB_EXECUTED, job.id, "default", run_times[0])
            raise Boom

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            with pytest.raises(Boom):
                executor._run_job_success(job.id, report(job, run_times))

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"success": 1, "lost": 1}

    def test_events_in_any_iterable_are_read(self) -> None:
        """Events may be in any iterable."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            missed = (JobExecutionEvent(EVENT_JOB_MISSED, job.id, "default", t) for t in run_times)
            executor._run_job_success(job.id, dict(enumerate(missed)).values())

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"missed": 2}

    def test_unreadable_events_make_the_runs_lost(self) -> None:
        """If the events are not iterable, APScheduler raises, and the runs are lost."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            with pytest.raises(TypeError, match="not iterable"):
                executor._run_job_success(job.id, SystemExit())

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"lost": 2}

    @pytest.mark.parametrize("changeable", [True, False])
    def test_events_of_a_class_of_the_users_are_read(self, changeable: bool) -> None:
        """Events may be objects of any class that have a code; frozen ones are not changed."""

        @dataclass(frozen=True)
        class Frozen:
            code: int
            job_id: Any
            exception: Any = None
            traceback: Any = 'File "_worker.py"'

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            make: Any = SimpleNamespace if changeable else Frozen
            raised = {"exception": ValueError(), "traceback": "tb"}
            events = [
                make(code=EVENT_JOB_EXECUTED, job_id=job.id),
                make(code=EVENT_JOB_ERROR, job_id=job.id, **raised),
            ]
            executor._run_job_success(job.id, events)

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"success": 1, "error": 1}
            assert rig.job().exceptions == {"ValueError": 1}
            ids = [event.job_id for event in rig.events if hasattr(event, "traceback")]
            assert set(ids) <= {"job"}
            assert not changeable or {str} == set(map(type, ids))

    def test_runs_without_events_are_lost(self) -> None:
        """Runs whose events have no code are lost if telemetry did not see them run."""
        execute = lambda executor, job, _: executor._run_job_success(job.id, [object()] * 2)  # noqa: E731
        with executing(execute) as rig:
            rig.scheduler.remove_listener(rig.events.append)
            rig.scheduler._dispatch_event = lambda event: None  # which reads the code of an event
            run_twice(rig)
            assert rig.outcomes() == {"lost": 2}

    def test_run_whose_end_is_never_reported_stays_in_flight(self) -> None:
        """A run whose end is never reported stays in flight, as it does in APScheduler."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            run(job, run_times)

        with executing(execute) as rig:
            run_twice(rig)
            assert (rig.outcomes(), rig.job().running, rig.job().due_count) == ({}, 2, 2)
            assert rig.scheduler._executors["default"]._instances == {"job": 1}
            rig.scheduler._executors["default"]._run_job_success("job", [])
            assert (rig.outcomes(), rig.job().running) == ({"lost": 2}, 0)
            rig.checks_events = False


class TestCalls:
    """Ways in which executors call jobs."""

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
    def test_copy_of_a_job_is_measured(self, duplicate: Callable[[Any], Any]) -> None:
        """A copy of a job can be changed independently, and its runs are measured."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            twin = duplicate(job)
            twin.args = [2]
            executor._run_job_success(job.id, run(twin, run_times))

        with executing(execute) as rig:
            job = run_twice(rig)
            assert job.args == (1,)
            assert rig.outcomes() == {"success": 2}
            assert sum(rig.job().durations.counts) == 2
        assert [e.retval for e in rig.events if hasattr(e, "retval")] == [2, 2]

    def test_state_of_a_job_has_nothing_of_telemetry(self) -> None:
        """The pickled state of a job contains nothing of telemetry."""
        states = []

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            states.append(job.__getstate__())
            executor._run_job_success(job.id, run(job, run_times))

        with executing(execute) as rig:
            job = run_twice(rig)
            expected = job.__getstate__()
        assert {**expected, "next_run_time": None} == {**states[0], "next_run_time": None}

    def test_run_times_are_pickled_as_a_plain_list(self) -> None:
        """Run times are pickled as a plain list, without a need for this package; no durations."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            sent = pickle.dumps(run_times)
            assert b"apscheduler_telemetry" not in sent
            received = pickle.loads(sent)
            assert (type(received), received) == (list, run_times[:])
            executor._run_job_success(job.id, run(job, received))

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"success": 2}
            assert sum(rig.job().durations.counts) == 0

    def test_run_that_is_tried_again_counts_once(self) -> None:
        """A run that its executor retries counts once, with the last outcome."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            run(job, run_times)
            executor._run_job_success(job.id, run(job, run_times))

        answers = iter([ValueError(), None])

        def work() -> None:
            if answer := next(answers):
                raise answer

        with executing(execute) as rig:
            rig.add(work)
            rig.scheduler.turn()
            assert rig.outcomes() == {"success": 1}
            assert rig.codes() == ["executed", "submitted"]
