"""Persistent job stores: their contents, and the servers that keep them."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import redis
import sqlalchemy
from apscheduler.jobstores.redis import RedisJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.helpers import jobs, watching
from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.servers import free_port
from tests.helpers.waiting import wait_for_answer

NEVER = datetime(2999, 1, 1, tzinfo=timezone.utc)
NO_POOL = {"poolclass": sqlalchemy.pool.NullPool}
"""APScheduler looks for due jobs once more after its shutdown, which would leave a connection."""


class Rows:
    """A job store in a SQLite file, and its rows."""

    def __init__(self, directory: Path) -> None:
        self.url = f"sqlite:///{directory / 'jobs.sqlite'}"
        self.engine = sqlalchemy.create_engine(self.url)

    def store(self) -> Any:
        return SQLAlchemyJobStore(self.url, engine_options=NO_POOL)

    def ids(self) -> set[str]:
        with self.engine.begin() as connection:
            rows = connection.execute(sqlalchemy.text("select id from apscheduler_jobs"))
            return {row.id for row in rows}

    def spoil(self, job_id: str, state: bytes = b"no pickle") -> None:
        """Make it impossible to deserialize a row."""
        with self.engine.begin() as connection:
            connection.execute(
                sqlalchemy.text("update apscheduler_jobs set job_state = :state where id = :id"),
                {"state": state, "id": job_id},
            )

    def write(self, *job_ids: str, at: datetime = NEVER) -> None:
        """Store jobs as a process without telemetry does."""
        scheduler = hand_driven_scheduler(jobstores={"default": self.store()})
        scheduler.start(paused=True)
        for job_id in job_ids:
            scheduler.add_job(jobs.nothing, **{**watching.due(job_id), "next_run_time": at})
        scheduler.shutdown()


class Postgres:
    """
    A real PostgreSQL on a free port, which can be stopped and started again.

    PostgreSQL refuses to run as root. Root therefore runs it as the user `nobody`.
    """

    # Not pytest-postgresql: its `pg_ctl initdb` fails for root, as which CI runs. It also brings
    # another driver (psycopg 3), needs the path of `pg_ctl`, and stops the server gently, where
    # these tests want a crash.

    def __init__(self) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as_nobody: dict[str, Any] = {}
        if os.geteuid() == 0:
            nobody = pwd.getpwnam("nobody")
            os.chown(self.directory, nobody.pw_uid, nobody.pw_gid)
            self._as_nobody = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}
        self._process: subprocess.Popen[bytes] | None = None
        self._data = self.directory / "data"
        self._run("initdb", "-D", self._data, "-U", "test", "-A", "trust", "-N", "--locale=C")
        self.start()

    def url(self, port: int | None = None) -> str:
        """Return the URL of its database, by way of a proxy if there is a port."""
        return f"postgresql+psycopg2://test@127.0.0.1:{port or self.port}/postgres"

    def start(self) -> None:
        command = ["postgres", "-D", self._data, "-F", "-k", "", "-h", "127.0.0.1"]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*map(str, command), "-p", str(self.port)],
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._as_nobody,
            )
        wait_for_answer(lambda: self.execute("select 1"))

    def stop(self) -> None:
        """Stop it at once, also if clients are connected."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(WAIT_TIMEOUT)
            self._process = None

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.directory)

    def execute(self, statement: str, **values: Any) -> list[Any]:
        """Execute a statement over a connection of its own, and return its rows."""
        engine = sqlalchemy.create_engine(self.url(), **NO_POOL)
        try:
            with engine.begin() as connection:
                result = connection.execute(sqlalchemy.text(statement), values)
                return list(result) if result.returns_rows else []
        except sqlalchemy.exc.OperationalError as error:
            raise ConnectionError from error

    def _run(self, *command: Any) -> None:
        subprocess.run(
            [str(part) for part in command],
            check=True,
            capture_output=True,
            cwd=self.directory,
            **self._as_nobody,
        )


