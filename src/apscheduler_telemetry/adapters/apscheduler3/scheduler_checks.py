"""
Finds risks in how a scheduler and its jobs are set up; nothing is started or changed.
"""

from __future__ import annotations

import configparser
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler

from apscheduler_telemetry.adapters.apscheduler3.checked_jobs import collect_jobs
from apscheduler_telemetry.adapters.apscheduler3.job_checks import check_job, check_max_instances
from apscheduler_telemetry.adapters.apscheduler3.time_checks import (
    check_clock_changes,
    check_local_timezone,
    check_pool_sizes,
)
from apscheduler_telemetry.adapters.base import SchedulerImportFacts
from apscheduler_telemetry.core.findings import INFO, SERIOUS, Finding, group_findings_of_jobs

UWSGI_FILE = "uwsgi.ini"
"""The file in the current directory that uWSGI's documentation uses."""


def check_scheduler(
    scheduler: Any,
    *,
    stored_jobs: Mapping[str, Sequence[Any]],
    skipped_runs: Mapping[str, int],
    facts: SchedulerImportFacts,
    others: Sequence[Any] = (),
) -> list[Finding]:
    """
    Return the risks of a scheduler, serious ones first.

    Args:
        scheduler: an APScheduler 3 scheduler, started or not.
        stored_jobs: the jobs that are in its job stores, by the alias of the store.
        skipped_runs: how many runs this process has skipped, by the id of the job.
        facts: what was seen of it; by its defaults, nothing follows from them.
        others: further schedulers of the application.
    """
    now = datetime.now(scheduler.timezone)
    jobs = collect_jobs(scheduler, stored_jobs, now)

    def yield_findings() -> Iterator[Finding]:
        for job in jobs:
            yield from check_job(job, now, facts)
        yield from check_max_instances(jobs, skipped_runs)
        yield from check_pool_sizes(jobs)
        yield from check_clock_changes(jobs, now)
        yield from check_local_timezone(jobs, scheduler, facts)
        for store in scheduler._jobstores.values():  # noqa: SLF001
            yield from _check_connection_pool(store)
        if not facts.was_paused:
            yield from _check_shared_jobstores(scheduler, others)
        yield from _check_threads_and_shutdown(scheduler, facts)

    return group_findings_of_jobs(yield_findings())


def _check_connection_pool(store: Any) -> Iterator[Finding]:
    """Yield what is wrong with the connections of a SQLAlchemy job store to a server."""
    engine = _sqlalchemy_engine_of(store)
    if engine is None or engine.dialect.name == "sqlite":
        return
    pool = engine.pool
    if type(pool).__name__ in _POOLS_WITHOUT_IDLE_CONNECTIONS:
        return
    if getattr(pool, "_pre_ping", True):
        return
    yield Finding(
        "pool-pre-ping",
        SERIOUS,
        (),
        "A connection to the database that the server or a firewall has closed is only found when "
        "it is used: looking for due jobs fails then, and is repeated 10 s later",
        "SQLAlchemyJobStore(url, engine_options={'pool_pre_ping': True})  # or "
        "create_engine(url, pool_pre_ping=True)",
    )
    if engine.dialect.name in {"mysql", "mariadb"} and getattr(pool, "_recycle", -1) < 0:
        yield Finding(
            "pool-recycle",
            SERIOUS,
            (),
            "MySQL closes connections that were idle for 8 hours, by default, and this pool keeps "
            "them for ever",
            "SQLAlchemyJobStore(url, engine_options={'pool_recycle': 3600})  # or "
            "create_engine(url, pool_recycle=3600)",
        )


_POOLS_WITHOUT_IDLE_CONNECTIONS = {"NullPool", "StaticPool", "AssertionPool"}


def _check_shared_jobstores(scheduler: Any, others: Sequence[Any]) -> Iterator[Finding]:
    for alias, store in scheduler._jobstores.items():  # noqa: SLF001
        place = _storage_identity(store)
        if any(
            place == _storage_identity(each)
            for other in others
            for each in other._jobstores.values()  # noqa: SLF001
        ):
            yield Finding(
                "shared-jobstore",
                SERIOUS,
                (),
                f"Another scheduler of the application has the same jobs as the store {alias!r}: "
                "if both run, each job runs twice",
                _SHARED_JOBSTORE_FIXES.get(type(store).__name__, "")
                + "scheduler.start(paused=True)  # for the one that only adds jobs",
            )


