"""The books themselves: what each posting does to them, and that they stay small."""

from __future__ import annotations

import random
import threading
from bisect import bisect_left
from collections.abc import Callable
from concurrent import futures
from dataclasses import fields
from datetime import datetime, timedelta, timezone, tzinfo
from functools import partial
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from opentelemetry.trace import SpanContext

from apscheduler_telemetry.core.model import ErrorKind, JobInfo, Outcome, RunError
from apscheduler_telemetry.core.recorder import (
    MAX_EXCEPTIONS,
    NEVER,
    OTHER_EXCEPTIONS,
    REMOVED_FOR,
    Account,
    Entry,
    ExecutorAccount,
    Histogram,
    Ledger,
    Removal,
    Run,
    unix_seconds,
)

DUE = datetime(2030, 1, 1, tzinfo=timezone.utc)
AT = DUE.timestamp()
SPAN = SpanContext(1, 2, is_remote=False)
BOOM = RunError(type="shop.Boom", message="boom")


class Clock:
    """A clock that is set by hand; it starts when the runs are due."""

    def __init__(self) -> None:
        self.now = AT

    def __call__(self) -> float:
        return self.now


def info(job_id: str = "job", **changes: Any) -> JobInfo:
    values = {
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


class Books:
    """A ledger, its clock, an executor and a job."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.ledger = Ledger("main", clock=self.clock, **options)
        self.executor = self.ledger.executor("default", lambda: 4)
        self.entry = self.ledger.know(info(), AT)

    def hand_over(self, *seconds: float, entry: Entry | None = None) -> list[Run]:
        """Hand over runs that are due so many seconds after `DUE`, one of them by default."""
        due = [DUE + timedelta(seconds=s) for s in seconds or (0,)]
        return self.ledger.hand_over(entry or self.entry, self.executor, due)

    def in_lane(self) -> Run:
        """Hand over a run by way of the executor's lane."""
        run = self.executor.lane["job"] = Run(self.entry, DUE)
        return run

    def while_posting(self, run: Run, do: Callable[[], Any]) -> Any:
        """Return what `do` returns in another thread, while a reader has the run in its hands."""
        with futures.ThreadPoolExecutor(1) as threads:
            with self.ledger._lock:
                posting = iter(self.ledger._under_way())
                assert next(posting) is run
                assert self.executor.lane == {}
                done = threads.submit(do)
                assert list(posting) == []
            return done.result()

    def account(self, label: str = "job") -> Account:
        (account,) = [a for a in self.ledger.accounts() if a.label == label]
        assert account.balance() == 0
        return account

    def labels(self) -> list[str]:
        return [a.label for a in self.ledger.accounts()]

    def state(self) -> tuple[int, int, int, dict[str, int]]:
        """Return due, queued and running runs, and the outcomes that there are."""
        a = self.account()
        assert self.ledger.executors() == {"default": (4, a.running, a.queued)}
        outcomes = {outcome.value: n for outcome, n in a.outcomes.items() if n}
        return a.due, a.queued, a.running, outcomes

    def numbers(self) -> dict[str, Any]:
        """Return all that the account tells."""
        a = self.account()
        kept = ("durations", "delays", "entries", "broken", "fresh", "version", "has_changed")
        numbers = {f.name: getattr(a, f.name) for f in fields(a) if f.name not in kept}
        return {**numbers, "durations": a.durations.counts, "delays": a.delays.counts}


@pytest.fixture
def books() -> Books:
    return Books()


class TestRuns:
    """A run on its way: queued, running, done."""

    def test_all_outcomes_are_there_at_zero(self, books: Books) -> None:
        """A job that is only just known has an account with six zeros."""
        assert books.account().outcomes == dict.fromkeys(Outcome, 0)
        assert len(Outcome) == 6

    def test_the_way_of_a_run(self, books: Books) -> None:
        """Each step moves the run, in the job's account as in the executor's."""
        (run,) = books.hand_over()
        assert books.state() == (1, 1, 0, {})
        books.ledger.start(run, AT + 2)
        assert books.state() == (1, 0, 1, {})
        assert books.account().running_since == AT + 2
        assert books.ledger.finish(run, Outcome.SUCCESS, duration=3)
        assert books.state() == (1, 0, 0, {"success": 1})
        assert (run.started, run.ended, run.start_delay) == (AT + 2, AT + 5, 2)
        assert (books.account().running_since, books.account().last_success) == (0, AT + 5)

    def test_a_run_ends_once(self, books: Books) -> None:
        """Whoever comes second to end a run is told so, and changes nothing."""
        for first in ("finish", "settle"):
            (run,) = books.hand_over()
            end = {
                "finish": lambda r=run: books.ledger.finish(r, Outcome.SUCCESS, duration=1),
                "settle": lambda r=run: books.ledger.settle(r, Outcome.LOST),
            }
            assert end[first]()
            before = books.numbers()
            assert not end["finish"]()
            assert not end["settle"]()
            books.ledger.start(run, AT)
            assert books.numbers() == before

    def test_measured_elsewhere(self, books: Books) -> None:
        """A run whose start comes with its end is started then, at that time, and not twice."""
        queued, inferred = books.hand_over(0, 10)
        books.ledger.start(inferred, AT + 11, certain=False)
        for run in (queued, inferred):
            books.ledger.finish(run, Outcome.SUCCESS, duration=1, started=run.due + 4)
        account = books.account()
        assert (sum(account.delays.counts), account.delays.sum) == (2, 8)
        assert account.last_success == AT + 15
        assert books.state() == (2, 0, 0, {"success": 2})

    def test_a_start_that_was_none(self, books: Books) -> None:
        """A run that was thought to have begun and was missed has no start and no delay."""
        (run,) = books.hand_over()
        books.ledger.start(run, AT + 1, certain=False)
        assert books.state() == (1, 0, 1, {})
        books.ledger.settle(run, Outcome.MISSED)
        assert books.state() == (1, 0, 0, {"missed": 1})
        assert (run.started, run.start_delay) == (None, None)
        assert sum(books.account().delays.counts) == 0

    def test_the_delay_is_never_negative(self, books: Books) -> None:
        """A start before the run was due is a delay of 0."""
        (run,) = books.hand_over(60)
        books.ledger.start(run, AT)
        assert (run.start_delay, books.account().delays.sum) == (0, 0)

    def test_never_handed_over(self, books: Books) -> None:
        """Runs that reach no executor are due and done at once."""
        books.ledger.never_ran(books.entry, Outcome.COALESCED, 9)
        assert books.state() == (9, 0, 0, {"coalesced": 9})

    def test_without_an_executor(self, books: Books) -> None:
        """A run of an executor without an account is counted all the same."""
        (run,) = books.ledger.hand_over(books.entry, None, [DUE])
        books.ledger.start(run, AT)
        assert books.account().running == 1
        assert books.ledger.executors() == {"default": (4, 0, 0)}
        books.ledger.settle(run, Outcome.LOST)

    def test_the_latest_run_is_by_schedule(self, books: Books) -> None:
        """The last run is the latest scheduled one that started, in whatever order they start."""
        late, early, _queued = books.hand_over(20, 10, 30)
        assert books.account().last_run is None
        books.ledger.start(late, AT + 21)
        books.ledger.start(early, AT + 22)
        assert books.account().last_run == AT + 20

    def test_the_oldest_of_those_running(self, books: Books) -> None:
        """Since when a job runs is told by the oldest of its runs."""
        first, second = books.hand_over(0, 10)
        books.ledger.start(second, AT + 11)
        books.ledger.start(first, AT + 12)
        assert books.account().running_since == AT + 11
        books.ledger.finish(second, Outcome.SUCCESS, duration=1)
        assert books.account().running_since == AT + 12


class TestFailures:
    """What the account remembers of errors and losses."""

    def test_consecutive_failures(self, books: Books) -> None:
        """Errors and losses add up until a success; other outcomes leave the number alone."""
        seen = []
        for outcome in ("error", "lost", "missed", "skipped", "coalesced", "error", "success"):
            (run,) = books.hand_over()
            books.ledger.settle(run, Outcome(outcome))
            seen.append(books.account().consecutive_failures)
        assert seen == [1, 2, 2, 2, 2, 3, 0]
        books.ledger.never_ran(books.entry, Outcome.LOST, 4)
        assert books.account().consecutive_failures == 4

    def test_when(self, books: Books) -> None:
        """The latest success and the latest failure have their times, each its own."""
        good, bad, gone = books.hand_over(0, 10, 20)
        books.ledger.start(good, AT + 1)
        books.ledger.finish(good, Outcome.SUCCESS, duration=2)
        books.ledger.start(bad, AT + 11)
        books.ledger.finish(bad, Outcome.ERROR, duration=3, error=BOOM)
        account = books.account()
        assert (account.last_success, account.last_failure) == (AT + 3, AT + 14)
        assert (account.last_outcome, account.last_duration) == (Outcome.ERROR, 3)
        books.clock.now = AT + 50
        books.ledger.settle(gone, Outcome.LOST)
        assert (books.account().last_failure, books.account().last_duration) == (AT + 50, 3)

    def test_exceptions_by_type(self, books: Books) -> None:
        """Only what a run raised is counted by type, not why one was lost."""
        for outcome in (Outcome.ERROR, Outcome.ERROR, Outcome.LOST):
            (run,) = books.hand_over()
            books.ledger.settle(run, outcome, BOOM)
        assert books.account().exceptions == {"shop.Boom": 2}

    def test_types_without_end(self, books: Books) -> None:
        """Beyond twenty types of exceptions, the others share a name; known ones keep theirs."""
        for number in [*range(30), 0]:
            (run,) = books.hand_over()
            error = RunError(type=f"Error{number}", message="")
            books.ledger.settle(run, Outcome.ERROR, error)
        exceptions = books.account().exceptions
        assert len(exceptions) == MAX_EXCEPTIONS + 1 == 21
        assert (exceptions["Error0"], exceptions[OTHER_EXCEPTIONS]) == (2, 10)


class TestJobs:
    """Jobs that come, change and go."""

    def test_a_shared_account(self, books: Books) -> None:
        """Jobs of one label share numbers, and promise the earliest of their runs."""
        twin = books.ledger.know(info("twin", label="job"), AT + 5)
        books.ledger.promise(books.entry, AT + 10, on_purpose=False)
        assert books.account().next_run == AT + 5
        books.ledger.never_ran(twin, Outcome.SKIPPED, 1)
        books.ledger.never_ran(books.entry, Outcome.SKIPPED, 1)
        assert books.account().outcomes[Outcome.SKIPPED] == 2
        books.ledger.remove(twin, Removal.FINISHED)
        assert (books.account().next_run, books.account().info.id) == (AT + 10, "job")

    def test_going_on_takes_nothing_back(self, books: Books) -> None:
        """The scheduler's step from one run to the next withdraws no promise; the user's does."""
        books.ledger.promise(books.entry, AT + 10, on_purpose=False)
        assert books.account().withdrawn is None
        books.ledger.promise(books.entry, AT + 99, on_purpose=True)
        assert (books.account().withdrawn, books.account().next_run) == (AT + 10, AT + 99)
        books.ledger.promise(books.entry, None, on_purpose=True)
        assert (books.account().withdrawn, books.account().next_run) == (AT + 99, 0)

    def test_promised_again(self, books: Books) -> None:
        """A run that was taken back and is promised again was not taken back."""
        books.ledger.promise(books.entry, None, on_purpose=True)
        assert books.account().withdrawn == AT
        books.ledger.promise(books.entry, AT, on_purpose=True)
        assert books.account().withdrawn is None

    @pytest.mark.parametrize(
        ("removal", "next_run", "withdrawn"),
        [
            (Removal.WITHDRAWN, 0, AT),
            (Removal.FINISHED, 0, None),
            (Removal.BROKEN, AT, None),
        ],
    )
    def test_removed(
        self, books: Books, removal: Removal, next_run: float, withdrawn: float | None
    ) -> None:
        """A promise is taken back by the user, and stays where APScheduler broke it."""
        books.ledger.remove(books.entry, removal)
        account = books.account()
        assert (account.next_run, account.withdrawn) == (next_run, withdrawn)
        assert jobs_per_store(books.ledger) == {"default": 0}
        books.ledger.remove(books.entry, Removal.WITHDRAWN)
        assert books.account().withdrawn == withdrawn, "it had gone already"

    def test_a_broken_promise_is_not_kept_for_ever(self, books: Books) -> None:
        """Of jobs that share an account, a broken one's promise goes after 15 minutes."""
        broken = books.ledger.know(info("broken", label="job"), AT - 60)
        books.ledger.remove(broken, Removal.BROKEN)
        books.clock.now = AT + REMOVED_FOR - 1
        assert books.account().next_run == AT - 60
        books.clock.now = AT + REMOVED_FOR
        assert books.account().next_run == AT

    def test_a_broken_job_that_comes_back(self, books: Books) -> None:
        """A job that was broken and is added again promises what it promises now."""
        books.ledger.remove(books.entry, Removal.BROKEN)
        books.ledger.know(info(), AT + 600)
        assert books.account().next_run == AT + 600
        books.clock.now = AT + REMOVED_FOR
        assert books.account().next_run == AT + 600

    def test_dropped_after_15_minutes(self, books: Books) -> None:
        """A removed job's account stays for 15 minutes, and after the end of its last run."""
        (run,) = books.hand_over()
        books.ledger.remove(books.entry, Removal.FINISHED)
        books.clock.now = AT + 1_200
        assert books.account().queued == 1
        books.ledger.settle(run, Outcome.LOST)
        assert books.account().outcomes[Outcome.LOST] == 1
        books.clock.now = AT + 1_200 + 899
        assert books.labels() == ["job"]
        books.clock.now = AT + 1_200 + 900
        assert books.labels() == []

    def test_versions_are_never_used_again(self, books: Books) -> None:
        """A reader that has missed that an account was dropped takes the new one for no old one."""
        known = {account.label: account.version for account in books.ledger.accounts()}
        books.ledger.remove(books.entry, Removal.FINISHED)
        books.clock.now = AT + 900
        assert books.labels() == []
        entry = books.ledger.know(info(), AT + 999)
        for _ in range(3):
            books.ledger.never_ran(entry, Outcome.SKIPPED, 1)
            books.account()  # another reader's turn
            assert all(account is not None for _, account in books.ledger.changes(known))

    def test_back_within_15_minutes(self, books: Books) -> None:
        """A job that comes back goes on with its account, and is not dropped."""
        books.ledger.never_ran(books.entry, Outcome.SKIPPED, 3)
        books.ledger.remove(books.entry, Removal.WITHDRAWN)
        books.ledger.know(info(), AT + 10)
        books.clock.now = AT + 10_000
        assert books.account().outcomes[Outcome.SKIPPED] == 3

    def test_another_label(self, books: Books) -> None:
        """A job whose label changes goes on in another account; runs under way stay in theirs."""
        (run,) = books.hand_over()
        moved = books.ledger.know(info(label="new"), AT + 10)
        assert (books.account("job").next_run, books.account("new").next_run) == (0, AT + 10)
        assert books.ledger.entry("default", "job") is moved
        assert jobs_per_store(books.ledger) == {"default": 1}
        books.ledger.settle(run, Outcome.SUCCESS)
        assert books.account("job").outcomes[Outcome.SUCCESS] == 1

    def test_stores(self, books: Books) -> None:
        """Jobs are counted by store, and one of the same id in another store is another one."""
        books.ledger.open_store("sql", exact=False)
        assert jobs_per_store(books.ledger) == {"default": 1, "sql": 0}
        books.ledger.know(info(jobstore="sql"), AT + 5)
        assert jobs_per_store(books.ledger) == {"default": 1, "sql": 1}
        assert books.account().next_run == AT
        books.ledger.close_store("default")
        assert jobs_per_store(books.ledger) == {"sql": 1}
        assert books.account().next_run == AT + 5
        assert [e.key for e in books.ledger.entries("sql")] == [("sql", "job")]

    def test_how_old_they_are(self, books: Books) -> None:
        """A store that others write to is as of its last reading, one that is ours alone as now."""
        books.ledger.open_store("memory", exact=True)
        books.ledger.open_store("sql", exact=False)
        books.ledger.store_read("sql", None)
        assert (readings(books.ledger, "sql"), readings(books.ledger, "memory")) == (
            (None, 1),
            (books.clock.now, 0),
        )
        books.ledger.store_read("sql", AT - 5)
        books.ledger.store_read("sql", None)
        books.ledger.store_read("removed", AT)
        books.clock.now = AT + 7
        assert (readings(books.ledger, "sql"), readings(books.ledger, "memory")) == (
            (AT - 5, 2),
            (AT + 7, 0),
        )
        assert "removed" not in books.ledger.stores()


class TestTooManyLabels:
    """More labels than there may be."""

    def test_they_share_one(self) -> None:
        """Jobs beyond the limit share one account, which tells nothing of any one of them."""
        books = Books(max_labels=2)
        for job_id in ("second", "third", "fourth"):
            entry = books.ledger.know(info(job_id), AT)
            books.ledger.never_ran(entry, Outcome.SKIPPED, 1)
        assert books.labels() == ["job", "second", "__overflow__"]
        overflow = books.account("__overflow__")
        assert (overflow.due, overflow.info.name) == (2, "__overflow__")
        assert books.ledger.know(info("fourth"), AT).account.label == "__overflow__"

    def test_room_again(self) -> None:
        """When a label is dropped, the next new job has one of its own."""
        books = Books(max_labels=1)
        books.ledger.know(info("second"), AT)
        books.ledger.remove(books.entry, Removal.FINISHED)
        books.clock.now = AT + REMOVED_FOR
        books.ledger.know(info("third"), AT)
        assert books.labels() == ["__overflow__", "third"]


class TestHistogram:
    """Buckets."""

    def test_bounds_are_inclusive(self) -> None:
        """A value that equals a bound is in its bucket, as Prometheus' ``le`` has it."""
        histogram = Histogram((1, 2))
        for value in (0, 1, 1.5, 2, 2.1, 99):
            histogram.observe(value)
        assert (histogram.counts, histogram.sum) == ([2, 2, 2], 105.6)

    def test_exemplars(self) -> None:
        """Each bucket keeps the latest observation that has a trace."""
        histogram = Histogram((1, 2))
        histogram.observe(0.5, SPAN, 10)
        histogram.observe(0.6, SpanContext(3, 4, is_remote=False), 11)
        histogram.observe(0.7)
        (bucket,) = histogram.exemplars
        kept = histogram.exemplars[bucket]
        labels = {"trace_id": f"{3:032}", "span_id": f"{4:016}"}
        assert (bucket, kept.labels, kept.value, kept.timestamp) == (0, labels, 0.6, 11)

    @pytest.mark.parametrize(
        "values", [(0.5,), (0.5, 0.4, 0.6), (2.5, 0.5, 1.0, -1.0, 9.0), (-0.1, -0.2), (7, 7)]
    )
    def test_all_at_one_go(self, values: tuple[float, ...]) -> None:
        """It is what comes of each by itself, in one bucket or several, negative ones as 0."""
        one_by_one, at_one_go = Histogram((1, 2)), Histogram((1, 2))
        for histogram in (one_by_one, at_one_go):
            histogram.observe(1.5)
        for value in values:
            one_by_one.observe(max(0.0, value))
        buckets = at_one_go.observe_all(list(values))
        assert (at_one_go.counts, at_one_go.sum) == (one_by_one.counts, one_by_one.sum)
        assert list(buckets) == [bisect_left((1, 2), value) for value in values]

    def test_a_copy_stays_as_it_was(self) -> None:
        """A snapshot does not see what is observed later."""
        histogram = Histogram((1,))
        copy = histogram.copy()
        histogram.observe(0.5, SPAN, 10)
        assert (copy.counts, copy.sum, copy.exemplars) == ([0, 0], 0, {})


class Liar(tzinfo):
    """A zone that tells its offset in winter whenever it is asked for none in particular."""

    def __str__(self) -> str:
        return "liar"

    def utcoffset(self, at: datetime | None) -> timedelta:
        return timedelta(hours=2 if at is not None and 4 <= at.month <= 9 else 1)

    def dst(self, at: datetime | None) -> timedelta:
        return self.utcoffset(at) - timedelta(hours=1)

    def tzname(self, at: datetime | None) -> str:
        return f"{self.utcoffset(at)}"


BERLIN = ZoneInfo("Europe/Berlin")


class TestUnixSeconds:
    """Due times in seconds, many at one go."""

    @pytest.mark.parametrize(
        "zone",
        [
            timezone.utc,
            timezone(timedelta(hours=-3, minutes=-30)),
            ZoneInfo("UTC"),
            ZoneInfo("Etc/GMT+5"),
            BERLIN,
            ZoneInfo("Africa/Casablanca"),
            Liar(),
        ],
        ids=str,
    )
    @pytest.mark.parametrize(
        "step", [timedelta(seconds=1), timedelta(milliseconds=100), timedelta(days=1), timedelta(0)]
    )
    def test_of_a_regular_schedule(self, zone: tzinfo, step: timedelta) -> None:
        """They are exactly what each is by itself, also where a clock is put forward or back."""
        for first in (
            datetime(2026, 3, 20, 1, 30, 0, 123457, tzinfo=zone),
            datetime(2026, 10, 20, 2, 30, tzinfo=zone),
        ):
            moments = [first + number * step for number in range(20)]
            assert list(unix_seconds(moments)) == [moment.timestamp() for moment in moments]

    def test_of_any_schedule(self) -> None:
        """Whatever comes after what, alone, and in several zones."""
        chance = random.Random(7)
        zones = [timezone.utc, BERLIN, Liar(), timezone(timedelta(hours=5))]
        for _ in range(300):
            some = chance.sample(zones, chance.randint(1, 2))
            moments = [
                datetime(2026, 1, 1, tzinfo=chance.choice(some))
                + timedelta(hours=chance.randint(0, 3), days=chance.choice([0, 0, 85, 86, 297]))
                for _ in range(chance.randint(1, 5))
            ]
            assert list(unix_seconds(moments)) == [moment.timestamp() for moment in moments]


class TestErrors:
    """What APScheduler only logs."""

    def test_counts(self, books: Books) -> None:
        """Every kind is there at 0 and counts by itself."""
        books.ledger.error(ErrorKind.SUBMIT)
        assert books.ledger.errors() == {**dict.fromkeys(ErrorKind, 0), ErrorKind.SUBMIT: 1}


class TestExecutors:
    """The executors' accounts."""

    def test_removed(self, books: Books) -> None:
        """An executor that is removed is not shown, and runs of it may still end."""
        (run,) = books.hand_over()
        books.ledger.remove_executor("default")
        books.ledger.remove_executor("default")
        assert books.ledger.executors() == {}
        books.ledger.settle(run, Outcome.SUCCESS)
        assert books.ledger.executors() == {}
        assert (books.executor.queued, books.executor.running) == (0, 0)

    def test_capacity_is_asked_when_it_is_read(self) -> None:
        """The number of workers is not asked for before somebody reads it."""
        workers = [2]
        ledger = Ledger("main")
        assert isinstance(ledger.executor("default", lambda: workers[0]), ExecutorAccount)
        workers[0] = 3
        assert ledger.executors() == {"default": (3, 0, 0)}


class TestLanes:
    """Runs in the lane of their executor, and successes that are entered at one go."""

    @pytest.mark.parametrize("exemplar", [None, SPAN])
    @pytest.mark.parametrize("late", [-2.0, 0.0, 0.3])
    def test_fresh_successes(self, late: float, exemplar: SpanContext | None) -> None:
        """All numbers are what they are after `start` and `finish`."""
        ends = []
        for is_short in (False, True):
            books = Books()
            (failed,) = books.hand_over()
            books.ledger.finish(failed, Outcome.ERROR, duration=1)
            for seconds, duration in (0, 0.004), (20, 0.25), (10, 7200.5):
                due = DUE + timedelta(seconds=seconds)
                start = due.timestamp() + late
                if is_short:
                    books.entry.fresh += due, start, duration, exemplar
                else:
                    (run,) = books.hand_over(seconds)
                    run.exemplar = exemplar
                    books.ledger.start(run, start)
                    books.ledger.finish(run, Outcome.SUCCESS, duration=duration)
            account = books.account()
            durations = account.durations
            sums = (durations.sum, durations.exemplars, account.delays.sum)
            ends.append((books.numbers(), sums))
            assert books.state() == (4, 0, 0, {"error": 1, "success": 3})
        assert ends[0] == ends[1]

    def test_fresh_ones_come_before_what_ends_now(self, books: Books) -> None:
        """The latest outcome is the latest, though the one before was not in the books yet."""
        books.entry.fresh += DUE, AT, 1.0, None
        (run,) = books.hand_over(10)
        books.ledger.finish(run, Outcome.ERROR, duration=2)
        account = books.account()
        assert (account.last_outcome, account.consecutive_failures) == (Outcome.ERROR, 1)
        books.entry.fresh += DUE, AT, 1.0, None
        books.ledger.never_ran(books.entry, Outcome.MISSED, 1)
        assert books.account().last_outcome is Outcome.MISSED
        assert books.state() == (4, 0, 0, {"success": 2, "error": 1, "missed": 1})

    def test_a_removed_job_stays_for_what_is_fresh(self, books: Books) -> None:
        """Its account is there until a scrape could see how its last run ended."""
        books.ledger.remove(books.entry, Removal.FINISHED)
        books.clock.now += REMOVED_FOR
        books.entry.fresh += DUE, AT, 1.0, None
        assert books.labels() == ["job"]
        assert books.account().outcomes[Outcome.SUCCESS] == 1
        books.clock.now += REMOVED_FOR
        assert books.labels() == []

    def test_the_way_of_a_run(self, books: Books) -> None:
        """It is posted where it stands, and is in its lane again when that is done."""
        run = books.in_lane()
        assert books.state() == (1, 1, 0, {})
        run.started = AT
        for _ in range(2):
            assert books.state() == (1, 0, 1, {})
            assert books.executor.lane == {"job": run}
        assert books.ledger.finish(run, Outcome.SUCCESS, duration=1)
        assert books.executor.lane == {}
        assert books.state() == (1, 0, 0, {"success": 1})
        assert sum(books.account().delays.counts) == 1

    def test_who_finds_it_gone_asks_again(self, books: Books) -> None:
        """A run that ends in the moment in which it is posted is not lost."""
        run = books.in_lane()
        finish = partial(books.ledger.finish, run, Outcome.SUCCESS, duration=1)
        assert books.while_posting(run, finish) is True
        assert not finish()
        assert books.state() == (1, 0, 0, {"success": 1})

    def test_who_looks_for_it_waits(self, books: Books) -> None:
        """A run that is dropped in the moment in which it is posted is found."""
        run = books.in_lane()
        look = partial(books.ledger.alone, books.executor.lane, "job")
        assert books.while_posting(run, look) == [run]
        assert books.ledger.settle(run, Outcome.MISSED)
        assert look() == []

    def test_nobody_waits_for_who_reads(self, books: Books) -> None:
        """Successes are entered the next time if somebody is at the books."""
        books.entry.fresh += DUE, AT, 1.0, None
        with books.ledger._lock:
            thread = threading.Thread(target=books.ledger.enter, args=[books.entry.account])
            thread.start()
            thread.join()
            assert books.entry.fresh == [DUE, AT, 1.0, None]
        books.ledger.enter(books.entry.account)
        assert books.entry.fresh == []
        assert books.state() == (1, 0, 0, {"success": 1})

    def test_another_comes_while_it_is_posted(self, books: Books) -> None:
        """Both are under way, and both may end."""
        run = books.in_lane()
        posting = iter(books.ledger._under_way())
        assert next(posting) is run
        other = books.in_lane()
        assert list(posting) == []
        assert books.state() == (2, 2, 0, {})
        for one in (run, other):
            assert books.ledger.settle(one, Outcome.LOST)
        assert books.state() == (2, 0, 0, {"lost": 2})

    def test_who_settles_one(self, books: Books) -> None:
        """Whoever takes it out of its lane has ended it."""
        run = books.in_lane()
        assert books.ledger.settle(run, Outcome.MISSED)
        assert books.executor.lane == {}
        assert not books.ledger.finish(run, Outcome.SUCCESS, duration=1)
        assert books.state() == (1, 0, 0, {"missed": 1})

    def test_an_executor_that_goes_and_comes_back(self, books: Books) -> None:
        """What is under way there is not forgotten, and is not counted twice."""
        run = books.in_lane()
        assert books.state() == (1, 1, 0, {})
        books.ledger.remove_executor("default")
        run.started = AT
        assert books.ledger.executors() == {}
        assert (books.account().due, books.account().running) == (1, 1)
        books.executor = books.ledger.executor("default", lambda: 4, books.executor.lane)
        assert (books.account().due, books.account().running) == (1, 1)
        books.ledger.remove_executor("default")
        assert books.ledger.finish(run, Outcome.SUCCESS, duration=1)
        assert books.account().outcomes[Outcome.SUCCESS] == 1
        assert books.ledger._left == []

    def test_interrupted_while_entering(self, books: Books) -> None:
        """Whoever reads in the midst of it, as a signal's handler may, enters nothing twice."""

        class Interrupted(list[Any]):
            def copy(self) -> list[Any]:
                copied = super().copy()
                list(books.ledger.accounts())
                return copied

        books.entry.account.fresh = Interrupted([DUE, AT, 1.0, None] * 3)
        assert books.state() == (3, 0, 0, {"success": 3})

    def test_fresh_ones_are_news(self, books: Books) -> None:
        """A reader that knows all but those is told of them."""
        ((label, account),) = books.ledger.changes({})
        assert account is not None
        known = {label: account.version}
        assert list(books.ledger.changes(known)) == [(label, None)]
        books.entry.fresh += DUE, AT, 1.0, None
        ((_, account),) = books.ledger.changes(known)
        assert account is not None
        assert account.outcomes[Outcome.SUCCESS] == 1


class TestSteady:
    """Jobs of which there is nothing to do but to note their next run."""

    def test_what_comes_up(self, books: Books) -> None:
        """What another job with the same label takes back may be promised again by this one."""
        shared = books.ledger.know(info("other", label="job"), AT + 20)
        assert books.entry.account is shared.account
        assert books.ledger.goes_on(books.entry, DUE + timedelta(seconds=10))
        assert books.entry.steady_until is None
        books.ledger.remove(shared, Removal.WITHDRAWN)
        assert books.account().withdrawn == AT + 20
        assert books.entry.steady_until == NEVER
        assert books.ledger.goes_on(books.entry, DUE + timedelta(seconds=20))
        assert books.account().withdrawn is None

    def test_after_what_was_taken_back(self, books: Books) -> None:
        """A job is steady again from when it promises what is later than that."""
        books.ledger.promise(books.entry, AT + 5, on_purpose=True)
        books.entry.account.withdrawn = AT + 15
        assert books.ledger.goes_on(books.entry, DUE + timedelta(seconds=10))
        assert books.entry.steady_until == NEVER
        assert books.ledger.goes_on(books.entry, DUE + timedelta(seconds=20))
        assert books.entry.steady_until is None

    def test_one_that_is_gone(self, books: Books) -> None:
        """There is more to do for a job that is not in the books any more."""
        books.ledger.remove(books.entry, Removal.WITHDRAWN)
        assert not books.ledger.goes_on(books.entry, DUE + timedelta(seconds=10))
        assert books.account().next_run == 0


class TestThreads:
    """Many threads that post at the same time, and one that reads."""

    def test_the_law_holds_at_any_moment(self) -> None:
        """Every snapshot balances, and in the end each run is where it was put."""
        books = Books()
        rounds, threads = 300, 8
        expected = dict.fromkeys(Outcome, 0)
        for seed in range(threads):
            for _, outcome in _fates(seed, rounds):
                expected[outcome] += 1

        def post(seed: int) -> None:
            for start, outcome in _fates(seed, rounds):
                (run,) = books.hand_over()
                if start:
                    books.ledger.start(run, AT)
                    books.ledger.finish(run, outcome, duration=0.1)
                books.ledger.settle(run, outcome)

        working = [threading.Thread(target=post, args=[seed]) for seed in range(threads)]
        for thread in working:
            thread.start()
        before = dict.fromkeys(Outcome, 0)
        while any(thread.is_alive() for thread in working):
            now = books.account().outcomes  # which checks the balance
            assert all(now[outcome] >= before[outcome] for outcome in Outcome)
            before = now
        for thread in working:
            thread.join()
        assert books.account().outcomes == expected
        assert books.ledger.executors() == {"default": (4, 0, 0)}


def readings(ledger: Ledger, alias: str) -> tuple[float | None, int]:
    store = ledger.stores()[alias]
    return store.last_read, store.failures


def jobs_per_store(ledger: Ledger) -> dict[str, int]:
    return {alias: store.jobs for alias, store in ledger.stores().items()}


def _fates(seed: int, rounds: int) -> list[tuple[bool, Outcome]]:
    dice = random.Random(seed)
    return [(dice.random() < 0.5, dice.choice(list(Outcome))) for _ in range(rounds)]
