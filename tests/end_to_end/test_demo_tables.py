"""The demo's tables fit terminals of any size and pipes; the printed addresses respond."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import io
import os
import re
import struct
import termios
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rich")
pytest.importorskip("yaml")

from rich.console import Console

from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.once

DEMO = ROOT / "examples" / "demo"

# Scripts that import each other by name, from the directory in which they are started.
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(DEMO))
    picture: Any = importlib.import_module("picture")
    sources: Any = importlib.import_module("sources")
    run: Any = importlib.import_module("run")

JOBS = {
    "archive": "background",
    "build-report": "background",
    "crunch": "background",
    "import-orders": "background",
    "poll-queue": "asyncio",
    "pull-rates": "background",
    "refresh-cache": "background",
    "sync-stock": "background",
}
RUNNING = {"build-report": 2, "sync-stock": 119}
"""The jobs that run now, and for how many seconds; the widest state is "running 119 s"."""
HEADERS = ["job", "state", "success", "error", "missed", "skipped", "coalesced", "lost"]
HEADERS += ["last success", "next run", "duration p95", "delay p95", "scheduler"]
ZERO = {"missed", "coalesced"}
QUANTILES = {"duration p95", "delay p95"}
ALERTS = [
    ("APSchedulerDuplicateSchedulers", "critical", "background"),
    ("APSchedulerRunsCoalesced", "warning", "refresh-cache"),
    ("APSchedulerJobStuck", "critical", "sync-stock"),
    ("APSchedulerRunsLost", "critical", "crunch"),
    ("APSchedulerJobFailing", "critical", "import-orders"),
    ("APSchedulerRunFailed", "warning", "pull-rates"),
    ("APSchedulerRunFailed", "warning", "import-orders"),
    ("APSchedulerRunsSkipped", "warning", "build-report"),
    ("APSchedulerWatchdog", "none", ""),
]
ADDRESSES = [f"{name:14}http://127.0.0.1:9476/{name}" for name in ("one", "two", "three", "four")]
ADDRESSES += ["Press Ctrl-C to stop everything."]


def data(*, never: Iterable[str] = ZERO) -> dict[str, dict[Any, float]]:
    """Return what a source reads; there are runs of every outcome except those in `never`."""
    now = time.time()
    keys = [(scheduler, job) for job, scheduler in JOBS.items()]
    return {
        "runs": {
            (*key, outcome): 0 if outcome in never else 1234
            for key in keys
            for outcome in picture.OUTCOMES
        },
        "p95": dict.fromkeys(keys, 0.1234),
        "delay": dict.fromkeys(keys, 0.0005),
        "last_success": dict.fromkeys(keys, now - 100),
        "next_run": dict.fromkeys(keys, now + 100),
        "running_since": {(JOBS[job], job): now - since for job, since in RUNNING.items()},
    }


def alerts() -> list[Any]:
    """Return alerts of every state."""
    found = [sources.Alert(*alert, time.time() - 100) for alert in ALERTS]
    found[1].resolved = True
    found[2].inhibited = True
    return found


def scene(**changes: Any) -> Any:
    """Return a scene with all jobs and alerts of the demo."""
    parts = {
        "header": ADDRESSES,
        "data": data(),
        "source": sources.Prometheus(""),
        "alerts": alerts(),
    }
    return picture.Scene(**{**parts, **changes})


def drawn(shown: Any, width: int, height: int | None = None) -> list[str]:
    """Return the lines of a picture."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(picture.draw(shown, width, height))
    return [line.rstrip() for line in capture.get().splitlines()]


def headers_of(lines: list[str]) -> list[str]:
    """Return the headers of the table of jobs, put together from their two lines."""
    end = next(i for i, line in enumerate(lines) if line.startswith("job "))
    above, below = lines[end - 1], lines[end]
    words = [(match.start(), match.end(), match[0]) for match in re.finditer(r"\S+", below)]
    upper = [(match.start(), match.end(), match[0]) for match in re.finditer(r"\S+", above)]
    if above.startswith("Jobs"):
        upper = []

    def whole(start: int, end: int, word: str) -> str:
        over = [text for left, right, text in upper if left < end and right > start]
        return " ".join([*over, word])

    return [whole(*word) for word in words]


def assert_jobs_are_whole(lines: list[str]) -> None:
    """Assert that each job has one line, which begins with its whole name and state."""
    for job in JOBS:
        [line] = [line for line in lines if re.match(rf"{job}\s", line)]
        state = rf"running {RUNNING[job]} s" if job in RUNNING else "idle"
        assert re.match(rf"{job}\s+{state}\s", line), line


