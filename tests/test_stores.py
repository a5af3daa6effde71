"""Changes of jobs in their stores, and jobs that were in a store before."""

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
from apscheduler_telemetry.adapters.apscheduler3 import jobstore_poller
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from apscheduler_telemetry.adapters.apscheduler3.jobstore_reader import SQLAlchemyReader
from apscheduler_telemetry.core import labels
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from apscheduler_telemetry.core.records import JobRecord
from support import START, Clock, adapter_of, frozen, recorder_of, until
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


def next_run(seen: Watched, job_id: str = "job") -> float | None:
    return seen.job("next_run_timestamp_seconds", job_id)


def withdrawn(seen: Watched, job_id: str = "job") -> float | None:
    return seen.job("withdrawn_run_timestamp_seconds", job_id)


IN_A_MINUTE = START.timestamp() + 60


@pytest.mark.usefixtures("clock")
class TestNextRun:
    """The next run of a job, which the user may withdraw."""

    def test_of_a_new_job(self) -> None:
        """The next run of a job is known as soon as the job is in its store."""
        with driven() as seen:
            add(seen)
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_of_a_pending_job(self) -> None:
        """The next run of a job that is added before the start is known after it."""
        with watched(scenes.by_hand()) as seen:
            add(seen)
            assert next_run(seen) is None
            seen.scheduler.start()
            assert next_run(seen) == IN_A_MINUTE

    def test_kept(self, clock: Clock) -> None:
        """After a run the following one is the next, and none was withdrawn."""
        with driven() as seen:
            add(seen)
            clock.advance(60)
            seen.scheduler.turn()
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE + 3600, None)

    def test_not_kept(self, clock: Clock) -> None:
        """While the scheduler does not look for due jobs, the next run stays, and is overdue."""
        with driven() as seen:
            add(seen)
            clock.advance(1000)
            assert next_run(seen) == IN_A_MINUTE
            assert seen.telemetry.health()["jobs"][0]["overdue"] is True

    def test_removed(self) -> None:
        """The next run of a job that the user removes is withdrawn."""
        with driven() as seen:
            add(seen).remove()
            assert (next_run(seen), withdrawn(seen)) == (0, IN_A_MINUTE)

    def test_paused(self) -> None:
        """The next run of a job that is paused is withdrawn; resumed, the job has a new one."""
        with driven() as seen:
            job = add(seen)
            job.pause()
            assert (next_run(seen), withdrawn(seen)) == (0, IN_A_MINUTE)
            job.resume()
            assert (next_run(seen), withdrawn(seen)) == (START.timestamp() + 3600, IN_A_MINUTE)

    @pytest.mark.parametrize("seconds", [1, 7200], ids=["sooner", "later"])
    def test_rescheduled(self, seconds: float) -> None:
        """A job that is given another time has that as its next run, and withdraws the other."""
        with driven() as seen:
            at = START + timedelta(seconds=seconds)
            add(seen).modify(next_run_time=at)
            assert (next_run(seen), withdrawn(seen)) == (at.timestamp(), IN_A_MINUTE)

    def test_rescheduled_by_a_trigger(self) -> None:
        """The next run of a job that is given another trigger comes from that."""
        with driven() as seen:
            add(seen).reschedule("interval", minutes=5)
            assert (next_run(seen), withdrawn(seen)) == (START.timestamp() + 300, IN_A_MINUTE)

    def test_modified_otherwise(self) -> None:
        """A change that leaves the next run alone withdraws nothing."""
        with driven() as seen:
            add(seen).modify(name="other")
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_set_again(self) -> None:
        """A next run that is set again does not count as withdrawn."""
        with driven() as seen:
            job = add(seen)
            at = job.next_run_time
            job.pause()
            assert withdrawn(seen) == IN_A_MINUTE
            job.modify(next_run_time=at)
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_removed_and_added_again(self) -> None:
        """Nor does that of a job that is removed and added again for the same time."""
        with driven() as seen:
            add(seen).remove()
            add(seen)
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_replaced(self) -> None:
        """`replace_existing` is a change by the user like any other."""
        with driven() as seen:
            add(seen)
            add(seen, seconds=90, replace_existing=True)
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE + 30, IN_A_MINUTE)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_finished(self, clock: Clock) -> None:
        """A one-off job that has run has no next run, and none was withdrawn."""
        with driven() as seen:
            add(seen, trigger="date")
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert (next_run(seen), withdrawn(seen)) == (0, None)

    def test_unknown_executor(self, clock: Clock) -> None:
        """If APScheduler removes a job, as its executor is unknown, the next run stays expected."""
        with driven() as seen:
            add(seen, executor="gpu")
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.scheduler.get_job("job") is None
            assert seen.runs() == {"lost": 1}
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    def test_all_removed(self) -> None:
        """`remove_all_jobs` withdraws the next run of each job."""
        with driven() as seen:
            add(seen, id="a")
            add(seen, id="b", seconds=90)
            seen.scheduler.remove_all_jobs()
            assert (next_run(seen, "a"), withdrawn(seen, "a")) == (0, IN_A_MINUTE)
            assert (next_run(seen, "b"), withdrawn(seen, "b")) == (0, IN_A_MINUTE + 30)
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    def test_shut_down(self) -> None:
        """A memory store empties itself on shutdown, which withdraws no run."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)

    def test_job_store_removed(self) -> None:
        """Removing a job store withdraws the next runs of its jobs."""
        with driven() as seen:
            seen.scheduler.add_jobstore(MemoryJobStore(), "other")
            add(seen, jobstore="other")
            assert seen.value("scheduler_jobs", jobstore="other") == 1
            seen.scheduler.remove_jobstore("other", shutdown=False)
            assert (next_run(seen), withdrawn(seen)) == (0, IN_A_MINUTE)
            assert seen.value("scheduler_jobs", jobstore="other") is None

    @pytest.mark.parametrize("change", ["remove", "pause"])
    def test_withdrawn_by_a_listener(self, clock: Clock, change: str) -> None:
        """A change by a listener in the middle of a pass is the user's, not the loop's."""
        with driven() as seen:
            job = add(seen)
            seen.scheduler.add_listener(lambda event: getattr(job, change)(), EVENT_JOB_SUBMITTED)
            clock.advance(60)
            seen.scheduler.turn()
            assert (next_run(seen), withdrawn(seen)) == (0, IN_A_MINUTE + 3600)

    def test_withdrawn_by_a_job(self, clock: Clock) -> None:
        """So is a change of another job by a job that runs in the middle of a pass."""
        with driven() as seen:
            add(seen, func=lambda: seen.scheduler.remove_job("other"))
            add(seen, id="other", seconds=90)
            clock.advance(60)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert (next_run(seen, "other"), withdrawn(seen, "other")) == (0, IN_A_MINUTE + 30)

    @pytest.mark.parametrize("failed", [False, True], ids=["removed", "failed"])
    def test_dropped(self, clock: Clock, failed: bool) -> None:
        """The series of a job that is gone stay for 15 minutes, long enough to be scraped."""
        with driven() as seen:
            if failed:
                add(seen, executor="gpu")
                clock.advance(60)
                seen.scheduler.turn()
            else:
                add(seen).remove()
            clock.advance(REMOVED_JOB_SECONDS - 1)
            assert next_run(seen) == (IN_A_MINUTE if failed else 0)
            clock.advance(2)
            assert next_run(seen) is None
            assert seen.job("runs_total", outcome="lost") is None


@pytest.mark.usefixtures("clock")
class TestRestart:
    """A scheduler may be shut down and started again in one process."""

    def test_jobs_of_a_memory_store_are_gone(self, clock: Clock) -> None:
        """They count no more; their next runs were not withdrawn, and stay for 15 minutes."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            seen.scheduler.start()
            assert seen.value("scheduler_jobs", jobstore="default") == 0
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)
            clock.advance(REMOVED_JOB_SECONDS + 1)
            assert next_run(seen) is None

    def test_jobs_that_are_added_again(self, clock: Clock) -> None:
        """A job that is added again keeps its state."""
        with driven() as seen:
            add(seen)
            seen.scheduler.shutdown()
            add(seen, seconds=90)
            seen.scheduler.start()
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            assert next_run(seen) == IN_A_MINUTE + 30
            clock.advance(REMOVED_JOB_SECONDS * 2)
            assert next_run(seen) == IN_A_MINUTE + 30

    def test_jobs_of_a_persistent_store(self, rows: Rows) -> None:
        """Jobs in a store that outlives the process are still there."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            seen.scheduler.shutdown()
            seen.scheduler.start()
            wait_for_reading(seen)
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            assert next_run(seen) == IN_A_MINUTE

    def test_another_job_store(self) -> None:
        """A new configuration removes executors and job stores without an event."""
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
            assert recorder_of(seen.telemetry).executors().keys() == {"slow"}
            assert recorder_of(seen.telemetry).jobstores().keys() == {"new"}
            seen.scheduler.start()
            add(seen, jobstore="new", executor="slow")
            assert seen.value("scheduler_jobs", jobstore="new") == 1
            assert seen.value("scheduler_jobs", jobstore="old") is None
            assert seen.own_errors() == {}


class Foreign(BaseJobStore):
    """A store of the user's, which is none of APScheduler's."""

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
            until(lambda: next_run(seen) == next_run(seen, "other") == NEVER.timestamp())
            assert withdrawn(seen) is None
            assert seen.value("scheduler_jobs", jobstore="default") == 2
            until(lambda: seen.job("shortest_interval_seconds") == 3600)

    def test_of_a_running_scheduler(self) -> None:
        """Jobs in the memory of a running scheduler are known when `instrument` returns."""
        scheduler = scenes.by_hand()
        scheduler.start()
        scheduler.add_job(jobs.nothing, "interval", hours=1, id="job", next_run_time=NEVER)
        with watched(scheduler) as seen:
            assert next_run(seen) == NEVER.timestamp()

    def test_in_a_store_that_is_added(self, rows: Rows) -> None:
        """So are those of a job store that is added to a scheduler while it runs."""
        rows.write("job")
        with driven() as seen:
            seen.scheduler.add_jobstore(rows.store(), "sql")
            until(lambda: next_run(seen) == NEVER.timestamp())
            assert seen.value("scheduler_jobs", jobstore="sql") == 1

    def test_undeserializable_rows_stay(self, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
        """APScheduler deletes rows that it cannot deserialize; a reading by telemetry must not."""
        rows.write("job", "spoilt")
        rows.spoil("spoilt")
        with driven(jobstores={"default": rows.store()}) as seen:
            until(lambda: next_run(seen) == NEVER.timestamp())
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
        """A failure of the store is no failure of telemetry; it is logged once, and read again."""
        monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL", 0.01)
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
        """A job that cannot be described does not hide the others."""
        scheduler = scenes.by_hand()
        scheduler.start()
        for job_id in "ab":
            scheduler.add_job(
                jobs.nothing, "interval", hours=1, id=job_id, next_run_time=NEVER, name=job_id
            )
        label_value = labels.label_value
        monkeypatch.setattr(
            labels, "label_value", lambda name: raise_boom() if name == "a" else label_value(name)
        )
        with watched(scheduler) as seen:
            assert next_run(seen, "a") is None
            assert next_run(seen, "b") == NEVER.timestamp()
            assert seen.own_errors() == {"adapter": 1}

    def test_a_trigger_without_a_text(self) -> None:
        """A trigger of the user's that has no text is described by its type."""

        class Mute(IntervalTrigger):
            def __str__(self) -> str:
                raise Boom("no words")

        with driven() as seen:
            # Not due, as APScheduler itself cannot log that such a job runs.
            seen.scheduler.add_job(jobs.nothing, Mute(hours=1), id="job", next_run_time=NEVER)
            assert next_run(seen) == NEVER.timestamp()
            assert seen.own_errors() == {}

    def test_changed_by_another_process(self, rows: Rows, clock: Clock) -> None:
        """A due job that another process has changed is known as it is now."""
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
            assert next_run(seen) == START.timestamp() + 30 + 3600
            assert withdrawn(seen) is None


