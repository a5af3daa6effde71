"""
Times, durations and runs as people read them, for the status page.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone, tzinfo
from typing import NamedTuple

from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.core.run_history import RunRecord
from apscheduler_telemetry.core.times import to_datetime

_UNITS_OF_SECONDS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))

OUTCOME_MARK_PATHS = {
    Outcome.SUCCESS: "",
    Outcome.ERROR: "l1-1 1.5 1.5 1.5-1.5 1 1-1.5 1.5 1.5 1.5-1 1-1.5-1.5-1.5 1.5-1-1 1.5-1.5z",
    Outcome.LOST: "m2.5-1 2.5 2.5-2.5 2.5-2.5-2.5z",
    Outcome.MISSED: "m2.5-1 2.5 5h-5z",
    Outcome.SKIPPED: "m0-1h5l-2.5 5z",
    Outcome.COALESCED: "m0 1h5v2h-5z",
}
"""
What stands above the bar of a run, as an SVG path from the top left corner.

A cross, a diamond, a triangle, one upside down, and a dash; nothing above a success.
"""
MARK_HEIGHT = 8
BAR_WIDTH = 5
RUN_WIDTH = 7
"""Of a run with the gap to the next one, in pixels."""


class RunStrip(NamedTuple):
    """
    Runs side by side, the latest on the right, as the paths of an SVG.

    Attributes:
        width: in pixels.
        height: in pixels.
        paths: the outcome of some runs, and the path that draws all of them.
        text: the same in words.
    """

    width: int
    height: int
    paths: Sequence[tuple[str, str]]
    text: str


def describe_duration(seconds: float) -> str:
    """Return a duration, such as ``4 ms``, ``1.25 s`` or ``2 min 13 s``."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else "1 s"  # noqa: PLR2004  # rounds
    if seconds < 60:  # noqa: PLR2004  # a minute
        return f"{seconds:.3g} s"
    return describe_whole_seconds(seconds)


def describe_whole_seconds(seconds: float) -> str:
    """Return the two largest units of a whole number of seconds, such as ``4 h 12 min``."""
    rest = int(seconds)
    for number, (size, unit) in enumerate(_UNITS_OF_SECONDS):
        if rest >= size:
            text = f"{rest // size} {unit}"
            if number + 1 < len(_UNITS_OF_SECONDS):
                smaller, smaller_unit = _UNITS_OF_SECONDS[number + 1]
                count = rest % size // smaller
                text += f" {count} {smaller_unit}" if count else ""
            return text
    return "0 s"


def describe_countdown(at: float, now: float) -> str:
    """Return how long it is until a time in Unix seconds, or for how long it is late."""
    return (
        f"in {describe_whole_seconds(at - now)}"
        if at >= now
        else f"{describe_whole_seconds(now - at)} late"
    )


def describe_age(at: float | None, now: float) -> str:
    """Return how long a time in Unix seconds is ago; ``never`` if there is none."""
    return "never" if at is None else f"{describe_whole_seconds(max(0.0, now - at))} ago"


def describe_time(at: float, zone: tzinfo) -> str:
    """
    Return the date and time in a time zone, to the second; in UTC if the zone fails.

    If clocks show this time twice, as they are set back, the offset from UTC follows.
    """
    try:
        shown = datetime.fromtimestamp(at, zone)
        text = shown.isoformat(sep=" ", timespec="seconds")
        is_shown_twice = shown.utcoffset() != shown.replace(fold=1 - shown.fold).utcoffset()
        return f"{text[:19]} {text[19:]}" if is_shown_twice else text[:19]
    except BaseException as error:  # noqa: BLE001  # the time zone may be the user's code
        raise_if_interruption(error)
        shown = to_datetime(at, timezone.utc).replace(tzinfo=None)
        return f"{shown.isoformat(sep=' ', timespec='seconds')} UTC"


def draw_runs(runs: Sequence[RunRecord], height: int = 20) -> RunStrip | None:
    """
    Return runs side by side, with their outcome as a mark and their duration as a bar.

    Args:
        runs: the latest last.
        height: of the longest run, in pixels.

    Returns:
        None if there are no runs.
    """
    if not runs:
        return None
    longest = max((run.duration for run in runs if run.duration), default=0.0) or 1.0
    bottom = MARK_HEIGHT + height
    paths: dict[Outcome, list[str]] = {}
    for number, run in enumerate(runs):
        x = number * RUN_WIDTH
        bar = 2 if run.duration is None else max(2, round(run.duration / longest * height))
        path = f"M{x} {bottom}v-{bar}h{BAR_WIDTH}v{bar}z"
        mark = OUTCOME_MARK_PATHS[run.outcome]
        if mark:
            path += f"M{x} {3 if run.outcome is Outcome.ERROR else 2}{mark}"
        paths.setdefault(run.outcome, []).append(path)
    counts = ", ".join(f"{len(paths[outcome])} {outcome.value}" for outcome in paths)
    latest = runs[-1].outcome.value
    return RunStrip(
        width=len(runs) * RUN_WIDTH,
        height=bottom,
        paths=[(outcome.value, "".join(path)) for outcome, path in paths.items()],
        text=f"Last runs: {counts}. The latest: {latest}.",
    )
