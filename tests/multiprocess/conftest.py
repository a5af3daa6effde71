"""Fixtures for multiprocess mode."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from apscheduler_telemetry.export.multiprocess import writer
from apscheduler_telemetry.export.multiprocess.directory import DIRECTORY_VARIABLE
from tests.helpers.multiprocess_files import Process


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Turn on multiprocess mode."""
    directory = tmp_path / "metrics"
    directory.mkdir()
    monkeypatch.setenv(DIRECTORY_VARIABLE, str(directory))
    return directory


@pytest.fixture
def no_writer_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let only the test write, without threads."""
    monkeypatch.setattr(writer, "_write_periodically", lambda *_: None)


@pytest.fixture
def directory_without_threads(directory: Path, no_writer_threads: None) -> Iterator[Path]:
    """Turn on the mode without threads, and keep all processes until the test ends."""
    yield directory
    Process.living.clear()
