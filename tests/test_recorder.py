"""The metrics state: what each recording changes, and that no run is lost or counted twice."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import SpanContext

from apscheduler_telemetry.core.model import Outcome, RemovalReason, RunError, SchedulerErrorKind
from apscheduler_telemetry.core.recorder import MAX_UNADDED_RUNS, REMOVED_JOB_SECONDS, Recorder
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.core.stats import MAX_EXCEPTION_TYPES, OTHER_EXCEPTIONS, Histogram
from support_recorder import AT, DUE, RecorderRig, in_thread, interrupt, job_info, raise_timeout

SPAN = SpanContext(1, 2, is_remote=False)
BOOM = RunError(type="shop.Boom", message="boom")


@pytest.fixture
def rig() -> RecorderRig:
    return RecorderRig()


class TestRuns:
    """A run from its submission to its end."""

    def test_all_outcomes_are_there_at_zero(self, rig: RecorderRig) -> None:
        """A job that is new has six outcomes at zero."""
        assert rig.job().stats.outcomes == dict.fromkeys(Outcome, 0)
        assert len(Outcome) == 6

    def test_states(self, rig: RecorderRig) -> None:
        """A run is queued, running and ended, for its job and for its executor."""
        (run,) = rig.submit()
        assert rig.counts() == (1, 1, 0, {})
        run.start(AT + 2)
        assert rig.counts() == (1, 0, 1, {})
        assert rig.job().in_flight.running_since == AT + 2
        run.stop(3)
        assert run.finish(Outcome.SUCCESS)
        assert rig.counts() == (1, 0, 0, {"success": 1})
        assert (run.started_at, run.ended_at, run.start_delay) == (AT + 2, AT + 5, 2)
        job = rig.job()
        assert (job.in_flight.running_since, job.stats.last_success) == (0, AT + 5)

    def test_a_run_ends_once(self, rig: RecorderRig) -> None:
        """The second end of a run changes nothing, and the caller learns that."""
        for first in (Outcome.SUCCESS, Outcome.LOST):
            (run,) = rig.submit()
            assert rig.finish(run, first, started=AT, duration=1)
            before = rig.numbers()
            assert not rig.finish(run, Outcome.SUCCESS)
            assert not rig.finish(run, Outcome.LOST)
            run.set_estimated_start(AT + 9)
            assert run.started_at == AT
            assert rig.numbers() == before

    def test_measured_in_another_process(self, rig: RecorderRig) -> None:
        """A start that comes with the end replaces an estimate, and counts once."""
        queued, estimated = rig.submit(0, 10)
        estimated.set_estimated_start(AT + 11)
        assert rig.job().in_flight == (1, 1, AT + 11)
        assert sum(rig.job().stats.delays.counts) == 0
        for run in (queued, estimated):
            rig.finish(run, started=run.due_timestamp + 4, duration=1)
        stats = rig.job().stats
        assert (sum(stats.delays.counts), stats.delays.sum) == (2, 8)
        assert stats.last_success == AT + 15
        assert rig.counts() == (2, 0, 0, {"success": 2})

    def test_a_start_that_was_none(self, rig: RecorderRig) -> None:
        """A run that was missed has no start and no delay, whatever was estimated or measured."""
        estimated, measured = rig.submit(0, 10)
        estimated.set_estimated_start(AT + 1)
        measured.start(AT + 11)
        measured.stop(0.001)
        assert rig.counts() == (2, 0, 2, {})
        for run in (estimated, measured):
            rig.finish(run, Outcome.MISSED)
            assert (run.started_at, run.duration, run.ended_at, run.start_delay) == (None,) * 4
        assert rig.counts() == (2, 0, 0, {"missed": 2})
        stats = rig.job().stats
        assert (sum(stats.delays.counts), sum(stats.durations.counts)) == (0, 0)

    def test_the_delay_is_never_negative(self, rig: RecorderRig) -> None:
        """A start before the run was due is a delay of 0."""
        (run,) = rig.submit(60)
        run.start(AT)
        assert (run.start_delay, rig.job().stats.delays.sum) == (0, 0)

    def test_durations_of_successes_and_errors(self, rig: RecorderRig) -> None:
        """The duration of a lost run does not count, even if it was measured."""
        for outcome in (Outcome.SUCCESS, Outcome.ERROR, Outcome.LOST):
            (run,) = rig.submit()
            rig.finish(run, outcome, started=AT, duration=2)
        stats = rig.job().stats
        assert (sum(stats.durations.counts), stats.durations.sum) == (2, 4)
        assert sum(stats.delays.counts) == 3

    def test_exemplars(self, rig: RecorderRig) -> None:
        """The duration of a run has its span as an exemplar, at the time of its end."""
        (run,) = rig.submit()
        run.set_exemplar_span(SPAN)
        rig.finish(run, started=AT, duration=0.5)
        (exemplar,) = rig.job().stats.durations.exemplars.values()
        assert exemplar.labels == {"trace_id": f"{1:032x}", "span_id": f"{2:016x}"}
        assert (exemplar.value, exemplar.timestamp) == (0.5, AT + 0.5)

    def test_unsubmitted(self, rig: RecorderRig) -> None:
        """Runs that reach no executor are due and have ended at once."""
        runs = rig.recorder.runs_unsubmitted(rig.record, Outcome.COALESCED, 9, [DUE, DUE], ["x"])
        assert rig.counts() == (9, 0, 0, {"coalesced": 9})
        assert [(run.outcome, run.due, run.link_origins) for run in runs] == [
            (Outcome.COALESCED, DUE, ["x"])
        ] * 2

    def test_an_unknown_executor(self, rig: RecorderRig) -> None:
        """A run of an executor that is not known counts all the same."""
        run = Run(rig.record, DUE, "other")
        rig.recorder.run_submitted(run)
        run.start(AT)
        assert rig.job().in_flight.running == 1
        assert rig.recorder.executors() == {"default": (4, 0, 0)}

    def test_the_latest_run_is_by_schedule(self, rig: RecorderRig) -> None:
        """The last run is the one that was due last of those that started, in whatever order."""
        late, early, _queued = rig.submit(20, 10, 30)
        assert rig.job().stats.last_run_due is None
        late.start(AT + 21)
        early.start(AT + 22)
        assert rig.job().stats.last_run_due == AT + 20

    def test_the_oldest_of_those_running(self, rig: RecorderRig) -> None:
        """A job is running since the oldest start of its runs."""
        first, second = rig.submit(0, 10)
        second.start(AT + 11)
        first.start(AT + 12)
        assert rig.job().in_flight.running_since == AT + 11
        rig.finish(second, duration=1)
        assert rig.job().in_flight.running_since == AT + 12


class TestFailures:
    """What is kept of errors and losses."""

    def test_consecutive_failures(self, rig: RecorderRig) -> None:
        """Errors and losses add up until a success; other outcomes do not change the number."""
        seen = []
        for outcome in ("error", "lost", "missed", "skipped", "coalesced", "error", "success"):
            (run,) = rig.submit()
            rig.finish(run, Outcome(outcome))
            seen.append(rig.job().stats.consecutive_failures)
        assert seen == [1, 2, 2, 2, 2, 3, 0]
        rig.recorder.runs_unsubmitted(rig.record, Outcome.LOST, 4)
        assert rig.job().stats.consecutive_failures == 4

    def test_times(self, rig: RecorderRig) -> None:
        """The latest success and the latest failure have their own times."""
        good, bad, gone = rig.submit(0, 10, 20)
        rig.finish(good, started=AT + 1, duration=2)
        rig.finish(bad, Outcome.ERROR, BOOM, started=AT + 11, duration=3)
        stats = rig.job().stats
        assert (stats.last_success, stats.last_failure) == (AT + 3, AT + 14)
        assert (stats.last_outcome, stats.last_duration) == (Outcome.ERROR, 3)
        rig.clock.now = AT + 50
        rig.finish(gone, Outcome.LOST)
        stats = rig.job().stats
        assert (stats.last_failure, stats.last_duration) == (AT + 50, 3)

    def test_exceptions_by_type(self, rig: RecorderRig) -> None:
        """Exceptions that runs raised are counted by type, but not why a run was lost."""
        for outcome in (Outcome.ERROR, Outcome.ERROR, Outcome.LOST):
            (run,) = rig.submit()
            rig.finish(run, outcome, BOOM)
        assert rig.job().stats.exceptions == {"shop.Boom": 2}

    def test_many_types(self, rig: RecorderRig) -> None:
        """Beyond twenty types of exceptions, the others share a name; known ones keep theirs."""
        for number in [*range(30), 0]:
            (run,) = rig.submit()
            rig.finish(run, Outcome.ERROR, RunError(type=f"Error{number}", message=""))
        exceptions = rig.job().stats.exceptions
        assert len(exceptions) == MAX_EXCEPTION_TYPES + 1 == 21
        assert (exceptions["Error0"], exceptions[OTHER_EXCEPTIONS]) == (2, 10)


class TestOrder:
    """Runs count in the order in which they ended."""

    def test_by_their_end(self, rig: RecorderRig) -> None:
        """The order of submission does not matter, nor does a clock that stands still."""
        first, second, third = rig.submit(0, 10, 20)
        for run, outcome in (
            (third, Outcome.ERROR),
            (first, Outcome.SUCCESS),
            (second, Outcome.LOST),
        ):
            rig.finish(run, outcome)
        assert third.finish_number < first.finish_number < second.finish_number
        stats = rig.job().stats
        assert (stats.last_outcome, stats.consecutive_failures) == (Outcome.LOST, 1)

    def test_unsubmitted_runs_come_after_those_that_ended_before(self, rig: RecorderRig) -> None:
        """A run that ended before counts before, although it was not added up yet."""
        (run,) = rig.submit()
        rig.finish(run, Outcome.ERROR)
        rig.recorder.runs_unsubmitted(rig.record, Outcome.LOST, 1)
        (run,) = rig.submit()
        rig.finish(run, Outcome.SUCCESS)
        rig.recorder.runs_unsubmitted(rig.record, Outcome.MISSED, 1)
        stats = rig.job().stats
        assert (stats.last_outcome, stats.consecutive_failures) == (Outcome.MISSED, 0)


class TestJobs:
    """Jobs that come, change and go."""

    def test_a_shared_label(self, rig: RecorderRig) -> None:
        """Jobs of one label share numbers, and the earliest of their next runs is shown."""
        twin = rig.recorder.job_upserted(job_info("twin", label="job"), AT + 5)
        rig.recorder.job_rescheduled(rig.record, AT + 10, cancels=False)
        assert rig.job().next_run == AT + 5
        for record in (twin, rig.record):
            rig.recorder.runs_unsubmitted(record, Outcome.SKIPPED, 1)
        assert rig.job().stats.outcomes[Outcome.SKIPPED] == 2
        rig.recorder.job_removed(twin, RemovalReason.FINISHED)
        assert (rig.job().next_run, rig.job().info.id) == (AT + 10, "job")

    def test_advancing_cancels_nothing(self, rig: RecorderRig) -> None:
        """The scheduler's step to the next run cancels no run; a change by the user does."""
        rig.recorder.job_advanced(rig.record, DUE.replace(second=10))
        assert (rig.job().cancelled_run_due_at, rig.job().next_run) == (None, AT + 10)
        rig.recorder.job_rescheduled(rig.record, AT + 99, cancels=True)
        assert (rig.job().cancelled_run_due_at, rig.job().next_run) == (AT + 10, AT + 99)
        rig.recorder.job_rescheduled(rig.record, None, cancels=True)
        assert (rig.job().cancelled_run_due_at, rig.job().next_run) == (AT + 99, 0)

    def test_planned_again(self, rig: RecorderRig) -> None:
        """A run that was cancelled and is planned again is not cancelled."""
        rig.recorder.job_rescheduled(rig.record, None, cancels=True)
        assert rig.job().cancelled_run_due_at == AT
        rig.recorder.job_rescheduled(rig.record, AT, cancels=True)
        assert rig.job().cancelled_run_due_at is None

    def test_planned_again_by_another_job(self, rig: RecorderRig) -> None:
        """Another job of the label may plan again what was cancelled, also as it advances."""
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
    def test_removed(
        self, rig: RecorderRig, removal: RemovalReason, next_run: float, cancelled: float | None
    ) -> None:
        """The user cancels the next run; an error of APScheduler leaves it expected."""
        rig.recorder.job_removed(rig.record, removal)
        assert (rig.job().next_run, rig.job().cancelled_run_due_at) == (next_run, cancelled)
        assert jobs_per_store(rig.recorder) == {"default": 0}
        rig.recorder.job_removed(rig.record, RemovalReason.CANCELLED)
        assert rig.job().cancelled_run_due_at == cancelled, "it was gone already"

    def test_a_failed_next_run_is_not_kept_for_ever(self, rig: RecorderRig) -> None:
        """The next run of a job that was removed by an error is forgotten after 15 minutes."""
        failed = rig.recorder.job_upserted(job_info("failed", label="job"), AT - 60)
        rig.recorder.job_removed(failed, RemovalReason.FAILED)
        rig.clock.now = AT + REMOVED_JOB_SECONDS - 1
        assert rig.job().next_run == AT - 60
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        assert rig.job().next_run == AT

    def test_a_failed_job_that_comes_back(self, rig: RecorderRig) -> None:
        """A job that was removed by an error and is added again has the next run of now."""
        rig.recorder.job_removed(rig.record, RemovalReason.FAILED)
        rig.recorder.job_upserted(job_info(), AT + 600)
        assert rig.job().next_run == AT + 600
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        assert rig.job().next_run == AT + 600

    def test_dropped_after_15_minutes(self, rig: RecorderRig) -> None:
        """A removed job stays for 15 minutes, and that long after the end of its last run."""
        (run,) = rig.submit()
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.clock.now = AT + 1_200
        assert rig.job().in_flight.queued == 1
        rig.finish(run, Outcome.LOST)
        assert rig.job().stats.outcomes[Outcome.LOST] == 1
        rig.clock.now = AT + 1_200 + 899
        assert rig.labels() == ["job"]
        rig.clock.now = AT + 1_200 + 900
        assert rig.labels() == []

    def test_a_late_end_is_seen(self, rig: RecorderRig) -> None:
        """If the last run ends between two readings, the next one shows how, however late."""
        (run,) = rig.submit()
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        rig.finish(run, started=AT + 1, duration=2)
        rig.clock.now = AT + 10 * REMOVED_JOB_SECONDS
        assert rig.job().stats.outcomes[Outcome.SUCCESS] == 1
        rig.clock.now += REMOVED_JOB_SECONDS
        assert rig.labels() == []

    def test_versions_are_never_used_again(self, rig: RecorderRig) -> None:
        """A reader that missed that a label was dropped does not mistake the new one for it."""
        known = {job.label: job.version for job in rig.recorder.snapshots()}
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.clock.now = AT + 900
        assert rig.labels() == []
        record = rig.recorder.job_upserted(job_info(), AT + 999)
        for _ in range(3):
            rig.recorder.runs_unsubmitted(record, Outcome.SKIPPED, 1)
            rig.job()  # another reader's turn
            assert all(job is not None for _, job in rig.recorder.snapshots_since(known))

    def test_back_within_15_minutes(self, rig: RecorderRig) -> None:
        """A job that comes back keeps its numbers, and is not dropped."""
        rig.recorder.runs_unsubmitted(rig.record, Outcome.SKIPPED, 3)
        rig.recorder.job_removed(rig.record, RemovalReason.CANCELLED)
        rig.recorder.job_upserted(job_info(), AT + 10)
        rig.clock.now = AT + 10_000
        assert rig.job().stats.outcomes[Outcome.SKIPPED] == 3

    def test_another_label(self, rig: RecorderRig) -> None:
        """A job whose label changes counts under the new one; runs in flight keep theirs."""
        (run,) = rig.submit()
        moved = rig.recorder.job_upserted(job_info(label="new"), AT + 10)
        assert (rig.job("job").next_run, rig.job("new").next_run) == (0, AT + 10)
        assert rig.recorder.find_record("default", "job") is moved
        assert (rig.record.is_current, moved.is_current) == (False, True)
        assert jobs_per_store(rig.recorder) == {"default": 1}
        rig.finish(run)
        assert rig.job("job").stats.outcomes[Outcome.SUCCESS] == 1

    def test_next_runs(self, rig: RecorderRig) -> None:
        """Jobs that have a next run are listed with it."""
        rig.recorder.job_upserted(job_info("paused"), None)
        rig.recorder.job_upserted(job_info("sql", jobstore="sql"), DUE)
        assert rig.recorder.next_runs() == {("default", "job"): AT, ("sql", "sql"): AT}

    def test_jobstores(self, rig: RecorderRig) -> None:
        """Jobs are counted by store, and one of the same id in another store is another one."""
        rig.recorder.jobstore_added("sql", is_local=False)
        assert jobs_per_store(rig.recorder) == {"default": 1, "sql": 0}
        rig.recorder.job_upserted(job_info(jobstore="sql"), AT + 5)
        assert jobs_per_store(rig.recorder) == {"default": 1, "sql": 1}
        assert rig.job().next_run == AT
        rig.recorder.jobstore_removed("default")
        assert jobs_per_store(rig.recorder) == {"sql": 1}
        assert rig.job().next_run == AT + 5
        assert [record.key for record in rig.recorder.records_in_jobstore("sql")] == [
            ("sql", "job")
        ]

    def test_readings_of_jobstores(self, rig: RecorderRig) -> None:
        """A shared store is known as of its last reading, a local one as of now."""
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

    def test_they_share_one(self) -> None:
        """Jobs beyond the limit share one label, which describes none of them."""
        rig = RecorderRig(max_labels=2)
        for job_id in ("second", "third", "fourth"):
            record = rig.recorder.job_upserted(job_info(job_id), AT)
            rig.recorder.runs_unsubmitted(record, Outcome.SKIPPED, 1)
        assert rig.labels() == ["job", "second", "__overflow__"]
        overflow = rig.job("__overflow__")
        assert (overflow.due_count, overflow.info.name) == (2, "__overflow__")
        again = rig.recorder.job_upserted(job_info("fourth"), AT)
        assert again.series.label == "__overflow__"

    def test_room_again(self) -> None:
        """When a label is dropped, the next new job has a label of its own."""
        rig = RecorderRig(max_labels=1)
        rig.recorder.job_upserted(job_info("second"), AT)
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        rig.recorder.job_upserted(job_info("third"), AT)
        assert rig.labels() == ["__overflow__", "third"]


