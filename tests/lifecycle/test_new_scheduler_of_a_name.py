"""A scheduler of a name that another one had: tests, notebooks, and modules that are reloaded."""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import ArgumentValueError, DuplicateNameError, instrument
from apscheduler_telemetry.api import instrument_provisionally
from tests.helpers import jobs, watching
from tests.helpers.instrumented_parts import ours, runs_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.threads import in_fork
from tests.helpers.waiting import wait_until


@pytest.fixture(autouse=True)
def without_garbage_collection() -> Iterator[None]:
    """Let Python collect no garbage of its own accord."""
    gc.disable()
    yield
    gc.enable()


def _never_started() -> Any:
    scheduler = BackgroundScheduler()
    yield scheduler
    yield scheduler


def _stopped() -> Any:
    scheduler = BackgroundScheduler()
    yield scheduler
    scheduler.start()
    scheduler.shutdown()
    yield scheduler


def _event_loop_closed() -> Any:
    async def main() -> None:
        scheduler.start()

    scheduler = AsyncIOScheduler()
    yield scheduler
    asyncio.run(main())
    yield scheduler


def _interrupted() -> Any:
    """As when the cell of a notebook is interrupted in which it blocks."""
    scheduler = BlockingScheduler()
    yield scheduler
    wait = threading.Event.wait
    with pytest.MonkeyPatch.context() as patch:

        def wait_and_interrupt(event: threading.Event, *args: Any) -> bool:
            if event is getattr(scheduler, "_event", None):
                raise KeyboardInterrupt
            return wait(event, *args)

        patch.setattr(threading.Event, "wait", wait_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            scheduler.start()
    yield scheduler


ENDED: list[Callable[[], Iterator[Any]]] = [
    _never_started,
    _stopped,
    _event_loop_closed,
    _interrupted,
]


class TestSchedulerThatDoesNotRun:
    """It gives way to a new one of its name, though the application may still have it."""

    @pytest.mark.parametrize("states", ENDED, ids=lambda states: states.__name__)
    def test_new_scheduler_gets_its_name_and_its_port(
        self, states: Callable[[], Iterator[Any]]
    ) -> None:
        """The former one is uninstrumented, and its server closed."""
        registry = CollectorRegistry()
        former = states()
        scheduler = next(former)
        telemetry = instrument(scheduler, registry=registry)
        port = telemetry.start_http_server(0).port
        assert next(former) is scheduler
        successor = hand_driven_scheduler()
        with instrument(successor, registry=registry).start_http_server(port) as server:
            assert (server.port, server.is_serving) == (port, True)
            successor.start()
            successor.add_job(jobs.nothing, **watching.due())
            successor.turn()
        assert runs_of(registry) == {"default": 1}
        assert generate_latest(registry).decode().count("\napscheduler_scheduler_up{") == 1
        assert telemetry.health()["reasons"][0]["code"] == "uninstrumented"
        successor.shutdown()

    def test_name_on_a_meter_provider_is_free_as_well(self) -> None:
        """The same for metrics by OpenTelemetry."""
        sdk = pytest.importorskip("opentelemetry.sdk.metrics")
        provider = sdk.MeterProvider(shutdown_on_exit=False)
        former = hand_driven_scheduler()
        options = {"registry": None, "meter_provider": provider}
        instrument(former, **options)
        telemetry = instrument(hand_driven_scheduler(), **options)
        assert ours(former) == []
        assert telemetry.health()["reasons"][0]["code"] == "stopped"
        telemetry.uninstrument()

    def test_former_scheduler_can_be_instrumented_again(self) -> None:
        """It gets a new handle, and the other one gives way in turn."""
        registry = CollectorRegistry()
        first, second = hand_driven_scheduler(), hand_driven_scheduler()
        old, _ = instrument(first, registry=registry), instrument(second, registry=registry)
        new = instrument(first, registry=registry)
        assert new is not old
        first.start()
        assert new.health()["status"] == "healthy"
        assert ours(second) == []
        first.shutdown()

    def test_start_of_the_former_scheduler_is_warned_of(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If it is started after all, without telemetry, the log says so once, and what to do."""
        registry = CollectorRegistry()
        first, second = hand_driven_scheduler(), hand_driven_scheduler()
        instrument(first, registry=registry)
        instrument(second, registry=registry)
        for _ in range(2):
            first.start()
            first.shutdown()
        second.start()
        second.shutdown()
        [message] = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert "started without telemetry" in message
        assert "instrumented as 'default'" in message

    def test_start_is_not_warned_of_if_it_was_instrumented_again(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """There is no warning if it has another handle by then."""
        registry = CollectorRegistry()
        first = hand_driven_scheduler()
        instrument(first, registry=registry)
        instrument(hand_driven_scheduler(), registry=registry)
        instrument(first, registry=registry)
        first.start()
        first.shutdown()
        assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []

    def test_call_that_fails_uninstruments_nothing(self) -> None:
        """If the new scheduler cannot be instrumented, the former one stays as it is."""
        registry = CollectorRegistry()
        telemetry = instrument(hand_driven_scheduler(), registry=registry)
        with pytest.raises(ArgumentValueError):
            instrument(hand_driven_scheduler(), registry=registry, max_labels=0)
        assert telemetry.health()["reasons"][0]["code"] == "stopped"


class TestSchedulerThatRuns:
    @pytest.mark.parametrize("paused", [False, True])
    def test_scheduler_that_runs_keeps_its_name(self, paused: bool) -> None:
        """One that is paused does, too, as it may be resumed at any time."""
        registry = CollectorRegistry()
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=registry)
        scheduler.start(paused=paused)
        with pytest.raises(DuplicateNameError, match=r"'default' runs.*shutdown\(\)"):
            instrument(BackgroundScheduler(), registry=registry)
        assert telemetry.health()["reasons"] == []
        scheduler.shutdown()

    def test_scheduler_that_is_being_started_keeps_its_name(self) -> None:
        """One that zero code has instrumented at the beginning of its start will run at once."""
        registry = CollectorRegistry()
        scheduler = hand_driven_scheduler()
        telemetry = instrument_provisionally(scheduler, registry=registry)
        with pytest.raises(DuplicateNameError, match="'default' is being started: pass another"):
            instrument(hand_driven_scheduler(), registry=registry)
        assert telemetry.health()["reasons"][0]["code"] == "stopped"
        scheduler.start()
        scheduler.shutdown()
        assert instrument(hand_driven_scheduler(), registry=registry).name == "default"
        assert telemetry.health()["reasons"][0]["code"] == "uninstrumented"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_copy_in_a_forked_child_stays_instrumented(self) -> None:
        """A child may use the name; its copy of the parent's scheduler still says what it is."""
        registry = CollectorRegistry()
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=registry)
        scheduler.start()

        def child() -> bool:
            own = instrument(hand_driven_scheduler(), registry=registry)
            return (telemetry.health()["reasons"][0]["code"], own.health()["status"]) == (
                "forked",
                "unhealthy",
            )

        assert in_fork(child)
        assert telemetry.health()["status"] == "healthy"
        scheduler.shutdown()

    def test_garbage_gives_way_though_it_was_never_shut_down(self) -> None:
        """A scheduler without a thread of its own, that nobody has, needs no garbage collection."""
        registry = CollectorRegistry()
        scheduler = hand_driven_scheduler()
        instrument(scheduler, registry=registry)
        scheduler.start()
        del scheduler
        telemetry = instrument(hand_driven_scheduler(), registry=registry)
        assert telemetry.health()["reasons"][0]["code"] == "stopped"


APPLICATION = """
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler_telemetry import instrument

scheduler = BackgroundScheduler()
telemetry = instrument(scheduler, name="reloaded")
server = telemetry.start_http_server(0)
"""


class TestCodeThatRunsAgain:
    """The same lines run again, as people have them."""

    @pytest.mark.parametrize("started", [False, True])
    def test_module_is_reloaded(
        self, started: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`importlib.reload` of a module whose scheduler does not run, or no longer."""
        (tmp_path / "reloaded.py").write_text(APPLICATION)
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module("reloaded")
        for _ in range(3):
            if started:
                module.scheduler.start()
                module.scheduler.shutdown()
            former = module.scheduler
            importlib.reload(module)
            assert module.scheduler is not former
        module.telemetry.uninstrument()
        del sys.modules["reloaded"]

    @pytest.mark.parametrize("started", [False, True])
    def test_application_is_made_in_every_test(self, started: bool) -> None:
        """An application factory makes a scheduler of the default name, on one registry."""
        registry = CollectorRegistry()
        applications = []
        for _ in range(3):
            scheduler = BackgroundScheduler()
            applications.append((scheduler, instrument(scheduler, registry=registry)))
            if started:
                scheduler.start()
                scheduler.add_job(jobs.nothing, **watching.due())
                wait_until(lambda: runs_of(registry) == {"default": 1})
                scheduler.shutdown()
        applications[-1][1].uninstrument()

    def test_cell_of_a_notebook_is_run_again(self) -> None:
        """In one name space, where the scheduler is shut down at the top of the cell."""
        cell = compile(
            "if 'scheduler' in globals(): scheduler.shutdown()\n"
            "scheduler = BackgroundScheduler()\n"
            "server = instrument(scheduler, registry=registry).start_http_server(port)\n"
            "port = server.port\n"
            "scheduler.start()\n",
            "cell",
            "exec",
        )
        space: dict[str, Any] = {
            "BackgroundScheduler": BackgroundScheduler,
            "instrument": instrument,
            "registry": CollectorRegistry(),
            "port": 0,
        }
        ports = set()
        for _ in range(3):
            exec(cell, space)
            assert space["server"].is_serving
            ports.add(space["port"])
        assert len(ports) == 1
        space["scheduler"].shutdown()
