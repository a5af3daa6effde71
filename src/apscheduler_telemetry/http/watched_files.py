"""
Notices that files have changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

FileVersion = tuple[int, ...] | None
"""What changes with a file; None if it cannot be found."""


def read_versions(paths: Iterable[str | os.PathLike[str]]) -> list[FileVersion]:
    """Return the versions of files; symbolic links are followed, as Kubernetes replaces these."""
    return [_read_version(path) for path in paths]


def _read_version(path: str | os.PathLike[str]) -> FileVersion:
    try:
        status = os.stat(path)  # noqa: PTH116  # also for texts
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
