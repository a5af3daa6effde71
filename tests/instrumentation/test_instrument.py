"""`instrument()`: before and after the start, repeatedly, for several schedulers; its handle."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apscheduler
import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import DuplicateNameError, Expectations, instrument
from apscheduler_telemetry.core.model import Outcome
from tests.helpers import jobs, watching
from tests.helpers.instrumented_parts import (
    assert_same,
    info_of,
    ours,
    runs_of,
    snapshot,
    started,
    stores,
    watched_only,
)
from tests.helpers.metrics import job_states
from tests.helpers.rigs import Gate
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.waiting import wait_until, wait_until_async
from tests.helpers.watching import watched


class TestWhen:
    @pytest.mark.parametrize("kind", [BackgroundScheduler, BlockingScheduler])
    @pytest.mark.parametrize("before", [True, False], ids=["before start", "after start"])
    def test_scheduler_can_be_instrumented_before_and_after_its_start(
        self, kind: type[Any], before: bool
    ) -> None:
        """A scheduler can be instrumented before and after its start."""
        scheduler = kind()
        registry = CollectorRegistry()
        telemetry = instrument(scheduler, registry=registry) if before else None
        with started(scheduler):
            telemetry = telemetry or instrument(scheduler, registry=registry)
            scheduler.add_job(jobs.nothing, **watching.due())
            wait_until(lambda: runs_of(registry) == {"default": 1})
        telemetry.uninstrument()

    @pytest.mark.parametrize("before", [True, False], ids=["before start", "after start"])
    def test_asyncio_scheduler_can_be_instrumented_before_and_after_its_start(
        self, before: bool
    ) -> None:
        """An asyncio scheduler can be instrumented before and after its start."""

        async def main() -> None:
            scheduler = AsyncIOScheduler()
            registry = CollectorRegistry()
            telemetry = instrument(scheduler, registry=registry) if before else None
            scheduler.start()
            telemetry = telemetry or instrument(scheduler, registry=registry)
            scheduler.add_job(jobs.nothing, **watching.due())
            await wait_until_async(lambda: runs_of(registry) == {"default": 1})
            telemetry.uninstrument()
            scheduler.shutdown()
            await wait_until_async(lambda: not scheduler.running)

        asyncio.run(main())

    def test_job_may_instrument_its_own_scheduler(self) -> None:
        """A job that runs during a pass may instrument and uninstrument its own scheduler."""
        scheduler = hand_driven_scheduler()
        registry = CollectorRegistry()
        scheduler.start()
        scheduler.add_job(lambda: instrument(scheduler, registry=registry), **watching.due("on"))
        scheduler.turn()
        scheduler.add_job(jobs.nothing, **watching.due())
        scheduler.turn()
        assert runs_of(registry) == {"default": 1}
        scheduler.add_job(
            lambda: instrument(scheduler, registry=registry).uninstrument(), **watching.due("off")
        )
        scheduler.turn()
        assert ours(scheduler) == []
        assert generate_latest(registry) == b""
        scheduler.shutdown()

    def test_run_from_before_is_not_taken_for_a_later_one(self) -> None:
        """A run that started before `instrument` is not mistaken for a later one."""
        first, second = Gate(), Gate()
        gates = iter([first, second])
        scheduler = hand_driven_scheduler(executors={"default": ThreadPoolExecutor(2)})
        scheduler.start()
        job = scheduler.add_job(lambda: next(gates).hold(), max_instances=2, **watching.due())
        scheduler.turn()
        first.wait_for_run()
        with watched(scheduler) as seen:
            job.modify(next_run_time=watching.ago(0.05))
            scheduler.turn()
            second.wait_for_run()
            instances = scheduler._executors["default"]._instances
            first.open()
            wait_until(lambda: instances["job"] == 1)
            assert (seen.runs(), seen.job("running")) == ({}, 1)
            second.open()
            wait_until(lambda: seen.runs() == {"success": 1})
            assert seen.job("run_duration_seconds_count") == 1

    def test_instrument_works_again_after_uninstrument(self) -> None:
        """After `uninstrument`, a new handle starts from zero."""
        scheduler = hand_driven_scheduler()
        scheduler.start()
        for _ in range(3):
            with watched_only(scheduler) as seen:
                scheduler.add_job(jobs.nothing, **watching.due())
                scheduler.turn()
                assert seen.runs() == {"success": 1}
                scheduler.remove_job("job")
        scheduler.shutdown()


class TestTwice:
    def test_instrumented_scheduler_keeps_its_handle(self) -> None:
        """Instrumenting a scheduler again returns the same handle."""
        scheduler = BackgroundScheduler()
        registry = CollectorRegistry()
        telemetry = instrument(scheduler, registry=registry, name="shop")
        before = snapshot(scheduler)
        assert instrument(scheduler, registry=registry, name="shop") is telemetry
        assert_same(snapshot(scheduler), before)
        telemetry.uninstrument()

    @pytest.mark.parametrize(
        "other",
        [
            {"name": "other"},
            {"registry": CollectorRegistry()},
            {"expect": Expectations(grace=5)},
            {"singleton": False},
            {"job_label": str},
            {"duration_buckets": [1, 2]},
        ],
        ids=lambda other: next(iter(other)),
    )
    def test_other_options_are_ignored_with_a_warning(self, other: Mapping[str, Any]) -> None:
        """Other options are ignored; the warning points to the caller's line."""
        scheduler = BackgroundScheduler()
        options = {"registry": CollectorRegistry(), "name": "shop"}
        telemetry = instrument(scheduler, **options)  # type: ignore[arg-type]
        with pytest.warns(RuntimeWarning, match=r"'shop'.*uninstrument\(\)") as warned:
            assert instrument(scheduler, **{**options, **other}) is telemetry
        assert [warning.filename for warning in warned] == [__file__]
        telemetry.uninstrument()

    def test_threads_that_instrument_at_once_get_one_handle(self) -> None:
        """Threads that instrument one scheduler at once get one handle."""
        scheduler = BackgroundScheduler()
        registry = CollectorRegistry()
        barrier = threading.Barrier(8)
        handles = []

        def work() -> None:
            barrier.wait()
            handles.append(instrument(scheduler, registry=registry))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, handles))) == 1
        handles[0].uninstrument()
        assert ours(scheduler) == []


