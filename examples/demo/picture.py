"""What the demo shows: a table of the jobs, and one of the alerts."""

import math
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sources import Alert, Key, Metrics, Prometheus

OUTCOMES = ("success", "error", "missed", "skipped", "coalesced", "lost")
PRINT_EVERY = 5.0  # seconds, where there is no terminal to redraw


def draw_jobs(data: dict[str, dict[Any, float]], source: Prometheus | Metrics) -> Table:
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


def draw_alerts(alerts: list[Alert]) -> Table:
    """Return the table of the alerts, the latest first."""
    table = Table(title="Alerts, as Alertmanager sees them")
    for title in ("alert", "severity", "about"):
        table.add_column(title)
    for title in ("first seen", "state"):
        table.add_column(title, justify="right")
    for alert in alerts:
        state = "resolved" if alert.resolved else "inhibited" if alert.inhibited else "firing"
        style = {"resolved": "green", "inhibited": "dim", "firing": "bold red"}[state]
        table.add_row(
            alert.name,
            alert.severity,
            alert.about,
            f"{span(time.time() - alert.seen)} ago",
            Text(state, style="" if alert.severity == "none" else style),
        )
    return table


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


def seconds(value: float | None) -> str:
    """Return a duration with three digits that matter."""
    return "-" if value is None or math.isnan(value) else f"{value:.3g} s"


def span(value: float) -> str:
    """Return a rough length of time."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(value) >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0f} s"
