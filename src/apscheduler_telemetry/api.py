"""
`instrument`, and the handle that it returns.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from datetime import tzinfo
from typing import Any

from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider
from prometheus_client import REGISTRY, CollectorRegistry

from apscheduler_telemetry.adapters.base import AdapterDependencies, SchedulerAdapter
from apscheduler_telemetry.adapters.registry import find_adapter
from apscheduler_telemetry.config import Config
from apscheduler_telemetry.core.expectation_resolver import ExpectationResolver, ExpectOption
from apscheduler_telemetry.core.findings import INFO, SERIOUS, Finding, summarize_codes
from apscheduler_telemetry.core.labels import DEFAULT_MAX_LABELS, JobLabeller
from apscheduler_telemetry.core.model import Liveness
from apscheduler_telemetry.core.observers import ErrorReporter, ObserverGroup, RunObserver
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.run_history import DEFAULT_HISTORY, RunRecord
from apscheduler_telemetry.core.run_journal import RunJournal
from apscheduler_telemetry.core.stats import DELAY_BUCKETS, DURATION_BUCKETS
from apscheduler_telemetry.core.timetable import UpcomingRuns
from apscheduler_telemetry.errors import DuplicateNameError, NotInstrumentedError
from apscheduler_telemetry.export import health, otel_metrics, prometheus, run_list
from apscheduler_telemetry.export.interrupted_runs import InterruptedRunReporter
from apscheduler_telemetry.export.metric_families import Exporter
from apscheduler_telemetry.export.multiprocess.directory import find_multiprocess_directory
from apscheduler_telemetry.export.multiprocess.registry import MultiprocessRegistry
from apscheduler_telemetry.export.multiprocess.writer import SnapshotWriter
from apscheduler_telemetry.export.otel_traces import (
    OriginPropagator,
    SpanObserver,
    attach_empty_context,
    detach_empty_context,
    suppressing_tracing,
)
from apscheduler_telemetry.export.run_log import RunLogObserver
from apscheduler_telemetry.export.status import StatusReporter
from apscheduler_telemetry.http import (
    HTTPEndpoints,
    HTTPServer,
    UnavailableHTTPServer,
    has_address_in_common,
    reject_unknown_server_options,
)

logger = logging.getLogger("apscheduler_telemetry")

_HANDLE_ATTRIBUTE_NAME = "_apscheduler_telemetry"
"""Attribute of an instrumented scheduler that holds its handle."""


class _ExportedScheduler:
    """
    One instrumented scheduler, as exporters see it; see `InstrumentedScheduler`.

    Args:
        name: the value of the ``scheduler`` label.
        recorder: the metrics state.
        error_reporter: counts failures of telemetry itself.
        adapter: watches the scheduler.
        is_declared_singleton: whether only one scheduler of this name should be alive; only
            exported, not enforced.
        get_handle: returns the handle; None when it was freed.

    Attributes:
        uninstrument_reason: why the handle does not follow it any more; None while it does.
    """

    def __init__(  # noqa: PLR0913  # each part by name
        self,
        name: str,
        *,
        recorder: Recorder,
        error_reporter: ErrorReporter,
        adapter: SchedulerAdapter,
        is_declared_singleton: bool,
        get_handle: Callable[[], Telemetry | None],
    ) -> None:
        self.name = name
        self.recorder = recorder
        self.error_reporter = error_reporter
        self.adapter = adapter
        self.get_handle = get_handle
        self.uninstrument_reason: str | None = None
        self._is_declared_singleton = is_declared_singleton

    @property
    def timezone(self) -> tzinfo:
        """The time zone of the scheduler."""
        return self.adapter.timezone

    def find_upcoming_runs(
        self, until: float, *, label: str | None = None, max_count: int
    ) -> UpcomingRuns:
        """Return the upcoming runs of all jobs, or of one label; see `Timetable`."""
        return self.adapter.find_upcoming_runs(until, label=label, max_count=max_count)

    @property
    def started_at(self) -> float | None:
        """When the scheduler was started, in Unix seconds; None before it."""
        return self.adapter.started_at

    @property
    def last_pass_ended_at(self) -> float | None:
        """When it last looked for due jobs, in Unix seconds; None before it."""
        return self.adapter.last_pass_ended_at

    def liveness(self) -> Liveness:
        """Return whether the scheduler's loop is alive, and the reasons if it is not."""
        return self.adapter.liveness()

    def set_uninstrument_reason(self, reason: str) -> None:
        """Note why the handle does not follow the scheduler any more."""
        self.uninstrument_reason = reason

    def scheduler_info(self) -> Mapping[str, str]:
        """Return the labels of ``apscheduler_scheduler_info``, without ``scheduler``."""
        return {
            **self.adapter.scheduler_info(),
            "hostname": socket.gethostname(),
            "pid": str(os.getpid()),
            "singleton": "true" if self._is_declared_singleton else "false",
        }


