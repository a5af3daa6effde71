"""
Run the demo: an application with failing jobs, Prometheus, Alertmanager, and live tables of both.

The alert rules and routes are those of `alerts/`, but 30 times faster.

Environment:
    DEMO_SECONDS: end after this many seconds, with exit status 0 only if everything that the demo
        should show was seen. It needs about 30 seconds.
    DEMO_PICTURE: at the end, save a picture of the tables as this SVG file.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from picture import Data, Scene, draw, save_svg, screen
from processes import application, free_port, start_alertmanager, start_prometheus, wait_for
from sources import QUERIES, Alert, Alertmanager, Metrics, Prometheus, answers, fetch

REFRESH = 1.0  # seconds
NEEDED = 30.0  # seconds: import-orders fails for ten, and its alert resolves some ten later


def main() -> int:
    """Run the demo and return its exit status."""
    limit = duration()
    console = output()
    # SIGINT too: a process that a shell starts in the background ignores it otherwise.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    if limit < NEEDED:
        say(
            console,
            f"DEMO_SECONDS={limit:g} is too short. The demo needs about {NEEDED:g} seconds.",
        )
    try:
        with contextlib.ExitStack() as stack:
            return demonstrate(stack, console, limit)
    except KeyboardInterrupt:
        say(console, "Stopped.")
        return 0


def output() -> Console:
    """Return the console for stdout; a pipe always gets plain text."""
    return Console(force_terminal=None if sys.stdout.isatty() else False)


def demonstrate(stack: contextlib.ExitStack, console: Console, limit: float) -> int:
    """Start everything, show it until the time is up, and return the exit status."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
    port = free_port(9476)
    # First, or on a busy machine the first failures of the application are over before they are up.
    alertmanager = stack.enter_context(start_alertmanager(directory))
    prometheus = stack.enter_context(start_prometheus(directory, port, alertmanager))
    app = stack.enter_context(application(directory, port))
    jobs = f"http://127.0.0.1:{port}/"
    metrics, health = f"{jobs}metrics", f"{jobs}health"
    for url in (metrics, health):
        wait_for(url, app)
    header = [
        f"Jobs          {jobs}",
        f"Metrics       {metrics}",
        f"Health        {health}",
        f"Prometheus    {prometheus_page(prometheus)}",
        f"Alertmanager  {alertmanager_page(alertmanager)}",
        "Press Ctrl-C to stop everything.",
    ]
    for line in header:
        say(console, line)
    show = Show(
        header,
        Prometheus(prometheus) if prometheus else Metrics(metrics),
        Alertmanager(alertmanager) if prometheus and alertmanager else None,
    )
    show.run(console, limit, app)
    return verdict(list(show.expectations()), console, limit)


def prometheus_page(url: str | None) -> str:
    """Return the address of a page with alerts that answers, or say what is missing."""
    if url is None:
        return "is not installed (Debian package prometheus): no percentiles, no alerts"
    # Debian's has only the classic pages, and one that was unpacked without root has none.
    return first_that_answers(url, "/alerts", "/classic/alerts", "/api/v1/alerts")


def alertmanager_page(url: str | None) -> str:
    """Return the address of a page with alerts that answers, or say what is missing."""
    if url is None:
        return "is not installed (Debian package prometheus-alertmanager): no alerts"
    # Debian's has no web application: its only page is a notice, without a script.
    if answers(url) and "<script" in fetch(url):
        return f"{url}/#/alerts"
    return first_that_answers(url, "/api/v2/alerts")


def first_that_answers(url: str, *paths: str) -> str:
    """Return the first address that answers with success, or end the demo if none does."""
    for path in paths:
        if answers(url + path):
            return url + path
    msg = f"{url} answers none of these paths: {', '.join(paths)}"
    raise SystemExit(msg)


