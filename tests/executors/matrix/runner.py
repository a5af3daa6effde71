"""
Run all cells and faults of one runtime, in a process of its own.

    python -c 'from tests.executors.matrix import runner; runner.main()' RUNTIME

Each runtime needs its own process, because monkey patches, a Twisted reactor and a Qt application
cannot be removed from a process. The output is a line of JSON: for each cell and fault the
traceback of its failure, or null if it passed.
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
from tests.executors.matrix.behaviours import CHECKS, IMPOSSIBILITY_CHECKS, Harness, check_of
from tests.executors.matrix.dead_loops import FAULT_CHECKS, LATE
from tests.executors.matrix.schedulers import RUNTIMES


class Report:
    """The results of cells and faults."""

    def __init__(self) -> None:
        self.results: dict[str, str | None] = {}

    @contextmanager
    def recording(self, name: str) -> Iterator[None]:
        """Record under a name whether the block passes, or how it fails."""
        self.results[name] = "did not finish"
        try:
            yield
        except Exception:  # noqa: BLE001  # recorded, so that the other cells run
            self.results[name] = traceback.format_exc()
        else:
            self.results[name] = None


def run(name: str, report: Report) -> None:
    """Run all cells and faults of a runtime."""
    runtime = RUNTIMES[name]()

    def main() -> None:
        rows = matrix.RUNTIMES[name].rows
        cells = [cell for cell in matrix.CELLS if cell.runtime == name]
        for executor, kind in rows:
            # Each executor has its own scheduler, so that a failure does not affect the next one.
            scheduler = runtime.scheduler(executors={executor: runtime.executor(executor)})
            with tempfile.TemporaryDirectory() as directory:
                harness = Harness(runtime, scheduler, directory)
                runtime.start(scheduler)
                for cell in cells:
                    if (cell.executor, cell.kind) == (executor, kind):
                        with report.recording(str(cell)):
                            check_of(cell)(harness, cell)
                            harness.check_after_cell()
                harness.stop()

        # Report loops as overdue sooner, so that no test waits for ten seconds.
        _loop.OVERDUE_SECONDS = LATE
        for fault in matrix.RUNTIMES[name].faults:
            with report.recording(f"{name}: {fault}"):
                check_after_loop = FAULT_CHECKS[fault](runtime)
                if check_after_loop is not None:
                    checks_after_loop.append((f"{name}: {fault}", check_after_loop))

    checks_after_loop: list[tuple[str, Callable[[], None]]] = []
    runtime.run(main)
    for fault, check in checks_after_loop:
        with report.recording(fault):
            check()


def main() -> None:
    """Run the runtime that the command line names."""
    assert CHECKS.keys() == matrix.BEHAVIOURS.keys()
    assert IMPOSSIBILITY_CHECKS.keys() == matrix.IMPOSSIBLE.keys()
    assert FAULT_CHECKS.keys() == matrix.FAULTS.keys()
    logger = logging.getLogger("apscheduler")
    logger.setLevel(logging.INFO)  # the level of the line in which the cell "lost" fails
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    report = Report()
    run(sys.argv[1], report)
    sys.stdout.write(json.dumps(report.results))
