"""
The books: one small account per job, plain numbers under one lock.

Adapters post to it, everything else reads it. The law: every due run ends in exactly one
outcome, and at any moment ``due = sum(outcomes) + running + queued``.
"""

from __future__ import annotations

import heapq
import itertools
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import Enum, auto
from typing import Any

from apscheduler_telemetry._labels import MAX_LABELS, OVERFLOW
from apscheduler_telemetry._pipeline import renew_lock_after_fork
from apscheduler_telemetry._record import Clock, ErrorKind, JobInfo, Outcome, RunError

DURATION_BUCKETS = (
    *(0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0),
)
"""
Seconds. Jobs are not requests: from a cache refresh of some milliseconds to a nightly batch of
two hours. Dense between 0.1 s and 10 min, where most jobs are and where a slowdown is to be seen;
the round minutes are what people write into their intervals.
"""
DELAY_BUCKETS = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""
Seconds. A healthy loop starts a job within 10 ms; 1 s is APScheduler's default
``misfire_grace_time``, beyond which a run is dropped; whoever allows more thinks in minutes.
"""
REMOVED_FOR = 900.0
"""Seconds for which a removed job stays visible, so that every scrape sees its last numbers."""
MAX_EXCEPTIONS = 20
"""Type names of exceptions per job; the rest share `OTHER_EXCEPTIONS`."""
OTHER_EXCEPTIONS = "__other__"


class Removal(Enum):
    """Why a job went away."""

    WITHDRAWN = auto()
    """By the user: what it promised is taken back."""
    FINISHED = auto()
    """Nothing is left to promise: its schedule came to its end, or what is left is overdue."""
    BROKEN = auto()
    """By APScheduler on an error: what it promised stays promised, and is not kept."""


class State(Enum):
    """Where a run is."""

    QUEUED = auto()
    RUNNING = auto()
    DONE = auto()


class Run:
    """One due run on its way through an executor; see `apscheduler_telemetry._record.RunView`."""

    __slots__ = (
        "account",
        "arguments",
        "due",
        "duration",
        "ended",
        "executor",
        "exemplar",
        "job",
        "link",
        "result",
        "scheduled",
        "scheduler",
        "span",
        "started",
        "state",
    )

    def __init__(self, account: Account, entry: Entry, scheduler: str, scheduled: datetime) -> None:
        self.account = account
        self.executor: ExecutorAccount | None = None
        self.job = entry.info
        self.link = entry.link
        self.scheduler = scheduler
        self.scheduled = scheduled
        self.due = scheduled.timestamp()
        self.started: float | None = None
        self.ended: float | None = None
        self.duration: float | None = None
        self.state = State.QUEUED
        self.arguments: str | None = None
        self.result: str | None = None
        self.span: Any = None
        self.exemplar: Mapping[str, str] | None = None

    @property
    def label(self) -> str:
        return self.account.label

    @property
    def start_delay(self) -> float | None:
        # Never negative, whatever the wall clock did in between.
        return None if self.started is None else max(0.0, self.started - self.due)


class Promises:
    """The promised runs of the jobs that share an account; the earliest is had in O(log n)."""

    __slots__ = ("_heap", "_of")

    def __init__(self) -> None:
        self._of: dict[Hashable, float] = {}
        self._heap: list[tuple[float, int, Hashable]] = []

    def __len__(self) -> int:
        return len(self._of)

    def set(self, job: Hashable, at: float | None) -> None:
        """Let `job` promise a run at `at` (Unix seconds), or none."""
        if at is None:
            self._of.pop(job, None)
        elif self._of.get(job) != at:
            self._of[job] = at
            heapq.heappush(self._heap, (at, next(_tie), job))
        if len(self._heap) > 2 * len(self._of) + 8:
            # What was replaced is only dropped when it surfaces, so it must not pile up below.
            self._heap = [(at, next(_tie), job) for job, at in self._of.items()]
            heapq.heapify(self._heap)

    def earliest(self) -> float:
        """Return the earliest promise in Unix seconds, 0 when nothing is promised."""
        heap = self._heap
        while heap and self._of.get(heap[0][2]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else 0.0


class Histogram:
    """Counts per bucket (not cumulative), their sum, and the latest exemplar of each bucket."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(
        self, value: float, exemplar: Mapping[str, str] | None = None, at: float = 0
    ) -> None:
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if exemplar is not None:
            self.exemplars[bucket] = Exemplar(exemplar, value, at)

    def copy(self) -> Histogram:
        twin = Histogram(self.bounds)
        twin.counts = self.counts.copy()
        twin.sum = self.sum
        twin.exemplars = self.exemplars.copy()
        return twin


