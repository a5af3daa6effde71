"""Runs in the recorder: each ends once, and is counted once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.trace import SpanContext

from apscheduler_telemetry.core.model import (
    ErrorDescription,
    JobExpectations,
    Outcome,
    RemovalReason,
)
from apscheduler_telemetry.core.recorder import (
    MANY_LABELS,
    MAX_RUNS_NOT_ADDED_UP,
    MAX_RUNS_NOT_ADDED_UP_OF_MANY_LABELS,
    REMOVED_JOB_SECONDS,
)
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.core.stats import MAX_EXCEPTION_TYPES, OTHER_EXCEPTIONS, Histogram
from tests.helpers.recorder_rig import AT, DUE, RecorderRig, job_info

SPAN = SpanContext(1, 2, is_remote=False)


BOOM = ErrorDescription(type="shop.Boom", message="boom")


class TestRuns:
    """A run from its submission to its end."""

    def test_all_outcomes_are_there_at_zero(self, rig: RecorderRig) -> None:
        """A new job has all six outcomes at zero."""
        assert rig.job().stats.outcomes == dict.fromkeys(Outcome, 0)
        assert len(Outcome) == 6

    def test_run_is_queued_running_and_ended(self, rig: RecorderRig) -> None:
        """A run is counted as queued, running and ended, for its job and its executor."""
        (run,) = rig.submit()
        assert rig.counts() == (1, 1, 0, {})
        run.try_start(AT + 2)
        assert rig.counts() == (1, 0, 1, {})
        assert rig.job().in_flight_summary.oldest_start_at == AT + 2
        run.set_duration(3)
        assert run.finish(Outcome.SUCCESS)
        assert rig.counts() == (1, 0, 0, {"success": 1})
        assert (run.started_at, run.measured_end_at, run.start_delay) == (AT + 2, AT + 5, 2)
        job = rig.job()
        assert (job.in_flight_summary.oldest_start_at, job.stats.last_success_at) == (0, AT + 5)

    def test_a_run_ends_once(self, rig: RecorderRig) -> None:
        """A second end of a run changes nothing and returns False."""
        for first in (Outcome.SUCCESS, Outcome.LOST):
            (run,) = rig.submit()
            assert rig.finish(run, first, started=AT, duration=1)
            before = rig.numbers()
            assert not rig.finish(run, Outcome.SUCCESS)
            assert not rig.finish(run, Outcome.LOST)
            run.try_set_estimated_start(AT + 9)
            assert run.started_at == AT
            assert rig.numbers() == before

    def test_a_run_that_two_threads_end_at_once_ends_once(self, rig: RecorderRig) -> None:
        """Only one of them learns that it has ended the run, and may report it to observers."""
        (run,) = rig.submit()
        results = []

        def let_another_thread_end_it() -> float:
            run.series.clock = rig.clock
            results.append(run.finish(Outcome.SUCCESS))
            return AT

        run.series.clock = let_another_thread_end_it
        results.append(run.finish(Outcome.LOST))
        assert results == [True, False]
        assert rig.counts() == (1, 0, 0, {"success": 1})

    def test_measured_start_replaces_an_estimate(self, rig: RecorderRig) -> None:
        """A measured start replaces an estimated one, and counts once."""
        queued, estimated = rig.submit(0, 10)
        estimated.try_set_estimated_start(AT + 11)
        in_flight = rig.job().in_flight_summary
        assert (in_flight.queued, in_flight.oldest_queued_due_at) == (1, queued.due_timestamp)
        assert (in_flight.running, in_flight.oldest_start_at) == (1, AT + 11)
        assert sum(rig.job().stats.delays.counts) == 0
        for run in (queued, estimated):
            rig.finish(run, started=run.due_timestamp + 4, duration=1)
        stats = rig.job().stats
        assert (sum(stats.delays.counts), stats.delays.sum) == (2, 8)
        assert stats.last_success_at == AT + 15
        assert rig.counts() == (2, 0, 0, {"success": 2})

    def test_missed_run_has_no_start_and_no_delay(self, rig: RecorderRig) -> None:
        """A missed run has no start and no delay, whatever was estimated."""
        estimated, measured = rig.submit(0, 10)
        estimated.try_set_estimated_start(AT + 1)
        measured.try_start(AT + 11)
        measured.set_duration(0.001)
        assert rig.counts() == (2, 0, 2, {})
        for run in (estimated, measured):
            rig.finish(run, Outcome.MISSED)
            assert (run.started_at, run.duration, run.measured_end_at, run.start_delay) == (
                None,
            ) * 4
        assert rig.counts() == (2, 0, 0, {"missed": 2})
        stats = rig.job().stats
        assert (sum(stats.delays.counts), sum(stats.durations.counts)) == (0, 0)

    def test_the_delay_is_never_negative(self, rig: RecorderRig) -> None:
        """A start before the due time is a delay of 0."""
        (run,) = rig.submit(60)
        run.try_start(AT)
        assert (run.start_delay, rig.job().stats.delays.sum) == (0, 0)

    def test_only_successes_and_errors_have_durations(self, rig: RecorderRig) -> None:
        """The duration of a lost run does not count."""
        for outcome in (Outcome.SUCCESS, Outcome.ERROR, Outcome.LOST):
            (run,) = rig.submit()
            rig.finish(run, outcome, started=AT, duration=2)
        stats = rig.job().stats
        assert (sum(stats.durations.counts), stats.durations.sum) == (2, 4)
        assert sum(stats.delays.counts) == 3

    def test_duration_has_the_span_as_exemplar(self, rig: RecorderRig) -> None:
        """The exemplar of a duration is the run's span, at the time of its end."""
        (run,) = rig.submit()
        run.set_exemplar_span(SPAN)
        rig.finish(run, started=AT, duration=0.5)
        (exemplar,) = rig.job().stats.durations.exemplars.values()
        assert exemplar.labels == {"trace_id": f"{1:032x}", "span_id": f"{2:016x}"}
        assert (exemplar.value, exemplar.timestamp) == (0.5, AT + 0.5)

    def test_unsubmitted_runs_are_due_and_ended_at_once(self, rig: RecorderRig) -> None:
        """Runs that reach no executor are due and ended at once."""
        runs = rig.recorder.runs_unsubmitted(rig.record, Outcome.COALESCED, 9, [DUE, DUE], ["x"])
        assert rig.counts() == (9, 0, 0, {"coalesced": 9})
        assert [(run.outcome, run.due, run.link_origins) for run in runs] == [
            (Outcome.COALESCED, DUE, ["x"])
        ] * 2

    def test_run_of_an_unknown_executor_counts(self, rig: RecorderRig) -> None:
        """A run of an executor that is not known counts all the same."""
        run = Run(rig.record, DUE, "other")
        rig.recorder.run_submitted(run)
        run.try_start(AT)
        assert rig.job().in_flight_summary.running == 1
        assert rig.recorder.executors() == {"default": (4, 0, 0)}

    def test_last_run_is_the_one_due_last(self, rig: RecorderRig) -> None:
        """The last run is the started one with the latest due time."""
        late, early, _queued = rig.submit(20, 10, 30)
        assert rig.job().stats.last_run_due_at is None
        late.try_start(AT + 21)
        early.try_start(AT + 22)
        assert rig.job().stats.last_run_due_at == AT + 20

    def test_running_since_is_the_oldest_start(self, rig: RecorderRig) -> None:
        """A job is running since the oldest start of its runs."""
        first, second = rig.submit(0, 10)
        second.try_start(AT + 11)
        first.try_start(AT + 12)
        assert rig.job().in_flight_summary.oldest_start_at == AT + 11
        rig.finish(second, duration=1)
        assert rig.job().in_flight_summary.oldest_start_at == AT + 12


