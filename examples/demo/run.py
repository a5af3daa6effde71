"""
The demo: an application in trouble, a real Prometheus that scrapes it, and a live table of both.

Environment: DEMO_SECONDS ends it after so many seconds, with exit status 0 only if all that the
demo promises was seen in the numbers.
"""

import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

HERE = Path(__file__).parent
OUTCOMES = ("success", "error", "missed", "skipped", "coalesced", "lost")
REFRESH = 1.0  # seconds
PRINT_EVERY = 5.0  # seconds, where there is no terminal to redraw

Key = tuple[str, str]
"""Scheduler and job."""

QUERIES = {
    "runs": "sum by (scheduler, job_id, outcome) (apscheduler_job_runs_total)",
    "p95": "histogram_quantile(0.95, sum by (scheduler, job_id, le)"
    " (rate(apscheduler_job_run_duration_seconds_bucket[1m])))",
    "delay": "histogram_quantile(0.95, sum by (scheduler, job_id, le)"
    " (rate(apscheduler_job_start_delay_seconds_bucket[1m])))",
    "last_success": "max by (scheduler, job_id) (apscheduler_job_last_success_timestamp_seconds)",
    "next_run": "max by (scheduler, job_id) (apscheduler_job_next_run_timestamp_seconds)",
    "running_since": "max by (scheduler, job_id) (apscheduler_job_running_since_timestamp_seconds)",
}


class Prometheus:
    """Reads the table back through Prometheus' HTTP API."""

    has_quantiles = True

    def __init__(self, url: str) -> None:
        self.url = url

    def read(self) -> dict[str, dict[Any, float]]:
        """Return, by query, the values by scheduler and job (and outcome, for runs)."""
        return {name: dict(self._query(query)) for name, query in QUERIES.items()}

    def _query(self, query: str) -> Iterator[tuple[Any, float]]:
        url = f"{self.url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        for series in json.loads(fetch(url))["data"]["result"]:
            labels = series["metric"]
            key = (labels.get("scheduler", ""), labels.get("job_id", ""))
            value = float(series["value"][1])
            yield ((*key, labels["outcome"]) if "outcome" in labels else key), value


class Metrics:
    """Reads the table from /metrics itself, where there is no Prometheus."""

    has_quantiles = False
    names: ClassVar = {
        "apscheduler_job_runs_total": "runs",
        "apscheduler_job_last_success_timestamp_seconds": "last_success",
        "apscheduler_job_next_run_timestamp_seconds": "next_run",
        "apscheduler_job_running_since_timestamp_seconds": "running_since",
    }

    def __init__(self, url: str) -> None:
        self.url = url

    def read(self) -> dict[str, dict[Any, float]]:
        """Return what `Prometheus.read` does, without quantiles."""
        found: dict[str, dict[Any, float]] = {name: {} for name in QUERIES}
        for family in text_string_to_metric_families(fetch(self.url)):
            for sample in family.samples:
                if sample.name in self.names:
                    key: Any = (sample.labels["scheduler"], sample.labels["job_id"])
                    if "outcome" in sample.labels:
                        key = (*key, sample.labels["outcome"])
                    found[self.names[sample.name]][key] = sample.value
        return found


def draw(data: dict[str, dict[Any, float]], source: Prometheus | Metrics) -> Table:
    """Return the table of all jobs."""
    now = time.time()
    table = Table(title="Jobs, as Prometheus sees them" if source.has_quantiles else "Jobs")
    table.add_column("job")
    table.add_column("scheduler")
    for title in (*OUTCOMES, "p95", "start delay p95", "last success", "next run", "state"):
        table.add_column(title, justify="right")
    for key in jobs_in(data):
        runs = {outcome: data["runs"].get((*key, outcome), 0) for outcome in OUTCOMES}
        counts = [
            Text(f"{count:.0f}", style="" if outcome == "success" or not count else "bold red")
            for outcome, count in runs.items()
        ]
        success, due = data["last_success"].get(key), data["next_run"].get(key)
        since = data["running_since"].get(key, 0)
        table.add_row(
            key[1],
            key[0],
            *counts,
            seconds(data["p95"].get(key)),
            seconds(data["delay"].get(key)),
            f"{span(now - success)} ago" if success else "never",
            f"in {span(max(0.0, due - now))}" if due else "none",
            f"running {span(now - since)}" if since else "idle",
        )
    return table


def jobs_in(data: dict[str, dict[Any, float]]) -> list[Key]:
    """Return the jobs that were found, in order."""
    return sorted({key[:2] for key in data["runs"]})


def expectations(
    data: dict[str, dict[Any, float]], *, quantiles: bool
) -> Iterator[tuple[str, bool]]:
    """Yield what the demo promises to show, and whether it is in the numbers."""

    def runs(scheduler: str, job: str, outcome: str) -> float:
        return data["runs"].get((scheduler, job, outcome), 0)

    background = "background"
    yield "refresh-cache succeeds", runs(background, "refresh-cache", "success") >= 2
    yield "refresh-cache never fails", runs(background, "refresh-cache", "error") == 0
    yield "pull-rates fails now and then", runs(background, "pull-rates", "error") >= 1
    yield "pull-rates succeeds in between", runs(background, "pull-rates", "success") >= 1
    yield "build-report is skipped, being slow", runs(background, "build-report", "skipped") >= 1
    yield "crunch succeeds in its process pool", runs(background, "crunch", "success") >= 1
    yield "crunch loses a run to a killed worker", runs(background, "crunch", "lost") >= 1
    yield "poll-queue runs on the event loop", runs("asyncio", "poll-queue", "success") >= 2
    hung_since = data["running_since"].get((background, "sync-orders"), 0)
    yield "sync-orders is seen to hang", 0 < hung_since < time.time() - 2
    yield "archive has promised its next run", data["next_run"].get((background, "archive"), 0) > 0
    if quantiles:
        p95 = data["p95"].get((background, "refresh-cache"), math.nan)
        yield "refresh-cache takes less than 0.5 s (p95)", p95 < 0.5