class TestHistogram:
    """Buckets."""

    def test_bounds_are_inclusive(self) -> None:
        """A value that equals a bound is in its bucket, as Prometheus defines ``le``."""
        histogram = Histogram((1, 2))
        for value in (0, 1, 1.5, 2, 2.1, 99):
            histogram.observe(value)
        assert (histogram.counts, histogram.sum) == ([2, 2, 2], 105.6)

    def test_exemplars(self) -> None:
        """Each bucket keeps the latest observation that has a trace."""
        histogram = Histogram((1, 2))
        histogram.add_exemplar(0.5, SPAN, 10)
        histogram.add_exemplar(0.6, SpanContext(3, 4, is_remote=False), 11)
        (bucket,) = histogram.exemplars
        kept = histogram.exemplars[bucket]
        labels = {"trace_id": f"{3:032}", "span_id": f"{4:016}"}
        assert (bucket, kept.labels, kept.value, kept.timestamp) == (0, labels, 0.6, 11)

    def test_a_copy_stays_as_it_was(self) -> None:
        """A copy does not show what is observed later."""
        histogram = Histogram((1,))
        copy = histogram.copy()
        histogram.observe(0.5)
        histogram.add_exemplar(0.5, SPAN, 10)
        assert (copy.counts, copy.sum, copy.exemplars) == ([0, 0], 0, {})


