"""Triggers of the user's own classes, which are asked by APScheduler only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.cron import CronTrigger

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import ObservedIntervals
from tests.helpers import jobs
from tests.helpers.clocks import START, freeze_time
from tests.helpers.metrics import errors_of
from tests.helpers.rigs import HandRig, hand_driven_rig, live_rig
from tests.helpers.schedulers import HandDriven
from tests.helpers.triggers import Every, cron, every
from tests.helpers.waiting import wait_until

UTC = timezone.utc
TEN_MINUTES = timedelta(minutes=10)
questions: list[tuple[int, datetime | None, datetime]] = []
"""What triggers were asked, and in which thread."""


def note(previous: datetime | None, now: datetime) -> None:
    questions.append((threading.get_ident(), previous, now))


class EveryMinute(BaseTrigger):
    """Notes what it is asked, and cannot be copied."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        note(previous, now)
        return now if previous is None else previous + timedelta(minutes=1)

    def __deepcopy__(self, _: Any) -> Any:
        raise NotImplementedError

    __copy__: Any = __deepcopy__


class OwnCron(CronTrigger):
    """A subclass of one of APScheduler's triggers."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        note(previous, now)
        at: datetime | None = super().get_next_fire_time(previous, now)
        return at


TRIGGERS: dict[str, Callable[[], BaseTrigger]] = {
    "own class": EveryMinute,
    "subclass": lambda: OwnCron(minute="*", timezone=UTC),
    "part of or": lambda: OrTrigger([cron(minute="0"), EveryMinute()]),
    "part of and": lambda: AndTrigger([cron(minute="*"), EveryMinute()]),
    "deep inside": lambda: OrTrigger([cron(minute="0"), AndTrigger([OrTrigger([EveryMinute()])])]),
}


class Unpicklable(BaseTrigger):
    """Raises when it is pickled, and cannot be compared either."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        raise NotImplementedError

    def __reduce_ex__(self, _: Any) -> Any:
        raise self.error

    __eq__ = __reduce_ex__
    __hash__ = None  # type: ignore[assignment]


WRAPS: dict[str, Callable[[BaseTrigger], BaseTrigger]] = {
    "alone": lambda own: own,
    "part of or": lambda own: OrTrigger([own]),
}


def reschedule(rig: HandRig, trigger: BaseTrigger) -> None:
    rig.scheduler.reschedule_job("job", trigger=trigger)


def modify(rig: HandRig, trigger: BaseTrigger) -> None:
    rig.scheduler.modify_job("job", trigger=trigger)


def replace(rig: HandRig, trigger: BaseTrigger) -> None:
    add(rig, trigger, replace_existing=True)


class ByTheClock(BaseTrigger):
    """Fires ten minutes after it is asked, whatever it is asked."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return datetime.now(UTC) + TEN_MINUTES


class Answering(BaseTrigger):
    """Fires now and then some seconds after the run before, as a list says."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)
        self.answers: dict[datetime, datetime] = {}

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        if previous is None:
            return now
        if previous not in self.answers:  # APScheduler asks twice
            self.answers[previous] = previous + timedelta(seconds=self.seconds.pop(0))
        return self.answers[previous]


class Never(BaseTrigger):
    """Fires every minute, and after the second run never again, which it says by a sentinel."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        if previous is not None and previous > START:
            return datetime.max.replace(tzinfo=UTC)
        return START if previous is None else previous + timedelta(minutes=1)


class Guarded(BaseTrigger):
    """Waits for a server, with a lock that all of its class share, if it is asked early."""

    lock = threading.Lock()
    gate = threading.Event()

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        with self.lock:
            if now > datetime.now(UTC) + timedelta(seconds=0.5):
                self.gate.wait(jobs.WAIT_TIMEOUT)
            return (previous or now) + timedelta(seconds=0.1)


class Unguarded(Guarded):
    """The same, but it computes, and does without ``with``."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        self.lock.acquire()
        while now > datetime.now(UTC) + timedelta(seconds=0.5) and not self.gate.is_set():
            time.perf_counter()
        self.lock.release()
        return (previous or now) + timedelta(seconds=0.1)


