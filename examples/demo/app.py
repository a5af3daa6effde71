"""
The demo's application: two schedulers, jobs of every kind, instrumented by the public API only.

Usage: app.py DIRECTORY [PORT [ADDRESS]]

PORT shows both schedulers.

Environment: OTEL_EXPORTER_OTLP_ENDPOINT, and the other variables of OpenTelemetry's SDK, say where
spans and log records of runs go; without it there are none.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler

import jobs
from apscheduler_telemetry import instrument


def background_scheduler(directory: Path) -> BackgroundScheduler:
    """Return a scheduler with an SQLite job store, a thread pool and a process pool."""
    workers = directory / "crunched"
    workers.mkdir(exist_ok=True)
    scheduler = BackgroundScheduler(
        jobstores={"default": SQLAlchemyJobStore(f"sqlite:///{directory / 'jobs.sqlite'}")},
        executors={"default": ThreadPoolExecutor(10), "processes": ProcessPoolExecutor(1)},
        job_defaults={"misfire_grace_time": 30},
    )
    every = {"trigger": "interval", "replace_existing": True}
    scheduler.add_job(jobs.refresh_cache, id="refresh-cache", seconds=2, **every)
    scheduler.add_job(jobs.pull_rates, id="pull-rates", seconds=2, **every)
    scheduler.add_job(jobs.import_orders, id="import-orders", seconds=2, **every)
    scheduler.add_job(jobs.build_report, id="build-report", seconds=1, **every)
    scheduler.add_job(
        jobs.crunch, id="crunch", seconds=3, executor="processes", args=[str(workers)], **every
    )
    scheduler.add_job(jobs.sync_stock, id="sync-stock", seconds=4, **every)
    scheduler.add_job(
        jobs.archive, "cron", id="archive", day_of_week="mon-fri", hour=2, replace_existing=True
    )
    return scheduler


def export_runs() -> Any:
    """
    Export a span and a log record of each run by OTLP over HTTP.

    Returns:
        The provider of loggers; None if the environment does not say where to export to.
    """
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    try:  # here, as `make demo` does without
        from opentelemetry import trace  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http import (  # noqa: PLC0415
            _log_exporter,
            trace_exporter,
        )
        from opentelemetry.sdk._logs import LoggerProvider  # noqa: PLC0415
        from opentelemetry.sdk._logs.export import BatchLogRecordProcessor  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        print("No spans: they need apscheduler-telemetry[otlp].", file=sys.stderr)
        return None
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(trace_exporter.OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    logger_provider = LoggerProvider()
    logger_provider.add_log_record_processor(
        BatchLogRecordProcessor(_log_exporter.OTLPLogExporter())
    )
    return logger_provider


async def main(directory: Path, port: int = 9476, address: str = "127.0.0.1") -> None:
    """Run until SIGINT or SIGTERM."""
    logger_provider = export_runs()
    background = background_scheduler(directory)
    on_the_loop = AsyncIOScheduler()
    on_the_loop.add_job(jobs.poll_queue, "interval", id="poll-queue", seconds=1)

    telemetry = instrument(background, name="background", logger_provider=logger_provider)
    telemetry.start_http_server(port, address)
    instrument(on_the_loop, name="asyncio", logger_provider=logger_provider)

    background.start()
    on_the_loop.start()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await ended.wait()
    jobs.application_ends.set()
    on_the_loop.shutdown()
    background.shutdown()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:3]), *sys.argv[3:4]))
