"""
What the status page shows of the schedulers of a process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import time as time_of_day
from datetime import tzinfo
from typing import Any, NamedTuple, Protocol

from apscheduler_telemetry.core.model import FAILED_OUTCOMES, Clock, Liveness, Outcome
from apscheduler_telemetry.core.pauses import iterate_with_pauses
from apscheduler_telemetry.core.records import JobSnapshot
from apscheduler_telemetry.core.run_history import History, RunRecord, create_run_records
from apscheduler_telemetry.core.timetable import Timetable, UpcomingRun
from apscheduler_telemetry.export.metric_families import InstrumentedScheduler, sorted_job_snapshots
from apscheduler_telemetry.export.status_texts import (
    RunStrip,
    describe_age,
    describe_countdown,
    describe_duration,
    describe_time,
    draw_runs,
)

ERROR_COMPONENT = "collector"
MAX_LISTED_JOBS = 1_000
"""Jobs in one page, in 1.5 MB; as many as a scheduler has labels by default."""
JOBS_BETWEEN_PAUSES = 20
"""Jobs that are described before other threads run: about a millisecond."""
RUNS_BETWEEN_PAUSES = 1_000
"""The same for upcoming runs."""
RUNS_IN_STRIP = 20
"""Runs that are drawn of each job: what fits into a narrow window."""
DROPPING_STATE_SECONDS = 600.0
"""Seconds for which a run that was dropped is a job's state, as in the dashboards."""
RECENT_FAILURE_SECONDS = 86_400.0
"""Seconds for which jobs that have failed stand before others: what happened last night."""
MAX_SHOWN_RUNS = 100
"""Runs of one job that its page shows; `/runs` has all that are kept."""
MAX_SHOWN_FIRE_TIMES = 10
CHART_HEIGHT_PIXELS = 120
"""Of the durations of a job, in pixels."""
UPCOMING_RUNS_SECONDS = 86_400.0
"""Seconds for which upcoming runs are shown."""
MAX_UPCOMING_RUNS = 10_000
"""Upcoming runs to look for: of 400 jobs that run every hour."""
MAX_SHOWN_UPCOMING_LINES = 2_000
"""Lines of upcoming runs, which are those of one job in one hour."""
MAX_SHOWN_OVERLOADS = 50
MAX_SHOWN_JOBS_PER_OVERLOAD = 10
MAX_SHOWN_UNLISTED_JOBS = 50
MAX_SHOWN_MESSAGE_LENGTH = 200
"""Characters of the message of an error in the list of all jobs."""


class JobState(NamedTuple):
    """
    The state of a job or a scheduler, in text and symbol, as in the dashboards.

    Attributes:
        text: the state.
        symbol: which differs in shape, so that colour is never the only difference.
        css_class: ``bad``, ``warning``, ``info``, ``good`` or ``grey``.
    """

    text: str
    symbol: str
    css_class: str

    @property
    def is_trouble(self) -> bool:
        """Whether the job counts as in trouble."""
        return self.css_class in {"bad", "warning"}


STATE_DOWN = JobState("Down", "✖", "bad")
STATE_STUCK = JobState("Stuck", "✖", "bad")
STATE_MISSED = JobState("Missed", "✖", "bad")
STATE_FAILING = JobState("Failing", "✖", "bad")
STATE_DROPPING = JobState("Dropping", "▲", "warning")
STATE_RUNNING = JobState("Running", "▶", "info")
STATE_PAUSED = JobState("Paused", "‖", "warning")
STATE_WAITING = JobState("Waiting", "●", "good")
STATE_IDLE = JobState("Idle", "–", "grey")  # noqa: RUF001  # as in the dashboards
STATE_UP = JobState("Up", "●", "good")
JOB_STATES = (
    STATE_STUCK,
    STATE_MISSED,
    STATE_DOWN,
    STATE_FAILING,
    STATE_DROPPING,
    STATE_PAUSED,
    STATE_RUNNING,
    STATE_WAITING,
    STATE_IDLE,
)
"""Of jobs, the worst first."""
_RANK_BY_STATE = {state: rank for rank, state in enumerate(JOB_STATES)}
_DROPPED_OUTCOMES = frozenset({Outcome.MISSED, Outcome.SKIPPED, Outcome.LOST})