def main() -> int:
    """Run the demo and return its exit status."""
    limit = duration()
    console = Console(width=None if sys.stdout.isatty() else 160)
    # SIGINT too: a process that a shell starts in the background is born ignoring it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
        port = free_port(9476)
        app = stack.enter_context(
            running([sys.executable, str(HERE / "app.py"), str(directory), str(port)], directory)
        )
        metrics, health = f"http://127.0.0.1:{port}/metrics", f"http://127.0.0.1:{port}/health"
        wait_for(metrics, app)
        console.print(f"/metrics    {metrics}\n/health     {health}")
        source: Prometheus | Metrics = Metrics(metrics)
        prometheus = shutil.which("prometheus")
        if prometheus is None:
            console.print("Prometheus  is not installed (Debian package prometheus): no quantiles")
        else:
            url = f"http://127.0.0.1:{free_port(9090)}"
            process = stack.enter_context(start_prometheus(prometheus, url, port, directory))
            wait_for(f"{url}/-/ready", process)
            source = Prometheus(url)
            console.print(f"Prometheus  {url}")
        console.print("Ctrl-C ends all of it.\n")
        try:
            data = watch(source, console, limit, app)
        except KeyboardInterrupt:
            console.print("Ended.")
            return 0
        return verdict(data, console, quantiles=source.has_quantiles)


def watch(
    source: Prometheus | Metrics, console: Console, limit: float, app: subprocess.Popen[bytes]
) -> dict[str, dict[Any, float]]:
    """Show the table until the time is up, and return the numbers of the last look."""
    end = time.monotonic() + limit
    show, close = screen(console)
    try:
        while True:
            data = source.read()
            if data["runs"]:  # not before the first scrape
                show(Group(draw(data, source)))
            if app.poll() is not None:
                msg = f"the application ended by itself, with status {app.returncode}"
                raise SystemExit(msg)
            if time.monotonic() >= end:
                return data
            time.sleep(min(REFRESH, max(0.0, end - time.monotonic())))
    finally:
        close()


def screen(console: Console) -> tuple[Callable[[Group], None], Callable[[], None]]:
    """Return what shows a picture, redrawn or printed now and then, and what ends the show."""
    if console.is_terminal:
        live = Live(console=console, auto_refresh=False)
        live.start()
        return lambda picture: live.update(picture, refresh=True), live.stop
    printed = -math.inf

    def show(picture: Group) -> None:
        nonlocal printed
        if time.monotonic() - printed >= PRINT_EVERY:
            printed = time.monotonic()
            console.print(picture)

    return show, lambda: None


def verdict(data: dict[str, dict[Any, float]], console: Console, *, quantiles: bool) -> int:
    """Print what was promised and seen, and return 0 if all of it was."""
    results = list(expectations(data, quantiles=quantiles))
    for promise, kept in results:
        console.print(f"{'ok    ' if kept else 'FAILED'}  {promise}", highlight=False)
    missing = sum(not kept for _, kept in results)
    console.print(f"{len(results) - missing} of {len(results)} seen.")
    return 1 if missing else 0


def start_prometheus(
    binary: str, url: str, port: int, directory: Path
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """Start a Prometheus that scrapes the application every second."""
    config = directory / "prometheus.yml"
    config.write_text(
        "global:\n"
        "  scrape_interval: 1s\n"
        "  evaluation_interval: 1s\n"
        "scrape_configs:\n"
        "  - job_name: demo\n"
        "    static_configs:\n"
        f"      - targets: ['127.0.0.1:{port}']\n"
    )
    return running(
        [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address={url.removeprefix('http://')}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ],
        directory,
    )


@contextlib.contextmanager
def running(command: list[str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own, its output in a file, and end the whole session."""
    log = directory / f"{Path(command[0]).name}-{len(list(directory.iterdir()))}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    process.log = log  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def wait_for(url: str, process: subprocess.Popen[bytes], patience: float = 30.0) -> None:
    """Wait until `url` answers, or end the demo with the log of the process that should."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            fetch(url)
            return
        time.sleep(0.1)
    log = Path(process.log).read_text(errors="replace")[-2000:]  # type: ignore[attr-defined]
    msg = f"{url} does not answer; the end of the log of its process:\n{log}"
    raise SystemExit(msg)


def fetch(url: str) -> str:
    """Return what `url` answers."""
    with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310  # loopback
        return str(answer.read().decode())


def free_port(preferred: int) -> int:
    """Return `preferred` if nobody listens there, else a port that is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    msg = "no port is free on 127.0.0.1"
    raise SystemExit(msg)


def duration() -> float:
    """Return for how many seconds to run, without end if nobody says."""
    text = os.environ.get("DEMO_SECONDS", "inf")
    try:
        limit = float(text)
    except ValueError:
        limit = -1
    if not limit > 0:
        msg = f"DEMO_SECONDS must be a number of seconds above 0, got {text!r}"
        raise SystemExit(msg)
    return limit


def interrupt(*_: object) -> None:
    """Turn a signal that ends us into what Ctrl-C does."""
    raise KeyboardInterrupt


def seconds(value: float | None) -> str:
    """Return a duration with three digits that matter."""
    return "-" if value is None or math.isnan(value) else f"{value:.3g} s"


def span(value: float) -> str:
    """Return a rough length of time."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(value) >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
