"""Users' schedulers whose passes over due jobs differ from those of APScheduler."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from apscheduler.triggers.date import DateTrigger

from apscheduler_telemetry.adapters.apscheduler3.loop_liveness import OVERDUE_SECONDS
from tests.helpers import jobs, watching
from tests.helpers.custom_executors import Executing, run
from tests.helpers.faults import Boom, FaultyStore
from tests.helpers.metrics import adapter_of
from tests.helpers.schedulers import HandDriven
from tests.helpers.watching import Watched, watched


class Ticking(HandDriven):
    """A scheduler that calls what it inherits, and never its own `_process_jobs`."""

    def turn(self) -> Any:
        return super()._process_jobs()

    def _process_jobs(self) -> Any:
        raise AssertionError


class Answering(HandDriven):
    """A scheduler whose pass does what the test says."""

    answer: Any = None

    def _process_jobs(self) -> Any:
        super()._process_jobs()
        return self.answer


class Retrying(HandDriven):
    """A scheduler that survives what fails in a pass."""

    def _process_jobs(self) -> Any:
        try:
            return super()._process_jobs()
        except Boom:
            return 1.0


class Timed(HandDriven):
    """A scheduler whose pass sets a timer and returns nothing, as Qt's."""

    def _start_timer(self, seconds: float | None) -> None:
        """Do nothing: see `turn`."""

    def _process_jobs(self) -> None:
        self._start_timer(super()._process_jobs())


def seen_by_hand(kind: type[HandDriven], **options: Any) -> Any:
    options.setdefault("executors", {"default": Executing(in_place)})
    options.setdefault("jobstores", {"default": FaultyStore()})
    return watched(kind(**options))


def in_place(executor: Any, job: Any, run_times: Sequence[datetime]) -> None:
    executor._run_job_success(job.id, run(job, run_times))


def moved(seen: Watched, seconds: float) -> None:
    """Let the adapter's clock be so many seconds ahead from now on."""
    loop = adapter_of(seen.telemetry)._scheduler_loop
    before = loop._monotonic_clock
    loop._monotonic_clock = lambda: before() + seconds


class TestPassesThatBypassTheHook:
    """A scheduler that calls inherited methods, which bypass the patches of its instance."""

    def test_scheduler_is_up_while_it_turns(self) -> None:
        """The scheduler is up, and the end of its pass is exported."""
        with seen_by_hand(Ticking) as seen:
            seen.scheduler.start()
            before = seen.telemetry._exported_scheduler.last_pass_ended_at
            seen.scheduler.turn()
            assert (
                before is None,
                seen.telemetry._exported_scheduler.last_pass_ended_at is None,
            ) == (
                True,
                False,
            )
            moved(seen, 10 * OVERDUE_SECONDS)
            assert (seen.up(), seen.reasons()) == (1, [])
            seen.scheduler.wakeup()
            moved(seen, 10 * OVERDUE_SECONDS)
            assert (seen.up(), seen.reasons()) == (0, ["overdue"])

    def test_run_withdraws_nothing_and_the_last_one_ends_the_job(self) -> None:
        """A run cancels nothing, and after its last run a job is finished."""
        with seen_by_hand(Ticking) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, **watching.due())
            seen.scheduler.add_job(jobs.nothing, DateTrigger(watching.ago(0.1)), id="once")
            seen.scheduler.turn()
            assert seen.runs() == seen.runs("once") == {"success": 1}
            for job_id in ("job", "once"):
                assert not seen.job("withdrawn_run_timestamp_seconds", job_id)
            # After the pass it is the user again.
            seen.scheduler.pause_job("job")
            assert seen.job("withdrawn_run_timestamp_seconds") > 0

    def test_failures_inside_a_pass_are_counted(self) -> None:
        """Errors in a pass are counted; a job with an unknown executor misses its next run."""
        with seen_by_hand(Ticking) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, executor="gpu", **watching.due())
            seen.scheduler.turn()
            assert seen.errors() == {"executor_lookup": 1}
            assert seen.runs() == {"lost": 1}
            assert seen.job("next_run_timestamp_seconds") > 0

    def test_pass_after_a_failed_pass_counts(self) -> None:
        """After a failure of the store, which is counted, the next pass works."""
        with seen_by_hand(Ticking) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, **watching.due())
            store = seen.scheduler._jobstores["default"]
            store.faults = {"update_job"}
            with pytest.raises(Boom):
                seen.scheduler.turn()
            assert seen.errors() == {"jobstore": 1}
            store.faults.clear()
            seen.scheduler.turn()
            assert not seen.job("withdrawn_run_timestamp_seconds")
            assert (seen.up(), seen.reasons()) == (1, [])


class TestPassesOfTheUser:
    """A scheduler whose own pass calls APScheduler's."""

    @pytest.mark.parametrize("answer", [object(), "soon", None], ids=["object", "str", "None"])
    def test_pass_may_return_anything(self, answer: Any) -> None:
        """A return value that is no number reaches the scheduler, and is no time."""
        with seen_by_hand(Answering) as seen:
            seen.scheduler.answer = answer
            seen.scheduler.start()
            assert seen.scheduler._process_jobs() is answer
            moved(seen, 10 * OVERDUE_SECONDS)
            assert (seen.up(), seen.own_errors()) == (1, {})

    def test_next_pass_is_expected_when_the_pass_says(self) -> None:
        """The next pass is expected after the time that the pass returns."""
        with seen_by_hand(Answering) as seen:
            seen.scheduler.answer = 1
            seen.scheduler.start()
            seen.scheduler.turn()
            moved(seen, OVERDUE_SECONDS)
            assert seen.reasons() == []
            moved(seen, 2)
            assert seen.reasons() == ["overdue"]

    def test_next_pass_is_expected_when_the_timer_says(self) -> None:
        """If a pass returns nothing, the next one is expected after the timer's time."""
        with seen_by_hand(Timed) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
            seen.scheduler.turn()
            moved(seen, 3600 + OVERDUE_SECONDS - 1)
            assert seen.reasons() == []
            moved(seen, 2)
            assert seen.reasons() == ["overdue"]

    def test_pass_that_catches_failures_keeps_the_scheduler_up(self) -> None:
        """A pass that catches exceptions keeps the scheduler up; store failures are counted."""
        with seen_by_hand(Retrying) as seen:
            seen.scheduler._jobstores["default"].faults = {"get_next_run_time"}
            seen.scheduler.start()
            seen.scheduler.turn()
            assert seen.errors() == {"jobstore": 1}
            assert (seen.up(), seen.reasons()) == (1, [])
