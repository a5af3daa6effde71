"""``apscheduler-telemetry doctor`` as a process, whatever the application does in it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.helpers.commands import run_command

PRELUDE = """
from apscheduler.schedulers.background import BackgroundScheduler

def job():
    pass

scheduler = BackgroundScheduler(timezone="UTC")
"""


class TestProcess:
    """What it prints, and how it ends."""

    def test_all_that_the_application_prints_goes_to_standard_error(self, tmp_path: Path) -> None:
        """So do its child processes, and its functions for the end of the process."""
        (tmp_path / "app.py").write_text(
            f"""{PRELUDE}
import atexit, subprocess, sys
print("import")
subprocess.run([sys.executable, "-c", "print('child')"])
atexit.register(print, "exit")
"""
        )
        completed = run_command("doctor", "app", "--json", cwd=tmp_path)
        assert json.loads(completed.stdout) == []
        assert sorted(completed.stderr.split()) == ["child", "exit", "import"]

    def test_thread_pool_does_not_keep_the_command(self, tmp_path: Path) -> None:
        """At exit, Python would wait for the function that it runs."""
        (tmp_path / "app.py").write_text(
            f"""{PRELUDE}
import concurrent.futures, threading
concurrent.futures.ThreadPoolExecutor().submit(threading.Event().wait)
"""
        )
        assert run_command("doctor", "app", cwd=tmp_path).returncode == 0

    def test_application_that_ignores_the_interrupt_is_ended(self, tmp_path: Path) -> None:
        """It cannot be checked, and the command does not hang."""
        (tmp_path / "app.py").write_text(
            f"""{PRELUDE}
import signal, threading
from apscheduler_telemetry.cli import imported_application
imported_application.MAX_SECONDS_AFTER_START = 0.1
imported_application.MAX_SECONDS_AFTER_INTERRUPT = 0.1
signal.signal(signal.SIGINT, signal.SIG_IGN)
scheduler.start()
threading.Event().wait()
"""
        )
        completed = run_command("doctor", "app", cwd=tmp_path)
        assert (completed.returncode, completed.stdout) == (2, "")
        assert completed.stderr.count("\n") == 2
        assert "app ignores the interrupt" in completed.stderr

    def test_application_that_never_ends_is_interrupted(self, tmp_path: Path) -> None:
        """A function that waits for Ctrl-C, threads and coroutines do not keep the command."""
        (tmp_path / "app.py").write_text(
            f"""{PRELUDE}
import asyncio, threading
from apscheduler_telemetry.cli import imported_application
imported_application.MAX_SECONDS_AFTER_START = 0.1
threading.Thread(target=threading.Event().wait).start()
async def main():
    scheduler.add_job(job, 'cron', hour=2, id='nightly')
    scheduler.start()  # shutdown
    await asyncio.Event().wait()
"""
        )
        completed = run_command("doctor", "app:main()", cwd=tmp_path)
        assert (completed.returncode, completed.stdout[:28]) == (1, "serious  misfire-grace-time\n")
        assert re.fullmatch(r".*app:main\(\) has not returned .*\n", completed.stderr)
        assert "daemon-thread" not in completed.stdout  # the main thread goes on

    def test_ctrl_c_ends_an_import_that_does_not_end(self, tmp_path: Path) -> None:
        """The status is that of shells, and there is no traceback."""
        (tmp_path / "app.py").write_text(
            "import signal, time\nsignal.raise_signal(signal.SIGINT)\ntime.sleep(1_000)\n"
        )
        completed = run_command("doctor", "app", cwd=tmp_path)
        assert (completed.returncode, completed.stdout, completed.stderr) == (130, "", "")

    def test_person_is_told_that_there_are_no_jobs(self, tmp_path: Path) -> None:
        """As if a `main()` that adds them was not called."""
        (tmp_path / "app.py").write_text(PRELUDE)
        text = run_command("doctor", "app", cwd=tmp_path).stdout
        assert text.startswith("No risks found\nNo jobs were added. ")