class StatusScheduler(InstrumentedScheduler, Timetable, Protocol):
    """One instrumented scheduler, as the status page sees it."""

    @property
    def uninstrument_reason(self) -> str | None:
        """Why it is not followed any more; None while it is."""


class ShownFailure(NamedTuple):
    """
    The latest run of a job that failed.

    Attributes:
        at: when it ended.
        outcome: how it ended.
        type: of its exception; empty if there is none.
        message: of its exception; empty if there is none or it may not be exported.
    """

    at: str
    outcome: str
    type: str
    message: str


class ShownJob(NamedTuple):
    """
    One job in the list of all jobs.

    Attributes:
        label: the value of the ``job_id`` label.
        state: its state.
        next_run_at: Unix seconds of its next run; 0 if there is none.
        next_run_time: the same as text.
        countdown: how long it is until then, or for how long it is late.
        strip: its last runs; None if there are none.
        last_failure: the latest failure that is kept; None if there is none.
        last_success: when a run last succeeded.
    """

    label: str
    state: JobState
    next_run_at: float
    next_run_time: str
    countdown: str
    strip: RunStrip | None
    last_failure: ShownFailure | None
    last_success: str


class _LastRuns(NamedTuple):
    """
    What is shown of the last runs of a job.

    Attributes:
        history: the runs; as long as a job has the same ones, the rest holds.
        strip: the runs side by side; None if there are none.
        last_failure: the latest failure; None if there is none.
    """

    history: History
    strip: RunStrip | None
    last_failure: ShownFailure | None


class StatusReporter:
    """
    Returns what the pages show, ready for their templates. It calls no code of jobs.

    Args:
        get_schedulers: returns the schedulers, in the order in which to show them.
        clock: returns Unix seconds.
    """

    def __init__(
        self, get_schedulers: Callable[[], Sequence[StatusScheduler]], clock: Clock = time.time
    ) -> None:
        self._get_schedulers = get_schedulers
        self._clock = clock
        # Of the jobs that were last listed, by scheduler and job: most have not run since then.
        self._last_runs: Mapping[tuple[str, str], _LastRuns] = {}

    def describe_overview(self) -> Mapping[str, Any]:
        """Return all jobs, those in trouble first, and the state of each scheduler."""
        now = self._clock()
        left = MAX_LISTED_JOBS
        shown = []
        last_runs: dict[tuple[str, str], _LastRuns] = {}
        for scheduler in self._get_schedulers():
            described = _describe_scheduler(scheduler, now)
            zone = scheduler.timezone
            jobs = rank_jobs(scheduler, now)
            listed, left = jobs[:left], max(0, left - len(jobs))
            described_jobs = []
            for state, job in iterate_with_pauses(listed, JOBS_BETWEEN_PAUSES):
                key = scheduler.name, job.label
                last = self._last_runs.get(key)
                if last is None or last.history is not job.history:
                    last = _describe_last_runs(job.history, zone)
                last_runs[key] = last
                described_jobs.append(_describe_job(state, job, last, now, zone))
            shown.append(
                {
                    **described,
                    "jobs": described_jobs,
                    "unlisted_count": len(jobs) - len(listed),
                    "trouble_count": sum(state.is_trouble for state, _ in jobs),
                    "job_count": len(jobs),
                }
            )
        self._last_runs = last_runs
        shown.sort(key=lambda each: not (each["trouble_count"] or each["state"].is_trouble))
        return {
            "now": now,
            "infinity": math.inf,
            "schedulers": shown,
            "trouble_count": sum(each["trouble_count"] for each in shown),
            "job_count": sum(each["job_count"] for each in shown),
            "down_count": sum(each["state"] is STATE_DOWN for each in shown),
            "legend": [
                (outcome.value, draw_runs([_example_run(outcome)], height=10))
                for outcome in Outcome
            ],
        }

    def describe_job(self, scheduler_name: str | None, job_id: str) -> Mapping[str, Any] | None:
        """
        Return one job with its runs and its next fire times; None if there is no such job.

        Args:
            scheduler_name: the scheduler; None for the first one that has such a job.
            job_id: the value of the ``job_id`` label.
        """
        now = self._clock()
        for scheduler in self._get_schedulers():
            if scheduler_name is None or scheduler.name == scheduler_name:
                jobs = sorted_job_snapshots(scheduler, ERROR_COMPONENT, is_export=False)
                for job in jobs:
                    if job.label == job_id:
                        return _describe_job_in_detail(scheduler, job, now)
        return None

    def describe_upcoming_runs(self) -> Mapping[str, Any]:
        """Return what is due in the next 24 hours, and when an executor has too few workers."""
        now = self._clock()
        schedulers = [
            _describe_upcoming_runs(scheduler, now) for scheduler in self._get_schedulers()
        ]
        return {"now": now, "schedulers": schedulers}

    def now(self) -> float:
        """Return Unix seconds."""
        return self._clock()


