"""
How the cost of a run and of a scrape grows: with jobs, schedulers and executors; as a plot.

Usage: growth.py [--plot docs/images/growth.svg] [--quick]

A run's cost is the CPU time that it takes more than without us; a scrape's that of the text format
after 1 % of the jobs have run. One more of anything should cost a run nothing, and a scrape in
proportion.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import time_machine
from apscheduler.schedulers import base
from prometheus_client.exposition import choose_encoder
from run_cost.drivers import DebugDriver, Frozen
from run_cost.workloads import DueJobs
from scrapes import START, Scene

JOBS = (10, 100, 1_000, 10_000)
SCHEDULERS = (1, 4, 16, 64)
EXECUTORS = (1, 4, 16, 64)
RUNS = 4_000  # at least, for each point


def per_run(jobs: int, schedulers: int = 1, executors: int = 1) -> float:
    """Return the microseconds that a run costs more with us."""
    medians = []
    kinds = {
        name: [
            DueJobs(DebugDriver, name, jobs=jobs, executors=executors) for _ in range(schedulers)
        ]
        for name in ("bare", "metrics")
    }
    passes = max(5, RUNS // (jobs * schedulers))
    took: dict[str, list[float]] = {name: [] for name in kinds}
    for turn in range(passes + 2):
        for name, workloads in kinds.items():
            seconds = statistics.fmean([workload.run_pass() for workload in workloads])
            if turn >= 2:  # noqa: PLR2004  # the first passes are for caches
                took[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in took.items()}
    return 1e6 * (medians["metrics"] - medians["bare"])


def per_scrape(jobs: int) -> float:
    """Return the milliseconds that a scrape takes after 1 % of the jobs have run."""
    encode, _ = choose_encoder("")
    with time_machine.travel(START, tick=False) as clock:
        scene = Scene(jobs, clock)
        scene.collector.expose(encode)
        took = []
        for _ in range(5):
            scene.run(0.01)
            since = time.thread_time()
            scene.collector.expose(encode)
            took.append(time.thread_time() - since)
        scene.scheduler.shutdown()
    return 1000 * statistics.median(took)


def plot(path: Path, panels: dict[str, tuple[Sequence[int], list[float], str]]) -> None:
    """Draw a panel for each of them."""
    import matplotlib as mpl  # noqa: PLC0415  # only needed here

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "growth"  # the same numbers make the same file
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3), layout="constrained")
    for axis, (title, (numbers, costs, unit)) in zip(axes, panels.items(), strict=True):
        axis.plot(numbers, costs, marker="o", color="#0072b2")
        axis.set_xscale("log")
        axis.set_xticks(numbers, [f"{number:,}" for number in numbers])
        axis.minorticks_off()
        axis.set_ylim(0, 1.3 * max(costs))
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print the numbers, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="two small points for each")
    options = parser.parse_args()
    first = slice(2) if options.quick else slice(None)
    base.datetime = Frozen
    runs = [per_run(jobs) for jobs in JOBS[first]]
    by_schedulers = [per_run(20, schedulers=number) for number in SCHEDULERS[first]]
    by_executors = [per_run(128, executors=number) for number in EXECUTORS[first]]
    base.datetime = Frozen.__base__
    panels = {
        "a run, by jobs": (JOBS[first], runs, "us"),
        "a run, by schedulers": (SCHEDULERS[first], by_schedulers, "us"),
        "a run, by executors": (EXECUTORS[first], by_executors, "us"),
        "a scrape, by jobs": (JOBS[first], [per_scrape(jobs) for jobs in JOBS[first]], "ms"),
    }
    for title, (numbers, costs, unit) in panels.items():
        for number, cost in zip(numbers, costs, strict=True):
            print(f"{title:22} {number:6} {cost:8.2f} {unit}", flush=True)
    if options.plot:
        plot(options.plot, panels)


if __name__ == "__main__":
    main()
