"""
Puts the parts together: `instrument` and the handle that it returns.
"""

from __future__ import annotations

import functools
import math
import os
import reprlib
import socket
import threading
import warnings
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from importlib.metadata import version
from typing import Any

from apscheduler.schedulers import base as apscheduler_base
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from prometheus_client import REGISTRY, CollectorRegistry

from apscheduler_telemetry.adapters.apscheduler3.adapter import Adapter
from apscheduler_telemetry.core.alert_policy import Expectations, checked
from apscheduler_telemetry.core.labels import MAX_LABELS, Labeller
from apscheduler_telemetry.core.model import Capture, Liveness, RunObserver
from apscheduler_telemetry.core.observers import Guard, Pipeline
from apscheduler_telemetry.core.recorder import DELAY_BUCKETS, DURATION_BUCKETS, Ledger
from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError
from apscheduler_telemetry.export import health
from apscheduler_telemetry.export.metric_families import Reader
from apscheduler_telemetry.export.multiprocess.directory import configured_directory
from apscheduler_telemetry.export.multiprocess.registry import MultiprocessRegistry
from apscheduler_telemetry.export.multiprocess.writer import SnapshotWriter
from apscheduler_telemetry.export.otel_metrics import HistogramObserver, reader_of
from apscheduler_telemetry.export.otel_traces import (
    Origins,
    SpanObserver,
    leave_context,
    return_to_context,
    untraced,
)
from apscheduler_telemetry.export.prometheus import collector_of
from apscheduler_telemetry.http import Endpoints, HTTPServer

_HANDLE = "_apscheduler_telemetry"
"""Attribute of an instrumented scheduler that holds its handle."""