def rank_jobs(scheduler: StatusScheduler, now: float) -> list[tuple[JobState, JobSnapshot]]:
    """
    Return the state and the snapshot of each job of a scheduler, those in trouble first.

    After them come those that have failed within a day, and then the others, by their next run.
    """
    liveness = scheduler.liveness()
    is_instrumented = scheduler.uninstrument_reason is None
    jobs = [
        (find_job_state(job, liveness, now, is_instrumented=is_instrumented), job)
        for job in iterate_with_pauses(
            sorted_job_snapshots(scheduler, ERROR_COMPONENT, is_export=False), JOBS_BETWEEN_PAUSES
        )
    ]

    def rank(item: tuple[JobState, JobSnapshot]) -> tuple[int, float, float, str]:
        state, job = item
        failed_at = job.stats.last_failure_at
        failed_ago = math.inf if failed_at is None else now - failed_at
        return (
            _RANK_BY_STATE[state] if state.is_trouble else len(JOB_STATES),
            failed_ago if failed_ago < RECENT_FAILURE_SECONDS else math.inf,
            job.next_run or math.inf,
            job.label,
        )

    return sorted(jobs, key=rank)


def find_job_state(  # noqa: PLR0911  # one for each state
    job: JobSnapshot, liveness: Liveness, now: float, *, is_instrumented: bool
) -> JobState:
    """
    Return the state of a job, the worst that applies.

    Args:
        job: the job.
        liveness: that of its scheduler.
        now: Unix seconds.
        is_instrumented: whether the scheduler is still instrumented.
    """
    runs, limit = job.in_flight_summary, job.info.expectations.max_duration
    if limit is not None and runs.oldest_start_at and now - runs.oldest_start_at > limit:
        return STATE_STUCK
    grace = job.info.grace
    is_down = bool(job.next_run) and not (liveness.up and is_instrumented)
    is_overdue = any(at and now > at + grace for at in (job.next_run, runs.oldest_queued_due_at))
    is_paused = liveness.scheduler_state == "paused" and bool(job.next_run)
    if is_overdue and not is_down and not is_paused:
        return STATE_MISSED
    if is_down:
        return STATE_DOWN
    if job.stats.consecutive_failures:
        return STATE_FAILING
    if _has_recently_dropped_run(job, now):
        return STATE_DROPPING
    if is_paused:
        return STATE_PAUSED
    if runs.running:
        return STATE_RUNNING
    return STATE_WAITING if job.next_run else STATE_IDLE


def _has_recently_dropped_run(job: JobSnapshot, now: float) -> bool:
    if not any(job.stats.outcomes[outcome] for outcome in _DROPPED_OUTCOMES):
        return False  # as of most jobs
    since = now - DROPPING_STATE_SECONDS
    for run in reversed(job.history):
        if run.finished_at < since:
            return False
        if run.outcome in _DROPPED_OUTCOMES:
            return True
    return False


def _describe_scheduler(scheduler: StatusScheduler, now: float) -> dict[str, Any]:
    return {
        **_describe_state(scheduler),
        "info": scheduler.scheduler_info(),
        "last_pass": describe_age(scheduler.last_pass_ended_at, now),
        "started": describe_age(scheduler.started_at, now),
        "executors": sorted(scheduler.recorder.executors().items()),
        "jobstores": sorted(scheduler.recorder.jobstores().items()),
    }


def _describe_state(scheduler: StatusScheduler) -> dict[str, Any]:
    """Return the name and the state of a scheduler, and why it is down."""
    liveness, reason = scheduler.liveness(), scheduler.uninstrument_reason
    reasons = [message for _, message in liveness.reasons]
    state = STATE_UP
    if reason is not None:
        state, reasons = STATE_DOWN, [reason]
    elif not liveness.up:
        state = STATE_DOWN
    elif liveness.scheduler_state == "paused":
        state = STATE_PAUSED
    return {"name": scheduler.name, "state": state, "reasons": reasons}


