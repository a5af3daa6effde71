"""
Private names of APScheduler and concurrent.futures that the adapter relies on.

Everything private that `adapters.apscheduler3` uses is here, with what it relies on, so that a
version that changes it fails here, by name, and not somewhere in production.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import sys
import textwrap
import threading
import uuid
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from datetime import datetime, timedelta, timezone
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler import events as ev
from apscheduler.executors import base as executors
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import BasePoolExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.job import Job
from apscheduler.jobstores.base import BaseJobStore
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.combining import AndTrigger, OrTrigger
from apscheduler.triggers.date import DateTrigger
from apscheduler.triggers.interval import IntervalTrigger
from apscheduler.util import iscoroutinefunction_partial
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

import apscheduler_telemetry
from tests.helpers import jobs
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.scripts import output_of_script

PACKAGE = Path(apscheduler_telemetry.__file__).parent

APSCHEDULER = {
    # of a scheduler
    "_configure",
    "_create_default_executor",
    "_create_trigger",
    "_daemon",
    "_dispatch_event",
    "_eventloop",
    "_executors",
    "_greenlet",
    "_ioloop",
    "_job_defaults",
    "_jobstores",
    "_jobstores_lock",
    "_logger",
    "_main_loop",
    "_pending_jobs",
    "_process_jobs",
    "_reactor",
    "_start_timer",
    "_thread",
    # of an executor
    "_do_submit_job",
    "_instances",
    "_pool",
    "_run_job_error",
    "_run_job_success",
    "_scheduler",
    # of a job store
    "_get_jobs",
    "_reconstitute_job",
    "_reconstitute_jobs",
    # of a job
    "_get_run_times",
    "_jobstore_alias",
}
CONCURRENT_FUTURES = {"_broken", "_max_workers", "_shutdown", "_shutdown_thread"}
PYTHON = {"_getframe"}
SQLALCHEMY = {"_pre_ping", "_recycle"}  # of a pool of connections


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def source(function: Any) -> str:
    return textwrap.dedent(inspect.getsource(function))


class TestList:
    def test_every_private_name_in_use_is_listed(self) -> None:
        """Every private name of another package that is used is listed in this file."""
        used: set[str] = set()
        own: set[str] = set()
        for file in PACKAGE.glob("adapters/apscheduler3/*.py"):
            tree = ast.parse(file.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and is_private(node.attr):
                    # On self it is a name of this package; on others it may be APScheduler's.
                    on_self = isinstance(node.value, ast.Name) and node.value.id == "self"
                    (own if on_self else used).add(node.attr)
                elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    own.add(node.name)
                elif isinstance(node, ast.Name):
                    own.add(node.id)
                elif isinstance(node, ast.Constant) and is_private(node.value):
                    used.add(str(node.value))
                elif isinstance(node, ast.Assign) and is_slots(node):
                    constants = (n for n in ast.walk(node.value) if isinstance(n, ast.Constant))
                    own |= {str(constant.value) for constant in constants}
        listed = APSCHEDULER | CONCURRENT_FUTURES | PYTHON | SQLALCHEMY
        assert used - own <= listed
        # And the list names nothing that is not used any more.
        assert listed <= used | own


class TestScheduler:
    def test_methods_are_called_through_self(self) -> None:
        """APScheduler calls these methods through `self`, so that patches of an instance work."""
        process = source(BaseScheduler._process_jobs)
        for call in (
            "self._lookup_executor(job.executor)",
            "self._dispatch_event(event)",
            "self.remove_job(job.id, jobstore_alias)",
            "self._jobstores",
            "self._jobstores_lock",
        ):
            assert call in process
        assert "self._process_jobs()" in source(BlockingScheduler._main_loop)
        assert "self._process_jobs()" in source(inspect.unwrap(AsyncIOScheduler.wakeup))
        assert "self.wakeup" in source(AsyncIOScheduler._start_timer)
        assert "self._main_loop" in source(BackgroundScheduler.start)
        assert "self._main_loop()" in source(BlockingScheduler.start)
        assert "self._configure(config)" in source(BaseScheduler.configure)

    @pytest.mark.parametrize(
        ("module", "lines"),
        [
            ("schedulers.asyncio", ["self._start_timer(wait_seconds)", "self._eventloop = "]),
            ("schedulers.tornado", ["self._start_timer(wait_seconds)", "self._ioloop = "]),
            ("schedulers.twisted", ["self._start_timer(wait_seconds)", "self._reactor = "]),
            (
                "schedulers.qt",
                ["self._start_timer(wait_seconds)", "wait_time, self._process_jobs)"],
            ),
            ("schedulers.gevent", ["self._greenlet = gevent.spawn(self._main_loop)"]),
            ("executors.tornado", ["self.executor = ThreadPoolExecutor(max_workers)"]),
            ("executors.twisted", ["self._reactor = ", "self._reactor.getThreadPool()"]),
        ],
    )
    def test_event_loop_schedulers_call_methods_through_self(
        self, module: str, lines: list[str]
    ) -> None:
        """Schedulers of other libraries do so as well; `test_matrix` runs them."""
        spec = find_spec(f"apscheduler.{module}")
        assert spec is not None
        assert spec.origin is not None
        text = Path(spec.origin).read_text("utf-8")
        assert lines == [line for line in lines if line in text]

    def test_a_pass_writes_to_the_log_in_its_end(self) -> None:
        """On every way out of a pass, its last action is to log."""
        end = source(BaseScheduler._process_jobs).partition("self._dispatch_event(event)")[2]
        ways_out = end.count("wait_seconds = None") + end.count("wait_seconds = min(")
        assert ways_out == 3
        assert ways_out == end.count("self._logger.debug(")

    def test_methods_take_what_the_hooks_pass(self) -> None:
        """The methods that are laid over take what the hooks pass on."""
        assert parameters(BaseScheduler._process_jobs) == ["self"]
        assert parameters(BaseScheduler._dispatch_event) == ["self", "event"]
        assert parameters(BaseScheduler._configure) == ["self", "config"]
        assert parameters(BaseScheduler._create_trigger) == ["self", "trigger", "trigger_args"]
        assert parameters(BlockingScheduler._main_loop) == ["self"]
        for scheduler in (BlockingScheduler, AsyncIOScheduler):
            assert parameters(inspect.unwrap(scheduler.wakeup)) == ["self"]

    def test_scheduler_keeps_parts_by_alias_and_a_logger(self) -> None:
        """A scheduler has dicts of executors and job stores by alias, and a logger."""
        scheduler = hand_driven_scheduler(jobstores={"a": MemoryJobStore()})
        assert isinstance(scheduler._executors["default"], DebugExecutor)
        assert isinstance(scheduler._jobstores["a"], MemoryJobStore)
        assert vars(scheduler)["_logger"].name == "apscheduler.scheduler"
        with scheduler._jobstores_lock, scheduler._jobstores_lock:
            """It can be taken twice: a callback of the user's may ask the scheduler."""

    def test_stopped_scheduler_has_jobs_that_wait_for_defaults(self) -> None:
        """Before its start, it keeps jobs without the values that its defaults give them."""
        scheduler: Any = BackgroundScheduler(job_defaults={"coalesce": False})
        job = scheduler.add_job(jobs.nothing, "interval", hours=1, replace_existing=True)
        assert scheduler._pending_jobs == [(job, "default", True)]
        names = {"coalesce", "max_instances", "misfire_grace_time"}
        assert set(scheduler._job_defaults) == names
        assert not any(hasattr(job, name) for name in (*names, "next_run_time"))
        assert isinstance(scheduler._create_default_executor(), ThreadPoolExecutor)
        assert scheduler._daemon

    @pytest.mark.skipif(find_spec("sqlalchemy") is None, reason="needs SQLAlchemy")
    def test_pool_of_connections_knows_its_options(self) -> None:
        """They have no public names."""
        from sqlalchemy import create_engine

        pool = create_engine("sqlite://", pool_pre_ping=True, pool_recycle=7).pool
        assert (pool._pre_ping, pool._recycle) == (True, 7)
        pool = create_engine("sqlite://").pool
        assert (pool._pre_ping, pool._recycle) == (False, -1)

    def test_background_scheduler_knows_its_thread(self) -> None:
        """A background scheduler has its thread as an attribute."""
        scheduler: Any = BackgroundScheduler()
        assert not scheduler._thread
        scheduler.start()
        assert isinstance(scheduler._thread, threading.Thread)
        scheduler.shutdown()

    def test_asyncio_scheduler_knows_its_event_loop(self) -> None:
        """An asyncio scheduler has its event loop as an attribute."""

        async def main() -> None:
            scheduler: Any = AsyncIOScheduler()
            assert not scheduler._eventloop
            scheduler.start(paused=True)
            assert scheduler._eventloop is asyncio.get_running_loop()
            scheduler.shutdown()
            await asyncio.sleep(0)

        asyncio.run(main())

    def test_pass_looks_up_submits_and_moves_jobs_in_this_order(self) -> None:
        """A pass looks a due job up, submits it, computes its next run and updates the store."""
        order = re.findall(
            r"(_lookup_executor|_get_run_times|submit_job|get_next_fire_time|update_job"
            r"|remove_job|get_next_run_time)\(",
            source(BaseScheduler._process_jobs),
        )
        assert order == [
            "_lookup_executor",
            "remove_job",
            "_get_run_times",
            "submit_job",
            "get_next_fire_time",
            "update_job",
            "remove_job",
            "get_next_run_time",
        ]

    def test_failing_listeners_are_logged_in_these_words(self) -> None:
        """`_dispatch_event` logs the exception of a listener with this message."""
        dispatch = source(BaseScheduler._dispatch_event)
        assert re.findall(r"_logger\.(\w+)\(", dispatch) == ["exception"]
        assert dispatch.index("except BaseException:") < dispatch.index("_logger.exception(")

    def test_methods_wrapped_by_others_are_recognised(self) -> None:
        """A method that another tool has wrapped is recognised by what it wraps."""
        script = f"""
            import sys; sys.path[:] = {sys.path!r}
            import functools
            from apscheduler.schedulers.base import BaseScheduler

            def wrapped(method):
                return functools.wraps(method)(lambda *args: method(*args))

            for name in ("_dispatch_event", "_process_jobs"):
                setattr(BaseScheduler, name, wrapped(getattr(BaseScheduler, name)))

            from tests.helpers import jobs
            from tests.helpers.rigs import hand_driven_rig

            with hand_driven_rig() as rig:
                rig.scheduler.add_listener(lambda _: 1 / 0, 1 << 15)
                rig.add(jobs.nothing)
                rig.add(jobs.nothing, id="lost", executor="gpu")
                rig.scheduler.turn()
                print(rig.errors_of("listener"), rig.errors_of("executor_lookup"))
                BaseScheduler._process_jobs(rig.scheduler)  # as a scheduler that goes past our hook
                print(rig.telemetry._exported_scheduler.adapter._scheduler_loop.pass_thread_id)
        """
        output, errors = output_of_script(script)
        assert output == "1.0 1.0\nNone\n", errors

    def test_start_announces_parts_before_jobs(self) -> None:
        """The start sends events of executors and stores, then of jobs, then its own."""
        scheduler = hand_driven_scheduler(executors={})
        codes: list[int] = []
        scheduler.add_listener(lambda event: codes.append(event.code))
        scheduler.add_job(jobs.nothing)
        scheduler.start()
        assert codes == [
            ev.EVENT_EXECUTOR_ADDED,
            ev.EVENT_JOBSTORE_ADDED,
            ev.EVENT_JOB_ADDED,
            ev.EVENT_SCHEDULER_STARTED,
        ]
        scheduler.shutdown()

    def test_configure_drops_parts_without_an_event(self) -> None:
        """`configure` removes executors and job stores without an event."""
        scheduler = hand_driven_scheduler(jobstores={"a": MemoryJobStore()})
        codes: list[int] = []
        scheduler.add_listener(lambda event: codes.append(event.code))
        scheduler.configure(executors={"new": DebugExecutor()})
        assert codes == [ev.EVENT_EXECUTOR_ADDED]
        assert (list(scheduler._executors), list(scheduler._jobstores)) == (["new"], [])


