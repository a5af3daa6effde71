"""
Simulated processes that write files of Prometheus' multiprocess mode, and their values.

Several slots can be held by one process, so most tests simulate their processes in the process of
the test. `tests/end_to_end/test_process_models.py` has real ones.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

from apscheduler_telemetry.core.model import JobInfo, Liveness, Outcome
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.export.multiprocess.writer import SnapshotWriter
from tests.helpers.clocks import ManualClock

NOW = 1_800_000_000.0


Shown = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(directory: Path) -> Shown:
    """Read all files as the documentation of prometheus_client describes."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(directory))  # type: ignore[no-untyped-call]
    return series(registry)


def series(registry: CollectorRegistry) -> Shown:
    """Return the values of a registry by series."""
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    found = {_identity(sample): sample.value for sample in samples}
    assert len(found) == len(samples), "a series occurs twice"
    return found


def _identity(sample: Sample) -> tuple[str, frozenset[tuple[str, str]]]:
    return sample.name, frozenset(sample.labels.items())


def value(shown: Shown, name: str, **labels: str) -> float | None:
    """Return the value of the only series with these labels, None if there is no such series."""
    found = [
        each
        for (its_name, its_labels), each in shown.items()
        if its_name == f"apscheduler_{name}" and labels.items() <= dict(its_labels).items()
    ]
    assert len(found) <= 1, found
    return found[0] if found else None


def counts(directory: Path) -> tuple[float | None, float | None]:
    """Return the successful runs of all processes, by a counter and by a histogram."""
    shown = scrape(directory)
    return (
        value(shown, "job_runs_total", outcome="success"),
        value(shown, "job_run_duration_seconds_count"),
    )


def failing(read: Callable[[Path], Any], prefix: str) -> Callable[[Path], Any]:
    """Return a function that reads files, but fails for names that contain a text."""

    def read_or_fail(path: Path) -> Any:
        if prefix in path.name:
            raise OSError(errno.EIO, "for a moment", str(path))
        return read(path)

    return read_or_fail


class Process:
    """A simulated process: the metrics state of its scheduler, and a writer without a thread."""

    living: ClassVar[list[Process]] = []  # keeps them alive until the end of the test

    def __init__(self, directory: Path, name: str = "main", started: float = NOW) -> None:
        self.name = name
        self.clock = ManualClock(NOW)
        self.recorder = Recorder(name, clock=self.clock)
        self.error_reporter = ErrorReporter()
        self.started_at: float | None = started
        self.last_pass_ended_at: float | None = NOW
        self.alive = Liveness(scheduler_state="running", up=True)
        self.writer = SnapshotWriter(self, directory)
        self.writer.start()
        self.living.append(self)

    def liveness(self) -> Liveness:
        return self.alive

    def scheduler_info(self) -> Mapping[str, str]:
        facts = {"type": "X", "version": "3", "hostname": "h", "timezone": "UTC"}
        return {**facts, "pid": str(os.getpid()), "singleton": "true"}

    def job(self, next_run: float | None, job_id: str = "job", **info: Any) -> Any:
        """Add a job."""
        words = {"name": "n", "func": "m:f", "trigger": "t", "executor": "default"}
        known = {**words, "jobstore": "default", "persistent": False, "grace": 60.0, **info}
        return self.recorder.job_upserted(JobInfo(id=job_id, label=job_id, **known), next_run)

    def begin(self, due: float = NOW, job_id: str = "job") -> Run:
        """Start a run of a known job at the time at which it is due."""
        record = self.recorder.find_job_record("default", job_id)
        assert record is not None
        moment = datetime.fromtimestamp(due, timezone.utc)
        run = Run(record, moment, "default")
        self.recorder.run_submitted(run)
        run.try_start(due)
        return run

    def run(self, seconds: float, outcome: Outcome = Outcome.SUCCESS, due: float = NOW) -> None:
        self.finish(self.begin(due), seconds, outcome)

    def finish(self, run: Run, seconds: float, outcome: Outcome = Outcome.SUCCESS) -> None:
        """End a run after some seconds."""
        run.set_duration(seconds)
        run.finish(outcome)

    def write(self) -> None:
        self.writer.write()
        assert not any(self.error_reporter.counts().values()), self.error_reporter.counts()

    def die(self) -> None:
        """End like after SIGKILL: nothing is written, and the kernel releases the lock."""
        assert self.writer._slot is not None
        self.writer._slot.release()
        self.writer._writing_pid = None
        self.living.remove(self)
