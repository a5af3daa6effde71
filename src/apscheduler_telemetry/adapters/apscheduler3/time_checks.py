"""
Checks of when jobs are due, for `check_scheduler`: clocks that change, and too many jobs at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date, datetime, timedelta, timezone, tzinfo
from typing import Any

from apscheduler.triggers.combining import AndTrigger
from apscheduler.triggers.cron import CronTrigger

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.checked_jobs import CheckedJob
from apscheduler_telemetry.adapters.apscheduler3.executors import pool_of, worker_capacity
from apscheduler_telemetry.adapters.base import SchedulerImportFacts
from apscheduler_telemetry.core.findings import INFO, SERIOUS, Finding
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.times import start_of_day, to_datetime, to_unix_seconds

CLOCK_CHANGE_DAYS_AHEAD = 370
"""Days in which clocks are looked at: each change of a year is among them."""
DAY_SECONDS = 86_400.0
RARE_JOB_INTERVAL_SECONDS = 12 * 3_600.0
"""A job that runs more often loses little if a run of it is skipped, or comes twice, in a night."""
MAX_FIRE_TIMES_PER_DAY = 100
"""More than a job that is rare in this sense has on one day."""
SIMULTANEOUS_WINDOW_SECONDS = 1.0
"""Jobs that are due within this time are due at once: they were added one after the other."""
MAX_EXAMINED_WINDOWS = 50
"""The fullest windows in which frequent jobs are counted as well, which calls their triggers."""


def check_clock_changes(jobs: Sequence[CheckedJob], now: datetime) -> Iterator[Finding]:
    """Yield the jobs that a change of clocks skips or runs twice, with the next dates."""
    changes_by_zone: dict[str, list[date]] = {}
    for job in jobs:
        intervals = job.upcoming.interval_range
        if intervals is None or intervals[1] < RARE_JOB_INTERVAL_SECONDS:
            continue
        for trigger in _cron_triggers_of(job.job.trigger):
            zone = trigger.timezone
            if str(zone) not in changes_by_zone:
                changes_by_zone[str(zone)] = list(_find_clock_change_days(zone, now))
            effects = []
            for day in changes_by_zone[str(zone)]:
                skipped, repeated = _find_skipped_and_repeated_times(trigger, day)
                effects += [f"does not run at {text} on {day}" for text in skipped]
                effects += [f"runs twice at {text} on {day}" for text in repeated]
            if effects:
                yield Finding(
                    "dst-gap",
                    SERIOUS,
                    (job.id,),
                    f"In {zone}, clocks change: it {' and '.join(effects)}",
                    "scheduler.add_job(..., 'cron', hour=4)  # outside of that hour, or "
                    "timezone='UTC'",
                )


def check_local_timezone(
    jobs: Sequence[CheckedJob], scheduler: Any, facts: SchedulerImportFacts
) -> Iterator[Finding]:
    """Yield the jobs at a time of day that is that of the machine, as nothing else was given."""
    local_ids = {id(trigger) for trigger in facts.local_triggers}
    for job in jobs:
        if not any(
            id(trigger) in local_ids and _depends_on_hour(trigger)
            for trigger in _cron_triggers_of(job.job.trigger)
        ):
            continue
        if not facts.has_configured_timezone:
            yield Finding(
                "local-timezone",
                INFO,
                (job.id,),
                "The scheduler has no timezone=, so the time of day is that of the machine, which "
                f"is {scheduler.timezone} here, and may be another one in a container",
                f"scheduler = {type(scheduler).__name__}(timezone='Europe/Berlin')  # and "
                "CronTrigger(..., timezone='Europe/Berlin')",
            )
        else:
            yield Finding(
                "local-timezone",
                SERIOUS,
                (job.id,),
                "Its CronTrigger was created without timezone=, so the time of day is that of the "
                f"machine, and not that of the scheduler, which is {scheduler.timezone}",
                f"CronTrigger(..., timezone='{scheduler.timezone}')  # from_crontab() has it as "
                "well",
            )


def check_pool_sizes(jobs: Sequence[CheckedJob]) -> Iterator[Finding]:
    """Yield the executors with fewer workers than jobs that are due at once."""
    for executor in {id(job.executor): job.executor for job in jobs}.values():
        if executor is None or pool_of(executor) is None:
            continue
        workers = worker_capacity(executor)
        due = [
            job
            for job in jobs
            if job.executor is executor
            and job.upcoming.times
            # A longer jitter spreads the runs.
            and triggers.find_max_jitter(job.job.trigger) <= SIMULTANEOUS_WINDOW_SECONDS
        ]
        if len(due) <= workers:
            continue
        at, at_once = _find_fullest_window(due)
        if len(at_once) <= workers:
            continue
        is_dropped = any(
            job.misfire_grace_time is not None and job.misfire_grace_time <= 1 for job in at_once
        )
        effect = "runs that cannot start within 1 s are dropped" if is_dropped else "the rest waits"
        yield Finding(
            "pool-size",
            SERIOUS if is_dropped else INFO,
            (),
            f"{len(at_once)} jobs are due at {at.isoformat(timespec='seconds')}, and the executor "
            f"{at_once[0].job.executor!r} has {workers:.0f} workers: {effect}",
            f"executors={{{at_once[0].job.executor!r}: "
            f"{type(executor).__name__}({len(at_once)})}}  # for the scheduler; or other times",
        )


def _find_fullest_window(jobs: Sequence[CheckedJob]) -> tuple[datetime, list[CheckedJob]]:
    """Return when most jobs are due within a second, and which."""
    fires = sorted(
        (to_unix_seconds(at), number)
        for number, job in enumerate(jobs)
        for at in job.upcoming.times
    )
    counts: Counter[float] = Counter()
    last = 0
    for first, (since, _) in enumerate(fires):
        last = max(last, first)
        while last < len(fires) and fires[last][0] < since + SIMULTANEOUS_WINDOW_SECONDS:
            last += 1
        counts[since] = max(counts[since], len({number for _, number in fires[first:last]}))
    best: tuple[float, list[CheckedJob]] = (fires[0][0], [])
    for since, _ in counts.most_common(MAX_EXAMINED_WINDOWS):
        found = [job for job in jobs if _is_due_in_window(job, since)]
        if len(found) > len(best[1]):
            best = since, found
    return to_datetime(best[0], best[1][0].upcoming.times[0].tzinfo), best[1]


def _is_due_in_window(job: CheckedJob, since: float) -> bool:
    """Return whether a job is due within the window, also if that is after its known fire times."""
    times = [to_unix_seconds(at) for at in job.upcoming.times]
    if times[-1] >= since or len(times) < triggers.MAX_UPCOMING_FIRE_TIMES:
        return any(since <= at < since + SIMULTANEOUS_WINDOW_SECONDS for at in times)
    zone = job.upcoming.times[0].tzinfo
    before = to_datetime(since - 1e-6, zone)
    at = triggers.find_later_fire_time(job.job.trigger, before)
    return at is not None and to_unix_seconds(at) < since + SIMULTANEOUS_WINDOW_SECONDS


def _find_clock_change_days(zone: tzinfo, now: datetime) -> Iterator[date]:
    """Yield the days on which the clocks of a zone change."""
    day, end = (
        now.astimezone(zone).date(),
        now.astimezone(zone).date() + timedelta(CLOCK_CHANGE_DAYS_AHEAD),
    )
    while day < end:
        following = day + timedelta(days=1)
        if start_of_day(following, zone) - start_of_day(day, zone) != DAY_SECONDS:
            yield day
        day = following


def _find_skipped_and_repeated_times(trigger: Any, day: date) -> tuple[list[str], list[str]]:
    """
    Return at which times of a day a cron trigger does not fire, and at which twice.

    The trigger itself is called, as versions of APScheduler differ: many fire an hour later if the
    time does not exist.
    """
    zone, fields = trigger.timezone, {field.name: str(field) for field in trigger.fields}
    try:
        if not _is_within_limits(trigger, day):
            return [], []
        even, actual = (CronTrigger(**fields, timezone=each) for each in (timezone.utc, zone))
        expected = Counter(
            at.strftime("%H:%M:%S") for at in _find_fire_times_of_day(even, day, timezone.utc)
        )
        fires = _find_fire_times_of_day(actual, day, zone)
    except BaseException as error:  # noqa: BLE001  # the time zone may be the user's code
        raise_if_interruption(error)
        return [], []
    found = Counter(at.strftime("%H:%M:%S") for at in fires)
    missing = sum(expected.values()) - sum(found.values())
    skipped = sorted((expected - found).elements())[: max(missing, 0)]
    repeated = sorted(text for text, count in found.items() if count > expected.get(text, 0) > 0)
    return [_remove_zero_seconds(text) for text in skipped], [
        _remove_zero_seconds(text) for text in repeated
    ]


def _is_within_limits(trigger: Any, day: date) -> bool:
    """Return whether a whole day is between the start and the end date of a cron trigger."""
    zone = trigger.timezone
    return (
        trigger.start_date is None or to_unix_seconds(trigger.start_date) <= start_of_day(day, zone)
    ) and (
        trigger.end_date is None
        or to_unix_seconds(trigger.end_date) >= start_of_day(day + timedelta(days=1), zone)
    )


def _find_fire_times_of_day(trigger: Any, day: date, zone: tzinfo) -> list[datetime]:
    """Return the fire times of a day, as the clocks show them."""
    start, end = start_of_day(day, zone), start_of_day(day + timedelta(days=1), zone)
    fires: list[datetime] = []
    at = triggers.find_later_fire_time(trigger, to_datetime(start - 1e-3, zone))
    while at is not None and to_unix_seconds(at) < end and len(fires) < MAX_FIRE_TIMES_PER_DAY:
        fires.append(to_datetime(to_unix_seconds(at), zone))
        at = triggers.find_later_fire_time(trigger, at)
    return fires


def _remove_zero_seconds(text: str) -> str:
    return text.removesuffix(":00")


def _cron_triggers_of(trigger: Any) -> Sequence[Any]:
    """Return the cron triggers whose fire times are those of a trigger: it, or those it joins."""
    parts = list(triggers.parts_of(trigger))
    if any(type(part) is AndTrigger for part in parts):  # which fires at few times of its parts
        return []
    return [part for part in parts if type(part) is CronTrigger]


def _depends_on_hour(trigger: Any) -> bool:
    """Return whether a cron trigger is for certain hours, days or months."""
    return any(
        field.name in {"hour", "day", "day_of_week", "week", "month"} and str(field) != "*"
        for field in trigger.fields
    )
