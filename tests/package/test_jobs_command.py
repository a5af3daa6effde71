"""``apscheduler-telemetry jobs URL``, and ``jobs.yml``, which it can write and `export` reads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

yaml = pytest.importorskip("yaml", reason="PyYAML comes with the extra 'expect'")

from apscheduler_telemetry import Expectations, expect, instrument
from apscheduler_telemetry.cli import client, main
from apscheduler_telemetry.cli.client import complete_url
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.expected_jobs import (
    MAX_FILE_BYTES,
    ExpectedJob,
    format_jobs_as_yaml,
    read_expected_jobs,
)
from apscheduler_telemetry.cli.export import export_files
from tests.helpers.jobs import nothing
from tests.helpers.waiting import wait_until

HOSTILE = 'we"ird\\ {{ .x }} $1\n\u2028\x85ü😀\x1b[31m #: - no'
INFO = b'apscheduler_scheduler_info{scheduler="a"} 1\n'
LEFT_OUT = '# Left out of scheduler "imports", because it'
COMMAND = "import sys; from apscheduler_telemetry.cli import main; sys.exit(main())"

NIGHTLY = Expectations(severity="warning", owner="data")


def add(scheduler: BackgroundScheduler, *job_ids: str) -> None:
    for job_id in job_ids:
        scheduler.add_job(print, "interval", hours=1, id=job_id)


@contextmanager
def application(change: Callable[[BackgroundScheduler], None], **server: Any) -> Iterator[str]:
    """Run a scheduler with a server; yields the address."""
    scheduler = BackgroundScheduler(timezone="UTC")
    telemetry = instrument(
        scheduler,
        name="imports",
        registry=CollectorRegistry(),
        expect=lambda job: NIGHTLY if job.id == "nightly" else None,
        max_labels=5,
    )
    scheduler.start()
    try:
        change(scheduler)
        yield telemetry.start_http_server(0, **server).url
    finally:
        scheduler.shutdown()
        telemetry.uninstrument()


class FixedServer:
    """Answers each request in the same way, and keeps the requests."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests.append((self.path, dict(self.headers)))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@contextmanager
