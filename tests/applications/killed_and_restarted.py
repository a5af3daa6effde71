"""
A process that stores jobs and is killed, and the process that is started after it.

Usage: python -m tests.applications.killed_and_restarted leave | return WHERE

With ``leave``, it stores jobs whose runs were due, and kills itself. With ``return``, it starts as
applications do, and prints the outcomes of the runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import datetime, timedelta, timezone
from typing import Any

from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry, instrument
from tests.helpers import jobs
from tests.helpers.metrics import check_counts, errors_of, job_states, outcomes
from tests.helpers.waiting import wait_until

JOBS = ("plain", "each", "replaced", "replaced-each", "changed", "removed", "paused")
HOURLY: dict[str, Any] = {"trigger": "interval", "hours": 1, "misfire_grace_time": 60}


def scheduler(where: str) -> Any:
    """Return a scheduler whose jobs are stored at a URL, or in Redis on a port."""
    store: Any = SQLAlchemyJobStore(where) if ":" in where else RedisJobStore(port=int(where))
    return BackgroundScheduler(jobstores={"default": store}, timezone=timezone.utc)


def leave(where: str) -> None:
    """Store jobs that were due 3.5, 2.5, 1.5 and 0.5 hours ago, and kill this process."""
    process = scheduler(where)
    process.start(paused=True)
    due = datetime.now(timezone.utc) - timedelta(hours=3.5)
    for job_id in JOBS:
        options = {**HOURLY, "coalesce": not job_id.endswith("each")}
        options["next_run_time"] = None if job_id == "paused" else due
        process.add_job(jobs.nothing, id=job_id, **options)
    os.kill(os.getpid(), signal.SIGKILL)


def ended(telemetry: Telemetry) -> dict[str, int]:
    """Return how many runs of each job have ended."""
    return {job.label: sum(job.outcomes.values()) for job in job_states(telemetry)}


def come_back(where: str) -> None:
    """Start, change some of the jobs, run the others, and print the outcomes of each."""
    process = scheduler(where)
    telemetry = instrument(process, registry=CollectorRegistry())
    for job_id in ("replaced", "replaced-each"):
        process.add_job(jobs.nothing, id=job_id, replace_existing=True, **HOURLY)
    process.start(paused=True)
    process.reschedule_job("changed", trigger="cron", hour=2)
    process.remove_job("removed")
    process.resume()
    wait_until(lambda: ended(telemetry) == {**dict.fromkeys(JOBS, 4), "paused": 0}, "runs to end")
    check_counts(telemetry)
    results = {job_id: outcomes(telemetry, job_id) for job_id in JOBS}
    errors = {component: n for component, n in errors_of(telemetry).counts().items() if n}
    sys.stdout.write(json.dumps([results, errors]))
    process.shutdown()


if __name__ == "__main__":
    {"leave": leave, "return": come_back}[sys.argv[1]](sys.argv[2])
