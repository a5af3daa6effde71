"""
A script that starts a scheduler, adds a job and ends, before anything could scrape it.

By OTLP its metrics are sent when Python exits, so Prometheus knows the next run all the same. The
Prometheus of Debian cannot receive OTLP; it gets what has arrived as a page that is there for a few
scrapes and then gone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http",
    reason="the OTLP exporter is not installed: it comes with the extra 'otlp'",
)
pytest.importorskip("yaml")
from prometheus_client import CollectorRegistry, generate_latest

from examples.demo import speed
from tests.helpers.otlp_receiver import OtlpReceiver
from tests.helpers.otlp_to_prometheus import series, translate
from tests.helpers.paths import ROOT
from tests.helpers.servers import (
    configured_prometheus,
    running_http_server,
)
from tests.helpers.waiting import wait_for_answer

DUE_AFTER = 5
"""Seconds after which the job would run, if the script did not end."""

SCRIPT = """
    import sys
    from apscheduler.schedulers.background import BackgroundScheduler
    from opentelemetry.exporter.otlp.proto.{protocol}.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource
    from apscheduler_telemetry import Expectations, instrument

    exporter = OTLPMetricExporter(sys.argv[1])
    identity = Resource.create({{"service.name": "script", "service.instance.id": "1"}})
    provider = MeterProvider([PeriodicExportingMetricReader(exporter)], resource=identity)
    scheduler = BackgroundScheduler(timezone="UTC")
    instrument(scheduler, meter_provider=provider, registry=None, expect=Expectations(grace=1))
    scheduler.start()
    scheduler.add_job(print, "interval", seconds={due_after}, id="nightly")
"""


def run_script(receiver: OtlpReceiver, protocol: str = "http") -> None:
    """Run the script to its end, without a signal and without a flush of its own."""
    endpoint = {
        "grpc": receiver.grpc_endpoint,
        "http": f"{receiver.http_endpoint}/v1/metrics",
    }[protocol]
    script = textwrap.dedent(SCRIPT).format(protocol=protocol, due_after=DUE_AFTER)
    subprocess.run(
        [sys.executable, "-c", script, endpoint], check=True, capture_output=True, timeout=60
    )


class Page:
    """A page with metrics, or an error 503 while there are none."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    @contextmanager
    def served(self) -> Iterator[str]:
        """Serve the page; yields its host and port."""
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = page.content
                self.send_response(503 if content is None else 200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        with running_http_server(Handler) as address:
            yield address


def exposition(request: Any) -> bytes:
    """Return an export as Prometheus would store it."""
    families = translate(request)
    shown = CollectorRegistry()
    shown.collect = lambda: families  # type: ignore[method-assign]
    return bytes(generate_latest(shown))


@pytest.mark.slow
class TestMetricsAtExit:
    @pytest.mark.parametrize("protocol", ["grpc", "http"])
    def test_metrics_at_exit_have_the_next_run(self, protocol: str) -> None:
        """What is sent at the exit of Python has the next run of the job."""
        with OtlpReceiver() as receiver:
            before = time.time()
            run_script(receiver, protocol)
            after = time.time()
            values = series(translate(receiver.exports[-1]))
        labels = {"job": "script", "instance": "1", "scheduler": "default", "job_id": "nightly"}
        next_run = values["apscheduler_job_next_run_timestamp_seconds", frozenset(labels.items())]
        assert before + DUE_AFTER <= next_run <= after + DUE_AFTER


@pytest.mark.slow
@pytest.mark.integration
class TestAlert:
    def test_missed_run_fires_for_a_script_that_was_never_scraped(self, tmp_path: Path) -> None:
        """APSchedulerMissedRun fires after the run was due, and so does SchedulerDown."""
        binary = shutil.which("prometheus")
        if binary is None:
            pytest.skip("prometheus is not installed")
        shipped = (ROOT / "alerts" / "apscheduler.rules.yml").read_text("utf-8")
        (tmp_path / "rules.yml").write_text(speed.faster_rules(shipped, 30), "utf-8")
        page = Page()
        with page.served() as address, OtlpReceiver() as receiver:
            config = {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(tmp_path / "rules.yml")],
                "scrape_configs": [
                    {
                        "job_name": "collector",
                        "honor_labels": True,  # those of the resource, as with OTLP
                        "static_configs": [{"targets": [address]}],
                    }
                ],
            }
            (tmp_path / "prometheus.yml").write_text(json.dumps(config))
            with configured_prometheus(binary, tmp_path, tmp_path / "prometheus.yml") as server:
                run_script(receiver)
                page.content = exposition(receiver.exports[-1])
                promised = 'apscheduler_job:promised_run_timestamp_seconds{job="script"} > 0'
                wait_for_answer(lambda: server.query(promised))
                page.content = None
                for alert in ("APSchedulerMissedRun", "APSchedulerSchedulerDown"):
                    firing = f'ALERTS{{alertstate="firing",alertname="{alert}",job="script"}}'
                    [(labels, _)] = wait_for_answer(lambda of=firing: server.query(of))  # type: ignore[misc]
                    assert labels.get("job_id", "nightly") == "nightly"