class Telemetry:
    """
    The handle of one instrumented scheduler; made by `instrument`.

    Attributes:
        name: the value of the ``scheduler`` label.
        wsgi_app: a WSGI application that serves the status page, ``/metrics``, ``/health``,
            ``/runs`` and ``/livez`` of all schedulers of the registry; mount it anywhere.
        asgi_app: the same as an ASGI application.
    """

    def __init__(
        self, scheduler: Any, config: Config, adapter_class: type[SchedulerAdapter]
    ) -> None:
        self.name = config.name
        self._scheduler = scheduler
        self._config = config
        self._servers: list[HTTPServer] = []
        # First, as it raises if the environment is wrong.
        directory = find_multiprocess_directory() if config.registry is not None else None
        # Before exporters are created, as the last scheduler of a registry removes its exporter.
        _uninstrument_stopped_namesakes(config)
        self._snapshot_writer: SnapshotWriter | None = None
        self._exporters: list[Exporter] = []
        self._error_reporter = error_reporter = ErrorReporter(config.capture)
        recorder = Recorder(
            config.name,
            duration_buckets=config.duration_buckets,
            delay_buckets=config.delay_buckets,
            max_labels=config.max_labels,
            history=config.history,
        )
        # The spans come first, so that they are current where the histograms are recorded.
        self._span_observer = SpanObserver(
            tracer_provider=config.tracer_provider, logger_provider=config.logger_provider
        )
        observers: list[RunObserver] = [self._span_observer]
        run_log: RunLogObserver | None = None
        if config.run_log or config.logger_provider is not None:
            run_log = RunLogObserver(
                logs_to_standard_library=config.run_log,
                logger_provider=config.logger_provider,
                error_reporter=error_reporter,
            )
            observers.insert(0, run_log)  # so that it gets the end of a run after the spans
        registry, expose_from_cache = config.registry, None
        if registry is not None:
            prometheus_exporter = prometheus.get_or_create_exporter(registry)
            self._exporters.append(prometheus_exporter)
            expose_from_cache = prometheus_exporter.expose
        if config.meter_provider is not None:
            otel_exporter = otel_metrics.get_or_create_exporter(
                config.meter_provider, config.duration_buckets, config.delay_buckets
            )
            self._exporters.append(otel_exporter)
            observers.append(otel_metrics.HistogramObserver(otel_exporter))
        self._journal: RunJournal | None = None
        if config.journal_directory is not None:
            self._journal = RunJournal(
                config.journal_directory,
                config.name,
                error_reporter=error_reporter,
                on_interrupted=InterruptedRunReporter(
                    recorder, self._span_observer, run_log, error_reporter
                ).report,
            )
            recorder.use_journal(self._journal)
            observers.append(self._journal)
        dependencies = AdapterDependencies(
            recorder=recorder,
            observers=ObserverGroup(error_reporter, observers),
            error_reporter=error_reporter,
            labeller=JobLabeller(config.job_label, error_reporter),
            expectation_resolver=ExpectationResolver(config.expect, error_reporter),
            origin_propagator=OriginPropagator(propagate_baggage=config.propagate_baggage),
            context_store=config.context_store,
            capture=config.capture,
            attach_empty_context=attach_empty_context,
            detach_empty_context=detach_empty_context,
            suppressing_tracing=suppressing_tracing,
            on_scheduler_started=self._on_scheduler_started,
            on_scheduler_stopped=self._on_scheduler_stopped,
        )
        self._exported_scheduler = _ExportedScheduler(
            config.name,
            recorder=recorder,
            error_reporter=error_reporter,
            adapter=adapter_class(scheduler, dependencies),
            is_declared_singleton=config.singleton,
            get_handle=weakref.ref(self),  # weakly, so that both are freed at once
        )
        try:
            if directory is not None:
                self._snapshot_writer = SnapshotWriter(self._exported_scheduler, directory)
                registry = MultiprocessRegistry(
                    directory,
                    write_current_metrics=self._snapshot_writer.write,
                    on_file_skipped=self._snapshot_writer.on_file_skipped,
                )
                expose_from_cache = None
            self._exported_scheduler.adapter.install()
        except BaseException:
            self._stop_exporting()
            raise
        for exporter in self._exporters:
            exporter.add_scheduler(
                self._exported_scheduler
            )  # not before, as a scrape may come at once
        if self._exported_scheduler.started_at is not None:
            self._on_scheduler_started()
        self._endpoints = HTTPEndpoints(
            registry=registry,
            get_health_report=self._report_health_of_all,
            get_run_list=self._list_runs if config.history else None,
            status_source=StatusReporter(
                lambda: [self._exported_scheduler, *self._find_other_schedulers()]
            ),
            is_healthy=self._are_all_healthy,
            report_exception=error_reporter.exception,
            expose_from_cache=expose_from_cache,
        )
        self.wsgi_app = self._endpoints.wsgi_app
        self.asgi_app = self._endpoints.asgi_app

    def start_http_server(
        self, port: int = 9476, addr: str = "127.0.0.1", **options: Any
    ) -> HTTPServer:
        """
        Serve the status page, ``/metrics``, ``/health``, ``/runs`` and ``/livez`` from a thread.

        If the port is taken, mostly by another worker or the reloader of the application, an error
        is logged, and the application goes on without a server in this process.

        Args:
            port: TCP port; 0 takes a free one, which is the server's ``port`` then.
            addr: address to bind; by default the loopback interface.
            **options: all of them are optional:

                - ``certfile``, ``keyfile``, ``client_cafile``, ``client_capath`` and
                  ``client_auth_required``, as for ``prometheus_client.start_http_server``. The
                  files are read again when they change.
                - ``bearer_token_file``: a file with a token that clients must send, except for
                  ``/livez``. It is read again when it changes.
                - ``allowed_hosts``: host names, without a port, by which clients may call the
                  server, besides ``localhost`` and loopback addresses, or ``["*"]`` for any. By
                  default only those if `addr` is a loopback address, and any otherwise.
                - ``max_connections`` (256): open connections, beyond which the oldest is closed.
                - ``idle_timeout`` (30): seconds to wait for a client that neither sends nor reads.
                - ``max_buffered_bytes`` (24 MiB): bytes of responses that clients are still
                  reading, beyond which the slowest clients are disconnected.

        Returns:
            The server, to be closed with ``close()`` or a ``with`` statement; `uninstrument`
            closes it, too. Its ``is_serving`` is False if the port is taken.

        Raises:
            OSError: the address is not this machine's, or the port or a file cannot be used.
            ArgumentTypeError, ArgumentValueError: an option is wrong, or there is no such option.
            NotInstrumentedError: the scheduler is not instrumented any more.
            TelemetryError: no thread can be started, as after the main thread has ended.
        """
        if self._exported_scheduler.uninstrument_reason is not None:
            msg = f"nothing is left to serve: {self._describe_uninstrumentation()}"
            raise NotInstrumentedError(msg)
        reject_unknown_server_options(options)
        try:
            server = self._endpoints.start_server(port, addr, **options)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            # Every worker of a web server does the same; raised, it would end all but the first.
            logger.error("%s", self._describe_taken_port(port, addr, error))  # noqa: TRY400  # expected
            return UnavailableHTTPServer(port, addr, is_https=options.get("certfile") is not None)
        self._servers.append(server)
        _scheduler_name_by_server[server] = self.name
        return server

    def _describe_taken_port(self, port: int, addr: str, error: OSError) -> str:
        others = [
            name
            for server, name in list(_scheduler_name_by_server.items())
            if server.is_serving and has_address_in_common(server, port, addr)
        ]
        if others:
            return (
                f"No further server was started for the scheduler {self.name!r}: that of the "
                f"scheduler {others[0]!r} has port {port} in this process, and serves all "
                "schedulers of its registry. Start one server for each registry, or pass another "
                "port"
            )
        return (
            f"The scheduler {self.name!r} has no server in process {os.getpid()}, and the process "
            f"goes on without one. Reason: {error.strerror}. If each of these processes starts the "
            "scheduler, each runs all of its jobs"
        )

    def health(self) -> dict[str, Any]:
        """
        Return the health of the scheduler, as ``/health`` serves it if there is no other one.

        Returns:
            ``status`` (``healthy`` or ``unhealthy``), ``reasons`` (each a ``code`` and a
            ``message``), ``scheduler`` and ``jobs``; times are ISO 8601 in UTC. After
            `uninstrument` it is unhealthy, for the reason ``uninstrumented``.
        """
        if self._exported_scheduler.uninstrument_reason is not None:
            return health.build_uninstrumented_report(self.name, self._describe_uninstrumentation())
        return health.build_report(self._exported_scheduler)

    def runs(self, job_id: str | None = None) -> list[dict[str, Any]]:
        """
        Return the latest runs of the scheduler, the latest first, as ``/runs`` serves them.

        They have ended, or never started: missed, skipped, coalesced and lost ones. They are
        those of this process, as far as ``history=`` of `instrument` keeps them, and of jobs that
        exist or were removed in the last 15 minutes.

        Args:
            job_id: only the runs with this value of the ``job_id`` label; None for all jobs.

        Returns:
            For each run ``scheduler``, ``job_id``, ``scheduled_time``, ``start_time``,
            ``end_time``, ``duration`` in seconds, ``outcome``, ``error_type``, ``error_message``,
            ``trace_id`` and ``number``, which orders runs by their end; times are ISO 8601 in
            UTC. What is not known is None.
        """
        return [run_list.describe_run(self.name, run) for run in self._recent_runs(job_id)]

    def check(self) -> list[dict[str, Any]]:
        """
        Return the risks in how the scheduler and its jobs are set up now, serious ones first.

        They are those of ``apscheduler-telemetry doctor``, as far as a process can see them; the
        jobs are read from the job stores. Nothing is changed.

        Returns:
            For each risk ``code``, ``level`` (``serious`` or ``info``), ``scheduler``, ``job_ids``
            (empty for a risk of the scheduler), ``message``, and ``fix``, the line that fixes it.

        Raises:
            NotInstrumentedError: the scheduler is not instrumented any more.
            Exception: what a job store raises that cannot be read.
        """
        if self._exported_scheduler.uninstrument_reason is not None:
            raise NotInstrumentedError(self._describe_uninstrumentation())
        return [
            finding.to_json_dict(self.name) for finding in self._exported_scheduler.adapter.check()
        ]

    def _log_findings(self, findings: Sequence[Finding]) -> None:
        if not findings:
            logger.info("No risks were found in how the scheduler %r is set up", self.name)
            return
        codes_by_level = {
            level: summarize_codes(finding for finding in findings if finding.level == level)
            for level in (SERIOUS, INFO)
        }
        logger.log(
            logging.WARNING if codes_by_level[SERIOUS] else logging.INFO,
            "Risks in how the scheduler %r is set up: %s. What they mean, and the line that fixes "
            "each: telemetry.check(), or `apscheduler-telemetry doctor`",
            self.name,
            "; ".join(f"{level}: {codes}" for level, codes in codes_by_level.items() if codes),
        )

    def _recent_runs(self, job_id: str | None) -> list[RunRecord]:
        return self._exported_scheduler.recorder.recent_runs(job_id)

    def _list_runs(self, job_id: str | None, limit: int, before: int | None) -> dict[str, Any]:
        others = {
            each.name: each.recorder.recent_runs(job_id) for each in self._find_other_schedulers()
        }
        return run_list.build_run_list(
            {self.name: self._recent_runs(job_id), **others}, limit, before
        )

    def _report_health_of_all(self) -> dict[str, Any]:
        others = [health.build_report(each) for each in self._find_other_schedulers()]
        return health.combine_reports([self.health(), *others]) if others else self.health()

    def _are_all_healthy(self) -> bool:
        return self._is_healthy() and all(
            each.liveness().up for each in self._find_other_schedulers()
        )

    def _find_other_schedulers(self) -> list[_ExportedScheduler]:
        """Return the other schedulers of the registry, whose metrics the pages show, too."""
        registry = self._config.registry
        exporter = None if registry is None else prometheus.find_exporter(registry)
        return [
            each
            for each in (exporter.schedulers() if exporter is not None else ())
            if isinstance(each, _ExportedScheduler)
            and each.name != self.name
            and not each.liveness().is_forked_copy  # which belongs to the parent process
        ]

    def uninstrument(self) -> None:
        """
        Revert everything: patched methods of the scheduler, the registry, and started servers.

        A meter provider keeps its instruments, because OpenTelemetry cannot remove them; they
        observe nothing from now on.

        Runs in flight are no longer counted, but their spans still end with them. Until then, two
        methods of their executor stay patched. No further span is started, not even for a run
        that an executor already has and starts later.

        Calling it again does nothing; the scheduler can be instrumented again.
        """
        self._uninstrument_because("uninstrument() was called")

    def _uninstrument_because(self, reason: str) -> None:
        with _instrumentation_lock:
            if not is_current(self):
                return
            self._exported_scheduler.set_uninstrument_reason(reason)
            delattr(self._scheduler, _HANDLE_ATTRIBUTE_NAME)
            self._exported_scheduler.adapter.uninstall()
            self._stop_exporting()
        while self._servers:
            self._servers.pop().close()

    def _reject_namesake_if_starting(self) -> None:
        """
        Raise an error if another scheduler cannot have the name, as this one is being started.

        Raises:
            DuplicateNameError: it was instrumented by its start, which goes on in another thread.
        """
        if self in _provisional_handles and self._exported_scheduler.started_at is None:
            msg = f"a scheduler named {self.name!r} is being started: pass another name"
            raise DuplicateNameError(msg)

    def _uninstrument_for_namesake(self) -> None:
        """End, as another scheduler gets the name; say so if this one is started after all."""
        if self._exported_scheduler.liveness().is_forked_copy:
            return  # the parent goes on with it
        self._uninstrument_because(f"another scheduler was instrumented as {self.name!r}")
        scheduler, name = self._scheduler, self.name

        def warn() -> None:
            if get_handle(scheduler) is None:
                logger.warning(
                    "%r was started without telemetry: while it did not run, another scheduler was "
                    "instrumented as %r. Call instrument() again, with a name of its own for each",
                    scheduler,
                    name,
                )

        self._exported_scheduler.adapter.call_at_next_start(warn)

    def _describe_uninstrumentation(self) -> str:
        return (
            f"The scheduler {self.name!r} is not instrumented by this handle any more, as "
            f"{self._exported_scheduler.uninstrument_reason}; call instrument() again."
        )

    def _is_healthy(self) -> bool:
        """Return whether the ``status`` of `health` is ``healthy``, without looking at jobs."""
        return (
            self._exported_scheduler.uninstrument_reason is None
            and self._exported_scheduler.liveness().up
        )

    def _on_scheduler_started(self) -> None:
        if self._journal is not None:
            self._journal.start()
            if not self._exporters:  # no exporter will read the metrics
                self._journal.on_reading_end(self._journal.on_reading_start())
        if self._snapshot_writer is not None:
            self._snapshot_writer.start()
        if self._config.check_at_start:
            self._exported_scheduler.adapter.check_in_background(self._log_findings)

    def _on_scheduler_stopped(self) -> None:
        if self._snapshot_writer is not None:
            self._snapshot_writer.write()

    def _stop_exporting(self) -> None:
        for exporter in self._exporters:
            exporter.remove_scheduler(self._exported_scheduler)
        if self._snapshot_writer is not None:
            self._snapshot_writer.stop()

    def __repr__(self) -> str:
        """Name the scheduler."""
        end = "" if self._exported_scheduler.uninstrument_reason is None else ", uninstrumented"
        return f"<Telemetry of the scheduler {self.name!r}{end}>"


