"""Jobs of a scheduler whose passes are started by the test, and their metrics state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Any

from apscheduler_telemetry.core.records import JobRecord
from tests.helpers import jobs
from tests.helpers.clocks import START, FrozenClock
from tests.helpers.metrics import adapter_of, recorder_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.watching import Watched, watched


@contextmanager
def driven(clock: FrozenClock | None = None, **options: Any) -> Iterator[Watched]:
    """Start a scheduler that is driven by hand."""
    with watched(hand_driven_scheduler(timezone=timezone.utc, **options)) as seen:
        seen.scheduler.start()
        yield seen


def add(seen: Watched, seconds: float = 60, **options: Any) -> Any:
    """Add a job that is due `seconds` from now and then every hour."""
    options = {"id": "job", "trigger": "interval", "hours": 1, **options}
    if options["trigger"] == "date":
        del options["hours"]
    at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return seen.scheduler.add_job(
        options.pop("func", jobs.nothing), next_run_time=at, misfire_grace_time=None, **options
    )


IN_A_MINUTE = START.timestamp() + 60

INFO = {
    "name": "nothing",
    "func": "tests.helpers.jobs:nothing",
    "trigger": "interval[1:00:00]",
    "executor": "default",
}


def set_origin(seen: Watched, place: str | None) -> None:
    """Set the origin of what happens from now on."""
    origins_of(seen).find_current_origin = lambda reason: place and f"{place}: {reason}"


def link_of(seen: Watched, job_id: str) -> Any:
    tracked = adapter_of(seen.telemetry)._tracked_jobs.get(("default", job_id))
    assert tracked is not None
    return tracked.added_origin


def origins_of(seen: Watched) -> Any:
    return adapter_of(seen.telemetry)._trace_links._origin_propagator


def job_record(seen: Watched, alias: str) -> JobRecord:
    record = recorder_of(seen.telemetry).find_job_record(alias, "job")
    assert record is not None
    return record
