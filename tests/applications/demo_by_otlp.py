"""
The application of the demo, with spans and metrics by OTLP, and one job that a request adds.

Usage: demo_by_otlp.py DIRECTORY PORT grpc|http ENDPOINT

Runs until SIGTERM. When all runs have ended, and before the SDK sends the metrics, what the page
of metrics shows is written to ``metrics.txt`` in the directory.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as GrpcMetrics
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcSpans
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as HttpMetrics
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpSpans
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import REGISTRY
from prometheus_client.openmetrics.exposition import generate_latest

from apscheduler_telemetry import instrument

DEMO = Path(__file__).parents[2] / "examples" / "demo"


def providers(protocol: str, endpoint: str) -> tuple[TracerProvider, MeterProvider]:
    """Return providers that send spans and metrics to an endpoint, as service `protocol`."""
    if protocol == "grpc":
        spans: Any = GrpcSpans(endpoint=endpoint, insecure=True)
        metrics: Any = GrpcMetrics(endpoint=endpoint, insecure=True)
    else:
        spans = HttpSpans(endpoint=f"{endpoint}/v1/traces")
        metrics = HttpMetrics(endpoint=f"{endpoint}/v1/metrics")
    resource = Resource.create({"service.name": protocol, "service.instance.id": "one"})
    tracer_provider = TracerProvider(resource=resource)
    tracer_provider.add_span_processor(BatchSpanProcessor(spans))
    reader = PeriodicExportingMetricReader(metrics)
    return tracer_provider, MeterProvider([reader], resource=resource)


def main(directory: Path, port: int, protocol: str, endpoint: str) -> None:
    """Run the demo to its end, and send what was not sent yet."""
    tracers, meters = providers(protocol, endpoint)
    tracer = tracers.get_tracer("shop")

    def look_up() -> None:
        with tracer.start_as_current_span("query"):
            pass

    def instrumented(scheduler: Any, **options: Any) -> Any:
        telemetry = instrument(scheduler, tracer_provider=tracers, meter_provider=meters, **options)
        if options["name"] == "asyncio":
            with tracer.start_as_current_span("request"):
                scheduler.add_job(look_up, "interval", id="look-up", seconds=1)
        return telemetry

    sys.path.insert(0, str(DEMO))
    demo: Any = importlib.import_module("app")
    demo.instrument = instrumented
    asyncio.run(demo.main(directory, port))
    (directory / "metrics.txt").write_bytes(generate_latest(REGISTRY))  # type: ignore[no-untyped-call]
    tracer.start_span("end").end()  # the last of all spans
    tracers.shutdown()
    meters.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
