"""
What a run costs more when it is watched: ours beside what people use, in one run.

Usage: runs.py [--only-rows NAME ...] [--contenders NAME ...] [--clocks | --instructions]

There is a row for every way of running jobs (`run_cost/rows.py`). Every contender has a process of
its own, as an application has but one, with a scheduler and the same no-op jobs. A pass makes all
its jobs due and runs them. The contenders take turns, in an order that is drawn anew each time, so
that a slow moment of the machine hits all alike. CPU time, which leaves out what other processes
do, is the median over the turns. Where there is valgrind, instructions are counted as well, and
targets are judged by them, as clocks are noisy. The exit status is 1 if a target is missed.
"""

import argparse
import dataclasses
import shutil
import sys

from apscheduler.schedulers import base
from run_cost.contenders import contender
from run_cost.drivers import Frozen
from run_cost.processes import NotCountedError, count_instructions, measure_seconds, serve
from run_cost.report import Result, Verdict, judge_sdk, table
from run_cost.rows import MANY, ROWS, Row


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--only-rows", nargs="+", choices=ROWS, metavar="NAME", default=list(ROWS))
    parser.add_argument(
        "--contenders",
        nargs="+",
        metavar="NAME",
        help="instead of those of each row; module:function is one, too",
    )
    parser.add_argument("--repeat", type=int, default=20, help="how many turns by the clock")
    parser.add_argument(
        "--jobs", type=int, default=MANY, help=f"how many are due where it is {MANY}"
    )
    parser.add_argument(
        "--hash-seeds",
        nargs="+",
        type=int,
        metavar="SEED",
        default=[0, 1],
        help="count each contender with each seed, and take the lowest; one halves the time",
    )
    measures = parser.add_mutually_exclusive_group()
    measures.add_argument("--clocks", action="store_true", help="count no instructions")
    measures.add_argument("--instructions", action="store_true", help="take no time")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        for name in options.contenders or ():
            contender(name)
    except (ValueError, ImportError, AttributeError) as error:
        parser.error(str(error))
    return options


def measure(row: Row, options: argparse.Namespace) -> Result:
    """Measure a row by what was asked for, and print what each contender costs."""
    names = options.contenders or row.contenders
    result = Result(row=row)
    if not options.instructions:
        result = dataclasses.replace(result, seconds=measure_seconds(row, names, options.repeat))
    control = None if options.clocks else shutil.which("callgrind_control")
    if control is not None:
        try:
            counts = count_instructions(control, row, names, options.hash_seeds)
        except NotCountedError:  # as where no process may trace another
            print(f"{row.name:20} valgrind cannot be controlled here, so no instructions")
            if options.instructions:
                sys.exit(2)
        else:
            result = dataclasses.replace(result, instructions=counts)
    for line in result.costs():
        print(line, flush=True)
    return result


def main() -> int:
    """Print the tables; the exit status is 1 if a target is missed."""
    options = parse()
    if options.child:
        base.datetime = Frozen
        row, name = options.child
        serve(ROWS[row].workload(name, jobs=options.jobs))
        return 0
    if options.instructions and not shutil.which("callgrind_control"):
        print("Instructions are counted by valgrind; install it, or measure with --clocks.")
        return 2
    missed = False
    verdicts: list[Verdict] = []
    remarks: list[str] = []
    for name in options.only_rows:
        row = ROWS[name]
        if row.jobs == MANY:
            row = dataclasses.replace(row, jobs=options.jobs)
        result = measure(row, options)
        verdicts.extend(result.verdicts())
        sdk = judge_sdk(result)
        if sdk is not None:
            remarks.append(sdk[0])
            missed |= sdk[1]
    print("\nInstructions for each run or call, and the targets")
    for line in (*table(verdicts), *remarks):
        print(line)
    missed |= not all(verdict.is_met for verdict in verdicts)
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
