"""
Tests that run the examples as their first lines say.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.http_clients import PATIENCE
from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.integration

EXAMPLES = ROOT / "examples"

SERVERS = {
    "flask_app": ("flask", "-m", "flask", "--app", "flask_app", "run", "--port", "0"),
    "fastapi_app": ("uvicorn", "-m", "uvicorn", "fastapi_app:app", "--port", "0"),
}


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Run an example in a process of its own and tell where it is reached."""
    module, *command = SERVERS[request.param]
    pytest.importorskip(module)
    pytest.importorskip("fastapi" if module == "uvicorn" else "werkzeug")
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=EXAMPLES,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def address() -> str | None:
        assert process.poll() is None, log.read_text()
        found = re.search(r"[Rr]unning on (http://127\.0\.0\.1:\d+)", log.read_text())
        return found and found[1]

    try:
        yield wait_until(address, "the start of the example")
    finally:
        process.terminate()
        process.wait(PATIENCE)
        assert "Traceback" not in log.read_text(), log.read_text()


def fetch(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:  # 503: not healthy yet
        with error:
            return ""


class TestExamples:
    def test_example_runs_its_job_and_serves_metrics(self, url: str) -> None:
        """Its job runs and is counted, it is healthy, and its own page is still there."""
        success = re.compile(
            r'^apscheduler_job_runs_total\{job_id="send-mails",outcome="success",'
            r'scheduler="\w+-example"\} [1-9]',
            re.MULTILINE,
        )

        wait_until(lambda: success.search(fetch(f"{url}/metrics")), "a run that succeeded")
        assert '"status": "healthy"' in wait_until(lambda: fetch(f"{url}/health"), "health")
        assert "nightly-report" in fetch(url)