@dataclass(frozen=True)
class Exemplar:
    """One observation with the labels of the trace that it belongs to."""

    labels: Mapping[str, str]
    value: float
    timestamp: float


@dataclass(eq=False)
class Account:
    """
    The numbers of one ``job_id`` label. Timestamps are Unix seconds, None before the first.
    """

    label: str
    info: JobInfo
    durations: Histogram
    delays: Histogram
    due: int = 0
    queued: int = 0
    running: int = 0
    outcomes: dict[Outcome, int] = field(default_factory=lambda: dict.fromkeys(Outcome, 0))
    exceptions: dict[str, int] = field(default_factory=dict)
    consecutive_failures: int = 0
    last_outcome: Outcome | None = None
    last_run: float | None = None
    last_success: float | None = None
    last_failure: float | None = None
    last_duration: float | None = None
    withdrawn: float | None = None
    intervals: tuple[float, float] | None = None
    next_run: float = 0.0
    running_since: float = 0.0
    # What the numbers above are kept from; snapshots do not have it.
    promises: Promises = field(default_factory=Promises)
    starts: dict[Run, float] = field(default_factory=dict)
    jobs: int = 0
    removed_at: float | None = None

    def snapshot(self) -> Account:
        """Return a copy that nobody writes to."""
        return Account(
            label=self.label,
            info=self.info,
            durations=self.durations.copy(),
            delays=self.delays.copy(),
            due=self.due,
            queued=self.queued,
            running=self.running,
            outcomes=self.outcomes.copy(),
            exceptions=self.exceptions.copy(),
            consecutive_failures=self.consecutive_failures,
            last_outcome=self.last_outcome,
            last_run=self.last_run,
            last_success=self.last_success,
            last_failure=self.last_failure,
            last_duration=self.last_duration,
            withdrawn=self.withdrawn,
            intervals=self.intervals,
            next_run=self.promises.earliest(),
            running_since=min(self.starts.values(), default=0.0),
        )

    def balance(self) -> int:
        """Return what the law leaves over: 0."""
        return self.due - sum(self.outcomes.values()) - self.running - self.queued


@dataclass(eq=False)
class Entry:
    """
    One job as the ledger knows it, several of which may share an account.

    Attributes:
        key: job store alias and job id.
        promise: the next run in Unix seconds, None when nothing is promised.
        link: the span context in which the job was added, where known.
        trigger: what the account's intervals were taken from.
        intervals_until: up to which next run, in Unix seconds, those intervals hold.
        coalesce: whether runs that are late are folded into one.
        inherited: whether another process, this one's predecessor maybe, stored the job, and this
            one has not touched it yet.
        accounted: the latest fire time that was handed to an executor or refused by it, in Unix
            seconds, None before the first.
    """

    key: tuple[str, str]
    account: Account
    info: JobInfo
    promise: float | None = None
    link: Any = None
    trigger: Any = None
    intervals_until: float = math.inf
    coalesce: bool = False
    inherited: bool = False
    accounted: float | None = None


@dataclass(eq=False)
class StoreAccount:
    """
    What is known of one job store.

    Attributes:
        jobs: how many jobs are known.
        exact: whether nobody but this process can change them, so that they are always known.
        last_read: when it was last read without a failure, in Unix seconds, None before that.
        failures: how often it could not be read.
    """

    jobs: int = 0
    exact: bool = False
    last_read: float | None = None
    failures: int = 0


@dataclass(eq=False)
class ExecutorAccount:
    """Load of one executor: `workers` is its capacity, infinite where it has none."""

    workers: Callable[[], float]
    running: int = 0
    queued: int = 0


