"""``apscheduler-telemetry runs`` and ``top``: tables of a live process."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry, instrument
from apscheduler_telemetry.cli import main, runs, top
from apscheduler_telemetry.cli.client import complete_url
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.table import cut_text, format_duration, format_table
from tests.helpers.commands import text_answer
from tests.helpers.jobs import nothing
from tests.helpers.servers import free_port
from tests.helpers.waiting import wait_until

HOSTILE = "we\x1b[31mird\n日本"
ESCAPED = "we\\x1b[31mird\\x0a日本"


def fail() -> None:
    message = "Database connection refused\n  at host db"
    raise ConnectionError(message)


def has_runs(telemetry: Telemetry, job_id: str, count: int) -> bool:
    return len(telemetry.runs(job_id)) == count


@contextmanager
def application(*ids: str, run_count: int = 1, **server: Any) -> Iterator[str]:
    """Run a scheduler whose jobs have run so often, the last of them with an error."""
    scheduler = BackgroundScheduler(timezone="UTC")
    telemetry = instrument(scheduler, name="shop", registry=CollectorRegistry())
    for job_id in ids:
        scheduler.add_job(nothing, "interval", hours=1, id=job_id)
    scheduler.start()
    try:
        for number in range(run_count):
            for job_id in ids:
                if job_id == ids[-1] and number == run_count - 1:
                    scheduler.modify_job(job_id, func=fail)
                scheduler.modify_job(job_id, next_run_time=datetime.now(timezone.utc))
                wait_until(partial(has_runs, telemetry, job_id, number + 1))
        yield telemetry.start_http_server(0, **server).url
    finally:
        scheduler.shutdown()
        telemetry.uninstrument()


@pytest.fixture
def error_of(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., str]:
    """Return the one line of an error; the command must fail, and print nothing else."""

    def run(*arguments: str) -> str:
        status = main(arguments)
        output, errors = capfdbinary.readouterr()
        assert (status, output, errors.count(b"\n")) == (1, b"", 1)
        return errors.decode()

    return run


class TestRuns:
    """`apscheduler-telemetry runs URL`."""

    def test_table_has_the_latest_run_first(self, output_of: Callable[..., str]) -> None:
        """Each run is a line with its job, times, outcome and error."""
        with application("ok", "nightly") as url:
            lines = output_of("runs", url).splitlines()
        assert lines[0].split() == ["SCHEDULED", "STARTED", "DURATION", "OUTCOME", "JOB", "ERROR"]
        today = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"
        times = rf"{today}  {today}  0\.\d{{3}}s  "
        error = "ConnectionError: Database connection refused at host db"
        assert re.fullmatch(rf"{times}  error    nightly  {error}", lines[1])
        assert re.fullmatch(rf"{times}  success  ok", lines[2])
        assert len(lines) == 3

    def test_only_the_runs_of_one_job(self, output_of: Callable[..., str]) -> None:
        """--job takes the id as it is, whatever characters it has."""
        job_id = "a b&c=%日本"
        with application("ok", job_id) as url:
            assert [run["job_id"] for run in list_runs(output_of, url, "--job", job_id)] == [job_id]
            assert output_of("runs", url, "--job", "none") == "No runs\n"

    def test_pages_are_put_together(
        self, output_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """More runs than a response may have are read, each once, up to --limit."""
        monkeypatch.setattr(runs, "MAX_RUNS_PER_PAGE", 2)
        with application("a", run_count=5) as url:
            everything = list_runs(output_of, url)
            assert len({run["number"] for run in everything}) == len(everything) == 5
            assert list_runs(output_of, url, "--limit", "3") == everything[:3]
            assert list_runs(output_of, url, "--limit", "4") == everything[:4]

    def test_json_is_the_list_of_the_handle(self, output_of: Callable[..., str]) -> None:
        """--json writes the fields of ``/runs``."""
        with application("nightly") as url:
            [run] = list_runs(output_of, url)
        assert run["error_type"] == "ConnectionError"
        assert set(run) == {
            *("duration", "end_time", "error_message", "error_type", "job_id", "number"),
            *("outcome", "scheduled_time", "scheduler", "start_time", "trace_id"),
        }

    def test_ids_cannot_control_the_terminal(self, output_of: Callable[..., str]) -> None:
        """What does not print is escaped, in both tables."""
        with application(HOSTILE) as url:
            assert f"  {ESCAPED}  Conn" in output_of("runs", url)
            assert f"\n{ESCAPED}  waiting  " in output_of("top", url)

    @pytest.mark.parametrize("limit", ["0", "-1", "x"])
    def test_limit_is_a_positive_number(self, limit: str) -> None:
        """Another one is a wrong command line."""
        with pytest.raises(SystemExit) as info:
            main(["runs", "http://127.0.0.1:9", f"--limit={limit}"])
        assert info.value.code == 2


def list_runs(output_of: Callable[..., str], *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(output_of("runs", *arguments, "--json"))
    return found


ANY_TIMES = (ANY, ANY)
JOB = {
    "id": "nightly",
    "next_run": None,
    "trigger": "cron[hour='2']",
    "last_outcome": "success",
    "last_duration": 0.5,
    "last_success": None,
    "outcomes": {"success": 1},
    "running_since": None,
    "overdue": False,
}


def screen(*jobs: dict[str, Any], **size: int | None) -> list[str]:
    scheduler = {"name": "shop", "state": "running", "status": "healthy", "jobs": jobs}
    return top.format_jobs_and_alerts(
        top.ShownJobsAndAlerts([scheduler]), **{"width": None, **size}
    )


class TestTop:
    """`apscheduler-telemetry top URL`."""

    def test_table_has_each_job(self, output_of: Callable[..., str]) -> None:
        """It names the state of the scheduler, and of each job; those in trouble come first."""
        with application("ok", "zeta") as url:
            lines = output_of("top", url, "--once").splitlines()
        assert lines[0] == "shop: running, healthy"
        assert lines[1].startswith("JOB   STATE    LAST     SUCCESS  ERROR  MISSED  ")
        assert [re.split("  +", line) for line in lines[2:]] == [
            ["zeta", "waiting", "error", "1", "never", *ANY_TIMES, "interval[1:00:00]"],
            ["ok", "waiting", "success", "1", ANY, *ANY_TIMES, "interval[1:00:00]"],
        ]
        assert re.search("  in 59m[0-9]{2}s  0[.][0-9]{3}s  ", lines[3])

    def test_states(self) -> None:
        """A job waits, runs, is overdue, or has no next run."""
        past, future = "2026-01-01T00:00:00.000+00:00", "2999-01-01T00:00:00.000+00:00"
        lines = screen(
            {**JOB, "id": "a", "overdue": True, "running_since": past, "next_run": past},
            {**JOB, "id": "b", "running_since": past, "next_run": future},
            {**JOB, "id": "c", "next_run": future},
            {**JOB, "id": "d"},
        )
        states = [re.split("  +", line)[1] for line in lines[2:]]
        assert re.fullmatch(r"running \d+d", states[1])
        assert [*states[:1], *states[2:]] == ["overdue", "waiting", "no next run"]

    @pytest.mark.parametrize("width", range(10, 120, 10))
    def test_name_and_state_are_never_cut(self, width: int) -> None:
        """In a narrow terminal, other columns are left out; a long name continues below."""
        job_id = "a-very-long-name-of-a-job-" * 2
        lines = screen({**JOB, "id": job_id}, width=width)
        assert lines[2].startswith(f"{job_id}  no next run")
        assert all(len(line) <= max(width, len(job_id) + 13) for line in lines[1:])

    def test_jobs_that_do_not_fit_are_counted(self) -> None:
        """The screen never scrolls, also if rows are wider than the terminal."""
        jobs = [{**JOB, "id": f"{n:020}"} for n in range(20)]
        assert screen(*jobs, width=80, height=40)[-1].startswith("0" * 18 + "19")
        lines = screen(*jobs, width=80, height=10)
        assert (len(lines), lines[-1]) == (10, "13 more jobs")
        lines = screen(*jobs, width=25, height=10)  # a row takes two lines
        assert lines[-1] == "18 more jobs"
        assert sum(1 + (len(line) - 1) // 25 for line in lines) <= 10

    def test_json_is_the_health_report(self, output_of: Callable[..., str]) -> None:
        """--json writes the schedulers with their jobs."""
        with application("nightly") as url:
            [scheduler] = json.loads(output_of("top", url, "--json"))
        assert scheduler["name"] == "shop"
        assert [job["id"] for job in scheduler["jobs"]] == ["nightly"]

    def test_unhealthy_process_is_shown(self, output_of: Callable[..., str]) -> None:
        """Its health has status 503, and is what is of interest then."""
        scheduler = BackgroundScheduler(timezone="UTC")
        telemetry = instrument(scheduler, name="shop", registry=CollectorRegistry())
        try:
            with telemetry.start_http_server(0) as server:
                assert output_of("top", server.url) == "shop: stopped, unhealthy\nNo jobs\n"
        finally:
            telemetry.uninstrument()

    def test_terminal_is_refreshed_until_ctrl_c(self) -> None:
        """It has colours, draws again and again for the size of that moment; the status is 0."""
        with application("nightly") as url, terminal("top", url, "--interval=0.2") as process:
            process.read_until(r"(?s)(\x1b\[H.*){3}interval.1:00:00")
            process.resize(40, 10)
            output = process.read_until(r"(?s)\x1b\[H(?!.*interval).*nightly.*\x1b\[J")
            process.send_signal(signal.SIGINT)
            output = process.read_until(r"(?s)\x1b\[\?1049l.*nightly")
            assert process.wait() == 0
        assert "\x1b[31merror\x1b[0m" in output
        assert "Traceback" not in output
        last_screen = re.sub(r"\x1b\[\d*[a-zA-Z]", "", output.split("\x1b[H")[-1]).split("\x1b")[0]
        assert max(map(len, last_screen.splitlines())) <= 40

    def test_process_that_is_restarted_does_not_end_it(self) -> None:
        """While it does not answer, the reason stands above the last table; SIGTERM ends it."""
        with ExitStack() as stack:
            with application("nightly") as url:
                process = stack.enter_context(terminal("top", url, "--interval=0.2"))
                process.read_until("nightly")
            process.read_until("(?s)cannot connect to .*nightly")
            process.send_signal(signal.SIGTERM)
            process.read_until(r"\x1b\[\?1049l")
            assert process.wait() == 0


class Terminal:
    """A command in a pseudo-terminal of 100 columns."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        self._main, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "apscheduler_telemetry", *arguments],
            stdin=child,
            stdout=child,
            stderr=child,
            env={**os.environ, "TERM": "xterm", "NO_COLOR": "", "COLUMNS": "", "LINES": ""},
        )
        os.close(child)
        self._output = ""
        self.send_signal = self._process.send_signal

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._main, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def read_until(self, pattern: str) -> str:
        deadline = time.monotonic() + 30
        while not re.search(pattern, self._output):
            assert time.monotonic() < deadline, self._output[-1_000:]
            try:
                self._output += os.read(self._main, 65_536).decode()
            except OSError:  # EIO, as the command has ended
                break
        assert re.search(pattern, self._output)
        return self._output

    def wait(self) -> int:
        return self._process.wait(30)

    def close(self) -> None:
        self._process.kill()
        self.wait()
        os.close(self._main)


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    process = Terminal(arguments)
    try:
        yield process
    finally:
        process.close()


