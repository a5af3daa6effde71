"""
Tables of aligned columns, and how commands write times and durations.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from apscheduler_telemetry.cli.output import BOLD, GREEN, RED, YELLOW, one_line, style

GAP = "  "

_COLORS = {
    "error": RED,
    "lost": RED,
    "missed": RED,
    "overdue": RED,
    "skipped": YELLOW,
    "coalesced": YELLOW,
    "running": GREEN,
    "success": GREEN,
}

Row = Sequence[str]


def format_table(header: Row, rows: Sequence[Row], width: int | None = None) -> list[str]:
    """
    Return the lines of a table; columns end where the longest text of each ends.

    Args:
        header: the names of the columns.
        rows: a text for each column, whose characters that do not print are escaped.
        width: columns of the terminal, to which the last column is cut; None for no limit.
    """
    cleaned = [[one_line(text) for text in row] for row in (header, *rows)]
    widths = [max(map(display_width, column)) for column in zip(*cleaned, strict=True)]
    if width is not None:
        left = width - sum(widths[:-1]) - len(GAP) * (len(widths) - 1)
        widths[-1] = max(min(widths[-1], left), display_width(header[-1]))
        cleaned = [[*row[:-1], cut_text(row[-1], widths[-1])] for row in cleaned]
    return [
        GAP.join(
            _color(text, is_header=number == 0) + " " * (size - display_width(text))
            for text, size in zip(row, widths, strict=True)
        ).rstrip()
        for number, row in enumerate(cleaned)
    ]


def table_width(header: Row, rows: Sequence[Row]) -> int:
    """Return how many columns of a terminal a table takes."""
    columns = zip(header, *rows, strict=True)
    widths = [max(display_width(one_line(text)) for text in column) for column in columns]
    return sum(widths) + len(GAP) * (len(widths) - 1)


def display_width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(0 if unicodedata.combining(char) else 2 if _is_wide(char) else 1 for char in text)


def cut_text(text: str, width: int) -> str:
    """Return a text, or the beginning of it that takes so many columns, with an ellipsis."""
    if display_width(text) <= width:
        return text
    while text and display_width(text) > width - 1:
        text = text[:-1]
    return f"{text}…" if width > 0 else ""


def format_duration(seconds: float | None) -> str:
    """Return a duration with at most two units; nothing for None."""
    if seconds is None:
        return ""
    if seconds < 10:  # noqa: PLR2004  # more digits would say nothing
        return f"{seconds:.3f}s"
    if seconds < 60:  # noqa: PLR2004  # a minute
        return f"{seconds:.1f}s"
    seconds = float(int(seconds))
    for size, unit, lower, lower_unit in ((86_400, "d", 3_600, "h"), (3_600, "h", 60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}{seconds % size // lower:02.0f}{lower_unit}"
    return f"{seconds // 60:.0f}m{seconds % 60:02.0f}s"


def _color(text: str, *, is_header: bool) -> str:
    if is_header:
        return style(text, BOLD)
    return style(text, _COLORS[text]) if text in _COLORS else text


def _is_wide(char: str) -> bool:
    return unicodedata.east_asian_width(char) in {"F", "W"}
