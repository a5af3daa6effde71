"""
Run the same jobs under this package and under others that watch APScheduler; print a table.

Usage: peers.py [--peers NAME ...] [--counts-only | --update]

A package that is not installed is not run, and the table says so. The dependency group ``bench``
has all that can be installed. A run takes about seven minutes, because alerts wait for minutes.
With ``--counts-only`` it takes one minute, and the table has no alerts. The alerts of this package
come from the rules in `alerts`, in a real Prometheus, which has to be on PATH.

``--update`` writes the table to `docs/comparison.md`, and some of its rows to `README.md`.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from peers_application import PARTS, PEERS, RUNS

HERE = Path(__file__).parent
ROOT = HERE.parent
RULES = ROOT / "alerts" / "apscheduler.rules.yml"
ALERTS_AFTER = 330
"""Seconds: the limits of peers_application.py, and then the five minutes of the slowest rule."""
COUNTS_AFTER = 15
"""Seconds after the first run, when all has happened that will."""
HEALTHCHECKS = "healthchecks.io"
OURS = "apscheduler-telemetry"
NOTHING = "nothing"


@dataclass(frozen=True)
class Situation:
    """
    A row of the table.

    Attributes:
        text: what happens.
        job_id: the job to which it happens.
        due: how many of its runs are due.
        part: the process that has the job, see `PARTS`.
        in_readme: whether the README has this row.
    """

    text: str
    job_id: str
    due: int
    part: str = "main"
    in_readme: bool = False


SITUATIONS = (
    Situation("a job returns", "success", RUNS),
    Situation("a job raises", "error", RUNS, in_readme=True),
    Situation("a run waits 2 s for a worker, then takes 1 s", "queued", 1, in_readme=True),
    Situation("runs start later than `misfire_grace_time`", "missed", RUNS),
    Situation("runs are due while `max_instances` is reached", "skipped", RUNS),
    Situation("late runs with `coalesce=True`", "coalesced", RUNS),
    Situation("late runs with `coalesce=False`", "burst", RUNS),
    Situation("the worker of a process pool is killed", "killed", RUNS, in_readme=True),
    Situation("a process pool cannot pickle the result", "unpicklable", RUNS),
    Situation("a job hangs", "hang", 1),
    Situation("a job waits for a worker that hangs", "busy", 1, "busy"),
    Situation("the job's executor does not exist", "no-executor", 1, "executor"),
    Situation("the scheduler's thread died before the run", "loop", 1, "loop", in_readme=True),
    Situation("the process is killed in a run and restarted", "cut", 1, "restart", in_readme=True),
    Situation("a run is due while the process restarts", "down", 1, "restart"),
    Situation("the process is killed and not restarted", "gone", 1, "gone", in_readme=True),
)


def free_port() -> int:
    """Return a TCP port of the loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def version(peer: str) -> str:
    """Return the version of a package, empty if it is not installed."""
    try:
        return importlib.metadata.version(peer)
    except importlib.metadata.PackageNotFoundError:
        return ""


def column(peer: str) -> str:
    """Return the heading of a peer: its name, and its version if it is a package of others."""
    if peer == "listener":
        return "a plain listener"
    return peer if peer in {OURS, HEALTHCHECKS} else f"{peer} {version(peer)}".rstrip()


@dataclass
class Process:
    """One application under one peer, which can be killed and started again."""

    peer: str
    part: str
    first_run: float
    directory: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[str] | None = None

    def start(self, part: str | None = None) -> None:
        """Start it and wait until its scheduler runs."""
        self.directory.mkdir(exist_ok=True)
        options = [self.peer, part or self.part, self.first_run, self.directory, self.port]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "peers_application.py"), *map(str, options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # to be ended with the workers of its pools
            )
        self._expect("ready")

    def kill(self) -> None:
        """Kill it, with its process pools."""
        if self.process is not None:
            with self.process:
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process = None

    def report(self, job_id: str) -> str:
        """Return what the peer reports; by a process that only looks at the store if it is dead."""
        if self.process is None:
            self.start("after")
        assert self.process is not None and self.process.stdin is not None  # noqa: PT018, S101
        self.process.stdin.write(f"{job_id}\n")
        self.process.stdin.flush()
        return self._read()

    def alerts(self, job_id: str) -> list[str]:
        """Return the alerts that the peer has sent about a job to its file."""
        path = self.directory / "alerts"
        lines = path.read_text().splitlines() if path.exists() else []
        return sorted({kind for job, kind in map(str.split, lines) if job == job_id})

    def _expect(self, wanted: str) -> None:
        if (line := self._read()) != wanted:
            message = f"{self.peer}, {self.part}: {line!r}, see {self.directory / 'log'}"
            raise RuntimeError(message)

    def _read(self) -> str:
        assert self.process is not None and self.process.stdout is not None  # noqa: PT018, S101
        return self.process.stdout.readline().strip()


