"""
Cost of a scrape: our endpoint and the encoder of prometheus_client with the same series.

Usage: scrapes.py [--jobs 10 1000 10000] [--repeat 7]

A scheduler has this number of jobs, each of which has run. Between two scrapes a share of them runs
again. Then the contenders take turns: our endpoint, with its cached text; the encoder of
`prometheus_client`; and a join of the finished lines, which is the lower limit. The output is the
median of the CPU time, so other processes do not count. With gzip, each compresses as its server
does.
"""

import argparse
import gzip
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any

import time_machine
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers import base
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from apscheduler_telemetry import instrument
from apscheduler_telemetry.export.prometheus import get_or_create_exporter
from apscheduler_telemetry.http.negotiation import join_and_gzip

START = datetime(2040, 1, 1, tzinfo=timezone.utc)
FORMATS = {
    "text": ("", parse_text),
    "OpenMetrics": ("application/openmetrics-text;version=1.0.0", parse_openmetrics),
}
SHARES = (0.0, 0.01, 1.0)
TARGETS = {0.01: 0.1, 1.0: 1.0}
"""By share of jobs that ran, what ours may cost of theirs, with `TARGET_JOBS`."""
TARGET_JOBS = 10_000


def work() -> None:
    """Do nothing."""


class Scheduler(base.BaseScheduler):
    """A real scheduler whose loop is run by hand."""

    def wakeup(self) -> None:
        """Do nothing: see `turn`."""

    def shutdown(self, wait: bool = True) -> None:  # noqa: FBT001, FBT002
        """Shut down."""
        super().shutdown(wait)

    def turn(self) -> None:
        """Run what is due."""
        self._process_jobs()


class Scene:
    """A scheduler with jobs that have run, and its registry."""

    def __init__(self, jobs: int, clock: Any) -> None:
        self.clock = clock
        self.registry = CollectorRegistry()
        self.scheduler = Scheduler(timezone="UTC", executors={"default": DebugExecutor()})
        instrument(self.scheduler, registry=self.registry, max_labels=jobs)
        self.collector = get_or_create_exporter(self.registry)
        for number in range(jobs):
            self.scheduler.add_job(work, "interval", days=1, id=f"job-{number}")
        self.scheduler.start()
        self.jobs = self.scheduler.get_jobs()
        clock.shift(timedelta(days=1, seconds=1))
        self.scheduler.turn()

    def run(self, share: float) -> None:
        """Let a share of the jobs run once more, as they do when they are triggered by hand."""
        for job in random.sample(self.jobs, round(share * len(self.jobs))):
            job.modify(next_run_time=datetime.now(timezone.utc))
        self.scheduler.turn()
        self.clock.shift(timedelta(seconds=1))

    def check(self, accept: str, parse: Callable[[str], Any]) -> int:
        """Check that both ways give the same bytes, which can be read; return how many."""
        encode, _ = choose_encoder(accept)
        ours, theirs = b"".join(self.collector.expose(encode)), encode(self.registry)
        if ours != theirs:
            sys.exit("The bytes differ.")
        samples = sum(len(family.samples) for family in parse(ours.decode()))
        if samples < 40 * len(self.jobs):
            sys.exit(f"Only {samples} samples could be read back.")
        return len(ours)


def timed(what: Callable[[], Any]) -> tuple[Any, float]:
    """Return what something returned, and the seconds of CPU time that it took."""
    since = time.thread_time()
    result = what()
    return result, time.thread_time() - since


def measure(scene: Scene, accept: str, share: float, repeat: int) -> dict[str, float]:
    """Return the median seconds of each way to answer."""
    encode, _ = choose_encoder(accept)
    lines = encode(scene.registry).splitlines(keepends=True)
    ways: dict[str, tuple[Callable[[], Any], Callable[[Any], bytes] | None]] = {
        "ours": (lambda: scene.collector.expose(encode), join_and_gzip),
        "theirs": (lambda: encode(scene.registry), gzip.compress),
        "limit": (lambda: b"".join(lines), None),
    }
    seconds: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(repeat):
        scene.run(share)
        for name, (answer, pack) in ways.items():
            body, spent = timed(answer)
            seconds[name].append(spent)
            if pack is not None:
                _, packing = timed(partial(pack, body))
                seconds[f"{name}, gzip"].append(spent + packing)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main() -> int:
    """Print the table; the exit status is 1 if a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, nargs="*", default=[10, 1_000, TARGET_JOBS])
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    missed = 0
    print("jobs    format       ran    ours ms  theirs ms   ratio  gzip ratio  limit ms  MB")
    for jobs in options.jobs:
        with time_machine.travel(START, tick=False) as clock:
            scene = Scene(jobs, clock)
            for name, (accept, parse) in FORMATS.items():
                size = scene.check(accept, parse)
                for share in SHARES:
                    ms = {
                        way: 1000 * seconds
                        for way, seconds in measure(scene, accept, share, options.repeat).items()
                    }
                    ratio = ms["ours"] / ms["theirs"]
                    zipped = ms["ours, gzip"] / ms["theirs, gzip"]
                    target = TARGETS.get(share) if jobs == TARGET_JOBS else None
                    missed += target is not None and max(ratio, zipped) > target
                    row = (ms["ours"], ms["theirs"], ratio, zipped, ms["limit"], size / 1e6)
                    print(
                        f"{jobs:<7} {name:<11} {share:>5.0%}"
                        + "{:10.2f} {:10.2f} {:7.3f} {:11.3f} {:9.2f} {:5.1f}".format(*row)
                        + ("" if target is None else f"  (target {target})"),
                        flush=True,
                    )
            scene.scheduler.shutdown()
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
