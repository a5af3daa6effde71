"""
Play one scheduler of the matrix in a process of its own.

    python -c 'from tests.executors.matrix import play; play.main()' WORLD

It has to be its own: monkey patches, a reactor and a Qt application are there once per process
and for good. Prints a line of JSON: the traceback of what went wrong, by cell and fault, None
where all was well.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from apscheduler_telemetry.adapters.apscheduler3 import loop_liveness as _loop
from tests.executors.matrix import table as matrix
from tests.executors.matrix.behaviours import PLAYS, PROOFS, Stage, play_of
from tests.executors.matrix.dead_loops import BREAKS, LATE
from tests.executors.matrix.schedulers import WORLDS


class Played:
    """What came of cells and faults."""

    def __init__(self) -> None:
        self.results: dict[str, str | None] = {}

    @contextmanager
    def told(self, name: str) -> Iterator[None]:
        self.results[name] = "did not come to its end"
        try:
            yield
        except Exception:  # noqa: BLE001  # told, so that the others are played
            self.results[name] = traceback.format_exc()
        else:
            self.results[name] = None


def play(name: str, played: Played) -> None:
    """Play all cells and faults of a world."""
    world = WORLDS[name]()

    def main() -> None:
        rows = matrix.WORLDS[name].rows
        cells = [cell for cell in matrix.CELLS if cell.world == name]
        for executor, kind in rows:
            # Each with its own scheduler, so that one cannot spoil the next.
            scheduler = world.scheduler(executors={executor: world.executor(executor)})
            with tempfile.TemporaryDirectory() as directory:
                stage = Stage(world, scheduler, directory)
                world.start(scheduler)
                for cell in cells:
                    if (cell.executor, cell.kind) == (executor, kind):
                        with played.told(str(cell)):
                            play_of(cell)(stage, cell)
                            stage.settle()
                stage.stop()

        # Loops that are late are so sooner, as no test is to wait for it.
        _loop.OVERDUE_SECONDS = LATE
        for fault in matrix.WORLDS[name].faults:
            with played.told(f"{name}: {fault}"):
                then = BREAKS[fault](world)
                if then is not None:
                    afterwards.append((f"{name}: {fault}", then))

    afterwards: list[tuple[str, Callable[[], None]]] = []
    world.run(main)
    for fault, then in afterwards:
        with played.told(fault):
            then()


def main() -> None:
    """Play the world that the command line names."""
    assert PLAYS.keys() == matrix.BEHAVIOURS.keys()
    assert PROOFS.keys() == matrix.IMPOSSIBLE.keys()
    assert BREAKS.keys() == matrix.FAULTS.keys()
    logger = logging.getLogger("apscheduler")
    logger.setLevel(logging.INFO)  # or the fault in the log would have no line to fail in
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    played = Played()
    play(sys.argv[1], played)
    sys.stdout.write(json.dumps(played.results))
