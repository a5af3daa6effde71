"""
The README works: its script runs, its commands cause an alert, its snippets are scraped.

Only addresses and intervals are replaced, so that tests can run at the same time.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.servers import free_port, get, running_process
from tests.helpers.waiting import wait_for_answer

README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    """Return the fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def block(language: str, part: str) -> str:
    """Return the only block of a language that contains `part`."""
    [found] = [text for text in blocks(language) if part in text]
    return found


def command(start: str) -> list[str]:
    """Return the words of the only command that starts in this way."""
    lines = [line for text in blocks("console") for line in text.splitlines()]
    [found] = [line[2:] for line in lines if line.startswith(f"$ {start}")]
    return shlex.split(found, comments=True)


@contextlib.contextmanager
def script(directory: Path) -> Iterator[int]:
    """Run the first Python block as a script, and return the port of its metrics."""
    port = free_port()
    text = block("python", "BlockingScheduler()")
    assert "start_http_server(9476)" in text
    assert text.count("seconds=10") == 2
    text = text.replace("9476", str(port)).replace("seconds=10", "seconds=1")
    (directory / "app.py").write_text(text)
    with running_process(
        [sys.executable, "app.py"], directory / "app.log", cwd=directory
    ) as process:
        wait_for_answer(lambda: get(f"http://127.0.0.1:{port}/metrics")[0] == 200)
        yield port
        assert process.poll() is None, (directory / "app.log").read_text()


@pytest.mark.once
class TestText:
    """The text of the README."""

    def test_python_compiles(self) -> None:
        """Each Python block can be parsed."""
        assert len(blocks("python")) == 3
        for text in blocks("python"):
            ast.parse(text)

    def test_developers_need_two_commands(self) -> None:
        """The README names `make demo` and `make test`, and no other target."""
        assert set(re.findall(r"make (\w+) ", "".join(blocks("console")))) == {"demo", "test"}


@pytest.mark.integration
class TestScript:
    """The first script of the README."""

    def test_keeps_running_and_shows_metrics(self, tmp_path: Path) -> None:
        """`curl` prints the README's series while the script keeps running."""
        shown = block("console", "$ curl").splitlines()
        assert shown[0] == "$ curl -s http://127.0.0.1:9476/metrics | grep 'outcome=\"error\"'"
        with script(tmp_path) as port:

            def printed() -> list[str]:
                _, page = get(f"http://127.0.0.1:{port}/metrics")
                return [line for line in page.splitlines() if 'outcome="error"' in line]

            def split(line: str) -> tuple[str, float]:
                series, _, count = line.rpartition(" ")
                return series, float(count)

            expected = [split(line) for line in shown[1:]]

            def has_as_many_errors() -> bool:
                found = [split(line) for line in printed()]
                names = [series for series, _ in found]
                assert names in ([], [series for series, _ in expected])  # none before a failure
                return bool(found) and found[0][1] >= expected[0][1]

            wait_for_answer(has_as_many_errors)
            assert [split(line)[1] for line in printed()[1:]] == [n for _, n in expected[1:]]
            assert get(f"http://127.0.0.1:{port}/health")[0] == 200


