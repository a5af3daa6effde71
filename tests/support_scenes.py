"""An instrumented scheduler to look at, and jobs that go wrong; see also `support`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry, instrument
from support import HandDriven, adapter_of, errors_of, job_states
from support_jobs import PATIENCE

KINDS = ("jobstore", "restore", "executor_lookup", "submit", "loop", "listener")


class Boom(Exception):  # noqa: N818  # it is what it says
    """What goes wrong on purpose."""


class FaultyStore(MemoryJobStore):
    """A memory store whose methods fail when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: set[str] = set()
        self.calls: list[str] = []

    def _pass(self, method: str) -> None:
        self.calls.append(method)
        if method in self.faults:
            raise Boom(method)

    def get_due_jobs(self, now: datetime) -> Any:
        self._pass("get_due_jobs")
        return super().get_due_jobs(now)

    def get_next_run_time(self) -> Any:
        self._pass("get_next_run_time")
        return super().get_next_run_time()

    def update_job(self, job: Any) -> None:
        self._pass("update_job")
        super().update_job(job)

    def remove_job(self, job_id: str) -> None:
        self._pass("remove_job")
        super().remove_job(job_id)

    def lookup_job(self, job_id: str) -> Any:
        self._pass("lookup_job")
        return super().lookup_job(job_id)

    def get_all_jobs(self) -> Any:
        self._pass("get_all_jobs")
        return super().get_all_jobs()


def by_hand(**options: Any) -> HandDriven:
    """Return a scheduler that is driven by hand and runs its jobs right there."""
    return HandDriven(**{"executors": {"default": DebugExecutor()}, **options})


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Watched:
    """An instrumented scheduler and its registry."""

    scheduler: Any
    telemetry: Telemetry
    registry: CollectorRegistry

    def value(self, name: str, /, **labels: str) -> float | None:
        """Return what a scrape shows; labels that are not given are those of the scheduler."""
        labels.setdefault("scheduler", self.telemetry.name)
        return self.registry.get_sample_value(f"apscheduler_{name}", labels)

    def job(self, name: str, job_id: str = "job", /, **labels: str) -> float | None:
        return self.value(f"job_{name}", job_id=job_id, **labels)

    def runs(self, job_id: str = "job") -> dict[str, float]:
        """Return the runs of a job by outcome, without the outcomes that did not happen."""
        account = next(a for a in job_states(self.telemetry) if a.label == job_id)
        return {outcome.value: count for outcome, count in account.outcomes.items() if count}

    def errors(self) -> dict[str, float]:
        """Return what APScheduler only logged, by kind, without what did not happen."""
        counts = {kind: self.value("scheduler_errors_total", kind=kind) or 0 for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}

    def own_errors(self) -> dict[str, int]:
        """Return telemetry's own failures, without what did not happen."""
        return {component: n for component, n in errors_of(self.telemetry).counts().items() if n}

    def reasons(self) -> list[str]:
        return [reason["code"] for reason in self.telemetry.health()["reasons"]]

    def up(self) -> float | None:
        return self.value("scheduler_up")


@contextmanager
def watched(scheduler: Any, **options: Any) -> Iterator[Watched]:
    """Instrument a scheduler on a registry of its own, and end both."""
    options.setdefault("registry", CollectorRegistry())
    telemetry = instrument(scheduler, **options)
    try:
        yield Watched(scheduler, telemetry, options["registry"])
    finally:
        telemetry.uninstrument()
        if scheduler.running:
            scheduler.shutdown(wait=False)


def wait_for_reading(seen: Watched) -> None:
    """Wait until telemetry has done all that it does aside, and will not do later."""
    adapter = adapter_of(seen.telemetry)
    pollers = [hooks._poller for hooks in adapter._jobstore_hooks.values()]
    for worker in [*(poller._worker for poller in pollers), adapter._worker]:
        done = threading.Event()
        worker.submit("adapter", done.set)
        if adapter._patches.is_active:
            assert done.wait(PATIENCE)


def due(job_id: str = "job") -> dict[str, Any]:
    """Return how to add a job that is due now, however busy the machine is, and then hourly."""
    return {
        "trigger": "interval",
        "hours": 1,
        "id": job_id,
        "next_run_time": ago(0.1),
        "misfire_grace_time": None,
    }


def ago(seconds: float) -> datetime:
    return datetime.now(timezone.utc) - timedelta(seconds=seconds)


def ahead(seconds: float) -> datetime:
    return ago(-seconds)


def succeed(*args: Any, **kwargs: Any) -> Any:
    """Return what was passed."""
    return args or kwargs or None
