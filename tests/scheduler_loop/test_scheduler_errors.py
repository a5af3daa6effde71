"""Errors that APScheduler only logs are counted by kind; those raised to the user are not."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED, EVENT_JOB_REMOVED, EVENT_JOB_SUBMITTED
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.base import JobLookupError
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.date import DateTrigger
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers import jobs, watching
from tests.helpers.faults import Boom, raise_boom
from tests.helpers.loops import add_due, driven, store_of
from tests.helpers.metrics import recorder_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.watching import watched


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


class TestErrors:
    """Errors that APScheduler only logs are counted by kind."""

    def test_no_error_counts_without_a_fault(self) -> None:
        """Without a fault, no error is counted."""
        with driven() as seen:
            add_due(seen)
            seen.scheduler.turn()
            seen.scheduler.remove_job("job")
            assert seen.errors() == {}
            assert seen.own_errors() == {}

    def test_store_that_fails_on_get_due_jobs_is_counted(self) -> None:
        """A job store that fails on `get_due_jobs` is counted; the loop tries again."""
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
    def test_store_that_kills_the_loop_counts_for_both(self, method: str) -> None:
        """An exception of a store that ends the loop counts as a store and a loop error."""
        with driven() as seen:
            add_due(seen)
            store_of(seen).faults = {method}
            with pytest.raises(Boom, match=method):
                seen.scheduler.turn()
            assert seen.errors() == {"jobstore": 1, "loop": 1}
            assert seen.reasons() == ["loop_failed"]

    def test_store_that_fails_to_remove_a_finished_job_counts(self) -> None:
        """A store that fails to remove a finished job is counted."""
        with driven() as seen:
            add_due(seen, trigger=DateTrigger(watching.ago(0.1)))
            store_of(seen).faults = {"remove_job"}
            with pytest.raises(Boom, match="remove_job"):
                seen.scheduler.turn()
            assert seen.errors() == {"jobstore": 1, "loop": 1}

    def test_trigger_that_kills_the_loop_is_counted(self) -> None:
        """A trigger that raises ends the pass, and counts as a loop error."""
        with driven() as seen:
            add_due(seen, trigger=FaultyTrigger())
            with pytest.raises(Boom, match="trigger"):
                seen.scheduler.turn()
            assert seen.errors() == {"loop": 1}

    def test_unknown_executor_is_counted_each_time(self) -> None:
        """Each run with an unknown executor is counted."""
        with driven() as seen:
            add_due(seen, id="a", executor="gpu")
            add_due(seen, id="b", executor="gpu")
            add_due(seen, id="c")
            seen.scheduler.turn()
            assert seen.errors() == {"executor_lookup": 2}
            assert seen.runs("c") == {"success": 1}

    def test_executor_that_refuses_a_job_is_counted(self) -> None:
        """An executor that rejects a job is counted."""
        with driven(executors={"default": ShutPool()}) as seen:
            add_due(seen)
            seen.scheduler.turn()
            assert seen.errors() == {"submit": 1}

    def test_failing_listener_is_counted(self) -> None:
        """Each exception of a listener is counted, whatever sent the event."""
        with driven() as seen:
            seen.scheduler.add_listener(raise_boom, EVENT_JOB_EXECUTED | EVENT_JOB_SUBMITTED)
            add_due(seen)
            seen.scheduler.turn()
            assert seen.errors() == {"listener": 2}

    def test_nothing_is_counted_after_uninstrument(self) -> None:
        """After `uninstrument`, nothing is counted."""
        with driven() as seen:
            seen.telemetry.uninstrument()
            add_due(seen, executor="gpu")
            seen.scheduler.turn()
            assert set(recorder_of(seen.telemetry).scheduler_error_counts().values()) == {0}


class TestWhatTheUserIsTold:
    """A failure that is raised to the user's own code is not counted."""

    MISTAKES = (
        lambda scheduler: scheduler.remove_job("unknown"),
        lambda scheduler: scheduler.modify_job("unknown", name="x"),
        lambda scheduler: scheduler.pause_job("unknown"),
        lambda scheduler: scheduler.remove_executor("unknown"),
        lambda scheduler: scheduler.remove_jobstore("unknown"),
    )

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_failing_call_of_the_user_is_not_counted(self, mistake: Callable[[Any], Any]) -> None:
        """A call by the user that raises is not counted."""
        with driven() as seen:
            with pytest.raises((JobLookupError, KeyError)):
                mistake(seen.scheduler)
            assert seen.errors() == {}

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_failing_call_of_a_job_in_the_loop_is_not_counted(
        self, mistake: Callable[[Any], Any]
    ) -> None:
        """A call by a job in the debug executor that raises is not counted."""
        with driven() as seen:
            add_due(seen, lambda: mistake(seen.scheduler))
            seen.scheduler.turn()
            assert seen.runs() == {"error": 1}
            assert seen.errors() == {}

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_failing_call_of_a_listener_in_the_loop_is_not_counted(
        self, mistake: Callable[[Any], Any]
    ) -> None:
        """A call by a listener during a pass that raises is not counted."""
        received_codes: list[Any] = []

        def listen(event: Any) -> None:
            with pytest.raises((JobLookupError, KeyError)):
                mistake(seen.scheduler)
            received_codes.append(event.code)

        with driven() as seen:
            seen.scheduler.add_listener(listen, EVENT_JOB_SUBMITTED)
            add_due(seen)
            seen.scheduler.turn()
            assert received_codes == [EVENT_JOB_SUBMITTED]
            assert seen.errors() == {}

    def test_store_failure_raised_to_the_user_is_not_counted(self) -> None:
        """A failure of a store that is raised to the user is not counted."""
        with driven() as seen:
            job = add_due(seen)
            store_of(seen).faults = {"update_job", "remove_job", "get_all_jobs"}
            for call in (job.pause, job.remove, seen.scheduler.get_jobs):
                with pytest.raises(Boom):
                    call()
            assert seen.errors() == {}


