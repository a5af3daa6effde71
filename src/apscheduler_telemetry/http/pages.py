"""
The pages ``/metrics`` and ``/health``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry

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
    gzip_chunks,
)

MetricsExposer = Callable[[Encoder, Sequence[str]], Sequence[bytes]]
"""
Returns what an encoder makes of a registry, in chunks.

The second argument names the samples to return, as for `CollectorRegistry.restricted_registry`; all
if it is empty.
"""


class Page(Protocol):
    """A page that is rendered anew for every request."""

    def render(self, request: Request) -> Response:
        """Return the page; any exception becomes `render_error`."""

    def render_error(self) -> Response:
        """Return the response to send if `render` failed or took too long."""


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

    def render(self, request: Request) -> Response:
        """Collect and encode the metrics, only those that ``name[]`` names if it is given."""
        encode, content_type = choose_text_format(request.accept)
        chunks = self._encode_metrics(encode, parse_qs(request.query).get("name[]", []))
        if accepts_gzip(request.accept_encoding):
            content_encoding = (("Content-Encoding", "gzip"),)
            return Response(HTTPStatus.OK, [gzip_chunks(chunks)], content_type, content_encoding)
        return Response(HTTPStatus.OK, chunks, content_type)

    def _encode_metrics(self, encode: Encoder, names: Sequence[str]) -> Sequence[bytes]:
        if self._expose_from_cache is not None:
            return self._expose_from_cache(encode, names)
        registry = self._registry
        return [encode(registry.restricted_registry(names) if names else registry)]

    def render_error(self) -> Response:
        """Return a plain 500."""
        return INTERNAL_ERROR_RESPONSE


class HealthPage:
    """
    ``/health``: a report as JSON, with status 200 or 503.

    Args:
        get_report: returns the report; its ``status`` is ``healthy`` or ``unhealthy``.
    """

    def __init__(self, get_report: Callable[[], Mapping[str, object]]) -> None:
        self._get_report = get_report

    def render(self, _request: Request) -> Response:
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