class TestExecutor:
    def test_methods_are_called_through_self(self) -> None:
        """Every run goes in through two methods and comes out of two others."""
        assert "self._do_submit_job(job, run_times)" in source(executors.BaseExecutor.submit_job)
        for executor in (BasePoolExecutor, AsyncIOExecutor, DebugExecutor):
            submit = source(executor._do_submit_job)
            assert "self._run_job_success(job.id" in submit
            assert "self._run_job_error(job.id" in submit

    def test_methods_take_what_the_hooks_pass(self) -> None:
        """The methods that are laid over take what the hooks pass on."""
        base = executors.BaseExecutor
        assert parameters(base.submit_job) == ["self", "job", "run_times"]
        assert parameters(base._do_submit_job) == ["self", "job", "run_times"]
        assert parameters(base._run_job_success) == ["self", "job_id", "events"]
        assert parameters(base._run_job_error) == ["self", "job_id", "exc", "traceback"]

    def test_instances_count_a_run_until_its_end_is_told(self) -> None:
        """`_instances` counts a run until its end is reported, and is read for no other job."""
        base = executors.BaseExecutor
        assert "self._instances[job.id] += 1" in source(base.submit_job)
        for end in (base._run_job_success, base._run_job_error):
            assert "self._instances[job_id] -= 1" in source(end)
        success = source(base._run_job_success)
        assert success.index("self._instances[job_id] -= 1") < success.index("_dispatch_event")
        executor, instances = DebugExecutor(), DebugExecutor()._instances
        assert (type(executor._instances), instances["job"]) == (type(instances), 0)
        # The hook keeps the dictionary, so it must stay the same.
        assert "_instances =" not in source(base.start)

    def test_executor_knows_its_scheduler(self) -> None:
        """An executor has its scheduler as an attribute, from its start."""
        assert DebugExecutor()._scheduler is None
        scheduler = hand_driven_scheduler()
        scheduler.start()
        assert scheduler._executors["default"]._scheduler is scheduler
        scheduler.shutdown()

    @pytest.mark.parametrize("executor", [ThreadPoolExecutor, ProcessPoolExecutor])
    def test_pool_executor_knows_its_workers(self, executor: Any) -> None:
        """A pool executor has a pool with its number of workers and whether it is broken."""
        pool = executor(3)._pool
        assert pool._max_workers == 3
        if executor is ProcessPoolExecutor:
            assert isinstance(pool, futures.ProcessPoolExecutor)
            assert pool._broken is False
        pool.shutdown()

    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            (futures.ThreadPoolExecutor, "_shutdown"),
            (futures.ProcessPoolExecutor, "_shutdown_thread"),
        ],
    )
    def test_pool_knows_that_it_was_shut_down(self, kind: Any, name: str) -> None:
        """A pool that was shut down says so, and accepts nothing."""
        pool = kind(1)
        assert getattr(pool, name) is False
        pool.shutdown()
        assert getattr(pool, name) is True
        with pytest.raises(RuntimeError):
            pool.submit(bool)

    def test_broken_pool_says_so(self) -> None:
        """A process pool that lost a worker is marked as broken and accepts nothing."""
        pool = futures.ProcessPoolExecutor(1)
        with pytest.raises(BrokenProcessPool):
            pool.submit(jobs.kill_me).result()
        assert pool._broken
        with pytest.raises(BrokenProcessPool):
            pool.submit(jobs.nothing)
        pool.shutdown()

    def test_run_job_keeps_the_run_times_in_a_variable(self) -> None:
        """The frame of `run_job` has the run times in `run_times`, while it calls the job."""
        assert parameters(executors.run_job)[2] == "run_times"
        assert "run_times =" not in source(executors.run_job)

    @pytest.mark.parametrize("run", [executors.run_job, None], ids=["function", "coroutine"])
    def test_run_job_reads_and_calls_func_for_each_run_time(self, run: Any) -> None:
        """
        `run_job` iterates over run times, reads and calls `job.func`, then reads the id.

        The order lets the views of these attributes record start and end of the right run.
        """
        journal: list[str] = []
        run = run or run_coroutine_job

        class Times(list[datetime]):
            def __iter__(self) -> Any:
                for number, time in enumerate(super().__iter__()):
                    journal.append(f"time {number}")
                    yield time
                journal.append("through")

        class View:
            args: tuple[Any, ...] = ()
            kwargs: dict[str, Any] = {}  # noqa: RUF012
            misfire_grace_time = 60

            @property
            def func(self) -> Any:
                journal.append("func")
                return coroutine if inspect.iscoroutinefunction(run) else call

            @property
            def id(self) -> str:
                journal.append("id")
                return "job"

        def call() -> None:
            journal.append("call")

        async def coroutine() -> None:
            call()

        now = datetime.now(timezone.utc)
        result = run(View(), "default", Times([now - timedelta(hours=1), now]), "test")
        events = asyncio.run(result) if inspect.iscoroutine(result) else result
        assert journal == ["time 0", "id", "time 1", "func", "call", "id", "through"]
        assert [event.code for event in events] == [ev.EVENT_JOB_MISSED, ev.EVENT_JOB_EXECUTED]
        assert [event.job_id for event in events] == ["job", "job"]

    def test_values_of_events_can_be_set(self) -> None:
        """Attributes of a run's event can be set."""
        event = ev.JobExecutionEvent(ev.EVENT_JOB_ERROR, "job", "default", None)
        assert vars(event).keys() == {
            "code",
            "alias",
            "job_id",
            "jobstore",
            "scheduled_run_time",
            "retval",
            "exception",
            "traceback",
        }

    def test_refused_run_raises_before_it_is_handed_over(self) -> None:
        """A rejected run raises MaxInstancesReachedError before it is submitted."""
        submit = source(executors.BaseExecutor.submit_job)
        refused = submit.index("raise MaxInstancesReachedError(job)")
        assert refused < submit.index("self._do_submit_job(")

    def test_coroutines_are_told_by_a_public_function(self) -> None:
        """A public function says whether the asyncio executor takes a callable for a coroutine."""
        assert "iscoroutinefunction_partial(job.func)" in source(AsyncIOExecutor._do_submit_job)
        assert iscoroutinefunction_partial(asyncio.sleep)


