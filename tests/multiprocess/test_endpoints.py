"""HTTP endpoints in multiprocess mode show all processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from apscheduler_telemetry import Telemetry, instrument
from apscheduler_telemetry.export.multiprocess import registry as multiprocess_registry
from apscheduler_telemetry.export.multiprocess.merge import read_metrics
from tests.helpers.http_clients import ask_wsgi
from tests.helpers.multiprocess_files import Process
from tests.helpers.schedulers import HandDriven

NOW = 1_800_000_000.0


class TestServed:
    """The pages that a handle serves in multiprocess mode."""

    @pytest.fixture
    def telemetry(self, directory_without_threads: Path) -> Iterator[Telemetry]:
        """Instrument a scheduler that another process runs and this one does not."""
        other = Process(directory_without_threads, "other")
        other.job(NOW)
        other.write()
        telemetry = instrument(HandDriven(), registry=CollectorRegistry())
        yield telemetry
        telemetry.uninstrument()
        other.die()

    def test_each_process_serves_the_metrics_of_all(
        self, telemetry: Telemetry, directory_without_threads: Path
    ) -> None:
        """Each process serves the metrics of all processes."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        page = ask_wsgi(telemetry.wsgi_app, "/metrics").text
        assert sorted(page.splitlines()) == sorted(generate_latest(registry).decode().splitlines())
        assert 'apscheduler_scheduler_up{scheduler="other"} 1.0' in page

    def test_scrape_removes_gauges_of_dead_processes(
        self, telemetry: Telemetry, directory_without_threads: Path
    ) -> None:
        """A scrape removes stale gauges first, so no hook is needed."""
        third = Process(directory_without_threads, "third")
        third.write()
        third.die()
        page = ask_wsgi(telemetry.wsgi_app, "/metrics").text
        assert 'apscheduler_scheduler_up{scheduler="third"}' not in page

    def test_name_parameter_restricts_the_page(self, telemetry: Telemetry) -> None:
        """``name[]`` restricts the page to these series."""
        query = "name%5B%5D=apscheduler_scheduler_up"
        page = ask_wsgi(telemetry.wsgi_app, "/metrics", query=query).text
        lines = [line for line in page.splitlines() if not line.startswith("#")]
        assert lines == ['apscheduler_scheduler_up{scheduler="other"} 1.0']

    def test_name_parameter_reads_the_files_once(
        self, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """``name[]`` reads the files once, as the whole page does, which is what costs most."""
        readings = []

        def counting_read(directory: Path, *options: Any) -> Any:
            readings.append(directory)
            return read_metrics(directory, *options)

        monkeypatch.setattr(multiprocess_registry, "read_metrics", counting_read)
        query = "name[]=apscheduler_scheduler_up&name[]=nothing"
        assert ask_wsgi(telemetry.wsgi_app, "/metrics", query=query).status == 200
        assert len(readings) == 1
