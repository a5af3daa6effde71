"""The warning at the exit of a process whose scheduler has jobs to run."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.scripts import output_of_script
from tests.helpers.waiting import wait_until

SCHEDULER = """
import logging
import os
import signal
import time

from apscheduler.schedulers.background import BackgroundScheduler

from apscheduler_telemetry import instrument

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
logging.getLogger("apscheduler_telemetry").setLevel(logging.INFO)
scheduler = BackgroundScheduler(timezone="UTC")
instrument(scheduler)
scheduler.add_job(print, "interval", hours=1, id="backup")
scheduler.start()
"""


ASYNCIO_SCHEDULER = """
import asyncio
import logging

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from apscheduler_telemetry import instrument

logging.basicConfig(format="%(levelname)s %(name)s %(message)s")
logging.getLogger("apscheduler_telemetry").setLevel(logging.INFO)
logging.getLogger("asyncio").setLevel(logging.CRITICAL)
scheduler = AsyncIOScheduler(timezone="UTC")
instrument(scheduler)
scheduler.add_job(print, "interval", hours=1, id="backup")


async def start():
    scheduler.start()
"""


class TestJobsAtExit:
    """A process that exits while its scheduler, in a daemon thread, has several jobs."""

    def test_warning_names_the_job_that_runs_next(self) -> None:
        """The warning names the job with the earliest next run."""
        _, errors = output_of_script(
            """
            from apscheduler.schedulers.background import BackgroundScheduler
            from apscheduler_telemetry import instrument

            scheduler = BackgroundScheduler(timezone="UTC")
            instrument(scheduler)
            for hours, job_id in ((5, "later"), (1, "next"), (9, "last")):
                scheduler.add_job(print, "interval", hours=hours, id=job_id)
            scheduler.start()
            """
        )
        assert len(errors.splitlines()) == 1
        assert [job_id for job_id in ("next", "later", "last") if repr(job_id) in errors] == [
            "next"
        ]

    def test_scheduler_that_cannot_be_looked_at_hides_no_other(self) -> None:
        """A failure of telemetry is logged as such, and the other schedulers are warned of."""
        _, errors = output_of_script(
            """
            from apscheduler.schedulers.background import BackgroundScheduler
            from apscheduler_telemetry import instrument

            for name in ("broken", "other"):
                scheduler = BackgroundScheduler(timezone="UTC")
                telemetry = instrument(scheduler, name=name)
                scheduler.add_job(print, "interval", hours=1)
                scheduler.start()
                if name == "broken":
                    broken = scheduler
                    telemetry._exported_scheduler.recorder.next_runs = lambda: 1 / 0
            """
        )
        assert "failed in its component 'adapter'" in errors
        assert "Exiting with 1 pending job(s) in scheduler 'other'" in errors
        assert "atexit" not in errors


def levels(text: str) -> list[str]:
    """Return the levels of what the log has of jobs at exit."""
    return [line.split()[0] for line in text.splitlines() if "pending job(s)" in line]


class TestScriptThatRunsOut:
    """The main thread ends by itself, which is mostly a mistake."""

    @pytest.mark.parametrize(
        "end",
        [
            "",
            "time.sleep(0.1)",
            "raise SystemExit(3)",
            "1 / 0",
            "import asyncio; asyncio.run(asyncio.sleep(0))",
            "import wsgiref.simple_server, http.server, unittest",
            "os.environ['WERKZEUG_SERVER_FD'] = '3'",  # as of a program that Flask's server runs
        ],
    )
    def test_warning_is_logged(self, end: str) -> None:
        """A warning is logged, whatever the end was like."""
        _, errors = output_of_script(f"{SCHEDULER}\n{end}\n")
        assert levels(errors) == ["WARNING"]
        assert "Keep the main thread alive" in errors

    @pytest.mark.parametrize(
        "module", ["flask", "django", pytest.param("fastapi", marks=pytest.mark.slow)]
    )
    def test_application_that_is_not_served_is_warned_of(self, module: str) -> None:
        """The same if a web framework is imported, and no server was started."""
        pytest.importorskip(module)
        _, errors = output_of_script(f"import {module}\n{SCHEDULER}")
        assert levels(errors) == ["WARNING"]


class TestEventLoopThatRunsOut:
    """The event loop of an AsyncIOScheduler ends before the script does, or never runs."""

    @pytest.mark.parametrize(
        "end",
        [
            "asyncio.run(start())",
            "loop = asyncio.new_event_loop(); loop.run_until_complete(start())",
            "scheduler.configure(event_loop=asyncio.new_event_loop()); scheduler.start()",
        ],
    )
    def test_warning_is_logged(self, end: str) -> None:
        """The warning says how to keep it running."""
        _, errors = output_of_script(f"{ASYNCIO_SCHEDULER}\n{end}\n")
        assert levels(errors) == ["WARNING"]
        assert "'backup'" in errors
        assert "Keep the event loop running, such as by `await asyncio.Event().wait()`" in errors
        assert "main thread" not in errors

    def test_application_that_has_run_jobs_is_not_warned_of(self) -> None:
        """Such as a bot that handles SIGINT, and returns from its main coroutine."""
        script = """
        async def main():
            has_run = asyncio.Event()
            async def job():
                has_run.set()
            scheduler.add_job(job)
            scheduler.start()
            await has_run.wait()
            await asyncio.sleep(0)

        asyncio.run(main())
        """
        _, errors = output_of_script(f"{ASYNCIO_SCHEDULER}{textwrap.dedent(script)}")
        assert levels(errors) == ["INFO"]

    @pytest.mark.parametrize("end", ["shutdown(wait=False)", "pause()", "remove_all_jobs()"])
    def test_scheduler_that_is_not_to_run_is_not_warned_of(self, end: str) -> None:
        """It was shut down, is paused, or has no job."""
        _, errors = output_of_script(
            f"{ASYNCIO_SCHEDULER}    scheduler.{end}\nasyncio.run(start())\n"
        )
        assert levels(errors) == []

    def test_interrupted_event_loop_is_not_warned_of(self, tmp_path: Path) -> None:
        """Ctrl-C of `asyncio.run`, which raises a `KeyboardInterrupt`."""
        script = """
        async def main():
            await start()
            print("serving", flush=True)
            await asyncio.Event().wait()

        asyncio.run(main())
        """
        text = end_of(script, signal.SIGINT, tmp_path, before=ASYNCIO_SCHEDULER)
        assert levels(text) == ["INFO"]
        assert "KeyboardInterrupt" in text

    def test_server_of_uvicorn_is_not_warned_of(self) -> None:
        """A scheduler that is started in the lifespan of an application, and left running."""
        pytest.importorskip("uvicorn")
        script = """
        import uvicorn

        async def app(scope, receive, send):
            await receive()
            await start()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})

        class Server(uvicorn.Server):
            async def startup(self, *args, **options):
                await super().startup(*args, **options)
                self.should_exit = True

        Server(uvicorn.Config(app, port=0, lifespan="on", log_level="critical")).run()
        """
        _, errors = output_of_script(f"{ASYNCIO_SCHEDULER}{textwrap.dedent(script)}")
        assert levels(errors) == ["INFO"]


def end_of(script: str, number: signal.Signals, directory: Path, *, before: str = SCHEDULER) -> str:
    """Run a script until it says so, send it a signal, and return what it wrote."""
    path = directory / "script.py"
    path.write_text(f"{before}{textwrap.dedent(script)}")
    log = directory / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, path], stdout=output, stderr=output, cwd=directory
        )
    try:
        wait_until(lambda: "serving" in log.read_text(), timeout=30)
        process.send_signal(number)
        process.wait(WAIT_TIMEOUT)
    finally:
        process.kill()
        process.wait()
    return log.read_text()


class TestProcessThatIsEnded:
    """The main thread ends as it was told to."""

    @pytest.mark.parametrize("end", ["unhandled", "handled"])
    def test_interrupted_server_is_not_warned_of(self, end: str, tmp_path: Path) -> None:
        """Ctrl-C of a server in the script, whether the exception is caught or not."""
        pytest.importorskip("werkzeug")
        catch = "except KeyboardInterrupt: pass" if end == "handled" else "finally: pass"
        script = f"""
        from werkzeug.serving import make_server, run_simple

        def app(environ, start_response):
            raise AssertionError

        import threading
        threading.Timer(0.5, lambda: print("serving", flush=True)).start()
        try:
            run_simple("127.0.0.1", 0, app)
        {catch}
        """
        assert levels(end_of(script, signal.SIGINT, tmp_path)) == ["INFO"]

    def test_interrupted_script_is_not_warned_of(self, tmp_path: Path) -> None:
        """Ctrl-C of a script that waits."""
        script = "print('serving', flush=True)\nwhile True: time.sleep(0.05)\n"
        text = end_of(script, signal.SIGINT, tmp_path)
        assert levels(text) == ["INFO"]
        assert "KeyboardInterrupt" in text
        assert "To let runs in progress end" in text
        assert "Keep the main thread alive" not in text

    def test_script_that_handles_sigterm_is_not_warned_of(self, tmp_path: Path) -> None:
        """SIGTERM of a script that ends in an orderly way."""
        script = """
        signal.signal(signal.SIGTERM, lambda *_: exit())
        print("serving", flush=True)
        while True: time.sleep(0.05)
        """
        assert levels(end_of(script, signal.SIGTERM, tmp_path)) == ["INFO"]

    @pytest.mark.slow
    def test_tests_of_pytest_are_not_warned_of(self, tmp_path: Path) -> None:
        """A scheduler that a test has left running when pytest ends."""
        (tmp_path / "test_it.py").write_text(f"{SCHEDULER}\ndef test_it(): pass\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        assert "1 passed" in done.stdout
        assert set(levels(done.stderr)) <= {"INFO"}

    def test_tests_of_unittest_are_not_warned_of(self, tmp_path: Path) -> None:
        """The same with the standard library's runner."""
        (tmp_path / "test_it.py").write_text(SCHEDULER)
        command = [sys.executable, "-m", "unittest", "test_it"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert levels(done.stderr) == ["INFO"]

    def test_shell_is_not_warned_of(self) -> None:
        """A shell whose user ends it."""
        done = subprocess.run(
            [sys.executable, "-i", "-q"],
            input=SCHEDULER,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert levels(done.stderr.replace(">>> ", "")) == ["INFO"]
