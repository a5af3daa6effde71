"""
Checks of single jobs, for `check_scheduler`.

Each check yields a finding only if its code is certain to apply; docs/cli.md says what is left out.
"""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from apscheduler.job import Job
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.checked_jobs import CheckedJob
from apscheduler_telemetry.adapters.apscheduler3.executors import is_process_pool, worker_capacity
from apscheduler_telemetry.adapters.apscheduler3.runs import describe_unawaited_result
from apscheduler_telemetry.adapters.base import SchedulerImportFacts
from apscheduler_telemetry.core.findings import INFO, SERIOUS, Finding
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.labels import is_generated_id

LONG_INTERVAL_SECONDS = 86_400.0
"""Seconds of an interval that begins anew at each start: many processes start again each day."""
SHORT_INTERVAL_SECONDS = 60.0
"""Seconds: if a job runs more often than that, the loss of a run is soon made up for."""
NEAR_START_SECONDS = 60.0
"""A one-off job that is due so soon belongs to the start of the application itself."""
MIN_BURST_RUNS = 2
"""Runs in a row that are worth a finding."""


def check_job(job: CheckedJob, now: datetime, facts: SchedulerImportFacts) -> Iterator[Finding]:
    """Yield what is risky about one job, as far as that depends on no other job."""
    yield from _check_memory_jobstore(job, now)
    yield from _check_misfire_grace_time(job)
    yield from _check_coalesce(job)
    if job.job.id not in facts.looked_up_job_ids:
        yield from _check_added_again(job)
    yield from _check_serializable(job)
    yield from _check_coroutine_awaited(job)
    if job.upcoming.problem is not None:
        yield _create_finding(
            job,
            "and-trigger-hangs",
            f"Its trigger combines triggers with 'and', and {job.upcoming.problem}. APScheduler "
            "searches on without an end or for minutes, and runs no job of the scheduler meanwhile",
            "scheduler.add_job(..., 'cron', day_of_week='mon', hour=6)  # one cron trigger with "
            "all conditions",
        )


def check_max_instances(
    jobs: list[CheckedJob], skipped_runs: Mapping[str, int]
) -> Iterator[Finding]:
    """
    Yield the jobs with a wrong limit of runs at the same time.

    Args:
        jobs: the jobs of a scheduler.
        skipped_runs: how many runs this process has skipped, by the id of the job.
    """
    for job in jobs:
        workers = worker_capacity(job.executor) if job.executor is not None else float("inf")
        shares_executor = any(
            other.job is not job.job and other.executor is job.executor for other in jobs
        )
        if skipped_runs.get(job.id):
            yield _create_finding(
                job,
                "max-instances",
                f"This process has skipped {skipped_runs[job.id]} of its runs, because "
                f"{job.max_instances} before were still running",
                "scheduler.add_job(..., max_instances=2)  # or a longer interval",
            )
        elif job.max_instances >= workers > 1 and shares_executor:
            yield _create_finding(
                job,
                "max-instances",
                f"It may run {job.max_instances} times at once, and its executor has "
                f"{workers:.0f} workers. If its runs hang, no other job of the executor runs",
                "scheduler.add_job(..., max_instances=1)  # or executor= with a pool of its own",
            )


def _check_memory_jobstore(job: CheckedJob, now: datetime) -> Iterator[Finding]:
    if job.is_persistent or not job.upcoming.times:
        return
    trigger, first = job.job.trigger, job.upcoming.times[0]
    if type(trigger) is DateTrigger and first - now > timedelta(seconds=NEAR_START_SECONDS):
        yield _create_finding(
            job,
            "memory-jobstore",
            "It runs once, and is kept in memory: if the process ends before, the job is lost, "
            "unless your code adds it again",
            f"jobstores={{{job.jobstore!r}: SQLAlchemyJobStore('sqlite:///jobs.sqlite')}}  # for "
            "the scheduler",
            level=INFO,
        )
    elif (
        type(trigger) is IntervalTrigger
        and trigger.interval_length >= LONG_INTERVAL_SECONDS
        and job.is_pending
        and not job.has_explicit_next_run
        and abs((trigger.start_date - now).total_seconds() - trigger.interval_length)
        < NEAR_START_SECONDS
    ):
        yield _create_finding(
            job,
            "memory-jobstore",
            f"Its interval of {trigger.interval} is counted from the start of the process, as its "
            "job store is in memory: if the process is restarted more often, it never runs",
            "scheduler.add_job(..., start_date='2026-01-01 04:00:00')  # or a persistent job store",
        )


def _check_misfire_grace_time(job: CheckedJob) -> Iterator[Finding]:
    intervals = job.upcoming.interval_range
    is_rare = _fires_once(job) if intervals is None else intervals[1] > SHORT_INTERVAL_SECONDS
    if is_rare and job.misfire_grace_time is not None and job.misfire_grace_time <= 1:
        yield _create_finding(
            job,
            "misfire-grace-time",
            f"A run that cannot start within {job.misfire_grace_time:g} s, which is the default, "
            "is dropped, such as when the machine is busy or all workers are",
            "scheduler.add_job(..., misfire_grace_time=3600)",
        )


def _fires_once(job: CheckedJob) -> bool:
    """Return whether a job has no second run, such as a cron job of a certain year."""
    trigger, upcoming = job.job.trigger, job.upcoming
    return type(trigger) is DateTrigger or (
        len(upcoming.times) == 1
        and upcoming.problem is None
        and triggers.has_no_custom_part(trigger)
    )