def memory(_: Path) -> Any:
    return MemoryJobStore()


def sqlite(path: Path) -> Any:
    pytest.importorskip("sqlalchemy")
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

    return SQLAlchemyJobStore(f"sqlite:///{path / 'jobs.sqlite'}")


stores = pytest.mark.parametrize("store", [memory, sqlite])


@pytest.fixture
def rig() -> Iterator[HandRig]:
    with hand_driven_rig() as rig:
        yield rig


def add(rig: HandRig, trigger: BaseTrigger, **options: Any) -> Any:
    return rig.add(jobs.nothing, trigger, **options)


def turn(rig: HandRig, seconds: float = 0.0) -> tuple[float, float] | None:
    """Run a pass after some seconds, and return the intervals."""
    rig.after(seconds)
    rig.settle()
    intervals: tuple[float, float] | None = rig.job().interval_range
    return intervals


class TestAskedByAPSchedulerOnly:
    """A trigger may wait, hold locks, take its answers out of a queue, or go by the clock."""

    def drive(self, scheduler: HandDriven, clock: Any, trigger: BaseTrigger) -> list[Any]:
        """Let a scheduler do all for which a trigger could be asked; return the questions."""
        questions.clear()
        options: dict[str, Any] = {"id": "job", "misfire_grace_time": None, "max_instances": 9}
        job = scheduler.add_job(jobs.nothing, trigger, **options)
        for seconds in (0, 60, 60, 600):  # the last of them coalesces
            clock.advance(seconds)
            scheduler.turn()
        job.modify(next_run_time=clock.now)
        scheduler.turn()
        clock.advance(600)
        scheduler.add_job(jobs.nothing, trigger, replace_existing=True, **options)
        clock.advance(600)
        job.pause()
        job.resume()
        job.modify(executor="none")
        clock.advance(600)
        scheduler.turn()  # removes it, as there is no such executor
        scheduler.add_job(jobs.nothing, trigger, next_run_time=clock.now, **options)
        clock.advance(600)
        scheduler.remove_job("job")
        return list(questions)

    @pytest.mark.parametrize("make", TRIGGERS.values(), ids=TRIGGERS)
    def test_telemetry_asks_nothing(self, make: Callable[[], BaseTrigger], rig: HandRig) -> None:
        """The questions are the same with telemetry and without it, and in the same thread."""
        with freeze_time() as clock:
            scheduler = HandDriven(executors={"default": DebugExecutor()}, timezone=UTC)
            scheduler.start()
            expected = self.drive(scheduler, clock, make())
            scheduler.shutdown()
        assert self.drive(rig.scheduler, rig.clock, make()) == expected
        rig.add(jobs.nothing, cron(minute="0"), id="later")
        wait_until(lambda: rig.job("later").interval_range)  # all tasks before are done
        assert questions == expected
        rig.settle()
        assert rig.outcomes()["coalesced"] == 9
        rig.checks_events = False

    @pytest.mark.parametrize("kind", [Guarded, Unguarded])
    def test_lock_that_a_trigger_holds_while_it_waits_stops_no_scheduler(
        self, kind: type[Guarded]
    ) -> None:
        """The scheduler's loop needs the same lock."""
        kind.gate.clear()
        with live_rig(BackgroundScheduler(timezone=UTC)) as rig:
            rig.add(jobs.nothing, kind(), max_instances=99)
            rig.add(jobs.nothing, "interval", seconds=0.1, id="other", max_instances=99)
            try:
                wait_until(lambda: rig.outcomes("job").get("success", 0) > 15)
                wait_until(lambda: rig.outcomes("other").get("success", 0) > 15)
            finally:
                kind.gate.set()