INFO = {
    "name": "nothing",
    "func": "support_jobs:nothing",
    "trigger": "interval[1:00:00]",
    "executor": "default",
}


class TestUndeserializable:
    """Rows that APScheduler cannot deserialize, and therefore deletes."""

    def test_due(self, rows: Rows, clock: Clock) -> None:
        """The run of a due job whose row is deleted is lost, and its next run stays expected."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            add(seen, id="other")
            rows.spoil("job")
            clock.advance(61)
            seen.scheduler.turn()
            assert rows.ids() == {"other"}
            assert seen.errors() == {"restore": 1}
            assert seen.runs() == {"lost": 1}
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)
            assert seen.job("last_failure_timestamp_seconds") == IN_A_MINUTE + 1
            assert seen.runs("other") == {"success": 1}
            assert seen.value("scheduler_jobs", jobstore="default") == 1
            clock.advance(REMOVED_JOB_SECONDS - 1)
            assert next_run(seen) == IN_A_MINUTE
            clock.advance(2)
            assert next_run(seen) is None

    def test_listed(self, rows: Rows, clock: Clock) -> None:
        """A row is also deleted when the user lists the jobs, though the job was not due yet."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            add(seen, id="other")
            wait_for_reading(seen)
            rows.spoil("job")
            assert [job.id for job in seen.scheduler.get_jobs()] == ["other"]
            assert rows.ids() == {"other"}
            assert seen.errors() == {"restore": 1}
            assert seen.runs() == {}
            assert (next_run(seen), withdrawn(seen)) == (IN_A_MINUTE, None)
            assert seen.value("scheduler_jobs", jobstore="default") == 1

    def test_looked_up(self, rows: Rows, clock: Clock) -> None:
        """Looking up such a job raises; nothing is deleted, and nothing counts."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            rows.spoil("job")
            with pytest.raises(pickle.UnpicklingError):
                seen.scheduler.get_job("job")
            assert seen.errors() == {}
            assert rows.ids() == {"job"}

    def test_not_known(self, rows: Rows, clock: Clock) -> None:
        """A row that was never readable counts as an error, though its job is not known."""
        rows.write("job", at=START)
        rows.spoil("job")
        with driven(jobstores={"default": rows.store()}) as seen:
            wait_for_reading(seen)
            seen.scheduler.turn()
            assert seen.errors() == {"restore": 1}
            assert list(recorder_of(seen.telemetry).snapshots()) == []

    def test_after_uninstrument(self, rows: Rows, clock: Clock) -> None:
        """A store that is no longer watched is no longer counted."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen, seconds=0)
            rows.spoil("job")
            seen.telemetry.uninstrument()
            seen.scheduler.turn()
            assert set(recorder_of(seen.telemetry).scheduler_error_counts().values()) == {0}


