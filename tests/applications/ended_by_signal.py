"""
An application that ends: ``python -m tests.applications.ended_by_signal SCHEDULER WAIT SIGNAL``.

Its pool has one thread. It prints ``running`` when the first of three runs has started, and is then
sent the signal, whose handler shuts the scheduler down. At its end it prints as JSON what was
counted and how many spans the exporter got.
"""

import json
import logging
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core.model import Outcome
from tests.helpers.metrics import job_states

name, wait, number = sys.argv[1], sys.argv[2] == "wait", getattr(signal, sys.argv[3])
spans: list[Any] = []


class Exporter(SpanExporter):
    """Keeps spans, and prints the report at its shutdown, which comes after the end of all runs."""

    def export(self, batch: Sequence[Any]) -> SpanExportResult:
        spans.extend(batch)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        states = job_states(telemetry)
        report = {
            "due": sum(job.due_count for job in states),
            "success": sum(job.outcomes[Outcome.SUCCESS] for job in states),
            "left": [
                (job.running, job.queued, job.due_count - sum(job.outcomes.values()))
                for job in states
            ],
            "spans": len(spans),
        }
        sys.stdout.write(json.dumps(report) + "\n")
        sys.stdout.flush()


provider = TracerProvider()  # which registers its own end
provider.add_span_processor(BatchSpanProcessor(Exporter()))
logging.basicConfig()
kind: Any = {"blocking": BlockingScheduler, "background": BackgroundScheduler}[name]
scheduler = kind(timezone=timezone.utc, executors={"default": ThreadPoolExecutor(1)})
telemetry = instrument(scheduler, registry=CollectorRegistry(), tracer_provider=provider)
running = threading.Event()
signalled = threading.Event()


def work() -> None:
    """Run until the signal has come, and for a moment longer, in which the scheduler shuts down."""
    running.set()
    signalled.wait()
    time.sleep(0.2)


def say() -> None:
    """Print ``running`` when one run has started and the two others are queued."""
    running.wait()
    while sum(job.queued for job in job_states(telemetry)) < 2:
        time.sleep(0.01)
    sys.stdout.write("running\n")
    sys.stdout.flush()


def stop(*_: Any) -> None:
    """Handle the signal: shut the scheduler down."""
    signal.signal(number, signal.SIG_IGN)
    signalled.set()
    scheduler.shutdown(wait=wait)
    if name == "background":
        ended.set()


ended = threading.Event()
signal.signal(number, stop)
now = datetime.now(timezone.utc)
for index in range(3):
    scheduler.add_job(
        work, "interval", hours=1, id=str(index), next_run_time=now, misfire_grace_time=None
    )
threading.Thread(target=say, daemon=True).start()
scheduler.start()
if name == "background":
    while not ended.wait(0.05):
        pass