class TestFailures:
    """Numbers of errors and lost runs."""

    def test_errors_and_losses_add_up_until_a_success(self, rig: RecorderRig) -> None:
        """Errors and losses add up until a success; other outcomes do not change the number."""
        seen = []
        for outcome in ("error", "lost", "missed", "skipped", "coalesced", "error", "success"):
            (run,) = rig.submit()
            rig.finish(run, Outcome(outcome))
            seen.append(rig.job().stats.consecutive_failures)
        assert seen == [1, 2, 2, 2, 2, 3, 0]
        rig.recorder.runs_unsubmitted(rig.record, Outcome.LOST, 4)
        assert rig.job().stats.consecutive_failures == 4

    def test_success_and_failure_have_their_own_times(self, rig: RecorderRig) -> None:
        """The latest success and the latest failure have their own times."""
        good, bad, gone = rig.submit(0, 10, 20)
        rig.finish(good, started=AT + 1, duration=2)
        rig.finish(bad, Outcome.ERROR, BOOM, started=AT + 11, duration=3)
        stats = rig.job().stats
        assert (stats.last_success_at, stats.last_failure_at) == (AT + 3, AT + 14)
        assert (stats.last_outcome, stats.last_duration) == (Outcome.ERROR, 3)
        rig.clock.now = AT + 50
        rig.finish(gone, Outcome.LOST)
        stats = rig.job().stats
        assert (stats.last_failure_at, stats.last_duration) == (AT + 50, 3)

    def test_exceptions_are_counted_by_type(self, rig: RecorderRig) -> None:
        """Exceptions of jobs are counted by type; reasons of lost runs are not."""
        for outcome in (Outcome.ERROR, Outcome.ERROR, Outcome.LOST):
            (run,) = rig.submit()
            rig.finish(run, outcome, BOOM)
        assert rig.job().stats.exceptions == {"shop.Boom": 2}

    def test_types_beyond_twenty_share_a_name(self, rig: RecorderRig) -> None:
        """Types beyond the twentieth share a name; known ones keep theirs."""
        for number in [*range(30), 0]:
            (run,) = rig.submit()
            rig.finish(run, Outcome.ERROR, ErrorDescription(type=f"Error{number}", message=""))
        exceptions = rig.job().stats.exceptions
        assert len(exceptions) == MAX_EXCEPTION_TYPES + 1 == 21
        assert (exceptions["Error0"], exceptions[OTHER_EXCEPTIONS]) == (2, 10)