def instrument(  # noqa: PLR0913  # keyword-only, each with a default
    scheduler: Any,
    *,
    name: str = "default",
    registry: CollectorRegistry | None = REGISTRY,
    tracer_provider: TracerProvider | None = None,
    meter_provider: MeterProvider | None = None,
    job_label: Callable[[Any], str] | None = None,
    expect: ExpectOption | None = None,
    singleton: bool = True,
    propagate_baggage: bool = False,
    context_store: MutableMapping[str, str] | None = None,
    journal: str | os.PathLike[str] | None = None,
    history: int = DEFAULT_HISTORY,
    check_at_start: bool = False,
    run_log: bool = False,
    logger_provider: LoggerProvider | None = None,
    capture_arguments: bool = False,
    capture_result: bool = False,
    capture_stacktrace: bool = False,
    capture_message: bool = True,
    redact: Callable[[str], str] | None = None,
    duration_buckets: Sequence[float] = DURATION_BUCKETS,
    delay_buckets: Sequence[float] = DELAY_BUCKETS,
    max_labels: int = DEFAULT_MAX_LABELS,
) -> Telemetry:
    """
    Instrument a scheduler: export its jobs, its runs and its failures.

    Works before and after ``scheduler.start()``. If the scheduler is already instrumented, its
    handle is returned; options that differ from the first ones are ignored with a warning.

    Args:
        scheduler: an instance of an APScheduler 3 scheduler, or of a wrapper that starts one, which
            is then the one that is instrumented.
        name: the value of the ``scheduler`` label; must differ between schedulers that run at the
            same time on one registry or on one meter provider.
        registry: where the metrics are registered for Prometheus to scrape; None for nowhere.
        tracer_provider: where spans go; by default the global one, even if it is set later.
        meter_provider: where the same metrics go by OpenTelemetry, in addition to `registry`; by
            default nowhere. For the global one, pass
            ``opentelemetry.metrics.get_meter_provider()``.
        job_label: called when a job is added or changed, returns the value of its ``job_id`` label.
            By default the job's id. If APScheduler generated the id: the name that the job was
            given, or else ``module:function``.
        expect: what the alert rules expect of jobs: `Expectations` for all jobs, or a callable that
            returns those of a job, or None. It is called when a job is added or changed. For each
            field, the callable has priority over the decorator `apscheduler_telemetry.expect` of
            the job's function, which has priority over `Expectations` for all jobs.
        singleton: whether the application should have exactly one live scheduler of this name.
            False: every replica runs its own copies of the jobs.
        propagate_baggage: whether a job sees the baggage of the call that added it, or of the call
            that triggered the run by hand.
        context_store: stores in which span the jobs of persistent stores were added, so that runs
            link to it after a restart: a `FileContextStore`, or any fast mapping of str to str. By
            default these links are lost when the process ends.
        journal: a directory for a file of the runs in flight, on a local file system; it is created
            if its parent exists. If the process is killed, the next one that starts a scheduler of
            this name with the same directory counts its runs in flight as ``lost``, and ends their
            spans. By default nothing is known of them. Not on Windows. If the directory cannot be
            used, an error of component ``journal`` is counted, and the scheduler runs without.
        history: how many runs of each job are kept in memory, for `Telemetry.runs` and ``/runs``;
            at most 1,000, and 20,000 of all jobs together, besides the last failure. 0 for none.
        check_at_start: whether the codes of the risks that `Telemetry.check` finds are logged in
            one line when the scheduler has started, as a WARNING if one of them is serious. It is
            done in another thread, and reads the job stores once.
        run_log: whether the logger ``apscheduler_telemetry.runs`` gets a record of each run: INFO
            of one that succeeds or is coalesced, and ERROR of any other. Its handlers are called in
            a thread of their own.
        logger_provider: where an OpenTelemetry event ``apscheduler.job.run`` of each run goes, and
            exceptions if they are log records; by default no events, and exceptions to the global
            one. For the global one, pass ``opentelemetry._logs.get_logger_provider()``.
        capture_arguments: whether a span has the arguments of the job. Only the type is recorded
            of values that are not of a plain type, and ``***`` of those of arguments and keys that
            are named like a secret; 1,024 characters in total at most.
        capture_result: whether a span has the return value of the job, with the same limits.
        capture_stacktrace: whether a recorded exception has its stack trace, the last 16,384
            characters. It contains lines of source code, but no values of variables.
        capture_message: False: the messages of exceptions stay out of spans, stack traces, lists of
            runs and the log of this package, and so do the reasons of ``current_run().fail()`` and
            lines of source code; the types of exceptions do not.
        redact: called with the message of each exception that a span, a list of runs or the log of
            this package contains, with each reason of ``current_run().fail()`` and, if a stack
            trace is recorded, with each note of its exception and each line of source code. It gets
            a str of at most 65,536 characters and returns the str to export instead, an empty one
            for nothing. If it raises, or returns anything else, nothing of the text is exported,
            and an error of component ``redact`` is counted. It is called in the thread of the run,
            so it should be fast. Not called with ``capture_message=False``.
        duration_buckets: upper bounds in seconds of ``apscheduler_job_run_duration_seconds``,
            ascending.
        delay_buckets: the same of ``apscheduler_job_start_delay_seconds``.
        max_labels: values of the ``job_id`` label before further jobs share ``__overflow__``.

    Returns:
        The handle, which serves the metrics and uninstruments the scheduler.

    Raises:
        ArgumentTypeError: an argument is of the wrong type; the message says what to pass.
        ArgumentValueError: an argument has an impossible value.
        DuplicateNameError: another scheduler of that name runs, and is instrumented on the registry
            or on the meter provider. One that does not run is uninstrumented instead.
    """
    adapter_class, scheduler = find_adapter(scheduler)
    config = Config(
        name=name,
        registry=registry,
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        job_label=job_label,
        expect=expect,
        singleton=singleton,
        propagate_baggage=propagate_baggage,
        context_store=context_store,
        journal=journal,
        history=history,
        check_at_start=check_at_start,
        run_log=run_log,
        logger_provider=logger_provider,
        capture_arguments=capture_arguments,
        capture_result=capture_result,
        capture_stacktrace=capture_stacktrace,
        capture_message=capture_message,
        redact=redact,
        duration_buckets=duration_buckets,
        delay_buckets=delay_buckets,
        max_labels=max_labels,
    )
    with _instrumentation_lock:
        existing = get_handle(scheduler)
        if existing is not None and existing in _provisional_handles:
            existing.uninstrument()
            existing = None
        if existing is None:
            telemetry = Telemetry(scheduler, config, adapter_class)
            setattr(scheduler, _HANDLE_ATTRIBUTE_NAME, telemetry)
            return telemetry
    if existing._config != config:  # noqa: SLF001  # ours
        warnings.warn(
            f"{existing!r} is instrumented already and keeps its options; call its uninstrument() "
            "first to change them",
            RuntimeWarning,
            stacklevel=2,
        )
    return existing


