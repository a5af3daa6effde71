"""Memory use of tracing."""

from __future__ import annotations

import gc

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")

from apscheduler.executors.debug import DebugExecutor
from opentelemetry.sdk.trace import TracerProvider

from tests.helpers.jobs import nothing
from tests.helpers.metrics import registry_of
from tests.helpers.rigs import hand_driven_rig

JOBS = 1000


@pytest.mark.slow
class TestJobsThatRunOnce:
    """An application that adds many one-off jobs."""

    def test_memory_does_not_grow_with_their_number(self) -> None:
        """Memory for removed jobs is bounded, also if each of their runs has a span."""
        telemetry = {"tracer_provider": TracerProvider(shutdown_on_exit=False)}
        with hand_driven_rig({"default": DebugExecutor()}, telemetry=telemetry) as rig:
            registry = registry_of(rig.telemetry)

            def objects_after(count: int) -> int:
                """Run some jobs, and return the number of objects afterwards."""
                for _ in range(count // 100):
                    for _ in range(100):
                        rig.add(nothing, id=None)
                    rig.after(3600)  # by then numbers of jobs that are gone are dropped
                    list(registry.collect())
                rig.events.clear()
                gc.collect()
                return len(gc.get_objects())

            objects_after(JOBS)  # until caches are full
            before = objects_after(JOBS)
            assert objects_after(3 * JOBS) - before < JOBS
            rig.checks_events = False  # as the events were dropped
