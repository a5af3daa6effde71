"""Every scheduler and executor of APScheduler 3, in the runtime it is made for: `matrix.table`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import entry_points

import pytest

from tests.executors.matrix import table as matrix
from tests.executors.matrix.table import BROKEN, CELLS, RUNTIMES, Cell
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # together; a single cell takes a tenth of a second

DOCS = ROOT / "docs" / "schedulers.md"
PATCH = "from gevent import monkey; monkey.patch_all(); "


class Results:
    """The results of the runtimes. Each is run once, two at a time."""

    def __init__(self, runtimes: list[str]) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._reports = {
            runtime: self._pool.submit(run_in_process, runtime)
            for runtime in runtimes
            if not matrix.missing(runtime)
        }

    def of(self, runtime: str) -> Mapping[str, str | None]:
        """Return the failures of a runtime by cell and fault; skip if a library is missing."""
        if libraries := matrix.missing(runtime):
            pytest.skip(f"not installed: {', '.join(libraries)}")
        report: Future[Mapping[str, str | None]] = self._reports[runtime]
        return report.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def run_in_process(runtime: str) -> Mapping[str, str | None]:
    """Run a runtime in a process of its own."""
    patch = PATCH if "patched" in runtime else ""
    code = f"{patch}from tests.executors.matrix import runner; runner.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, runtime],
        cwd=ROOT,  # where children of process pools find the modules of their jobs
        # A copy, as this is a thread, and pytest changes the variables at each test: once the
        # kernel refused to start a program ("Bad address").
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: Mapping[str, str | None] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def results(request: pytest.FixtureRequest) -> Iterator[Results]:
    """Run the runtimes of the selected tests."""
    selected = {
        getattr(getattr(item, "callspec", None), "params", {}).get("runtime")
        for item in request.session.items
        if item.path == request.path
    }
    results = Results([runtime for runtime in RUNTIMES if runtime in selected])
    yield results
    results.close()


class TestMatrix:
    """Each behaviour of each kind of callable on each executor of each scheduler."""

    @pytest.mark.parametrize(("runtime", "cell"), [(c.runtime, c) for c in CELLS], ids=str)
    def test_each_cell_behaves_as_the_table_says(
        self, results: Results, runtime: str, cell: Cell
    ) -> None:
        """It behaves as `BEHAVIOURS` says, or it is impossible for the reason in `IMPOSSIBLE`."""
        failure = results.of(runtime)[str(cell)]
        assert failure is None, failure


class TestDeadLoops:
    """`apscheduler_scheduler_up` and `/health` of each scheduler whose loop has stopped."""

    @pytest.mark.parametrize(("runtime", "fault"), BROKEN)
    def test_each_dead_loop_is_reported(self, results: Results, runtime: str, fault: str) -> None:
        """It is reported as `FAULTS` says."""
        failure = results.of(runtime)[f"{runtime}: {fault}"]
        assert failure is None, failure


class TestCompleteness:
    """The matrix is complete."""

    def test_no_library_is_missing(self) -> None:
        """All libraries are installed where slow tests run."""
        assert not [name for runtime in RUNTIMES for name in matrix.missing(runtime)]

    @pytest.mark.parametrize("kind", ["schedulers", "executors"])
    def test_every_scheduler_and_executor_of_apscheduler_is_tested(self, kind: str) -> None:
        """Each scheduler and executor that APScheduler registers by name is tested."""
        known = {entry.name for entry in entry_points(group=f"apscheduler.{kind}")}
        executors = {executor for _, rows, _ in RUNTIMES.values() for executor, _ in rows}
        assert known == known & (RUNTIMES.keys() if kind == "schedulers" else executors)

    def test_each_impossible_entry_is_about_cells_of_the_table(self) -> None:
        """Each entry of `IMPOSSIBLE` refers to cells of the matrix."""
        used = {
            (cell.behaviour, name)
            for cell in CELLS
            if cell.impossible
            for name in (cell.executor, cell.kind)
        }
        assert matrix.IMPOSSIBLE.keys() <= used

    def test_table_in_the_docs_is_that_of_the_matrix(self) -> None:
        """The table in the manual is that of the matrix."""
        documented = [line for line in DOCS.read_text().splitlines() if line.startswith("|")]
        assert list(matrix.table()) == documented[: len(list(matrix.table()))]