@pytest.mark.parametrize("command", ["runs", "top"])
class TestErrors:
    """Each error is one line on standard error, and leads to exit status 1."""

    def test_nobody_listens(self, command: str, error_of: Callable[..., str]) -> None:
        """An address at which nobody listens is named, with the system's reason."""
        url = f"http://127.0.0.1:{free_port()}"
        assert f"cannot connect to {url}/" in error_of(command, url)

    def test_token_is_sent(
        self,
        command: str,
        output_of: Callable[..., str],
        error_of: Callable[..., str],
        tmp_path: Path,
    ) -> None:
        """If the process requires a token, the message names the option that passes it."""
        token = tmp_path / "token"
        token.write_text("secret")
        with application("nightly", bearer_token_file=token) as url:
            assert "--bearer-token-file" in error_of(command, url)
            assert "nightly" in output_of(command, url, "--bearer-token-file", str(token))

    @pytest.mark.parametrize(
        "content",
        [
            *("<html>", "[]", "{}", "null", '{"runs": [1]}', '{"runs": NaN}', "[" * 100_000),
            json.dumps(
                {
                    "runs": [{**dict.fromkeys(runs._RUN_FIELDS), "duration": "x"}],
                    "next_before": None,
                    "status": "healthy",
                    "scheduler": {"name": "a", "state": "running"},
                    "jobs": [{"id": "a", "last_duration": "x"}],
                }
            ),
        ],
        ids=range(8),
    )
    def test_other_page(
        self,
        command: str,
        content: str,
        error_of: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """What is no page of this package is named as such."""
        monkeypatch.setattr(
            "apscheduler_telemetry.cli.client.fetch", lambda *_, **__: text_answer(content)
        )
        assert "Pass the address of the application's telemetry" in error_of(command, "http://h")

    @pytest.mark.parametrize(
        ("device", "message"),
        [("/dev/full", "cannot write to standard output: No space left on device"), (None, "")],
        ids=["full disk", "closed pipe"],
    )
    def test_output_that_cannot_be_written(
        self, command: str, device: str | None, message: str
    ) -> None:
        """A full disk is an error of one line; a closed pipe is silent, and the status is 1."""
        with application("nightly") as url:
            if device is None:
                reader, output = os.pipe()
                os.close(reader)
            else:
                output = os.open(device, os.O_WRONLY)
            try:
                ended = subprocess.run(
                    [sys.executable, "-m", "apscheduler_telemetry", command, url],
                    stdout=output,
                    stderr=subprocess.PIPE,
                    text=True,
                    timeout=60,
                    check=False,
                )
            finally:
                os.close(output)
        assert ended.returncode == 1
        assert ended.stderr.strip().removeprefix("apscheduler-telemetry: ") == message

    def test_ctrl_c_while_it_waits(self, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The status is that of shells, and there is no traceback."""

        def interrupt(*_: object, **__: object) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr("apscheduler_telemetry.cli.client.fetch", interrupt)
        assert main([command, "http://h"]) == 130

    def test_wrong_address_is_a_wrong_command_line(self, command: str) -> None:
        """The status differs from that of a process that does not answer."""
        assert main([command, "127.0.0.1:9476"]) == 2

    def test_closed_output_and_errors(self, command: str) -> None:
        """A closed output is an error, and errors that cannot be written keep the status."""
        line = [sys.executable, "-m", "apscheduler_telemetry", command]
        closed = ["sh", "-c", '"$@" >&-', "sh", *line, "http://h"]
        ended = subprocess.run(closed, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        full = ["sh", "-c", '"$@" 2>/dev/full', "sh", *line, "h"]
        assert subprocess.run(full, timeout=60, check=False).returncode == 2


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("runs", "--limit=0"), ("runs", "--limit=x"), ("top", "--interval=nan")),
        *(("top", "--interval=inf"), ("top", "--interval=0.1")),
    ],
)
def test_wrong_number(command: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message says which numbers are right."""
    with pytest.raises(SystemExit):
        main([command, "http://h", option])
    assert re.search(r"is no (whole )?number .*at least", capsys.readouterr().err)


class TestAddress:
    """The address of a page."""

    @pytest.mark.parametrize(
        ("text", "url"),
        [
            ("http://h", "http://h/runs"),
            ("http://h/", "http://h/runs"),
            ("http://h/metrics", "http://h/runs"),
            ("http://h/runs/", "http://h/runs"),
            ("http://h/telemetry", "http://h/telemetry/runs"),
            ("http://h/telemetry/health?a=b", "http://h/telemetry/runs?a=b"),
        ],
    )
    def test_any_page_of_the_server_may_be_given(self, text: str, url: str) -> None:
        """The name of the page takes the place of that of another page."""
        assert complete_url(text, "runs") == url

    def test_password_in_the_address(self) -> None:
        """An address with a user is an error."""
        with pytest.raises(CommandError, match="--bearer-token-file"):
            complete_url("http://ann:secret@host", "runs")


class TestTable:
    """Aligned columns."""

    def test_wide_characters_take_two_columns(self) -> None:
        """Columns are aligned as a terminal shows them."""
        assert format_table(("A", "B"), [("日本", "1"), ("abcde", "2")]) == [
            "A      B",
            "日本   1",
            "abcde  2",
        ]

    def test_last_column_is_cut_to_the_width(self) -> None:
        """The other columns are not."""
        assert format_table(("A", "B"), [("abc", "x" * 50)], 10)[1] == "abc  xxxx…"
        assert format_table(("A", "B"), [("abcdefghijkl", "x")], 10)[1] == "abcdefghijkl  x"
        assert cut_text("日本日本", 5) == "日本…"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (None, ""),
            (0.0012, "0.001s"),
            (59.96, "60.0s"),
            (60, "1m00s"),
            (119.9, "1m59s"),
            (3_600, "1h00m"),
            (86_400 * 3 + 7_200, "3d02h"),
        ],
    )
    def test_durations(self, seconds: float | None, text: str) -> None:
        """They have the two largest units."""
        assert format_duration(seconds) == text
