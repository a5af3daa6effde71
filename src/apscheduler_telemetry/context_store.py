"""
A file that keeps where jobs were added, for ``instrument(..., context_store=...)``.

Any mapping of texts to texts will do, such as one that a Redis server is behind; this one needs
nothing but a path.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

logger = logging.getLogger("apscheduler_telemetry")

MAX_JOBS = 10_000
"""Some 1.3 MB without baggage, as measured; writing one takes a millisecond then."""

BUSY_SECONDS = 0.2
"""How long another process may hold the file before we do without it."""

_TABLE = (
    "CREATE TABLE IF NOT EXISTS contexts "
    "(number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, value TEXT NOT NULL)"
)
_OLDEST = (
    "DELETE FROM contexts WHERE number <= "
    "(SELECT number FROM contexts ORDER BY number DESC LIMIT 1 OFFSET ?)"
)


class FileContextStore(MutableMapping[str, str]):
    """
    Keeps texts in an SQLite file, which several processes may share.

    It has at most `max_jobs` of them; the oldest go. A file that turns out to be damaged is put
    aside as ``....broken`` with a warning, and begun anew. Only its owner may read it.

    Args:
        path: of the file, which is made when it is needed; its directory must be there. One for
            each job store: jobs are told apart by the alias of their store and their id.
        max_jobs: how many jobs are kept.
    """

    def __init__(self, path: str | os.PathLike[str], *, max_jobs: int = MAX_JOBS) -> None:
        self._path = Path(path).absolute()
        self._max_jobs = max_jobs

    # Two are the same if they are one: comparing what is in them would read both files.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __getitem__(self, key: str) -> str:
        """Return what is kept under `key`."""
        rows = self._do(_reading("SELECT value FROM contexts WHERE key = ?", key))
        if not rows:
            raise KeyError(key)
        return str(rows[0][0])

    def __setitem__(self, key: str, value: str) -> None:
        """Keep `value`, and let the oldest go if there are too many."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO contexts (key, value) VALUES (?, ?)", (key, value)
            )
            connection.execute(_OLDEST, (self._max_jobs,))

        self._do(write)

    def __delitem__(self, key: str) -> None:
        """Keep nothing under `key` any more."""

        def delete(connection: sqlite3.Connection) -> int:
            return connection.execute("DELETE FROM contexts WHERE key = ?", (key,)).rowcount

        if not self._do(delete):
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        """Return the keys there are now."""
        return iter([key for (key,) in self._do(_reading("SELECT key FROM contexts"))])

    def __len__(self) -> int:
        """Return how many are kept."""
        return int(self._do(_reading("SELECT count(*) FROM contexts"))[0][0])

    def __repr__(self) -> str:
        """Tell the path."""
        return f"FileContextStore({os.fspath(self._path)!r}, max_jobs={self._max_jobs})"

    def _do(self, task: Callable[[sqlite3.Connection], Any]) -> Any:
        try:
            return self._try(task)
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # busy, full, forbidden: the file is well
            self._put_aside(error)
            return self._try(task)

    def _try(self, task: Callable[[sqlite3.Connection], Any]) -> Any:
        # A connection for each time: it would survive neither a fork nor another thread.
        os.close(os.open(self._path, os.O_CREAT, 0o600))
        with closing(sqlite3.connect(self._path, timeout=BUSY_SECONDS)) as connection, connection:
            # A crash of the machine may cost the latest; that of the process costs nothing.
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(_TABLE)
            return task(connection)

    def _put_aside(self, error: Exception) -> None:
        broken = self._path.with_name(f"{self._path.name}.broken")
        with suppress(FileNotFoundError):  # another process was faster
            self._path.replace(broken)
            logger.warning("%s is no SQLite file (%s), and is now %s", self._path, error, broken)


def _reading(query: str, *values: str) -> Callable[[sqlite3.Connection], Any]:
    return lambda connection: connection.execute(query, values).fetchall()
