"""Draw the demo's tables of jobs and alerts, for terminals of any size and for pipes."""

from __future__ import annotations

import io
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sources import Alert, Key, Metrics, Prometheus

OUTCOMES = ("success", "error", "missed", "skipped", "coalesced", "lost")
PRINT_EVERY = 5.0  # seconds between two pictures in a pipe, where none can be redrawn
GAP = 2  # spaces between columns
FEW = 4  # lines with alerts, which are worth more than the header
SVG_WIDTH = 120

# Which columns a narrow terminal lacks: the highest number goes first, and NEEDED stays.
NEEDED, FAILURES, RARE, SUCCESS, NEXT_RUN, SCHEDULER, QUANTILE, ZERO = range(8)

Data = dict[str, dict[Any, float]]


@dataclass(frozen=True, kw_only=True)
class Column:
    """
    A column of a table.

    Attributes:
        title: its header; a line break makes a narrow header of two words.
        cells: its values, one for each row.
        rank: how soon it is left out if the terminal is narrow.
        right: whether it is aligned to the right.
    """

    title: str
    cells: Sequence[Text]
    rank: int = NEEDED
    right: bool = False

    @property
    def width(self) -> int:
        """The number of characters that it needs so that nothing is cut."""
        title = max(len(word) for word in self.title.split("\n"))
        return max([title, *(cell.cell_len for cell in self.cells)])


@dataclass(frozen=True, kw_only=True)
class Scene:
    """
    What one picture shows.

    Attributes:
        header: lines above the tables.
        data: values by query, as a source reads them.
        source: where they were read.
        alerts: the latest first; None if there is no Alertmanager.
    """

    header: Sequence[str]
    data: Data
    source: Prometheus | Metrics
    alerts: Sequence[Alert] | None


def draw(scene: Scene, width: int, height: int | None = None) -> Group:
    """
    Return a picture of a scene.

    Args:
        scene: what to draw.
        width: characters in a line. Columns that do not fit are left out, whole.
        height: lines; None if there is no limit. Alerts that do not fit are only counted, and the
            header is left out if almost no lines are left for alerts.
    """
    jobs = fit(job_columns(scene.data), width)
    above = [Text(line) for line in scene.header]
    title = "Jobs, as Prometheus sees them" if scene.source.has_quantiles else "Jobs"
    parts: list[Text | Table] = [Text(title, style="bold"), as_table(jobs)]
    if scene.alerts is not None:
        rows = len(scene.alerts)
        # Below the jobs come a title and a header of one line each.
        rest = math.inf if height is None else height - 1 - height_of(jobs) - 2
        if rest - len(above) < min(FEW, rows):
            above = []
        rest -= len(above)
        if rows < rest:
            parts.append(Text())
        parts += draw_alerts(scene.alerts, width, max(2, int(min(rows, rest))))
    return Group(*above, *parts)


def draw_alerts(alerts: Sequence[Alert], width: int, rows: int) -> list[Text | Table]:
    """Return a table of alerts; with fewer rows than alerts, the last row counts the rest."""
    title = Text("Alerts, as Alertmanager sees them", style="bold")
    if not alerts:
        return [title, Text("none yet")]
    hidden = 0 if len(alerts) <= rows else len(alerts) - rows + 1
    shown = alerts[: len(alerts) - hidden]
    more = [Text(f"and {hidden} older alerts")] if hidden else []
    return [title, as_table(fit(alert_columns(shown), width)), *more]


