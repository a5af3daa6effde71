"""Schedulers and executors of the user's, which do things in ways of their own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MISSED,
    JobExecutionEvent,
)
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.triggers.date import DateTrigger

import support_jobs as jobs
import support_scenes as scenes
from apscheduler_telemetry.adapters.apscheduler3.loop_liveness import OVERDUE_SECONDS
from support import HandDriven, HandRig, adapter_of, by_hand
from support_scenes import Boom, FaultyStore, Watched, watched


class Executing(BaseExecutor):
    """An executor that does what the test says."""

    def __init__(self, execute: Callable[[Any, Any, Sequence[datetime]], None]) -> None:
        super().__init__()
        self._execute = execute

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        self._execute(self, job, run_times)


def executing(execute: Callable[[Any, Any, Sequence[datetime]], None]) -> Any:
    """Start a scheduler with such an executor."""
    return by_hand({"default": Executing(execute)})


def run(job: Any, run_times: Sequence[datetime]) -> list[Any]:
    events: list[Any] = run_job(job, "default", run_times, "apscheduler")
    return events


def run_twice(rig: HandRig) -> Any:
    """Let a job fall due twice in one pass, and return it."""
    job = rig.add(jobs.give_back, "interval", args=[1], seconds=10, coalesce=False)
    rig.after(25)
    return job


class TestEvents:
    """What executors report as the result of a submission."""

    def test_that_can_be_read_only_once(self) -> None:
        """Events may come from a generator, which goes on when each has been told."""
        told: list[int] = []

        def report(events: list[Any]) -> Iterator[Any]:
            for event in events:
                yield event
                told.append(rig.codes().count("executed"))

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            executor._run_job_success(job.id, report(run(job, run_times)))

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"success": 2}
            assert told == [1, 2]

    def test_that_are_never_read(self) -> None:
        """What an executor does not read of a generator is lost, and does not stay running."""

        class Ignoring(Executing):
            def _run_job_success(self, job_id: str, events: Any) -> None:
                super()._run_job_success(job_id, [])

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            executor._run_job_success(job.id, iter(run(job, run_times)))

        with by_hand({"default": Ignoring(execute)}) as rig:
            rig.is_told = False  # the events are not passed on
            run_twice(rig)
            assert rig.outcomes() == {"lost": 2}
            assert (rig.job().running, rig.job().queued) == (0, 0)

    def test_a_generator_that_fails(self) -> None:
        """Its failure comes through; what it did not tell of is as it was seen to be, or lost."""

        def report(job: Any, run_times: Any) -> Iterator[Any]:
            yield JobExecutionEvent(EVENT_JOB_EXECUTED, job.id, "default", run_times[0])
            raise Boom

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            with pytest.raises(Boom):
                executor._run_job_success(job.id, report(job, run_times))

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"success": 1, "lost": 1}

    def test_that_are_no_list(self) -> None:
        """Events may come in anything that they can be read from again and again."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            missed = (JobExecutionEvent(EVENT_JOB_MISSED, job.id, "default", t) for t in run_times)
            executor._run_job_success(job.id, dict(enumerate(missed)).values())

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"missed": 2}

    def test_that_are_no_result(self) -> None:
        """What cannot be read at all is APScheduler's to refuse; the runs are lost."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            with pytest.raises(TypeError, match="not iterable"):
                executor._run_job_success(job.id, SystemExit())

        with executing(execute) as rig:
            run_twice(rig)
            assert rig.outcomes() == {"lost": 2}

    @pytest.mark.parametrize("changeable", [True, False])
    def test_of_the_users_own(self, changeable: bool) -> None:
        """Events may be anything that has a code; what they lack or forbid is left alone."""

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

    def test_that_say_nothing(self) -> None:
        """Runs of which nothing is said but that they are over are lost, if they were not seen."""
        execute = lambda executor, job, _: executor._run_job_success(job.id, [object()] * 2)  # noqa: E731
        with executing(execute) as rig:
            rig.scheduler.remove_listener(rig.events.append)
            rig.scheduler._dispatch_event = lambda event: None  # which asks events for their code
            run_twice(rig)
            assert rig.outcomes() == {"lost": 2}

    def test_that_never_come(self) -> None:
        """A run whose end its executor never reports stays in flight, as for APScheduler."""

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            run(job, run_times)

        with executing(execute) as rig:
            run_twice(rig)
            assert (rig.outcomes(), rig.job().running, rig.job().due_count) == ({}, 2, 2)
            assert rig.scheduler._executors["default"]._instances == {"job": 1}
            rig.scheduler._executors["default"]._run_job_success("job", [])
            assert (rig.outcomes(), rig.job().running) == ({"lost": 2}, 0)
            rig.is_told = False


class TestCalls:
    """How executors call jobs."""

    @pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
    def test_a_copy(self, duplicate: Callable[[Any], Any]) -> None:
        """A copy of the job is a job, that can be changed apart from it, and is measured."""

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

    def test_its_state(self) -> None:
        """Whoever sends a job elsewhere by its state gets the job's, and not ours."""
        states = []

        def execute(executor: Any, job: Any, run_times: Any) -> None:
            states.append(job.__getstate__())
            executor._run_job_success(job.id, run(job, run_times))

        with executing(execute) as rig:
            job = run_twice(rig)
            expected = job.__getstate__()
        assert {**expected, "next_run_time": None} == {**states[0], "next_run_time": None}

    def test_run_times_are_pickled_as_a_plain_list(self) -> None:
        """Where a pool that is not known may lack this package; there is no duration then."""

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

    def test_again(self) -> None:
        """A run that its executor tries again counts once, and as the executor reports it."""

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


