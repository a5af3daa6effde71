"""
Job stores that processes share, on real servers, and faults of these servers.

With each store, counts are consistent, errors of the scheduler are counted, nothing counts as a
failure of telemetry, a scrape is answered at once, and telemetry delays no run.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, EVENT_JOB_MISSED
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry, generate_latest

import support_jobs as jobs
import support_scenes as scenes
from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from apscheduler_telemetry.adapters.apscheduler3.jobstore_reader import SQLAlchemyReader
from apscheduler_telemetry.core.model import Outcome
from support import (
    HandDriven,
    Rig,
    adapter_of,
    job_states,
    live,
    recorder_of,
    registry_of,
    sample,
    until,
)
from support_scenes import Watched, wait_for_reading, watched

sqlalchemy = pytest.importorskip("sqlalchemy")
redis = pytest.importorskip("redis")
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

from support_stores import NEVER, File, Keys, Place, Postgres, Proxy, RedisServer, Table

SOON = 0.05
"""Seconds between two readings in these tests, if not 5."""
EARLIER = NEVER - timedelta(days=1)
_number = itertools.count()

servers = pytest.mark.integration


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; `make test` installs it where it may")


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    needs("initdb")
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    needs("redis-server")
    server = RedisServer()
    yield server
    server.close()


POSTGRES = pytest.param("postgres", marks=servers)
REDIS = pytest.param("redis", marks=servers)
remote = pytest.mark.parametrize("kind", [POSTGRES, REDIS])
everywhere = pytest.mark.parametrize("kind", ["sqlite", POSTGRES, REDIS])


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Return a new place for jobs, of the kind that the test asks for."""
    name = f"jobs_{next(_number)}"
    if kind == "postgres":
        return Table(request.getfixturevalue("postgres"), name)
    if kind == "redis":
        return Keys(request.getfixturevalue("redis_server"), name)
    return File(tmp_path)


