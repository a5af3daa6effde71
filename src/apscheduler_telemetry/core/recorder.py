"""
The books: one small account per job, plain numbers under one lock.

Adapters post to it, everything else reads it. The law: every due run ends in exactly one
outcome, and at any moment ``due = sum(outcomes) + running + queued``.

A run costs little where it runs, and the rest where somebody reads. Until it ends it is in
`Ledger._open`, or in the lane of its executor: whoever takes it out has ended it, and nobody else.
What happens most, a success in a lane, needs no lock: three numbers are laid into `Account.fresh`,
and entered before the next reading or with some others. What is queued and what runs is counted
when somebody reads.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone, tzinfo
from enum import Enum, auto
from functools import lru_cache
from itertools import accumulate, repeat
from operator import sub
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from apscheduler_telemetry.core.labels import MAX_LABELS, OVERFLOW
from apscheduler_telemetry.core.model import Clock, ErrorKind, JobInfo, Outcome, RunError, SpanIds
from apscheduler_telemetry.core.observers import renew_lock_after_fork

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
"""
Seconds for which a removed job stays visible, so that every scrape sees its last numbers; from the
end of its last run, if that comes later.
"""
MAX_EXCEPTIONS = 20
"""Type names of exceptions per job; the rest share `OTHER_EXCEPTIONS`."""
OTHER_EXCEPTIONS = "__other__"
FRESH = 4
"""Values of each success in `Account.fresh`."""
MAX_FRESH = 24 * FRESH
"""Values per job that wait to be entered; more would save little, and take more memory."""
EPOCH = datetime.fromtimestamp(0, timezone.utc)
NEVER = datetime.min.replace(tzinfo=timezone.utc)


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


# Members of an enumeration are looked up by code in Python before 3.12, which every run would pay.
_QUEUED, _RUNNING, _DONE = State.QUEUED, State.RUNNING, State.DONE
_SUCCESS, _ERROR, _MISSED = Outcome.SUCCESS, Outcome.ERROR, Outcome.MISSED


class Run:
    """
    One due run on its way through an executor; see `apscheduler_telemetry.core.model.RunView`.

    Attributes:
        load: the account of its executor; of a run in a lane, once the books know of it.
        posted: where it is by the books, None before they know of it.
        outcome: how it ended, None before that.
        at: Unix seconds of when that was noted.
        is_inferred: whether `started` is a guess, as of runs in a process pool.
        is_delay_noted: whether its start delay is in the books.
    """

    __slots__ = (
        *("arguments", "at", "duration", "entry", "exemplar", "is_delay_noted", "is_inferred"),
        *("job", "links", "load", "outcome", "posted", "result", "scheduled", "span", "started"),
    )

    def __init__(
        self, entry: Entry, scheduled: datetime, executor: ExecutorAccount | None = None
    ) -> None:
        self.entry = entry
        self.job = entry.info  # as it is now, and not as it may be modified later
        self.links: Sequence[Any] = entry.links  # likewise
        self.scheduled = scheduled
        self.load = executor
        self.started: float | None = None
        self.duration: float | None = None
        self.arguments: str | None = None
        self.result: str | None = None
        self.span: Any = None
        self.exemplar: SpanIds | None = None
        self.posted: State | None = None
        self.outcome: Outcome | None = None
        self.at = 0.0
        self.is_inferred = self.is_delay_noted = False

    @property
    def due(self) -> float:
        """When that is, in Unix seconds."""
        return self.scheduled.timestamp()

    @property
    def state(self) -> State:
        """Where it is."""
        if self.outcome is not None:
            return _DONE
        return _QUEUED if self.started is None else _RUNNING

    @property
    def ended(self) -> float | None:
        # By a monotonic duration: the wall clock may have jumped meanwhile.
        if self.duration is None:
            return None
        return self.at if self.started is None else self.started + self.duration

    @property
    def scheduler(self) -> str:
        return self.entry.scheduler

    @property
    def label(self) -> str:
        return self.entry.account.label

    @property
    def start_delay(self) -> float | None:
        # Never negative, whatever the wall clock did in between.
        return None if self.started is None else max(0.0, self.started - self.due)


class Histogram:
    """Counts per bucket (not cumulative), their sum, and the latest exemplar of each bucket."""

    __slots__ = ("bounds", "counts", "exemplars", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.exemplars: dict[int, Exemplar] = {}

    def observe(self, value: float, exemplar: SpanIds | None = None, at: float = 0) -> None:
        bucket = bisect_left(self.bounds, value)
        self.counts[bucket] += 1
        self.sum += value
        if exemplar is not None:
            self.exemplars[bucket] = Exemplar(_labels_of(exemplar), value, at)

    def observe_all(self, values: Sequence[float]) -> Sequence[int]:
        """Do so for several values at one go, what is negative as 0, and return their buckets."""
        bounds, counts = self.bounds, self.counts
        in_order = sorted(values)  # a third of the price of min() and max()
        if in_order[0] < 0.0:
            values = [max(0.0, value) for value in values]
        first, last = bisect_left(bounds, in_order[0]), bisect_left(bounds, in_order[-1])
        if first == last:  # as the runs of one job mostly take the same
            counts[first] += len(values)
            buckets = [first] * len(values)
        else:
            buckets = list(map(bisect_left, repeat(bounds), values))
            for bucket in buckets:
                counts[bucket] += 1
        self.sum = sum(values, self.sum)
        return buckets

    def cumulative(self) -> Iterator[tuple[int, Exemplar | None]]:
        """Yield, bound by bound and then for +Inf, how many are within, and an exemplar."""
        for bucket, total in enumerate(itertools.accumulate(self.counts)):
            yield total, self.exemplars.get(bucket)

    def copy(self) -> Histogram:
        twin = Histogram(self.bounds)
        twin.counts = self.counts.copy()
        twin.sum = self.sum
        twin.exemplars = self.exemplars.copy()
        return twin


class Exemplar(NamedTuple):
    """One observation with the labels of the trace that it belongs to."""

    labels: Mapping[str, str]
    value: float
    timestamp: float


@dataclass(eq=False, slots=True)
class Account:
    """
    The numbers of one ``job_id`` label. Timestamps are Unix seconds, None before the first.

    Attributes:
        fresh: of each success that is not in the numbers yet, one after the other: when it was
            due, its start in Unix seconds, the seconds that it took, and its exemplar.
        version: another one after every change, for readers that keep what they made of the
            numbers; no two accounts of a ledger ever have the same.
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
    version: int = 0
    # What the numbers above are kept from; snapshots do not have it.
    fresh: list[Any] = field(default_factory=list)
    entries: dict[Entry, None] = field(default_factory=dict)
    broken: dict[Hashable, float] = field(default_factory=dict)
    removed_at: float | None = None
    has_changed: bool = True

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
            next_run=min(self.promises(), default=0.0),
            running_since=self.running_since,
            version=self.version,
        )

    def promises(self) -> Iterator[float]:
        """Yield what its jobs have promised, and those of its jobs that are broken."""
        # Copied at one go, as jobs come and go meanwhile.
        yield from list(self.broken.values())
        for entry in list(self.entries):
            if (promise := entry.promise) is not None:
                yield promise

    def balance(self) -> int:
        """Return what the law leaves over: 0."""
        return self.due - sum(self.outcomes.values()) - self.running - self.queued


