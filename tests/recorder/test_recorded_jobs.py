"""Jobs, job stores and executors in the recorder."""

from __future__ import annotations

import pytest

from apscheduler_telemetry.core.model import Outcome, RemovalReason, SchedulerErrorKind
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS, Recorder
from tests.helpers.recorder_rig import AT, DUE, RecorderRig, job_info, readings


class TestJobs:
    """Jobs that are added, changed and removed."""

    def test_jobs_of_one_label_share_numbers_and_the_earliest_next_run(
        self, rig: RecorderRig
    ) -> None:
        """Jobs with one label share counts; the earliest of their next runs is shown."""
        twin = rig.recorder.job_upserted(job_info("twin", label="job"), AT + 5)
        rig.recorder.job_rescheduled(rig.record, AT + 10, cancels=False)
        assert rig.job().next_run == AT + 5
        for record in (twin, rig.record):
            rig.recorder.runs_unsubmitted(record, Outcome.SKIPPED, 1)
        assert rig.job().stats.outcomes[Outcome.SKIPPED] == 2
        rig.recorder.job_removed(twin, RemovalReason.FINISHED)
        assert (rig.job().next_run, rig.job().info.id) == (AT + 10, "job")

    def test_advancing_cancels_nothing(self, rig: RecorderRig) -> None:
        """Advancing to the next run cancels nothing; a change by the user does."""
        rig.recorder.job_advanced(rig.record, DUE.replace(second=10))
        assert (rig.job().cancelled_run_due_at, rig.job().next_run) == (None, AT + 10)
        rig.recorder.job_rescheduled(rig.record, AT + 99, cancels=True)
        assert (rig.job().cancelled_run_due_at, rig.job().next_run) == (AT + 10, AT + 99)
        rig.recorder.job_rescheduled(rig.record, None, cancels=True)
        assert (rig.job().cancelled_run_due_at, rig.job().next_run) == (AT + 99, 0)

    def test_run_that_is_planned_again_is_not_cancelled(self, rig: RecorderRig) -> None:
        """A cancelled run that is planned again is not cancelled."""
        rig.recorder.job_rescheduled(rig.record, None, cancels=True)
        assert rig.job().cancelled_run_due_at == AT
        rig.recorder.job_rescheduled(rig.record, AT, cancels=True)
        assert rig.job().cancelled_run_due_at is None

    def test_another_job_of_the_label_may_plan_a_run_again(self, rig: RecorderRig) -> None:
        """A cancelled run may be planned again by another job with the label."""
        shared = rig.recorder.job_upserted(job_info("other", label="job"), AT + 20)
        rig.recorder.job_removed(shared, RemovalReason.CANCELLED)
        assert rig.job().cancelled_run_due_at == AT + 20
        rig.recorder.job_advanced(rig.record, DUE.replace(second=20))
        assert rig.job().cancelled_run_due_at is None

    @pytest.mark.parametrize(
        ("removal", "next_run", "cancelled"),
        [
            (RemovalReason.CANCELLED, 0, AT),
            (RemovalReason.FINISHED, 0, None),
            (RemovalReason.FAILED, AT, None),
        ],
    )
    def test_removal_by_the_user_cancels_the_next_run(
        self, rig: RecorderRig, removal: RemovalReason, next_run: float, cancelled: float | None
    ) -> None:
        """A removal by the user cancels the next run; one by an error leaves it expected."""
        rig.recorder.job_removed(rig.record, removal)
        assert (rig.job().next_run, rig.job().cancelled_run_due_at) == (next_run, cancelled)
        assert jobs_per_store(rig.recorder) == {"default": 0}
        rig.recorder.job_removed(rig.record, RemovalReason.CANCELLED)
        assert rig.job().cancelled_run_due_at == cancelled, "it was gone already"

    def test_next_run_of_a_job_removed_by_an_error_is_forgotten(self, rig: RecorderRig) -> None:
        """The next run of a job that was removed by an error is dropped after 15 minutes."""
        failed = rig.recorder.job_upserted(job_info("failed", label="job"), AT - 60)
        rig.recorder.job_removed(failed, RemovalReason.FAILED)
        rig.clock.now = AT + REMOVED_JOB_SECONDS - 1
        assert rig.job().next_run == AT - 60
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        assert rig.job().next_run == AT

    def test_job_removed_by_an_error_comes_back_with_a_new_next_run(self, rig: RecorderRig) -> None:
        """A job that was removed by an error and is added again has its new next run."""
        rig.recorder.job_removed(rig.record, RemovalReason.FAILED)
        rig.recorder.job_upserted(job_info(), AT + 600)
        assert rig.job().next_run == AT + 600
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        assert rig.job().next_run == AT + 600

    def test_removed_job_is_dropped_after_15_minutes(self, rig: RecorderRig) -> None:
        """A removed job is dropped 15 minutes after the end of its last run."""
        (run,) = rig.submit()
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.clock.now = AT + 1_200
        assert rig.job().in_flight_summary.queued == 1
        rig.finish(run, Outcome.LOST)
        assert rig.job().stats.outcomes[Outcome.LOST] == 1
        rig.clock.now = AT + 1_200 + 899
        assert rig.labels() == ["job"]
        rig.clock.now = AT + 1_200 + 900
        assert rig.labels() == []

    def test_late_end_of_the_last_run_is_shown(self, rig: RecorderRig) -> None:
        """The outcome of a last run that ends between two readings is shown by the next."""
        (run,) = rig.submit()
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        rig.finish(run, started=AT + 1, duration=2)
        rig.clock.now = AT + 10 * REMOVED_JOB_SECONDS
        assert rig.job().stats.outcomes[Outcome.SUCCESS] == 1
        rig.clock.now += REMOVED_JOB_SECONDS
        assert rig.labels() == []

    def test_versions_are_never_used_again(self, rig: RecorderRig) -> None:
        """A label that was dropped and added again has a new version."""
        known = {job.label: job.version for job in rig.recorder.job_snapshots()}
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.clock.now = AT + 900
        assert rig.labels() == []
        record = rig.recorder.job_upserted(job_info(), AT + 999)
        for _ in range(3):
            rig.recorder.runs_unsubmitted(record, Outcome.SKIPPED, 1)
            rig.job()  # another reader's turn
            assert all(job is not None for _, job in rig.recorder.job_snapshots_since(known))

    def test_job_that_comes_back_keeps_its_numbers(self, rig: RecorderRig) -> None:
        """A job that is added again keeps its counts, and is not dropped."""
        rig.recorder.runs_unsubmitted(rig.record, Outcome.SKIPPED, 3)
        rig.recorder.job_removed(rig.record, RemovalReason.CANCELLED)
        rig.recorder.job_upserted(job_info(), AT + 10)
        rig.clock.now = AT + 10_000
        assert rig.job().stats.outcomes[Outcome.SKIPPED] == 3

    def test_job_whose_label_changes_counts_under_the_new_one(self, rig: RecorderRig) -> None:
        """A job counts under its new label; runs in flight keep the former one."""
        (run,) = rig.submit()
        moved = rig.recorder.job_upserted(job_info(label="new"), AT + 10)
        assert (rig.job("job").next_run, rig.job("new").next_run) == (0, AT + 10)
        assert rig.recorder.find_job_record("default", "job") is moved
        assert (rig.record.is_current, moved.is_current) == (False, True)
        assert jobs_per_store(rig.recorder) == {"default": 1}
        rig.finish(run)
        assert rig.job("job").stats.outcomes[Outcome.SUCCESS] == 1

    def test_jobs_are_listed_with_their_next_run(self, rig: RecorderRig) -> None:
        """Jobs are listed with their next run."""
        rig.recorder.job_upserted(job_info("paused"), None)
        rig.recorder.job_upserted(job_info("sql", jobstore="sql"), DUE)
        assert rig.recorder.next_runs() == {("default", "job"): AT, ("sql", "sql"): AT}

    def test_jobs_are_counted_by_store(self, rig: RecorderRig) -> None:
        """Jobs are counted by store; the same id in another store is another job."""
        rig.recorder.jobstore_added("sql", is_local=False)
        assert jobs_per_store(rig.recorder) == {"default": 1, "sql": 0}
        rig.recorder.job_upserted(job_info(jobstore="sql"), AT + 5)
        assert jobs_per_store(rig.recorder) == {"default": 1, "sql": 1}
        assert rig.job().next_run == AT
        rig.recorder.jobstore_removed("default")
        assert jobs_per_store(rig.recorder) == {"sql": 1}
        assert rig.job().next_run == AT + 5
        assert [record.job_key for record in rig.recorder.job_records_of_jobstore("sql")] == [
            ("sql", "job")
        ]

    def test_shared_store_is_known_as_of_its_last_reading(self, rig: RecorderRig) -> None:
        """A shared store is current as of its last reading, a local one as of now."""
        rig.recorder.jobstore_added("memory", is_local=True)
        rig.recorder.jobstore_added("sql", is_local=False)
        rig.recorder.jobstore_read_failed("sql")
        assert (readings(rig.recorder, "sql"), readings(rig.recorder, "memory")) == (
            (None, 1),
            (rig.clock.now, 0),
        )
        rig.recorder.jobstore_read("sql", AT - 5)
        rig.recorder.jobstore_read_failed("sql")
        rig.recorder.jobstore_read("removed", AT)
        rig.recorder.jobstore_read_failed("removed")
        rig.clock.now = AT + 7
        assert (readings(rig.recorder, "sql"), readings(rig.recorder, "memory")) == (
            (AT - 5, 2),
            (AT + 7, 0),
        )
        assert "removed" not in rig.recorder.jobstores()


