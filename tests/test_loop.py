"""What APScheduler only logs, and whether its loop really lives."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, EVENT_JOB_REMOVED, EVENT_JOB_SUBMITTED
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.date import DateTrigger
from prometheus_client import CollectorRegistry

import support_jobs as jobs
import support_scenes as scenes
from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.loop_liveness import OVERDUE_SECONDS
from support import Gate, adapter_of, eventually, recorder_of, registry_of, until
from support_scenes import Boom, FaultyStore, Watched, watched


class FaultyTrigger(BaseTrigger):
    """A trigger that works once."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        if previous is not None:
            raise Boom("trigger")
        return now


class ShutPool(ThreadPoolExecutor):
    """A thread pool that takes no more work."""

    def start(self, scheduler: Any, alias: str) -> None:
        super().start(scheduler, alias)
        self._pool.shutdown()


class Monotonic:
    """A clock for the adapter, to make the loop overdue with."""

    def __init__(self, seen: Watched) -> None:
        self.now = 1_000.0
        adapter_of(seen.telemetry)._loop._monotonic = lambda: self.now


@contextmanager
def driven(**options: Any) -> Iterator[Watched]:
    """Start a scheduler that is driven by hand on a store that can fail."""
    options.setdefault("jobstores", {"default": FaultyStore()})
    with watched(scenes.by_hand(**options)) as seen:
        seen.scheduler.start()
        yield seen


def add_due(seen: Watched, func: Callable[..., Any] = jobs.nothing, **options: Any) -> Any:
    """Add a job that is due now and again in an hour."""
    options = {"id": "job", "trigger": "interval", "hours": 1, **options}
    if not isinstance(options["trigger"], str):
        del options["hours"]
    return seen.scheduler.add_job(
        func, next_run_time=scenes.ago(0.1), misfire_grace_time=None, **options
    )


def store_of(seen: Watched) -> FaultyStore:
    store: FaultyStore = seen.scheduler._jobstores["default"]
    return store


class TestErrors:
    """What APScheduler only logs is counted by kind."""

    def test_nothing(self) -> None:
        """Where nothing goes wrong nothing is counted."""
        with driven() as seen:
            add_due(seen)
            seen.scheduler.turn()
            seen.scheduler.remove_job("job")
            assert seen.errors() == {}
            assert seen.own_errors() == {}

    def test_due_jobs_cannot_be_had(self) -> None:
        """A job store that cannot tell its due jobs counts; the loop goes on and tries again."""
        with driven() as seen:
            add_due(seen)
            store_of(seen).faults = {"get_due_jobs"}
            wait = seen.scheduler._process_jobs()
            assert seen.errors() == {"jobstore": 1}
            assert wait is not None
            assert seen.up() == 1
            store_of(seen).faults.clear()
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}

    @pytest.mark.parametrize("method", ["update_job", "get_next_run_time"])
    def test_a_store_that_kills_the_loop(self, method: str) -> None:
        """A failure that APScheduler does not catch counts as the store's and as the loop's."""
        with driven() as seen:
            add_due(seen)
            store_of(seen).faults = {method}
            with pytest.raises(Boom, match=method):
                seen.scheduler.turn()
            assert seen.errors() == {"jobstore": 1, "loop": 1}
            assert seen.reasons() == ["loop_failed"]

    def test_removal_of_a_finished_job_fails(self) -> None:
        """So does the removal of a job that has had its last run."""
        with driven() as seen:
            add_due(seen, trigger=DateTrigger(scenes.ago(0.1)))
            store_of(seen).faults = {"remove_job"}
            with pytest.raises(Boom, match="remove_job"):
                seen.scheduler.turn()
            assert seen.errors() == {"jobstore": 1, "loop": 1}

    def test_a_trigger_that_kills_the_loop(self) -> None:
        """A trigger that fails ends the pass, which counts as the loop's."""
        with driven() as seen:
            add_due(seen, trigger=FaultyTrigger())
            with pytest.raises(Boom, match="trigger"):
                seen.scheduler.turn()
            assert seen.errors() == {"loop": 1}

    def test_unknown_executor(self) -> None:
        """An executor that nobody knows counts, each time."""
        with driven() as seen:
            add_due(seen, id="a", executor="gpu")
            add_due(seen, id="b", executor="gpu")
            add_due(seen, id="c")
            seen.scheduler.turn()
            assert seen.errors() == {"executor_lookup": 2}
            assert seen.runs("c") == {"success": 1}

    def test_an_executor_that_takes_nothing(self) -> None:
        """An executor that refuses a job counts."""
        with driven(executors={"default": ShutPool()}) as seen:
            add_due(seen)
            seen.scheduler.turn()
            assert seen.errors() == {"submit": 1}

    def test_a_listener_that_fails(self) -> None:
        """Each failure of a listener counts, wherever the event came from."""
        with driven() as seen:
            seen.scheduler.add_listener(raise_boom, EVENT_JOB_EXECUTED | EVENT_JOB_SUBMITTED)
            add_due(seen)
            seen.scheduler.turn()
            assert seen.errors() == {"listener": 2}

    def test_nothing_after_uninstrument(self) -> None:
        """A scheduler that is no longer watched is no longer counted."""
        with driven() as seen:
            seen.telemetry.uninstrument()
            add_due(seen, executor="gpu")
            seen.scheduler.turn()
            assert set(recorder_of(seen.telemetry).scheduler_error_counts().values()) == {0}


