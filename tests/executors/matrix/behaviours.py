"""The behaviours of the matrix: how each is played, and what must be seen then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apscheduler.events import JobExecutionEvent
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.executors.matrix import table as matrix
from tests.executors.matrix.schedulers import OwnEvent, World
from tests.executors.matrix.table import Cell
from tests.helpers.jobs import fail, nap, result_without_pickle
from tests.helpers.metrics import JobState, check_counts, errors_of, outcomes, recorder_of, sample
from tests.helpers.rigs import Rig
from tests.helpers.watching import ago

HELD = 0.1
"""Seconds for which a run is held up where its duration matters."""
MANY = 10
"""Runs at a time, where nothing limits them."""


class Stage:
    """An instrumented scheduler in its world, on which one cell after another is played."""

    def __init__(self, world: World, scheduler: Any, directory: str) -> None:
        self.world = world
        self.scheduler = scheduler
        self.directory = directory
        self.spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.rig = Rig(scheduler, tracer_provider=provider)
        self.until = world.until

    def add(self, job_id: str, cell: Cell, func: Any, *args: Any, **options: Any) -> str:
        """Add a job that is due now, and again in an hour."""
        options = {
            "trigger": "interval",
            "hours": 1,
            "next_run_time": ago(0.1),
            "misfire_grace_time": None,
            "executor": cell.executor,
            "id": job_id,
            **options,
        }
        self.world.call(lambda: self.scheduler.add_job(func, args=args, **options))
        return job_id

    def hold(self, job_id: str, cell: Cell) -> str:
        """Add a job that runs until it is let go."""
        func = matrix.KINDS[cell.kind].hold
        return self.add(job_id, cell, func, self.directory, job_id)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Let the loop see all jobs that are added meanwhile in one pass."""
        self.world.call(self.scheduler.pause)
        yield
        self.world.call(self.scheduler.resume)

    def wait_for_run(self, job_id: str) -> None:
        self.until(Path(self.directory, f"{job_id}.in").exists, f"{job_id} to start")

    def let_go(self, *job_ids: str) -> None:
        for job_id in job_ids:
            Path(self.directory, f"{job_id}.out").touch()

    def ends(self, job_id: str, **expected: int) -> Any:
        """Wait until all of a job's runs have ended, and return the last event of them."""
        self.until(lambda: sum(self.outcomes(job_id).values()) >= sum(expected.values()), job_id)
        assert expected == outcomes(self.rig.telemetry, job_id)  # as a scrape shows them
        if not {"success", "error", "missed"} & set(expected):
            return None
        return self.until(lambda: self.events(job_id), f"an event of {job_id}")[-1]

    def outcomes(self, job_id: str) -> dict[str, int]:
        counted = self.job(job_id).outcomes
        return {outcome.value: count for outcome, count in counted.items() if count}

    def job(self, job_id: str) -> JobState:
        return self.rig.job(job_id)

    def events(self, job_id: str) -> list[Any]:
        """Return what listeners were told of runs that were executed, failed or came too late."""
        return [
            event
            for event in list(self.rig.events)
            if hasattr(event, "retval") and event.job_id == job_id
        ]

    def workers(self, cell: Cell) -> float:
        """Return the number of workers of an executor, as a scrape shows it."""
        return sample(self.rig.telemetry, "apscheduler_executor_workers", executor=cell.executor)

    def load(self, cell: Cell) -> tuple[int, int]:
        """Return the running and the queued runs of an executor."""
        _, running, queued = recorder_of(self.rig.telemetry).executors()[cell.executor]
        return running, queued

    def span_of(self, job_id: str) -> tuple[str, str]:
        """Return the ids of a job's one span, which must be a root."""
        (span,) = [s for s in self.spans.get_finished_spans() if s.name == job_id]
        assert span.parent is None
        context = span.get_span_context()
        assert context is not None
        return f"{context.trace_id:032x}", f"{context.span_id:016x}"

    def settle(self) -> None:
        """Check what holds after every cell: the law, a live loop, and no failure of ours."""
        self.until(self.rig.is_quiet, "runs to end")
        check_counts(self.rig.telemetry)
        assert not any(errors_of(self.rig.telemetry).counts().values())
        self.until(lambda: self.rig.telemetry._exported_scheduler.liveness().up, "life")
        assert self.rig.telemetry.health()["status"] == "healthy"
        self.until(self._is_told, "listeners to be told")

    def _is_told(self) -> bool:
        told, counted = self.rig._as_told(), self.rig._as_counted()
        # Nobody is told of a run that was due when its job was removed: it is missed all the same.
        return told.pop("missed") <= counted.pop("missed") and told == counted

    def stop(self) -> None:
        """Shut the scheduler down, and see that it counts as stopped."""
        if self.scheduler.running:
            self.world.call(self.scheduler.shutdown)
            self.until(lambda: not self.scheduler.running, "the shutdown")
        (reason,) = self.rig.telemetry._exported_scheduler.liveness().reasons
        assert reason[0] == "stopped"
        self.rig.telemetry.uninstrument()


