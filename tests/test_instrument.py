"""`instrument` and its handle: what is put on, what comes off again, what is refused."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import re
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apscheduler
import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry, Gauge, generate_latest

import support_jobs as jobs
import support_scenes as scenes
from apscheduler_telemetry import (
    ArgumentTypeError,
    ArgumentValueError,
    DuplicateNameError,
    TelemetryError,
    instrument,
)
from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.jobstores import JobStoreHooks
from apscheduler_telemetry.core.model import Outcome
from support import Gate, eventually, job_states, processes, recorder_of, registry_of, until
from support_scenes import Boom, watched

try:
    import sqlalchemy
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
except ImportError:
    sqlalchemy = None  # type: ignore[assignment]

Snapshot = dict[str, dict[str, Any]]


def parts(scheduler: Any) -> dict[str, Any]:
    """Return the objects that telemetry may lay something over, and their pools."""
    found = {"scheduler": scheduler}
    for alias, executor in scheduler._executors.items():
        found[f"executor {alias}"] = executor
        if hasattr(executor, "_pool"):
            found[f"pool {alias}"] = executor._pool
    for alias, store in scheduler._jobstores.items():
        found[f"store {alias}"] = store
    return found


def snapshot(scheduler: Any) -> Snapshot:
    """Return all attributes of a scheduler and its parts; containers as copies."""

    def copy(value: Any) -> Any:
        return value.copy() if isinstance(value, (list, dict, set)) else value

    return {
        part: {name: copy(value) for name, value in vars(thing).items()}
        for part, thing in parts(scheduler).items()
    }


def assert_same(actual: Snapshot, expected: Snapshot) -> None:
    """Check that two snapshots have the same attributes, which are the very same objects."""
    assert actual.keys() == expected.keys()
    for part, attributes in expected.items():
        assert actual[part].keys() == attributes.keys(), part
        for name, value in attributes.items():
            if isinstance(value, (list, dict, set)):
                assert actual[part][name] == value, (part, name)
            else:
                assert actual[part][name] is value, (part, name)


def ours(scheduler: Any) -> list[tuple[str, str]]:
    """Return the attributes of a scheduler and its parts that come from telemetry."""

    def is_ours(value: Any) -> bool:
        function = getattr(value, "__func__", value)
        modules = type(value).__module__, getattr(function, "__module__", None)
        return any(str(module).startswith("apscheduler_telemetry") for module in modules)

    return [
        (part, name)
        for part, thing in parts(scheduler).items()
        for name, value in vars(thing).items()
        if is_ours(value)
    ]


def stores(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"default": MemoryJobStore()}
    if sqlalchemy is not None:
        url = f"sqlite:///{directory / 'jobs.sqlite'}"
        # APScheduler looks for due jobs once more after its shutdown, and would leave a connection.
        options = {"poolclass": sqlalchemy.pool.NullPool}
        found["sql"] = SQLAlchemyJobStore(url, engine_options=options)
    return found


def executors() -> dict[str, Any]:
    return {"default": DebugExecutor(), "threads": ThreadPoolExecutor(2), "processes": processes()}


@contextmanager
def running(scheduler: Any) -> Iterator[Any]:
    """Start a scheduler, which may be one that blocks, and shut it down."""
    thread = threading.Thread(target=scheduler.start)
    thread.start()
    until(lambda: scheduler.running)
    yield scheduler
    if scheduler.running:
        scheduler.shutdown()
    thread.join()


class TestPutBack:
    """`uninstrument` leaves no attribute behind, and puts back what was there."""

    @pytest.mark.parametrize("kind", [BackgroundScheduler, BlockingScheduler])
    def test_before_the_start(self, tmp_path: Path, kind: type[Any]) -> None:
        """A scheduler that was never started is as it was."""
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
    def test_while_it_runs(self, tmp_path: Path, kind: type[Any]) -> None:
        """So is one that runs, pools included, though nothing is laid over these."""
        with running(kind(executors=executors(), jobstores=stores(tmp_path))) as scheduler:
            until(lambda: not scheduler._event.is_set())
            before = snapshot(scheduler)
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            assert not [part for part, _ in ours(scheduler) if part.startswith("pool")]
            telemetry.uninstrument()
            assert_same(snapshot(scheduler), before)

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="all attributes are equally slow there")
    def test_attributes_stay_quick(self) -> None:
        """No object gets a dictionary for its attributes, which would make each of them slower."""
        executor, store = DebugExecutor(), MemoryJobStore()
        scheduler = BackgroundScheduler(
            executors={"default": executor}, jobstores={"default": store}
        )
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
                is_ours = getattr(thing, name).__module__.startswith("apscheduler_telemetry.")
                assert is_ours == is_instrumented

    def test_on_an_event_loop(self, tmp_path: Path) -> None:
        """So is one on an event loop."""

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
            await eventually(lambda: not scheduler.running)

        asyncio.run(main())

    def test_after_runs(self) -> None:
        """After runs in all executors nothing of ours is left, and the counts are APScheduler's."""

        async def main() -> None:
            scheduler = AsyncIOScheduler(executors={**executors(), "loop": AsyncIOExecutor()})
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.start()
            for alias in scheduler._executors:
                scheduler.add_job(jobs.nothing, executor=alias, **scenes.due(alias))
            await eventually(
                lambda: (
                    sum(job.outcomes[Outcome.SUCCESS] for job in job_states(telemetry))
                    == len(scheduler._executors)
                )
            )
            telemetry.uninstrument()
            assert ours(scheduler) == []
            counts = [executor._instances for executor in scheduler._executors.values()]
            await eventually(lambda: not any(sum(count.values()) for count in counts))
            assert {type(job_id) for count in counts for job_id in count} <= {str}
            scheduler.shutdown()
            await eventually(lambda: not scheduler.running)

        asyncio.run(main())

    def test_what_was_laid_over_before(self) -> None:
        """A method that somebody had wrapped before is wrapped by them again."""
        scheduler = BackgroundScheduler()
        theirs = scheduler.add_job = wrap(scheduler.add_job)
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        assert scheduler.add_job is not theirs
        telemetry.uninstrument()
        assert vars(scheduler)["add_job"] is theirs

    def test_what_is_laid_over_ours(self) -> None:
        """A method that somebody wraps later stays theirs, and ours below it does nothing."""
        scheduler = scenes.by_hand()
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
        scheduler.add_job(ran.append, args=[1], **scenes.due())
        scheduler.turn()
        assert ran == [1]
        assert (theirs.calls, submit.calls) == (1, 1)
        assert list(job_states(telemetry)) == []
        assert set(recorder_of(telemetry).scheduler_error_counts().values()) == {0}
        scheduler.shutdown()

    def test_again_over_what_was_laid_over_ours(self) -> None:
        """A scheduler in that state can be instrumented again, and each run counts once."""
        scheduler = scenes.by_hand()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        executor = scheduler._executors["default"]
        executor._do_submit_job = wrap(executor._do_submit_job)
        telemetry.uninstrument()
        with watched(scheduler) as seen:
            scheduler.start()
            scheduler.add_job(jobs.nothing, **scenes.due())
            scheduler.turn()
            assert seen.runs() == {"success": 1}
        assert ours(scheduler) == []

    def test_logger_that_was_replaced(self) -> None:
        """A logger that somebody has set meanwhile stays."""
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        mine = scheduler._logger = logging.getLogger("mine")
        telemetry.uninstrument()
        assert scheduler._logger is mine

    def test_the_class_and_others(self) -> None:
        """Neither the class nor another scheduler notices."""
        classes = [BackgroundScheduler, MemoryJobStore, DebugExecutor, *BackgroundScheduler.__mro__]
        before = [dict(vars(cls)) for cls in classes]
        other = BackgroundScheduler()
        alone = snapshot(other)
        with watched(BackgroundScheduler(executors={"default": DebugExecutor()})):
            assert [dict(vars(cls)) for cls in classes] == before
            assert_same(snapshot(other), alone)

    def test_registry(self) -> None:
        """The registry shows nothing more."""
        registry = CollectorRegistry()
        Gauge("mine", "stays", registry=registry)
        before = generate_latest(registry)
        telemetry = instrument(BackgroundScheduler(), registry=registry)
        assert generate_latest(registry) != before
        telemetry.uninstrument()
        assert generate_latest(registry) == before

    def test_listeners(self) -> None:
        """The user's listeners are as they were, in their order."""
        scheduler = BackgroundScheduler()
        scheduler.add_listener(print)
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.add_listener(repr)
        telemetry.uninstrument()
        assert [callback for callback, _ in scheduler._listeners] == [print, repr]

    def test_threads(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """No thread of ours is left, though there was work for one; it does not wait for more."""
        monkeypatch.setattr(BackgroundWorker, "IDLE_SECONDS", 1e6)
        scheduler = BackgroundScheduler(jobstores=stores(tmp_path))
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.start()
        scheduler.add_job(jobs.nothing, "interval", hours=1)
        telemetry.uninstrument()
        until(lambda: "apscheduler-telemetry" not in {t.name for t in threading.enumerate()})
        scheduler.add_job(jobs.nothing, "interval", hours=1)
        assert "apscheduler-telemetry" not in {t.name for t in threading.enumerate()}
        scheduler.shutdown()

    def test_servers(self) -> None:
        """Servers that were started from the handle are closed."""
        telemetry = instrument(BackgroundScheduler(), registry=CollectorRegistry())
        port = telemetry.start_http_server(port=0).port
        socket.create_connection(("127.0.0.1", port)).close()
        telemetry.uninstrument()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))

    def test_twice(self) -> None:
        """The second time does nothing, also when the scheduler was instrumented anew meanwhile."""
        scheduler = scenes.by_hand()
        first = instrument(scheduler, registry=CollectorRegistry())
        first.uninstrument()
        first.uninstrument()
        with watched(scheduler) as seen:
            first.uninstrument()
            scheduler.start()
            assert seen.value("scheduler_state", state="running") == 1
            assert ours(scheduler) != []

    def test_during_a_run(self) -> None:
        """A run that is under way ends as it would have, and its listeners are told."""
        gate = Gate()
        scheduler = BackgroundScheduler()
        events: list[Any] = []
        with watched(scheduler) as seen:
            scheduler.start()
            scheduler.add_job(gate.hold, **scenes.due())
            gate.wait_for_run()
            scheduler.add_listener(events.append, EVENT_JOB_EXECUTED)
            seen.telemetry.uninstrument()
            gate.open()
            until(lambda: events)
            assert [event.job_id for event in events] == ["job"]
            # A fast run may end before APScheduler counts it in, which leaves a 0 behind.
            until(lambda: not any(scheduler._executors["default"]._instances.values()))