class TestJobStore:
    def test_every_change_of_a_job_calls_these_methods(self) -> None:
        """Every change of a job calls one of these methods of its store."""
        assert BaseJobStore.__abstractmethods__ == {
            "lookup_job",
            "get_due_jobs",
            "get_next_run_time",
            "get_all_jobs",
            "add_job",
            "update_job",
            "remove_job",
            "remove_all_jobs",
        }
        assert "self.remove_all_jobs()" in source(MemoryJobStore.shutdown)

    @pytest.mark.parametrize(
        "name",
        [
            "mongodb.MongoDBJobStore",
            "redis.RedisJobStore",
            "rethinkdb.RethinkDBJobStore",
            "sqlalchemy.SQLAlchemyJobStore",
            "zookeeper.ZooKeeperJobStore",
        ],
    )
    def test_one_row_is_restored_by_one_method(self, name: str) -> None:
        """
        A persistent store restores each row with `_reconstitute_job`.

        The test reads the source, because the clients of most databases are not installed.
        """
        module, cls = name.split(".")
        file = Path(executors.__file__).parents[1] / "jobstores" / f"{module}.py"
        tree = ast.parse(file.read_text())
        (store,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == cls]
        methods = {n.name: ast.unparse(n) for n in store.body if isinstance(n, ast.FunctionDef)}
        assert "self._reconstitute_job" in methods["lookup_job"]
        assert any(
            "self._reconstitute_job(" in text and "append(" in text for text in methods.values()
        )

    @pytest.mark.parametrize(
        ("module", "name", "listing"),
        [
            ("sqlalchemy", "SQLAlchemyJobStore", "_get_jobs"),
            ("redis", "RedisJobStore", "_reconstitute_jobs"),
        ],
    )
    def test_stores_list_jobs_by_these_methods_and_attributes(
        self, module: str, name: str, listing: str
    ) -> None:
        """The SQLAlchemy and Redis stores list jobs with these methods and attributes."""
        store = pytest.importorskip(f"apscheduler.jobstores.{module}", exc_type=ImportError)
        text = source(getattr(store, name))
        assert f"self.{listing}(" in source(getattr(store, name).get_all_jobs)
        assert f"self.{listing}(" in source(getattr(store, name).get_due_jobs)
        used = {
            "sqlalchemy": ("self.engine", "self.jobs_t", '"id"', '"next_run_time"', '"job_state"'),
            "redis": ("self.redis", "self.jobs_key", "self.run_times_key", "zadd", "hset"),
        }
        assert [word for word in used[module] if word not in text.replace("'", '"')] == []

    def test_memory_stores_restore_nothing(self) -> None:
        """A memory store has no `_reconstitute_job`."""
        assert not hasattr(MemoryJobStore(), "_reconstitute_job")


