"""
Shows schedulers where several processes answer in turn: Prometheus' multiprocess mode.

Where ``PROMETHEUS_MULTIPROC_DIR`` is set, each process keeps its metrics in files of that
directory, and whoever answers a scrape adds up the files of all (`prometheus_client.multiprocess`).
That mode knows no collectors. So the process that runs a scheduler mirrors its books, once a second
and whenever the scheduler is started or stopped, into files of that format; and who reads these,
by a ``MultiProcessCollector`` or by the apps of the handle, finds ours like any others.

The metric classes of `prometheus_client` would not do. Their files only grow: a job that was
removed would be shown for ever, and every process that ever was would be read by every scrape.
Here a process takes a *slot*, the first that is free:

- Its files are written as a whole, and replaced in one step. What is no longer known is gone.
- A lock, which ends with the process however it ends, tells whether the slot is taken. The gauges
  of a slot that is not are nobody's, and whoever comes along removes them.
- Its counters stay, and who takes the slot next goes on from there: nothing that was counted is
  lost, and there are never more files than there were processes at one time.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from prometheus_client import CollectorRegistry, multiprocess
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.utils import floatToGoString

from apscheduler_telemetry.core.recorder import REMOVED_FOR, Histogram
from apscheduler_telemetry.errors import ArgumentValueError
from apscheduler_telemetry.export import metric_families as _series
from apscheduler_telemetry.export.metric_families import Family, Kind, Source

with contextlib.suppress(ImportError):  # on Windows
    import fcntl

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

INTERVAL = 1.0
"""Seconds between two looks at the books; a scrape comes every 15, so that it sees the present."""

SHARE = 0.05
"""Of one CPU, at most, for that: with very many jobs, the looks become fewer."""

STALE = 30.0
"""Seconds after which gauges are removed that nobody wrote: their process hangs, or was stopped."""

PRUNE_EVERY = 60.0
"""Seconds between two looks at the counters that other processes have left."""

_ROOM = 28
"""Bytes that a key's length, its padding (at most 8), its value and its weight take in a file."""

_FAR = 1e12
"""Unix seconds, and in them further away than any run: datetimes end in the year 9999."""

_NONE: Mapping[str, float] = {}

MODES: Mapping[Family, str] = {
    # The promise that is kept first; "nothing" only if no process promises anything.
    _series.NEXT_RUN: "livemostrecent",
    _series.RUNNING_SINCE: "livemostrecent",
    # Of the run that ended last.
    _series.LAST_DURATION: "livemostrecent",
    # The latest is the latest of all.
    _series.LAST_RUN: "livemax",
    _series.LAST_SUCCESS: "livemax",
    _series.LAST_FAILURE: "livemax",
    _series.WITHDRAWN: "livemax",
    # The worst: a dead loop must not hide behind one that lives.
    _series.CONSECUTIVE_FAILURES: "livemax",
    _series.UP: "livemin",
    _series.LAST_WAKEUP: "livemin",
    _series.LAST_READ: "livemin",
    # The same in all processes, or else what alarms last: so do the rules with several instances.
    _series.GRACE: "livemax",
    _series.MAX_DURATION: "livemax",
    _series.SHORTEST: "livemin",
    _series.LONGEST: "livemax",
    _series.JOBS: "livemax",
    # Labels that say all; a series for each set of them.
    _series.ALERT_INFO: "livemax",
    _series.JOB_INFO: "livemax",
    # It has the label `pid`, which all other modes take away: one series for each process.
    _series.SCHEDULER_INFO: "liveall",
    # In how many processes: more than one that is running runs every job more than once.
    _series.STATE: "livesum",
    # Since when the counters count.
    _series.STARTED_AT: "livemin",
    # Load and room add up.
    _series.RUNNING: "livesum",
    _series.WORKERS: "livesum",
    _series.EXECUTOR_RUNNING: "livesum",
    _series.EXECUTOR_QUEUED: "livesum",
}
"""
How the gauges of several processes become one. All are ``live``: what a dead process believed is of
no use, and its promises are what Prometheus remembers.

Of ``mostrecent``, the file has a timestamp beside each value, and the greatest wins. It is never
shown, so that it can say how much a value weighs; see `_weight`.
"""