class TestOrder:
    """Runs count in the order in which they ended."""

    def test_runs_are_ordered_by_their_end(self, rig: RecorderRig) -> None:
        """Runs count in the order of their ends, also if the clock stands still."""
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
        """A run that ended earlier counts earlier, also if it was not added up yet."""
        (run,) = rig.submit()
        rig.finish(run, Outcome.ERROR)
        rig.recorder.runs_unsubmitted(rig.record, Outcome.LOST, 1)
        (run,) = rig.submit()
        rig.finish(run, Outcome.SUCCESS)
        rig.recorder.runs_unsubmitted(rig.record, Outcome.MISSED, 1)
        stats = rig.job().stats
        assert (stats.last_outcome, stats.consecutive_failures) == (Outcome.MISSED, 0)


class TestHistogram:
    """Buckets."""

    def test_bounds_are_inclusive(self) -> None:
        """A value equal to a bound is in its bucket, as Prometheus defines ``le``."""
        histogram = Histogram((1, 2)).with_values([0, 1, 1.5, 2, 2.1, 99])
        assert (histogram.counts, histogram.sum) == ([2, 2, 2], 105.6)

    def test_each_bucket_keeps_its_latest_exemplar(self) -> None:
        """Each bucket keeps the latest observation that has a trace."""
        histogram = Histogram((1, 2)).with_exemplars([(0.4, SPAN, 9)])
        latest = (0.6, SpanContext(3, 4, is_remote=False), 11)
        histogram = histogram.with_exemplars([(0.5, SPAN, 10), latest])
        (bucket,) = histogram.exemplars
        kept = histogram.exemplars[bucket]
        labels = {"trace_id": f"{3:032}", "span_id": f"{4:016}"}
        assert (bucket, kept.labels, kept.value, kept.timestamp) == (0, labels, 0.6, 11)

    def test_it_does_not_change(self) -> None:
        """Who has a histogram does not see later observations in it."""
        histogram = Histogram((1,))
        histogram.with_values([0.5]).with_exemplars([(0.5, SPAN, 10)])
        assert (histogram.counts, histogram.sum, histogram.exemplars) == ([0, 0], 0, {})