class TestErrors:
    """What APScheduler only logs."""

    def test_counts(self, rig: RecorderRig) -> None:
        """Every kind is there at 0 and counts by itself."""
        rig.recorder.count_scheduler_error(SchedulerErrorKind.SUBMIT)
        assert rig.recorder.scheduler_error_counts() == {
            **dict.fromkeys(SchedulerErrorKind, 0),
            SchedulerErrorKind.SUBMIT: 1,
        }


class TestExecutors:
    """The load of executors."""

    def test_removed(self, rig: RecorderRig) -> None:
        """An executor that is removed is not shown, and its runs may still end."""
        (run,) = rig.submit()
        rig.recorder.executor_removed("default")
        rig.recorder.executor_removed("default")
        assert rig.recorder.executors() == {}
        assert rig.job().in_flight.queued == 1
        rig.recorder.executor_added("default", lambda: 4)
        assert rig.counts() == (1, 1, 0, {})
        rig.finish(run)
        assert rig.counts() == (1, 0, 0, {"success": 1})

    def test_workers_are_counted_when_they_are_read(self) -> None:
        """The number of workers is not asked for before it is read."""
        workers = [2]
        recorder = Recorder("main")
        recorder.executor_added("default", lambda: workers[0])
        workers[0] = 3
        assert recorder.executors() == {"default": (3, 0, 0)}