class Ticking(HandDriven):
    """A scheduler that calls what it inherits, and never its own `_process_jobs`."""

    def turn(self) -> Any:
        return super()._process_jobs()

    def _process_jobs(self) -> Any:
        raise AssertionError


class Answering(HandDriven):
    """A scheduler whose pass does what the test says."""

    answer: Any = None

    def _process_jobs(self) -> Any:
        super()._process_jobs()
        return self.answer


class Retrying(HandDriven):
    """A scheduler that survives what fails in a pass."""

    def _process_jobs(self) -> Any:
        try:
            return super()._process_jobs()
        except Boom:
            return 1.0


class Timed(HandDriven):
    """A scheduler whose pass sets a timer and returns nothing, as Qt's."""

    def _start_timer(self, seconds: float | None) -> None:
        """Do nothing: see `turn`."""

    def _process_jobs(self) -> None:
        self._start_timer(super()._process_jobs())


def seen_by_hand(kind: type[HandDriven], **options: Any) -> Any:
    options.setdefault("executors", {"default": Executing(in_place)})
    options.setdefault("jobstores", {"default": FaultyStore()})
    return watched(kind(**options))


def in_place(executor: Any, job: Any, run_times: Sequence[datetime]) -> None:
    executor._run_job_success(job.id, run(job, run_times))


def moved(seen: Watched, seconds: float) -> None:
    """Let the adapter's clock be so many seconds ahead from now on."""
    loop = adapter_of(seen.telemetry)._loop
    before = loop._monotonic
    loop._monotonic = lambda: before() + seconds


class TestPassesThatBypassTheHook:
    """A scheduler that calls what it inherits, past what is laid over its instance."""

    def test_counts_as_turning(self) -> None:
        """It is up while it turns, and the end of the pass is told."""
        with seen_by_hand(Ticking) as seen:
            seen.scheduler.start()
            before = seen.telemetry._exported_scheduler.last_pass_ended_at
            seen.scheduler.turn()
            assert (
                before is None,
                seen.telemetry._exported_scheduler.last_pass_ended_at is None,
            ) == (
                True,
                False,
            )
            moved(seen, 10 * OVERDUE_SECONDS)
            assert (seen.up(), seen.reasons()) == (1, [])
            seen.scheduler.wakeup()
            moved(seen, 10 * OVERDUE_SECONDS)
            assert (seen.up(), seen.reasons()) == (0, ["overdue"])

    def test_goes_on(self) -> None:
        """A run takes no promise back, and a last one ends a job that is finished."""
        with seen_by_hand(Ticking) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, **scenes.due())
            seen.scheduler.add_job(jobs.nothing, DateTrigger(scenes.ago(0.1)), id="once")
            seen.scheduler.turn()
            assert seen.runs() == seen.runs("once") == {"success": 1}
            for job_id in ("job", "once"):
                assert not seen.job("withdrawn_run_timestamp_seconds", job_id)
            # After the pass it is the user again.
            seen.scheduler.pause_job("job")
            assert seen.job("withdrawn_run_timestamp_seconds") > 0

    def test_what_it_only_logs(self) -> None:
        """Failures inside count, and a job whose executor is unknown has broken its promise."""
        with seen_by_hand(Ticking) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, executor="gpu", **scenes.due())
            seen.scheduler.turn()
            assert seen.errors() == {"executor_lookup": 1}
            assert seen.runs() == {"lost": 1}
            assert seen.job("next_run_timestamp_seconds") > 0

    def test_a_pass_that_fails(self) -> None:
        """The store's failure counts, and the pass after it is a pass again."""
        with seen_by_hand(Ticking) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, **scenes.due())
            store = seen.scheduler._jobstores["default"]
            store.faults = {"update_job"}
            with pytest.raises(Boom):
                seen.scheduler.turn()
            assert seen.errors() == {"jobstore": 1}
            store.faults.clear()
            seen.scheduler.turn()
            assert not seen.job("withdrawn_run_timestamp_seconds")
            assert (seen.up(), seen.reasons()) == (1, [])


class TestPassesOfTheUser:
    """A scheduler with a pass of its own around APScheduler's."""

    @pytest.mark.parametrize("answer", [object(), "soon", None], ids=["object", "str", "None"])
    def test_that_answers_what_it_likes(self, answer: Any) -> None:
        """What is not a number of seconds reaches the scheduler, and means no time to us."""
        with seen_by_hand(Answering) as seen:
            seen.scheduler.answer = answer
            seen.scheduler.start()
            assert seen.scheduler._process_jobs() is answer
            moved(seen, 10 * OVERDUE_SECONDS)
            assert (seen.up(), seen.own_errors()) == (1, {})

    def test_that_comes_sooner(self) -> None:
        """The time that it says is the time at which it is expected again."""
        with seen_by_hand(Answering) as seen:
            seen.scheduler.answer = 1
            seen.scheduler.start()
            seen.scheduler.turn()
            moved(seen, OVERDUE_SECONDS)
            assert seen.reasons() == []
            moved(seen, 2)
            assert seen.reasons() == ["overdue"]

    def test_that_sets_a_timer(self) -> None:
        """Where a pass returns nothing, it is expected again when its timer says so."""
        with seen_by_hand(Timed) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
            seen.scheduler.turn()
            moved(seen, 3600 + OVERDUE_SECONDS - 1)
            assert seen.reasons() == []
            moved(seen, 2)
            assert seen.reasons() == ["overdue"]

    def test_that_survives(self) -> None:
        """A pass that catches what fails keeps the scheduler up; the store's failure counts."""
        with seen_by_hand(Retrying) as seen:
            seen.scheduler._jobstores["default"].faults = {"get_next_run_time"}
            seen.scheduler.start()
            seen.scheduler.turn()
            assert seen.errors() == {"jobstore": 1}
            assert (seen.up(), seen.reasons()) == (1, [])
