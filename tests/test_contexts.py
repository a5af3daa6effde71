"""The file that keeps where jobs were added: small, shared, and nobody's trouble."""

from __future__ import annotations

import logging
import multiprocessing
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry import FileContextStore


def fill(path: Path, name: str) -> None:
    """Write from another process, again where that took longer than the store waits."""
    store = FileContextStore(path)
    done = 0
    while done < 50:
        try:
            store[f"{name}-{done}"] = name
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        else:
            done += 1


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "contexts.db"


class TestFile:
    def test_mapping(self, path: Path) -> None:
        """It is a mapping, and another one of the same path sees what it has."""
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

    def test_comparison(self, path: Path) -> None:
        """Comparing it reads no file."""
        store = FileContextStore(path)
        assert store == store  # noqa: PLR0124
        assert store != FileContextStore(path)
        assert not path.exists()
        assert repr(store) == f"FileContextStore({str(path)!r}, max_jobs=10000)"

    def test_is_bounded(self, path: Path) -> None:
        """The oldest go; what is written again is young."""
        store = FileContextStore(path, max_jobs=3)
        for key in "abcadef":
            store[key] = key
        assert list(store) == ["d", "e", "f"]

    def test_is_private(self, path: Path) -> None:
        """Baggage is nobody else's business."""
        FileContextStore(path)["a"] = "1"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_leaves_nothing_behind(self, path: Path) -> None:
        """There is one file."""
        FileContextStore(path)["a"] = "1"
        assert [file.name for file in path.parent.iterdir()] == [path.name]

    def test_missing_directory(self, tmp_path: Path) -> None:
        """A directory that is not there is not made."""
        with pytest.raises(FileNotFoundError):
            FileContextStore(tmp_path / "nowhere" / "file")["a"] = "1"


class TestTrouble:
    @pytest.mark.parametrize("garbage", [b"garbage" * 1000, b"SQLite format 3\0" + b"x" * 5000])
    def test_damaged(self, path: Path, garbage: bytes, caplog: pytest.LogCaptureFixture) -> None:
        """A file that is no database is put aside, with a warning, and nothing is deleted."""
        path.write_bytes(garbage)
        store = FileContextStore(path)
        assert store.get("a") is None
        store["a"] = "1"

        assert store["a"] == "1"
        assert path.with_name("contexts.db.broken").read_bytes() == garbage
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert f"renamed to {path}.broken" in record.getMessage()

    def test_busy(self, path: Path) -> None:
        """A file that somebody holds for long is done without, and stays as it is."""
        store = FileContextStore(path)
        store["a"] = "1"
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            store["a"] = "2"
        holder.close()
        assert store["a"] == "1"

    def test_many_at_once(self, path: Path) -> None:
        """Threads and processes write at the same time."""
        context = multiprocessing.get_context("spawn")
        others: list[Any] = [
            context.Process(target=fill, args=(path, f"process-{n}")) for n in range(2)
        ]
        others += [threading.Thread(target=fill, args=(path, f"thread-{n}")) for n in range(2)]
        for other in others:
            other.start()
        for other in others:
            other.join()

        assert len(FileContextStore(path)) == 200