_SHARED_JOBSTORE_FIXES: Mapping[str, str] = {
    "RedisJobStore": "RedisJobStore(jobs_key='other.jobs', run_times_key='other.run_times')  # or ",
    "SQLAlchemyJobStore": "SQLAlchemyJobStore(url, tablename='other_jobs')  # or ",
}


def _storage_identity(store: Any) -> object:
    """Return what is equal for two job stores that have the same jobs."""
    engine = _sqlalchemy_engine_of(store)
    if engine is not None:
        url, database, dialect = engine.url, engine.url.database, engine.dialect.name
        if dialect == "sqlite":
            if database in {None, "", ":memory:"}:
                return id(engine)
            database = str(Path(database).resolve())
        # Not the user and the driver, with which another scheduler may have the same jobs.
        server = (url.host, url.port) if url.host else str(url.query)
        return dialect, server, database, str(store.jobs_t.schema), str(store.jobs_t.name)
    pool = getattr(getattr(store, "redis", None), "connection_pool", None)
    if pool is not None:
        options = pool.connection_kwargs
        defaults = {"host": "localhost", "port": 6379, "path": "", "db": 0}
        return *(str(options.get(*each)) for each in defaults.items()), str(store.jobs_key)
    return id(store)


def _sqlalchemy_engine_of(store: Any) -> Any:
    """Return the engine of APScheduler's job store for SQLAlchemy; None for other stores."""
    # Not imported here: a process with such a store has imported the class.
    kind = getattr(sys.modules.get("apscheduler.jobstores.sqlalchemy"), "SQLAlchemyJobStore", None)
    return store.engine if kind is not None and isinstance(store, kind) else None


def _check_threads_and_shutdown(scheduler: Any, facts: SchedulerImportFacts) -> Iterator[Finding]:
    """Yield what is wrong with how the scheduler is part of its process."""
    if isinstance(scheduler, BackgroundScheduler):
        if _are_uwsgi_threads_disabled():
            yield Finding(
                "uwsgi-threads",
                SERIOUS,
                (),
                "uWSGI runs no threads of the application, and so no job",
                "enable-threads = true  # in the section [uwsgi]",
            )
        if facts.was_started and not facts.keeps_main_thread and scheduler._daemon:  # noqa: SLF001
            yield Finding(
                "daemon-thread",
                INFO,
                (),
                "The scheduler runs in a daemon thread, which ends without a message when the main "
                "thread of the script ends",
                "scheduler = BlockingScheduler()  # its start() returns after shutdown()",
            )
    if facts.was_started and not facts.calls_shutdown:
        is_blocking = type(scheduler) is BlockingScheduler
        yield Finding(
            "no-shutdown",
            INFO,
            (),
            "The scheduler is started, and no module of the application calls its shutdown(), "
            "which waits for runs in progress",
            # SIGTERM ends a process that only waits in start() without calling such functions.
            "signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # before start(), and after it "
            "`finally: scheduler.shutdown()`"
            if is_blocking
            else "atexit.register(scheduler.shutdown)",
        )


def _are_uwsgi_threads_disabled() -> bool:
    """Return whether uWSGI runs this process, or is configured to, without threads."""
    uwsgi = sys.modules.get("uwsgi")  # a module that exists in its processes only
    options: Mapping[Any, Any] | None = None
    if uwsgi is not None:
        options = getattr(uwsgi, "opt", None)
    else:
        parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
        try:
            parser.read_string(Path(UWSGI_FILE).read_text("utf-8", "replace"))
            options = parser["uwsgi"]
        except (OSError, KeyError, configparser.Error):
            return False
    if not options:
        return False
    values = {
        _uwsgi_option_text(name): _uwsgi_option_text(value).lower()
        for name, value in options.items()
    }
    return values.get("enable-threads", "0") in {"0", "false", "no"} and values.get(
        "threads", "1"
    ) in {"0", "1"}


def _uwsgi_option_text(value: Any) -> str:
    if value is None:  # a name without a value switches it on
        return "true"
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