def configured() -> Path | None:
    """
    Return the directory of multiprocess mode, None where that is off.

    Raises:
        ArgumentValueError: it cannot be used.
    """
    value = os.environ.get(VARIABLE, os.environ.get(VARIABLE.lower()))
    if value is None:
        return None
    why = None
    if os.name == "nt":
        why = "Windows has no flock()"
    elif not value or not Path(value).is_dir():
        why = "there is no such directory"
    else:
        try:
            with tempfile.TemporaryFile(dir=value) as probe:
                _try_lock(probe)
        except OSError as error:
            why = error.strerror or str(error)
    if why is None:
        return Path(value)
    msg = (
        f"{VARIABLE} is {value!r}, where no metrics can be kept: {why}. Set it to a directory of a "
        "local file system that this process may write to, and that is empty when the application "
        "starts; or unset it, if one process serves all metrics"
    )
    raise ArgumentValueError(msg)


def mark_process_dead(pid: int, path: str | None = None) -> None:
    """
    Take the gauges of a dead process away at once, and not when the next process looks around.

    What ``prometheus_client.multiprocess.mark_process_dead`` does, it does, too.

    Args:
        pid: of the process.
        path: the directory, by default that of the environment.
    """
    path = path or os.environ.get(VARIABLE, os.environ.get(VARIABLE.lower()))
    if path:
        with contextlib.suppress(OSError):  # it would be the end of gunicorn
            multiprocess.mark_process_dead(pid, path)  # type: ignore[no-untyped-call]
            sweep(Path(path))


def child_exit(_server: Any, worker: Any) -> None:
    """
    Take the gauges of a worker of gunicorn away when it is dead.

    It is a hook: ``from apscheduler_telemetry.multiprocess import child_exit`` in
    ``gunicorn.conf.py`` is all that it needs.
    """
    mark_process_dead(worker.pid)


def sweep(directory: Path) -> None:
    """Remove gauges whose process is dead, or does not keep them up to date."""
    with _exclusive(directory) as mine:
        if not mine:
            return  # somebody else is about it
        for path in directory.glob("gauge_live*_apscheduler-*.db"):
            with contextlib.suppress(FileNotFoundError):
                stale = time.time() - path.stat().st_mtime > STALE
                if stale or not _is_taken(path.with_name(f"{_stem_of(path)}.lock")):
                    path.unlink()


@dataclass
class _Snapshot:
    """
    What the books of a scheduler say, by the keys under which files have it.

    Attributes:
        counted: counters and histograms.
        gauges: by their mode.
        weights: of gauges in the modes that go by weight.
        jobs: the labels of all jobs.
    """

    counted: dict[str, dict[str, float]]
    gauges: dict[str, dict[str, float]]
    weights: dict[str, float]
    jobs: set[str]


