"""
An application with many faults, whose page shows its metrics both as scraped and as sent by OTLP.

Each scrape of ``/metrics`` has what the registry shows, with ``job="shop"``, and what the OTLP
exporter of the SDK sends to a real receiver meanwhile, translated, with ``job="shop-otlp"``. Where
the two differ, the response has the differences and status 500. ``/start`` and ``/stop`` start and
stop a second application in the same process. Prints its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter as Grpc
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter as Http
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.openmetrics.exposition import generate_latest

from apscheduler_telemetry import Expectations, Telemetry, instrument
from tests.applications import troubled
from tests.helpers.otlp_receiver import OtlpReceiver
from tests.helpers.otlp_to_prometheus import differences, series, translate

WAIT_TIMEOUT = 30.0
"""Seconds in which the application must hold still for the milliseconds of one collection."""


class Exports:
    """A registry and a meter provider for an application, and the comparison of both."""

    def __init__(self, receiver: OtlpReceiver, instance: str) -> None:
        self._receiver = receiver
        self._target = {"job": "shop", "instance": instance}
        self._service = {"service.name": "shop-otlp", "service.instance.id": instance}
        self.registry = CollectorRegistry()
        # One of either protocol, so that both are tried.
        exporter: Any = (
            Grpc(endpoint=receiver.grpc_endpoint, insecure=True)
            if instance == "one"
            else Http(endpoint=f"{receiver.http_endpoint}/v1/metrics")
        )
        reader = PeriodicExportingMetricReader(exporter, export_interval_millis=math.inf)
        self.provider = MeterProvider(
            [reader], resource=Resource.create(self._service), shutdown_on_exit=False
        )
        self._readings: list[list[Metric]] = []
        self._locks: list[Any] = []
        self._still: float | None = None
        self.mark("before")

    def hold(self, *telemetry: Telemetry) -> None:
        """
        Freeze the metrics state of these handles, and its clock, while it is read.

        Otherwise the state of a busy application would change during a collection.
        """
        self._locks = [threading.RLock() for _ in telemetry]
        for lock, handle in zip(self._locks, telemetry, strict=True):
            recorder: Any = handle._exported_scheduler.recorder
            recorder._lock = lock
            recorder._clock = self._clock
            for name in ("run_submitted", "job_advanced"):  # without a lock
                setattr(recorder, name, locked(lock, getattr(recorder, name)))
        self.mark("after")

    def _clock(self) -> float:
        return time.time() if self._still is None else self._still

    def mark(self, name: str) -> None:
        """Read the registry when a collection comes to this instrument."""

        def read(_: object) -> list[Any]:
            self._readings.append(list(self.registry.collect()))
            return []

        self.provider.get_meter("test").create_observable_gauge(name, callbacks=[read])

    def both(self) -> list[Metric]:
        """Return the series of both exports, which must be equal for one moment."""
        deadline = time.monotonic() + WAIT_TIMEOUT
        while True:
            self._readings.clear()
            self._receiver.clear()
            with contextlib.ExitStack() as held:
                for lock in self._locks:
                    held.enter_context(lock)
                self._still = time.time()
                self.provider.force_flush()
            self._still = None
            before, after = self._readings
            sent = self._receiver.exports  # none if the receiver was too busy
            translated = translate(sent[0]) if sent else []
            wrong = differences(before, translated)
            if series(before) == series(after) and not wrong:
                for sample in (sample for family in before for sample in family.samples):
                    sample.labels.update(self._target)
                return [*before, *translated]
            if time.monotonic() > deadline:
                raise AssertionError("\n".join(wrong))


def locked(lock: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that waits for a lock."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with lock:
            return method(*args, **kwargs)

    return call


class Page:
    """The page that is scraped: the application, and a second one while that runs."""

    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver
        self._lock = threading.Lock()
        self.application = Exports(receiver, "one")
        self._second: list[tuple[Exports, BackgroundScheduler]] = []

    def metrics(self) -> bytes:
        """Return the exposition."""
        families: dict[str, Metric] = {}
        with self._lock:
            for exports in (self.application, *(exports for exports, _ in self._second)):
                for family in exports.both():
                    if family.name in families:
                        families[family.name].samples += family.samples
                    else:
                        families[family.name] = family
        shown = CollectorRegistry()
        shown.collect = families.values  # type: ignore[method-assign]
        exposition: bytes = generate_latest(shown)  # type: ignore[no-untyped-call]
        return exposition

    def start(self) -> bytes:
        """Start the second application, which has a next run."""
        exports = Exports(self._receiver, "two")
        scheduler = BackgroundScheduler()
        telemetry = instrument(
            scheduler,
            name="doomed",
            expect=Expectations(grace=1),
            registry=exports.registry,
            meter_provider=exports.provider,
        )
        scheduler.start()
        scheduler.add_job(troubled.ok, "interval", id="archive", seconds=2.5, args=[0])
        exports.hold(telemetry)
        with self._lock:
            self._second = [(exports, scheduler)]
        return b"started"

    def stop(self) -> bytes:
        """Stop the second application, whose series disappear."""
        with self._lock:
            [(_, scheduler)] = self._second
            self._second = []
        scheduler.shutdown(wait=False)
        return b"stopped"


class Handler(BaseHTTPRequestHandler):
    page: Page

    def do_GET(self) -> None:
        pages = {"/metrics": self.page.metrics, "/start": self.page.start, "/stop": self.page.stop}
        try:
            status, body = 200, pages[self.path]()
        except Exception as error:  # noqa: BLE001  # sent to the client
            status, body = 500, f"{type(error).__name__}: {error}".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/openmetrics-text; version=1.0.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


async def main() -> None:
    """Run until SIGTERM."""
    with OtlpReceiver() as receiver:
        Handler.page = page = Page(receiver)
        application = troubled.Troubled(
            0.01,
            "ShopError",
            registry=page.application.registry,
            meter_provider=page.application.provider,
            tracer_provider=troubled.provider(),
        )
        page.application.hold(*application.telemetry)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        print(server.server_port, flush=True)  # noqa: T201  # for the test
        await application.run(stop)
        server.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
