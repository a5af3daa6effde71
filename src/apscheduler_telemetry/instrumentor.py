"""
Zero code: ``opentelemetry-instrument`` loads this module to instrument every scheduler.

    opentelemetry-instrument python app.py

`APSchedulerInstrumentor` is the entry point ``apscheduler``, and can also be called from code. It
instruments a scheduler when the scheduler starts: by then its job stores and executors are usually
added, and an application that calls `instrument` itself has usually done so. The variables of
`environment_variables` configure it.
"""

from __future__ import annotations

import inspect
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

from opentelemetry._logs import get_logger_provider
from opentelemetry.metrics import get_meter_provider
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import environment_variables as names
from apscheduler_telemetry.adapters.registry import AUTOMATIC_INSTRUMENTATIONS
from apscheduler_telemetry.api import (
    Telemetry,
    get_handle,
    instrument,
    instrument_provisionally,
    is_current,
)
from apscheduler_telemetry.context_store import FileContextStore
from apscheduler_telemetry.core.expectations import Expectations
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children
from apscheduler_telemetry.core.model import qualified_class_name, shorten_name
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.errors import ArgumentTypeError, DuplicateNameError
from apscheduler_telemetry.export import health, run_list
from apscheduler_telemetry.export.multiprocess.directory import find_multiprocess_directory
from apscheduler_telemetry.export.multiprocess.registry import MultiprocessRegistry
from apscheduler_telemetry.export.multiprocess.writer import (
    report_skipped_file,
    write_all_snapshots,
)
from apscheduler_telemetry.export.prometheus import Encoder, find_exporter
from apscheduler_telemetry.export.status import StatusReporter
from apscheduler_telemetry.http import HTTPEndpoints, HTTPServer
from apscheduler_telemetry.http.pages import MetricsExposer

try:
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
except ModuleNotFoundError as error:
    _hint = (
        "apscheduler_telemetry.instrumentor needs opentelemetry-instrumentation, which is not "
        "installed: pip install 'apscheduler-telemetry[instrumentation]'"
    )
    raise ModuleNotFoundError(_hint, name=error.name) from error

logger = logging.getLogger(__name__)


_SERVER_OPTION_NAMES = {
    "http_bearer_token_file": "bearer_token_file",
    "http_certfile": "certfile",
    "http_keyfile": "keyfile",
    "http_allowed_hosts": "allowed_hosts",
}
"""Options that are passed on to `Telemetry.start_http_server`, with their names there."""


def _parse_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _parse_bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


_OPTIONS_BY_VARIABLE: Mapping[str, tuple[str, Callable[[str], Any], str]] = {
    names.OTEL_PYTHON_APSCHEDULER_NAME: ("name", str, "a text"),
    names.OTEL_PYTHON_APSCHEDULER_SINGLETON: ("singleton", _parse_bool, "true or false"),
    names.OTEL_PYTHON_APSCHEDULER_PROPAGATE_BAGGAGE: (
        "propagate_baggage",
        _parse_bool,
        "true or false",
    ),
    names.OTEL_PYTHON_APSCHEDULER_CONTEXT_STORE: ("context_store", FileContextStore, "a path"),
    names.OTEL_PYTHON_APSCHEDULER_JOURNAL: ("journal", str, "a path"),
    names.OTEL_PYTHON_APSCHEDULER_HISTORY: ("history", int, "a whole number"),
    names.OTEL_PYTHON_APSCHEDULER_CHECK_AT_START: ("check_at_start", _parse_bool, "true or false"),
    names.OTEL_PYTHON_APSCHEDULER_RUN_LOG: ("run_log", _parse_bool, "true or false"),
    names.OTEL_PYTHON_APSCHEDULER_RUN_EVENTS: ("run_events", _parse_bool, "true or false"),
    names.OTEL_PYTHON_APSCHEDULER_CAPTURE_ARGUMENTS: (
        "capture_arguments",
        _parse_bool,
        "true or false",
    ),
    names.OTEL_PYTHON_APSCHEDULER_CAPTURE_RESULT: ("capture_result", _parse_bool, "true or false"),
    names.OTEL_PYTHON_APSCHEDULER_CAPTURE_STACKTRACE: (
        "capture_stacktrace",
        _parse_bool,
        "true or false",
    ),
    names.OTEL_PYTHON_APSCHEDULER_CAPTURE_MESSAGE: (
        "capture_message",
        _parse_bool,
        "true or false",
    ),
    names.OTEL_PYTHON_APSCHEDULER_HTTP_PORT: ("http_port", int, "a whole number"),
    names.OTEL_PYTHON_APSCHEDULER_HTTP_HOST: ("http_host", str, "a text"),
    names.OTEL_PYTHON_APSCHEDULER_HTTP_BEARER_TOKEN_FILE: ("http_bearer_token_file", str, "a path"),
    names.OTEL_PYTHON_APSCHEDULER_HTTP_CERTFILE: ("http_certfile", str, "a path"),
    names.OTEL_PYTHON_APSCHEDULER_HTTP_KEYFILE: ("http_keyfile", str, "a path"),
    names.OTEL_PYTHON_APSCHEDULER_HTTP_ALLOWED_HOSTS: (
        "http_allowed_hosts",
        _parse_names,
        "a list of names",
    ),
}
"""For each variable: the option, the function that parses it, and what the text must be."""
_EXPECTATIONS_BY_VARIABLE: Mapping[str, tuple[str, Callable[[str], Any], str]] = {
    names.OTEL_PYTHON_APSCHEDULER_GRACE: ("grace", float, "a number of seconds"),
    names.OTEL_PYTHON_APSCHEDULER_MAX_DURATION: (
        "max_duration",
        float,
        "a number of seconds, more than 0",
    ),
    names.OTEL_PYTHON_APSCHEDULER_SEVERITY: ("severity", str, "critical, warning or info"),
    names.OTEL_PYTHON_APSCHEDULER_OWNER: ("owner", str, "a text"),
}
"""The same for the fields of `Expectations`, which hold for all jobs."""

