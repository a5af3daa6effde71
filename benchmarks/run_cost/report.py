"""The tables that are printed, and the verdicts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .rows import JUDGED_FOR_SDK, SDK_TARGET, SPANS_TARGET, Row, Target

MICROSECONDS = 1e6  # in a second


@dataclass(frozen=True, kw_only=True)
class Result:
    """
    What was measured for a row.

    Args:
        row: The row.
        seconds: CPU time for each run, by contender; empty if only instructions are counted.
        instructions: Instructions for each run, by contender; empty if they are not counted.
    """

    row: Row
    seconds: Mapping[str, float] = field(default_factory=dict)
    instructions: Mapping[str, float] = field(default_factory=dict)

    def costs(self) -> Iterator[str]:
        """Yield a line for each contender and measure."""
        for costs, scale, unit, digits in (
            (self.seconds, MICROSECONDS, "us", 2),
            (self.instructions, 1, "instructions", 0),
        ):
            for name, cost in costs.items():
                line = f"{self.row.name:20} {name:22} {cost * scale:9.{digits}f} {unit}"
                if "bare" in costs:
                    line += f" {(cost - costs['bare']) * scale:+.{digits}f}"
                ratio = Target(ours=name, at_most=0).ratio(costs) if name != "bare" else None
                if ratio is not None and name != "listener" and not self.row.target.of_wholes:
                    line += f", {ratio:.2f} of the listener's"
                yield line

    def verdicts(self) -> Iterator["Verdict"]:
        """Yield a verdict for each target of which both sides were measured."""
        for target in (self.row.target, SPANS_TARGET):
            by_clock = target.ratio(self.seconds)
            counted = target.ratio(self.instructions)
            decisive = by_clock if counted is None else counted
            if decisive is not None:
                yield Verdict(
                    row=self.row.name,
                    target=target,
                    instructions=self.instructions,
                    counted=counted,
                    by_clock=by_clock,
                    is_met=decisive <= target.at_most,
                )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """
    What became of a target.

    Args:
        row: The name of the row.
        target: The target.
        instructions: Instructions for each run, by contender; empty if they were not counted.
        counted: The ratio by instructions.
        by_clock: The ratio by CPU time.
        is_met: Whether the target is met, by instructions if there are any.
    """

    row: str
    target: Target
    instructions: Mapping[str, float]
    counted: float | None
    by_clock: float | None
    is_met: bool

    def cells(self) -> Sequence[str]:
        """Return what the table says, a column at a time."""
        target = self.target
        names = ("bare", target.theirs, target.ours)
        counts = [f"{self.instructions[n]:.0f}" if self.instructions else "-" for n in names]
        whole = ", wholes" if target.of_wholes else ""
        return (
            self.row,
            f"{target.ours} / {target.theirs}{whole}",
            *counts,
            _ratio(self.counted),
            f"{target.at_most:.2f}",
            "met" if self.is_met else "MISSED",
            _ratio(self.by_clock),
        )


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


HEADINGS = ("row", "ours / theirs", "bare", "theirs", "ours", "ratio", "target", "", "by clock")


def table(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield the lines of the last table: instructions for each run, ratios and verdicts."""
    rows = [HEADINGS, *(verdict.cells() for verdict in verdicts)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        words = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        numbers = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*words, *numbers])


def judge_sdk(result: Result) -> tuple[str, bool] | None:
    """Return what an absent SDK adds to a run, in words, and whether that is too much."""
    seconds = result.seconds
    if not {"no SDK", "metrics"} <= seconds.keys():
        return None
    more = seconds["no SDK"] - seconds["metrics"]
    judged = result.row.name == JUDGED_FOR_SDK
    words = f"no SDK - metrics by clock: {more * MICROSECONDS:+.2f} us"
    verdict = "not judged"
    if judged:
        verdict = "MISSED" if more > SDK_TARGET else "met"
    line = f"{result.row.name}: {words} (target {SDK_TARGET * MICROSECONDS:.0f}): {verdict}"
    return line, judged and more > SDK_TARGET
