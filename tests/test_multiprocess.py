"""
Prometheus' multiprocess mode: the files, read in the same way as users read them.

Several slots can be held by one process, so most tests simulate their processes in the process of
the test. `test_process_models` has real ones.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.samples import Sample

import support_jobs as jobs
from apscheduler_telemetry import ArgumentValueError, Telemetry, instrument
from apscheduler_telemetry.core.model import (
    JobInfo,
    Liveness,
    Outcome,
    RemovalReason,
    SchedulerErrorKind,
)
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS, Recorder
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.export import multiprocess as package
from apscheduler_telemetry.export.metric_families import FAMILIES, Kind
from apscheduler_telemetry.export.multiprocess import slots, writer
from apscheduler_telemetry.export.multiprocess.directory import (
    DIRECTORY_VARIABLE,
    configured_directory,
)
from apscheduler_telemetry.export.multiprocess.file_format import read_values
from apscheduler_telemetry.export.multiprocess.gauge_modes import GAUGE_MODES
from apscheduler_telemetry.export.multiprocess.locks import try_lock_directory
from apscheduler_telemetry.export.multiprocess.slots import STALE_AFTER, remove_stale_gauges
from apscheduler_telemetry.export.multiprocess.snapshot import CUMULATIVE_KINDS
from apscheduler_telemetry.export.multiprocess.writer import SnapshotWriter
from apscheduler_telemetry.multiprocess import child_exit
from support import HandDriven, frozen, recorder_of, registry_of, until
from support_http import ask_wsgi
from support_scenes import Clock

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
    """Return a function that reads files, but fails with those whose name has this in it."""

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
        self.clock = Clock(NOW)
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
        record = self.recorder.find_record("default", job_id)
        assert record is not None
        moment = datetime.fromtimestamp(due, timezone.utc)
        run = Run(record, moment, "default")
        self.recorder.run_submitted(run)
        run.start(due)
        return run

    def run(self, seconds: float, outcome: Outcome = Outcome.SUCCESS, due: float = NOW) -> None:
        self.finish(self.begin(due), seconds, outcome)

    def finish(self, run: Run, seconds: float, outcome: Outcome = Outcome.SUCCESS) -> None:
        """End a run that has lasted so many seconds."""
        run.stop(seconds)
        run.finish(outcome)

    def write(self) -> None:
        self.writer.write()
        assert not any(self.error_reporter.counts().values()), self.error_reporter.counts()

    def die(self) -> None:
        """End as after SIGKILL: nothing is written, and the kernel releases the lock."""
        assert self.writer._slot is not None
        self.writer._slot.release()
        self.writer._pid = None
        self.living.remove(self)


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Turn on multiprocess mode."""
    directory = tmp_path / "metrics"
    directory.mkdir()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory))
    return directory


