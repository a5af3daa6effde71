"""Connections to the user's database: telemetry does not disturb them."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")

sqlalchemy = pytest.importorskip("sqlalchemy")

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

from tests.helpers.jobstore_servers import NEVER, File
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.shared_jobstores import (
    POSTGRES,
    SOON,
    add,
    another_process,
    background,
    complete_pass,
    remote,
    scheduler_on,
)
from tests.helpers.waiting import wait_until
from tests.helpers.watching import wait_for_reading, watched


class TestOneConnectionForAll:
    """Databases with one connection only, or for one thread only."""

    @pytest.fixture(params=["StaticPool", "SingletonThreadPool"])
    def engine(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        """Return an engine whose pool returns the scheduler's own connection."""
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        engine = sqlalchemy.create_engine(
            "sqlite://",
            poolclass=getattr(sqlalchemy.pool, request.param),
            creator=lambda: connection,
        )
        yield engine
        engine.dispose()
        connection.close()

    @pytest.mark.parametrize("end", ["commit", "rollback"])
    @pytest.mark.usefixtures("poll_often")
    def test_transaction_of_the_user_is_not_ended(self, engine: Any, end: str) -> None:
        """Telemetry neither commits nor rolls back a transaction of the user."""
        text = sqlalchemy.text
        threads: set[str] = set()

        def note(*_: Any) -> None:
            threads.add(threading.current_thread().name)

        with watched(background(SQLAlchemyJobStore(engine=engine))) as seen:
            seen.scheduler.start()
            add(seen.scheduler)
            wait_until(seen.last_read)
            complete_pass(seen)  # the next one, whose transaction would disturb, is in an hour
            sqlalchemy.event.listen(engine, "before_cursor_execute", note)
            with engine.connect() as connection:
                connection.execute(text("create table notes (note text)"))
                connection.commit()
                connection.execute(text("insert into notes values ('mine')"))
                time.sleep(10 * SOON)  # in which a reading would have come, and must not
                getattr(connection, end)()
                kept = connection.execute(text("select count(*) from notes")).scalar()
            assert kept == (1 if end == "commit" else 0)
            assert "apscheduler-telemetry" not in threads
            assert seen.next_and_withdrawn_run() == (NEVER.timestamp(), None)
            assert seen.own_errors() == {}

    def test_stored_jobs_are_known_from_the_first_pass_on(self, engine: Any) -> None:
        """Jobs that are already in the store are known from the first pass on."""
        scheduler = hand_driven_scheduler(jobstores={"default": SQLAlchemyJobStore(engine=engine)})
        scheduler.start()
        add(scheduler)
        with watched(scheduler) as seen:
            wait_for_reading(seen)
            assert seen.value("scheduler_jobs", jobstore="default") == 0
            assert seen.last_read() is None
            scheduler.turn()
            assert seen.next_and_withdrawn_run() == (NEVER.timestamp(), None)
            assert seen.last_read()

    @pytest.mark.usefixtures("poll_often")
    def test_database_of_one_thread_is_not_read_in_another(self) -> None:
        """An in-memory database of one thread is not read in another thread."""
        with watched(
            hand_driven_scheduler(jobstores={"default": SQLAlchemyJobStore("sqlite://")})
        ) as seen:
            seen.scheduler.start()
            add(seen.scheduler)
            seen.scheduler.turn()
            time.sleep(5 * SOON)  # in which a reading would have found nothing
            wait_for_reading(seen)
            assert seen.next_and_withdrawn_run() == (NEVER.timestamp(), None)
            assert (seen.own_errors(), seen.errors()) == ({}, {})

    @pytest.mark.parametrize(
        "arguments",
        [{"timeout": 0}, {"creator": lambda: sqlite3.connect(":memory:")}],
        ids=["that do not wait", "that are not what the URL says"],
    )
    def test_sqlite_is_read_only_if_it_has_a_file_and_writers_wait(
        self, tmp_path: Path, arguments: dict[str, Any]
    ) -> None:
        """SQLite is read only if it has a file, and if its writers wait for readers."""
        options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0}
        options |= arguments if "creator" in arguments else {"connect_args": arguments}
        store = SQLAlchemyJobStore(f"sqlite:///{tmp_path / 'jobs'}", engine_options=options)
        with watched(hand_driven_scheduler(jobstores={"default": store})) as seen:
            seen.scheduler.start()
            add(seen.scheduler)
            wait_for_reading(seen)
            assert seen.last_read() is None
            seen.scheduler.turn()
            assert seen.last_read()
            assert seen.next_and_withdrawn_run() == (NEVER.timestamp(), None)
            assert (seen.own_errors(), seen.errors()) == ({}, {})
        store.engine.dispose()


