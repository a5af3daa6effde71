"""Job stores that outlive a scheduler: what is in them, and the servers that keep them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import sqlalchemy
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

import support_jobs as jobs
import support_scenes as scenes

NEVER = datetime(2999, 1, 1, tzinfo=timezone.utc)
NO_POOL = {"poolclass": sqlalchemy.pool.NullPool}
"""APScheduler looks for due jobs once more after its shutdown, which would leave a connection."""


class Rows:
    """A job store in a file, and what is in it."""

    def __init__(self, directory: Path) -> None:
        self.url = f"sqlite:///{directory / 'jobs.sqlite'}"
        self.engine = sqlalchemy.create_engine(self.url)

    def store(self) -> Any:
        return SQLAlchemyJobStore(self.url, engine_options=NO_POOL)

    def ids(self) -> set[str]:
        with self.engine.begin() as connection:
            rows = connection.execute(sqlalchemy.text("select id from apscheduler_jobs"))
            return {row.id for row in rows}

    def spoil(self, job_id: str, state: bytes = b"no pickle") -> None:
        """Make a row such that no job can be restored from it."""
        with self.engine.begin() as connection:
            connection.execute(
                sqlalchemy.text("update apscheduler_jobs set job_state = :state where id = :id"),
                {"state": state, "id": job_id},
            )

    def write(self, *job_ids: str, at: datetime = NEVER) -> None:
        """Write jobs as a process without telemetry does."""
        scheduler = scenes.by_hand(jobstores={"default": self.store()})
        scheduler.start(paused=True)
        for job_id in job_ids:
            scheduler.add_job(jobs.nothing, **{**scenes.due(job_id), "next_run_time": at})
        scheduler.shutdown()
