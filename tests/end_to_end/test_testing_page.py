"""The page "In tests": its files are written as it says, and pytest runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "testing.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"```python\n# (.*?)\n(.*?)```", PAGE, re.DOTALL))


class TestPage:
    def test_every_block_has_a_name(self) -> None:
        """Each block of Python says which file it is, and is run here."""
        assert len(BLOCKS) == PAGE.count("```python")
        assert list(BLOCKS)[-1] == "a cell"

    @pytest.mark.slow
    def test_files_pass_with_pytest(self, tmp_path: Path) -> None:
        """All tests of the page pass."""
        for name, text in BLOCKS.items():
            if name.endswith(".py"):
                (tmp_path / name).write_text(text)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
        )
        count = sum(text.count("\ndef test_") for text in BLOCKS.values())
        assert f"{count + 1} passed" in done.stdout, done.stdout  # one test has two parameters
        assert done.returncode == 0
        assert "pending job(s)" not in done.stderr

    def test_cell_can_be_run_again(self) -> None:
        """The cell of a notebook is run three times, and has the same port each time."""
        registry = CollectorRegistry()
        port = 0

        def instrument_here(scheduler: Any) -> Any:
            return instrument(scheduler, registry=registry)

        space: dict[str, Any] = {
            "BackgroundScheduler": BackgroundScheduler,
            "instrument": instrument_here,
        }
        cell = BLOCKS["a cell"].replace("telemetry.start", "server = telemetry.start")
        for _ in range(3):
            exec(cell.replace("9476", str(port)), space)
            assert space["server"].is_serving
            port = space["server"].port
        space["scheduler"].shutdown()
        space["telemetry"].uninstrument()
