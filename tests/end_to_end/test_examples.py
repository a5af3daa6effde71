"""The examples, started by the command in their first lines."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.paths import ROOT
from tests.helpers.servers import get, running_process
from tests.helpers.waiting import wait_for_answer, wait_until

pytestmark = pytest.mark.integration

EXAMPLES = ROOT / "examples"

SERVERS = {
    "flask_app": ("flask", "-m", "flask", "--app", "flask_app", "run", "--port", "0"),
    "fastapi_app": ("uvicorn", "-m", "uvicorn", "fastapi_app:app", "--port", "0"),
}


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Run an example in a process of its own, and return its URL."""
    module, *command = SERVERS[request.param]
    pytest.importorskip(module)
    pytest.importorskip("fastapi" if module == "uvicorn" else "werkzeug")
    log = tmp_path / "log"
    (tmp_path / "sitecustomize.py").write_text("import logging; logging.basicConfig(level='INFO')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    environment = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": path,
    }
    with running_process([sys.executable, *command], log, cwd=EXAMPLES, env=environment) as process:

        def address() -> str | None:
            assert process.poll() is None, log.read_text()
            found = re.search(r"[Rr]unning on (http://127\.0\.0\.1:\d+)", log.read_text())
            return found and found[1]

        yield wait_until(address, "the start of the example")
        process.send_signal(signal.SIGINT)
        process.wait(WAIT_TIMEOUT)
    assert "Scheduler has been shut down" in log.read_text()
    assert "pending job(s)" not in log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()


class TestExamples:
    def test_example_runs_its_job_and_serves_metrics(self, url: str) -> None:
        """The example runs and counts its job, is healthy, and serves its own page."""
        success = re.compile(
            r'^apscheduler_job_runs_total\{job_id="send-mails",outcome="success",'
            r'scheduler="\w+-example"\} [1-9]',
            re.MULTILINE,
        )

        wait_for_answer(lambda: success.search(get(f"{url}/metrics")[1]))
        wait_for_answer(lambda: '"status": "healthy"' in get(f"{url}/health")[1])
        assert "nightly-report" in get(url)[1]