class TestTooManyLabels:
    """More labels than the limit."""

    def test_jobs_beyond_the_limit_share_one_label(self) -> None:
        """Jobs beyond the limit share one label, without information about one of them."""
        rig = RecorderRig(max_labels=2)
        for job_id in ("second", "third", "fourth"):
            record = rig.recorder.job_upserted(job_info(job_id), AT)
            rig.recorder.runs_unsubmitted(record, Outcome.SKIPPED, 1)
        assert rig.labels() == ["job", "second", "__overflow__"]
        overflow = rig.job("__overflow__")
        assert (overflow.due_count, overflow.info.name) == (2, "__overflow__")
        again = rig.recorder.job_upserted(job_info("fourth"), AT)
        assert again.series.label == "__overflow__"

    def test_dropped_label_makes_room_for_another(self) -> None:
        """When a label is dropped, the next new job has its own label."""
        rig = RecorderRig(max_labels=1)
        rig.recorder.job_upserted(job_info("second"), AT)
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        rig.recorder.job_upserted(job_info("third"), AT)
        assert rig.labels() == ["__overflow__", "third"]


class TestErrors:
    """Errors that APScheduler only logs."""

    def test_every_kind_of_error_counts_by_itself(self, rig: RecorderRig) -> None:
        """Every kind of error starts at 0 and counts separately."""
        rig.recorder.count_scheduler_error(SchedulerErrorKind.SUBMIT)
        assert rig.recorder.scheduler_error_counts() == {
            **dict.fromkeys(SchedulerErrorKind, 0),
            SchedulerErrorKind.SUBMIT: 1,
        }


class TestExecutors:
    """The load of executors."""

    def test_removed_executor_is_not_shown(self, rig: RecorderRig) -> None:
        """A removed executor is not shown, and its runs can still end."""
        (run,) = rig.submit()
        rig.recorder.executor_removed("default")
        rig.recorder.executor_removed("default")
        assert rig.recorder.executors() == {}
        assert rig.job().in_flight_summary.queued == 1
        rig.recorder.executor_added("default", lambda: 4)
        assert rig.counts() == (1, 1, 0, {})
        rig.finish(run)
        assert rig.counts() == (1, 0, 0, {"success": 1})

    def test_workers_are_counted_when_they_are_read(self) -> None:
        """The number of workers is computed only when it is read."""
        workers = [2]
        recorder = Recorder("main")
        recorder.executor_added("default", lambda: workers[0])
        workers[0] = 3
        assert recorder.executors() == {"default": (3, 0, 0)}


def jobs_per_store(recorder: Recorder) -> dict[str, int]:
    return {alias: jobstore.job_count for alias, jobstore in recorder.jobstores().items()}
