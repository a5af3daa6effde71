"""Triggers whose coming fire times cannot all be found, and what that keeps from being done."""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.job import Job
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger

from apscheduler_telemetry.adapters.apscheduler3 import look_ahead, time_limit
from apscheduler_telemetry.adapters.apscheduler3.triggers import (
    custom_class_name,
    is_of_apscheduler,
)
from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.metrics import adapter_of, errors_of, recorder_of
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.threads import threads
from tests.helpers.triggers import calendar, cron, every
from tests.helpers.waiting import wait_until

HOUR = timedelta(hours=1)
NEVER_AGREE: dict[str, Callable[[], BaseTrigger]] = {
    "interval and cron": lambda: AndTrigger([every(7200), cron(day_of_week="sat,sun")]),
    "two crons": lambda: AndTrigger([cron(hour="*/2"), cron(day_of_week="sat,sun")]),
    "two intervals": lambda: AndTrigger([every(60), every(90)]),
    "and in and": lambda: AndTrigger([AndTrigger([cron(hour=0), cron(day="*/2")]), cron()]),
    "and in or": lambda: OrTrigger([cron(hour=5), AndTrigger([every(60), every(90)])]),
    "or in and": lambda: AndTrigger([OrTrigger([every(60), every(90)]), cron(hour=0)]),
    "subclass": lambda: type("Both", (AndTrigger,), {})([every(60), every(90)]),
    "part of the user's": lambda: AndTrigger([every(60), cron(hour=0), HalfHourly()]),
}


class HalfHourly(BaseTrigger):
    """A trigger of the user's that never agrees with a full hour."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return (previous or START - HOUR).replace(minute=30) + HOUR


class Hourly(BaseTrigger):
    """Fires every hour; asked for the fire time after `limit`, it does something else."""

    def __init__(self, limit: datetime = START + 3 * HOUR) -> None:
        self.limit = limit

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> Any:
        if previous is None:
            return START
        if previous < self.limit:
            return previous + HOUR
        return self.answer_late(previous)

    def answer_late(self, previous: datetime) -> Any:
        raise NotImplementedError


class Spinning(Hourly):
    """Searches without an end."""

    def answer_late(self, previous: datetime) -> Any:
        while True:
            time.perf_counter()


class SpinningOverErrors(Hourly):
    """Searches without an end, whatever exceptions are raised meanwhile."""

    def answer_late(self, previous: datetime) -> Any:
        while True:
            with contextlib.suppress(Exception):
                time.perf_counter()


class Raising(Hourly):
    """Knows no fire time so far ahead."""

    def answer_late(self, previous: datetime) -> Any:
        raise LookupError(previous)


class Waiting(Hourly):
    """Waits until the test lets it go on."""

    gate = threading.Event()

    def answer_late(self, previous: datetime) -> Any:
        assert self.gate.wait(jobs.WAIT_TIMEOUT)


class Unique(Hourly):
    """Cannot be copied."""

    def __init__(self) -> None:
        super().__init__(START + 1000 * HOUR)
        self.lock = threading.Lock()


class Expensive(Hourly):
    """Notes in which threads it is copied."""

    copied_in: list[threading.Thread] = []  # noqa: RUF012  # as the copies have to share it

    def __deepcopy__(self, _: Any) -> Expensive:
        self.copied_in.append(threading.current_thread())
        return Expensive(START + 1000 * HOUR)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[HandRig]:
    """Start a scheduler that has time for triggers that answer, and expect a failure."""
    monkeypatch.setattr(look_ahead, "MAX_SECONDS", jobs.WAIT_TIMEOUT)
    with hand_driven_rig() as rig:
        rig.failing = {"schedule"}
        yield rig


@pytest.fixture
def impatience(rig: HandRig) -> Iterator[pytest.MonkeyPatch]:
    """Give up on triggers that do not answer soon, until the test undoes this."""
    with pytest.MonkeyPatch.context() as impatience:
        impatience.setattr(look_ahead, "MAX_SECONDS", 0.5)
        yield impatience


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Return what lets `Waiting` go on; at the end it does."""
    Waiting.gate.clear()
    yield Waiting.gate
    Waiting.gate.set()
    wait_until(lambda: "apscheduler-telemetry-trigger" not in threads())


