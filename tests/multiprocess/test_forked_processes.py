"""Forked processes in multiprocess mode: no run is counted twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry.export.multiprocess.directory import DIRECTORY_VARIABLE
from tests.helpers.multiprocess_files import Process, scrape, value
from tests.helpers.paths import ROOT

NOW = 1_800_000_000.0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestForkDuringRun:
    """A process that is forked while a run is in flight, and whose child has a scheduler, too."""

    def test_run_in_flight_counts_once(self, directory_without_threads: Path) -> None:
        """A run in flight during the fork counts once, as the parent's."""
        parent = Process(directory_without_threads)
        parent.job(NOW)
        parent.run(1)
        in_flight = parent.begin()
        parent.write()

        def show() -> list[float | None]:
            shown = scrape(directory_without_threads)
            return [
                value(shown, "job_running"),
                value(shown, "job_runs_total", outcome="success"),
                value(shown, "job_start_delay_seconds_count"),
            ]

        assert show() == [1, 1, 2]
        if not (child := os.fork()):
            code = 1
            try:
                parent.writer.start()
                parent.writer.write()
                assert show() == [1, 1, 2]
                own = parent.begin()
                parent.write()
                assert show() == [2, 1, 3]
                parent.finish(own, 1)
                parent.write()
                assert show() == [1, 2, 3]
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        parent.write()
        assert show() == [1, 2, 3]
        parent.finish(in_flight, 1)
        parent.write()
        assert show() == [0, 3, 3]


@pytest.mark.slow
class TestFork:
    """Processes that are forked from a process with a scheduler."""

    SCRIPT = """
        import json, os, sys, time
        from apscheduler.executors.debug import DebugExecutor
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector
        from apscheduler_telemetry import instrument
        from apscheduler_telemetry.multiprocess import mark_process_dead
        from tests.helpers.schedulers import HandDriven

        def nothing():
            pass

        def show(pid):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
            wanted = {
                "state": ("apscheduler_scheduler_state", {"state": "running"}),
                "up": ("apscheduler_scheduler_up", {}),
                "runs": ("apscheduler_job_runs_total", {"outcome": "success", "job_id": "job"}),
            }
            seen = {
                key: registry.get_sample_value(name, {"scheduler": "default", **labels})
                for key, (name, labels) in wanted.items()
            }
            infos = [s for m in registry.collect() for s in m.samples if s.name.endswith("er_info")]
            seen["mine"] = [s.labels["pid"] == str(pid) for s in infos]
            print(json.dumps(seen), flush=True)

        def run():
            scheduler.add_job(nothing, id="job")
            scheduler.turn()
            while telemetry._snapshot_writer._slot is None:  # the directory may be locked
                telemetry._snapshot_writer.write()
            telemetry._snapshot_writer.write()

        scheduler = HandDriven(executors={"default": DebugExecutor()})
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        if sys.argv[1] != "started in the child":
            scheduler.start()
            run()
        child = os.fork()
        if not child:
            if "another user" in sys.argv[1]:
                os.setuid(65534)
            if sys.argv[1] == "started in the child":
                scheduler.start()
                run()
            elif sys.argv[1].startswith("started again in the child"):
                scheduler.shutdown()
                scheduler.start()
                run()
            elif sys.argv[1] == "continues in the child":
                run()
            else:
                telemetry._snapshot_writer.write()
            show(os.getpid())
            os._exit(0)
        os.wait()
        mark_process_dead(child)
        telemetry._snapshot_writer.write()
        show(os.getpid())
    """

    def run(self, directory: Path, when: str) -> list[Any]:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", textwrap.dedent(self.SCRIPT), when],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.stderr == ""
        return [json.loads(line) for line in done.stdout.splitlines()]

    def test_copy_of_the_scheduler_in_the_child_writes_nothing(self, directory: Path) -> None:
        """A child with a copy of the scheduler writes nothing, and sees the files of its parent."""
        both = {"state": 1, "up": 1, "runs": 1}
        assert self.run(directory, "started before") == [
            {**both, "mine": [False]},
            {**both, "mine": [True]},
        ]

    def test_scheduler_started_in_the_child_is_written(self, directory: Path) -> None:
        """A child that starts the scheduler writes its metrics; its counters stay after its end."""
        assert self.run(directory, "started in the child") == [
            {"state": 1, "up": 1, "runs": 1, "mine": [True]},
            {"state": None, "up": None, "runs": 1, "mine": []},
        ]

    def test_child_of_another_user_takes_its_own_slot(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Root and the user to whom the directory belongs, as with gunicorn, share all files."""
        if os.geteuid():
            pytest.skip("only root can become another user")
        with tempfile.TemporaryDirectory() as directory:  # tmp_path is only accessible to root
            os.chown(directory, 65534, -1)
            monkeypatch.setenv(DIRECTORY_VARIABLE, directory)
            when = "started again in the child, of another user"
            child, parent = self.run(Path(directory), when)
        assert (child["state"], child["up"], child["runs"]) == (2, 1, 2)
        assert (parent["state"], parent["runs"]) == (1, 2)

    def test_copy_started_in_the_child_is_a_second_scheduler(self, directory: Path) -> None:
        """A child that starts its copy is a second scheduler, and no run is counted twice."""
        child, parent = self.run(directory, "started again in the child")
        assert (child["state"], child["up"], child["runs"]) == (2, 1, 2)
        assert sorted(child["mine"]) == [False, True]
        assert parent == {"state": 1, "up": 1, "runs": 2, "mine": [True]}

    def test_scheduler_that_goes_on_in_the_child_is_a_second_one(self, directory: Path) -> None:
        """So does one whose loop has survived the fork, as a greenlet does."""
        child, parent = self.run(directory, "continues in the child")
        assert (child["state"], child["up"], child["runs"]) == (2, 1, 2)
        assert sorted(child["mine"]) == [False, True]
        assert parent == {"state": 1, "up": 1, "runs": 2, "mine": [True]}
