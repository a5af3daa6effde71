"""The state of a scheduler; scrapes do not touch its stores and locks."""

from __future__ import annotations

import inspect
import threading
import time

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from apscheduler_telemetry.adapters.apscheduler3.loop_liveness import OVERDUE_SECONDS
from tests.helpers import jobs
from tests.helpers.faults import FaultyStore
from tests.helpers.loops import Monotonic, add_due, driven, state, store_of
from tests.helpers.metrics import adapter_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.waiting import wait_until
from tests.helpers.watching import watched


class TestState:
    def test_scheduler_that_was_not_started_is_stopped(self) -> None:
        """A scheduler that was not started is stopped, and not up."""
        with watched(BackgroundScheduler()) as seen:
            assert (seen.up(), state(seen), seen.reasons()) == (0, "stopped", ["stopped"])
            assert seen.value("scheduler_start_timestamp_seconds") is None
            assert seen.value("scheduler_last_wakeup_timestamp_seconds") is None

    @pytest.mark.parametrize("before", [True, False], ids=["before start", "after start"])
    def test_running_scheduler_is_up(self, before: bool) -> None:
        """A scheduler whose thread runs is up, whenever it was instrumented."""
        scheduler = BackgroundScheduler()
        if not before:
            scheduler.start()
        with watched(scheduler) as seen:
            if before:
                scheduler.start()
            assert (seen.up(), state(seen), seen.reasons()) == (1, "running", [])

    def test_paused_scheduler_is_up(self) -> None:
        """A paused scheduler is up, and never overdue."""
        with watched(hand_driven_scheduler()) as seen:
            clock = Monotonic(seen)
            seen.scheduler.start(paused=True)
            assert (seen.up(), state(seen)) == (1, "paused")
            seen.scheduler.resume()
            seen.scheduler.turn()
            assert (seen.up(), state(seen)) == (1, "running")
            add_due(seen)
            seen.scheduler.turn()
            seen.scheduler.pause()
            clock.now += 1e6
            assert (seen.up(), state(seen)) == (1, "paused")
            seen.scheduler.resume()
            assert (seen.up(), state(seen)) == (1, "running")
            clock.now += OVERDUE_SECONDS + 1  # without a pass
            assert (seen.up(), seen.reasons()) == (0, ["overdue"])

    def test_paused_thread_is_up(self) -> None:
        """A paused scheduler with a thread is up."""
        with watched(BackgroundScheduler()) as seen:
            seen.scheduler.start(paused=True)
            assert (seen.up(), state(seen)) == (1, "paused")
            seen.scheduler.resume()
            wait_until(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
            assert (seen.up(), state(seen)) == (1, "running")

    def test_scheduler_is_up_again_after_a_restart(self) -> None:
        """A scheduler that was shut down is stopped, and up again when it is started again."""
        # Not with a pool, which APScheduler cannot start again.
        executors = {"default": DebugExecutor()}
        with watched(BackgroundScheduler(executors=executors)) as seen:
            seen.scheduler.start()
            seen.scheduler.shutdown()
            assert (seen.up(), state(seen), seen.reasons()) == (0, "stopped", ["stopped"])
            seen.scheduler.start()
            assert (seen.up(), state(seen)) == (1, "running")
            add_due(seen)
            wait_until(lambda: seen.runs() == {"success": 1})

    def test_start_and_last_pass_have_wall_clock_times(self) -> None:
        """The start and the end of the last pass have wall clock times."""
        with watched(hand_driven_scheduler()) as seen:
            adapter_of(seen.telemetry)._scheduler_loop._clock = lambda: 100.0
            seen.scheduler.start()
            adapter_of(seen.telemetry)._scheduler_loop._clock = lambda: 200.0
            seen.scheduler.turn()
            assert seen.value("scheduler_start_timestamp_seconds") == 100
            assert seen.value("scheduler_last_wakeup_timestamp_seconds") == 200
            seen.scheduler.shutdown()
            seen.scheduler.start()
            assert seen.value("scheduler_start_timestamp_seconds") == 200

    def test_start_of_a_running_scheduler_is_when_it_was_instrumented(self) -> None:
        """If the scheduler already ran, its start is the time of `instrument`."""
        scheduler = hand_driven_scheduler()
        scheduler.start()
        before = time.time()
        with watched(scheduler) as seen:
            assert before <= (seen.value("scheduler_start_timestamp_seconds") or 0) <= time.time()


class TestScrape:
    def test_scrape_never_touches_a_job_store(self) -> None:
        """A scrape and a health check do not access a job store."""
        with driven() as seen:
            add_due(seen)
            seen.scheduler.turn()
            store_of(seen).faults = {
                name for name, _ in inspect.getmembers(FaultyStore, inspect.isfunction)
            }
            store_of(seen).calls.clear()
            assert seen.up() == 1
            assert seen.telemetry.health()["jobs"][0]["last_outcome"] == "success"
            assert store_of(seen).calls == []
            assert seen.own_errors() == {}

    def test_scrape_does_not_wait_for_locks_of_the_scheduler(self) -> None:
        """A scrape does not wait for locks of APScheduler, which a slow store may hold."""
        with driven() as seen:
            add_due(seen)
            scheduler = seen.scheduler
            done = threading.Event()

            def scrape() -> None:
                seen.up()
                seen.telemetry.health()
                done.set()

            with scheduler._jobstores_lock, scheduler._executors_lock, scheduler._listeners_lock:
                thread = threading.Thread(target=scrape)
                thread.start()
                assert done.wait(jobs.WAIT_TIMEOUT)
            thread.join()
