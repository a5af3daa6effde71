"""One process that serves metrics in multiprocess mode."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from apscheduler_telemetry import Expectations, Telemetry, instrument
from apscheduler_telemetry.core.model import SchedulerErrorKind
from tests.helpers import jobs
from tests.helpers.clocks import freeze_time
from tests.helpers.http_clients import ask_wsgi
from tests.helpers.metrics import recorder_of, registry_of, without_usual_values
from tests.helpers.multiprocess_files import Process, scrape, series, value
from tests.helpers.paths import ROOT
from tests.helpers.schedulers import HandDriven
from tests.helpers.waiting import wait_until


class TestOneProcess:
    """One process that serves metrics in this mode."""

    @pytest.fixture
    def telemetry(self, directory_without_threads: Path) -> Iterator[Telemetry]:
        """Run a scheduler with jobs that succeeded, failed or wait."""
        scheduler = HandDriven(executors={"default": DebugExecutor()}, timezone=timezone.utc)
        telemetry = instrument(
            scheduler,
            name='a "name" with_all/sorts of*signs',
            registry=CollectorRegistry(),
            expect=Expectations(
                owner="me", deadline="06:30", max_failures=2, min_recorded={"rows": 1}
            ),
        )
        scheduler.add_job(jobs.nothing, id="ok_1")
        scheduler.add_job(jobs.fail, id='it "fails"\n')
        scheduler.add_job(jobs.nothing, "interval", hours=1, id="hourly")
        scheduler.start()
        scheduler.turn()
        recorder_of(telemetry).count_scheduler_error(SchedulerErrorKind.JOBSTORE)
        wait_until(lambda: value(series(registry_of(telemetry)), "job_shortest_interval_seconds"))
        yield telemetry
        scheduler.shutdown()
        telemetry.uninstrument()

    def test_series_are_the_same_as_without_the_mode(
        self, telemetry: Telemetry, directory_without_threads: Path
    ) -> None:
        """Names, labels and values are the same without the mode, which leaves out usual values."""
        assert telemetry._snapshot_writer is not None
        with freeze_time(
            datetime.now(timezone.utc)
        ):  # the last read of a store in memory is always now
            telemetry._snapshot_writer.write()
            plain = series(registry_of(telemetry))
        assert len(plain) > 150
        written = scrape(directory_without_threads)
        assert without_usual_values(written) == plain
        assert len(written) > len(plain)

    def test_types_and_help_texts_are_the_same_as_without_the_mode(
        self, telemetry: Telemetry, directory_without_threads: Path
    ) -> None:
        """Each metric has the same type and help text as without the mode."""
        assert telemetry._snapshot_writer is not None
        telemetry._snapshot_writer.write()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        read = {m.name: (m.type, m.documentation) for m in registry.collect()}
        plain = list(registry_of(telemetry).collect())
        assert read.items() <= {m.name: (m.type, m.documentation) for m in plain}.items()
        assert {m.name for m in plain if m.samples} <= read.keys()

    @pytest.mark.integration
    def test_promtool_accepts_the_exposition(self, telemetry: Telemetry) -> None:
        """`promtool check metrics` reports no problem."""
        promtool = shutil.which("promtool")
        if promtool is None:
            pytest.skip("promtool is not installed")
        page = ask_wsgi(telemetry.wsgi_app, "/metrics").body
        checked = subprocess.run(
            [promtool, "check", "metrics"], input=page, capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")

    def test_thread_writes_within_seconds(self, directory: Path) -> None:
        """The thread writes within seconds, and a shutdown at once."""
        scheduler = HandDriven(executors={"default": DebugExecutor()})
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        scheduler.add_job(jobs.nothing, id="ok")
        scheduler.start()
        wait_until(lambda: value(scrape(directory), "scheduler_up", scheduler="default") == 1)
        scheduler.turn()
        wait_until(lambda: value(scrape(directory), "job_runs_total", outcome="success") == 1)
        scheduler.shutdown()
        assert value(scrape(directory), "scheduler_state", state="stopped") == 1
        assert value(scrape(directory), "scheduler_up", scheduler="default") == 0
        telemetry.uninstrument()

    @pytest.mark.slow
    def test_latest_counts_are_written_at_exit(self, directory: Path) -> None:
        """At exit, the latest counts are written and the gauges are removed."""
        script = """
            from apscheduler.executors.debug import DebugExecutor
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument
            from apscheduler_telemetry.export.multiprocess import writer
            from tests.helpers.schedulers import HandDriven
            writer.WRITE_INTERVAL_SECONDS = 3600
            scheduler = HandDriven(executors={"default": DebugExecutor()})
            telemetry = instrument(scheduler, registry=CollectorRegistry())
            scheduler.start()
            telemetry._snapshot_writer.write()
            scheduler.add_job(print, id="last")
            scheduler.turn()
        """
        subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )
        shown = scrape(directory)
        assert value(shown, "job_runs_total", outcome="success") == 1
        assert value(shown, "scheduler_up") is None

    def test_scheduler_instrumented_while_running_is_written(
        self, directory_without_threads: Path
    ) -> None:
        """A scheduler that is instrumented while it runs is written as well."""
        scheduler = HandDriven()
        scheduler.start()
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        ask_wsgi(telemetry.wsgi_app, "/metrics")
        assert value(scrape(directory_without_threads), "scheduler_up") == 1
        scheduler.shutdown()
        telemetry.uninstrument()

    def test_scheduler_that_is_not_started_writes_nothing(
        self, directory_without_threads: Path
    ) -> None:
        """A process that does not start its scheduler writes nothing."""
        telemetry = instrument(HandDriven(), registry=CollectorRegistry())
        assert ask_wsgi(telemetry.wsgi_app, "/metrics").body == b""
        telemetry.uninstrument()

    def test_uninstrument_removes_gauges_and_counters_continue(
        self, telemetry: Telemetry, directory_without_threads: Path
    ) -> None:
        """Gauges are removed, and the next handle continues from the counters."""
        assert telemetry._snapshot_writer is not None
        telemetry._snapshot_writer.write()
        scheduler = telemetry._scheduler
        telemetry.uninstrument()
        shown = scrape(directory_without_threads)
        assert value(shown, "scheduler_up") is None
        assert value(shown, "job_runs_total", outcome="success", job_id="ok_1") == 1
        again = instrument(scheduler, name=telemetry.name, registry=CollectorRegistry())
        scheduler.add_job(jobs.nothing, id="ok_1")
        scheduler.turn()
        ask_wsgi(again.wsgi_app, "/metrics")
        assert (
            value(
                scrape(directory_without_threads),
                "job_runs_total",
                outcome="success",
                job_id="ok_1",
            )
            == 2
        )
        again.uninstrument()

    def test_no_file_is_written_without_a_registry(self, directory_without_threads: Path) -> None:
        """With ``registry=None``, no file is written."""
        scheduler = HandDriven()
        telemetry = instrument(scheduler, registry=None)
        scheduler.start()
        scheduler.shutdown()
        assert list(directory_without_threads.iterdir()) == []
        telemetry.uninstrument()

    def test_exemplars_are_left_out(self, directory_without_threads: Path) -> None:
        """The files cannot store exemplars; the histogram is complete without them."""
        process = Process(directory_without_threads)
        process.job(None)
        run = process.begin()
        run.exemplar_span = SimpleNamespace(trace_id=1, span_id=2)
        process.finish(run, 1.0)
        process.write()
        assert value(scrape(directory_without_threads), "job_run_duration_seconds_count") == 1
