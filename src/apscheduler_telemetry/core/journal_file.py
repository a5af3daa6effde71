"""
The file of a journal: the runs in flight of one scheduler in one process.

The file has a fixed size. Its header and each of its slots take `SLOT_SIZE` bytes::

    header: magic, version, size and number of slots, name of the scheduler;
            process id and boot id of the process that has the file, and when it took it
    slot:   process id, label, job id, executor, trace id, span id, start time, due time

The file is mapped into memory, so to write is to change memory, without a system call. What is
changed stays in the kernel's page cache if the process is killed; only a crash of the machine may
lose the latest changes. A run is in the file if its slot has a due time: that is written after
everything else of the run, and it is all that is removed when the run ends, each in one step. So
the file is valid whenever the process is killed.

A process has the file as long as it holds the lock on it (`core.file_locks`). The kernel releases
that lock when the process ends, in whatever way, so an unlocked file is that of a process that has
ended. The magic is written last, so a file without it was never in use.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from apscheduler_telemetry.core import files
from apscheduler_telemetry.core.file_locks import try_lock

MAX_JOURNALED_RUNS = 1_024
"""Slots of a file: with ten workers in a pool, runs that wait for an hour of overload."""
SLOT_SIZE = 1_024
"""
Bytes of a slot: ids and labels have up to 200 characters, with up to three bytes in most scripts.

As it divides the size of a page, no slot is on two pages, which may reach the disk at two times.
"""
FILE_SIZE = SLOT_SIZE * (1 + MAX_JOURNALED_RUNS)
NUMBER_SIZE = 8
"""Bytes of a time, of a span id, and of one half of a trace id."""
SLOT_INDEXES = range(
    2 * SLOT_SIZE // NUMBER_SIZE - 1, FILE_SIZE // NUMBER_SIZE, SLOT_SIZE // NUMBER_SIZE
)
"""All slots; a slot is identified by where its last number, the due time, is in the file."""

_MAGIC = b"APSchRun"
_FORMAT_VERSION = 2
_HEADER_GEOMETRY_STRUCT = struct.Struct("<HHI")  # version, size of a slot, number of slots
_HEADER_OWNER_STRUCT = struct.Struct("<Id36s")  # process id, start in Unix seconds, boot id
_HEADER_NAME_LENGTH_STRUCT = struct.Struct("<H")
_GEOMETRY_OFFSET = len(_MAGIC)
_OWNER_OFFSET = _GEOMETRY_OFFSET + _HEADER_GEOMETRY_STRUCT.size
_NAME_OFFSET = _OWNER_OFFSET + _HEADER_OWNER_STRUCT.size

NO_TIME = 0.0
"""What a slot without a run has as its due time, and a run that has not started as its start."""
# In the byte order of the machine, which never changes for a file.
RUN_STRUCT = struct.Struct(f"@{SLOT_SIZE - NUMBER_SIZE}sd")
"""
Writes a run at `SLOT_BEGIN_FROM_DUE_TIME_BYTES`.

