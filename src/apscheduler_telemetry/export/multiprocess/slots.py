"""
The files and the lock of one scheduler in one process.

The files of a slot, of which ``apscheduler-main-1a2b3c4d.0`` is the stem (scheduler, hash of its
name, number of the slot):

- ``apscheduler-main-1a2b3c4d.0.lock``, locked while a process holds the slot
- ``counter_apscheduler-main-1a2b3c4d.0.db`` and ``histogram_apscheduler-main-1a2b3c4d.0.db``
- ``gauge_livemax_4711.db_apscheduler-main-1a2b3c4d.0.db``, one for each mode of gauges
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
import weakref
from collections.abc import Mapping
from pathlib import Path

from apscheduler_telemetry.core import files
from apscheduler_telemetry.core.file_locks import (
    is_locked,
    try_lock,
    trying_to_lock_directory,
)
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from apscheduler_telemetry.export.multiprocess.file_format import (
    DamagedFileError,
    OnFileSkipped,
    drop_values_of_other_jobs,
    read_values,
    write_values,
)

MAX_SLOTS_PER_SCHEDULER = 10_000
"""Slots of one scheduler, of which each process has one."""
STALE_GAUGE_SECONDS = 30.0
"""Seconds without a write after which gauges are removed: their process hangs or is stopped."""


def remove_stale_gauges(directory: Path) -> None:
    """Remove the gauges of processes that are dead or no longer update them."""
    with trying_to_lock_directory(directory) as is_acquired:
        if not is_acquired:
            return  # another process is taking a slot or removing files
        for path in directory.glob("gauge_live*_apscheduler-*.db"):
            # It may be gone, or belong to another user, whose processes remove it.
            with contextlib.suppress(OSError):
                is_stale = time.time() - path.lstat().st_mtime > STALE_GAUGE_SECONDS
                if is_stale or not is_locked(path.with_name(f"{_slot_stem_of(path)}.lock")):
                    path.unlink()


def add_to_counters_without_slot(
    directory: Path, scheduler: str, added: Mapping[str, float]
) -> bool:
    """
    Add to the counters of processes that do not run a scheduler, and so have no slot.

    They share one file, as there may be many of them.

    Args:
        directory: the directory of multiprocess mode.
        scheduler: the name of the scheduler.
        added: what is added, by key.

    Returns:
        Whether it was added; False if another process has locked the directory.
    """
    path = directory / f"counter_{files.scheduler_file_stem(scheduler)}.readers.db"
    with trying_to_lock_directory(directory) as is_acquired:
        if is_acquired:
            values: dict[str, float] = {}
            with contextlib.suppress(FileNotFoundError, files.UnusableFileError, DamagedFileError):
                values = read_values(path)
            write_values(path, {**values, **{k: values.get(k, 0.0) + n for k, n in added.items()}})
        return is_acquired


class SchedulerSlot:
    """
    The place of one scheduler in one process; `take_free_slot` returns one.

    Args:
        directory: the directory of multiprocess mode.
        stem: the part that the names of its files share.
        lock: descriptor of its lock file, which is locked while the slot is held. The text in the
            file is the time from which the counters of the slot count, in Unix seconds.
    """

    def __init__(self, directory: Path, stem: str, lock: int) -> None:
        self._directory = directory
        self._stem = stem
        self._lock_fd = lock
        self._lock_file_finalizer = weakref.finalize(self, os.close, lock)
        self._lock_file_finalizer.atexit = (
            False  # the slot is held until the process has really ended
        )
        self._last_written_values: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = {}
        self._counting_since = _parse_counting_start(os.pread(lock, 100, 0))
        self.remove_gauges()
        for path in directory.glob(f".*_{stem}.db.*"):
            if files.is_partial_file(path):  # a previous holder died while it wrote
                _unlink_if_possible(path)

    @classmethod
    def take_free_slot(
        cls, directory: Path, scheduler: str, on_file_skipped: OnFileSkipped
    ) -> SchedulerSlot | None:
        """
        Take the first free slot of a scheduler.

        Args:
            directory: the directory of multiprocess mode.
            scheduler: the name of the scheduler.
            on_file_skipped: called with the path of a file that keeps a slot from being used,
                because others control it, and with what is wrong with it.

        Returns:
            The slot; None if another process has locked the directory, so try again later.

        Raises:
            OSError: the lock file of a free slot cannot be created, as in a directory in which
                this process may not write, or all slots are in use.
        """
        with trying_to_lock_directory(directory) as is_acquired:
            if not is_acquired:
                return None
            for number in range(MAX_SLOTS_PER_SCHEDULER):
                stem = f"{files.scheduler_file_stem(scheduler)}.{number}"
                path = directory / f"{stem}.lock"
                try:
                    lock = files.open_or_create_private_file(path, os.O_RDWR)
                except files.UnusableFileError as error:
                    on_file_skipped(str(path), error.problem)
                    continue
                except PermissionError:
                    if not os.path.lexists(path):
                        raise  # and so it would be for all that follow
                    continue  # made by another user: by root, before gunicorn changed its user
                foreign = _find_untrusted_file(directory, stem)
                if foreign is not None:
                    on_file_skipped(str(foreign), "is not a file of this scheduler")
                elif try_lock(lock):
                    return cls(directory, stem, lock)
                os.close(lock)
        message = f"All {MAX_SLOTS_PER_SCHEDULER} slots of the scheduler are in use"
        raise OSError(errno.EUSERS, message, str(directory))

    def update_earliest_start(self, started_at: float) -> float:
        """
        Record that the scheduler was started, and return the earliest start in this slot.

        Args:
            started_at: when it was started, in Unix seconds.

        Returns:
            The time from which the counters of this slot count, in Unix seconds.
        """
        if started_at < self._counting_since:
            self._counting_since = started_at
            # One write of a fixed length, so that no reader sees a part of it.
            os.pwrite(self._lock_fd, f"{started_at!r:<40}".encode(), 0)
        return self._counting_since

    def read_cumulative(self, kind: str) -> dict[str, float]:
        """Return the values in the file of ``counter`` or ``histogram``."""
        try:
            return read_values(self.file_path(kind))
        except FileNotFoundError:
            return {}

    def write_cumulative(self, kind: str, values: Mapping[str, float]) -> None:
        """Replace the values in the file of ``counter`` or ``histogram``."""
        self._write_or_touch_file(kind, values, {})

    def write_gauges_of_mode(
        self, mode: str, values: Mapping[str, float], timestamps: Mapping[str, float]
    ) -> None:
        """
        Replace the values in the file of one mode of gauges.

        Args:
            mode: one of prometheus_client, such as ``livemax``.
            values: all gauges of this mode, by key.
            timestamps: their timestamps, where these are not 0.
        """
        # prometheus_client splits the name of a file at each underscore. The first word is the
        # type, the second the mode, and the third, without its last three characters, the pid.
        self._write_or_touch_file(f"gauge_{mode}_{os.getpid()}.db", values, timestamps)

    def is_lock_file_deleted(self) -> bool:
        """Return whether the lock file was deleted, so that others would find the slot free."""
        return os.fstat(self._lock_fd).st_nlink == 0

    def has_untrusted_file(self) -> bool:
        """Return whether a file of the slot is no regular file, or that of another user."""
        return _find_untrusted_file(self._directory, self._stem) is not None

    def has_gauges_in_other_slot(self) -> bool:
        """Return whether another slot has gauges of a scheduler of the same name."""
        return any(
            _slot_stem_of(path) != self._stem
            for path in self._directory.glob(f"gauge_livesum_*_{self._scheduler_stem}.*.db")
        )

    def prune_counters_in_free_slots(self, existing_job_labels: set[str]) -> None:
        """
        Remove the counters of removed jobs from slots that no process holds.

        A reload of gunicorn, for example, leaves such slots, because new processes start before
        the old ones end. If a third process holds a slot, nothing is removed, because that process
        may know more jobs.

        Args:
            existing_job_labels: the labels of all jobs that this process knows.
        """
        with trying_to_lock_directory(self._directory) as is_acquired:
            locks = self._directory.glob(f"{self._scheduler_stem}.*.lock")
            others = [lock for lock in locks if lock.stem != self._stem]
            if not is_acquired or any(is_locked(lock) for lock in others):
                return
            for lock in others:
                for path in self._directory.glob(f"[ch]*_{lock.stem}.db"):
                    # Left alone; each scrape reports it.
                    with contextlib.suppress(
                        DamagedFileError, files.UnusableFileError, PermissionError
                    ):
                        if time.time() - path.lstat().st_mtime > REMOVED_JOB_SECONDS:
                            values = read_values(path)
                            kept = drop_values_of_other_jobs(values, existing_job_labels)
                            if len(kept) < len(values):
                                write_values(path, kept)

    def remove_gauges(self) -> None:
        """Remove the gauges, which are only true while a process holds the slot."""
        for path in self._directory.glob(f"gauge_*_{self._stem}.db"):
            _unlink_if_possible(path)
        self._last_written_values.clear()

    def delete_values_and_release(self) -> None:
        """Delete all values of the slot, and release it."""
        for path in self._directory.glob(f"*_{self._stem}.db"):
            _unlink_if_possible(path)
        self.release()

    def release(self) -> None:
        """Let other processes take the slot; in a forked child, leave it to the parent."""
        self._lock_file_finalizer()

    @property
    def _scheduler_stem(self) -> str:
        """The part of the stem that all slots of the scheduler share."""
        return self._stem.rpartition(".")[0]

    def file_path(self, file_prefix: str) -> Path:
        """Return the path of a file, of which this is the first part of the name."""
        return self._directory / f"{file_prefix}_{self._stem}.db"

    def _write_or_touch_file(
        self, file_prefix: str, values: Mapping[str, float], timestamps: Mapping[str, float]
    ) -> None:
        path = self.file_path(file_prefix)
        if self._last_written_values.get(file_prefix) == (values, timestamps) and os.path.lexists(
            path
        ):
            # Nothing has changed, but the file must not become stale.
            os.utime(path, follow_symlinks=False)
        else:
            write_values(path, values, timestamps)
            self._last_written_values[file_prefix] = values, timestamps


def _find_untrusted_file(directory: Path, stem: str) -> Path | None:
    """Return a file in the place of one of a slot that is not ours; None if all are."""
    paths = directory.glob(f"*_{stem}.db")
    return next((path for path in paths if not files.is_missing_or_has_trusted_owner(path)), None)


def _unlink_if_possible(path: Path) -> None:
    # What cannot be removed is a directory, or a file of another user.
    with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
        path.unlink()


def _parse_counting_start(text: bytes) -> float:
    """Return what the lock file of a slot says; infinity if that is no time."""
    try:
        seconds = float(text)
    except ValueError:
        return math.inf
    return seconds if seconds > 0 else math.inf


def _slot_stem_of(path: Path) -> str:
    return path.stem.rpartition("_")[2]
