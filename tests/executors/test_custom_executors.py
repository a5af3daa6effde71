"""Users' executors: what is counted and measured of their runs."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, JobExecutionEvent
from apscheduler.executors.asyncio import run_coroutine_job
from apscheduler.executors.base import BaseExecutor, run_job
from apscheduler.executors.pool import BasePoolExecutor

from tests.helpers import jobs
from tests.helpers.rigs import hand_driven_rig
from tests.helpers.triggers import every


class Calling(BaseExecutor):
    """A user's executor that calls jobs itself, and reports the events of a function."""

    def __init__(self, report: Callable[[Any, Sequence[datetime]], Sequence[Any]]) -> None:
        super().__init__()
        self._report = report

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        for _ in range(len(run_times)):
            job.func(*job.args, **job.kwargs)
        self._run_job_success(str(job.id), self._report(job, run_times))


class Iterating(Calling):
    """A user's executor that calls jobs in a loop over their run times."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        for _ in run_times:
            job.func(*job.args, **job.kwargs)
        self._run_job_success(str(job.id), self._report(job, run_times))


class Copying(Calling):
    """A user's executor that calls jobs in a loop over a copy of their run times."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        for _ in list(run_times):
            job.func(*job.args, **job.kwargs)
        self._run_job_success(str(job.id), self._report(job, run_times))


class Retrying(BaseExecutor):
    """A user's executor that runs a failed job again."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        for _ in range(2):
            events = run_job(job, job._jobstore_alias, run_times, "apscheduler.executors.own")
            if not any(event.exception for event in events):
                break
        self._run_job_success(job.id, events)


class Deferring(BaseExecutor):
    """A user's executor that keeps submissions, which the test ends."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[tuple[str, Sequence[datetime], Callable[[], Any]]] = []

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        self.taken.append((str(job.id), run_times, partial(job.func, *job.args)))

    def end(self, index: int, *, call: bool = False) -> None:
        job_id, run_times, func = self.taken[index]
        if call:
            func()
        self._run_job_success(job_id, executed(job_id, run_times))


class OnPool(BasePoolExecutor):
    """A user's executor with a pool of its own."""

    def __init__(self) -> None:
        super().__init__(concurrent.futures.ThreadPoolExecutor(2))


class Awaiting(BaseExecutor):
    """A user's executor that runs coroutine functions, each in a new event loop."""

    def _do_submit_job(self, job: Any, run_times: Sequence[datetime]) -> None:
        events = asyncio.run(run_coroutine_job(job, "default", run_times, "apscheduler"))
        self._run_job_success(job.id, events)


def executed(job_id: str, run_times: Sequence[datetime]) -> list[JobExecutionEvent]:
    return [JobExecutionEvent(EVENT_JOB_EXECUTED, job_id, "default", at) for at in run_times]