class TestInfo:
    def test_follows_the_job(self) -> None:
        """The name, trigger and executor of a job are shown as they are now."""
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
        """The grace is the job's own, and at least 60 seconds."""
        with driven() as seen:
            job = add(seen)
            assert seen.job("grace_seconds") == 60
            job.modify(misfire_grace_time=900)
            assert seen.job("grace_seconds") == 900

    def test_link(self) -> None:
        """Runs link to where the job was added; if it was pending, to `add_job`."""
        scheduler = scenes.by_hand()
        with watched(scheduler) as seen:
            set_origin(seen, "request")
            add(seen, id="pending")
            set_origin(seen, "start")
            scheduler.start()
            assert link_of(seen, "pending") == "request: added"
            set_origin(seen, "another request")
            add(seen)
            assert link_of(seen, "job") == "another request: added"
            set_origin(seen, "a change")
            scheduler.modify_job("job", name="other")
            assert link_of(seen, "job") == "another request: added"
            set_origin(seen, None)
            add(seen, replace_existing=True)
            assert link_of(seen, "job") is None

    def test_failing_tracer(self) -> None:
        """A tracer that fails is counted, and the job is added all the same."""
        with driven() as seen:
            origins_of(seen).current = raise_boom
            add(seen, seconds=-0.1)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert seen.own_errors() == {"spans": 1}