class TestWhen:
    @pytest.mark.parametrize("kind", [BackgroundScheduler, BlockingScheduler])
    @pytest.mark.parametrize("before", [True, False], ids=["before start", "after start"])
    def test_any_time(self, kind: type[Any], before: bool) -> None:
        """A scheduler can be instrumented before and after its start."""
        scheduler = kind()
        registry = CollectorRegistry()
        telemetry = instrument(scheduler, registry=registry) if before else None
        with running(scheduler):
            telemetry = telemetry or instrument(scheduler, registry=registry)
            scheduler.add_job(jobs.nothing, **scenes.due())
            until(lambda: runs_of(registry) == {"default": 1})
        telemetry.uninstrument()

    @pytest.mark.parametrize("before", [True, False], ids=["before start", "after start"])
    def test_any_time_on_an_event_loop(self, before: bool) -> None:
        """So can one on an event loop."""

        async def main() -> None:
            scheduler = AsyncIOScheduler()
            registry = CollectorRegistry()
            telemetry = instrument(scheduler, registry=registry) if before else None
            scheduler.start()
            telemetry = telemetry or instrument(scheduler, registry=registry)
            scheduler.add_job(jobs.nothing, **scenes.due())
            await eventually(lambda: runs_of(registry) == {"default": 1})
            telemetry.uninstrument()
            scheduler.shutdown()
            await eventually(lambda: not scheduler.running)

        asyncio.run(main())

    def test_from_a_job(self) -> None:
        """A job that runs in the middle of a pass may instrument its own scheduler, and undo it."""
        scheduler = scenes.by_hand()
        registry = CollectorRegistry()
        scheduler.start()
        scheduler.add_job(lambda: instrument(scheduler, registry=registry), **scenes.due("on"))
        scheduler.turn()
        scheduler.add_job(jobs.nothing, **scenes.due())
        scheduler.turn()
        assert runs_of(registry) == {"default": 1}
        scheduler.add_job(
            lambda: instrument(scheduler, registry=registry).uninstrument(), **scenes.due("off")
        )
        scheduler.turn()
        assert ours(scheduler) == []
        assert generate_latest(registry) == b""
        scheduler.shutdown()

    def test_in_the_middle_of_a_run(self) -> None:
        """A run that was under way before is not taken for one that came after it."""
        first, second = Gate(), Gate()
        gates = iter([first, second])
        scheduler = scenes.by_hand(executors={"default": ThreadPoolExecutor(2)})
        scheduler.start()
        job = scheduler.add_job(lambda: next(gates).hold(), max_instances=2, **scenes.due())
        scheduler.turn()
        first.wait_for_run()
        with watched(scheduler) as seen:
            job.modify(next_run_time=scenes.ago(0.05))
            scheduler.turn()
            second.wait_for_run()
            instances = scheduler._executors["default"]._instances
            first.open()
            until(lambda: instances["job"] == 1)
            assert (seen.runs(), seen.job("running")) == ({}, 1)
            second.open()
            until(lambda: seen.runs() == {"success": 1})
            assert seen.job("run_duration_seconds_count") == 1

    def test_after_uninstrument(self) -> None:
        """After `uninstrument` it works again, with a new handle that starts from zero."""
        scheduler = scenes.by_hand()
        scheduler.start()
        for _ in range(3):
            with watched_only(scheduler) as seen:
                scheduler.add_job(jobs.nothing, **scenes.due())
                scheduler.turn()
                assert seen.runs() == {"success": 1}
                scheduler.remove_job("job")
        scheduler.shutdown()


