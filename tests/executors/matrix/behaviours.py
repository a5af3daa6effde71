"""The behaviours of the matrix: for each, a function that runs jobs and checks the metrics."""

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
from tests.executors.matrix.schedulers import OwnEvent, Runtime
from tests.executors.matrix.table import Cell
from tests.helpers.jobs import fail, nap, result_without_pickle
from tests.helpers.metrics import JobState, check_counts, errors_of, outcomes, recorder_of, sample
from tests.helpers.rigs import Rig
from tests.helpers.watching import ago

HELD = 0.1
"""Seconds for which a run is held where its duration matters."""
HELD_BEFORE_ANOTHER = 0.4
"""Seconds for which a run is held while another waits; the other takes less, also if it is
interrupted on a busy machine."""
OVERDUE = 5.0
"""Seconds by which a run is late when its job is added; much more than any run here takes."""
MANY = 10
"""Runs at a time, where nothing limits them."""


class Harness:
    """An instrumented scheduler in its runtime, which runs one cell after another."""

    def __init__(self, runtime: Runtime, scheduler: Any, directory: str) -> None:
        self.runtime = runtime
        self.scheduler = scheduler
        self.directory = directory
        self.spans = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.rig = Rig(scheduler, tracer_provider=provider)
        self.until = runtime.until

    def add(self, job_id: str, cell: Cell, func: Any, *args: Any, **options: Any) -> str:
        """Add a job that is overdue, and due again in an hour."""
        options = {
            "trigger": "interval",
            "hours": 1,
            "next_run_time": ago(OVERDUE),
            "misfire_grace_time": None,
            "executor": cell.executor,
            "id": job_id,
            **options,
        }
        self.runtime.call(lambda: self.scheduler.add_job(func, args=args, **options))
        return job_id

    def hold(self, job_id: str, cell: Cell) -> str:
        """Add a job that runs until it is released."""
        func = matrix.KINDS[cell.kind].hold
        return self.add(job_id, cell, func, self.directory, job_id)

    def record(self, job_id: str, cell: Cell, rows: int) -> str:
        """Add a job that records these rows twice, before and after it is released."""
        func = matrix.KINDS[cell.kind].record
        return self.add(job_id, cell, func, self.directory, job_id, rows)

    @contextmanager
    def in_one_pass(self) -> Iterator[None]:
        """Pause the scheduler, so that one pass finds all jobs that are added in the block."""
        self.runtime.call(self.scheduler.pause)
        yield
        self.runtime.call(self.scheduler.resume)

    def wait_for_run(self, job_id: str) -> None:
        self.until(Path(self.directory, f"{job_id}.in").exists, f"{job_id} to start")

    def release(self, *job_ids: str) -> None:
        for job_id in job_ids:
            Path(self.directory, f"{job_id}.out").touch()

    def wait_for(self, job_id: str, **expected: int) -> Any:
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
        """Return the events of a job's runs that succeeded, failed or were missed."""
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

    def check_after_cell(self) -> None:
        """Check that each run counts once, the scheduler is healthy, and telemetry had no error."""
        self.until(self.rig.is_quiet, "runs to end")
        check_counts(self.rig.telemetry)
        assert not any(errors_of(self.rig.telemetry).counts().values())
        self.until(lambda: self.rig.telemetry._exported_scheduler.liveness().up, "health")
        assert self.rig.telemetry.health()["status"] == "healthy"
        self.until(self._events_agree, "listeners to get all events")

    def _events_agree(self) -> bool:
        events, counted = self.rig.events_by_outcome(), self.rig.counts_by_outcome()
        # APScheduler sends no event about a run that was due when its job was removed.
        return events.pop("missed") <= counted.pop("missed") and events == counted

    def stop(self) -> None:
        """Shut the scheduler down, and check that it is reported as stopped."""
        if self.scheduler.running:
            self.runtime.call(self.scheduler.shutdown)
            self.until(lambda: not self.scheduler.running, "the shutdown")
        (reason,) = self.rig.telemetry._exported_scheduler.liveness().reasons
        assert reason[0] == "stopped"
        self.rig.telemetry.uninstrument()


def success(harness: Harness, cell: Cell) -> None:
    job = harness.add("success", cell, matrix.KINDS[cell.kind].give_back, "value")
    assert harness.wait_for(job, success=1).retval == "value"
    state = harness.job(job)
    assert sum(state.durations.counts) == sum(state.delays.counts) == 1
    assert 0 <= state.last_duration < OVERDUE <= state.delays.sum
    assert state.last_success_at is not None
    assert state.last_failure_at is None


