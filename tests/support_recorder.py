"""A recorder with a clock that is set by hand; needs no scheduler."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from types import FrameType
from typing import Any

from apscheduler_telemetry.core.model import JobInfo, Outcome, RunError
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.records import JobRecord, JobSnapshot, Run

DUE = datetime(2030, 1, 1, tzinfo=timezone.utc)
AT = DUE.timestamp()


class Boom(Exception):  # noqa: N818  # it is what it says
    """What goes wrong on purpose."""


class Timeout(BaseException):
    """What the handler of a signal raises in the middle of something."""


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = AT) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def job_info(job_id: str = "job", **changes: Any) -> JobInfo:
    """Return the description of a job."""
    values: dict[str, Any] = {
        "id": job_id,
        "label": job_id,
        "name": "Job",
        "func": "shop:job",
        "trigger": "interval[0:00:10]",
        "executor": "default",
        "jobstore": "default",
        "persistent": False,
        "grace": 60.0,
    }
    return JobInfo(**{**values, **changes})


class RecorderRig:
    """A recorder, its clock, an executor and a job whose next run is at `AT`."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.recorder = Recorder("main", clock=self.clock, **options)
        self.recorder.executor_added("default", lambda: 4)
        self.record = self.recorder.job_upserted(job_info(), AT)

    def submit(self, *seconds: float, record: JobRecord | None = None) -> list[Run]:
        """Submit runs that are due so many seconds after `DUE`; one at `DUE` by default."""
        due_times = [DUE + timedelta(seconds=each) for each in seconds or (0,)]
        runs = [Run(record or self.record, due, "default") for due in due_times]
        for run in runs:
            self.recorder.run_submitted(run)
        return runs

    def finish(
        self,
        run: Run,
        outcome: Outcome = Outcome.SUCCESS,
        error: RunError | None = None,
        *,
        started: float | None = None,
        duration: float | None = None,
    ) -> bool:
        """End a run, measured if `started` or `duration` are given."""
        if started is not None:
            run.start(started)
        if duration is not None:
            run.stop(duration)
        return run.finish(outcome, error)

    def job(self, label: str = "job") -> JobSnapshot:
        """Return the snapshot of a label."""
        (job,) = [job for job in self.recorder.snapshots() if job.label == label]
        return job

    def labels(self) -> list[str]:
        """Return all labels."""
        return [job.label for job in self.recorder.snapshots()]

    def counts(self) -> tuple[int, int, int, dict[str, int]]:
        """Return due, queued and running runs, and the outcomes that there are."""
        job = self.job()
        queued, running, _ = job.in_flight
        assert self.recorder.executors() == {"default": (4, running, queued)}
        outcomes = {outcome.value: n for outcome, n in job.stats.outcomes.items() if n}
        return job.due_count, queued, running, outcomes

    def numbers(self, label: str = "job") -> dict[str, Any]:
        """Return all that the snapshot of a label says, to be compared."""
        job = self.job(label)
        numbers = job._asdict() | {name: getattr(job.stats, name) for name in job.stats.__slots__}
        del numbers["version"], numbers["stats"]
        for name in ("durations", "delays"):
            histogram = numbers[name]
            numbers[name] = histogram.counts, histogram.sum, histogram.exemplars
        return numbers


def in_thread(do: Callable[[], Any]) -> Any:
    """Return what `do` returns in another thread, which has ten seconds for it."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(do()), daemon=True)
    thread.start()
    thread.join(10)
    assert results, "it failed, or waits for a lock"
    return results[0]


def interrupt(
    do: Callable[[], Any], files: tuple[str, ...], act: Callable[[], Any], at: int
) -> bool:
    """
    Call `do`, and `act` before one line of it, as the handler of a signal would be.

    Args:
        do: what is interrupted; what `act` raises ends it, and goes no further.
        files: ends of the names of the files whose lines count.
        act: called at that line, once.
        at: which line it is, of all that are executed, from 0 on.

    Returns:
        Whether there was such a line.
    """
    left = at

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            left -= 1
            if left == -1:
                sys.settrace(None)
                act()
                return None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        do()
    except Timeout:
        pass
    finally:
        sys.settrace(before)
    return left < 0


def raise_timeout() -> None:
    """Raise `Timeout`."""
    raise Timeout
