"""
The jobs of a scheduler as the checks see them: with all defaults and their upcoming fire times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.base import BaseScheduler

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.labels import is_generated_id
from apscheduler_telemetry.core.pauses import iterate_with_pauses
from apscheduler_telemetry.core.times import to_unix_seconds

MAX_TRIGGER_CALLS = 1_000
"""Calls of a trigger: ten fire times need ten, so a trigger that needs more has none."""

JOBS_BETWEEN_PAUSES = 1
"""Jobs whose fire times are found before other threads run: about a millisecond."""


class UpcomingFireTimes(NamedTuple):
    """
    The next fire times of a job.

    Attributes:
        times: at most `triggers.MAX_UPCOMING_FIRE_TIMES`; only the first, or none, of a trigger of
            the user's own class.
        problem: why they are not all known, as a sentence about the trigger; None if they are.
    """

    times: Sequence[datetime]
    problem: str | None = None

    @property
    def interval_range(self) -> tuple[float, float] | None:
        """The shortest and the longest interval in seconds; None for fewer than two times."""
        return triggers.compute_interval_range(self.times)


class CheckedJob(NamedTuple):
    """
    A job that is checked.

    Attributes:
        job: APScheduler's job.
        jobstore: the alias of its job store.
        is_persistent: whether that store may outlive the process.
        is_pending: whether it was added before the start, and so is added at each start.
        replaces_existing: whether it was added with ``replace_existing=True``.
        has_explicit_next_run: whether it was added with ``next_run_time=``.
        misfire_grace_time: in seconds; None for no limit.
        coalesce: as APScheduler's.
        max_instances: as APScheduler's.
        upcoming: its next fire times.
        executor: APScheduler's executor that runs it; None if there is none of this alias.
    """

    job: Any
    jobstore: str
    is_persistent: bool
    is_pending: bool
    replaces_existing: bool
    has_explicit_next_run: bool
    misfire_grace_time: float | None
    coalesce: bool
    max_instances: int
    upcoming: UpcomingFireTimes
    executor: Any

    @property
    def id(self) -> str:
        """The id of the job, or its function if each start of the application generates the id."""
        return str(
            self.job.name if self.is_pending and is_generated_id(self.job.id) else self.job.id
        )


def collect_jobs(
    scheduler: Any, stored_jobs: Mapping[str, Sequence[Any]], now: datetime
) -> list[CheckedJob]:
    """
    Return the jobs of a scheduler, those that wait for its start included.

    Args:
        scheduler: an APScheduler 3 scheduler.
        stored_jobs: the jobs that are in its job stores, by the alias of the store.
        now: from when on fire times are looked for.
    """
    executors = get_executors(scheduler)
    added = [(job, alias, replace, True) for job, alias, replace in scheduler._pending_jobs]  # noqa: SLF001
    added += [(job, alias, False, False) for alias, jobs in stored_jobs.items() for job in jobs]
    defaults = scheduler._job_defaults  # noqa: SLF001
    collected = []
    for job, alias, replaces_existing, is_pending in iterate_with_pauses(
        added, JOBS_BETWEEN_PAUSES
    ):
        has_explicit_next_run = hasattr(job, "next_run_time")
        next_run = getattr(job, "next_run_time", None)
        collected.append(
            CheckedJob(
                job=job,
                jobstore=alias,
                is_persistent=is_persistent(scheduler, alias),
                is_pending=is_pending,
                replaces_existing=replaces_existing,
                has_explicit_next_run=is_pending and has_explicit_next_run,
                misfire_grace_time=getattr(
                    job, "misfire_grace_time", defaults["misfire_grace_time"]
                ),
                coalesce=getattr(job, "coalesce", defaults["coalesce"]),
                max_instances=getattr(job, "max_instances", defaults["max_instances"]),
                upcoming=UpcomingFireTimes(())
                if has_explicit_next_run and next_run is None  # added as paused
                else find_upcoming_fire_times(job.trigger, next_run, now),
                executor=executors.get(job.executor),
            )
        )
    return collected


def is_persistent(scheduler: Any, alias: str) -> bool:
    """Return whether a job store may outlive the process; there is one in memory by default."""
    store = scheduler._jobstores.get(alias)  # noqa: SLF001
    return store is not None and not isinstance(store, MemoryJobStore)


def get_executors(scheduler: Any) -> Mapping[str, Any]:
    """Return the executors of a scheduler by alias, with that which it creates at its start."""
    executors = dict(scheduler._executors)  # noqa: SLF001
    if "default" not in executors and issubclass(type(scheduler), BaseScheduler):
        executors["default"] = scheduler._create_default_executor()  # noqa: SLF001
    return executors


def find_upcoming_fire_times(
    trigger: Any, next_run: datetime | None, now: datetime
) -> UpcomingFireTimes:
    """Return the next fire times of a trigger; `next_run` is the first of them if it is known."""
    if next_run is None:
        if not triggers.has_no_custom_part(trigger):
            return UpcomingFireTimes(())
        try:
            next_run = triggers.find_first_fire_time(trigger, now)
        except triggers.NoCommonFireTimeError:
            return UpcomingFireTimes((), "its parts agree on no fire time")
        except BaseException as error:  # noqa: BLE001  # its time zone may be the user's code
            raise_if_interruption(error)
            return UpcomingFireTimes(())
        if next_run is None:
            return UpcomingFireTimes(())
    search = triggers.create_upcoming_fire_time_search(trigger, next_run)
    search.run(MAX_TRIGGER_CALLS)
    times = sorted(search.found.latest_times, key=to_unix_seconds)
    if search.problem is not None and search.problem.kind == triggers.NO_COMMON_FIRE_TIME:
        return UpcomingFireTimes(times, f"its parts agree on no fire time after {times[-1]}")
    return UpcomingFireTimes(times)
