"""
A tracer whose spans have given ids: those of a span that another process could not export.
"""

from __future__ import annotations

import copy
from typing import Any

from opentelemetry import trace

from apscheduler_telemetry.core.model import SpanIds


def with_given_span_ids(tracer: trace.Tracer, span_ids: SpanIds) -> trace.Tracer:
    """
    Return a tracer whose spans have these ids.

    OpenTelemetry has no function for this. A tracer of its SDK has the public attribute
    `id_generator`; with another SDK, the span has ids of its own.
    """
    if not hasattr(tracer, "id_generator"):
        return tracer
    with_ids = copy.copy(tracer)
    with_ids.id_generator = _GivenIdGenerator(tracer.id_generator, span_ids)
    return with_ids


class _GivenIdGenerator:
    """An `opentelemetry.sdk.trace.id_generator.IdGenerator` that returns the ids it was given."""

    def __init__(self, original: Any, span_ids: SpanIds) -> None:
        self._original = original
        self._span_ids = span_ids

    def generate_trace_id(self) -> int:
        return self._span_ids.trace_id

    def generate_span_id(self) -> int:
        return self._span_ids.span_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)  # as of `is_trace_id_random`, which newer SDKs call
