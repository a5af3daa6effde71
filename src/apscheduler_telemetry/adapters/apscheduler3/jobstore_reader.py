"""
What is in a persistent job store, had cheaply: which jobs, when, and the pickle of some of them.

By public attributes of the two stores of APScheduler that processes share most, over a connection
of our own, made as the store makes its own and closed after each reading. So a slow answer to us
keeps the scheduler from nothing, a pool of one connection stays the scheduler's, no transaction of
the user's meets ours, and nothing of ours passes the listeners and the log of the user's engine.
Nothing is written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class Rows(Protocol):
    """The rows of one job store."""

    def listing(self) -> Mapping[str, float | None]:
        """Return the next run of each job by id, in Unix seconds, None for one that is paused."""

    def states(self, job_ids: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        """Return id and pickle of these jobs, as far as they are there."""

    def close(self) -> None:
        """Close the connection; the next question opens another."""


class NotSharedError(Exception):
    """What is in the store is to be seen over the scheduler's own connection only."""


BATCH = 100
"""Jobs that `Rows.states` is asked for at a time: far below the parameters that SQL allows."""


def rows_of(store: Any) -> Rows | None:
    """
    Return the rows of a job store, None where it cannot be asked for them.

    Raises:
        NotSharedError: another connection would not see what the scheduler's sees, or harm it.
    """
    if _is_plain(store, "sqlalchemy", "SQLAlchemyJobStore", "_get_jobs"):
        return SQLRows(store)
    if _is_plain(store, "redis", "RedisJobStore", "_reconstitute_jobs"):
        return RedisRows(store)
    return None


def _is_plain(store: Any, module: str, name: str, listing: str) -> bool:
    """
    Tell whether a store lists its jobs as APScheduler's class does.

    Somebody's own class may keep the jobs of several schedulers in one table, and the listing of
    one is then not all that is there.
    """
    # Not imported here: who has such a store has imported it, and its client with it.
    base = getattr(sys.modules.get(f"apscheduler.jobstores.{module}"), name, None)
    if base is None or not isinstance(store, base):
        return False
    names = ("get_due_jobs", "get_all_jobs", "lookup_job", listing)
    return all(getattr(type(store), name) is getattr(base, name) for name in names)


class SQLRows:
    """The rows of an `SQLAlchemyJobStore`."""

    LEAST_PATIENCE = 1000
    """Milliseconds for which SQLite's writers have to wait for readers, if we are to be one."""

    def __init__(self, store: Any) -> None:
        from sqlalchemy.pool import SingletonThreadPool, StaticPool  # noqa: PLC0415  # optional

        self._table = store.jobs_t
        self._theirs = store.engine
        self._engine: Any = None
        self._connection: Any = None
        if isinstance(self._theirs.pool, (StaticPool, SingletonThreadPool)):
            # One connection for all threads, where our rollback would be the scheduler's as well;
            # or a database in memory, of which another connection sees another one.
            raise NotSharedError
        if self._theirs.dialect.name == "sqlite":
            self._check()

    def listing(self) -> Mapping[str, float | None]:
        from sqlalchemy import select  # noqa: PLC0415

        columns = self._table.c
        return dict(map(tuple, self._fetch(select(columns.id, columns.next_run_time))))

    def states(self, job_ids: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        from sqlalchemy import select  # noqa: PLC0415

        columns = self._table.c
        wanted = select(columns.id, columns.job_state).where(columns.id.in_(job_ids))
        return map(tuple, self._fetch(wanted))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._engine.dispose()

    def _fetch(self, what: Any) -> Sequence[Any]:
        # All at once, and the transaction is over: readers of SQLite keep out its writers.
        connection = self._connected()
        with connection.begin():
            rows: Sequence[Any] = connection.execute(what).fetchall()
        return rows

    def _connected(self) -> Any:
        from sqlalchemy import create_engine  # noqa: PLC0415

        if self._engine is None:
            self._engine = create_engine(
                self._theirs.url,
                pool=self._theirs.pool.recreate(),  # with its arguments and its listeners
                execution_options=self._theirs.get_execution_options(),
            )
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _check(self) -> None:
        """
        See to it that what another connection sees is the same, and that it harms nobody.

        It is asked at once, as the scheduler's first pass is not far, and no file is read for it.
        """
        try:
            with self._connected().begin():
                ask = self._connection.exec_driver_sql
                files = [file for _, name, file in ask("PRAGMA database_list") if name == "main"]
                (patience,) = ask("PRAGMA busy_timeout").fetchone()
        except Exception:  # noqa: BLE001  # which the first reading will meet as well, and tell
            return
        finally:
            self.close()
        if not any(files) or patience < self.LEAST_PATIENCE:
            raise NotSharedError


class RedisRows:
    """The rows of a `RedisJobStore`."""

    PATIENCE = 30.0
    """Seconds to wait for an answer, where the application waits for ever."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._own: Any = None

    def listing(self) -> Mapping[str, float | None]:
        store = self._store
        with self._client().pipeline(transaction=True) as pipe:
            pipe.hkeys(store.jobs_key)
            pipe.zrange(store.run_times_key, 0, -1, withscores=True)
            ids, times = pipe.execute()
        at = dict(times)
        return {job_id.decode(): at.get(job_id) for job_id in ids}

    def states(self, job_ids: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        states = self._client().hmget(self._store.jobs_key, list(job_ids))
        pairs = zip(job_ids, states, strict=True)
        return [(job_id, state) for job_id, state in pairs if state is not None]

    def close(self) -> None:
        if self._own is not None:
            self._own.connection_pool.disconnect()

    def _client(self) -> Any:
        from redis import BlockingConnectionPool, ConnectionPool, Redis  # noqa: PLC0415

        pool: Any = getattr(self._store.redis, "connection_pool", None)
        if type(pool) not in (ConnectionPool, BlockingConnectionPool):
            return self._store.redis  # of a sentinel, say: a pool that we could not make again
        if self._own is None:
            options = {**pool.connection_kwargs}
            options["socket_timeout"] = options.get("socket_timeout") or self.PATIENCE
            self._own = Redis(
                connection_pool=ConnectionPool(connection_class=pool.connection_class, **options)
            )
        return self._own
