"""Changes of jobs, runs, scrapes and listeners at the same time, from threads and signals."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from apscheduler import events as ev
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import ConflictingIdError, JobLookupError
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import generate_latest

from tests.helpers.jobs import WAIT_TIMEOUT, nothing
from tests.helpers.metrics import registry_of
from tests.helpers.paths import ROOT
from tests.helpers.rigs import Gate, Rig, hand_driven_rig, live_rig
from tests.helpers.waiting import wait_until

SECONDS = 2.0
"""For how long threads do what they can; on two cores that is some thousand changes and runs."""


def background(**options: Any) -> BackgroundScheduler:
    return BackgroundScheduler(timezone="UTC", **options)


def scrape(rig: Rig) -> None:
    """Read the metrics and the health report."""
    generate_latest(registry_of(rig.telemetry))
    rig.telemetry.health()


def check_events(rig: Rig) -> None:
    """Check that listeners got an event for each run that ended, and for no other."""
    rig.checks_events = False  # of runs that are forgotten, as their job is changed before its turn
    rig.settle()
    names = ("success", "error", "skipped")
    counted = [rig.counts_by_outcome()[name] for name in names]

    def received() -> list[int]:
        return [rig.events_by_outcome()[name] for name in names]

    # A run is counted before listeners get its event.
    wait_until(lambda: sum(received()) >= sum(counted))
    assert received() == counted
    assert counted[0] > 0


class Changes:
    """Adds, changes and removes random jobs, also those that another instance has added."""

    IDS = tuple(f"job-{n}" for n in range(12))

    def __init__(self, rig: Rig, seed: int) -> None:
        self._scheduler = rig.scheduler
        self._random = random.Random(seed)
        self.made = 0
        self._all = (
            *(self._add, self._add, self._once, self._remove, self._modify, self._trigger),
            *(self._reschedule, self._pause, self._resume, self._look),
        )

    def make(self) -> None:
        """Do one thing; that a job is there already, or not any more, is nothing unusual."""
        job_id = self._random.choice(self.IDS)
        try:
            self._random.choice(self._all)(job_id)
        except (JobLookupError, ConflictingIdError):
            return
        self.made += 1

    def _add(self, job_id: str) -> None:
        options: dict[str, Any] = {"max_instances": 2, "misfire_grace_time": None}
        replace = self._random.random() < 0.5
        func = self._random.choice([nothing, _nap, _fail])
        self._scheduler.add_job(
            func, "interval", seconds=0.05, id=job_id, replace_existing=replace, **options
        )

    def _once(self, _: str) -> None:
        self._scheduler.add_job(nothing, misfire_grace_time=None)

    def _remove(self, job_id: str) -> None:
        self._scheduler.remove_job(job_id)

    def _modify(self, job_id: str) -> None:
        self._scheduler.modify_job(job_id, name=f"name {self._random.random()}")

    def _trigger(self, job_id: str) -> None:
        self._scheduler.modify_job(job_id, next_run_time=_now())

    def _reschedule(self, job_id: str) -> None:
        self._scheduler.reschedule_job(job_id, trigger="interval", seconds=0.03)

    def _pause(self, job_id: str) -> None:
        self._scheduler.pause_job(job_id)

    def _resume(self, job_id: str) -> None:
        self._scheduler.resume_job(job_id)

    def _look(self, _: str) -> None:
        self._scheduler.get_jobs()


def all_at_once(enough: Callable[[], bool], *work: Callable[[], Any]) -> None:
    """
    Do each again and again in a thread of its own; what one raises is raised.

    For `SECONDS`, and until it is `enough` where the machine has other things to do.
    """
    end = time.monotonic() + SECONDS
    failures: list[BaseException] = []

    def keep_on(do: Callable[[], Any]) -> None:
        try:
            while (time.monotonic() < end or not enough()) and not failures:
                do()
        except BaseException as failure:  # noqa: BLE001  # whatever it is, it fails the test
            failures.append(failure)

    threads = [threading.Thread(target=keep_on, args=[do], daemon=True) for do in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS + WAIT_TIMEOUT)
        assert not thread.is_alive(), "a deadlock"
    if failures:
        raise failures[0]


@pytest.mark.slow
class TestEverythingAtOnce:
    """Threads change jobs while these run and are scraped; `live_rig` checks the counts."""

    def test_no_count_is_lost_with_many_threads_at_once(self) -> None:
        """No run is lost or counted twice, and the counts agree with the events."""
        with live_rig(background(executors={"default": ThreadPoolExecutor(8)})) as rig:
            changes = [Changes(rig, seed) for seed in range(4)]
            all_at_once(
                lambda: all(c.made > 10 for c in changes),
                *(c.make for c in changes),
                *[lambda: scrape(rig)] * 2,
            )
            rig.scheduler.remove_all_jobs()
            check_events(rig)

    def test_listeners_may_change_jobs_and_scrape(self) -> None:
        """A listener may add, change and remove jobs, and scrape, for any event."""
        with live_rig(background(executors={"default": ThreadPoolExecutor(8)})) as rig:
            back = Changes(rig, 99)
            running = threading.Semaphore(1)

            def within_a_pass() -> bool:
                """
                Return whether this is APScheduler's own thread, during a pass.

                The thread dies if a due job is removed then. Listeners are called there for jobs
                that are finished, and for runs that end before APScheduler adds its callback.
                """
                return (
                    threading.current_thread() is rig.scheduler._thread
                    and rig.scheduler._jobstores_lock._is_owned()
                )

            def call_back(event: Any) -> None:
                # Not because of what it does itself.
                if running.acquire(blocking=False):
                    try:
                        scrape(rig)
                        if not within_a_pass():
                            back.make()
                    finally:
                        running.release()

            rig.scheduler.add_listener(call_back, ev.EVENT_ALL)
            changes = [Changes(rig, seed) for seed in range(3)]
            all_at_once(lambda: back.made > 10, *(c.make for c in changes), lambda: scrape(rig))
            rig.scheduler.remove_listener(call_back)
            # One that is called back still would wait for APScheduler's shutdown, and that for it.
            assert running.acquire(timeout=WAIT_TIMEOUT)
            rig.scheduler.remove_all_jobs()
            check_events(rig)
            assert rig.errors_of("listener") == 0


class TestFromWithin:
    """Scrapes inside a job and inside a listener."""

    @pytest.mark.parametrize("executor", [DebugExecutor, ThreadPoolExecutor])
    def test_scrape_inside_a_job_sees_that_job_running(self, executor: Callable[[], Any]) -> None:
        """A scrape inside a job shows that job as running, and does not block."""
        with hand_driven_rig({"default": executor()}) as rig:
            seen = []
            rig.add(lambda: seen.append(rig.job().running), "interval", seconds=10)
            rig.add(lambda: scrape(rig), "interval", seconds=10, id="scrapes")
            rig.after(10)
            rig.settle()
            assert seen == [1]

    def test_scrape_inside_a_listener_sees_the_run_it_was_called_for(self) -> None:
        """When a listener gets the event of a run, the run is already counted."""
        with hand_driven_rig() as rig:
            seen = []

            def listen(_: Any) -> None:
                scrape(rig)
                seen.append(rig.outcomes())

            rig.scheduler.add_listener(listen, ev.EVENT_JOB_EXECUTED)
            rig.add(nothing, "interval", seconds=10)
            rig.after(10)
            wait_until(lambda: seen)
            assert seen == [{"success": 1}]


class TestHandover:
    """Exceptions between the start of a run in the pool and the return of `submit`."""

    # As of "can't start new thread", and of Ctrl-C.
    @pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
    def test_run_that_a_thread_has_begun_is_lost_when_it_ends(
        self, failure: type[BaseException]
    ) -> None:
        """If `submit` fails after a thread has begun the run, the run is lost when it ends."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.checks_events = False  # APScheduler attaches its callback after that
            submit = rig.scheduler._executors["default"]._pool.submit

            def interrupted(*args: Any) -> None:
                submit(*args)
                gate.wait_for_run()
                raise failure

            rig.scheduler._executors["default"]._pool.submit = interrupted
            rig.add(gate.hold, "interval", seconds=10)
            rig.after(10)  # APScheduler logs it, whatever it is
            assert rig.job().running == 1
            gate.open()
            wait_until(lambda: rig.outcomes() == {"lost": 1})
            assert rig.errors_of("submit") == 1

    def test_run_that_no_thread_has_begun_is_lost(self) -> None:
        """If `submit` fails before a thread has begun the run, it is lost at once."""
        gate = Gate()
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            rig.checks_events = False
            rig.add(gate.hold, "interval", seconds=10, id="first", max_instances=2)
            rig.after(10)
            gate.wait_for_run()
            rig.scheduler.remove_job("first")
            submit = rig.scheduler._executors["default"]._pool.submit

            def fails(*args: Any) -> None:
                submit(*args)
                raise RuntimeError

            rig.scheduler._executors["default"]._pool.submit = fails
            ran = threading.Event()
            rig.add(ran.set, "interval", seconds=10)
            rig.after(10)
            assert rig.outcomes() == {"lost": 1}
            gate.open()
            assert ran.wait(WAIT_TIMEOUT)
            rig.settle()
            assert rig.outcomes() == {"lost": 1}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
class TestSignals:
    @pytest.mark.slow
    def test_signal_handler_that_scrapes_waits_for_no_lock(self) -> None:
        """A signal handler can scrape without a deadlock, whatever line it interrupts."""
        done = subprocess.run(
            [sys.executable, "-m", "tests.applications.read_in_signal_handler"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "complete\n"), done.stderr


def _nap() -> None:
    time.sleep(0.002)


def _fail() -> None:
    raise ValueError


def _now() -> datetime:
    return datetime.now(timezone.utc)
