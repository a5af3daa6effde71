"""What becomes of jobs: promised, taken back, kept, broken; known from before."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_SUBMITTED
from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.base import BaseJobStore
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.interval import IntervalTrigger

import support_jobs as jobs
import support_scenes as scenes
from apscheduler_telemetry.adapters.apscheduler3 import jobstores as _stores
from apscheduler_telemetry.adapters.apscheduler3.jobstore_reader import SQLRows
from apscheduler_telemetry.adapters.apscheduler3.jobstores import StoreHook
from apscheduler_telemetry.core import labels as _labels
from apscheduler_telemetry.core.recorder import REMOVED_FOR
from support import START, Clock, frozen, until
from support_scenes import Boom, Watched, wait_for_reading, watched

sqlalchemy = pytest.importorskip("sqlalchemy")
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

from support_stores import NEVER, NO_POOL, Rows


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[Rows]:
    rows = Rows(tmp_path)
    yield rows
    rows.engine.dispose()


@contextmanager
def driven(clock: Clock | None = None, **options: Any) -> Iterator[Watched]:
    """Start a scheduler that is driven by hand."""
    with watched(scenes.by_hand(timezone=timezone.utc, **options)) as seen:
        seen.scheduler.start()
        yield seen


@pytest.fixture
def clock() -> Iterator[Clock]:
    with frozen() as clock:
        yield clock


def add(seen: Watched, seconds: float = 60, **options: Any) -> Any:
    """Add a job that is due `seconds` from now and then every hour."""
    options = {"id": "job", "trigger": "interval", "hours": 1, **options}
    if options["trigger"] == "date":
        del options["hours"]
    at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return seen.scheduler.add_job(
        options.pop("func", jobs.nothing), next_run_time=at, misfire_grace_time=None, **options
    )


def promised(seen: Watched, job_id: str = "job") -> float | None:
    return seen.job("next_run_timestamp_seconds", job_id)


def withdrawn(seen: Watched, job_id: str = "job") -> float | None:
    return seen.job("withdrawn_run_timestamp_seconds", job_id)


IN_A_MINUTE = START.timestamp() + 60


@pytest.mark.usefixtures("clock")
class TestPromises:
    """The next run is a promise, and the user may take it back; see DESIGN section 4."""

    def test_of_a_new_job(self) -> None:
        """A job promises its next run as soon as it is in its store."""
        with driven() as seen:
            add(seen)
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_of_a_pending_job(self) -> None:
        """A job that is added before the start promises when the scheduler starts."""
        with watched(scenes.by_hand()) as seen:
            add(seen)
            assert promised(seen) is None
            seen.scheduler.start()
            assert promised(seen) == IN_A_MINUTE

    def test_kept(self, clock: Clock) -> None:
        """A run that starts is a promise kept: the next one follows, and nothing was taken back."""
        with driven() as seen:
            add(seen)
            clock.advance(60)
            seen.scheduler.turn()
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE + 3600, None)

    def test_not_kept(self, clock: Clock) -> None:
        """While nobody looks for due jobs the promise stands, and is visibly late."""
        with driven() as seen:
            add(seen)
            clock.advance(1000)
            assert promised(seen) == IN_A_MINUTE
            assert seen.telemetry.health()["jobs"][0]["overdue"] is True

    def test_removed(self) -> None:
        """A job that the user removes promises nothing, and takes back what it had promised."""
        with driven() as seen:
            add(seen).remove()
            assert (promised(seen), withdrawn(seen)) == (0, IN_A_MINUTE)

    def test_paused(self) -> None:
        """So does a job that is paused; resumed, it makes a new promise."""
        with driven() as seen:
            job = add(seen)
            job.pause()
            assert (promised(seen), withdrawn(seen)) == (0, IN_A_MINUTE)
            job.resume()
            assert (promised(seen), withdrawn(seen)) == (START.timestamp() + 3600, IN_A_MINUTE)

    @pytest.mark.parametrize("seconds", [1, 7200], ids=["sooner", "later"])
    def test_rescheduled(self, seconds: float) -> None:
        """A job that is given another time promises that one and takes the former back."""
        with driven() as seen:
            at = START + timedelta(seconds=seconds)
            add(seen).modify(next_run_time=at)
            assert (promised(seen), withdrawn(seen)) == (at.timestamp(), IN_A_MINUTE)

    def test_rescheduled_by_a_trigger(self) -> None:
        """A job that is given another schedule promises by that one."""
        with driven() as seen:
            add(seen).reschedule("interval", minutes=5)
            assert (promised(seen), withdrawn(seen)) == (START.timestamp() + 300, IN_A_MINUTE)

    def test_modified_otherwise(self) -> None:
        """A change that leaves the time alone takes nothing back."""
        with driven() as seen:
            add(seen).modify(name="other")
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_promised_again(self) -> None:
        """A time that is promised again was not taken back."""
        with driven() as seen:
            job = add(seen)
            at = job.next_run_time
            job.pause()
            assert withdrawn(seen) == IN_A_MINUTE
            job.modify(next_run_time=at)
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_removed_and_added_again(self) -> None:
        """So with a job that is removed and added again for the same time."""
        with driven() as seen:
            add(seen).remove()
            add(seen)
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_replaced(self) -> None:
        """`replace_existing` is a change by the user like any other."""
        with driven() as seen:
            add(seen)
            add(seen, seconds=90, replace_existing=True)
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE + 30, IN_A_MINUTE)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_finished(self, clock: Clock) -> None:
        """A one-off job that has run promises nothing more, and nothing was taken back."""
        with driven() as seen:
            add(seen, trigger="date")
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert (promised(seen), withdrawn(seen)) == (0, None)

    def test_unknown_executor(self, clock: Clock) -> None:
        """A job that APScheduler removes, as its executor is unknown, has broken its promise."""
        with driven() as seen:
            add(seen, executor="gpu")
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.scheduler.get_job("job") is None
            assert seen.runs() == {"lost": 1}
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    def test_all_removed(self) -> None:
        """`remove_all_jobs` takes back every promise."""
        with driven() as seen:
            add(seen, id="a")
            add(seen, id="b", seconds=90)
            seen.scheduler.remove_all_jobs()
            assert (promised(seen, "a"), withdrawn(seen, "a")) == (0, IN_A_MINUTE)
            assert (promised(seen, "b"), withdrawn(seen, "b")) == (0, IN_A_MINUTE + 30)
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    def test_shut_down(self) -> None:
        """A memory store empties itself on shutdown, which takes no promise back."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_job_store_removed(self) -> None:
        """Whoever removes a job store takes back what its jobs had promised."""
        with driven() as seen:
            seen.scheduler.add_jobstore(MemoryJobStore(), "other")
            add(seen, jobstore="other")
            assert seen.value("scheduler_jobs", jobstore="other") == 1
            seen.scheduler.remove_jobstore("other", shutdown=False)
            assert (promised(seen), withdrawn(seen)) == (0, IN_A_MINUTE)
            assert seen.value("scheduler_jobs", jobstore="other") is None

    @pytest.mark.parametrize("change", ["remove", "pause"])
    def test_taken_back_by_a_listener(self, clock: Clock, change: str) -> None:
        """What a listener does in the middle of a pass is done by the user, not by the loop."""
        with driven() as seen:
            job = add(seen)
            seen.scheduler.add_listener(lambda event: getattr(job, change)(), EVENT_JOB_SUBMITTED)
            clock.advance(60)
            seen.scheduler.turn()
            assert (promised(seen), withdrawn(seen)) == (0, IN_A_MINUTE + 3600)

    def test_taken_back_by_the_job(self, clock: Clock) -> None:
        """So is what a job does to another one while it runs in the middle of a pass."""
        with driven() as seen:
            add(seen, func=lambda: seen.scheduler.remove_job("other"))
            add(seen, id="other", seconds=90)
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert (promised(seen, "other"), withdrawn(seen, "other")) == (0, IN_A_MINUTE + 30)

    @pytest.mark.parametrize("broken", [False, True], ids=["removed", "broken"])
    def test_dropped(self, clock: Clock, broken: bool) -> None:
        """The series of a job that is gone stay for 15 minutes, long enough to be scraped."""
        with driven() as seen:
            if broken:
                add(seen, executor="gpu")
                clock.advance(60)
                seen.scheduler.turn()
            else:
                add(seen).remove()
            clock.advance(REMOVED_FOR - 1)
            assert promised(seen) == (IN_A_MINUTE if broken else 0)
            clock.advance(2)
            assert promised(seen) is None
            assert seen.job("runs_total", outcome="lost") is None


