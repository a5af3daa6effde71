"""
What stays in memory after a million runs, and after 200,000 jobs that run once; as a curve.

Usage: soak.py [--runs 1000000] [--jobs 200000]

Time is moved by hand, so that days pass in minutes: series of removed jobs are to go after their
time. The exit status is 1 if memory, objects or series grow, or anything of a job is kept.
"""

import argparse
import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from resource import getpagesize
from typing import Any, ClassVar

import time_machine
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.base import BaseScheduler
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core.records import JobSnapshot

START = datetime(2040, 1, 1, tzinfo=timezone.utc)
POINTS = 20
BATCH = 100
"""Jobs that are due at a time."""
DEFAULT_MAX_LABELS = 100
MIB_MORE = 8.0
"""Of resident memory after the first quarter; its allocator keeps what it once had."""
OBJECTS_MORE = 2_000
"""Of the garbage collector's, after the first quarter; some hundred runs wait to be added up."""


class Scheduler(BaseScheduler):
    """A real scheduler whose loop is run by hand."""

    def wakeup(self) -> None:
        """Do nothing: see `turn`."""

    def shutdown(self, wait: bool = True) -> None:  # noqa: FBT001, FBT002
        """Shut down."""
        super().shutdown(wait)

    def turn(self) -> None:
        """Run what is due."""
        self._process_jobs()


class Thing:
    """An argument and a result of a job, which must not be kept."""

    alive: ClassVar["weakref.WeakSet[Thing]"] = weakref.WeakSet()

    def __init__(self) -> None:
        self.alive.add(self)


def give_back(_: Thing) -> Thing:
    """Return another one."""
    return Thing()


class Soak:
    """A scheduler that is watched, and what it has grown to."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.pool = ThreadPoolExecutor(1)
        self.scheduler = Scheduler(timezone="UTC", executors={"default": self.pool})
        self.registry = CollectorRegistry()
        self.telemetry = instrument(
            self.scheduler, registry=self.registry, max_labels=DEFAULT_MAX_LABELS
        )
        self.scheduler.start()
        self.points: list[tuple[int, float, int, int]] = []
        self.wrong: list[str] = []

    def jobs(self) -> list[JobSnapshot]:
        """Return the metrics state of each label."""
        return list(self.telemetry._exported_scheduler.recorder.job_snapshots())  # noqa: SLF001  # ours

    def turn(self, seconds: float) -> None:
        """Let time pass, and all that is due run."""
        self.clock.shift(timedelta(seconds=seconds))
        self.scheduler.turn()
        while any(self.pool._instances.values()):  # noqa: SLF001
            self.pool._pool.submit(int).result()  # noqa: SLF001

    def series(self) -> int:
        """Scrape, and return the number of samples."""
        encode, _ = choose_encoder("")
        lines = encode(self.registry).decode().splitlines()
        return sum(not line.startswith("#") for line in lines)

    def measure(self, done: int) -> None:
        """Note, and print, what there is."""
        series = self.series()
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        mib = pages * getpagesize() / 2**20
        point = done, mib, len(gc.get_objects()), series
        self.points.append(point)
        print(f"{done:9,} {mib:8.1f} MiB {point[2]:8,} objects {series:6,} series", flush=True)

    def complaints(self, expected: int) -> Iterator[str]:
        """Tell what has grown after the first quarter, and which runs were lost."""
        yield from self.wrong
        jobs = self.jobs()
        _, mib, objects, series = self.points[len(self.points) // 4]
        _, last_mib, last_objects, last_series = self.points[-1]
        if last_mib > mib + MIB_MORE:
            yield f"memory grew by {last_mib - mib:.1f} MiB"
        if last_objects > objects + OBJECTS_MORE:
            yield f"there are {last_objects - objects} objects more"
        if last_series > series:
            yield f"there are {last_series - series} series more"
        if any(job.in_flight_summary.queued or job.in_flight_summary.running for job in jobs):
            yield "runs are in flight that have ended"
        if expected != (due := sum(job.due_count for job in jobs)):
            yield f"{due} runs of {expected} are counted"
        self.scheduler.shutdown()
        gc.collect()
        if Thing.alive:
            yield f"{len(Thing.alive)} arguments or results are kept"


def many_runs(soak: Soak, total: int) -> int:
    """Run a hundred jobs again and again; return how many runs should be counted."""
    for number in range(BATCH):
        soak.scheduler.add_job(
            give_back,
            "interval",
            [Thing()],
            seconds=1,
            start_date=START + timedelta(seconds=1),
            id=f"job-{number}",
            misfire_grace_time=None,
        )
    passes = total // BATCH
    for number in range(1, passes + 1):
        soak.turn(1)
        if number % max(1, passes // POINTS) == 0:
            soak.measure(number * BATCH)
    return passes * BATCH


def many_jobs(soak: Soak, total: int) -> int:
    """
    Run jobs once: half of them with ids that APScheduler makes up, half with ids of their own.

    Ten seconds pass between two batches, so that the former have one series, and the latter as
    many as are allowed, each of which goes after a quarter of an hour.
    """
    passes = total // BATCH
    for number in range(1, passes + 1):
        for index in range(BATCH):
            job_id = f"order-{number}-{index}" if index % 2 else None
            soak.scheduler.add_job(give_back, args=[Thing()], id=job_id, misfire_grace_time=None)
        soak.turn(10)
        if number % max(1, passes // POINTS) == 0:
            soak.measure(number * BATCH)
    labels = {job.label for job in soak.jobs()}
    if len(labels) > DEFAULT_MAX_LABELS + 1:
        soak.wrong.append(f"there are {len(labels)} labels")
    soak.turn(901)
    left = {job.label for job in soak.jobs()}
    if left:
        soak.wrong.append(f"{len(left)} labels do not go")
    print(f"{len(labels)} labels at the end, and {len(left)} after another quarter of an hour")
    return 0  # which is how many are counted then


def main() -> int:
    """Print both curves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=200_000)
    options = parser.parse_args()
    parts: list[tuple[str, Callable[[Soak, int], int], int]] = [
        ("runs of a hundred jobs", many_runs, options.runs),
        ("jobs that run once", many_jobs, options.jobs),
    ]
    failed = False
    for what, do, total in parts:
        print(f"{total:,} {what}", flush=True)
        with time_machine.travel(START, tick=False) as clock:
            soak = Soak(clock)
            for complaint in soak.complaints(do(soak, total)):
                print(f"NOT BOUNDED: {complaint}")
                failed = True
            soak.telemetry.uninstrument()
    print("not bounded" if failed else "bounded")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