def _check_coalesce(job: CheckedJob) -> Iterator[Finding]:
    intervals = job.upcoming.interval_range
    if job.coalesce or intervals is None:
        return
    grace = job.misfire_grace_time
    if grace is not None and grace < MIN_BURST_RUNS * intervals[0]:
        return
    how_many = "all runs that" if grace is None else f"up to {grace // intervals[0]:.0f} runs that"
    yield _create_finding(
        job,
        "coalesce",
        f"After a pause of the process or its database, {how_many} have become due run one after "
        "the other, as coalesce is False",
        "scheduler.add_job(..., coalesce=True)",
        level=INFO,
    )


def _check_added_again(job: CheckedJob) -> Iterator[Finding]:
    """Check what happens when the application adds a job again that its job store still has."""
    if not job.is_persistent or not job.is_pending:
        return
    if is_generated_id(job.job.id):
        yield _create_finding(
            job,
            "generated-id",
            f"It is added without an id to the persistent job store {job.jobstore!r}, so each "
            "start of the application adds one more",
            "scheduler.add_job(..., id='nightly-import', replace_existing=True)",
        )
    elif _is_uuid(job.job.id):
        yield _create_finding(
            job,
            "generated-id",
            f"Its id is a UUID: if each start of the application generates another one, it adds "
            f"one more job to the persistent job store {job.jobstore!r}",
            "scheduler.add_job(..., id='nightly-import', replace_existing=True)",
            level=INFO if job.replaces_existing else SERIOUS,
        )
    elif not job.replaces_existing:
        yield _create_finding(
            job,
            "no-replace-existing",
            f"It is added to the persistent job store {job.jobstore!r}, which has it already at "
            "the second start of the application: the start fails with ConflictingIdError",
            "scheduler.add_job(..., replace_existing=True)",
        )


def _is_uuid(job_id: str) -> bool:
    try:
        uuid.UUID(job_id)
    except ValueError:
        return False
    return True


def _check_serializable(job: CheckedJob) -> Iterator[Finding]:
    if not job.is_pending:  # it is in its store
        return
    is_stored = job.is_persistent
    if not is_stored and not is_process_pool(job.executor):
        return
    try:
        pickle.dumps(_get_state_to_pickle(job), pickle.HIGHEST_PROTOCOL)
    except BaseException as error:  # noqa: BLE001  # user code
        raise_if_interruption(error)
        reason = " ".join(str(error).split()) or type(error).__name__
        effect = "be stored, so the start fails" if is_stored else "be sent to its process pool"
        yield _create_finding(
            job,
            "not-serializable",
            f"It cannot {effect}: {reason}",
            "scheduler.add_job('package.module:function', args=[...])  # a function of a module, "
            "and plain arguments",
        )


def _get_state_to_pickle(job: CheckedJob) -> Any:
    """Return what is pickled of a job, as the scheduler completes it before that."""
    own = {name: getattr(job.job, name) for name in Job.__slots__ if hasattr(job.job, name)}
    completed = {
        "coalesce": job.coalesce,
        "max_instances": job.max_instances,
        "misfire_grace_time": job.misfire_grace_time,
        "next_run_time": job.upcoming.times[0] if job.upcoming.times else None,
    }
    return Job.__getstate__(SimpleNamespace(**{**own, **completed}))


def _check_coroutine_awaited(job: CheckedJob) -> Iterator[Finding]:
    awaits = _AWAITS_COROUTINES_BY_EXECUTOR_MODULE.get(type(job.executor).__module__)
    if awaits is None:  # one of the user's own, which may run anything
        return
    found = describe_unawaited_result(job.job.func, is_coroutine_awaited=awaits)
    if found is not None:
        what, advice = found
        yield _create_finding(
            job,
            "never-awaited",
            f"Its callable only returns {what}, which {type(job.executor).__name__} does not run: "
            f"APScheduler counts each run as a success, and none of the code is executed. {advice}",
            _find_not_awaited_fix(job, what),
        )


def _find_not_awaited_fix(job: CheckedJob, what: str) -> str:
    if what != "a coroutine":
        return _NOT_AWAITED_FIXES[what]
    executor = _COROUTINE_EXECUTORS_BY_SCHEDULER_MODULE.get(type(job.job._scheduler).__module__)  # noqa: SLF001
    if executor is None:
        return "scheduler = AsyncIOScheduler()"
    return f"executors={{{job.job.executor!r}: {executor}}}  # for the scheduler"


_NOT_AWAITED_FIXES: Mapping[str, str] = {
    "a generator": "for item in generator(): ...  # in the job's function",
    "an async generator": "async for item in generator(): ...  # in the job's coroutine function",
}
_AWAITS_COROUTINES_BY_EXECUTOR_MODULE: Mapping[str, bool] = {
    "apscheduler.executors.asyncio": True,
    "apscheduler.executors.tornado": True,
    "apscheduler.executors.debug": False,
    "apscheduler.executors.gevent": False,
    "apscheduler.executors.pool": False,
    "apscheduler.executors.twisted": False,
}
"""The modules of APScheduler's own executors, with whether these await coroutines."""
_COROUTINE_EXECUTORS_BY_SCHEDULER_MODULE: Mapping[str, str] = {
    "apscheduler.schedulers.asyncio": "AsyncIOExecutor()",
    "apscheduler.schedulers.tornado": "TornadoExecutor()",
}
"""The modules of schedulers that can await coroutines, with the executor that does."""


def _create_finding(
    job: CheckedJob, code: str, message: str, fix: str, *, level: str = SERIOUS
) -> Finding:
    return Finding(code, level, (job.id,), message, fix)
