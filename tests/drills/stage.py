"""Shared by all drills: Prometheus, the webhook, and the applications."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.drills.webhook import DrillError, Webhook
from tests.helpers.servers import Prometheus
from tests.helpers.waiting import wait_for_answer

HERE = Path(__file__).resolve().parent

FACTOR = 30
"""A minute of the rules is two seconds here, and two scrapes."""
WAIT_TIMEOUT = 180.0
"""Seconds after which an alert will not come any more; the machine may be busy with other tests."""
PORT = 9476
"""Of all applications, each on a loopback address of its own, so that ports are never taken."""


class App:
    """A process that plays a scene, in a session of its own."""

    def __init__(
        self, stage: Stage, job: str, command: Sequence[str | Path], log: Path, *, orders: bool
    ) -> None:
        self._stage = stage
        self._log = log
        self.job = job
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE if orders else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environ(),
            )

    def ready(self) -> App:
        """Wait until it has imported all that it needs."""

        def is_ready() -> bool:
            self.must_live()
            return self._stage.ended.is_set() or "ready" in self.log()

        wait_for_answer(is_ready, WAIT_TIMEOUT)
        return self

    def send(self, *words: str) -> None:
        """Give orders."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{word}\n" for word in words).encode())
        self.process.stdin.flush()

    def go(self, *words: str) -> App:
        """Let it start, which it does within milliseconds once it is ready."""
        self.ready().send(*words, "go")
        return self

    def must_live(self) -> None:
        if self.process.poll() is not None:
            msg = f"{self.job} ended with status {self.process.returncode}: {self.log()}"
            raise DrillError(msg)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End its session at once, whatever it is doing."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def stop(self) -> None:
        """Let it end in order."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()

    def log(self) -> str:
        return self._log.read_text(errors="replace")


class Stage:
    """What all drills share."""

    def __init__(self, directory: Path, jobs: Sequence[str]) -> None:
        self.directory = directory
        self.ended = threading.Event()
        self.prometheus: Prometheus
        self.webhook = Webhook()
        # All of 127.0.0.0/8 is this machine, so ports need not be shared with other programs.
        random_numbers = random.SystemRandom()
        self._network = f"127.{random_numbers.randint(64, 250)}"
        self._first_subnet = random_numbers.randint(1, 100)
        self.link = f"169.254.{random_numbers.randint(1, 250)}"
        self.jobs = list(jobs)
        self._apps: list[App] = []
        self._lock = threading.Lock()

    def address(self, job: str, number: int = 0) -> str:
        """Return the address of an application."""
        return f"{self._network}.{self._first_subnet + self.jobs.index(job)}.{1 + number}"

    def targets_file(self, job: str) -> Path:
        return self.directory / f"targets-{job}.json"

    def set_targets(self, job: str, addresses: Iterable[str]) -> None:
        """Set the targets of Prometheus for a job; Prometheus reads them within seconds."""
        targets = [f"{address}:{PORT}" for address in addresses]
        file = self.targets_file(job)
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps([{"targets": targets, "labels": {"job": job}}]))
        draft.rename(file)

    def start(self, job: str, scene: str, address: str, directory: Path, *wrapper: str) -> App:
        """Start a process that waits for the order to go."""
        python = [*wrapper, sys.executable]
        return self.run(job, [*python, HERE / "scenes.py", scene, address, directory])

    def run(self, job: str, command: Sequence[str | Path], *, orders: bool = True) -> App:
        with self._lock:
            if self.ended.is_set():
                msg = "all is ending"
                raise DrillError(msg)
            log = self.directory / f"{job}-{len(self._apps)}.log"
            app = App(self, job, command, log, orders=orders)
            self._apps.append(app)
            return app

    def end(self) -> None:
        """End all that was started."""
        with self._lock:
            self.ended.set()
        for app in self._apps:
            app.kill()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return self.prometheus.query(expression)


def guarded() -> list[str]:
    """Return what makes a command end with us, however we end."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def environ() -> dict[str, str]:
    """Return the variables for applications, which coverage must neither slow down nor measure."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("COV")},
        "PYTHONUNBUFFERED": "1",
    }