These are what `encode_job` has returned, and the due time.
"""
SLOT_BEGIN_FROM_DUE_TIME_BYTES = NUMBER_SIZE - SLOT_SIZE
"""Bytes from the due time of a slot to the beginning of the slot, so negative."""
_JOB_STRUCT = struct.Struct("@IHHH")  # process id, lengths of label, job id and executor
# In numbers from the due time of a slot.
START_OFFSET = -1
SPAN_ID_OFFSET = -2
TRACE_ID_LOW_OFFSET = -3
TRACE_ID_HIGH_OFFSET = -4
_MAX_LABEL_BYTES, _MAX_JOB_ID_BYTES, _MAX_EXECUTOR_BYTES = 600, 200, 160
_HASH_LENGTH = 8

_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")


class UnusableJournalError(Exception):
    """Raised for a file that is not a journal of the scheduler; it must not be changed."""


class JournalOwner(NamedTuple):
    """
    The process that has, or had, a journal.

    Attributes:
        pid: its process id.
        taken_at: Unix seconds of when it took the file.
        boot_id: identifies the start of the machine; empty if that is not known.
    """

    pid: int
    taken_at: float
    boot_id: str


class JournalSpan(NamedTuple):
    """The ids of the span of a run."""

    trace_id: int
    span_id: int


class JournalEntry(NamedTuple):
    """
    A run in a journal.

    Attributes:
        slot: its slot.
        pid: the process that submitted it.
        job_id: the id of the job, shortened.
        label: the value of the ``job_id`` label.
        executor: alias of the executor.
        due_at: when it was due, in Unix seconds.
        started_at: when it started, in Unix seconds; None if it did not.
        span: its span; None if it had none, or one that is not exported.
    """

    slot: int
    pid: int
    job_id: str
    label: str
    executor: str
    due_at: float
    started_at: float | None
    span: JournalSpan | None


class JournalFile:
    """
    A journal that this process has locked; `open` returns one.

    Attributes:
        path: the path of the file.
        mapped_memory: its content; after `close`, to write to it has no effect.
        times: the same as floating point numbers, each of which is written in one step.
        ids: the same as integers, each of which is written in one step.
        free_slots: those without a run. Taking a slot from the list, or adding it, is one step.
        former_owner: the process that had it before; None if it is new.
        damaged_run_count: how many runs `read_entries` has removed, because it could not read them.
    """

    def __init__(self, path: Path, memory: mmap.mmap, former_owner: JournalOwner | None) -> None:
        self.path = path
        self.former_owner = former_owner
        self.damaged_run_count = 0
        self._set_mapped_memory(memory)
        self.free_slots = [slot for slot in reversed(SLOT_INDEXES) if self.times[slot] == NO_TIME]
        self._pid = os.getpid()

    @classmethod
    def open(cls, path: Path, scheduler: str) -> JournalFile | None:
        """
        Lock and open a journal, and create it if it is missing.

        Args:
            path: the file.
            scheduler: the name of the scheduler.

        Returns:
            The file; None if another process has it.

        Raises:
            UnusableJournalError: it is not a journal of this scheduler.
            UnusableFileError: others control it.
            OSError: it cannot be created, or opened.
        """
        descriptor = files.open_or_create_private_file(path, os.O_RDWR)
        try:
            if not try_lock(descriptor):
                return None
            _allocate_or_reject(path, descriptor)
            memory = mmap.mmap(descriptor, FILE_SIZE)
        finally:
            # The map has a duplicate of the descriptor, which keeps the lock.
            os.close(descriptor)
        try:
            return cls(path, memory, _check_header(memory, scheduler))
        except BaseException:
            memory.close()
            raise

    def set_owner(self, taken_at: float, scheduler: str) -> None:
        """
        Write into the header that this process has the file, and finish it if it is new.

        Args:
            taken_at: Unix seconds.
            scheduler: the name of the scheduler.
        """
        memory = self.mapped_memory
        name = scheduler.encode()
        owner = _HEADER_OWNER_STRUCT.pack(self._pid, taken_at, read_boot_id().encode())
        header = (
            _HEADER_GEOMETRY_STRUCT.pack(_FORMAT_VERSION, SLOT_SIZE, MAX_JOURNALED_RUNS)
            + owner
            + _HEADER_NAME_LENGTH_STRUCT.pack(len(name))
            + name
        )
        memory[_GEOMETRY_OFFSET : _GEOMETRY_OFFSET + len(header)] = header
        memory[: len(_MAGIC)] = _MAGIC

    def read_entries(self) -> Iterator[JournalEntry]:
        """
        Yield the runs in the file.

        Slots whose content is damaged, as after a crash of the machine, are freed.
        """
        for slot in SLOT_INDEXES:
            if self.times[slot] != NO_TIME:
                try:
                    entry = self._read_entry(slot)
                except (ValueError, struct.error):
                    self.remove_run(slot)
                    self.damaged_run_count += 1
                else:
                    yield entry

    def remove_run(self, slot: int) -> None:
        """Remove the run in a slot, which must have one."""
        self.times[slot] = NO_TIME
        self.free_slots.append(slot)

    def count_runs(self) -> int:
        """Return how many runs are in the file."""
        return sum(self.times[slot] != NO_TIME for slot in SLOT_INDEXES)

    def close(self) -> None:
        """Let other processes have the file; in a forked child, the parent keeps it."""
        memory, times, ids = self.mapped_memory, self.times, self.ids
        self._set_mapped_memory(mmap.mmap(-1, FILE_SIZE))
        times.release()
        ids.release()
        memory.close()

    def _set_mapped_memory(self, memory: mmap.mmap) -> None:
        self.mapped_memory = memory
        self.times, self.ids = memoryview(memory).cast("d"), memoryview(memory).cast("Q")

    def _read_entry(self, slot: int) -> JournalEntry:
        due_at, started_at = self.times[slot], self.times[slot + START_OFFSET]
        if not (math.isfinite(due_at) and math.isfinite(started_at)):
            msg = "no time"
            raise ValueError(msg)
        begin = slot * NUMBER_SIZE + SLOT_BEGIN_FROM_DUE_TIME_BYTES
        pid, *lengths = _JOB_STRUCT.unpack_from(self.mapped_memory, begin)
        texts = []
        end = begin + _JOB_STRUCT.size
        for length in lengths:
            start, end = end, end + length
            if end > begin + SLOT_SIZE:
                msg = "no text"
                raise ValueError(msg)
            texts.append(self.mapped_memory[start:end].decode())
        label, job_id, executor = texts
        trace_id = (
            self.ids[slot + TRACE_ID_HIGH_OFFSET] << 64 | self.ids[slot + TRACE_ID_LOW_OFFSET]
        )
        span_id = self.ids[slot + SPAN_ID_OFFSET]
        return JournalEntry(
            slot=slot,
            pid=pid,
            job_id=job_id,
            label=label,
            executor=executor,
            due_at=due_at,
            started_at=started_at or None,
            span=JournalSpan(trace_id, span_id) if trace_id and span_id else None,
        )


def encode_job(label: str, job_id: str, executor: str) -> bytes:
    """
    Return the part of a slot that is the same for all runs of a job in this process.

    Texts that are too long are cut.
    """
    encoded = (
        _encode(label, _MAX_LABEL_BYTES),
        _encode(job_id, _MAX_JOB_ID_BYTES),
        _encode(executor, _MAX_EXECUTOR_BYTES),
    )
    return _JOB_STRUCT.pack(os.getpid(), *map(len, encoded)) + b"".join(encoded)


def read_boot_id() -> str:
    """Return what identifies the start of this machine; empty if that is not known."""
    with suppress(OSError, ValueError):
        return _BOOT_ID_PATH.read_text("ascii").strip()[:36]
    return ""


def _encode(text: str, max_bytes: int) -> bytes:
    """Return a text as UTF-8. If it is too long, it ends in a hash of the whole."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= max_bytes:
        return encoded
    digest = hashlib.sha256(encoded).hexdigest()[:_HASH_LENGTH].encode()
    kept = encoded[: max_bytes - _HASH_LENGTH - 2].decode("utf-8", "ignore")  # whole characters
    return kept.encode() + b".." + digest


