"""The command ``opentelemetry-instrument``, and what a collector gets from it."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry._logs import Logger

for _module in (
    "grpc",
    "opentelemetry.distro",
    "opentelemetry.exporter.otlp.proto.http",
    "opentelemetry.instrumentation.auto_instrumentation",
):
    pytest.importorskip(
        _module,
        reason=f"{_module} comes with the extras 'otlp' and 'instrumentation' of this package",
    )

from tests.helpers.html_pages import read_html
from tests.helpers.otlp_receiver import OtlpReceiver, Received
from tests.helpers.paths import APPLICATIONS
from tests.helpers.servers import free_port

COMMAND = Path(sys.executable).with_name("opentelemetry-instrument")
SQL = "opentelemetry.instrumentation.sqlalchemy"


@pytest.fixture(scope="module")
def _receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def receiver(_receiver: OtlpReceiver) -> OtlpReceiver:
    _receiver.clear()
    return _receiver


def run(
    receiver: OtlpReceiver,
    script: Path,
    *arguments: object,
    options: Sequence[str] = (),
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script under ``opentelemetry-instrument`` to its end."""
    done = subprocess.run(
        [COMMAND, *options, sys.executable, script, *map(str, arguments)],
        env={
            **os.environ,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_SERVICE_NAME": "zero",
            **variables,
        },
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return done


def script(directory: Path, code: str) -> Path:
    path = directory / "script.py"
    path.write_text(textwrap.dedent(code))
    return path


def children(spans: list[Received], parent: Received) -> list[Received]:
    return [span for span in spans if span.data.parent_span_id == parent.data.span_id]


PLAIN = """
    import json, logging, os, threading, urllib.request
    from apscheduler.events import EVENT_JOB_EXECUTED
    from apscheduler.schedulers.background import BackgroundScheduler
    from opentelemetry import trace

    def report():
        logging.getLogger("shop").warning("it works")
        with trace.get_tracer("driver").start_as_current_span("query"):
            pass

    ran = threading.Semaphore(0)
    schedulers = [BackgroundScheduler(), BackgroundScheduler()]
    for scheduler in schedulers:
        scheduler.add_listener(lambda _: ran.release(), EVENT_JOB_EXECUTED)
        scheduler.start()
        scheduler.add_job(report, id="report", misfire_grace_time=None)
        ran.acquire()  # when the run is counted and its span has ended
    if port := os.environ.get("PORT"):
        pages = {}
        for page in ("", "metrics", "health", "runs"):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}") as answer:
                pages[page] = answer.read().decode()
        print(json.dumps(pages))
    for scheduler in schedulers:
        scheduler.shutdown()
    """


class Outcome(NamedTuple):
    """What came of the script above."""

    printed: str
    log: str
    spans: list[Received]
    logs: list[Received]
    metrics: list[Received]


@pytest.fixture(scope="module")
def plain(_receiver: OtlpReceiver, tmp_path_factory: Any) -> Outcome:
    pytest.importorskip("opentelemetry.instrumentation.logging")
    _receiver.clear()
    port = str(free_port())
    done = run(
        _receiver,
        script(tmp_path_factory.mktemp("plain"), PLAIN),
        options=["--apscheduler_http_port", port],
        PORT=port,
        OTEL_PYTHON_APSCHEDULER_NAME="shop",
        OTEL_PYTHON_APSCHEDULER_OWNER="billing",
        OTEL_LOGS_EXPORTER="otlp",
        OTEL_PYTHON_APSCHEDULER_RUN_EVENTS="true",
        OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED="true",
        OTEL_PYTHON_LOG_CORRELATION="true",
    )
    return Outcome(done.stdout, done.stderr, _receiver.spans, _receiver.logs, _receiver.metrics)


@pytest.mark.slow
class TestScript:
    """A script without any code for telemetry."""

    def test_every_scheduler_is_traced_and_served_on_one_port(self, plain: Outcome) -> None:
        """Each scheduler has its own name and spans, and one port serves the metrics of all."""
        runs = [span for span in plain.spans if span.data.name == "report"]
        assert [r.attributes["apscheduler.scheduler"] for r in runs] == ["shop", "shop-2"]
        assert [r.resource["service.name"] for r in runs] == ["zero", "zero"]
        assert [[c.data.name for c in children(plain.spans, r)] for r in runs] == [["query"]] * 2
        assert len(plain.spans) == 4
        assert "apscheduler.job.runs" in {metric.data.name for metric in plain.metrics}
        pages = json.loads(plain.printed)
        for name in ("shop", "shop-2"):
            labels = f'{{job_id="report",outcome="success",scheduler="{name}"}}'
            assert f"apscheduler_job_runs_total{labels} 1.0" in pages["metrics"]
        assert 'owner="billing"' in pages["metrics"]
        health = json.loads(pages["health"])
        assert health["status"] == "healthy"
        assert [s["name"] for s in health["schedulers"]] == ["shop", "shop-2"]

    def test_latest_runs_of_all_schedulers_are_listed(self, plain: Outcome) -> None:
        """``/runs`` has the runs of all schedulers, the latest first, with their traces."""
        listed = json.loads(json.loads(plain.printed)["runs"])["runs"]
        runs = [span for span in plain.spans if span.data.name == "report"]
        assert [run["scheduler"] for run in listed] == ["shop-2", "shop"]
        assert [run["trace_id"] for run in listed] == [
            run.data.trace_id.hex() for run in reversed(runs)
        ]

    def test_status_page_shows_all_schedulers(self, plain: Outcome) -> None:
        """The status page has the jobs of all schedulers, with links that tell them apart."""
        pytest.importorskip("jinja2")
        shown = read_html(json.loads(plain.printed)[""])
        links = [link.attributes["href"] for link in shown.all("a", **{"class": "id"})]
        assert links == [f"./job?scheduler={name}&job_id=report" for name in ("shop", "shop-2")]

    @pytest.mark.skipif(
        "event_name" not in inspect.signature(Logger.emit).parameters,
        reason="this OpenTelemetry has no events",
    )
    def test_each_run_is_an_event(self, plain: Outcome) -> None:
        """With its variable, each run is an event in its trace, beside the logs of the job."""
        runs = [span.data for span in plain.spans if span.data.name == "report"]
        events = [log for log in plain.logs if "apscheduler.outcome" in log.attributes]
        assert [e.attributes["apscheduler.scheduler"] for e in events] == ["shop", "shop-2"]
        assert [(e.data.trace_id, e.data.span_id) for e in events] == [
            (run.trace_id, run.span_id) for run in runs
        ]

    def test_log_of_a_job_has_the_ids_of_its_run(self, plain: Outcome) -> None:
        """Log records of a job have the ids of its run, in the log and by OTLP."""
        runs = [span.data for span in plain.spans if span.data.name == "report"]
        records = [log.data for log in plain.logs if log.data.body.string_value == "it works"]
        assert [(r.trace_id, r.span_id) for r in records] == [(r.trace_id, r.span_id) for r in runs]
        lines = [line for line in plain.log.splitlines() if "it works" in line]
        for line, r in zip(lines, runs, strict=True):
            assert f"trace_id={r.trace_id.hex()} span_id={r.span_id.hex()}" in line

    def test_instrumentation_can_be_disabled_by_name(
        self, receiver: OtlpReceiver, tmp_path: Path
    ) -> None:
        """OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=apscheduler disables it."""
        run(
            receiver,
            script(tmp_path, PLAIN),
            OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="apscheduler",
        )

        assert [span.data.name for span in receiver.spans] == ["query", "query"]


@pytest.fixture(scope="module")
def spans(_receiver: OtlpReceiver, tmp_path_factory: Any) -> list[Received]:
    """Return all spans of one life of the application."""
    for module in ("fastapi", "flask", "requests", "sqlalchemy", "threading"):
        pytest.importorskip(f"opentelemetry.instrumentation.{module}")
    _receiver.clear()
    run(_receiver, APPLICATIONS / "uninstrumented.py", tmp_path_factory.mktemp("application"))
    return _receiver.spans


@pytest.mark.slow
class TestApplication:
    """An application with Flask, FastAPI, SQLAlchemy, requests and threads, all instrumented."""

    def test_each_run_is_a_root_span_that_links_to_the_request(self, spans: list[Received]) -> None:
        """Each run is the root of one trace, and links to the request that added the job."""
        (start,) = (span for span in spans if span.data.name == "GET /start")
        runs = [span for span in spans if span.data.name == "report"]

        assert len(runs) == 3
        assert len({r.data.trace_id for r in runs}) == 3
        assert {r.data.parent_span_id for r in runs} == {b""}
        assert {r.attributes["apscheduler.outcome"] for r in runs} == {"success"}
        for link in (link for r in runs for link in r.data.links):
            assert (link.trace_id, link.span_id) == (start.data.trace_id, start.data.span_id)
        assert [len(r.data.links) for r in runs] == [1, 1, 1]

    def test_requests_and_sql_of_a_job_are_children_of_its_run(self, spans: list[Received]) -> None:
        """HTTP requests and SQL queries of a job are children of its run, once each."""
        for job in (span for span in spans if span.data.name == "report"):
            trace = [span for span in spans if span.data.trace_id == job.data.trace_id]
            below = children(spans, job)
            asked = [span for span in below if span.data.kind == span.data.SPAN_KIND_CLIENT]
            asked = [span for span in asked if span.data.name == "GET"]
            assert len(asked) == 2
            answered = [children(spans, request) for request in asked]
            assert [[s.data.name for s in server] for server in answered] == [["GET /work"]] * 2
            sql = [span for span in trace if span.scope.name == SQL]
            assert sql
            assert Counter(span.data.name for span in sql).most_common(1)[0][1] == 1
            assert {span.data.parent_span_id for span in sql} == {job.data.span_id}

    def test_queries_of_the_scheduler_are_root_spans(self, spans: list[Received]) -> None:
        """Queries of the scheduler itself are root spans."""
        (start,) = (span for span in spans if span.data.name == "GET /start")
        queries = [span for span in spans if span.scope.name == SQL]

        within = [span for span in queries if span.data.trace_id == start.data.trace_id]
        assert within  # its own, when it added the job
        assert {span.data.parent_span_id for span in within} == {start.data.span_id}
        assert max(s.data.start_time_unix_nano for s in within) < start.data.end_time_unix_nano
        of_jobs = {span.data.span_id for span in spans if span.data.name == "report"}
        by_the_loop = [
            span
            for span in queries
            if span not in within and span.data.parent_span_id not in of_jobs
        ]
        assert by_the_loop
        assert {span.data.parent_span_id for span in by_the_loop} == {b""}