class TestChanges:
    """Readers that know a version are given what has changed since."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda rig: rig.submit(),
            lambda rig: rig.recorder.runs_unsubmitted(rig.record, Outcome.SKIPPED, 1),
            lambda rig: rig.recorder.job_advanced(rig.record, DUE.replace(second=10)),
            lambda rig: rig.recorder.job_rescheduled(rig.record, None, cancels=True),
            lambda rig: rig.recorder.job_removed(rig.record, RemovalReason.FAILED),
            lambda rig: rig.recorder.job_upserted(job_info(owner="billing"), AT),
            lambda rig: rig.recorder.job_intervals_changed(rig.record, (1, 2)),
        ],
    )
    def test_any_change(self, rig: RecorderRig, change: Callable[[RecorderRig], Any]) -> None:
        """Each change gives a new version, and no change none."""
        known = {"job": rig.job().version}
        assert list(rig.recorder.snapshots_since(known)) == [("job", None)]
        change(rig)
        ((_, job),) = rig.recorder.snapshots_since(known)
        assert job is not None
        assert list(rig.recorder.snapshots_since({"job": job.version})) == [("job", None)]

    def test_the_life_of_a_run(self, rig: RecorderRig) -> None:
        """The start and the end of a run are changes, each seen once."""
        (run,) = rig.submit()
        for step in (lambda: None, lambda: run.start(AT), lambda: rig.finish(run, duration=1)):
            step()
            known = {"job": rig.job().version}
            assert list(rig.recorder.snapshots_since(known)) == [("job", None)]

    def test_a_failed_next_run_that_is_forgotten(self, rig: RecorderRig) -> None:
        """What a reading forgets is a change as well."""
        failed = rig.recorder.job_upserted(job_info("failed", label="job"), AT - 60)
        rig.recorder.job_removed(failed, RemovalReason.FAILED)
        known = {"job": rig.job().version}
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        ((_, job),) = rig.recorder.snapshots_since(known)
        assert job is not None
        assert job.next_run == AT


class TestMemory:
    """Finished runs wait to be added up, but not for ever."""

    def test_registered_runs_are_bounded(self, rig: RecorderRig) -> None:
        """Without any reading there are no more runs than those in flight and the limit."""
        in_flight = rig.submit(*range(300))
        most = 0
        for _ in range(5 * MAX_UNADDED_RUNS):
            rig.recorder.add_up_runs_if_many()
            (run,) = rig.submit()
            rig.finish(run)
            most = max(most, len(rig.recorder._runs))
        assert most <= len(in_flight) + MAX_UNADDED_RUNS
        assert rig.counts() == (
            300 + 5 * MAX_UNADDED_RUNS,
            300,
            0,
            {"success": 5 * MAX_UNADDED_RUNS},
        )

    def test_a_run_that_was_added_up_is_freed(self, rig: RecorderRig) -> None:
        """Nothing keeps a run that has ended and was read."""
        runs = rig.submit(0, 10, 20)
        for run in runs:
            rig.finish(run)
        kept = [weakref.ref(run) for run in runs]
        del run, runs
        rig.job()
        gc.collect()
        assert [ref() for ref in kept] == [None] * 3

    def test_a_label_without_jobs_is_freed(self, rig: RecorderRig) -> None:
        """Nothing keeps the numbers of a job that was dropped."""
        (run,) = rig.submit()
        rig.finish(run)
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.job()
        rig.clock.now += 2 * REMOVED_JOB_SECONDS
        assert rig.labels() == []
        recorder = rig.recorder
        assert (
            recorder._runs,
            recorder._series_with_runs_in_flight,
            recorder._jobs["default"],
        ) == (
            {},
            set(),
            {},
        )


FILES = ("core/records.py", "core/recorder.py", "core/stats.py", "core/locks.py")


def busy_rig() -> tuple[RecorderRig, dict[str, Any]]:
    """Return a recorder with finished, running and queued runs of two labels, and what is right."""
    rigs = []
    for _ in range(2):
        rig = RecorderRig()
        other = rig.recorder.job_upserted(job_info("other"), AT + 5)
        good, bad, running, _queued = rig.submit(0, 10, 20, 30)
        lost, _other_queued = rig.submit(0, 10, record=other)
        removed = rig.recorder.job_upserted(job_info("removed"), AT)
        (late,) = rig.submit(0, record=removed)
        rig.recorder.job_removed(removed, RemovalReason.FAILED)
        good.set_exemplar_span(SPAN)
        rig.finish(bad, Outcome.ERROR, BOOM, started=AT + 11, duration=3)
        rig.finish(good, started=AT + 1, duration=2)
        running.start(AT + 21)
        rig.finish(lost, Outcome.LOST)
        rig.finish(late, started=AT, duration=1)
        rigs.append(rig)
    rig, twin = rigs
    return rig, {label: twin.numbers(label) for label in ("job", "other", "removed")}


def check_after(rig: RecorderRig, right: dict[str, Any], known: dict[str, int]) -> None:
    """Check that another thread can read, and that a reader of changes sees the same."""
    assert in_thread(lambda: {label: rig.numbers(label) for label in right}) == right
    assert in_thread(rig.recorder.executors) == {"default": (4, 1, 2)}
    assert len(rig.recorder._runs) == 3
    for label, job in rig.recorder.snapshots_since(known):
        if job is None:
            assert rig.job(label).version == known[label]


class TestInterruptions:
    """A reading that is interrupted at any line loses no run, and counts none twice."""

    def test_an_exception_at_any_line(self) -> None:
        """The next reading is right wherever an exception from outside ends one."""
        line = 0
        while True:
            rig, right = busy_rig()
            if not interrupt(lambda: list(rig.recorder.snapshots()), FILES, raise_timeout, line):  # noqa: B023
                break
            check_after(rig, right, {})
            line += 1
        assert line > 200

    def test_two_exceptions(self) -> None:
        """So it is if the next reading is interrupted, too."""
        lines = 0
        for line in range(0, 10_000, 7):
            rig, right = busy_rig()
            read = lambda: list(rig.recorder.snapshots())  # noqa: B023, E731
            if not interrupt(read, FILES, raise_timeout, line):
                break
            interrupt(read, FILES, raise_timeout, 13 * line % 211)
            check_after(rig, right, {})
            lines += 1
        assert lines > 30

    def test_a_reading_inside_of_a_reading(self) -> None:
        """A signal handler may read at any line: its reading, the outer and the next are right."""
        line = 0
        while True:
            rig, right = busy_rig()
            inner: list[Any] = []
            outer: list[Any] = []

            def read() -> None:
                outer.extend(rig.recorder.snapshots())  # noqa: B023

            def read_inside() -> None:
                inner.append({label: rig.numbers(label) for label in right})  # noqa: B023

            if not interrupt(read, FILES, read_inside, line):
                break
            assert inner == [right]
            assert {job.label: job.due_count for job in outer} == {
                "job": 4,
                "other": 2,
                "removed": 1,
            }
            check_after(rig, right, {job.label: job.version for job in outer})
            line += 1
        assert line > 200

    def test_an_exception_inside_of_a_reading_inside(self) -> None:
        """A handler that is itself interrupted, and survives that, harms nothing."""
        for line in range(0, 10_000, 5):
            rig, right = busy_rig()
            read = lambda: list(rig.recorder.snapshots())  # noqa: B023, E731

            def read_inside() -> None:
                interrupt(read, FILES, raise_timeout, 31 * line % 173)  # noqa: B023

            if not interrupt(read, FILES, read_inside, line):
                break
            check_after(rig, right, {})
        assert line > 200

    def test_an_exception_while_runs_are_recorded(self) -> None:
        """A pass that is interrupted while it adds up loses no run that has ended."""
        line = 0
        while True:
            rig = RecorderRig()
            for _ in range(MAX_UNADDED_RUNS):
                (run,) = rig.submit()
                rig.finish(run)
            if not interrupt(rig.recorder.add_up_runs_if_many, FILES, raise_timeout, line):
                break
            assert rig.job().stats.outcomes[Outcome.SUCCESS] == MAX_UNADDED_RUNS
            line = line + 1 if line < 40 else line + 997
        assert line > 2_000

    def test_an_unsubmitted_run_inside_of_an_unsubmitted_run(self) -> None:
        """A handler that records while the thread records loses neither."""
        line = 0
        while True:
            rig = RecorderRig()

            def record() -> None:
                rig.recorder.runs_unsubmitted(rig.record, Outcome.SKIPPED, 1)  # noqa: B023

            def record_inside() -> None:
                record()
                rig.job()  # noqa: B023

            if not interrupt(record, FILES, record_inside, line):
                break
            version = rig.job().version
            assert rig.counts() == (2, 0, 0, {"skipped": 2})
            assert rig.job().version == version
            line += 1
        assert line > 20


class TestThreads:
    """Many threads that record at the same time, and one that reads."""

    def test_every_reading_is_consistent(self) -> None:
        """No outcome ever decreases, and in the end each run has the outcome that it was given."""
        rig = RecorderRig()
        rounds, threads = 300, 8
        expected = dict.fromkeys(Outcome, 0)
        for seed in range(threads):
            for _, outcome in _random_runs(seed, rounds):
                expected[outcome] += 1

        def record(seed: int) -> None:
            for is_started, outcome in _random_runs(seed, rounds):
                (run,) = rig.submit()
                if is_started:
                    run.start(AT)
                    run.stop(0.1)
                rig.finish(run, outcome)

        working = [threading.Thread(target=record, args=[seed]) for seed in range(threads)]
        for thread in working:
            thread.start()
        before = dict.fromkeys(Outcome, 0)
        while any(thread.is_alive() for thread in working):
            job = rig.job()
            now = job.stats.outcomes
            assert all(now[outcome] >= before[outcome] for outcome in Outcome)
            # Delays of those that have ended and of those that are running, but for missed ones.
            assert sum(job.stats.durations.counts) <= now[Outcome.SUCCESS] + now[Outcome.ERROR]
            before = now
        for thread in working:
            thread.join()
        assert rig.job().stats.outcomes == expected
        assert rig.counts()[0] == rounds * threads
        assert rig.recorder._runs == {}

    def test_two_ends_at_once(self) -> None:
        """A run that two threads end counts once, whatever they say of it."""
        rig = RecorderRig()
        runs = rig.submit(*range(2_000))
        barrier = threading.Barrier(2)

        def end(outcome: Outcome) -> None:
            barrier.wait()
            for run in runs:
                rig.finish(run, outcome)

        ending = [
            threading.Thread(target=end, args=[outcome])
            for outcome in (Outcome.SUCCESS, Outcome.LOST)
        ]
        for thread in ending:
            thread.start()
        while any(thread.is_alive() for thread in ending):
            assert rig.job().due_count == len(runs)
        for thread in ending:
            thread.join()
        due, *_, outcomes = rig.counts()
        assert (due, sum(outcomes.values())) == (2_000, 2_000)


class TestRun:
    """What a run says of itself."""

    def test_labels(self, rig: RecorderRig) -> None:
        """It has the labels under which it counts, and the job as it was when it was submitted."""
        (run,) = rig.submit()
        rig.recorder.job_upserted(job_info(name="Later"), AT)
        assert (run.scheduler_name, run.label, run.job_info.name) == ("main", "job", "Job")

    def test_can_be_kept_weakly(self, rig: RecorderRig) -> None:
        """Observers may refer to a run weakly."""
        (run,) = rig.submit()
        assert isinstance(run, Run)
        assert weakref.ref(run)() is run

    def test_is_estimated_until_it_is_measured(self, rig: RecorderRig) -> None:
        """An estimate never replaces a start, and a measured start replaces the estimate."""
        (run,) = rig.submit()
        run.set_estimated_start(AT + 1)
        run.set_estimated_start(AT + 2)
        assert (run.started_at, run.running_since) == (None, AT + 1)
        run.start(AT + 3)
        run.set_estimated_start(AT + 4)
        assert (run.started_at, run.running_since) == (AT + 3, AT + 3)

    @pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.MISSED])
    def test_an_estimate_that_comes_too_late(self, rig: RecorderRig, outcome: Outcome) -> None:
        """An estimate that a thread makes while another one ends the run changes no number."""
        early, late = rig.submit(0, 1)
        for run in (early, late):
            rig.finish(run, outcome, started=AT + 2, duration=3)
        late.set_estimated_start(AT + 9)
        stats = rig.job().stats
        assert (stats.last_run_due is None) == (outcome is Outcome.MISSED)
        assert sum(stats.delays.counts) == stats.outcomes[Outcome.SUCCESS]
        assert late.start_delay == (None if outcome is Outcome.MISSED else 1)

    def test_starts_once(self, rig: RecorderRig) -> None:
        """A second start, or one after the end, changes nothing, and says so."""
        running, ended = rig.submit(0, 1)
        rig.finish(ended)
        assert (running.start(AT), running.start(AT + 1), ended.start(AT)) == (True, False, False)
        assert (running.started_at, ended.started_at) == (AT, None)


def readings(recorder: Recorder, alias: str) -> tuple[float | None, int]:
    jobstore = recorder.jobstores()[alias]
    return jobstore.last_read_at, jobstore.read_failure_count


def jobs_per_store(recorder: Recorder) -> dict[str, int]:
    return {alias: jobstore.job_count for alias, jobstore in recorder.jobstores().items()}


def _random_runs(seed: int, rounds: int) -> list[tuple[bool, Outcome]]:
    chance = random.Random(seed)
    return [(chance.random() < 0.5, chance.choice(list(Outcome))) for _ in range(rounds)]
