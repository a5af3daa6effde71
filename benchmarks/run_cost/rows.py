"""
The rows of the table: one for every way of running jobs, with what it may cost.

A new way of running needs a row here, so that you notice when it becomes slow.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

from apscheduler_telemetry.core.recorder import MAX_RUNS_NOT_ADDED_UP

from . import drivers
from .contenders import CONTENDERS
from .workloads import AddedJobs, DueJobs, Workload

MANY = 100  # jobs that are due at once
FEW_CONTENDERS = ("bare", "listener", "metrics")
ALL_CONTENDERS = tuple(CONTENDERS)
UNDER_GEVENT = ("-m", "gevent.monkey")  # runs a program in a patched standard library


@dataclass(frozen=True, kw_only=True)
class Target:
    """
    How much a contender may cost: what it adds to the bare cost, against what another one adds.

    Args:
        ours: The contender that is judged.
        theirs: The contender that it is compared with.
        at_most: The highest ratio that is allowed.
        of_wholes: Whether whole costs are compared, those of the bare scheduler included.
    """

    ours: str = "metrics"
    theirs: str = "listener"
    at_most: float
    of_wholes: bool = False

    def ratio(self, costs: Mapping[str, float]) -> float | None:
        """Return the ratio, or None where one of the costs was not measured."""
        if not {"bare", self.ours, self.theirs} <= costs.keys():
            return None
        bare = 0 if self.of_wholes else costs["bare"]
        return (costs[self.ours] - bare) / (costs[self.theirs] - bare)


SPANS_TARGET = Target(ours="spans", theirs="bare span", at_most=1.15)
SDK_TARGET = 2e-6  # seconds of CPU time that an absent SDK may add to a run
JUDGED_FOR_SDK = "debug-100"  # elsewhere, clocks vary by more than the target


@dataclass(frozen=True, kw_only=True)
class Row:
    """
    A way of running jobs.

    Ours adds up finished runs in batches, so that each turn by the clock, and each count, has as
    many runs as a batch.

    Args:
        name: How it is chosen and printed.
        workload: Makes it, given the name of a contender and, as ``jobs``, how many there are.
        target: What ours may cost.
        jobs: How many jobs are due, or are added, in a pass.
        burst: How many runs of each job are submitted at once.
        passes: How many passes a turn by the clock has.
        counted_turns: How many times as many a count has.
        contenders: Those that are measured unless others are asked for.
        launcher: What comes between Python and the program.
    """

    name: str
    workload: Callable[..., Workload]
    target: Target
    jobs: int = MANY
    burst: int = 1
    passes: int = ceil(MAX_RUNS_NOT_ADDED_UP / MANY)
    counted_turns: int = 1
    contenders: Sequence[str] = FEW_CONTENDERS
    launcher: Sequence[str] = ()

    @property
    def runs_per_pass(self) -> int:
        """How many runs, or calls, a pass has."""
        return self.jobs * self.burst

    @property
    def counted_passes(self) -> int:
        """How many passes are counted."""
        return self.counted_turns * self.passes

    @property
    def warm_up_passes(self) -> int:
        """How many passes come before anything is measured."""
        return 2 * self.passes


AT_ONCE = Target(at_most=0.75)
ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row(
            name="debug-100",
            workload=partial(DueJobs, drivers.DebugDriver),
            target=AT_ONCE,
            contenders=ALL_CONTENDERS,
        ),
        Row(
            name="threads-100",
            workload=partial(DueJobs, drivers.ThreadPoolDriver),
            target=AT_ONCE,
            contenders=ALL_CONTENDERS,
        ),
        Row(
            name="asyncio-100",
            workload=partial(DueJobs, drivers.AsyncioDriver),
            target=AT_ONCE,
            contenders=ALL_CONTENDERS,
        ),
        Row(
            name="asyncio-threads-100",
            workload=partial(DueJobs, drivers.AsyncioThreadsDriver),
            target=AT_ONCE,
        ),
        Row(
            name="asyncio-1",
            workload=partial(DueJobs, drivers.AsyncioDriver),
            target=Target(at_most=0.90),
            jobs=1,
            passes=MAX_RUNS_NOT_ADDED_UP,
        ),
        Row(
            name="gevent-100",
            workload=partial(DueJobs, drivers.GeventDriver),
            target=AT_ONCE,
            launcher=UNDER_GEVENT,
        ),
        Row(
            name="tornado-100",
            workload=partial(DueJobs, drivers.TornadoDriver),
            target=AT_ONCE,
        ),
        Row(
            name="tornado-threads-100",
            workload=partial(DueJobs, drivers.TornadoThreadsDriver),
            target=AT_ONCE,
        ),
        Row(
            name="twisted-100",
            workload=partial(DueJobs, drivers.TwistedDriver),
            target=AT_ONCE,
        ),
        Row(
            name="bursts-of-5",
            workload=partial(DueJobs, drivers.DebugDriver, burst=5),
            target=Target(at_most=0.45),
            burst=5,
            passes=ceil(MAX_RUNS_NOT_ADDED_UP / MANY / 5),
        ),
        Row(
            name="process-pool-100",
            workload=partial(DueJobs, drivers.ProcessPoolDriver),
            target=Target(at_most=1.75),
        ),
        Row(
            name="add-job-interval",
            workload=partial(AddedJobs, ("interval", {"minutes": 5})),
            target=Target(theirs="bare", at_most=1.5, of_wholes=True),
            passes=8,
            counted_turns=3,
        ),
        Row(
            name="add-job-cron",
            workload=partial(AddedJobs, ("cron", {"hour": 3})),
            target=Target(theirs="bare", at_most=1.5, of_wholes=True),
            passes=8,
            counted_turns=3,
        ),
    )
}
