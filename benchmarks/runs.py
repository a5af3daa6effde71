"""
What a run costs more when it is watched: ours beside what people use, in one run.

Usage: runs.py [--jobs 100] [--repeat 20] [--only NAME ...] [--clocks]

Every contender has a process of its own, as an application has but one, with a scheduler and the
same no-op jobs. A pass makes all its jobs due and runs them. The contenders take turns, in an order
that is drawn anew each time, so that a slow moment of the machine hits all alike. Told is CPU time,
which leaves out what other processes do, as the median over the turns less that of the bare
scheduler; and, where there is valgrind, instructions, as clocks are noisy: verdicts go by these.
"""

import argparse
import gc
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor as Threads
from datetime import datetime, timedelta, timezone
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
from apscheduler_telemetry.core.recorder import FRESH, MAX_FRESH

START = datetime(2020, 1, 1, tzinfo=timezone.utc)  # no run is too early, none is ever too late
PASSES = MAX_FRESH // FRESH  # of a turn: ours enters so many runs of a job at one go
WARM = 2 * PASSES
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


class NotCountedError(Exception):
    """There is valgrind, and yet no instructions are counted."""


class Process:
    """A contender in a process of its own, which turns when it is told."""

    def __init__(self, name: str, executor: str, jobs: int, *before: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [*before, sys.executable, __file__, "--jobs", str(jobs), "--child", name, executor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            text=True,
        )
        self.pid = self._process.pid
        self.turn(WARM)

    def turn(self, passes: int) -> float:
        """Let it turn so often; return its seconds of CPU time per run."""
        print(passes, file=self._process.stdin, flush=True)
        for line in self._process.stdout or ():
            return float(line)
        raise ChildProcessError(self.name)

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()


def serve(contender: Contender) -> None:
    """Turn as often as each line of standard input says, and answer with the time of a run."""
    contender.turn()
    gc.collect()
    gc.freeze()  # or chance would tell into whose turn a collection of everything falls
    for line in sys.stdin:
        took = [contender.turn() for _ in range(int(line))]
        print(statistics.fmean(took), flush=True)


def measure(executor: str, names: Iterable[str], jobs: int, repeat: int) -> dict[str, float]:
    """Return the seconds per run, by contender."""
    processes = [Process(name, executor, jobs) for name in names]
    took: dict[str, list[float]] = {process.name: [] for process in processes}
    for _ in range(repeat):
        random.shuffle(processes)
        for process in processes:
            process.turn(1)  # for the processor's caches
            took[process.name].append(process.turn(PASSES))
    for process in processes:
        process.end()
    return {name: statistics.median(values) for name, values in took.items()}


def count(control: str, executor: str, names: Sequence[str], jobs: int) -> dict[str, float]:
    """Return the instructions per run as callgrind counts them, by contender."""
    passes = 3 * PASSES  # as threads take turns by chance

    def count_one(name: str) -> float:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "out"
            valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}"]
            try:
                process = Process(name, executor, jobs, *valgrind, "--instr-atstart=no")
                for switch in ("on", "off"):
                    command = [control, f"--instr={switch}", str(process.pid)]
                    subprocess.run(command, check=True, capture_output=True)
                    if switch == "on":
                        process.turn(passes)
                process.end()
            except (ChildProcessError, BrokenPipeError, subprocess.CalledProcessError) as error:
                raise NotCountedError from error
            [line] = [line for line in out.read_text().splitlines() if line.startswith("totals:")]
            total = int(line.split()[1])
            if not total:
                raise NotCountedError
        return total / passes / jobs

    with Threads(os.cpu_count()) as threads:
        return dict(zip(names, threads.map(count_one, names), strict=True))


def main() -> int:
    """Print the table; the exit status is 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=list(CONTENDERS))
    parser.add_argument("--clocks", action="store_true", help="count no instructions")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        base.datetime = Frozen
        name, executor = options.child
        serve(Contender(name, executor, options.jobs))
        return 0
    names = options.only
    missed = False
    for executor in EXECUTORS:
        took = measure(executor, names, options.jobs, options.repeat)
        for name in names:
            more = took[name] - took["bare"]
            print(f"{executor:12} {name:22} {took[name] * 1e6:8.2f} us {more * 1e6:+10.2f}")
        misses = list(judge(executor, took))
        if {"no SDK", "metrics"} <= took.keys():
            more = took["no SDK"] - took["metrics"]
            print(
                f"{executor:12} no SDK - metrics: {more * 1e6:.2f} us (target {SDK_TARGET * 1e6})"
            )
            missed |= more > SDK_TARGET and executor == "debug"  # in a pool, threads vary by more
        control = None if options.clocks else shutil.which("callgrind_control")
        if control is not None:
            try:
                counts = count(control, executor, names, options.jobs)
            except NotCountedError:  # as where no process may trace another
                print(f"{executor:12} valgrind does not let itself be asked: by the clock, then")
            else:
                for name in names:
                    more = counts[name] - counts["bare"]
                    print(f"{executor:12} {name:22} {counts[name]:8.0f} instructions {more:+.0f}")
                misses = list(judge(executor, counts))
        missed |= bool(misses)
    return int(missed)


def judge(executor: str, costs: Mapping[str, float]) -> Iterator[str]:
    """Print what became of each target, and yield those that were missed."""
    for ours, theirs, target in TARGETS:
        if {ours, theirs} <= costs.keys():
            ratio = (costs[ours] - costs["bare"]) / (costs[theirs] - costs["bare"])
            print(f"{executor:12} {ours} / {theirs}: {ratio:.2f} (target {target})")
            if ratio > target:
                yield ours


if __name__ == "__main__":
    sys.exit(main())
