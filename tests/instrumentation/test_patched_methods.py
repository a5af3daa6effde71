"""The methods that replace those of a scheduler."""

from __future__ import annotations

import inspect
from unittest.mock import MagicMock

from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument


class TestReplacements:
    """Methods of an instrumented scheduler, as the user sees them."""

    def test_keep_their_documentation_and_signature(self) -> None:
        """`help(scheduler.add_job)` shows APScheduler's documentation and signature."""
        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        assert scheduler.add_job.__doc__ == BackgroundScheduler.add_job.__doc__
        assert "misfire_grace_time" in inspect.signature(scheduler.add_job).parameters
        telemetry.uninstrument()

    def test_a_mock_in_place_of_a_method_stays(self) -> None:
        """A mock in place of a method stays, so that tests can see its calls."""
        scheduler = BackgroundScheduler()
        scheduler.wakeup = MagicMock()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.wakeup.reset_mock()
        scheduler.start(paused=True)
        scheduler.resume()
        assert scheduler.wakeup.called
        scheduler.shutdown()
        telemetry.uninstrument()
