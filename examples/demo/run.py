"""
The demo: an application in trouble, the Prometheus and Alertmanager that watch it, and live tables.

The alert rules and routes are those of `alerts/`, only thirty times faster.

Environment: DEMO_SECONDS ends it after so many seconds, with exit status 0 only if all that the
demo promises was seen in the numbers.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console, Group

from picture import draw_alerts, draw_jobs, screen
from processes import application, free_port, start_alertmanager, start_prometheus, wait_for
from sources import Alert, Alertmanager, Metrics, Prometheus

REFRESH = 1.0  # seconds

Data = dict[str, dict[Any, float]]


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
        # Before the application, whose trouble would be over on a busy machine until they are up.
        alertmanager = stack.enter_context(start_alertmanager(directory))
        prometheus = stack.enter_context(start_prometheus(directory, port, alertmanager))
        app = stack.enter_context(application(directory, port))
        metrics, health = f"http://127.0.0.1:{port}/metrics", f"http://127.0.0.1:{port}/health"
        wait_for(metrics, app)
        console.print(f"/metrics      {metrics}\n/health       {health}")
        absent = "is not installed (Debian package {}): no {}"
        console.print(
            f"Prometheus    {prometheus or absent.format('prometheus', 'quantiles, no alerts')}\n"
            f"Alertmanager  {alertmanager or absent.format('prometheus-alertmanager', 'alerts')}"
        )
        console.print("Ctrl-C ends all of it.\n")
        show = Show(
            Prometheus(prometheus) if prometheus else Metrics(metrics),
            Alertmanager(alertmanager) if prometheus and alertmanager else None,
        )
        try:
            show.run(console, limit, app)
        except KeyboardInterrupt:
            console.print("Ended.")
            return 0
        return verdict(list(show.expectations()), console)


class Show:
    """What is on the screen, and what was seen there."""

    def __init__(self, source: Prometheus | Metrics, alertmanager: Alertmanager | None) -> None:
        self._source = source
        self._alertmanager = alertmanager
        self._data: Data = {}
        self._alerts: list[Alert] = []

    def run(self, console: Console, limit: float, app: "subprocess.Popen[bytes]") -> None:
        """Show the tables until the time is up."""
        end = time.monotonic() + limit
        show, close = screen(console)
        try:
            while True:
                self._look()
                if self._data["runs"]:  # not before the first scrape
                    show(self._draw())
                if app.poll() is not None:
                    msg = f"the application ended by itself, with status {app.returncode}"
                    raise SystemExit(msg)
                if time.monotonic() >= end:
                    return
                time.sleep(min(REFRESH, max(0.0, end - time.monotonic())))
        finally:
            close()

    def _look(self) -> None:
        self._data = self._source.read()
        if self._alertmanager is not None:
            self._alerts = self._alertmanager.read()

    def _draw(self) -> Group:
        tables = [draw_jobs(self._data, self._source)]
        if self._alertmanager is not None:
            tables.append(draw_alerts(self._alerts))
        return Group(*tables)

    def expectations(self) -> Iterator[tuple[str, bool]]:
        """Yield what the demo promises to show, and whether it was seen."""
        yield from runs_expected(self._data, quantiles=self._source.has_quantiles)
        if self._alertmanager is not None:
            yield from alerts_expected(self._alerts)


def runs_expected(data: Data, *, quantiles: bool) -> Iterator[tuple[str, bool]]:
    """Yield what the jobs do."""

    def runs(scheduler: str, job: str, outcome: str) -> float:
        return data["runs"].get((scheduler, job, outcome), 0)

    background = "background"
    yield "refresh-cache succeeds", runs(background, "refresh-cache", "success") >= 2
    yield "refresh-cache never fails", runs(background, "refresh-cache", "error") == 0
    yield "pull-rates fails now and then", runs(background, "pull-rates", "error") >= 1
    yield "pull-rates succeeds in between", runs(background, "pull-rates", "success") >= 1
    yield "import-orders fails at first", runs(background, "import-orders", "error") >= 3
    yield "import-orders recovers", runs(background, "import-orders", "success") >= 1
    yield "build-report is skipped, being slow", runs(background, "build-report", "skipped") >= 1
    yield "crunch succeeds in its process pool", runs(background, "crunch", "success") >= 1
    yield "crunch loses a run to a killed worker", runs(background, "crunch", "lost") >= 1
    yield "poll-queue runs on the event loop", runs("asyncio", "poll-queue", "success") >= 2
    hung_since = data["running_since"].get((background, "sync-stock"), 0)
    yield "sync-stock is seen to hang", 0 < hung_since < time.time() - 2
    yield "archive has promised its next run", data["next_run"].get((background, "archive"), 0) > 0
    if quantiles:
        p95 = data["p95"].get((background, "refresh-cache"), math.nan)
        yield "refresh-cache takes less than 0.5 s (p95)", p95 < 0.5


def alerts_expected(alerts: list[Alert]) -> Iterator[tuple[str, bool]]:
    """Yield which alerts fire, and which one resolves."""
    seen = {(alert.name.removeprefix("APScheduler"), alert.about): alert for alert in alerts}
    for name, job in (
        ("RunFailed", "pull-rates"),
        ("RunsSkipped", "build-report"),
        ("RunsLost", "crunch"),
        ("JobStuck", "sync-stock"),
        ("JobFailing", "import-orders"),
    ):
        yield f"APScheduler{name} fires for {job}", (name, job) in seen
    failing = seen.get(("JobFailing", "import-orders"))
    yield "APSchedulerJobFailing resolves", failing is not None and failing.resolved
    yield "APSchedulerWatchdog fires", ("Watchdog", "") in seen
    healthy = {alert.name for alert in alerts if alert.about in {"refresh-cache", "poll-queue"}}
    yield "no alert about refresh-cache or poll-queue", not healthy


def verdict(results: list[tuple[str, bool]], console: Console) -> int:
    """Print what was promised and seen, and return 0 if all of it was."""
    for promise, kept in results:
        console.print(f"{'ok    ' if kept else 'FAILED'}  {promise}", highlight=False)
    missing = sum(not kept for _, kept in results)
    console.print(f"{len(results) - missing} of {len(results)} seen.")
    return 1 if missing else 0


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


if __name__ == "__main__":
    sys.exit(main())