class Telemetry:
    """
    The handle of one instrumented scheduler; made by `instrument`.

    Attributes:
        name: the value of the ``scheduler`` label.
        wsgi_app: a WSGI application that serves ``/metrics`` and ``/health``; mount it anywhere.
        asgi_app: the same as an ASGI application.
        options: what `instrument` was called with.
        gives_way: whether the next call of `instrument` replaces it, since nobody asked for it in
            the application's code.
    """

    gives_way = False

    def __init__(self, scheduler: Any, **options: Any) -> None:
        self.name: str = options["name"]
        self.options = options
        self.guard = Guard()
        self.ledger = Ledger(
            self.name,
            duration_buckets=options["duration_buckets"],
            delay_buckets=options["delay_buckets"],
            max_labels=options["max_labels"],
        )
        self._scheduler = scheduler
        self._servers: list[HTTPServer] = []
        # First, as it raises where the environment is wrong.
        directory = configured_directory() if options["registry"] is not None else None
        self._snapshot_writer = None if directory is None else SnapshotWriter(self, directory)
        self._readers: list[Reader] = []
        # The spans come first, so that they are current where the histograms are recorded.
        spans = SpanObserver(tracer_provider=options["tracer_provider"])
        observers: list[RunObserver] = [spans]
        expose = None
        if options["registry"] is not None:
            collector = collector_of(options["registry"])
            self._readers.append(collector)
            expose = collector.expose
        try:
            if options["meter_provider"] is not None:
                meter = reader_of(
                    options["meter_provider"], options["duration_buckets"], options["delay_buckets"]
                )
                self._readers.append(meter)
                observers.append(HistogramObserver(meter))
            for reader in self._readers:
                reader.check_free(self.name)
            self._adapter = Adapter(
                scheduler,
                ledger=self.ledger,
                pipeline=Pipeline(self.guard, observers),
                guard=self.guard,
                labeller=Labeller(options["job_label"], self.guard),
                expectations=Expectations(
                    self.guard,
                    grace=options["grace"],
                    max_duration=options["max_duration"],
                    severity=options["severity"],
                    owner=options["owner"],
                ),
                origins=Origins(baggage=options["propagate_baggage"]),
                context_store=options["context_store"],
                capture=Capture(
                    arguments=options["capture_arguments"],
                    result=options["capture_result"],
                    stacktrace=options["capture_stacktrace"],
                ),
                leave_context=leave_context,
                return_to_context=return_to_context,
                untraced=untraced,
                on_start=self._snapshot_writer.start if self._snapshot_writer else _do_nothing,
                on_stop=self._snapshot_writer.write if self._snapshot_writer else _do_nothing,
            )
        except BaseException:
            self._forget()
            raise
        for reader in self._readers:
            reader.add(self)  # not before, as a scrape may come at once
        registry = options["registry"]
        if directory is not None and self._snapshot_writer is not None:
            registry = MultiprocessRegistry(directory, refresh=self._snapshot_writer.write)
            expose = None
            if self.started_at is not None:
                self._snapshot_writer.start()
        self._endpoints = Endpoints(
            registry=registry, health=self.health, on_error=self.guard.failed, expose=expose
        )
        self.wsgi_app = self._endpoints.wsgi
        self.asgi_app = self._endpoints.asgi

    def start_http_server(
        self, port: int = 9476, addr: str = "127.0.0.1", **tls: Any
    ) -> HTTPServer:
        """
        Serve ``/metrics`` and ``/health`` from a thread of this process.

        Args:
            port: TCP port; 0 takes a free one, told by the server's ``port``.
            addr: address to bind; loopback unless you say otherwise.
            **tls: ``certfile``, ``keyfile``, ``client_cafile``, ``client_capath`` and
                ``client_auth_required``, as for ``prometheus_client.start_http_server``.

        Returns:
            The server, to be closed with ``close()`` or a ``with`` statement; `uninstrument`
            closes it, too.

        Raises:
            OSError: the port is taken, or the address is not this machine's.
            ArgumentTypeError, ArgumentValueError: a port or a TLS option is wrong.
        """
        server = self._endpoints.serve(port, addr, **tls)
        self._servers.append(server)
        return server

    def health(self) -> dict[str, Any]:
        """
        Return what ``/health`` serves.

        Returns:
            ``status`` (``healthy`` or ``unhealthy``), ``reasons`` (each a ``code`` and a
            ``message``), ``scheduler`` and ``jobs``; times are ISO 8601 in UTC.
        """
        return health.report(self.ledger, self.liveness(), self.last_wakeup)

    def uninstrument(self) -> None:
        """
        Put everything back: the scheduler's methods, the registry, servers that were started.

        A meter provider keeps its instruments, as OpenTelemetry has no way to remove them; they
        observe nothing any more.

        Runs that are under way end as if they had never been followed. Calling it again does
        nothing; the scheduler can be instrumented anew.
        """
        with _lock:
            if handle_of(self._scheduler) is not self:
                return
            delattr(self._scheduler, _HANDLE)
            self._adapter.remove()
            self._forget()
        while self._servers:
            self._servers.pop().close()

    def _forget(self) -> None:
        for reader in self._readers:
            reader.remove(self)
        if self._snapshot_writer is not None:
            self._snapshot_writer.stop()

    # What readers of the books ask; see _series.Source.

    @property
    def started_at(self) -> float | None:
        """When the scheduler was started, in Unix seconds; None before it."""
        return self._adapter.loop.started_at

    @property
    def last_wakeup(self) -> float | None:
        """When the latest pass over due jobs ended, in Unix seconds; None before it."""
        return self._adapter.loop.last_wakeup

    def liveness(self) -> Liveness:
        """Tell whether the scheduler's loop really lives, and why not."""
        return self._adapter.liveness()

    def facts(self) -> Mapping[str, str]:
        """Return the labels of ``apscheduler_scheduler_info``."""
        return {
            "type": type(self._scheduler).__name__,
            "version": _apscheduler_version(),
            "hostname": socket.gethostname(),
            "pid": str(os.getpid()),
            "timezone": _text_of(self._scheduler.timezone),
            "singleton": "true" if self.options["singleton"] else "false",
        }

    def __repr__(self) -> str:
        return f"<Telemetry of the scheduler {self.name!r}>"


