"""The latest runs of each job, which the recorder keeps."""

from __future__ import annotations

from typing import Any

import pytest

from apscheduler_telemetry.core import recorder as recorder_module
from apscheduler_telemetry.core.model import ErrorDescription, Outcome
from apscheduler_telemetry.core.run_history import MAX_KEPT_MESSAGE_LENGTH, RunRecord
from tests.helpers.recorder_rig import AT, DUE, RecorderRig, job_info


class Span:
    trace_id, span_id = 0xABC, 0xDEF


def outcomes_of(runs: list[RunRecord]) -> list[str]:
    return [run.outcome.value for run in runs]


def due_times_of(runs: list[RunRecord]) -> list[float]:
    """Return when runs were due, in seconds after `AT`."""
    return [run.due_at - AT for run in runs]


def run_at(
    rig: RecorderRig, *seconds: float, outcome: Outcome = Outcome.SUCCESS, **options: Any
) -> None:
    """Let runs end that are due some seconds after `AT`."""
    for run in rig.submit(*seconds, **options):
        rig.finish(run, outcome)


class TestRecords:
    def test_record_has_what_is_known_of_the_run(self) -> None:
        """A record has the times of the run, its outcome, its error and its trace."""
        rig = RecorderRig()
        (run,) = rig.submit()
        run.set_exemplar_span(Span())
        error = ErrorDescription(type="shop.Refused", message="no route", traceback="secret")
        rig.finish(run, Outcome.ERROR, error, started=AT + 1, duration=4)

        (record,) = rig.recorder.recent_runs()

        assert record == RunRecord(
            number=run.finish_number,
            job_id="job",
            due_at=AT,
            started_at=AT + 1,
            ended_at=AT + 5,
            duration=4,
            outcome=Outcome.ERROR,
            error_type="shop.Refused",
            error_message="no route",
            trace_id="00000000000000000000000000000abc",
        )

    def test_run_that_never_started_has_neither_start_nor_duration(self) -> None:
        """A missed run has neither a start nor a duration, although it was measured."""
        rig = RecorderRig()
        (run,) = rig.submit()
        rig.clock.now = AT + 9
        rig.finish(run, Outcome.MISSED, started=AT + 1, duration=4)

        (record,) = rig.recorder.recent_runs()

        assert (record.started_at, record.duration, record.ended_at) == (None, None, AT + 9)
        assert (record.error_type, record.error_message, record.trace_id) == (None, None, None)

    def test_message_is_cut(self) -> None:
        """Of a long message, the beginning is kept."""
        rig = RecorderRig()
        (run,) = rig.submit()
        rig.finish(run, Outcome.ERROR, ErrorDescription(type="ValueError", message="x" * 4_000))

        (record,) = rig.recorder.recent_runs()

        assert record.error_message == "x" * MAX_KEPT_MESSAGE_LENGTH

    def test_runs_in_flight_are_not_among_them(self) -> None:
        """A run is listed once it has ended."""
        rig = RecorderRig()
        first, second = rig.submit(0, 1)
        rig.finish(second)
        assert due_times_of(rig.recorder.recent_runs()) == [1]

        rig.finish(first)
        assert due_times_of(rig.recorder.recent_runs()) == [0, 1]  # by their ends


class TestNeverSubmittedRuns:
    def test_each_known_due_time_is_listed(self) -> None:
        """Of runs that were dropped together, each whose due time is known is listed."""
        rig = RecorderRig()

        rig.recorder.runs_unsubmitted(rig.record, Outcome.COALESCED, 9, [DUE, DUE])

        assert outcomes_of(rig.recorder.recent_runs()) == ["coalesced", "coalesced"]
        assert due_times_of(rig.recorder.recent_runs()) == [0, 0]
        assert rig.job().stats.outcomes[Outcome.COALESCED] == 9

    def test_they_are_listed_among_others_in_the_order_of_their_ends(self) -> None:
        """Dropped runs stand between the runs before and after them."""
        rig = RecorderRig()
        run_at(rig, 0)
        rig.recorder.runs_unsubmitted(rig.record, Outcome.SKIPPED, 1, [DUE])
        run_at(rig, 20)

        assert outcomes_of(rig.recorder.recent_runs()) == ["success", "skipped", "success"]


class TestSize:
    def test_latest_are_kept(self) -> None:
        """The latest runs are kept, whether they are added up one by one or together."""
        rig = RecorderRig(history=3)
        for number in range(5):
            run_at(rig, number)
            rig.recorder.recent_runs()
        assert due_times_of(rig.recorder.recent_runs()) == [4, 3, 2]

        run_at(rig, 10, 11, 12, 13)
        assert due_times_of(rig.recorder.recent_runs()) == [13, 12, 11]

    def test_last_failure_is_kept_besides(self) -> None:
        """Runs that succeed do not displace the last failure, but a later failure does."""
        rig = RecorderRig(history=2)
        for number in range(6):
            outcome = Outcome.ERROR if number < 2 else Outcome.SUCCESS
            run_at(rig, number, outcome=outcome)
            rig.recorder.recent_runs()
        assert due_times_of(rig.recorder.recent_runs()) == [5, 4, 1]

        run_at(rig, 6, outcome=Outcome.ERROR)
        assert due_times_of(rig.recorder.recent_runs()) == [6, 5]

        run_at(rig, 7, outcome=Outcome.LOST)
        run_at(rig, 8, 9, 10)  # added up together
        assert due_times_of(rig.recorder.recent_runs()) == [10, 9, 7]

    def test_each_job_has_its_own(self) -> None:
        """A busy job does not displace the runs of another."""
        rig = RecorderRig(history=2)
        other = rig.recorder.job_upserted(job_info("other"), AT)
        run_at(rig, 0, record=other)
        run_at(rig, 1, 2, 3, 4)

        assert [run.job_id for run in rig.recorder.recent_runs()] == ["job", "job", "other"]
        assert due_times_of(rig.recorder.recent_runs("other")) == [0]
        assert rig.recorder.recent_runs("unknown") == []

    def test_nothing_is_kept_without_history(self) -> None:
        """With a history of 0, runs are only counted."""
        rig = RecorderRig(history=0)
        run_at(rig, 0)
        rig.recorder.runs_unsubmitted(rig.record, Outcome.SKIPPED, 1, [DUE])

        assert rig.recorder.recent_runs() == []
        assert rig.counts()[3] == {"success": 1, "skipped": 1}

    def test_all_jobs_together_have_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """With many jobs, fewer runs are kept of each, also of those that do not run any more."""
        monkeypatch.setattr(recorder_module, "MAX_RUNS_OF_ALL_JOBS", 8)
        rig = RecorderRig(history=4)
        run_at(rig, 0, 1, 2, 3)
        assert due_times_of(rig.recorder.recent_runs()) == [3, 2, 1, 0]

        for number in range(3):
            rig.recorder.job_upserted(job_info(f"other-{number}"), AT)
        assert due_times_of(rig.recorder.recent_runs()) == [3, 2]

        for number in range(20):
            rig.recorder.job_upserted(job_info(f"more-{number}"), AT)
        assert due_times_of(rig.recorder.recent_runs()) == [3]  # one of each at least