def _allocate_or_reject(path: Path, descriptor: int) -> None:
    """
    Give a new file its size, and check that of others.

    A file with a hole would do. But on a full disk, a write to the hole would end the process by a
    signal, while a write to the file only raises an error here. The file is removed then, as each
    start of a process would leave one more.
    """
    size = os.fstat(descriptor).st_size
    if size == FILE_SIZE:
        return
    # Its creator may have been killed.
    if size > FILE_SIZE or os.pread(descriptor, size, 0).strip(b"\0"):
        msg = f"has {size} bytes and is no journal"
        raise UnusableJournalError(msg)
    zeros = bytes(SLOT_SIZE * 64)
    try:
        while size < FILE_SIZE:
            size += os.pwrite(descriptor, zeros[: FILE_SIZE - size], size)
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def _check_header(memory: mmap.mmap, scheduler: str) -> JournalOwner | None:
    """
    Return who had the file; None if it is new.

    Raises:
        UnusableJournalError: it is not a journal of this scheduler.
    """
    magic = memory[: len(_MAGIC)]
    if magic != _MAGIC:
        if magic.strip(b"\0") or memory[SLOT_SIZE:].strip(b"\0"):
            msg = "is no journal"
            raise UnusableJournalError(msg)
        return None
    geometry = _HEADER_GEOMETRY_STRUCT.unpack_from(memory, _GEOMETRY_OFFSET)
    if geometry != (_FORMAT_VERSION, SLOT_SIZE, MAX_JOURNALED_RUNS):
        msg = f"is a journal of another version, {geometry[0]}"
        raise UnusableJournalError(msg)
    (length,) = _HEADER_NAME_LENGTH_STRUCT.unpack_from(memory, _NAME_OFFSET)
    start = _NAME_OFFSET + _HEADER_NAME_LENGTH_STRUCT.size
    if memory[start : start + length] != scheduler.encode():
        msg = "is the journal of another scheduler"
        raise UnusableJournalError(msg)
    pid, taken_at, boot_id = _HEADER_OWNER_STRUCT.unpack_from(memory, _OWNER_OFFSET)
    return JournalOwner(pid, taken_at, boot_id.rstrip(b"\0").decode("ascii", "replace"))