class TestTwice:
    def test_same_handle(self) -> None:
        """A scheduler that is instrumented already keeps its handle."""
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
            {"grace": 5},
            {"singleton": False},
            {"job_label": str},
            {"duration_buckets": [1, 2]},
        ],
        ids=lambda other: next(iter(other)),
    )
    def test_other_options(self, other: Mapping[str, Any]) -> None:
        """Other options are ignored, and the caller is warned of it where the call is."""
        scheduler = BackgroundScheduler()
        options = {"registry": CollectorRegistry(), "name": "shop"}
        telemetry = instrument(scheduler, **options)  # type: ignore[arg-type]
        with pytest.warns(RuntimeWarning, match=r"'shop'.*uninstrument\(\)") as warned:
            assert instrument(scheduler, **{**options, **other}) is telemetry
        assert [warning.filename for warning in warned] == [__file__]
        telemetry.uninstrument()

    def test_at_once_from_many_threads(self) -> None:
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
    def test_one_registry(self) -> None:
        """Two schedulers of one registry are told apart by their label, their jobs too."""
        registry = CollectorRegistry()
        with (
            watched(scenes.by_hand(), registry=registry, name="a") as a,
            watched(scenes.by_hand(), registry=registry, name="b") as b,
        ):
            for seen, count in ((a, 1), (b, 2)):
                seen.scheduler.start()
                for _ in range(count):
                    seen.scheduler.add_job(jobs.nothing, **scenes.due(), replace_existing=True)
                    seen.scheduler.turn()
            assert runs_of(registry) == {"a": 1, "b": 2}
            a.telemetry.uninstrument()
            assert runs_of(registry) == {"b": 2}

    def test_two_registries(self) -> None:
        """Two schedulers of one name live on two registries."""
        with watched(scenes.by_hand()) as a, watched(scenes.by_hand()) as b:
            a.scheduler.start()
            assert a.up() == 1
            assert b.up() == 0

    def test_name_is_taken(self) -> None:
        """A second scheduler of one name on one registry is refused, and left as it was."""
        registry = CollectorRegistry()
        first, second = scenes.by_hand(), scenes.by_hand()
        before = snapshot(second)
        with watched(first, registry=registry, name="shop") as seen:
            with pytest.raises(DuplicateNameError, match=r"'shop'.*name="):
                instrument(second, registry=registry, name="shop")
            assert_same(snapshot(second), before)
            first.start()
            assert seen.up() == 1
        with watched(second, registry=registry, name="shop") as seen:
            assert seen.up() == 0

    def test_name_is_free_when_its_scheduler_is_gone(self) -> None:
        """The name of a scheduler that nobody has any more can be taken."""
        registry = CollectorRegistry()
        instrument(scenes.by_hand(), registry=registry, name="shop")
        gc.collect()
        with watched(scenes.by_hand(), registry=registry, name="shop") as seen:
            assert seen.up() == 0

    def test_default_registry(self) -> None:
        """Without a registry it is prometheus-client's own."""
        from prometheus_client import REGISTRY

        telemetry = instrument(BackgroundScheduler(), name="on the default registry")
        labels = {"scheduler": "on the default registry"}
        assert REGISTRY.get_sample_value("apscheduler_scheduler_up", labels) == 0
        telemetry.uninstrument()
        assert REGISTRY.get_sample_value("apscheduler_scheduler_up", labels) is None