@dataclass(eq=False, slots=True)
class Entry:
    """
    One job as the ledger knows it, several of which may share an account.

    Attributes:
        key: job store alias and job id.
        scheduler: the value of the ``scheduler`` label.
        next_run: the object that the job has for its promised run, where the adapter told it.
        at: the promised run in Unix seconds, where it did not; None when nothing is promised.
        link: where the job was added, where known.
        push: where its next run was triggered by hand, where it was and is known.
        links: those of both that there are.
        trigger: what the account's intervals were taken from.
        intervals_until: up to which next run, in Unix seconds, those intervals hold.
        steady_until: up to which next run there is nothing to do but to note it, None where that is
            so whatever comes; `NEVER` whenever something comes up.
        coalesce: whether runs that are late are folded into one.
        inherited: whether another process, this one's predecessor maybe, stored the job, and this
            one has not touched it yet.
        lasts: whether the adapter finds the same job in each run, as long as it is in its store.
        idle: where that is so, a run that has ended and left no trace but its numbers, to be used
            again.
        accounted: the latest fire time that was handed to an executor or refused by it, None
            before the first.
        fresh: that of its account, which every run of the job needs.
    """

    key: tuple[str, str]
    account: Account
    info: JobInfo
    scheduler: str
    next_run: datetime | None = None
    at: float | None = None
    link: Any = None
    push: Any = None
    links: tuple[Any, ...] = ()
    trigger: Any = None
    intervals_until: float = math.inf
    steady_until: datetime | None = NEVER
    coalesce: bool = False
    inherited: bool = False
    lasts: bool = False
    idle: Any = None
    accounted: datetime | None = None
    fresh: list[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.fresh = self.account.fresh

    def let_go(self) -> None:
        """Keep nothing of the job itself."""
        self.lasts = False
        self.idle = None

    @property
    def promise(self) -> float | None:
        """The next run in Unix seconds, None when nothing is promised."""
        # Found when it is asked for, which is less often than it changes.
        next_run = self.next_run
        return self.at if next_run is None else next_run.timestamp()


@dataclass(eq=False, slots=True)
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


@dataclass(eq=False, slots=True)
class ExecutorAccount:
    """
    Load of one executor.

    Attributes:
        workers: its capacity, infinite where it has none.
        lane: runs under way there, by job id, of jobs that have no other: see `Ledger`.
    """

    workers: Callable[[], float]
    lane: dict[str, Run] = field(default_factory=dict)
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
        # A signal's handler, or a __del__, may come in between and ask for the same.
        self._lock = threading.RLock()
        self._accounts: dict[str, Account] = {}
        self._entries: defaultdict[str, dict[str, Entry]] = defaultdict(dict)
        # As `entry`; every run would pay for a function in Python.
        self.known: Mapping[str, Mapping[str, Entry]] = self._entries
        self.has_twins = False
        self._stores: dict[str, StoreAccount] = {}
        self._executors: dict[str, ExecutorAccount] = {}
        self._errors = dict.fromkeys(ErrorKind, 0)
        self._broken: dict[tuple[str, str], tuple[Account, float]] = {}
        self._open: dict[Run, None] = {}
        self._left: list[dict[str, Run]] = []  # lanes of executors that were removed
        self._running: dict[Account, float] = {}
        self._entering: int | None = None
        self._versions = itertools.count(1)
        renew_lock_after_fork(self)

    # Jobs

    def entry(self, jobstore: str, job_id: str) -> Entry | None:
        """Return what is known of a job, or None."""
        there = self._entries.get(jobstore)
        return None if there is None else there.get(job_id)

    def entries(self, jobstore: str) -> list[Entry]:
        """Return all known jobs of a job store."""
        with self._lock:
            return list(self._entries[jobstore].values())

    def promises(self) -> dict[tuple[str, str], float]:
        """Return the next run of each job that has one, in Unix seconds."""
        with self._lock:
            entries = [entry for there in self._entries.values() for entry in there.values()]
        promises = {entry.key: entry.promise for entry in entries}
        return {key: promise for key, promise in promises.items() if promise is not None}

    def know(
        self,
        info: JobInfo,
        promise: float | None,
        *,
        inherited: bool = False,
    ) -> Entry:
        """
        Take a job into the books, or take note of what it is now.

        Args:
            info: the job.
            promise: its next run in Unix seconds, or None.
            inherited: see `Entry`; of a job that is in the books it is known already.
        """
        key = (info.jobstore, info.id)
        with self._lock:
            entry = self._entries[info.jobstore].get(info.id)
            if entry is not None and entry.info.label != info.label:
                self._leave_account(entry)
                entry = None
            if entry is None:
                account = self._account(info)
                entry = Entry(key, account, info, self.scheduler, inherited=inherited)
                self._entries[info.jobstore][info.id] = entry
                if sum(info.id in there for there in self._entries.values()) > 1:
                    self.has_twins = True
                self._stores.setdefault(info.jobstore, StoreAccount()).jobs += 1
                account.entries[entry] = None
                account.removed_at = None
            entry.info = info
            if len(entry.account.entries) == 1 and entry.account.label == info.label:
                entry.account.info = info
            if key in self._broken:
                broken, _ = self._broken.pop(key)
                broken.broken.pop(key, None)
                broken.has_changed = True
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
            before = entry.promise
            self._promise(entry, at)
            if on_purpose and before != at:
                self._withdraw(entry.account, before)

    def goes_on(self, entry: Entry, next_run: datetime) -> bool:
        """
        Let a job promise its next run after the one that was handed over.

        Args:
            entry: the job.
            next_run: the object that it has for that.

        Returns:
            Whether that is all. Not so where the job is not in the books any more, its intervals
            are to be looked for again, or what pushed it has had its run.
        """
        account = entry.account
        with self._lock:
            at, until = next_run.timestamp(), entry.intervals_until
            self._promise(entry, at)
            entry.next_run = next_run
            if entry not in account.entries or at > until or entry.push is not None:
                return False
            if account.withdrawn is None or at > account.withdrawn:
                # In the time zone of what is compared with it, which is much quicker.
                entry.steady_until = (
                    None if until == math.inf else datetime.fromtimestamp(until, next_run.tzinfo)
                )
        if entry.intervals_until != until:
            entry.steady_until = NEVER  # they have just been found
        return True

    def remove(self, entry: Entry, removal: Removal) -> None:
        """Take a job out of the books; its account stays for `REMOVED_FOR` seconds."""
        with self._lock:
            if entry not in entry.account.entries:
                return
            if removal is Removal.WITHDRAWN:
                self._withdraw(entry.account, entry.promise)
            self._leave_account(entry, keep_promise=removal is Removal.BROKEN)

    def let_go(self, jobstore: str) -> None:
        """Keep nothing of the jobs that a store has lost but what they promised."""
        for entry in self.entries(jobstore):
            entry.let_go()

    def set_intervals(self, entry: Entry, intervals: tuple[float, float] | None) -> None:
        """Note the shortest and the longest gap in seconds between coming runs."""
        with self._lock:
            entry.account.intervals = intervals
            entry.account.has_changed = True

    # Runs

    def hand_over(
        self, entry: Entry, executor: ExecutorAccount | None, scheduled: Iterable[datetime]
    ) -> list[Run]:
        """Post due runs that are being handed to an executor; they are queued until they start."""
        return [self.hand_over_one(entry, executor, at) for at in scheduled]

    def hand_over_one(
        self, entry: Entry, executor: ExecutorAccount | None, scheduled: datetime
    ) -> Run:
        """Post a due run that is being handed to an executor."""
        run = Run(entry, scheduled, executor)
        self._open[run] = None
        return run

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
            if run.outcome is None:
                run.started = at
                run.is_inferred = not certain

    def succeed(self, run: Run, lane: dict[str, Run], taken: Run | None, duration: float) -> None:
        """
        Post the success of a run that was in a lane, where somebody else came in between.

        It was posted while it ran, is being posted just now, or was ended by somebody else. What
        nobody came in between of is laid into `Account.fresh` instead.

        Args:
            run: the run.
            lane: where it was.
            taken: what was taken out there in its place.
            duration: seconds inside the callable.
        """
        if taken is not None:
            lane.setdefault(run.entry.key[1], taken)
        self.finish(run, _SUCCESS, duration=duration)

    def alone(self, lane: Mapping[str, Run], job_id: str) -> list[Run]:
        """Return the run of a lane under this id, if there is one."""
        with self._lock:  # as a reader takes them out for a moment
            run = lane.get(job_id)
        return [] if run is None else [run]

    def enter(self, account: Account) -> None:
        """Enter what succeeded lately, unless somebody is at the books just now."""
        if self._lock.acquire(blocking=False):
            try:
                self._enter(account)
            finally:
                self._lock.release()

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
            if not self._takes(run):
                return False
            if started is not None:
                run.started = started
                run.is_inferred = False
            begin = run.started
            run.duration = duration
            self._end(run, outcome, (self._clock() if begin is None else begin) + duration, error)
            return True

    def settle(self, run: Run, outcome: Outcome, error: RunError | None = None) -> bool:
        """
        Post the end of a run of which no more is known than how it ended.

        Returns:
            Whether this call ended the run; False when it had ended before.
        """
        with self._lock:
            if not self._takes(run):
                return False
            if outcome is _MISSED:
                run.started = None
            self._end(run, outcome, self._clock(), error)
            return True

    def never_ran(self, entry: Entry, outcome: Outcome, count: int) -> None:
        """Post `count` due runs that were not even handed to an executor."""
        with self._lock:
            self._enter(entry.account)  # what ended before comes before
            entry.account.due += count
            self._count_outcome(entry.account, outcome, self._clock(), None, count)

    # Executors and errors

    def executor(
        self, alias: str, workers: Callable[[], float], lane: dict[str, Run] | None = None
    ) -> ExecutorAccount:
        """Open the account of an executor, which may have had one before, with that `lane`."""
        account = ExecutorAccount(workers, {} if lane is None else lane)
        with self._lock:
            self._executors[alias] = account
            self._left = [lane for lane in self._left if lane is not account.lane]
        return account

    def remove_executor(self, alias: str) -> None:
        """Close the account of an executor; what is under way there goes on."""
        with self._lock:
            account = self._executors.pop(alias, None)
            if account is not None and account.lane:
                self._left.append(account.lane)
            for there in self._entries.values():
                for entry in there.values():
                    entry.idle = None  # which would keep the executor

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
        for _, account in self.changes({}):
            if account is not None:
                yield account

    def changes(self, known: Mapping[str, int]) -> Iterator[tuple[str, Account | None]]:
        """
        Yield the label of each account with its snapshot, or None where nothing has changed.

        Args:
            known: the version that the reader knows already, by label.
        """
        with self._lock:
            self._catch_up()
            self._purge()
            # Not their items: thousands of pairs at once have Python look for garbage everywhere,
            # which holds up all threads.
            accounts = list(self._accounts.values())
        for account in accounts:
            label = account.label
            is_known = account.version == known.get(label)
            if is_known and not account.has_changed and not account.fresh:
                yield label, None
                continue
            with self._lock:
                self._enter(account)
                if account.has_changed:
                    account.has_changed = False  # before it is read: what changes now counts anew
                    account.version = next(self._versions)
                snapshot = account.snapshot()
            yield label, snapshot

    def executors(self) -> Mapping[str, tuple[float, int, int]]:
        """Return workers, running and queued runs by executor alias."""
        with self._lock:
            self._catch_up()
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
            self._catch_up()
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
        jobstore, job_id = entry.key
        del self._entries[jobstore][job_id]
        del account.entries[entry]
        self._stores[jobstore].jobs -= 1
        if keep_promise:
            self._broken[entry.key] = account, self._clock()
            if entry.promise is not None:
                account.broken[entry.key] = entry.promise
        entry.at = entry.next_run = None
        entry.let_go()
        entry.steady_until = NEVER
        account.has_changed = True
        if not account.entries:
            account.removed_at = self._clock()

    @staticmethod
    def _promise(entry: Entry, at: float | None) -> None:
        account = entry.account
        entry.at = at
        entry.next_run = None
        account.has_changed = True
        if at is not None and at == account.withdrawn:
            account.withdrawn = None  # it is promised again, so nothing was taken back

    @staticmethod
    def _withdraw(account: Account, promise: float | None) -> None:
        if promise is None:
            return
        account.withdrawn = max(account.withdrawn or 0.0, promise)
        for entry in account.entries:
            entry.steady_until = NEVER  # it may be promised again

    def _end(self, run: Run, outcome: Outcome, at: float, error: RunError | None) -> None:
        run.at = at
        run.outcome = outcome
        account = run.entry.account
        self._enter(account)  # what ended before comes before
        if account.removed_at is not None:  # so that every scrape sees how it ended
            account.removed_at = self._clock()
        self._post(run, _DONE)
        if run.started is not None:
            self._note_start(run, run.started)
        if run.duration is not None:
            account.last_duration = run.duration
            account.durations.observe(run.duration, run.exemplar, at)
        self._count_outcome(account, outcome, at, None if error is None else error.type)

    def _catch_up(self) -> None:
        """Post what has not ended."""
        since: dict[Account, float] = {}
        for run in self._under_way():
            account, started = run.entry.account, run.started
            state = _QUEUED if started is None else _RUNNING
            if run.posted is not state:
                self._post(run, state)
            if started is not None:
                self._note_start(run, started)
                since[account] = min(started, since.get(account, started))
        for account in self._running.keys() | since.keys():
            if account.running_since != since.get(account, 0.0):
                account.running_since = since.get(account, 0.0)
                account.has_changed = True
        self._running = since

    def _under_way(self) -> Iterator[Run]:
        """Yield what has not ended; those in lanes are out of them until the next one."""
        yield from list(self._open)
        self._left = [lane for lane in self._left if lane]
        for account, lane in self._lanes():
            for job_id in list(lane):
                # Whoever finds its run gone asks again by `finish`, which waits for our lock.
                run = lane.pop(job_id, None)
                if run is None:
                    continue
                if run.posted is None:
                    run.load = account
                try:
                    yield run
                finally:
                    if lane.setdefault(job_id, run) is not run:
                        self._open[run] = None

    def _takes(self, run: Run) -> bool:
        """Take a run out of what is under way, and tell whether it was there."""
        if self._open.pop(run, _ENDED) is not _ENDED:
            return True
        job_id, load = run.entry.key[1], run.load
        lanes = [lane for _, lane in self._lanes()] if load is None else [load.lane]
        return any(lane.get(job_id) is run and lane.pop(job_id, None) is run for lane in lanes)

    def _lanes(self) -> Iterator[tuple[ExecutorAccount | None, dict[str, Run]]]:
        yield from ((None, lane) for lane in self._left)
        yield from ((account, account.lane) for account in self._executors.values())

    def _enter(self, account: Account) -> None:
        """Enter what succeeded lately."""
        fresh, thread = account.fresh, threading.get_ident()
        # Who interrupts us, such as the handler of a signal that scrapes, finds it half done.
        if not fresh or self._entering == thread:
            return
        self._entering = thread
        try:
            successes = fresh.copy()
            del fresh[: len(successes)]  # others may have been laid there meanwhile
            self._enter_successes(account, successes)
        finally:
            self._entering = None

    def _enter_successes(self, account: Account, successes: Sequence[Any]) -> None:
        """Do at one go what `_end` does for each run."""
        scheduled, starts = successes[0::FRESH], successes[1::FRESH]
        took, exemplars = successes[2::FRESH], successes[3::FRESH]
        dues = unix_seconds(scheduled)
        account.delays.observe_all(list(map(sub, starts, dues)))
        buckets = account.durations.observe_all(took)
        if any(exemplars):
            latest = {bucket: number for number, bucket in enumerate(buckets) if exemplars[number]}
            for bucket, number in latest.items():
                seconds = took[number]
                labels = _labels_of(exemplars[number])
                exemplar = Exemplar(labels, seconds, starts[number] + seconds)
                account.durations.exemplars[bucket] = exemplar
        account.due += len(dues)
        last_run, last_due = account.last_run, sorted(dues)[-1]  # noqa: FURB192  # as above
        if last_run is None or last_due > last_run:
            account.last_run = last_due
        account.last_duration = took[-1]
        self._count_outcome(account, _SUCCESS, starts[-1] + took[-1], None, len(dues))
        if account.removed_at is not None:  # so that every scrape sees how it ended
            account.removed_at = self._clock()

    @staticmethod
    def _post(run: Run, state: State) -> None:
        account, executor, before = run.entry.account, run.load, run.posted
        run.posted = state
        account.has_changed = True
        if before is None:
            account.due += 1
        elif before is _QUEUED:
            account.queued -= 1
            if executor is not None:
                executor.queued -= 1
        else:
            account.running -= 1
            if executor is not None:
                executor.running -= 1
        if state is _QUEUED:
            account.queued += 1
            if executor is not None:
                executor.queued += 1
        elif state is _RUNNING:
            account.running += 1
            if executor is not None:
                executor.running += 1

    @staticmethod
    def _note_start(run: Run, started: float) -> None:
        account = run.entry.account
        if account.last_run is None or run.due > account.last_run:
            account.last_run = run.due
            account.has_changed = True
        if not run.is_inferred and not run.is_delay_noted:
            run.is_delay_noted = True
            account.delays.observe(max(0.0, started - run.due))
            account.has_changed = True

    @staticmethod
    def _count_outcome(
        account: Account, outcome: Outcome | None, at: float, error: str | None, count: int = 1
    ) -> None:
        if outcome is None:
            return
        account.outcomes[outcome] += count
        account.last_outcome = outcome
        account.has_changed = True
        if outcome is _SUCCESS:
            account.last_success = at
            account.consecutive_failures = 0
        elif outcome in _FAILURES:
            account.last_failure = at
            account.consecutive_failures += count
        if outcome is _ERROR and error is not None:
            kinds = account.exceptions
            kind = error if error in kinds or len(kinds) < MAX_EXCEPTIONS else OTHER_EXCEPTIONS
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
            and not account.fresh
        ]
        for label in gone:
            del self._accounts[label]
        for key, (account, since) in list(self._broken.items()):
            if since <= deadline:
                account.broken.pop(key, None)
                account.has_changed = True
                del self._broken[key]


