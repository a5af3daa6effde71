"""Every scheduler and executor of APScheduler 3, at home: see `matrix.table`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import entry_points

import pytest

from tests.executors.matrix import table as matrix
from tests.executors.matrix.table import BROKEN, CELLS, WORLDS, Cell
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.slow  # together; a single cell takes a tenth of a second

DOCS = ROOT / "docs" / "schedulers.md"
PATCH = "from gevent import monkey; monkey.patch_all(); "


class Plays:
    """The worlds, each played once, two at a time."""

    def __init__(self, worlds: list[str]) -> None:
        self._pool = ThreadPoolExecutor(2)
        self._played = {
            world: self._pool.submit(play, world) for world in worlds if not matrix.missing(world)
        }

    def of(self, world: str) -> Mapping[str, str | None]:
        """Return what came of a world, by cell and fault; skip the test where it cannot be."""
        if libraries := matrix.missing(world):
            pytest.skip(f"not installed: {', '.join(libraries)}")
        played: Future[Mapping[str, str | None]] = self._played[world]
        return played.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def play(world: str) -> Mapping[str, str | None]:
    """Play one world in a process of its own."""
    patch = PATCH if "patched" in world else ""
    code = f"{patch}from tests.executors.matrix import play; play.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, world],
        cwd=ROOT,  # from where children of process pools find their jobs as well
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results: Mapping[str, str | None] = json.loads(done.stdout)
    return results


@pytest.fixture(scope="module")
def plays(request: pytest.FixtureRequest) -> Iterator[Plays]:
    """Play the worlds that the selected tests ask for."""
    selected = {
        getattr(getattr(item, "callspec", None), "params", {}).get("world")
        for item in request.session.items
        if item.path == request.path
    }
    plays = Plays([world for world in WORLDS if world in selected])
    yield plays
    plays.close()


class TestMatrix:
    """Each behaviour of each kind of callable on each executor of each scheduler."""

    @pytest.mark.parametrize(("world", "cell"), [(c.world, c) for c in CELLS], ids=str)
    def test_each_cell_behaves_as_the_table_says(
        self, plays: Plays, world: str, cell: Cell
    ) -> None:
        """It is as `BEHAVIOURS` says, or cannot be, as `IMPOSSIBLE` says, and that is shown."""
        failure = plays.of(world)[str(cell)]
        assert failure is None, failure


class TestDeadLoops:
    """`apscheduler_scheduler_up` and `/health` of each scheduler whose loop died."""

    @pytest.mark.parametrize(("world", "fault"), BROKEN)
    def test_each_dead_loop_is_reported(self, plays: Plays, world: str, fault: str) -> None:
        """It is as `FAULTS` says."""
        failure = plays.of(world)[f"{world}: {fault}"]
        assert failure is None, failure


class TestCompleteness:
    """Nothing is left out."""

    def test_no_library_is_missing(self) -> None:
        """Where slow tests run, everything that a world needs is installed."""
        assert not [name for world in WORLDS for name in matrix.missing(world)]

    @pytest.mark.parametrize("kind", ["schedulers", "executors"])
    def test_every_scheduler_and_executor_of_apscheduler_is_played(self, kind: str) -> None:
        """Each scheduler and executor that APScheduler knows by name is played."""
        known = {entry.name for entry in entry_points(group=f"apscheduler.{kind}")}
        executors = {executor for _, rows, _ in WORLDS.values() for executor, _ in rows}
        assert known == known & (WORLDS.keys() if kind == "schedulers" else executors)

    def test_each_impossible_entry_is_about_cells_of_the_table(self) -> None:
        """Each entry of the table of what cannot be is about cells that there are."""
        used = {
            (cell.behaviour, name)
            for cell in CELLS
            if cell.impossible
            for name in (cell.executor, cell.kind)
        }
        assert matrix.IMPOSSIBLE.keys() <= used

    def test_table_in_the_docs_is_that_of_the_matrix(self) -> None:
        """The table of the manual is that of the matrix."""
        told = [line for line in DOCS.read_text().splitlines() if line.startswith("|")]
        assert list(matrix.table()) == told[: len(list(matrix.table()))]
