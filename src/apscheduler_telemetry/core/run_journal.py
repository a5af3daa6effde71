"""
A journal of runs in flight, so that a killed process loses none of them silently.

Each process that runs the scheduler has a file of its own in the directory of the journal
(`core.journal_file`). A run is in the file from its submission to its end. A process that is killed
leaves its runs in the file, and the next process that starts the scheduler counts them as lost.

Interrupted runs stay in their file until the metrics have been exported once after they were
counted. So if the next process is killed as well, before anyone has seen its metrics, the process
after it counts them. They are removed at the end of the reading, before the exporter sends what it
has read: if the process is killed in between, nobody has seen the count.
"""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from apscheduler_telemetry.core import files
from apscheduler_telemetry.core.journal_file import (
    MAX_JOURNALED_RUNS,
    NO_TIME,
    NUMBER_SIZE,
    RUN_STRUCT,
    SLOT_BEGIN_FROM_DUE_TIME_BYTES,
    SPAN_ID_OFFSET,
    START_OFFSET,
    TRACE_ID_HIGH_OFFSET,
    TRACE_ID_LOW_OFFSET,
    JournalEntry,
    JournalFile,
    JournalOwner,
    UnusableJournalError,
    encode_job,
)
from apscheduler_telemetry.core.locks import synchronized
from apscheduler_telemetry.core.model import Clock, ErrorDescription, JobInfo, Outcome, SpanIds
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.records import Run

MAX_FILES_PER_SCHEDULER = 1_000
"""Files of one scheduler, of which each live process has one."""
SEARCH_INTERVAL_SECONDS = 60.0
"""
Seconds between two searches for files of processes that have ended since this one has started.

Such a process is an old worker that outlives the start of the new one, as in a reload. Metrics are
read a few times a minute, so most readings do not look at the directory.
"""
MAX_CACHED_JOBS = 1_000
"""Jobs whose part of a slot is cached, as it is the same for all runs of a job."""

_NOT_ENCODED = None, "", b""
_MAX_ID = (1 << 64) - 1
_JUST_AFTER_EPOCH = math.ulp(0.0)  # the due time of a run at the epoch, as 0 is a slot without one


class InterruptedRuns(NamedTuple):
    """
    The runs that one file of a journal still has, although its process has ended.

    Attributes:
        path: the file.
        owner: the process that had the file last; None if that is not known.
        entries: the runs, of this process or of an earlier one.
    """

    path: Path
    owner: JournalOwner | None
    entries: Sequence[JournalEntry]


class JournaledRun(Run):
    """
    A run that is in a journal from `write_to` to its end.

    Another thread, or the handler of a signal, may end the run at any time, and another run then
    has its slot. So the slot is looked at and written to on one line, without a call in between.
    """

    __slots__ = ("_file",)
    _file: JournalFile

    def write_to(self, file: JournalFile, encoded_job: bytes) -> None:
        """
        Write the run, which is being submitted, into a file.

        Args:
            file: the file.
            encoded_job: what `encode_job` has returned for its job.

        Raises:
            IndexError: the file has no place for it.
        """
        if not self._slot:
            self._file = file
            # Known before the run is in the file, so that an exception cannot leave it there.
            self._slot = file.free_slots.pop()
        due_at = self.due_timestamp or _JUST_AFTER_EPOCH
        RUN_STRUCT.pack_into(
            file.mapped_memory,
            self._slot * NUMBER_SIZE + SLOT_BEGIN_FROM_DUE_TIME_BYTES,
            encoded_job,
            due_at,
        )

    def try_start(self, at: float, max_delay: float | None = None) -> bool:
        is_started = Run.try_start(self, at, max_delay)
        # As `_write_start`, whose call each run would pay for.
        if is_started and self._slot: self._file.times[self._slot + START_OFFSET] = at  # fmt: skip  # noqa: E701
        return is_started

    def try_set_estimated_start(self, at: float, max_delay: float | None = None) -> bool:
        is_set = Run.try_set_estimated_start(self, at, max_delay)
        if is_set and self.started_at is None:
            self._write_start(at)
        return is_set

    def set_exemplar_span(self, span: SpanIds) -> None:
        Run.set_exemplar_span(self, span)
        if self.measured_or_estimated_start_at is None:  # it is being sent to another process
            self._write_start(self.series.clock())
        for place, number in (
            (TRACE_ID_HIGH_OFFSET, span.trace_id >> 64),
            (TRACE_ID_LOW_OFFSET, span.trace_id),
            (SPAN_ID_OFFSET, span.span_id),  # the last one, as without it there is no span
        ):
            id_ = number & _MAX_ID
            if self._slot: self._file.ids[self._slot + place] = id_  # fmt: skip  # noqa: E701

    def finish(self, outcome: Outcome, error: ErrorDescription | None = None) -> bool:
        # Before it counts: a process that is killed in between must not have counted it, too.
        if self.outcome is None and self._slot: self._file.times[self._slot] = NO_TIME  # fmt: skip  # noqa: E701
        is_first = Run.finish(self, outcome, error)
        if is_first and self._slot:
            slot, self._slot = self._slot, None
            self._file.free_slots.append(slot)
        return is_first

    def _write_start(self, at: float) -> None:
        if self._slot: self._file.times[self._slot + START_OFFSET] = at  # fmt: skip  # noqa: E701


