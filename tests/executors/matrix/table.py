"""
The matrix: which schedulers, executors and kinds of jobs there are, and how each must behave.

`runner` runs it, in one process for each runtime, and `test_matrix` checks the results. Children of
process pools import this module, so it imports little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from apscheduler_telemetry import current_run
from tests.helpers import jobs


class RuntimeSpec(NamedTuple):
    """
    A scheduler in the runtime that it is made for.

    Attributes:
        libraries: the libraries that it needs.
        rows: its executors, each with the kind of callable that it runs.
        faults: the faults of its loop that are tested, of `FAULTS`.
    """

    libraries: Sequence[str]
    rows: Sequence[tuple[str, str]]
    faults: Sequence[str] = ()


POOLS = (("threadpool", "function"), ("processpool", "function"), ("debug", "function"))
"""Executors that any scheduler can have."""

RUNTIMES: Mapping[str, RuntimeSpec] = {
    "background": RuntimeSpec((), POOLS, ("failed pass",)),
    "blocking": RuntimeSpec((), POOLS, ("failed pass",)),
    "asyncio": RuntimeSpec(
        (),
        (("asyncio", "function"), ("asyncio", "coroutine"), *POOLS),
        ("failed pass", "lost timer", "left behind"),
    ),
    "tornado": RuntimeSpec(
        ("tornado",),
        (("tornado", "function"), ("tornado", "coroutine"), *POOLS),
        ("failed pass", "lost timer", "left behind"),
    ),
    "twisted": RuntimeSpec(
        ("twisted",),
        (("twisted", "function"), *POOLS),
        ("failed pass", "lost timer", "left behind"),
    ),
    "gevent": RuntimeSpec(
        ("gevent",),
        (("gevent", "greenlet"), *POOLS[:2], ("debug", "greenlet")),
        ("failed pass", "killed", "killed early", "blocked"),
    ),
    "gevent patched": RuntimeSpec(
        ("gevent",),
        (("gevent", "function"), *POOLS),
        ("failed pass", "killed", "killed early"),
    ),
    "background patched": RuntimeSpec(
        ("gevent",), (("gevent", "function"), *POOLS), ("failed pass",)
    ),
    "qt": RuntimeSpec(("PySide6",), POOLS, ("failed pass", "woken from a thread", "left behind")),
    "own": RuntimeSpec((), (("own", "function"), *POOLS), ("failed pass",)),
}
"""
The runtimes by name. In those that are "patched", gevent has replaced all threads by greenlets.
"own" has a scheduler and an executor as a user may write them, which override everything.
"""

FAULTS = {
    "failed pass": "A pass that fails is reported; where the loop survives, the next one recovers.",
    "lost timer": "A loop whose timer was lost is reported when the next pass is overdue.",
    "left behind": "A scheduler that was left running by a loop that has ended is reported.",
    "killed": "A greenlet that was killed is reported.",
    "killed early": "A greenlet that was killed before its first pass, or before it was "
    "instrumented, is reported.",
    "blocked": "A gevent hub that is blocked by a greenlet is reported, and recovers.",
    "woken from a thread": "A wakeup that Qt loses, as it came from another thread, is reported.",
}
"""Faults that stop the loop of a scheduler."""

BEHAVIOURS = {
    "success": "A run that returns counts as a success, once, with its duration.",
    "error": "A run that raises counts as an error, by the type of its exception.",
    "slow": "A run is seen while it runs, and takes as long as its callable did.",
    "queued": "A run that waits for a worker is queued, and its wait is delay, not duration.",
    "missed": "A run that comes too late counts as missed.",
    "skipped": "A run that is due while the previous one still runs counts as skipped.",
    "coalesced": "Of runs that are coalesced, all but the one that runs count as coalesced.",
    "lost": "A run whose result never arrives counts as lost.",
    "recorded": "What a run records of itself counts for that run, also while other runs go on.",
    "span": "The span of a run is the current span until its end, also while other runs go on.",
    "identity": "Listeners get the same objects that the job returned and raised, and plain ids.",
}

IMPOSSIBLE: Mapping[tuple[str, str], str] = {
    ("queued", "debug"): "the loop runs the job right there, so a run waits for the loop",
    ("queued", "gevent"): "each run gets a greenlet of its own at once",
    ("queued", "coroutine"): "each run gets a task of its own at once",
    ("skipped", "debug"): "the loop waits for the run, so no two runs overlap",
}
"""
Behaviours that are impossible, by behaviour and executor or kind of callable, and why.

