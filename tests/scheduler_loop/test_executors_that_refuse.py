"""Executors that accept no job any more: after a restart, and after the main thread has ended."""

from __future__ import annotations

import logging
import os
from concurrent import futures
from typing import Any
from unittest.mock import MagicMock

import pytest
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import (
    BasePoolExecutor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from apscheduler.schedulers.background import BackgroundScheduler

from apscheduler_telemetry import instrument
from tests.helpers.schedulers import HandDriven, forkserver_pool, hand_driven_scheduler
from tests.helpers.scripts import output_of_script
from tests.helpers.waiting import wait_until
from tests.helpers.watching import due, watched


def fail() -> None:
    """Fail, as the initializer of a pool."""
    raise ValueError


def restart(scheduler: Any) -> None:
    scheduler.start()
    scheduler.shutdown()
    scheduler.start()


class TestRestart:
    """APScheduler shuts the pools of its executors down, and starts no new ones."""

    @pytest.mark.parametrize("executor", [None, ThreadPoolExecutor, ProcessPoolExecutor])
    def test_restarted_scheduler_is_not_up(
        self, executor: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is reported at once, and not only when the first run is lost."""
        executors = {} if executor is None else {"default": executor(1)}
        with watched(HandDriven(executors=executors)) as seen:
            restart(seen.scheduler)
            assert (seen.up(), seen.reasons()) == (0, ["executor_shut_down"])
            [reason] = seen.telemetry.health()["reasons"]
            assert "'default'" in reason["message"]
            assert "Create a new scheduler" in reason["message"]
            [warning] = [r for r in caplog.records if r.name == "apscheduler_telemetry"]
            assert warning.levelno == logging.WARNING
            assert "The scheduler 'default' was started, but" in warning.getMessage()
            assert reason["message"] in warning.getMessage()
            seen.scheduler.add_job(print, **due())
            seen.scheduler.turn()
            assert seen.runs() == {"lost": 1}
            assert seen.errors() == {"submit": 1}

    def test_scheduler_restarted_before_it_was_instrumented_is_not_up(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The same for a scheduler that `instrument` finds running."""
        scheduler = BackgroundScheduler()
        restart(scheduler)
        with watched(scheduler) as seen:
            assert (seen.up(), seen.reasons()) == (0, ["executor_shut_down"])
            assert "Create a new scheduler" in caplog.text

    def test_scheduler_with_new_executors_is_up(self, caplog: pytest.LogCaptureFixture) -> None:
        """An application may replace the executors before it starts the scheduler again."""
        scheduler = HandDriven(executors={"default": ThreadPoolExecutor(1)})
        with watched(scheduler) as seen:
            scheduler.start()
            scheduler.shutdown()
            scheduler.remove_executor("default")
            scheduler.add_executor(ThreadPoolExecutor(1))
            scheduler.start()
            assert (seen.up(), seen.reasons()) == (1, [])
            scheduler.add_job(print, **due())
            scheduler.turn()
            wait_until(lambda: seen.runs() == {"success": 1})
        assert [r for r in caplog.records if r.name == "apscheduler_telemetry"] == []

    def test_executors_without_a_pool_are_not_shut_down(self) -> None:
        """A scheduler whose executor has no pool works again."""
        with watched(hand_driven_scheduler()) as seen:
            restart(seen.scheduler)
            assert (seen.up(), seen.reasons()) == (1, [])

    def test_new_scheduler_gets_the_name(self) -> None:
        """After the advice was followed, all is well."""
        with watched(BackgroundScheduler()) as seen:
            restart(seen.scheduler)
            seen.scheduler.shutdown()
            successor = BackgroundScheduler()
            telemetry = instrument(successor, registry=seen.registry)
            successor.start()
            assert telemetry.health()["status"] == "healthy"
            successor.shutdown()


class TestExecutorsThatCount:
    """Only executors that jobs need are looked at, or all, while there is no job."""

    def test_pool_that_no_job_needs_does_not_count(self) -> None:
        """All jobs run in another executor, which works."""
        executors = {"default": ThreadPoolExecutor(1), "inline": DebugExecutor()}
        with watched(HandDriven(executors=executors)) as seen:
            restart(seen.scheduler)
            job = seen.scheduler.add_job(print, "interval", hours=1, executor="inline")
            assert (seen.up(), seen.reasons()) == (1, [])
            job.modify(executor="default")
            assert (seen.up(), seen.reasons()) == (0, ["executor_shut_down"])
            job.modify(executor="inline")
            assert (seen.up(), seen.reasons()) == (1, [])

    def test_all_executors_count_while_there_is_no_job(self) -> None:
        """The next job may need any of them."""
        executors = {"default": ThreadPoolExecutor(1), "inline": DebugExecutor()}
        with watched(HandDriven(executors=executors)) as seen:
            restart(seen.scheduler)
            assert (seen.up(), seen.reasons()) == (0, ["executor_shut_down"])

    def test_executor_with_a_long_name_counts(self) -> None:
        """Jobs have a shortened label for it."""
        name = "x" * 1_000
        executors = {"default": DebugExecutor(), name: ThreadPoolExecutor(1)}
        with watched(HandDriven(executors=executors)) as seen:
            restart(seen.scheduler)
            seen.scheduler.add_job(print, "interval", hours=1, executor=name)
            assert (seen.up(), seen.reasons()) == (0, ["executor_shut_down"])

    def test_only_executors_of_jobs_are_named(self) -> None:
        """Of two that were shut down, the one that jobs need."""
        executors = {"default": ThreadPoolExecutor(1), "other": ThreadPoolExecutor(1)}
        with watched(HandDriven(executors=executors)) as seen:
            restart(seen.scheduler)
            seen.scheduler.add_job(print, "interval", hours=1, executor="other")
            [reason] = seen.telemetry.health()["reasons"]
            assert "'other'" in reason["message"]
            assert "'default'" not in reason["message"]

    def test_same_after_the_end_of_the_main_thread(self) -> None:
        """A pool that no job needs does not count then, either."""
        output, errors = output_of_script("""
            import threading
            from concurrent.futures import ThreadPoolExecutor
            from apscheduler.executors.debug import DebugExecutor
            from apscheduler.schedulers.background import BackgroundScheduler
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument

            main_thread = threading.main_thread()
            scheduler = BackgroundScheduler(daemon=False, timezone="UTC")
            scheduler.add_executor(DebugExecutor(), "inline")
            ran = threading.Event()
            scheduler.add_job(ran.set, "interval", hours=1, executor="inline", id="job")
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.start()

            def codes():
                return [reason["code"] for reason in telemetry.health()["reasons"]]

            def outlive():
                main_thread.join()
                while True:  # the pools are closed a moment later
                    try:
                        ThreadPoolExecutor(1).submit(bool)
                    except RuntimeError:
                        break
                print(codes(), flush=True)
                scheduler.modify_job("job", executor="default")
                print(codes(), flush=True)
                scheduler.shutdown(wait=False)

            threading.Thread(target=outlive).start()
        """)
        assert (output, errors) == ("[]\n['main_thread_ended']\n", "")


class PoolOfTheUser(BasePoolExecutor):
    """An executor that does not replace its pool."""

    def __init__(self, pool: Any = None) -> None:
        super().__init__(pool or forkserver_pool()._pool)


class ReplacingExecutor(PoolOfTheUser):
    """An executor that replaces its pool when it submits a run."""

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        self._pool = forkserver_pool()._pool
        super()._do_submit_job(job, run_times)


class SubmittingExecutor(PoolOfTheUser):
    """An executor that replaces its pool when it gets a job."""

    def submit_job(self, job: Any, run_times: Any) -> None:
        self._pool = forkserver_pool()._pool
        super().submit_job(job, run_times)


class ExecutorWithoutPool(BasePoolExecutor):
    """An executor that has a pool from its first job on."""

    def __init__(self) -> None:
        BaseExecutor.__init__(self)

    def shutdown(self, wait: bool = True) -> None:  # as of the base class
        """Do nothing."""


class PoolThatFails:
    """A pool with attributes of the names of `concurrent.futures`, which must not be asked."""

    @property
    def _broken(self) -> Any:
        raise NotImplementedError

    _shutdown = _broken

    def shutdown(self, wait: bool) -> None:  # as APScheduler calls it
        """Do nothing."""


class FlagWithoutTruth:
    """An object that is neither true nor false, such as an array."""

    def __bool__(self) -> bool:
        raise ValueError


class PoolWithOtherFlags:
    """A pool whose attributes have other types."""

    _broken = _shutdown = FlagWithoutTruth()

    def shutdown(self, wait: bool) -> None:
        """Do nothing."""


class LazyPool:
    """A proxy that creates its pool when it is first used."""

    def __init__(self) -> None:
        self.asked_for: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name == "asked_for":
            raise AttributeError(name)
        self.asked_for.append(name)
        return getattr(futures.ThreadPoolExecutor(1), name)


class RenewingPool(futures.ThreadPoolExecutor):
    """A pool that accepts calls after its shutdown, too."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._shutdown = False
        return super().submit(function, *args, **kwargs)


class OddPool(futures.ThreadPoolExecutor):
    """A pool of another kind, of whose attributes nothing is known."""

    def _shutdown(self) -> None:  # type: ignore[override]
        raise NotImplementedError


class TestExecutorsOfTheUser:
    """Executors of own classes that inherit APScheduler's."""

    def test_pool_that_is_not_replaced_is_reported(self) -> None:
        """A process pool whose worker was killed accepts nothing any more."""
        with watched(HandDriven(executors={"default": PoolOfTheUser()})) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(os._exit, args=[1], **due())
            seen.scheduler.turn()
            wait_until(lambda: seen.runs() == {"lost": 1})
            wait_until(lambda: seen.reasons() == ["executor_broken"])
            assert seen.up() == 0

    def test_pool_that_may_be_replaced_is_not_reported(self) -> None:
        """An executor that submits in its own way may have a new pool by then."""
        with watched(HandDriven(executors={"default": ReplacingExecutor()})) as seen:
            restart(seen.scheduler)
            assert (seen.up(), seen.reasons()) == (1, [])

    @pytest.mark.parametrize(
        "create",
        [
            SubmittingExecutor,
            ExecutorWithoutPool,
            *(
                pytest.param(lambda kind=kind: PoolOfTheUser(kind()), id=kind.__name__)
                for kind in (RenewingPool, PoolThatFails, PoolWithOtherFlags, MagicMock)
            ),
        ],
    )
    def test_executor_of_which_nothing_is_known_is_up(self, create: Any) -> None:
        """Executors and pools that accept jobs in their own way are up, also after a restart."""
        with watched(HandDriven(executors={"default": create()})) as seen:
            restart(seen.scheduler)
            assert (seen.up(), seen.reasons()) == (1, [])
            assert seen.own_errors() == {}

    def test_pool_that_is_made_when_it_is_used_is_not_used(self) -> None:
        """Neither a health check nor a scrape creates the pool of a proxy."""
        pool = LazyPool()
        with watched(HandDriven(executors={"default": PoolOfTheUser(pool)})) as seen:
            seen.scheduler.start()
            assert (seen.up(), seen.reasons()) == (1, [])
            assert pool.asked_for == []

    def test_attribute_of_another_meaning_is_no_shutdown(self) -> None:
        """Only what is True is taken for the flag of `concurrent.futures`."""
        with watched(HandDriven(executors={"default": PoolOfTheUser(OddPool(1))})) as seen:
            seen.scheduler.start()
            assert (seen.up(), seen.reasons()) == (1, [])


class TestBrokenPools:
    def test_thread_pool_whose_initializer_fails_is_reported(self) -> None:
        """It accepts nothing either, and APScheduler does not replace it."""
        pool = ThreadPoolExecutor(1, pool_kwargs={"initializer": fail})
        with watched(HandDriven(executors={"default": pool})) as seen:
            seen.scheduler.add_job(print, **due())
            seen.scheduler.start()
            assert seen.reasons() == []
            seen.scheduler.turn()
            wait_until(lambda: seen.reasons() == ["executor_broken"])
            assert seen.up() == 0

    def test_process_pool_whose_worker_is_killed_is_not_reported(self) -> None:
        """APScheduler replaces it when it submits the next run."""
        with watched(HandDriven(executors={"default": forkserver_pool()})) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(os._exit, args=[1], **due())
            seen.scheduler.turn()
            wait_until(lambda: seen.runs() == {"lost": 1})
            assert (seen.up(), seen.reasons()) == (1, [])
            seen.scheduler.add_job(abs, args=[1], **due("next"))
            seen.scheduler.turn()
            wait_until(lambda: seen.runs("next") == {"success": 1})
