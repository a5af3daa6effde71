"""
The file of a journal: the runs in flight of one scheduler in one process.

The file has a fixed size. Its header and each of its slots take `SLOT_SIZE` bytes::

    header: magic, version, size and number of slots, name of the scheduler;
            process id, boot id and start of the process that has the file now
    slot:   state, process id, due time, start time, trace id, span id, label, job id, executor

The file is mapped into memory, so to write is to change memory, without a system call. What is
changed stays in the kernel's page cache if the process is killed; only a crash of the machine may
lose the latest changes. A run counts by the state of its slot, which is one byte: it is written
after everything else of the run, and it is all that is written when the run ends. So the file is
valid whenever the process is killed.

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
SLOTS = range(SLOT_SIZE, FILE_SIZE, SLOT_SIZE)
"""All slots; a slot is identified by where it begins in the file."""

_MAGIC = b"APSchRun"
_VERSION = 1
_HEADER_GEOMETRY = struct.Struct("<HHI")  # version, size of a slot, number of slots
_HEADER_OWNER = struct.Struct("<Id36s")  # process id, start in Unix seconds, boot id
_LENGTH = struct.Struct("<H")
_GEOMETRY_AT = len(_MAGIC)
_OWNER_AT = _GEOMETRY_AT + _HEADER_GEOMETRY.size
_NAME_AT = _OWNER_AT + _HEADER_OWNER.size

_FREE, _IN_FLIGHT = 0, 1
_RUN = struct.Struct("<Idd16s8s")  # process id, due, start, trace id, span id
_PID_AND_DUE = struct.Struct("<Id")
_START = struct.Struct("<d")
_TEXT_LENGTHS = struct.Struct("<HHH")  # label, job id, executor
# Offsets in a slot; each number is aligned, and so is written in one step.
_RUN_AT = 4
_START_AT = 16
_TRACE_ID_AT = 24
_SPAN_ID_AT = 40
_TEXT_LENGTHS_AT = 48
_TEXTS_AT = _TEXT_LENGTHS_AT + _TEXT_LENGTHS.size
_MAX_LABEL_BYTES, _MAX_JOB_ID_BYTES, _MAX_EXECUTOR_BYTES = 600, 200, 160
_HASH_LENGTH = 8

_BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")


class DamagedJournalError(Exception):
    """Raised for a file that is not a journal of the scheduler; it must not be changed."""


class JournalOwner(NamedTuple):
    """
    The process that has, or had, a journal.

    Attributes:
        pid: its process id.
        started_at: Unix seconds of when it took the file.
        boot_id: identifies the start of the machine; empty if that is not known.
    """

    pid: int
    started_at: float
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
        former_owner: the process that had it before; None if it is new.
        damaged_runs: how many runs `read_entries` has removed, because it could not read them.
    """

    def __init__(self, path: Path, memory: mmap.mmap, former_owner: JournalOwner | None) -> None:
        self.path = path
        self.former_owner = former_owner
        self.damaged_runs = 0
        self._memory = memory
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
            DamagedJournalError: it is not a journal of this scheduler.
            UnusableFileError: others control it.
            OSError: it cannot be created, or opened.
        """
        descriptor = files.open_private(path, os.O_RDWR)
        try:
            if not try_lock(descriptor):
                return None
            _fill_if_unfinished(path, descriptor)
            memory = mmap.mmap(descriptor, FILE_SIZE)
        finally:
            # The map has a duplicate of the descriptor, which keeps the lock.
            os.close(descriptor)
        try:
            return cls(path, memory, _check_header(memory, scheduler))
        except BaseException:
            memory.close()
            raise

    def set_owner(self, started_at: float, scheduler: str) -> None:
        """
        Write into the header that this process has the file, and finish it if it is new.

        Args:
            started_at: Unix seconds.
            scheduler: the name of the scheduler.
        """
        memory = self._memory
        name = scheduler.encode()
        owner = _HEADER_OWNER.pack(self._pid, started_at, read_boot_id().encode())
        header = (
            _HEADER_GEOMETRY.pack(_VERSION, SLOT_SIZE, MAX_JOURNALED_RUNS)
            + owner
            + _LENGTH.pack(len(name))
            + name
        )
        memory[_GEOMETRY_AT : _GEOMETRY_AT + len(header)] = header
        memory[: len(_MAGIC)] = _MAGIC

    def read_entries(self) -> Iterator[JournalEntry]:
        """
        Yield the runs in the file.

        Slots whose content is damaged, as after a crash of the machine, are freed.
        """
        for slot in SLOTS:
            if self._memory[slot] != _FREE:
                try:
                    entry = self._read_entry(slot)
                except (ValueError, struct.error):
                    self.free(slot)
                    self.damaged_runs += 1
                else:
                    yield entry

    def write_run(self, slot: int, due_at: float, rest: bytes) -> None:
        """
        Write a run that is being submitted into a free slot.

        Args:
            slot: the slot.
            due_at: when it is due, in Unix seconds.
            rest: what `encode_unstarted_run` has returned for its job.
        """
        run = _PID_AND_DUE.pack(self._pid, due_at) + rest
        start = slot + _RUN_AT
        self._memory[start : start + len(run)] = run
        self._memory[slot] = _IN_FLIGHT

    def write_start(self, slot: int, started_at: float) -> None:
        """Write when the run in a slot started, in Unix seconds."""
        self._memory[slot + _START_AT : slot + _TRACE_ID_AT] = _START.pack(started_at)

    def write_span(self, slot: int, trace_id: int, span_id: int) -> None:
        """Write the ids of the span of the run in a slot."""
        memory = self._memory
        # In this order: without a span id, there is no span.
        memory[slot + _TRACE_ID_AT : slot + _SPAN_ID_AT] = trace_id.to_bytes(16, "big")
        memory[slot + _SPAN_ID_AT : slot + _TEXT_LENGTHS_AT] = span_id.to_bytes(8, "big")

    def free(self, slot: int) -> None:
        """Remove the run in a slot."""
        self._memory[slot] = _FREE

    def close(self) -> None:
        """Let other processes have the file; in a forked child, the parent keeps it."""
        self._memory.close()

    def _read_entry(self, slot: int) -> JournalEntry:
        memory = self._memory
        pid, due_at, started_at, trace_id, span_id = _RUN.unpack_from(memory, slot + _RUN_AT)
        if not (math.isfinite(due_at) and math.isfinite(started_at)):
            msg = "no time"
            raise ValueError(msg)
        texts = []
        end = slot + _TEXTS_AT
        for length in _TEXT_LENGTHS.unpack_from(memory, slot + _TEXT_LENGTHS_AT):
            start, end = end, end + length
            if end > slot + SLOT_SIZE:
                msg = "no text"
                raise ValueError(msg)
            texts.append(memory[start:end].decode())
        label, job_id, executor = texts
        return JournalEntry(
            slot=slot,
            pid=pid,
            job_id=job_id,
            label=label,
            executor=executor,
            due_at=due_at,
            started_at=started_at or None,
            span=JournalSpan(int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"))
            if any(trace_id) and any(span_id)
            else None,
        )


def encode_unstarted_run(label: str, job_id: str, executor: str) -> bytes:
    """
    Return the part of a slot that is the same for all runs of a job that have not started.

    Texts that are too long are cut.
    """
    encoded = (
        _encode(label, _MAX_LABEL_BYTES),
        _encode(job_id, _MAX_JOB_ID_BYTES),
        _encode(executor, _MAX_EXECUTOR_BYTES),
    )
    lengths = _TEXT_LENGTHS.pack(*map(len, encoded))
    return bytes(_TEXT_LENGTHS_AT - _START_AT) + lengths + b"".join(encoded)


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


def _fill_if_unfinished(path: Path, descriptor: int) -> None:
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
        raise DamagedJournalError(msg)
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
        DamagedJournalError: it is not a journal of this scheduler.
    """
    magic = memory[: len(_MAGIC)]
    if magic != _MAGIC:
        if magic.strip(b"\0") or memory[SLOT_SIZE:].strip(b"\0"):
            msg = "is no journal"
            raise DamagedJournalError(msg)
        return None
    geometry = _HEADER_GEOMETRY.unpack_from(memory, _GEOMETRY_AT)
    if geometry != (_VERSION, SLOT_SIZE, MAX_JOURNALED_RUNS):
        msg = f"is a journal of another version, {geometry[0]}"
        raise DamagedJournalError(msg)
    (length,) = _LENGTH.unpack_from(memory, _NAME_AT)
    start = _NAME_AT + _LENGTH.size
    if memory[start : start + length] != scheduler.encode():
        msg = "is the journal of another scheduler"
        raise DamagedJournalError(msg)
    pid, started_at, boot_id = _HEADER_OWNER.unpack_from(memory, _OWNER_AT)
    return JournalOwner(pid, started_at, boot_id.rstrip(b"\0").decode("ascii", "replace"))
