"""
What telemetry weighs: memory of a job and of a run in flight, imports, a start with stored jobs.

Usage: memory.py [--jobs 10000] [--repeat 5]

Memory is what `tracemalloc` finds more after than before. Times are CPU time of processes of their
own that take turns with processes that do the same without telemetry, as medians.
"""

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from apscheduler_telemetry import instrument
from apscheduler_telemetry.export.prometheus import get_or_create_exporter

IMPORTS = {
    "nothing": "pass",
    "apscheduler and prometheus_client": (
        "import apscheduler.schedulers.background, apscheduler.executors.pool, prometheus_client"
    ),
    "the same, instrumented": (
        "import apscheduler.schedulers.background, apscheduler.executors.pool, prometheus_client;"
        "from apscheduler_telemetry import instrument"
    ),
    "a worker of a process pool": "import apscheduler.executors.base",
    "the same, instrumented ": (
        "import apscheduler.executors.base,"
        " apscheduler_telemetry.adapters.apscheduler3.child_process"
    ),
}
START = """
import sys, time
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from prometheus_client import CollectorRegistry
from apscheduler_telemetry import instrument
scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(sys.argv[1])})
if sys.argv[2] == "with":
    telemetry = instrument(scheduler, registry=CollectorRegistry(), max_labels=20_000)
begin = time.perf_counter()
scheduler.start()
started = time.perf_counter() - begin
stores = telemetry._exported_scheduler.recorder.jobstores if sys.argv[2] == "with" else None
while stores is not None and stores()["default"].last_read_at is None:
    time.sleep(0.01)
print(started, time.process_time())
"""


def work() -> None:
    """Do nothing."""


def growth(make: Callable[[], Any]) -> tuple[int, Any]:
    """Return the bytes by which something lets memory grow, and what it returned."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    made = make()
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return after - before, made


def add_jobs(scheduler: Any, jobs: int) -> None:
    """Add jobs."""
    for number in range(jobs):
        scheduler.add_job(work, "interval", days=1, id=f"job-{number}")


def per_job(jobs: int) -> None:
    """Print what a job weighs."""
    schedulers = []
    for name in ("without us", "with us"):
        scheduler = BackgroundScheduler()
        registry = CollectorRegistry()
        if name == "with us":
            instrument(scheduler, registry=registry, max_labels=jobs)
        scheduler.start(paused=True)
        grown, _ = growth(lambda: add_jobs(scheduler, jobs))  # noqa: B023  # called at once
        print(f"a job, {name:36} {grown / jobs:10.0f} bytes")
        schedulers.append((scheduler, registry))
    encode, _ = choose_encoder("application/openmetrics-text;version=1.0.0")
    registry = schedulers[-1][1]
    grown, _ = growth(lambda: sum(map(len, get_or_create_exporter(registry).expose(encode))))
    print(f"a job's kept lines, all series of one format  {grown / jobs:10.0f} bytes")
    for scheduler, _ in schedulers:
        scheduler.shutdown()


def per_run(runs: int) -> None:
    """Print what a run weighs that waits for a worker."""
    weights = {}
    for name in ("without us", "with us"):
        executor = ThreadPoolExecutor(1)
        scheduler = BackgroundScheduler(executors={"default": executor})
        if name == "with us":
            instrument(scheduler, registry=CollectorRegistry())
        scheduler.start(paused=True)
        job = scheduler.add_job(work, "interval", days=1, max_instances=runs + 1)
        times = [job.next_run_time]
        executor._pool.submit(time.sleep, 3)  # noqa: SLF001  # keeps its only worker busy

        def submit(executor: Any = executor, job: Any = job, times: Any = times) -> None:
            for _ in range(runs):
                executor.submit_job(job, times)

        weights[name], _ = growth(submit)
        print(f"a run in flight, {name:26} {weights[name] / runs:10.0f} bytes")
        scheduler.shutdown()


def imports(repeat: int) -> None:
    """Print what imports cost."""
    took: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for _ in range(repeat):
        for name, code in IMPORTS.items():
            took[name].append(cpu([sys.executable, "-c", code]))
    for name, values in took.items():
        print(f"import: {name:34}  {1000 * statistics.median(values):10.0f} ms")


def cpu(command: list[str]) -> float:
    """Return the seconds of CPU time that a process takes."""
    before = os.times()
    subprocess.run(command, check=True)
    after = os.times()
    return sum(after[2:4]) - sum(before[2:4])


def start(jobs: int, repeat: int) -> None:
    """Print what a start with stored jobs costs."""
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as directory:
        url = f"sqlite:///{Path(directory) / 'jobs.sqlite'}"
        scheduler = BackgroundScheduler(jobstores={"default": SQLAlchemyJobStore(url)})
        scheduler.start(paused=True)
        add_jobs(scheduler, jobs)
        scheduler.shutdown()
        took: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
        for _ in range(repeat):
            for name, values in took.items():
                command = [sys.executable, "-c", START, url, name]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                first, second = done.stdout.split()
                values.append((float(first), float(second)))
        for name, values in took.items():
            started, spent = (statistics.median(column) for column in zip(*values, strict=True))
            print(
                f"start with {jobs} stored jobs, {name + ' us':12} {1000 * started:8.0f} ms until"
                f" start() returns, {1000 * spent:.0f} ms of CPU in all"
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    per_job(options.jobs)
    per_run(options.jobs)
    imports(options.repeat)
    start(options.jobs, options.repeat)


if __name__ == "__main__":
    main()