def _describe_last_runs(history: History, zone: tzinfo) -> _LastRuns:
    runs = create_run_records(history)
    return _LastRuns(history, draw_runs(runs[-RUNS_IN_STRIP:]), find_last_failure(runs, zone))


def _describe_job(
    state: JobState, job: JobSnapshot, last_runs: _LastRuns, now: float, zone: tzinfo
) -> ShownJob:
    next_run = job.next_run or 0.0
    return ShownJob(
        label=job.label,
        state=state,
        next_run_at=next_run,
        next_run_time=describe_time(next_run, zone) if next_run else "",
        countdown=describe_countdown(next_run, now) if next_run else "",
        strip=last_runs.strip,
        last_failure=last_runs.last_failure,
        last_success=describe_age(job.stats.last_success_at, now),
    )


def _describe_job_in_detail(
    scheduler: StatusScheduler, job: JobSnapshot, now: float
) -> dict[str, Any]:
    zone, info = scheduler.timezone, job.info
    state = find_job_state(
        job, scheduler.liveness(), now, is_instrumented=scheduler.uninstrument_reason is None
    )
    runs = create_run_records(job.history[-MAX_SHOWN_RUNS:])
    upcoming = scheduler.find_upcoming_runs(
        math.inf, label=job.label, max_count=MAX_SHOWN_FIRE_TIMES
    )
    durations = [run.duration for run in runs if run.duration is not None]
    running_since = job.in_flight_summary.oldest_start_at or None
    return {
        "now": now,
        "scheduler": scheduler.name,
        "timezone": scheduler.scheduler_info().get("timezone", ""),
        "job": _describe_job(state, job, _describe_last_runs(job.history, zone), now, zone),
        "info": info,
        "grace": describe_duration(info.grace),
        "expectations": _describe_expectations(job),
        "running": job.in_flight_summary.running,
        "queued": job.in_flight_summary.queued,
        "running_since": None if running_since is None else describe_age(running_since, now),
        "counts": [(outcome.value, count) for outcome, count in job.stats.outcomes.items()],
        "chart": draw_runs(runs, CHART_HEIGHT_PIXELS),
        "longest": describe_duration(max(durations)) if durations else None,
        "first_time": describe_time(runs[0].due_at, zone) if runs else "",
        "last_time": describe_time(runs[-1].due_at, zone) if runs else "",
        "runs": [_describe_run(run, zone) for run in reversed(runs)],
        "upcoming": [
            (run.due_at, describe_time(run.due_at, zone), describe_countdown(run.due_at, now))
            for run in upcoming.runs
        ],
        "unlisted_reason": upcoming.unlisted[0].reason if upcoming.unlisted else None,
    }


def _describe_upcoming_runs(scheduler: StatusScheduler, now: float) -> dict[str, Any]:
    zone = scheduler.timezone
    found = scheduler.find_upcoming_runs(now + UPCOMING_RUNS_SECONDS, max_count=MAX_UPCOMING_RUNS)
    hours = _group_by_hour(found.runs, zone)
    overloads = _find_executor_overloads(scheduler, found.runs)
    is_complete = found.complete_until == math.inf
    return {
        **_describe_state(scheduler),
        "timezone": scheduler.scheduler_info().get("timezone", ""),
        "run_count": len(found.runs),
        "complete_until": None if is_complete else describe_time(found.complete_until, zone),
        "unlisted": [
            (each.label, each.reason, describe_time(each.last_listed_at, zone))
            for each in found.unlisted[:MAX_SHOWN_UNLISTED_JOBS]
        ],
        "more_unlisted": max(0, len(found.unlisted) - MAX_SHOWN_UNLISTED_JOBS),
        "hours": hours,
        "overloads": [
            {
                "time": describe_time(at, zone),
                "executor": alias,
                "workers": int(workers),
                "count": len(labels),
                "jobs": list(dict.fromkeys(labels))[:MAX_SHOWN_JOBS_PER_OVERLOAD],
                "more": max(0, len(set(labels)) - MAX_SHOWN_JOBS_PER_OVERLOAD),
            }
            for at, alias, workers, labels in overloads[:MAX_SHOWN_OVERLOADS]
        ],
        "more_overloads": max(0, len(overloads) - MAX_SHOWN_OVERLOADS),
    }


