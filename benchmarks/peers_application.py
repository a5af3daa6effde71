"""
The application that `peers.py` runs: jobs in trouble, and one of the peers that watches them.

Usage: peers_application.py PEER PART FIRST_RUN DIRECTORY PORT

It prints ``ready`` when its scheduler has started. For each line on standard input, the id of a
job, it prints what the peer reports of that job. It ends when standard input does.
"""

import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from apscheduler import events
from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

LIMIT = 60
"""Seconds that a run may be late, and that it may take, before a peer is to alert."""
RUNS = 5
"""Runs of most jobs: one a second from the first."""


def nothing() -> None:
    """Return at once."""


def sleep(seconds: float) -> None:
    """Take a while."""
    time.sleep(seconds)


def fail() -> None:
    """Raise."""
    message = "the job failed"
    raise RuntimeError(message)


def hang() -> None:
    """Never return."""
    threading.Event().wait()


def kill_the_worker() -> None:
    """End the process of the pool, as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)


def return_a_lock() -> Any:
    """Return what cannot be pickled."""
    return threading.Lock()


class FailingJobStore(MemoryJobStore):  # type: ignore[misc]  # APScheduler has no types
    """A job store whose database is gone when a job is written back."""

    def update_job(self, job: Any) -> None:
        """Fail, which ends the scheduler's thread."""
        message = f"cannot write {job.id}"
        raise OSError(message)


class Application:
    """
    A scheduler and its jobs.

    Args:
        first_run: Unix seconds at which most jobs run first; they run again a day later.
    """

    def __init__(self, first_run: float) -> None:
        self.scheduler = BackgroundScheduler()
        self._first_run = first_run

    def add(  # noqa: PLR0913  # what differs from job to job
        self,
        job_id: str,
        func: Callable[..., Any],
        *,
        args: tuple[Any, ...] = (),
        runs: int = 1,
        offset: int = 0,
        executor: Any = None,
        **options: Any,
    ) -> None:
        """
        Add a job that is due `runs` times, a second apart.

        Args:
            job_id: its id and its name.
            func: what it calls.
            args: the arguments of that.
            runs: how often it is due.
            offset: seconds between the first run of most jobs and its own.
            executor: an executor of its own, or the name of one.
            **options: options of ``add_job``.
        """
        if executor is not None and not isinstance(executor, str):
            self.scheduler.add_executor(executor, job_id)
            executor = job_id
        first = datetime.fromtimestamp(self._first_run + offset)  # noqa: DTZ006  # as cron has it
        self.scheduler.add_job(
            func,
            "cron",
            hour=first.hour,
            minute=first.minute,
            second=f"{first.second}-{first.second + runs - 1}",
            args=args,
            id=job_id,
            name=job_id,
            **{
                "executor": executor or "default",
                "coalesce": False,
                "max_instances": RUNS,
                "misfire_grace_time": None,
                **options,
            },
        )

    def occupy(self, executor: str, seconds: float | None = None) -> None:
        """Keep the only worker of an executor busy from a second before the first run on."""
        self.scheduler.add_job(
            hang if seconds is None else sleep,
            "date",
            run_date=datetime.fromtimestamp(self._first_run - 1),  # noqa: DTZ006  # as above
            args=() if seconds is None else (seconds,),
            executor=executor,
            id=f"before-{executor}",
            name=f"before-{executor}",
        )

    def add_late_jobs(self) -> None:
        """Add jobs of which all runs are due already, as after a time without the process."""
        for job_id, coalesce in (("burst", False), ("coalesced", True)):
            self.add(
                job_id,
                nothing,
                runs=RUNS,
                coalesce=coalesce,
                next_run_time=datetime.fromtimestamp(  # with a zone, which `add_job` insists on
                    self._first_run, self.scheduler.timezone
                ),
            )


