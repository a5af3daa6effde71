"""
Run the demo: an application with failing jobs, Prometheus, Alertmanager, and live tables.

The alert rules and routes are those of `alerts/`, but 30 times faster. `apscheduler-telemetry top`
draws the tables, and `apscheduler-telemetry report` reports the run at its end.

Environment:
    DEMO_SECONDS: end after this many seconds, with exit status 0 only if everything that the demo
        should show was seen. It needs about 30 seconds.
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

from processes import (
    application,
    ended,
    free_port,
    start_alertmanager,
    start_prometheus,
    telemetry_command,
    wait_for,
)
from sources import Alertmanager, Data, Metrics, Prometheus, answers, fetch

REFRESH = 1.0  # seconds
PRINT_EVERY = 5.0  # seconds between two tables in a pipe, where none can be redrawn
NEEDED = 30.0  # seconds: import-orders fails for ten, and its alert resolves some ten later


def main() -> int:
    """Run the demo and return its exit status."""
    limit = duration()
    # SIGINT too: a process that a shell starts in the background ignores it otherwise.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    if not sys.stdout.isatty():
        os.environ.setdefault("COLUMNS", "80")  # the width of the tables
    try:
        if limit < NEEDED:
            say(f"DEMO_SECONDS={limit:g} is too short. The demo needs about {NEEDED:g} seconds.")
        with contextlib.ExitStack() as stack:
            return demonstrate(stack, limit)
    except KeyboardInterrupt:
        say("Stopped.")
        return 0


def demonstrate(stack: contextlib.ExitStack, limit: float) -> int:
    """Start everything, show it until the time is up, and return the exit status."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-")))
    port = free_port(9476)
    # First, or on a busy machine the first failures of the application are over before they are up.
    alertmanager = stack.enter_context(start_alertmanager(directory))
    prometheus = stack.enter_context(start_prometheus(directory, port, alertmanager))
    started = time.monotonic()
    app = stack.enter_context(application(directory, port))
    jobs = f"http://127.0.0.1:{port}/"
    metrics, health = f"{jobs}metrics", f"{jobs}health"
    for url in (metrics, health):
        wait_for(url, app)
    say(f"Jobs          {jobs}")
    say(f"Metrics       {metrics}")
    say(f"Health        {health}")
    alerts = prometheus_page(prometheus)
    say(f"Prometheus    {alerts}")
    say(f"Alertmanager  {alertmanager_page(alertmanager)}")
    say("Press Ctrl-C to stop everything.")
    title = f"{jobs}  {alerts}" if prometheus else jobs
    command = telemetry_command("top", jobs, "--title", title)
    command += ["--interval", f"{REFRESH if sys.stdout.isatty() else PRINT_EVERY:g}"]
    watched = Alertmanager(alertmanager) if prometheus and alertmanager else None
    if watched is not None:
        command += ["--alertmanager", watched.url]
    try:
        show(command, limit - (time.monotonic() - started), app, watched)
    finally:
        report(prometheus, time.monotonic() - started)
    source = Prometheus(prometheus) if prometheus else Metrics(metrics)
    return verdict(list(expectations(source, watched)), limit)


def show(
    command: list[str],
    seconds: float,
    app: "subprocess.Popen[bytes]",
    alertmanager: Alertmanager | None,
) -> None:
    """Let `top` draw its tables for some seconds, and remember the alerts meanwhile."""
    end = time.monotonic() + seconds
    # In a session of its own: Ctrl-C reaches it only from here, and once.
    top = subprocess.Popen(command, start_new_session=True)
    with ended(top):
        while time.monotonic() < end:
            if alertmanager is not None:
                alertmanager.read()
            if app.poll() is not None:
                msg = f"the application ended by itself, with status {app.returncode}"
                raise SystemExit(msg)
            if top.poll() is not None:  # its output was closed, or it has said why
                raise SystemExit(1)
            time.sleep(min(REFRESH, max(0.0, end - time.monotonic())))


def report(prometheus: str | None, seconds: float) -> None:
    """Print the report of this run."""
    if prometheus is None:
        say("No report of this run: it is made from what Prometheus has stored.\n")
        return
    minutes = math.ceil(seconds / 60)
    since = ("report", "--prometheus", prometheus, "--since", f"{minutes}m")
    say("")
    subprocess.run(telemetry_command(*since), check=False)
    say("")


def expectations(
    source: Prometheus | Metrics, alertmanager: Alertmanager | None
) -> Iterator[tuple[str, bool]]:
    """Yield what the demo should show, and whether it was seen."""
    yield from runs_expected(source.read(), quantiles=source.has_quantiles)
    if alertmanager is not None:
        alertmanager.read()
        yield from alerts_expected(alertmanager.has_resolved)


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


def alerts_expected(has_resolved: dict[tuple[str, str], bool]) -> Iterator[tuple[str, bool]]:
    """Yield which alerts should fire, and which one should resolve."""
    for name, job in (
        ("APSchedulerRunFailed", "pull-rates"),
        ("APSchedulerRunsSkipped", "build-report"),
        ("APSchedulerRunsLost", "crunch"),
        ("APSchedulerJobStuck", "sync-stock"),
        ("APSchedulerJobFailing", "import-orders"),
    ):
        yield f"{name} fires for {job}", (name, job) in has_resolved
    resolved = has_resolved.get(("APSchedulerJobFailing", "import-orders"), False)
    yield "APSchedulerJobFailing resolves", resolved
    yield "APSchedulerWatchdog fires", ("APSchedulerWatchdog", "") in has_resolved
    jobs_with_alerts = {about for _, about in has_resolved}
    healthy = {"refresh-cache", "poll-queue"}
    yield "no alert about refresh-cache or poll-queue", healthy.isdisjoint(jobs_with_alerts)


def verdict(results: list[tuple[str, bool]], limit: float) -> int:
    """Print what should have been seen and whether it was, and return 0 if all of it was."""
    for expected, seen in results:
        say(f"{'ok    ' if seen else 'FAILED'}  {expected}")
    missing = sum(not seen for _, seen in results)
    say(f"{len(results) - missing} of {len(results)} were seen.")
    if missing and limit < NEEDED:
        say(f"DEMO_SECONDS={limit:g} was too short. The demo needs about {NEEDED:g} seconds.")
    return 1 if missing else 0


def say(line: str) -> None:
    """Print a line before another process prints the next."""
    try:
        print(line, flush=True)
    except OSError:  # the reader has gone, such as `head`, or a terminal that was closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


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
