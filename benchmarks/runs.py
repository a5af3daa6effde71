"""
What a run costs more when it is watched: ours beside what people use, in one process and run.

Usage: runs.py [--jobs 100] [--repeat 60] [--only NAME ...] [--instructions]

Every contender has a scheduler of its own with the same no-op jobs. A pass makes all its jobs due
and runs them; passes of all contenders take turns, in an order that is drawn anew each time, so
that a slow moment of the machine hits all alike. Told is CPU time, which leaves out what other
processes do, as the median over the passes less that of the bare scheduler.
"""

import argparse
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from itertools import repeat
from operator import attrgetter, methodcaller, sub
from pathlib import Path
from typing import Any

from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers import base
from apscheduler_metrics.exporter import APSchedulerExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from apscheduler_telemetry import instrument
from apscheduler_telemetry._ledger import DURATION_BUCKETS

START = datetime(2040, 1, 1, tzinfo=timezone.utc)  # no run is ever too late
LEAST_BATCH = 16
STEP = 1  # seconds, the interval of all jobs
ATTRIBUTES = {
    "job.system": "apscheduler",
    "apscheduler.job.id": "job-1",
    "apscheduler.job.name": "work",
    "apscheduler.scheduler": "default",
    "apscheduler.executor": "default",
    "apscheduler.jobstore": "default",
    "apscheduler.trigger": "interval[0:00:01]",
    "apscheduler.scheduled_time": "2040-01-01T00:00:00+00:00",
    "apscheduler.start_delay": 0.001,
    "code.function.name": "runs.work",
}
"""Those of our spans, and ``apscheduler.outcome`` when they end."""


def work() -> None:
    """Do nothing."""


class Frozen(datetime):
    """The scheduler's clock, moved by hand."""

    at = START

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # noqa: ARG003
        """Return the moment that was set."""
        return cls.at


class Scheduler(base.BaseScheduler):
    """A real scheduler whose loop turns when it is told."""

    def wakeup(self) -> None:
        """Do nothing: see `turn`."""

    def shutdown(self, wait: bool = True) -> None:  # noqa: FBT001, FBT002
        """Shut down."""
        super().shutdown(wait)

    def turn(self) -> None:
        """Run what is due."""
        self._process_jobs()


class Nowhere(SpanExporter):
    """Takes spans and drops them, so that the network is not measured."""

    def export(self, spans: Iterable[Any]) -> SpanExportResult:  # noqa: ARG002
        """Drop them."""
        return SpanExportResult.SUCCESS


def recording() -> TracerProvider:
    """Return a provider as applications configure it."""
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=1 << 20))
    return provider


def bare(_scheduler: Any) -> None:
    """Nothing at all."""


def hooks(scheduler: Any) -> None:
    """Functions that pass on and do nothing, where ours are: what it costs to be there at all."""
    scheduler.add_jobstore("memory")
    [executor] = scheduler._executors.values()  # noqa: SLF001
    [store] = scheduler._jobstores.values()  # noqa: SLF001
    for owner, name in (
        (executor, "submit_job"),
        (executor, "_run_job_success"),
        (store, "update_job"),
    ):
        setattr(owner, name, passing(getattr(owner, name)))


