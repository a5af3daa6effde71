"""Files that are removed, damaged, locked or cannot be written."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from apscheduler_telemetry.core import files
from apscheduler_telemetry.core.file_locks import trying_to_lock_directory
from apscheduler_telemetry.core.model import SchedulerErrorKind
from apscheduler_telemetry.export.multiprocess import slots
from apscheduler_telemetry.export.multiprocess.file_format import read_values
from apscheduler_telemetry.export.multiprocess.registry import MultiprocessRegistry
from apscheduler_telemetry.export.multiprocess.slots import remove_stale_gauges
from apscheduler_telemetry.export.multiprocess.snapshot import CUMULATIVE_FILE_TYPES
from tests.helpers.multiprocess_files import Process, counts, failing, scrape, value
from tests.helpers.paths import ROOT

NOW = 1_800_000_000.0


def process_with_a_run(directory: Path) -> Process:
    """Return a process that has a job with one run, and has written nothing yet."""
    process = Process(directory)
    process.job(NOW)
    process.run(1)
    return process


def leave_files_of_a_dead_process(directory: Path) -> None:
    """Write the files of a process that has a job with one run, and that has died."""
    process = process_with_a_run(directory)
    process.write()
    process.die()


@contextlib.contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """Let this process read a directory only; root becomes another user meanwhile."""
    mode, user = directory.stat().st_mode, os.geteuid()
    directory.chmod(0o555)
    os.seteuid(user or 65534)
    try:
        yield
    finally:
        os.seteuid(user)
        directory.chmod(mode)


class TestTrouble:
    """Problems with the directory and with the other processes that use it."""

    def test_emptied_directory_is_written_again(self, directory_without_threads: Path) -> None:
        """If all files are deleted, they are written again, and nothing is counted twice."""
        process = process_with_a_run(directory_without_threads)
        process.write()
        before = scrape(directory_without_threads)
        for path in directory_without_threads.iterdir():
            path.unlink()
        process.write()
        assert scrape(directory_without_threads) == before
        process.write()
        assert scrape(directory_without_threads) == before

    def test_removed_lock_files_count_nothing_twice(self, directory_without_threads: Path) -> None:
        """If only the lock files are deleted, nothing is counted twice."""
        process = process_with_a_run(directory_without_threads)
        process.write()
        before = scrape(directory_without_threads)
        for path in directory_without_threads.glob("*.lock"):
            path.unlink()
        process.write()
        assert scrape(directory_without_threads) == before

    def test_removed_directory_is_an_error_until_it_is_back(
        self, directory_without_threads: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each failed write is counted and one is logged; later all series are written again."""
        process = Process(directory_without_threads)
        process.job(NOW)
        process.write()
        before = scrape(directory_without_threads)
        shutil.rmtree(directory_without_threads)
        for _ in range(3):
            process.writer.write()
        assert process.error_reporter.counts()["multiprocess"] == 3
        assert len(caplog.records) == 1
        directory_without_threads.mkdir()
        process.writer.write()
        shown = dict(scrape(directory_without_threads))
        assert value(shown, "telemetry_errors_total", component="multiprocess") == 3
        assert len(shown) == len(before)

    @pytest.mark.parametrize("slot", ["free", "held by another user"])
    def test_directory_that_becomes_unwritable_is_a_counted_error(
        self, no_writer_threads: None, slot: str
    ) -> None:
        """Each write fails and is counted, none searches on, and later all is written."""
        # Not tmp_path, which is only accessible to its owner.
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            if slot != "free":
                process_with_a_run(directory).write()
            process = process_with_a_run(directory)
            with unwritable(directory):
                for failures in (1, 2):
                    process.writer.write()
                    assert process.error_reporter.counts()["multiprocess"] == failures
            process.writer.write()
            assert value(scrape(directory), "job_runs_total", outcome="success") == (
                1 if slot == "free" else 2
            )
            Process.living.clear()

    def test_slots_that_are_all_in_use_are_a_counted_error(
        self, directory_without_threads: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The search for a free slot ends."""
        monkeypatch.setattr(slots, "MAX_SLOTS_PER_SCHEDULER", 2)
        for _ in range(2):
            process_with_a_run(directory_without_threads).write()
        process = process_with_a_run(directory_without_threads)
        process.writer.write()
        assert process.error_reporter.counts()["multiprocess"] == 1
        assert counts(directory_without_threads) == (2, 2)

    @pytest.mark.slow
    def test_full_disk_is_a_counted_error(self, directory: Path) -> None:
        """A full disk is a counted error, and not a SIGBUS that ends the process."""
        mount = "mount -t tmpfs -o size=128k tmpfs"
        enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        if subprocess.run([*enter, f'{mount} "$0"', directory], check=False).returncode:
            pytest.skip("this machine cannot mount a small file system")
        script = """
            from apscheduler.executors.debug import DebugExecutor
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument
            from tests.helpers.metrics import errors_of
            from tests.helpers.schedulers import HandDriven
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
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "True\n")

    def test_partial_files_of_a_dead_process_are_removed(
        self, directory_without_threads: Path
    ) -> None:
        """The next process removes partial files of a dead one."""
        process = Process(directory_without_threads)
        process.write()
        process.die()
        for path in list(directory_without_threads.glob("*.db")):
            path.rename(path.with_name(f".{path.name}.1234.partial"))
        Process(directory_without_threads).write()
        assert list(directory_without_threads.glob(".*")) == []

    @pytest.mark.parametrize("kind", CUMULATIVE_FILE_TYPES)
    def test_slot_that_cannot_be_read_at_first_keeps_its_counts(
        self, directory_without_threads: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        """The process that takes the slot retries, and until then the files stay unchanged."""
        leave_files_of_a_dead_process(directory_without_threads)
        before = counts(directory_without_threads)
        successor = process_with_a_run(directory_without_threads)
        with monkeypatch.context() as patch:
            patch.setattr(slots, "read_values", failing(read_values, f"{kind}_"))
            for failures in (1, 2):
                successor.writer.write()
                assert successor.error_reporter.counts()["multiprocess"] == failures
                assert counts(directory_without_threads) == before == (1, 1)
        successor.writer.write()
        assert counts(directory_without_threads) == (2, 2)
        successor.writer.write()
        assert counts(directory_without_threads) == (2, 2)

    def test_slot_that_cannot_be_read_is_left_to_another_process(
        self, directory_without_threads: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another process that can read the slot continues its counts, once."""
        leave_files_of_a_dead_process(directory_without_threads)
        first, second = (process_with_a_run(directory_without_threads) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(slots, "read_values", failing(read_values, "histogram_"))
            first.writer.write()
        second.write()
        first.writer.write()
        assert counts(directory_without_threads) == (3, 3)
        assert len(list(directory_without_threads.glob("counter_*.db"))) == 2

    @pytest.mark.parametrize(("kind", "expected"), [("counter", (1, 2)), ("histogram", (2, 1))])
    def test_slot_with_a_broken_file_is_taken_all_the_same(
        self, directory_without_threads: Path, kind: str, expected: tuple[int, int]
    ) -> None:
        """The process that takes the slot replaces a damaged file; only its counts are lost."""
        leave_files_of_a_dead_process(directory_without_threads)
        (path,) = directory_without_threads.glob(f"{kind}_*.db")
        path.write_bytes(path.read_bytes()[:100])
        successor = process_with_a_run(directory_without_threads)
        for _ in range(2):
            successor.writer.write()
            assert successor.error_reporter.counts()["multiprocess"] == 1
            assert counts(directory_without_threads) == expected

    def test_files_grow_with_the_number_of_jobs(self, directory_without_threads: Path) -> None:
        """Files grow with the number of jobs, and all series are read."""
        process = Process(directory_without_threads)
        for number in range(300):
            process.job(NOW, f"a job with a long name, whose number is {number}, or \N{SNOWMAN}")
            process.write() if number % 100 == 0 else None
        process.write()
        shown = scrape(directory_without_threads)
        assert sum(name.endswith("_next_run_timestamp_seconds") for name, _ in shown) == 300

    def test_write_does_not_wait_for_the_directory_lock(
        self, directory_without_threads: Path
    ) -> None:
        """If another process holds the directory lock, a write is skipped and retried later."""
        dead, process = (
            Process(directory_without_threads, "dead"),
            Process(directory_without_threads),
        )
        dead.write()
        dead.die()
        before = scrape(directory_without_threads)
        with trying_to_lock_directory(directory_without_threads) as is_acquired:
            assert is_acquired
            process.write()
            remove_stale_gauges(directory_without_threads)
            assert scrape(directory_without_threads) == before
        process.write()
        assert value(scrape(directory_without_threads), "scheduler_up", scheduler="main") == 1

    @pytest.mark.slow
    def test_scrape_during_writes_has_all_series(self, directory_without_threads: Path) -> None:
        """While files are replaced continuously, every scrape has all series."""
        process = Process(directory_without_threads)
        process.job(NOW)
        process.write()
        expected = set(scrape(directory_without_threads))
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
            [sys.executable, "-c", textwrap.dedent(script), str(directory_without_threads)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        while reader.poll() is None:
            process.recorder.count_scheduler_error(SchedulerErrorKind.LOOP)
            process.write()
        assert reader.communicate()[0] == f"{{{len(expected)}}}\n"


def read_all(directory: Path) -> None:
    """Write a file, and read all files as the pages of a handle do."""
    writer = process_with_a_run(directory).writer
    registry = MultiprocessRegistry(
        directory, write_current_metrics=writer.write, on_file_skipped=writer.on_file_skipped
    )
    assert list(registry.collect())


class TestNamesInTheLog:
    """The line of the log about a file that is left out."""

    @pytest.mark.parametrize(
        ("name", "written"),
        [
            ("counter_1.db", "{directory}/counter_1.db is damaged; "),
            (
                "counter_1\nERROR forged.db",
                "'{directory}/counter_1\\nERROR forged.db' is damaged; ",
            ),
            ("counter_\x1b[31m\u202e.db", "'{directory}/counter_\\x1b[31m\\u202e.db' is damaged; "),
            (b"counter_\xff.db", "'{directory}/counter_\\udcff.db' is damaged; "),
        ],
        ids=["plain", "line break", "control characters", "no UTF-8"],
    )
    def test_name_cannot_forge_a_line(
        self,
        directory_without_threads: Path,
        name: str | bytes,
        written: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """What cannot be printed in a line is escaped."""
        try:
            (directory_without_threads / os.fsdecode(name)).write_bytes(b"no metrics")
        except OSError:
            pytest.skip("the file system allows no such name")
        read_all(directory_without_threads)
        [message] = caplog.messages
        assert message.startswith(written.format(directory=directory_without_threads))
        assert message.isprintable()

    @pytest.mark.parametrize(
        "name", ["counter_1.db", f"{files.scheduler_file_stem('main')}.0.lock"]
    )
    def test_line_is_a_sentence(
        self, directory_without_threads: Path, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What the file is continues the sentence that begins with its name."""
        path = directory_without_threads / name
        os.mkfifo(path)
        read_all(directory_without_threads)
        [message] = caplog.messages
        assert message.startswith(f"{path} is a FIFO and is not opened; ")
