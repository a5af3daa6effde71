"""Faults that stop the loop of a scheduler, and what must be reported for each."""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core.model import SchedulerErrorKind
from tests.executors.matrix.schedulers import AsyncIO, Own, Qt, Runtime, Twisted
from tests.helpers.faults import FaultyStore
from tests.helpers.jobs import WAIT_TIMEOUT, nothing
from tests.helpers.metrics import job_states, recorder_of
from tests.helpers.watching import ago, ahead

LATE = 0.3
"""Seconds after which a loop is reported as overdue in these tests."""


class BreakableScheduler:
    """A scheduler whose job store can fail, and the health that its HTTP server reports."""

    def __init__(self, runtime: Runtime, *, start: bool = True) -> None:
        self.runtime = runtime
        self.store = FaultyStore()
        self.scheduler = runtime.scheduler(jobstores={"default": self.store})
        self.telemetry = instrument(self.scheduler, registry=CollectorRegistry())
        self.server = self.telemetry.start_http_server(0)
        if start:
            self.start()

    def start(self) -> None:
        self.runtime.start(self.scheduler)
        self.runtime.until(
            lambda: self.telemetry._exported_scheduler.last_pass_ended_at, "the first pass"
        )

    def add_due(self, seconds: float, func: Callable[[], Any] = nothing) -> None:
        """Add a job that is due after some seconds."""
        self.runtime.call(
            lambda: self.scheduler.add_job(
                func, "interval", hours=1, next_run_time=ahead(seconds), misfire_grace_time=None
            )
        )

    def ran(self) -> bool:
        return any(sum(a.outcomes.values()) for a in job_states(self.telemetry))

    def reasons(self) -> list[str]:
        return [code for code, _ in self.telemetry._exported_scheduler.liveness().reasons]

    def check_served_health(self, *reasons: str) -> None:
        """Check `/health` and `/metrics`: up and 200, or down and 503 for these reasons."""
        url = f"http://127.0.0.1:{self.server.port}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=WAIT_TIMEOUT) as response:
                status, health = response.status, json.load(response)
        except urllib.error.HTTPError as error:
            with error:
                status, health = error.code, json.load(error)
        with urllib.request.urlopen(f"{url}/metrics", timeout=WAIT_TIMEOUT) as response:
            page = response.read().decode()
        (up,) = re.findall(r"(?m)^apscheduler_scheduler_up\{.*\} (.*)$", page)
        codes = [reason["code"] for reason in health["reasons"]]
        assert codes == list(reasons), health["reasons"]
        assert (status, float(up)) == ((503, 0) if reasons else (200, 1))

    def check_overdue_until_wakeup(self) -> None:
        """Check that the loop is overdue and runs nothing until the scheduler is woken up."""
        self.runtime.until(lambda: self.reasons() != [], "the loop to be overdue")
        self.check_served_health("overdue")
        assert not self.ran()
        self.runtime.call(self.scheduler.wakeup)
        self.runtime.until(self.ran, "the run")
        self.check_recovery()

    def check_recovery(self) -> None:
        """Wait until the scheduler is reported as healthy."""
        self.runtime.until(lambda: self.reasons() == [], "recovery")
        self.check_served_health()

    def close(self) -> None:
        if self.scheduler.running:
            self.runtime.call(self.scheduler.shutdown)
            self.runtime.until(lambda: not self.scheduler.running, "the shutdown")
        self.telemetry.uninstrument()


def failed_pass(runtime: Runtime) -> None:
    subject = BreakableScheduler(runtime)
    subject.check_served_health()
    subject.store.faults = {"update_job"}
    subject.add_due(0)
    # A user's loop that does not call `self._process_jobs` is known only by the end of its thread.
    reason = "thread_dead" if isinstance(runtime, Own) else "loop_failed"
    # On a busy machine, the pass may be reported as overdue before it fails.
    runtime.until(lambda: subject.reasons() == [reason], "the failure")
    subject.check_served_health(reason)
    assert subject.scheduler.running
    assert recorder_of(subject.telemetry).scheduler_error_counts()[SchedulerErrorKind.JOBSTORE] == 1
    if isinstance(runtime, (AsyncIO, Twisted, Qt)):
        subject.store.faults.clear()
        runtime.call(subject.scheduler.wakeup)
        subject.check_recovery()
    subject.close()


def lost_timer(runtime: Runtime) -> None:
    subject = BreakableScheduler(runtime)
    lost: list[bool] = []

    def lose() -> None:
        timer = getattr(subject.scheduler, "_timeout", None) or subject.scheduler._delayedcall
        if timer is not None and not subject.ran():
            runtime.lose_timer(subject.scheduler)
            lost.append(True)

    subject.add_due(2 * LATE)
    while not lost:
        runtime.in_loop(lose)
        if subject.ran():  # on a busy machine, the timer may expire first: try again
            subject.close()
            subject = BreakableScheduler(runtime)
            subject.add_due(2 * LATE)
    subject.check_overdue_until_wakeup()
    subject.close()


def left_behind(runtime: Runtime) -> Callable[[], None]:
    subject = BreakableScheduler(runtime)
    subject.check_served_health()

    def check_after_loop() -> None:
        if isinstance(runtime, Qt):  # Qt has no function that says whether its loop runs
            subject.scheduler.wakeup()
            runtime.until(lambda: subject.reasons() != [], "the end")
            subject.check_served_health("overdue")
        else:
            # asyncio.run closes its loop; a reactor only stops.
            is_closed = isinstance(runtime, AsyncIO)
            subject.check_served_health("event_loop_closed" if is_closed else "event_loop_stopped")
        subject.telemetry.uninstrument()

    return check_after_loop


def killed(runtime: Runtime) -> None:
    subject = BreakableScheduler(runtime)
    subject.scheduler._greenlet.kill()
    subject.check_served_health("thread_dead")
    assert subject.scheduler.running
    subject.close()


def killed_early(runtime: Runtime) -> None:
    subject = BreakableScheduler(runtime, start=False)
    subject.scheduler.start()
    subject.scheduler._greenlet.kill()
    subject.check_served_health("thread_dead")
    subject.telemetry.uninstrument()
    again = instrument(subject.scheduler, registry=CollectorRegistry())
    assert [code for code, _ in again._exported_scheduler.liveness().reasons] == ["thread_dead"]
    again.uninstrument()
    subject.scheduler.shutdown()


def blocked(runtime: Runtime) -> None:
    subject = BreakableScheduler(runtime)
    seen: list[str] = []

    def watch() -> None:  # in a real thread, as no greenlet runs while the hub is blocked
        deadline = time.perf_counter() + WAIT_TIMEOUT
        while not seen and time.perf_counter() < deadline:
            seen.extend(subject.reasons())
            time.sleep(0.005)

    thread = threading.Thread(target=watch)
    thread.start()
    subject.add_due(LATE)
    subject.add_due(0, thread.join)
    runtime.until(lambda: seen, "the block to be seen")
    assert seen == ["overdue"]
    runtime.until(lambda: subject.reasons() == [], "recovery")
    subject.close()


def woken_from_a_thread(runtime: Runtime) -> None:
    subject = BreakableScheduler(runtime)
    subject.scheduler.add_job(nothing, next_run_time=ago(0), misfire_grace_time=None)
    subject.check_overdue_until_wakeup()
    subject.close()


FAULT_CHECKS: dict[str, Callable[[Runtime], Any]] = {
    "failed pass": failed_pass,
    "lost timer": lost_timer,
    "left behind": left_behind,
    "killed": killed,
    "killed early": killed_early,
    "blocked": blocked,
    "woken from a thread": woken_from_a_thread,
}
