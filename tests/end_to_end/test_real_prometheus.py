"""An instrumented application, scraped by a real Prometheus and read back through its API."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import APPLICATIONS, ROOT
from tests.helpers.servers import (
    Prometheus,
    get,
    prometheus,
    required_program,
    running_process,
)
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def binary() -> str:
    """Return the path of Prometheus; a machine without it cannot run these tests."""
    return required_program("prometheus")


@pytest.fixture(scope="module")
def scraped(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Run the application and a Prometheus that scrapes it."""
    directory = tmp_path_factory.mktemp("scraped")
    process = subprocess.Popen(
        [sys.executable, APPLICATIONS / "scraped.py"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port = process.stdout.readline().strip()
    try:
        with prometheus(binary, directory, [f"127.0.0.1:{port}"]) as server:
            yield server
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()


class TestScrape:
    """Scrapes of `/metrics` by a real Prometheus."""

    def test_prometheus_accepts_the_exposition(self, scraped: Prometheus) -> None:
        """Prometheus scrapes the exposition without an error."""
        wait_for_answer(lambda: scraped.value("up") == 1)
        [target] = scraped.api("targets")["activeTargets"]
        assert target["lastError"] == ""

    def test_runs_arrive_under_their_outcome(self, scraped: Prometheus) -> None:
        """Runs have their outcome as a label, besides the labels of Prometheus."""
        query = 'apscheduler_job_runs_total{job_id="ok",outcome="success"}'
        wait_for_answer(lambda: scraped.value(query) >= 2)
        [(labels, _)] = scraped.query(query)
        assert labels["job"] == "app"
        assert labels["instance"].startswith("127.0.0.1:")
        assert labels["scheduler"] == "default"
        wait_for_answer(
            lambda: scraped.value(query.replace("ok", "fails").replace("success", "error"))
        )
        wait_for_answer(
            lambda: scraped.value(query.replace("ok", "killed").replace("success", "lost"))
        )

    def test_due_runs_of_a_regular_job_match_its_lifetime(self, scraped: Prometheus) -> None:
        """The number of due runs is the lifetime divided by the interval, within two."""
        runs = 'sum(apscheduler_job_runs_total{job_id="ok"})'
        wait_for_answer(lambda: scraped.value(runs) >= 10)
        # In one query, so that all numbers are of one scrape. The lifetime is up to the latest
        # pass, as a pass may be late on a busy machine, and finds what was due meanwhile.
        first = "sum(apscheduler_scheduler_start_timestamp_seconds)"
        latest = "sum(apscheduler_scheduler_last_wakeup_timestamp_seconds)"
        assert scraped.value(f"{runs} - ({latest} - {first}) / 0.5") == pytest.approx(0, abs=2)

    def test_quantiles_are_near_the_duration_of_the_job(self, scraped: Prometheus) -> None:
        """The 95th percentile of durations is near the duration of the job."""
        query = (
            "histogram_quantile(0.95, sum by (le)"
            ' (rate(apscheduler_job_run_duration_seconds_bucket{job_id="ok"}[30s])))'
        )
        assert wait_for_answer(lambda: 0.005 <= scraped.value(query) <= 0.25)

    def test_run_with_a_span_leaves_an_exemplar(self, scraped: Prometheus) -> None:
        """A run with a recording span adds its trace id to the histogram as an exemplar."""

        def exemplars() -> list[dict[str, str]]:
            found = scraped.api(
                "query_exemplars",
                query="apscheduler_job_run_duration_seconds_bucket",
                start=str(time.time() - 60),
                end=str(time.time() + 60),
            )
            return [e["labels"] for series in found for e in series["exemplars"]]

        [labels, *_] = wait_for_answer(exemplars)
        assert re.fullmatch("[0-9a-f]{32}", labels["trace_id"])
        assert re.fullmatch("[0-9a-f]{16}", labels["span_id"])

    def test_next_runs_are_comparable_with_the_clock_of_prometheus(
        self, scraped: Prometheus
    ) -> None:
        """The time of the next run is close to Prometheus' own time."""
        query = 'apscheduler_job_next_run_timestamp_seconds{job_id="ok"} - time()'
        wait_for_answer(lambda: -5 < scraped.value(query) < 5)


class TestDemo:
    """The program of `make demo`."""

    def run(self, seconds: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "DEMO_SECONDS": seconds, "COLUMNS": "80"}
        if path is not None:
            environment["PATH"] = path
        return subprocess.run(
            [sys.executable, ROOT / "examples" / "demo" / "run.py"],
            env=environment,
            stdin=subprocess.DEVNULL,  # so that no terminal sets the width of the tables
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def test_demo_shows_everything_and_exits_with_0(self, binary: str) -> None:
        """The demo shows all that it should, in plain lines of at most 80 characters."""
        done = self.run("45")  # it needs about 30 seconds where the machine is not busy
        assert done.returncode == 0, done.stdout + done.stderr
        assert "FAILED" not in done.stdout
        assert "is too short" not in done.stdout
        assert done.stderr == ""
        assert "\x1b" not in done.stdout
        lines = done.stdout.splitlines()
        assert max(map(len, lines)) <= 80
        assert sum(line.startswith("JOB ") for line in lines) > 5  # one in five seconds
        assert "ok      APSchedulerJobFailing resolves" in lines
        # In the report, as the alert fires for a few seconds, which can be between two tables.
        assert any(
            re.fullmatch(
                "APSchedulerJobFailing +critical +background/import-orders +resolved", each
            )
            for each in lines
        )
        assert any(
            re.match(r"demo: \d+ of \d+ due runs succeeded, \d+ alerts", each) for each in lines
        )
        assert re.fullmatch(r"(\d+) of \1 were seen\.", lines[-1])

    def test_demo_that_is_too_short_does_not_exit_with_0(self, binary: str) -> None:
        """If the time is too short, the demo says how much it needs, and exits with 1."""
        done = self.run("1")
        assert done.returncode == 1
        assert "FAILED" in done.stdout
        first, *_, last = done.stdout.splitlines()
        assert first == "DEMO_SECONDS=1 is too short. The demo needs about 30 seconds."
        assert last == "DEMO_SECONDS=1 was too short. The demo needs about 30 seconds."

    def test_demo_without_prometheus_reads_the_metrics_itself(self, tmp_path: Path) -> None:
        """Without Prometheus the demo says so, and reads /metrics itself."""
        done = self.run("30", path=str(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Prometheus    is not installed" in done.stdout
        assert "No report of this run" in done.stdout

    def test_invalid_length_is_refused(self) -> None:
        """An invalid DEMO_SECONDS is an error of one line."""
        done = self.run("soon")
        assert done.returncode == 1
        assert done.stderr.strip() == (
            "DEMO_SECONDS must be a number of seconds above 0, got 'soon'"
        )

    def test_ctrl_c_ends_all_processes_of_the_demo(self, tmp_path: Path) -> None:
        """The printed addresses respond, and Ctrl-C ends all processes that the demo started."""
        log = tmp_path / "log"
        command: list[str | Path] = [sys.executable, ROOT / "examples" / "demo" / "run.py"]
        with running_process(command, log, env={**os.environ, "DEMO_SECONDS": "100"}) as process:
            wait_for_answer(lambda: "Press Ctrl-C" in log.read_text())
            addresses = re.findall(r"http://\S+", log.read_text())
            assert len(addresses) == 5
            for address in addresses:
                assert get(address.partition("#")[0])[0] == 200, address
            children = descendants(process.pid)
            assert children
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert "Stopped." in log.read_text()
            wait_for_answer(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


def descendants(pid: int) -> list[int]:
    """Return the processes that `pid` started, and those that they started."""
    found = []
    with contextlib.suppress(OSError):  # the process has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # the thread has ended
                for child in (task / "children").read_text().split():
                    found += [int(child), *descendants(int(child))]
    return found
