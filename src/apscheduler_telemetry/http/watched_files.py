"""
Reads files again when they have changed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from math import inf

from apscheduler_telemetry.http import limits

FileVersion = tuple[int, ...] | None
"""What changes with a file; None if it cannot be found."""


class FileReloader:
    """
    Reads files again when they have changed, and while they cannot be read.

    An error may end although the files do not change, as when file descriptors are free again. So
    files that could not be read are tried again, at most once in `limits.FILE_RETRY_SECONDS`. An
    error that stays the same is reported once for each change of the files.

    Args:
        find_paths: returns the files; symbolic links are followed, as Kubernetes replaces these.
        read: reads them. If it raises `OSError` or `ValueError`, what was read before stays in use.
        report_exception: called with ``"http"`` while such an error is being handled.
    """

    def __init__(
        self,
        find_paths: Callable[[], Iterable[str | os.PathLike[str]]],
        read: Callable[[], None],
        report_exception: Callable[[str], None],
    ) -> None:
        self._find_paths = find_paths
        self._read_files = read
        self._report_exception = report_exception
        self._file_versions = self._read_versions()
        self._retry_at = inf
        self._last_error = ""

    def reload_if_necessary(self) -> None:
        """Read the files if they have changed, or if it is time to try again."""
        versions = self._read_versions()
        is_retry = versions == self._file_versions
        if is_retry and time.monotonic() < self._retry_at:
            return
        # Before reading, so that changes meanwhile are noticed, and other threads need not wait.
        self._file_versions = versions
        self._retry_at = inf
        try:
            self._read_files()
        except (OSError, ValueError) as error:
            self._retry_at = time.monotonic() + limits.FILE_RETRY_SECONDS
            last_error, self._last_error = self._last_error, str(error)
            if not is_retry or self._last_error != last_error:
                self._report_exception("http")

    def _read_versions(self) -> list[FileVersion]:
        return [_read_version(path) for path in self._find_paths()]


def _read_version(path: str | os.PathLike[str]) -> FileVersion:
    try:
        status = os.stat(path)  # noqa: PTH116  # also for texts
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
