"""``apscheduler-telemetry top``: which columns, jobs and alerts a terminal of a size shows."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.cli import alertmanager, client, main, top
from apscheduler_telemetry.cli.alertmanager import Alert, AlertWatcher
from apscheduler_telemetry.cli.client import Answer
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.table import fit_columns
from tests.helpers.clocks import ManualClock
from tests.helpers.commands import text_answer
from tests.helpers.jobs import nothing

HEADER = (
    *("JOB", "STATE", "LAST", "SUCCESS", "ERROR", "MISSED", "SKIPPED", "LOST", "COALESCED"),
    *("SUCCEEDED", "NEXT RUN", "DURATION", "TRIGGER", "SCHEDULER"),
)
EMPTY = {"MISSED", "COALESCED"}
JOBS = ("archive", "build-report", "crunch", "import-orders", "pull-rates", "refresh-cache")
URL = "http://127.0.0.1:9093"


def ago(seconds: float) -> str:
    return (datetime.now(timezone.utc) - timedelta(seconds=seconds)).isoformat("T", "milliseconds")


def job(job_id: str, **changes: Any) -> dict[str, Any]:
    """Return a job with runs of all outcomes but two; its state is the widest."""
    return {
        "id": job_id,
        "next_run": ago(-64_500),
        "trigger": "cron[day_of_week='mon-fri', hour='2']",
        "last_outcome": "success",
        "last_duration": 0.25,
        "last_success": ago(98),
        "outcomes": dict.fromkeys(("success", "error", "skipped", "lost"), 1_234),
        "running_since": ago(119),
        "overdue": False,
        **changes,
    }


def scheduler(name: str = "background", *jobs: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "state": "running", "status": "healthy", "jobs": jobs}


def shown(**changes: Any) -> top.ShownJobsAndAlerts:
    """Return two schedulers, without an Alertmanager."""
    schedulers = [scheduler("background", *map(job, JOBS)), scheduler("asyncio", job("poll"))]
    return top.ShownJobsAndAlerts(schedulers)._replace(**changes)


def alerts(*states: str) -> list[Alert]:
    """Return alerts with the longest name, in these states."""
    names = ("APSchedulerDuplicateSchedulers", "critical", "shop", "background", "")
    return [Alert(*names, state, time.time() - 98) for state in states]


def header_of(lines: list[str]) -> list[str]:
    [line] = [line for line in lines if line.startswith("JOB ")]
    return re.split("  +", line.strip())


class TestColumns:
    """Columns that fit into the width of the terminal."""

    @pytest.mark.parametrize("width", [80, 100, 120, 200])
    def test_nothing_is_cut(self, width: int) -> None:
        """Lines fit, and each job has its whole name and state."""
        lines = top.format_jobs_and_alerts(shown(), width)
        assert max(map(len, lines)) <= width
        assert set(header_of(lines)) <= set(HEADER)
        for name in (*JOBS, "poll"):
            assert any(re.match(rf"{name} +running 119s  ", line) for line in lines)

    def test_80_columns(self) -> None:
        """The outcomes that need attention, the last success and the next run fit."""
        assert header_of(top.format_jobs_and_alerts(shown(), 80)) == [
            *("JOB", "STATE", "LAST", "ERROR", "SKIPPED", "LOST", "SUCCEEDED", "NEXT RUN"),
        ]

    def test_order_in_which_columns_go(self) -> None:
        """Empty columns go first, then what matters least; job and state stay."""
        gone: list[str] = []
        left: list[str] = list(HEADER)
        for width in range(250, 5, -1):
            header = header_of(top.format_jobs_and_alerts(shown(), width))
            gone += [name for name in left if name not in header]
            left = header
        assert set(gone[:2]) == EMPTY
        assert gone[2:6] == ["TRIGGER", "SCHEDULER", "DURATION", "SUCCESS"]
        assert gone[-1] == "LOST"
        assert left == ["JOB", "STATE"]

    def test_one_scheduler_is_not_repeated(self) -> None:
        """With one scheduler, no column names it."""
        lines = top.format_jobs_and_alerts(shown(schedulers=[scheduler("shop", job("a"))]), None)
        assert header_of(lines) == list(HEADER[:-1])

    def test_scheduler_that_tells_jobs_apart_stays(self) -> None:
        """If two schedulers have a job with the same id, the column of schedulers stays."""
        schedulers = [scheduler("one", job("a")), scheduler("two", job("a"))]
        lines = top.format_jobs_and_alerts(shown(schedulers=schedulers), 10)
        assert header_of(lines) == ["JOB", "STATE", "SCHEDULER"]

    def test_counts_are_aligned_to_the_right(self) -> None:
        """Numbers of runs end where their header ends, and there is none for no runs."""
        jobs = [job("a", outcomes={"error": 7}), job("b", outcomes={"error": 123_456})]
        header, *rows = top.format_jobs_and_alerts(shown(schedulers=[scheduler("s", *jobs)]), None)[
            1:
        ]
        end = header.index(" ERROR") + len(" ERROR")
        assert [row[:end].split()[-1] for row in rows] == ["7", "123456"]
        assert "0" not in [text for row in rows for text in row.split()]

    def test_empty_columns_stay_if_there_is_room(self) -> None:
        """A column is left out only if the table does not fit, and only as many as needed."""
        header, rows = ("A", "B", "C"), [("1", "", "3")]
        assert fit_columns(header, rows, 7, ["C", "B"]) == (["A", "B", "C"], [["1", "", "3"]])
        assert fit_columns(header, rows, 6, ["C", "B"]) == (["A", "C"], [["1", "3"]])
        assert fit_columns(header, rows, 3, ["C", "B"]) == (["A"], [["1"]])


class TestAlerts:
    """``--alertmanager`` lists alerts below the jobs."""

    def test_without_an_alertmanager(self) -> None:
        """Without the option there is no title."""
        assert not any("Alerts" in line for line in top.format_jobs_and_alerts(shown(), 80))

    def test_no_alerts(self) -> None:
        """An empty list says that it is empty."""
        lines = top.format_jobs_and_alerts(shown(alerts=[], alertmanager_url=URL), 80)
        assert lines[-3:] == ["", f"Alerts of {URL}", "No alerts"]

    @pytest.mark.parametrize("width", [80, 120])
    def test_each_alert_is_one_whole_line(self, width: int) -> None:
        """It has its name, what it is about, its state, its severity, and since when."""
        states = ("firing", "inhibited", "silenced", "resolved")
        lines = top.format_jobs_and_alerts(
            shown(alerts=alerts(*states), alertmanager_url=URL), width
        )
        texts = ["APSchedulerDuplicateSchedulers", "background", "critical", "1m38s ago"]
        rows = [re.split("  +", line) for line in lines[-4:]]
        assert [row.pop(2) for row in rows] == list(states)
        assert [row[:4] for row in rows] == [texts] * 4
        assert [row[4:] for row in rows] == [["shop"] if width == 120 else []] * 4

    @pytest.mark.parametrize("height", [14, 20, 24, 30, 60])
    def test_height(self, height: int) -> None:
        """A low terminal shows four alerts at least, then all jobs, and counts what is left out."""
        found = shown(alerts=alerts(*["firing"] * 12), alertmanager_url=URL)
        lines = top.format_jobs_and_alerts(found, 80, height)
        assert len(lines) <= height
        listed = [line for line in lines if line.startswith("APScheduler")]
        jobs = [line for line in lines if "running 119s" in line]
        assert len(listed) == {14: 4, 20: 6, 24: 10, 30: 12, 60: 12}[height]
        assert len(jobs) == {14: 2}.get(height, 7)
        if len(listed) < 12:
            assert lines[-1] == f"{12 - len(listed)} more alerts"
        assert ("5 more jobs" in lines) == (height == 14)

    def test_alerts_of_other_applications_are_left_out(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An alert on a scheduler that is not shown is of another application."""
        health = {"status": "healthy", "scheduler": scheduler(), "jobs": []}
        found = [answer("a", scheduler="background"), answer("b", scheduler="other"), answer("c")]
        monkeypatch.setattr("apscheduler_telemetry.cli.health.fetch_json", lambda *_, **__: health)
        monkeypatch.setattr(alertmanager, "fetch_json", lambda *_, **__: found)
        assert main(["top", "http://h", "--alertmanager", URL]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert sorted(line[0] for line in lines[-2:]) == ["a", "c"]
        assert lines[-3].startswith("ALERT  ABOUT")

    def test_json_has_no_alerts(self, capsys: pytest.CaptureFixture[str]) -> None:
        """``--json`` with ``--alertmanager`` is a wrong command line."""
        assert main(["top", "http://h", "--alertmanager", URL, "--json"]) == 2
        assert "Leave out --alertmanager" in capsys.readouterr().err


def answer(name: str, **changes: Any) -> dict[str, Any]:
    """Return an alert as the API of Alertmanager lists it."""
    status = {"state": "active", "silencedBy": [], "inhibitedBy": []}
    return {
        "fingerprint": name,
        "labels": {"alertname": name, "severity": "warning", **changes},
        "startsAt": "2026-11-30T06:00:00.250Z",
        "status": {**status, **changes.pop("status", {})},
    }


class TestAlertWatcher:
    """Reads alerts, and remembers those that have resolved."""

    @pytest.fixture
    def list_alerts(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        def set_answer(found: Any) -> None:
            monkeypatch.setattr(
                "apscheduler_telemetry.cli.client.fetch",
                lambda *_, **__: text_answer(json.dumps(found)),
            )

        return set_answer

    def test_states(self, list_alerts: Callable[..., None]) -> None:
        """An alert fires unless it is silenced or inhibited; its time is read."""
        list_alerts(
            [
                answer("a"),
                answer("b", status={"inhibitedBy": ["x"]}),
                answer("c", status={"inhibitedBy": ["x"], "silencedBy": ["y"]}),
            ]
        )
        found = AlertWatcher(URL).read()
        assert [each.state for each in found] == ["firing", "inhibited", "silenced"]
        since = datetime(2026, 11, 30, 6, 0, 0, 250_000, timezone.utc).timestamp()
        assert {each.since for each in found} == {since}

    def test_resolved_alerts_are_remembered_for_a_while(
        self, list_alerts: Callable[..., None]
    ) -> None:
        """An alert that is not listed any more has resolved, and is shown last."""
        clock = ManualClock()
        watcher = AlertWatcher(URL, clock)
        list_alerts([answer("a")])
        watcher.read()
        list_alerts([answer("b")])
        resolved_at = clock()
        for _ in range(2):
            firing, resolved = watcher.read()
            assert (firing.name, resolved.name) == ("b", "a")
            assert (resolved.state, resolved.since) == ("resolved", resolved_at)
            clock.now += alertmanager.KEEP_RESOLVED_SECONDS - 1
        clock.now += 2
        assert [each.name for each in watcher.read()] == ["b"]
        list_alerts([answer("a"), answer("b")])
        assert [each.state for each in watcher.read()] == ["firing", "firing"]

    @pytest.mark.parametrize("content", [{"a": 1}, None, [1], [{}], [{"fingerprint": "a"}]])
    def test_other_page(self, content: Any, list_alerts: Callable[..., None]) -> None:
        """Another page is named as such."""
        list_alerts(content)
        with pytest.raises(CommandError, match=r"Pass the address of Alertmanager\.$"):
            AlertWatcher(URL).read()

    def test_token(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """Alertmanager gets its own token, and a message about it names its option."""
        asked = []
        default_option = inspect.signature(client.fetch).parameters["token_option"].default

        def fetch(
            url: str,
            token: str | None,
            *_: object,
            token_option: str = default_option,
            **__: object,
        ) -> Answer:
            asked.append((token, token_option))
            report = {"status": "healthy", "scheduler": {"name": "a", "state": "b"}, "jobs": []}
            return text_answer("[]" if "alerts" in url else json.dumps(report))

        monkeypatch.setattr("apscheduler_telemetry.cli.client.fetch", fetch)
        (tmp_path / "token").write_text("secret")
        option = "--alertmanager-token-file"
        arguments = ["--alertmanager", "http://am", option, str(tmp_path / "token")]
        assert main(["top", "http://h", "--once", *arguments]) == 0
        assert asked == [(None, "--bearer-token-file"), ("secret", option)]


class TestSeveralProcesses:
    """More than one address."""

    def test_schedulers_of_one_name_are_told_apart(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Workers of one application have schedulers of one name; their address is added."""
        health = {"status": "healthy", "scheduler": scheduler("shop"), "jobs": [job("a")]}
        monkeypatch.setattr("apscheduler_telemetry.cli.health.fetch_json", lambda *_, **__: health)
        assert main(["top", "http://h:1", "http://h:2"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [f"shop (h:{port}): running, healthy" for port in (1, 2)]
        assert [line.split()[-1] for line in lines[3:]] == ["(h:1)", "(h:2)"]

    def test_tables_in_a_pipe(self) -> None:
        """With --interval, a pipe gets plain tables under title and time, until SIGTERM."""
        schedulers = [BackgroundScheduler(timezone="UTC") for _ in range(2)]
        handles = [
            instrument(each, name=f"s{number}", registry=CollectorRegistry())
            for number, each in enumerate(schedulers)
        ]
        try:
            urls = []
            for each, handle in zip(schedulers, handles, strict=True):
                each.add_job(nothing, "interval", hours=1, id=f"job-of-{handle.name}")
                each.start()
                urls.append(handle.start_http_server(0).url)
            command = [sys.executable, "-m", "apscheduler_telemetry", "top", *urls]
            with subprocess.Popen(
                [*command, "--interval=0.2", "--title=both"],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "COLUMNS": "60"},
            ) as process:
                assert process.stdout is not None
                lines = [process.stdout.readline().rstrip("\n") for _ in range(14)]
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
        finally:
            for each, handle in zip(schedulers, handles, strict=True):
                each.shutdown()
                handle.uninstrument()
        assert re.fullmatch(r"\d\d:\d\d:\d\d  both", lines[0])
        assert lines[1:3] == ["s0: running, healthy", "s1: running, healthy"]
        assert [line.split()[0] for line in lines[4:6]] == ["job-of-s0", "job-of-s1"]
        assert lines[6] == ""
        assert max(map(len, lines)) <= 60
        assert [line[8:] for line in lines[7:10]] == [line[8:] for line in lines[:3]]
        assert "\x1b" not in "".join(lines)
