"""Restarts: runs that were due while no process ran are counted, whatever changes next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import pytest
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from tests.helpers import jobs
from tests.helpers.clocks import START, FrozenClock, at, freeze_time
from tests.helpers.metrics import check_counts
from tests.helpers.waiting import wait_until
from tests.helpers.watching import Watched, wait_for_reading, watched

pytest.importorskip("sqlalchemy")
from tests.helpers.faults import Boom
from tests.helpers.jobstore_servers import Rows
from tests.helpers.schedulers import hand_driven_scheduler

HOUR = 3600.0
LONG = -3.5 * HOUR
"""When the first of four runs was due, while no process was running: seconds from the restart."""
SOON = START.timestamp() + HOUR / 2
"""The first run that is due after it."""


@pytest.fixture(autouse=True)
def clock() -> Iterator[FrozenClock]:
    with freeze_time() as clock:
        yield clock


class Restart:
    """What a former process has stored, and the process that comes after it."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def stored(self, job_id: str = "job", seconds: float | None = LONG, **options: Any) -> None:
        """Store an hourly job as a former process did; by default one with four runs due."""
        scheduler = hand_driven_scheduler(
            jobstores={"default": self.rows.store()}, timezone=timezone.utc
        )
        scheduler.start(paused=True)
        next_run = None if seconds is None else at(seconds)
        scheduler.add_job(
            jobs.nothing, id=job_id, next_run_time=next_run, **only({**hourly(), **options})
        )
        scheduler.shutdown()

    @contextmanager
    def restarted(self, *, start: bool = True, **options: Any) -> Iterator[Watched]:
        """Start a process that uses the same store, and check its counts in the end."""
        scheduler = hand_driven_scheduler(
            jobstores={"default": self.rows.store()}, timezone=timezone.utc
        )
        with watched(scheduler, **options) as seen:
            if start:
                scheduler.start()
            yield seen
            wait_for_reading(seen)
            check_counts(seen.telemetry)


@pytest.fixture
def restart(rows: Rows) -> Restart:
    return Restart(rows)


def hourly() -> dict[str, Any]:
    return {"trigger": "interval", "hours": 1, "misfire_grace_time": 60}


def only(options: dict[str, Any]) -> dict[str, Any]:
    """Leave out `hours` if it is None."""
    return {name: value for name, value in options.items() if (name, value) != ("hours", None)}


def add(seen: Watched, job_id: str = "job", **options: Any) -> None:
    """Add a job as an application does at every start."""
    seen.scheduler.add_job(
        jobs.nothing, id=job_id, replace_existing=True, **only({**hourly(), **options})
    )


def settled(seen: Watched, job_id: str = "job") -> dict[str, float]:
    wait_for_reading(seen)
    return seen.runs(job_id)


FOUR_RUNS = pytest.mark.parametrize(
    ("coalesce", "expected"),
    [(True, {"coalesced": 3, "missed": 1}), (False, {"missed": 4})],
    ids=["coalesce", "each"],
)
"""The outcomes of the four runs if they are too late."""


class TestPlain:
    """The application adds no jobs, and the scheduler finds the due ones."""

    @FOUR_RUNS
    def test_runs_later_than_their_grace_are_missed(
        self, restart: Restart, coalesce: bool, expected: dict[str, float]
    ) -> None:
        """Runs that are later than their grace are missed, or coalesced into a missed one."""
        restart.stored(coalesce=coalesce)
        with restart.restarted() as seen:
            seen.scheduler.turn()
            assert settled(seen) == expected
            assert seen.next_and_withdrawn_run() == (SOON, None)

    @pytest.mark.parametrize(
        ("coalesce", "expected"),
        [(True, {"coalesced": 3, "success": 1}), (False, {"success": 4})],
        ids=["coalesce", "each"],
    )
    def test_runs_within_their_grace_are_run(
        self, restart: Restart, coalesce: bool, expected: dict[str, float]
    ) -> None:
        """Runs that are within their grace are run."""
        restart.stored(coalesce=coalesce, misfire_grace_time=None, max_instances=9)
        with restart.restarted() as seen:
            seen.scheduler.turn()
            assert settled(seen) == expected

    def test_next_run_is_overdue_before_the_first_pass(self, restart: Restart) -> None:
        """Until the first pass, the next run is the overdue one."""
        restart.stored()
        with restart.restarted() as seen:
            assert settled(seen) == {}
            assert seen.next_and_withdrawn_run() == (at(LONG).timestamp(), None)


