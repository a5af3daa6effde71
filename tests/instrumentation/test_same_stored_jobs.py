"""Stored jobs have the same bytes with and without telemetry."""

from __future__ import annotations

import pickletools
import sqlite3
import subprocess
import sys
import textwrap
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor

from tests.helpers import jobs
from tests.helpers.clocks import freeze_time
from tests.helpers.recording import recorded
from tests.helpers.schedulers import HandDriven, forkserver_pool
from tests.helpers.waiting import wait_until

NOON = datetime(2020, 1, 1, 12, tzinfo=timezone.utc)
"""Long ago, so that also a child of a process pool, whose clock is the real one, is too late."""


class Holder:
    """Something whose method is a job, so that it is pickled with it."""

    def __init__(self) -> None:
        self.value = 1

    def method(self) -> None: ...


def sql_store(path: Path) -> Any:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

    options = {"poolclass": sqlalchemy.pool.NullPool}
    return SQLAlchemyJobStore(f"sqlite:///{path}", engine_options=options)


def write(path: Path, *, instrumented: bool) -> dict[str, bytes]:
    """Store, run and change jobs; return the rows."""
    scheduler = HandDriven(
        executors={"default": DebugExecutor(), "processes": forkserver_pool(1)},
        jobstores={"default": sql_store(path)},
        timezone=timezone.utc,
    )
    with freeze_time(NOON) as clock, recorded(scheduler, instrumented) as recording:
        scheduler.start()
        for job_id, func, executor in (
            ("function", jobs.nothing, "default"),
            ("failing", jobs.fail, "default"),
            ("method", Holder().method, "default"),
            ("process", jobs.nothing, "processes"),
        ):
            scheduler.add_job(
                func,
                "interval",
                hours=1,
                id=job_id,
                executor=executor,
                next_run_time=NOON,
                misfire_grace_time=None,
            )
        scheduler.turn()
        wait_until(lambda: recording.ended(4))
        clock.advance(3600)
        scheduler.turn()
        wait_until(lambda: recording.ended(8))
        for job in scheduler.get_jobs():
            scheduler.modify_job(job.id, name="changed")
        scheduler.shutdown()
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("select id, job_state from apscheduler_jobs"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, dict[str, bytes]]]:
    """Return job stores and their rows, written without and with telemetry."""
    directory = tmp_path_factory.mktemp("stores")
    paths = {instrumented: directory / str(instrumented) for instrumented in (False, True)}
    return {key: (path, write(path, instrumented=key)) for key, path in paths.items()}


class TestStoredJobs:
    """A job store contains nothing of telemetry, so that either can read the other's jobs."""

    def test_stored_rows_are_the_same_bytes(self, written: dict[bool, Any]) -> None:
        """The stored rows are the same as without telemetry, byte by byte."""
        assert written[True][1] == written[False][1]
        assert len(written[True][1]) == 4

    def test_pickles_name_no_module_of_ours(self, written: dict[bool, Any]) -> None:
        """No pickle names a module of this package."""
        for state in written[True][1].values():
            words = [argument for _, argument, _ in pickletools.genops(state)]
            assert "tests.helpers.jobs" in str(words) or "Holder" in str(words)
            assert "apscheduler_telemetry" not in str(words)

    def test_process_without_telemetry_restores_and_runs_the_jobs(
        self, written: dict[bool, Any]
    ) -> None:
        """A process in which telemetry cannot be imported restores and runs the jobs."""
        path = written[True][0]
        with closing(sqlite3.connect(path)) as connection, connection:
            # Its class is in this module, which imports telemetry.
            connection.execute("delete from apscheduler_jobs where id = 'method'")
        script = f"""
            import sys, threading
            sys.modules["apscheduler_telemetry"] = None
            sys.path[:0] = {sys.path!r}
            from apscheduler.events import EVENT_JOB_EXECUTED
            from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
            from apscheduler.schedulers.background import BackgroundScheduler
            from sqlalchemy.pool import NullPool

            options = {{"poolclass": NullPool}}
            store = SQLAlchemyJobStore("sqlite:///{path}", engine_options=options)
            scheduler = BackgroundScheduler(jobstores={{"default": store}})
            ran = threading.Event()
            scheduler.add_listener(lambda event: ran.set(), EVENT_JOB_EXECUTED)
            scheduler.start(paused=True)
            print(*sorted(job.id for job in scheduler.get_jobs()))
            scheduler.resume()
            assert ran.wait({jobs.WAIT_TIMEOUT})
            scheduler.shutdown()
        """
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["failing", "function", "process"]
