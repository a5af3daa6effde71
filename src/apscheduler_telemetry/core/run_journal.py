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
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from apscheduler_telemetry.core import files
from apscheduler_telemetry.core.forks import reset_in_forked_children
from apscheduler_telemetry.core.journal_file import (
    MAX_JOURNALED_RUNS,
    SLOTS,
    DamagedJournalError,
    JournalEntry,
    JournalFile,
    JournalOwner,
    encode_unstarted_run,
)
from apscheduler_telemetry.core.locks import synchronized
from apscheduler_telemetry.core.model import Clock, JobInfo
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.records import Run

MAX_FILES_PER_SCHEDULER = 1_000
"""Files of one scheduler, of which each live process has one."""
SEARCH_INTERVAL = 60.0
"""
Seconds between two searches for files of processes that have ended since this one has started.

Such a process is an old worker that outlives the start of the new one, as in a reload. Metrics are
read a few times a minute, so most readings do not look at the directory.
"""
MAX_CACHED_JOBS = 1_000
"""Jobs whose part of a slot is cached, as it is the same for all runs of a job."""


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


class RunJournal:
    """
    The journal of one scheduler in this process; a `RunObserver`.

    Nothing is written before `start`, nor in a forked child that does not start the scheduler
    itself. A failure is counted; the runs go on without a journal.

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
        self._free_slots: list[int] = []
        self._slots: dict[Run, int] = {}
        self._encoded_jobs: dict[int, tuple[JobInfo, str, bytes]] = {}
        # Files with interrupted runs that were counted and whose metrics nobody has read yet.
        self._counted_runs: list[tuple[JournalFile, Sequence[int]]] = []
        self._searched_at = 0.0
        error_reporter.add_component(self.component)
        reset_in_forked_children(self)

    def reset_after_fork(self) -> None:
        """Leave the files, and the runs in them, to the parent process."""
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        self._free_slots, self._slots = [], {}
        self._close_files()

    @synchronized
    def start(self) -> None:
        """Take a file, as the scheduler is being started, and count the runs of ended processes."""
        if self._file is not None or self._is_stopped:
            return
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._count_interrupted_runs()
            if self._file is None:
                self._file = self._create_file()
                self._free_slots = list(reversed(SLOTS))
        except FileExistsError:
            self._report_unusable(self._directory, "is not a directory, as the journal is")
        except OSError as error:
            problem = f"cannot be used for the journal: {error.strerror or error}"
            self._report_unusable(self._directory, problem)
        except Exception:  # noqa: BLE001  # the scheduler must still start
            self._error_reporter.exception(self.component)

    # Runs

    def add_run(self, run: Run) -> None:
        """Write a run that is being submitted; to write it twice is the same as once."""
        file, slots = self._file, self._slots
        if file is None or self._is_stopped or run in slots:
            return
        try:
            job = run.job_info
            cached = self._encoded_jobs.get(id(job))
            if cached is None or cached[0] is not job or cached[1] != run.executor:
                cached = self._encode_job(run)
            # On one line, so that no exception from outside loses the slot.
            slot = slots[run] = self._free_slots.pop()
            file.write_run(slot, run.due_timestamp, cached[2])
        except IndexError:
            self._error_reporter.report(
                self.component,
                f"more than {MAX_JOURNALED_RUNS:,} runs are in flight, and the journal does not "
                "have the others",
            )
        except Exception:  # noqa: BLE001  # the job is still submitted
            self._error_reporter.exception(self.component)

    def is_enabled(self) -> bool | None:
        """Return whether this process writes runs."""
        return self._file is not None

    def on_callable_start(self, run: Run) -> None:
        """Write the start of a run, and its span."""
        slot, file = self._slots.get(run), self._file
        if slot is not None and file is not None and run.started_at is not None:
            file.write_start(slot, run.started_at)
            if run.exemplar_span is not None:
                file.write_span(slot, run.exemplar_span.trace_id, run.exemplar_span.span_id)

    def on_callable_end(self, run: Run) -> None:
        """Do nothing: the outcome of the run is not known yet."""

    def create_trace_carrier(self, run: Run) -> Mapping[str, str] | None:
        """Write that a run is sent to another process, which is the start of its span."""
        slot, file = self._slots.get(run), self._file
        if slot is not None and file is not None:
            file.write_start(slot, self._clock())
            if run.exemplar_span is not None:
                file.write_span(slot, run.exemplar_span.trace_id, run.exemplar_span.span_id)
        return None

    def on_run_finished(self, run: Run) -> None:
        """Remove a run that has ended."""
        self._free(run)
        if self._is_stopped and not self._slots:
            self._close_files()

    @synchronized
    def stop_observing_new_runs(self) -> None:
        """Write no further run; those that are in the file stay there until they end."""
        self._is_stopped = True
        self.remove_ended_runs()
        if not self._slots:
            self._close_files()

    def has_open_runs(self) -> bool:
        """Return whether a run in the file has not ended."""
        return any(run.outcome is None for run in list(self._slots))

    # Readings of the metrics

    def remove_ended_runs(self) -> None:
        """Remove runs whose end was not observed, because of an exception from outside."""
        for run in list(self._slots):
            if run.outcome is not None:
                self._free(run)

    def on_reading_start(self) -> Sequence[object]:
        """
        Prepare a reading of the metrics: remove runs that have ended, and search for others' runs.

        Returns:
            What to pass to `on_reading_end`.
        """
        self.remove_ended_runs()
        with self._lock:
            is_due = not 0 <= self._clock() - self._searched_at < SEARCH_INTERVAL
            if self._file is not None and not self._is_stopped and is_due:
                try:
                    self._count_interrupted_runs()
                except Exception:  # noqa: BLE001  # the metrics are still read
                    self._error_reporter.exception(self.component)
            return tuple(self._counted_runs)

    @synchronized
    def on_reading_end(self, shown: Sequence[object]) -> None:
        """Remove the interrupted runs that the reading has shown; see `on_reading_start`."""
        for counted in [each for each in self._counted_runs if each in shown]:
            file, slots = counted
            for slot in slots:
                file.free(slot)
            self._counted_runs.remove(counted)
            if file is self._file:
                self._free_slots.extend(slots)
            else:
                file.close()

    # Files

    def _count_interrupted_runs(self) -> None:
        """Count the runs in all files of ended processes, and take one if there is none yet."""
        self._searched_at = self._clock()
        for path in self._find_files():
            if any(path == each.path for each, _ in self._counted_runs) or (
                self._file is not None and path == self._file.path
            ):
                continue
            file = self._try_open(path)
            if file is None:
                continue
            owner, entries = file.former_owner, list(file.read_entries())
            if file.damaged_runs:
                self._error_reporter.report(
                    self.component,
                    f"{file.damaged_runs:,} damaged run(s) in {str(path)!r} cannot be counted",
                )
            slots = [entry.slot for entry in entries]
            if self._file is None:
                file.set_owner(self._clock(), self._scheduler)
                free = set(SLOTS).difference(slots)
                self._free_slots, self._file = sorted(free, reverse=True), file
            elif not entries:
                file.close()
            if entries:
                self._on_interrupted(InterruptedRuns(path, owner, entries))
                self._counted_runs.append((file, slots))

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
        except DamagedJournalError as error:
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
        open_files = {self._file, *(file for file, _ in self._counted_runs)}
        self._file, self._counted_runs = None, []  # interrupted runs stay in their files
        for file in open_files:
            if file is not None:
                file.close()

    # Slots

    def _free(self, run: Run) -> None:
        # Under the lock, as a reading may do the same, and in this order: an exception from outside
        # at any line leaves the run in `_slots`, from which the next reading removes it, or the
        # slot unused.
        with self._lock:
            slot, file = self._slots.get(run), self._file
            if slot is not None and file is not None:
                file.free(slot)
                if self._slots.pop(run, None) is not None:
                    self._free_slots.append(slot)

    def _encode_job(self, run: Run) -> tuple[JobInfo, str, bytes]:
        job, executor = run.job_info, run.executor
        if len(self._encoded_jobs) >= MAX_CACHED_JOBS:
            self._encoded_jobs.clear()
        encoded = encode_unstarted_run(run.label, str(job.id), executor)
        self._encoded_jobs[id(job)] = job, executor, encoded
        return job, executor, encoded