class TestParts:
    """Executors and job stores come and go while the scheduler runs."""

    def test_executor(self) -> None:
        """An executor that is added is watched, one that is removed is shown no more."""
        with watched(scenes.by_hand()) as seen:
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

    def test_executor_of_another_scheduler(self) -> None:
        """An executor that moves to another scheduler counts there."""
        executor = DebugExecutor()
        registry = CollectorRegistry()
        with (
            watched(scenes.by_hand(), registry=registry, name="a") as a,
            watched(scenes.by_hand(), registry=registry, name="b") as b,
        ):
            a.scheduler.start()
            b.scheduler.start()
            a.scheduler.add_executor(executor, "moving")
            a.scheduler.remove_executor("moving")
            b.scheduler.add_executor(executor, "moving")
            self.run(b, "moving")
            assert b.runs("moving") == {"success": 1}
            assert list(job_states(a.telemetry)) == []

    def test_job_store(self) -> None:
        """A job store that is added is watched, one that is removed is shown no more."""
        with watched(scenes.by_hand()) as seen:
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

    def test_configured_later(self) -> None:
        """A scheduler may be configured after it was instrumented, as extensions of Flask do."""
        scheduler = BackgroundScheduler()
        with watched(scheduler) as seen:
            scheduler.configure(
                executors={"default": DebugExecutor(), "other": ThreadPoolExecutor(3)},
                jobstores={"default": MemoryJobStore()},
                timezone="Asia/Tokyo",
            )
            assert seen.value("executor_workers", executor="other") == 3
            scheduler.start()
            scheduler.add_job(jobs.nothing, **scenes.due())
            until(lambda: seen.runs() == {"success": 1})
            scheduler.remove_all_jobs()
            assert info_of(seen)["timezone"] == "Asia/Tokyo"
        assert ours(scheduler) == []

    def test_that_are_forgotten(self) -> None:
        """Executors and job stores that come and go are garbage once they are gone."""
        with watched(scenes.by_hand()) as seen:
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
            until(lambda: gc.collect() >= 0 and not any(reference() for reference in references))
            self.run(seen, "default")
            assert seen.runs("default") == {"success": 1}
        assert ours(scheduler) == []

    def test_default_executor(self) -> None:
        """The executor and the job store that a start creates are watched."""
        with watched(BackgroundScheduler()) as seen:
            assert recorder_of(seen.telemetry).executors() == {}
            seen.scheduler.start()
            assert seen.value("executor_workers", executor="default") == 10
            assert seen.value("scheduler_jobs", jobstore="default") == 0

    @staticmethod
    def run(seen: Any, executor: str) -> None:
        seen.scheduler.add_job(jobs.nothing, executor=executor, **scenes.due(executor))
        seen.scheduler.turn()