class TestExecutorsOfTheUser:
    """Executors that call jobs and report results in their own way."""

    def test_one_that_iterates_over_the_run_times_is_measured(self) -> None:
        """An executor that calls the job in a loop over the run times is measured."""
        executor = Iterating(lambda job, run_times: executed(job.id, run_times))
        with hand_driven_rig({"default": executor}) as rig:
            rig.add(lambda: jobs.nap(0.01), every(10), coalesce=False)
            rig.after(25)
            assert rig.outcomes() == {"success": 3}
            assert sum(rig.job().durations.counts) == sum(rig.job().delays.counts) == 3
            assert 0.03 <= rig.job().durations.sum < 1
        assert {str} == {type(e.job_id) for e in rig.events if hasattr(e, "job_id")}

    @pytest.mark.parametrize("kind", [Calling, Copying])
    def test_one_that_does_not_iterate_is_counted_without_durations(
        self, kind: type[Calling]
    ) -> None:
        """Without such a loop, a run is queued until its event says that it ended."""
        executor = kind(lambda job, run_times: executed(job.id, run_times))
        loads: list[tuple[int, int]] = []
        with hand_driven_rig({"default": executor}) as rig:
            rig.add(lambda: loads.append((rig.job().queued, rig.job().running)), every(10))
            rig.scheduler.turn()
            assert (rig.outcomes(), loads) == ({"success": 1}, [(1, 0)])
            assert sum(rig.job().durations.counts) == sum(rig.job().delays.counts) == 0
        assert {str} == {type(e.job_id) for e in rig.events if hasattr(e, "job_id")}

    @pytest.mark.parametrize("kind", ["measured", "not measured"])
    def test_one_that_reports_no_events_loses_its_runs(self, kind: str) -> None:
        """Runs without an event are lost, because their outcome is not known."""
        executor = (Iterating if kind == "measured" else Calling)(lambda *_: [])
        with hand_driven_rig({"default": executor}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            assert rig.outcomes() == {"lost": 3}

    def test_one_that_never_reports_an_end_keeps_its_runs_in_flight(self) -> None:
        """Runs whose result is never reported stay in flight."""
        with hand_driven_rig({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.after(5)
            assert (rig.job().queued, rig.outcomes()) == (1, {})
            executor.end(0)
            assert (rig.job().queued, rig.outcomes()) == (0, {"success": 1})

    def test_one_that_tries_again_counts_a_run_once(self) -> None:
        """A run that is retried counts once: from the first start, with the last outcome."""
        attempts: list[int] = []

        def fail_first() -> None:
            attempts.append(len(attempts))
            jobs.nap(0.02)
            if len(attempts) == 1:
                jobs.fail()

        with hand_driven_rig({"default": Retrying()}) as rig:
            rig.add(fail_first, every(10))
            rig.scheduler.turn()
            assert attempts == [0, 1]
            assert rig.outcomes() == {"success": 1}
            assert sum(rig.job().durations.counts) == sum(rig.job().delays.counts) == 1
            assert 0.02 <= rig.job().durations.sum < 1

    def test_events_that_can_be_read_only_once_reach_listeners(self) -> None:
        """Events from an iterator reach the listeners."""
        executor = Calling(lambda job, run_times: iter(executed(job.id, run_times)))  # type: ignore[arg-type, return-value]
        with hand_driven_rig({"default": executor}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            assert rig.outcomes() == {"success": 3}
            assert rig.codes().count("executed") == 3

    @pytest.mark.parametrize("coalesce", [True, False])
    def test_run_that_the_user_submits_is_counted_as_submitted(self, coalesce: bool) -> None:
        """A submission without run times, or of another object, reaches the executor."""
        with hand_driven_rig({"default": (executor := Deferring())}) as rig:
            job = SimpleNamespace(id="bare", max_instances=1, func=jobs.nothing, args=())
            executor.submit_job(job, [])
            executor.submit_job(rig.add(jobs.nothing, every(10), coalesce=coalesce), [])
            assert [job_id for job_id, *_ in executor.taken] == ["bare", "job"]
            for job_id, *_ in executor.taken:
                executor._run_job_success(job_id, [])
            rig.failing = {"adapter"}

    def test_one_that_reports_no_events_and_ran_nothing_loses_its_runs(self) -> None:
        """Runs that were never seen to run and have no event are lost."""
        with hand_driven_rig({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            assert rig.job().queued == 3
            executor._run_job_success("job", [])
            assert rig.outcomes() == {"lost": 3}

    def test_one_that_runs_jobs_elsewhere_gives_outcomes_without_durations(self) -> None:
        """Runs that were never seen to run have the outcomes of their events, and no duration."""
        with hand_driven_rig({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(15)
            executor.end(0)
            assert rig.outcomes() == {"success": 2}
            assert sum(rig.job().durations.counts) == 0

    def test_runs_without_an_event_beside_others_with_one_are_lost(self) -> None:
        """Events are matched by scheduled time; runs without one are lost."""
        with hand_driven_rig({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.after(25)
            job_id, run_times, _ = executor.taken[0]
            executor._run_job_success(job_id, executed(job_id, run_times[1:2]))
            assert rig.outcomes() == {"success": 1, "lost": 2}

    def test_event_ends_the_run_that_it_is_about(self) -> None:
        """Of two runs of one job, an event ends the run with its scheduled time."""
        with hand_driven_rig({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), max_instances=2)
            rig.scheduler.turn()
            rig.after(10)
            executor.end(1, call=True)
            assert (rig.outcomes(), rig.job().queued) == ({"success": 1}, 1)
            executor.end(0, call=True)
            assert rig.outcomes() == {"success": 2}

    def test_two_submissions_for_one_due_time_both_count(self) -> None:
        """Two submissions of a job for the same due time both count."""
        with hand_driven_rig({"default": (executor := Deferring())}) as rig:
            job = rig.add(jobs.nothing, every(10), max_instances=2)
            for _ in range(2):
                executor.submit_job(job, [job.next_run_time])
            assert rig.job().queued == 2
            for number in range(2):
                executor.end(number)
            assert rig.outcomes() == {"success": 2}

    def test_one_that_only_reports_an_error_ends_the_oldest_submission(self) -> None:
        """An error without a run time ends the oldest submission of the job."""
        with hand_driven_rig({"default": (executor := Deferring())}) as rig:
            rig.add(jobs.nothing, every(10), max_instances=2)
            rig.scheduler.turn()
            rig.after(10)
            executor._run_job_error("job", OSError())
            assert (rig.outcomes(), rig.job().queued) == ({"lost": 1}, 1)
            executor.end(1)
            assert rig.outcomes() == {"lost": 1, "success": 1}

    def test_pool_executor_of_the_user_is_measured(self) -> None:
        """A user's pool executor is measured like those of APScheduler."""
        with hand_driven_rig({"default": OnPool()}) as rig:
            rig.add(jobs.nothing, every(10), coalesce=False)
            rig.add(jobs.fail, every(10), id="b")
            rig.after(25)
            rig.settle()
            assert rig.outcomes() == {"success": 3}
            assert rig.outcomes("b") == {"error": 1, "coalesced": 2}

    def test_coroutine_is_measured_until_its_end(self) -> None:
        """A coroutine is measured until its end, also in another event loop."""

        async def fail_late() -> None:
            await asyncio.sleep(0.02)
            jobs.fail()

        with hand_driven_rig({"default": Awaiting()}) as rig:
            rig.add(fail_late)
            rig.scheduler.turn()
            assert rig.outcomes() == {"error": 1}
            assert 0.02 <= rig.job().durations.sum < 1

    def test_coroutine_in_a_thread_pool_reaches_the_listener(self) -> None:
        """A thread pool never runs a coroutine: listeners get it, and the run is a success."""

        async def never() -> None:
            raise AssertionError

        with hand_driven_rig() as rig:
            rig.add(never)
            rig.scheduler.turn()
            rig.settle()
            assert rig.outcomes() == {"success": 1}
        (coroutine,) = [e.retval for e in rig.events if hasattr(e, "retval")]
        assert never.__code__ is coroutine.cr_code
        coroutine.close()
