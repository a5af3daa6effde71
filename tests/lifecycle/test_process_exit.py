"""The exit of a process: it does not hang, no run is lost, and pending jobs are logged."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.paths import ROOT

pytest.importorskip("opentelemetry.sdk")

PRELUDE = """
import atexit, logging, os, signal, sys, threading, time
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler_telemetry import instrument
scheduler = BackgroundScheduler(timezone="UTC")
add = lambda **options: scheduler.add_job(print, "interval", hours=1, id="backup", **options)
"""


def run(script: str) -> tuple[int, list[str]]:
    """Run a script, and return its exit status and what it wrote to its error output."""
    script = PRELUDE + textwrap.dedent(script)
    command = [sys.executable, "-W", "ignore", "-c", script]  # APScheduler 3.10 has some
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_TIMEOUT, check=False
    )
    return done.returncode, done.stderr.splitlines()


class TestJobsLeft:
    """A script that exits while its scheduler, in a daemon thread, has jobs to run."""

    def test_one_warning_names_the_next_job(self) -> None:
        """One warning names the next job, what to do, and how to avoid the warning."""
        status, lines = run("instrument(scheduler); add(); scheduler.start()")
        assert status == 0
        assert len(lines) == 1
        assert lines[0].startswith(
            "Exiting with 1 pending job(s) in scheduler 'default': it runs in a daemon thread, "
            "which ends with the main thread. Next: 'backup' at 20"
        )
        assert lines[0].endswith("call the scheduler's shutdown() first.")

    def test_warning_after_an_exception_keeps_the_exit_status(self) -> None:
        """After an exception, the warning is logged and the exit status stays."""
        status, lines = run("instrument(scheduler); add(); scheduler.start(); sys.exit(3)")
        assert (status, len(lines)) == (3, 1)

    def test_no_warning_for_stopped_or_idle_schedulers(self) -> None:
        """Schedulers that were shut down or have nothing to do cause no warning."""
        status, lines = run(
            """
            from prometheus_client import CollectorRegistry
            def watched(name, *, with_job=True, start=True, **options):
                scheduler = BackgroundScheduler(timezone="UTC")
                telemetry = instrument(scheduler, name=name, registry=CollectorRegistry())
                if with_job:
                    scheduler.add_job(print, "interval", hours=1, **options)
                if start:
                    scheduler.start()
                return scheduler, telemetry
            watched("shut down")[0].shutdown()
            watched("shut down at once")[0].shutdown(wait=False)
            atexit.register(watched("shut down at exit")[0].shutdown)
            watched("never started", start=False)
            watched("no job", with_job=False)
            watched("paused job", next_run_time=None)
            watched("paused")[0].pause()
            watched("uninstrumented")[1].uninstrument()
            """
        )
        assert (status, lines) == (0, [])

    def test_no_warning_for_an_interrupted_blocking_scheduler(self) -> None:
        """A blocking scheduler that is interrupted causes no warning."""
        status, lines = run(
            """
            scheduler = BlockingScheduler(timezone="UTC")
            instrument(scheduler); add()
            def interrupt_once(*_):
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one may be on its way
                raise KeyboardInterrupt
            signal.signal(signal.SIGINT, interrupt_once)
            def interrupt():
                while not ended.wait(0.2):
                    os.kill(os.getpid(), 2)
            ended = threading.Event()
            threading.Thread(target=interrupt).start()
            try:
                scheduler.start()
            except KeyboardInterrupt:
                ended.set()
                print("interrupted", file=sys.stderr)
            """
        )
        assert (status, lines) == (0, ["interrupted"])

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_no_warning_in_a_forked_child(self) -> None:
        """A forked child, which does not have the scheduler's thread, logs no warning."""
        status, lines = run(
            """
            instrument(scheduler); add(); scheduler.start()
            if child := os.fork():
                os.waitpid(child, 0)
                scheduler.shutdown()
            """
        )
        assert (status, lines) == (0, [])

    def test_warning_keeps_no_scheduler_alive(self) -> None:
        """The exit hook does not keep a scheduler alive."""
        status, lines = run(
            """
            import gc, weakref
            telemetry = instrument(scheduler, registry=None)
            gone = weakref.ref(scheduler)
            del scheduler, telemetry, add
            gc.collect()
            assert gone() is None
            """
        )
        assert (status, lines) == (0, [])


@pytest.mark.slow
class TestSignals:
    """A signal during a run, with other runs queued; its handler shuts the scheduler down."""

    @pytest.mark.parametrize(
        ("scheduler", "wait", "number"),
        [
            ("background", "wait", "SIGINT"),
            ("background", "at once", "SIGTERM"),
            ("blocking", "wait", "SIGTERM"),
            ("blocking", "at once", "SIGINT"),
        ],
    )
    def test_every_run_ends_and_its_span_is_exported(
        self, scheduler: str, wait: str, number: str
    ) -> None:
        """Running and queued runs end, and their spans are exported."""
        deadline = time.monotonic() + WAIT_TIMEOUT
        with subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.applications.ended_by_signal"),
                *(scheduler, wait, number),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            try:
                # Repeatedly, because Python handles a signal late that comes just before the main
                # thread waits: without telemetry, too, one in eight does not end the loop.
                while process.poll() is None:
                    process.send_signal(getattr(signal, number))
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(0.5)
                    assert time.monotonic() < deadline, "it hangs"
                output, errors = process.communicate(timeout=WAIT_TIMEOUT)
            finally:
                process.kill()
        assert process.returncode == 0, errors
        report = json.loads(output)
        assert report == {"due": 3, "success": 3, "left": [[0, 0, 0]] * 3, "spans": 3}
        assert "pending job(s)" not in errors
