"""The ways in which loops of the matrix die, and what must be reported then."""

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
from tests.executors.matrix.schedulers import AsyncIO, Own, Qt, Twisted, World
from tests.helpers.faults import FaultyStore
from tests.helpers.jobs import PATIENCE, nothing
from tests.helpers.metrics import job_states, recorder_of
from tests.helpers.watching import ago, ahead

LATE = 0.3
"""Seconds after which a loop counts as overdue here."""


class Patient:
    """A scheduler on a store that can fail, to be broken, and its health as it is served."""

    def __init__(self, world: World, *, start: bool = True) -> None:
        self.world = world
        self.store = FaultyStore()
        self.scheduler = world.scheduler(jobstores={"default": self.store})
        self.telemetry = instrument(self.scheduler, registry=CollectorRegistry())
        self.server = self.telemetry.start_http_server(0)
        if start:
            self.start()

    def start(self) -> None:
        self.world.start(self.scheduler)
        self.world.until(
            lambda: self.telemetry._exported_scheduler.last_pass_ended_at, "the first pass"
        )

    def add_due(self, seconds: float, func: Callable[[], Any] = nothing) -> None:
        """Add a job that is due in so many seconds."""
        self.world.call(
            lambda: self.scheduler.add_job(
                func, "interval", hours=1, next_run_time=ahead(seconds), misfire_grace_time=None
            )
        )

    def ran(self) -> bool:
        return any(sum(a.outcomes.values()) for a in job_states(self.telemetry))

    def reasons(self) -> list[str]:
        return [code for code, _ in self.telemetry._exported_scheduler.liveness().reasons]

    def is_told(self, *reasons: str) -> None:
        """Check what is served: 200 and up, or 503 and down for these reasons."""
        url = f"http://127.0.0.1:{self.server.port}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=PATIENCE) as answer:
                status, health = answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                status, health = error.code, json.load(error)
        with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as answer:
            (up,) = re.findall(r"(?m)^apscheduler_scheduler_up\{.*\} (.*)$", answer.read().decode())
        codes = [reason["code"] for reason in health["reasons"]]
        assert codes == list(reasons), health["reasons"]
        assert (status, float(up)) == ((503, 0) if reasons else (200, 1))

    def close(self) -> None:
        if self.scheduler.running:
            self.world.call(self.scheduler.shutdown)
            self.world.until(lambda: not self.scheduler.running, "the shutdown")
        self.telemetry.uninstrument()


def failed_pass(world: World) -> None:
    patient = Patient(world)
    patient.is_told()
    patient.store.faults = {"update_job"}
    patient.add_due(0)
    world.until(lambda: patient.reasons() != [], "the failure")
    # A loop of the user's that does not call its own method is known by its end only.
    patient.is_told("thread_dead" if isinstance(world, Own) else "loop_failed")
    assert patient.scheduler.running
    assert recorder_of(patient.telemetry).scheduler_error_counts()[SchedulerErrorKind.JOBSTORE] == 1
    if isinstance(world, (AsyncIO, Twisted, Qt)):
        patient.store.faults.clear()
        world.call(patient.scheduler.wakeup)
        world.until(lambda: patient.reasons() == [], "recovery")
        patient.is_told()
    patient.close()


def lost_timer(world: World) -> None:
    patient = Patient(world)
    lost: list[bool] = []

    def lose() -> None:
        timer = getattr(patient.scheduler, "_timeout", None) or patient.scheduler._delayedcall
        if timer is not None and not patient.ran():
            world.lose_timer(patient.scheduler)
            lost.append(True)

    patient.add_due(2 * LATE)
    while not lost:
        world.in_loop(lose)
        if patient.ran():  # it was faster, on a busy machine
            patient.close()
            patient = Patient(world)
            patient.add_due(2 * LATE)
    world.until(lambda: patient.reasons() != [], "the loss")
    patient.is_told("overdue")
    assert not patient.ran()
    world.call(patient.scheduler.wakeup)
    world.until(patient.ran, "the run")
    world.until(lambda: patient.reasons() == [], "recovery")
    patient.is_told()
    patient.close()


def left_behind(world: World) -> Callable[[], None]:
    patient = Patient(world)
    patient.is_told()

    def look() -> None:
        if isinstance(world, Qt):  # which cannot be asked whether it turns
            patient.scheduler.wakeup()
            world.until(lambda: patient.reasons() != [], "the end")
            patient.is_told("overdue")
        else:
            closed = isinstance(world, AsyncIO)  # by asyncio.run; a reactor only stops
            patient.is_told("event_loop_closed" if closed else "event_loop_stopped")
        patient.telemetry.uninstrument()

    return look


def killed(world: World) -> None:
    patient = Patient(world)
    patient.scheduler._greenlet.kill()
    patient.is_told("thread_dead")
    assert patient.scheduler.running
    patient.close()


def killed_early(world: World) -> None:
    patient = Patient(world, start=False)
    patient.scheduler.start()
    patient.scheduler._greenlet.kill()
    patient.is_told("thread_dead")
    patient.telemetry.uninstrument()
    again = instrument(patient.scheduler, registry=CollectorRegistry())
    assert [code for code, _ in again._exported_scheduler.liveness().reasons] == ["thread_dead"]
    again.uninstrument()
    patient.scheduler.shutdown()


def blocked(world: World) -> None:
    patient = Patient(world)
    seen: list[str] = []

    def look() -> None:  # a thread that is one, as the hub does not turn
        deadline = time.perf_counter() + PATIENCE
        while not seen and time.perf_counter() < deadline:
            seen.extend(patient.reasons())
            time.sleep(0.005)

    thread = threading.Thread(target=look)
    thread.start()
    patient.add_due(LATE)
    patient.add_due(0, thread.join)
    world.until(lambda: seen, "the block to be seen")
    assert seen == ["overdue"]
    world.until(lambda: patient.reasons() == [], "recovery")
    patient.close()


def woken_from_a_thread(world: World) -> None:
    patient = Patient(world)
    patient.scheduler.add_job(nothing, next_run_time=ago(0), misfire_grace_time=None)
    world.until(lambda: patient.reasons() != [], "the loss")
    patient.is_told("overdue")
    assert not patient.ran()
    world.call(patient.scheduler.wakeup)
    world.until(patient.ran, "the run")
    world.until(lambda: patient.reasons() == [], "recovery")
    patient.is_told()
    patient.close()


BREAKS: dict[str, Callable[[World], Any]] = {
    "failed pass": failed_pass,
    "lost timer": lost_timer,
    "left behind": left_behind,
    "killed": killed,
    "killed early": killed_early,
    "blocked": blocked,
    "woken from a thread": woken_from_a_thread,
}
