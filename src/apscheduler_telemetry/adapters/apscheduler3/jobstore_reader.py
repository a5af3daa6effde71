"""
Reads persistent job stores cheaply: the next run of each job, and the pickles of some jobs.

There are readers for the two stores of APScheduler that processes share most; they use public
attributes of the stores. A reader opens its own connection, in the same way as the store, and
closes it after each reading. So a slow answer does not block the scheduler, a pool of one
connection stays free for the scheduler, a reading is never part of the application's transactions,
and the listeners and the log of the application's engine do not see its queries. Nothing is
written.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class JobStoreReader(Protocol):
    """Reads the rows of one job store."""

    def fetch_next_runs(self) -> Mapping[str, float | None]:
        """Return the next run of each job by id, in Unix seconds; None if the job is paused."""

    def fetch_pickled_jobs(self, job_ids: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        """Return ids and pickles of those of these jobs that are in the store."""

    def disconnect(self) -> None:
        """Close the connection; the next query opens another one."""


class SeparateConnectionUnsafeError(Exception):
    """
    The store can only be read over the scheduler's own connection.

    Another connection would see another database, or would harm the scheduler's.
    """


BATCH_SIZE = 100
"""Jobs to pass to `fetch_pickled_jobs` at a time: fewer than SQL allows parameters."""


def create_reader_if_supported(store: Any) -> JobStoreReader | None:
    """
    Return a reader of a job store, or None if its rows cannot be read.

    Raises:
        SeparateConnectionUnsafeError: the store must not be read over another connection.
    """
    if _has_base_listing_methods(store, "sqlalchemy", "SQLAlchemyJobStore", "_get_jobs"):
        return SQLAlchemyReader(store)
    if _has_base_listing_methods(store, "redis", "RedisJobStore", "_reconstitute_jobs"):
        return RedisReader(store)
    return None


def _has_base_listing_methods(store: Any, module: str, name: str, helper: str) -> bool:
    """
    Return whether a store lists its jobs as APScheduler's class does.

    A subclass may store the jobs of several schedulers in one table, and list only those of one.

    Args:
        store: a job store.
        module: of APScheduler's class, in ``apscheduler.jobstores``.
        name: of APScheduler's class.
        helper: the private method that its listings share.
    """
    # Not imported here: a process with such a store has imported the class, and its client.
    base = getattr(sys.modules.get(f"apscheduler.jobstores.{module}"), name, None)
    if base is None or not isinstance(store, base):
        return False
    names = ("get_due_jobs", "get_all_jobs", "lookup_job", helper)
    return all(getattr(type(store), name) is getattr(base, name) for name in names)


class SQLAlchemyReader:
    """Reads the rows of an `SQLAlchemyJobStore`."""

    MIN_BUSY_TIMEOUT_MS = 1000
    """Milliseconds for which writers of an SQLite file have to wait for us, for us to read it."""

    def __init__(self, store: Any) -> None:
        from sqlalchemy.pool import SingletonThreadPool, StaticPool  # noqa: PLC0415  # optional

        self._table = store.jobs_t
        self._store_engine = store.engine
        self._own_engine: Any = None
        self._own_connection: Any = None
        if isinstance(self._store_engine.pool, (StaticPool, SingletonThreadPool)):
            # One connection for all threads, on which our rollback would be the scheduler's too;
            # or a database in memory, where another connection has another database.
            raise SeparateConnectionUnsafeError
        if self._store_engine.dialect.name == "sqlite":
            self._reject_unsafe_sqlite()

    def fetch_next_runs(self) -> Mapping[str, float | None]:
        from sqlalchemy import select  # noqa: PLC0415

        columns = self._table.c
        return dict(map(tuple, self._fetch(select(columns.id, columns.next_run_time))))

    def fetch_pickled_jobs(self, job_ids: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        from sqlalchemy import select  # noqa: PLC0415

        columns = self._table.c
        query = select(columns.id, columns.job_state).where(columns.id.in_(job_ids))
        return map(tuple, self._fetch(query))

    def disconnect(self) -> None:
        if self._own_connection is not None:
            self._own_connection.close()
            self._own_connection = None
            self._own_engine.dispose()

    def _fetch(self, query: Any) -> Sequence[Any]:
        # All rows at once, to end the transaction: readers of SQLite lock out its writers.
        connection = self._get_or_open_connection()
        with connection.begin():
            rows: Sequence[Any] = connection.execute(query).fetchall()
        return rows

    def _get_or_open_connection(self) -> Any:
        """Return the open connection, or open one."""
        from sqlalchemy import create_engine  # noqa: PLC0415

        if self._own_engine is None:
            self._own_engine = create_engine(
                self._store_engine.url,
                pool=self._store_engine.pool.recreate(),  # with its arguments and its listeners
                execution_options=self._store_engine.get_execution_options(),
            )
        if self._own_connection is None:
            self._own_connection = self._own_engine.connect()
        return self._own_connection

    def _reject_unsafe_sqlite(self) -> None:
        """
        Raise if another connection sees another database, or if reading may make writers fail.

        This runs in the caller's thread, as the scheduler's first pass is near, and reads no file.
        """
        try:
            with self._get_or_open_connection().begin():
                execute = self._own_connection.exec_driver_sql
                databases = execute("PRAGMA database_list")
                files = [file for _, name, file in databases if name == "main"]
                (busy_timeout,) = execute("PRAGMA busy_timeout").fetchone()
        except Exception:  # noqa: BLE001  # the first reading will fail as well, and report it
            return
        finally:
            self.disconnect()
        if not any(files) or busy_timeout < self.MIN_BUSY_TIMEOUT_MS:
            raise SeparateConnectionUnsafeError


class RedisReader:
    """Reads the rows of a `RedisJobStore`."""

    DEFAULT_TIMEOUT_SECONDS = 30.0
    """Seconds to wait for an answer, if the application waits without limit."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._own_client: Any = None

    def fetch_next_runs(self) -> Mapping[str, float | None]:
        store = self._store
        with self._get_or_create_own_client().pipeline(transaction=True) as pipe:
            pipe.hkeys(store.jobs_key)
            pipe.zrange(store.run_times_key, 0, -1, withscores=True)
            job_ids, scores = pipe.execute()
        next_runs = dict(scores)
        return {job_id.decode(): next_runs.get(job_id) for job_id in job_ids}

    def fetch_pickled_jobs(self, job_ids: Sequence[str]) -> Iterable[tuple[str, bytes]]:
        states = self._get_or_create_own_client().hmget(self._store.jobs_key, list(job_ids))
        pairs = zip(job_ids, states, strict=True)
        return [(job_id, state) for job_id, state in pairs if state is not None]

    def disconnect(self) -> None:
        if self._own_client is not None:
            self._own_client.connection_pool.disconnect()

    def _get_or_create_own_client(self) -> Any:
        """Return a client with a pool of its own, or the store's if its pool cannot be copied."""
        from redis import BlockingConnectionPool, ConnectionPool, Redis  # noqa: PLC0415

        pool: Any = getattr(self._store.redis, "connection_pool", None)
        if type(pool) not in (ConnectionPool, BlockingConnectionPool):
            return self._store.redis  # as with a Sentinel
        if self._own_client is None:
            options = {**pool.connection_kwargs}
            options["socket_timeout"] = (
                options.get("socket_timeout") or self.DEFAULT_TIMEOUT_SECONDS
            )
            self._own_client = Redis(
                connection_pool=ConnectionPool(connection_class=pool.connection_class, **options)
            )
        return self._own_client
