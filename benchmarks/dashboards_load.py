"""
What the dashboards' queries take: a real Prometheus, and the real series of a scheduler's 500 jobs.

Usage: dashboards_load.py [--jobs 500] [--seconds 540]

So as not to wait for an hour, all goes faster, as in rules_load.py: Prometheus scrapes and
evaluates every second, the rules' ranges are a thirtieth, and the overview's hour is 240 seconds,
which hold as many samples as an hour does at an interval of 15 seconds. The other dashboards have
as much of their longer ranges as there is by then. Each query runs several times, once everything
else has been asked; the medians are held against the target. Prometheus goes on scraping and
evaluating meanwhile.

On a machine that does other things as well, look at the processor time, which is what Prometheus
itself used for a query, its scrapes and rules subtracted; on an idle one, the two are about equal.
"""

import argparse
import logging
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import rules_load

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.helpers import grafana_queries
from tests.helpers.servers import free_port

TARGET = 0.1  # seconds a query, for 500 jobs
RUNS = 7
MANY = 20  # runs in a row, as the clock of processor time ticks a hundred times a second
FASTER = 15
RANGES = {"overview": 3600, "job": 6 * 3600, "scheduler": 3 * 3600, "runs": 24 * 3600}
PIXELS = 1366  # Grafana asks for one point a pixel


def processor_time(url: str) -> float:
    """Return the seconds of processor time that Prometheus has used so far."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:  # noqa: S310  # loopback
        text = answer.read().decode()
    return float(re.search(r"^process_cpu_seconds_total (.*)$", text, re.MULTILINE)[1])


def timed(url: str, query: dict[str, str], path: str) -> tuple[float, int]:
    """Return the seconds that a query took, and how many series it has."""
    begin = time.perf_counter()
    found = rules_load.ask(url, path, **query)["result"]
    return time.perf_counter() - begin, len(found)


def prepared(elapsed: float) -> list[tuple[str, str, str, dict[str, str]]]:
    """Return each query: its dashboard, its panel, and how to ask it."""
    prepared = []
    for name, seconds in RANGES.items():
        dashboard = grafana_queries.load(name)
        model = grafana_queries.variables(dashboard)
        chosen: dict[str, Any] = {key: [grafana_queries.ALL] for key in model}
        if name == "job":
            chosen = {"application": "load", "scheduler": "default", "job_id": "job-50"}
        span = min(seconds / FASTER, elapsed)
        for panel, target in grafana_queries.queries(dashboard):
            points = PIXELS * panel["gridPos"]["w"] // 24
            asked = grafana_queries.Range(span, points=points, scrape=rules_load.STEP)
            query = {
                "query": grafana_queries.fill(target["expr"], model, chosen, asked.values(panel))
            }
            path = "query"
            if not target.get("instant"):
                path = "query_range"
                end = time.time()
                query |= {
                    "start": str(end - span),
                    "end": str(end),
                    "step": str(asked.interval(panel)),
                }
            prepared.append((name, f"{panel['title']}, {target['refId']}", path, query))
    return prepared


def main() -> int:
    """Print the table, and return 0 if the target is met."""
    logging.disable(logging.ERROR)  # one job in fifty fails, on purpose
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=540)
    options = parser.parse_args()
    rules_load.STEP, rules_load.PORT = 1, free_port()
    with (
        tempfile.TemporaryDirectory(prefix="dashboards-load-") as directory,
        rules_load.serving(rules_load.Exposition(options.jobs)) as port,
        rules_load.prometheus(Path(directory), port) as url,
    ):
        time.sleep(options.seconds)
        taken: dict[tuple[str, str], list[float]] = {}
        series: dict[tuple[str, str], int] = {}
        used: dict[tuple[str, str], float] = {}
        begin, before = time.perf_counter(), processor_time(url)
        time.sleep(20)
        idle = (processor_time(url) - before) / (time.perf_counter() - begin)
        for name, what, path, query in prepared(options.seconds):
            begin, before = time.perf_counter(), processor_time(url)
            for _ in range(MANY):
                timed(url, query, path)
            more = processor_time(url) - before - idle * (time.perf_counter() - begin)
            used[name, what] = max(0.0, more) / MANY
        for _ in range(RUNS):
            for name, what, path, query in prepared(options.seconds):
                seconds, series[name, what] = timed(url, query, path)
                taken.setdefault((name, what), []).append(seconds)
        scraped = rules_load.ask(url, "query", query="scrape_samples_scraped")["result"]
        version = rules_load.ask(url, "status/buildinfo")["version"]
    medians = {key: statistics.median(times) for key, times in taken.items()}
    print(f"Prometheus {version}, {options.jobs} jobs, {scraped[0]['value'][1]} series scraped")
    print(f"{len(medians)} queries, {RUNS} times each\n")
    print("| dashboard | panel, query | series | processor | median | slowest |")
    print("|---|---|---|---|---|---|")
    for key, median in sorted(medians.items(), key=lambda item: -used[item[0]])[:15]:
        print(
            f"| {key[0]} | {key[1]} | {series[key]}"
            f" | {used[key] * 1000:.0f} ms | {median * 1000:.0f} ms"
            f" | {max(taken[key]) * 1000:.0f} ms |"
        )
    over = sum(median > TARGET for median in medians.values())
    heavy = sum(seconds > TARGET for seconds in used.values())
    print(f"\n{over} queries take longer than {TARGET * 1000:.0f} ms in the median,")
    print(f"{heavy} use more processor time. Without queries Prometheus uses {idle:.0%} of a core.")
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
