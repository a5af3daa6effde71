"""The adapter interface: another scheduler gets metrics, spans and health by its adapter."""

from __future__ import annotations

import ast
import multiprocessing
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue
from typing import Any
from uuid import UUID

import pytest
from prometheus_client import CollectorRegistry, generate_latest

import apscheduler_telemetry
from apscheduler_telemetry import ArgumentTypeError, instrument
from apscheduler_telemetry.adapters import registry as adapters
from tests.helpers.queue_scheduler import (
    CancelledRunError,
    QueueScheduler,
    QueueSchedulerAdapter,
    utc,
)

trace_sdk = pytest.importorskip("opentelemetry.sdk.trace")
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PACKAGE = Path(apscheduler_telemetry.__file__).parent
IDS = [UUID(int=number) for number in range(3)]


def good() -> None:
    """Succeed."""


def bad() -> None:
    raise ValueError("no")


def cancelled() -> None:
    raise CancelledRunError


def scheduler_with_jobs(queue: Any, first: float) -> QueueScheduler:
    scheduler = QueueScheduler(queue)
    for job_id, func in zip(IDS, (good, bad, cancelled), strict=True):
        scheduler.add_job(job_id, func, utc(first), 3600)
    return scheduler


class Watched:
    """A scheduler that is instrumented through its adapter, on a registry of its own."""

    def __init__(self, scheduler: QueueScheduler) -> None:
        self.spans = InMemorySpanExporter()
        provider = trace_sdk.TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        self.registry = CollectorRegistry()
        adapters.ADAPTERS.append(QueueSchedulerAdapter)
        self.telemetry = instrument(scheduler, registry=self.registry, tracer_provider=provider)
        scheduler.start()

    def runs(self, job_id: str) -> dict[str, float]:
        text = generate_latest(self.registry).decode()
        found = {}
        for line in text.splitlines():
            if line.startswith(f'apscheduler_job_runs_total{{job_id="{job_id}"'):
                labels, value = line.rsplit(" ", 1)
                if float(value):
                    found[labels.split('outcome="')[1].split('"')[0]] = float(value)
        return found

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"scheduler": "default", **labels})

    def span_facts(self) -> list[tuple[str, Any]]:
        finished = self.spans.get_finished_spans()
        return [(span.name, (span.attributes or {})["apscheduler.outcome"]) for span in finished]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = list(adapters.ADAPTERS)
    yield
    adapters.ADAPTERS[:] = before


def work(queue: Any, results: Any, first: float) -> None:
    """Run three queued jobs in a process of its own, and report what its telemetry shows."""
    scheduler = scheduler_with_jobs(queue, first)
    watched = Watched(scheduler)
    for _ in IDS:
        scheduler.run_next()
    results.put(
        {
            "runs": {name: watched.runs(name) for name in ("good", "bad", "cancelled")},
            "durations": watched.sample(
                "apscheduler_job_run_duration_seconds_count", job_id="good"
            ),
            "delays": watched.sample("apscheduler_job_start_delay_seconds_count", job_id="good"),
            "spans": watched.span_facts(),
            "health": watched.telemetry.health()["status"],
        }
    )


class TestOneProcess:
    """A scheduler that puts jobs into its queue and runs them in the same process."""

    def test_runs_next_runs_spans_and_health(self) -> None:
        """Runs, next runs, spans and health are exported; `uninstrument` restores everything."""
        scheduler = scheduler_with_jobs(Queue(), time.time() - 5)
        watched = Watched(scheduler)
        scheduler.enqueue_due(utc(time.time()))
        for _ in IDS:
            scheduler.run_next()
        assert watched.runs("good") == {"success": 1}
        assert watched.runs("bad") == {"error": 1}
        assert watched.runs("cancelled") == {"lost": 1}
        next_run = watched.sample("apscheduler_job_next_run_timestamp_seconds", job_id="good")
        assert next_run == scheduler.jobs[IDS[0]][1].timestamp()
        assert watched.span_facts() == [
            ("good", "success"),
            ("bad", "error"),
            ("cancelled", "lost"),
        ]
        assert watched.sample("apscheduler_scheduler_up") == 1
        jobs = {job["id"]: job["last_outcome"] for job in watched.telemetry.health()["jobs"]}
        assert jobs == {"good": "success", "bad": "error", "cancelled": "lost"}
        watched.telemetry.uninstrument()
        assert "call" not in vars(scheduler)

    def test_a_run_is_running_while_it_runs(self) -> None:
        """A reading during a run shows it as running."""
        seen = []

        def look() -> None:
            seen.append(watched.sample("apscheduler_job_running", job_id="look"))

        scheduler = QueueScheduler(Queue())
        scheduler.add_job(IDS[0], look, utc(time.time() - 1), 60)
        watched = Watched(scheduler)
        scheduler.enqueue_due(utc(time.time()))
        scheduler.run_next()
        assert seen == [1]


class TestTwoProcesses:
    """A scheduler whose jobs are queued in this process and run in another one."""

    def test_each_process_exports_what_happens_in_it(self) -> None:
        """The scheduler's process exports next runs; the worker's process outcomes and spans."""
        context = multiprocessing.get_context("spawn")
        queue, results = context.Queue(), context.Queue()
        first = time.time() - 5
        worker = context.Process(target=work, args=(queue, results, first))
        worker.start()
        scheduler = scheduler_with_jobs(queue, first)
        watched = Watched(scheduler)
        scheduler.enqueue_due(utc(time.time()))
        try:
            there = results.get(timeout=60)
        finally:
            worker.join(60)
        assert there == {
            "runs": {"good": {"success": 1}, "bad": {"error": 1}, "cancelled": {"lost": 1}},
            "durations": 1,
            "delays": 1,
            "spans": [("good", "success"), ("bad", "error"), ("cancelled", "lost")],
            "health": "healthy",
        }
        assert watched.runs("good") == {}
        next_run = watched.sample("apscheduler_job_next_run_timestamp_seconds", job_id="good")
        assert next_run == pytest.approx(first + 3600, abs=0.001)
        assert watched.span_facts() == []


def test_an_unknown_scheduler_is_refused_with_a_hint() -> None:
    """An object that no adapter accepts is rejected; the message says what to pass."""
    with pytest.raises(ArgumentTypeError, match="takes a scheduler of APScheduler 3"):
        instrument(QueueScheduler(Queue()))


def test_only_the_adapter_imports_apscheduler() -> None:
    """Only the package of the adapter imports APScheduler."""
    importing = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            if any(name.split(".")[0] == "apscheduler" for name in names):
                importing.add(path.parent.relative_to(PACKAGE).as_posix())
    assert importing == {"adapters/apscheduler3"}
