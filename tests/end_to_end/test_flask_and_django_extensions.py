"""Extensions of web frameworks, in real applications."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.events import EVENT_JOB_EXECUTED
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import ArgumentTypeError, instrument
from tests.helpers import jobs
from tests.helpers.metrics import errors_of, outcomes
from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_until


class TestFlaskAPScheduler:
    """Flask-APScheduler, whose scheduler is configured by the application after it was made."""

    def test_jobs_of_flask_apscheduler_are_counted(self) -> None:
        """Runs are counted, and the extension's listeners and API work as before."""
        flask = pytest.importorskip("flask")
        flask_apscheduler = pytest.importorskip("flask_apscheduler")
        app = flask.Flask(__name__)
        job = {"trigger": "interval", "seconds": 3600, "misfire_grace_time": None}
        app.config["JOBS"] = [
            {"id": "good", "func": jobs.give_back, "args": [1], **job},
            {"id": "bad", "func": jobs.fail, **job},
        ]
        app.config["SCHEDULER_JOB_DEFAULTS"] = {"coalesce": True, "max_instances": 1}
        app.config["SCHEDULER_API_ENABLED"] = True
        extension = flask_apscheduler.APScheduler()
        with pytest.raises(ArgumentTypeError, match="pass its attribute scheduler"):
            instrument(extension, registry=CollectorRegistry())
        telemetry = instrument(extension.scheduler, registry=CollectorRegistry())
        received_events: list[Any] = []
        extension.add_listener(received_events.append, EVENT_JOB_EXECUTED)
        extension.init_app(app)
        extension.start()
        try:
            client = app.test_client()
            for name in ("good", "bad"):
                assert client.post(f"/scheduler/jobs/{name}/pause").status_code == 200
                assert client.post(f"/scheduler/jobs/{name}/resume").status_code == 200
                extension.modify_job(name, next_run_time=datetime.now(timezone.utc))
            wait_until(lambda: outcomes(telemetry, "good") == {"success": 1}, "the good one")
            wait_until(lambda: outcomes(telemetry, "bad") == {"error": 1}, "the bad one")
            wait_until(lambda: [e.retval for e in received_events] == [1], "the listener")
            body = b"".join(telemetry.wsgi_app(_environ("/metrics"), lambda *_: None))
            assert b'apscheduler_job_runs_total{job_id="good",outcome="success"' in body
            assert telemetry._exported_scheduler.liveness().up
            assert not any(errors_of(telemetry).counts().values())
        finally:
            extension.shutdown()
        assert telemetry._exported_scheduler.liveness().scheduler_state == "stopped"


@pytest.mark.slow
class TestDjangoAPScheduler:
    """django-apscheduler, whose job store and execution rows are tables of the application."""

    def test_jobs_of_django_apscheduler_are_counted_across_processes(self, tmp_path: Path) -> None:
        """Runs are counted, the extension writes its rows, and the next process finds the jobs."""
        pytest.importorskip("django_apscheduler")
        database = tmp_path / "db.sqlite3"
        first, second = (self._play(database, process) for process in ("first", "second"))
        assert first == {
            "good": {"success": 1},
            "bad": {"error": 1},
            "persistent": True,
            "has a next run": True,
            "rows": ["Error!", "Executed"],
            "stored": ["bad", "good"],
            "up": True,
            "own failures": {},
        }
        assert second == {**first, "good": {}, "bad": {}}

    @staticmethod
    def _play(database: Path, process: str) -> Any:
        done = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-m", "tests.applications.django_project"),
                *(str(database), process),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def _environ(path: str) -> dict[str, Any]:
    return {"REQUEST_METHOD": "GET", "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": ""}
