"""
Reports runs that ended with a former process: counts them, logs them and exports their spans.
"""

from __future__ import annotations

from collections import Counter

from apscheduler_telemetry.core.journal_file import read_boot_id
from apscheduler_telemetry.core.observers import ErrorReporter, logger
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.core.run_journal import InterruptedRuns
from apscheduler_telemetry.core.times import to_datetime
from apscheduler_telemetry.export.otel_traces import SpanObserver
from apscheduler_telemetry.export.run_log import RunLogObserver

MAX_LOGGED_LABELS = 10
"""Jobs that the warning names; it is one line."""


class InterruptedRunReporter:
    """
    Reports the runs that a journal still has.

    Args:
        recorder: counts them.
        span_observer: exports their spans.
        run_log: logs each of them; None for no log of runs.
        error_reporter: counts failures of that.
    """

    def __init__(
        self,
        recorder: Recorder,
        span_observer: SpanObserver,
        run_log: RunLogObserver | None,
        error_reporter: ErrorReporter,
    ) -> None:
        self._recorder = recorder
        self._span_observer = span_observer
        self._run_log = run_log
        self._error_reporter = error_reporter

    def report(self, interrupted: InterruptedRuns) -> None:
        """Count the runs of one file; whatever else fails, they are counted."""
        runs = self._recorder.runs_interrupted(interrupted.entries)
        logger.warning("%s", _describe_interruption(interrupted, self._recorder.scheduler_name))
        for run, entry in zip(runs, interrupted.entries, strict=True):
            try:
                self._span_observer.export_interrupted_run(run, entry.span)
            except Exception:  # noqa: BLE001  # of a span processor of the user's
                self._error_reporter.exception(self._span_observer.component)
            if self._run_log is None:
                continue
            try:
                self._run_log.on_run_finished(run)
            except Exception:  # noqa: BLE001  # of a log processor of the user's
                self._error_reporter.exception(self._run_log.component)


def _describe_interruption(interrupted: InterruptedRuns, scheduler: str) -> str:
    counts = Counter(entry.label for entry in interrupted.entries)
    labels = [f"{count} of {label!r}" for label, count in counts.most_common(MAX_LOGGED_LABELS)]
    if len(counts) > MAX_LOGGED_LABELS:
        labels.append(f"others of {len(counts) - MAX_LOGGED_LABELS} jobs")
    pids = sorted({entry.pid for entry in interrupted.entries})
    processes = "process" if len(pids) == 1 else "processes"
    cause = f"{processes} {', '.join(map(str, pids[:MAX_LOGGED_LABELS]))} ended"
    owner = interrupted.owner
    if owner is not None and owner.pid in pids:
        started = to_datetime(owner.taken_at).isoformat(timespec="seconds")
        cause = f"{cause} (its scheduler was started at {started})"
        if owner.boot_id and owner.boot_id != read_boot_id():
            cause = f"{cause}, and the machine was restarted"
    return (
        f"{len(interrupted.entries)} run(s) of the scheduler {scheduler!r} were interrupted, as "
        f"{cause}: {', '.join(labels)}. They count as lost"
    )
