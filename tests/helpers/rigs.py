"""
Schedulers with telemetry; at the end, each run must be counted exactly once.

Schedulers and executors are real; only the time may be frozen.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime, timezone
from typing import Any

from apscheduler import events as ev
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers.clocks import START, FrozenClock, freeze_time
from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.metrics import (
    JobState,
    check_counts,
    errors_of,
    job_state,
    outcomes,
    recorder_of,
    sample,
)
from tests.helpers.schedulers import HandDriven, finish_pass
from tests.helpers.waiting import wait_until, wait_until_async


class Gate:
    """A job that reports that it runs, and waits until the test opens the gate."""

    def __init__(self) -> None:
        self._inside = threading.Semaphore(0)
        self._open = threading.Event()
        self.arguments: list[tuple[Any, ...]] = []

    def hold(self, *arguments: Any) -> None:
        self.arguments.append(arguments)
        self._inside.release()
        assert self._open.wait(WAIT_TIMEOUT), "the test did not open the gate"

    def wait_for_run(self) -> None:
        assert self._inside.acquire(timeout=WAIT_TIMEOUT), "the job did not start"

    def open(self) -> None:
        self._open.set()


class Rig:
    """
    A scheduler with its telemetry, and all events that listeners got.

    Attributes:
        scheduler: the scheduler.
        telemetry: its handle, on a registry of its own.
        events: all events, in the order in which a listener got them.
        failing: components of telemetry in which the test expects errors.
        checks_events: whether each counted run must have an event.
        forgotten: the number of missed runs without an event, which APScheduler drops.
    """

    def __init__(self, scheduler: Any, **options: Any) -> None:
        self.scheduler = scheduler
        self.telemetry = instrument(scheduler, registry=CollectorRegistry(), **options)
        self.events: list[Any] = []
        self.failing: set[str] = set()
        self.checks_events = True
        self.forgotten = 0
        scheduler.add_listener(self.events.append)

    def add(self, func: Callable[..., Any], trigger: Any = None, **options: Any) -> Any:
        """Add a job, ``job`` by default, without a grace time."""
        options.setdefault("id", "job")
        options.setdefault("misfire_grace_time", None)
        return self.scheduler.add_job(func, trigger, **options)

    def outcomes(self, job_id: str = "job") -> dict[str, int]:
        return outcomes(self.telemetry, job_id)

    def job(self, job_id: str = "job") -> JobState:
        return job_state(self.telemetry, job_id)

    def errors_of(self, kind: str) -> float:
        """Return the number of scheduler errors of a kind."""
        return sample(self.telemetry, "apscheduler_scheduler_errors_total", kind=kind)

    def codes(self, job_id: str = "job") -> list[str]:
        """Return the names of the events of a job's runs."""
        return [
            _NAMES[event.code]
            for event in list(self.events)
            if event.code in _NAMES and event.job_id == job_id
        ]

    def settle(self) -> None:
        """Wait until no run is queued or running."""
        wait_until(self.is_quiet, "runs to end")

    def check(self) -> None:
        """Check the counts, and that they agree with the events that listeners got."""
        check_counts(self.telemetry)
        if self.checks_events:
            wait_until(
                lambda: self.events_by_outcome() == self.counts_by_outcome(),
                "listeners to get all events",
            )
        assert self.failing == {k for k, n in errors_of(self.telemetry).counts().items() if n}

    def is_quiet(self) -> bool:
        """Return whether neither telemetry nor APScheduler has a run in flight."""
        in_flight = [job.in_flight_summary for job in recorder_of(self.telemetry).job_snapshots()]
        executors = list(self.scheduler._executors.values())
        return not any(each.running or each.queued for each in in_flight) and not any(
            any(list(executor._instances.values())) for executor in executors
        )

    def events_by_outcome(self) -> dict[str, int]:
        events = Counter(_NAMES.get(event.code) for event in list(self.events))
        skipped = [e for e in list(self.events) if e.code == ev.EVENT_JOB_MAX_INSTANCES]
        return {
            "success": events["executed"],
            "error": events["error"],
            "missed": events["missed"] + self.forgotten,
            "skipped": sum(len(e.scheduled_run_times) for e in skipped),
        }

    def counts_by_outcome(self) -> dict[str, int]:
        counts = [job.stats.outcomes for job in recorder_of(self.telemetry).job_snapshots()]
        return {
            name: sum(n for each in counts for o, n in each.items() if o.value == name)
            for name in ("success", "error", "missed", "skipped")
        }


class HandRig(Rig):
    """
    A rig with a frozen clock, whose scheduler runs a pass when the test says so.

    Attributes:
        clock: the clock.
    """

    scheduler: HandDriven

    def __init__(self, clock: FrozenClock, scheduler: HandDriven, **options: Any) -> None:
        super().__init__(scheduler, **options)
        self.clock = clock

    def after(self, seconds: float) -> None:
        """Advance the clock, and run one pass."""
        self.clock.advance(seconds)
        self.scheduler.turn()


@contextmanager
def hand_driven_rig(
    executors: Mapping[str, Any] | None = None,
    *,
    at: datetime = START,
    zone: Any = timezone.utc,
    telemetry: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[HandRig]:
    """
    Start a scheduler whose passes the test starts; check at the end that each run is counted once.

    Args:
        executors: by default a thread pool of four.
        at: where the clock starts.
        zone: the scheduler's time zone.
        telemetry: arguments of `instrument`.
        **options: of the scheduler.
    """
    with freeze_time(at) as clock:
        scheduler = HandDriven(
            executors=executors or {"default": ThreadPoolExecutor(4)}, timezone=zone, **options
        )
        rig = HandRig(clock, scheduler, **(telemetry or {}))
        scheduler.start()
        with _closing(rig):
            yield rig


@contextmanager
def live_rig(scheduler: Any, *, start: bool = True, **telemetry: Any) -> Iterator[Rig]:
    """Start a scheduler with its own loop; check at the end that each run is counted once."""
    rig = Rig(scheduler, **telemetry)
    if start:
        scheduler.start()
    with _closing(rig):
        yield rig


@asynccontextmanager
async def live_rig_async(
    executors: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[Rig]:
    """Start an asyncio scheduler in the running event loop; check at the end as `live_rig` does."""
    scheduler = AsyncIOScheduler(executors=executors or {}, timezone=timezone.utc, **options)
    rig = Rig(scheduler)
    scheduler.start()
    try:
        yield rig
        await wait_until_async(rig.is_quiet, "runs to end")
        if scheduler.running:
            scheduler.shutdown()
            await wait_until_async(lambda: not scheduler.running)
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


_NAMES = {
    ev.EVENT_JOB_SUBMITTED: "submitted",
    ev.EVENT_JOB_EXECUTED: "executed",
    ev.EVENT_JOB_ERROR: "error",
    ev.EVENT_JOB_MISSED: "missed",
    ev.EVENT_JOB_MAX_INSTANCES: "max_instances",
}