class TestTables:
    @pytest.mark.parametrize("width", [80, 100, 120, 200])
    def test_jobs_states_and_headers_are_whole(self, width: int) -> None:
        """No line is longer than the terminal is wide, and nothing in it is cut."""
        lines = drawn(scene(), width)
        assert max(map(len, lines)) <= width
        assert_jobs_are_whole(lines)
        assert set(headers_of(lines)) <= set(HEADERS)
        assert "…" not in "\n".join(lines)

    def test_80_columns(self) -> None:
        """Columns that are all zero, percentiles and the scheduler are left out."""
        assert headers_of(drawn(scene(), 80)) == [
            *("job", "state", "success", "error", "skipped", "lost"),
            *("last success", "next run"),
        ]

    def test_120_columns(self) -> None:
        """Percentiles and the scheduler fit as well."""
        headers = headers_of(drawn(scene(), 120))
        assert set(HEADERS) - set(headers) <= ZERO
        assert set(headers) >= QUANTILES

    def test_all_outcomes_in_80_columns(self) -> None:
        """If there are runs of every outcome, all outcomes are shown and other columns left out."""
        lines = drawn(scene(data=data(never=())), 80)
        assert_jobs_are_whole(lines)
        assert {"error", "missed", "skipped", "coalesced", "lost"} <= set(headers_of(lines))

    def test_order_in_which_columns_go(self) -> None:
        """Columns that are all zero are left out first, then percentiles; job and state never."""
        gone: list[str] = []
        left = HEADERS
        columns = picture.job_columns(data())
        for width in range(200, 10, -1):
            headers = [column.title.replace("\n", " ") for column in picture.fit(columns, width)]
            gone += [header for header in left if header not in headers]
            left = headers
        assert left == ["job", "state"]
        assert set(gone[:2]) == ZERO
        assert set(gone[2:4]) == QUANTILES

    def test_narrower_than_job_and_state(self) -> None:
        """If even these columns do not fit, their text is wrapped and not cut."""
        lines = drawn(scene(alerts=None), 15)
        assert max(map(len, lines)) <= 15
        text = re.sub(r"\s", "", "".join(line[:8] for line in lines))
        assert "refresh-cache" in text

    def test_without_prometheus(self) -> None:
        """Without Prometheus, there are no percentiles and no alerts."""
        found = data() | {"p95": {}, "delay": {}}
        lines = drawn(scene(data=found, source=sources.Metrics(""), alerts=None), 80)
        assert_jobs_are_whole(lines)
        assert not any("Alerts" in line for line in lines)

    @pytest.mark.parametrize("width", [80, 120])
    def test_alerts_are_whole(self, width: int) -> None:
        """Each alert has its name, its subject and its state in one line."""
        lines = drawn(scene(), width)
        for alert, (name, severity, about) in zip(alerts(), ALERTS, strict=True):
            state = "resolved" if alert.resolved else "inhibited" if alert.inhibited else "firing"
            words = [name, about or "-", state, severity, "100 s ago"]
            [line] = [line for line in lines if re.match(rf"{name}\s+{about or '-'}\s", line)]
            assert re.split(r"\s{2,}", line) == words

    def test_no_alerts_yet(self) -> None:
        """An empty table says that it is empty."""
        assert drawn(scene(alerts=[]), 80)[-1] == "none yet"

    @pytest.mark.parametrize("height", [16, 20, 24, 30, 40])
    def test_height(self, height: int) -> None:
        """In a low terminal, all jobs and the latest alerts are shown; other alerts are counted."""
        lines = drawn(scene(), 80, height)
        assert len(lines) <= height
        assert_jobs_are_whole(lines)
        listed = [line for line in lines if line.startswith("APScheduler")]
        assert listed[0].startswith("APSchedulerDuplicateSchedulers")
        if len(listed) < len(ALERTS):
            assert lines[-1] == f"and {len(ALERTS) - len(listed)} older alerts"
        assert (height < 30) == (len(listed) < len(ALERTS))
        assert (ADDRESSES[0] in lines) == (height > 20)


class Terminal:
    """A pseudo-terminal whose size can be changed; a context manager."""

    def __init__(self) -> None:
        self._master, slave = os.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self._read = b""
        self._thread = threading.Thread(target=self._collect, daemon=True)

    def __enter__(self) -> Terminal:  # noqa: PYI034  # typing.Self is of Python 3.11
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()  # which ends the thread
        self._thread.join()
        os.close(self._master)

    def _collect(self) -> None:
        with contextlib.suppress(OSError):
            while part := os.read(self._master, 65536):
                self._read += part

    def resize(self, width: int, height: int) -> None:
        """Give the terminal another size."""
        size = struct.pack("HHHH", height, width, 0, 0)
        fcntl.ioctl(self.file.fileno(), termios.TIOCSWINSZ, size)

    def has(self, count: int, height: int) -> bool:
        """Return whether so many screens were drawn, the last of which has so many lines."""
        screens = self.screens()
        return len(screens) >= count and len(screens[-1]) == height

    def screens(self) -> list[list[str]]:
        """Return the lines of each screen that was drawn from its upper left corner."""
        text = self._read.decode(errors="replace")
        return [
            [
                re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip()
                for line in part.replace("\r\n", "\n").split("\n")
            ]
            for part in text.split("\x1b[H")[1:]
        ]


