"""
The matrix: which schedulers, executors and kinds of jobs there are, and what each must do.

`play` plays it, a process for each scheduler, and `test_matrix` asks. Children of process
pools import this module, so it stays light.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tests.helpers import jobs


class World(NamedTuple):
    """
    A scheduler where it is at home.

    Attributes:
        libraries: what it needs.
        rows: its executors, each with the kind of callable that it runs.
        faults: ways in which its loop can die, of `FAULTS`.
    """

    libraries: Sequence[str]
    rows: Sequence[tuple[str, str]]
    faults: Sequence[str] = ()


POOLS = (("threadpool", "function"), ("processpool", "function"), ("debug", "function"))
"""Executors that any scheduler can have."""

WORLDS: Mapping[str, World] = {
    "background": World((), POOLS, ("failed pass",)),
    "blocking": World((), POOLS, ("failed pass",)),
    "asyncio": World(
        (),
        (("asyncio", "function"), ("asyncio", "coroutine"), *POOLS),
        ("failed pass", "lost timer", "left behind"),
    ),
    "tornado": World(
        ("tornado",),
        (("tornado", "function"), ("tornado", "coroutine"), *POOLS),
        ("failed pass", "lost timer", "left behind"),
    ),
    "twisted": World(
        ("twisted",),
        (("twisted", "function"), *POOLS),
        ("failed pass", "lost timer", "left behind"),
    ),
    "gevent": World(
        ("gevent",),
        (("gevent", "greenlet"), *POOLS[:2], ("debug", "greenlet")),
        ("failed pass", "killed", "killed early", "blocked"),
    ),
    "gevent patched": World(
        ("gevent",),
        (("gevent", "function"), *POOLS),
        ("failed pass", "killed", "killed early"),
    ),
    "background patched": World(("gevent",), (("gevent", "function"), *POOLS), ("failed pass",)),
    "qt": World(("PySide6",), POOLS, ("failed pass", "woken from a thread", "left behind")),
    "own": World((), (("own", "function"), *POOLS), ("failed pass",)),
}
"""
By name. In the patched ones, gevent has made all threads greenlets. The own one is a scheduler of
the user's that does everything in its own way, with an executor that does, too.
"""

FAULTS = {
    "failed pass": "A pass that fails is reported; where the loop survives, the next one recovers.",
    "lost timer": "A loop whose timer was lost is reported when the next pass is overdue.",
    "left behind": "A scheduler that was left running by a loop that has ended is reported.",
    "killed": "A greenlet that was killed is reported.",
    "killed early": "So is one that was killed before it was instrumented, or before it turned.",
    "blocked": "A hub that a greenlet does not let go is reported, and recovers.",
    "woken from a thread": "A wakeup that Qt loses, as it came from another thread, is reported.",
}
"""Ways in which a loop can die."""

BEHAVIOURS = {
    "success": "A run that returns counts as a success, once, with its duration.",
    "error": "A run that raises counts as an error, by the type of its exception.",
    "slow": "A run is seen while it runs, and takes as long as its callable did.",
    "queued": "A run that waits for a worker is queued, and its wait is delay, not duration.",
    "missed": "A run that comes too late counts as missed.",
    "skipped": "A run that is due while the one before goes on counts as skipped.",
    "coalesced": "Runs that are folded into one count as coalesced, all but that one.",
    "lost": "A run whose result never comes counts as lost.",
    "span": "Its span is current in a run, to the end, whatever else runs meanwhile.",
    "identity": "Listeners get the very objects that the job returned and raised, and plain ids.",
}

IMPOSSIBLE: Mapping[tuple[str, str], str] = {
    ("queued", "debug"): "the loop runs the job right there, so a run waits for the loop",
    ("queued", "gevent"): "each run gets a greenlet of its own at once",
    ("queued", "coroutine"): "each run gets a task of its own at once",
    ("skipped", "debug"): "the loop waits for the run, so no two runs overlap",
}
"""
What cannot be, by behaviour and executor or kind of callable, and why.

The cell is played all the same, and shows just that.
"""


class Cell(NamedTuple):
    """One behaviour of one kind of callable on one executor of one scheduler."""

    world: str
    executor: str
    kind: str
    behaviour: str

    @property
    def impossible(self) -> str | None:
        """Why this cannot be, None where it can."""
        by_executor = IMPOSSIBLE.get((self.behaviour, self.executor))
        return by_executor or IMPOSSIBLE.get((self.behaviour, self.kind))

    def __str__(self) -> str:
        return f"{self.world}, {self.executor}, {self.kind}: {self.behaviour}"


CELLS = [
    Cell(world, executor, kind, behaviour)
    for world, (_, rows, _) in WORLDS.items()
    for executor, kind in rows
    for behaviour in BEHAVIOURS
]
BROKEN = [(world, fault) for world, (_, _, faults) in WORLDS.items() for fault in faults]


def missing(world: str) -> list[str]:
    """Return the libraries that a world needs and that are not installed."""
    needed = ("opentelemetry.sdk", *WORLDS[world].libraries)
    return [name for name in needed if not _is_there(name)]


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # what it is part of
        return False


# The jobs: what an in-process function, a coroutine function and a greenlet have to do


def current_span() -> tuple[str, str]:
    """Return the ids of the current trace and span."""
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    return trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)


def hold(directory: str, name: str) -> list[tuple[str, str]]:
    """Run until `name` is let go; return which spans were current in the beginning and the end."""
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


def waits(directory: str, name: str) -> Iterator[float]:
    """Say in `directory` that the job runs, and yield for how long to sleep until it is let go."""
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
    """What a job returns; equal to a copy of itself."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Value)

    __hash__ = None  # type: ignore[assignment]


class Kind(NamedTuple):
    """The jobs as one kind of callable."""

    give_back: Any = jobs.give_back
    throw: Any = raise_function
    hold: Any = hold


KINDS = {
    "function": Kind(),
    "coroutine": Kind(give_back_coroutine, raise_coroutine, hold_coroutine),
    "greenlet": Kind(hold=hold_greenlet),
}


def table() -> Iterator[str]:
    """Yield the lines of the table in the manual: a row for each executor of each scheduler."""
    yield f"| scheduler | executor | jobs | {' | '.join(BEHAVIOURS)} |"
    yield "|---" * (3 + len(BEHAVIOURS)) + "|"
    for world, (_, rows, _) in WORLDS.items():
        for executor, kind in rows:
            cells = (Cell(world, executor, kind, behaviour) for behaviour in BEHAVIOURS)
            marks = " | ".join("–" if cell.impossible else "✓" for cell in cells)
            yield f"| {world} | {executor} | {kind}s | {marks} |"