class Ledger:
    """
    All accounts of one scheduler.

    Args:
        scheduler: the value of the ``scheduler`` label.
        duration_buckets: upper bounds in seconds, ascending, without +Inf.
        delay_buckets: likewise.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        scheduler: str,
        *,
        duration_buckets: Sequence[float] = DURATION_BUCKETS,
        delay_buckets: Sequence[float] = DELAY_BUCKETS,
        max_labels: int = MAX_LABELS,
        clock: Clock = time.time,
    ) -> None:
        self.scheduler = scheduler
        self._duration_buckets = tuple(duration_buckets)
        self._delay_buckets = tuple(delay_buckets)
        self._max_labels = max_labels
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[str, Account] = {}
        self._entries: dict[tuple[str, str], Entry] = {}
        self._stores: dict[str, StoreAccount] = {}
        self._executors: dict[str, ExecutorAccount] = {}
        self._errors = dict.fromkeys(ErrorKind, 0)
        self._broken: dict[tuple[str, str], tuple[Account, float]] = {}
        renew_lock_after_fork(self)

    # Jobs

    def entry(self, jobstore: str, job_id: str) -> Entry | None:
        """Return what is known of a job, or None."""
        return self._entries.get((jobstore, job_id))

    def entries(self, jobstore: str) -> list[Entry]:
        """Return all known jobs of a job store."""
        with self._lock:
            return [e for e in self._entries.values() if e.key[0] == jobstore]

    def know(
        self,
        info: JobInfo,
        promise: float | None,
        link: Any = None,
        *,
        inherited: bool = False,
    ) -> Entry:
        """
        Take a job into the books, or take note of what it is now.

        Args:
            info: the job.
            promise: its next run in Unix seconds, or None.
            link: the span context in which it was added or changed, where known.
            inherited: see `Entry`; of a job that is in the books it is known already.
        """
        key = (info.jobstore, info.id)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None and entry.info.label != info.label:
                self._leave_account(entry)
                entry = None
            if entry is None:
                account = self._account(info)
                entry = self._entries[key] = Entry(key, account, info, inherited=inherited)
                self._stores.setdefault(info.jobstore, StoreAccount()).jobs += 1
                account.jobs += 1
                account.removed_at = None
            entry.info = info
            if entry.account.jobs == 1 and entry.account.label == info.label:
                entry.account.info = info
            self._broken.pop(key, None)
            entry.link = link or entry.link
            self._promise(entry, promise)
            return entry

    def promise(self, entry: Entry, at: float | None, *, on_purpose: bool) -> None:
        """
        Let a job promise its next run at `at` (Unix seconds), or none.

        Args:
            entry: the job.
            at: when, or None.
            on_purpose: the user changed it, so the promise before this one is taken back; not
                so when the scheduler goes on from one run to the next.
        """
        with self._lock:
            if on_purpose and entry.promise is not None and entry.promise != at:
                self._withdraw(entry)
            self._promise(entry, at)

    def remove(self, entry: Entry, removal: Removal) -> None:
        """Take a job out of the books; its account stays for `REMOVED_FOR` seconds."""
        with self._lock:
            if self._entries.get(entry.key) is not entry:
                return
            if removal is Removal.WITHDRAWN and entry.promise is not None:
                self._withdraw(entry)
            self._leave_account(entry, keep_promise=removal is Removal.BROKEN)

    def set_intervals(self, entry: Entry, intervals: tuple[float, float] | None) -> None:
        """Note the shortest and the longest gap in seconds between coming runs."""
        with self._lock:
            entry.account.intervals = intervals

    # Runs

    def hand_over(
        self, entry: Entry, executor: ExecutorAccount | None, scheduled: Iterable[datetime]
    ) -> list[Run]:
        """Post due runs that are being handed to an executor; they are queued until they start."""
        account = entry.account
        runs = [Run(account, entry, self.scheduler, at) for at in scheduled]
        with self._lock:
            account.due += len(runs)
            account.queued += len(runs)
            if executor is not None:
                executor.queued += len(runs)
                for run in runs:
                    run.executor = executor
        return runs

    def start(self, run: Run, at: float, *, certain: bool = True) -> None:
        """
        Post the start of a queued run.

        Args:
            run: the run.
            at: Unix seconds.
            certain: measured around the callable. False: inferred from the order of a process
                pool's queue; the true start comes with the result.
        """
        with self._lock:
            self._start(run, at, certain=certain)

    def finish(
        self,
        run: Run,
        outcome: Outcome,
        *,
        duration: float,
        started: float | None = None,
        error: RunError | None = None,
    ) -> bool:
        """
        Post the end of a run whose callable ran.

        Args:
            run: the run.
            outcome: success or error.
            duration: seconds inside the callable.
            started: Unix seconds, where the start was measured elsewhere.
            error: what it raised.

        Returns:
            Whether this call ended the run; False when it had ended before.
        """
        with self._lock:
            if run.state is State.DONE:
                return False
            if started is not None:
                self._start(run, started, certain=True)
            # From the start and a monotonic duration: the wall clock may have jumped meanwhile.
            run.ended = ended = (self._clock() if run.started is None else run.started) + duration
            account = run.account
            account.last_duration = run.duration = duration
            account.durations.observe(duration, run.exemplar, ended)
            self._end(run, outcome, ended, error)
            return True

    def settle(self, run: Run, outcome: Outcome, error: RunError | None = None) -> bool:
        """
        Post the end of a run of which no more is known than how it ended.

        Returns:
            Whether this call ended the run; False when it had ended before.
        """
        with self._lock:
            if run.state is State.DONE:
                return False
            if outcome is Outcome.MISSED:
                run.started = None
            self._end(run, outcome, self._clock(), error)
            return True

    def never_ran(self, entry: Entry, outcome: Outcome, count: int) -> None:
        """Post `count` due runs that were not even handed to an executor."""
        with self._lock:
            entry.account.due += count
            self._count_outcome(entry.account, outcome, self._clock(), None, count)

    # Executors and errors

    def executor(self, alias: str, workers: Callable[[], float]) -> ExecutorAccount:
        """Open the account of an executor."""
        account = ExecutorAccount(workers)
        with self._lock:
            self._executors[alias] = account
        return account

    def remove_executor(self, alias: str) -> None:
        """Close the account of an executor."""
        with self._lock:
            self._executors.pop(alias, None)

    def error(self, kind: ErrorKind) -> None:
        """Count something that APScheduler only logs."""
        with self._lock:
            self._errors[kind] += 1

    # Reading

    def accounts(self) -> Iterator[Account]:
        """
        Yield a snapshot of each account.

        The lock is held for one account at a time, so that no run waits for a whole scrape.
        """
        with self._lock:
            self._purge()
            accounts = list(self._accounts.values())
        for account in accounts:
            with self._lock:
                snapshot = account.snapshot()
            yield snapshot

    def executors(self) -> Mapping[str, tuple[float, int, int]]:
        """Return workers, running and queued runs by executor alias."""
        with self._lock:
            accounts = {alias: (a, a.running, a.queued) for alias, a in self._executors.items()}
        return {
            alias: (account.workers(), running, queued)
            for alias, (account, running, queued) in accounts.items()
        }

    def errors(self) -> Mapping[ErrorKind, int]:
        """Return what APScheduler only logged, by kind."""
        with self._lock:
            return dict(self._errors)

    def stores(self) -> Mapping[str, StoreAccount]:
        """Return what is known of each job store by alias."""
        with self._lock:
            stores = {alias: replace(store) for alias, store in self._stores.items()}
        for store in stores.values():
            if store.exact:
                store.last_read = self._clock()
        return stores

    def open_store(self, alias: str, *, exact: bool) -> None:
        """Let a job store be counted, with no jobs so far; see `StoreAccount`."""
        with self._lock:
            self._stores.setdefault(alias, StoreAccount()).exact = exact

    def store_read(self, alias: str, at: float | None) -> None:
        """Note that a job store was read as it was `at` (Unix seconds), or None: could not be."""
        with self._lock:
            store = self._stores.get(alias)
            if store is None:
                return  # removed meanwhile
            if at is None:
                store.failures += 1
            else:
                store.last_read = at

    def close_store(self, alias: str) -> None:
        """Forget a job store that was removed from the scheduler, and its jobs."""
        for entry in self.entries(alias):
            self.remove(entry, Removal.WITHDRAWN)
        with self._lock:
            self._stores.pop(alias, None)

    # Under the lock

    def _account(self, info: JobInfo) -> Account:
        account = self._accounts.get(info.label)
        if account is None and self._is_full():
            self._purge()
            if self._is_full():
                account = self._accounts.get(OVERFLOW)
                info = _overflowing(info)
        if account is None:
            account = self._accounts[info.label] = Account(
                label=info.label,
                info=info,
                durations=Histogram(self._duration_buckets),
                delays=Histogram(self._delay_buckets),
            )
        return account

    def _is_full(self) -> bool:
        return len(self._accounts) - (OVERFLOW in self._accounts) >= self._max_labels

    def _leave_account(self, entry: Entry, *, keep_promise: bool = False) -> None:
        account = entry.account
        del self._entries[entry.key]
        self._stores[entry.key[0]].jobs -= 1
        if keep_promise:
            self._broken[entry.key] = account, self._clock()
        else:
            account.promises.set(entry.key, None)
        account.jobs -= 1
        if not account.jobs:
            account.removed_at = self._clock()

    def _promise(self, entry: Entry, at: float | None) -> None:
        entry.promise = at
        account = entry.account
        account.promises.set(entry.key, at)
        if at is not None and at == account.withdrawn:
            account.withdrawn = None  # it is promised again, so nothing was taken back

    @staticmethod
    def _withdraw(entry: Entry) -> None:
        if entry.promise is not None:
            entry.account.withdrawn = max(entry.account.withdrawn or 0.0, entry.promise)

    @staticmethod
    def _start(run: Run, at: float, *, certain: bool) -> None:
        account = run.account
        if run.state is State.QUEUED:
            run.state = State.RUNNING
            account.queued -= 1
            account.running += 1
            if run.executor is not None:
                run.executor.queued -= 1
                run.executor.running += 1
            if account.last_run is None or run.due > account.last_run:
                account.last_run = run.due
        elif run.state is State.DONE:
            return
        run.started = at
        account.starts[run] = at
        if certain:
            account.delays.observe(max(0.0, at - run.due))

    def _end(self, run: Run, outcome: Outcome, at: float, error: RunError | None) -> None:
        account, executor = run.account, run.executor
        if run.state is State.RUNNING:
            account.running -= 1
            del account.starts[run]
            if executor is not None:
                executor.running -= 1
        else:
            account.queued -= 1
            if executor is not None:
                executor.queued -= 1
        run.state = State.DONE
        self._count_outcome(account, outcome, at, error)

    @staticmethod
    def _count_outcome(
        account: Account, outcome: Outcome, at: float, error: RunError | None, count: int = 1
    ) -> None:
        account.outcomes[outcome] += count
        account.last_outcome = outcome
        if outcome is Outcome.SUCCESS:
            account.last_success = at
            account.consecutive_failures = 0
        elif outcome in _FAILURES:
            account.last_failure = at
            account.consecutive_failures += count
        if outcome is Outcome.ERROR and error is not None:
            kinds = account.exceptions
            known = error.type in kinds or len(kinds) < MAX_EXCEPTIONS
            kind = error.type if known else OTHER_EXCEPTIONS
            kinds[kind] = kinds.get(kind, 0) + 1

    def _purge(self) -> None:
        deadline = self._clock() - REMOVED_FOR
        gone = [
            label
            for label, account in self._accounts.items()
            if account.removed_at is not None
            and account.removed_at <= deadline
            and not account.running
            and not account.queued
        ]
        for label in gone:
            del self._accounts[label]
        for key, (account, since) in list(self._broken.items()):
            if since <= deadline:
                account.promises.set(key, None)
                del self._broken[key]


def _overflowing(info: JobInfo) -> JobInfo:
    return JobInfo(
        id=OVERFLOW,
        label=OVERFLOW,
        name=OVERFLOW,
        func=OVERFLOW,
        trigger="",
        executor=info.executor,
        jobstore=info.jobstore,
        persistent=info.persistent,
        grace=info.grace,
    )


_FAILURES = frozenset({Outcome.ERROR, Outcome.LOST})
_tie = itertools.count()  # orders promises of the same moment, as jobs' keys need not compare
