"""
Tables of aligned columns, and how commands write durations.

They are drawn by this module, and not by a library such as rich, because the commands have to work
in a container that has only this package. As a dependency, rich would be installed in each
application; as an extra, there would be two ways of drawing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

from apscheduler_telemetry.cli.output import BOLD, GREEN, RED, YELLOW, escape_unprintable, style

COLUMN_GAP = "  "
OUTCOMES = ("success", "error", "missed", "skipped", "lost", "coalesced")
"""The outcomes of runs, in the order in which tables have their counts."""

_COLORS_BY_WORD = {
    "error": RED,
    "firing": RED,
    "lost": RED,
    "missed": RED,
    "overdue": RED,
    "skipped": YELLOW,
    "coalesced": YELLOW,
    "resolved": GREEN,
    "running": GREEN,
    "success": GREEN,
}
_COLUMNS_COLORED_BY_TEXT = frozenset({"LAST", "NOW", "OUTCOME", "STATE"})
"""Columns whose texts begin with a word that has a colour."""

Row = Sequence[str]


def format_table(
    header: Row, rows: Sequence[Row], width: int | None = None, *, counts: Collection[str] = ()
) -> list[str]:
    """
    Return the lines of a table; columns end where the longest text of each ends.

    Args:
        header: the names of the columns.
        rows: a text for each column, whose characters that do not print are escaped.
        width: columns of the terminal, to which the last column is cut; None for no limit.
        counts: the columns with numbers of runs. They are aligned to the right, and have the
            colour of the outcome after which they are named.
    """
    cleaned = [[escape_unprintable(text) for text in row] for row in (header, *rows)]
    widths = _column_widths(header, rows)
    if width is not None:
        left = width - sum(widths[:-1]) - len(COLUMN_GAP) * (len(widths) - 1)
        widths[-1] = max(min(widths[-1], left), display_width(header[-1]))
        cleaned = [[*row[:-1], cut_text(row[-1], widths[-1])] for row in cleaned]
    lines = []
    for number, row in enumerate(cleaned):
        cells = []
        for name, text, size in zip(header, row, widths, strict=True):
            is_count = name in counts
            colored = style(text, BOLD) if number == 0 else _colorize(text, name, is_count=is_count)
            padding = " " * (size - display_width(text))
            cells.append(padding + colored if is_count else colored + padding)
        lines.append(COLUMN_GAP.join(cells).rstrip())
    return lines


def fit_columns(
    header: Row, rows: Sequence[Row], width: int | None, least_important: Sequence[str]
) -> tuple[Row, list[Row]]:
    """
    Return the header and the rows of a table without the columns for which there is no room.

    Args:
        header: the names of the columns.
        rows: a text for each column.
        width: columns of the terminal; None for no limit.
        least_important: the columns that may be left out, the first of them first; but those that
            are empty in all rows go before all others.
    """
    widths = dict(zip(header, _column_widths(header, rows), strict=True))
    empty = {name for name, *texts in zip(header, *rows, strict=True) if not any(texts)}
    for name in sorted(least_important, key=lambda name: name not in empty):
        if width is None or _total_width(widths.values()) <= width:
            break
        del widths[name]
    kept = [number for number, name in enumerate(header) if name in widths]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def table_width(header: Row, rows: Sequence[Row]) -> int:
    """Return how many columns of a terminal a table takes."""
    return _total_width(_column_widths(header, rows))


def _column_widths(header: Row, rows: Sequence[Row]) -> list[int]:
    columns = zip(header, *rows, strict=True)
    return [max(display_width(escape_unprintable(text)) for text in column) for column in columns]


def _total_width(widths: Collection[int]) -> int:
    return sum(widths) + len(COLUMN_GAP) * (len(widths) - 1)


def display_width(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    if text.isascii():  # as most are, and tables of thousands of jobs take a while
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if _is_double_width(char) else 1 for char in text
    )


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


def format_time(text: str | None) -> str:
    """Return a time of a page, in ISO 8601 and UTC, to the second, with the sign of UTC."""
    return f"{str(text)[:19].replace('T', ' ')}Z" if text else ""


def _colorize(text: str, column: str, *, is_count: bool) -> str:
    if is_count:
        color = _COLORS_BY_WORD.get(column.lower()) if column != "SUCCESS" else None
    else:
        color = (
            _COLORS_BY_WORD.get(text.partition(" ")[0])
            if column in _COLUMNS_COLORED_BY_TEXT
            else None
        )
    return style(text, color) if text and color else text


def _is_double_width(char: str) -> bool:
    return unicodedata.east_asian_width(char) in {"F", "W"}
