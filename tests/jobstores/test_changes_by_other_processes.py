"""Jobs that another process adds, moves or removes in a shared store."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("redis")

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

from tests.helpers import jobs, watching
from tests.helpers.jobstore_servers import NEVER, File, Place
from tests.helpers.schedulers import HandDriven, hand_driven_scheduler
from tests.helpers.shared_jobstores import (
    EARLIER,
    SOON,
    add,
    another_process,
    background,
    everywhere,
    poller_of,
    scheduler_on,
)
from tests.helpers.triggers import Every
from tests.helpers.waiting import wait_until
from tests.helpers.watching import Watched, watched


def add_two_jobs(seen: Watched, other: HandDriven) -> None:
    """Add two jobs in another process, and wait until telemetry has found them."""
    for job_id in ("job", "other"):
        add(other, job_id)
    wait_until(
        lambda: (
            seen.next_and_withdrawn_run()
            == seen.next_and_withdrawn_run("other")
            == (NEVER.timestamp(), None)
        )
    )


@everywhere
@pytest.mark.usefixtures("poll_often")
class TestOtherProcesses:
    """Changes by other processes in a shared store are noticed without a due job."""

    def test_job_that_another_process_adds_has_a_next_run(self, place: Place) -> None:
        """A job that another process adds has a next run and intervals."""
        with scheduler_on(place) as seen, another_process(place) as other:
            add(other)
            wait_until(lambda: seen.next_and_withdrawn_run() == (NEVER.timestamp(), None))
            wait_until(lambda: seen.job("shortest_interval_seconds") == 3600)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_job_that_another_process_moves_has_the_new_next_run(self, place: Place) -> None:
        """If another process changes the next run, the new one is shown, the old one cancelled."""
        with scheduler_on(place) as seen, another_process(place) as other:
            add(other)
            wait_until(lambda: seen.next_and_withdrawn_run() == (NEVER.timestamp(), None))
            other.modify_job("job", next_run_time=EARLIER)
            wait_until(
                lambda: seen.next_and_withdrawn_run() == (EARLIER.timestamp(), NEVER.timestamp())
            )

    def test_trigger_that_another_process_changes_has_its_own_intervals(self, place: Place) -> None:
        """If another process changes the trigger, its intervals are computed again."""
        with scheduler_on(place) as seen, another_process(place) as other:
            add(other)
            wait_until(lambda: seen.job("shortest_interval_seconds") == 3600)
            other.reschedule_job("job", trigger="interval", minutes=10, start_date=EARLIER)
            wait_until(lambda: seen.job("shortest_interval_seconds") == 600)

    def test_own_trigger_that_another_process_changes_has_its_own_intervals(
        self, place: Place
    ) -> None:
        """The observed intervals start again if it changes the trigger, and only then."""
        with scheduler_on(place) as seen, another_process(place) as other:
            seen.scheduler.add_job(jobs.nothing, Every(3600), id="job")
            wait_until(lambda: seen.job("shortest_interval_seconds") == 3600)
            other.modify_job("job", next_run_time=EARLIER)
            wait_until(lambda: seen.next_run() == EARLIER.timestamp())
            assert seen.job("shortest_interval_seconds") == 3600
            other.reschedule_job("job", trigger=Every(600))
            seen.scheduler.wakeup()
            wait_until(lambda: seen.job("shortest_interval_seconds") == 600)
            assert seen.job("longest_interval_seconds") == 600

    @pytest.mark.parametrize("what", ["remove_job", "pause_job"])
    def test_job_that_another_process_removes_or_pauses_is_withdrawn(
        self, place: Place, what: str
    ) -> None:
        """If another process removes or pauses a job, its next run is cancelled."""
        with scheduler_on(place) as seen, another_process(place) as other:
            add_two_jobs(seen, other)
            getattr(other, what)("job")
            wait_until(lambda: seen.next_and_withdrawn_run() == (0, NEVER.timestamp()))
            assert seen.next_and_withdrawn_run("other") == (NEVER.timestamp(), None)

    def test_next_runs_of_a_store_that_lost_all_jobs_stay_expected(self, place: Place) -> None:
        """If all jobs are gone at once, their next runs stay expected, as the store may be lost."""
        with scheduler_on(place) as seen, another_process(place) as other:
            add_two_jobs(seen, other)
            other.remove_all_jobs()
            wait_until(lambda: seen.value("scheduler_jobs", jobstore="default") == 0)
            assert (
                seen.next_and_withdrawn_run()
                == seen.next_and_withdrawn_run("other")
                == (NEVER.timestamp(), None)
            )

    def test_row_that_cannot_be_deserialized_stays_and_is_read_again(self, place: Place) -> None:
        """A row that cannot be deserialized stays, and is read again when it has changed."""
        with another_process(place) as other:
            add(other)
            place.spoil("job")
            with scheduler_on(place) as seen:
                add(other, "other", EARLIER)
                wait_until(
                    lambda: seen.next_and_withdrawn_run("other") == (EARLIER.timestamp(), None)
                )
                assert place.ids() == {"job", "other"}
                assert seen.next_and_withdrawn_run() == (None, None)
                add(other, at=EARLIER, replace_existing=True)
                wait_until(lambda: seen.next_and_withdrawn_run() == (EARLIER.timestamp(), None))

    def test_overdue_run_that_another_process_moves_is_not_withdrawn(self, place: Place) -> None:
        """If another process moves an overdue run, it is not cancelled."""
        with another_process(place) as other:
            add(other, at=watching.ago(3600))
            with watched(background(place.store())) as seen:
                seen.scheduler.start(paused=True)
                wait_until(lambda: seen.next_and_withdrawn_run()[0])
                other.modify_job("job", next_run_time=NEVER)
                wait_until(lambda: seen.next_and_withdrawn_run() == (NEVER.timestamp(), None))

    def test_job_that_falls_due_while_the_scheduler_sleeps_is_overdue(self, place: Place) -> None:
        """
        A job that another process added becomes overdue while the scheduler sleeps.

        APScheduler finds jobs of other processes only in its next pass, which this package does not
        change.
        """
        with scheduler_on(place) as seen, another_process(place) as other:
            add(other, at=watching.ahead(0.5))
            wait_until(lambda: seen.next_and_withdrawn_run()[0])
            wait_until(lambda: time.time() > (seen.next_and_withdrawn_run()[0] or 0) + 0.5)
            assert seen.runs() == {}
            seen.scheduler.wakeup()
            wait_until(lambda: sum(seen.runs().values()) == 1)

    def test_job_at_the_end_of_the_calendar_is_shown(self, place: Place) -> None:
        """APScheduler itself cannot read `datetime.max` from a store, which rounds it up."""
        last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone.utc)
        with scheduler_on(place) as seen, another_process(place) as other:
            add(other, at=last)
            wait_until(lambda: seen.next_and_withdrawn_run()[0] == pytest.approx(last.timestamp()))
            [job] = seen.telemetry.health()["jobs"]
            assert (job["next_run"][:10], job["overdue"]) == ("9999-12-31", False)
            assert seen.own_errors() == {}

    def test_time_of_the_latest_reading_is_exported(self, place: Place) -> None:
        """The time of the latest reading is exported, and stays recent."""
        with scheduler_on(place) as seen:
            first = seen.last_read() or 0
            wait_until(lambda: (seen.last_read() or 0) > first + 3 * SOON)
            assert time.time() - (seen.last_read() or 0) < jobs.WAIT_TIMEOUT

    def test_reading_does_not_undo_a_later_change_by_this_process(self, place: Place) -> None:
        """A reading of the store does not undo a later change by this process."""
        with scheduler_on(place) as seen:
            for number in range(50):
                at = NEVER - timedelta(days=number)
                add(seen.scheduler, at=at, replace_existing=True)
                assert seen.next_and_withdrawn_run()[0] == at.timestamp()
                seen.scheduler.remove_job("job")
                assert seen.next_and_withdrawn_run() == (0, NEVER.timestamp())
                time.sleep(0.001)


class SlowToReturn(SQLAlchemyJobStore):
    """A store that calls a function after it has removed a job, before it returns."""

    after: Callable[[], Any]

    def remove_job(self, job_id: str) -> None:
        super().remove_job(job_id)
        self.after()


@pytest.mark.usefixtures("poll_often")
def test_read_in_the_middle_of_a_change(tmp_path: Path) -> None:
    """A reading between the change of a row and the return of the store is ignored."""
    store = SlowToReturn(f"sqlite:///{tmp_path / 'jobs'}")
    scheduler = hand_driven_scheduler(jobstores={"default": store})
    with watched(scheduler) as seen:

        def read_again() -> None:
            now = time.time()
            wait_until(lambda: (seen.last_read() or 0) > now)

        store.after = read_again
        scheduler.start()
        scheduler.add_job(jobs.nothing, "date", id="job", run_date=watching.ago(0))
        scheduler.turn()
        assert seen.runs() == {"success": 1}
        assert seen.next_and_withdrawn_run() == (0, None)
        assert seen.own_errors() == {}
    store.engine.dispose()


class TestEvery:
    @pytest.mark.parametrize(
        ("seconds", "least", "most"),
        [(0, 5, 5), (0.4, 8, 20 * jobs.WAIT_TIMEOUT)],
        ids=["5", "20 x"],
    )
    def test_store_is_read_every_five_seconds_and_slow_ones_less_often(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        seconds: float,
        least: float,
        most: float,
    ) -> None:
        """A store is read every five seconds, or after 20 times the duration of a reading."""
        with scheduler_on(File(tmp_path)) as seen:
            poller = poller_of(seen)
            pauses: list[float] = []
            monkeypatch.setattr(poller, "_schedule_reading", pauses.append)
            monkeypatch.setattr(poller, "_read_changed_jobs", lambda *_: time.sleep(seconds))
            poller._poll_and_reschedule()
            assert least <= pauses[0] <= most

    def test_memory_store_counts_as_read_at_every_scrape(self) -> None:
        """A memory store counts as read at every scrape."""
        with watched(hand_driven_scheduler()) as seen:
            seen.scheduler.start()
            before = time.time()
            assert before <= (seen.last_read() or 0) <= time.time()
