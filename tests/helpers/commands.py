"""
Run commands in the process of the tests or in their own, and answer in the place of servers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry.cli import main
from apscheduler_telemetry.cli.client import Answer


def text_answer(text: str) -> Answer:
    """Return what `client.fetch` returns for a page that has a text and no headers."""
    return Answer(text, content_type="", date="")


def list_chain_checks(
    capfdbinary: pytest.CaptureFixture[bytes], *arguments: str
) -> tuple[int, list[dict[str, Any]]]:
    """Run `doctor` with --json, and return its status and the checks."""
    status = main(["doctor", "--json", *arguments])
    output, errors = capfdbinary.readouterr()
    assert errors == b""
    return status, json.loads(output)


def run_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, in a directory."""
    return subprocess.run(
        [sys.executable, "-m", "apscheduler_telemetry", *arguments],
        cwd=cwd,
        # Without a width, and without warnings of APScheduler before 3.11.
        env={**os.environ, "PYTHONWARNINGS": "ignore", "COLUMNS": ""},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
