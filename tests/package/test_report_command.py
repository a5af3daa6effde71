"""``apscheduler-telemetry report``: what was due, ran and failed, from Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.cli import main
from apscheduler_telemetry.cli.client import Answer
from apscheduler_telemetry.cli.report_data import parse_time_range
from tests.helpers.commands import text_answer
from tests.helpers.jobs import nothing
from tests.helpers.servers import prometheus, required_program
from tests.helpers.waiting import wait_until

HOSTILE = 'a|b*<script>"\n\x1b[31m日本'
Series = tuple[Mapping[str, str], float]


def fail() -> None:
    message = "no"
    raise ValueError(message)


def job(**labels: str) -> dict[str, str]:
    return {"job": "shop", "scheduler": "default", "job_id": "nightly", **labels}


class Answers:
    """What Prometheus answers to the queries, which are known by a word in them."""

    def __init__(self) -> None:
        self.runs: list[Series] = []
        self.slowest: list[Series] = []
        self.usual: list[Series] = []
        self.fired: list[Series] = []
        self.firing: list[Series] = []
        self.queries: list[str] = []

    def fetch(self, url: str, _: object, query: Any, **__: object) -> Answer:
        assert urlsplit(url).path == "/prom/api/v1/query"
        [(name, expression)] = query
        assert name == "query"
        self.queries.append(expression)
        for word, series in {
            "apscheduler_job_runs_total": self.runs,
            "quantile_over_time": self.usual,
            "last_run_duration": self.slowest,
            "max_over_time(ALERTS": self.fired,
            "ALERTS": self.firing,
        }.items():
            if word in expression:
                result = [{"metric": labels, "value": [0, str(value)]} for labels, value in series]
                return text_answer(json.dumps({"status": "success", "data": {"result": result}}))
        raise AssertionError(expression)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    answers = Answers()
    monkeypatch.setattr("apscheduler_telemetry.cli.client.fetch", answers.fetch)
    return answers


@pytest.fixture
def report(output_of: Callable[..., str]) -> Callable[..., str]:
    """Return what the command prints; it must succeed."""

    def run(*arguments: str, url: str = "http://h/prom/") -> str:
        return output_of("report", "--prometheus", url, *arguments)

    return run


class TestReport:
    """What is reported."""

    def test_each_application_has_its_jobs_those_in_trouble_first(
        self, answers: Answers, report: Callable[..., str]
    ) -> None:
        """Coalesced runs are listed, but are not due themselves."""
        answers.runs += [
            (job(job_id="a", outcome="success"), 24.2),
            (job(job_id="a", outcome="coalesced"), 3),
            (job(outcome="success"), 1),
            (job(outcome="error"), 1.9),
            (job(outcome="missed"), 0.2),
            (job(job="mails", outcome="lost"), 1),
        ]
        lines = report().splitlines()
        assert re.fullmatch(r"Jobs in the 24h until \d{4}-\d\d-\d\d \d\d:\d\d UTC", lines[0])
        header = [
            "JOB",
            "DUE",
            "SUCCESS",
            "ERROR",
            "MISSED",
            "SKIPPED",
            "LOST",
            "COALESCED",
            "SLOWER",
            "THAN",
            "USUAL",
        ]
        assert lines[2] == "mails: 0 of 1 due runs succeeded, 0 alerts fired"
        assert lines[4].split() == header
        assert lines[5].split() == ["default/nightly", "1", "1"]
        assert lines[7] == "shop: 25 of 27 due runs succeeded, 0 alerts fired"
        assert lines[9].split() == header
        assert lines[10].split() == ["default/nightly", "3", "1", "2"]
        assert lines[11].split() == ["default/a", "24", "24", "3"]
        assert len(lines) == 12

    @pytest.mark.parametrize(
        ("slowest", "usual", "text"),
        [
            (133.2, 12.0, "2m13s, usually 12.0s"),
            (23.0, 12.0, ""),
            (0.9, 0.001, ""),
            (133.2, None, ""),
        ],
    )
    def test_slow_job_is_reported_with_its_usual_duration(
        self,
        answers: Answers,
        report: Callable[..., str],
        slowest: float,
        usual: float | None,
        text: str,
    ) -> None:
        """Twice as long as usual is slow, but not milliseconds, nor a job that is new."""
        answers.runs.append((job(outcome="success"), 1))
        answers.slowest.append((job(), slowest))
        answers.usual += [] if usual is None else [(job(), usual)]
        assert (
            report().splitlines()[-1] == f"default/nightly    1        1{' ' * 43}{text}".rstrip()
        )

    def test_narrow_terminal(
        self,
        answers: Answers,
        report: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It lacks empty columns only, as many as necessary, even if the others do not fit."""
        answers.runs += [(job(outcome="success"), 1), (job(outcome="lost"), 2)]
        for width, header in (
            ("66", "JOB DUE SUCCESS ERROR MISSED SKIPPED LOST"),
            ("30", "JOB DUE SUCCESS LOST"),
        ):
            monkeypatch.setenv("COLUMNS", width)
            lines = report().splitlines()[4:]
            assert lines[0].split() == header.split()
            assert lines[1].split() == ["default/nightly", "3", "1", "2"]

    def test_alerts_that_fired_are_listed(
        self, answers: Answers, report: Callable[..., str]
    ) -> None:
        """Those that still fire come first; an alert may be about a scheduler only."""
        failing = job(alertname="APSchedulerJobFailing", severity="warning")
        down = {"job": "shop", "alertname": "APSchedulerDown", "severity": "critical"}
        answers.fired += [(failing, 1), (down, 1)]
        answers.firing.append((failing, 1))
        lines = report().splitlines()
        assert lines[2] == "shop: 0 of 0 due runs succeeded, 2 alerts fired"
        assert [line.split() for line in lines[4:]] == [
            ["ALERT", "SEVERITY", "JOB", "NOW"],
            ["APSchedulerJobFailing", "warning", "default/nightly", "firing"],
            ["APSchedulerDown", "critical", "resolved"],
        ]

    def test_json_has_jobs_and_alerts(self, answers: Answers, report: Callable[..., str]) -> None:
        """Scripts get the numbers of each application."""
        answers.runs += [(job(outcome="success"), 1), (job(outcome="coalesced"), 2)]
        answers.fired.append((job(alertname="APSchedulerJobFailing", severity="warning"), 1))
        of_job = {"scheduler": "default", "job_id": "nightly"}
        assert json.loads(report("--json")) == [
            {
                "application": "shop",
                "jobs": [
                    {
                        **of_job,
                        "due": 1,
                        "outcomes": {"success": 1, "coalesced": 2},
                        "slowest": None,
                        "usual": None,
                    }
                ],
                "alerts": [
                    {
                        "name": "APSchedulerJobFailing",
                        "severity": "warning",
                        **of_job,
                        "is_firing": False,
                    }
                ],
            }
        ]

    def test_values_that_are_no_numbers_are_left_out(
        self, answers: Answers, report: Callable[..., str]
    ) -> None:
        """A query of a server that is not quite Prometheus may have them."""
        labels = {"job": "shop", "scheduler": "default", "job_id": "a", "outcome": "success"}
        answers.runs = [(labels, float("nan")), (labels, float("inf"))]
        assert "No runs and no alerts" in report()

    def test_nothing_to_report(self, answers: Answers, report: Callable[..., str]) -> None:
        """That is said."""
        assert report().splitlines()[1:] == ["", "No runs and no alerts"]
        assert report("--format=markdown").splitlines()[1:] == ["", "No runs and no alerts."]
        assert "<p>No runs and no alerts.</p>" in report("--format=html")

    def test_range_is_queried(self, answers: Answers, report: Callable[..., str]) -> None:
        """It is in seconds in each query."""
        assert report("--since=2d").startswith("Jobs in the 2d until ")
        assert sum("[172800s" in query for query in answers.queries) == 3
        assert sum("offset 172800s" in query for query in answers.queries) == 2

    def test_markdown_is_escaped(self, answers: Answers, report: Callable[..., str]) -> None:
        """An id cannot end a cell, nor be HTML."""
        answers.runs.append((job(job_id=HOSTILE, outcome="error"), 1))
        lines = report("--format=markdown").splitlines()
        assert lines[0].startswith("# Jobs in the 24h")
        assert lines[2] == "## shop"
        row = lines[-1]
        assert row.startswith(r'| default/a\|b\*\<script\>"\\x0a\\x1b\[31m日本 | 1 |')
        assert len(re.findall(r"(?<!\\)\|", row)) == len(re.findall(r"\|", lines[-2]))

    def test_html_is_escaped(self, answers: Answers, report: Callable[..., str]) -> None:
        """An id arrives as text, and the page has no script."""
        answers.runs.append((job(job_id=HOSTILE, job=HOSTILE, outcome="error"), 1))
        page = _Page()
        page.feed(report("--format=html"))
        shown = HOSTILE.replace("\n", "\\x0a").replace("\x1b", "\\x1b")
        assert shown in page.texts
        assert f"default/{shown}" in page.texts
        assert page.elements <= {"meta", "title", "h1", "h2", "p", "table", "tr", "td", "th"}


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.elements: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.elements.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


