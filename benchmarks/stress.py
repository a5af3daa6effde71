"""
How much work is done while everything happens at once: with and without telemetry, as a ratio.

Usage: stress.py [--seconds 2] [--repeat 5]

Four threads add, change and remove jobs of a background scheduler, whose pool of eight runs them;
with telemetry, the metrics are also scraped four times a second. Rounds with and without telemetry
take turns, and each has all CPU time of its process, so the ratio shows what remains for the
application. The output is the median of the rounds.
"""

import argparse
import logging
import random
import statistics
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import ConflictingIdError, JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core.model import Outcome

THREADS = 4
SCRAPE_EVERY = 0.25
IDS = [f"job-{number}" for number in range(20)]


class Round:
    """Some seconds of it."""

    def __init__(self, seconds: float, *, with_us: bool) -> None:
        self._end = time.monotonic() + seconds
        self.changes = 0
        self.runs = 0
        self._lock = threading.Lock()
        self._scheduler = BackgroundScheduler(
            timezone="UTC", executors={"default": ThreadPoolExecutor(8)}
        )
        self._registry = CollectorRegistry()
        self._telemetry = None
        tasks: list[Callable[[], None]] = [self._change] * THREADS
        if with_us:
            self._telemetry = instrument(self._scheduler, registry=self._registry)
            tasks.append(self._scrape)
        self._scheduler.start()
        threads = [threading.Thread(target=task) for task in tasks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._scheduler.remove_all_jobs()
        self._scheduler.shutdown()
        self._check()

    def _work(self) -> None:
        with self._lock:
            self.runs += 1

    def _change(self) -> None:
        dice, made = random.Random(threading.get_ident()), 0  # noqa: S311
        while time.monotonic() < self._end:
            job_id = dice.choice(IDS)
            try:
                kind = dice.randrange(4)
                if kind == 0:
                    self._scheduler.add_job(
                        self._work, "interval", seconds=0.05, id=job_id, misfire_grace_time=None
                    )
                elif kind == 1:
                    self._scheduler.modify_job(job_id, next_run_time=datetime.now(timezone.utc))
                elif kind == 2:  # noqa: PLR2004
                    self._scheduler.add_job(self._work, misfire_grace_time=None)
                else:
                    self._scheduler.remove_job(job_id)
            except (ConflictingIdError, JobLookupError):
                continue
            made += 1
        with self._lock:
            self.changes += made

    def _scrape(self) -> None:
        while time.monotonic() < self._end:
            generate_latest(self._registry)
            time.sleep(SCRAPE_EVERY)

    def _check(self) -> None:
        """See that telemetry has counted each run, as speed would be worth nothing else."""
        if self._telemetry is not None:
            jobs = list(self._telemetry._exported_scheduler.recorder.job_snapshots())  # noqa: SLF001  # ours
            counted = sum(job.stats.outcomes[Outcome.SUCCESS] for job in jobs)
            if counted != self.runs or any(job.in_flight_summary.running for job in jobs):
                msg = f"{counted} runs counted of {self.runs}"
                raise RuntimeError(msg)


def main() -> None:
    """Print what was done, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    logging.disable()
    done: dict[bool, list[Round]] = {False: [], True: []}
    for _ in range(options.repeat):
        for with_us, rounds in done.items():
            rounds.append(Round(options.seconds, with_us=with_us))
    for what in ("changes", "runs"):
        bare, ours = (
            statistics.median(getattr(r, what) for r in done[with_us]) / options.seconds
            for with_us in (False, True)
        )
        print(f"{what:8} {bare:8.0f} a second, {ours:8.0f} with us: {ours / bare:.2f}")


if __name__ == "__main__":
    main()