Such a cell is run as well, and checks that the behaviour is impossible.
"""


class Cell(NamedTuple):
    """One behaviour of one kind of callable on one executor of one scheduler."""

    runtime: str
    executor: str
    kind: str
    behaviour: str

    @property
    def impossible(self) -> str | None:
        """Why this cell is impossible; None if it is possible."""
        by_executor = IMPOSSIBLE.get((self.behaviour, self.executor))
        return by_executor or IMPOSSIBLE.get((self.behaviour, self.kind))

    def __str__(self) -> str:
        return f"{self.runtime}, {self.executor}, {self.kind}: {self.behaviour}"


CELLS = [
    Cell(runtime, executor, kind, behaviour)
    for runtime, (_, rows, _) in RUNTIMES.items()
    for executor, kind in rows
    for behaviour in BEHAVIOURS
]
BROKEN = [(runtime, fault) for runtime, (_, _, faults) in RUNTIMES.items() for fault in faults]


def missing(runtime: str) -> list[str]:
    """Return the libraries of a runtime that are not installed."""
    needed = ("opentelemetry.sdk", *RUNTIMES[runtime].libraries)
    return [name for name in needed if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # what it is part of
        return False


# The jobs, as functions, coroutine functions and functions for greenlets


def current_span() -> tuple[str, str]:
    """Return the ids of the current trace and span."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def hold(directory: str, name: str) -> list[tuple[str, str]]:
    """Run until `name` is released; return the current spans at the beginning and the end."""
    before = current_span()
    jobs.hold(directory, name)
    return [before, current_span()]


async def hold_coroutine(directory: str, name: str) -> list[tuple[str, str]]:
    before = current_span()
    for seconds in waits(directory, name):
        await asyncio.sleep(seconds)
    return [before, current_span()]


def hold_greenlet(directory: str, name: str) -> list[tuple[str, str]]:
    import gevent

    before = current_span()
    for seconds in waits(directory, name):
        gevent.sleep(seconds)
    return [before, current_span()]


def record(directory: str, name: str, rows: int) -> None:
    """Record at the beginning and at the end of a run that is held."""
    current_run().record(rows=rows)
    hold(directory, name)
    current_run().record(rows=rows)


async def record_coroutine(directory: str, name: str, rows: int) -> None:
    """Record in a task and in a thread of the run."""

    async def record_in_task() -> None:
        current_run().record(rows=rows)

    await asyncio.gather(record_in_task())
    await hold_coroutine(directory, name)
    await asyncio.to_thread(lambda: current_run().record(rows=rows))


def record_greenlet(directory: str, name: str, rows: int) -> None:
    current_run().record(rows=rows)
    hold_greenlet(directory, name)
    current_run().record(rows=rows)


def waits(directory: str, name: str) -> Iterator[float]:
    """Announce in `directory` that the job runs; yield seconds to sleep until it is released."""
    jobs.announce(directory, f"{name}.in")
    while not Path(directory, f"{name}.out").exists():
        yield 0.005


async def give_back_coroutine(value: Any) -> Any:
    return value


async def raise_coroutine(exception: BaseException) -> NoReturn:
    raise exception


def raise_function(exception: BaseException) -> NoReturn:
    raise exception


class Value:
    """A result of a job that is equal to its copies."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value)

    __hash__ = None  # type: ignore[assignment]


class Kind(NamedTuple):
    """The jobs of the matrix, as one kind of callable."""

    give_back: Any = jobs.give_back
    throw: Any = raise_function
    hold: Any = hold
    record: Any = record


KINDS = {
    "function": Kind(),
    "coroutine": Kind(give_back_coroutine, raise_coroutine, hold_coroutine, record_coroutine),
    "greenlet": Kind(hold=hold_greenlet, record=record_greenlet),
}


def table() -> Iterator[str]:
    """Yield the lines of the table in the manual: a row for each executor of each scheduler."""
    yield f"| scheduler | executor | jobs | {' | '.join(BEHAVIOURS)} |"
    yield "|---" * (3 + len(BEHAVIOURS)) + "|"
    for runtime, (_, rows, _) in RUNTIMES.items():
        for executor, kind in rows:
            cells = (Cell(runtime, executor, kind, behaviour) for behaviour in BEHAVIOURS)
            marks = " | ".join("–" if cell.impossible else "✓" for cell in cells)
            yield f"| {runtime} | {executor} | {kind}s | {marks} |"
