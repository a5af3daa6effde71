"""A busy process that is killed at random moments: every due run still has exactly one outcome."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

KILLS = 200


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestKilledAtRandom:
    """Thread pools, asyncio and process pools in turn, all with the same journal."""

    def test_every_run_is_ended_or_lost(self, tmp_path: Path) -> None:
        """
        Each run that was submitted has ended, or is lost in the next process.

        Only runs for which the process was killed in the middle of a step may be either; there is
        hardly one for each kill.
        """
        program = [sys.executable, "-m", "tests.applications.killed_at_random"]
        done = subprocess.run(
            [*program, str(tmp_path), str(KILLS), "1"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        runs = json.loads(done.stdout)
        assert runs["wrong"] == []
        assert runs["submitted"] == (
            runs["ended"]
            + runs["lost"]
            + runs["left"]
            + runs["uncertain_runs"]
            + runs["lost_in_uncertain_readings"]
        )
        assert runs["lost"] > KILLS / 2, "the processes live too shortly"
        assert runs["uncertain_runs"] < KILLS
        assert runs["lost_in_uncertain_readings"] < runs["lost"] / 4