_DEPENDENCIES = ("apscheduler >= 3.10, < 4",)
"""The same as the extra ``instruments``, which decides whether the distro loads this module."""


class APSchedulerInstrumentor(BaseInstrumentor):
    """Instruments every APScheduler 3 scheduler of the process, running or started later."""

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return what is instrumented, as requirements."""
        return _DEPENDENCIES

    def _instrument(self, **options: Any) -> None:
        """
        Instrument schedulers from now on.

        Args:
            **options: those of `apscheduler_telemetry.instrument`, ``run_events`` (whether the
                global logger provider gets an event of each run), ``http_port``, ``http_host``, and
                ``http_bearer_token_file``, ``http_certfile``, ``http_keyfile`` and
                ``http_allowed_hosts`` as for `Telemetry.start_http_server`; they override
                environment variables, and ``expect`` those of all expectations. `name` is the name
                of the first scheduler; later ones get ``-2``, ``-3`` and so on. By default metrics
                go to the global meter provider, and a separate registry serves them at `http_port`.

        Raises:
            ArgumentTypeError: there is no such option.
        """
        _reject_unknown_options(options)
        self._instrumentation = _AllSchedulersInstrumentation(
            {**_options_from_environment(), **options}
        )
        self._instrumentation.install()

    def _uninstrument(self, **_: Any) -> None:
        """Revert everything, and uninstrument the schedulers that were instrumented here."""
        self._instrumentation.uninstall()


class _AllSchedulersInstrumentation:
    """Instruments the schedulers of this process, and can be uninstalled."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = dict(options)
        self._http_port: int | None = self._options.pop("http_port", None)
        self._http_host: str = self._options.pop("http_host", "127.0.0.1")
        self._server_options = {
            name: self._options.pop(option)
            for option, name in _SERVER_OPTION_NAMES.items()
            if option in self._options
        }
        self._logs_run_events: bool = self._options.pop("run_events", False)
        self._base_name: str = self._options.pop("name", "default")
        # Not the global one, which shows the same metrics with OTEL_METRICS_EXPORTER=prometheus.
        self._options.setdefault(
            "registry", None if self._http_port is None else CollectorRegistry()
        )
        self._automatic_instrumentations = [create() for create in AUTOMATIC_INSTRUMENTATIONS]
        self._lock = threading.RLock()
        self._handles: weakref.WeakSet[Telemetry] = weakref.WeakSet()
        self._server: HTTPServer | None = None
        renew_lock_in_forked_children(self)

    def install(self) -> None:
        """Instrument the running schedulers, and those that are started from now on."""
        for start_hook in self._automatic_instrumentations:
            start_hook.install(self._instrument_started_scheduler)

    def uninstall(self) -> None:
        """Revert everything."""
        for start_hook in self._automatic_instrumentations:
            start_hook.uninstall()
        with self._lock:
            handles, server = list(self._handles), self._server
        for handle in handles:
            handle.uninstrument()
        if server is not None:
            server.close()

    def _instrument_started_scheduler(self, scheduler: Any) -> None:
        """Instrument one scheduler; on any error, the application continues without telemetry."""
        try:
            with self._lock:
                self._instrument(scheduler)
                self._start_server_once()
        except Exception as error:
            raise_if_interruption(error)
            kind = qualified_class_name(type(scheduler))
            logger.exception("%s cannot be instrumented, and runs without telemetry", kind)

    def _instrument(self, scheduler: Any) -> None:
        if get_handle(scheduler) is not None:
            return
        # Read now, because the application may set it after this module was loaded.
        self._options.setdefault("meter_provider", get_meter_provider())
        if self._logs_run_events:
            self._options.setdefault("logger_provider", get_logger_provider())
        more = (f"{self._base_name}-{number}" for number in itertools.count(2))
        taken_names: set[str] = set()
        for name in itertools.chain((self._base_name,), more):
            if name in taken_names:
                continue
            try:
                self._handles.add(instrument_provisionally(scheduler, name=name, **self._options))
            except DuplicateNameError:
                # This has just collected all garbage, which takes seconds in a large application,
                # so do not try the other names that are certainly taken.
                taken_names = self._find_taken_names()
            else:
                return

    def _find_taken_names(self) -> set[str]:
        return {
            handle.name
            for handle in self._handles
            if is_current(handle) and handle._exported_scheduler.liveness().may_run_jobs  # noqa: SLF001  # ours
        }

    def _start_server_once(self) -> None:
        """Serve all schedulers of the process from one port, from the first on."""
        port, self._http_port = self._http_port, None
        if port is None:
            return

        def get_handles() -> list[Telemetry]:
            with self._lock:
                current = [handle for handle in self._handles if is_current(handle)]
            return sorted(current, key=lambda handle: handle.name)

        fallback = ErrorReporter()

        def report_exception(component: str) -> None:
            reporters = [handle._error_reporter for handle in get_handles()]  # noqa: SLF001  # ours
            [*reporters, fallback][0].exception(component)

        def list_runs(job_id: str | None, limit: int, before: int | None) -> dict[str, Any]:
            runs = {h.name: h._recent_runs(job_id) for h in get_handles()}  # noqa: SLF001  # ours
            return run_list.build_run_list(runs, limit, before)

        registry, expose_from_cache = _choose_served_registry(self._options["registry"])
        endpoints = HTTPEndpoints(
            registry=registry,
            get_health_report=lambda: health.combine_reports([h.health() for h in get_handles()]),
            get_run_list=None if self._options.get("history") == 0 else list_runs,
            status_source=StatusReporter(
                lambda: [h._exported_scheduler for h in get_handles()]  # noqa: SLF001  # ours
            ),
            is_healthy=lambda: all(h._is_healthy() for h in get_handles()),  # noqa: SLF001  # ours
            report_exception=report_exception,
            expose_from_cache=expose_from_cache,
        )
        try:
            self._server = endpoints.start_server(port, self._http_host, **self._server_options)
        except Exception as error:  # noqa: BLE001  # mostly a port that is taken
            raise_if_interruption(error)
            logger.warning("%s: %s", names.OTEL_PYTHON_APSCHEDULER_HTTP_PORT, error)


