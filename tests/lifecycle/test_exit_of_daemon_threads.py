"""Schedulers in daemon threads at the exit of the process, and what counts as its intended end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.jobs import WAIT_TIMEOUT

PRELUDE = """
import asyncio, logging, os, signal, sys, threading, time
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler_telemetry import instrument

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
logging.getLogger("apscheduler_telemetry").setLevel(logging.INFO)

def observed(scheduler):
    instrument(scheduler)
    scheduler.add_job(print, "interval", hours=1, id="backup")
    return scheduler

def wait_for_pass(scheduler):
    handle = scheduler._apscheduler_telemetry
    while handle._exported_scheduler.last_pass_ended_at is None:
        time.sleep(0.001)
"""


def lines_at_exit(script: str) -> list[str]:
    """Return what a script writes to its error output, in a process outside of pytest."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRELUDE + textwrap.dedent(script)],
        capture_output=True,
        check=False,
        env=environment,
        text=True,
        timeout=WAIT_TIMEOUT,
    )
    return done.stderr.splitlines()


BLOCKING = """
scheduler = observed(BlockingScheduler(timezone="UTC"))
threading.Thread(target=scheduler.start, daemon=DAEMON).start()
wait_for_pass(scheduler)
"""
ASYNCIO = """
async def main():
    scheduler.start()
    await asyncio.sleep(SECONDS)

scheduler = observed(AsyncIOScheduler(timezone="UTC"))
threading.Thread(target=lambda: asyncio.run(main()), daemon=DAEMON).start()
wait_for_pass(scheduler)
"""


class TestDaemonThreads:
    """Python ends them together with the main thread, whatever scheduler runs in them."""

    @pytest.mark.parametrize("script", [BLOCKING, ASYNCIO], ids=["blocking", "asyncio"])
    def test_scheduler_in_a_daemon_thread_is_warned_of(self, script: str) -> None:
        """Its situation is that of a BackgroundScheduler."""
        [line] = lines_at_exit(script.replace("DAEMON", "True").replace("SECONDS", "3600"))
        assert line.startswith("WARNING apscheduler_telemetry Exiting with 1 pending job(s)")
        assert "'backup'" in line

    def test_thread_that_is_no_daemon_is_not_warned_of(self) -> None:
        """Python waits for it."""
        script = f"{BLOCKING}\nthreading.Timer(0.1, lambda: scheduler.shutdown(wait=False)).start()"
        assert lines_at_exit(script.replace("DAEMON", "False")) == []

    def test_event_loop_that_has_ended_in_a_thread_is_warned_of(self) -> None:
        """Python waits for the thread, whose coroutine returns too early."""
        script = ASYNCIO.replace("DAEMON", "False").replace("SECONDS", "0.01")
        [line] = lines_at_exit(script)
        assert line.startswith("WARNING")
        assert "it runs in an event loop, which has ended" in line


class TestIndistinguishableEnds:
    def test_interrupt_that_the_script_catches_is_warned_of(self) -> None:
        """Afterwards it ends by itself, and Python does not tell that it was interrupted."""
        [line] = lines_at_exit("""
            observed(BackgroundScheduler(timezone="UTC")).start()
            threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
            try:
                while True:
                    time.sleep(0.05)
            except KeyboardInterrupt:
                pass
        """)
        assert line.startswith("WARNING")


class TestImportedOnly:
    """A module that is imported, and whose server or runner was not started, ends nothing."""

    @pytest.mark.parametrize("module", ["uvicorn", "tornado.web", "pytest", "unittest"])
    def test_script_that_runs_out_is_warned_of(self, module: str) -> None:
        """The main thread ended by itself, whatever was imported."""
        pytest.importorskip(module)
        [line] = lines_at_exit(f"""
            import {module}
            observed(BackgroundScheduler(timezone="UTC")).start()
        """)
        assert line.startswith("WARNING")

    @pytest.mark.parametrize(
        "where", ["at its import", pytest.param("in a test", marks=pytest.mark.slow)]
    )
    def test_pytest_that_runs_is_not_warned_of(self, where: str, tmp_path: Path) -> None:
        """However pytest was started."""
        at_import = "observed(BackgroundScheduler(timezone='UTC')).start()"
        in_test = f"def test_it(): {at_import}\n"
        body = f"{at_import}\ndef test_it(): pass\n" if where == "at its import" else in_test
        (tmp_path / "test_it.py").write_text(f"{PRELUDE}\n{body}")
        if where == "at its import" and "PYTEST_VERSION" not in os.environ:
            pytest.skip("before 8.2, pytest does not say that it collects tests")
        lines = lines_at_exit(f"""
            import pytest
            os.chdir({str(tmp_path)!r})
            sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "test_it.py"]))
        """)
        assert [line for line in lines if line.startswith("WARNING")] == []

    def test_server_of_uvicorn_is_not_warned_of(self) -> None:
        """This server catches the `KeyboardInterrupt`, and then the script ends."""
        pytest.importorskip("uvicorn")
        [line] = lines_at_exit("""
            import uvicorn

            async def app(scope, receive, send):
                raise AssertionError

            class Server(uvicorn.Server):
                async def startup(self, *args, **options):
                    await super().startup(*args, **options)
                    self.should_exit = True

            observed(BackgroundScheduler(timezone="UTC")).start()
            Server(uvicorn.Config(app, port=0, lifespan="off", log_level="critical")).run()
        """)
        assert line.startswith("INFO")

    def test_server_of_tornado_is_not_warned_of(self) -> None:
        """An event loop of Tornado has run."""
        pytest.importorskip("tornado")
        [line] = lines_at_exit("""
            import tornado.ioloop, tornado.web

            async def main():
                tornado.web.Application().listen(0, "127.0.0.1")

            observed(BackgroundScheduler(timezone="UTC")).start()
            tornado.ioloop.IOLoop.current().run_sync(main)
        """)
        assert line.startswith("INFO")
