"""Schedulers on job stores that several processes share."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import generate_latest

from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from apscheduler_telemetry.core.model import Outcome
from tests.helpers import jobs
from tests.helpers.jobstore_servers import NEVER, Place
from tests.helpers.metrics import adapter_of, job_states, registry_of, sample
from tests.helpers.rigs import Rig
from tests.helpers.schedulers import HandDriven, hand_driven_scheduler
from tests.helpers.waiting import wait_until
from tests.helpers.watching import Watched, watched

ENDLESS_WAIT = 10.0
"""Seconds that nothing takes, but for what waits for a server that does not answer at all."""
SOON = 0.05
"""Seconds between two readings in these tests, if not 5."""
EARLIER = NEVER - timedelta(days=1)

servers = pytest.mark.integration

POSTGRES = pytest.param("postgres", marks=servers)
REDIS = pytest.param("redis", marks=servers)
remote = pytest.mark.parametrize("kind", [POSTGRES, REDIS])
everywhere = pytest.mark.parametrize("kind", ["sqlite", POSTGRES, REDIS])


@contextlib.contextmanager
def another_process(place: Place) -> Iterator[HandDriven]:
    """Yield a scheduler without telemetry that changes the store like another process."""
    other = hand_driven_scheduler(jobstores={"default": place.store()}, timezone=timezone.utc)
    other.start(paused=True)
    yield other
    other.shutdown()


def background(store: Any, **options: Any) -> BackgroundScheduler:
    return BackgroundScheduler(
        jobstores={"default": store},
        timezone=timezone.utc,
        jobstore_retry_interval=0.1,
        **options,
    )


@contextlib.contextmanager
def scheduler_on(place: Place, **options: Any) -> Iterator[Watched]:
    """Run a scheduler that reads the store, and wait until it has read it once."""
    with watched(background(place.store()), **options) as seen:
        seen.scheduler.start()
        wait_until(lambda: seen.last_read() and last_pass_ended_at(seen))
        yield seen
        assert (seen.own_errors(), seen.errors()) == ({}, {})


def add(scheduler: Any, job_id: str = "job", at: datetime = NEVER, **options: Any) -> None:
    scheduler.add_job(jobs.nothing, "interval", hours=1, id=job_id, next_run_time=at, **options)


def scrape(rig: Rig) -> float:
    """Scrape, and return how many seconds that took."""
    begin = time.perf_counter()
    assert b"apscheduler_scheduler_up" in generate_latest(registry_of(rig.telemetry))
    return time.perf_counter() - begin


def successes(rig: Rig) -> int:
    """Return how often the job has run, or -1 while the scheduler is in a pass."""
    states = [state for state in job_states(rig.telemetry) if state.label == "job"]
    is_asleep = busy(rig) == 0 and states and states[0].next_run > time.time()
    return states[0].outcomes[Outcome.SUCCESS] if is_asleep else -1


def last_pass_ended_at(seen: Rig | Watched) -> float | None:
    """Return when the latest pass over due jobs ended."""
    ended: float | None = seen.telemetry._exported_scheduler.last_pass_ended_at
    return ended


def poller_of(seen: Watched) -> JobStorePoller:
    (hooks,) = adapter_of(seen.telemetry)._hooks_by_jobstore_id.values()
    poller: JobStorePoller = hooks._poller
    return poller


def failed_readings(rig: Rig) -> float:
    return sample(rig.telemetry, "apscheduler_jobstore_read_failures_total", jobstore="default")


def busy(rig: Rig | Watched) -> float:
    """Return for how many seconds the current pass over due jobs has lasted."""
    since = adapter_of(rig.telemetry)._scheduler_loop._pass_started_at
    return 0.0 if since is None else time.monotonic() - since


def complete_pass(seen: Rig | Watched) -> None:
    """Wake the scheduler up, and wait until a pass has begun and ended after that."""
    for _ in range(2):  # the first pass that ends may have begun before
        before = last_pass_ended_at(seen)
        seen.scheduler.wakeup()
        wait_until(lambda: last_pass_ended_at(seen) != before, "the end of a pass")  # noqa: B023


def errors_after_recovery(rig: Rig) -> float:
    """Wait for two passes in which the job store did not fail, and return how often it has."""
    while True:
        before = rig.errors_of("jobstore")
        complete_pass(rig)
        if rig.errors_of("jobstore") == before:
            return before


def run_now(rig: Rig) -> None:
    """Run the job once more, and wait for its end."""
    wait_until(lambda: successes(rig) >= 0, "the scheduler to sleep")
    before = successes(rig)
    rig.scheduler.modify_job("job", next_run_time=datetime.now(timezone.utc))
    wait_until(lambda: successes(rig) == before + 1, "the run")


def lateness(scheduler: Any) -> list[float]:
    """Return a list that grows by how many seconds late each run has ended, as a listener sees."""
    late: list[float] = []

    def note(event: Any) -> None:
        late.append(time.time() - event.scheduled_run_time.timestamp())

    scheduler.add_listener(note, EVENT_JOB_EXECUTED | EVENT_JOB_MISSED)
    return late


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "apscheduler-telemetry"]