@pytest.mark.integration
class TestAlert:
    """The commands that lead from the script to an alert."""

    def test_commands_lead_to_the_alert(self, tmp_path: Path) -> None:
        """The commands start Prometheus and Alertmanager, and both show the alert."""
        for program in ("prometheus", "prometheus-alertmanager", "amtool"):
            if shutil.which(program) is None:
                pytest.skip(f"{program} is not installed")
        [config] = blocks("yaml")
        export = command("venv/bin/apscheduler-telemetry export")
        subprocess.run(
            [Path(sys.executable).parent / Path(export[0]).name, *export[1:]],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )
        ports = {"127.0.0.1:9090": free_port(), "127.0.0.1:9093": free_port()}

        def with_ports(words: list[str]) -> list[str]:
            for there, here in ports.items():
                words = [word.replace(there, f"127.0.0.1:{here}") for word in words]
            return words

        with script(tmp_path) as port:
            for there, here in (
                ("127.0.0.1:9476", f"127.0.0.1:{port}"),
                ("127.0.0.1:9093", f"127.0.0.1:{ports['127.0.0.1:9093']}"),
                ("_interval: 30s", "_interval: 1s"),
            ):
                assert there in config
                config = config.replace(there, here)
            (tmp_path / "prometheus.yml").write_text(config)
            with (
                running_process(
                    [
                        *with_ports(command("prometheus --config")),
                        # An alert that fires before Alertmanager is discovered is sent again soon.
                        "--rules.alert.resend-delay=1s",
                    ],
                    tmp_path / "prometheus.log",
                    cwd=tmp_path,
                ),
                running_process(
                    with_ports(command("prometheus-alertmanager")),
                    tmp_path / "alertmanager.log",
                    cwd=tmp_path,
                ),
            ):
                ask = with_ports(command("amtool alert"))

                def listed() -> list[str]:
                    done = subprocess.run(ask, capture_output=True, text=True, check=False)
                    return [line.split()[0] for line in done.stdout.splitlines()[1:]]

                expected = {"APSchedulerJobFailing", "APSchedulerWatchdog"}
                wait_for_answer(lambda: expected <= set(listed()), 90)
                wait_for_answer(lambda: "APSchedulerRunFailed" not in listed())
                self.check_page(f"http://127.0.0.1:{ports['127.0.0.1:9090']}")
            log = (tmp_path / "alertmanager.log").read_text()
            assert "data retention" not in log

    def check_page(self, url: str) -> None:
        """Debian's Prometheus shows the alert on the page that the README names for it."""
        assert "<http://127.0.0.1:9090/classic/alerts>" in README
        version = subprocess.run(
            ["prometheus", "--version"], capture_output=True, text=True, check=True
        )
        if "+ds" in version.stdout + version.stderr:  # Debian's sources, without the newer pages
            status, page = get(f"{url}/classic/alerts")
            assert (status, "APSchedulerJobFailing" in page) == (200, True)


@pytest.mark.integration
class TestWebApplications:
    """The snippets for Flask and FastAPI, in minimal applications."""

    APPLICATION = """
from apscheduler.schedulers.background import BackgroundScheduler
from {package} import {framework}

app = {framework}({arguments})
scheduler = BackgroundScheduler()
scheduler.add_job(print, "interval", seconds=1, id="tick")
{snippet}
scheduler.start()
"""

    def scrape(self, directory: Path, framework: str, server: list[str], text: str) -> None:
        """Run the application, and scrape the path that the README names."""
        comment = re.search(rf"# {framework} (?:.|\n)* metrics_path: (\S+)", text)
        assert comment is not None
        (directory / "webapp.py").write_text(text)
        port = free_port()
        with running_process(
            [sys.executable, "-m", *server, "--port", str(port)], directory / "log", cwd=directory
        ):

            def counted() -> bool:
                status, page = get(f"http://127.0.0.1:{port}{comment[1]}")
                assert status == 200, page
                return bool(re.search(r'runs_total\{job_id="tick",.*"success".*\} [1-9]', page))

            wait_for_answer(counted)
            assert (
                get(f"http://127.0.0.1:{port}{comment[1].replace('metrics', 'health')}")[0] == 200
            )

    def test_flask(self, tmp_path: Path) -> None:
        """`flask run` has the port of the README, and its metrics path answers with the metrics."""
        cli = pytest.importorskip("flask.cli")
        [port] = [option.default for option in cli.run_command.params if option.name == "port"]
        assert f"started by `flask run`: scrape port {port} with metrics_path: /metrics" in README
        text = self.APPLICATION.format(
            package="flask",
            framework="Flask",
            arguments="__name__",
            snippet=block("python", "wsgi_app"),
        )
        self.scrape(tmp_path, "Flask", ["flask", "--app", "webapp", "run"], text)

    def test_fastapi(self, tmp_path: Path) -> None:
        """`uvicorn` has the port of the README, and its metrics path answers with the metrics."""
        pytest.importorskip("fastapi")
        uvicorn = pytest.importorskip("uvicorn")
        port = inspect.signature(uvicorn.Config).parameters["port"].default
        assert f"# scrape port {port} with metrics_path: /telemetry/metrics" in README
        [entry] = re.findall(r"`- (\{job_name: .*\})`", README)
        assert "metrics_path: /telemetry/metrics, " in entry
        assert f"'127.0.0.1:{port}'" in entry
        text = self.APPLICATION.format(
            package="fastapi",
            framework="FastAPI",
            arguments="",
            snippet=block("python", "asgi_app"),
        )
        self.scrape(tmp_path, "FastAPI", ["uvicorn", "webapp:app"], text)
