"""The information about a job, and its link to the span that added it."""

from __future__ import annotations

import pytest

pytest.importorskip("sqlalchemy")

from apscheduler.executors.debug import DebugExecutor

from tests.helpers.faults import raise_boom
from tests.helpers.jobstore_servers import Rows
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.stored_jobs import INFO, add, driven, link_of, origins_of, set_origin
from tests.helpers.waiting import wait_until
from tests.helpers.watching import watched


class TestInfo:
    def test_info_follows_changes_of_the_job(self) -> None:
        """Name, trigger and executor are shown with their current values."""
        with driven(executors={"default": DebugExecutor(), "slow": DebugExecutor()}) as seen:
            job = add(seen)
            known = {**INFO, "jobstore": "default", "persistent": "false"}
            assert seen.job("info", **known) == 1
            job.modify(name="Nightly", executor="slow")
            job.reschedule("cron", hour=2)
            known |= {"name": "Nightly", "executor": "slow", "trigger": "cron[hour='2']"}
            assert seen.job("info", **known) == 1
            wait_until(lambda: seen.job("longest_interval_seconds") == 86_400)

    def test_store_that_outlives_the_process_is_persistent(self, rows: Rows) -> None:
        """A job store that outlives the process has `persistent="true"`."""
        with driven(jobstores={"default": rows.store()}) as seen:
            add(seen)
            assert seen.job("info", **INFO, jobstore="default", persistent="true") == 1

    def test_grace_follows_the_job(self) -> None:
        """The grace is that of the job, but at least 60 seconds."""
        with driven() as seen:
            job = add(seen)
            assert seen.job("grace_seconds") == 60
            job.modify(misfire_grace_time=900)
            assert seen.job("grace_seconds") == 900

    def test_runs_link_to_where_the_job_was_added(self) -> None:
        """Runs link to the span that added the job, also if the job was pending."""
        scheduler = hand_driven_scheduler()
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

    def test_failing_tracer_is_counted_and_the_job_is_added(self) -> None:
        """If the tracer fails, this is counted, and the job is added."""
        with driven() as seen:
            origins_of(seen).find_current_origin = raise_boom
            add(seen, seconds=-0.1)
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert seen.own_errors() == {"spans": 1}