class TestTerminal:
    def test_resized(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each frame has the size that the terminal has at that moment."""
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        # Rich reads the size of the process's own terminal, so the test replaces that one.
        with Terminal() as terminal:
            monkeypatch.setattr("rich.console._STD_STREAMS", (terminal.file.fileno(),))
            console = Console(file=terminal.file, force_terminal=True)
            sizes = [(120, 40), (80, 24), (100, 30)]
            terminal.resize(*sizes[0])
            show, close = picture.screen(console)
            for width, height in sizes:
                count = len(terminal.screens()) + 1
                terminal.resize(width, height)
                show(scene())
                wait_for_answer(functools.partial(terminal.has, count, height))
                lines = terminal.screens()[-1]
                assert max(map(len, lines)) <= width
                assert_jobs_are_whole(lines)
                assert ("delay p95" in headers_of(lines)) == (width == 120)
            close()


class TestPipe:
    @pytest.fixture
    def console(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> Console:
        """Return the demo's console for a pipe, although the environment asks for colours."""
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TTY_INTERACTIVE", "1")
        monkeypatch.setattr("rich.console._STD_STREAMS", ())
        monkeypatch.setenv("COLUMNS", "80")
        capsys.readouterr()
        console: Console = run.output()
        return console

    def test_plain_lines(self, console: Console, capsys: pytest.CaptureFixture[str]) -> None:
        """Output to a pipe has neither colours nor cursor movements."""
        show, close = picture.screen(console)
        show(scene())
        close()
        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "\r" not in out
        lines = out.splitlines()
        assert max(map(len, lines)) <= 80
        assert_jobs_are_whole(lines)

    def test_not_too_often(self, console: Console, capsys: pytest.CaptureFixture[str]) -> None:
        """A frame that follows another at once is not printed to a pipe."""
        show, close = picture.screen(console)
        for _ in range(3):
            show(scene())
        close()
        assert capsys.readouterr().out.count("Jobs, as Prometheus sees them") == 1


@contextlib.contextmanager
def server(pages: dict[str, str]) -> Iterator[str]:
    """Serve these pages, by path, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = pages.get(self.path)
            self.send_response(404 if page is None else 200)
            self.end_headers()
            self.wfile.write((page or "").encode())

        def log_message(self, *_: object) -> None:
            """Keep the test's output to the test."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_address[1]}"
        finally:
            running.shutdown()
            thread.join()


class TestAddresses:
    @pytest.mark.parametrize(
        ("paths", "shown"),
        [
            (["/alerts", "/api/v1/alerts"], "/alerts"),
            (["/classic/alerts", "/api/v1/alerts"], "/classic/alerts"),
            (["/api/v1/alerts"], "/api/v1/alerts"),
        ],
        ids=["upstream", "Debian", "without pages"],
    )
    def test_prometheus(self, paths: list[str], shown: str) -> None:
        """The first page with alerts that responds is shown."""
        with server(dict.fromkeys(paths, "")) as url:
            assert run.prometheus_page(url) == url + shown

    @pytest.mark.parametrize(
        ("page", "shown"),
        [
            ('<html><script src="script.js"></script></html>', "/#/alerts"),
            ("<html>The Debian package does not include a web application</html>", None),
        ],
        ids=["upstream", "Debian"],
    )
    def test_alertmanager(self, page: str, shown: str | None) -> None:
        """The web application is shown if there is one, and the API if there is none."""
        with server({"/": page, "/api/v2/alerts": "[]"}) as url:
            assert run.alertmanager_page(url) == url + (shown or "/api/v2/alerts")

    def test_nothing_answers(self) -> None:
        """An address that does not respond is not shown."""
        with server({}) as url, pytest.raises(SystemExit, match="answers none of these paths"):
            run.prometheus_page(url)

    def test_not_installed(self) -> None:
        """For a missing program, the name of its package is shown."""
        assert "Debian package prometheus)" in run.prometheus_page(None)
        assert "Debian package prometheus-alertmanager)" in run.alertmanager_page(None)


class TestVerdict:
    @pytest.mark.parametrize(
        ("seen", "limit", "status", "last"),
        [
            (False, 8, 1, "DEMO_SECONDS=8 was too short. The demo needs about 30 seconds."),
            (False, 60, 1, "1 of 2 were seen."),
            (True, 8, 0, "2 of 2 were seen."),
        ],
        ids=["short", "long", "short and lucky"],
    )
    def test_says_how_long_is_needed(
        self,
        seen: bool,
        limit: float,
        status: int,
        last: str,
    ) -> None:
        """If the demo ended too early, the last line says how long it needs."""
        console = Console(file=io.StringIO(), width=80)
        with console.capture() as capture:
            assert run.verdict([("one", True), ("two", seen)], console, limit) == status
        assert capture.get().splitlines()[-1] == last


class TestSvg:
    def test_has_all_jobs(self, tmp_path: Path) -> None:
        """The image for the documentation contains the tables."""
        file = tmp_path / "demo.svg"
        picture.save_svg(scene(), file)
        text = file.read_text(encoding="utf-8")
        assert text.startswith("<svg")
        assert "url(http" not in re.sub(r"\s|\"", "", text)
        for job in JOBS:
            assert job in text
