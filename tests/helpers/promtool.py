"""
Let promtool, which comes with Prometheus, run the cases of alert rules.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.helpers.servers import required_program

# Go collects garbage less often than by default (100): a quarter of the CPU time is saved, and
# promtool needs 110 MB instead of 65.
SETTINGS = {"GOGC": "400"}


def run_rule_tests(path: Path) -> subprocess.CompletedProcess[str]:
    """Run a file of cases, whose paths of rules are relative to it; fail without promtool."""
    return subprocess.run(
        [required_program("promtool"), "test", "rules", path.name],
        cwd=path.parent,
        env={**os.environ, **SETTINGS},
        capture_output=True,
        text=True,
        check=False,
    )