def fixed_server(
    status: int = 200, body: bytes = b"", headers: dict[str, str] | None = None
) -> Iterator[FixedServer]:
    fixed = FixedServer(status, body, headers or {})
    thread = threading.Thread(target=fixed.server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield fixed
    finally:
        fixed.server.shutdown()
        fixed.server.server_close()
        thread.join()


@pytest.fixture
def jobs_of(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., str]:
    """Return the file that the command prints; it must succeed."""

    def run(*arguments: str, name: str = "shop") -> str:
        status = main(["jobs", *arguments, "--yaml", "--application", name])
        output, errors = capfdbinary.readouterr()
        assert (status, errors) == (0, b"")
        return output.decode()

    return run


@pytest.fixture
def error_of(capfdbinary: pytest.CaptureFixture[bytes]) -> Callable[..., str]:
    """Return the one line of an error of the file; the command must print nothing else."""

    def run(*arguments: str, name: str = "shop") -> str:
        status = main(["jobs", *arguments, "--yaml", "--application", name])
        output, errors = capfdbinary.readouterr()
        assert (status, output, errors.count(b"\n")) == (1, b"", 1)
        return errors.decode().removeprefix("apscheduler-telemetry: ").rstrip()

    return run


class TestYaml:
    """The file that --yaml writes of a running process."""

    def test_file_has_the_jobs_of_each_scheduler(self, jobs_of: Callable[..., str]) -> None:
        """Application, scheduler and ids are written, with severity and owner if they are set."""
        with application(lambda scheduler: add(scheduler, "nightly", "007")) as url:
            written = jobs_of(url)
        assert yaml.safe_load(written) == [
            {
                "application": "shop",
                "scheduler": "imports",
                "jobs": [
                    {"job_id": "007"},
                    {"job_id": "nightly", "severity": "warning", "owner": "data"},
                ],
            }
        ]

    def test_path_may_be_given(self, jobs_of: Callable[..., str]) -> None:
        """The file is of the metrics at any path; /metrics is added only if there is none."""
        with application(lambda scheduler: add(scheduler, "nightly")) as url:
            assert jobs_of(url) == jobs_of(f"{url}/") == jobs_of(f"{url}/metrics")

    def test_jobs_that_end_or_pause_are_comments(self, jobs_of: Callable[..., str]) -> None:
        """Jobs that run once, that are paused, and those above the limit are comments."""

        def change(scheduler: BackgroundScheduler) -> None:
            add(scheduler, "nightly", "paused")
            scheduler.pause_job("paused")
            far = datetime(2099, 1, 1, tzinfo=timezone.utc)
            scheduler.add_job(print, "date", run_date=far, id="once\n- job_id: no")
            add(scheduler, *map(str, range(4)))

        with application(change) as url:
            written = jobs_of(url)
        [item] = yaml.safe_load(written)
        assert [job["job_id"] for job in item["jobs"]] == ["0", "1", "nightly"]
        assert [line for line in written.splitlines() if line.startswith("#")][2:] == [
            f"{LEFT_OUT} stands for all jobs above the limit of the label job_id: see max_labels=:",
            '# - job_id: "__overflow__"',
            f"{LEFT_OUT} runs only once:",
            '# - job_id: "once\\n- job_id: no"',
            f"{LEFT_OUT} has no next run now: it is paused, or was removed:",
            '# - job_id: "paused"',
        ]

    def test_hostile_ids_arrive_unchanged(
        self, jobs_of: Callable[..., str], tmp_path: Path
    ) -> None:
        """Quotes, templates, line breaks and escape sequences of an id come back as they were."""
        with application(lambda scheduler: add(scheduler, HOSTILE, "no", "~")) as url:
            written = jobs_of(url, name=HOSTILE)
        assert "\x1b" not in written
        (tmp_path / "jobs.yml").write_text(written, "utf-8")
        assert read_expected_jobs([tmp_path / "jobs.yml"]) == [
            ExpectedJob(application=HOSTILE, scheduler="imports", job_id=job_id)
            for job_id in ("no", HOSTILE, "~")
        ]

    def test_outputs_may_be_put_one_after_the_other(
        self, jobs_of: Callable[..., str], tmp_path: Path
    ) -> None:
        """The outputs of two applications are a file with the jobs of both."""
        with application(lambda scheduler: add(scheduler, "nightly")) as url:
            written = jobs_of(url, name="one") + jobs_of(url, name="two")
        (tmp_path / "jobs.yml").write_text(written)
        expected = read_expected_jobs([tmp_path / "jobs.yml"])
        assert [job.application for job in expected] == ["one", "two"]

    def test_token_is_sent(self, jobs_of: Callable[..., str], tmp_path: Path) -> None:
        """With --bearer-token-file the command reads a process that requires a token."""
        token = tmp_path / "token"
        token.write_text("secret\n")
        with application(
            lambda scheduler: add(scheduler, "nightly"), bearer_token_file=token
        ) as url:
            assert "nightly" in jobs_of(url, "--bearer-token-file", str(token))

    def test_only_some_metrics_are_asked_for(self, error_of: Callable[..., str]) -> None:
        """The request names the metrics, and keeps a query of the address."""
        with fixed_server() as fixed:
            error_of(f"{fixed.url}/metrics?a=b")
        [(path, _)] = fixed.requests
        assert path.startswith("/metrics?a=b&name%5B%5D=apscheduler_job_next_run")


@expect(
    grace=120,
    max_duration=60,
    min_duration=0.5,
    deadline="06:00",
    max_failures=3,
    min_recorded={"rows": 10},
    severity="critical",
    owner="data",
    runbook_url="https://wiki.example/import",
)
def import_orders() -> None:
    """Do nothing."""


def declare(scheduler: BackgroundScheduler) -> None:
    """Add a job of which everything is declared, and one that is paused."""
    scheduler.add_executor("threadpool", "imports")
    scheduler.add_jobstore("memory", "stored")
    far = datetime(2099, 1, 1, 2, tzinfo=timezone.utc)
    places = {"executor": "imports", "jobstore": "stored"}
    scheduler.add_job(import_orders, "cron", hour=2, id="import", next_run_time=far, **places)
    scheduler.add_job(nothing, "interval", hours=1, id="hourly", next_run_time=None)


class TestTable:
    """The jobs of a running process, and how they are declared."""

    def test_each_job_is_a_line(self, output_of: Callable[..., str]) -> None:
        """It has its trigger and executor, and what is expected of it; jobs come by name."""
        with application(declare) as url:
            lines = [re.split("  +", line) for line in output_of("jobs", url).splitlines()]
        expected = (
            "grace=2m00s, max_duration=1m00s, min_duration=0.500s, "
            "deadline=2099-01-01 06:00:00Z, max_failures=3, min_recorded[rows]=10"
        )
        assert lines == [
            [*("JOB", "STATE", "TRIGGER", "NEXT RUN", "EXECUTOR", "JOB STORE", "FUNCTION"),
             *("SEVERITY", "OWNER", "EXPECTED")],
            ["hourly", "no next run", "interval[1:00:00]", "default", "default",
             "tests.helpers.jobs:nothing"],
            [*("import", "waiting", "cron[hour='2']", "2099-01-01 02:00:00Z", "imports", "stored"),
             *("tests.package.test_jobs_command:import_orders", "critical", "data"),
             expected],
        ]  # fmt: skip

    def test_last_run_has_its_outcome_and_duration(self, output_of: Callable[..., str]) -> None:
        """These columns are there as soon as a job has run."""

        def run_once(scheduler: BackgroundScheduler) -> None:
            now = datetime.now(timezone.utc)
            scheduler.add_job(nothing, "interval", hours=1, id="a", next_run_time=now)

        with application(run_once) as url:
            wait_until(lambda: "success" in output_of("jobs", url))
            header, line = output_of("jobs", url).splitlines()
        assert "  LAST     DURATION  EXECUTOR  " in header
        assert re.search(r"  success  \d\.\d{3}s    default", line)

    def test_json_has_everything_that_is_declared(self, output_of: Callable[..., str]) -> None:
        """--json writes a list with an object for each job."""
        with application(declare) as url:
            hourly, declared = json.loads(output_of("jobs", url, "--json"))
        assert declared == {
            "scheduler": "imports",
            "job_id": "import",
            "state": "waiting",
            "trigger": "cron[hour='2']",
            "next_run": "2099-01-01T02:00:00.000+00:00",
            "last_outcome": None,
            "last_duration": None,
            "name": "import_orders",
            "function": "tests.package.test_jobs_command:import_orders",
            "executor": "imports",
            "jobstore": "stored",
            "severity": "critical",
            "owner": "data",
            "runbook_url": "https://wiki.example/import",
            "expected": {
                "grace": 120,
                "max_duration": 60,
                "min_duration": 0.5,
                "deadline": "2099-01-01T06:00:00.000+00:00",
                "max_failures": 3,
                "min_recorded": {"rows": 10},
            },
        }
        assert set(hourly) == set(declared)
        assert (hourly["state"], hourly["severity"], hourly["expected"]) == (
            "no next run",
            None,
            {},
        )

    def test_process_without_metrics(
        self, output_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A process that sends its metrics by OTLP shows the columns that /health has."""
        monkeypatch.setattr(
            "apscheduler_telemetry.cli.jobs.complete_url",
            lambda url, page: complete_url(url, "none" if page == "metrics" else page),
        )
        with application(declare) as url:
            assert output_of("jobs", url).splitlines()[0].split("  ")[0] == "JOB"
            [hourly, _] = json.loads(output_of("jobs", url, "--json"))
        assert (hourly["trigger"], hourly["executor"]) == ("interval[1:00:00]", None)

    def test_narrow_terminal(
        self, output_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Columns on the right are left out; names and states are not cut."""
        with application(declare) as url:
            for width, header in ((10, ["JOB", "STATE"]), (45, ["JOB", "STATE", "TRIGGER"])):
                monkeypatch.setenv("COLUMNS", str(width))
                lines = output_of("jobs", url).splitlines()
                assert lines[0].split() == header
                assert lines[1].startswith("hourly  no next run")

    def test_no_jobs(self, output_of: Callable[..., str]) -> None:
        """A process without jobs is no error."""
        with application(lambda _: None) as url:
            assert output_of("jobs", url) == "No jobs\n"
            assert json.loads(output_of("jobs", url, "--json")) == []

    def test_ids_cannot_control_the_terminal(self, output_of: Callable[..., str]) -> None:
        """What does not print is escaped."""
        with application(lambda scheduler: add(scheduler, HOSTILE)) as url:
            output = output_of("jobs", url)
            [job] = json.loads(output_of("jobs", url, "--json"))
        assert "\x1b" not in output
        assert (len(output.splitlines()), job["job_id"]) == (2, HOSTILE)
        assert job["function"] == "builtins:print"  # the two pages agree on the name


class TestErrors:
    """Each error is one line on standard error, and leads to exit status 1."""

    def test_nobody_listens(self, error_of: Callable[..., str]) -> None:
        """An address at which nobody listens is named, with the system's reason."""
        with fixed_server() as fixed:
            url = fixed.url
        assert error_of(url).startswith(f"cannot connect to {url}/metrics: ")

    @pytest.mark.parametrize(
        ("body", "problem"),
        [
            (b"", "does not show metrics of apscheduler-telemetry"),
            (b"<html>\r\n</html>", "does not show metrics of apscheduler-telemetry"),
            (b"up 1\n", "does not show metrics of apscheduler-telemetry"),
            (b"\xff\xfe", "does not answer in UTF-8"),
            (INFO, "shows no job that has a next run"),
            (
                INFO + b'apscheduler_job_next_run_timestamp_seconds{job_id="x" 7\n',
                "the metrics cannot be read",
            ),
            (
                INFO + b'apscheduler_job_next_run_timestamp_seconds{id="x"} 7\n',
                "the metrics cannot be read",
            ),
        ],
        ids=["nothing", "html", "others", "binary", "no jobs", "damaged", "other labels"],
    )
    def test_other_content(self, error_of: Callable[..., str], body: bytes, problem: str) -> None:
        """Content that is not of this package, or has no jobs, is named as such."""
        with fixed_server(body=body) as fixed:
            assert problem in error_of(fixed.url)

    def test_missing_token(self, error_of: Callable[..., str], tmp_path: Path) -> None:
        """If the process requires a token, the message names the option."""
        token = tmp_path / "token"
        token.write_text("secret")
        with application(
            lambda scheduler: add(scheduler, "nightly"), bearer_token_file=token
        ) as url:
            message = error_of(url)
        assert "answers with status 401" in message
        assert "--bearer-token-file" in message

    def test_unusable_token_file(self, error_of: Callable[..., str], tmp_path: Path) -> None:
        """A file without a token, or none at all, is an error before anything is sent."""
        (tmp_path / "token").write_text("two words")
        url = "http://127.0.0.1:9"
        assert "does not have one token" in error_of(
            url, "--bearer-token-file", str(tmp_path / "token")
        )
        assert "No such file" in error_of(url, "--bearer-token-file", str(tmp_path / "none"))

    def test_redirect_is_not_followed(self, error_of: Callable[..., str], tmp_path: Path) -> None:
        """A redirect is an error that names its target; the token goes to no other server."""
        (tmp_path / "token").write_text("secret")
        with fixed_server() as other, fixed_server(302, headers={"Location": other.url}) as fixed:
            message = error_of(fixed.url, "--bearer-token-file", str(tmp_path / "token"))
        assert f"status 302, to '{other.url}'" in message
        assert other.requests == []

    def test_too_much_content(
        self, error_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reading ends when there is more than all metrics of thousands of jobs."""
        monkeypatch.setattr(client, "MAX_ANSWER_BYTES", 1_000_000)
        with fixed_server(body=b"#" * 1_100_000) as fixed:
            assert "sends more than 1 MB" in error_of(fixed.url)

    def test_too_slow_content(
        self, error_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reading ends after a total time, even if some bytes arrive now and then."""
        monkeypatch.setattr(client, "TOTAL_TIMEOUT_SECONDS", 0.0)
        with fixed_server(body=b"#" * 100_000) as fixed:
            assert "takes longer than 0 seconds" in error_of(fixed.url)

    def test_server_that_does_not_answer(
        self, error_of: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The command does not wait for ever for a server that accepts and is silent."""
        monkeypatch.setattr(client, "ANSWER_TIMEOUT_SECONDS", 0.05)
        server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # accepts nothing
        try:
            message = error_of(f"http://127.0.0.1:{server.server_port}")
        finally:
            server.server_close()
        assert "timed out" in message

    @pytest.mark.parametrize(
        "text",
        ["127.0.0.1:9476", "localhost:9476", "file:///etc/passwd", "http://", "http://h:x", "",
         "http://a b", "http://h/\u00fc", "http://h/\r\nX: 1", "http://h:99999"],
    )  # fmt: skip
    def test_what_is_no_address(self, text: str) -> None:
        """Texts that are no address of HTTP are errors that show one."""
        with pytest.raises(CommandError, match=r"is no address\. Pass one such as http://"):
            complete_url(text)

    def test_password_in_the_address(self) -> None:
        """An address with a user is an error, as it would be in the file that is written."""
        with pytest.raises(CommandError, match="--bearer-token-file"):
            complete_url("http://ann:secret@host")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--yaml",), "--yaml needs --application NAME"),
            (("--yaml", "--application", " "), "--yaml needs --application NAME"),
            (("--application", "shop"), "--application is only for --yaml"),
            (("--yaml", "--application", "shop", "--json"), "--yaml and --json exclude each other"),
        ],
    )
    def test_options_that_do_not_fit_together(
        self, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The command line is wrong, and the message says what to pass."""
        assert main(["jobs", "http://127.0.0.1:9", *arguments]) == 2
        output, errors = capsys.readouterr()
        assert (output, message in errors) == ("", True)

    @pytest.mark.parametrize("options", [(), ("--yaml", "--application", "shop")])
    @pytest.mark.parametrize(
        ("device", "message"),
        [("/dev/full", "cannot write to standard output: No space left on device"), (None, "")],
        ids=["full disk", "closed pipe"],
    )
    def test_output_that_cannot_be_written(
        self, device: str | None, message: str, options: tuple[str, ...]
    ) -> None:
        """A full disk is an error of one line; a closed pipe is silent, and the status is 1."""
        with application(lambda scheduler: add(scheduler, "nightly")) as url:
            if device is None:
                reader, output = os.pipe()
                os.close(reader)
            else:
                output = os.open(device, os.O_WRONLY)
            try:
                ended = subprocess.run(
                    [sys.executable, "-c", COMMAND, "jobs", url, *options],
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


ITEM = "- application: shop\n  scheduler: default\n  jobs:\n"


class TestJobsFile:
    """Validation of ``jobs.yml``."""

    def test_values_are_texts_as_they_are_written(self, tmp_path: Path) -> None:
        """A value that YAML takes for a number or a boolean is its text."""
        path = tmp_path / "jobs.yml"
        path.write_text(
            f"{ITEM}  - job_id: 007\n  - job_id: no\n  - job_id: 1e3\n  - job_id: 'a'\n"
        )
        assert [job.job_id for job in read_expected_jobs([path])] == ["007", "no", "1e3", "a"]

    def test_written_jobs_are_read(self, tmp_path: Path) -> None:
        """What is written is read as the same jobs."""
        jobs = [
            ExpectedJob(application="a", scheduler="s", job_id="1", severity="info", owner="o"),
            ExpectedJob(application="a", scheduler="s", job_id=HOSTILE, owner=HOSTILE),
            ExpectedJob(application="a", scheduler="t", job_id="1"),
        ]
        path = tmp_path / "jobs.yml"
        path.write_text(format_jobs_as_yaml(jobs), "utf-8")
        assert read_expected_jobs([path]) == jobs

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("", "lists no jobs"),
            ("# nothing\n", "lists no jobs"),
            ("[]", "lists no jobs"),
            ("{}", "lists no jobs"),
            ("a: [\n", "line 2: no YAML"),
            ("a: \x01", "no YAML"),
            ("- a\n---\n- b\n", "line 2: no YAML"),
            ("[" * 2000, "nested too deeply"),
            ("jobs: []", "line 1: the file must be a list"),
            ("- shop\n", "line 1: this item must have application, scheduler and jobs"),
            ("- application: shop\n", "line 1: this item lacks scheduler and jobs"),
            (ITEM, "line 3: jobs must be a list"),
            (f"{ITEM}    a\n", "line 4: jobs must be a list"),
            (f"{ITEM}  - nightly\n", "line 4: this item must have job_id"),
            (f"{ITEM}  - job_id:\n", "line 4: job_id must be a text that is not empty"),
            (f"{ITEM}  - job_id: [a]\n", "line 4: job_id must be a text that is not empty"),
            (f"{ITEM}  - job_id: ' '\n", "line 4: job_id must be a text that is not empty"),
            (f"{ITEM}  - owner: a\n", "line 4: this item lacks job_id"),
            (f"{ITEM}  - id: a\n", "line 4: 'id' is not known here. Use job_id, severity and"),
            (f"{ITEM}  - ? [a]\n    : a\n", "line 4: a key that is no text is not known here"),
            (f"{ITEM}  - job_id: a\n    job_id: b\n", "line 5: job_id is there twice in one"),
            (f"{ITEM}  - job_id: a\n    severity: page\n", "line 5: severity must be critical, "),
            (f"{ITEM}  - job_id: {'a' * 201}\n", "line 4: job_id is too long. Write it as"),
            (f'{ITEM}  - job_id: "\\ud800"\n', "line 4: job_id has characters that UTF-8"),
            (f"{ITEM}  - job_id: __overflow__\n", "line 4: __overflow__ is no job"),
            (f"{ITEM}  - job_id: a\n  - job_id: a\n", "line 5: job 'a' of scheduler 'default' in"),
            (f"{ITEM}  - &a {{job_id: a}}\n  - *a\n", "is there twice"),
            (f"{ITEM}  - job_id: a\n{ITEM}  - job_id: a\n", "line 8: job 'a' of scheduler"),
            ("#" * (MAX_FILE_BYTES + 1), "it has more than 1000000 bytes"),
        ],
        ids=lambda value: str(value)[:30] if "line" in str(value) else "text",
    )
    def test_errors_have_their_line(self, tmp_path: Path, text: str, problem: str) -> None:
        """A file with an error is refused; the message names the file and the line."""
        path = tmp_path / "jobs.yml"
        path.write_text(text)
        with pytest.raises(CommandError) as info:
            read_expected_jobs([path])
        assert problem in str(info.value)
        assert str(path) in str(info.value)
        assert "\n" not in str(info.value)

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        """A file that is not UTF-8 is refused."""
        (tmp_path / "jobs.yml").write_bytes(b"- \xff\n")
        with pytest.raises(CommandError, match="is no YAML"):
            read_expected_jobs([tmp_path / "jobs.yml"])

    def test_job_in_two_files_is_refused(self, tmp_path: Path) -> None:
        """A job that two files list is refused; the message names both places."""
        for name in ("a.yml", "b.yml"):
            (tmp_path / name).write_text(f"{ITEM}  - job_id: nightly\n")
        with pytest.raises(CommandError, match=r"b\.yml, line 4: .*a\.yml, line 4"):
            read_expected_jobs([tmp_path / "a.yml", tmp_path / "b.yml"])

    def test_file_that_cannot_be_opened(self, tmp_path: Path) -> None:
        """Missing files and FIFOs are errors, and no FIFO is waited for."""
        with pytest.raises(CommandError, match=r"cannot read .*: No such file"):
            read_expected_jobs([tmp_path / "jobs.yml"])
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(CommandError, match="it is a FIFO and is not opened"):
            read_expected_jobs([tmp_path / "fifo"])

    def test_wrong_file_lets_export_write_nothing(self, tmp_path: Path) -> None:
        """If the file is wrong, `export` writes nothing at all."""
        (tmp_path / "jobs.yml").write_text("[]")
        with pytest.raises(CommandError, match="lists no jobs"):
            export_files(tmp_path / "out", expect=[tmp_path / "jobs.yml"])
        assert not (tmp_path / "out").exists()


class TestMissingLibrary:
    @pytest.mark.parametrize("command", ["jobs", "export"])
    def test_missing_extra_is_named(
        self,
        command: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Without PyYAML, both commands name the extra that installs it."""
        monkeypatch.setitem(sys.modules, "yaml", None)
        (tmp_path / "jobs.yml").write_text(f"{ITEM}  - job_id: nightly\n")
        arguments = {
            "jobs": ["http://127.0.0.1:9", "--yaml", "--application", "shop"],
            "export": ["--expect", str(tmp_path / "jobs.yml"), str(tmp_path / "out")],
        }
        assert main([command, *arguments[command]]) == 1
        assert "pip install 'apscheduler-telemetry[expect]'" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()
