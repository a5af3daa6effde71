"""
A scheduler driven by hand, a clock that stands still, and what tests ask of the books.

Real schedulers and executors all of them; only the time may be faked.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

import apscheduler
import time_machine
from apscheduler import events as ev
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.base import BaseScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry, instrument
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobSnapshot
from support_jobs import PATIENCE

START = datetime(2030, 1, 1, tzinfo=timezone.utc)
"""
Where fake clocks start: later than now, so that a child of a process pool, whose clock cannot be
faked, finds no run too late.
"""
OUTCOMES = ("success", "error", "missed", "skipped", "coalesced", "lost")
APSCHEDULER = tuple(int(part) for part in apscheduler.__version__.split(".")[:2])


def at(seconds: float) -> datetime:
    """Return the moment so many seconds after `START`."""
    return START + timedelta(seconds=seconds)


def until(condition: Callable[[], Any], what: str = "", patience: float = PATIENCE) -> Any:
    """Wait until `condition` holds, and return what it returned; fail after `patience` seconds."""
    deadline = time.perf_counter() + patience
    while not (met := condition()):
        assert time.perf_counter() < deadline, f"waited too long for {what or condition}"
        time.sleep(0.001)
    return met


async def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Wait as `until` does, and let the event loop turn meanwhile."""
    deadline = time.perf_counter() + PATIENCE
    while not (met := condition()):
        assert time.perf_counter() < deadline, f"waited too long for {what or condition}"
        await asyncio.sleep(0.001)
    return met


def finish_pass(scheduler: Any) -> None:
    """
    Wait until a pass over due jobs is over that is under way in another thread.

    A scheduler that is shut down in the middle of one breaks it off with an exception.
    """
    with scheduler._jobstores_lock:
        pass  # which is held for as long as that takes


