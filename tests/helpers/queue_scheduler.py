"""
A scheduler that is not APScheduler, and its adapter, as an example of a second adapter.

Its jobs are queued by one process and run by another, like those of APScheduler 4. Their ids are
UUIDs, and a run may be cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any
from uuid import UUID

from apscheduler_telemetry.adapters.base import AdapterDependencies, SchedulerImportFacts
from apscheduler_telemetry.core.findings import Finding
from apscheduler_telemetry.core.model import ErrorDescription, JobInfo, Liveness, Outcome
from apscheduler_telemetry.core.records import JobRecord, Run
from apscheduler_telemetry.core.timetable import UpcomingRuns


class CancelledRunError(Exception):
    """A run was cancelled while it was running."""


class QueueScheduler:
    """Puts due jobs into a queue in one process, and runs them in another one."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue
        self.jobs: dict[UUID, tuple[Callable[[], Any], datetime, timedelta]] = {}
        self.is_alive = False

    def add_job(self, job_id: UUID, func: Callable[[], Any], first: datetime, every: float) -> None:
        self.jobs[job_id] = func, first, timedelta(seconds=every)

    def start(self) -> None:
        self.is_alive = True

    def enqueue_due(self, now: datetime) -> None:
        """Put each due job into the queue once."""
        for job_id, (func, due, every) in self.jobs.items():
            if due <= now:
                self.queue.put((job_id, due))
                self.jobs[job_id] = func, due + every, every

    def run_next(self) -> None:
        """Take one job out of the queue and run it."""
        job_id, due = self.queue.get(timeout=60)
        self.call(job_id, due, self.jobs[job_id][0])

    def call(self, _job_id: UUID, _due: datetime, func: Callable[[], Any]) -> None:
        func()


class QueueSchedulerAdapter:
    """Instruments a `QueueScheduler`."""

    def __init__(self, scheduler: Any, dependencies: AdapterDependencies) -> None:
        self._scheduler: QueueScheduler = scheduler
        self._dependencies = dependencies
        self._originals: dict[str, Any] = {}
        self._started_at: float | None = None
        self._last_pass_ended_at: float | None = None

    @staticmethod
    def find_scheduler(candidate: object) -> Any:
        return candidate if isinstance(candidate, QueueScheduler) else None

    @staticmethod
    def describe_rejected_candidate(candidate: object) -> str | None:
        return None

    @staticmethod
    def check_imported(
        scheduler: Any, facts: SchedulerImportFacts, others: Sequence[Any]
    ) -> Sequence[Finding]:
        return []

    def check(self) -> Sequence[Finding]:
        return []

    def check_in_background(self, on_checked: Callable[[Sequence[Finding]], None]) -> None:
        on_checked(self.check())

    def install(self) -> None:
        for name in ("start", "enqueue_due", "call"):
            self._originals[name] = getattr(self._scheduler, name)
            setattr(self._scheduler, name, getattr(self, f"_{name}"))
        self._dependencies.recorder.jobstore_added("queue", is_local=True)
        self._dependencies.recorder.executor_added("workers", lambda: 1)

    def uninstall(self) -> None:
        for name in self._originals:
            delattr(self._scheduler, name)
        self._dependencies.observers.stop_after_open_runs(
            lambda: None
        )  # a run that is under way ends in `_call`

    def call_at_next_start(self, callback: Callable[[], None]) -> None:
        """Do nothing: it is started only once."""

    @property
    def started_at(self) -> float | None:
        return self._started_at

    @property
    def last_pass_ended_at(self) -> float | None:
        return self._last_pass_ended_at

    def liveness(self) -> Liveness:
        if self._scheduler.is_alive:
            return Liveness(scheduler_state="running", up=True)
        return Liveness(
            scheduler_state="stopped", up=False, reasons=[("stopped", "It was not started.")]
        )

    def scheduler_info(self) -> Mapping[str, str]:
        return {"type": "QueueScheduler", "version": "1", "timezone": "UTC"}

    @property
    def timezone(self) -> tzinfo:
        return timezone.utc

    def find_upcoming_runs(
        self, until: float, *, label: str | None = None, max_count: int
    ) -> UpcomingRuns:
        return UpcomingRuns([], until, [])

    def _start(self) -> None:
        self._originals["start"]()
        self._started_at = time.time()
        self._dependencies.on_scheduler_started()
        for job_id in self._scheduler.jobs:
            self._record(job_id)

    def _enqueue_due(self, now: datetime) -> None:
        self._originals["enqueue_due"](now)
        self._last_pass_ended_at = time.time()
        for job_id, (_, next_run, _) in self._scheduler.jobs.items():
            self._dependencies.recorder.job_advanced(self._record(job_id), next_run)

    def _call(self, job_id: UUID, due: datetime, func: Callable[[], Any]) -> None:
        recorder, observers = self._dependencies.recorder, self._dependencies.observers
        run = Run(self._record(job_id), due, "workers")
        recorder.run_submitted(run)
        outcome, error = Outcome.SUCCESS, None
        run.try_start(time.time())
        observers.on_callable_start(run)
        since = time.perf_counter()
        try:
            self._originals["call"](job_id, due, func)
        except CancelledRunError as exception:
            outcome, error = Outcome.LOST, ErrorDescription.from_exception(exception)
        except Exception as exception:  # noqa: BLE001  # a job may raise anything
            outcome, error = Outcome.ERROR, ErrorDescription.from_exception(exception)
        finally:
            run.set_duration(time.perf_counter() - since)
            observers.on_callable_end(run)
        run.finish(outcome, error)
        observers.on_run_finished(run)

    def _record(self, job_id: UUID) -> JobRecord:
        known = self._dependencies.recorder.find_job_record("queue", str(job_id))
        if known is not None:
            return known
        func, next_run, _ = self._scheduler.jobs[job_id]
        info = JobInfo(
            id=str(job_id),
            label=func.__name__,
            name=func.__name__,
            func=f"{func.__module__}:{func.__qualname__}",
            trigger="every now and then",
            executor="workers",
            jobstore="queue",
            persistent=True,
            grace=60.0,
        )
        return self._dependencies.recorder.job_upserted(info, next_run)


def utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)