class TestJob:
    def test_job_knows_the_alias_of_its_store(self) -> None:
        """A job in a store has the alias of the store as an attribute."""
        scheduler = hand_driven_scheduler()
        job: Any = scheduler.add_job(jobs.nothing)
        assert not job._jobstore_alias
        assert job.pending
        scheduler.start()
        assert job._jobstore_alias == "default"
        assert not job.pending
        scheduler.shutdown()

    def test_can_be_referred_to_weakly(self) -> None:
        """A job can be weakly referenced."""
        assert "__weakref__" in Job.__slots__

    def test_generated_id_is_32_hexadecimal_digits(self) -> None:
        """A generated id has 32 hexadecimal digits."""
        job_id = hand_driven_scheduler().add_job(jobs.nothing).id
        assert uuid.UUID(job_id).hex == job_id

    def test_trigger_is_asked_with_the_previous_fire_time(self) -> None:
        """A trigger is called with the previous fire time."""
        asked = source(Job._get_run_times)
        assert "self.trigger.get_next_fire_time(next_run_time, now)" in asked

    def test_class_of_a_job_may_change_for_a_moment(self) -> None:
        """A job may become one of a subclass without slots of its own, and `Job` again."""
        job = hand_driven_scheduler().add_job(jobs.nothing)
        kind = type("Sub", (Job,), {"__slots__": ()})
        job.__class__ = kind
        assert type(job) is kind
        job.__class__ = Job
        assert type(job) is Job

    def test_loop_asks_each_due_job_once_for_its_run_times(self) -> None:
        """The loop iterates over the due jobs, and calls a method of each for its run times."""
        process = source(BaseScheduler._process_jobs)
        assert "for job in due_jobs:" in process
        assert process.count("job._get_run_times(now)") == 1

    def test_job_knows_a_reference_to_its_callable(self) -> None:
        """A job has a text reference to its callable, if there is one."""
        scheduler = hand_driven_scheduler()
        assert scheduler.add_job(jobs.nothing).func_ref == "tests.helpers.jobs:nothing"
        assert scheduler.add_job(lambda: None).func_ref is None


