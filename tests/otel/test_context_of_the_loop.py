"""The OpenTelemetry context in the scheduler's loop, its job stores, and its jobs."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import pytest
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry import baggage, context, trace
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from tests.helpers.metrics import recorder_of
from tests.helpers.schedulers import HandDriven, finish_pass
from tests.helpers.waiting import wait_until, wait_until_async

REQUEST = trace.SpanContext(0xA, 0xB, is_remote=False, trace_flags=trace.TraceFlags(1))


@contextmanager
def request() -> Iterator[None]:
    """Make the context of a traced request with baggage current."""
    current = trace.set_span_in_context(trace.NonRecordingSpan(REQUEST))
    token = context.attach(baggage.set_baggage("tenant", "acme", current))
    try:
        yield
    finally:
        context.detach(token)


def seen() -> tuple[bool, dict[str, object]]:
    """Return whether a span is current, and the baggage."""
    return trace.get_current_span().get_span_context().is_valid, dict(baggage.get_all())


NOTHING: tuple[bool, dict[str, object]] = (False, {})


class Spying(MemoryJobStore):
    """A store that records the context and the thread of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any]] = []

    def _note(self) -> None:
        self.seen.append((threading.current_thread().name, seen()))

    def get_due_jobs(self, now: datetime) -> Any:
        self._note()
        return super().get_due_jobs(now)

    def add_job(self, job: Any) -> None:
        self._note()
        super().add_job(job)


class TestLoop:
    def test_loop_started_in_a_request_has_no_context(self) -> None:
        """The loop, its store, jobs and listeners do not inherit the context of the request."""
        store, listened, ran = Spying(), [], []
        scheduler = HandDriven(
            jobstores={"default": store}, executors={"default": {"type": "debug"}}
        )
        scheduler.add_listener(lambda _: listened.append(seen()))
        instrument(scheduler, registry=CollectorRegistry())
        with request():
            scheduler.start()
            scheduler.add_job(lambda: ran.append(seen()))
            listened.clear()
            scheduler.turn()
            assert seen() == (True, {"tenant": "acme"})
        assert {str(what) for what in listened} == {str(NOTHING)}
        scheduler.shutdown()

        current = [what for _, what in store.seen]
        assert current == [(True, {"tenant": "acme"}), NOTHING]  # what the request added is its own
        assert ran == [NOTHING]

    def test_asyncio_loop_and_jobs_have_no_context_of_the_timer(self) -> None:
        """Neither loop nor jobs inherit the context in which the timer was set."""
        store, ran = Spying(), []

        async def job() -> None:
            ran.append(seen())

        async def main() -> None:
            scheduler = AsyncIOScheduler(
                jobstores={"default": store},
                executors={"default": AsyncIOExecutor()},
                timezone=timezone.utc,
            )
            instrument(scheduler, registry=CollectorRegistry())
            with request():
                scheduler.start()
                store.seen.clear()
                scheduler.add_job(job, misfire_grace_time=None)
            await wait_until_async(lambda: ran)
            scheduler.shutdown()
            await asyncio.sleep(0)

        asyncio.run(main())

        added, *passes = [what for _, what in store.seen]
        assert added == (True, {"tenant": "acme"})
        assert set(map(str, passes)) == {str(NOTHING)}
        assert ran == [NOTHING]

    def test_context_passed_to_threads_ends_in_the_loop(self) -> None:
        """The context that opentelemetry-instrumentation-threading passes on ends in the loop."""
        module = pytest.importorskip("opentelemetry.instrumentation.threading")
        store, ran = Spying(), []
        instrumentor = module.ThreadingInstrumentor()
        instrumentor.instrument()
        try:
            scheduler = BackgroundScheduler(jobstores={"default": store}, timezone=timezone.utc)
            instrument(scheduler, registry=CollectorRegistry())
            with request():
                scheduler.start()
                scheduler.add_job(lambda: ran.append(seen()), misfire_grace_time=None)
            wait_until(lambda: ran)
            finish_pass(scheduler)
            scheduler.shutdown()
        finally:
            instrumentor.uninstrument()

        assert {str(what) for name, what in store.seen if name == "APScheduler"} == {str(NOTHING)}
        assert ran == [NOTHING]

    def test_no_spans_of_what_telemetry_reads(
        self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Queries by telemetry have no spans, also if the database is traced."""
        stores = pytest.importorskip("apscheduler.jobstores.sqlalchemy", exc_type=ImportError)
        module = pytest.importorskip("opentelemetry.instrumentation.sqlalchemy")
        if "is_instrumentation_enabled" not in inspect.getsource(module.engine):
            pytest.skip("this old instrumentation cannot be suppressed")
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
        provider.add_span_processor(sdk.export.SimpleSpanProcessor(exporter))
        monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL_SECONDS", 0.01)
        url = f"sqlite:///{tmp_path / 'jobs'}"

        instrumentor = module.SQLAlchemyInstrumentor()
        instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
        try:
            scheduler = HandDriven(jobstores={"default": stores.SQLAlchemyJobStore(url)})
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.start()
            scheduler.turn()
            assert exporter.get_finished_spans(), "that is, the scheduler's own"
            exporter.clear()
            recorder = recorder_of(telemetry)
            read = recorder.jobstores()["default"].last_read_at or 0
            wait_until(lambda: (recorder.jobstores()["default"].last_read_at or 0) > read + 0.1)
            assert exporter.get_finished_spans() == ()
            telemetry.uninstrument()
            scheduler.shutdown()
        finally:
            instrumentor.uninstrument()

    def test_stores_are_read_outside_of_the_request(self, tmp_path: Any) -> None:
        """Telemetry reads a store outside the context of the request that started the scheduler."""
        sqlalchemy = pytest.importorskip("sqlalchemy")
        stores = pytest.importorskip("apscheduler.jobstores.sqlalchemy", exc_type=ImportError)
        module = pytest.importorskip("opentelemetry.instrumentation.threading")
        read = []

        class Spying(stores.SQLAlchemyJobStore):  # type: ignore[name-defined]
            def get_all_jobs(self) -> Any:
                read.append(seen())
                return super().get_all_jobs()

        store = Spying(
            f"sqlite:///{tmp_path / 'jobs'}",
            engine_options={"poolclass": sqlalchemy.pool.NullPool},  # which leaves nothing open
        )

        instrumentor = module.ThreadingInstrumentor()
        instrumentor.instrument()
        try:
            scheduler = HandDriven(jobstores={"default": store})
            instrument(scheduler, registry=CollectorRegistry())
            with request():
                scheduler.start()
            wait_until(lambda: read)
            scheduler.shutdown()
        finally:
            instrumentor.uninstrument()

        assert read == [NOTHING]
