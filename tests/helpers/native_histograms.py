"""
A process whose `/metrics` has native histograms, in Prometheus' protobuf format.

prometheus_client can send neither. The few messages that are needed are encoded here by hand; their
fields are those of `io.prometheus.client` in `metrics.proto` of prometheus/client_model.
"""

from __future__ import annotations

import contextlib
import http.server
import math
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

CONTENT_TYPE = (
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
)
GAUGE, HISTOGRAM = 1, 4
"""Values of the enumeration MetricType. A counter is sent as a gauge, which is stored alike."""
SCHEMA = 3
"""Each bucket is 2 ** (1 / 8) times as wide as the one before, so quantiles are 9 % off at most."""


@dataclass(frozen=True)
class Series:
    """
    A series that a scrape finds.

    Attributes:
        name: its metric.
        labels: its labels.
        value: of a gauge, or the seconds that each observation of a histogram has.
        is_histogram: whether it is a native histogram, which has one more observation each scrape.
    """

    name: str
    labels: Mapping[str, str]
    value: float
    is_histogram: bool = False


def bucket_bounds(value: float) -> tuple[float, float]:
    """Return the bounds of a value's bucket, which contains the second but not the first."""
    index = _bucket_index(value)
    return 2 ** ((index - 1) / (1 << SCHEMA)), 2 ** (index / (1 << SCHEMA))


@contextlib.contextmanager
def serving(series: list[Series]) -> Iterator[int]:
    """Answer scrapes, and yield the port."""
    scrapes = 0

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal scrapes
            scrapes += 1
            body = b"".join(_delimited(_family(one, scrapes)) for one in series)
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _bucket_index(value: float) -> int:
    return math.ceil((1 << SCHEMA) * math.log2(value))


def _family(one: Series, count: int) -> bytes:
    metric = b"".join(
        _message(1, _message(1, name.encode()) + _message(2, text.encode()))
        for name, text in one.labels.items()
    )
    if one.is_histogram:
        metric += _message(7, _histogram(one.value, count))
    else:
        metric += _message(2, _double(1, one.value))
    kind = HISTOGRAM if one.is_histogram else GAUGE
    return _message(1, one.name.encode()) + _integer(3, kind) + _message(4, metric)


def _histogram(value: float, count: int) -> bytes:
    """Return a histogram of equal values: one bucket, which is a span of length 1."""
    span = _integer(1, _zigzag(_bucket_index(value))) + _integer(2, 1)
    return (
        _integer(1, count)
        + _double(2, count * value)
        + _integer(5, _zigzag(SCHEMA))
        + _double(6, 1e-9)  # the zero threshold; not 0, which would make it a classic histogram
        + _message(12, span)
        + _message(13, _varint(_zigzag(count)))
    )


def _zigzag(number: int) -> int:
    return number << 1 if number >= 0 else (-number << 1) - 1


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def _integer(field: int, number: int) -> bytes:
    return _varint(field << 3) + _varint(number)


def _double(field: int, number: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", number)


def _message(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _delimited(content)


def _delimited(content: bytes) -> bytes:
    return _varint(len(content)) + content
