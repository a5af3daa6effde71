"""
Contenders in processes of their own, and the two ways to measure them: clock and instructions.

Each process reads how many passes it is to run, a line at a time, and answers with the seconds of
CPU time of a run. Between two lines it waits, which is when counting is switched on and off.
"""

import gc
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .rows import Row
from .workloads import Workload

PROGRAM = Path(__file__).parent.parent / "runs.py"


class NotCountedError(Exception):
    """There is valgrind, and yet no instructions are counted."""


class Process:
    """
    A contender in its own process, which runs passes on request.

    Args:
        row: What it runs.
        name: The contender's name.
        before: The program, such as valgrind, that runs it.
        hash_seed: What the layout of memory depends on, and so how often caches miss.
    """

    def __init__(self, row: Row, name: str, *before: str, hash_seed: int = 0) -> None:
        self.name = name
        child = [str(PROGRAM), "--jobs", str(row.jobs), "--child", row.name, name]
        self._process = subprocess.Popen(
            [*before, sys.executable, *row.launcher, *child],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if before else None,  # valgrind talks a lot
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": self._path()},
            text=True,
        )
        self.pids = [int(pid) for pid in self._answer().split()]
        """The process and its workers."""
        self.run(row.warm_up_passes)

    def run(self, passes: int) -> float:
        """Let it run so many passes; return its seconds of CPU time for each run."""
        print(passes, file=self._process.stdin, flush=True)
        return float(self._answer())

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()

    @staticmethod
    def _path() -> str:
        # gevent's launcher does not add the program's directory, as Python does.
        return os.pathsep.join(filter(None, [str(PROGRAM.parent), os.environ.get("PYTHONPATH")]))

    def _answer(self) -> str:
        for line in self._process.stdout or ():
            return line
        raise ChildProcessError(self.name)


def serve(workload: Workload) -> None:
    """Be such a process: each line of standard input is a number of passes to run."""
    workload.run_pass()
    gc.collect()
    gc.freeze()  # so that no full collection falls into a turn by chance
    print(os.getpid(), *workload.driver.worker_pids(), flush=True)
    for line in sys.stdin:
        seconds = [workload.run_pass() for _ in range(int(line))]
        print(statistics.fmean(seconds), flush=True)
    workload.driver.close()


def measure_seconds(row: Row, names: Sequence[str], repeat: int) -> dict[str, float]:
    """Return the seconds of CPU time for each run, by contender."""
    processes = [Process(row, name) for name in names]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeat):
        random.shuffle(processes)
        for process in processes:
            process.run(1)  # for the processor's caches
            seconds[process.name].append(process.run(row.passes))
    for process in processes:
        process.end()
    return {name: statistics.median(values) for name, values in seconds.items()}


def count_instructions(
    control: str, row: Row, names: Sequence[str], hash_seeds: Sequence[int]
) -> dict[str, float]:
    """
    Return the instructions for each run as callgrind counts them, by contender.

    A count repeats itself but for a few instructions, and yet names that share a place in one of
    Python's caches by chance have cost 10,000 instructions a run. Such accidents only add, and
    differ between seeds, so that the lowest count is taken.

    Args:
        control: The path of callgrind_control.
        row: What is run.
        names: The contenders.
        hash_seeds: Each contender is counted once for each of them.

    Raises:
        NotCountedError: callgrind cannot be asked, as where no process may trace another.
    """

    def count_one(name: str, hash_seed: int) -> float:
        with tempfile.TemporaryDirectory() as directory:
            out = Path(directory) / "out"
            valgrind = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}.%p"]
            try:
                options = ("--instr-atstart=no", "--trace-children=yes")
                process = Process(row, name, *valgrind, *options, hash_seed=hash_seed)
                for switch in ("on", "off"):
                    for pid in process.pids:
                        command = [control, f"--instr={switch}", str(pid)]
                        subprocess.run(command, check=True, capture_output=True)
                    if switch == "on":
                        process.run(row.counted_passes)
                process.end()
                totals = [_total(out.with_name(f"out.{pid}")) for pid in process.pids]
            except (
                ChildProcessError,
                BrokenPipeError,
                FileNotFoundError,
                subprocess.CalledProcessError,
            ) as error:
                raise NotCountedError from error
        if not all(totals):
            raise NotCountedError
        return sum(totals) / row.counted_passes / row.runs_per_pass

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        tasks = [(name, seed) for name in names for seed in hash_seeds]
        counts = list(threads.map(count_one, *zip(*tasks, strict=True)))
    lowest: dict[str, float] = {}
    for (name, _), instructions in zip(tasks, counts, strict=True):
        lowest[name] = min(instructions, lowest.get(name, instructions))
    return lowest


def _total(out: Path) -> int:
    [line] = [line for line in out.read_text().splitlines() if line.startswith("totals:")]
    return int(line.split()[1])