def errors(rig: HandRig) -> int:
    return errors_of(rig.telemetry).counts()["schedule"]


def add(rig: HandRig, trigger: BaseTrigger, job_id: str = "job", **options: Any) -> Any:
    return rig.add(jobs.nothing, trigger, id=job_id, next_run_time=START, **options)


class TestNoCommonFireTime:
    """An `AndTrigger` whose parts never agree again; asked for that, APScheduler never returns."""

    @pytest.mark.parametrize("make", NEVER_AGREE.values(), ids=NEVER_AGREE)
    def test_warning_names_the_job_and_other_jobs_are_not_affected(
        self, make: Callable[[], BaseTrigger], rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A warning names the job and when the scheduler will hang; others are looked at."""
        add(rig, make(), "endless")
        add(rig, cron(minute="0"), "other")
        wait_until(lambda: errors(rig) and rig.job("other").intervals)
        assert errors(rig) == 1
        assert "'endless'" in caplog.text
        assert f"no fire time after {START}" in caplog.text
        assert "without an end" in caplog.text
        wait_until(lambda: "apscheduler-telemetry-trigger" not in threads())

    @pytest.mark.parametrize(
        "trigger",
        [
            AndTrigger([cron(minute="*/30"), cron(minute="0,30")]),
            AndTrigger([every(60), every(60)]),
            AndTrigger([cron(hour=1), DateTrigger(START)]),
        ],
        ids=["crons", "intervals", "ending"],
    )
    def test_parts_that_agree_are_no_problem(self, trigger: BaseTrigger, rig: HandRig) -> None:
        """If they agree, or one of them ends, nothing is reported."""
        add(rig, trigger)
        add(rig, cron(minute="0"), "later")
        wait_until(lambda: rig.job("later").intervals)
        assert errors(rig) == 0
        rig.failing = set()

    def test_dropped_runs_of_other_jobs_are_counted(self, rig: HandRig) -> None:
        """Overdue runs of another job that is replaced are counted."""
        rig.scheduler.pause()
        add(rig, AndTrigger([cron(hour="*/2"), cron(day_of_week="sat,sun")]), "endless")
        add(rig, every(10))
        rig.clock.advance(600)
        rig.add(jobs.nothing, every(10), replace_existing=True, next_run_time=START + HOUR)
        wait_until(lambda: rig.outcomes() == {"missed": 1, "coalesced": 60})
        rig.forgotten = 1


class TestTriggersOfTheUser:
    """Triggers that do not answer as far ahead as they are asked."""

    @pytest.mark.usefixtures("impatience")
    @pytest.mark.parametrize("kind", [Spinning, SpinningOverErrors, Raising])
    def test_what_was_found_is_used_and_the_rest_reported_once(
        self, kind: type[Hourly], rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The intervals up to then are known, and no thread goes on."""
        add(rig, kind())
        wait_until(lambda: rig.job().intervals == (3600, 3600))
        assert errors(rig) == 1
        assert "'job'" in caplog.text
        assert str(START + 3 * HOUR) in caplog.text
        assert "apscheduler-telemetry-trigger" not in threads()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RecursionError])
    def test_any_exception_of_a_trigger_is_named(
        self, error: type[BaseException], rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Be it one that ends a thread, it is named and ends nothing else."""

        class Odd(Hourly):
            def answer_late(self, _: datetime) -> None:
                raise error

        add(rig, Odd())
        add(rig, Hourly(START + 1000 * HOUR), "later")
        wait_until(lambda: rig.job("later").intervals == (3600, 3600))
        assert rig.job().intervals == (3600, 3600)
        assert error.__name__ in caplog.text

    @pytest.mark.usefixtures("impatience")
    def test_trigger_that_is_too_large_is_not_asked(
        self, rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A trigger that cannot be copied in time is not asked, and no thread goes on."""

        class Endless(Hourly):
            def __deepcopy__(self, _: Any) -> Any:
                while True:
                    time.perf_counter()

        add(rig, Endless())
        wait_until(lambda: errors(rig))
        assert "is too large to be copied in a second" in caplog.text
        wait_until(lambda: "apscheduler-telemetry-trigger" not in threads())

    @pytest.mark.usefixtures("impatience")
    def test_copy_that_is_made_too_late_is_not_kept(
        self, rig: HandRig, gate: threading.Event
    ) -> None:
        """What the abandoned thread copies after the time limit is freed again."""
        copies: list[weakref.ref[Hourly]] = []

        class Slow(Hourly):
            def __deepcopy__(self, _: Any) -> Hourly:
                assert gate.wait(jobs.WAIT_TIMEOUT)
                late = Hourly()
                copies.append(weakref.ref(late))
                return late

        add(rig, Slow())
        wait_until(lambda: errors(rig))
        gate.set()
        wait_until(lambda: "apscheduler-telemetry-trigger" not in threads())
        assert [copy() for copy in copies] == [None]

    @pytest.mark.usefixtures("impatience")
    def test_part_of_a_combined_trigger_has_the_same_limit(self, rig: HandRig) -> None:
        """A part of a combined trigger that does not answer has the same limit."""
        add(rig, OrTrigger([cron(minute="0"), Spinning()]))
        wait_until(lambda: rig.job().intervals == (3600, 3600))
        wait_until(lambda: "apscheduler-telemetry-trigger" not in threads())

    def test_trigger_that_raises_is_not_reported_at_every_run(self, rig: HandRig) -> None:
        """It is asked again an hour later at the earliest, and not reported again."""
        trigger = Raising()
        trigger.limit = START
        job = add(rig, trigger)
        wait_until(lambda: errors(rig))
        asked = []
        trigger.limit = START + 1000 * HOUR
        for _ in range(20):
            rig.scheduler.turn()
            rig.settle()
            job.modify(next_run_time=rig.clock.now)
            asked.append(rig.job().intervals)
        assert (errors(rig), set(asked)) == (1, {None})

    def test_trigger_is_asked_again_later(self, rig: HandRig) -> None:
        """When it answers later, the intervals are known."""
        trigger = Raising(START)
        add(rig, trigger)
        wait_until(lambda: errors(rig))
        trigger.limit = START + 1000 * HOUR
        for _ in range(2):
            rig.scheduler.turn()
            rig.settle()
            rig.clock.advance(3600)
        wait_until(lambda: rig.job().intervals == (3600, 3600))

    def test_trigger_that_cannot_be_copied_is_reported_once(
        self, rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its runs are counted all the same, and it is not asked."""
        add(rig, Unique())
        wait_until(lambda: errors(rig))
        for _ in range(5):
            rig.scheduler.turn()
            rig.settle()
            rig.clock.advance(3600)
        assert (rig.outcomes(), errors(rig)) == ({"success": 5}, 1)
        assert "cannot be copied (TypeError)" in caplog.text

    def test_trigger_is_not_copied_in_the_loop(self, rig: HandRig) -> None:
        """A trigger that is expensive to copy is copied in other threads only."""
        Expensive.copied_in.clear()
        add(rig, Expensive(START + 1000 * HOUR))
        wait_until(lambda: rig.job().intervals)
        rig.after(10 * 3600)
        rig.settle()
        assert rig.outcomes() == {"success": 1, "coalesced": 10}
        assert threading.current_thread() not in Expensive.copied_in
        rig.failing = set()

    def test_job_that_is_read_again_is_not_looked_at_again(self, rig: HandRig) -> None:
        """A job that another process moves on has another object of the same trigger each time."""

        class Counted(Expensive):
            copied_in: list[threading.Thread] = []  # noqa: RUF012  # not that of other tests

        job = add(rig, Counted(START + 1000 * HOUR))
        wait_until(lambda: rig.job().intervals)
        for hours in range(1, 6):
            read_again = Job.__new__(Job)
            read_again.__setstate__(job.__getstate__())
            read_again.trigger = copy.copy(job.trigger)
            read_again.next_run_time = START + hours * HOUR
            adapter_of(rig.telemetry)._events.on_job_read(read_again, "default")
        add(rig, Hourly(START + 1000 * HOUR), "later")
        wait_until(lambda: rig.job("later").intervals)
        assert len(Counted.copied_in) == 1
        rig.failing = set()

    def test_slow_part_keeps_no_other_combined_trigger_from_being_asked(
        self, rig: HandRig, impatience: pytest.MonkeyPatch
    ) -> None:
        """It is the class of the part that is not asked for a while."""
        for number in range(look_ahead.MAX_SLOW_SEARCHES):
            add(rig, OrTrigger([cron(minute="0"), Spinning(START)]), f"spinning {number}")
        wait_until(lambda: errors(rig) == look_ahead.MAX_SLOW_SEARCHES)
        impatience.undo()
        add(rig, OrTrigger([cron(minute="0"), Hourly(START + 1000 * HOUR)]), "other")
        wait_until(lambda: rig.job("other").intervals)
        assert errors(rig) == look_ahead.MAX_SLOW_SEARCHES

    @pytest.mark.parametrize("depth", [15, 25, 100])
    def test_deep_combined_trigger_is_looked_at(self, rig: HandRig, depth: int) -> None:
        """However many triggers are inside each other, the application's own part is found."""
        own: BaseTrigger = cron(minute="0")
        custom: BaseTrigger = Hourly(START + 1000 * HOUR)
        for _ in range(depth):
            own, custom = (OrTrigger([part, cron(minute="30")]) for part in (own, custom))
        assert is_of_apscheduler(own)
        assert not is_of_apscheduler(custom)
        assert custom_class_name(custom) == "Hourly"
        add(rig, own, "own")
        add(rig, custom, "custom")
        wait_until(lambda: rig.job("own").intervals and rig.job("custom").intervals)
        rig.failing = set()

    def test_trigger_that_contains_itself_is_reported(self, rig: HandRig) -> None:
        """APScheduler cannot ask it either."""
        trigger = OrTrigger([cron(minute="0")])
        trigger.triggers.append(trigger)
        add(rig, trigger)
        wait_until(lambda: errors(rig))
        add(rig, cron(minute="0"), "later")
        wait_until(lambda: rig.job("later").intervals)
        assert errors(rig) == 1

    def test_waiting_triggers_do_not_keep_others_from_being_asked(
        self, rig: HandRig, gate: threading.Event, impatience: pytest.MonkeyPatch
    ) -> None:
        """A trigger that waits keeps its thread; others are asked in another one."""
        add(rig, Waiting(), "waiting")
        wait_until(lambda: errors(rig))
        impatience.undo()
        add(rig, Hourly(START + 1000 * HOUR), "other")
        wait_until(lambda: rig.job("other").intervals)
        assert rig.job("waiting").intervals == (3600, 3600)
        assert errors(rig) == 1
        gate.set()

    @pytest.mark.usefixtures("impatience")
    def test_threads_that_wait_are_few(
        self, rig: HandRig, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However many triggers wait for ever, a few threads do; each job is reported."""
        monkeypatch.setattr(time_limit, "INTERRUPTION_SECONDS", 0.01)
        monkeypatch.setattr(look_ahead, "MAX_SLOW_SEARCHES", 1_000)
        for number in range(10):
            add(rig, Waiting(START), f"waiting {number}")
        wait_until(lambda: errors(rig) == 10)
        names = [thread.name for thread in threading.enumerate()]
        assert names.count("apscheduler-telemetry-trigger") == time_limit.MAX_ABANDONED_THREADS
        gate.set()

    @pytest.mark.usefixtures("impatience")
    def test_slow_class_of_triggers_is_not_asked_for_a_while(
        self, rig: HandRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """After three triggers of a class that did not answer, further ones are not asked."""
        for number in range(6):
            add(rig, Spinning(START), f"spinning {number}")
        wait_until(lambda: errors(rig) == 6)
        assert caplog.text.count("took too long to say") == look_ahead.MAX_SLOW_SEARCHES

    def test_triggers_are_not_asked_in_greenlets(
        self, rig: HandRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Where gevent has replaced threads, one that does not return would hold up all others."""
        monkey = SimpleNamespace(is_module_patched=lambda name: name == "threading")
        monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
        add(rig, Spinning(START))
        wait_until(lambda: errors(rig))
        assert "gevent has replaced threads" in caplog.text

    @pytest.mark.usefixtures("impatience")
    def test_uninstrument_ends_the_threads(self, rig: HandRig) -> None:
        """After `uninstrument`, no trigger is asked any more."""
        add(rig, Spinning())
        wait_until(lambda: "apscheduler-telemetry-trigger" in threads())
        rig.telemetry.uninstrument()
        # Others, which served pages to earlier tests, stay for a minute.
        wait_until(
            lambda: not {"apscheduler-telemetry", "apscheduler-telemetry-trigger"} & threads()
        )
        rig.failing, rig.checks_events = {"schedule"}, False


class TestEndOfTheCalendar:
    """Triggers that come to the year 9999, where some fail and others search without an end."""

    def test_sentinel_for_never_is_no_fire_time(self, rig: HandRig) -> None:
        """A fire time in the year 9999 makes no interval of 8,000 years."""

        class Once(Hourly):
            def answer_late(self, _: datetime) -> datetime:
                return datetime.max.replace(tzinfo=timezone.utc)

        add(rig, Once())
        wait_until(lambda: rig.job().intervals == (3600, 3600))
        rig.failing = set()

    @pytest.mark.parametrize(
        "make",
        [
            lambda: IntervalTrigger(weeks=52_000, timezone="UTC", end_date="9998-01-01"),
            lambda: OrTrigger([IntervalTrigger(weeks=52_000, timezone="UTC")]),
            lambda: cron(year="*/2000", month=1, day=1),
        ],
        ids=["interval", "or", "cron"],
    )
    def test_trigger_without_a_later_fire_time_is_no_problem(
        self, make: Callable[[], BaseTrigger], rig: HandRig
    ) -> None:
        """The last fire time that a datetime can hold is the last one."""
        add(rig, make())
        wait_until(lambda: rig.job().intervals)
        rig.failing = set()

    def test_calendar_interval_trigger_is_not_asked_there(self, rig: HandRig) -> None:
        """`CalendarIntervalTrigger` would search without an end."""
        rig.failing = set()
        trigger = calendar()
        trigger.days, trigger.years = 0, 1000
        add(rig, trigger)
        add(rig, cron(minute="0"), "later")
        wait_until(lambda: rig.job("later").intervals)
        assert errors(rig) == 0


@pytest.mark.usefixtures("impatience")
def test_recorded_jobs_are_all_there(rig: HandRig) -> None:
    """Whatever the trigger, the job itself is known."""
    for kind in (Spinning, Raising, Unique, Waiting):
        add(rig, kind(), kind.__name__)
    labels = {job.label for job in recorder_of(rig.telemetry).snapshots()}
    assert labels == {"Spinning", "Raising", "Unique", "Waiting"}
    Waiting.gate.set()
    wait_until(lambda: errors(rig) >= 3)