def error(harness: Harness, cell: Cell) -> None:
    job = harness.add("error", cell, matrix.KINDS[cell.kind].throw, ValueError("on purpose"))
    event = harness.wait_for(job, error=1)
    assert repr(event.exception) == "ValueError('on purpose')"
    assert "raise exception" in event.traceback
    assert "apscheduler_telemetry" not in event.traceback
    state = harness.job(job)
    assert state.exceptions == {"ValueError": 1}
    assert sum(state.durations.counts) == 1
    assert state.consecutive_failures == 1


def slow(harness: Harness, cell: Cell) -> None:
    since = time.time()
    job = harness.hold("slow", cell)
    harness.wait_for_run(job)
    seen = time.perf_counter()
    harness.until(lambda: harness.job(job).running == 1)
    assert since <= harness.job(job).oldest_start_at <= time.time()
    assert harness.load(cell) == (1, 0)
    harness.runtime.sleep(HELD)
    held = time.perf_counter() - seen
    harness.release(job)
    harness.wait_for(job, success=1)
    state = harness.job(job)
    assert held <= state.last_duration <= time.time() - since
    assert state.running == 0
    assert harness.load(cell) == (0, 0)


def queued(harness: Harness, cell: Cell) -> None:
    first, second = harness.hold("first", cell), "second"
    harness.wait_for_run(first)
    harness.add(second, cell, matrix.KINDS[cell.kind].give_back, 2)
    harness.until(lambda: harness.job(second).queued == 1)
    seen = time.perf_counter()
    harness.until(lambda: harness.load(cell) == (1, 1))
    if cell.executor != "own":  # its number of workers is not known
        expected = float("inf") if cell.executor == "asyncio" else 1
        assert expected == harness.workers(cell)
    harness.runtime.sleep(HELD_BEFORE_ANOTHER)
    waited = time.perf_counter() - seen
    harness.release(first)
    harness.wait_for(second, success=1)
    state = harness.job(second)
    assert state.delays.sum >= waited + OVERDUE
    assert state.last_duration < waited
    harness.wait_for(first, success=1)


def not_queued(harness: Harness, cell: Cell) -> None:
    """Each of many runs at a time gets its own worker at once."""
    many = [harness.hold(f"one of many {number}", cell) for number in range(MANY)]
    for job in many:
        harness.wait_for_run(job)
    harness.until(lambda: harness.load(cell) == (MANY, 0))
    # Tornado's executor also has threads, for functions, and their number is its limit.
    assert harness.workers(cell) == (1 if cell.executor == "tornado" else float("inf"))
    harness.release(*many)
    for job in many:
        harness.wait_for(job, success=1)


def not_queued_in_the_loop(harness: Harness, cell: Cell) -> None:
    """A run that waits for the loop is neither submitted nor queued."""
    with harness.in_one_pass():
        first = harness.hold("first", cell)
        second = harness.add("second", cell, matrix.KINDS[cell.kind].give_back, 2)
    harness.wait_for_run(first)
    assert (harness.workers(cell), *harness.load(cell)) == (1, 1, 0)
    assert (harness.job(second).queued, harness.job(second).due_count) == (0, 0)
    harness.runtime.sleep(HELD)
    harness.release(first)
    harness.wait_for(second, success=1)
    assert harness.job(second).delays.sum >= HELD


def missed(harness: Harness, cell: Cell) -> None:
    func = matrix.KINDS[cell.kind].give_back
    job = harness.add("missed", cell, func, 1, next_run_time=ago(60), misfire_grace_time=1)
    event = harness.wait_for(job, missed=1)
    assert event.retval is None
    assert sum(harness.job(job).durations.counts) == 0


def skipped(harness: Harness, cell: Cell) -> None:
    job = harness.hold("skipped", cell)
    harness.wait_for_run(job)
    harness.runtime.call(lambda: harness.scheduler.modify_job(job, next_run_time=ago(OVERDUE)))
    harness.until(lambda: harness.outcomes(job) == {"skipped": 1})
    harness.release(job)
    harness.wait_for(job, success=1, skipped=1)


def not_skipped(harness: Harness, cell: Cell) -> None:
    """A job that takes longer than its interval is late, and never skipped."""
    options = {"hours": 0, "seconds": 0.01, "coalesce": True}
    job = harness.add("overrun", cell, nap, 0.03, **options)
    harness.until(lambda: harness.outcomes(job).get("success", 0) >= 3)
    harness.runtime.call(lambda: harness.scheduler.remove_job(job))
    counted = harness.outcomes(job)
    counted.pop("missed", None)  # if a run was due when the job was removed
    assert set(counted) == {"success", "coalesced"}


