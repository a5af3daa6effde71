"""Executors and job stores that are added, removed and configured after `instrument()`."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry, generate_latest

from tests.helpers import jobs, watching
from tests.helpers.instrumented_parts import info_of, ours
from tests.helpers.metrics import job_states, recorder_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.waiting import wait_until
from tests.helpers.watching import watched


class TestParts:
    """Executors and job stores that are added and removed while the scheduler runs."""

    def test_added_executor_is_watched_and_removed_one_is_not(self) -> None:
        """An added executor is instrumented; a removed one is not shown any more."""
        with watched(hand_driven_scheduler()) as seen:
            scheduler = seen.scheduler
            scheduler.start()
            executor = DebugExecutor()
            scheduler.add_executor(executor, "late")
            assert seen.value("executor_workers", executor="late") == 1
            self.run(seen, "late")
            assert seen.runs("late") == {"success": 1}
            scheduler.remove_executor("late")
            assert seen.value("executor_workers", executor="late") is None
            scheduler.add_executor(executor, "again")
            assert seen.value("executor_workers", executor="again") == 1
            self.run(seen, "again")
            assert seen.runs("again") == {"success": 1}
        assert ours(scheduler) == []
        assert vars(executor).keys() == vars(scheduler._executors["default"]).keys()

    def test_executor_that_moves_to_another_scheduler_counts_there(self) -> None:
        """An executor that moves to another scheduler is counted there."""
        executor = DebugExecutor()
        registry = CollectorRegistry()
        with (
            watched(hand_driven_scheduler(), registry=registry, name="a") as a,
            watched(hand_driven_scheduler(), registry=registry, name="b") as b,
        ):
            a.scheduler.start()
            b.scheduler.start()
            a.scheduler.add_executor(executor, "moving")
            a.scheduler.remove_executor("moving")
            b.scheduler.add_executor(executor, "moving")
            self.run(b, "moving")
            assert b.runs("moving") == {"success": 1}
            assert list(job_states(a.telemetry)) == []

    def test_added_job_store_is_watched_and_removed_one_is_not(self) -> None:
        """An added job store is instrumented; a removed one is not shown any more."""
        with watched(hand_driven_scheduler()) as seen:
            scheduler = seen.scheduler
            scheduler.start()
            store = MemoryJobStore()
            scheduler.add_jobstore(store, "late")
            assert seen.value("scheduler_jobs", jobstore="late") == 0
            scheduler.add_job(jobs.nothing, "interval", hours=1, jobstore="late")
            assert seen.value("scheduler_jobs", jobstore="late") == 1
            scheduler.remove_jobstore("late")
            assert seen.value("scheduler_jobs", jobstore="late") is None
            scheduler.add_jobstore(store, "again")
            scheduler.add_job(jobs.nothing, "interval", hours=1, jobstore="again")
            assert seen.value("scheduler_jobs", jobstore="again") == 1
        assert ours(scheduler) == []
        assert vars(store).keys() == vars(scheduler._jobstores["default"]).keys()

    def test_scheduler_may_be_configured_after_instrument(self) -> None:
        """A scheduler may be configured after `instrument`, as Flask extensions do."""
        scheduler = BackgroundScheduler()
        with watched(scheduler) as seen:
            scheduler.configure(
                executors={"default": DebugExecutor(), "other": ThreadPoolExecutor(3)},
                jobstores={"default": MemoryJobStore()},
                timezone="Asia/Tokyo",
            )
            assert seen.value("executor_workers", executor="other") == 3
            scheduler.start()
            scheduler.add_job(jobs.nothing, **watching.due())
            wait_until(lambda: seen.runs() == {"success": 1})
            scheduler.remove_all_jobs()
            assert info_of(seen)["timezone"] == "Asia/Tokyo"
        assert ours(scheduler) == []

    def test_removed_parts_are_freed(self) -> None:
        """Removed executors and job stores are freed."""
        with watched(hand_driven_scheduler()) as seen:
            scheduler = seen.scheduler
            scheduler.start()
            references = []
            for number in range(3):
                alias = str(number)
                executor, store = DebugExecutor(), MemoryJobStore()
                scheduler.add_executor(executor, alias)
                scheduler.add_jobstore(store, alias)
                self.run(seen, alias)
                scheduler.remove_executor(alias)
                scheduler.remove_jobstore(alias)
                references += [weakref.ref(executor), weakref.ref(store)]
            del executor, store
            generate_latest(seen.registry)  # what is in the journal until then refers to them
            wait_until(
                lambda: gc.collect() >= 0 and not any(reference() for reference in references)
            )
            self.run(seen, "default")
            assert seen.runs("default") == {"success": 1}
        assert ours(scheduler) == []

    def test_parts_that_a_start_creates_are_watched(self) -> None:
        """The default executor and job store, created by the start, are instrumented."""
        with watched(BackgroundScheduler()) as seen:
            assert recorder_of(seen.telemetry).executors() == {}
            seen.scheduler.start()
            assert seen.value("executor_workers", executor="default") == 10
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    @staticmethod
    def run(seen: Any, executor: str) -> None:
        seen.scheduler.add_job(jobs.nothing, executor=executor, **watching.due(executor))
        seen.scheduler.turn()