class RedisServer:
    """A real Redis on a free port, which keeps its data when it is stopped and started again."""

    # Not pytest-redis: it works, also for root, but would replace 20 lines by four packages and a
    # fixture that must not be imported where the packages are absent.

    def __init__(self) -> None:
        self.port = free_port()
        self.directory = Path(tempfile.mkdtemp(prefix="redis-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.client = redis.Redis(port=self.port)
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", ""]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*map(str, command), "--appendonly", "yes", "--dir", str(self.directory)],
                stdout=log,
                stderr=log,
            )
        wait_for_answer(self._answers)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(WAIT_TIMEOUT)
            self._process = None

    def close(self) -> None:
        self.stop()
        self.client.close()
        shutil.rmtree(self.directory)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.exceptions.RedisError as error:
            raise ConnectionError from error


class Proxy:
    """
    A TCP proxy on a free port that can reset, stall and delay connections.

    Attributes:
        port: where it listens.
        delay: seconds by which responses are delayed, on connections that are opened from now on;
            see `slow_down` for all of them.
        opened: how many connections were opened so far.
        waiting: how many messages wait while the proxy is stalled.
        held: how many answers were held up so far.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay = self._delay_of_all = 0.0
        self.opened = self.held = self.waiting = 0
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def slow_down(self, delay: float) -> None:
        """Delay each response, on all connections."""
        self._delay_of_all = delay

    def stall(self) -> None:
        """Forward nothing any more, and close nothing."""
        self._open.clear()

    def go_on(self) -> None:
        self._open.set()

    def cut(self) -> int:
        """Reset all connections, and return how many there were."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                reset = struct.pack("ii", 1, 0)
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        return len(pairs)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # which ends its thread's accept
        self._thread.join()
        self._listener.close()
        self._open.set()
        self.cut()

    def _wait(self) -> None:
        if not self._open.is_set():
            with self._lock:
                self.waiting += 1
            self._open.wait()
            with self._lock:
                self.waiting -= 1

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            with self._lock:
                self.opened += 1
                self._pairs.append((client, server))
            self._pump(client, server, None)
            self._pump(server, client, self.delay)

    def _pump(self, source: socket.socket, sink: socket.socket, delay: float | None) -> None:
        def pump() -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    self._wait()
                    if delay is not None and (pause := max(delay, self._delay_of_all)):
                        self.held += 1
                        time.sleep(pause)
                    sink.sendall(data)
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=pump, daemon=True).start()


class Place:
    """
    Where jobs are kept, in a table or under a key of its own.

    Attributes:
        server: what can be stopped and started again; None for a file.
        name: of the table, or the beginning of keys.
    """

    server: Any = None
    name = "apscheduler_jobs"

    def store(self, port: int | None = None, **options: Any) -> Any:
        """Return a job store as a process makes one, by way of a proxy if there is a port."""
        raise NotImplementedError

    def ids(self) -> set[str]:
        """Return the ids of the jobs that are there."""
        raise NotImplementedError

    def spoil(self, job_id: str) -> None:
        """Make it impossible to deserialize a job."""
        raise NotImplementedError


class File(Place):
    """A SQLite file."""

    def __init__(self, directory: Path) -> None:
        self._rows = Rows(directory)

    def store(self, port: int | None = None, **options: Any) -> Any:
        return SQLAlchemyJobStore(self._rows.url, engine_options={**NO_POOL, **options})

    def ids(self) -> set[str]:
        return self._rows.ids()

    def spoil(self, job_id: str) -> None:
        self._rows.spoil(job_id)


class Table(Place):
    """A table of PostgreSQL."""

    def __init__(self, server: Postgres, name: str) -> None:
        self.server, self.name = server, name

    def store(self, port: int | None = None, **options: Any) -> Any:
        url = self.server.url(port)
        return SQLAlchemyJobStore(url, tablename=self.name, engine_options=options)

    def ids(self) -> set[str]:
        return {row.id for row in self.server.execute(f"select id from {self.name}")}

    def spoil(self, job_id: str) -> None:
        statement = f"update {self.name} set job_state = :state where id = :id"
        self.server.execute(statement, state=b"no pickle", id=job_id)


class Keys(Place):
    """Two keys of Redis."""

    def __init__(self, server: RedisServer, name: str) -> None:
        self.server, self.name = server, name

    def store(self, port: int | None = None, **options: Any) -> Any:
        keys = {"jobs_key": self.name, "run_times_key": f"{self.name}.times"}
        # Redis' client tries again by itself, by default for many seconds.
        options = {"port": port or self.server.port, "retry": Retry(NoBackoff(), 1), **options}
        return RedisJobStore(**keys, **options)

    def ids(self) -> set[str]:
        keys: Any = self.server.client.hkeys(self.name)
        return {key.decode() for key in keys}

    def spoil(self, job_id: str) -> None:
        self.server.client.hset(self.name, job_id, b"no pickle")
