"""
Draw what the command line and `make demo` print in a terminal into docs/images, as SVG files.

Needs the environment that `make check` keeps, Prometheus and Alertmanager; takes a minute.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
WIDTH, HEIGHT = 110, 50
WIDTH_FOR_SENTENCES = 134
"""Of commands that print messages of errors or sentences."""
SECONDS = 45
"""How long the demo runs; its last alert has resolved before."""
COMMANDS_AT = 35
"""Seconds after which the commands are run that read the demo's processes."""
LEAVE_SCREEN = "\x1b[?1049l"
APPLICATION = """\
from datetime import timezone

from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.blocking import BlockingScheduler


def import_orders():
    pass


scheduler = BlockingScheduler(
    timezone=timezone.utc, jobstores={"default": SQLAlchemyJobStore("sqlite:///jobs.sqlite")}
)
scheduler.add_job(import_orders, "cron", hour=6)
scheduler.add_job(import_orders, "interval", minutes=5, id="import-orders")
"""
"""What `doctor` finds risks in."""


class TerminalProcess:
    """A process in a pseudo-terminal, and what it has written there."""

    def __init__(self, command: list[str], directory: Path = ROOT, width: int = WIDTH) -> None:
        self._main, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, width, 0, 0))
        variables = {
            name: value
            for name, value in os.environ.items()
            if name not in {"COLUMNS", "LINES", "NO_COLOR"}
        }
        self.process = subprocess.Popen(
            command,
            stdin=child,
            stdout=child,
            stderr=child,
            cwd=directory,
            env={**variables, "TERM": "xterm", "DEMO_SECONDS": str(SECONDS)},
        )
        os.close(child)
        self._written = b""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # EIO, as the process has ended
            while part := os.read(self._main, 65_536):
                self._written += part

    @property
    def text(self) -> str:
        """What it has written so far, without the screen of its own that it has left."""
        text = self._written.decode().replace("\r\n", "\n")
        return text.rpartition(LEAVE_SCREEN)[2]

    def read_to_end(self) -> str:
        """Wait for its end, and return what it has written."""
        self.process.wait()
        self._thread.join()
        os.close(self._main)
        return self.text


def start(*arguments: str, directory: Path = ROOT, width: int = WIDTH) -> TerminalProcess:
    """Start `apscheduler-telemetry`."""
    command = [sys.executable, "-m", "apscheduler_telemetry", *arguments]
    return TerminalProcess(command, directory, width)


def draw(name: str, command: str, text: str, width: int = WIDTH) -> None:
    """Draw what a command has written."""
    console = Console(file=io.StringIO(), width=width, record=True, force_terminal=True)
    console.print(Text.from_ansi(text.strip("\n") + "\n"))  # or the last line is cut
    svg = console.export_svg(title=command, unique_id=name)
    # Without fonts from another server, which readers would have to ask.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    picture = IMAGES / f"{name}.svg"
    picture.write_text(svg, encoding="utf-8")
    print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size} bytes")


def draw_commands(jobs: str, prometheus: str, alertmanager: str, seconds: float) -> None:
    """Draw the commands that read the processes of the demo."""
    top = ("top", jobs, "--alertmanager", alertmanager)
    shown = start(*top)  # at once, as it shows as resolved what it has seen firing
    time.sleep(seconds)
    chain = ("doctor", "--url", jobs, "--prometheus", prometheus, "--alertmanager", alertmanager)
    for name, width, arguments in (
        ("runs", WIDTH_FOR_SENTENCES, ("runs", jobs, "--limit", "20")),
        ("jobs", WIDTH_FOR_SENTENCES, ("jobs", jobs)),
        ("report", WIDTH, ("report", "--prometheus", prometheus, "--since", "24h")),
        ("doctor-chain", WIDTH_FOR_SENTENCES, chain),
    ):
        text = start(*arguments, width=width).read_to_end()
        draw(name, command_line(arguments), text, width)
    shown.process.send_signal(signal.SIGINT)
    draw("top", command_line(top), shown.read_to_end())


def command_line(arguments: tuple[str, ...]) -> str:
    """Return what a user types."""
    return " ".join(("apscheduler-telemetry", *arguments))


def main() -> None:
    """Run the demo, and draw it and the commands."""
    demo = TerminalProcess([sys.executable, str(ROOT / "examples" / "demo" / "run.py")])
    while "Press Ctrl-C" not in demo.text:
        time.sleep(0.1)
        if demo.process.poll() is not None:
            raise SystemExit(demo.read_to_end())
    addresses = dict(re.findall(r"(\w+) +(http://[^/]+)", demo.text))
    draw_commands(
        addresses["Jobs"], addresses["Prometheus"], addresses["Alertmanager"], COMMANDS_AT
    )
    draw("demo", "make demo", demo.read_to_end())
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "shop.py").write_text(APPLICATION, "utf-8")
        arguments = ("doctor", "shop:scheduler")
        width = WIDTH_FOR_SENTENCES
        text = start(*arguments, directory=directory, width=width).read_to_end()
        draw("doctor", command_line(arguments), text, width)


if __name__ == "__main__":
    main()