@contextlib.contextmanager
def prometheus(processes: Sequence[Process], directory: Path) -> Iterator[str]:
    """Run a Prometheus that scrapes each second and evaluates the rules; return its address."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [
            {
                "job_name": process.part,
                "static_configs": [{"targets": [f"127.0.0.1:{process.port}"]}],
            }
            for process in processes
        ],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    address = f"127.0.0.1:{free_port()}"
    with (directory / "prometheus.log").open("wb") as log:
        server = subprocess.Popen(
            [
                shutil.which("prometheus") or "prometheus",
                f"--config.file={directory / 'prometheus.yml'}",
                f"--storage.tsdb.path={directory / 'prometheus'}",
                f"--web.listen-address={address}",
            ],
            stderr=log,
        )
    try:
        yield f"http://{address}"
    finally:
        server.terminate()
        server.wait()


def fired(url: str, situation: Situation) -> list[str]:
    """Return the alerts that have fired about a job, and those about its scheduler."""
    query = (
        "count by (alertname, job_id) (max_over_time("
        f'ALERTS{{alertstate="firing",job="{situation.part}"}}[1h]))'
    )
    address = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    with urllib.request.urlopen(address, timeout=30) as answer:  # noqa: S310  # the loopback
        series = [each["metric"] for each in json.load(answer)["data"]["result"]]
    return sorted(
        {
            labels["alertname"].removeprefix("APScheduler")
            for labels in series
            if labels.get("job_id", situation.job_id) == situation.job_id
        }
    )


def sleep_until(moment: float) -> None:
    """Sleep until a Unix time."""
    time.sleep(max(moment - time.time(), 0))


def cell(process: Process, situation: Situation, url: str | None, *, counts_only: bool) -> str:
    """Return what a peer reports of a situation; `url` is that of Prometheus, if it runs."""
    text = process.report(situation.job_id)
    alerts = process.alerts(situation.job_id)
    if url is not None and process.peer == OURS:
        alerts = fired(url, situation)
    if alerts and not counts_only:
        return f"{text} → {', '.join(alerts)}".strip()
    return text or NOTHING


def interfere(processes: Mapping[tuple[str, str], Process], first_run: float) -> None:
    """Kill and restart the processes to which that is to happen."""
    if time.time() > first_run - 5:
        message = "this machine is too busy: it took half a minute to start the applications"
        raise RuntimeError(message)
    for moment, part, action in (
        (first_run - 3, "gone", Process.kill),
        (first_run + 3, "restart", Process.kill),
        (first_run + RUNS + 3, "restart", Process.start),
    ):
        sleep_until(moment)
        for process in processes.values():
            if process.part == part:
                action(process)


def run(peers: Sequence[str], directory: Path, *, counts_only: bool) -> dict[tuple[str, str], str]:
    """
    Run all situations under some peers, all at the same time.

    Returns:
        The text of each cell, by peer and job.
    """
    first_run = time.time() // 20 * 20 + 40  # no job's runs cross a minute, and all have started
    processes = {
        (peer, part): Process(peer, part, first_run, directory / f"{peer}-{part}")
        for peer in peers
        for part in PARTS
    }
    ours = [process for process in processes.values() if process.peer == OURS]
    with contextlib.ExitStack() as stack:
        for process in processes.values():
            stack.callback(process.kill)
            process.start()
        url = None
        if ours and not counts_only and shutil.which("prometheus"):
            url = stack.enter_context(prometheus(ours, directory))
        interfere(processes, first_run)
        sleep_until(first_run + (COUNTS_AFTER if counts_only else ALERTS_AFTER))
        return {
            (peer, situation.job_id): cell(
                processes[peer, situation.part], situation, url, counts_only=counts_only
            )
            for peer in peers
            for situation in SITUATIONS
        }


def table(cells: Mapping[tuple[str, str], str], peers: Sequence[str]) -> list[list[str]]:
    """Return the rows of the table; peers without cells are those that were not run."""
    columns = [*peers, HEALTHCHECKS]
    rows = [["situation", "due", *map(column, columns)]]
    for situation in SITUATIONS:
        found = [cells.get((peer, situation.job_id), "not run") for peer in columns]
        rows.append([situation.text, str(situation.due), *found])
    return rows


def for_readme(rows: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Return the rows that the README has, without the column that is `not run` in all of them."""
    chosen = {situation.text for situation in SITUATIONS if situation.in_readme}
    return [row[:-1] for row in rows if row is rows[0] or row[0] in chosen]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table as Markdown; its first row is the heading."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def update(page: Path, rows: Sequence[Sequence[str]]) -> None:
    """Replace the table that a page has between two comments."""
    found = re.sub(
        r"(<!-- peers.py -->\n).*?(<!-- end -->)",
        lambda marks: marks[1] + markdown(rows) + marks[2],
        page.read_text("utf-8"),
        flags=re.DOTALL,
    )
    page.write_text(found, "utf-8")


def main() -> None:
    """Run, print, and update the pages if wanted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--counts-only", action="store_true", help="do not wait for alerts")
    mode.add_argument("--update", action="store_true", help="update docs/comparison.md, README.md")
    options = parser.parse_args()
    here = [peer for peer in options.peers if peer == "listener" or version(peer)]
    for peer in sorted(set(options.peers) - set(here)):
        print(f"{peer} is not installed, and not run.")
    print(f"{HEALTHCHECKS} needs its server, which PyPI does not have; not run.")
    if OURS in here and not options.counts_only and not shutil.which("prometheus"):
        print("Prometheus is not installed, so the alerts of this package are left out.")
    with tempfile.TemporaryDirectory() as directory:
        cells = run(here, Path(directory), counts_only=options.counts_only)
    rows = table(cells, options.peers)
    print(f"\n{markdown(rows)}", end="")
    if options.update:
        update(ROOT / "docs" / "comparison.md", rows)
        update(ROOT / "README.md", for_readme(rows))


if __name__ == "__main__":
    main()