@pytest.mark.usefixtures("poll_often")
class TestEngineOfTheUser:
    def test_queries_reach_no_listener_of_the_engine(self, tmp_path: Path) -> None:
        """Queries of telemetry reach no listener of the engine; `connect` listeners apply."""
        statements: list[str] = []
        connected: list[str] = []
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'jobs'}", pool_size=1)

        def note(names: list[str]) -> Callable[..., None]:
            return lambda *_: names.append(threading.current_thread().name)

        sqlalchemy.event.listen(engine, "before_cursor_execute", note(statements))
        sqlalchemy.event.listen(engine, "connect", note(connected))
        with watched(background(SQLAlchemyJobStore(engine=engine))) as seen:
            seen.scheduler.start()
            wait_until(lambda: connected.count("apscheduler-telemetry") >= 3)
            assert "apscheduler-telemetry" not in statements
            assert seen.own_errors() == {}
        engine.dispose()

    @pytest.mark.parametrize("kind", [POSTGRES])
    def test_settings_made_by_a_connect_listener_apply(self, place: Any) -> None:
        """A table that is found only with the settings of a `connect` listener is found."""
        engine = sqlalchemy.create_engine(place.server.url())

        def use_schema(connection: Any, _: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute(f"set search_path = {place.name}")
            connection.commit()

        sqlalchemy.event.listen(engine, "connect", use_schema)
        place.server.execute(f"create schema {place.name}")
        with watched(background(SQLAlchemyJobStore(engine=engine))) as seen:
            seen.scheduler.start()
            wait_until(seen.last_read)
            assert place.server.execute(f"select id from {place.name}.apscheduler_jobs") == []
            assert seen.value("jobstore_read_failures_total", jobstore="default") == 0

    def test_store_subclass_is_read_as_it_reads_itself(self, tmp_path: Path) -> None:
        """A subclass that selects some rows of a shared table is read in its own way."""

        class Mine(SQLAlchemyJobStore):
            def _get_jobs(self, *conditions: Any) -> Any:
                return super()._get_jobs(self.jobs_t.c.id.like("mine%"), *conditions)

        place = File(tmp_path)
        with another_process(place) as other:
            add(other, "mine")
            add(other, "yours")
        store = Mine(place.store().engine.url)
        with watched(background(store)) as seen:
            seen.scheduler.start()
            wait_for_reading(seen)
            assert seen.next_and_withdrawn_run("mine") == (NEVER.timestamp(), None)
            assert seen.next_and_withdrawn_run("yours") == (None, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 1
        store.engine.dispose()


@remote
def test_no_connection_is_kept(place: Any, kind: str) -> None:
    """Telemetry keeps no connection between two readings."""

    def connections() -> set[Any]:
        if kind == "redis":
            return {client["id"] for client in place.server.client.client_list()}
        rows = place.server.execute(
            "select pid from pg_stat_activity"
            " where pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        return {pid for (pid,) in rows}

    others = connections()
    with scheduler_on(place) as seen:
        seen.scheduler.get_jobs()
        wait_for_reading(seen)
        # Soon, as PostgreSQL takes a moment to end a session.
        wait_until(lambda: len(connections() - others) == 1)
