"""
Applications that call `start_http_server()` as they are loaded, under servers that load them twice.

Of the README only the port is replaced, so that tests can run beside each other.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.paths import ROOT
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.servers import free_port, get, running_process
from tests.helpers.waiting import wait_for_answer

pytestmark = [pytest.mark.integration, pytest.mark.slow]

SCHEDULER = """
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler_telemetry import instrument

scheduler = BackgroundScheduler()
scheduler.add_job(print, "interval", seconds=100, id="tick")
instrument(scheduler).start_http_server(9476)
scheduler.start()
"""
LOADED = 'print("application loaded", flush=True)'
FLASK = f"""
import os
from flask import Flask
{SCHEDULER}
app = Flask(__name__)

@app.get("/")
def index():
    return "version 1"

{LOADED}
if __name__ == "__main__":
    app.run(debug=True, port=int(os.environ["PORT"]))
"""
ASGI = f"""
{SCHEDULER}
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"version 1"}})

{LOADED}
"""
DJANGO = {
    "config.py": """
DEBUG = True
SECRET_KEY = "of a test"
INSTALLED_APPS = ["shop"]
ROOT_URLCONF = "webapp"
""",
    "webapp.py": """
from django.http import HttpResponse
from django.urls import path

urlpatterns = [path("", lambda request: HttpResponse("version 1"))]
""",
    "shop/__init__.py": "",
    "shop/apps.py": f"""
from django.apps import AppConfig

class ShopConfig(AppConfig):
    name = "shop"

    def ready(self):
{SCHEDULER}
        {LOADED}
""".replace("\nfrom aps", "\n        from aps")
    .replace("\nscheduler", "\n        scheduler")
    .replace("\ninstrument", "\n        instrument"),
}


class Server(NamedTuple):
    """
    A server.

    Attributes:
        module: what must be installed for it.
        files: the application.
        command: how it is started.
        takes_port_once: whether only one of its processes loads the application.
        reloads: whether it loads the application again when a file changes.
    """

    module: str
    files: Mapping[str, str]
    command: Sequence[str]
    takes_port_once: bool = False
    reloads: bool = False


def _python(*arguments: str) -> list[str]:
    return [sys.executable, *arguments]


SERVERS = {
    "flask run --debug": Server(
        "flask",
        {"webapp.py": FLASK},
        _python("-m", "flask", "--app", "webapp", "run", "--debug", "--port", "{port}"),
        reloads=True,
    ),
    "app.run(debug=True)": Server(
        "flask", {"webapp.py": FLASK}, _python("webapp.py"), reloads=True
    ),
    "flask run": Server(
        "flask",
        {"webapp.py": FLASK},
        _python("-m", "flask", "--app", "webapp", "run", "--port", "{port}"),
        takes_port_once=True,
    ),
    "runserver": Server(
        "django",
        DJANGO,
        _python("-m", "django", "runserver", "--settings", "config", "127.0.0.1:{port}"),
        reloads=True,
    ),
    "uvicorn --reload": Server(
        "uvicorn",
        {"webapp.py": ASGI},
        _python("-m", "uvicorn", "--reload", "--port", "{port}", "webapp:app"),
        takes_port_once=True,
        reloads=True,
    ),
    "uvicorn --workers 2": Server(
        "uvicorn",
        {"webapp.py": ASGI},
        _python("-m", "uvicorn", "--workers", "2", "--port", "{port}", "webapp:app"),
    ),
    "gunicorn -w 2": Server(
        "gunicorn",
        {"webapp.py": FLASK},
        _python("-m", "gunicorn", "-w", "2", "--bind", "127.0.0.1:{port}", "webapp:app"),
    ),
    "gunicorn -w 2 --preload": Server(
        "gunicorn",
        {"webapp.py": FLASK},
        _python(
            *("-m", "gunicorn", "-w", "2", "--preload", "--bind", "127.0.0.1:{port}", "webapp:app")
        ),
        takes_port_once=True,
    ),
}


class Site(NamedTuple):
    """An application that runs."""

    process: subprocess.Popen[bytes]
    directory: Path
    url: str
    metrics: str

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


@contextlib.contextmanager
def running(server: Server, directory: Path) -> Iterator[Site]:
    """Run the application until it answers."""
    pytest.importorskip(server.module)
    if "flask" in server.files.get("webapp.py", ""):
        pytest.importorskip("flask")
    port, metrics_port = free_port(), free_port()
    for name, text in server.files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text.replace("9476", str(metrics_port)))
    command = [part.replace("{port}", str(port)) for part in server.command]
    variables = {
        **os.environ,
        "PORT": str(port),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with running_process(command, directory / "log", cwd=directory, env=variables) as process:
        site = Site(
            process, directory, f"http://127.0.0.1:{port}/", f"http://127.0.0.1:{metrics_port}"
        )
        try:
            wait_for_answer(lambda: get(site.url) == (200, "version 1"))
        except AssertionError as error:
            raise AssertionError(site.log) from error
        yield site


PAGE = (ROOT / "docs" / "development_servers.md").read_text("utf-8")


def block(part: str) -> str:
    """Return the only block of Python of the page that contains `part`."""
    [found] = [text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if part in text]
    return str(found)


UNSTARTED = SCHEDULER.partition("instrument(scheduler)")[0]
FLASK_OF_THE_PAGE = f"""
from flask import Flask
{UNSTARTED}
app = Flask(__name__)
@DEBUG@
{block("WERKZEUG_RUN_MAIN")}
@app.get("/")
def index():
    return "version 1"