@pytest.fixture
def proxy(place: Place) -> Iterator[Proxy]:
    proxy = Proxy(place.server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read stores more often than every five seconds."""
    monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL", SOON)
    monkeypatch.setattr(JobStorePoller, "MAX_DUTY_CYCLE", 0.5)


@contextlib.contextmanager
def another_process(place: Place) -> Iterator[HandDriven]:
    """Change jobs in the store as another process does, one without telemetry."""
    other = scenes.by_hand(jobstores={"default": place.store()}, timezone=timezone.utc)
    other.start(paused=True)
    yield other
    other.shutdown()


def background(store: Any, **options: Any) -> BackgroundScheduler:
    return BackgroundScheduler(
        jobstores={"default": store},
        timezone=timezone.utc,
        jobstore_retry_interval=0.1,
        **options,
    )


@contextlib.contextmanager
def running(place: Place, **options: Any) -> Iterator[Watched]:
    """Run a scheduler that reads the store, and wait until it has read it once."""
    with watched(background(place.store()), **options) as seen:
        seen.scheduler.start()
        until(lambda: last_read(seen) and last_pass_ended_at(seen))
        yield seen
        assert (seen.own_errors(), seen.errors()) == ({}, {})


def last_read(seen: Watched) -> float | None:
    return seen.value("jobstore_last_read_timestamp_seconds", jobstore="default")


def add(scheduler: Any, job_id: str = "job", at: datetime = NEVER, **options: Any) -> None:
    scheduler.add_job(jobs.nothing, "interval", hours=1, id=job_id, next_run_time=at, **options)


def next_and_withdrawn(seen: Watched, job_id: str = "job") -> tuple[float | None, float | None]:
    """Return the next run, and the latest run that was withdrawn."""
    return (
        seen.job("next_run_timestamp_seconds", job_id),
        seen.job("withdrawn_run_timestamp_seconds", job_id),
    )


@everywhere
@pytest.mark.usefixtures("poll_often")
class TestOtherProcesses:
    """Changes by other processes in a shared store are seen soon, without a due job."""

    def test_added(self, place: Place) -> None:
        """A job that another process adds has a next run."""
        with running(place) as seen, another_process(place) as other:
            add(other)
            until(lambda: next_and_withdrawn(seen) == (NEVER.timestamp(), None))
            until(lambda: seen.job("shortest_interval_seconds") == 3600)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_moved(self, place: Place) -> None:
        """A job that it moves has the new next run, and the former one is withdrawn."""
        with running(place) as seen, another_process(place) as other:
            add(other)
            until(lambda: next_and_withdrawn(seen) == (NEVER.timestamp(), None))
            other.modify_job("job", next_run_time=EARLIER)
            until(lambda: next_and_withdrawn(seen) == (EARLIER.timestamp(), NEVER.timestamp()))

    @pytest.mark.parametrize("what", ["remove_job", "pause_job"])
    def test_taken_away(self, place: Place, what: str) -> None:
        """The next run of a job that it removes or pauses is withdrawn."""
        with running(place) as seen, another_process(place) as other:
            add(other)
            add(other, "other")
            until(
                lambda: (
                    next_and_withdrawn(seen)
                    == next_and_withdrawn(seen, "other")
                    == (NEVER.timestamp(), None)
                )
            )
            getattr(other, what)("job")
            until(lambda: next_and_withdrawn(seen) == (0, NEVER.timestamp()))
            assert next_and_withdrawn(seen, "other") == (NEVER.timestamp(), None)

    def test_all_gone(self, place: Place) -> None:
        """If none of several jobs is left, the store has lost them; next runs stay expected."""
        with running(place) as seen, another_process(place) as other:
            add(other)
            add(other, "other")
            until(
                lambda: (
                    next_and_withdrawn(seen)
                    == next_and_withdrawn(seen, "other")
                    == (NEVER.timestamp(), None)
                )
            )
            other.remove_all_jobs()
            until(lambda: seen.value("scheduler_jobs", jobstore="default") == 0)
            assert (
                next_and_withdrawn(seen)
                == next_and_withdrawn(seen, "other")
                == (NEVER.timestamp(), None)
            )

    def test_spoilt(self, place: Place) -> None:
        """A row that cannot be deserialized stays, and is read again when it has changed."""
        with another_process(place) as other:
            add(other)
            place.spoil("job")
            with running(place) as seen:
                add(other, "other", EARLIER)
                until(lambda: next_and_withdrawn(seen, "other") == (EARLIER.timestamp(), None))
                assert place.ids() == {"job", "other"}
                assert next_and_withdrawn(seen) == (None, None)
                add(other, at=EARLIER, replace_existing=True)
                until(lambda: next_and_withdrawn(seen) == (EARLIER.timestamp(), None))

    def test_overdue(self, place: Place) -> None:
        """The next run of a job that was overdue when another process moved it is not withdrawn."""
        with another_process(place) as other:
            add(other, at=scenes.ago(3600))
            with watched(background(place.store())) as seen:
                seen.scheduler.start(paused=True)
                until(lambda: next_and_withdrawn(seen)[0])
                other.modify_job("job", next_run_time=NEVER)
                until(lambda: next_and_withdrawn(seen) == (NEVER.timestamp(), None))

    def test_asleep(self, place: Place) -> None:
        """
        A job that falls due while the scheduler sleeps is overdue, and visibly so.

        APScheduler does not hear of what other processes add before it wakes up for something
        else. That is not ours to repair.
        """
        with running(place) as seen, another_process(place) as other:
            add(other, at=scenes.ahead(0.5))
            until(lambda: next_and_withdrawn(seen)[0])
            until(lambda: time.time() > (next_and_withdrawn(seen)[0] or 0) + 0.5)
            assert seen.runs() == {}
            seen.scheduler.wakeup()
            until(lambda: sum(seen.runs().values()) == 1)

    def test_age(self, place: Place) -> None:
        """The time of the latest reading is exported, and stays recent."""
        with running(place) as seen:
            first = last_read(seen) or 0
            until(lambda: (last_read(seen) or 0) > first + 3 * SOON)
            assert time.time() - (last_read(seen) or 0) < jobs.PATIENCE

    def test_what_is_changed_here(self, place: Place) -> None:
        """A reading never undoes a later change by this process."""
        with running(place) as seen:
            for number in range(50):
                at = NEVER - timedelta(days=number)
                add(seen.scheduler, at=at, replace_existing=True)
                assert next_and_withdrawn(seen)[0] == at.timestamp()
                seen.scheduler.remove_job("job")
                assert next_and_withdrawn(seen) == (0, NEVER.timestamp())
                time.sleep(0.001)


class Dawdling(SQLAlchemyJobStore):
    """A store that returns late after a job is removed."""

    after: Callable[[], Any]

    def remove_job(self, job_id: str) -> None:
        super().remove_job(job_id)
        self.after()


@pytest.mark.usefixtures("poll_often")
def test_read_in_the_middle_of_a_change(tmp_path: Path) -> None:
    """What is read between the change of a row and the return of the store is ignored."""
    store = Dawdling(f"sqlite:///{tmp_path / 'jobs'}")
    scheduler = scenes.by_hand(jobstores={"default": store})
    with watched(scheduler) as seen:

        def read_again() -> None:
            now = time.time()
            until(lambda: (last_read(seen) or 0) > now)

        store.after = read_again
        scheduler.start()
        scheduler.add_job(jobs.nothing, "date", id="job", run_date=scenes.ago(0))
        scheduler.turn()
        assert seen.runs() == {"success": 1}
        assert next_and_withdrawn(seen) == (0, None)
        assert seen.own_errors() == {}
    store.engine.dispose()


class TestEvery:
    @pytest.mark.parametrize(
        ("seconds", "least", "most"), [(0, 5, 5), (0.4, 8, 20 * jobs.PATIENCE)], ids=["5", "20 x"]
    )
    def test_how_often(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        seconds: float,
        least: float,
        most: float,
    ) -> None:
        """A store is read every five seconds; a slow one after 20 times as long as it took."""
        with running(File(tmp_path)) as seen:
            poller = poller_of(seen)
            pauses: list[float] = []
            monkeypatch.setattr(poller, "_schedule_reading", pauses.append)
            monkeypatch.setattr(poller, "_read_changed_jobs", lambda *_: time.sleep(seconds))
            poller._poll_and_reschedule()
            assert least <= pauses[0] <= most

    def test_memory(self) -> None:
        """A memory store counts as read at every scrape."""
        with watched(scenes.by_hand()) as seen:
            seen.scheduler.start()
            before = time.time()
            assert before <= (last_read(seen) or 0) <= time.time()


def scrape(rig: Rig) -> float:
    """Scrape, and return how many seconds that took."""
    begin = time.perf_counter()
    assert b"apscheduler_scheduler_up" in generate_latest(registry_of(rig.telemetry))
    return time.perf_counter() - begin


def successes(rig: Rig) -> int:
    """Return how often the job has run, or -1 while the scheduler is in a pass."""
    states = [state for state in job_states(rig.telemetry) if state.label == "job"]
    is_asleep = busy(rig) == 0 and states and states[0].next_run > time.time()
    return states[0].outcomes[Outcome.SUCCESS] if is_asleep else -1


def last_pass_ended_at(seen: Watched) -> float | None:
    """Return when the latest pass over due jobs ended."""
    ended: float | None = seen.telemetry._exported_scheduler.last_pass_ended_at
    return ended


def poller_of(seen: Watched) -> JobStorePoller:
    (hooks,) = adapter_of(seen.telemetry)._jobstore_hooks.values()
    poller: JobStorePoller = hooks._poller
    return poller


def failed_readings(rig: Rig) -> float:
    return sample(rig.telemetry, "apscheduler_jobstore_read_failures_total", jobstore="default")


def busy(rig: Rig | Watched) -> float:
    """Return for how many seconds the current pass over due jobs has lasted."""
    since = adapter_of(rig.telemetry)._loop._pass_started_at
    return 0.0 if since is None else time.monotonic() - since


def settled(value: Callable[[], float]) -> float:
    """Wait until a value has not changed for two retry intervals of the scheduler."""
    seen, since = value(), time.perf_counter()

    def has_settled() -> bool:
        nonlocal seen, since
        if value() != seen:
            seen, since = value(), time.perf_counter()
        return time.perf_counter() - since > 0.5

    until(has_settled)
    return seen


def run_now(rig: Rig) -> None:
    """Run the job once more, and wait for its end."""
    before = successes(rig)
    rig.scheduler.modify_job("job", next_run_time=datetime.now(timezone.utc))
    until(lambda: successes(rig) == before + 1)


@remote
@pytest.mark.usefixtures("poll_often")
class TestFaults:
    """Servers that stop, come back, or do not answer."""

    @pytest.fixture
    def rig(self, place: Place, proxy: Proxy) -> Iterator[Rig]:
        with live(background(place.store(proxy.port))) as rig:
            rig.add(jobs.nothing, "interval", hours=1, next_run_time=scenes.ago(0))
            until(lambda: successes(rig) == 1)
            until(lambda: recorder_of(rig.telemetry).jobstores()["default"].last_read_at)
            yield rig
            counts = rig.job().outcomes  # not by a scrape, as it may be uninstrumented
            assert {outcome for outcome, count in counts.items() if count} == {Outcome.SUCCESS}

    def test_server_stopped_and_started(
        self, rig: Rig, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Failures while the server is stopped are counted, and logged once; then all works."""
        place.server.stop()
        try:
            before = time.time()
            rig.scheduler.wakeup()
            until(lambda: rig.errors_of("jobstore") >= 2)
            until(lambda: failed_readings(rig) >= 3)
            assert scrape(rig) < 1
            assert caplog.text.count("could not read the job store") == 1
            read = recorder_of(rig.telemetry).jobstores()["default"].last_read_at
            assert read is not None
            assert read <= before + 1
        finally:
            place.server.start()
        until(
            lambda: (
                (recorder_of(rig.telemetry).jobstores()["default"].last_read_at or 0) > before + 0.5
            )
        )
        errors = settled(lambda: rig.errors_of("jobstore"))
        run_now(rig)
        assert rig.errors_of("jobstore") == errors
        assert rig.errors_of("loop") == 0
        assert rig.telemetry.health()["status"] == "healthy"

    def test_idle_connection_cut(self, rig: Rig, proxy: Proxy, kind: str) -> None:
        """An idle connection that is cut costs SQLAlchemy one retry, and Redis none."""
        assert proxy.cut()
        rig.scheduler.wakeup()
        if kind == "postgres":
            until(lambda: rig.errors_of("jobstore") >= 1)
        settled(lambda: rig.errors_of("jobstore"))
        run_now(rig)
        assert rig.errors_of("loop") == 0

    def test_cut_in_the_middle(self, rig: Rig, proxy: Proxy) -> None:
        """A connection that is cut while the scheduler waits for an answer is one error."""
        proxy.stall()
        rig.scheduler.wakeup()
        until(lambda: busy(rig) > 0.2)
        assert scrape(rig) < 1
        proxy.cut()
        proxy.go_on()
        settled(lambda: rig.errors_of("jobstore"))
        run_now(rig)
        assert rig.errors_of("loop") == 0

    def test_no_answer(self, rig: Rig, proxy: Proxy) -> None:
        """A server that does not answer delays neither a scrape nor `uninstrument`."""
        proxy.stall()
        until(lambda: proxy.waiting)  # a message of a reading, as the scheduler sleeps
        assert max(scrape(rig) for _ in range(20)) < 1
        begin = time.perf_counter()
        rig.telemetry.uninstrument()
        assert time.perf_counter() - begin < 2
        proxy.go_on()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_gone_while_a_job_is_moved_on(
        self, rig: Rig, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store that fails when the loop sets the next run ends the loop; this is exported."""
        monkeypatch.setattr(jobs, "nothing", place.server.stop)
        try:
            rig.scheduler.add_executor(DebugExecutor(), "inline")
            rig.scheduler.modify_job(
                "job", executor="inline", next_run_time=datetime.now(timezone.utc)
            )
            until(lambda: rig.errors_of("loop") == 1)
            assert rig.errors_of("jobstore") == 1
            assert sample(rig.telemetry, "apscheduler_scheduler_up") == 0
            assert rig.telemetry.health()["status"] == "unhealthy"
            until(lambda: failed_readings(rig))
        finally:
            place.server.start()


@pytest.mark.parametrize("kind", [POSTGRES])
@pytest.mark.usefixtures("poll_often")
class TestGoneAway:
    def test_terminated_by_the_server(self, place: Any) -> None:
        """A server that ends the session, as MySQL does after hours, costs one retry and no run."""
        with live(background(place.store())) as rig:
            rig.add(jobs.nothing, "interval", hours=1, next_run_time=scenes.ago(0))
            until(lambda: successes(rig) == 1)
            ended = place.server.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
            assert ended
            rig.scheduler.wakeup()
            until(lambda: rig.errors_of("jobstore") >= 1)
            settled(lambda: rig.errors_of("jobstore"))
            run_now(rig)
            assert rig.errors_of("loop") == 0


def lateness(scheduler: Any) -> list[float]:
    """Return a list that grows by how many seconds late each run has ended, as a listener sees."""
    late: list[float] = []

    def note(event: Any) -> None:
        late.append(time.time() - event.scheduled_run_time.timestamp())

    scheduler.add_listener(note, EVENT_JOB_EXECUTED | EVENT_JOB_MISSED)
    return late


ONE_CONNECTION: dict[str, Callable[[Proxy], dict[str, Any]]] = {
    "postgres": lambda _: {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1},
    "redis": lambda proxy: {
        "connection_pool": redis.BlockingConnectionPool(
            port=proxy.port, max_connections=1, timeout=1
        )
    },
}


@remote
@pytest.mark.slow
@pytest.mark.usefixtures("poll_often")
class TestSlow:
    def test_readings_of_two_seconds(self, place: Place, proxy: Proxy, kind: str) -> None:
        """Telemetry does not use the scheduler's pool, whose only connection stays free."""
        store = place.store(proxy.port, **ONE_CONNECTION[kind](proxy))
        scheduler = background(store)
        scheduler.start(paused=True)
        scheduler.get_jobs()  # so that its one connection is open, and quick
        late = lateness(scheduler)
        proxy.delay = 2.0
        with live(scheduler, start=False) as rig:
            rig.add(jobs.nothing, "interval", seconds=0.1, coalesce=False)
            scheduler.resume()
            until(lambda: proxy.held >= 2)
            slow = scrape(rig)
            until(lambda: len(late) > 20)
            scheduler.remove_job("job")
            rig.is_told = False  # of runs that are due by then, as on a busy machine
            proxy.delay = 0  # as APScheduler connects anew when it is shut down
            assert slow < 1
            assert rig.errors_of("jobstore") == 0
        assert max(late) < 1.5

    def test_answers_that_are_slow_for_all(self, place: Place, proxy: Proxy) -> None:
        """If all answers are slow, runs are as late as without telemetry."""
        plain, ours = background(place.store(proxy.port)), None
        other = type(place)(place.server, f"{place.name}_ours")  # type: ignore[call-arg]
        second = Proxy(place.server.port)
        try:
            ours = background(other.store(second.port))
            with live(ours) as rig:
                plain.start()
                for way in (proxy, second):
                    way.slow_down(0.05)
                results = []
                for scheduler in (plain, ours):
                    late = lateness(scheduler)
                    at = scenes.ahead(1)
                    for number in range(2):
                        add(scheduler, f"job{number}", at, misfire_grace_time=None)
                    results.append(late)
                until(lambda: all(len(late) == 2 for late in results))
                assert scrape(rig) < 1
                without, with_us = map(max, results)
                assert with_us < 1.5 * without + 0.5
        finally:
            for way in (proxy, second):
                way.slow_down(0)
            plain.shutdown()
            second.close()


class TestOneConnectionForAll:
    """Databases that are reached over one connection, or from one thread only."""

    @pytest.fixture(params=["StaticPool", "SingletonThreadPool"])
    def engine(self, request: pytest.FixtureRequest) -> Iterator[Any]:
        """Return an engine whose pool would return the scheduler's own connection."""
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
    def test_a_transaction_of_the_user_s(self, engine: Any, end: str) -> None:
        """Telemetry neither rolls back nor commits what the user has not committed."""
        text = sqlalchemy.text
        threads: set[str] = set()

        def note(*_: Any) -> None:
            threads.add(threading.current_thread().name)

        with watched(background(SQLAlchemyJobStore(engine=engine))) as seen:
            seen.scheduler.start()
            add(seen.scheduler)
            until(lambda: last_read(seen))
            settled(lambda: last_pass_ended_at(seen) or 0)  # as its own transactions would disturb
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
            assert next_and_withdrawn(seen) == (NEVER.timestamp(), None)
            assert seen.own_errors() == {}

    def test_known_from_before(self, engine: Any) -> None:
        """Jobs that are in the store already are known from the scheduler's first pass on."""
        scheduler = scenes.by_hand(jobstores={"default": SQLAlchemyJobStore(engine=engine)})
        scheduler.start()
        add(scheduler)
        with watched(scheduler) as seen:
            wait_for_reading(seen)
            assert seen.value("scheduler_jobs", jobstore="default") == 0
            assert last_read(seen) is None
            scheduler.turn()
            assert next_and_withdrawn(seen) == (NEVER.timestamp(), None)
            assert last_read(seen)

    @pytest.mark.usefixtures("poll_often")
    def test_a_database_for_each_thread(self) -> None:
        """A database that another thread would not see is not read in another thread."""
        with watched(
            scenes.by_hand(jobstores={"default": SQLAlchemyJobStore("sqlite://")})
        ) as seen:
            seen.scheduler.start()
            add(seen.scheduler)
            seen.scheduler.turn()
            time.sleep(5 * SOON)  # in which a reading would have found nothing
            wait_for_reading(seen)
            assert next_and_withdrawn(seen) == (NEVER.timestamp(), None)
            assert (seen.own_errors(), seen.errors()) == ({}, {})

    @pytest.mark.parametrize(
        "arguments",
        [{"timeout": 0}, {"creator": lambda: sqlite3.connect(":memory:")}],
        ids=["that do not wait", "that are not what the URL says"],
    )
    def test_files(self, tmp_path: Path, arguments: dict[str, Any]) -> None:
        """SQLite is read only if it has a file, and if its writers wait for readers."""
        options: dict[str, Any] = {"pool_size": 1, "max_overflow": 0}
        options |= arguments if "creator" in arguments else {"connect_args": arguments}
        store = SQLAlchemyJobStore(f"sqlite:///{tmp_path / 'jobs'}", engine_options=options)
        with watched(scenes.by_hand(jobstores={"default": store})) as seen:
            seen.scheduler.start()
            add(seen.scheduler)
            wait_for_reading(seen)
            assert last_read(seen) is None
            seen.scheduler.turn()
            assert last_read(seen)
            assert next_and_withdrawn(seen) == (NEVER.timestamp(), None)
            assert (seen.own_errors(), seen.errors()) == ({}, {})
        store.engine.dispose()


@pytest.mark.usefixtures("poll_often")
class TestEngineOfTheUser:
    def test_listeners(self, tmp_path: Path) -> None:
        """Queries reach no listener of the engine, but connections are made as its own are."""
        statements: list[str] = []
        connected: list[str] = []
        engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'jobs'}", pool_size=1)

        def note(names: list[str]) -> Callable[..., None]:
            return lambda *_: names.append(threading.current_thread().name)

        sqlalchemy.event.listen(engine, "before_cursor_execute", note(statements))
        sqlalchemy.event.listen(engine, "connect", note(connected))
        with watched(background(SQLAlchemyJobStore(engine=engine))) as seen:
            seen.scheduler.start()
            until(lambda: connected.count("apscheduler-telemetry") >= 3)
            assert "apscheduler-telemetry" not in statements
            assert seen.own_errors() == {}
        engine.dispose()

    @pytest.mark.parametrize("kind", [POSTGRES])
    def test_what_listeners_do(self, place: Any) -> None:
        """A table that is found by a setting of a listener is found by telemetry as well."""
        engine = sqlalchemy.create_engine(place.server.url())

        def use_schema(connection: Any, _: Any) -> None:
            with connection.cursor() as cursor:
                cursor.execute(f"set search_path = {place.name}")
            connection.commit()

        sqlalchemy.event.listen(engine, "connect", use_schema)
        place.server.execute(f"create schema {place.name}")
        with watched(background(SQLAlchemyJobStore(engine=engine))) as seen:
            seen.scheduler.start()
            until(lambda: last_read(seen))
            assert place.server.execute(f"select id from {place.name}.apscheduler_jobs") == []
            assert seen.value("jobstore_read_failures_total", jobstore="default") == 0

    def test_a_subclass_with_a_way_of_its_own(self, tmp_path: Path) -> None:
        """A table that several schedulers share is read as the store reads it, once."""

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
            assert next_and_withdrawn(seen, "mine") == (NEVER.timestamp(), None)
            assert next_and_withdrawn(seen, "yours") == (None, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 1
        store.engine.dispose()


@remote
def test_no_connection_is_kept(place: Any, kind: str) -> None:
    """Between two readings telemetry has no connection."""

    def connections() -> set[Any]:
        if kind == "redis":
            return {client["id"] for client in place.server.client.client_list()}
        rows = place.server.execute(
            "select pid from pg_stat_activity"
            " where pid <> pg_backend_pid() and backend_type = 'client backend'"
        )
        return {pid for (pid,) in rows}

    others = connections()
    with running(place) as seen:
        seen.scheduler.get_jobs()
        wait_for_reading(seen)
        # Soon, as PostgreSQL takes a moment to end a session.
        until(lambda: len(connections() - others) == 1)


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "apscheduler-telemetry"]


@pytest.mark.usefixtures("poll_often")
class TestThread:
    """The thread that reads stores keeps nothing alive, and ends by itself."""

    def test_ends_with_the_scheduler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends when the scheduler is shut down, and starts again with it."""
        monkeypatch.setattr(BackgroundWorker, "IDLE_SECONDS", SOON)
        with watched(background(File(tmp_path).store())) as seen:
            for _ in range(2):
                seen.scheduler.start()
                until(readers)
                seen.scheduler.shutdown()
                until(lambda: not readers())

    def test_holds_up_no_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A store that does not answer telemetry does not delay the start of the scheduler."""
        started = threading.Event()

        def fetch_next_runs(reader: SQLAlchemyReader) -> Any:
            assert started.wait(jobs.PATIENCE)
            return {}

        monkeypatch.setattr(SQLAlchemyReader, "fetch_next_runs", fetch_next_runs)
        with watched(background(File(tmp_path).store())) as seen:
            seen.scheduler.start()
            started.set()
            until(lambda: last_read(seen))
            assert seen.own_errors() == {}
            assert seen.value("jobstore_read_failures_total", jobstore="default") == 0

    def test_ends_with_uninstrument(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends with `uninstrument`; instrumented again, another thread reads the store."""
        monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL", 1e6)
        with watched(background(File(tmp_path).store())) as seen:
            seen.scheduler.start()
            until(lambda: last_read(seen))
            seen.telemetry.uninstrument()
            until(lambda: not readers())
            with watched(seen.scheduler) as again:
                until(lambda: last_read(again))

    def test_keeps_no_scheduler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A scheduler that is no longer referred to is freed, though a reading is scheduled."""
        monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL", 1e6)
        scheduler = scenes.by_hand(jobstores={"default": File(tmp_path).store()})
        registry = CollectorRegistry()
        telemetry = instrument(scheduler, registry=registry)
        scheduler.start()
        wait_for_reading(Watched(scheduler, telemetry, registry))
        assert recorder_of(telemetry).jobstores()["default"].last_read_at
        alive = weakref.ref(scheduler)
        del scheduler, telemetry

        def is_gone() -> bool:
            gc.collect()
            return alive() is None

        until(is_gone)

    def test_not_in_a_fork(self, tmp_path: Path) -> None:
        """A child of a fork reads nothing, as it must not use its parent's connections."""
        with watched(background(File(tmp_path).store())) as seen:
            seen.scheduler.start()
            until(lambda: last_read(seen))
            before = last_read(seen)
            child = os.fork()
            if child == 0:
                try:
                    poller = poller_of(seen)
                    time.sleep(3 * SOON)
                    poller._poll_and_reschedule()
                    poller._worker.submit("adapter", lambda: None)  # which starts a thread again
                    time.sleep(3 * SOON)
                    read = recorder_of(seen.telemetry).jobstores()["default"].last_read_at
                    os._exit(0 if read is not None and read <= (before or 0) + SOON else 1)
                finally:
                    os._exit(2)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0

    @pytest.mark.parametrize("kind", [POSTGRES])
    def test_keeps_no_process(self, place: Any, proxy: Proxy) -> None:
        """A process ends though its store does not answer."""
        code = f"""
import sys, time
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
JobStorePoller.POLL_INTERVAL = 0.01
scheduler = BackgroundScheduler()
scheduler.add_jobstore(SQLAlchemyJobStore({place.server.url(proxy.port)!r}))
instrument(scheduler)
scheduler.start()
print("started", flush=True)
sys.stdin.readline()
"""
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            proxy.stall()
            until(lambda: proxy.waiting)
            process.stdin.close()
            assert process.wait(jobs.PATIENCE) == 0


@everywhere
@pytest.mark.slow
class TestRestart:
    def test_of_a_process(self, kind: str, tmp_path: Path, request: Any) -> None:
        """Runs that fell due while no process was running are counted by the next one."""
        where = f"sqlite:///{tmp_path / 'jobs'}"
        if kind == "postgres":
            where = request.getfixturevalue("postgres").url()
        elif kind == "redis":
            where = str(request.getfixturevalue("redis_server").port)
        program = [sys.executable, str(Path(__file__).with_name("restart_app.py"))]
        left = subprocess.run([*program, "leave", where], check=False, timeout=60)
        assert left.returncode == -9
        back = subprocess.run(
            [*program, "return", where], check=True, timeout=60, stdout=subprocess.PIPE, text=True
        )
        outcomes, own_errors = json.loads(back.stdout)
        coalesced, each = {"coalesced": 3, "missed": 1}, {"missed": 4}
        assert outcomes == {
            "plain": coalesced,
            "each": each,
            "replaced": coalesced,
            "replaced-each": each,
            "changed": coalesced,
            "removed": coalesced,
            "paused": {},
        }
        assert own_errors == {}