@pytest.mark.usefixtures("clock")
class TestRestart:
    """A scheduler may be shut down and started again in one process."""

    def test_jobs_of_a_memory_store_are_gone(self, clock: Clock) -> None:
        """They count no more; what they promised stands for 15 minutes: nobody took it back."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            seen.scheduler.start()
            assert seen.value("scheduler_jobs", jobstore="default") == 0
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)
            clock.advance(REMOVED_FOR + 1)
            assert promised(seen) is None

    def test_jobs_that_are_added_again(self, clock: Clock) -> None:
        """A job that is added again goes on where it was."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            add(seen, seconds=90)
            seen.scheduler.start()
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            assert promised(seen) == IN_A_MINUTE + 30
            clock.advance(REMOVED_FOR * 2)
            assert promised(seen) == IN_A_MINUTE + 30

    def test_jobs_of_a_persistent_store(self, rows: Rows) -> None:
        """Jobs in a store that outlives the process are still there."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            seen.scheduler.shutdown()
            seen.scheduler.start()
            wait_for_reading(seen)
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            assert promised(seen) == IN_A_MINUTE

    def test_another_job_store(self) -> None:
        """A new configuration takes executors and job stores away without telling anybody."""
        options: dict[str, Any] = {
            "executors": {"fast": DebugExecutor()},
            "jobstores": {"old": MemoryJobStore()},
        }
        with driven(**options) as seen:
            add(seen, jobstore="old")
            seen.scheduler.shutdown()
            seen.scheduler.configure(
                executors={"slow": DebugExecutor()}, jobstores={"new": MemoryJobStore()}
            )
            assert seen.telemetry.ledger.executors().keys() == {"slow"}
            assert seen.telemetry.ledger.stores().keys() == {"new"}
            seen.scheduler.start()
            add(seen, jobstore="new", executor="slow")
            assert seen.value("scheduler_jobs", jobstore="new") == 1
            assert seen.value("scheduler_jobs", jobstore="old") is None
            assert seen.own_errors() == {}


class Foreign(BaseJobStore):
    """A store of the user's, which keeps its jobs in a way that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = MemoryJobStore()
        self.listed = 0

    def get_all_jobs(self) -> Any:
        self.listed += 1
        return self.inner.get_all_jobs()

    def lookup_job(self, job_id: str) -> Any:
        return self.inner.lookup_job(job_id)

    def get_due_jobs(self, now: datetime) -> Any:
        return iter(self.inner.get_due_jobs(now))

    def get_next_run_time(self) -> Any:
        return self.inner.get_next_run_time()

    def add_job(self, job: Any) -> None:
        self.inner.add_job(job)

    def update_job(self, job: Any) -> None:
        self.inner.update_job(job)

    def remove_job(self, job_id: str) -> None:
        self.inner.remove_job(job_id)

    def remove_all_jobs(self) -> None:
        self.inner.remove_all_jobs()