class RunJournal:
    """
    The journal of one scheduler in this process.

    Runs write themselves; the journal is a `RunObserver` from `ignore_new_runs` on, to close its
    file with the last run. Nothing is written before `start`, nor in a forked child that does not
    start the scheduler itself. A failure is counted; the runs go on without a journal.

    Args:
        directory: where the files are; created if it is missing.
        scheduler: the name of the scheduler.
        error_reporter: counts what fails.
        on_interrupted: called with interrupted runs that are to be counted now.
        clock: returns Unix seconds.
    """

    component = "journal"

    def __init__(
        self,
        directory: Path,
        scheduler: str,
        *,
        error_reporter: ErrorReporter,
        on_interrupted: Callable[[InterruptedRuns], None],
        clock: Clock = time.time,
    ) -> None:
        self._directory = directory
        self._scheduler = scheduler
        self._error_reporter = error_reporter
        self._on_interrupted = on_interrupted
        self._clock = clock
        self._lock = threading.RLock()
        self._file: JournalFile | None = None
        self._is_stopped = False
        self._encoded_jobs: dict[Hashable, tuple[JobInfo | None, str, bytes]] = {}
        # Files with interrupted runs that were counted and whose metrics nobody has read yet.
        self._counted_files_not_read_yet: list[tuple[JournalFile, Sequence[int]]] = []
        self._last_searched_at = 0.0
        error_reporter.add_component(self.component)

    def reset_after_fork(self) -> None:
        """Leave the files, and the runs in them, to the parent of this forked process."""
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        self._encoded_jobs.clear()  # which have its process id
        self._close_files()

    @synchronized
    def start(self) -> None:
        """Take a file, as the scheduler is being started, and count the runs of ended processes."""
        if self._file is not None or self._is_stopped:
            return
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._take_over_files()
            if self._file is None:
                self._file = self._create_file()
        except FileExistsError:
            self._report_unusable(self._directory, "is not a directory, as the journal is")
        except OSError as error:
            problem = f"cannot be used for the journal: {error.strerror or error}"
            self._report_unusable(self._directory, problem)
        except Exception:  # noqa: BLE001  # the scheduler must still start
            self._error_reporter.exception(self.component)

    # Runs

    def create_run_writer(self, register: Callable[[Run], object]) -> Callable[[Any], None]:
        """
        Return a function that writes each run that is being submitted.

        To write a run twice is the same as once.

        Args:
            register: called with the run first; so is its end sure to be recorded.
        """

        def add_run(run: JournaledRun) -> None:
            register(run)
            file = self._file
            if file is None or self._is_stopped:
                return
            try:
                job = run.job_info
                cached_job, executor, encoded_job = self._encoded_jobs.get(job.id, _NOT_ENCODED)
                if cached_job is not job or executor is not run.executor:
                    encoded_job = self._encode_job(run)
                run.write_to(file, encoded_job)
            except IndexError:
                self._error_reporter.report(
                    self.component,
                    f"more than {MAX_JOURNALED_RUNS:,} runs are in flight, and the journal does "
                    "not have the others",
                )
            except Exception:  # noqa: BLE001  # the job is still submitted
                self._error_reporter.exception(self.component)

        return add_run

    def is_enabled(self) -> bool | None:
        """Return whether the ends of runs are waited for; before that, runs write themselves."""
        return self._is_stopped or None

    def on_callable_start(self, run: Run) -> None:
        """Do nothing: the run writes its start."""

    def on_callable_end(self, run: Run) -> None:
        """Do nothing: the outcome of the run is not known yet."""

    def create_trace_carrier(self, run: Run) -> None:
        """Do nothing: the run writes its span."""

    def on_run_finished(self, run: Run) -> None:  # noqa: ARG002
        """Close the files if no run is in flight any more."""
        if self._is_stopped and not self.has_open_runs():
            self._close_files()

    @synchronized
    def ignore_new_runs(self) -> None:
        """Write no further run; those that are in the file stay there until they end."""
        self._is_stopped = True
        if not self.has_open_runs():
            self._close_files()

    @synchronized
    def has_open_runs(self) -> bool:
        """Return whether a run in the file has not ended."""
        file = self._file
        interrupted = [
            slots for counted, slots in self._counted_files_not_read_yet if counted is file
        ]
        return file is not None and file.count_runs() > sum(map(len, interrupted))

    # Readings of the metrics

    @synchronized
    def on_reading_start(self) -> Sequence[object]:
        """
        Prepare a reading of the metrics: search for the runs of other processes.

        Returns:
            What to pass to `on_reading_end`.
        """
        is_due = not 0 <= self._clock() - self._last_searched_at < SEARCH_INTERVAL_SECONDS
        if self._file is not None and not self._is_stopped and is_due:
            try:
                self._take_over_files()
            except Exception:  # noqa: BLE001  # the metrics are still read
                self._error_reporter.exception(self.component)
        return tuple(self._counted_files_not_read_yet)

    @synchronized
    def on_reading_end(self, shown: Sequence[object]) -> None:
        """Remove the interrupted runs that the reading has shown; see `on_reading_start`."""
        for counted in [each for each in self._counted_files_not_read_yet if each in shown]:
            file, slots = counted
            for slot in slots:
                file.remove_run(slot)
            self._counted_files_not_read_yet.remove(counted)
            if file is not self._file:
                file.close()

    # Files

    def _take_over_files(self) -> None:
        """Count the runs in all files of ended processes, and take one if there is none yet."""
        self._last_searched_at = self._clock()
        for path in self._find_files():
            if any(path == each.path for each, _ in self._counted_files_not_read_yet) or (
                self._file is not None and path == self._file.path
            ):
                continue
            file = self._try_open(path)
            if file is None:
                continue
            owner, entries = file.former_owner, list(file.read_entries())
            if file.damaged_run_count:
                self._error_reporter.report(
                    self.component,
                    f"{file.damaged_run_count:,} damaged run(s) in {str(path)!r} cannot be counted",
                )
            if self._file is None:
                file.set_owner(self._clock(), self._scheduler)
                self._file = file
            elif not entries:
                file.close()
            if entries:
                self._on_interrupted(InterruptedRuns(path, owner, entries))
                self._counted_files_not_read_yet.append((file, [entry.slot for entry in entries]))

    def _find_files(self) -> list[Path]:
        """Return the files of the scheduler that are there, in the order of their numbers."""
        paths = self._directory.glob(f"{files.scheduler_file_stem(self._scheduler)}.*.journal")
        return sorted(paths, key=lambda path: (len(path.name), path.name))

    def _create_file(self) -> JournalFile:
        stem = files.scheduler_file_stem(self._scheduler)
        for number in range(MAX_FILES_PER_SCHEDULER):
            path = self._directory / f"{stem}.{number}.journal"
            if not os.path.lexists(path):
                file = JournalFile.open(path, self._scheduler)
                if file is not None:  # else another process has just created it
                    file.set_owner(self._clock(), self._scheduler)
                    return file
        message = f"All {MAX_FILES_PER_SCHEDULER:,} files of the scheduler are in use"
        raise OSError(errno.EUSERS, message, str(self._directory))

    def _try_open(self, path: Path) -> JournalFile | None:
        """Return a file that this process has locked now; None if it cannot use it."""
        try:
            return JournalFile.open(path, self._scheduler)
        except UnusableJournalError as error:
            self._report_unusable(path, str(error))
        except files.UnusableFileError as error:
            self._report_unusable(path, error.problem)
        except OSError as error:
            self._report_unusable(path, f"cannot be opened: {error.strerror or error}")
        return None

    def _report_unusable(self, path: Path, problem: str) -> None:
        self._error_reporter.report_unusable_path(self.component, str(path), problem)

    @synchronized
    def _close_files(self) -> None:
        open_files = {self._file, *(file for file, _ in self._counted_files_not_read_yet)}
        self._file, self._counted_files_not_read_yet = (
            None,
            [],
        )  # interrupted runs stay in their files
        for file in open_files:
            if file is not None:
                file.close()

    def _encode_job(self, run: Run) -> bytes:
        job, executor = run.job_info, run.executor
        if len(self._encoded_jobs) >= MAX_CACHED_JOBS:
            self._encoded_jobs.clear()
        encoded_job = encode_job(run.label, str(job.id), executor)
        self._encoded_jobs[job.id] = job, executor, encoded_job
        return encoded_job
