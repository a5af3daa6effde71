"""
The pages ``/metrics`` and ``/health``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry

from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.messages import (
    INTERNAL_ERROR_MESSAGE,
    INTERNAL_ERROR_RESPONSE,
    Request,
    Response,
)
from apscheduler_telemetry.http.negotiation import (
    Encoder,
    accepts_gzip,
    choose_text_format,
    join_and_gzip,
)

MetricsExposer = Callable[[Encoder, Sequence[str]], Sequence[bytes]]
"""
Returns what an encoder makes of a registry, in chunks.

The second argument names the samples to return, as for `CollectorRegistry.restricted_registry`; all
if it is empty.
"""


class Page(Protocol):
    """A page that is rendered anew, unless several clients request it at the same time."""

    def choose_variant(self, request: Request) -> Hashable:
        """Return what `render` needs of a request; equal for requests with equal responses."""

    def render(self, variant: Any) -> Response:
        """Return the page; any exception becomes `render_error`."""

    def render_error(self) -> Response:
        """Return the response to send if `render` failed or took too long."""


@dataclass(frozen=True, kw_only=True)
class MetricsVariant:
    """
    What is requested of ``/metrics``.

    Attributes:
        encode: the encoder; the one that belongs to `content_type`.
        content_type: the text format.
        is_gzipped: whether to compress the body.
        names: the values of ``name[]`` as a JSON list, sorted; an empty list for all metrics.
            Thousands of short texts would take five times as much memory while a request waits.
    """

    encode: Encoder = field(compare=False)
    content_type: str
    is_gzipped: bool
    names: str


class MetricsPage:
    """
    ``/metrics``: the metrics of a registry, in the text format that the client prefers.

    Args:
        registry: holds the collectors.
        expose_from_cache: a faster way to encode `registry`, if there is one.
    """

    def __init__(
        self, registry: CollectorRegistry, expose_from_cache: MetricsExposer | None = None
    ) -> None:
        self._registry = registry
        self._expose_from_cache = expose_from_cache

    def choose_variant(self, request: Request) -> MetricsVariant:
        """Return the format that the client prefers, and what ``name[]`` names if it is given."""
        encode, content_type = choose_text_format(request.accept)
        names = parse_qs(request.query).get("name[]", [])
        return MetricsVariant(
            encode=encode,
            content_type=content_type,
            is_gzipped=accepts_gzip(request.accept_encoding),
            names=json.dumps(sorted(set(names))),
        )

    def render(self, variant: MetricsVariant) -> Response:
        """Collect and encode the metrics."""
        chunks = self._encode_metrics(variant.encode, json.loads(variant.names))
        content_encoding = (("Content-Encoding", "gzip"),) if variant.is_gzipped else ()
        if variant.is_gzipped:
            chunks = [join_and_gzip(chunks)]
        chunks = list(_split_large_chunks(chunks))
        return Response(HTTPStatus.OK, chunks, variant.content_type, content_encoding)

    def _encode_metrics(self, encode: Encoder, names: Sequence[str]) -> Sequence[bytes]:
        if self._expose_from_cache is not None:
            return self._expose_from_cache(encode, names)
        registry = self._registry
        return [encode(registry.restricted_registry(names) if names else registry)]

    def render_error(self) -> Response:
        """Return a plain 500."""
        return INTERNAL_ERROR_RESPONSE


def _split_large_chunks(chunks: Sequence[bytes]) -> Iterator[bytes]:
    """
    Split chunks into parts of at most `limits.MAX_CHUNK_BYTES`.

    So a response is only shared while clients still have to read much of it, and a slow client
    holds only one part of a response that was dropped.
    """
    size = limits.MAX_CHUNK_BYTES
    for chunk in chunks:
        if len(chunk) <= size:
            yield chunk
        else:
            yield from (chunk[start : start + size] for start in range(0, len(chunk), size))


class HealthPage:
    """
    ``/health``: a report as JSON, with status 200 or 503.

    Args:
        get_report: returns the report; its ``status`` is ``healthy`` or ``unhealthy``.
    """

    def __init__(self, get_report: Callable[[], Mapping[str, object]]) -> None:
        self._get_report = get_report

    def choose_variant(self, _request: Request) -> None:
        """Return nothing, as all requests get the same report."""

    def render(self, _variant: None) -> Response:
        """Return the current report."""
        return self._to_response(self._get_report())

    def render_error(self) -> Response:
        """Return an unhealthy report."""
        reason = {"code": "health_failed", "message": INTERNAL_ERROR_MESSAGE}
        return self._to_response({"status": "unhealthy", "reasons": [reason]})

    def _to_response(self, report: Mapping[str, object]) -> Response:
        is_healthy = report["status"] == "healthy"
        return Response(
            HTTPStatus.OK if is_healthy else HTTPStatus.SERVICE_UNAVAILABLE,
            [f"{json.dumps(report, indent=2, default=str)}\n".encode()],
            "application/json",
        )