def success(stage: Stage, cell: Cell) -> None:
    job = stage.add("success", cell, matrix.KINDS[cell.kind].give_back, "value")
    assert stage.ends(job, success=1).retval == "value"
    state = stage.job(job)
    assert sum(state.durations.counts) == sum(state.delays.counts) == 1
    assert 0 <= state.last_duration < state.delays.sum  # it was due 0.1 s before
    assert state.last_success is not None
    assert state.last_failure is None


def error(stage: Stage, cell: Cell) -> None:
    job = stage.add("error", cell, matrix.KINDS[cell.kind].throw, ValueError("on purpose"))
    event = stage.ends(job, error=1)
    assert repr(event.exception) == "ValueError('on purpose')"
    assert "raise exception" in event.traceback
    assert "apscheduler_telemetry" not in event.traceback
    state = stage.job(job)
    assert state.exceptions == {"ValueError": 1}
    assert sum(state.durations.counts) == 1
    assert state.consecutive_failures == 1


def slow(stage: Stage, cell: Cell) -> None:
    since = time.time()
    job = stage.hold("slow", cell)
    stage.wait_for_run(job)
    seen = time.perf_counter()
    stage.until(lambda: stage.job(job).running == 1)
    assert since <= stage.job(job).running_since <= time.time()
    assert stage.load(cell) == (1, 0)
    stage.world.sleep(HELD)
    held = time.perf_counter() - seen
    stage.let_go(job)
    stage.ends(job, success=1)
    state = stage.job(job)
    assert held <= state.last_duration <= time.time() - since
    assert state.running == 0
    assert stage.load(cell) == (0, 0)


def queued(stage: Stage, cell: Cell) -> None:
    first, second = stage.hold("first", cell), "second"
    stage.wait_for_run(first)
    stage.add(second, cell, matrix.KINDS[cell.kind].give_back, 2)
    stage.until(lambda: stage.job(second).queued == 1)
    seen = time.perf_counter()
    stage.until(lambda: stage.load(cell) == (1, 1))
    if cell.executor != "own":  # which does not say how many it has
        expected = float("inf") if cell.executor == "asyncio" else 1
        assert expected == stage.workers(cell)
    stage.world.sleep(HELD)
    waited = time.perf_counter() - seen
    stage.let_go(first)
    stage.ends(second, success=1)
    state = stage.job(second)
    assert state.delays.sum >= waited + 0.1
    assert state.last_duration < waited
    stage.ends(first, success=1)


def not_queued(stage: Stage, cell: Cell) -> None:
    """Each of many runs at a time gets its own worker at once."""
    many = [stage.hold(f"one of many {number}", cell) for number in range(MANY)]
    for job in many:
        stage.wait_for_run(job)
    stage.until(lambda: stage.load(cell) == (MANY, 0))
    # Tornado's has threads as well, for functions.
    assert stage.workers(cell) == (1 if cell.executor == "tornado" else float("inf"))
    stage.let_go(*many)
    for job in many:
        stage.ends(job, success=1)


def not_queued_in_the_loop(stage: Stage, cell: Cell) -> None:
    """A run that waits for the loop is not handed over, nor queued."""
    with stage.at_once():
        first = stage.hold("first", cell)
        second = stage.add("second", cell, matrix.KINDS[cell.kind].give_back, 2)
    stage.wait_for_run(first)
    assert (stage.workers(cell), *stage.load(cell)) == (1, 1, 0)
    assert (stage.job(second).queued, stage.job(second).due_count) == (0, 0)
    stage.world.sleep(HELD)
    stage.let_go(first)
    stage.ends(second, success=1)
    assert stage.job(second).delays.sum >= HELD


def missed(stage: Stage, cell: Cell) -> None:
    func = matrix.KINDS[cell.kind].give_back
    job = stage.add("missed", cell, func, 1, next_run_time=ago(60), misfire_grace_time=1)
    event = stage.ends(job, missed=1)
    assert event.retval is None
    assert sum(stage.job(job).durations.counts) == 0