class TestWhatTheUserIsTold:
    """A failure that reaches the user's own code is the user's to handle, and is not counted."""

    MISTAKES = (
        lambda scheduler: scheduler.remove_job("nobody"),
        lambda scheduler: scheduler.modify_job("nobody", name="x"),
        lambda scheduler: scheduler.pause_job("nobody"),
        lambda scheduler: scheduler.remove_executor("nobody"),
        lambda scheduler: scheduler.remove_jobstore("nobody"),
    )

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_from_outside(self, mistake: Callable[[Any], Any]) -> None:
        """A call that fails tells its caller."""
        with driven() as seen:
            with pytest.raises((JobLookupError, KeyError)):
                mistake(seen.scheduler)
            assert seen.errors() == {}

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_from_a_job_that_runs_in_the_loop(self, mistake: Callable[[Any], Any]) -> None:
        """A job that the debug executor runs in the middle of a pass is the user's code, too."""
        with driven() as seen:
            add_due(seen, lambda: mistake(seen.scheduler))
            seen.scheduler.turn()
            assert seen.runs() == {"error": 1}
            assert seen.errors() == {}

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_from_a_listener_in_the_loop(self, mistake: Callable[[Any], Any]) -> None:
        """So is a listener that is called in the middle of a pass."""
        told: list[Any] = []

        def listen(event: Any) -> None:
            with pytest.raises((JobLookupError, KeyError)):
                mistake(seen.scheduler)
            told.append(event.code)

        with driven() as seen:
            seen.scheduler.add_listener(listen, EVENT_JOB_SUBMITTED)
            add_due(seen)
            seen.scheduler.turn()
            assert told == [EVENT_JOB_SUBMITTED]
            assert seen.errors() == {}

    def test_a_store_that_fails_the_user(self) -> None:
        """A job store that fails when the user asks it tells the user."""
        with driven() as seen:
            job = add_due(seen)
            store_of(seen).faults = {"update_job", "remove_job", "get_all_jobs"}
            for call in (job.pause, job.remove, seen.scheduler.get_jobs):
                with pytest.raises(Boom):
                    call()
            assert seen.errors() == {}


