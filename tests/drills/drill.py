"""
Drills: real faults of real applications, and whether the right alert arrives.

All drills share one Prometheus and one Alertmanager, with the rules and routes of `alerts/` made
`FACTOR` times faster, and scrapes every second. All receivers are one webhook, which records what
arrives. The drills run at the same time, as they mostly wait; each has its own ``job`` label.
``python tests/drills/drill.py`` prints the table, and `test_drills` checks its content.
"""

# ruff: noqa: T201  # main() talks to a person

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # as pytest does

from tests.drills.faults import DRILLS
from tests.drills.performance import Performance, Result
from tests.drills.servers import stage
from tests.drills.stage import FACTOR


def rehearse(
    names: Sequence[str], directory: Path, engine: str = "Prometheus"
) -> dict[str, Result]:
    """Run some drills at the same time, and return their results."""
    drills = [DRILLS[name] for name in names]
    with stage(directory, drills, engine) as scene:
        performances = [Performance(drill, scene) for drill in drills]
        threads = [
            threading.Thread(target=_perform, args=(performance,), daemon=True)
            for performance in performances
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            scene.end()
            for thread in threads:
                thread.join(10)  # seconds, in which those that are interrupted clean up
        return {performance.drill.name: performance.result for performance in performances}


def _perform(performance: Performance) -> None:
    try:
        performance.drill.play(performance)
    except Exception as error:  # noqa: BLE001  # raised where the result is read
        performance.result.error = f"{type(error).__name__}: {error}"
    finally:
        performance.is_over.set()
        result = performance.result
        result.also = [
            words
            for words in performance.arrived()
            if not result.alert or not words.startswith(f"{result.alert}(")
        ]


def table(results: Iterable[Result]) -> str:
    """Return the results as a table in Markdown."""
    lines = [("fault", "alert that arrived", "after", "resolved by", "after", "also arrived")]
    lines += [
        (
            result.fault,
            result.alert.removeprefix("APScheduler") if result.alert else "NONE",
            f"{result.seconds:.1f} s from {result.since}" if result.seconds is not None else "-",
            result.resolved_by if result.seconds_to_resolve is not None else "-",
            f"{result.seconds_to_resolve:.1f} s" if result.seconds_to_resolve is not None else "-",
            ", ".join(words.removeprefix("APScheduler") for words in result.also) or "-",
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    return "\n".join(
        "| "
        + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def main(*names: str) -> int:
    """Play all drills, or those that are named, and print the table."""
    unknown = set(names) - DRILLS.keys()
    if unknown:
        print(f"No such drill: {', '.join(sorted(unknown))}; there are {', '.join(DRILLS)}.")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drills-") as directory:
        try:
            results = rehearse(names or list(DRILLS), Path(directory))
        except KeyboardInterrupt:
            print("Interrupted.")
            return 130
        if os.environ.get("DRILLS_KEEP"):
            shutil.copytree(directory, os.environ["DRILLS_KEEP"], dirs_exist_ok=True)
    print(table(results.values()))
    print(
        f"\nRules and routes are {FACTOR} times as fast as in production: a second here is half a"
        f" minute there. Took {time.monotonic() - begin:.0f} s."
    )
    failed = {name: result for name, result in results.items() if result.error}
    for name, result in failed.items():
        print(f"\nFAILED  {name}: {result.error}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
