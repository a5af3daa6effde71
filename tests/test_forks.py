"""Forks at bad moments: telemetry in the child goes on by itself."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from support import HandDriven, told_by

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

HERE = Path(__file__).parent


@pytest.mark.slow
class TestSchedulerThatStartsInTheChild:
    """An application that is loaded before its server forks, as with ``gunicorn --preload``."""

    def test_background_work_goes_on_in_the_child(self) -> None:
        """Intervals of jobs are found in the child, though the parent has just found some."""
        written, errors = told_by(
            f"""
            import os, sys, warnings
            sys.path.insert(0, {str(HERE)!r})
            warnings.simplefilter("ignore")
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument
            from support import HandDriven, until

            def has_intervals(job_id):
                labels = {{"scheduler": "default", "job_id": job_id}}
                name = "apscheduler_job_shortest_interval_seconds"
                return registry.get_sample_value(name, labels) is not None

            registry = CollectorRegistry()
            scheduler = HandDriven(timezone="UTC")
            telemetry = instrument(scheduler, registry=registry)
            scheduler.start(paused=True)
            scheduler.add_job(print, "cron", hour="1-5", id="parent")
            until(lambda: has_intervals("parent"))
            if child := os.fork():
                os.waitpid(child, 0)
            else:
                scheduler.shutdown()
                scheduler.start(paused=True)
                scheduler.add_job(print, "cron", hour="1-5", id="child")
                try:
                    until(lambda: has_intervals("child"), patience=10)
                    os.write(1, b"child")
                finally:
                    os._exit(0)
            """
        )
        assert errors == ""
        assert written == "child"


class TestMultiprocessDirectory:
    """The directory that several processes share in Prometheus' multiprocess mode."""

    def test_child_that_is_forked_meanwhile_does_not_keep_the_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The lock of the directory is free when its owner has unlocked it, whoever has a copy."""
        children: list[int] = []
        end_of_child, end_of_parent = os.pipe()
        lock = fcntl.flock

        path = tmp_path / "apscheduler.lock"

        def lock_and_fork(file: Any, operation: int) -> None:
            lock(file, operation)
            is_directory_s = path.exists() and os.path.samestat(_status(file), path.stat())
            if is_directory_s and not children and operation & fcntl.LOCK_EX:
                child = os.fork()
                if not child:
                    os.close(end_of_parent)
                    os.read(end_of_child, 1)  # which returns when the parent closes its end
                    os._exit(0)
                children.append(child)

        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        monkeypatch.setattr(fcntl, "flock", lock_and_fork)
        try:
            instrument(HandDriven(), registry=CollectorRegistry()).uninstrument()
            assert children, "nothing was locked"
            file = os.open(path, os.O_RDONLY)
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(file)
        finally:
            os.close(end_of_parent)
            os.close(end_of_child)
            for child in children:
                os.waitpid(child, 0)


def _status(file: Any) -> os.stat_result:
    return os.fstat(file if isinstance(file, int) else file.fileno())
