"""
Random jobs, faults and changes: each due run has exactly one outcome.

A model with its own arithmetic, which uses neither telemetry nor APScheduler's code, follows each
step. After each step, the metrics must equal the model's numbers of due, queued and running runs
and of outcomes, and listeners must have got the events of these runs.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from tests.helpers import jobs
from tests.helpers.clocks import START, at
from tests.helpers.metrics import check_counts, job_states
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.schedulers import forkserver_pool
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.slow

PERIODS = (5, 10, 15, 20, 30)  # divisors of a minute, so that cron can have them, too
JUMPS = (0, 0.5, 5, 9.5, 10, 30, 44)  # so that no account is dropped within twenty of them
WAIT_TIMEOUT = 10.0


@dataclass(frozen=True)
class Schedule:
    """
    A trigger and, by arithmetic of our own, its fire times in seconds since `START`.

    Attributes:
        kind: ``interval``, ``cron``, ``or`` or ``date``.
        period: seconds between two runs; for a date, when it is.
    """

    kind: str
    period: int

    def trigger(self) -> Any:
        """Return it as APScheduler has it."""
        if self.kind == "interval":
            return IntervalTrigger(seconds=self.period, start_date=START)
        if self.kind == "date":
            return DateTrigger(at(self.period))
        crons = [CronTrigger(second=f"*/{n}", timezone=START.tzinfo) for n in self._periods]
        return crons[0] if self.kind == "cron" else OrTrigger(crons)

    def since(self, seconds: float) -> float:
        """Return the first fire time at or after some time; a date does not mind how late it is."""
        if self.kind == "date":
            return self.period
        return min(math.ceil(seconds / n) * n for n in self._periods)

    def after(self, fire_time: float) -> float | None:
        """Return the fire time after one of them."""
        if self.kind == "date":
            return None
        return min((fire_time // n + 1) * n for n in self._periods)

    @property
    def _periods(self) -> tuple[int, ...]:
        return (self.period, 12) if self.kind == "or" else (self.period,)


@dataclass(frozen=True)
class Spec:
    """A job as it is added."""

    schedule: Schedule
    executor: str
    behaviour: str
    coalesce: bool
    max_instances: int
    grace: int | None

    def options(self) -> dict[str, Any]:
        return {
            "executor": self.executor,
            "coalesce": self.coalesce,
            "max_instances": self.max_instances,
            "misfire_grace_time": self.grace,
        }


class Job:
    """A job as the model knows it: what it is now, and when it runs next."""

    def __init__(self, job_id: str, spec: Spec, now: float) -> None:
        self.id = job_id
        self.spec = spec
        self.next: float | None = spec.schedule.since(now)
        self.done = -1.0  # the latest that the loop has come to

    def take_due(self, now: float) -> list[float]:
        times = []
        while self.next is not None and self.next <= now:
            times.append(self.next)
            self.next = self.spec.schedule.after(self.next)
        return times

    def is_too_late(self, fire_time: float, now: float) -> bool:
        return self.spec.grace is not None and now - fire_time > self.spec.grace


@dataclass(frozen=True)
class Held:
    """
    A submission whose job waits to be released.

    Attributes:
        job: the job as it was when it was submitted, or is modified later.
        missed: how many of its runs came too late, before the one that waits.
        waiting: the fire times after that one.
    """

    job: Job
    missed: int
    waiting: list[float]


class Model:
    """
    The expected metrics.

    Attributes:
        now: seconds since `START`.
        jobs: the jobs of the scheduler.
        due: numbers of due runs by job id.
        outcomes: numbers of outcomes by job id.
        held: submissions in flight by job id; missed runs of a burst are reported at its end.
        forgotten: the number of missed runs that APScheduler drops without an event.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.is_paused = False
        self.jobs: dict[str, Job] = {}
        self.due: Counter[str] = Counter()
        self.outcomes: dict[str, Counter[str]] = {}
        self.held: dict[str, list[Held]] = {}
        self.forgotten = 0

    def add(self, job_id: str, spec: Spec) -> None:
        before, job = self.jobs.get(job_id), Job(job_id, spec, self.now)
        if before is not None:
            self.forget(job_id, job.next)
            job.done = before.done
        self.jobs[job_id] = job
        self.outcomes.setdefault(job_id, Counter())
        self.held.setdefault(job_id, [])

    def forget(self, job_id: str, following: float | None = None) -> None:
        """
        Count what is due of a job that the user changes before the loop has come to it.

        Args:
            job_id: the job, before it is changed.
            following: its next run from now on; the loop will come to what is due from then on.
        """
        job = self.jobs[job_id]
        if job.next is None or job.next <= job.done:
            return  # not due, or put back to before what was done
        if self.now - job.next < 1:
            return  # cancelled as it became due
        if following is not None and following <= job.next:
            return
        due = job.take_due(self.now)
        times = [at for at in due if following is None or at < following]
        self.due[job_id] += len(times)
        folded = len(times[1:]) if job.spec.coalesce else 0
        self.outcomes[job_id].update({"coalesced": folded, "missed": len(times) - folded})
        self.forgotten += len(times) - folded

    def turn(self) -> None:
        """Do what a pass does."""
        if not self.is_paused:
            for job, times in self.submissions():
                self._run(job, times)

    def submissions(self) -> Iterator[tuple[Job, list[float]]]:
        """Yield what reaches an executor, in order; what does not is done with at once."""
        waiting = [job for job in self.jobs.values() if job.next is not None]
        for job in sorted(waiting, key=lambda job: (job.next, job.id)):
            times = job.take_due(self.now)
            if not times:
                continue
            job.done = times[-1]
            outcomes = self.outcomes[job.id]
            self.due[job.id] += len(times)
            if job.next is None or job.spec.executor == "nowhere":
                del self.jobs[job.id]
            if job.spec.executor == "nowhere":
                outcomes["lost"] += len(times)
                continue
            if job.spec.coalesce:
                outcomes["coalesced"] += len(times) - 1
                times = times[-1:]
            if len(self.held[job.id]) >= job.spec.max_instances:
                outcomes["skipped"] += len(times)
            elif job.spec.executor == "refusing":
                outcomes["lost"] += len(times)
            else:
                yield job, times

    def release(self, job_id: str) -> None:
        """Release all held runs."""
        for held in self.held[job_id]:
            too_late = sum(held.job.is_too_late(at, self.now) for at in held.waiting)
            self.outcomes[job_id]["missed"] += held.missed + too_late
            self.outcomes[job_id]["success"] += 1 + len(held.waiting) - too_late
        self.held[job_id].clear()

    def expected(self, job_id: str) -> tuple[int, int, int, dict[str, int]]:
        """Return due, queued and running runs of a job, and the outcomes that there are."""
        held = self.held[job_id]
        queued = sum(h.missed + len(h.waiting) for h in held)
        outcomes = {outcome: n for outcome, n in self.outcomes[job_id].items() if n}
        return self.due[job_id], queued, len(held), outcomes

    def _run(self, job: Job, times: list[float]) -> None:
        missed = sum(job.is_too_late(fire_time, self.now) for fire_time in times)
        if job.spec.behaviour == "hold" and missed < len(times):
            self.held[job.id].append(Held(job, missed, times[missed + 1 :]))
        else:
            outcome = "error" if job.spec.behaviour == "fail" else "success"
            self.outcomes[job.id].update({"missed": missed, outcome: len(times) - missed})