def _choose_served_registry(
    registry: CollectorRegistry | None,
) -> tuple[CollectorRegistry | None, MetricsExposer | None]:
    """Return the registry that the pages serve, and a faster way to encode it, if there is one."""
    if registry is None:
        return None, None
    directory = find_multiprocess_directory()
    if directory is not None:
        merged = MultiprocessRegistry(
            directory,
            write_current_metrics=write_all_snapshots,
            on_file_skipped=report_skipped_file,
        )
        return merged, None

    def expose_from_cache(encode: Encoder, names: Sequence[str]) -> Sequence[bytes]:
        # Looked up each time: there is none while no scheduler is instrumented on the registry.
        exporter = find_exporter(registry)
        if exporter is None:
            return [encode(registry.restricted_registry(names) if names else registry)]
        return exporter.expose(encode, names)

    return registry, expose_from_cache


def _options_from_environment() -> dict[str, Any]:
    """Return the options that environment variables set; an invalid one is logged and ignored."""
    options = _parse_variables(_OPTIONS_BY_VARIABLE)
    expected = _parse_variables(
        {
            name: (field, partial(_parse_expectation, field, read), kind)
            for name, (field, read, kind) in _EXPECTATIONS_BY_VARIABLE.items()
        }
    )
    return {**options, "expect": Expectations(**expected)} if expected else options


def _parse_expectation(field: str, read: Callable[[str], Any], text: str) -> Any:
    return getattr(Expectations(**{field: read(text)}), field)


def _parse_variables(
    known: Mapping[str, tuple[str, Callable[[str], Any], str]],
) -> dict[str, Any]:
    values = {}
    for name, (option, read, kind) in known.items():
        text = os.environ.get(name, "").strip()
        try:
            if text:
                values[option] = read(text)
        except (KeyError, ValueError):
            logger.warning("%s=%r is ignored: it is not %s", name, shorten_name(text), kind)
    return values


def _reject_unknown_options(options: Mapping[str, Any]) -> None:
    known = {
        *inspect.signature(instrument).parameters,
        "run_events",
        "http_port",
        "http_host",
        *_SERVER_OPTION_NAMES,
    } - {"scheduler"}
    if unknown := sorted(options.keys() - known):
        msg = f"no such option: {', '.join(unknown)}; there are {', '.join(sorted(known))}"
        raise ArgumentTypeError(msg)
