"""Links of runs to the span that added their job, and how a context store keeps them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")
pytest.importorskip("sqlalchemy")

from apscheduler.executors.debug import DebugExecutor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers.jobs import WAIT_TIMEOUT, nothing
from tests.helpers.jobstore_servers import Rows
from tests.helpers.metrics import registry_of
from tests.helpers.schedulers import HandDriven
from tests.helpers.waiting import wait_until


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    rows = Rows(tmp_path)
    yield rows
    rows.engine.dispose()


class TracedProcess:
    """A process on a shared job store: its scheduler, its telemetry and the spans of its runs."""

    def __init__(self, rows: Rows, context_store: Any) -> None:
        self._exporter: Any = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._tracer = provider.get_tracer("application")
        self.scheduler = HandDriven(
            jobstores={"default": rows.store()},
            executors={"default": DebugExecutor()},
            timezone=timezone.utc,
        )
        self.telemetry = instrument(
            self.scheduler,
            registry=CollectorRegistry(),
            tracer_provider=provider,
            context_store=context_store,
        )
        self.scheduler.start()

    @contextmanager
    def request(self) -> Iterator[int]:
        """Be in a request, and yield the id of its span."""
        with self._tracer.start_as_current_span("request") as span:
            yield span.get_span_context().span_id

    def add(self, next_run: datetime) -> Any:
        return self.scheduler.add_job(
            nothing,
            "interval",
            hours=1,
            id="job",
            next_run_time=next_run,
            misfire_grace_time=None,
        )

    def knows_the_job(self) -> bool:
        labels = {"scheduler": "default", "job_id": "job"}
        registry = registry_of(self.telemetry)
        name = "apscheduler_job_next_run_timestamp_seconds"
        return registry.get_sample_value(name, labels) is not None

    def links(self) -> list[tuple[int, str]]:
        """Pass over due jobs, and return to which spans the run links and why."""
        self.scheduler.turn()
        (run,) = [span for span in self._exporter.get_finished_spans() if span.name == "job"]
        return [
            (link.context.span_id, link.attributes["apscheduler.link.reason"]) for link in run.links
        ]

    def end(self) -> None:
        if self.scheduler.running:
            self.scheduler.shutdown()
        self.telemetry.uninstrument()


@pytest.fixture
def processes() -> Iterator[list[TracedProcess]]:
    """Collect processes that the test starts, and end them after it."""
    processes: list[TracedProcess] = []
    yield processes
    for process in processes:
        process.end()


class UnreadableStore(dict[str, str]):
    """A context store from which a process reads nothing, and to which it writes."""

    def __init__(self, target: dict[str, str]) -> None:
        super().__init__()
        self._target = target

    def __setitem__(self, key: str, value: str) -> None:
        self._target[key] = value

    def get(self, key: str, default: Any = None) -> Any:
        return default


class TestJobThatAnotherProcessTriggers:
    """A job that one process adds, and another one triggers without knowing that link."""

    def test_run_still_links_to_where_the_job_was_added(
        self, rows: Rows, processes: list[TracedProcess]
    ) -> None:
        """When another process triggers the job, the link to the job's addition is kept."""
        kept: dict[str, str] = {}
        adding = TracedProcess(rows, kept)
        processes.append(adding)
        with adding.request() as request:
            adding.add(datetime(2999, 1, 1, tzinfo=timezone.utc))
        wait_until(lambda: kept, "the link to be kept")
        triggering = TracedProcess(rows, UnreadableStore(kept))
        processes.append(triggering)
        wait_until(triggering.knows_the_job, "the other process to read the store")
        before = dict(kept)
        with triggering.request() as trigger:
            triggering.scheduler.modify_job("job", next_run_time=datetime.now(timezone.utc))
        wait_until(lambda: kept != before, "the trigger to be kept")
        assert adding.links() == [(request, "added"), (trigger, "triggered")]


class SlowStore(dict[str, str]):
    """A context store that does not write before the test says so, and then takes a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def __setitem__(self, key: str, value: str) -> None:
        assert self.go_on.wait(WAIT_TIMEOUT), "the test did not go on"
        time.sleep(0.05)
        super().__setitem__(key, value)


class TestEnd:
    """`uninstrument` while links are still to be stored."""

    def test_end_waits_for_the_writing_a_second_at_most(
        self, rows: Rows, processes: list[TracedProcess]
    ) -> None:
        """`uninstrument` waits until links are stored, for a second at most."""
        elapsed = []
        for _ in range(3):  # as a machine may be busy for a second, and not three times
            store = SlowStore()
            process = TracedProcess(rows, store)
            processes.append(process)
            with process.request():
                process.add(datetime(2999, 1, 1, tzinfo=timezone.utc))
            begin = time.perf_counter()
            store.go_on.set()
            process.telemetry.uninstrument()
            elapsed.append(time.perf_counter() - begin)
            assert len(store) == 1
            process.scheduler.remove_all_jobs()
        assert min(elapsed) < 0.9
