"""Run a Python script in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap


def output_of_script(script: str) -> tuple[str, str]:
    """Return what a script in a process of its own writes to its output, and of errors."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )
    return done.stdout, done.stderr
