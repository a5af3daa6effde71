"""
What the status page shows of the schedulers of a process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any, NamedTuple, Protocol

from apscheduler_telemetry.core.model import FAILED_OUTCOMES, Clock, Liveness, Outcome, Timetable
from apscheduler_telemetry.core.records import JobSnapshot
from apscheduler_telemetry.core.run_history import RunRecord
from apscheduler_telemetry.export.metric_families import InstrumentedScheduler, sorted_jobs
from apscheduler_telemetry.export.status_texts import (
    RunStrip,
    describe_age,
    describe_countdown,
    describe_time,
    draw_runs,
)

ERROR_COMPONENT = "collector"
MAX_LISTED_JOBS = 1_000
"""Jobs in one page, in 1.5 MB; as many as a scheduler has labels by default."""
RUNS_IN_STRIP = 20
"""Runs that are drawn of each job: what fits into a narrow window."""
DROPPING_SECONDS = 600.0
"""Seconds for which a run that was dropped is a job's state, as in the dashboards."""
RECENT_FAILURE_SECONDS = 86_400.0
"""Seconds for which jobs that have failed stand before others: what happened last night."""
MAX_SHOWN_MESSAGE_LENGTH = 200
"""Characters of the message of an error in the list of all jobs."""


class JobState(NamedTuple):
    """
    The state of a job or a scheduler, in word and sign, as in the dashboards.

    Attributes:
        word: the state.
        sign: which differs in shape, so that colour is never the only difference.
        kind: ``bad``, ``warning``, ``info``, ``good`` or ``grey``.
    """

    word: str
    sign: str
    kind: str

    @property
    def is_trouble(self) -> bool:
        """Whether somebody should look at it."""
        return self.kind in {"bad", "warning"}


DOWN = JobState("Down", "✖", "bad")
STUCK = JobState("Stuck", "✖", "bad")
MISSED = JobState("Missed", "✖", "bad")
FAILING = JobState("Failing", "✖", "bad")
DROPPING = JobState("Dropping", "▲", "warning")
RUNNING = JobState("Running", "▶", "info")
PAUSED = JobState("Paused", "‖", "warning")
WAITING = JobState("Waiting", "●", "good")
IDLE = JobState("Idle", "–", "grey")  # noqa: RUF001  # as in the dashboards
UP = JobState("Up", "●", "good")
STATES = (STUCK, MISSED, DOWN, FAILING, DROPPING, PAUSED, RUNNING, WAITING, IDLE)
"""Of jobs, the worst first."""
_RANKS = {state: rank for rank, state in enumerate(STATES)}
_DROPPED = frozenset({Outcome.MISSED, Outcome.SKIPPED, Outcome.LOST})


class StatusScheduler(InstrumentedScheduler, Timetable, Protocol):
    """One instrumented scheduler, as the status page sees it."""

    @property
    def uninstrument_reason(self) -> str | None:
        """Why it is not followed any more; None while it is."""