def add_main(application: Application) -> None:
    """Add the jobs that do not disturb each other."""
    add = application.add
    add("success", sleep, args=(0.1,), runs=RUNS)
    add("error", fail, runs=RUNS)
    add("queued", sleep, args=(1,), executor=ThreadPoolExecutor(1))
    application.occupy("queued", 3)
    add("missed", nothing, runs=RUNS, executor=ThreadPoolExecutor(1), misfire_grace_time=1)
    application.occupy("missed", 9)
    add("skipped", sleep, args=(RUNS - 0.3,), runs=RUNS, max_instances=1)
    add("killed", kill_the_worker, runs=RUNS, executor=ProcessPoolExecutor(1))
    add("unpicklable", return_a_lock, runs=RUNS, executor=ProcessPoolExecutor(1))
    add("hang", hang, executor=ThreadPoolExecutor(1))


def add_busy(application: Application) -> None:
    """Add a job whose executor has one worker, which hangs."""
    application.add("busy", nothing, executor=ThreadPoolExecutor(1))
    application.occupy("busy")


def add_executor_missing(application: Application) -> None:
    """Add a job whose executor does not exist."""
    application.add("no-executor", nothing, executor="nowhere")


def add_loop(application: Application) -> None:
    """Add a job, and another one before it, with which the scheduler's thread ends."""
    application.scheduler.add_jobstore(FailingJobStore(), "failing")
    application.add("loop", nothing)
    application.add("breaks-the-loop", nothing, offset=-3, jobstore="failing")


def add_restart(application: Application) -> None:
    """Add a job that is cut off by a restart, and one that is due before the process is back."""
    application.add("cut", hang)
    application.add("down", nothing, offset=RUNS)


def add_gone(application: Application) -> None:
    """Add a job for whose run the process is dead."""
    application.add("gone", nothing)


PARTS: dict[str, Callable[[Application], None]] = {
    "main": add_main,
    "busy": add_busy,
    "executor": add_executor_missing,
    "loop": add_loop,
    "restart": add_restart,
    "gone": add_gone,
}
"""Sets of jobs that share a process."""


class Peer(Protocol):
    """What watches a scheduler."""

    def watch(self, scheduler: Any, port: int) -> None:
        """Start to watch, before the scheduler starts; `port` is free for metrics."""

    def report(self, job_id: str) -> str:
        """Return what is known of a job, in the peer's own words; empty if nothing."""


def join(numbers: dict[str, float]) -> str:
    """Return numbers and their names as text, without those that are 0."""
    return ", ".join(f"{number:g} {name}" for name, number in numbers.items() if number)


class Listener:
    """A listener that counts all events of a job, apart from those about adding it."""

    def __init__(self, _directory: Path) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._names = {
            events.EVENT_JOB_SUBMITTED: "submitted",
            events.EVENT_JOB_EXECUTED: "executed",
            events.EVENT_JOB_ERROR: "error",
            events.EVENT_JOB_MISSED: "missed",
            events.EVENT_JOB_MAX_INSTANCES: "max_instances",
            events.EVENT_JOB_REMOVED: "removed",
        }

    def watch(self, scheduler: Any, _port: int) -> None:
        """Add the listener."""
        scheduler.add_listener(self._count, sum(self._names))

    def _count(self, event: Any) -> None:
        self._counts[event.job_id, self._names[event.code]] += 1

    def report(self, job_id: str) -> str:
        """Return the events."""
        return join({name: self._counts[job_id, name] for name in self._names.values()})


class Exporter:
    """The package apscheduler-exporter, by its metrics."""

    def __init__(self, _directory: Path) -> None:
        self._registry = CollectorRegistry()

    def watch(self, scheduler: Any, _port: int) -> None:
        """Use it as its documentation says."""
        from apscheduler_metrics.exporter import (  # noqa: PLC0415  # may not be installed
            APSchedulerExporter,
        )

        APSchedulerExporter(scheduler, registry=self._registry)

    def report(self, job_id: str) -> str:
        """Return its counters, and the last duration of the job that waits."""
        counts = {
            name: self._value(f"apscheduler_job_{name}_total", job_id)
            for name in ("done", "errors", "missed")
        }
        seconds = self._value("apscheduler_job_last_duration_seconds", job_id)
        return join(counts) + (f" of {seconds:.0f} s" if job_id == "queued" else "")

    def _value(self, name: str, job_id: str) -> float:
        return self._registry.get_sample_value(name, {"job_name": job_id}) or 0


