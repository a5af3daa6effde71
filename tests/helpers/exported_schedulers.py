"""Schedulers with a recorder that tests fill, for exporters; no APScheduler is needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from opentelemetry.trace import SpanContext
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from apscheduler_telemetry.core.model import (
    ErrorDescription,
    JobExpectations,
    Liveness,
    Outcome,
    RemovalReason,
    SchedulerErrorKind,
)
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobRecord, Run
from apscheduler_telemetry.export.prometheus import get_or_create_exporter
from tests.helpers.clocks import ManualClock
from tests.helpers.recorder_rig import job_info

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC


class FakeScheduler:
    """An instrumented scheduler whose recorder is filled by the test, at a fixed time."""

    def __init__(self, name: str = "main", **options: Any) -> None:
        self.name = name
        self.clock = ManualClock(NOW)
        self.recorder = Recorder(name, clock=self.clock, **options)
        self.error_reporter = ErrorReporter()
        self.started_at: float | None = NOW - 3600
        self.last_pass_ended_at: float | None = NOW - 0.5
        self.alive = Liveness(scheduler_state="running", up=True)
        self.hostname = "web-1"

    def liveness(self) -> Liveness:
        return self.alive

    def scheduler_info(self) -> Mapping[str, str]:
        return {
            "type": "BackgroundScheduler",
            "version": "3.11.3",
            "hostname": self.hostname,
            "pid": "4711",
            "timezone": "Europe/Berlin",
            "singleton": "true",
        }

    def add_job(self, job_id: str, next_run: float | None = NOW + 60, **changes: Any) -> JobRecord:
        """Record a job."""
        defaults = {
            "name": job_id.title(),
            "func": f"shop.jobs:{job_id}",
            "trigger": "interval[0:01:00]",
        }
        return self.recorder.job_upserted(job_info(job_id, **{**defaults, **changes}), next_run)

    def submit(self, record: JobRecord, due: float, executor: str = "elsewhere") -> Run:
        """Submit a run with a due time in Unix seconds."""
        run = Run(record, datetime.fromtimestamp(due, timezone.utc), executor)
        self.recorder.run_submitted(run)
        return run

    def finish(self, run: Run, outcome: Outcome) -> None:
        """End a run without a measurement."""
        run.finish(outcome)

    def run(
        self,
        record: JobRecord,
        due: float,
        duration: float,
        error: ErrorDescription | None = None,
        *,
        exemplar: SpanContext | None = None,
        recorded: Mapping[str, float] | None = None,
    ) -> None:
        """Record a run that started 0.125 s late."""
        run = self.submit(record, due)
        run.try_start(due + 0.125)
        if exemplar is not None:
            run.set_exemplar_span(exemplar)
        if recorded is not None:
            run.get_or_create_current_run().record(**recorded)
        run.set_duration(duration)
        outcome = Outcome.SUCCESS if error is None else Outcome.ERROR
        run.finish(outcome, error)


def fill(scheduler: FakeScheduler) -> None:
    """Record at least one value of each kind."""
    recorder = scheduler.recorder
    recorder.executor_added("default", lambda: 10)
    recorder.executor_added("loop", lambda: float("inf"))
    recorder.jobstore_added("default", is_local=True)
    recorder.jobstore_added("sql", is_local=False)
    recorder.jobstore_read("sql", NOW - 3.5)
    recorder.jobstore_read_failed("sql")

    backup = scheduler.add_job(
        "backup",
        jobstore="sql",
        persistent=True,
        grace=300.0,
        expectations=JobExpectations(
            max_duration=600.0,
            min_duration=0.5,
            deadline=1_800.0,
            max_failures=2,
            min_recorded=(("bytes", 1e9), ("rows", 1.0)),
            severity="warning",
            owner="billing",
            runbook_url="https://wiki.example/backup",
        ),
    )
    recorder.job_intervals_changed(backup, (86_400.0, 259_200.0))
    trace = SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, is_remote=False)
    scheduler.run(backup, NOW - 180, 0.75, exemplar=trace, recorded={"files": 12, "megabytes": 1.5})
    disk = ErrorDescription(type="OSError", message="disk")
    scheduler.run(backup, NOW - 120, 12.5, disk, recorded={"files": 5})
    scheduler.run(backup, NOW - 60, 0.25, ErrorDescription(type="shop.errors.Full", message=""))
    recorder.runs_unsubmitted(backup, Outcome.COALESCED, 3)
    scheduler.finish(scheduler.submit(backup, NOW - 30), Outcome.LOST)

    report = scheduler.add_job("report", NOW + 0.25)
    recorder.job_intervals_changed(report, (60.0, 60.0))
    scheduler.submit(report, NOW - 5, "default").try_start(NOW - 4.5)
    scheduler.submit(report, NOW - 1, "default")
    recorder.runs_unsubmitted(report, Outcome.SKIPPED, 1)
    scheduler.finish(scheduler.submit(report, NOW - 65), Outcome.MISSED)

    paused = scheduler.add_job('a "quoted"\\path\nof 🦉', NOW + 60)
    recorder.job_rescheduled(paused, None, cancels=True)

    recorder.job_removed(scheduler.add_job("gone", NOW + 90), RemovalReason.CANCELLED)

    recorder.count_scheduler_error(SchedulerErrorKind.JOBSTORE)
    recorder.count_scheduler_error(SchedulerErrorKind.LISTENER)
    scheduler.error_reporter.report("job_label", "it returned None")


class Scene:
    """Two schedulers on one registry; the second one is idle and stopped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.exporter = get_or_create_exporter(self.registry)
        self.main, self.other = FakeScheduler("main"), FakeScheduler("other")
        fill(self.main)
        self.other.alive = Liveness(
            scheduler_state="stopped", up=False, reasons=[("stopped", "It is.")]
        )
        self.other.started_at = self.other.last_pass_ended_at = None
        for scheduler in (self.main, self.other):
            self.exporter.add_scheduler(scheduler)

    def text(self) -> str:
        """Return the registry in the text format."""
        return generate_latest(self.registry).decode()

    def openmetrics(self) -> str:
        """Return the registry in the OpenMetrics format."""
        text: str = generate_openmetrics(self.registry).decode()  # type: ignore[no-untyped-call]
        return text


def samples(exposition: str) -> Iterator[Any]:
    """Yield the samples of an exposition in the text format."""
    for family in parse_text(exposition):
        yield from family.samples