def _labels_of(span: SpanIds) -> Mapping[str, str]:
    """Return what an exemplar of a span is labelled with: in hex, as W3C and Grafana have it."""
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}


def unix_seconds(moments: Sequence[datetime]) -> Sequence[float]:
    """Return what `datetime.timestamp` does for each of several moments, mostly much quicker."""
    zone, count = moments[0].tzinfo, len(moments)
    # Told by its type: what another one answers to None may hold for half of the year only.
    is_known = type(zone) is timezone or type(zone) is ZoneInfo
    epoch = _epoch_in(zone) if is_known else EPOCH
    if count > 1 and epoch.tzinfo is zone:
        steps = list(map(sub, moments[1:], moments))
        step = steps[0].total_seconds()
        if step.is_integer() and steps.count(steps[0]) == count - 1:  # as in most schedules
            first = (moments[0] - epoch).total_seconds()
            return list(accumulate(repeat(step, count - 1), initial=first))  # which is exact
    return list(map(timedelta.total_seconds, map(sub, moments, repeat(epoch))))


@lru_cache(maxsize=100)
def _epoch_in(zone: tzinfo) -> datetime:
    """Return the epoch in `zone` where its offset never changes, else in UTC."""
    # A difference within the same zone is that of its clock: a tenth of the price of asking it for
    # its offset, and the same if that is always one.
    offset = zone.utcoffset(None)
    return EPOCH if offset is None else EPOCH.astimezone(zone)


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


_FAILURES = frozenset({_ERROR, Outcome.LOST})
_ENDED = object()
