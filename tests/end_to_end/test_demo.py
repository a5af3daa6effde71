"""The demo: its printed addresses respond, and its verdict and its report say what was seen."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

pytest.importorskip("yaml")

from tests.helpers.paths import ROOT
from tests.helpers.servers import running_http_server

pytestmark = pytest.mark.once

DEMO = ROOT / "examples" / "demo"

# Scripts that import each other by name, from the directory in which they are started.
with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(DEMO))
    sources: Any = importlib.import_module("sources")
    run: Any = importlib.import_module("run")


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

    with running_http_server(Handler) as address:
        yield f"http://{address}"


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


class TestAlertmanager:
    def test_alerts_that_have_resolved_are_remembered(self) -> None:
        """An alert that is not listed any more has resolved, until it fires again."""
        pages: dict[str, str] = {}
        with server(pages) as url:
            watched = sources.Alertmanager(url)
            for names, expected in (
                (["one"], {("one", "job"): False}),
                (["two"], {("one", "job"): True, ("two", "job"): False}),
                (["one"], {("one", "job"): False, ("two", "job"): True}),
            ):
                labels = [{"labels": {"alertname": name, "job_id": "job"}} for name in names]
                pages["/api/v2/alerts"] = json.dumps(labels)
                watched.read()
                assert watched.has_resolved == expected


class TestExpectations:
    def test_alerts(self) -> None:
        """All alerts are expected, one of them to resolve, and none on healthy jobs."""
        seen = {
            ("APSchedulerRunFailed", "pull-rates"): False,
            ("APSchedulerRunsSkipped", "build-report"): False,
            ("APSchedulerRunsLost", "crunch"): False,
            ("APSchedulerJobStuck", "sync-stock"): False,
            ("APSchedulerJobFailing", "import-orders"): True,
            ("APSchedulerWatchdog", ""): False,
        }
        assert all(found for _, found in run.alerts_expected(seen))
        for key in seen:
            less = {other: seen[other] for other in seen if other != key}
            assert not all(found for _, found in run.alerts_expected(less))
        for change in (
            {("APSchedulerJobFailing", "import-orders"): False},
            {("APSchedulerRunFailed", "poll-queue"): True},
        ):
            [missing] = [text for text, found in run.alerts_expected(seen | change) if not found]
            assert missing in {
                "APSchedulerJobFailing resolves",
                "no alert about refresh-cache or poll-queue",
            }


class TestReport:
    def test_without_prometheus(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Without Prometheus, it is said why there is no report."""
        run.report(None, 40)
        assert capsys.readouterr().out.startswith("No report of this run: ")

    def test_closed_output(self) -> None:
        """If nobody reads the output any more, the demo ends without a traceback."""
        reader, output = os.pipe()
        os.close(reader)
        command = [sys.executable, "-c", "import run; run.report(None, 40)"]
        with os.fdopen(output, "w") as stdout:
            done = subprocess.run(
                command, cwd=DEMO, stdout=stdout, stderr=subprocess.PIPE, timeout=60, check=False
            )
        assert (done.returncode, done.stderr) == (1, b"")


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
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """If the demo ended too early, the last line says how long it needs."""
        assert run.verdict([("one", True), ("two", seen)], limit) == status
        assert capsys.readouterr().out.splitlines()[-1] == last