class TestLog:
    """The log is the same as without telemetry."""

    @staticmethod
    def record_of(caplog: pytest.LogCaptureFixture, *, instrumented: bool) -> logging.LogRecord:
        scheduler = hand_driven_scheduler()
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

    def test_log_record_names_the_line_of_apscheduler(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The log record of a listener's exception has APScheduler's file, function and line."""
        plain = self.record_of(caplog, instrumented=False)
        seen = self.record_of(caplog, instrumented=True)
        for attribute in ("name", "levelno", "pathname", "funcName", "lineno", "msg", "args"):
            assert getattr(seen, attribute) == getattr(plain, attribute)
        assert seen.funcName == "_dispatch_event"
        assert seen.exc_info is not None
        assert isinstance(seen.exc_info[1], Boom)

    def test_logger_of_another_library_gets_the_same_calls(self) -> None:
        """A logger of another library gets the same calls as without telemetry."""
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

    def test_settings_of_the_logger_apply_to_the_real_one(self) -> None:
        """Settings of the scheduler's logger apply to the real logger."""
        logger = logging.getLogger("to be silenced")
        with watched(hand_driven_scheduler(logger=logger)) as seen:
            seen.scheduler._logger.propagate = False
        assert seen.scheduler._logger is logger
        assert not logger.propagate

    def test_other_log_records_do_not_count(self) -> None:
        """A record about a failed submission does not count as a listener's exception."""
        with driven(executors={"default": ShutPool()}) as seen:
            add_due(seen)
            seen.scheduler.turn()
            assert "listener" not in seen.errors()

    def test_logger_of_a_new_configuration_is_watched(self) -> None:
        """The logger of a new configuration is patched, and restored in the end."""
        scheduler = hand_driven_scheduler()
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
