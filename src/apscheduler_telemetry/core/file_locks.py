"""
Locks between processes, by ``flock()``.

The kernel releases a lock when its process ends, even if it is killed. No function here waits for
a lock: a process that a debugger has stopped must not block all others.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from apscheduler_telemetry.core.files import UnusableFileError, open_regular_file

with contextlib.suppress(ImportError):  # on Windows
    import fcntl


def try_lock(file: IO[bytes] | int) -> bool:
    """Lock a file if it is not locked, and return whether that worked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """
    Return whether a process holds the lock on a file; a missing file is not locked.

    Call it inside `trying_to_lock_directory`, because it takes the lock for a moment.
    """
    try:
        file = open_regular_file(path)
    except (FileNotFoundError, UnusableFileError):
        return False
    except PermissionError:
        return True  # a file of another user, of which nothing is known
    try:
        if not try_lock(file):
            return True
        fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)
    return False


@contextlib.contextmanager
def trying_to_lock_directory(directory: Path) -> Iterator[bool]:
    """
    Try to lock the whole directory, for a process that takes a slot or removes files of others.

    Yields:
        Whether this process holds the lock. If not, the caller tries again later.
    """
    # The directory itself, which no other user can replace by something else.
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        is_acquired = try_lock(file)
        try:
            yield is_acquired
        finally:
            if is_acquired:
                # Closing the file is not enough: a child that was forked in the meantime has a
                # copy of the descriptor, which would keep the lock.
                fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)