if __name__ == "__main__":
    app.run(port=int(os.environ["PORT"]))
"""
ONE_SCHEDULER = {
    "flask run --debug": {"webapp.py": FLASK_OF_THE_PAGE.replace("@DEBUG@", "")},
    "flask run": {"webapp.py": FLASK_OF_THE_PAGE.replace("@DEBUG@", "")},
    "app.run(debug=True)": {"webapp.py": FLASK_OF_THE_PAGE.replace("@DEBUG@", "app.debug = True")},
    "runserver": {**DJANGO, "shop/apps.py": UNSTARTED + block("ShopConfig")},
}


class TestPage:
    """The page "Development servers and several workers"."""

    @pytest.mark.parametrize("name", ONE_SCHEDULER)
    def test_snippet_starts_the_scheduler_in_one_process(self, name: str, tmp_path: Path) -> None:
        """The snippet leaves the scheduler and the port to the process that serves the site."""
        server = SERVERS[name]._replace(files=ONE_SCHEDULER[name])
        with running(server, tmp_path) as site:
            wait_for_answer(lambda: get(f"{site.metrics}/health")[0] == 200)
        assert "Address already in use" not in site.log

    def test_error_is_that_of_the_page(self, caplog: pytest.LogCaptureFixture) -> None:
        """The error on the page is what the log has, in other lines."""
        [shown] = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
        telemetry = instrument(hand_driven_scheduler(), registry=CollectorRegistry())
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            telemetry.start_http_server(port)
        telemetry.uninstrument()
        [record] = caplog.records
        text = record.getMessage().replace(str(port), "9476").replace(str(os.getpid()), "4711")
        assert text == " ".join(shown.split())


@pytest.mark.parametrize("name", SERVERS)
class TestDefaultPort:
    def test_site_works_and_the_port_answers(self, name: str, tmp_path: Path) -> None:
        """
        The site answers, as do the metrics; who lacks the port says who has it, and what to do.

        When it is ended, there is no warning of jobs that are left.
        """
        server = SERVERS[name]
        with running(server, tmp_path) as site:
            wait_for_answer(lambda: get(f"{site.metrics}/health")[0] == 200)
            _, page = get(f"{site.metrics}/metrics")
            assert 'apscheduler_scheduler_up{scheduler="default"} 1' in page
            if server.reloads:
                self.reload(site)
                wait_for_answer(lambda: get(f"{site.metrics}/health")[0] == 200)
            if not server.takes_port_once:
                wait_for_answer(lambda: "Address already in use" in site.log)
                for part in (
                    "another worker or the reloader of this application",
                    "start the server in one process only, or pass another port",
                ):
                    assert part in site.log
                # A signal while a scheduler starts may end its process with an error.
                wait_for_answer(lambda: site.log.count("application loaded") >= 2)
            else:
                assert "Address already in use" not in site.log
            os.killpg(site.process.pid, signal.SIGINT)
            site.process.wait(WAIT_TIMEOUT)
        assert not re.search(r"Traceback(?!.*KeyboardInterrupt)", site.log, re.DOTALL), site.log
        assert "pending job(s)" not in site.log

    def reload(self, site: Site) -> None:
        """Change a file, and wait until the new version answers."""
        path = site.directory / "webapp.py"
        changed = path.read_text().replace("version 1", "version 2")
        path.write_text(changed)
        for attempt in range(1, 7):  # uvicorn misses a change before it has looked at the file once
            later = path.stat().st_mtime + 2 * attempt  # some servers compare whole seconds
            os.utime(path, (later, later))
            with contextlib.suppress(AssertionError):
                wait_for_answer(lambda: get(site.url) == (200, "version 2"), 10)
                return
        raise AssertionError(site.log)

    def test_sigterm_ends_it_without_a_warning(self, name: str, tmp_path: Path) -> None:
        """The same for SIGTERM, as a supervisor sends it."""
        with running(SERVERS[name], tmp_path) as site:
            # A worker of gunicorn that is starting may miss it, and is killed after 30 seconds.
            site.process.terminate()
            site.process.wait(WAIT_TIMEOUT)
        assert "pending job(s)" not in site.log
