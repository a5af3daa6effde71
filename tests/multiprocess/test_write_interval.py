"""How often a process writes its numbers in Prometheus' multiprocess mode."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from apscheduler_telemetry import instrument
from tests.helpers.jobs import nothing
from tests.helpers.schedulers import HandDriven
from tests.helpers.waiting import wait_until

STALE = 30.0
"""Seconds after which readers take gauges for those of a process that hangs."""


@pytest.mark.slow
class TestWritingThatTakesLong:
    """A process with so many jobs that writing all of them takes much processor time."""

    def test_writes_before_its_gauges_are_taken_for_stale(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However long a write takes, the next one comes before the gauges become stale."""
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        # As if each writing took a thousand seconds of processor time.
        monkeypatch.setattr(time, "thread_time", itertools.count(step=1000).__next__)

        def shown(name: str, **labels: str) -> float | None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            labels["scheduler"] = "default"
            return registry.get_sample_value(f"apscheduler_{name}", labels)

        scheduler = HandDriven(executors={"default": DebugExecutor()})
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        try:
            scheduler.start()
            scheduler.turn()
            wait_until(lambda: shown("scheduler_up") is not None, "the first writing")
            scheduler.add_job(nothing, id="job")
            scheduler.turn()
            wait_until(
                lambda: shown("job_runs_total", job_id="job", outcome="success") == 1,
                "the next writing",
                STALE,
            )
            assert shown("scheduler_up") == 1
        finally:
            telemetry.uninstrument()
            scheduler.shutdown()
