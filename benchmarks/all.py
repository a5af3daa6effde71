"""
Measure what telemetry costs a run, a scrape, a job's punctuality, and memory: ``make bench``.

Usage: all.py [--quick] [--plot docs/images/growth.svg]

The exit status is 1 if a target is missed; `docs/performance.md` says what became of each.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
QUICK = {
    "runs.py": ["--jobs", "5", "--repeat", "3", "--clocks"],
    "scrapes.py": ["--jobs", "10", "--repeat", "2"],
    "interference.py": ["--jobs", "10", "--seconds", "1"],
    "hostile_clients.py": ["--jobs", "10", "--clients", "5", "--seconds", "1"],
    "memory.py": ["--jobs", "50", "--repeat", "1"],
    "growth.py": ["--quick"],
}
"""What proves in half a minute that they work; the numbers are worth nothing then."""


def main() -> int:
    """Run them in turn."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="only see that they work")
    parser.add_argument("--plot", type=Path, help="where growth.py is to draw")
    options = parser.parse_args()
    missed = []
    for script, quick in QUICK.items():
        arguments = quick if options.quick else []
        if script == "growth.py" and options.plot is not None:
            arguments = [*arguments, "--plot", str(options.plot)]
        print(f"\n=== {script} {' '.join(arguments)}".rstrip(), flush=True)
        status = subprocess.run(
            [sys.executable, str(HERE / script), *arguments], check=False
        ).returncode
        if status > 1:
            return status
        if status == 1:
            missed.append(script)
    if missed:
        print(f"\nTargets missed: {', '.join(missed)}. See docs/performance.md.")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
