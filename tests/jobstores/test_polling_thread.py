"""The thread that reads job stores: when it starts and ends, and what it keeps alive."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("redis")

from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from apscheduler_telemetry.adapters.apscheduler3.jobstore_reader import SQLAlchemyReader
from tests.helpers import jobs
from tests.helpers.jobstore_servers import File, Proxy
from tests.helpers.metrics import recorder_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.shared_jobstores import (
    POSTGRES,
    SOON,
    another_process,
    background,
    poller_of,
    readers,
)
from tests.helpers.threads import in_fork
from tests.helpers.waiting import wait_until
from tests.helpers.watching import Watched, wait_for_reading, watched


@pytest.mark.usefixtures("poll_often")
class TestThread:
    """The thread that reads stores ends by itself and keeps nothing alive."""

    def test_thread_ends_and_starts_with_the_scheduler(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread ends when the scheduler is shut down, and starts again with it."""
        monkeypatch.setattr(BackgroundWorker, "IDLE_SECONDS", SOON)
        with watched(background(File(tmp_path).store())) as seen:
            for _ in range(2):
                seen.scheduler.start()
                wait_until(readers)
                seen.scheduler.shutdown()
                wait_until(lambda: not readers())

    def test_slow_store_does_not_delay_the_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store that does not respond to telemetry does not delay the start."""
        started = threading.Event()

        def fetch_next_runs(reader: SQLAlchemyReader) -> Any:
            assert started.wait(jobs.WAIT_TIMEOUT)
            return {}

        monkeypatch.setattr(SQLAlchemyReader, "fetch_next_runs", fetch_next_runs)
        with watched(background(File(tmp_path).store())) as seen:
            seen.scheduler.start()
            started.set()
            wait_until(seen.last_read)
            assert seen.own_errors() == {}
            assert seen.value("jobstore_read_failures_total", jobstore="default") == 0

    def test_thread_ends_with_uninstrument(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread ends with `uninstrument`; a new handle has a new thread."""
        monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL_SECONDS", 1e6)
        with watched(background(File(tmp_path).store())) as seen:
            seen.scheduler.start()
            wait_until(seen.last_read)
            seen.telemetry.uninstrument()
            wait_until(lambda: not readers())
            with watched(seen.scheduler) as again:
                wait_until(again.last_read)

    def test_thread_keeps_no_scheduler_alive(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A scheduler without references is freed, also if a reading is scheduled."""
        monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL_SECONDS", 1e6)
        scheduler = hand_driven_scheduler(jobstores={"default": File(tmp_path).store()})
        registry = CollectorRegistry()
        telemetry = instrument(scheduler, registry=registry)
        scheduler.start()
        wait_for_reading(Watched(scheduler, telemetry, registry))
        assert recorder_of(telemetry).jobstores()["default"].last_read_at
        alive = weakref.ref(scheduler)
        del scheduler, telemetry

        def is_gone() -> bool:
            gc.collect()
            return alive() is None

        wait_until(is_gone)

    def test_forked_child_reads_no_store(self, tmp_path: Path) -> None:
        """A forked child does not read the store, as the connections are its parent's."""
        with watched(background(File(tmp_path).store())) as seen:
            seen.scheduler.start()
            wait_until(seen.last_read)
            child = os.fork()
            if child == 0:
                try:
                    before = recorder_of(seen.telemetry).jobstores()["default"].last_read_at
                    poller = poller_of(seen)
                    time.sleep(3 * SOON)  # in which a thread of the child would read the store
                    poller._poll_and_reschedule()
                    poller._worker.submit("adapter", lambda: None)  # which starts a thread again
                    time.sleep(3 * SOON)
                    read = recorder_of(seen.telemetry).jobstores()["default"].last_read_at
                    os._exit(0 if read is not None and read == before else 1)
                finally:
                    os._exit(2)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0

    def test_forked_child_whose_loop_goes_on_reads_the_store(self, tmp_path: Path) -> None:
        """From its first pass on, over connections of its own, as a daemon's scheduler does."""
        place = File(tmp_path)
        with another_process(place) as other:
            other.add_job(jobs.nothing, "interval", hours=1)
        scheduler = hand_driven_scheduler(jobstores={"default": place.store()})
        with watched(scheduler) as seen:
            scheduler.start()
            wait_for_reading(seen)

            def goes_on() -> bool:
                before = seen.last_read()
                scheduler.turn()
                wait_until(lambda: seen.last_read() != before)
                return seen.value("scheduler_jobs", jobstore="default") == 1

            assert in_fork(goes_on)

    @pytest.mark.parametrize("kind", [POSTGRES])
    def test_process_ends_though_its_store_does_not_answer(self, place: Any, proxy: Proxy) -> None:
        """A process can exit while its store does not respond."""
        code = f"""
import sys, time
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
JobStorePoller.POLL_INTERVAL_SECONDS = 0.01
scheduler = BackgroundScheduler()
scheduler.add_jobstore(SQLAlchemyJobStore({place.server.url(proxy.port)!r}))
instrument(scheduler)
scheduler.start()
print("started", flush=True)
sys.stdin.readline()
"""
        with subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            proxy.stall()
            wait_until(lambda: proxy.waiting)
            process.stdin.close()
            assert process.wait(jobs.WAIT_TIMEOUT) == 0