def skipped(stage: Stage, cell: Cell) -> None:
    job = stage.hold("skipped", cell)
    stage.wait_for_run(job)
    stage.world.call(lambda: stage.scheduler.modify_job(job, next_run_time=ago(0.1)))
    stage.until(lambda: stage.outcomes(job) == {"skipped": 1})
    stage.let_go(job)
    stage.ends(job, success=1, skipped=1)


def not_skipped(stage: Stage, cell: Cell) -> None:
    """A job that takes longer than its interval is late, and never refused."""
    options = {"hours": 0, "seconds": 0.01, "coalesce": True}
    job = stage.add("overrun", cell, nap, 0.03, **options)
    stage.until(lambda: stage.outcomes(job).get("success", 0) >= 3)
    stage.world.call(lambda: stage.scheduler.remove_job(job))
    counted = stage.outcomes(job)
    counted.pop("missed", None)  # the run that was due when the job was removed, if there was one
    assert set(counted) == {"success", "coalesced"}


def coalesced(stage: Stage, cell: Cell) -> None:
    options = {"hours": 0, "seconds": 60, "next_run_time": ago(630), "coalesce": True}
    job = stage.add("coalesced", cell, matrix.KINDS[cell.kind].give_back, 1, **options)
    stage.ends(job, success=1, coalesced=10)


def lost(stage: Stage, cell: Cell) -> None:
    if cell.executor == "processpool":
        job = stage.add("lost", cell, result_without_pickle)
        stage.ends(job, lost=1)
    else:
        # What APScheduler does not expect to fail: its own log, in the middle of run_job.
        logger = logging.getLogger(f"apscheduler.executors.{cell.executor}")

        def fault(record: logging.LogRecord) -> bool:
            return not record.getMessage().startswith('Running job "lost') or fail("log")

        logger.addFilter(fault)
        try:
            func = matrix.KINDS[cell.kind].give_back
            job = stage.add("lost", cell, func, 1, name="lost")
            stage.ends(job, lost=1)
        finally:
            logger.removeFilter(fault)
    assert stage.events(job) == []
    assert stage.job(job).consecutive_failures == 1


def span(stage: Stage, cell: Cell) -> None:
    together = cell.executor == "gevent" or cell.kind == "coroutine"
    a, b = stage.hold("a", cell), "b"
    stage.wait_for_run(a)
    if not together:
        stage.let_go(a)
    stage.hold(b, cell)
    stage.wait_for_run(b)
    stage.let_go(a)
    first = stage.ends(a, success=1)
    stage.let_go(b)
    second = stage.ends(b, success=1)
    assert stage.span_of(a) != stage.span_of(b)
    assert [stage.span_of(a)] * 2 == first.retval
    assert [stage.span_of(b)] * 2 == second.retval


def identity(stage: Stage, cell: Cell) -> None:
    kind = matrix.KINDS[cell.kind]
    value, exception = matrix.Value(), ValueError("on purpose")
    works = stage.add("works", cell, kind.give_back, value)
    fails = stage.add("fails", cell, kind.throw, exception)
    returned, raised = stage.ends(works, success=1), stage.ends(fails, error=1)
    if cell.executor == "processpool":
        assert returned.retval == value
        assert repr(raised.exception) == repr(exception)
    else:
        assert returned.retval is value
        assert raised.exception is exception
    for event in returned, raised:
        assert type(event) is (OwnEvent if cell.executor == "own" else JobExecutionEvent)
        assert event.jobstore == "default"
        if cell.executor != "own":  # its events are its own business
            assert type(event.job_id) is str
    # Which comes first is APScheduler's to say: a worker may be faster than the loop.
    assert sorted(stage.rig.codes(works)) == ["executed", "submitted"]
    assert sorted(stage.rig.codes(fails)) == ["error", "submitted"]


PLAYS: dict[str, Callable[[Stage, Cell], None]] = {
    play.__name__: play
    for play in (success, error, slow, queued, missed, skipped, coalesced, lost, span, identity)
}
PROOFS: dict[tuple[str, str], Callable[[Stage, Cell], None]] = {
    ("queued", "debug"): not_queued_in_the_loop,
    ("queued", "gevent"): not_queued,
    ("queued", "coroutine"): not_queued,
    ("skipped", "debug"): not_skipped,
}


def play_of(cell: Cell) -> Callable[[Stage, Cell], None]:
    """Return what shows that a behaviour is there, or that it cannot be."""
    if cell.impossible is None:
        return PLAYS[cell.behaviour]
    by_executor = PROOFS.get((cell.behaviour, cell.executor))
    return by_executor or PROOFS[cell.behaviour, cell.kind]