class TestLog:
    """The log says what it said without telemetry."""

    @staticmethod
    def record_of(caplog: pytest.LogCaptureFixture, *, instrumented: bool) -> logging.LogRecord:
        scheduler = scenes.by_hand()
        telemetry = None
        if instrumented:
            telemetry = instrument(scheduler, registry=CollectorRegistry())
        caplog.clear()
        scheduler.add_listener(raise_boom, EVENT_JOB_REMOVED)
        scheduler.start()
        scheduler.add_job(jobs.nothing, id="job")
        scheduler.remove_job("job")
        scheduler.shutdown()
        if telemetry is not None:
            telemetry.uninstrument()
        (record,) = [r for r in caplog.records if r.getMessage() == "Error notifying listener"]
        return record

    def test_names_apscheduler_s_line(self, caplog: pytest.LogCaptureFixture) -> None:
        """The record of a listener's failure names the same file, function and line."""
        plain = self.record_of(caplog, instrumented=False)
        seen = self.record_of(caplog, instrumented=True)
        for attribute in ("name", "levelno", "pathname", "funcName", "lineno", "msg", "args"):
            assert getattr(seen, attribute) == getattr(plain, attribute)
        assert seen.funcName == "_dispatch_event"
        assert seen.exc_info is not None
        assert isinstance(seen.exc_info[1], Boom)

    def test_a_logger_that_is_not_the_standard_library_s(self) -> None:
        """Any object that logs gets the very calls that APScheduler makes."""
        calls = []

        class Logger:
            def __getattr__(self, level: str) -> Callable[..., None]:
                return lambda *args, **kwargs: calls.append((level, args, kwargs))

        with driven(logger=Logger()) as seen:
            seen.scheduler.add_listener(raise_boom, EVENT_JOB_SUBMITTED)
            add_due(seen)
            seen.scheduler.turn()
            assert ("exception", ("Error notifying listener",), {}) in calls
            assert seen.errors() == {"listener": 1}

    def test_a_logger_that_is_silenced(self) -> None:
        """What is set on the scheduler's logger is set on the real one."""
        logger = logging.getLogger("to be silenced")
        with watched(scenes.by_hand(logger=logger)) as seen:
            seen.scheduler._logger.propagate = False
        assert seen.scheduler._logger is logger
        assert not logger.propagate

    def test_other_records_do_not_count(self) -> None:
        """That a job could not be submitted is logged likewise, and no listener's fault."""
        with driven(executors={"default": ShutPool()}) as seen:
            add_due(seen)
            seen.scheduler.turn()
            assert "listener" not in seen.errors()

    def test_a_new_configuration(self) -> None:
        """The logger of a new configuration is watched as well, and put back in the end."""
        scheduler = scenes.by_hand()
        logger = logging.getLogger("mine")
        with watched(scheduler) as seen:
            scheduler.configure(logger=logger, executors={"default": DebugExecutor()})
            scheduler.configure(logger=logger, executors={"default": DebugExecutor()})
            scheduler.add_listener(raise_boom, EVENT_JOB_SUBMITTED)
            scheduler.start()
            add_due(seen)
            scheduler.turn()
            assert seen.errors() == {"listener": 1}
        assert scheduler._logger is logger


