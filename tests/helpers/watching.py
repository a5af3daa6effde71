"""An instrumented scheduler whose metrics a test reads; see also `rigs`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any

from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry, instrument
from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.metrics import adapter_of, errors_of, job_states, value_or_usual

KINDS = ("jobstore", "restore", "executor_lookup", "submit", "loop", "listener", "not_awaited")


@dataclass(frozen=True)
class Watched:
    """An instrumented scheduler and its registry."""

    scheduler: Any
    telemetry: Telemetry
    registry: CollectorRegistry

    def value(self, name: str, /, **labels: str) -> float | None:
        """Return what a scrape says, also by absence; the label `scheduler` need not be given."""
        labels.setdefault("scheduler", self.telemetry.name)
        return value_or_usual(self.registry, f"apscheduler_{name}", labels)

    def job(self, name: str, job_id: str = "job", /, **labels: str) -> float | None:
        return self.value(f"job_{name}", job_id=job_id, **labels)

    def next_run(self, job_id: str = "job") -> float | None:
        return self.job("next_run_timestamp_seconds", job_id)

    def withdrawn_run(self, job_id: str = "job") -> float | None:
        """Return the latest run that was cancelled before it was due."""
        return self.job("withdrawn_run_timestamp_seconds", job_id)

    def next_and_withdrawn_run(self, job_id: str = "job") -> tuple[float | None, float | None]:
        return self.next_run(job_id), self.withdrawn_run(job_id)

    def last_read(self, jobstore: str = "default") -> float | None:
        """Return when telemetry last read a job store."""
        return self.value("jobstore_last_read_timestamp_seconds", jobstore=jobstore)

    def runs(self, job_id: str = "job") -> dict[str, float]:
        """Return the runs of a job by outcome, without zeros."""
        account = next(a for a in job_states(self.telemetry) if a.label == job_id)
        return {outcome.value: count for outcome, count in account.outcomes.items() if count}

    def errors(self) -> dict[str, float]:
        """Return scheduler errors by kind, without zeros."""
        counts = {kind: self.value("scheduler_errors_total", kind=kind) or 0 for kind in KINDS}
        return {kind: count for kind, count in counts.items() if count}

    def own_errors(self) -> dict[str, int]:
        """Return telemetry's own errors by component, without zeros."""
        return {component: n for component, n in errors_of(self.telemetry).counts().items() if n}

    def reasons(self) -> list[str]:
        return [reason["code"] for reason in self.telemetry.health()["reasons"]]

    def up(self) -> float | None:
        return self.value("scheduler_up")


@contextmanager
def watched(scheduler: Any, **options: Any) -> Iterator[Watched]:
    """Instrument a scheduler on its own registry; uninstrument and stop it at the end."""
    options.setdefault("registry", CollectorRegistry())
    telemetry = instrument(scheduler, **options)
    try:
        yield Watched(scheduler, telemetry, options["registry"])
    finally:
        telemetry.uninstrument()
        if scheduler.running:
            scheduler.shutdown(wait=False)


def wait_for_reading(seen: Watched) -> None:
    """Wait until telemetry has done all of its background work."""
    adapter = adapter_of(seen.telemetry)
    pollers = [hooks._poller for hooks in adapter._hooks_by_jobstore_id.values()]
    for worker in [*(poller._worker for poller in pollers), adapter._worker]:
        done = threading.Event()
        worker.submit("adapter", done.set)
        if adapter._patches.is_active:
            assert done.wait(WAIT_TIMEOUT)


def due(job_id: str = "job") -> dict[str, Any]:
    """Return the options of a job that is due now, without a grace time, and then hourly."""
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
