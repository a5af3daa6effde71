"""
Tests of `FileContextStore`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import FileContextStore, instrument
from apscheduler_telemetry.core import files
from tests.helpers.foreign_files import FOREIGN_FILES, assert_untouched, make_victim
from tests.helpers.metrics import errors_of
from tests.helpers.waiting import wait_until


def write_entries(path: Path, name: str) -> None:
    """Write fifty entries, and retry those that time out waiting for the lock."""
    store = FileContextStore(path)
    written = 0
    while written < 50:
        try:
            store[f"{name}-{written}"] = name
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        else:
            written += 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "contexts.db"


class TestMapping:
    def test_stores_of_one_path_have_the_same_entries(self, path: Path) -> None:
        """The store is a mutable mapping; stores with the same path have the same entries."""
        store = FileContextStore(path)
        store["a"] = "1"
        store["a"] = "2"
        store["b"] = "3"

        assert dict(FileContextStore(path)) == {"a": "2", "b": "3"}
        assert len(store) == 2
        del store["a"]
        assert store.pop("a", None) is None
        with pytest.raises(KeyError):
            store["a"]
        with pytest.raises(KeyError):
            del store["a"]
        assert "b" in store

    def test_comparing_stores_reads_no_file(self, path: Path) -> None:
        """Comparing stores reads no file."""
        store = FileContextStore(path)
        assert store == store  # noqa: PLR0124
        assert store != FileContextStore(path)
        assert not path.exists()
        assert repr(store) == f"FileContextStore({str(path)!r}, max_jobs=10000)"

    def test_oldest_entries_are_deleted(self, path: Path) -> None:
        """The oldest entries are deleted; overwriting an entry makes it the newest."""
        store = FileContextStore(path, max_jobs=3)
        for key in "abcadef":
            store[key] = key
        assert list(store) == ["d", "e", "f"]

    def test_only_the_owner_may_read_the_file(self, path: Path) -> None:
        """Only the owner may read the file, as it may contain baggage."""
        FileContextStore(path)["a"] = "1"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_file_from_before_becomes_that_of_its_owner(self, path: Path) -> None:
        """A file that others could read keeps its entries, and others cannot read it any more."""
        FileContextStore(path)["a"] = "1"
        path.chmod(0o666)
        assert FileContextStore(path)["a"] == "1"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_no_temporary_files_remain(self, path: Path) -> None:
        """No temporary files remain."""
        FileContextStore(path)["a"] = "1"
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_missing_directory_is_not_created(self, tmp_path: Path) -> None:
        """A missing directory is not created."""
        with pytest.raises(FileNotFoundError):
            FileContextStore(tmp_path / "nowhere" / "file")["a"] = "1"


class TestErrors:
    @pytest.mark.parametrize("content", [b"content" * 1000, b"SQLite format 3\0" + b"x" * 5000])
    def test_damaged_file_is_renamed_with_a_warning(
        self, path: Path, content: bytes, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A file that is not a database is renamed with a warning."""
        path.write_bytes(content)
        store = FileContextStore(path)
        assert store.get("a") is None
        store["a"] = "1"

        assert store["a"] == "1"
        assert path.with_name("contexts.db.broken").read_bytes() == content
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"renamed to {path}.broken" in record.getMessage()

    def test_locked_file_raises_after_a_timeout(self, path: Path) -> None:
        """A locked file raises after a timeout, and does not count as damaged."""
        store = FileContextStore(path)
        store["a"] = "1"
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store["a"] = "2"
        blocker.close()
        assert store["a"] == "1"

    def test_threads_and_processes_may_write_at_once(self, path: Path) -> None:
        """Threads and processes may write concurrently."""
        context = multiprocessing.get_context("spawn")
        writers: list[Any] = [
            context.Process(target=write_entries, args=(path, f"process-{n}")) for n in range(2)
        ]
        writers += [
            threading.Thread(target=write_entries, args=(path, f"thread-{n}")) for n in range(2)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()

        assert len(FileContextStore(path)) == 200


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither FIFOs nor owners of this kind")
class TestForeignFiles:
    """A directory that other users may write to."""

    @pytest.mark.parametrize("suffix", ["", "-journal", "-wal", "-shm"])
    @pytest.mark.parametrize("foreign", FOREIGN_FILES.values(), ids=FOREIGN_FILES)
    def test_what_is_no_regular_file_is_not_opened(
        self, path: Path, foreign: Callable[[Path, Path], None], suffix: str
    ) -> None:
        """Reading and writing raise an error that names the path, and wait for nothing."""
        victim = make_victim(path.parent / "elsewhere")
        store = FileContextStore(path)
        if suffix:
            store["a"] = "1"
        foreign(path.with_name(path.name + suffix), victim)
        for _ in range(2):
            with pytest.raises(OSError, match=f"is not opened: '{path}{suffix}'"):
                store["a"] = "2"
            with pytest.raises(OSError, match="is not opened"):
                store.get("a")
        assert_untouched(victim)

    def test_hard_link_is_not_opened(self, path: Path) -> None:
        """A file that has another name elsewhere is not written to."""
        victim = make_victim(path.parent / "elsewhere")
        path.hardlink_to(victim)
        with pytest.raises(OSError, match="Is a hard link"):
            FileContextStore(path)["a"] = "1"
        assert_untouched(victim)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
    def test_file_of_a_third_user_is_not_opened(self, path: Path) -> None:
        """A file of another user is not used, but one of the directory's owner is."""
        store = FileContextStore(path)
        store["a"] = "1"
        os.chown(path, 65534, -1)
        with pytest.raises(OSError, match="Belongs to another user"):
            store.get("a")
        os.chown(path.parent, 65534, -1)
        assert store["a"] == "1"

    def test_lock_is_not_released_by_another_thread(self, path: Path) -> None:
        """The locks of SQLite hold while other threads of the process use the file."""
        store = FileContextStore(path)
        store["a"] = "1"
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store["a"] = "2"
        script = "import sqlite3, sys; sqlite3.connect(sys.argv[1], 0).execute('VACUUM')"
        done = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, check=False
        )
        blocker.close()
        assert "database is locked" in done.stderr
        assert store["a"] == "1"

    def test_file_is_opened_once_by_threads_that_create_it(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second one would release the locks of SQLite as it closes the file."""
        opened: list[Path] = []
        twice = threading.Event()
        open_or_create_private_file = files.open_or_create_private_file

        def wait_and_open(path: Path) -> int:
            opened.append(path)
            if len(opened) > 1:
                twice.set()
            twice.wait(0.2)  # as long as it takes the other thread to get here
            return open_or_create_private_file(path)

        monkeypatch.setattr(files, "open_or_create_private_file", wait_and_open)
        threads = [threading.Thread(target=len, args=(FileContextStore(path),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert opened == [path]

    def test_scheduler_with_a_fifo_as_its_store_runs_its_jobs(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Start, runs, shutdown and uninstrument go on; it is counted, and logged with the path."""
        pytest.importorskip("sqlalchemy")
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        os.mkfifo(path)
        jobs = {"default": SQLAlchemyJobStore(url=f"sqlite:///{path.with_name('jobs.db')}")}
        scheduler = BackgroundScheduler(jobstores=jobs, timezone="UTC")
        telemetry = instrument(
            scheduler, registry=CollectorRegistry(), context_store=FileContextStore(path)
        )
        scheduler.start()
        try:
            with trace.use_span(trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))):
                scheduler.add_job(print, id="job")
            wait_until(lambda: errors_of(telemetry).counts()["spans"])
            wait_until(lambda: not scheduler.get_jobs())
        finally:
            scheduler.shutdown()
            telemetry.uninstrument()
        assert str(path) in caplog.text