class Mirror:
    """
    Keeps the files of one scheduler in this process, from when the scheduler is started here.

    A forked child that has a copy of a scheduler which its parent runs has nothing to show.

    Args:
        source: the scheduler.
        directory: where the files are.

    Attributes:
        registry: the metrics of all processes.
    """

    def __init__(self, source: Source, directory: Path) -> None:
        self.registry = Aggregate(directory, self.write)
        self._source = source
        self._directory = directory
        self._lock = threading.RLock()  # a signal's handler may come in between
        self._ended = threading.Event()
        self._pid: int | None = None
        self._is_inherited = False
        self._slot: Slot | None = None
        self._taken_at = self._pruned_at = 0.0
        self._keys: dict[tuple[Family, tuple[str, ...]], list[str]] = {}
        self._jobs: set[str] = set()
        # What others counted before, and, below 0, what the books have that others show.
        self._offsets: dict[str, dict[str, float]] = {"counter": {}, "histogram": {}}
        _mirrors.add(self)
        sweep(directory)

    def start(self) -> None:
        """Show the scheduler, which is being started in this process, from now on."""
        with self._lock:
            if self._pid == os.getpid():
                return
            try:
                if self._is_inherited:
                    for kind, values in self._read().counted.items():
                        self._offsets[kind] = {key: -value for key, value in values.items()}
                self._pid = os.getpid()
                self._ended = threading.Event()
                # Not in this thread, as a file system may be slow; and weakly, as nothing here is
                # to keep a scheduler alive that its owner forgets.
                threading.Thread(
                    target=_keep_writing,
                    args=(weakref.ref(self), self._ended),
                    name="apscheduler-telemetry-multiprocess",
                    daemon=True,
                ).start()
            except Exception:  # noqa: BLE001  # the scheduler starts all the same
                self._source.guard.failed("multiprocess")

    def write(self) -> None:
        """Write what the books say now; what fails is counted, and tried again."""
        with self._lock:
            if self._pid != os.getpid():
                return
            try:
                self._write()
            except Exception:  # noqa: BLE001  # a full disk is no reason to end anything
                self._source.guard.failed("multiprocess")

    def leave(self) -> None:
        """Write for the last time, as this process ends, and remove the gauges."""
        self.write()
        with self._lock:
            if self._slot is not None and self._pid == os.getpid():
                self._slot.remove_gauges()

    def stop(self) -> None:
        """Show the scheduler no more. What was counted stays, as that of a dead process does."""
        self.leave()
        self._ended.set()
        with self._lock:
            self._pid = None
            if self._slot is not None:
                self._slot.close()
                self._slot = None

    def after_fork(self) -> None:
        """Let go of what is the parent's."""
        self._lock = threading.RLock()
        self._is_inherited = self._is_inherited or self._pid is not None
        self._pid = None
        if self._slot is not None:
            self._slot.close()
            self._slot = None

    def _write(self) -> None:
        slot = self._own_slot()
        if slot is None:
            return  # somebody else is taking one: the next time
        snapshot = self._read()
        self._forget_jobs(snapshot.jobs)
        for kind, values in snapshot.counted.items():
            for key, offset in self._offsets[kind].items():
                values[key] = values.get(key, 0.0) + offset
            slot.write(kind, values)
        if self._source.liveness().state == "stopped" and slot.others_show():
            slot.remove_gauges()  # the scheduler has moved to another process
        else:
            for mode, values in snapshot.gauges.items():
                weights = snapshot.weights if mode == "livemostrecent" else {}
                slot.write(f"gauge_{mode}_{os.getpid()}.db", values, weights)
        sweep(self._directory)
        if time.monotonic() - self._pruned_at > PRUNE_EVERY:
            self._pruned_at = time.monotonic()
            slot.prune_others(snapshot.jobs)

    def _own_slot(self) -> Slot | None:
        """Return the slot of this process, taken now if there is none."""
        if self._slot is not None and self._slot.is_lost():
            # Or it would be found, taken for somebody else's, and counted twice.
            self._slot.remove()
            self._slot = None
        if self._slot is None:
            self._slot = _take_slot(self._directory, self._source.name)
            if self._slot is not None:
                self._taken_at = time.monotonic()
                for kind, offsets in self._offsets.items():
                    for key, value in self._slot.read(kind).items():
                        offsets[key] = offsets.get(key, 0.0) + value
        return self._slot

    def _forget_jobs(self, jobs: set[str]) -> None:
        """
        Forget what others counted of jobs that are gone.

        With the books, which keep a job for a while after it was removed: else its counters would
        fall before they go. A job that was never in these books has as long from the beginning.
        """
        gone = self._jobs - jobs
        self._jobs = jobs
        for kind, offsets in self._offsets.items():
            if time.monotonic() - self._taken_at > REMOVED_FOR:
                self._offsets[kind] = _of_jobs(offsets, jobs)
            elif gone:
                self._offsets[kind] = {k: v for k, v in offsets.items() if _job_of(k) not in gone}

    def _read(self) -> _Snapshot:
        source, former, self._keys = self._source, self._keys, {}
        snapshot = _Snapshot(
            counted={"counter": {}, "histogram": {}},
            gauges={mode: {} for mode in MODES.values()},
            weights={},
            jobs=set(),
        )
        counters, histograms = snapshot.counted["counter"], snapshot.counted["histogram"]
        ends: dict[tuple[str, ...], float] = {}
        for family, labels, value in _series.read(source, "multiprocess"):
            keys = former.get((family, labels)) or _keys(family, labels, value)
            self._keys[family, labels] = keys
            if isinstance(value, Histogram):
                histograms.update(zip(keys, (*value.counts, value.sum), strict=True))
                snapshot.jobs.add(labels[1])
                continue
            (key,) = keys
            if family.kind is Kind.COUNTER:
                counters[key] = value
                continue
            mode, shown = MODES[family], value
            if mode == "livemostrecent":
                snapshot.weights[key] = _weight(family, value, ends.get(labels, 0.0))
            elif family in (_series.LAST_SUCCESS, _series.LAST_FAILURE):
                ends[labels] = max(value, ends.get(labels, 0.0))
            elif family is _series.STARTED_AT and self._slot is not None:
                shown = self._slot.since(value)
            snapshot.gauges[mode][key] = shown
        return snapshot


