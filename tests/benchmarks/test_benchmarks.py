"""The benchmarks work; how fast they are is not tested."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
ROWS = re.findall(r' name="([^"]+)"', (BENCHMARKS / "run_cost" / "rows.py").read_text("utf-8"))

COMPARED = ("--repeat", "1", "--clocks", "--contenders", "bare", "listener", "metrics")


def measure(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Measure next to nothing; still, each contender of each row starts a process."""
    command = [sys.executable, str(BENCHMARKS / "runs.py"), "--jobs", "3", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
class TestBenchmarks:
    """The programs that `make bench` runs."""

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (("stress.py", "--seconds", "0.5", "--repeat", "1"), "a second, "),
            (("scrapes.py", "--jobs", "10", "--repeat", "2"), "OpenMetrics  100%"),
            (("interference.py", "--jobs", "10", "--seconds", "0.5"), "asyncio      10"),
            (
                (
                    *("hostile_clients.py", "--servers", "theirs"),
                    *("--jobs", "10", "--clients", "5", "--seconds", "1"),
                ),
                "survivors",
            ),
            (("memory.py", "--jobs", "20", "--repeat", "1"), "start with 20 stored jobs, with us"),
        ],
        ids=lambda value: value[0] if isinstance(value, tuple) else "",
    )
    def test_benchmarks_run_to_their_end_and_print_results(
        self, arguments: tuple[str, ...], expected: str
    ) -> None:
        """Each program ends with status 0 and prints its results."""
        pytest.importorskip("time_machine")
        pytest.importorskip("sqlalchemy")
        script, *rest = arguments
        command = [sys.executable, str(BENCHMARKS / script), *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, expected in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
class TestHostileClients:
    """`hostile_clients.py`, whose target is one of memory and not of speed."""

    @pytest.mark.parametrize("server", ["ours", "wsgi", "asgi"])
    def test_silent_clients_stay_below_the_target(self, server: str) -> None:
        """250 clients that do not read the metrics of 1,000 jobs take at most 60 MB."""
        pytest.importorskip("werkzeug")
        pytest.importorskip("uvicorn")
        self.check_target("silent", server)

    @pytest.mark.parametrize("server", ["ours", "wsgi", "asgi"])
    def test_silent_clients_that_share_nothing_stay_below_the_target(self, server: str) -> None:
        """The same clients take no more if each requests other metrics by ``name[]``."""
        pytest.importorskip("werkzeug")
        pytest.importorskip("uvicorn")
        self.check_target("subsets", server)

    def test_large_headers_stay_below_the_target(self) -> None:
        """Our server grows by at most 60 MB if each of 250 clients sends 1 MB of headers."""
        self.check_target("headers", "ours")

    @staticmethod
    def check_target(attack: str, server: str) -> None:
        few = ("--attacks", attack, "--servers", server, "--seconds", "3")
        command = [sys.executable, str(BENCHMARKS / "hostile_clients.py"), *few]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def judged() -> subprocess.CompletedProcess[str]:
    """Every row, measured in one process."""
    pytest.importorskip("opentelemetry.sdk")
    for framework in ("gevent", "tornado", "twisted"):
        pytest.importorskip(framework)
    return measure(*COMPARED)


@pytest.mark.slow
@pytest.mark.timeout(320)  # on a busy machine
class TestRuns:
    """`runs.py`, which has a row for each executor and scheduler that it compares."""

    @pytest.mark.parametrize("row", ROWS)
    def test_verdict_follows_from_the_ratio(
        self, row: str, judged: subprocess.CompletedProcess[str]
    ) -> None:
        """A row is said to be met if the ratio that is printed is not above the target."""
        pattern = rf"^{row} .* - +([\d.]+) +(met|MISSED) +(-?[\d.]+)$"
        [verdict] = re.findall(pattern, judged.stdout, re.MULTILINE) or [pytest.fail(judged.stderr)]
        target, word, ratio = float(verdict[0]), verdict[1], float(verdict[2])
        if ratio != target:  # or rounding hides which one is larger
            assert (ratio > target) == (word == "MISSED")

    def test_exit_status_follows_from_the_verdicts(
        self, judged: subprocess.CompletedProcess[str]
    ) -> None:
        """The exit status is 1 if any target is missed, of all rows or of one."""
        one = measure("--only-rows", "gevent-100", *COMPARED)
        for row, done in (("add-job-cron", judged), ("gevent-100", one)):
            assert row in done.stdout, done.stderr
            assert ("MISSED" in done.stdout) == (done.returncode == 1)

    @pytest.mark.skipif(shutil.which("callgrind_control") is None, reason="there is no valgrind")
    def test_instructions_of_process_and_pool_worker_are_counted(self) -> None:
        """Instructions of the process and of a pool's worker are counted."""
        pytest.importorskip("opentelemetry.sdk")
        row = "process-pool-100"
        bare = ("--instructions", "--hash-seeds", "0", "--contenders", "bare")
        done = measure("--only-rows", row, *bare)  # of which valgrind takes half a minute
        if "valgrind cannot be controlled" in done.stdout:
            pytest.skip("no process may trace another one here")
        counts = re.findall(rf"^{row} .* (\d+) instructions", done.stdout, re.MULTILINE)
        assert (len(counts), all(map(int, counts))) == (1, True), done.stdout + done.stderr

    def test_unknown_row_is_refused(self) -> None:
        """An unknown name of a row is an error, before anything is measured."""
        pytest.importorskip("opentelemetry.sdk")
        command = [sys.executable, str(BENCHMARKS / "runs.py"), "--contenders", "metric"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert (done.returncode, "'metric' is no contender" in done.stderr) == (2, True)