class TestErrors:
    """Each error is one line, or a usage message."""

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            ("<html>", "does not answer in JSON. Pass the address of Prometheus."),
            ("[]", "does not answer queries of Prometheus"),
            ('{"status": "success"}', "does not answer queries of Prometheus"),
            ('{"status": "error", "error": "too many samples"}', "cannot answer: too many samples"),
            ('{"status": "error", "error": "a\\nb\\u001b"}', "cannot answer: a b\\x1b"),
        ],
    )
    def test_other_answer(
        self,
        content: str,
        problem: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """What is no Prometheus is named as such, and its errors are shown."""
        monkeypatch.setattr(
            "apscheduler_telemetry.cli.client.fetch", lambda *_, **__: text_answer(content)
        )
        assert main(["report", "--prometheus", "http://h"]) == 1
        output, errors = capsys.readouterr()
        assert problem in errors
        assert (output, errors.count("\n")) == ("", 1)

    @pytest.mark.parametrize("text", ["", "24", "h", "0h", "1.5h", "24 h", "1y", "-1h", "1h30m"])
    def test_wrong_duration(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        """It is a wrong command line, and the message shows a right one."""
        with pytest.raises(SystemExit) as info:
            main(["report", "--prometheus", "http://h", f"--since={text}"])
        assert info.value.code == 2
        assert "with m, h, d or w, such as 24h" in capsys.readouterr().err

    def test_durations(self) -> None:
        """They are in seconds."""
        assert [parse_time_range(text) for text in ("90m", "24h", "7d", "2w")] == [
            *(5_400, 86_400, 604_800, 1_209_600),
        ]


@pytest.mark.integration
@pytest.mark.slow
def test_runs_of_a_real_prometheus(report: Callable[..., str], tmp_path: Path) -> None:
    """Prometheus understands the queries; the first runs of a series count, too."""
    scheduler = BackgroundScheduler(timezone="UTC")
    telemetry = instrument(scheduler, name="jobs", registry=CollectorRegistry())
    with telemetry.start_http_server(0) as server:
        target = urlsplit(server.url).netloc
        with prometheus(required_program("prometheus"), tmp_path / "p", [target]) as real:
            scheduler.start()
            try:
                for job_id, function in (("good", nothing), ("bad", fail)):
                    scheduler.add_job(function, id=job_id)
                    scheduler.add_job(function, id=f"{job_id}-2")
                counted = "count(apscheduler_job_runs_total == 1) == 4"
                wait_until(lambda: real.query(counted))
                lines = report("--since=1h", url=real.url).splitlines()
            finally:
                scheduler.shutdown()
    telemetry.uninstrument()
    assert lines[2] == "app: 2 of 4 due runs succeeded, 0 alerts fired"
    assert [line.split() for line in lines[5:]] == [
        ["jobs/bad", "1", "1"],
        ["jobs/bad-2", "1", "1"],
        ["jobs/good", "1", "1"],
        ["jobs/good-2", "1", "1"],
    ]