def coalesced(harness: Harness, cell: Cell) -> None:
    options = {"hours": 0, "seconds": 60, "next_run_time": ago(630), "coalesce": True}
    job = harness.add("coalesced", cell, matrix.KINDS[cell.kind].give_back, 1, **options)
    harness.wait_for(job, success=1, coalesced=10)


def lost(harness: Harness, cell: Cell) -> None:
    if cell.executor == "processpool":
        job = harness.add("lost", cell, result_without_pickle)
        harness.wait_for(job, lost=1)
    else:
        # Let APScheduler's own logging fail in run_job, which it does not handle.
        logger = logging.getLogger(f"apscheduler.executors.{cell.executor}")

        def fault(record: logging.LogRecord) -> bool:
            return not record.getMessage().startswith('Running job "lost') or fail("log")

        logger.addFilter(fault)
        try:
            func = matrix.KINDS[cell.kind].give_back
            job = harness.add("lost", cell, func, 1, name="lost")
            harness.wait_for(job, lost=1)
        finally:
            logger.removeFilter(fault)
    assert harness.events(job) == []
    assert harness.job(job).consecutive_failures == 1


def run_two(
    harness: Harness, cell: Cell, a: str, b: str, add: Callable[[str], object]
) -> tuple[Any, Any]:
    """Run two jobs that are held, at the same time if the executor can; return their events."""
    together = cell.executor == "gevent" or cell.kind == "coroutine"
    add(a)
    harness.wait_for_run(a)
    if not together:
        harness.release(a)
    add(b)
    harness.wait_for_run(b)
    harness.release(a)
    first = harness.wait_for(a, success=1)
    harness.release(b)
    return first, harness.wait_for(b, success=1)


def recorded(harness: Harness, cell: Cell) -> None:
    few, many = "few rows", "many rows"
    rows = {few: 1, many: 10}
    run_two(harness, cell, few, many, lambda job: harness.record(job, cell, rows[job]))
    for job, count in rows.items():
        assert harness.job(job).recorded == {"rows": 2.0 * count}
        assert harness.job(job).last_recorded == {"rows": 2.0 * count}


def span(harness: Harness, cell: Cell) -> None:
    a, b = "a", "b"
    first, second = run_two(harness, cell, a, b, lambda job: harness.hold(job, cell))
    assert harness.span_of(a) != harness.span_of(b)
    assert [harness.span_of(a)] * 2 == first.retval
    assert [harness.span_of(b)] * 2 == second.retval


def identity(harness: Harness, cell: Cell) -> None:
    kind = matrix.KINDS[cell.kind]
    value, exception = matrix.Value(), ValueError("on purpose")
    works = harness.add("works", cell, kind.give_back, value)
    fails = harness.add("fails", cell, kind.throw, exception)
    returned, raised = (
        harness.wait_for(works, success=1),
        harness.wait_for(fails, error=1),
    )
    if cell.executor == "processpool":
        assert returned.retval == value
        assert repr(raised.exception) == repr(exception)
    else:
        assert returned.retval is value
        assert raised.exception is exception
    for event in returned, raised:
        assert type(event) is (OwnEvent if cell.executor == "own" else JobExecutionEvent)
        assert event.jobstore == "default"
        if cell.executor != "own":  # whose events telemetry does not change
            assert type(event.job_id) is str
    # In any order: a worker may be faster than the loop.
    assert sorted(harness.rig.codes(works)) == ["executed", "submitted"]
    assert sorted(harness.rig.codes(fails)) == ["error", "submitted"]


CHECKS: dict[str, Callable[[Harness, Cell], None]] = {
    check.__name__: check
    for check in (
        *(success, error, slow, queued, missed, skipped, coalesced, lost, recorded, span),
        identity,
    )
}
IMPOSSIBILITY_CHECKS: dict[tuple[str, str], Callable[[Harness, Cell], None]] = {
    ("queued", "debug"): not_queued_in_the_loop,
    ("queued", "gevent"): not_queued,
    ("queued", "coroutine"): not_queued,
    ("skipped", "debug"): not_skipped,
}


def check_of(cell: Cell) -> Callable[[Harness, Cell], None]:
    """Return the function that checks a behaviour, or that the behaviour is impossible."""
    if cell.impossible is None:
        return CHECKS[cell.behaviour]
    by_executor = IMPOSSIBILITY_CHECKS.get((cell.behaviour, cell.executor))
    return by_executor or IMPOSSIBILITY_CHECKS[cell.behaviour, cell.kind]
