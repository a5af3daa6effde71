"""Schedulers that are shut down and started again in the same process."""

from __future__ import annotations

import threading
from datetime import timezone

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers import jobs
from tests.helpers.paths import ROOT
from tests.helpers.schedulers import HandDriven
from tests.helpers.scripts import output_of_script


@pytest.mark.slow
class TestHealthAfterRestart:
    """The health of a scheduler right after it was started again."""

    def test_is_not_overdue_before_the_first_pass(self) -> None:
        """The time during which the scheduler was stopped does not make it overdue."""
        written, errors = output_of_script(
            f"""
            import sys, time
            sys.path.insert(0, {str(ROOT)!r})
            elapsed, monotonic = 0.0, time.monotonic
            time.monotonic = lambda: monotonic() + elapsed

            from apscheduler.events import EVENT_SCHEDULER_STARTED
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument
            from tests.helpers.schedulers import hand_driven_scheduler

            def show_health(event):
                print(telemetry.health()["reasons"])

            scheduler = hand_driven_scheduler(timezone="UTC")
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.add_listener(show_health, EVENT_SCHEDULER_STARTED)
            scheduler.add_job(print, "interval", seconds=30)
            scheduler.start()
            scheduler.turn()
            elapsed += 42
            print([reason["code"] for reason in telemetry.health()["reasons"]])
            scheduler.shutdown()
            elapsed += 3600
            scheduler.start()
            scheduler.shutdown()
            """
        )
        assert errors == ""
        assert written.splitlines() == ["[]", "['overdue']", "[]"]


class TestThreadThatGetsTheIdOfADeadThread:
    """Python may give the identifier of a thread that has ended to a new thread."""

    def test_scheduler_is_alive_in_the_new_thread(self) -> None:
        """A scheduler whose thread has ended is healthy again when another thread runs it."""
        scheduler = HandDriven(executors={"default": DebugExecutor()}, timezone=timezone.utc)
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.start()

        def pass_in_thread() -> tuple[int, list[str]]:
            """Return the id of a thread that passes over due jobs, and what is wrong meanwhile."""
            found: list[tuple[int, list[str]]] = []

            def run() -> None:
                scheduler.turn()
                found.append((threading.get_ident(), reasons()))

            thread = threading.Thread(target=run)
            thread.start()
            thread.join(jobs.WAIT_TIMEOUT)
            return found[0]

        def reasons() -> list[str]:
            return [reason["code"] for reason in telemetry.health()["reasons"]]

        try:
            former, _ = pass_in_thread()
            for _ in range(1000):
                assert reasons() == ["thread_dead"]
                ident, found = pass_in_thread()
                assert found == []
                if ident == former:
                    break
                former = ident
            else:
                pytest.skip("this Python gives no identifier to two threads")
        finally:
            telemetry.uninstrument()
            scheduler.shutdown()
