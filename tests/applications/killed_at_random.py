"""
Kill processes with a busy scheduler and a journal at random moments, and check the accounts.

Usage: killed_at_random.py DIRECTORY KILLS SEED

Each process is a fork of this one, so that it starts within milliseconds. It writes a line before
and after each step that changes the accounts, so it is known of each run what the journal must have
when the process is killed; only for a run that is between two such lines, either is right. The
result is a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core.files import scheduler_file_stem
from apscheduler_telemetry.core.journal_file import JournalFile
from apscheduler_telemetry.core.model import Outcome
from tests.helpers.jobs import nap
from tests.helpers.metrics import recorder_of
from tests.helpers.waiting import wait_until

MAX_LIFETIME = 0.1
"""Seconds after which a process is killed at the latest."""
JOBS = 6


class EveryTwoMilliseconds(BaseTrigger):
    """Fires faster than APScheduler's own triggers can."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return now if previous is None else previous + timedelta(milliseconds=2)


async def nap_async(seconds: float) -> None:
    await asyncio.sleep(seconds)


class Log:
    """Lines that are in the file as soon as they are written, whatever happens to the process."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, *words: object) -> None:
        os.write(self._descriptor, f"{' '.join(map(str, words))}\n".encode())


def run_until_killed(directory: Path, generation: int, mode: str) -> None:
    """Run jobs, and write what happens to their runs."""
    log = Log(directory / f"{generation}.log")
    scheduler: Any
    if mode == "asyncio":
        asyncio.run(_run_until_killed_async(directory, generation, log))
        return
    if mode == "processes":
        options = {"mp_context": multiprocessing.get_context("fork")}
        executor: Any = ProcessPoolExecutor(2, pool_kwargs=options)
    else:
        executor = ThreadPoolExecutor(4)
    scheduler = BackgroundScheduler(executors={"default": executor}, timezone="UTC")
    registry = start(scheduler, directory, generation, log, nap)
    while True:
        time.sleep(0.01)
        generate_latest(registry)


async def _run_until_killed_async(directory: Path, generation: int, log: Log) -> None:
    scheduler = AsyncIOScheduler(timezone="UTC")
    registry = start(scheduler, directory, generation, log, nap_async)
    while True:
        await asyncio.sleep(0.01)
        generate_latest(registry)


def start(
    scheduler: Any, directory: Path, generation: int, log: Log, job: Any
) -> CollectorRegistry:
    """Start a scheduler, and read its metrics once."""
    registry = CollectorRegistry()
    telemetry = instrument(scheduler, registry=registry, journal=directory / "journal")
    for number in range(JOBS):
        scheduler.add_job(
            job,
            EveryTwoMilliseconds(),
            args=[0.001 * number],
            id=f"{generation}-{number}",
            coalesce=True,
            misfire_grace_time=None,
            max_instances=1_000,
        )
    scheduler.start(paused=True)
    _log_accounts(next(iter(scheduler._executors.values())), log)
    log.write("reading")
    jobs = list(recorder_of(telemetry).job_snapshots())
    log.write("read", sum(job.stats.outcomes[Outcome.LOST] for job in jobs))
    scheduler.resume()
    return registry


def _log_accounts(executor: Any, log: Log) -> None:
    submit_job, run_job_success = executor.submit_job, executor._run_job_success

    def log_and_submit(job: Any, run_times: Iterable[datetime]) -> None:
        due_times = [due.timestamp() for due in run_times]
        for due in due_times:
            log.write("submitting", job.id, due)
        submit_job(job, run_times)
        for due in due_times:
            log.write("submitted", job.id, due)

    def log_and_end(job_id: str, events: Iterable[Any]) -> None:
        due_times = [event.scheduled_run_time.timestamp() for event in events]
        for due in due_times:
            log.write("ending", job_id, due)
        run_job_success(job_id, events)
        for due in due_times:
            log.write("ended", job_id, due)

    executor.submit_job, executor._run_job_success = log_and_submit, log_and_end


def runs_in_journal(directory: Path) -> set[str]:
    """Return the runs that a process has left."""
    path = directory / "journal" / f"{scheduler_file_stem('default')}.0.journal"
    if not path.exists():
        return set()
    # A worker that was being forked holds the lock, too, for its first moments.
    file = wait_until(
        lambda: JournalFile.open(path, "default"), "the lock of a killed process to be released"
    )
    entries = list(file.read_entries())
    file.close()
    runs = {f"{entry.label} {entry.due_at}" for entry in entries}
    assert len(runs) == len(entries), "a run is in two slots"
    return runs


def main(directory: Path, kills: int, seed: int) -> dict[str, Any]:
    """Return what was counted, and what was wrong."""
    chance = random.Random(seed)
    wrong: list[str] = []
    submitted = ended = lost = uncertain_runs = lost_in_uncertain_readings = 0
    before: set[str] = set()
    for generation in range(kills):
        mode = ("threads", "asyncio", "processes")[generation % 3]
        child = os.fork()
        if not child:
            os.setpgid(0, 0)
            run_until_killed(directory, generation, mode)
        time.sleep(chance.uniform(0, MAX_LIFETIME))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = runs_in_journal(directory)  # while workers of a pool may still be alive
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        path = directory / f"{generation}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        steps: dict[str, set[str]] = {}
        counted: list[int] = []
        for line in lines:
            step, _, run = line.partition(" ")
            if step == "read":
                counted.append(int(run))
            steps.setdefault(step, set()).add(run)
        submitting, sure = steps.get("submitting", set()), steps.get("submitted", set())
        ending, over = steps.get("ending", set()), steps.get("ended", set())
        own, inherited = left - before, left & before
        checks = {
            "in flight, and not in the journal": (sure - ending) - own,
            "ended, and in the journal": over & own,
            "in the journal, and never submitted": own - submitting,
            "counted, and still there": inherited if counted else set(),
            "not counted, and gone": set() if "reading" in steps else before - inherited,
        }
        wrong += [f"{mode} {generation}: {what}: {runs}" for what, runs in checks.items() if runs]
        if counted and counted != [len(before)]:
            wrong.append(f"{mode} {generation}: {counted} counted as lost of {len(before)}")
        submitted += len(submitting)
        ended += len(over)
        lost += sum(counted)
        # Killed between two lines: it is not known what was done.
        uncertain_runs += len(submitting - over - own)
        if not counted:
            lost_in_uncertain_readings += len(before - inherited)
        before = left
    return {
        "submitted": submitted,
        "ended": ended,
        "lost": lost,
        "left": len(before),
        "uncertain_runs": uncertain_runs,
        "lost_in_uncertain_readings": lost_in_uncertain_readings,
        "wrong": wrong,
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
