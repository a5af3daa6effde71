"""Loops that have ended or hang: threads, passes that do not end, forks."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler

from apscheduler_telemetry.adapters.apscheduler3.loop_liveness import OVERDUE_SECONDS
from tests.helpers import jobs
from tests.helpers.faults import FaultyStore
from tests.helpers.loops import Monotonic, add_due, driven, end_thread, interrupt, state, store_of
from tests.helpers.rigs import Gate
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.waiting import wait_until
from tests.helpers.watching import Watched, watched


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestDeadThread:
    @staticmethod
    def reasons_in_another_thread(seen: Watched) -> list[str]:
        """Return the reasons that a job sees during a pass in another thread."""
        reasons: list[str] = []
        seen.scheduler.add_job(lambda: reasons.extend(seen.reasons()))
        thread = threading.Thread(target=seen.scheduler.turn)
        thread.start()
        thread.join(jobs.WAIT_TIMEOUT)
        return reasons

    def test_thread_killed_by_its_job_store_is_reported(self) -> None:
        """A thread that its job store ended is reported, although `running` stays true."""
        with watched(BackgroundScheduler(jobstores={"default": FaultyStore()})) as seen:
            store_of(seen).faults = {"update_job"}
            seen.scheduler.start()
            thread = seen.scheduler._thread
            add_due(seen)
            thread.join(jobs.WAIT_TIMEOUT)
            assert not thread.is_alive()
            assert seen.scheduler.running
            assert (seen.up(), state(seen), seen.reasons()) == (0, "running", ["loop_failed"])
            assert seen.telemetry.health()["status"] == "unhealthy"
            assert "Boom" in seen.telemetry.health()["reasons"][0]["message"]
            assert seen.errors() == {"jobstore": 1, "loop": 1}
            assert seen.scheduler._thread is thread

    def test_thread_that_ends_outside_of_a_pass_is_reported(self) -> None:
        """A thread that ended between two passes is reported."""
        with watched(BackgroundScheduler()) as seen:
            end_thread(seen.scheduler, SystemExit)
            assert (seen.up(), state(seen), seen.reasons()) == (0, "running", ["thread_dead"])

    def test_thread_that_is_dead_already_is_reported(self) -> None:
        """A thread that ended before `instrument` is reported."""
        scheduler = BackgroundScheduler()
        end_thread(scheduler, SystemExit)
        with watched(scheduler) as seen:
            assert (seen.up(), seen.reasons()) == (0, ["thread_dead"])

    def test_thread_that_replaces_a_dead_one_counts(self) -> None:
        """A pass in another thread makes the scheduler alive, also if the id is the same."""
        scheduler = hand_driven_scheduler()
        with watched(scheduler) as seen:
            scheduler.start()
            for _ in range(2):
                assert self.reasons_in_another_thread(seen) == []
                assert seen.reasons() == ["thread_dead"]

    def test_thread_of_the_next_start_counts(self) -> None:
        """The thread of a restart counts, also without a health check in between."""
        scheduler = hand_driven_scheduler()
        with watched(scheduler) as seen:
            scheduler.start()
            assert self.reasons_in_another_thread(seen) == []
            scheduler.shutdown()
            scheduler.start()
            assert self.reasons_in_another_thread(seen) == []
            assert seen.reasons() == ["thread_dead"]

    def test_interrupted_blocking_scheduler_is_reported(self) -> None:
        """A `BlockingScheduler` that Ctrl-C has ended is reported, although it stays `running`."""
        scheduler = BlockingScheduler()
        go_on, ended = threading.Event(), threading.Event()

        def main() -> None:
            with suppress(KeyboardInterrupt):
                scheduler.start()
            ended.set()
            go_on.wait(jobs.WAIT_TIMEOUT)

        with watched(scheduler) as seen:
            thread = threading.Thread(target=main)
            thread.start()
            wait_until(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
            assert seen.up() == 1
            interrupt(scheduler, KeyboardInterrupt)
            assert ended.wait(jobs.WAIT_TIMEOUT)
            assert thread.is_alive()
            assert scheduler.running
            assert (seen.up(), seen.reasons()) == (0, ["thread_dead"])
            go_on.set()
            thread.join()

    def test_scheduler_started_again_by_the_user_is_up(self) -> None:
        """After a shutdown and a new start, the scheduler is up."""
        executors = {"default": DebugExecutor()}  # which can be started again
        scheduler = BackgroundScheduler(executors=executors, jobstores={"default": FaultyStore()})
        with watched(scheduler) as seen:
            store_of(seen).faults = {"get_next_run_time"}
            seen.scheduler.start()
            wait_until(lambda: not seen.up())
            store_of(seen).faults.clear()
            seen.scheduler.shutdown()
            seen.scheduler.start()
            assert (seen.up(), seen.reasons()) == (1, [])


class TestOverdue:
    def test_pass_that_lasts_too_long_is_reported(self) -> None:
        """A pass that lasts too long is reported while it lasts."""
        with driven() as seen:
            clock = Monotonic(seen)
            reasons = []

            def hold_up() -> None:
                clock.now += OVERDUE_SECONDS
                reasons.append(seen.reasons())
                clock.now += 1
                reasons.append(seen.reasons())

            add_due(seen, hold_up)
            seen.scheduler.turn()
            assert reasons == [[], ["overdue"]]
            assert seen.reasons() == []

    def test_thread_held_up_by_a_job_is_reported_and_recovers(self) -> None:
        """A loop that an inline job blocks is reported, and recovers."""
        gate = Gate()
        scheduler = BackgroundScheduler(executors={"default": DebugExecutor()})
        with watched(scheduler) as seen:
            clock = Monotonic(seen)
            scheduler.start()
            add_due(seen, gate.hold)
            gate.wait_for_run()
            assert seen.reasons() == []
            clock.now += OVERDUE_SECONDS + 1
            assert (seen.up(), seen.reasons()) == (0, ["overdue"])
            gate.open()
            wait_until(lambda: seen.up() == 1)

    def test_scheduler_without_jobs_is_never_overdue(self) -> None:
        """A scheduler without jobs is never overdue."""
        with driven() as seen:
            clock = Monotonic(seen)
            seen.scheduler.turn()
            clock.now += 1e9
            assert seen.reasons() == []


class TestFork:
    SCRIPT = """
        import json, os, sys
        from apscheduler.schedulers.background import BackgroundScheduler
        from prometheus_client import CollectorRegistry, generate_latest
        from apscheduler_telemetry import instrument

        registry = CollectorRegistry()
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=registry)
        if sys.argv[1] == "start before":
            scheduler.start()
        read, write = os.pipe()
        if os.fork() == 0:
            if sys.argv[1] == "start after":
                scheduler.start()
            health = telemetry.health()
            up = registry.get_sample_value("apscheduler_scheduler_up", {"scheduler": "default"})
            generate_latest(registry)
            os.write(write, json.dumps([up, health]).encode())
            os._exit(0)
        os.wait()
        os.close(write)
        print(os.read(read, 1 << 20).decode())
        print(json.dumps(telemetry.health()["status"]))
    """

    def run(self, when: str) -> tuple[float, Any, str]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(self.SCRIPT), when],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stderr == ""
        child, parent = (json.loads(line) for line in done.stdout.splitlines())
        return child[0], child[1], parent

    def test_child_forked_after_the_start_reports_a_dead_loop(self) -> None:
        """A child that was forked after the start reports a dead loop."""
        up, health, parent = self.run("start before")
        assert up == 0
        assert health["status"] == "unhealthy"
        assert [reason["code"] for reason in health["reasons"]] == ["forked"]
        assert "Start the scheduler after the fork" in health["reasons"][0]["message"]
        assert parent == "healthy"

    def test_scheduler_started_in_the_child_is_up(self) -> None:
        """A scheduler that is started in the child is up there."""
        up, health, parent = self.run("start after")
        assert (up, health["status"], health["reasons"]) == (1, "healthy", [])
        assert parent == "unhealthy"
