"""Links of runs, their baggage, and how both are stored."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")
sqlalchemy = pytest.importorskip("sqlalchemy")

from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import ArgumentTypeError, FileContextStore, Telemetry, instrument
from tests.helpers.metrics import adapter_of, errors_of
from tests.helpers.rigs import hand_driven_rig
from tests.helpers.schedulers import HandDriven, forkserver_pool
from tests.helpers.scripts import output_of_script
from tests.helpers.waiting import wait_until

SOON = timedelta(seconds=0.05)


def nothing() -> None:
    """Do nothing."""


def tenant() -> str:
    """Return what baggage says."""
    return str(dict(baggage.get_all()))


class Process:
    """One life of an application: a scheduler that is driven by hand, its spans, its store."""

    def __init__(self, directory: Path | None, executor: Any = None, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("application")
        store: Any = MemoryJobStore()
        if directory is not None:
            store = SQLAlchemyJobStore(
                f"sqlite:///{directory / 'jobs.db'}",
                engine_options={"poolclass": sqlalchemy.pool.NullPool},
            )
        self._executor = executor or DebugExecutor()
        self.scheduler = HandDriven(
            jobstores={"default": store},
            executors={"default": self._executor},
            timezone=timezone.utc,
        )
        self.telemetry: Telemetry = instrument(
            self.scheduler,
            registry=CollectorRegistry(),
            tracer_provider=self.provider,
            **options,
        )

    @contextmanager
    def request(self, **carried: str) -> Iterator[trace.SpanContext]:
        """Be in the middle of a request."""
        with self.tracer.start_as_current_span("request") as span:
            current = context.get_current()
            for key, value in carried.items():
                current = baggage.set_baggage(key, value, current)
            token = context.attach(current)
            try:
                yield span.get_span_context()
            finally:
                context.detach(token)

    def add(self, func: Callable[..., Any] = nothing, **options: Any) -> Any:
        """Add a job that runs every hour, and for the first time now."""
        defaults = {
            "id": "job",
            "trigger": "interval",
            "hours": 1,
            "next_run_time": datetime.now(timezone.utc),
            "misfire_grace_time": None,
        }
        return self.scheduler.add_job(func, **{**defaults, **options})

    def runs(self) -> list[Any]:
        """Return the spans of runs since this was asked last, once there is one and it is over."""

        def turned() -> list[Any]:
            self.scheduler.turn()
            return self._runs()

        spans: list[Any] = wait_until(turned)
        wait_until(lambda: not any(list(self._executor._instances.values())))
        self._exporter.clear()
        return spans

    def _runs(self) -> list[Any]:
        return [span for span in self._exporter.get_finished_spans() if span.name == "job"]

    def links(self) -> list[tuple[int, str]]:
        """Return to which spans the one run since then links, and why."""
        (run,) = self.runs()
        return [
            (link.context.span_id, link.attributes["apscheduler.link.reason"]) for link in run.links
        ]


@pytest.fixture
def process() -> Iterator[Callable[..., Process]]:
    """Make processes, that end after the test at the latest."""
    made: list[Process] = []

    def make(*arguments: Any, **options: Any) -> Process:
        for former in made:
            if former.scheduler.running:
                former.scheduler.shutdown()
            former.telemetry.uninstrument()
        made.append(Process(*arguments, **options))
        made[-1].scheduler.start()
        return made[-1]

    yield make
    for each in made:
        if each.scheduler.running:
            each.scheduler.shutdown()
        each.telemetry.uninstrument()


class TestLinks:
    def test_every_run_links_to_where_its_job_was_added(self, process: Any) -> None:
        """Every run links to where its job was added."""
        app = process(None)
        with app.request() as request:
            app.add()
        assert app.links() == [(request.span_id, "added")]
        app.scheduler.modify_job("job", next_run_time=datetime.now(timezone.utc))
        assert app.links() == [(request.span_id, "added")]

    def test_run_triggered_by_hand_links_to_the_trigger(self, process: Any) -> None:
        """A run that is triggered by hand links to the span of the trigger; no other run does."""
        app = process(None)
        with app.request() as request:
            job = app.add()
        app.runs()
        with app.request() as hand:
            job.modify(next_run_time=datetime.now(timezone.utc))
        assert app.links() == [(request.span_id, "added"), (hand.span_id, "triggered")]
        with app.request():
            job.modify(name="a change of something else")
        app.scheduler.modify_job("job", next_run_time=datetime.now(timezone.utc))
        assert app.links() == [(request.span_id, "added")]

    def test_run_after_the_triggered_one_does_not_link_to_the_trigger(self, process: Any) -> None:
        """The next run by the trigger does not link to the span that triggered a run by hand."""
        app = process(None)
        job = app.add(hours=0, seconds=1)
        app.runs()
        with app.request() as hand:
            job.modify(next_run_time=datetime.now(timezone.utc))
        assert app.links() == [(hand.span_id, "triggered")]
        assert app.links() == []

    def test_job_triggered_when_it_is_late_withdraws_no_run(self) -> None:
        """Triggering an overdue job by hand links its run, and cancels none."""
        here = trace.SpanContext(1, 2, is_remote=False, trace_flags=trace.TraceFlags(1))
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            job = rig.add(nothing, "interval", seconds=10)
            rig.after(10)
            (tracked,) = adapter_of(rig.telemetry)._tracked_jobs.list_jobs_in_jobstore("default")
            rig.clock.advance(15)
            with trace.use_span(trace.NonRecordingSpan(here)):
                job.modify(next_run_time=datetime.now(timezone.utc) + timedelta(seconds=1))
            assert tracked.next_run_origin is not None
            rig.after(1)
            assert tracked.next_run_origin is None
            rig.checks_events = False
            rig.settle()

    def test_withdrawn_trigger_is_linked_to_by_no_run(self, process: Any) -> None:
        """A run by hand that was cancelled is linked to by no later run."""
        app = process(None)
        job = app.add()
        app.runs()
        with app.request():
            job.modify(next_run_time=datetime.now(timezone.utc) + timedelta(hours=1))
        job.pause()
        job.modify(next_run_time=datetime.now(timezone.utc))
        assert app.links() == []

    def test_job_replaced_outside_of_a_trace_has_no_link(self, process: Any) -> None:
        """A job that is replaced outside a trace has no link."""
        app = process(None)
        with app.request():
            app.add()
        app.runs()
        app.add(replace_existing=True)
        assert app.links() == []


@pytest.mark.parametrize("make", [FileContextStore, lambda _: {}], ids=["file", "dict"])
class TestRestart:
    """With a context store, links survive a restart."""

    @pytest.fixture
    def store(self, make: Any, tmp_path: Path) -> MutableMapping[str, str]:
        store: MutableMapping[str, str] = make(tmp_path / "contexts.db")
        return store

    def test_link_to_where_the_job_was_added_survives_a_restart(
        self, process: Any, tmp_path: Path, store: Any
    ) -> None:
        """Runs after a restart link to where their job was added before it."""
        app = process(tmp_path, context_store=store)
        with app.request() as request:
            app.add()
        app = process(tmp_path, context_store=store)
        assert app.links() == [(request.span_id, "added")]
        app = process(tmp_path, context_store=store)
        app.scheduler.modify_job("job", next_run_time=datetime.now(timezone.utc))
        assert app.links() == [(request.span_id, "added")]

    def test_link_to_a_trigger_by_hand_survives_a_restart(
        self, process: Any, tmp_path: Path, store: Any
    ) -> None:
        """After a restart, only the run that was triggered by hand links to the trigger."""
        app = process(tmp_path, context_store=store)
        with app.request() as request:
            job = app.add()
        app.runs()
        with app.request() as hand:
            job.modify(next_run_time=datetime.now(timezone.utc))
        app = process(tmp_path, context_store=store)
        assert app.links() == [(request.span_id, "added"), (hand.span_id, "triggered")]
        app = process(tmp_path, context_store=store)
        app.scheduler.modify_job("job", next_run_time=datetime.now(timezone.utc))
        assert app.links() == [(request.span_id, "added")]

    def test_time_set_by_another_process_has_no_link(
        self, process: Any, tmp_path: Path, store: Any
    ) -> None:
        """A next run that another process has set has no link."""
        app = process(tmp_path, context_store=store)
        job = app.add()
        app.runs()
        with app.request():
            job.modify(next_run_time=datetime.now(timezone.utc))
        app = process(tmp_path)
        app.scheduler.modify_job("job", next_run_time=datetime.now(timezone.utc) - SOON)
        app = process(tmp_path, context_store=store)
        assert app.links() == []

    def test_jobs_replaced_at_the_start_have_no_link(
        self, process: Any, tmp_path: Path, store: Any
    ) -> None:
        """Jobs that an application replaces at each start have no links."""
        app = process(tmp_path, context_store=store)
        with app.request():
            app.add()
        app.runs()
        app = process(tmp_path, context_store=store)
        app.add(replace_existing=True)
        assert app.links() == []
        app.telemetry.uninstrument()
        assert dict(store) == {}

    def test_links_of_removed_jobs_are_not_kept(
        self, process: Any, tmp_path: Path, store: Any
    ) -> None:
        """Links of removed jobs are deleted from the store."""
        app = process(tmp_path, context_store=store)
        with app.request():
            app.add(id="removed")
            app.add(id="all")
        assert wait_until(lambda: len(store) == 2)
        app.scheduler.remove_job("removed")
        assert wait_until(lambda: [json.loads(key) for key in list(store)] == [["default", "all"]])
        app.scheduler.remove_all_jobs()
        assert wait_until(lambda: not len(store))

    def test_links_of_jobs_in_memory_are_not_kept(self, process: Any, store: Any) -> None:
        """Links of jobs in a memory store are not stored."""
        app = process(None, context_store=store)
        with app.request():
            app.add()
        app.telemetry.uninstrument()
        assert dict(store) == {}

    def test_only_w3c_texts_are_kept(self, process: Any, tmp_path: Path, store: Any) -> None:
        """Only W3C trace context is stored, and no data of the job."""
        app = process(tmp_path, context_store=store)
        with app.request() as request:
            app.add(str, args=["secret"])
        app.telemetry.uninstrument()
        ((key, value),) = store.items()
        assert json.loads(key) == ["default", "job"]
        ids = f"{request.trace_id:032x}-{request.span_id:016x}-{request.trace_flags:02x}"
        assert json.loads(value) == {"added": {"traceparent": f"00-{ids}"}}

    def test_pickled_jobs_stay_as_they_are(self, process: Any, tmp_path: Path, store: Any) -> None:
        """Rows in the job store are the same as without telemetry."""
        rows: list[Any] = []
        for options in ({"context_store": store, "propagate_baggage": True}, {}):
            directory = tmp_path / str(len(rows))
            directory.mkdir()
            app = process(directory, **options)
            with app.request(tenant="acme"):
                app.add(
                    next_run_time=datetime(2030, 1, 1, tzinfo=timezone.utc), start_date="2030-01-01"
                )
            engine = app.scheduler._jobstores["default"].engine
            with engine.connect() as connection:
                query = sqlalchemy.text("SELECT id, next_run_time, job_state FROM apscheduler_jobs")
                (row,) = connection.execute(query)
                rows.append((row[0], row[1], pickle.loads(row[2])["id"], len(row[2])))
        assert rows[0] == rows[1]


def test_exiting_process_takes_a_moment_to_keep_a_link(tmp_path: Path) -> None:
    """A process that exits right after adding a job waits until its link is stored."""
    code = f"""
        import sys; sys.path[:] = {sys.path!r}
        from pathlib import Path
        from apscheduler_telemetry import FileContextStore
        from tests.otel.test_trace_links import Process

        class Slow(FileContextStore):
            def __setitem__(self, key, value):
                __import__("time").sleep(0.2)
                super().__setitem__(key, value)

        here = Path({str(tmp_path)!r})
        app = Process(here, context_store=Slow(here / "contexts.db"))
        app.scheduler.start(paused=True)
        with app.request():
            app.add()
    """
    assert output_of_script(code)[1] == ""
    assert len(FileContextStore(tmp_path / "contexts.db")) == 1


class TestTrouble:
    """Failures of a context store are counted, and runs have no links then."""

    @pytest.mark.parametrize(
        "kept",
        ["no json", "[]", '{"added": 7}', '{"triggered": {}}', '{"added": {"traceparent": 7}}'],
    )
    def test_jobs_run_with_nonsense_in_the_context_store(
        self, process: Any, tmp_path: Path, kept: str
    ) -> None:
        """Invalid entries in the context store are ignored."""
        process(tmp_path).add()
        app = process(tmp_path, context_store={json.dumps(("default", "job")): kept})
        assert app.links() == []

    def test_failing_context_store_is_counted(self, process: Any, tmp_path: Path) -> None:
        """A store that raises is counted; links within this process work."""

        class Broken(dict[str, str]):
            def get(self, *_: Any) -> Any:
                raise OSError("no")

            def __setitem__(self, *_: Any) -> None:
                raise OSError("no")

        app = process(tmp_path, context_store=Broken())
        with app.request() as request:
            app.add()
        assert app.links() == [(request.span_id, "added")]
        assert wait_until(lambda: errors_of(app.telemetry).counts()["spans"])

    def test_hanging_context_store_delays_no_job(self, process: Any, tmp_path: Path) -> None:
        """Links are stored in the background: neither adding nor running a job waits."""
        gate, began = threading.Event(), threading.Event()

        class Slow(dict[str, str]):
            def __setitem__(self, key: str, value: str) -> None:
                began.set()
                gate.wait(30)
                super().__setitem__(key, value)

        store = Slow()
        app = process(tmp_path, context_store=store)
        with app.request() as request:
            app.add()
        assert began.wait(30)
        assert app.links() == [(request.span_id, "added")]
        assert dict(store) == {}
        gate.set()
        assert wait_until(lambda: dict(store))

    def test_path_is_refused_as_a_context_store(self) -> None:
        """A path is rejected as a context store."""
        with pytest.raises(ArgumentTypeError, match="context_store must be a mapping"):
            instrument(HandDriven(), context_store="contexts.db")  # type: ignore[arg-type]


class TestBaggage:
    """A job sees baggage if the application enables it."""

    def seen(self, app: Any) -> str:
        (run,) = app.runs()
        return str(run.attributes["apscheduler.result"])

    def test_runs_have_no_baggage_by_default(self, process: Any) -> None:
        """By default, runs have no baggage."""
        app = process(None, capture_result=True)
        with app.request(tenant="acme"):
            app.add(tenant)
        assert self.seen(app) == repr("{}")

    @pytest.mark.parametrize("executor", [DebugExecutor, ThreadPoolExecutor, forkserver_pool])
    def test_runs_have_the_baggage_of_where_the_job_was_added(
        self, process: Any, executor: Any
    ) -> None:
        """Runs have the baggage of the job's addition; a run by hand that of the trigger."""
        app = process(None, executor(), capture_result=True, propagate_baggage=True)
        with app.request(tenant="acme, or so"):
            job = app.add(tenant)
        assert self.seen(app) == repr("{'tenant': 'acme, or so'}")
        with app.request(tenant="umbrella"):
            job.modify(next_run_time=datetime.now(timezone.utc))
        assert self.seen(app) == repr("{'tenant': 'umbrella'}")
        assert dict(baggage.get_all()) == {}

    def test_baggage_survives_a_restart(self, process: Any, tmp_path: Path) -> None:
        """Baggage is stored with the link."""
        store = FileContextStore(tmp_path / "contexts.db")
        options = {"capture_result": True, "propagate_baggage": True, "context_store": store}
        app = process(tmp_path, **options)
        with app.request(tenant="acme"):
            app.add(tenant)
        app = process(tmp_path, **options)
        assert self.seen(app) == repr("{'tenant': 'acme'}")