class Hold:
    """A job that ends when it is released."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def run(self) -> None:
        assert self.go_on.wait(jobs.WAIT_TIMEOUT)


class Refusing(BaseExecutor):
    """An executor that rejects every job."""

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        raise OSError


class SchedulerAndModel:
    """A real scheduler and its model, to which the same steps are applied."""

    def __init__(self, rig: HandRig, specs: list[Spec]) -> None:
        self.rig = rig
        self.model = Model()
        self._specs = {f"job {number}": spec for number, spec in enumerate(specs)}
        self._held = {job_id: Hold() for job_id in self._specs}
        self._before: dict[str, dict[Any, int]] = {}
        for job_id in self._specs:
            self.add(job_id)

    def do(self, step: tuple[str, int, Any]) -> None:
        """Apply a step: the name of a method, the number of a job, and an argument."""
        verb, number, value = step
        job_id = f"job {number % len(self._specs)}"
        if verb in ("remove", "pause", "resume", "reschedule", "modify"):
            if job_id not in self.model.jobs:
                return
            event(verb)
        getattr(self, verb)(*[argument for argument in (job_id, value) if argument is not None])

    def add(self, job_id: str) -> None:
        """Add a job, or another one in its place."""
        spec = self._specs[job_id]
        funcs = {"work": jobs.nothing, "fail": jobs.fail, "hold": self._held[job_id].run}
        func, options = funcs[spec.behaviour], spec.options()
        trigger = spec.schedule.trigger()
        self.rig.scheduler.add_job(func, trigger, id=job_id, replace_existing=True, **options)
        self.model.add(job_id, spec)

    def wait(self, _job_id: str, seconds: float) -> None:
        """Advance the clock, and run a pass."""
        self.model.now += seconds
        self.rig.after(seconds)
        self.model.turn()

    def release(self, job_id: str) -> None:
        """Release held runs, and those that start right after them."""
        self.model.release(job_id)
        self._held[job_id].go_on.set()
        self.agree()
        self._held[job_id].go_on.clear()

    def end(self) -> None:
        """Release all runs, and set how many events are not expected."""
        self.rig.forgotten = self.model.forgotten
        for held in self._held.values():
            held.go_on.set()

    def remove(self, job_id: str) -> None:
        self.rig.scheduler.remove_job(job_id)
        self.model.forget(job_id)
        del self.model.jobs[job_id]

    def pause(self, job_id: str) -> None:
        self.rig.scheduler.pause_job(job_id)
        self.model.forget(job_id)
        self.model.jobs[job_id].next = None

    def resume(self, job_id: str) -> None:
        self.rig.scheduler.resume_job(job_id)
        job = self.model.jobs[job_id]
        following = job.spec.schedule.since(self.model.now)
        self.model.forget(job_id, following)
        job.next = following

    def reschedule(self, job_id: str, schedule: Schedule) -> None:
        self.rig.scheduler.reschedule_job(job_id, trigger=schedule.trigger())
        job = self.model.jobs[job_id]
        following = schedule.since(self.model.now)
        self.model.forget(job_id, following)
        job.spec = replace(job.spec, schedule=schedule)
        job.next = following

    def modify(self, job_id: str, changes: tuple[bool, int, int | None]) -> None:
        coalesce, max_instances, grace = changes
        job = self.model.jobs[job_id]
        job.spec = replace(job.spec, coalesce=coalesce, max_instances=max_instances, grace=grace)
        options = job.spec.options()
        del options["executor"]
        self.rig.scheduler.modify_job(job_id, **options)

    def pause_all(self, _job_id: str) -> None:
        self.rig.scheduler.pause()
        self.model.is_paused = True

    def resume_all(self, _job_id: str) -> None:
        self.rig.scheduler.resume()
        self.model.is_paused = False

    def agree(self) -> None:
        """Wait until the metrics equal those of the model, and check this."""
        expected = {job_id: self.model.expected(job_id) for job_id in self.model.outcomes}
        under_way = sum(len(held) for held in self.model.held.values())
        try:
            wait_until(
                lambda: self._metrics() == expected and self._instances() == under_way,
                timeout=WAIT_TIMEOUT,
            )
        except AssertionError:
            assert self._metrics() == expected
            assert self._instances() == under_way
        check_counts(self.rig.telemetry)
        for job_id, job in self.model.jobs.items():
            expected_next_run = 0 if job.next is None else START.timestamp() + job.next
            assert self.rig.job(job_id).next_run == expected_next_run
        self._only_grows()

    def _metrics(self) -> dict[str, tuple[int, int, int, dict[str, int]]]:
        return {
            a.label: (
                a.due_count,
                a.queued,
                a.running,
                {o.value: n for o, n in a.outcomes.items() if n},
            )
            for a in job_states(self.rig.telemetry)
        }

    def _instances(self) -> int:
        executors = list(self.rig.scheduler._executors.values())
        return sum(sum(list(executor._instances.values())) for executor in executors)

    def _only_grows(self) -> None:
        for account in job_states(self.rig.telemetry):
            before = self._before.get(account.label, {})
            assert all(n >= before.get(outcome, 0) for outcome, n in account.outcomes.items())
            self._before[account.label] = account.outcomes


schedules = st.builds(
    Schedule,
    st.sampled_from(["interval", "interval", "cron", "or", "date"]),
    st.sampled_from(PERIODS),
)
graces = st.sampled_from([None, 1, 8, 60])
changes = st.tuples(st.booleans(), st.integers(1, 3), graces)
places = st.sampled_from(
    [
        *[("threads", behaviour) for behaviour in ("work", "fail", "hold", "hold")],
        *[("inline", behaviour) for behaviour in ("work", "fail")],
        ("refusing", "work"),
        ("nowhere", "work"),
    ]
)
specs = st.builds(
    lambda schedule, place, change: Spec(schedule, *place, *change), schedules, places, changes
)
waits = st.tuples(st.just("wait"), st.just(0), st.sampled_from(JUMPS))
steps = st.one_of(
    waits,
    waits,
    st.tuples(
        st.sampled_from(
            ["release", "release", "remove", "add", "pause", "resume", "pause_all", "resume_all"]
        ),
        st.integers(0, 3),
        st.none(),
    ),
    st.tuples(st.just("reschedule"), st.integers(0, 3), schedules),
    st.tuples(st.just("modify"), st.integers(0, 3), changes),
)


@settings(
    max_examples=200,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    specs=st.lists(specs, min_size=1, max_size=4), steps=st.lists(steps, min_size=3, max_size=20)
)
def test_each_due_run_has_one_outcome_under_random_changes(
    specs: list[Spec], steps: list[tuple[str, int, Any]]
) -> None:
    """After any sequence of changes, the metrics equal those of the model."""
    executors = {
        "default": DebugExecutor(),
        "inline": DebugExecutor(),
        "threads": ThreadPoolExecutor(16),
        "refusing": Refusing(),
    }
    with hand_driven_rig(executors) as rig:
        both = SchedulerAndModel(rig, specs)
        try:
            for step in steps:
                both.do(step)
                both.agree()
            for job_id in both.model.held:
                both.release(job_id)
        finally:
            both.end()
        for outcome in {o for counter in both.model.outcomes.values() for o in counter}:
            event(outcome)


@settings(max_examples=8, derandomize=True, deadline=None, database=None)
@given(
    behaviours=st.lists(
        st.sampled_from(["work", "fail", "result", "lambda", "kill"]), min_size=1, max_size=4
    ),
    coalesce=st.lists(st.booleans(), min_size=4, max_size=4),
    jumps=st.lists(st.sampled_from((0, 10, 25)), min_size=1, max_size=3),
)
def test_each_due_run_of_a_child_has_one_outcome_under_random_faults(
    tmp_path_factory: Any, behaviours: list[str], coalesce: list[bool], jumps: list[float]
) -> None:
    """The same holds if children die, and if callables or results cannot be pickled."""
    directory = tmp_path_factory.mktemp("children")
    funcs: dict[str, tuple[Any, list[Any]]] = {
        "work": (jobs.nothing, []),
        "fail": (jobs.fail, []),
        "result": (jobs.result_without_pickle, []),
        "lambda": (lambda: None, []),
        "kill": (jobs.die_when_let_go, [str(directory), "gate"]),
    }
    model = Model()
    with hand_driven_rig({"default": forkserver_pool()}) as rig:
        for number, behaviour in enumerate(behaviours):
            job_id, schedule = f"job {number}", Schedule("interval", 10)
            spec = Spec(schedule, "default", behaviour, coalesce[number], 1, None)
            func, arguments = funcs[behaviour]
            rig.add(func, schedule.trigger(), id=job_id, args=arguments, **spec.options())
            model.add(job_id, spec)
        for jump in jumps:
            model.now += jump
            Path(directory, "gate.out").unlink(missing_ok=True)
            rig.after(jump)
            check_counts(rig.telemetry)
            Path(directory, "gate.out").touch()
            is_alive = True
            for job, times in model.submissions():
                behaviour = job.spec.behaviour
                # One child runs them in order; runs after its death are lost with it.
                is_alive = is_alive and behaviour != "kill"
                done = {"work": "success", "fail": "error"}.get(behaviour, "lost")
                model.outcomes[job.id][done if is_alive else "lost"] += len(times)
            rig.settle()
            check_counts(rig.telemetry)
            for job_id, counted in model.outcomes.items():
                assert rig.outcomes(job_id) == {o: n for o, n in counted.items() if n}
                assert rig.job(job_id).due_count == model.due[job_id]