class Unprintable:
    def __repr__(self) -> str:
        raise Boom("no words")


class Scheduler4:
    """What a scheduler of APScheduler 4 looks like from here."""


Scheduler4.__module__ = "apscheduler._schedulers.sync"


class TestBadInput:
    """What cannot work is refused at once, with what to pass instead, and nothing is half done."""

    SCHEDULERS = (
        (None, r"BackgroundScheduler\(\); got None"),
        (BackgroundScheduler, "the class BackgroundScheduler itself; pass an instance"),
        (Scheduler4(), r"APScheduler 4 is not supported: install 'apscheduler>=3.10,<4'"),
        (Scheduler4, "the class Scheduler4 itself"),
        ("scheduler", r"BackgroundScheduler\(\)"),
        (Unprintable(), r"BackgroundScheduler\(\).*Unprintable"),
        (SimpleNamespace(scheduler=BackgroundScheduler()), "has one; pass its attribute scheduler"),
    )

    @pytest.mark.parametrize(("scheduler", "message"), SCHEDULERS, ids=lambda v: type(v).__name__)
    def test_scheduler(self, scheduler: Any, message: str) -> None:
        """Only a scheduler of APScheduler 3 can be instrumented."""
        registry = CollectorRegistry()
        with pytest.raises(ArgumentTypeError, match=message):
            instrument(scheduler, registry=registry)
        assert generate_latest(registry) == b""

    VALUES: tuple[Any, ...] = (
        ("name", 7, ArgumentTypeError, "name must be a str, such as 'billing', got 7"),
        ("name", None, ArgumentTypeError, "name must be a str"),
        ("name", b"shop", ArgumentTypeError, "name must be a str"),
        ("name", "", ArgumentValueError, "name must not be empty.*omit it"),
        ("name", "  ", ArgumentValueError, "name must not be empty"),
        ("name", "a\nb", ArgumentValueError, r"printable.*got 'a\\nb'; pass letters"),
        ("name", "a\0b", ArgumentValueError, "printable"),
        ("name", "a\ud800b", ArgumentValueError, "printable"),
        ("registry", 1, ArgumentTypeError, r"prometheus_client\.CollectorRegistry, or None"),
        ("registry", CollectorRegistry, ArgumentTypeError, r"or None, got <class"),
        ("registry", "default", ArgumentTypeError, "CollectorRegistry"),
        ("registry", Unprintable(), ArgumentTypeError, "or None, got .*Unprintable"),
        ("meter_provider", object(), ArgumentTypeError, "an OpenTelemetry MeterProvider, got"),
        ("tracer_provider", "otlp", ArgumentTypeError, "an OpenTelemetry TracerProvider"),
        ("tracer_provider", NoOpTracerProvider, ArgumentTypeError, "TracerProvider, got <class"),
        ("job_label", "job", ArgumentTypeError, "callable that takes a job and returns a str"),
        ("grace", -1, ArgumentValueError, "0 or more seconds, got -1; omit it"),
        ("grace", -0.001, ArgumentValueError, "0 or more seconds"),
        ("grace", math.nan, ArgumentValueError, "0 or more seconds, got nan"),
        ("grace", math.inf, ArgumentValueError, "0 or more seconds, got inf"),
        ("grace", True, ArgumentTypeError, "seconds, a callable.*got True"),
        ("grace", "60", ArgumentTypeError, "seconds, a callable.*got '60'"),
        ("singleton", "no", ArgumentTypeError, "singleton must be True or False, got 'no'"),
        ("singleton", None, ArgumentTypeError, "singleton must be True or False"),
        ("duration_buckets", [], ArgumentValueError, "at least one"),
        ("duration_buckets", [2, 1], ArgumentValueError, "ascending order"),
        ("duration_buckets", [1, 1], ArgumentValueError, "ascending order"),
        ("duration_buckets", [-1, 1], ArgumentValueError, "seconds"),
        ("duration_buckets", [1, math.nan], ArgumentValueError, "ascending order"),
        ("duration_buckets", [-math.inf, 1], ArgumentValueError, "ascending order"),
        ("duration_buckets", [math.inf], ArgumentValueError, "at least one"),
        ("duration_buckets", None, ArgumentTypeError, "a sequence of seconds, got None"),
        ("duration_buckets", 5, ArgumentTypeError, "a sequence of seconds"),
        ("duration_buckets", "125", ArgumentTypeError, "a sequence of seconds, got '125'"),
        ("duration_buckets", b"125", ArgumentTypeError, "a sequence of seconds"),
        ("duration_buckets", ["a"], ArgumentTypeError, "a sequence of seconds"),
        ("delay_buckets", [2, 1], ArgumentValueError, "delay_buckets must be seconds in ascending"),
        ("max_labels", 1.5, ArgumentTypeError, "max_labels must be a number of label values"),
        ("max_labels", True, ArgumentTypeError, "max_labels must be a number of label values"),
        ("max_labels", 0, ArgumentValueError, "max_labels must be 1 or more, got 0; omit it for"),
    )

    @pytest.mark.parametrize(("argument", "value", "error", "message"), VALUES)
    @pytest.mark.parametrize("started", [False, True], ids=["stopped", "running"])
    def test_value(
        self, argument: str, value: Any, error: type[Exception], message: str, started: bool
    ) -> None:
        """An impossible value is an error of its kind, and leaves scheduler and registry alone."""
        scheduler = scenes.by_hand()
        if started:
            scheduler.start()
        registry = CollectorRegistry()
        before = snapshot(scheduler)
        with pytest.raises(error, match=f"(?s){message}") as raised:
            instrument(scheduler, **{"registry": registry, argument: value})
        assert isinstance(raised.value, TelemetryError)
        assert_same(snapshot(scheduler), before)
        assert list(registry.collect()) == []

    @pytest.mark.parametrize(
        "options",
        [
            {"name": "Rechnungen 🦉"},
            {"name": 'a "quoted" one'},
            {"grace": 0},
            {"grace": 1.5},
            {"duration_buckets": (0, 1)},
            {"duration_buckets": [1, 2, math.inf]},
            {"delay_buckets": range(1, 4)},
            {"max_labels": 1},
            {"tracer_provider": NoOpTracerProvider()},
        ],
        ids="-".join,
    )
    def test_what_is_allowed(self, options: Mapping[str, Any]) -> None:
        """Unusual is not wrong."""
        with watched(scenes.by_hand(), **options) as seen:
            assert seen.up() == 0

    def test_positional(self) -> None:
        """Options have names."""
        with pytest.raises(TypeError, match="positional"):
            instrument(BackgroundScheduler(), "shop")  # type: ignore[call-arg]

    def test_somebody_else_s_metrics(self) -> None:
        """A registry with a metric of one of our names is refused, all left as it was."""
        scheduler = scenes.by_hand()
        registry = CollectorRegistry()
        Gauge("apscheduler_job_running", "not ours", registry=registry)
        before, shown = snapshot(scheduler), generate_latest(registry)
        with pytest.raises(ArgumentValueError, match=r"registry=.*apscheduler_job_running"):
            instrument(scheduler, registry=registry)
        assert_same(snapshot(scheduler), before)
        assert generate_latest(registry) == shown

    @pytest.mark.parametrize("started", [False, True], ids=["stopped", "running"])
    def test_failure_half_way(self, monkeypatch: pytest.MonkeyPatch, started: bool) -> None:
        """Whatever fails while hooks are laid, those that lie already come off again."""
        scheduler = scenes.by_hand(jobstores={"default": MemoryJobStore()})
        if started:
            scheduler.start()
        registry = CollectorRegistry()
        before = snapshot(scheduler)
        monkeypatch.setattr(JobStoreHooks, "on_jobstore_added", raise_boom)
        with pytest.raises(Boom):
            instrument(scheduler, registry=registry)
        assert_same(snapshot(scheduler), before)
        assert list(registry.collect()) == []
        monkeypatch.undo()
        with watched(scheduler, registry=registry) as seen:
            assert seen.up() == started