def told_by(script: str) -> tuple[str, str]:
    """Return what a script in a process of its own writes to its output, and of errors."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    return done.stdout, done.stderr


class Clock:
    """The time of this process, which stands still until it is moved."""

    def __init__(self, traveller: Any) -> None:
        self._traveller = traveller

    @property
    def now(self) -> datetime:
        return datetime.now(timezone.utc)

    def advance(self, seconds: float) -> None:
        self._traveller.shift(timedelta(seconds=seconds))

    def move_to(self, at: datetime) -> None:
        self._traveller.move_to(at)


@contextmanager
def frozen(at: datetime = START) -> Iterator[Clock]:
    """Stop the clock of this process."""
    with time_machine.travel(at, tick=False) as traveller:
        yield Clock(traveller)


class HandDriven(BaseScheduler):
    """A real scheduler whose loop turns when the test says so."""

    def wakeup(self) -> None:
        """Do nothing: see `turn`."""

    def shutdown(self, wait: bool = True) -> None:
        super().shutdown(wait)

    def turn(self) -> None:
        """Look for due jobs once."""
        self._process_jobs()


class Gate:
    """A job that says when it runs and goes on when it is let go."""

    def __init__(self) -> None:
        self._inside = threading.Semaphore(0)
        self._open = threading.Event()
        self.arguments: list[tuple[Any, ...]] = []

    def hold(self, *arguments: Any) -> None:
        self.arguments.append(arguments)
        self._inside.release()
        assert self._open.wait(PATIENCE), "nobody opened the gate"

    def wait_for_run(self) -> None:
        assert self._inside.acquire(timeout=PATIENCE), "the job did not start"

    def open(self) -> None:
        self._open.set()


class Rig:
    """
    A scheduler with its telemetry, and everything that listeners were told.

    Attributes:
        scheduler: the scheduler.
        telemetry: its handle, on a registry of its own.
        events: all events, in the order in which a listener got them.
        failing: components of ours in which the test expects failures.
        is_told: whether listeners are told of all that is counted.
        forgotten: how many missed runs they are not told of, as APScheduler forgets them.
    """

    def __init__(self, scheduler: Any, **options: Any) -> None:
        self.scheduler = scheduler
        self.telemetry = instrument(scheduler, registry=CollectorRegistry(), **options)
        self.events: list[Any] = []
        self.failing: set[str] = set()
        self.is_told = True
        self.forgotten = 0
        scheduler.add_listener(self.events.append)

    def add(self, func: Callable[..., Any], trigger: Any = None, **options: Any) -> Any:
        """Add a job, ``job`` by default, that no delay makes miss its time."""
        options.setdefault("id", "job")
        options.setdefault("misfire_grace_time", None)
        return self.scheduler.add_job(func, trigger, **options)

    def outcomes(self, job_id: str = "job") -> dict[str, int]:
        return outcomes(self.telemetry, job_id)

    def job(self, job_id: str = "job") -> JobState:
        return job_state(self.telemetry, job_id)

    def errors_of(self, kind: str) -> float:
        """Return how often APScheduler only logged something of this kind."""
        return sample(self.telemetry, "apscheduler_scheduler_errors_total", kind=kind)

    def codes(self, job_id: str = "job") -> list[str]:
        """Return what listeners were told of a job's runs."""
        return [
            _NAMES[event.code]
            for event in list(self.events)
            if event.code in _NAMES and event.job_id == job_id
        ]

    def settle(self) -> None:
        """Wait until no run is queued or running."""
        until(self.is_quiet, "runs to end")

    def check(self) -> None:
        """Check what must hold whatever happened: the counts, and what listeners were told."""
        check_counts(self.telemetry)
        if self.is_told:
            until(lambda: self._as_told() == self._as_counted(), "listeners to be told")
        assert self.failing == {k for k, n in errors_of(self.telemetry).counts().items() if n}

    def is_quiet(self) -> bool:
        """Tell whether no run is queued or running, for us and for APScheduler."""
        in_flight = [job.in_flight for job in recorder_of(self.telemetry).snapshots()]
        executors = list(self.scheduler._executors.values())
        return not any(each.running or each.queued for each in in_flight) and not any(
            any(list(executor._instances.values())) for executor in executors
        )

    def _as_told(self) -> dict[str, int]:
        told = Counter(_NAMES.get(event.code) for event in list(self.events))
        skipped = [e for e in list(self.events) if e.code == ev.EVENT_JOB_MAX_INSTANCES]
        return {
            "success": told["executed"],
            "error": told["error"],
            "missed": told["missed"] + self.forgotten,
            "skipped": sum(len(e.scheduled_run_times) for e in skipped),
        }

    def _as_counted(self) -> dict[str, int]:
        counts = [job.stats.outcomes for job in recorder_of(self.telemetry).snapshots()]
        return {
            name: sum(n for each in counts for o, n in each.items() if o.value == name)
            for name in ("success", "error", "missed", "skipped")
        }


class HandRig(Rig):
    """
    A rig whose scheduler is driven by hand on a clock that stands still.

    Attributes:
        clock: the clock.
    """

    scheduler: HandDriven

    def __init__(self, clock: Clock, scheduler: HandDriven, **options: Any) -> None:
        super().__init__(scheduler, **options)
        self.clock = clock

    def after(self, seconds: float) -> None:
        """Let time pass and the loop turn once."""
        self.clock.advance(seconds)
        self.scheduler.turn()