class ShownError(NamedTuple):
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
        id: the value of the ``job_id`` label.
        state: its state.
        next_at: Unix seconds of its next run; 0 if there is none.
        next_time: the same as text.
        countdown: how long it is until then, or for how long it is late.
        strip: its last runs; None if there are none.
        last_error: the latest failure of these; None if there is none.
        last_success: when a run last succeeded.
    """

    id: str
    state: JobState
    next_at: float
    next_time: str
    countdown: str
    strip: RunStrip | None
    last_error: ShownError | None
    last_success: str


class StatusReport:
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

    def overview(self) -> Mapping[str, Any]:
        """Return all jobs, those in trouble first, and the state of each scheduler."""
        now = self._clock()
        left = MAX_LISTED_JOBS
        shown = []
        for scheduler in self._get_schedulers():
            described = _describe_scheduler(scheduler, now)
            zone = scheduler.timezone
            jobs = rank_jobs(scheduler, now)
            listed, left = jobs[:left], max(0, left - len(jobs))
            shown.append(
                {
                    **described,
                    "jobs": [_describe_job(state, job, now, zone) for state, job in listed],
                    "unlisted_count": len(jobs) - len(listed),
                    "trouble_count": sum(state.is_trouble for state, _ in jobs),
                    "job_count": len(jobs),
                }
            )
        shown.sort(key=lambda each: not (each["trouble_count"] or each["state"].is_trouble))
        return {
            "now": now,
            "infinity": math.inf,
            "schedulers": shown,
            "trouble_count": sum(each["trouble_count"] for each in shown),
            "job_count": sum(each["job_count"] for each in shown),
            "down_count": sum(each["state"] is DOWN for each in shown),
            "legend": [
                (outcome.value, draw_runs([_example_run(outcome)], height=10))
                for outcome in Outcome
            ],
        }


def rank_jobs(scheduler: StatusScheduler, now: float) -> list[tuple[JobState, JobSnapshot]]:
    """
    Return the state and the snapshot of each job of a scheduler, those in trouble first.

    After them come those that have failed within a day, and then the others, by their next run.
    """
    liveness = scheduler.liveness()
    is_followed = scheduler.uninstrument_reason is None
    jobs = [
        (find_state(job, liveness, now, is_followed=is_followed), job)
        for job in sorted_jobs(scheduler, ERROR_COMPONENT, is_export=False)
    ]

    def rank(item: tuple[JobState, JobSnapshot]) -> tuple[int, float, float, str]:
        state, job = item
        failed_at = job.stats.last_failure_at
        failed_ago = math.inf if failed_at is None else now - failed_at
        return (
            _RANKS[state] if state.is_trouble else len(STATES),
            failed_ago if failed_ago < RECENT_FAILURE_SECONDS else math.inf,
            job.next_run or math.inf,
            job.label,
        )

    return sorted(jobs, key=rank)


def find_state(  # noqa: PLR0911  # one for each state
    job: JobSnapshot, liveness: Liveness, now: float, *, is_followed: bool
) -> JobState:
    """
    Return the state of a job, the worst that applies.

    Args:
        job: the job.
        liveness: that of its scheduler.
        now: Unix seconds.
        is_followed: whether the scheduler is still instrumented.
    """
    runs, limit = job.in_flight_summary, job.info.expectations.max_duration
    if limit is not None and runs.oldest_start_at and now - runs.oldest_start_at > limit:
        return STUCK
    grace = job.info.grace
    is_down = bool(job.next_run) and not (liveness.up and is_followed)
    is_overdue = any(at and now > at + grace for at in (job.next_run, runs.oldest_queued_due_at))
    is_paused = liveness.scheduler_state == "paused" and bool(job.next_run)
    if is_overdue and not is_down and not is_paused:
        return MISSED
    if is_down:
        return DOWN
    if job.stats.consecutive_failures:
        return FAILING
    if _was_dropped_lately(job, now):
        return DROPPING
    if is_paused:
        return PAUSED
    if runs.running:
        return RUNNING
    return WAITING if job.next_run else IDLE


def _was_dropped_lately(job: JobSnapshot, now: float) -> bool:
    since = now - DROPPING_SECONDS
    for kept in reversed(job.history):
        run = RunRecord(*kept)
        if run.ended_at < since:
            return False
        if run.outcome in _DROPPED:
            return True
    return False


def _describe_scheduler(scheduler: StatusScheduler, now: float) -> dict[str, Any]:
    liveness, reason = scheduler.liveness(), scheduler.uninstrument_reason
    reasons = [message for _, message in liveness.reasons]
    state = UP
    if reason is not None:
        state, reasons = DOWN, [reason]
    elif not liveness.up:
        state = DOWN
    elif liveness.scheduler_state == "paused":
        state = PAUSED
    return {
        "name": scheduler.name,
        "state": state,
        "reasons": reasons,
        "info": scheduler.scheduler_info(),
        "last_pass": describe_age(scheduler.last_pass_ended_at, now),
        "started": describe_age(scheduler.started_at, now),
        "executors": sorted(scheduler.recorder.executors().items()),
        "jobstores": sorted(scheduler.recorder.jobstores().items()),
    }


def _describe_job(state: JobState, job: JobSnapshot, now: float, zone: tzinfo) -> ShownJob:
    runs = [RunRecord(*kept) for kept in job.history[-RUNS_IN_STRIP:]]
    next_run = job.next_run or 0.0
    return ShownJob(
        id=job.label,
        state=state,
        next_at=next_run,
        next_time=describe_time(next_run, zone) if next_run else "",
        countdown=describe_countdown(next_run, now) if next_run else "",
        strip=draw_runs(runs),
        last_error=find_last_error(job.history, zone),
        last_success=describe_age(job.stats.last_success_at, now),
    )


def find_last_error(history: Iterable[tuple[Any, ...]], zone: tzinfo) -> ShownError | None:
    """Return the latest of the runs that failed; None if there is none."""
    for kept in reversed(tuple(history)):
        run = RunRecord(*kept)
        if run.outcome in FAILED_OUTCOMES:
            message = run.error_message or ""
            if len(message) > MAX_SHOWN_MESSAGE_LENGTH:
                message = f"{message[: MAX_SHOWN_MESSAGE_LENGTH - 1]}…"
            return ShownError(
                at=describe_time(run.ended_at, zone),
                outcome=run.outcome.value,
                type=run.error_type or "",
                message=message,
            )
    return None


def _example_run(outcome: Outcome) -> RunRecord:
    duration = 1.0 if outcome in {Outcome.SUCCESS, Outcome.ERROR} else None
    return RunRecord(0, "", 0.0, 0.0, 0.0, duration, outcome, None, None, None)
