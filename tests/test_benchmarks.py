"""The benchmarks: that they work, and never how fast anything is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.slow
class TestBenchmarks:
    """Programs that measure; `make bench` runs all of them."""

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (("stress.py", "--seconds", "0.5", "--repeat", "1"), "a second, "),
            (("scrapes.py", "--jobs", "10", "--repeat", "2"), "OpenMetrics  100%"),
            (("interference.py", "--jobs", "10", "--seconds", "0.5"), "asyncio      10"),
            (("memory.py", "--jobs", "20", "--repeat", "1"), "start with 20 stored jobs, with us"),
        ],
        ids=lambda value: value[0] if isinstance(value, tuple) else "",
    )
    def test_work(self, arguments: tuple[str, ...], told: str) -> None:
        """They come to their end, and tell what they say they do."""
        pytest.importorskip("time_machine")
        pytest.importorskip("sqlalchemy")
        script, *rest = arguments
        command = [sys.executable, str(BENCHMARKS / script), *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, told in done.stdout) == (0, True), done.stdout + done.stderr
