"""
An OTLP receiver for tests: gRPC and HTTP/protobuf on free loopback ports.

It uses the messages of the protocol (`opentelemetry-proto`) and nothing of the SDK, so that it gets
what any collector would get. pytest-httpserver could replace only the HTTP half, with the drawbacks
that are named at `alertmanager_server.Receiver`.
"""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar, TypeVar

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as traces

T = TypeVar("T")

_SERVICES: Mapping[str, tuple[Any, Any, str]] = {
    "trace.v1.TraceService": (
        traces.ExportTraceServiceRequest,
        traces.ExportTraceServiceResponse,
        "/v1/traces",
    ),
    "logs.v1.LogsService": (
        logs.ExportLogsServiceRequest,
        logs.ExportLogsServiceResponse,
        "/v1/logs",
    ),
    "metrics.v1.MetricsService": (
        metrics.ExportMetricsServiceRequest,
        metrics.ExportMetricsServiceResponse,
        "/v1/metrics",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Received:
    """
    A span, log record or metric, with the scope and the resource of its request.

    Attributes:
        data: the message of the protocol.
        attributes: its attributes; empty for a metric, whose points have their own.
        scope: what instrumentation made it.
        schema_url: the schema of that instrumentation.
        resource: attributes of the process that made it.
    """

    data: Any
    attributes: Mapping[str, Any]
    scope: Any
    schema_url: str
    resource: Mapping[str, Any]


class OtlpReceiver:
    """Receives OTLP until it is closed; a context manager."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._requests: list[Any] = []
        self._grpc = grpc.server(ThreadPoolExecutor(4, "otlp-grpc"))
        for name, (request, response, _) in _SERVICES.items():
            self._grpc.add_generic_rpc_handlers((self._service(name, request, response),))
        self._grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        self._http = _HttpServer(("127.0.0.1", 0), _HttpHandler)
        self._http.receiver = self
        self._http_thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._http_thread.start()

    def __enter__(self) -> OtlpReceiver:  # noqa: PYI034  # typing.Self is of Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop both servers and release their ports."""
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()
        self._http_thread.join()

    @property
    def grpc_endpoint(self) -> str:
        """The endpoint for an OTLP/gRPC exporter."""
        return f"http://127.0.0.1:{self._grpc_port}"

    @property
    def http_endpoint(self) -> str:
        """The base of the endpoint for an OTLP/HTTP exporter, which adds ``/v1/traces``."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    @property
    def spans(self) -> list[Received]:
        """All spans so far, in the order of arrival."""
        return list(self._received("resource_spans", "scope_spans", "spans"))

    @property
    def logs(self) -> list[Received]:
        """All log records so far, in the order of arrival."""
        return list(self._received("resource_logs", "scope_logs", "log_records"))

    @property
    def metrics(self) -> list[Received]:
        """All metrics so far, in the order of arrival."""
        return list(self._received("resource_metrics", "scope_metrics", "metrics"))

    @property
    def exports(self) -> list[Any]:
        """All complete requests with metrics so far, in the order of arrival."""
        with self._arrived:
            return [request for request in self._requests if hasattr(request, "resource_metrics")]

    def span(self, name: str) -> Received:
        """Return the only span with a name so far."""
        (span,) = (span for span in self.spans if span.data.name == name)
        return span

    def wait_for(self, predicate: Callable[[OtlpReceiver], T], timeout: float = 30.0) -> T:
        """
        Wait until `predicate` of this receiver is true, looking whenever something arrives.

        Args:
            predicate: the condition; it gets this receiver.
            timeout: seconds.

        Returns:
            What the predicate returned.

        Raises:
            AssertionError: it was not true in time; the message shows what has arrived.
        """
        deadline = time.monotonic() + timeout
        with self._arrived:
            while not (result := predicate(self)):
                if not self._arrived.wait(deadline - time.monotonic()):
                    message = f"not within {timeout} s; received so far: {self._requests}"
                    raise AssertionError(message)
            return result

    def wait_for_spans(self, *names: str, timeout: float = 30.0) -> None:
        """Wait until there is a span with each of the names."""
        self.wait_for(lambda _: set(names) <= {s.data.name for s in self.spans}, timeout)

    def clear(self) -> None:
        """Drop what has arrived so far."""
        with self._arrived:
            self._requests.clear()

    def accept(self, request: Any) -> None:
        """Keep a request."""
        with self._arrived:
            self._requests.append(request)
            self._arrived.notify_all()

    def _service(self, name: str, request: Any, response: Any) -> grpc.GenericRpcHandler:
        def export(message: Any, _: grpc.ServicerContext) -> Any:
            self.accept(message)
            return response()

        method = grpc.unary_unary_rpc_method_handler(
            export,
            request_deserializer=request.FromString,
            response_serializer=response.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(
            f"opentelemetry.proto.collector.{name}", {"Export": method}
        )

    def _received(self, resources: str, scopes: str, items: str) -> Iterator[Received]:
        with self._arrived:
            requests = list(self._requests)
        for request in requests:
            for resource in getattr(request, resources, ()):
                for scope in getattr(resource, scopes):
                    for item in getattr(scope, items):
                        yield Received(
                            data=item,
                            attributes=plain(getattr(item, "attributes", ())),
                            scope=scope.scope,
                            schema_url=scope.schema_url,
                            resource=plain(resource.resource.attributes),
                        )


def plain(attributes: Iterable[Any]) -> dict[str, Any]:
    """Return the attributes of the protocol, of scalar types only, as a dict."""
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in attributes}


class _HttpServer(ThreadingHTTPServer):
    receiver: OtlpReceiver


class _HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    messages: ClassVar = {path: (request, reply) for request, reply, path in _SERVICES.values()}
    server: _HttpServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request, reply = self.messages[self.path]
        self.server.receiver.accept(request.FromString(body))
        answer = reply().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Keep the test's output to the test."""