class TestTriggers:
    def test_interval_trigger_knows_length_and_jitter(self) -> None:
        """An interval trigger has its length and jitter as attributes."""
        trigger = IntervalTrigger(hours=1, jitter=5)
        assert (trigger.interval_length, trigger.jitter) == (3600, 5)

    @pytest.mark.parametrize("combine", [AndTrigger, OrTrigger])
    def test_combined_trigger_knows_its_parts_and_jitter(self, combine: Any) -> None:
        """A combined trigger has its triggers and jitter as attributes."""
        parts = [IntervalTrigger(hours=1), DateTrigger(datetime.now(timezone.utc))]
        trigger = combine(parts, 3)
        assert (trigger.triggers, trigger.jitter) == (parts, 3)


class TestPrometheusClient:
    def test_registry_can_be_referred_to_weakly(self) -> None:
        """A registry can be weakly referenced and hashed."""
        import weakref

        weakref.WeakKeyDictionary({CollectorRegistry(): SimpleNamespace()})

    def test_samples_of_several_processes_are_combined(self) -> None:
        """`MultiProcessCollector` combines the samples of a metric, gauges by the mode in it."""
        metric: Any = Metric("shop", "h", "gauge")
        metric._multiprocess_mode = "max"
        for pid, number in (("1", 3.0), ("2", 2.0)):
            metric.add_sample("shop", (("a", "b"), ("pid", pid)), number, 0.0)
        (combined,) = MultiProcessCollector._accumulate_metrics({"shop": metric}, True)  # type: ignore[no-untyped-call]
        assert [(s.name, s.labels, s.value) for s in combined.samples] == [("shop", {"a": "b"}, 3)]


run_coroutine_job = next(
    getattr(module, "run_coroutine_job")  # noqa: B009  # of either module, as mypy cannot know
    for module in (executors, inspect.getmodule(AsyncIOExecutor))
    if hasattr(module, "run_coroutine_job")
)
"""In a module of its own before APScheduler 3.11."""


def is_private(name: object) -> bool:
    return isinstance(name, str) and re.fullmatch(r"_[a-z][a-z_]*", name) is not None


def is_slots(node: ast.Assign) -> bool:
    return any(isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets)
