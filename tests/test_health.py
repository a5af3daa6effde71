"""The books as a health report."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import pytest

from apscheduler_telemetry.core.model import JobInfo, Liveness, Outcome
from apscheduler_telemetry.core.recorder import Ledger
from apscheduler_telemetry.export import health
from support_scenes import Clock

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC
ALIVE = Liveness(state="running", up=True)


def info(job_id: str = "job", **changes: Any) -> JobInfo:
    values: dict[str, Any] = {
        "id": job_id,
        "label": job_id,
        "name": "Job",
        "func": "shop:job",
        "trigger": "interval[0:01:00]",
        "executor": "default",
        "jobstore": "default",
        "persistent": False,
        "grace": 60.0,
    }
    return JobInfo(**{**values, **changes})


class Books:
    """A ledger at a fixed time, and its report."""

    def __init__(self) -> None:
        self.clock = Clock(NOW)
        self.ledger = Ledger("main", clock=self.clock)

    def report(self, liveness: Liveness = ALIVE, last_wakeup: float | None = None) -> Any:
        return health.report(self.ledger, liveness, last_wakeup, self.clock)

    def run(self, entry: Any, outcome: Outcome, *, duration: float = 2.0) -> None:
        at = datetime.fromtimestamp(self.clock(), timezone.utc)
        (run,) = self.ledger.hand_over(entry, None, [at])
        self.ledger.start(run, self.clock())
        self.ledger.finish(run, outcome, duration=duration)


class TestStatus:
    def test_healthy(self) -> None:
        """A loop that lives is healthy, and there is no reason to name."""
        report = Books().report(last_wakeup=NOW - 1.5)
        assert report == {
            "status": "healthy",
            "reasons": [],
            "scheduler": {
                "name": "main",
                "state": "running",
                "loop_alive": True,
                "last_wakeup": "2027-01-15T07:59:58.500+00:00",
            },
            "jobs": [],
        }

    def test_unhealthy(self) -> None:
        """A loop that does not live is unhealthy, with a code for programs and a sentence."""
        liveness = Liveness(state="running", up=False, reasons=[("overdue", "It is late.")])
        report = Books().report(liveness)
        assert report["status"] == "unhealthy"
        assert report["reasons"] == [{"code": "overdue", "message": "It is late."}]
        assert report["scheduler"]["loop_alive"] is False
        assert report["scheduler"]["last_wakeup"] is None

    def test_a_job_that_fails_is_not_a_scheduler_that_is_ill(self) -> None:
        """Restarting would not help a job that fails, so it does not make the report unhealthy."""
        books = Books()
        books.run(books.ledger.know(info(), NOW + 60), Outcome.ERROR)
        assert books.report()["status"] == "healthy"

    def test_is_json(self) -> None:
        """The report is ready for JSON as it is."""
        books = Books()
        books.run(books.ledger.know(info(), NOW + 60), Outcome.ERROR)
        report = books.report(Liveness(state="stopped", up=False, reasons=[("stopped", "It is.")]))
        assert json.loads(json.dumps(report)) == report


class TestJobs:
    def test_new(self) -> None:
        """A job that has not run yet shows its promise and nothing else."""
        books = Books()
        books.ledger.know(info(), NOW + 60)
        assert books.report()["jobs"] == [
            {
                "id": "job",
                "next_run": "2027-01-15T08:01:00.000+00:00",
                "trigger": "interval[0:01:00]",
                "last_outcome": None,
                "last_success": None,
                "running_since": None,
                "overdue": False,
            }
        ]

    def test_paused(self) -> None:
        """A job that promises nothing has no next run, and cannot be overdue."""
        books = Books()
        books.ledger.know(info(), None)
        (job,) = books.report()["jobs"]
        assert job["next_run"] is None
        assert job["overdue"] is False

    def test_after_runs(self) -> None:
        """The last outcome is that of the run that ended last, the last success stays."""
        books = Books()
        entry = books.ledger.know(info(), NOW + 60)
        books.run(entry, Outcome.SUCCESS)
        books.clock.now += 10
        books.run(entry, Outcome.ERROR)
        (job,) = books.report()["jobs"]
        assert job["last_outcome"] == "error"
        assert job["last_success"] == "2027-01-15T08:00:02.000+00:00"

    def test_running(self) -> None:
        """A run inside the callable shows since when."""
        books = Books()
        entry = books.ledger.know(info(), NOW + 60)
        (run,) = books.ledger.hand_over(entry, None, [datetime.fromtimestamp(NOW, timezone.utc)])
        books.ledger.start(run, NOW + 0.25)
        assert books.report()["jobs"][0]["running_since"] == "2027-01-15T08:00:00.250+00:00"

    @pytest.mark.parametrize(("late", "overdue"), [(-1, False), (60, False), (60.1, True)])
    def test_overdue(self, late: float, overdue: bool) -> None:
        """A job is overdue when its promise is older than its grace."""
        books = Books()
        books.ledger.know(info(grace=60.0), NOW - late)
        assert books.report()["jobs"][0]["overdue"] is overdue

    def test_several(self) -> None:
        """Jobs come in the order of their labels, and jobs of one label are one entry."""
        books = Books()
        for job_id, label in (("3", "b"), ("1", "a"), ("2", "b")):
            books.ledger.know(info(job_id, label=label), NOW + 60)
        assert [job["id"] for job in books.report()["jobs"]] == ["a", "b"]