def instrument(  # noqa: PLR0913  # keyword-only, each with a default
    scheduler: Any,
    *,
    name: str = "default",
    registry: CollectorRegistry | None = REGISTRY,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    job_label: Callable[[Any], str] | None = None,
    grace: float | Callable[[Any], float | None] | None = None,
    max_duration: float | Callable[[Any], float | None] | None = None,
    severity: str | Callable[[Any], str | None] | None = None,
    owner: str | Callable[[Any], str | None] | None = None,
    singleton: bool = True,
    propagate_baggage: bool = False,
    context_store: MutableMapping[str, str] | None = None,
    capture_arguments: bool = False,
    capture_result: bool = False,
    capture_stacktrace: bool = False,
    duration_buckets: Sequence[float] = DURATION_BUCKETS,
    delay_buckets: Sequence[float] = DELAY_BUCKETS,
    max_labels: int = MAX_LABELS,
) -> Telemetry:
    """
    Watch everything that a scheduler does, or fails to do.

    Works before and after ``scheduler.start()``. A scheduler that is instrumented already keeps
    its handle, which is returned; options other than its own are ignored with a warning.

    Args:
        scheduler: an instance of an APScheduler 3 scheduler.
        name: the value of the ``scheduler`` label; must differ between schedulers of one registry
            and of one meter provider.
        registry: where the metrics are registered for Prometheus to scrape; None for nowhere.
        tracer_provider: where spans go; by default the global one, also if it is set later.
        meter_provider: where the same metrics go by OpenTelemetry, besides `registry`; by default
            nowhere. For the global one pass ``opentelemetry.metrics.get_meter_provider()``.
        job_label: called when a job is added or changed, returns the value of its ``job_id`` label.
            By default the job's id, or ``module:function`` for jobs whose id APScheduler made up.
        grace: seconds that a run may be late before it counts as missed by the alert rules, or a
            callable that returns them for a job. By default the job's ``misfire_grace_time``, at
            least 60.
        max_duration: seconds that a run may take before it counts as stuck by the alert rules, or a
            callable that returns them for a job. By default they go by what its runs took so far.
        severity: ``critical``, ``warning`` or ``info``, the severity of alerts on single jobs, or a
            callable that returns one for a job. By default that of each rule.
        owner: who is to hear of alerts on single jobs, the value of their label ``owner``, or a
            callable that returns one for a job. By default they have none.
        singleton: whether one live scheduler of this name is meant per application. False: every
            replica runs its own copies of the jobs.
        propagate_baggage: whether a job sees the baggage of where it was added, or of where the run
            was triggered by hand.
        context_store: where it is kept, for jobs in persistent stores, in which span they were
            added, so that runs link to it after a restart: a `FileContextStore`, or any mapping of
            str to str that answers fast. By default it is forgotten with the process.
        capture_arguments: whether a span tells what the job was called with. Of values that are not
            of a plain type only the type is told; no more than 1,024 characters in all.
        capture_result: whether a span tells what the job returned, in the same way.
        capture_stacktrace: whether an exception is told with its stack trace, of which the last
            16,384 characters. It has no values of variables, but lines of source.
        duration_buckets: upper bounds in seconds of ``apscheduler_job_run_duration_seconds``,
            ascending.
        delay_buckets: the same of ``apscheduler_job_start_delay_seconds``.
        max_labels: values of the ``job_id`` label before further jobs share ``__overflow__``.

    Returns:
        The handle, by which metrics are served and the scheduler is uninstrumented.

    Raises:
        ArgumentTypeError: an argument is of the wrong type; the message says what to pass.
        ArgumentValueError: an argument has an impossible value.
        DuplicateNameError: another scheduler of that name is instrumented on the registry, or on
            the meter provider.
    """
    _check_scheduler(scheduler)
    _check_name(name)
    _check_type(
        "registry",
        registry,
        "a prometheus_client.CollectorRegistry, or None",
        ok=registry is None or isinstance(registry, CollectorRegistry),
    )
    _check_provider("tracer_provider", tracer_provider, "TracerProvider", "get_tracer")
    _check_provider("meter_provider", meter_provider, "MeterProvider", "get_meter")
    _check_type(
        "job_label",
        job_label,
        "a callable that takes a job and returns a str",
        ok=job_label is None or callable(job_label),
    )
    switches = {
        "singleton": singleton,
        "propagate_baggage": propagate_baggage,
        "capture_arguments": capture_arguments,
        "capture_result": capture_result,
        "capture_stacktrace": capture_stacktrace,
    }
    for argument, value in switches.items():
        _check_type(argument, value, "True or False", ok=isinstance(value, bool))
    _check_type(
        "context_store",
        context_store,
        "a mapping of str to str, such as apscheduler_telemetry.FileContextStore(path)",
        ok=context_store is None or isinstance(context_store, MutableMapping),
    )
    options: dict[str, Any] = {
        "name": name,
        "registry": registry,
        "tracer_provider": tracer_provider,
        "meter_provider": meter_provider,
        "job_label": job_label,
        "grace": checked("grace", grace),
        "max_duration": checked("max_duration", max_duration),
        "severity": checked("severity", severity),
        "owner": checked("owner", owner),
        "context_store": context_store,
        **switches,
        "duration_buckets": _checked_buckets("duration_buckets", duration_buckets),
        "delay_buckets": _checked_buckets("delay_buckets", delay_buckets),
        "max_labels": _checked_max_labels(max_labels),
    }
    with _lock:
        existing = handle_of(scheduler)
        if existing is not None and existing.gives_way:
            existing.uninstrument()
            existing = None
        if existing is None:
            telemetry = Telemetry(scheduler, **options)
            setattr(scheduler, _HANDLE, telemetry)
            return telemetry
    if existing.options != options:
        warnings.warn(
            f"{existing!r} is instrumented already and keeps its options; call its uninstrument() "
            "first to change them",
            RuntimeWarning,
            stacklevel=2,
        )
    return existing


