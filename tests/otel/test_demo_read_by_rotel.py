"""The demo by OTLP, received by a collector that shares no code with package and SDK."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse

for _module in ("opentelemetry.exporter.otlp.proto.grpc", "opentelemetry.exporter.otlp.proto.http"):
    pytest.importorskip(_module, reason="the OTLP exporters come with the extra 'otlp'")

from tests.helpers.otlp_to_prometheus import differences, translate
from tests.helpers.paths import APPLICATIONS
from tests.helpers.rotel_collector import Span, program, rotel
from tests.helpers.servers import free_port, get, running_process
from tests.helpers.waiting import wait_for_answer

pytestmark = [pytest.mark.integration, pytest.mark.slow]


PROTOCOLS = ("grpc", "http")
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
STOPPED = 2.5
"""Seconds for which the processes are stopped: runs that are due each second pile up."""
INTERVALS = {
    name: timedelta(seconds=seconds)
    for name, seconds in {
        "build-report": 1,
        "crunch": 3,
        "import-orders": 2,
        "look-up": 1,
        "poll-queue": 1,
        "pull-rates": 2,
        "refresh-cache": 2,
        "sync-stock": 4,
    }.items()
}
"""The jobs of the demo, but for the one that runs at night, and the one that a request adds."""
AS_OF_NOW = "apscheduler_jobstore_last_read_timestamp_seconds"
"""A memory store counts as read at every reading; page and export are two readings."""


@dataclass(frozen=True)
class Run:
    """
    What is left of a run of the demo.

    Attributes:
        page: what ``/metrics`` showed at its end.
        spans: all spans that Rotel got of it.
        sent: the metrics that Rotel got last.
    """

    page: list[Metric]
    spans: list[Span]
    sent: Any

    @property
    def runs(self) -> list[Span]:
        """The spans of runs."""
        return [span for span in self.spans if span.scope == "apscheduler_telemetry"]

    @property
    def others(self) -> Mapping[str, list[Span]]:
        """The spans of the application by their names."""
        others = [span for span in self.spans if span.scope == "shop"]
        return {name: [s for s in others if s.name == name] for name in ("request", "query", "end")}


def read(text: str) -> list[Metric]:
    """Return our families of an exposition."""
    families = parse(text)  # type: ignore[no-untyped-call]
    return [family for family in families if family.name.startswith("apscheduler_")]


def counted(page: list[Metric]) -> Counter[tuple[str, str, str]]:
    """Return the runs of each scheduler, job and outcome."""
    return Counter(
        {
            (s.labels["scheduler"], s.labels["job_id"], s.labels["outcome"]): int(s.value)
            for family in page
            for s in family.samples
            if s.name == "apscheduler_job_runs_total" and s.value
        }
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Run]]:
    """Run the demo twice at once, one of them by gRPC and one by HTTP, in front of one Rotel."""
    binary = program()
    if binary is None:
        pytest.skip("rotel is not installed: where it has wheels, its dependency group brings it")
    top = tmp_path_factory.mktemp("demo")
    with rotel(binary, top) as collector, ExitStack() as stack:
        started: dict[str, tuple[subprocess.Popen[bytes], str]] = {}
        for protocol in PROTOCOLS:
            # As if two had gone well: the worker is killed in the first run, and not in the third.
            (top / protocol / "crunched").mkdir(parents=True)
            for number in range(2):
                (top / protocol / "crunched" / str(number)).touch()
            port = free_port()
            command: list[str | Path] = [
                sys.executable,
                APPLICATIONS / "demo_by_otlp.py",
                top / protocol,
            ]
            command += [str(port), protocol, collector.endpoints[protocol]]
            log = top / f"{protocol}.log"
            process = stack.enter_context(running_process(command, log))
            started[protocol] = process, f"http://127.0.0.1:{port}/metrics"

        def have(*outcomes: str) -> bool:
            pages = [get(url, Accept=OPENMETRICS)[1] for _, url in started.values()]
            return all(set(outcomes) <= {key[2] for key in counted(read(page))} for page in pages)

        wait_for_answer(lambda: have("lost"))
        for process, _ in started.values():
            os.kill(process.pid, signal.SIGSTOP)
        time.sleep(STOPPED)
        for process, _ in started.values():
            os.kill(process.pid, signal.SIGCONT)
        wait_for_answer(lambda: have("success", "error", "skipped", "coalesced"))
        for process, _ in started.values():
            process.terminate()
        for protocol, (process, _) in started.items():
            assert process.wait(60) == 0, (top / f"{protocol}.log").read_text()

        def received(protocol: str) -> Run:
            page = read((top / protocol / "metrics.txt").read_text())
            run = Run(page, collector.spans(protocol), collector.metrics(protocol))
            assert run.others["end"]
            return run

        yield {p: wait_for_answer(functools.partial(received, p)) for p in PROTOCOLS}


@pytest.fixture(params=PROTOCOLS)
def run(request: pytest.FixtureRequest, demo: Mapping[str, Run]) -> Run:
    return demo[request.param]


class TestSpans:
    def test_there_is_one_span_per_due_run(self, run: Run) -> None:
        """Each due time of a job, from the first run to the last, has exactly one span."""
        jobs: dict[str, list[datetime]] = {}
        intervals: dict[str, timedelta] = {}
        for span in run.runs:
            at = datetime.fromisoformat(span.attributes["apscheduler.scheduled_time"])
            jobs.setdefault(span.name, []).append(at)
            seconds = span.attributes["apscheduler.trigger"].removeprefix("interval[0:00:0")[:-1]
            intervals[span.name] = timedelta(seconds=int(seconds))
        assert intervals == INTERVALS
        for name, times in jobs.items():
            first, last, interval = min(times), max(times), intervals[name]
            due = [first + n * interval for n in range((last - first) // interval + 1)]
            assert sorted(times) == due

    def test_outcomes_of_spans_are_those_of_the_counters(self, run: Run) -> None:
        """There are as many spans of each scheduler, job and outcome as `/metrics` has runs."""
        spans = Counter(
            (span.attributes["apscheduler.scheduler"], span.name,
             span.attributes["apscheduler.outcome"])
            for span in run.runs
        )  # fmt: skip
        assert spans == counted(run.page)
        outcomes = {outcome for _, _, outcome in spans}
        assert outcomes >= {"success", "error", "skipped", "coalesced", "lost"}

    def test_failed_spans_have_status_and_message(self, run: Run) -> None:
        """Failed spans, and only these, have the status ERROR, and the exception's message."""
        failures = {"error", "missed", "skipped", "lost"}
        for span in run.runs:
            outcome = span.attributes["apscheduler.outcome"]
            assert span.status == ("ERROR" if outcome in failures else "UNSET")
            assert ("error.type" in span.attributes) == (outcome in failures)
        errors = [s for s in run.runs if s.attributes["apscheduler.outcome"] == "error"]
        assert {span.message for span in errors if span.name == "import-orders"} == {
            "shop: connection refused"
        }

    def test_each_run_is_a_trace_of_its_own(self, run: Run) -> None:
        """Each run is a trace of its own; spans of the job are within the run's time."""
        assert {span.parent for span in run.runs} == {""}
        assert len({span.trace for span in run.runs}) == len(run.runs)
        called = {span.id: span for span in run.runs if span.name == "look-up"}
        queries = run.others["query"]
        succeeded = [s for s in called.values() if s.attributes["apscheduler.outcome"] == "success"]
        assert {query.parent for query in queries} == {span.id for span in succeeded}
        for query in queries:
            parent = called[query.parent]
            assert query.trace == parent.trace
            assert parent.start <= query.start <= query.end <= parent.end

    def test_runs_link_to_the_request_that_added_the_job(self, run: Run) -> None:
        """Runs of the job that a request added link to it; runs of others have no links."""
        (request,) = run.others["request"]
        for span in run.runs:
            added = [(request.trace, request.id)] if span.name == "look-up" else []
            assert list(span.links) == added


class TestMetrics:
    def test_metrics_by_otlp_are_those_of_the_page(self, run: Run) -> None:
        """The received series are exactly those of `/metrics`, with the same values."""
        page, sent = (
            [family for family in families if family.name != AS_OF_NOW]
            for families in (run.page, translate(run.sent))
        )
        assert counted(page)
        assert differences(page, sent) == []
