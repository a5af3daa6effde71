"""Servers of job stores that stop, do not respond, are slow, or lose connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")

redis = pytest.importorskip("redis")

from apscheduler.executors.debug import DebugExecutor

from apscheduler_telemetry.core.model import Outcome
from tests.helpers import jobs, watching
from tests.helpers.jobstore_servers import Place, Proxy
from tests.helpers.metrics import recorder_of, sample
from tests.helpers.rigs import Rig, live_rig
from tests.helpers.shared_jobstores import (
    ENDLESS_WAIT,
    POSTGRES,
    add,
    background,
    busy,
    errors_after_recovery,
    failed_readings,
    lateness,
    remote,
    run_now,
    scrape,
    successes,
)
from tests.helpers.waiting import wait_until


@remote
@pytest.mark.usefixtures("poll_often")
class TestFaults:
    """Servers that stop and start, or do not respond."""

    @pytest.fixture
    def rig(self, place: Place, proxy: Proxy) -> Iterator[Rig]:
        with live_rig(background(place.store(proxy.port))) as rig:
            rig.add(jobs.nothing, "interval", hours=1, next_run_time=watching.ago(0))
            wait_until(lambda: successes(rig) == 1)
            wait_until(lambda: recorder_of(rig.telemetry).jobstores()["default"].last_read_at)
            yield rig
            counts = rig.job().outcomes  # not by a scrape, as it may be uninstrumented
            assert {outcome for outcome, count in counts.items() if count} == {Outcome.SUCCESS}

    def test_server_that_stops_is_counted_and_recovers(
        self, rig: Rig, place: Place, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Failures of a stopped server are counted and logged once; afterwards all works."""
        place.server.stop()
        try:
            before = time.time()
            rig.scheduler.wakeup()
            wait_until(lambda: rig.errors_of("jobstore") >= 2)
            wait_until(lambda: failed_readings(rig) >= 3)
            assert scrape(rig) < ENDLESS_WAIT
            # The warning follows the count.
            wait_until(lambda: "could not read the job store" in caplog.text)
            assert caplog.text.count("could not read the job store") == 1
            read = recorder_of(rig.telemetry).jobstores()["default"].last_read_at
            assert read is not None
            assert read <= before + 1
        finally:
            place.server.start()
        wait_until(
            lambda: (
                (recorder_of(rig.telemetry).jobstores()["default"].last_read_at or 0) > before + 0.5
            )
        )
        errors = errors_after_recovery(rig)
        run_now(rig)
        assert rig.errors_of("jobstore") == errors
        assert rig.errors_of("loop") == 0
        assert rig.telemetry.health()["status"] == "healthy"

    def test_idle_connection_that_is_cut_costs_one_retry_at_most(
        self, rig: Rig, proxy: Proxy, kind: str
    ) -> None:
        """An idle connection that is cut costs one retry with SQLAlchemy, none with Redis."""
        assert proxy.cut()
        rig.scheduler.wakeup()
        if kind == "postgres":
            wait_until(lambda: rig.errors_of("jobstore") >= 1)
        errors_after_recovery(rig)
        run_now(rig)
        assert rig.errors_of("loop") == 0

    def test_connection_cut_during_a_query_is_one_error(self, rig: Rig, proxy: Proxy) -> None:
        """A connection that is cut during a query does not end the loop."""
        proxy.stall()
        rig.scheduler.wakeup()
        wait_until(lambda: busy(rig) > 0.2)
        assert scrape(rig) < ENDLESS_WAIT
        proxy.cut()
        proxy.go_on()
        errors_after_recovery(rig)
        run_now(rig)
        assert rig.errors_of("loop") == 0

    def test_silent_server_delays_neither_scrape_nor_uninstrument(
        self, rig: Rig, proxy: Proxy
    ) -> None:
        """A server that does not respond delays neither a scrape nor `uninstrument`."""
        proxy.stall()
        wait_until(lambda: proxy.waiting)  # a message of a reading, as the scheduler sleeps
        assert max(scrape(rig) for _ in range(20)) < ENDLESS_WAIT
        begin = time.perf_counter()
        rig.telemetry.uninstrument()
        assert time.perf_counter() - begin < ENDLESS_WAIT
        proxy.go_on()

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
    def test_store_that_fails_on_the_update_ends_the_loop(
        self, rig: Rig, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store that fails on `update_job` ends the loop, and this is reported."""
        monkeypatch.setattr(jobs, "nothing", place.server.stop)
        try:
            rig.scheduler.add_executor(DebugExecutor(), "inline")
            rig.scheduler.modify_job(
                "job", executor="inline", next_run_time=datetime.now(timezone.utc)
            )
            wait_until(lambda: rig.errors_of("loop") == 1)
            assert rig.errors_of("jobstore") == 1
            wait_until(lambda: sample(rig.telemetry, "apscheduler_scheduler_up") == 0)
            assert rig.telemetry.health()["status"] == "unhealthy"
            wait_until(lambda: failed_readings(rig))
        finally:
            place.server.start()


@pytest.mark.parametrize("kind", [POSTGRES])
@pytest.mark.usefixtures("poll_often")
class TestGoneAway:
    def test_session_ended_by_the_server_costs_one_retry(self, place: Any) -> None:
        """A session that the server ends, as MySQL does after hours, costs one retry, no run."""
        with live_rig(background(place.store())) as rig:
            rig.add(jobs.nothing, "interval", hours=1, next_run_time=watching.ago(0))
            wait_until(lambda: successes(rig) == 1)
            ended = place.server.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
            assert ended
            rig.scheduler.wakeup()
            wait_until(lambda: rig.errors_of("jobstore") >= 1)
            errors_after_recovery(rig)
            run_now(rig)
            assert rig.errors_of("loop") == 0


ONE_CONNECTION: dict[str, Callable[[Proxy], dict[str, Any]]] = {
    "postgres": lambda _: {"pool_size": 1, "max_overflow": 0, "pool_timeout": 1},
    "redis": lambda proxy: {
        "connection_pool": redis.BlockingConnectionPool(
            port=proxy.port, max_connections=1, timeout=1
        )
    },
}


SLOW = 4.0
"""Seconds for which an answer to telemetry is held up; much longer than a busy machine pauses."""


@remote
@pytest.mark.slow
@pytest.mark.usefixtures("poll_often")
class TestSlow:
    def test_slow_readings_leave_the_only_connection_free(
        self, place: Place, proxy: Proxy, kind: str
    ) -> None:
        """Slow readings by telemetry do not use the scheduler's only pooled connection."""
        store = place.store(proxy.port, **ONE_CONNECTION[kind](proxy))
        scheduler = background(store)
        scheduler.start(paused=True)
        scheduler.get_jobs()  # so that its one connection is open, and quick
        late = lateness(scheduler)
        proxy.delay = SLOW
        with live_rig(scheduler, start=False) as rig:
            rig.add(jobs.nothing, "interval", seconds=0.1, coalesce=False)
            scheduler.resume()
            wait_until(lambda: proxy.held >= 2)
            slow = scrape(rig)
            wait_until(lambda: len(late) > 20)
            scheduler.remove_job("job")
            rig.checks_events = False  # of runs that are due by then, as on a busy machine
            proxy.delay = 0  # as APScheduler connects anew when it is shut down
            assert slow < 0.8 * SLOW
            assert rig.errors_of("jobstore") == 0
        assert max(late) < 0.8 * SLOW

    def test_runs_are_as_late_as_without_telemetry(self, place: Place, proxy: Proxy) -> None:
        """If all responses are slow, runs are as late as without telemetry."""
        plain, ours = background(place.store(proxy.port)), None
        other = type(place)(place.server, f"{place.name}_ours")  # type: ignore[call-arg]
        second = Proxy(place.server.port)
        try:
            ours = background(other.store(second.port))
            with live_rig(ours) as rig:
                plain.start()
                for way in (proxy, second):
                    way.slow_down(0.05)
                for attempt in range(3):  # a busy machine may delay one of them, but not each time
                    results = []
                    for scheduler in (plain, ours):
                        late = lateness(scheduler)
                        at = watching.ahead(1)
                        for number in range(2):
                            options = {"misfire_grace_time": None, "replace_existing": True}
                            add(scheduler, f"job{number}", at, **options)
                        results.append(late)
                    wait_until(lambda: all(len(late) == 2 for late in results))  # noqa: B023
                    assert scrape(rig) < ENDLESS_WAIT
                    without, with_telemetry = map(max, results)
                    if with_telemetry < 1.5 * without + 0.5:
                        break
                    assert attempt < 2, results
        finally:
            for way in (proxy, second):
                way.slow_down(0)
            plain.shutdown()
            second.close()