def job_columns(data: Data) -> list[Column]:
    """Return all columns of the table of jobs."""
    now = time.time()
    keys = jobs_in(data)

    def column(title: str, cells: Iterable[Text | str], rank: int, *, right: bool = True) -> Column:
        texts = [cell if isinstance(cell, Text) else Text(cell) for cell in cells]
        return Column(title=title, cells=texts, rank=rank, right=right)

    def outcome(name: str) -> Column:
        counts = [data["runs"].get((*key, name), 0) for key in keys]
        style = "" if name == "success" else "bold red"
        cells = [Text(f"{count:.0f}", style=style if count else "") for count in counts]
        rank = {"success": SUCCESS, "missed": RARE, "coalesced": RARE}.get(name, FAILURES)
        return column(name, cells, rank if any(counts) else ZERO)

    def state(key: Key) -> str:
        since = data["running_since"].get(key, 0)
        return f"running {span(now - since)}" if since else "idle"

    def success(key: Key) -> str:
        ended = data["last_success"].get(key)
        return f"{span(now - ended)} ago" if ended else "never"

    def next_run(key: Key) -> str:
        due = data["next_run"].get(key)
        return f"in {span(max(0.0, due - now))}" if due else "none"

    return [
        column("job", (key[1] for key in keys), NEEDED, right=False),
        column("state", map(state, keys), NEEDED, right=False),
        *map(outcome, OUTCOMES),
        column("last\nsuccess", map(success, keys), SUCCESS),
        column("next\nrun", map(next_run, keys), NEXT_RUN),
        column("duration\np95", (seconds(data["p95"].get(key)) for key in keys), QUANTILE),
        column("delay\np95", (seconds(data["delay"].get(key)) for key in keys), QUANTILE),
        column("scheduler", (key[0] for key in keys), SCHEDULER, right=False),
    ]


def alert_columns(alerts: Sequence[Alert]) -> list[Column]:
    """Return all columns of the table of alerts."""
    now = time.time()
    styles = {"resolved": "green", "inhibited": "dim", "firing": "bold red"}

    def state(alert: Alert) -> Text:
        word = "resolved" if alert.resolved else "inhibited" if alert.inhibited else "firing"
        return Text(word, style="" if alert.severity == "none" else styles[word])

    return [
        Column(title="alert", cells=[Text(alert.name) for alert in alerts]),
        Column(title="about", cells=[Text(alert.about or "-") for alert in alerts]),
        Column(title="state", cells=[state(alert) for alert in alerts]),
        Column(title="severity", cells=[Text(alert.severity) for alert in alerts], rank=1),
        Column(
            title="first seen",
            cells=[Text(f"{span(now - alert.seen)} ago") for alert in alerts],
            rank=2,
            right=True,
        ),
    ]


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """Return the columns that a line has room for; of equal ranks, the last column goes first."""
    kept = list(columns)
    while sum(column.width + GAP for column in kept) - GAP > width:
        last = max(range(len(kept)), key=lambda i: (kept[i].rank, i))
        if kept[last].rank == NEEDED:
            break
        del kept[last]
    return kept


def height_of(columns: Sequence[Column]) -> int:
    """Return how many lines a table has, its header included."""
    header = max(column.title.count("\n") + 1 for column in columns)
    return header + len(columns[0].cells)


def as_table(columns: Sequence[Column]) -> Table:
    """Return a table without borders; what is too wide even so is wrapped, and never cut."""
    table = Table(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(
            column.title,
            justify="right" if column.right else "left",
            vertical="bottom",
            overflow="fold",
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def jobs_in(data: Data) -> list[Key]:
    """Return the jobs that were found, sorted by their names."""
    return sorted({key[:2] for key in data["runs"]}, key=lambda key: key[::-1])


def screen(console: Console) -> tuple[Callable[[Scene], None], Callable[[], None]]:
    """
    Return a function that shows a scene, and one that ends the show.

    A terminal shows each scene on a screen of its own, with the size that it has at that moment. A
    pipe gets plain lines, from time to time.
    """
    if console.is_terminal and not console.is_dumb_terminal:
        live = Live(console=console, screen=True, auto_refresh=False)
        live.start()
        return lambda scene: live.update(draw(scene, *console.size), refresh=True), live.stop
    printed = -math.inf

    def show(scene: Scene) -> None:
        nonlocal printed
        if time.monotonic() - printed >= PRINT_EVERY:
            printed = time.monotonic()
            console.print(draw(scene, console.width), "")

    return show, lambda: None


def save_svg(scene: Scene, file: Path) -> None:
    """Save a picture of a scene, as a wide terminal shows it."""
    console = Console(file=io.StringIO(), width=SVG_WIDTH, record=True, force_terminal=True)
    console.print(draw(scene, SVG_WIDTH))
    svg = console.export_svg(title="make demo")
    # Without fonts from another server, which readers would have to ask.
    file.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL), encoding="utf-8")


def seconds(value: float | None) -> str:
    """Return a duration with three significant digits."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def span(value: float) -> str:
    """Return a rough length of time."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if abs(value) >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0f} s"