class Slot:
    """
    A place in the directory for the files of one scheduler in one process.

    Args:
        directory: where it is.
        stem: how its files are called.
        lock: descriptor of the file that is locked as long as the slot is taken. Its text is
            since when the counters of the slot count, in Unix seconds.
    """

    def __init__(self, directory: Path, stem: str, lock: int) -> None:
        self._directory = directory
        self._stem = stem
        self._lock = lock
        self._closing = weakref.finalize(self, os.close, lock)
        self._closing.atexit = False  # it is not over before the process is
        self._written: dict[str, tuple[dict[str, float], Mapping[str, float]]] = {}
        self._since = float(os.pread(lock, 100, 0) or "inf")
        self.remove_gauges()
        for path in directory.glob(f"*_{stem}.partial"):
            path.unlink(missing_ok=True)  # a former holder died in the middle of it

    def since(self, started: float) -> float:
        """Return since when the slot counts, if its scheduler was started at `started`."""
        if started < self._since:
            self._since = started
            os.pwrite(self._lock, f"{started!r:<40}".encode(), 0)  # at once, so never half of it
        return self._since

    def read(self, kind: str) -> dict[str, float]:
        """Return what was counted here."""
        path = self._path(kind)
        return _values_of(path) if path.exists() else {}

    def write(
        self, kind: str, values: dict[str, float], weights: Mapping[str, float] = _NONE
    ) -> None:
        """Let a file say nothing but these values, which have these weights."""
        path = self._path(kind)
        if self._written.get(kind) == (values, weights) and path.exists():
            os.utime(path)
        else:
            _replace(path, values, weights)
            self._written[kind] = values, weights

    def is_lost(self) -> bool:
        """Tell whether somebody has emptied the directory."""
        return os.fstat(self._lock).st_nlink == 0

    def others_show(self) -> bool:
        """Tell whether another process shows a scheduler of the same name."""
        family = self._stem.rpartition(".")[0]
        return any(
            _stem_of(path) != self._stem
            for path in self._directory.glob(f"gauge_livesum_*_{family}.*.db")
        )

    def prune_others(self, jobs: set[str]) -> None:
        """
        Remove counters of jobs that are no more from slots that nobody has taken again.

        Such slots are left by a reload of gunicorn, say, in which new processes start before the
        old ones end. Nothing is removed where yet another process may know more jobs.

        Args:
            jobs: the labels of those that this process knows.
        """
        with _exclusive(self._directory) as mine:
            locks = self._directory.glob(f"{self._stem.rpartition('.')[0]}.*.lock")
            others = [lock for lock in locks if lock.stem != self._stem]
            if not mine or any(_is_taken(lock) for lock in others):
                return
            for lock in others:
                for path in self._directory.glob(f"[ch]*_{lock.stem}.db"):
                    if time.time() - path.stat().st_mtime > REMOVED_FOR:
                        values = _values_of(path)
                        kept = _of_jobs(values, jobs)
                        if len(kept) < len(values):
                            _replace(path, kept)

    def remove_gauges(self) -> None:
        """Remove what is only true of a process that lives."""
        for path in self._directory.glob(f"gauge_*_{self._stem}.db"):
            path.unlink(missing_ok=True)
        self._written.clear()

    def remove(self) -> None:
        """Remove all files, and leave."""
        for path in self._directory.glob(f"*_{self._stem}.db"):
            path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Leave the slot to others; in a forked child, to the parent."""
        self._closing()

    def _path(self, kind: str) -> Path:
        # For the collector, the first word is the type, the second the mode, and the third, less
        # its last three letters, the process.
        return self._directory / f"{kind}_{self._stem}.db"


class Aggregate(CollectorRegistry):
    """
    The metrics of all processes, ours and others, as a registry.

    Args:
        directory: where they are kept.
        refresh: called before they are read, so that this process shows its present.
    """

    def __init__(self, directory: Path, refresh: Callable[[], None]) -> None:
        super().__init__()
        self._directory = directory
        self._refresh = refresh

    def collect(self) -> Iterable[Metric]:
        """Read the files of all processes that live, and what the dead ones have counted."""
        self._refresh()
        sweep(self._directory)
        return self._collector(None).collect()  # type: ignore[no-any-return, no-untyped-call]

    def restricted_registry(self, names: Iterable[str]) -> Any:
        """Return a registry of the series that have these names."""
        self._refresh()
        sweep(self._directory)
        registry = CollectorRegistry(auto_describe=True)
        self._collector(registry)
        return registry.restricted_registry(names)

    def _collector(self, registry: CollectorRegistry | None) -> multiprocess.MultiProcessCollector:
        return multiprocess.MultiProcessCollector(registry, str(self._directory))  # type: ignore[no-untyped-call]


def _take_slot(directory: Path, scheduler: str) -> Slot | None:
    """Take the first free slot of a scheduler; None if that has to wait for somebody else."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", scheduler)[:30]
    digest = hashlib.sha256(scheduler.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    with _exclusive(directory) as mine:
        for number in itertools.count():
            if not mine:
                break
            stem = f"apscheduler-{readable}-{digest}.{number}"
            try:
                lock = os.open(directory / f"{stem}.lock", os.O_RDWR | os.O_CREAT, 0o666)
            except PermissionError:
                continue  # somebody else's, as of root, before gunicorn has become another user
            if _try_lock(lock):
                return Slot(directory, stem, lock)
            os.close(lock)
    return None


@contextlib.contextmanager
def _exclusive(directory: Path) -> Iterator[bool]:
    """
    Be the only one that takes slots or removes files, if that can be had at once.

    Never waits: a process that was stopped by a debugger must not hold up all others.
    """
    # For reading, as that may be done with another user's.
    file = os.open(directory / "apscheduler.lock", os.O_RDONLY | os.O_CREAT, 0o666)
    try:
        mine = _try_lock(file)
        try:
            yield mine
        finally:
            if mine:  # not by closing it, as a child may have been forked meanwhile
                fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


def _is_taken(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            if not _try_lock(file):
                return True
            fcntl.flock(file, fcntl.LOCK_UN)
    except FileNotFoundError:
        pass
    return False


def _try_lock(file: IO[bytes] | int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keys(family: Family, labels: tuple[str, ...], value: float | Histogram) -> list[str]:
    """Return the keys of a series' samples; of a histogram, bucket by bucket, and of the sum."""
    name, about = family.prometheus_name, family.about
    names = list(family.labels)
    if not isinstance(value, Histogram):
        suffix = "_total" if family.kind is Kind.COUNTER else ""
        return [mmap_key(name, name + suffix, names, [*labels], about)]
    names_of_bucket = [*names, "le"]
    bounds = [floatToGoString(bound) for bound in (*value.bounds, math.inf)]  # type: ignore[no-untyped-call]
    buckets = [
        mmap_key(name, f"{name}_bucket", names_of_bucket, [*labels, le], about) for le in bounds
    ]
    return [*buckets, mmap_key(name, f"{name}_sum", names, [*labels], about)]


def _weight(family: Family, value: float, ended: float) -> float:
    """Return how much a value weighs against those of other processes; never 0, which is none."""
    if family is _series.LAST_DURATION:
        return ended or 1.0
    return _FAR - value if value else 1.0


def _replace(path: Path, values: Mapping[str, float], weights: Mapping[str, float] = _NONE) -> None:
    """Write a file beside the old one, and then rename it, so that readers meet a whole one."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as new:
        # All the room at once, where a full disk is an error: of memory that is mapped to a file
        # which has no room, the kernel makes a SIGBUS, and an end of the process.
        new.write(bytes(8 + sum(len(key.encode()) + _ROOM for key in values)))
    file = MmapedDict(str(partial))  # type: ignore[no-untyped-call]
    try:
        for key, value in values.items():
            file.write_value(key, value, weights.get(key, 0.0))  # type: ignore[no-untyped-call]
    finally:
        file.close()  # type: ignore[no-untyped-call]
    partial.replace(path)


def _values_of(path: Path) -> dict[str, float]:
    found = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
    return {key: value for key, value, *_ in found}


def _of_jobs(values: Mapping[str, float], jobs: set[str]) -> dict[str, float]:
    """Return what is of these jobs, or of none."""
    wanted = {None, *jobs}
    return {key: value for key, value in values.items() if _job_of(key) in wanted}


def _job_of(key: str) -> str | None:
    labels: dict[str, str] = json.loads(key)[2]
    return labels.get("job_id")


def _stem_of(path: Path) -> str:
    return path.stem.rpartition("_")[2]


def _keep_writing(reference: weakref.ref[Mirror], ended: threading.Event) -> None:
    pause = 0.0
    while not ended.wait(pause):
        mirror = reference()
        if mirror is None:
            return
        begin = time.thread_time()
        mirror.write()
        used = time.thread_time() - begin
        pause = min(max(INTERVAL, used / SHARE), STALE / 3)
        del mirror


def _at_exit() -> None:
    for mirror in list(_mirrors):
        mirror.leave()


def _after_fork() -> None:
    for mirror in list(_mirrors):
        mirror.after_fork()


_mirrors: weakref.WeakSet[Mirror] = weakref.WeakSet()
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