def instrument_provisionally(scheduler: Any, **options: Any) -> Telemetry:
    """
    Instrument a scheduler for zero code; a later `instrument` call of the application replaces it.
    """
    telemetry = instrument(scheduler, **options)
    _provisional_handles.add(telemetry)
    return telemetry


def get_handle(scheduler: Any) -> Telemetry | None:
    """Return the handle of a scheduler; None if it is not instrumented."""
    handle: Telemetry | None = getattr(scheduler, _HANDLE_ATTRIBUTE_NAME, None)
    return handle


def is_current(handle: Telemetry) -> bool:
    """Return whether the scheduler of a handle is still instrumented by it."""
    return get_handle(handle._scheduler) is handle  # noqa: SLF001  # ours


def _uninstrument_stopped_namesakes(config: Config) -> None:
    """
    Uninstrument the schedulers of that name that do not run, where the new one is to be exported.

    Raises:
        DuplicateNameError: one of them runs, or is just being started.
    """
    exporters: list[Exporter] = []
    if config.registry is not None and (found := prometheus.find_exporter(config.registry)):
        exporters.append(found)
    if config.meter_provider is not None and (
        known := otel_metrics.find_exporter(config.meter_provider)
    ):
        exporters.append(known)
    for exporter in exporters:
        exporter.reject_duplicate_name(config.name)
    schedulers = [exporter.find_scheduler_by_name(config.name) for exporter in exporters]
    handles = [s.get_handle() for s in schedulers if isinstance(s, _ExportedScheduler)]
    for handle in handles:
        if handle is not None:
            handle._reject_namesake_if_starting()  # noqa: SLF001  # ours
    for handle in handles:
        if handle is not None:
            handle._uninstrument_for_namesake()  # noqa: SLF001  # ours


_scheduler_name_by_server: weakref.WeakKeyDictionary[HTTPServer, str] = weakref.WeakKeyDictionary()
"""Servers that handles have started, with the name of their scheduler."""
_provisional_handles: weakref.WeakSet[Telemetry] = weakref.WeakSet()
"""Handles made by `instrument_provisionally`."""
_instrumentation_lock = threading.RLock()