def _group_by_hour(runs: Sequence[UpcomingRun], zone: tzinfo) -> list[dict[str, Any]]:
    """Return the runs of each hour of the time zone, as the first one of each job and a count."""
    hour_texts: dict[int, str] = {}
    hours: dict[str, dict[str, list[float]]] = {}
    for run in iterate_with_pauses(runs, RUNS_BETWEEN_PAUSES):
        # Every hour of every time zone begins at a quarter of an hour.
        quarter = int(run.due_at // 900)
        hour = hour_texts.get(quarter)
        if hour is None:
            text = describe_time(quarter * 900, zone)
            hour = hour_texts[quarter] = f"{text[:13]}:00{text[19:]}"
        hours.setdefault(hour, {}).setdefault(run.label, []).append(run.due_at)
    shown = []
    left = MAX_SHOWN_UPCOMING_LINES
    for hour, jobs in hours.items():
        listed = list(jobs.items())[:left]
        left -= len(listed)
        shown.append(
            {
                "hour": hour,
                "run_count": sum(map(len, jobs.values())),
                "job_count": len(jobs),
                "jobs": [
                    (describe_time(times[0], zone)[11:], label, len(times))
                    for label, times in listed
                ],
                "more": len(jobs) - len(listed),
            }
        )
    return shown


def _find_executor_overloads(
    scheduler: StatusScheduler, runs: Sequence[UpcomingRun]
) -> list[tuple[float, str, float, list[str]]]:
    """Return each second in which an executor gets more runs than it has workers."""
    workers = {alias: each.workers for alias, each in scheduler.recorder.executors().items()}
    labels: dict[tuple[int, str], list[str]] = {}
    for run in runs:
        labels.setdefault((int(run.due_at), run.executor), []).append(run.label)
    return [
        (at, alias, workers[alias], due)
        for (at, alias), due in labels.items()
        if len(due) > workers.get(alias, math.inf)
    ]


def _describe_expectations(job: JobSnapshot) -> list[tuple[str, str]]:
    """Return what is expected of a job, besides its grace: each a name and a text."""
    expected = job.info.expectations
    texts = []
    if expected.max_duration is not None:
        texts.append(("Longest allowed run", describe_duration(expected.max_duration)))
    if expected.min_duration is not None:
        texts.append(("Shortest allowed run", describe_duration(expected.min_duration)))
    if expected.deadline is not None:
        deadline = expected.deadline
        if isinstance(deadline, time_of_day):
            texts.append(("Deadline", deadline.isoformat("minutes")[:5]))
        else:
            texts.append(("Deadline", f"{describe_duration(deadline)} after it is due"))
    if expected.owner:
        texts.append(("Owner", expected.owner))
    return texts


def _describe_run(run: RunRecord, zone: tzinfo) -> dict[str, Any]:
    return {
        "due": describe_time(run.due_at, zone),
        "start": "" if run.started_at is None else describe_time(run.started_at, zone),
        "duration": "" if run.duration is None else describe_duration(run.duration),
        "outcome": run.outcome.value,
        "type": run.error_type or "",
        "message": run.error_message or "",
        "trace_id": run.trace_id,
    }


def find_last_failure(runs: Sequence[RunRecord], zone: tzinfo) -> ShownFailure | None:
    """Return the latest of the runs that failed; None if there is none."""
    for run in reversed(runs):
        if run.outcome in FAILED_OUTCOMES:
            message = run.error_message or ""
            if len(message) > MAX_SHOWN_MESSAGE_LENGTH:
                message = f"{message[: MAX_SHOWN_MESSAGE_LENGTH - 1]}…"
            return ShownFailure(
                at=describe_time(run.ended_at, zone),
                outcome=run.outcome.value,
                type=run.error_type or "",
                message=message,
            )
    return None


def _example_run(outcome: Outcome) -> RunRecord:
    duration = 1.0 if outcome in {Outcome.SUCCESS, Outcome.ERROR} else None
    return RunRecord(0, "", 0.0, 0.0, 0.0, duration, outcome, None, None, None)