@pytest.fixture
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only the test write, without threads."""
    monkeypatch.setattr(writer, "_write_periodically", lambda *_: None)


@pytest.fixture
def by_hand(directory: Path, _by_hand: None) -> Iterator[Path]:
    """Turn on the mode without threads, and keep all processes until the test ends."""
    yield directory
    Process.living.clear()


class TestOneProcess:
    """One process that serves metrics in this mode."""

    @pytest.fixture
    def telemetry(self, by_hand: Path) -> Iterator[Telemetry]:
        """Run a scheduler with jobs that succeeded, failed or wait."""
        scheduler = HandDriven(executors={"default": DebugExecutor()}, timezone=timezone.utc)
        telemetry = instrument(
            scheduler,
            name='a "name" with_all/sorts of*signs',
            registry=CollectorRegistry(),
            owner="me",
        )
        scheduler.add_job(jobs.nothing, id="ok_1")
        scheduler.add_job(jobs.fail, id='it "fails"\n')
        scheduler.add_job(jobs.nothing, "interval", hours=1, id="hourly")
        scheduler.start()
        scheduler.turn()
        recorder_of(telemetry).count_scheduler_error(SchedulerErrorKind.JOBSTORE)
        until(lambda: value(series(registry_of(telemetry)), "job_shortest_interval_seconds"))
        yield telemetry
        scheduler.shutdown()
        telemetry.uninstrument()

    def test_series_are_the_same_as_without_the_mode(
        self, telemetry: Telemetry, by_hand: Path
    ) -> None:
        """Names, labels and values of all series are the same with and without the mode."""
        assert telemetry._snapshot_writer is not None
        with frozen(datetime.now(timezone.utc)):  # the last read of a store in memory is always now
            telemetry._snapshot_writer.write()
            plain = series(registry_of(telemetry))
        assert len(plain) > 150
        assert scrape(by_hand) == plain

    def test_types_and_help_texts(self, telemetry: Telemetry, by_hand: Path) -> None:
        """Each metric has the same type and help text as without the mode."""
        assert telemetry._snapshot_writer is not None
        telemetry._snapshot_writer.write()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        read = {m.name: (m.type, m.documentation) for m in registry.collect()}
        plain = {
            m.name: (m.type, m.documentation) for m in registry_of(telemetry).collect() if m.samples
        }
        assert read == plain

    @pytest.mark.integration
    def test_promtool_accepts_the_exposition(self, telemetry: Telemetry) -> None:
        """`promtool check metrics` reports no problem."""
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("promtool is not installed")
        page = ask_wsgi(telemetry.wsgi_app, "/metrics").body
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=page, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")

    def test_thread_writes(self, directory: Path) -> None:
        """The thread writes within seconds; a shutdown writes at once."""
        scheduler = HandDriven(executors={"default": DebugExecutor()})
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.add_job(jobs.nothing, id="ok")
        scheduler.start()
        until(lambda: value(scrape(directory), "scheduler_up", scheduler="default") == 1)
        scheduler.turn()
        until(lambda: value(scrape(directory), "job_runs_total", outcome="success") == 1)
        scheduler.shutdown()
        assert value(scrape(directory), "scheduler_state", state="stopped") == 1
        assert value(scrape(directory), "scheduler_up", scheduler="default") == 0
        telemetry.uninstrument()

    @pytest.mark.slow
    def test_end(self, directory: Path) -> None:
        """At exit, the latest counts are written and the gauges are removed."""
        script = """
            from apscheduler.executors.debug import DebugExecutor
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument
            from apscheduler_telemetry.export.multiprocess import writer
            from support import HandDriven
            writer.WRITE_INTERVAL = 3600
            scheduler = HandDriven(executors={"default": DebugExecutor()})
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.start()
            telemetry._snapshot_writer.write()
            scheduler.add_job(print, id="last")
            scheduler.turn()
        """
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            check=True,
        )
        shown = scrape(directory)
        assert value(shown, "job_runs_total", outcome="success") == 1
        assert value(shown, "scheduler_up") is None

    def test_instrumented_while_running(self, by_hand: Path) -> None:
        """A scheduler that already runs when it is instrumented is written as well."""
        scheduler = HandDriven()
        scheduler.start()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        ask_wsgi(telemetry.wsgi_app, "/metrics")
        assert value(scrape(by_hand), "scheduler_up") == 1
        scheduler.shutdown()
        telemetry.uninstrument()

    def test_not_started(self, by_hand: Path) -> None:
        """A process that does not start its scheduler writes nothing."""
        telemetry = instrument(HandDriven(), registry=CollectorRegistry())
        assert ask_wsgi(telemetry.wsgi_app, "/metrics").body == b""
        telemetry.uninstrument()

    def test_uninstrument(self, telemetry: Telemetry, by_hand: Path) -> None:
        """Gauges are removed, and the next handle continues from the counters."""
        assert telemetry._snapshot_writer is not None
        telemetry._snapshot_writer.write()
        scheduler = telemetry._scheduler
        telemetry.uninstrument()
        shown = scrape(by_hand)
        assert value(shown, "scheduler_up") is None
        assert value(shown, "job_runs_total", outcome="success", job_id="ok_1") == 1
        again = instrument(scheduler, name=telemetry.name, registry=CollectorRegistry())
        scheduler.add_job(jobs.nothing, id="ok_1")
        scheduler.turn()
        ask_wsgi(again.wsgi_app, "/metrics")
        assert value(scrape(by_hand), "job_runs_total", outcome="success", job_id="ok_1") == 2
        again.uninstrument()

    def test_without_a_registry(self, by_hand: Path) -> None:
        """With ``registry=None``, no file is written."""
        scheduler = HandDriven()
        telemetry = instrument(scheduler, registry=None)
        scheduler.start()
        scheduler.shutdown()
        assert list(by_hand.iterdir()) == []
        telemetry.uninstrument()

    def test_exemplars_are_left_out(self, by_hand: Path) -> None:
        """The files cannot store exemplars; the histogram is complete without them."""
        process = Process(by_hand)
        process.job(None)
        run = process.begin()
        run.exemplar_span = SimpleNamespace(trace_id=1, span_id=2)
        process.finish(run, 1.0)
        process.write()
        assert value(scrape(by_hand), "job_run_duration_seconds_count") == 1


class TestModes:
    """How the gauges of several processes are combined."""

    def test_each_gauge_has_a_mode(self) -> None:
        """The table has all gauges and nothing else."""
        gauges = {family for family in FAMILIES if family.kind in (Kind.GAUGE, Kind.LOAD)}
        assert set(GAUGE_MODES) == gauges

    def test_modes_match_the_docs(self) -> None:
        """``docs/metrics.md`` gives the same mode for each gauge."""
        page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
        section = page.split("## Multiprocess mode")[1].split("\n## ")[0]
        documented = re.findall(
            r"^\| `(\w+)` \| [^|]+ \| `(\w+)`( by weight)? \|", section, re.MULTILINE
        )
        assert {name: mode for name, mode, _ in documented} == {
            family.prometheus_family_name: mode for family, mode in GAUGE_MODES.items()
        }

    def test_all_modes_are_live(self) -> None:
        """No gauge of a dead process is shown."""
        assert all(mode.startswith("live") for mode in GAUGE_MODES.values())

    @pytest.mark.parametrize(
        ("next_runs", "shown"),
        [
            ((NOW + 9, NOW + 5, None), NOW + 5),
            ((None, NOW + 9), NOW + 9),
            ((None, None), 0),
            ((NOW + 0.25, NOW + 0.125), NOW + 0.125),
            ((253402300799.0,), 253402300799.0),
        ],
    )
    def test_next_run(
        self, by_hand: Path, next_runs: tuple[float | None, ...], shown: float
    ) -> None:
        """The earliest is shown; 0 only if no process has a next run."""
        for next_run in next_runs:
            process = Process(by_hand)
            process.job(next_run)
            process.write()
        assert value(scrape(by_hand), "job_next_run_timestamp_seconds") == shown

    def test_running(self, by_hand: Path) -> None:
        """Runs add up, and the oldest gives the start; processes without runs do not matter."""
        first, second, third = (Process(by_hand) for _ in range(3))
        for process in (first, second, third):
            process.job(None)
        first.begin(NOW + 2)
        first.begin(NOW + 3)
        second.begin(NOW + 1)
        for process in (first, second, third):
            process.write()
        shown = scrape(by_hand)
        assert value(shown, "job_running") == 3
        assert value(shown, "job_running_since_timestamp_seconds") == NOW + 1
        assert value(shown, "job_last_run_timestamp_seconds") == NOW + 3

    def test_last_duration(self, by_hand: Path) -> None:
        """The duration of the run that ended last is shown, whichever process ran it."""
        for name, dues in {"one": (NOW + 20, NOW), "other": (NOW, NOW + 20)}.items():
            for seconds, due in zip((3, 5), dues, strict=True):
                process = Process(by_hand, name)
                process.job(None)
                process.run(seconds, due=due)
                process.write()
        shown = scrape(by_hand)
        assert value(shown, "job_last_run_duration_seconds", scheduler="one") == 3
        assert value(shown, "job_last_run_duration_seconds", scheduler="other") == 5

    def test_counters_and_histograms_add_up(self, by_hand: Path) -> None:
        """Counters add up, and so do the buckets of histograms."""
        first, second = Process(by_hand), Process(by_hand)
        for process in (first, second):
            process.job(None)
        first.run(seconds=1)
        first.run(seconds=0.2, outcome=Outcome.ERROR)
        second.run(seconds=1)
        first.recorder.count_scheduler_error(SchedulerErrorKind.LISTENER)
        first.write()
        second.write()
        shown = scrape(by_hand)
        assert value(shown, "job_runs_total", outcome="success") == 2
        assert value(shown, "job_runs_total", outcome="error") == 1
        assert value(shown, "job_runs_total", outcome="lost") == 0
        assert value(shown, "scheduler_errors_total", kind="listener") == 1
        durations = [
            value(shown, "job_run_duration_seconds_bucket", le=le) for le in ("0.1", "0.25", "1.0")
        ]
        assert durations == [0, 1, 3]
        assert value(shown, "job_run_duration_seconds_count") == 3
        assert value(shown, "job_run_duration_seconds_sum") == pytest.approx(2.2)

    def test_duplicate_schedulers(self, by_hand: Path) -> None:
        """The state is the number of processes in which the scheduler runs."""
        first, second = Process(by_hand), Process(by_hand)
        for process in (first, second):
            process.job(NOW)
            process.write()
        shown = scrape(by_hand)
        assert value(shown, "scheduler_state", state="running") == 2
        assert value(shown, "scheduler_up") == 1

    def test_dead_loop_is_not_hidden(self, by_hand: Path) -> None:
        """If the loop is dead in one process, ``scheduler_up`` is 0."""
        first, second = Process(by_hand), Process(by_hand)
        first.alive = Liveness(scheduler_state="running", up=False)
        first.write()
        second.write()
        assert value(scrape(by_hand), "scheduler_up") == 0

    def test_consecutive_failures(self, by_hand: Path) -> None:
        """The highest number of all processes is shown, even if a run in another one succeeded."""
        first, second = Process(by_hand), Process(by_hand)
        for process, outcome in ((first, Outcome.ERROR), (second, Outcome.SUCCESS)):
            process.job(None)
            process.run(1, outcome)
            process.write()
        assert value(scrape(by_hand), "job_consecutive_failures") == 1

    def test_executor_load(self, by_hand: Path) -> None:
        """Workers and queued runs add up."""
        for _ in range(2):
            process = Process(by_hand)
            process.recorder.executor_added("default", lambda: 10)
            record, due = process.job(NOW), datetime.fromtimestamp(NOW, timezone.utc)
            for _ in range(3):
                process.recorder.run_submitted(Run(record, due, "default"))
            process.write()
        shown = scrape(by_hand)
        assert value(shown, "executor_workers", executor="default") == 20
        assert value(shown, "executor_queued", executor="default") == 6

    def test_moved_to_another_process(self, by_hand: Path) -> None:
        """A stopped scheduler is shown until one of the same name runs in another process."""
        first = Process(by_hand)
        first.job(NOW + 1)
        first.alive = Liveness(scheduler_state="stopped", up=False)
        first.write()
        assert value(scrape(by_hand), "scheduler_state", state="stopped") == 1
        second = Process(by_hand)
        second.job(NOW + 9)
        second.write()
        first.write()
        second.write()
        shown = scrape(by_hand)
        assert value(shown, "scheduler_up") == 1
        assert value(shown, "scheduler_state", state="stopped") == 0
        assert value(shown, "job_next_run_timestamp_seconds") == NOW + 9

    def test_schedulers_are_kept_apart_by_name(self, by_hand: Path) -> None:
        """Schedulers whose names differ in one punctuation mark do not share files."""
        for name in ("a b", "a-b"):
            process = Process(by_hand, name)
            process.job(None)
            process.run(1)
            process.write()
        shown = scrape(by_hand)
        for name in ("a b", "a-b"):
            assert value(shown, "job_runs_total", outcome="success", scheduler=name) == 1


class TestDeath:
    """The files of processes that have ended."""

    def test_gauges_go(self, by_hand: Path) -> None:
        """`remove_stale_gauges` removes the gauges and keeps the counters."""
        process = Process(by_hand)
        process.job(NOW)
        process.run(1)
        process.write()
        process.die()
        remove_stale_gauges(by_hand)
        shown = scrape(by_hand)
        assert {name for name, _ in shown if "_timestamp_" in name or name.endswith("_up")} == set()
        assert value(shown, "job_runs_total", outcome="success") == 1

    def test_hook(self, by_hand: Path) -> None:
        """The hook of gunicorn removes the gauges, and also those of prometheus_client itself."""
        process = Process(by_hand)
        process.write()
        process.die()
        (by_hand / "gauge_liveall_4711.db").touch()
        child_exit(None, SimpleNamespace(pid=4711))
        assert [path.name for path in by_hand.glob("gauge_*")] == []

    def test_hook_outside_of_the_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the mode, the hook does nothing."""
        monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
        child_exit(None, SimpleNamespace(pid=4711))

    def test_live_gauges_are_kept(self, by_hand: Path) -> None:
        """Neither gauges of live processes nor files of other metrics are removed."""
        process = Process(by_hand)
        process.write()
        (by_hand / "gauge_liveall_4711.db").touch()
        before = sorted(path.name for path in by_hand.iterdir())
        remove_stale_gauges(by_hand)
        assert sorted(path.name for path in by_hand.iterdir()) == before

    def test_hanging(self, by_hand: Path) -> None:
        """Gauges that are not updated are removed, and the next write restores them."""
        process = Process(by_hand)
        process.write()
        long_ago = time.time() - STALE_AFTER - 1
        for path in by_hand.glob("gauge_*"):
            os.utime(path, (long_ago, long_ago))
        remove_stale_gauges(by_hand)
        assert value(scrape(by_hand), "scheduler_up") is None
        process.write()
        assert value(scrape(by_hand), "scheduler_up") == 1

    def test_idle_is_not_hanging(self, by_hand: Path) -> None:
        """A write without changes keeps the files from becoming stale."""
        process = Process(by_hand)
        process.write()
        long_ago = time.time() - STALE_AFTER - 1
        for path in by_hand.glob("gauge_*"):
            os.utime(path, (long_ago, long_ago))
        process.write()
        assert value(scrape(by_hand), "scheduler_up") == 1

    def test_the_next_goes_on(self, by_hand: Path) -> None:
        """The next process continues from the counters, and the number of files stays the same."""
        files = set()
        for life in range(1, 5):
            process = Process(by_hand)
            process.job(NOW)
            process.run(1)
            process.write()
            shown = scrape(by_hand)
            assert value(shown, "job_runs_total", outcome="success") == life
            assert value(shown, "job_run_duration_seconds_count") == life
            assert value(shown, "job_run_duration_seconds_sum") == life
            files.add(len(list(by_hand.iterdir())))
            process.die()
        assert len(files) == 1

    def test_start_is_that_of_the_first_process(self, by_hand: Path) -> None:
        """The counters count from the start of the first process, so that start is shown."""
        for started in (NOW, NOW + 50, NOW + 100):
            process = Process(by_hand, started=started)
            process.write()
            assert value(scrape(by_hand), "scheduler_start_timestamp_seconds") == NOW
            process.die()

    def test_started_twice(self, by_hand: Path) -> None:
        """A restart of the scheduler in the same process does not change the start."""
        process = Process(by_hand, started=NOW + 50)
        process.write()
        process.started_at = NOW + 70
        process.write()
        assert value(scrape(by_hand), "scheduler_start_timestamp_seconds") == NOW + 50


