"""
Names of the environment variables that configure zero-code instrumentation.

``opentelemetry-instrument`` reads this module and makes an argument of each name:
``OTEL_PYTHON_APSCHEDULER_HTTP_PORT`` is ``--apscheduler_http_port``. ``docs/deployment.md`` lists
them for users.
"""

OTEL_PYTHON_APSCHEDULER_NAME = "OTEL_PYTHON_APSCHEDULER_NAME"
"""The name of the first scheduler, by default ``default``; later ones get ``-2``, ``-3``..."""

OTEL_PYTHON_APSCHEDULER_SINGLETON = "OTEL_PYTHON_APSCHEDULER_SINGLETON"
"""``true`` or ``false``: ``singleton=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_GRACE = "OTEL_PYTHON_APSCHEDULER_GRACE"
"""Seconds: ``grace`` of the `Expectations` of all jobs."""

OTEL_PYTHON_APSCHEDULER_MAX_DURATION = "OTEL_PYTHON_APSCHEDULER_MAX_DURATION"
"""Seconds: ``max_duration`` of the `Expectations` of all jobs."""

OTEL_PYTHON_APSCHEDULER_SEVERITY = "OTEL_PYTHON_APSCHEDULER_SEVERITY"
"""``critical``, ``warning`` or ``info``: ``severity`` of the `Expectations` of all jobs."""

OTEL_PYTHON_APSCHEDULER_OWNER = "OTEL_PYTHON_APSCHEDULER_OWNER"
"""A text: ``owner`` of the `Expectations` of all jobs."""

OTEL_PYTHON_APSCHEDULER_PROPAGATE_BAGGAGE = "OTEL_PYTHON_APSCHEDULER_PROPAGATE_BAGGAGE"
"""``true`` or ``false``: ``propagate_baggage=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_CONTEXT_STORE = "OTEL_PYTHON_APSCHEDULER_CONTEXT_STORE"
"""A path: ``context_store=`` of `instrument` is a `FileContextStore` with this file."""

OTEL_PYTHON_APSCHEDULER_JOURNAL = "OTEL_PYTHON_APSCHEDULER_JOURNAL"
"""A path: ``journal=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_HISTORY = "OTEL_PYTHON_APSCHEDULER_HISTORY"
"""A number of runs: ``history=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_CHECK_AT_START = "OTEL_PYTHON_APSCHEDULER_CHECK_AT_START"
"""``true`` or ``false``: ``check_at_start=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_RUN_LOG = "OTEL_PYTHON_APSCHEDULER_RUN_LOG"
"""``true`` or ``false``: ``run_log=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_RUN_EVENTS = "OTEL_PYTHON_APSCHEDULER_RUN_EVENTS"
"""``true`` or ``false``: whether ``logger_provider=`` of `instrument` is the global provider."""

OTEL_PYTHON_APSCHEDULER_CAPTURE_ARGUMENTS = "OTEL_PYTHON_APSCHEDULER_CAPTURE_ARGUMENTS"
"""``true`` or ``false``: ``capture_arguments=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_CAPTURE_RESULT = "OTEL_PYTHON_APSCHEDULER_CAPTURE_RESULT"
"""``true`` or ``false``: ``capture_result=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_CAPTURE_STACKTRACE = "OTEL_PYTHON_APSCHEDULER_CAPTURE_STACKTRACE"
"""``true`` or ``false``: ``capture_stacktrace=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_CAPTURE_MESSAGE = "OTEL_PYTHON_APSCHEDULER_CAPTURE_MESSAGE"
"""``true`` or ``false``: as ``capture_message=`` of `instrument`."""

OTEL_PYTHON_APSCHEDULER_HTTP_PORT = "OTEL_PYTHON_APSCHEDULER_HTTP_PORT"
"""The port of ``/metrics``, ``/health``, ``/runs`` and ``/livez``; by default not served."""

OTEL_PYTHON_APSCHEDULER_HTTP_HOST = "OTEL_PYTHON_APSCHEDULER_HTTP_HOST"
"""The address to bind for this port; by default 127.0.0.1."""

OTEL_PYTHON_APSCHEDULER_HTTP_BEARER_TOKEN_FILE = "OTEL_PYTHON_APSCHEDULER_HTTP_BEARER_TOKEN_FILE"  # noqa: S105  # a name
"""A path: as ``bearer_token_file=`` of `Telemetry.start_http_server`."""

OTEL_PYTHON_APSCHEDULER_HTTP_CERTFILE = "OTEL_PYTHON_APSCHEDULER_HTTP_CERTFILE"
"""A path: as ``certfile=`` of `Telemetry.start_http_server`."""

OTEL_PYTHON_APSCHEDULER_HTTP_KEYFILE = "OTEL_PYTHON_APSCHEDULER_HTTP_KEYFILE"
"""A path: as ``keyfile=`` of `Telemetry.start_http_server`."""

OTEL_PYTHON_APSCHEDULER_HTTP_ALLOWED_HOSTS = "OTEL_PYTHON_APSCHEDULER_HTTP_ALLOWED_HOSTS"
"""Names, separated by commas: as ``allowed_hosts=`` of `Telemetry.start_http_server`."""