class Broken(SQLAlchemyJobStore):
    """A store that cannot list its jobs, in a way of its own."""

    broken = True

    def get_all_jobs(self) -> Any:
        return raise_boom() if self.broken else super().get_all_jobs()


class TestJobsFromBefore:
    """Jobs that are in a store already are known without waiting until they are due."""

    @pytest.mark.parametrize("running", [False, True], ids=["before start", "after start"])
    def test_of_a_former_process(self, rows: Rows, running: bool) -> None:
        """What a former process stored is shown soon after the start, or after `instrument`."""
        rows.write("job", "other")
        scheduler = BackgroundScheduler(jobstores={"default": rows.store()})
        if running:
            scheduler.start()
        with watched(scheduler) as seen:
            if not running:
                scheduler.start()
            until(lambda: promised(seen) == promised(seen, "other") == NEVER.timestamp())
            assert withdrawn(seen) is None
            assert seen.value("scheduler_jobs", jobstore="default") == 2
            until(lambda: seen.job("shortest_interval_seconds") == 3600)

    def test_of_a_running_scheduler(self) -> None:
        """Jobs in the memory of a running scheduler are known when `instrument` returns."""
        scheduler = scenes.by_hand()
        scheduler.start()
        scheduler.add_job(jobs.nothing, "interval", hours=1, id="job", next_run_time=NEVER)
        with watched(scheduler) as seen:
            assert promised(seen) == NEVER.timestamp()

    def test_in_a_store_that_is_added(self, rows: Rows) -> None:
        """So are those of a job store that is added to a scheduler while it runs."""
        rows.write("job")
        with driven() as seen:
            seen.scheduler.add_jobstore(rows.store(), "sql")
            until(lambda: promised(seen) == NEVER.timestamp())
            assert seen.value("scheduler_jobs", jobstore="sql") == 1

    def test_rows_that_cannot_be_restored_stay(
        self, rows: Rows, caplog: pytest.LogCaptureFixture
    ) -> None:
        """APScheduler deletes what it cannot restore; telemetry, on its own, must not."""
        rows.write("job", "spoilt")
        rows.spoil("spoilt")
        with driven(jobstores={"default": rows.store()}) as seen:
            until(lambda: promised(seen) == NEVER.timestamp())
            wait_for_reading(seen)
            assert rows.ids() == {"job", "spoilt"}
            assert seen.errors() == {}
            assert seen.own_errors() == {}
            assert "Unable to restore" not in caplog.text

    def test_a_store_of_the_user_s(self) -> None:
        """A store that is not known to be safe to read is not read."""
        store = Foreign()
        with driven(jobstores={"default": store}) as seen:
            add(seen, seconds=-0.1)
            wait_for_reading(seen)
            assert store.listed == 0
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert seen.own_errors() == {}
            assert seen.job("info", **INFO, jobstore="default", persistent="true") == 1

    def test_a_store_that_cannot_be_read(
        self, rows: Rows, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store that fails us is no failure of ours; it is said once, and we try again."""
        monkeypatch.setattr(StoreHook, "EVERY", 0.01)
        rows.write("job", at=scenes.ago(0.1))
        store = Broken(rows.url, engine_options=NO_POOL)
        with driven(jobstores={"default": store}) as seen:
            until(lambda: (seen.value("jobstore_read_failures_total", jobstore="default") or 0) > 2)
            assert (seen.own_errors(), seen.errors()) == ({}, {})
            assert seen.value("jobstore_last_read_timestamp_seconds", jobstore="default") is None
            assert caplog.text.count("could not read the job store 'default' (Boom)") == 1
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            store.broken = False
            until(lambda: seen.value("jobstore_last_read_timestamp_seconds", jobstore="default"))

    def test_a_job_that_cannot_be_described(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job of which nothing can be told does not hide the others."""
        scheduler = scenes.by_hand()
        scheduler.start()
        for job_id in "ab":
            scheduler.add_job(
                jobs.nothing, "interval", hours=1, id=job_id, next_run_time=NEVER, name=job_id
            )
        text = _labels.text
        monkeypatch.setattr(
            _labels, "text", lambda name: raise_boom() if name == "a" else text(name)
        )
        with watched(scheduler) as seen:
            assert promised(seen, "a") is None
            assert promised(seen, "b") == NEVER.timestamp()
            assert seen.own_errors() == {"adapter": 1}

    def test_a_trigger_without_a_text(self) -> None:
        """A trigger of the user's that has no text is told by its type, and the job counts."""

        class Mute(IntervalTrigger):
            def __str__(self) -> str:
                raise Boom("no words")

        with driven() as seen:
            # Not due, as APScheduler itself cannot log that such a job runs.
            seen.scheduler.add_job(jobs.nothing, Mute(hours=1), id="job", next_run_time=NEVER)
            assert promised(seen) == NEVER.timestamp()
            assert seen.own_errors() == {}

    def test_changed_by_another_process(self, rows: Rows, clock: Clock) -> None:
        """A due job that another process has changed meanwhile is known as it is now."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            wait_for_reading(seen)
            other = scenes.by_hand(jobstores={"default": rows.store()}, timezone=timezone.utc)
            other.start(paused=True)
            other.modify_job("job", next_run_time=START + timedelta(seconds=30), name="renamed")
            other.shutdown()
            clock.advance(30)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert promised(seen) == START.timestamp() + 30 + 3600
            assert withdrawn(seen) is None


INFO = {
    "name": "nothing",
    "func": "support_jobs:nothing",
    "trigger": "interval[1:00:00]",
    "executor": "default",
}


class TestUnrestorable:
    """Rows that APScheduler cannot restore, and therefore deletes."""

    def test_due(self, rows: Rows, clock: Clock) -> None:
        """A due job whose row is deleted is lost, and has broken its promise."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            add(seen, id="other")
            rows.spoil("job")
            clock.advance(61)
            seen.scheduler.turn()
            assert rows.ids() == {"other"}
            assert seen.errors() == {"restore": 1}
            assert seen.runs() == {"lost": 1}
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)
            assert seen.job("last_failure_timestamp_seconds") == IN_A_MINUTE + 1
            assert seen.runs("other") == {"success": 1}
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            clock.advance(REMOVED_FOR - 1)
            assert promised(seen) == IN_A_MINUTE
            clock.advance(2)
            assert promised(seen) is None

    def test_listed(self, rows: Rows, clock: Clock) -> None:
        """So with a row that is deleted when the user lists the jobs, though it was not due yet."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            add(seen, id="other")
            wait_for_reading(seen)
            rows.spoil("job")
            assert [job.id for job in seen.scheduler.get_jobs()] == ["other"]
            assert rows.ids() == {"other"}
            assert seen.errors() == {"restore": 1}
            assert seen.runs() == {}
            assert (promised(seen), withdrawn(seen)) == (IN_A_MINUTE, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_looked_up(self, rows: Rows, clock: Clock) -> None:
        """Whoever looks up such a job is told, nothing is deleted, and nothing counts."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            rows.spoil("job")
            with pytest.raises(pickle.UnpicklingError):
                seen.scheduler.get_job("job")
            assert seen.errors() == {}
            assert rows.ids() == {"job"}

    def test_not_known(self, rows: Rows, clock: Clock) -> None:
        """A row that was never readable is an error, though nobody can say of which job."""
        rows.write("job", at=START)
        rows.spoil("job")
        with driven(jobstores={"default": rows.store()}) as seen:
            wait_for_reading(seen)
            seen.scheduler.turn()
            assert seen.errors() == {"restore": 1}
            assert list(seen.telemetry.ledger.accounts()) == []

    def test_after_uninstrument(self, rows: Rows, clock: Clock) -> None:
        """A store that is no longer watched is no longer counted."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen, seconds=0)
            rows.spoil("job")
            seen.telemetry.uninstrument()
            seen.scheduler.turn()
            assert set(seen.telemetry.ledger.errors().values()) == {0}


class TestInfo:
    def test_follows_the_job(self) -> None:
        """What a job is called, when and where it runs is shown as it is now."""
        with driven(executors={"default": DebugExecutor(), "slow": DebugExecutor()}) as seen:
            job = add(seen)
            known = {**INFO, "jobstore": "default", "persistent": "false"}
            assert seen.job("info", **known) == 1
            job.modify(name="Nightly", executor="slow")
            job.reschedule("cron", hour=2)
            known |= {"name": "Nightly", "executor": "slow", "trigger": "cron[hour='2']"}
            assert seen.job("info", **known) == 1
            until(lambda: seen.job("longest_interval_seconds") == 86_400)

    def test_persistent(self, rows: Rows) -> None:
        """A job store that outlives the process is called persistent."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            assert seen.job("info", **INFO, jobstore="default", persistent="true") == 1

    def test_grace_follows_the_job(self) -> None:
        """Lateness that is tolerated is the job's own, and 60 s at least."""
        with driven() as seen:
            job = add(seen)
            assert seen.job("grace_seconds") == 60
            job.modify(misfire_grace_time=900)
            assert seen.job("grace_seconds") == 900

    def test_link(self) -> None:
        """Runs link to where the job was added; if it was pending, to `add_job`."""
        scheduler = scenes.by_hand()
        with watched(scheduler) as seen:
            be_in(seen, "request")
            add(seen, id="pending")
            be_in(seen, "start")
            scheduler.start()
            assert link_of(seen, "pending") == "request: added"
            be_in(seen, "another request")
            add(seen)
            assert link_of(seen, "job") == "another request: added"
            be_in(seen, "a change")
            scheduler.modify_job("job", name="other")
            assert link_of(seen, "job") == "another request: added"
            be_in(seen, None)
            add(seen, replace_existing=True)
            assert link_of(seen, "job") is None

    def test_link_that_cannot_be_had(self) -> None:
        """A tracer that fails is counted, and the job is added all the same."""
        with driven() as seen:
            seen.telemetry._adapter.links._origins.current = raise_boom  # type: ignore[assignment, method-assign]
            add(seen, seconds=-0.1)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert seen.own_errors() == {"spans": 1}