class Slow:
    """Delays what telemetry has read until the test lets it go on."""

    def __init__(self) -> None:
        self.read, self.go_on = threading.Event(), threading.Event()

    def hold(self) -> None:
        if threading.current_thread().name == "apscheduler-telemetry":
            self.read.set()
            assert self.go_on.wait(jobs.PATIENCE)


class SlowStore(SQLAlchemyJobStore):
    """A store that lists jobs in its own way, and is slow for telemetry."""

    def __init__(self, url: str, slow: Slow) -> None:
        super().__init__(url, engine_options=NO_POOL)
        self.slow = slow

    def get_all_jobs(self) -> Any:
        jobs_then = super().get_all_jobs()
        self.slow.hold()
        return jobs_then


class SlowReader(SQLAlchemyReader):
    """A reader that is slow."""

    slow: Slow

    def fetch_states(self, job_ids: Any) -> Any:
        states = super().fetch_states(job_ids)
        self.slow.hold()
        return states


class TestRaces:
    """A reading does not undo what changes meanwhile."""

    @pytest.fixture(params=["all jobs", "rows"], autouse=True)
    def way_of_reading(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Read through the store itself, or with a reader."""
        self.slow = SlowReader.slow = Slow()
        self.by_rows = request.param == "rows"
        if self.by_rows:
            monkeypatch.setattr(jobstore_poller, "create_reader", SlowReader)

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
        """Without a change both jobs are known, which shows that these tests test something."""
        with self.reading(rows) as (seen, end):
            assert next_run(seen) is None
            end()
            assert next_run(seen) == next_run(seen, "other") == NEVER.timestamp()

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
        """A job that is removed meanwhile does not come back."""
        with self.reading(rows) as (seen, end):
            remove(seen.scheduler)
            end()
            assert not next_run(seen)

    def test_removed_and_others_not(self, rows: Rows) -> None:
        """The removal of one job does not hide another."""
        with self.reading(rows) as (seen, end):
            seen.scheduler.remove_job("job")
            end()
            assert next_run(seen, "other") == NEVER.timestamp()
            assert seen.value("scheduler_jobs", jobstore="sql") == 1

    def test_changed(self, rows: Rows) -> None:
        """A job that is changed meanwhile stays as it was changed."""
        with self.reading(rows) as (seen, end):
            at = NEVER - timedelta(days=1)
            seen.scheduler.modify_job("job", next_run_time=at, name="changed")
            end()
            assert next_run(seen) == at.timestamp()
            assert job_record(seen, "sql").info.name == "changed"

    def test_removed_and_added_again(self, rows: Rows) -> None:
        """A job that is removed and added again meanwhile stays as it was added."""
        with self.reading(rows) as (seen, end):
            at = NEVER - timedelta(days=1)
            seen.scheduler.remove_job("job")
            seen.scheduler.add_job(
                jobs.nothing, "interval", hours=1, id="job", jobstore="sql", next_run_time=at
            )
            end()
            assert next_run(seen) == at.timestamp()

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
        """A callback of the user's may call the scheduler, which may wait for the hooks."""
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
            assert next_run(seen, "label of job") == NEVER.timestamp()
            assert seen.own_errors() == {}


class TestMemory:
    def test_a_job_that_has_run_is_forgotten(self) -> None:
        """Telemetry keeps neither a one-off job nor its arguments alive after its run."""

        class Big:
            pass

        with driven() as seen:
            for _ in range(3):
                add(seen, func=scenes.succeed, args=[Big()], trigger="date", id=None, seconds=-0.1)
            seen.scheduler.turn()
            gc.collect()
            assert [thing for thing in gc.get_objects() if type(thing) is Big] == []
            assert seen.value("scheduler_jobs", jobstore="default") == 0


def set_origin(seen: Watched, place: str | None) -> None:
    """Set the origin of what happens from now on."""
    origins_of(seen).current = lambda reason: place and f"{place}: {reason}"


def link_of(seen: Watched, job_id: str) -> Any:
    tracked = adapter_of(seen.telemetry)._jobs.get(("default", job_id))
    assert tracked is not None
    return tracked.added_origin


def origins_of(seen: Watched) -> Any:
    return adapter_of(seen.telemetry)._links._origins


def job_record(seen: Watched, alias: str) -> JobRecord:
    record = recorder_of(seen.telemetry).find_record(alias, "job")
    assert record is not None
    return record


def raise_boom(*args: Any) -> Any:
    raise Boom("on purpose")