class TestIntervals:
    """Intervals are those between the runs that APScheduler has set."""

    @stores
    def test_intervals_are_known_from_the_first_run_on(
        self, store: Callable[[Path], Any], tmp_path: Path
    ) -> None:
        """Each run shows the interval to the next one."""
        with hand_driven_rig(jobstores={"default": store(tmp_path)}) as rig:
            add(rig, EveryMinute())
            assert rig.job().interval_range is None
            assert turn(rig) == (60, 60)
            assert turn(rig, 60) == (60, 60)

    @stores
    def test_trigger_that_goes_by_the_clock_has_no_tiny_interval(
        self, store: Callable[[Path], Any], tmp_path: Path
    ) -> None:
        """Asked at once for what follows, it would answer about the same again."""
        with hand_driven_rig(jobstores={"default": store(tmp_path)}) as rig:
            add(rig, ByTheClock())
            assert rig.job().interval_range is None
            assert turn(rig, 600) == (600, 600)
            turn(rig, 600)
            assert turn(rig, 600.5) == (600, 600.5)
            assert errors_of(rig.telemetry).counts()["schedule"] == 0

    def test_only_the_latest_ten_count(self, rig: HandRig) -> None:
        """A trigger may change, or have caught up after a pause."""
        add(rig, Answering(1, 3600, *[300] * 10))
        assert turn(rig) == (1, 1)
        assert turn(rig, 1) == (3600, 3600)
        assert turn(rig, 3600) == (300, 3600)
        for _ in range(8):
            assert turn(rig, 300) == (300, 3600)
        assert turn(rig, 300) == (300, 300)

    def test_time_of_the_applications_own_begins_no_interval(self, rig: HandRig) -> None:
        """It is used only while no other interval is known, as after `add_job`."""
        job = add(rig, Answering(1, 300, 300, 7), next_run_time=START)
        assert turn(rig) == (1, 1)
        assert turn(rig, 1) == (300, 300)
        job.modify(next_run_time=rig.clock.now + timedelta(seconds=290))
        turn(rig, 290)
        assert rig.outcomes() == {"success": 3}
        assert rig.job().interval_range == (300, 300)
        assert turn(rig, 300) == (7, 300)

    def test_late_run_begins_an_interval_where_it_was_due(self, rig: HandRig) -> None:
        """Not where it starts, and also if earlier runs were coalesced into it."""
        add(rig, EveryMinute(), next_run_time=START + timedelta(seconds=7))
        assert turn(rig, 330) == (60, 60)
        assert rig.outcomes() == {"success": 1, "coalesced": 5}
        assert turn(rig, 60) == (60, 60)

    def test_answers_that_are_not_later_make_no_interval(self) -> None:
        """APScheduler runs such a job again at once."""
        observed = ObservedIntervals()
        for next_run in (0, -5):
            observed.add_interval(None, 0, next_run)
            assert observed.interval_range is None
        observed.add_interval(None, 0, 60)
        observed.add_interval(60, 60, 60)
        assert observed.interval_range == (60, 60)

    def test_sentinel_for_never_makes_no_interval(self, rig: HandRig) -> None:
        """A fire time in the year 9999 makes no interval of 8,000 years."""
        add(rig, Never())
        turn(rig)
        assert turn(rig, 60) == (60, 60)

    def test_another_trigger_has_its_own_intervals(self, rig: HandRig) -> None:
        """Those of the one before are forgotten, in both directions."""
        job = add(rig, EveryMinute())
        turn(rig)
        job.reschedule(Answering(1800))
        assert rig.job().interval_range is None
        assert turn(rig) == (1800, 1800)
        job.reschedule(every(20))
        assert rig.job().interval_range == (20, 20)
        assert turn(rig, 20) == (20, 20)
        job.reschedule(EveryMinute())
        assert rig.job().interval_range is None

    @stores
    def test_modified_and_paused_job_keeps_its_intervals(
        self, store: Callable[[Path], Any], tmp_path: Path
    ) -> None:
        """Its trigger is the same, or an equal one that was read from the store."""
        with hand_driven_rig(jobstores={"default": store(tmp_path)}) as rig:
            job = add(rig, EveryMinute())
            turn(rig)
            rig.scheduler.modify_job(job.id, name="renamed")
            rig.scheduler.pause_job(job.id)
            rig.scheduler.resume_job(job.id)
            assert rig.job().interval_range == (60, 60)
            rig.scheduler.modify_job(job.id, next_run_time=rig.clock.now)
            assert turn(rig) == (60, 60)  # and not the rest of the minute

    @stores
    @pytest.mark.parametrize("change", [reschedule, modify, replace])
    @pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
    def test_another_trigger_of_the_same_class_has_its_own_intervals(
        self,
        store: Callable[[Path], Any],
        change: Callable[[HandRig, BaseTrigger], None],
        wrap: Callable[[BaseTrigger], BaseTrigger],
        tmp_path: Path,
    ) -> None:
        """Its class and its text may be the same."""
        with hand_driven_rig(jobstores={"default": store(tmp_path)}) as rig:
            add(rig, wrap(Every(1)))
            assert turn(rig) == (1, 1)
            assert turn(rig, 1) == (1, 1)
            change(rig, wrap(Every(3600)))
            assert rig.job().interval_range is None
            assert turn(rig, 1) == (3600, 3600)
            assert turn(rig, 3600) == (3600, 3600)

    def test_equal_trigger_keeps_the_intervals_in_a_persistent_store(self, tmp_path: Path) -> None:
        """Another object of the same state means the same, also as a part of a combined one."""
        with hand_driven_rig(jobstores={"default": sqlite(tmp_path)}) as rig:
            for wrap in WRAPS.values():
                replace(rig, wrap(Every(60)))
                assert turn(rig) == (60, 60)
                replace(rig, wrap(Every(60)))
                rig.scheduler.modify_job("job", name="renamed")
                assert rig.job().interval_range == (60, 60)
                rig.scheduler.remove_job("job")

    @stores
    def test_trigger_whose_state_changes_keeps_its_intervals(
        self, store: Callable[[Path], Any], tmp_path: Path
    ) -> None:
        """What counts is the state that the loop has stored."""
        with hand_driven_rig(jobstores={"default": store(tmp_path)}) as rig:
            add(rig, Answering(7, 300, 60))
            turn(rig)
            assert turn(rig, 7) == (300, 300)
            rig.scheduler.modify_job("job", name="renamed")
            assert turn(rig, 300) == (60, 300)
            rig.scheduler.modify_job("job", next_run_time=rig.clock.now + timedelta(seconds=30))
            assert rig.job().interval_range == (60, 300)

    @pytest.mark.parametrize("error", [ValueError(), SystemExit(), RecursionError()], ids=repr)
    def test_triggers_that_cannot_be_pickled_are_no_copies(self, error: BaseException) -> None:
        """The intervals start again; Ctrl-C goes its way."""
        assert not triggers.have_same_state(Unpicklable(error), Unpicklable(error))
        with pytest.raises(KeyboardInterrupt):
            triggers.have_same_state(*[Unpicklable(KeyboardInterrupt())] * 2)


class TestDroppedRuns:
    """Runs that were due when a job was changed or removed, for which APScheduler does not ask."""

    @pytest.mark.parametrize("coalesce", [True, False])
    def test_one_is_counted_and_the_rest_reported_once(
        self, coalesce: bool, rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A warning names the job; it is no error of the telemetry."""
        for _ in range(3):
            add(rig, EveryMinute(), coalesce=coalesce, next_run_time=rig.clock.now)
            rig.clock.advance(600)
            rig.scheduler.remove_job("job")
        wait_until(lambda: rig.outcomes() == {"missed": 3})
        [record] = [each for each in caplog.records if each.name == "apscheduler_telemetry"]
        assert "'job'" in record.getMessage()
        assert "only one of them is counted" in record.getMessage()
        assert errors_of(rig.telemetry).counts()["schedule"] == 0
        rig.forgotten = 3

    def test_coalesced_runs_are_those_that_apscheduler_found(self, rig: HandRig) -> None:
        """All of them, as APScheduler asks for them."""
        add(rig, EveryMinute(), coalesce=True)
        turn(rig, 600)
        assert rig.outcomes() == {"success": 1, "coalesced": 10}