def handle_of(scheduler: Any) -> Telemetry | None:
    """Return the handle of a scheduler, None where it is not instrumented."""
    handle: Telemetry | None = getattr(scheduler, _HANDLE, None)
    return handle


def _do_nothing() -> None:
    pass


def _text_of(zone: Any) -> str:
    try:
        return str(zone)
    except Exception:  # noqa: BLE001  # user code, and no reason not to tell the rest
        return type(zone).__qualname__


@functools.cache
def _apscheduler_version() -> str:
    return version("apscheduler")  # reads files, which every scrape would otherwise pay for


def _check_scheduler(scheduler: object) -> None:
    if isinstance(scheduler, apscheduler_base.BaseScheduler):
        return
    kind = type(scheduler)
    if isinstance(scheduler, type):
        hint = f"the class {scheduler.__name__} itself; pass an instance of it"
    elif kind.__module__.split(".")[0] == "apscheduler":
        hint = (
            f"{kind.__module__}.{kind.__name__}, which is not of APScheduler 3; APScheduler 4 is "
            "not supported: install 'apscheduler>=3.10,<4'"
        )
    elif isinstance(getattr(scheduler, "scheduler", None), apscheduler_base.BaseScheduler):
        hint = f"{_brief.repr(scheduler)}, which has one; pass its attribute scheduler"
    else:
        hint = _brief.repr(scheduler)
    msg = (
        "instrument() takes a scheduler of APScheduler 3, such as "
        f"apscheduler.schedulers.background.BackgroundScheduler(); got {hint}"
    )
    raise ArgumentTypeError(msg)


def _check_name(name: str) -> None:
    _check_type("name", name, "a str, such as 'billing'", ok=isinstance(name, str))
    if not name.strip():
        msg = (
            "name must not be empty, as it is the label that tells schedulers apart; omit it for "
            "'default'"
        )
        raise ArgumentValueError(msg)
    if not name.isprintable():
        msg = (
            f"name must be printable text, as it is the value of a label, got {_brief.repr(name)}; "
            "pass letters, digits and punctuation"
        )
        raise ArgumentValueError(msg)


def _check_provider(argument: str, provider: object, kind: str, method: str) -> None:
    is_provider = hasattr(provider, method) and not isinstance(provider, type)
    _check_type(argument, provider, f"an OpenTelemetry {kind}", ok=provider is None or is_provider)


def _checked_buckets(argument: str, buckets: Sequence[float]) -> tuple[float, ...]:
    bounds: tuple[float, ...] = ()
    is_sequence = not isinstance(buckets, (str, bytes))  # sequences too, whose items could pass
    try:
        bounds = tuple(float(bound) for bound in buckets)
    except (TypeError, ValueError):
        is_sequence = False
    _check_type(argument, buckets, "a sequence of seconds", ok=is_sequence)
    if bounds and bounds[-1] == math.inf:
        bounds = bounds[:-1]  # +Inf is always there
    ascending = list(bounds) == sorted(set(bounds)) and all(map(math.isfinite, bounds))
    if not bounds or not ascending or bounds[0] < 0:
        msg = (
            f"{argument} must be seconds in ascending order, at least one, got "
            f"{_brief.repr(buckets)}"
        )
        raise ArgumentValueError(msg)
    return bounds


def _checked_max_labels(number: Any) -> int:
    is_integer = isinstance(number, int) and not isinstance(number, bool)
    _check_type("max_labels", number, "a number of label values", ok=is_integer)
    if number < 1:
        msg = f"max_labels must be 1 or more, got {number}; omit it for {MAX_LABELS:,}"
        raise ArgumentValueError(msg)
    return int(number)


def _check_type(argument: str, value: object, expected: str, *, ok: bool) -> None:
    if not ok:
        msg = f"{argument} must be {expected}, got {_brief.repr(value)}"
        raise ArgumentTypeError(msg)


_lock = threading.RLock()
_brief = reprlib.Repr()  # of anything: in a line, and surviving a __repr__ that raises
_brief.maxother = _brief.maxstring = 100