class TestReplaced:
    """The application replaces its jobs at every start, which makes APScheduler drop due runs."""

    @FOUR_RUNS
    @pytest.mark.parametrize("when", ["before the start", "after the start", "when known"])
    def test_due_runs_of_a_replaced_job_are_counted(
        self, restart: Restart, coalesce: bool, expected: dict[str, float], when: str
    ) -> None:
        """Due runs are counted as APScheduler would have counted them; none is cancelled."""
        restart.stored(coalesce=coalesce)
        with restart.restarted(start=when != "before the start") as seen:
            if when == "when known":
                wait_for_reading(seen)
                assert seen.next_and_withdrawn_run() == (at(LONG).timestamp(), None)
            add(seen)
            if when == "before the start":
                seen.scheduler.start()
            assert settled(seen) == expected
            assert seen.next_and_withdrawn_run() == (START.timestamp() + HOUR, None)
            seen.scheduler.turn()
            assert settled(seen) == expected
            assert (seen.own_errors(), seen.errors()) == ({}, {})

    def test_counted_runs_are_not_counted_again(self, restart: Restart) -> None:
        """Runs that were counted are not counted again if the job is replaced again."""
        restart.stored()
        with restart.restarted() as seen:
            add(seen)
            add(seen, hours=2)
            assert settled(seen) == {"coalesced": 3, "missed": 1}
        with restart.restarted() as seen:
            add(seen)
            assert settled(seen) == {}

    def test_due_runs_follow_from_the_former_trigger(self, restart: Restart) -> None:
        """The due runs are those of the former trigger."""
        restart.stored(coalesce=False)
        with restart.restarted() as seen:
            add(seen, trigger="cron", hours=None, hour=2)
            assert settled(seen) == {"missed": 4}

    def test_job_due_at_once_misses_the_runs_before(self, restart: Restart) -> None:
        """If the new job is due at once, it runs, and the former due runs are missed."""
        restart.stored(coalesce=False)
        with restart.restarted() as seen:
            add(seen, next_run_time=START)
            seen.scheduler.turn()
            assert settled(seen) == {"missed": 4, "success": 1}

    def test_runs_that_the_new_schedule_includes_are_run(self, restart: Restart) -> None:
        """Runs that the new schedule includes are run."""
        restart.stored(coalesce=False)
        with restart.restarted() as seen:
            again: dict[str, Any] = {"misfire_grace_time": None, "max_instances": 9}
            add(seen, next_run_time=at(-1.5 * HOUR), coalesce=False, **again)
            seen.scheduler.turn()
            assert settled(seen) == {"missed": 2, "success": 2}

    def test_run_for_an_earlier_time_is_run(self, restart: Restart) -> None:
        """If the new next run is before the former due runs, it runs and includes them."""
        restart.stored(seconds=-0.5 * HOUR)
        with restart.restarted() as seen:
            add(seen, next_run_time=at(-1.5 * HOUR), misfire_grace_time=None)
            seen.scheduler.turn()
            assert settled(seen) == {"coalesced": 1, "success": 1}

    def test_job_of_one_date_is_missed(self, restart: Restart) -> None:
        """A date job keeps its date, and the scheduler finds it too late."""
        restart.stored(trigger="date", hours=None, run_date=at(LONG))
        with restart.restarted() as seen:
            add(seen, trigger="date", hours=None, run_date=at(LONG))
            assert settled(seen) == {}
            seen.scheduler.turn()
            assert settled(seen) == {"missed": 1}

    def test_start_that_postpones_a_run_withdraws_none(self, restart: Restart) -> None:
        """
        Replacing a job at each start, which postpones its run, cancels nothing.

        Otherwise no alert would notice a job that never runs.
        """
        restart.stored(seconds=60)
        with restart.restarted() as seen:
            add(seen)
            assert settled(seen) == {}
            assert seen.next_and_withdrawn_run() == (START.timestamp() + HOUR, None)
            add(seen, hours=2)  # a change by this process
            assert seen.next_and_withdrawn_run() == (
                START.timestamp() + 2 * HOUR,
                START.timestamp() + HOUR,
            )

    def test_paused_job_has_no_due_runs(self, restart: Restart) -> None:
        """A paused job has no due runs."""
        restart.stored(seconds=None)
        with restart.restarted() as seen:
            wait_for_reading(seen)
            assert seen.next_and_withdrawn_run() == (0, None)
            add(seen)
            assert settled(seen) == {}
            assert seen.next_and_withdrawn_run() == (START.timestamp() + HOUR, None)

    def test_due_runs_of_an_unreadable_row_are_not_known(self, restart: Restart) -> None:
        """The due runs of an unreadable row are not known; once replaced, the job is normal."""
        restart.stored()
        restart.rows.spoil("job")
        with restart.restarted() as seen:
            add(seen)
            assert settled(seen) == {}
            assert (seen.own_errors(), seen.errors()) == ({}, {})
            assert seen.next_and_withdrawn_run() == (START.timestamp() + HOUR, None)

    def test_one_run_is_known_if_the_trigger_is_of_the_user(
        self, restart: Restart, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A trigger of the application's own is not called, so that only the next run is known."""
        restart.stored(trigger=Moody(hours=1), hours=None)
        monkeypatch.setattr(Moody, "content", False)
        with restart.restarted() as seen:
            add(seen)
            wait_until(lambda: settled(seen) == {"missed": 1})
            assert seen.own_errors() == {}

    def test_runs_that_were_due_have_spans(self, restart: Restart) -> None:
        """Each of these runs has a span."""
        pytest.importorskip("opentelemetry.sdk")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        restart.stored()
        with restart.restarted(tracer_provider=provider) as seen:
            add(seen, name="renamed")
            wait_for_reading(seen)
        spans = [dict(span.attributes or {}) for span in exporter.get_finished_spans()]
        assert [
            (s["apscheduler.scheduled_time"], s["apscheduler.outcome"], s["apscheduler.job.name"])
            for s in spans
        ] == [
            ("2029-12-31T20:30:00+00:00", "coalesced", "nothing"),
            ("2029-12-31T21:30:00+00:00", "coalesced", "nothing"),
            ("2029-12-31T22:30:00+00:00", "coalesced", "nothing"),
            ("2029-12-31T23:30:00+00:00", "missed", "nothing"),
        ]


class Moody(IntervalTrigger):
    """A user's trigger that raises."""

    content = True

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime | None:
        if not self.content:
            raise Boom("not today")
        following: datetime | None = super().get_next_fire_time(previous, now)
        return following


class TestOtherwise:
    """Other changes by the application to a job with due runs."""

    @pytest.mark.parametrize("known", [False, True], ids=["at once", "when known"])
    @pytest.mark.parametrize(
        "change",
        [
            lambda scheduler: scheduler.remove_job("job"),
            lambda scheduler: scheduler.remove_all_jobs(),
            lambda scheduler: scheduler.pause_job("job"),
        ],
        ids=["removed", "all removed", "paused"],
    )
    def test_due_runs_of_a_removed_or_paused_job_are_counted(
        self, restart: Restart, change: Callable[[Any], None], known: bool
    ) -> None:
        """Due runs of a removed or paused job are counted; it has no next run."""
        restart.stored()
        with restart.restarted() as seen:
            if known:
                wait_for_reading(seen)
            change(seen.scheduler)
            assert settled(seen) == {"coalesced": 3, "missed": 1}
            assert seen.next_and_withdrawn_run() == (0, None)
            assert (seen.own_errors(), seen.errors()) == ({}, {})

    def test_all_removed_and_one_cannot_be_restored(
        self, restart: Restart, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`remove_all_jobs` removes a job that cannot be restored, without an error."""
        restart.stored()
        restart.stored("spoilt")
        restart.rows.spoil("spoilt")
        with restart.restarted() as seen:
            seen.scheduler.remove_all_jobs()
            assert settled(seen) == {"coalesced": 3, "missed": 1}
            assert (seen.own_errors(), seen.errors()) == ({}, {})
            assert "Unable to restore" not in caplog.text

    def test_due_runs_of_a_rescheduled_job_are_counted(self, restart: Restart) -> None:
        """Due runs of a rescheduled job are counted."""
        restart.stored()
        with restart.restarted() as seen:
            seen.scheduler.reschedule_job("job", trigger="interval", hours=2)
            assert settled(seen) == {"coalesced": 3, "missed": 1}
            assert seen.next_and_withdrawn_run() == (START.timestamp() + 2 * HOUR, None)

    def test_renamed_job_runs_what_is_due(self, restart: Restart) -> None:
        """If only the name changes, the due runs are run."""
        restart.stored()
        with restart.restarted() as seen:
            seen.scheduler.modify_job("job", name="other")
            assert settled(seen) == {}
            seen.scheduler.turn()
            assert settled(seen) == {"coalesced": 3, "missed": 1}

    def test_run_that_is_not_due_yet_is_withdrawn(self, restart: Restart) -> None:
        """A next run in the future is cancelled when its job is removed."""
        restart.stored(seconds=60)
        with restart.restarted() as seen:
            seen.scheduler.remove_job("job")
            assert settled(seen) == {}
            assert seen.next_and_withdrawn_run() == (0, START.timestamp() + 60)


class TestOfOneProcess:
    """Changes to a job with due runs while the scheduler is paused."""

    @pytest.mark.parametrize(
        "options",
        [{}, {"trigger": CronTrigger(hour="1-4", minute=0, timezone=timezone.utc), "hours": None}],
        ids=["interval", "cron"],
    )
    def test_postponed_overdue_job_has_missed_its_runs(
        self, clock: FrozenClock, options: dict[str, Any]
    ) -> None:
        """If an overdue job is postponed, its due runs are missed."""
        with watched(hand_driven_scheduler(timezone=timezone.utc)) as seen:
            seen.scheduler.start()
            add(seen, **options)
            clock.advance(3.5 * HOUR)
            seen.scheduler.reschedule_job("job", trigger="interval", hours=5)
            assert settled(seen) == {"coalesced": 2, "missed": 1}
            assert seen.next_and_withdrawn_run() == (clock.now.timestamp() + 5 * HOUR, None)
            seen.scheduler.turn()
            clock.advance(5 * HOUR)
            seen.scheduler.turn()
            assert settled(seen) == {"coalesced": 2, "missed": 1, "success": 1}
            check_counts(seen.telemetry)

    @pytest.mark.parametrize(
        "change",
        [
            lambda scheduler: scheduler.pause_job("job"),
            lambda scheduler: scheduler.reschedule_job("job", trigger="interval", hours=5),
        ],
        ids=["pauses", "reschedules"],
    )
    def test_run_that_changes_its_own_job_is_not_missed(
        self, clock: FrozenClock, change: Callable[[Any], None]
    ) -> None:
        """A run that changes its own job is in flight, and not missed."""
        with watched(hand_driven_scheduler(timezone=timezone.utc)) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(lambda: change(seen.scheduler), id="job", **hourly())
            clock.advance(HOUR)
            seen.scheduler.turn()
            assert settled(seen) == {"success": 1}
            check_counts(seen.telemetry)