class TestChanges:
    """A reader that passes a version gets what has changed since."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda rig: rig.submit(),
            lambda rig: rig.recorder.runs_unsubmitted(rig.record, Outcome.SKIPPED, 1),
            lambda rig: rig.recorder.job_advanced(rig.record, DUE.replace(second=10)),
            lambda rig: rig.recorder.job_rescheduled(rig.record, None, cancels=True),
            lambda rig: rig.recorder.job_removed(rig.record, RemovalReason.FAILED),
            lambda rig: rig.recorder.job_upserted(
                job_info(expectations=JobExpectations(owner="billing")), AT
            ),
            lambda rig: rig.recorder.job_intervals_changed(rig.record, (1, 2)),
        ],
    )
    def test_each_change_gives_a_new_version(
        self, rig: RecorderRig, change: Callable[[RecorderRig], Any]
    ) -> None:
        """Each change gives a new version; no change gives none."""
        known = {"job": rig.job().version}
        assert list(rig.recorder.job_snapshots_since(known)) == [("job", None)]
        change(rig)
        ((_, job),) = rig.recorder.job_snapshots_since(known)
        assert job is not None
        assert list(rig.recorder.job_snapshots_since({"job": job.version})) == [("job", None)]

    def test_start_and_end_of_a_run_are_changes(self, rig: RecorderRig) -> None:
        """The start and the end of a run each give one new version."""
        (run,) = rig.submit()
        for step in (lambda: None, lambda: run.try_start(AT), lambda: rig.finish(run, duration=1)):
            step()
            known = {"job": rig.job().version}
            assert list(rig.recorder.job_snapshots_since(known)) == [("job", None)]

    def test_forgetting_a_next_run_is_a_change(self, rig: RecorderRig) -> None:
        """A next run that a reading drops gives a new version."""
        failed = rig.recorder.job_upserted(job_info("failed", label="job"), AT - 60)
        rig.recorder.job_removed(failed, RemovalReason.FAILED)
        known = {"job": rig.job().version}
        rig.clock.now = AT + REMOVED_JOB_SECONDS
        ((_, job),) = rig.recorder.job_snapshots_since(known)
        assert job is not None
        assert job.next_run == AT


class TestMemory:
    """The number of finished runs that wait to be added up is bounded."""

    @pytest.mark.parametrize(
        ("labels", "limit"),
        [(1, MAX_RUNS_NOT_ADDED_UP), (MANY_LABELS + 1, MAX_RUNS_NOT_ADDED_UP_OF_MANY_LABELS)],
    )
    def test_registered_runs_are_bounded(self, rig: RecorderRig, labels: int, limit: int) -> None:
        """Without readings, the number of ended runs is bounded, lower for many jobs."""
        for number in range(1, labels):
            rig.recorder.job_upserted(job_info(f"job-{number}"), None)
        in_flight = rig.submit(*range(300))
        most = 0
        for _ in range(5 * MAX_RUNS_NOT_ADDED_UP):
            rig.recorder.add_up_runs_if_many()
            (run,) = rig.submit()
            rig.finish(run)
            most = max(most, len(rig.recorder._runs_not_added_up))
        assert most == len(in_flight) + limit
        assert rig.counts() == (
            300 + 5 * MAX_RUNS_NOT_ADDED_UP,
            300,
            0,
            {"success": 5 * MAX_RUNS_NOT_ADDED_UP},
        )

    def test_a_run_that_was_added_up_is_freed(self) -> None:
        """A run that was added up is freed, unless the history keeps it."""
        rig = RecorderRig(history=1)
        runs = rig.submit(0, 10, 20)
        for run in runs:
            rig.finish(run)
        kept = [weakref.ref(run) for run in runs]
        del run, runs
        rig.job()
        gc.collect()
        assert [ref() is None for ref in kept] == [True, True, False]

    def test_a_label_without_jobs_is_freed(self, rig: RecorderRig) -> None:
        """The counts of a dropped label are freed."""
        (run,) = rig.submit()
        rig.finish(run)
        rig.recorder.job_removed(rig.record, RemovalReason.FINISHED)
        rig.job()
        rig.clock.now += 2 * REMOVED_JOB_SECONDS
        assert rig.labels() == []
        recorder = rig.recorder
        assert (
            recorder._runs_not_added_up,
            recorder._series_to_be_updated,
            recorder._jobs["default"],
        ) == (
            {},
            set(),
            {},
        )


class TestRun:
    """The attributes of a run."""

    def test_run_keeps_the_labels_of_its_submission(self, rig: RecorderRig) -> None:
        """A run keeps its label and its job from its submission."""
        (run,) = rig.submit()
        rig.recorder.job_upserted(job_info(name="Later"), AT)
        assert (run.scheduler_name, run.label, run.job_info.name) == ("main", "job", "Job")

    def test_run_can_be_referred_to_weakly(self, rig: RecorderRig) -> None:
        """A run can be weakly referenced."""
        (run,) = rig.submit()
        assert isinstance(run, Run)
        assert weakref.ref(run)() is run

    def test_is_estimated_until_it_is_measured(self, rig: RecorderRig) -> None:
        """An estimate never replaces a start; a measured start replaces the estimate."""
        (run,) = rig.submit()
        run.try_set_estimated_start(AT + 1)
        run.try_set_estimated_start(AT + 2)
        assert (run.started_at, run.measured_or_estimated_start_at) == (None, AT + 1)
        run.try_start(AT + 3)
        run.try_set_estimated_start(AT + 4)
        assert (run.started_at, run.measured_or_estimated_start_at) == (AT + 3, AT + 3)

    @pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.MISSED])
    def test_an_estimate_that_comes_too_late(self, rig: RecorderRig, outcome: Outcome) -> None:
        """An estimate while another thread ends the run changes nothing."""
        early, late = rig.submit(0, 1)
        for run in (early, late):
            rig.finish(run, outcome, started=AT + 2, duration=3)
        late.try_set_estimated_start(AT + 9)
        stats = rig.job().stats
        assert (stats.last_run_due_at is None) == (outcome is Outcome.MISSED)
        assert sum(stats.delays.counts) == stats.outcomes[Outcome.SUCCESS]
        assert late.start_delay == (None if outcome is Outcome.MISSED else 1)

    def test_run_starts_once(self, rig: RecorderRig) -> None:
        """A second start, or one after the end, changes nothing and returns False."""
        running, ended = rig.submit(0, 1)
        rig.finish(ended)
        assert (running.try_start(AT), running.try_start(AT + 1), ended.try_start(AT)) == (
            True,
            False,
            False,
        )
        assert (running.started_at, ended.started_at) == (AT, None)
