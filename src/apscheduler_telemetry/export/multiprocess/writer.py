"""
Writes the metrics of one scheduler to its slot: in a thread, after a fork and at exit.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from pathlib import Path

from apscheduler_telemetry.core.forks import create_daemon_thread
from apscheduler_telemetry.export import metric_families as families
from apscheduler_telemetry.export.metric_families import InstrumentedScheduler
from apscheduler_telemetry.export.multiprocess.counter_offsets import CounterOffsets
from apscheduler_telemetry.export.multiprocess.file_format import DamagedFileError, sample_keys
from apscheduler_telemetry.export.multiprocess.gauge_modes import MOST_RECENT
from apscheduler_telemetry.export.multiprocess.slots import (
    STALE_GAUGE_SECONDS,
    SchedulerSlot,
    add_to_counters_without_slot,
    remove_stale_gauges,
)
from apscheduler_telemetry.export.multiprocess.snapshot import (
    CUMULATIVE_FILE_TYPES,
    ERROR_COMPONENT,
    SnapshotTaker,
)

WRITE_INTERVAL_SECONDS = 1.0
"""Seconds between two writes: short against the usual 15 between two scrapes."""

MAX_DUTY_CYCLE = 0.05
"""Largest share of one CPU for the writes. With very many jobs, the interval becomes longer."""

FREE_SLOT_PRUNE_INTERVAL_SECONDS = 60.0
"""Seconds between two searches for counters of removed jobs in slots that no process holds."""


class SnapshotWriter:
    """
    Keeps the files of one scheduler in this process up to date, from its start in this process.

    In a forked child, the copy of a scheduler that the parent runs writes nothing, unless that
    scheduler continues in the child.

    Args:
        scheduler: the scheduler.
        directory: the directory of multiprocess mode.
    """

    def __init__(self, scheduler: InstrumentedScheduler, directory: Path) -> None:
        self._instrumented_scheduler = scheduler
        self._directory = directory
        self._lock = threading.RLock()  # reentrant, as a signal handler may call `write`
        self._stopped_event = threading.Event()
        self._writing_pid: int | None = None
        self._is_copy_in_forked_child = False
        self._slot: SchedulerSlot | None = None
        self._free_slots_pruned_at = 0.0
        self._unshared_skipped_file_count = 0  # by this process, which is not shown to others yet
        self._snapshot_taker = SnapshotTaker(scheduler)
        self._counter_offsets = CounterOffsets()
        _writers.add(self)
        remove_stale_gauges(directory)

    @property
    def scheduler_name(self) -> str:
        """The name of the scheduler."""
        return self._instrumented_scheduler.name

    def start(self) -> None:
        """Begin to write the metrics of the scheduler, which now runs in this process."""
        with self._lock:
            if self._writing_pid == os.getpid():
                return
            try:
                if self._is_copy_in_forked_child:
                    self._counter_offsets.exclude_parent_counts(
                        self._snapshot_taker.take_snapshot().cumulative_values
                    )
                self._writing_pid = os.getpid()
                self._stopped_event = threading.Event()
                # In a thread, because a file system may be slow. The thread has only a weak
                # reference, so that it does not keep an unused scheduler alive.
                create_daemon_thread(
                    _write_periodically,
                    weakref.ref(self),
                    self._stopped_event,
                    name="apscheduler-telemetry-multiprocess",
                ).start()
            except Exception:  # noqa: BLE001  # the scheduler must still start
                self._instrumented_scheduler.error_reporter.exception(ERROR_COMPONENT)

    def write(self) -> None:
        """Write the current metrics. A failure is counted, and the next call tries again."""
        with self._lock:
            try:
                if self._writing_pid == os.getpid():
                    self._write_snapshot()
                elif self._unshared_skipped_file_count:
                    self._share_skipped_file_count()
            except Exception:  # noqa: BLE001  # a full disk must not stop the caller
                self._instrumented_scheduler.error_reporter.exception(ERROR_COMPONENT)

    def write_final_snapshot(self) -> None:
        """Write for the last time before this process ends, and remove the gauges."""
        self.write()
        with self._lock:
            if self._slot is not None and self._writing_pid == os.getpid():
                self._slot.remove_gauges()

    def stop(self) -> None:
        """Stop writing. The counters stay, as those of a process that has ended do."""
        self.write_final_snapshot()
        self._stopped_event.set()
        with self._lock:
            self._release_slot()

    def has_other_stop_event(self, stopped: threading.Event) -> bool:
        """Return whether an event is not ours, as a greenlet that wrote continues in a fork."""
        return self._stopped_event is not stopped

    def reset_after_fork(self) -> None:
        """Leave the slot to the parent process, in the child."""
        self._lock = threading.RLock()  # another thread of the parent may have held the old one
        self._stopped_event = threading.Event()
        self._is_copy_in_forked_child = (
            self._is_copy_in_forked_child or self._writing_pid is not None
        )
        self._release_slot()

    def _release_slot(self) -> None:
        self._writing_pid = None
        if self._slot is not None:
            self._slot.release()
            self._slot = None

    def _write_snapshot(self) -> None:
        slot = self._ensure_usable_slot()
        if slot is None:
            return  # another process has locked the directory; the next write tries again
        snapshot = self._snapshot_taker.take_snapshot(slot.update_earliest_start)
        self._counter_offsets.drop_removed_jobs(snapshot.job_labels)
        self._counter_offsets.add_to_values(snapshot.cumulative_values)
        for kind, values in snapshot.cumulative_values.items():
            slot.write_cumulative(kind, values)
        if (
            self._instrumented_scheduler.liveness().scheduler_state == "stopped"
            and slot.has_gauges_in_other_slot()
        ):
            slot.remove_gauges()  # the scheduler has moved to another process
        else:
            for mode, values in snapshot.gauges_by_mode.items():
                timestamps = snapshot.gauge_priorities if mode == MOST_RECENT else {}
                slot.write_gauges_of_mode(mode, values, timestamps)
        remove_stale_gauges(self._directory)
        if time.monotonic() - self._free_slots_pruned_at > FREE_SLOT_PRUNE_INTERVAL_SECONDS:
            self._free_slots_pruned_at = time.monotonic()
            slot.prune_counters_in_free_slots(snapshot.job_labels)

    def _share_skipped_file_count(self) -> None:
        """Count skipped files for all processes, as the error reporter of this one is not shown."""
        labels = self._instrumented_scheduler.name, ERROR_COMPONENT
        (key,) = sample_keys(families.TELEMETRY_ERRORS, labels, 0.0)
        count = self._unshared_skipped_file_count
        if add_to_counters_without_slot(
            self._directory, self._instrumented_scheduler.name, {key: float(count)}
        ):
            self._unshared_skipped_file_count -= count

    def _ensure_usable_slot(self) -> SchedulerSlot | None:
        """Return the slot of this process, and take one if there is none."""
        if self._slot is not None and (
            self._slot.is_lock_file_deleted() or self._slot.has_untrusted_file()
        ):
            # Delete its values. The next holder would take them for counts of another process,
            # and they would be counted twice.
            self._slot.delete_values_and_release()
            self._slot = None
        if self._slot is None:
            slot = SchedulerSlot.take_free_slot(
                self._directory, self._instrumented_scheduler.name, self.on_file_skipped
            )
            if slot is not None:
                self._continue_counts_of_slot(slot)
                self._slot = slot
        return self._slot

    def on_file_skipped(self, path: str, problem: str) -> None:
        """Report a file that is not used; see `OnFileSkipped`."""
        if self._writing_pid != os.getpid():
            self._unshared_skipped_file_count += 1
        self._instrumented_scheduler.error_reporter.report_unusable_path(
            ERROR_COMPONENT, path, problem
        )

    def _continue_counts_of_slot(self, slot: SchedulerSlot) -> None:
        """
        Add to the offsets what previous holders of a slot counted.

        Raises:
            OSError: it cannot be read now. The slot is released as it is, so that no write replaces
                what was not read; the next write tries again, or another process does.
        """
        counted = {}
        for kind in CUMULATIVE_FILE_TYPES:
            try:
                counted[kind] = slot.read_cumulative(kind)
            except OSError:  # noqa: PERF203  # each file on its own
                slot.release()
                raise
            except DamagedFileError as error:  # it stays so, and is replaced by the next write
                self.on_file_skipped(str(slot.file_path(kind)), str(error))
        for kind, values in counted.items():
            self._counter_offsets.add_previous_counts(kind, values)


def _write_periodically(reference: weakref.ref[SnapshotWriter], stopped: threading.Event) -> None:
    pause = 0.0
    while not stopped.wait(pause):
        writer = reference()
        if writer is None or writer.has_other_stop_event(stopped):
            return
        begin = time.thread_time()
        writer.write()
        used = time.thread_time() - begin
        pause = min(max(WRITE_INTERVAL_SECONDS, used / MAX_DUTY_CYCLE), STALE_GAUGE_SECONDS / 3)
        del writer  # or this thread would keep the scheduler alive while it waits


def write_all_snapshots() -> None:
    """Write the current metrics of all schedulers that this process runs."""
    for writer in list(_writers):
        writer.write()


def report_skipped_file(path: str, problem: str) -> None:
    """Report a file that is not used, for one of the schedulers of this process."""
    writers = sorted(_writers, key=lambda writer: writer.scheduler_name)
    for writer in writers[:1]:
        writer.on_file_skipped(path, problem)


def _write_final_snapshots() -> None:
    for writer in list(_writers):
        writer.write_final_snapshot()


def _reset_writers_after_fork() -> None:
    for writer in list(_writers):
        writer.reset_after_fork()


_writers: weakref.WeakSet[SnapshotWriter] = weakref.WeakSet()
atexit.register(_write_final_snapshots)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_reset_writers_after_fork)