class TestCallbacks:
    """Callbacks of the user's that fail are counted, logged once, and replaced by the default."""

    @pytest.mark.parametrize(
        "job_label",
        [lambda job: job.nothing, lambda job: None, lambda job: 7, lambda job: "", lambda: "x"],
        ids=["raises", "None", "number", "empty", "takes nothing"],
    )
    def test_job_label(
        self, job_label: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """A label that cannot be had is the job's id."""
        with watched(scenes.by_hand(), job_label=job_label) as seen:
            seen.scheduler.start()
            for job_id in ("a", "b"):
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id=job_id)
                assert seen.job("running", job_id) == 0
            assert seen.own_errors() == {"job_label": 2}
            assert seen.value("telemetry_errors_total", component="job_label") == 2
        assert len(ours_of(caplog)) == 1

    @pytest.mark.parametrize(
        "grace",
        [
            lambda job: job.nothing,
            lambda job: -1,
            lambda job: math.nan,
            lambda job: math.inf,
            lambda job: True,
            lambda job: "60",
        ],
        ids=["raises", "negative", "NaN", "infinite", "bool", "text"],
    )
    def test_grace(self, grace: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
        """A grace that cannot be had is the default one."""
        with watched(scenes.by_hand(), grace=grace) as seen:
            seen.scheduler.start()
            for job_id in ("a", "b"):
                seen.scheduler.add_job(
                    jobs.nothing, "interval", hours=1, id=job_id, misfire_grace_time=300
                )
                assert seen.job("grace_seconds", job_id) == 300
            assert seen.own_errors() == {"grace": 2}
        assert len(ours_of(caplog)) == 1

    @pytest.mark.parametrize(
        ("grace", "expected"),
        [
            (None, 60),
            (0, 0),
            (5, 5),
            (2.5, 2.5),
            (lambda job: 7, 7),
            (lambda job: None, 60),
            (lambda job: len(job.id), 3),
        ],
    )
    def test_grace_that_works(self, grace: Any, expected: float) -> None:
        """Grace is what was passed, or what the callback says of the job; 60 s without one."""
        with watched(scenes.by_hand(), grace=grace) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id="job")
            assert seen.job("grace_seconds") == expected

    def test_buckets(self) -> None:
        """Histograms have the buckets that were passed."""
        with watched(scenes.by_hand(), duration_buckets=[1, 2.5], delay_buckets=[7]) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id="job")
            text = generate_latest(seen.registry).decode()
        bounds = {
            name: re.findall(rf'{name}_seconds_bucket{{.*?le="(.*?)"', text)
            for name in ("run_duration", "start_delay")
        }
        assert bounds == {"run_duration": ["1.0", "2.5", "+Inf"], "start_delay": ["7.0", "+Inf"]}

    def test_max_labels(self) -> None:
        """Jobs beyond the number of labels that was passed share one."""
        with watched(scenes.by_hand(), max_labels=2) as seen:
            seen.scheduler.start()
            for name in ("a", "b", "c", "d"):
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id=name)
            text = generate_latest(seen.registry).decode()
        assert {"a", "b", "__overflow__"} == set(re.findall(r'job_id="(.*?)"', text))


