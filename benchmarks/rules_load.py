"""
What the alert rules cost Prometheus: a real one, and the real series of a scheduler's 1,000 jobs.

Usage: rules_load.py [--jobs 1000]

The latches look back an hour, 120 samples at the usual interval of 30 seconds. So as not to wait
for an hour, all goes 15 times faster here: Prometheus scrapes and evaluates every two seconds, and
every range of the rules is divided by 15, so that it holds as many samples as in production. Once
the windows are full it slows down, as in production the rules do not compete with a scrape of all
series every two seconds. What the rules of each group take then is read from Prometheus itself, and
held against the interval of production: 30 seconds, or 60 for a group that asks for it.
"""

import argparse
import contextlib
import json
import logging
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from apscheduler_telemetry import instrument

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "demo"))
from speed import faster_rules

RULES = Path(__file__).parent.parent / "alerts" / "apscheduler.rules.yml"
STEP = 2  # seconds between scrapes, and between evaluations
ENOUGH = 120  # samples, those of an hour at 30 seconds
SLOW_STEP = 5  # seconds, while it is measured: a tenth of the samples is gone at the end
MEASURED = 25  # seconds
TARGET = 0.02  # of the interval, for 1,000 jobs on 2 cores
PORT = 9097


def work() -> None:
    """Do next to nothing."""


def fail() -> None:
    """Raise."""
    raise ValueError


class Exposition:
    """The metrics of a live scheduler, rendered now and then so that rendering is not measured."""

    def __init__(self, jobs: int) -> None:
        self._registry = CollectorRegistry()
        scheduler = BackgroundScheduler(executors={"default": ThreadPoolExecutor(4)})
        instrument(scheduler, registry=self._registry)
        scheduler.start()
        for number in range(jobs):
            scheduler.add_job(
                fail if number % 50 == 0 else work, "interval", seconds=60, id=f"job-{number}"
            )
        self.text = generate_latest(self._registry)
        threading.Thread(target=self._refresh, daemon=True).start()

    def _refresh(self) -> None:
        while True:
            time.sleep(15)
            self.text = generate_latest(self._registry)


@contextlib.contextmanager
def serving(exposition: Exposition) -> Iterator[int]:
    """Serve an exposition, and yield the port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = exposition.text
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@contextlib.contextmanager
def prometheus(directory: Path, target: int) -> Iterator[str]:
    """Run Prometheus, and yield its URL."""
    binary = shutil.which("prometheus")
    if binary is None:
        sys.exit("prometheus is not installed (Debian package prometheus)")
    (directory / "rules.yml").write_text(faster_rules(RULES.read_text(), 30 / STEP))
    config = configure(directory, target, scrape=STEP, evaluate=STEP)
    command = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{PORT}",
        "--web.enable-lifecycle",
        "--log.level=warn",
    ]
    process = subprocess.Popen(command)
    try:
        yield f"http://127.0.0.1:{PORT}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def configure(directory: Path, target: int, *, scrape: float, evaluate: float) -> Path:
    """Write the configuration of Prometheus, and return its path."""
    config = directory / "prometheus.yml"
    config.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": f"{scrape}s", "evaluation_interval": f"{evaluate}s"},
                "rule_files": [str(directory / "rules.yml")],
                "scrape_configs": [
                    {"job_name": "load", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
                ],
            }
        )
    )
    return config


def ask(url: str, path: str, **parameters: str) -> Any:
    """Return the data of an API call."""
    address = f"{url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310  # loopback
        return json.load(answer)["data"]


def evaluations(url: str, seconds: float) -> dict[str, dict[str, float]]:
    """Return, by group, what each evaluation of the next `seconds` takes, by its time."""
    taken: dict[str, dict[str, float]] = {}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for group in groups(url):
            taken.setdefault(group["name"], {})[group["lastEvaluation"]] = group["evaluationTime"]
        time.sleep(1)
    return taken


def groups(url: str) -> list[Any]:
    """Return the groups of rules, all of which have to be healthy."""
    found: list[Any] = ask(url, "rules")["groups"]
    unhealthy = [
        rule["name"] for group in found for rule in group["rules"] if rule["health"] == "err"
    ]
    if unhealthy:
        sys.exit(f"rules that fail: {unhealthy}")
    return found


def main() -> int:
    """Print the table, and return 0 if the target is met."""
    logging.disable(logging.ERROR)  # one job in fifty fails, on purpose
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--jobs", type=int, default=1000)
    options = parser.parse_args()
    intervals = {
        name.split("\n")[0]: 60 if "    interval: 1m\n" in name else 30
        for name in RULES.read_text().split("  - name: ")[1:]
    }
    with tempfile.TemporaryDirectory(prefix="rules-load-") as directory:  # noqa: SIM117
        with serving(Exposition(options.jobs)) as port, prometheus(Path(directory), port) as url:
            time.sleep(ENOUGH * STEP + 10)
            configure(Path(directory), port, scrape=30, evaluate=SLOW_STEP)
            urllib.request.urlopen(f"{url}/-/reload", data=b"", timeout=30).close()  # noqa: S310
            time.sleep(SLOW_STEP)  # those under way
            taken = evaluations(url, MEASURED)
            rules = {
                r["name"]: r["evaluationTime"] for group in groups(url) for r in group["rules"]
            }
            series = ask(url, "query", query="scrape_samples_scraped")["result"][0]["value"][1]
            version = ask(url, "status/buildinfo")["version"]
    print(f"Prometheus {version}, {options.jobs} jobs, {series} series scraped\n")
    print("| group | evaluations | median | slowest | interval | share of it |")
    print("|---|---|---|---|---|---|")
    total = 0.0
    for name, at in taken.items():
        times = list(at.values())[1:]
        median = statistics.median(times)
        share = median / intervals[name]
        total += share
        print(
            f"| `{name}` | {len(times)} | {median * 1000:.1f} ms | {max(times) * 1000:.1f} ms"
            f" | {intervals[name]} s | {share:.2%} |"
        )
    slowest = sorted(rules.items(), key=lambda item: -item[1])[:8]
    print("\nSlowest, at last: " + ", ".join(f"{n} {t * 1000:.0f} ms" for n, t in slowest))
    print(f"\nAll rules together take {total:.2%} of their intervals (target {TARGET:.0%}).")
    return int(total > TARGET)


if __name__ == "__main__":
    sys.exit(main())