class Cronwatch:
    """The package cronwatch-sdk, by the runs in its store; its alerts go to a file."""

    def __init__(self, directory: Path) -> None:
        import cronwatch  # noqa: PLC0415  # may not be installed
        from cronwatch.stores import SqliteStore  # noqa: PLC0415  # as above

        def write(alert: Any) -> None:
            with (directory / "alerts").open("a") as file:
                file.write(f"{alert.job} {alert.type}\n")

        self._client = cronwatch.Cronwatch(
            store=SqliteStore(str(directory / "runs.db")),
            alerts=[cronwatch.Custom("file", write)],
        )

    def watch(self, scheduler: Any, _port: int) -> None:
        """Use it as its documentation says, with the limits that ours has too."""
        import cronwatch.apscheduler  # noqa: PLC0415  # may not be installed

        cronwatch.apscheduler.watch(
            scheduler, client=self._client, grace=f"{LIMIT}s", timeout=f"{LIMIT}s"
        )
        self._client.start_checking()

    def report(self, job_id: str) -> str:
        """Check, as it does each minute, and return the states of the job's runs."""
        self._client.check()
        runs = self._client.runs(job_id)
        text = join(Counter(str(run.status) for run in runs))
        if job_id == "queued" and runs:
            text += f" of {(runs[0].duration_ms or 0) / 1000:.0f} s"
        return text


class Ours:
    """This package, by its metrics and its health; Prometheus has the alerts."""

    def __init__(self, _directory: Path) -> None:
        self._registry = CollectorRegistry()
        self._telemetry: Any = None

    def watch(self, scheduler: Any, port: int) -> None:
        """Use it as the README says."""
        from apscheduler_telemetry import Expectations, instrument  # noqa: PLC0415  # as the others

        expected = Expectations(grace=LIMIT, max_duration=LIMIT)
        self._telemetry = instrument(scheduler, registry=self._registry, expect=expected)
        self._telemetry.start_http_server(port)

    def report(self, job_id: str) -> str:
        """Return the outcomes, what runs or waits, and why the scheduler is unhealthy."""
        if self._telemetry is None:
            return ""
        numbers = {
            outcome: self._value("job_runs_total", job_id=job_id, outcome=outcome)
            for outcome in ("success", "error", "missed", "skipped", "coalesced", "lost")
        }
        numbers["running"] = self._value("job_running", job_id=job_id)
        numbers["queued"] = self._value("executor_queued", executor=job_id)
        text = join(numbers)
        if job_id == "queued":
            seconds = self._value("job_last_run_duration_seconds", job_id=job_id)
            text += f" of {seconds:.0f} s"
        if self._telemetry.health()["reasons"]:
            text += ", `/health` 503"
        return text.removeprefix(", ")

    def _value(self, name: str, **labels: str) -> float:
        labels["scheduler"] = "default"
        return self._registry.get_sample_value(f"apscheduler_{name}", labels) or 0


PEERS: dict[str, Callable[[Path], Peer]] = {
    "apscheduler-telemetry": Ours,
    "listener": Listener,
    "apscheduler-exporter": Exporter,
    "cronwatch-sdk": Cronwatch,
}


def main(name: str, part: str, first_run: str, directory: str, port: str) -> None:
    """Run until standard input ends; with the part ``after``, only report."""
    peer = PEERS[name](Path(directory))
    if part != "after":
        application = Application(float(first_run))
        peer.watch(application.scheduler, int(port))
        PARTS[part](application)
        application.scheduler.start()
        if part == "main":
            late = float(first_run) + RUNS + 1 - time.time()
            timer = threading.Timer(max(late, 0), application.add_late_jobs)
            timer.daemon = True
            timer.start()
    print("ready", flush=True)
    for line in sys.stdin:
        print(peer.report(line.strip()), flush=True)
    os._exit(0)  # without the jobs that hang


if __name__ == "__main__":
    main(*sys.argv[1:])