class TestSeveral:
    def test_two_schedulers_of_one_registry_are_kept_apart(self) -> None:
        """Two schedulers of one registry, and their jobs, are distinguished by a label."""
        registry = CollectorRegistry()
        with (
            watched(hand_driven_scheduler(), registry=registry, name="a") as a,
            watched(hand_driven_scheduler(), registry=registry, name="b") as b,
        ):
            for seen, count in ((a, 1), (b, 2)):
                seen.scheduler.start()
                for _ in range(count):
                    seen.scheduler.add_job(jobs.nothing, **watching.due(), replace_existing=True)
                    seen.scheduler.turn()
            assert runs_of(registry) == {"a": 1, "b": 2}
            a.telemetry.uninstrument()
            assert runs_of(registry) == {"b": 2}

    def test_two_schedulers_of_one_name_live_on_two_registries(self) -> None:
        """Two schedulers can have one name on two registries."""
        with watched(hand_driven_scheduler()) as a, watched(hand_driven_scheduler()) as b:
            a.scheduler.start()
            assert a.up() == 1
            assert b.up() == 0

    def test_second_scheduler_of_one_name_is_refused(self) -> None:
        """A scheduler with the name of one that runs is rejected and unchanged."""
        registry = CollectorRegistry()
        first, second = hand_driven_scheduler(), hand_driven_scheduler()
        before = snapshot(second)
        with watched(first, registry=registry, name="shop") as seen:
            first.start()
            with pytest.raises(DuplicateNameError, match=r"'shop'.*name="):
                instrument(second, registry=registry, name="shop")
            assert_same(snapshot(second), before)
            assert seen.up() == 1
        with watched(second, registry=registry, name="shop") as seen:
            assert seen.up() == 0

    def test_name_is_free_when_its_scheduler_is_gone(self) -> None:
        """The name of a freed scheduler can be used again."""
        registry = CollectorRegistry()
        instrument(hand_driven_scheduler(), registry=registry, name="shop")
        gc.collect()
        with watched(hand_driven_scheduler(), registry=registry, name="shop") as seen:
            assert seen.up() == 0

    def test_default_registry_is_that_of_prometheus_client(self) -> None:
        """The default registry is that of prometheus_client."""
        from prometheus_client import REGISTRY

        telemetry = instrument(BackgroundScheduler(), name="on the default registry")
        labels = {"scheduler": "on the default registry"}
        assert REGISTRY.get_sample_value("apscheduler_scheduler_up", labels) == 0
        telemetry.uninstrument()
        assert REGISTRY.get_sample_value("apscheduler_scheduler_up", labels) is None