def passing(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that only calls another one."""

    def hook(*args: Any) -> Any:
        return original(*args)

    return hook


class LeastView:
    """A job whose callable is measured, and nothing else."""

    _jobstore_alias, max_instances, misfire_grace_time, args, kwargs = (
        property(attrgetter(f"job.{name}"))
        for name in ("_jobstore_alias", "max_instances", "misfire_grace_time", "args", "kwargs")
    )
    books: Any

    def __str__(self) -> str:
        """Return the job's text."""
        return str(self.job)

    def func(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the job's callable, and note its start and duration."""
        call = self.job.func
        started = time.time()
        since = time.perf_counter()
        result = call(*args, **kwargs)
        took = time.perf_counter() - since
        self.books.append((self.due, started, took))
        if len(self.books) > LEAST_BATCH:
            dues, starts, durations = zip(*self.books, strict=True)
            del self.books[:]
            late = list(map(sub, starts, map(methodcaller("timestamp"), dues)))
            for values in (late, durations):
                counts = [0] * (len(DURATION_BUCKETS) + 1)
                for bucket in map(bisect_left, repeat(DURATION_BUCKETS), values):
                    counts[bucket] += 1
                sum(values)
        return result


def least(scheduler: Any) -> None:
    """
    The least that can measure a run, by hooks where ours are.

    When it was due, when it started, how long it took and when it is due next, and two histograms
    of that. It is no telemetry: it knows nothing of failures, losses, threads or readers.
    """
    scheduler.add_jobstore("memory")
    [executor] = scheduler._executors.values()  # noqa: SLF001
    [store] = scheduler._jobstores.values()  # noqa: SLF001
    books: dict[str, list[Any]] = {}
    next_runs: dict[str, datetime] = {}
    submit, update, success = executor.submit_job, store.update_job, executor._run_job_success  # noqa: SLF001

    def submit_job(job: Any, run_times: Any) -> None:
        view: Any = LeastView()
        view.job, view.id, view.due = job, job.id, run_times[0]
        view.books = books.setdefault(job.id, [])
        submit(view, run_times)

    def update_job(job: Any) -> None:
        update(job)
        next_runs[job.id] = job.next_run_time

    executor.submit_job, store.update_job = submit_job, update_job
    executor._run_job_success = passing(success)  # noqa: SLF001


def listener(scheduler: Any) -> None:
    """Count, observe and set on EXECUTED, as the guides recommend."""
    registry = CollectorRegistry()
    runs = Counter("runs", "Runs.", ["job_id", "outcome"], registry=registry)
    seconds = Histogram("seconds", "Seconds.", ["job_id"], registry=registry)
    last = Gauge("last", "Last run.", ["job_id"], registry=registry)

    def executed(event: Any) -> None:
        runs.labels(event.job_id, "success").inc()
        seconds.labels(event.job_id).observe(0.001)
        last.labels(event.job_id).set(time.time())

    scheduler.add_listener(executed, EVENT_JOB_EXECUTED)


def exporter(scheduler: Any) -> None:
    """The package apscheduler-exporter."""
    APSchedulerExporter(scheduler, registry=CollectorRegistry())


def metrics(scheduler: Any) -> None:
    """Ours, told that there is no tracing."""
    instrument(scheduler, registry=CollectorRegistry(), tracer_provider=NoOpTracerProvider())


def no_sdk(scheduler: Any) -> None:
    """Ours as it comes, where no OpenTelemetry SDK is configured."""
    instrument(scheduler, registry=CollectorRegistry())


def spans(scheduler: Any) -> None:
    """Ours with recording spans and a batch processor."""
    instrument(scheduler, registry=CollectorRegistry(), tracer_provider=recording())


_tracer = recording().get_tracer("bare")


def span_work() -> None:
    """Make a span by hand, with the attributes that ours has."""
    with _tracer.start_as_current_span("work", attributes=ATTRIBUTES) as span:
        work()
        span.set_attribute("apscheduler.outcome", "success")


CONTENDERS: Mapping[str, tuple[Callable[[Any], None], Callable[[], None]]] = {
    "bare": (bare, work),
    "no-op hooks": (hooks, passing(work)),
    "least": (least, work),
    "listener": (listener, work),
    "apscheduler-exporter": (exporter, work),
    "metrics": (metrics, work),
    "no SDK": (no_sdk, work),
    "bare span": (bare, span_work),
    "spans": (spans, work),
}
EXECUTORS: Mapping[str, Callable[[], Any]] = {
    "debug": DebugExecutor,
    "thread pool": lambda: ThreadPoolExecutor(1),
}
TARGETS: Sequence[tuple[str, str, float]] = (
    ("least", "apscheduler-exporter", math.inf),  # no target: what is possible
    ("metrics", "listener", 0.5),
    ("metrics", "apscheduler-exporter", 0.25),
    ("spans", "bare span", 1.2),
)
SDK_TARGET = 2e-6  # seconds that an absent SDK may cost


class Contender:
    """A scheduler with its jobs."""

    def __init__(self, name: str, executor: str, jobs: int, executors: int = 1) -> None:
        prepare, func = CONTENDERS[name]
        self.name = name
        self.executor = EXECUTORS[executor]()
        others = {str(number): EXECUTORS[executor]() for number in range(1, executors)}
        self.clock = time.thread_time if executor == "debug" else time.process_time
        Frozen.at = START
        self.scheduler = Scheduler(timezone="UTC", executors={"default": self.executor, **others})
        prepare(self.scheduler)
        for number in range(jobs):
            self.scheduler.add_job(
                func,
                "interval",
                seconds=STEP,
                id=f"job-{number}",
                executor=str(number % executors) if number % executors else "default",
                misfire_grace_time=None,
                start_date=START + timedelta(seconds=STEP),
            )
        self.scheduler.start()
        self.passes = 0
        self.jobs = jobs

    def turn(self) -> float:
        """Make all jobs due and run them; return seconds of CPU time per run."""
        self.passes += 1
        Frozen.at = START + timedelta(seconds=self.passes * STEP)
        since = self.clock()
        self.scheduler.turn()
        self._wait()
        return (self.clock() - since) / self.jobs

    def _wait(self) -> None:
        # The pool's only worker takes this last.
        if isinstance(self.executor, ThreadPoolExecutor):
            self.executor._pool.submit(work).result()  # noqa: SLF001
            while any(self.executor._instances.values()):  # noqa: SLF001
                time.sleep(0)


def measure(executor: str, names: Iterable[str], jobs: int, repeat: int) -> dict[str, list[float]]:
    """Return the seconds per run of each pass, by contender."""
    contenders = [Contender(name, executor, jobs) for name in names]
    for contender in contenders:
        for _ in range(5):
            contender.turn()
    took: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(repeat):
        random.shuffle(contenders)
        for contender in contenders:
            took[contender.name].append(contender.turn())
    return took


def instructions(name: str, executor: str, jobs: int) -> float:
    """Return instructions per run as callgrind counts them: of ten passes less those of none."""
    counts = []
    for passes in (0, 10):
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "out"
            subprocess.run(
                [
                    *("valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"),
                    *(sys.executable, __file__, "--jobs", str(jobs), "--count", name, executor),
                    str(passes),
                ],
                check=True,
                capture_output=True,
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
            [line] = [line for line in out.read_text().splitlines() if line.startswith("summary:")]
            counts.append(int(line.split()[1]))
    return (counts[1] - counts[0]) / 10 / jobs


def main() -> int:
    """Print the table; the exit status is 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=60)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--instructions", action="store_true", help="count with valgrind")
    parser.add_argument("--count", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    base.datetime = Frozen
    if options.count:
        name, executor, passes = options.count
        contender = Contender(name, executor, options.jobs)
        for _ in range(3 + int(passes)):
            contender.turn()
        return 0
    missed = 0
    for executor in EXECUTORS:
        if options.instructions:
            took = {name: instructions(name, executor, 20) for name in options.only}
            for name, count in took.items():
                print(f"{executor:12} {name:22} {count - took['bare']:12.0f} instructions more")
            continue
        all_took = measure(executor, options.only, options.jobs, options.repeat)
        took = {name: statistics.median(values) for name, values in all_took.items()}
        added = {name: value - took["bare"] for name, value in took.items()}
        for name in options.only:
            print(f"{executor:12} {name:22} {took[name] * 1e6:8.2f} us  +{added[name] * 1e6:.2f}")
        for ours, theirs, target in TARGETS:
            if ours in added and theirs in added:
                ratio = added[ours] / added[theirs]
                missed += ratio > target
                wanted = "what is possible" if target == math.inf else f"target {target}"
                print(f"{executor:12} {ours} / {theirs}: {ratio:.2f} ({wanted})")
        if "no SDK" in added:
            print(f"no SDK - metrics: {(added['no SDK'] - added['metrics']) * 1e6:.2f} us")
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
