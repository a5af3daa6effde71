"""Journals of runs in flight: what a process would leave if it were killed now."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

from apscheduler_telemetry.core.files import scheduler_file_stem
from apscheduler_telemetry.core.journal_file import JournalEntry, JournalFile

_numbers = itertools.count()


def journal_path(directory: Path, number: int = 0, scheduler: str = "default") -> Path:
    """Return the path of one file of a journal."""
    return directory / f"{scheduler_file_stem(scheduler)}.{number}.journal"


def as_if_killed(directory: Path) -> Path:
    """Return a copy of a journal, which is what is left if all of its processes are killed now."""
    copy = directory.with_name(f"{directory.name}-{os.getpid()}-{next(_numbers)}")
    shutil.copytree(directory, copy)
    return copy


def entries_in(directory: Path, number: int = 0) -> list[JournalEntry]:
    """Return the runs in a file of a journal that a process may have now."""
    file = JournalFile.open(journal_path(as_if_killed(directory), number), "default")
    assert file is not None
    entries = list(file.read_entries())
    file.close()
    return entries


def labels_in(directory: Path, number: int = 0) -> list[str]:
    """Return the labels of these runs, sorted."""
    return sorted(entry.label for entry in entries_in(directory, number))
