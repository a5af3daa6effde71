"""
A file that stores the trace contexts of jobs, for ``instrument(..., context_store=...)``.

That argument accepts any mutable mapping of str to str, such as one backed by Redis. This one needs
only a path.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from apscheduler_telemetry.core.files import check_regular_file, ensure_private_file
from apscheduler_telemetry.core.locks import renew_lock_in_forked_children, synchronized

logger = logging.getLogger("apscheduler_telemetry")

_Result = TypeVar("_Result")

DEFAULT_MAX_JOBS = 10_000
"""Measured without baggage: a file of about 1.3 MB, to which one write takes a millisecond."""

BUSY_TIMEOUT_SECONDS = 0.2
"""Seconds to wait for a lock of the file that another process or thread holds."""

_SQLITE_FILE_SUFFIXES = ("-journal", "-wal", "-shm")
"""Of the files that SQLite opens next to a database, if they are there."""

_CREATE_TABLE_SQL = (
    "CREATE TABLE IF NOT EXISTS contexts "
    "(number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL)"
)
_DELETE_OLDEST_SQL = (
    "DELETE FROM contexts WHERE number <= "
    "(SELECT number FROM contexts ORDER BY number DESC LIMIT 1 OFFSET ?)"
)


class FileContextStore(MutableMapping[str, str]):
    """
    A mutable mapping in an SQLite file, which several processes may share.

    Only the owner of the file may read and write it, also if it was there before. A damaged file is
    renamed to ``....broken`` with a warning, and a new one is created. What is no regular file, or
    belongs to another user, raises an `OSError` that names it.

    Args:
        path: the file, created when it is first needed in a directory that must exist. Use one file
            for each job store: keys consist of the alias of the store and the id of the job.
        max_jobs: entries to keep; writing another one deletes the oldest.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_jobs: int = DEFAULT_MAX_JOBS) -> None:
        self._path = Path(path).absolute()
        self._max_jobs = max_jobs

    # By identity, as a comparison of the contents would read both files.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, key: str) -> str:
        """Return the value of `key`."""
        rows = self._fetch("SELECT value FROM contexts WHERE key = ?", key)
        if not rows:
            raise KeyError(key)
        return str(rows[0][0])

    def __setitem__(self, key: str, value: str) -> None:
        """Set the value of `key`, and delete the oldest entries if there are too many."""

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO contexts (key, value) VALUES (?, ?)", (key, value)
            )
            connection.execute(_DELETE_OLDEST_SQL, (self._max_jobs,))

        self._run_transaction(insert)

    def __delitem__(self, key: str) -> None:
        """Delete `key`."""

        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM contexts WHERE key = ?", (key,)).rowcount

        if not self._run_transaction(delete):
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the current keys."""
        return iter([key for (key,) in self._fetch("SELECT key FROM contexts")])

    def __len__(self) -> int:
        """Return the number of entries."""
        return int(self._fetch("SELECT count(*) FROM contexts")[0][0])

    def __repr__(self) -> str:
        """Return the call that creates an equivalent store."""
        return f"FileContextStore({os.fspath(self._path)!r}, max_jobs={self._max_jobs})"

    def _fetch(self, query: str, *parameters: str) -> list[Any]:
        """Return all rows that a query selects."""
        return self._run_transaction(
            lambda connection: connection.execute(query, parameters).fetchall()
        )

    def _run_transaction(self, operation: Callable[[sqlite3.Connection], _Result]) -> _Result:
        """Call `operation` in a transaction, and once more if the file was damaged."""
        try:
            return self._run_transaction_once(operation)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # a subclass: the file is locked, full or read-only, but not damaged
            self._rename_damaged_file(error)
            return self._run_transaction_once(operation)

    def _run_transaction_once(self, operation: Callable[[sqlite3.Connection], _Result]) -> _Result:
        # SQLite itself would create a file that others may read, and follow symbolic links.
        _synchronized_file_creator.ensure_private_file(self._path)
        for suffix in _SQLITE_FILE_SUFFIXES:
            with suppress(FileNotFoundError):
                check_regular_file(self._path.with_name(self._path.name + suffix))
        # A new connection each time, as one cannot be used after a fork or in another thread.
        with (
            closing(sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_SECONDS)) as connection,
            connection,
        ):
            # A crash of the machine may lose the latest entries; one of the process does not.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(_CREATE_TABLE_SQL)
            return operation(connection)

    def _rename_damaged_file(self, error: Exception) -> None:
        new_path = self._path.with_name(f"{self._path.name}.broken")
        with suppress(FileNotFoundError):  # another process has already renamed it
            self._path.replace(new_path)
            logger.warning(
                "%s is not an SQLite file (%s); renamed to %s", self._path, error, new_path
            )


class _SynchronizedFileCreator:
    """
    Creates files for one thread of this process at a time.

    Otherwise a thread that finds no file could open and close the one that another thread has just
    created, and release the locks that SQLite holds on it there.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        renew_lock_in_forked_children(self)

    @synchronized
    def ensure_private_file(self, path: Path) -> None:
        ensure_private_file(path)


_synchronized_file_creator = _SynchronizedFileCreator()