class TestRemovedJobs:
    """Metrics of removed jobs disappear."""

    @pytest.fixture
    def now(self, monkeypatch: pytest.MonkeyPatch) -> Clock:
        """Replace the monotonic clock of the writer."""
        clock = Clock(1000.0)
        monkeypatch.setattr("time.monotonic", clock)
        return clock

    def write_and_die(self, directory: Path, *job_ids: str, name: str = "main") -> None:
        """Leave the files of a process that has ended."""
        process = Process(directory, name)
        for job_id in job_ids:
            process.job(NOW, job_id)
        process.write()
        process.die()

    def jobs(self, directory: Path) -> set[str]:
        return {
            dict(labels)["job_id"] for _, labels in scrape(directory) if "job_id" in dict(labels)
        }

    def test_known_to_this_process(self, by_hand: Path) -> None:
        """The files drop a job together with the metrics state."""
        process = Process(by_hand)
        record = process.job(NOW)
        process.write()
        process.recorder.job_removed(record, RemovalReason.CANCELLED)
        process.write()
        shown = scrape(by_hand)
        assert value(shown, "job_next_run_timestamp_seconds") == 0
        assert value(shown, "job_withdrawn_run_timestamp_seconds") == NOW
        process.clock.now += REMOVED_JOB_SECONDS + 1
        process.write()
        assert self.jobs(by_hand) == set()

    def test_known_to_this_and_a_previous_process(self, by_hand: Path) -> None:
        """Both counts disappear at the same time, so the counter never falls."""
        self.write_and_die(by_hand, "job")
        process = Process(by_hand)
        record = process.job(NOW)
        process.run(1)
        process.write()
        process.recorder.job_removed(record, RemovalReason.CANCELLED)
        process.clock.now += REMOVED_JOB_SECONDS + 1
        process.write()
        assert self.jobs(by_hand) == set()

    def test_only_known_to_a_previous_process(self, by_hand: Path, now: Clock) -> None:
        """The job disappears `REMOVED_JOB_SECONDS` seconds after the slot was taken."""
        self.write_and_die(by_hand, "old", "job")
        process = Process(by_hand)
        process.job(NOW)
        now.now += 1
        process.write()
        assert self.jobs(by_hand) == {"job", "old"}
        now.now += REMOVED_JOB_SECONDS + 1
        process.write()
        assert self.jobs(by_hand) == {"job"}

    def test_in_a_free_slot(self, by_hand: Path, now: Clock) -> None:
        """
        Jobs that the live process does not know are removed from free slots.

        A reload leaves such slots, because the new process starts before the old one ends.
        """
        old = Process(by_hand)
        for job_id in ("job", "old"):
            old.job(NOW, job_id)
        old.run(1)
        old.recorder.count_scheduler_error(SchedulerErrorKind.LOOP)
        old.write()
        new = Process(by_hand)
        new.job(NOW)
        new.write()
        old.die()
        now.now += 3600
        new.write()
        assert self.jobs(by_hand) == {"job", "old"}, "too early"
        long_ago = time.time() - REMOVED_JOB_SECONDS - 1
        for path in by_hand.glob("[ch]*.0.db"):
            os.utime(path, (long_ago, long_ago))
        now.now += 3600
        new.write()
        assert self.jobs(by_hand) == {"job"}
        shown = scrape(by_hand)
        assert value(shown, "job_runs_total", outcome="success") == 1
        assert value(shown, "scheduler_errors_total", kind="loop") == 1

    def test_in_a_free_slot_with_two_processes(self, by_hand: Path, now: Clock) -> None:
        """While two processes are alive, neither prunes the slot of a third one."""
        third, first, second = (Process(by_hand) for _ in range(3))
        third.job(NOW, "third")
        for process in (third, first, second):
            process.write()
        third.die()
        long_ago = time.time() - REMOVED_JOB_SECONDS - 1
        for path in by_hand.glob("[ch]*.0.db"):
            os.utime(path, (long_ago, long_ago))
        now.now += 3600
        first.write()
        assert self.jobs(by_hand) == {"third"}

    def test_in_a_free_slot_that_cannot_be_read(
        self, by_hand: Path, now: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Neither the search for removed jobs nor that for stale gauges loses its counts."""
        old, new = Process(by_hand), Process(by_hand)
        for process in (old, new):
            process.job(NOW)
            process.run(1)
            process.write()
        old.die()
        long_ago = time.time() - REMOVED_JOB_SECONDS - 1
        for path in by_hand.glob("[ch]*.0.db"):
            os.utime(path, (long_ago, long_ago))
        now.now += 3600
        with monkeypatch.context() as patch:
            patch.setattr(slots, "read_values", failing(read_values, "_"))
            new.writer.write()
            assert new.error_reporter.counts()["multiprocess"] == 1
        assert counts(by_hand) == (2, 2)
        now.now += 3600
        new.writer.write()
        assert new.error_reporter.counts()["multiprocess"] == 1
        assert counts(by_hand) == (2, 2)


class TestTrouble:
    """Problems with the directory and with the other processes that use it."""

    def test_emptied(self, by_hand: Path) -> None:
        """All files are written again, and nothing is counted twice."""
        process = Process(by_hand)
        process.job(NOW)
        process.run(1)
        process.write()
        before = scrape(by_hand)
        for path in by_hand.iterdir():
            path.unlink()
        process.write()
        assert scrape(by_hand) == before
        process.write()
        assert scrape(by_hand) == before

    def test_locks_removed(self, by_hand: Path) -> None:
        """If only the lock files were deleted, nothing is counted twice either."""
        process = Process(by_hand)
        process.job(NOW)
        process.run(1)
        process.write()
        before = scrape(by_hand)
        for path in by_hand.glob("*.lock"):
            path.unlink()
        process.write()
        assert scrape(by_hand) == before

    def test_removed(self, by_hand: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Each failure is counted and one is logged; once the directory is back, all series are."""
        process = Process(by_hand)
        process.job(NOW)
        process.write()
        before = scrape(by_hand)
        shutil.rmtree(by_hand)
        for _ in range(3):
            process.writer.write()
        assert process.error_reporter.counts()["multiprocess"] == 3
        assert len(caplog.records) == 1
        by_hand.mkdir()
        process.writer.write()
        shown = dict(scrape(by_hand))
        assert value(shown, "telemetry_errors_total", component="multiprocess") == 3
        assert len(shown) == len(before)

    @pytest.mark.slow
    def test_full_disk(self, directory: Path) -> None:
        """A full disk is a counted error, and not a SIGBUS that ends the process."""
        mount = "mount -t tmpfs -o size=128k tmpfs"
        enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        if subprocess.run([*enter, f'{mount} "$0"', directory], check=False).returncode:
            pytest.skip("this machine cannot mount a small file system")
        script = """
            from apscheduler.executors.debug import DebugExecutor
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument
            from support import HandDriven, errors_of
            scheduler = HandDriven(executors={"default": DebugExecutor()})
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.start()
            for number in range(100):
                scheduler.add_job(print, "interval", hours=1, id=str(number))
            telemetry._snapshot_writer.write()
            print(errors_of(telemetry).counts()["multiprocess"] > 0)
        """
        done = subprocess.run(
            [
                *enter,
                f'{mount} "$0" && exec "$@"',
                directory,
                sys.executable,
                "-c",
                textwrap.dedent(script),
            ],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "True\n")

    def test_died_while_writing(self, by_hand: Path) -> None:
        """The next process removes partial files."""
        process = Process(by_hand)
        process.write()
        process.die()
        for path in list(by_hand.glob("*.db")):
            path.rename(path.with_suffix(".partial"))
        Process(by_hand).write()
        assert list(by_hand.glob("*.partial")) == []

    @pytest.mark.parametrize("kind", CUMULATIVE_KINDS)
    def test_slot_that_cannot_be_read_at_first_keeps_its_counts(
        self, by_hand: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """The process that takes it tries again, and until then its files stay as they are."""
        dead = Process(by_hand)
        dead.job(NOW)
        dead.run(1)
        dead.write()
        dead.die()
        before = counts(by_hand)
        heir = Process(by_hand)
        heir.job(NOW)
        heir.run(1)
        with monkeypatch.context() as patch:
            patch.setattr(slots, "read_values", failing(read_values, f"{kind}_"))
            for failures in (1, 2):
                heir.writer.write()
                assert heir.error_reporter.counts()["multiprocess"] == failures
                assert counts(by_hand) == before == (1, 1)
        heir.writer.write()
        assert counts(by_hand) == (2, 2)
        heir.writer.write()
        assert counts(by_hand) == (2, 2)

    def test_slot_that_cannot_be_read_is_left_to_whoever_can(
        self, by_hand: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process that can read it continues its counts, and nothing counts twice."""
        dead = Process(by_hand)
        dead.job(NOW)
        dead.run(1)
        dead.write()
        dead.die()
        first, second = Process(by_hand), Process(by_hand)
        for process in (first, second):
            process.job(NOW)
            process.run(1)
        with monkeypatch.context() as patch:
            patch.setattr(slots, "read_values", failing(read_values, "histogram_"))
            first.writer.write()
        second.write()
        first.writer.write()
        assert counts(by_hand) == (3, 3)
        assert len(list(by_hand.glob("counter_*.db"))) == 2

    @pytest.mark.parametrize(("kind", "expected"), [("counter", (1, 2)), ("histogram", (2, 1))])
    def test_slot_with_a_broken_file_is_taken_all_the_same(
        self, by_hand: Path, kind: str, expected: tuple[int, int]
    ) -> None:
        """What can never be read is written anew, as no scrape could succeed otherwise."""
        dead = Process(by_hand)
        dead.job(NOW)
        dead.run(1)
        dead.write()
        dead.die()
        (path,) = by_hand.glob(f"{kind}_*.db")
        path.write_bytes(path.read_bytes()[:100])
        heir = Process(by_hand)
        heir.job(NOW)
        heir.run(1)
        for _ in range(2):
            heir.writer.write()
            assert heir.error_reporter.counts()["multiprocess"] == 1
            assert counts(by_hand) == expected

    def test_many_jobs(self, by_hand: Path) -> None:
        """Files grow with the number of jobs, and all series are read."""
        process = Process(by_hand)
        for number in range(300):
            process.job(NOW, f"a job with a long name, whose number is {number}, or \N{SNOWMAN}")
            process.write() if number % 100 == 0 else None
        process.write()
        shown = scrape(by_hand)
        assert sum(name.endswith("_next_run_timestamp_seconds") for name, _ in shown) == 300

    def test_somebody_is_stopped_while_taking_a_slot(self, by_hand: Path) -> None:
        """If another process holds the directory lock, a write does not wait but is tried again."""
        dead, process = Process(by_hand, "dead"), Process(by_hand)
        dead.write()
        dead.die()
        before = scrape(by_hand)
        with try_lock_directory(by_hand) as is_acquired:
            assert is_acquired
            process.write()
            remove_stale_gauges(by_hand)
            assert scrape(by_hand) == before
        process.write()
        assert value(scrape(by_hand), "scheduler_up", scheduler="main") == 1

    @pytest.mark.slow
    def test_readers_meet_whole_files(self, by_hand: Path) -> None:
        """While files are replaced continuously, every scrape has all series."""
        process = Process(by_hand)
        process.job(NOW)
        process.write()
        expected = set(scrape(by_hand))
        script = """
            import sys
            from prometheus_client import CollectorRegistry
            from prometheus_client.multiprocess import MultiProcessCollector
            registry = CollectorRegistry()
            MultiProcessCollector(registry, sys.argv[1])
            print("ready", flush=True)
            sizes = {len([s for m in registry.collect() for s in m.samples]) for _ in range(300)}
            print(sizes)
        """
        reader = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(by_hand)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        while reader.poll() is None:
            process.recorder.count_scheduler_error(SchedulerErrorKind.LOOP)
            process.write()
        assert reader.communicate()[0] == f"{{{len(expected)}}}\n"


class TestServed:
    """The pages that the handle serves in this mode."""

    @pytest.fixture
    def telemetry(self, by_hand: Path) -> Iterator[Telemetry]:
        """Instrument a scheduler that another process runs and this one does not."""
        other = Process(by_hand, "other")
        other.job(NOW)
        other.write()
        telemetry = instrument(HandDriven(), registry=CollectorRegistry())
        yield telemetry
        telemetry.uninstrument()
        other.die()

    def test_all_processes(self, telemetry: Telemetry, by_hand: Path) -> None:
        """Each process serves the metrics of all processes."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        page = ask_wsgi(telemetry.wsgi_app, "/metrics").text
        assert sorted(page.splitlines()) == sorted(generate_latest(registry).decode().splitlines())
        assert 'apscheduler_scheduler_up{scheduler="other"} 1.0' in page

    def test_the_dead_are_gone(self, telemetry: Telemetry, by_hand: Path) -> None:
        """A scrape removes stale gauges first, so no hook is needed."""
        third = Process(by_hand, "third")
        third.write()
        third.die()
        page = ask_wsgi(telemetry.wsgi_app, "/metrics").text
        assert 'apscheduler_scheduler_up{scheduler="third"}' not in page

    def test_restricted_to_names(self, telemetry: Telemetry) -> None:
        """``name[]`` restricts the page to these series."""
        query = "name%5B%5D=apscheduler_scheduler_up"
        page = ask_wsgi(telemetry.wsgi_app, "/metrics", query=query).text
        lines = [line for line in page.splitlines() if not line.startswith("#")]
        assert lines == ['apscheduler_scheduler_up{scheduler="other"} 1.0']


class TestModules:
    """The modules of the package."""

    def test_imports_follow_the_documented_order(self) -> None:
        """The docstring lists all modules, and each one only imports those above it."""
        assert package.__doc__ is not None
        documented = re.findall(r"^- `(\w+)`:", package.__doc__, re.MULTILINE)
        files = {path.stem: path for path in Path(package.__file__).parent.glob("*.py")}
        assert set(documented) == files.keys() - {"__init__"}
        for number, module in enumerate(documented):
            imports = re.findall(
                rf"{re.escape(package.__name__)}\W+(\w+)", files[module].read_text()
            )
            assert set(imports) <= set(documented[:number]), module

    def test_public_module(self) -> None:
        """Users import two names, and with them no writer, which would add hooks to a process."""
        code = (
            "import sys; from apscheduler_telemetry.multiprocess import *;"
            " print(child_exit.__name__, mark_process_dead.__name__,"
            " 'apscheduler_telemetry.export.multiprocess.writer' in sys.modules)"
        )
        printed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert printed == ["child_exit", "mark_process_dead", "False"]


class TestConfigured:
    """The check of the environment variable."""

    @pytest.fixture(params=["absent", "file", "empty", "read-only"])
    def wrong(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        """Return a directory that cannot be used."""
        (tmp_path / "file").touch()
        if request.param == "read-only":
            return "/proc/self"  # to root, too
        return "" if request.param == "empty" else str(tmp_path / request.param)

    def test_clear_error(self, wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """`instrument` raises an error with the problem and its solution, and installs nothing."""
        monkeypatch.setenv(DIRECTORY_VARIABLE, wrong)
        scheduler = HandDriven()
        registry = CollectorRegistry()
        before = dict(vars(scheduler)), list(scheduler._listeners)
        with pytest.raises(ArgumentValueError, match=r"PROMETHEUS_MULTIPROC_DIR is .* Set it to"):
            instrument(scheduler, registry=registry)
        assert (dict(vars(scheduler)), list(scheduler._listeners)) == before
        assert list(registry.collect()) == []
        monkeypatch.delenv(DIRECTORY_VARIABLE)
        instrument(scheduler, registry=registry).uninstrument()

    def test_old_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The name in lower case is read as well, as prometheus_client does."""
        monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
        monkeypatch.setenv(DIRECTORY_VARIABLE.lower(), str(tmp_path))
        assert configured_directory() == tmp_path

    def test_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the variable, the mode is off."""
        monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
        assert configured_directory() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestForkDuringRun:
    """A process that is forked while a run is in flight, and whose child has a scheduler, too."""

    def test_run_in_flight_counts_once(self, by_hand: Path) -> None:
        """It is the parent's, in the gauges and in the counters, whoever is asked."""
        parent = Process(by_hand)
        parent.job(NOW)
        parent.run(1)
        in_flight = parent.begin()
        parent.write()

        def show() -> list[float | None]:
            shown = scrape(by_hand)
            return [
                value(shown, "job_running"),
                value(shown, "job_runs_total", outcome="success"),
                value(shown, "job_start_delay_seconds_count"),
            ]

        assert show() == [1, 1, 2]
        if not (child := os.fork()):
            code = 1
            try:
                parent.writer.start()
                parent.writer.write()
                assert show() == [1, 1, 2]
                own = parent.begin()
                parent.write()
                assert show() == [2, 1, 3]
                parent.finish(own, 1)
                parent.write()
                assert show() == [1, 2, 3]
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        parent.write()
        assert show() == [1, 2, 3]
        parent.finish(in_flight, 1)
        parent.write()
        assert show() == [0, 3, 3]


@pytest.mark.slow
class TestFork:
    """Processes that are forked from a process with a scheduler."""

    SCRIPT = """
        import json, os, sys, time
        from apscheduler.executors.debug import DebugExecutor
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector
        from apscheduler_telemetry import instrument
        from apscheduler_telemetry.multiprocess import mark_process_dead
        from support import HandDriven

        def nothing():
            pass

        def show(pid):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            wanted = {
                "state": ("apscheduler_scheduler_state", {"state": "running"}),
                "up": ("apscheduler_scheduler_up", {}),
                "runs": ("apscheduler_job_runs_total", {"outcome": "success", "job_id": "job"}),
            }
            seen = {
                key: registry.get_sample_value(name, {"scheduler": "default", **labels})
                for key, (name, labels) in wanted.items()
            }
            infos = [s for m in registry.collect() for s in m.samples if s.name.endswith("er_info")]
            seen["mine"] = [s.labels["pid"] == str(pid) for s in infos]
            print(json.dumps(seen), flush=True)

        def run():
            scheduler.add_job(nothing, id="job")
            scheduler.turn()
            while telemetry._snapshot_writer._slot is None:  # the directory may be locked
                telemetry._snapshot_writer.write()
            telemetry._snapshot_writer.write()

        scheduler = HandDriven(executors={"default": DebugExecutor()})
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        if sys.argv[1] != "started in the child":
            scheduler.start()
            run()
        child = os.fork()
        if not child:
            if "another user" in sys.argv[1]:
                os.setuid(65534)
            if sys.argv[1] == "started in the child":
                scheduler.start()
                run()
            elif sys.argv[1].startswith("started again in the child"):
                scheduler.shutdown()
                scheduler.start()
                run()
            else:
                telemetry._snapshot_writer.write()
            show(os.getpid())
            os._exit(0)
        os.wait()
        mark_process_dead(child)
        telemetry._snapshot_writer.write()
        show(os.getpid())
    """

    def run(self, directory: Path, when: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(self.SCRIPT), when],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_copy_in_the_child(self, directory: Path) -> None:
        """A child with a copy of the scheduler writes nothing, and sees the files of its parent."""
        both = {"state": 1, "up": 1, "runs": 1}
        assert self.run(directory, "started before") == [
            {**both, "mine": [False]},
            {**both, "mine": [True]},
        ]

    def test_started_in_the_child(self, directory: Path) -> None:
        """A child that starts the scheduler writes its metrics; its counters stay after its end."""
        assert self.run(directory, "started in the child") == [
            {"state": 1, "up": 1, "runs": 1, "mine": [True]},
            {"state": None, "up": None, "runs": 1, "mine": []},
        ]

    def test_another_user(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child that runs as another user, as workers of gunicorn may do, takes its own slot."""
        if os.geteuid():
            pytest.skip("only root can become another user")
        with tempfile.TemporaryDirectory() as directory:  # tmp_path is only accessible to root
            Path(directory).chmod(0o777)
            monkeypatch.setenv(DIRECTORY_VARIABLE, directory)
            when = "started again in the child, of another user"
            child, parent = self.run(Path(directory), when)
        assert (child["state"], child["up"], child["runs"]) == (2, 1, 2)
        assert (parent["state"], parent["runs"]) == (1, 2)

    def test_started_again_in_the_child(self, directory: Path) -> None:
        """A child that starts its copy is a second scheduler, and no run is counted twice."""
        child, parent = self.run(directory, "started again in the child")
        assert (child["state"], child["up"], child["runs"]) == (2, 1, 2)
        assert sorted(child["mine"]) == [False, True]
        assert parent == {"state": 1, "up": 1, "runs": 2, "mine": [True]}