class TestHandle:
    def test_scheduler_info_names_type_version_host_and_time_zone(self) -> None:
        """`scheduler_info` has type, version, host, process, time zone and `singleton`."""
        scheduler = BackgroundScheduler(timezone="Asia/Tokyo")
        with watched(scheduler, singleton=False) as seen:
            import os

            assert info_of(seen) == {
                "scheduler": "default",
                "type": "BackgroundScheduler",
                "version": apscheduler.__version__,
                "hostname": socket.gethostname(),
                "pid": str(os.getpid()),
                "timezone": "Asia/Tokyo",
                "singleton": "false",
            }

    def test_handle_has_the_name_of_its_scheduler(self) -> None:
        """The handle has the name of its scheduler."""
        with watched(BackgroundScheduler(), name="shop") as seen:
            assert seen.telemetry.name == "shop"
            assert "shop" in repr(seen.telemetry)

    def test_handle_reports_health_as_the_endpoint_does(self) -> None:
        """`health()` returns what the endpoint serves."""
        with watched(BackgroundScheduler(), name="shop") as seen:
            assert seen.telemetry.health()["scheduler"]["name"] == "shop"


class TestLeaks:
    """An instrumented scheduler can be freed without `uninstrument`."""

    @pytest.mark.parametrize("used", [False, True], ids=["never started", "used"])
    def test_forgotten_scheduler_is_freed(self, tmp_path: Path, used: bool) -> None:
        """A scheduler without references is freed, with its jobs and its handle."""
        registry = CollectorRegistry()

        def use() -> list[weakref.ref[Any]]:
            scheduler = BackgroundScheduler(
                executors={"default": DebugExecutor(), "threads": ThreadPoolExecutor(1)},
                jobstores=stores(tmp_path),
            )
            telemetry = instrument(scheduler, registry=registry)
            job = scheduler.add_job(jobs.nothing, **watching.due())
            if used:
                scheduler.start()
                wait_until(lambda: any(a.outcomes[Outcome.SUCCESS] for a in job_states(telemetry)))
                generate_latest(registry)
                scheduler.shutdown()
            return [weakref.ref(thing) for thing in (scheduler, telemetry, job)]

        references = use()
        # The thread that looks ahead lives for a moment longer.
        wait_until(lambda: gc.collect() >= 0 and not any(reference() for reference in references))
        assert "scheduler=" not in generate_latest(registry).decode()

    def test_uninstrumented_handle_and_scheduler_do_not_keep_each_other(self) -> None:
        """After `uninstrument`, handle and scheduler do not keep each other alive."""
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        reference = weakref.ref(telemetry)
        telemetry.uninstrument()
        del telemetry
        wait_until(lambda: gc.collect() >= 0 and reference() is None)