class TestHandle:
    def test_facts(self) -> None:
        """The scheduler says what it is, where it runs, and how alerts are to judge it."""
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

    def test_name(self) -> None:
        """The handle says whose it is."""
        with watched(BackgroundScheduler(), name="shop") as seen:
            assert seen.telemetry.name == "shop"
            assert "shop" in repr(seen.telemetry)

    def test_health(self) -> None:
        """The handle reports health as the endpoint serves it."""
        with watched(BackgroundScheduler(), name="shop") as seen:
            assert seen.telemetry.health()["scheduler"]["name"] == "shop"


class TestLeaks:
    """An instrumented scheduler can be forgotten; nobody has to uninstrument it."""

    @pytest.mark.parametrize("used", [False, True], ids=["never started", "used"])
    def test_scheduler(self, tmp_path: Path, used: bool) -> None:
        """It is garbage like any other once nobody has it, with its jobs and its handle."""
        registry = CollectorRegistry()

        def use() -> list[weakref.ref[Any]]:
            scheduler = BackgroundScheduler(
                executors={"default": DebugExecutor(), "threads": ThreadPoolExecutor(1)},
                jobstores=stores(tmp_path),
            )
            telemetry = instrument(scheduler, registry=registry)
            job = scheduler.add_job(jobs.nothing, **scenes.due())
            if used:
                scheduler.start()
                until(lambda: any(a.outcomes[Outcome.SUCCESS] for a in job_states(telemetry)))
                generate_latest(registry)
                scheduler.shutdown()
            return [weakref.ref(thing) for thing in (scheduler, telemetry, job)]

        references = use()
        # The thread that looks ahead lives for a moment longer.
        until(lambda: gc.collect() >= 0 and not any(reference() for reference in references))
        assert "scheduler=" not in generate_latest(registry).decode()

    def test_uninstrumented(self) -> None:
        """A handle that was taken off does not keep the scheduler, nor the scheduler the handle."""
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        reference = weakref.ref(telemetry)
        telemetry.uninstrument()
        del telemetry
        until(lambda: gc.collect() >= 0 and reference() is None)


