"""The contenders: ways to watch a scheduler, ours among them."""

import importlib
import io
import logging
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

from apscheduler.events import EVENT_JOB_EXECUTED
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from apscheduler_telemetry import instrument
from apscheduler_telemetry.run_log import JSONFormatter

from .jobs import (
    CALL_WORK,
    SPAN_WORK,
    WORK,
    JobFunctions,
    recording_logger_provider,
    recording_provider,
)

MAX_LABELS = 100_000
"""
More than the jobs that any row adds.

An application with more jobs than there may be labels raises `max_labels`; otherwise, each further
job looks for a label that is free again, and a benchmark of `add_job` measures that.
"""


def watch_nothing(_scheduler: Any) -> None:
    """Leave the scheduler as it is."""


def add_hooks(scheduler: Any) -> None:
    """Patch what we patch with functions that only pass on: the least that hooks can cost."""
    scheduler.add_jobstore("memory")
    [executor] = scheduler._executors.values()  # noqa: SLF001
    [store] = scheduler._jobstores.values()  # noqa: SLF001
    for owner, name in (
        (executor, "submit_job"),
        (executor, "_run_job_success"),
        (store, "update_job"),
    ):
        setattr(owner, name, _passing_on(getattr(owner, name)))


def _passing_on(original: Callable[..., Any]) -> Callable[..., Any]:
    def hook(*args: Any) -> Any:
        return original(*args)

    return hook


def add_listener(scheduler: Any) -> None:
    """Count, observe and set on EXECUTED, as the guides recommend."""
    registry = CollectorRegistry()
    runs = Counter("runs", "Runs.", ["job_id", "outcome"], registry=registry)
    seconds = Histogram("seconds", "Seconds.", ["job_id"], registry=registry)
    last = Gauge("last", "Last run.", ["job_id"], registry=registry)

    def executed(event: Any) -> None:
        runs.labels(event.job_id, "success").inc()
        seconds.labels(event.job_id).observe(0.001)
        last.labels(event.job_id).set(time.time())

    scheduler.add_listener(executed, EVENT_JOB_EXECUTED)


def add_exporter(scheduler: Any) -> None:
    """Use the package apscheduler-exporter."""
    from apscheduler_metrics.exporter import (  # noqa: PLC0415  # only where it is measured
        APSchedulerExporter,
    )

    APSchedulerExporter(scheduler, registry=CollectorRegistry())


def instrument_metrics(scheduler: Any) -> None:
    """Use ours, with tracing turned off."""
    instrument(
        scheduler,
        registry=CollectorRegistry(),
        tracer_provider=NoOpTracerProvider(),
        max_labels=MAX_LABELS,
    )


def instrument_without_sdk(scheduler: Any) -> None:
    """Use ours with its defaults, where no OpenTelemetry SDK is configured."""
    instrument(scheduler, registry=CollectorRegistry())


def instrument_spans(scheduler: Any) -> None:
    """Use ours with recording spans and a batch processor."""
    instrument(scheduler, registry=CollectorRegistry(), tracer_provider=recording_provider())


def instrument_journal(scheduler: Any) -> None:
    """Use ours with a journal of runs in flight, with tracing turned off."""
    directory = TemporaryDirectory()
    weakref.finalize(scheduler, directory.cleanup)
    instrument(
        scheduler,
        registry=CollectorRegistry(),
        tracer_provider=NoOpTracerProvider(),
        journal=directory.name,
    )


def instrument_without_history(scheduler: Any) -> None:
    """Use ours without the latest runs, with tracing turned off."""
    instrument(
        scheduler,
        registry=CollectorRegistry(),
        tracer_provider=NoOpTracerProvider(),
        history=0,
    )


def instrument_run_log(scheduler: Any) -> None:
    """Use ours with a log record of each run, as a line of JSON, with tracing turned off."""
    logger = logging.getLogger("apscheduler_telemetry.runs")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JSONFormatter())
    logger.handlers = [handler]
    instrument(
        scheduler,
        registry=CollectorRegistry(),
        tracer_provider=NoOpTracerProvider(),
        run_log=True,
    )


def instrument_run_events(scheduler: Any) -> None:
    """Use ours with an OpenTelemetry event of each run, with tracing turned off."""
    instrument(
        scheduler,
        registry=CollectorRegistry(),
        tracer_provider=NoOpTracerProvider(),
        logger_provider=recording_logger_provider(),
    )


@dataclass(frozen=True)
class Contender:
    """What is done to a scheduler before it starts, and the job that it runs."""

    watch: Callable[[Any], None]
    job: JobFunctions = WORK


CONTENDERS: Mapping[str, Contender] = {
    "bare": Contender(watch_nothing),
    "no-op hooks": Contender(add_hooks, CALL_WORK),
    "listener": Contender(add_listener),
    "apscheduler-exporter": Contender(add_exporter),
    "metrics": Contender(instrument_metrics),
    "journal": Contender(instrument_journal),
    "no history": Contender(instrument_without_history),
    "run log": Contender(instrument_run_log),
    "run events": Contender(instrument_run_events),
    "no SDK": Contender(instrument_without_sdk),
    "bare span": Contender(watch_nothing, SPAN_WORK),
    "spans": Contender(instrument_spans),
}


def contender(name: str) -> Contender:
    """
    Return a contender by its name.

    Besides `CONTENDERS`, a name such as ``module:function`` is understood, so that something new
    can be compared by hand. The function gets the scheduler, which has its executor by then.

    Raises:
        ValueError: There is no such contender.
    """
    if name in CONTENDERS:
        return CONTENDERS[name]
    module, colon, function = name.partition(":")
    if not colon:
        message = f"{name!r} is no contender; there are {', '.join(CONTENDERS)}, or module:function"
        raise ValueError(message)
    return Contender(getattr(importlib.import_module(module), function))
