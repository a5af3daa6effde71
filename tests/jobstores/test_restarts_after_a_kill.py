"""Runs that were due between the kill of a process and the start of the next one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("redis")

from tests.helpers.paths import ROOT
from tests.helpers.shared_jobstores import everywhere


@everywhere
@pytest.mark.slow
class TestRestart:
    def test_runs_due_while_no_process_ran_are_counted(
        self, kind: str, tmp_path: Path, request: Any
    ) -> None:
        """Runs that fell due while no process was running are counted by the next one."""
        where = f"sqlite:///{tmp_path / 'jobs'}"
        if kind == "postgres":
            where = request.getfixturevalue("postgres").url()
        elif kind == "redis":
            where = str(request.getfixturevalue("redis_server").port)
        program = [sys.executable, "-m", "tests.applications.killed_and_restarted"]
        left = subprocess.run([*program, "leave", where], cwd=ROOT, check=False, timeout=60)
        assert left.returncode == -9
        back = subprocess.run(
            [*program, "return", where],
            cwd=ROOT,
            check=True,
            timeout=60,
            stdout=subprocess.PIPE,
            text=True,
        )
        outcomes, own_errors = json.loads(back.stdout)
        coalesced, each = {"coalesced": 3, "missed": 1}, {"missed": 4}
        assert outcomes == {
            "plain": coalesced,
            "each": each,
            "replaced": coalesced,
            "replaced-each": each,
            "changed": coalesced,
            "removed": coalesced,
            "paused": {},
        }
        assert own_errors == {}