@contextmanager
def by_hand(
    executors: Mapping[str, Any] | None = None,
    *,
    at: datetime = START,
    zone: Any = timezone.utc,
    telemetry: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[HandRig]:
    """
    Start a scheduler that is driven by hand; see in the end that all runs are accounted for.

    Args:
        executors: by default a thread pool of four.
        at: where the clock starts.
        zone: the scheduler's time zone.
        telemetry: arguments of `instrument`.
        **options: of the scheduler.
    """
    with frozen(at) as clock:
        scheduler = HandDriven(
            executors=executors or {"default": ThreadPoolExecutor(4)}, timezone=zone, **options
        )
        rig = HandRig(clock, scheduler, **(telemetry or {}))
        scheduler.start()
        with _closing(rig):
            yield rig


@contextmanager
def live(scheduler: Any, *, start: bool = True, **telemetry: Any) -> Iterator[Rig]:
    """Start a scheduler that turns by itself; see in the end that all runs are accounted for."""
    rig = Rig(scheduler, **telemetry)
    if start:
        scheduler.start()
    with _closing(rig):
        yield rig


@asynccontextmanager
async def live_async(
    executors: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[Rig]:
    """Start an asyncio scheduler in the running event loop; see in the end as `live` does."""
    scheduler = AsyncIOScheduler(executors=executors or {}, timezone=timezone.utc, **options)
    rig = Rig(scheduler)
    scheduler.start()
    try:
        yield rig
        await eventually(rig.is_quiet, "runs to end")
        if scheduler.running:
            scheduler.shutdown()
            await eventually(lambda: not scheduler.running)
        rig.check()
    finally:
        rig.telemetry.uninstrument()


@contextmanager
def _closing(rig: Rig) -> Iterator[None]:
    try:
        yield
        if rig.scheduler.running:
            finish_pass(rig.scheduler)
            rig.scheduler.shutdown()
        rig.settle()
        rig.check()
    finally:
        if rig.scheduler.running:
            rig.scheduler.shutdown(wait=False)
        rig.telemetry.uninstrument()


def processes(workers: int = 1) -> ProcessPoolExecutor:
    """Return an executor whose children are spawned, on old versions of APScheduler as well."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, pool_kwargs={"mp_context": spawn})


def outcomes(telemetry: Telemetry, job_id: str = "job") -> dict[str, int]:
    """Return the runs of a job by outcome, as Prometheus sees them, those at 0 left out."""
    seen = {
        outcome: sample(telemetry, "apscheduler_job_runs_total", job_id=job_id, outcome=outcome)
        for outcome in OUTCOMES
    }
    return {outcome: int(count) for outcome, count in seen.items() if count}


def sample(telemetry: Telemetry, name: str, **labels: str) -> float:
    """Return one sample of the registry; it must be there."""
    labels["scheduler"] = telemetry.name
    value = registry_of(telemetry).get_sample_value(name, labels)
    assert value is not None, f"no sample {name}{labels}"
    return float(value)


def recorder_of(telemetry: Telemetry) -> Recorder:
    """Return the metrics state of an instrumented scheduler."""
    return telemetry._exported_scheduler.recorder


def adapter_of(telemetry: Telemetry) -> Any:
    """Return the adapter of a scheduler, for tests that reach for its private parts."""
    return telemetry._exported_scheduler.adapter


def errors_of(telemetry: Telemetry) -> ErrorReporter:
    """Return what counts the failures of telemetry itself."""
    return telemetry._exported_scheduler.error_reporter


def registry_of(telemetry: Telemetry) -> CollectorRegistry:
    """Return the registry on which a scheduler is instrumented."""
    registry = telemetry._config.registry
    assert registry is not None
    return registry


class JobState:
    """The metrics state of a job: all attributes of its snapshot, its stats and its in-flight."""

    def __init__(self, snapshot: JobSnapshot) -> None:
        self.snapshot = snapshot

    def __getattr__(self, name: str) -> Any:
        snapshot = self.snapshot
        parts = snapshot, snapshot.stats, snapshot.in_flight
        return next(getattr(part, name) for part in parts if hasattr(part, name))

    def __repr__(self) -> str:
        return repr(self.snapshot)


def job_states(telemetry: Telemetry) -> list[JobState]:
    """Return the metrics state of all jobs."""
    return [JobState(snapshot) for snapshot in recorder_of(telemetry).snapshots()]


def job_state(telemetry: Telemetry, job_id: str = "job") -> JobState:
    """Return the metrics state of a job."""
    (found,) = [job for job in job_states(telemetry) if job.label == job_id]
    return found


def check_counts(telemetry: Telemetry) -> None:
    """Check that no count is negative, and that executors and jobs agree on what is in flight."""
    running = queued = 0
    for job in recorder_of(telemetry).snapshots():
        assert min(*job.in_flight, *job.stats.outcomes.values()) >= 0, job
        running += job.in_flight.running
        queued += job.in_flight.queued
    assert running >= 0
    for alias, state in recorder_of(telemetry).executors().items():
        assert state.running >= 0, alias
        assert state.queued >= 0, alias


_NAMES = {
    ev.EVENT_JOB_SUBMITTED: "submitted",
    ev.EVENT_JOB_EXECUTED: "executed",
    ev.EVENT_JOB_ERROR: "error",
    ev.EVENT_JOB_MISSED: "missed",
    ev.EVENT_JOB_MAX_INSTANCES: "max_instances",
}
