"""Telemetry that fails: jobs run, and each failure is counted."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timezone
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from apscheduler.executors.pool import ThreadPoolExecutor

from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.core.observers import ErrorReporter
from tests.helpers import jobs
from tests.helpers.clocks import freeze_time
from tests.helpers.metrics import errors_of, recorder_of
from tests.helpers.rigs import Rig, hand_driven_rig
from tests.helpers.schedulers import HandDriven, forkserver_pool
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until

UTC = timezone.utc


class TestOurOwnFailures:
    """Failures of telemetry at each point at which it handles a run."""

    @pytest.mark.parametrize(
        ("kind", "place"),
        [
            ("threads", "core.records.Run.__init__"),
            ("threads", "core.recorder.Recorder.runs_unsubmitted"),
            ("threads", "core.records.Run.finish"),
            (
                "threads",
                "adapters.apscheduler3.job_change_handler.JobChangeHandler.on_job_advanced",
            ),
            ("threads", "adapters.apscheduler3.runs.Submission.__init__"),
            ("threads", "adapters.apscheduler3.runs.RunTracker.finish_runs_by_events"),
            ("threads", "adapters.apscheduler3.runs.RunTracker.finish_run"),
            ("threads", "adapters.apscheduler3.triggers.create_search_before"),
            ("threads", "adapters.apscheduler3.tracked_jobs.TrackedJobs.upsert"),
            ("threads", "adapters.apscheduler3.executors.ExecutorHooks._create_submission"),
            ("threads", "adapters.apscheduler3.executors.ExecutorHooks._on_result"),
            ("processes", "core.records.Run.__init__"),
            ("processes", "core.records.Run.finish"),
            ("processes", "core.records.Run.try_start"),
            ("processes", "core.records.Run.try_set_estimated_start"),
            ("processes", "adapters.apscheduler3.runs.RunTracker.finish_runs_by_events"),
            ("processes", "adapters.apscheduler3.runs.Submission.set_pool"),
            ("processes", "adapters.apscheduler3.runs.RunTracker.create_trace_carriers"),
            ("processes", "core.records.Run.set_duration"),
            (
                "processes",
                "adapters.apscheduler3.runs.Submission.mark_abandoned_and_check_not_running",
            ),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._on_result"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._on_submit_failed"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._on_result_lost"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._estimate_starts_in_pool"),
            ("processes", "adapters.apscheduler3.executors.ExecutorHooks._abandon_submission"),
            ("processes", "adapters.apscheduler3.triggers.create_search_before"),
        ],
    )
    def test_jobs_go_on_and_telemetry_failures_are_counted(
        self, kind: str, place: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Failures of telemetry are counted; runs and events are as without telemetry."""
        executor = ThreadPoolExecutor(1) if kind == "threads" else forkserver_pool()
        scheduler = HandDriven(executors={"default": executor}, timezone=UTC)

        def broken(*_: Any) -> Any:
            raise OSError

        with freeze_time() as clock:
            # First, as what runs often is looked up when the scheduler is instrumented.
            monkeypatch.setattr(f"apscheduler_telemetry.{place}", broken)
            rig = Rig(scheduler)
            scheduler.start()
            rig.add(jobs.give_back, every(10), args=[5], id="good")
            rig.add(jobs.fail, every(10), id="bad")
            if kind == "processes":
                rig.add(lambda: None, every(10), id="lost")
            clock.advance(15)
            scheduler.turn()
            wait_until(lambda: "executed" in rig.codes("good") and "error" in rig.codes("bad"))
            wait_until(lambda: not any(list(executor._instances.values())))
            assert [rig.codes(job_id).count("submitted") for job_id in ("good", "bad")] == [1, 1]
            rig.add(jobs.nothing, every(10), id="refused")
            clock.advance(10)
            scheduler._executors["default"]._instances["refused"] = 1
            scheduler.turn()
            assert "max_instances" in rig.codes("refused")
            # All of them: where a pool is shut down while a job cannot be pickled, Python hangs.
            wait_until(lambda: not any(executor._instances[key] for key in ("good", "bad", "lost")))
            scheduler.shutdown()
        rig.telemetry.uninstrument()
        assert [e.retval for e in rig.events if e.code == EVENT_JOB_EXECUTED] == [5, 5]
        assert {type(e.job_id) for e in rig.events if hasattr(e, "job_id")} == {str}
        components = {name for name, n in errors_of(rig.telemetry).counts().items() if n}
        assert components <= {"adapter", "schedule"}
        assert components


def raise_runtime_error(thread: threading.Thread) -> None:  # as of `start`
    """Fail as `Thread.start` does."""
    msg = "can't start new thread"
    raise RuntimeError(msg)


class TestNoThread:
    """No thread can be started, as there are too many, or as the main thread has ended."""

    @pytest.fixture
    def rig_and_limit(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Rig, Any]]:
        """Yield a scheduler with telemetry, and what ends the limit."""
        start = threading.Thread.start

        with hand_driven_rig() as rig:
            monkeypatch.setattr(threading.Thread, "start", raise_runtime_error)
            yield rig, lambda: monkeypatch.setattr(threading.Thread, "start", start)

    def test_jobs_are_added_and_one_warning_says_what_is_not_known(
        self, rig_and_limit: tuple[Rig, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """As soon as a thread can be started, it is known of all jobs."""
        rig, end_limit = rig_and_limit

        def known() -> list[str]:
            states = recorder_of(rig.telemetry).job_snapshots()
            return [state.info.id for state in states if state.interval_range]

        rig.failing = {"schedule"}
        for hour in range(3):
            rig.add(jobs.nothing, "cron", hour=hour, id=str(hour))
        assert errors_of(rig.telemetry).counts()["schedule"] == 1
        [record] = [each for each in caplog.records if each.name == "apscheduler_telemetry"]
        assert "could not start a thread (can't start new thread)" in record.getMessage()
        assert record.exc_info is None
        assert known() == []
        end_limit()
        rig.add(jobs.nothing, "cron", hour=3, id="3")
        wait_until(lambda: sorted(known()) == ["0", "1", "2", "3"])

    def test_tasks_that_wait_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If no thread can ever be started, no memory is used for each job that is added."""
        monkeypatch.setattr(threading.Thread, "start", raise_runtime_error)
        worker = BackgroundWorker(ErrorReporter())
        for _ in range(BackgroundWorker.MAX_TASKS_WITHOUT_THREAD + 10):
            worker.submit("schedule", lambda: None)
        assert len(worker._tasks) == BackgroundWorker.MAX_TASKS_WITHOUT_THREAD