class TestState:
    def test_not_started(self) -> None:
        """A scheduler that was not started is stopped, and not up."""
        with watched(BackgroundScheduler()) as seen:
            assert (seen.up(), state(seen), seen.reasons()) == (0, "stopped", ["stopped"])
            assert seen.value("scheduler_start_timestamp_seconds") is None
            assert seen.value("scheduler_last_wakeup_timestamp_seconds") is None

    @pytest.mark.parametrize("before", [True, False], ids=["before start", "after start"])
    def test_running(self, before: bool) -> None:
        """A scheduler whose thread turns is up, whenever it was instrumented."""
        scheduler = BackgroundScheduler()
        if not before:
            scheduler.start()
        with watched(scheduler) as seen:
            if before:
                scheduler.start()
            assert (seen.up(), state(seen), seen.reasons()) == (1, "running", [])

    def test_paused(self) -> None:
        """A scheduler that is paused is up: nothing is wrong with it, and nothing overdue."""
        with watched(scenes.by_hand()) as seen:
            clock = Monotonic(seen)
            seen.scheduler.start(paused=True)
            assert (seen.up(), state(seen)) == (1, "paused")
            seen.scheduler.resume()
            seen.scheduler.turn()
            assert (seen.up(), state(seen)) == (1, "running")
            add_due(seen)
            seen.scheduler.turn()
            seen.scheduler.pause()
            clock.now += 1e6
            assert (seen.up(), state(seen)) == (1, "paused")
            seen.scheduler.resume()
            assert (seen.up(), state(seen)) == (1, "running")
            clock.now += OVERDUE_SECONDS + 1  # and nobody turns the loop
            assert (seen.up(), seen.reasons()) == (0, ["overdue"])

    def test_thread_that_waits_for_resume(self) -> None:
        """So is one with a thread."""
        with watched(BackgroundScheduler()) as seen:
            seen.scheduler.start(paused=True)
            assert (seen.up(), state(seen)) == (1, "paused")
            seen.scheduler.resume()
            until(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
            assert (seen.up(), state(seen)) == (1, "running")

    def test_shut_down_and_started_again(self) -> None:
        """A scheduler that was shut down is stopped, and up again when it is started again."""
        # Not with a pool, which APScheduler cannot start again.
        executors = {"default": DebugExecutor()}
        with watched(BackgroundScheduler(executors=executors)) as seen:
            seen.scheduler.start()
            seen.scheduler.shutdown()
            assert (seen.up(), state(seen), seen.reasons()) == (0, "stopped", ["stopped"])
            seen.scheduler.start()
            assert (seen.up(), state(seen)) == (1, "running")
            add_due(seen)
            until(lambda: seen.runs() == {"success": 1})

    def test_times(self) -> None:
        """The start and the end of the latest pass are told by the wall clock."""
        with watched(scenes.by_hand()) as seen:
            adapter_of(seen.telemetry)._loop._clock = lambda: 100.0
            seen.scheduler.start()
            adapter_of(seen.telemetry)._loop._clock = lambda: 200.0
            seen.scheduler.turn()
            assert seen.value("scheduler_start_timestamp_seconds") == 100
            assert seen.value("scheduler_last_wakeup_timestamp_seconds") == 200
            seen.scheduler.shutdown()
            seen.scheduler.start()
            assert seen.value("scheduler_start_timestamp_seconds") == 200

    def test_started_before(self) -> None:
        """Of a scheduler that ran already it is told when it was instrumented."""
        scheduler = scenes.by_hand()
        scheduler.start()
        before = time.time()
        with watched(scheduler) as seen:
            assert before <= (seen.value("scheduler_start_timestamp_seconds") or 0) <= time.time()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
class TestDeadThread:
    @staticmethod
    def reasons_in_another_thread(seen: Watched) -> list[str]:
        """Return why the scheduler does not live, as seen from a pass in a thread of its own."""
        reasons: list[str] = []
        seen.scheduler.add_job(lambda: reasons.extend(seen.reasons()))
        thread = threading.Thread(target=seen.scheduler.turn)
        thread.start()
        thread.join(jobs.PATIENCE)
        return reasons

    def test_killed_by_its_job_store(self) -> None:
        """A thread that died is reported, though `running` stays true; nothing starts it again."""
        with watched(BackgroundScheduler(jobstores={"default": FaultyStore()})) as seen:
            store_of(seen).faults = {"update_job"}
            seen.scheduler.start()
            thread = seen.scheduler._thread
            add_due(seen)
            thread.join(jobs.PATIENCE)
            assert not thread.is_alive()
            assert seen.scheduler.running
            assert (seen.up(), state(seen), seen.reasons()) == (0, "running", ["loop_failed"])
            assert seen.telemetry.health()["status"] == "unhealthy"
            assert "Boom" in seen.telemetry.health()["reasons"][0]["message"]
            assert seen.errors() == {"jobstore": 1, "loop": 1}
            assert seen.scheduler._thread is thread

    def test_ended_outside_of_a_pass(self) -> None:
        """So is one that ended where it waits."""
        with watched(BackgroundScheduler()) as seen:
            end_thread(seen.scheduler, SystemExit)
            assert (seen.up(), state(seen), seen.reasons()) == (0, "running", ["thread_dead"])

    def test_dead_when_it_is_instrumented(self) -> None:
        """So is one that was dead already."""
        scheduler = BackgroundScheduler()
        end_thread(scheduler, SystemExit)
        with watched(scheduler) as seen:
            assert (seen.up(), seen.reasons()) == (0, ["thread_dead"])

    def test_replaced(self) -> None:
        """Another one that passes in its place counts, which often gets its id."""
        scheduler = scenes.by_hand()
        with watched(scheduler) as seen:
            scheduler.start()
            for _ in range(2):
                assert self.reasons_in_another_thread(seen) == []
                assert seen.reasons() == ["thread_dead"]

    def test_replaced_by_a_restart(self) -> None:
        """So does that of the next start, though nobody has asked since the last one ended."""
        scheduler = scenes.by_hand()
        with watched(scheduler) as seen:
            scheduler.start()
            assert self.reasons_in_another_thread(seen) == []
            scheduler.shutdown()
            scheduler.start()
            assert self.reasons_in_another_thread(seen) == []
            assert seen.reasons() == ["thread_dead"]

    def test_interrupted_in_the_foreground(self) -> None:
        """Ctrl-C ends a `BlockingScheduler` whose thread may live on, and it stays `running`."""
        scheduler = BlockingScheduler()
        go_on, ended = threading.Event(), threading.Event()

        def main() -> None:
            with suppress(KeyboardInterrupt):
                scheduler.start()
            ended.set()
            go_on.wait(jobs.PATIENCE)

        with watched(scheduler) as seen:
            thread = threading.Thread(target=main)
            thread.start()
            until(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
            assert seen.up() == 1
            interrupt(scheduler, KeyboardInterrupt)
            assert ended.wait(jobs.PATIENCE)
            assert thread.is_alive()
            assert scheduler.running
            assert (seen.up(), seen.reasons()) == (0, ["thread_dead"])
            go_on.set()
            thread.join()

    def test_started_again_by_the_user(self) -> None:
        """Whoever shuts it down and starts it again has a scheduler that is up."""
        with watched(BackgroundScheduler(jobstores={"default": FaultyStore()})) as seen:
            store_of(seen).faults = {"get_next_run_time"}
            seen.scheduler.start()
            until(lambda: not seen.up())
            store_of(seen).faults.clear()
            seen.scheduler.shutdown()
            seen.scheduler.start()
            assert (seen.up(), seen.reasons()) == (1, [])


class TestAsyncio:
    def test_lost_timer(self) -> None:
        """An asyncio scheduler that lost its timer is reported; a good pass recovers it."""

        async def main() -> None:
            scheduler = AsyncIOScheduler(jobstores={"default": FaultyStore()})
            with watched(scheduler) as seen, quiet_loop():
                scheduler.start()
                await eventually(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
                store_of(seen).faults = {"update_job"}
                add_due(seen)
                await eventually(lambda: seen.errors() == {"jobstore": 1, "loop": 1})
                assert scheduler._timeout is None
                assert (seen.up(), state(seen), seen.reasons()) == (0, "running", ["loop_failed"])
                assert scheduler._timeout is None  # reported, not repaired
                store_of(seen).faults.clear()
                scheduler.wakeup()
                await eventually(lambda: seen.up() == 1)
                assert seen.reasons() == []

        asyncio.run(main())

    def test_stopped_and_closed_event_loop(self) -> None:
        """An event loop that does not turn is reported, and so is one that never will again."""
        loop = asyncio.new_event_loop()

        async def start() -> None:
            scheduler.start()
            await eventually(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
            assert (seen.up(), seen.reasons()) == (1, [])

        async def look() -> None:
            assert (seen.up(), seen.reasons()) == (1, [])

        scheduler = AsyncIOScheduler(event_loop=loop)
        with watched(scheduler) as seen:
            loop.run_until_complete(start())
            assert (seen.up(), seen.reasons()) == (0, ["event_loop_stopped"])
            loop.run_until_complete(look())
            assert (seen.up(), seen.reasons()) == (0, ["event_loop_stopped"])
            loop.close()
            assert (seen.up(), seen.reasons()) == (0, ["event_loop_closed"])
            scheduler.state = 0  # its shutdown() needs the loop

    def test_an_event_loop_that_moves_to_another_thread(self) -> None:
        """An event loop may be run by one thread after another."""
        loop = asyncio.new_event_loop()
        scheduler = AsyncIOScheduler(event_loop=loop)

        async def start() -> None:
            scheduler.start()
            await eventually(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)

        async def look() -> None:
            assert (seen.up(), seen.reasons()) == (1, [])

        with watched(scheduler) as seen:
            thread = threading.Thread(target=loop.run_until_complete, args=(start(),))
            thread.start()
            thread.join()
            loop.run_until_complete(look())
            loop.close()
            scheduler.state = 0

    def test_blocked_after_it_was_woken_up(self) -> None:
        """Woken up in the middle of a pass it is due at once, whatever that pass then says."""
        executors = {"default": DebugExecutor()}
        late: list[list[str]] = []

        async def main() -> None:
            with watched(AsyncIOScheduler(executors=executors)) as seen:
                clock = Monotonic(seen)

                def block() -> None:
                    clock.now += OVERDUE_SECONDS + 1
                    late.append(seen.reasons())

                def wake_up() -> None:
                    asyncio.get_running_loop().call_soon(block)  # before the pass that is asked for
                    seen.scheduler.wakeup()

                seen.scheduler.start()
                await eventually(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
                add_due(seen, wake_up)
                await eventually(lambda: late)
                assert late == [["overdue"]]
                await eventually(lambda: seen.up() == 1)
                seen.scheduler.shutdown()

        asyncio.run(main())

    def test_blocked_event_loop(self) -> None:
        """A pass that does not come when it was due is reported until it comes."""

        async def main() -> None:
            with watched(AsyncIOScheduler()) as seen:
                clock = Monotonic(seen)
                seen.scheduler.start()
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id="job")
                loop = adapter_of(seen.telemetry)._loop
                await eventually(
                    lambda: (
                        loop._wait_start_and_seconds is not None and loop._wait_start_and_seconds[1]
                    )
                )
                clock.now += 3600 + OVERDUE_SECONDS - 1
                assert seen.reasons() == []
                clock.now += 2
                assert (seen.up(), seen.reasons()) == (0, ["overdue"])
                seen.scheduler.wakeup()
                await eventually(lambda: seen.up() == 1)

        asyncio.run(main())

    def test_wakeup_that_is_not_answered(self) -> None:
        """An event loop that is too busy to look for due jobs when asked to is overdue."""

        async def main() -> None:
            with watched(AsyncIOScheduler()) as seen:
                clock = Monotonic(seen)
                seen.scheduler.start()
                await eventually(lambda: seen.telemetry._exported_scheduler.last_pass_ended_at)
                seen.scheduler.wakeup()
                clock.now += OVERDUE_SECONDS + 1  # and no await: the loop is blocked
                assert seen.reasons() == ["overdue"]
                await eventually(lambda: seen.reasons() == [])

        asyncio.run(main())

    def test_shut_down(self) -> None:
        """A scheduler that was shut down with its event loop is stopped, whatever the loop does."""

        async def main() -> Watched:
            scheduler = AsyncIOScheduler()
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            seen = Watched(scheduler, telemetry, registry_of(telemetry))
            scheduler.start()
            scheduler.shutdown()
            await eventually(lambda: not scheduler.running)
            return seen

        seen = asyncio.run(main())
        assert (seen.up(), seen.reasons()) == (0, ["stopped"])
        seen.telemetry.uninstrument()


class TestOverdue:
    def test_a_pass_that_does_not_end(self) -> None:
        """A pass that lasts too long is reported while it lasts."""
        with driven() as seen:
            clock = Monotonic(seen)
            reasons = []

            def hold_up() -> None:
                clock.now += OVERDUE_SECONDS
                reasons.append(seen.reasons())
                clock.now += 1
                reasons.append(seen.reasons())

            add_due(seen, hold_up)
            seen.scheduler.turn()
            assert reasons == [[], ["overdue"]]
            assert seen.reasons() == []

    def test_a_pass_in_another_thread(self) -> None:
        """A real thread that is held up by a job in the loop is reported, and recovers."""
        gate = Gate()
        scheduler = BackgroundScheduler(executors={"default": DebugExecutor()})
        with watched(scheduler) as seen:
            clock = Monotonic(seen)
            scheduler.start()
            add_due(seen, gate.hold)
            gate.wait_for_run()
            assert seen.reasons() == []
            clock.now += OVERDUE_SECONDS + 1
            assert (seen.up(), seen.reasons()) == (0, ["overdue"])
            gate.open()
            until(lambda: seen.up() == 1)

    def test_no_jobs_no_hurry(self) -> None:
        """A scheduler without jobs expects nothing, however long it waits."""
        with driven() as seen:
            clock = Monotonic(seen)
            seen.scheduler.turn()
            clock.now += 1e9
            assert seen.reasons() == []


class TestFork:
    SCRIPT = """
        import json, os, sys
        from apscheduler.schedulers.background import BackgroundScheduler
        from prometheus_client import CollectorRegistry, generate_latest
        from apscheduler_telemetry import instrument

        registry = CollectorRegistry()
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=registry)
        if sys.argv[1] == "start before":
            scheduler.start()
        read, write = os.pipe()
        if os.fork() == 0:
            if sys.argv[1] == "start after":
                scheduler.start()
            health = telemetry.health()
            up = registry.get_sample_value("apscheduler_scheduler_up", {"scheduler": "default"})
            generate_latest(registry)
            os.write(write, json.dumps([up, health]).encode())
            os._exit(0)
        os.wait()
        os.close(write)
        print(os.read(read, 1 << 20).decode())
        print(json.dumps(telemetry.health()["status"]))
    """

    def run(self, when: str) -> tuple[float, Any, str]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(self.SCRIPT), when],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stderr == ""
        child, parent = (json.loads(line) for line in done.stdout.splitlines())
        return child[0], child[1], parent

    def test_forked_after_the_start(self) -> None:
        """In a child that was forked after the start no thread runs, which is reported there."""
        up, health, parent = self.run("start before")
        assert up == 0
        assert health["status"] == "unhealthy"
        assert [reason["code"] for reason in health["reasons"]] == ["forked"]
        assert "Start the scheduler after the fork" in health["reasons"][0]["message"]
        assert parent == "healthy"

    def test_started_after_the_fork(self) -> None:
        """A scheduler that is started in the child is up there."""
        up, health, parent = self.run("start after")
        assert (up, health["status"], health["reasons"]) == (1, "healthy", [])
        assert parent == "unhealthy"


class TestScrape:
    def test_never_touches_a_job_store(self) -> None:
        """A scrape and a health check ask no store anything, however broken it is."""
        with driven() as seen:
            add_due(seen)
            seen.scheduler.turn()
            store_of(seen).faults = {
                name for name, _ in inspect.getmembers(FaultyStore, inspect.isfunction)
            }
            store_of(seen).calls.clear()
            assert seen.up() == 1
            assert seen.telemetry.health()["jobs"][0]["last_outcome"] == "success"
            assert store_of(seen).calls == []
            assert seen.own_errors() == {}

    def test_does_not_wait_for_the_scheduler(self) -> None:
        """A scrape goes on while APScheduler holds all of its locks, as it does on a slow store."""
        with driven() as seen:
            add_due(seen)
            scheduler = seen.scheduler
            done = threading.Event()

            def scrape() -> None:
                seen.up()
                seen.telemetry.health()
                done.set()

            with scheduler._jobstores_lock, scheduler._executors_lock, scheduler._listeners_lock:
                thread = threading.Thread(target=scrape)
                thread.start()
                assert done.wait(jobs.PATIENCE)
            thread.join()


def state(seen: Watched) -> str:
    """Return the one state that is 1."""
    (on,) = [
        s for s in ("running", "paused", "stopped") if seen.value("scheduler_state", state=s) == 1
    ]
    return on


def raise_boom(*args: Any) -> Any:
    raise Boom("on purpose")


def end_thread(scheduler: Any, exception: type[BaseException]) -> None:
    """Let the thread of a scheduler end where it waits."""
    scheduler.start()
    interrupt(scheduler, exception)
    scheduler._thread.join(jobs.PATIENCE)
    assert not scheduler._thread.is_alive()


def interrupt(scheduler: Any, exception: type[BaseException]) -> None:
    """Raise in the thread of a scheduler when it waits again."""

    class Interrupted(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            raise exception

    event, scheduler._event = scheduler._event, Interrupted()
    event.set()


@contextmanager
def quiet_loop() -> Iterator[None]:
    """Keep the event loop from writing about exceptions that are meant."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda *args: None)
    yield
    loop.set_exception_handler(None)
