"""`uninstrument()` restores everything that `instrument()` has patched."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.core.model import Outcome
from tests.helpers import jobs, watching
from tests.helpers.instrumented_parts import (
    assert_same,
    executors,
    ours,
    snapshot,
    started,
    stores,
    wrap,
)
from tests.helpers.metrics import job_states, recorder_of
from tests.helpers.rigs import Gate
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.waiting import wait_until, wait_until_async
from tests.helpers.watching import watched


class TestPutBack:
    """`uninstrument` leaves no attribute behind, and restores the former ones."""

    @pytest.mark.parametrize("kind", [BackgroundScheduler, BlockingScheduler])
    def test_scheduler_that_never_started_is_as_before(
        self, tmp_path: Path, kind: type[Any]
    ) -> None:
        """A scheduler that was never started is restored."""
        scheduler = kind(executors=executors(), jobstores=stores(tmp_path))
        scheduler.add_listener(print)
        before = snapshot(scheduler)
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        assert {part for part, _ in ours(scheduler)} == {
            "scheduler",
            *(part for part in before if part.startswith(("executor", "store"))),
        }
        telemetry.uninstrument()
        assert_same(snapshot(scheduler), before)

    @pytest.mark.parametrize("kind", [BackgroundScheduler, BlockingScheduler])
    def test_running_scheduler_is_as_before(self, tmp_path: Path, kind: type[Any]) -> None:
        """A running scheduler is restored; its pools were never patched."""
        with started(kind(executors=executors(), jobstores=stores(tmp_path))) as scheduler:
            wait_until(lambda: not scheduler._event.is_set())
            before = snapshot(scheduler)
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            assert not [part for part, _ in ours(scheduler) if part.startswith("pool")]
            telemetry.uninstrument()
            assert_same(snapshot(scheduler), before)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="all attributes are equally slow there")
    def test_no_object_gets_a_dictionary_for_attributes(self) -> None:
        """No object gets a `__dict__`, which would make access to it slower."""
        # Classes of its own: Python limits the attribute names of all instances of a class, and
        # other tests may have reached that limit.
        executor, store, scheduler = (
            type("Fresh", (base,), {})()
            for base in (DebugExecutor, MemoryJobStore, BackgroundScheduler)
        )
        scheduler.configure(executors={"default": executor}, jobstores={"default": store})
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        for is_instrumented in (True, False):
            if not is_instrumented:
                telemetry.uninstrument()
            for thing, name in (
                (scheduler, "_process_jobs"),
                (executor, "submit_job"),
                (store, "update_job"),
            ):
                assert getattr(thing, name) is not None
                kept = [r for r in gc.get_referents(thing) if isinstance(r, dict) and name in r]
                assert kept == []
                is_missing_or_has_trusted_owner = getattr(thing, name).__module__.startswith(
                    "apscheduler_telemetry."
                )
                assert is_missing_or_has_trusted_owner == is_instrumented

    def test_asyncio_scheduler_is_as_before(self, tmp_path: Path) -> None:
        """An asyncio scheduler is restored."""

        async def main() -> None:
            scheduler = AsyncIOScheduler(
                executors={**executors(), "loop": AsyncIOExecutor()}, jobstores=stores(tmp_path)
            )
            scheduler.start()
            await asyncio.sleep(0)
            before = snapshot(scheduler)
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            telemetry.uninstrument()
            assert_same(snapshot(scheduler), before)
            scheduler.shutdown()
            await wait_until_async(lambda: not scheduler.running)

        asyncio.run(main())

    def test_scheduler_is_as_before_after_runs_in_all_executors(self) -> None:
        """After runs in all executors, everything is restored, and so are APScheduler's counts."""

        async def main() -> None:
            scheduler = AsyncIOScheduler(executors={**executors(), "loop": AsyncIOExecutor()})
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.start()
            for alias in scheduler._executors:
                scheduler.add_job(jobs.nothing, executor=alias, **watching.due(alias))
            await wait_until_async(
                lambda: (
                    sum(job.outcomes[Outcome.SUCCESS] for job in job_states(telemetry))
                    == len(scheduler._executors)
                )
            )
            telemetry.uninstrument()
            assert ours(scheduler) == []
            counts = [executor._instances for executor in scheduler._executors.values()]
            await wait_until_async(lambda: not any(sum(count.values()) for count in counts))
            assert {type(job_id) for count in counts for job_id in count} <= {str}
            scheduler.shutdown()
            await wait_until_async(lambda: not scheduler.running)

        asyncio.run(main())

    def test_earlier_wrappers_are_put_back(self) -> None:
        """A method that was wrapped before `instrument` has that wrapper again."""
        scheduler = BackgroundScheduler()
        theirs = scheduler.add_job = wrap(scheduler.add_job)
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        assert scheduler.add_job is not theirs
        telemetry.uninstrument()
        assert vars(scheduler)["add_job"] is theirs

    def test_later_wrappers_stay(self) -> None:
        """A wrapper that was added after `instrument` stays; the patch below it does nothing."""
        scheduler = hand_driven_scheduler()
        registry = CollectorRegistry()
        before = set(vars(scheduler))
        telemetry = instrument(scheduler, registry=registry)
        executor = scheduler._executors["default"]
        theirs = scheduler._process_jobs = wrap(scheduler._process_jobs)
        submit = executor.submit_job = wrap(executor.submit_job)
        telemetry.uninstrument()
        assert vars(scheduler)["_process_jobs"] is theirs
        assert set(vars(scheduler)) == {*before, "_process_jobs"}
        assert ours(scheduler) == []
        scheduler.start()
        ran: list[Any] = []
        scheduler.add_job(ran.append, args=[1], **watching.due())
        scheduler.turn()
        assert ran == [1]
        assert (theirs.calls, submit.calls) == (1, 1)
        assert list(job_states(telemetry)) == []
        assert set(recorder_of(telemetry).scheduler_error_counts().values()) == {0}
        scheduler.shutdown()

    def test_scheduler_with_later_wrappers_can_be_instrumented_again(self) -> None:
        """Such a scheduler can be instrumented again, and each run counts once."""
        scheduler = hand_driven_scheduler()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        executor = scheduler._executors["default"]
        executor._do_submit_job = wrap(executor._do_submit_job)
        telemetry.uninstrument()
        with watched(scheduler) as seen:
            scheduler.start()
            scheduler.add_job(jobs.nothing, **watching.due())
            scheduler.turn()
            assert seen.runs() == {"success": 1}
        assert ours(scheduler) == []

    def test_replaced_logger_stays(self) -> None:
        """A logger that was set after `instrument` stays."""
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        mine = scheduler._logger = logging.getLogger("mine")
        telemetry.uninstrument()
        assert scheduler._logger is mine

    def test_class_and_other_schedulers_are_not_changed(self) -> None:
        """Neither the class nor another scheduler is changed."""
        classes = [BackgroundScheduler, MemoryJobStore, DebugExecutor, *BackgroundScheduler.__mro__]
        before = [dict(vars(cls)) for cls in classes]
        other = BackgroundScheduler()
        alone = snapshot(other)
        with watched(BackgroundScheduler(executors={"default": DebugExecutor()})):
            assert [dict(vars(cls)) for cls in classes] == before
            assert_same(snapshot(other), alone)

    def test_registry_shows_nothing_more(self) -> None:
        """The registry shows no series of the scheduler any more."""
        registry = CollectorRegistry()
        Gauge("mine", "stays", registry=registry)
        before = generate_latest(registry)
        telemetry = instrument(BackgroundScheduler(), registry=registry)
        assert generate_latest(registry) != before
        telemetry.uninstrument()
        assert generate_latest(registry) == before

    def test_listeners_stay_in_their_order(self) -> None:
        """The user's listeners are the same, in the same order."""
        scheduler = BackgroundScheduler()
        scheduler.add_listener(print)
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.add_listener(repr)
        telemetry.uninstrument()
        assert [callback for callback, _ in scheduler._listeners] == [print, repr]

    def test_no_thread_of_ours_is_left(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No thread is left, also if it had work to do."""
        monkeypatch.setattr(BackgroundWorker, "IDLE_SECONDS", 1e6)
        before = set(threading.enumerate())  # other tests may have left some

        def names() -> set[str]:
            return {thread.name for thread in set(threading.enumerate()) - before}

        scheduler = BackgroundScheduler(jobstores=stores(tmp_path))
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.start()
        scheduler.add_job(jobs.nothing, "interval", hours=1)
        telemetry.uninstrument()
        wait_until(lambda: "apscheduler-telemetry" not in names())
        scheduler.add_job(jobs.nothing, "interval", hours=1)
        assert "apscheduler-telemetry" not in names()
        scheduler.shutdown()

    def test_servers_of_the_handle_are_closed(self) -> None:
        """Servers that were started from the handle are closed."""
        telemetry = instrument(BackgroundScheduler(), registry=CollectorRegistry())
        port = telemetry.start_http_server(port=0).port
        socket.create_connection(("127.0.0.1", port)).close()
        telemetry.uninstrument()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    def test_second_uninstrument_does_nothing(self) -> None:
        """A second `uninstrument` does nothing, also if the scheduler was instrumented again."""
        scheduler = hand_driven_scheduler()
        first = instrument(scheduler, registry=CollectorRegistry())
        first.uninstrument()
        first.uninstrument()
        with watched(scheduler) as seen:
            first.uninstrument()
            scheduler.start()
            assert seen.value("scheduler_state", state="running") == 1
            assert ours(scheduler) != []

    def test_run_under_way_ends_as_without_telemetry(self) -> None:
        """A run in flight ends as without telemetry, and listeners get its event."""
        gate = Gate()
        scheduler = BackgroundScheduler()
        events: list[Any] = []
        with watched(scheduler) as seen:
            scheduler.start()
            scheduler.add_job(gate.hold, **watching.due())
            gate.wait_for_run()
            scheduler.add_listener(events.append, EVENT_JOB_EXECUTED)
            seen.telemetry.uninstrument()
            gate.open()
            wait_until(lambda: events)
            assert [event.job_id for event in events] == ["job"]
            # A fast run may end before APScheduler counts it in, which leaves a 0 behind.
            wait_until(lambda: not any(scheduler._executors["default"]._instances.values()))
