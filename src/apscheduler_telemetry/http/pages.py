"""
The pages ``/metrics``, ``/health`` and ``/runs``.
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

RunListGetter = Callable[[str | None, int, int | None], Mapping[str, object]]
"""
Returns the latest runs and where the next ones begin.

The arguments are the value of the ``job_id`` label, or None for all jobs; how many runs to return
at most; and the number before which they begin, or None for the latest.
"""
DEFAULT_LISTED_RUNS = 100
MAX_LISTED_RUNS = 1_000
"""Runs in one response, in about 400 kB."""
MAX_NUMBER_DIGITS = 18
"""Of a parameter."""


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
        sample_names: the values of ``name[]`` as a JSON list, sorted; an empty list for all.
            Thousands of short texts would take five times as much memory while a request waits.
    """

    encode: Encoder = field(compare=False)
    content_type: str
    is_gzipped: bool
    sample_names: str


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
            sample_names=json.dumps(sorted(set(names))),
        )

    def render(self, variant: MetricsVariant) -> Response:
        """Collect and encode the metrics."""
        chunks = self._encode_metrics(variant.encode, json.loads(variant.sample_names))
        content_encoding = (("Content-Encoding", "gzip"),) if variant.is_gzipped else ()
        if variant.is_gzipped:
            chunks = [join_and_gzip(chunks)]
        chunks = list(split_large_chunks(chunks))
        return Response(HTTPStatus.OK, chunks, variant.content_type, content_encoding)

    def _encode_metrics(self, encode: Encoder, names: Sequence[str]) -> Sequence[bytes]:
        if self._expose_from_cache is not None:
            return self._expose_from_cache(encode, names)
        registry = self._registry
        return [encode(registry.restricted_registry(names) if names else registry)]

    def render_error(self) -> Response:
        """Return a plain 500."""
        return INTERNAL_ERROR_RESPONSE


def split_large_chunks(chunks: Sequence[bytes]) -> Iterator[bytes]:
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
        status = HTTPStatus.OK if is_healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return _json_response(status, report)


class RunsPage:
    """
    ``/runs``: the latest runs as JSON.

    ``job_id`` selects a job, ``limit`` says how many runs to return, and ``before`` which number
    they come before.

    Args:
        get_run_list: returns the runs.
    """

    def __init__(self, get_run_list: RunListGetter) -> None:
        self._get_run_list = get_run_list

    def choose_variant(self, request: Request) -> str:
        """Return the parameters as they came, as `render` can respond that they are wrong."""
        return request.query

    def render(self, variant: str) -> Response:
        """Return the runs that are asked for, or what is wrong with the parameters."""
        parameters = parse_qs(variant, keep_blank_values=True)
        try:
            _reject_unknown_parameters(parameters)
            limit = _parse_number(parameters, "limit", 1, MAX_LISTED_RUNS)
            before = _parse_number(parameters, "before", 0, None)
        except _ParameterError as error:
            return _json_response(HTTPStatus.BAD_REQUEST, {"error": str(error)})
        job_id = parameters["job_id"][-1] if "job_id" in parameters else None
        runs = self._get_run_list(job_id, DEFAULT_LISTED_RUNS if limit is None else limit, before)
        return _json_response(HTTPStatus.OK, runs)

    def render_error(self) -> Response:
        """Return an error as JSON."""
        return _json_response(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": INTERNAL_ERROR_MESSAGE})


class _ParameterError(Exception):
    """A parameter of a request is wrong; the message says what to send instead."""


def _reject_unknown_parameters(parameters: Mapping[str, Sequence[str]]) -> None:
    for name in parameters:
        if name not in {"job_id", "limit", "before"}:
            msg = f"There is no parameter {name[:100]!r}; there are job_id, limit and before."
            raise _ParameterError(msg)


def _parse_number(
    parameters: Mapping[str, Sequence[str]], name: str, minimum: int, maximum: int | None
) -> int | None:
    """Return the number that a parameter has; None if it is not there."""
    if name not in parameters:
        return None
    text = parameters[name][-1]
    # Not more digits than any of our numbers has: `int` takes long for thousands of them.
    if text.isascii() and text.isdecimal() and len(text) <= MAX_NUMBER_DIGITS:
        number = int(text)
        if number >= minimum and (maximum is None or number <= maximum):
            return number
    limits = f"{minimum} or more" if maximum is None else f"from {minimum} to {maximum:,}"
    msg = f"{name} must be a whole number, {limits}."
    raise _ParameterError(msg)


def _json_response(status: HTTPStatus, content: object) -> Response:
    body = f"{json.dumps(content, indent=2, default=str)}\n".encode()
    return Response(status, [body], "application/json")