class Show:
    """What is on the screen, and what was seen there."""

    def __init__(
        self,
        header: list[str],
        source: Prometheus | Metrics,
        alertmanager: Alertmanager | None,
    ) -> None:
        self._header = header
        self._source = source
        self._alertmanager = alertmanager
        self._data: Data = {name: {} for name in QUERIES}
        self._alerts: list[Alert] = []

    def run(self, console: Console, limit: float, app: "subprocess.Popen[bytes]") -> None:
        """Show the tables until the time is up, and leave the last ones on the screen."""
        end = time.monotonic() + limit
        show, close = screen(console)
        try:
            while True:
                self._look()
                if self._data["runs"]:  # not before the first scrape
                    show(self._scene(self._header if console.is_terminal else ()))
                if app.poll() is not None:
                    msg = f"the application ended by itself, with status {app.returncode}"
                    raise SystemExit(msg)
                if time.monotonic() >= end:
                    break
                time.sleep(min(REFRESH, max(0.0, end - time.monotonic())))
        finally:
            close()
            if self._data["runs"]:
                console.print(draw(self._scene(()), console.width), "")
        if picture := os.environ.get("DEMO_PICTURE"):
            save_svg(self._scene(()), Path(picture))

    def _look(self) -> None:
        self._data = self._source.read()
        if self._alertmanager is not None:
            self._alerts = self._alertmanager.read()

    def _scene(self, header: Sequence[str]) -> Scene:
        alerts = None if self._alertmanager is None else self._alerts
        return Scene(header=header, data=self._data, source=self._source, alerts=alerts)

    def expectations(self) -> Iterator[tuple[str, bool]]:
        """Yield what the demo should show, and whether it was seen."""
        yield from runs_expected(self._data, quantiles=self._source.has_quantiles)
        if self._alertmanager is not None:
            yield from alerts_expected(self._alerts)


def runs_expected(data: Data, *, quantiles: bool) -> Iterator[tuple[str, bool]]:
    """Yield what the jobs should do."""

    def runs(scheduler: str, job: str, outcome: str) -> float:
        return data["runs"].get((scheduler, job, outcome), 0)

    background = "background"
    yield "refresh-cache succeeds", runs(background, "refresh-cache", "success") >= 2
    yield "refresh-cache never fails", runs(background, "refresh-cache", "error") == 0
    yield "pull-rates fails now and then", runs(background, "pull-rates", "error") >= 1
    yield "pull-rates succeeds in between", runs(background, "pull-rates", "success") >= 1
    yield "import-orders fails at first", runs(background, "import-orders", "error") >= 3
    yield "import-orders recovers", runs(background, "import-orders", "success") >= 1
    yield "build-report is slow and is skipped", runs(background, "build-report", "skipped") >= 1
    yield "crunch succeeds in its process pool", runs(background, "crunch", "success") >= 1
    yield "crunch loses a run to a killed worker", runs(background, "crunch", "lost") >= 1
    yield "poll-queue runs on the event loop", runs("asyncio", "poll-queue", "success") >= 2
    hung_since = data["running_since"].get((background, "sync-stock"), 0)
    yield "sync-stock is seen to hang", 0 < hung_since < time.time() - 2
    yield "archive has a next run", data["next_run"].get((background, "archive"), 0) > 0
    if quantiles:
        p95 = data["p95"].get((background, "refresh-cache"), math.nan)
        yield "refresh-cache takes less than 0.5 s (p95)", p95 < 0.5


def alerts_expected(alerts: list[Alert]) -> Iterator[tuple[str, bool]]:
    """Yield which alerts should fire, and which one should resolve."""
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


def verdict(results: list[tuple[str, bool]], console: Console, limit: float) -> int:
    """Print what should have been seen and whether it was, and return 0 if all of it was."""
    for expected, seen in results:
        say(console, f"{'ok    ' if seen else 'FAILED'}  {expected}")
    missing = sum(not seen for _, seen in results)
    say(console, f"{len(results) - missing} of {len(results)} were seen.")
    if missing and limit < NEEDED:
        say(
            console,
            f"DEMO_SECONDS={limit:g} was too short. The demo needs about {NEEDED:g} seconds.",
        )
    return 1 if missing else 0


def say(console: Console, line: str) -> None:
    """Print a line that is neither wrapped nor marked up."""
    console.print(line, soft_wrap=True, markup=False, highlight=False)


def duration() -> float:
    """Return for how many seconds to run; infinity if DEMO_SECONDS is not set."""
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
    """Do for every signal that ends the demo what Ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