def runs_of(registry: CollectorRegistry) -> dict[str, float]:
    """Return successful runs of the job ``job`` by scheduler."""
    return {
        sample.labels["scheduler"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "apscheduler_job_runs_total"
        and sample.labels["outcome"] == "success"
        and sample.labels["job_id"] == "job"
    }


def info_of(seen: Any) -> dict[str, str]:
    (labels,) = [
        sample.labels
        for family in seen.registry.collect()
        for sample in family.samples
        if sample.name == "apscheduler_scheduler_info"
    ]
    return dict(labels)


def ours_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "apscheduler_telemetry"]


@contextmanager
def watched_only(scheduler: Any) -> Iterator[scenes.Watched]:
    """Instrument a scheduler, and leave it running in the end."""
    telemetry = instrument(scheduler, registry=CollectorRegistry())
    yield scenes.Watched(scheduler, telemetry, registry_of(telemetry))
    telemetry.uninstrument()


def wrap(function: Any) -> Any:
    """Wrap a function as other libraries do, counting its calls."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        wrapper.calls += 1  # type: ignore[attr-defined]
        return function(*args, **kwargs)

    wrapper.calls = 0  # type: ignore[attr-defined]
    wrapper.__module__ = "somebody.else"
    return wrapper


def raise_boom(*args: Any) -> Any:
    raise Boom("on purpose")
