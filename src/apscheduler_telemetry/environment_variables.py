"""
Names of the environment variables that configure zero-code instrumentation.

``opentelemetry-instrument`` reads this module, so that each is an argument of it as well:
``OTEL_PYTHON_APSCHEDULER_HTTP_PORT`` is ``--apscheduler_http_port``.
"""

OTEL_PYTHON_APSCHEDULER_NAME = "OTEL_PYTHON_APSCHEDULER_NAME"
"""The first scheduler's name; the others get ``-2``, ``-3`` and so on. By default ``default``."""

OTEL_PYTHON_APSCHEDULER_SINGLETON = "OTEL_PYTHON_APSCHEDULER_SINGLETON"
"""``true`` or ``false``: as ``singleton=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_GRACE = "OTEL_PYTHON_APSCHEDULER_GRACE"
"""Seconds: as ``grace=`` of `instrument`, of all jobs."""

OTEL_PYTHON_APSCHEDULER_MAX_DURATION = "OTEL_PYTHON_APSCHEDULER_MAX_DURATION"
"""Seconds: as ``max_duration=`` of `instrument`, of all jobs."""

OTEL_PYTHON_APSCHEDULER_SEVERITY = "OTEL_PYTHON_APSCHEDULER_SEVERITY"
"""``critical``, ``warning`` or ``info``: as ``severity=`` of `instrument`, of all jobs."""

OTEL_PYTHON_APSCHEDULER_OWNER = "OTEL_PYTHON_APSCHEDULER_OWNER"
"""As ``owner=`` of `instrument`, of all jobs."""

OTEL_PYTHON_APSCHEDULER_PROPAGATE_BAGGAGE = "OTEL_PYTHON_APSCHEDULER_PROPAGATE_BAGGAGE"
"""``true`` or ``false``: as ``propagate_baggage=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_CONTEXT_STORE = "OTEL_PYTHON_APSCHEDULER_CONTEXT_STORE"
"""A path: ``context_store=`` of `instrument` is a `FileContextStore` there."""

OTEL_PYTHON_APSCHEDULER_CAPTURE_ARGUMENTS = "OTEL_PYTHON_APSCHEDULER_CAPTURE_ARGUMENTS"
"""``true`` or ``false``: as ``capture_arguments=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_CAPTURE_RESULT = "OTEL_PYTHON_APSCHEDULER_CAPTURE_RESULT"
"""``true`` or ``false``: as ``capture_result=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_CAPTURE_STACKTRACE = "OTEL_PYTHON_APSCHEDULER_CAPTURE_STACKTRACE"
"""``true`` or ``false``: as ``capture_stacktrace=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_HTTP_PORT = "OTEL_PYTHON_APSCHEDULER_HTTP_PORT"
"""Where ``/metrics`` and ``/health`` of the process are served; by default nowhere."""

OTEL_PYTHON_APSCHEDULER_HTTP_HOST = "OTEL_PYTHON_APSCHEDULER_HTTP_HOST"
"""The address to bind for that; by default 127.0.0.1."""