class Slow:
    """Holds up what telemetry has read for as long as the test says."""

    def __init__(self) -> None:
        self.read, self.go_on = threading.Event(), threading.Event()

    def hold(self) -> None:
        if threading.current_thread().name == "apscheduler-telemetry":
            self.read.set()
            assert self.go_on.wait(jobs.PATIENCE)


class SlowStore(SQLAlchemyJobStore):
    """A store with a way of its own, whose answer to telemetry is slow."""

    def __init__(self, url: str, slow: Slow) -> None:
        super().__init__(url, engine_options=NO_POOL)
        self.slow = slow

    def get_all_jobs(self) -> Any:
        jobs_then = super().get_all_jobs()
        self.slow.hold()
        return jobs_then


class SlowRows(SQLRows):
    """A store of APScheduler's whose answer to telemetry is slow."""

    slow: Slow

    def states(self, job_ids: Any) -> Any:
        states = super().states(job_ids)
        self.slow.hold()
        return states


class TestRaces:
    """What changes while telemetry reads a store is not undone by what it read."""

    @pytest.fixture(params=["all jobs", "rows"], autouse=True)
    def road(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        """Read in either of both ways."""
        self.slow = SlowRows.slow = Slow()
        self.by_rows = request.param == "rows"
        if self.by_rows:
            monkeypatch.setattr(_stores, "rows_of", SlowRows)

    @contextmanager
    def reading(self, rows: Rows) -> Iterator[tuple[Watched, Callable[[], None]]]:
        rows.write("job", "other")
        store = rows.store() if self.by_rows else SlowStore(rows.url, self.slow)
        with driven(jobstores={"default": MemoryJobStore(), "sql": store}) as seen:
            assert self.slow.read.wait(jobs.PATIENCE)

            def end() -> None:
                self.slow.go_on.set()
                wait_for_reading(seen)
                assert seen.own_errors() == {}

            yield seen, end
            self.slow.go_on.set()

    def test_nothing_changed(self, rows: Rows) -> None:
        """Without a change both jobs are known, which shows that the reading is what it seems."""
        with self.reading(rows) as (seen, end):
            assert promised(seen) is None
            end()
            assert promised(seen) == promised(seen, "other") == NEVER.timestamp()

    @pytest.mark.parametrize(
        "remove",
        [
            lambda scheduler: scheduler.remove_job("job"),
            lambda scheduler: scheduler.remove_all_jobs("sql"),
            lambda scheduler: scheduler.remove_jobstore("sql", shutdown=False),
        ],
        ids=["the job", "all jobs", "the job store"],
    )
    def test_removed(self, rows: Rows, remove: Callable[[Any], Any]) -> None:
        """A job that is removed in the meantime is not brought back."""
        with self.reading(rows) as (seen, end):
            remove(seen.scheduler)
            end()
            assert not promised(seen)

    def test_removed_and_others_not(self, rows: Rows) -> None:
        """The removal of one job does not hide another."""
        with self.reading(rows) as (seen, end):
            seen.scheduler.remove_job("job")
            end()
            assert promised(seen, "other") == NEVER.timestamp()
            assert seen.value("scheduler_jobs", jobstore="sql") == 1

    def test_changed(self, rows: Rows) -> None:
        """A job that is changed in the meantime stays as it was changed."""
        with self.reading(rows) as (seen, end):
            at = NEVER - timedelta(days=1)
            seen.scheduler.modify_job("job", next_run_time=at, name="changed")
            end()
            assert promised(seen) == at.timestamp()
            assert seen.telemetry.ledger.entry("sql", "job").info.name == "changed"  # type: ignore[union-attr]

    def test_removed_and_added_again(self, rows: Rows) -> None:
        """So does a job that is removed and added again."""
        with self.reading(rows) as (seen, end):
            at = NEVER - timedelta(days=1)
            seen.scheduler.remove_job("job")
            seen.scheduler.add_job(
                jobs.nothing, "interval", hours=1, id="job", jobstore="sql", next_run_time=at
            )
            end()
            assert promised(seen) == at.timestamp()

    def test_uninstrumented(self, rows: Rows) -> None:
        """After `uninstrument` nothing more is read, and the thread that read ends."""
        others = set(threading.enumerate())
        with self.reading(rows) as (seen, end):
            ours = set(threading.enumerate()) - others
            assert "apscheduler-telemetry" in {thread.name for thread in ours}
            seen.telemetry.uninstrument()
            end()
            until(lambda: not any(thread.is_alive() for thread in ours))

    def test_described_without_a_lock(self, rows: Rows) -> None:
        """A callback of the user's may ask the scheduler, which may be waiting for the hooks."""
        self.slow.go_on.set()
        rows.write("job")
        scheduler = scenes.by_hand(jobstores={"default": rows.store()})
        asked, modified = threading.Event(), threading.Event()

        def job_label(job: Any) -> str:
            if threading.current_thread().name == "apscheduler-telemetry":
                asked.set()
                assert modified.wait(jobs.PATIENCE)
            return f"label of {scheduler.get_job(job.id).id}"

        with watched(scheduler, job_label=job_label) as seen:
            scheduler.start()
            assert asked.wait(jobs.PATIENCE)
            scheduler.modify_job("job", name="changed")
            modified.set()
            wait_for_reading(seen)
            assert promised(seen, "label of job") == NEVER.timestamp()
            assert seen.own_errors() == {}


class TestMemory:
    def test_a_job_that_has_run_is_forgotten(self) -> None:
        """Neither a one-off job nor its arguments outlive its run because of telemetry."""

        class Big:
            pass

        with driven() as seen:
            for _ in range(3):
                add(seen, func=scenes.succeed, args=[Big()], trigger="date", id=None, seconds=-0.1)
            seen.scheduler.turn()
            gc.collect()
            assert [thing for thing in gc.get_objects() if type(thing) is Big] == []
            assert seen.value("scheduler_jobs", jobstore="default") == 0


def be_in(seen: Watched, place: str | None) -> None:
    """Let what happens from now on happen there."""
    origins = seen.telemetry._adapter.links._origins
    origins.current = lambda reason: place and f"{place}: {reason}"  # type: ignore[method-assign]


def link_of(seen: Watched, job_id: str) -> Any:
    entry = seen.telemetry.ledger.entry("default", job_id)
    assert entry is not None
    return entry.link


def raise_boom(*args: Any) -> Any:
    raise Boom("on purpose")
