"""
``apscheduler-telemetry runs``: list the latest runs of a running process.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from apscheduler_telemetry.cli.client import (
    add_process_parser,
    complete_url,
    fetch_json,
    read_token,
)
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.output import max_line_width, write_json, write_output
from apscheduler_telemetry.cli.table import format_duration, format_table, format_time

DEFAULT_LIMIT = 100
"""Runs; as many as ``/runs`` lists by default."""
MAX_RUNS_PER_PAGE = 1_000
"""Runs that ``/runs`` lists at most in one response."""

_URL_ADVICE = "Pass the address of the application's telemetry, which has no runs with history=0"
_TABLE_HEADER = ("SCHEDULED", "STARTED", "DURATION", "OUTCOME", "JOB", "ERROR")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = add_process_parser(
        commands,
        "runs",
        run_runs_command,
        summary="list the latest runs of a running process",
        description="List the latest runs of a running process, the latest first; times are UTC.",
        epilog="Exit status: 0, also if there are no runs, or 1 if the process does not answer.",
    )
    parser.add_argument("--job", metavar="ID", help="only the runs of this job")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_parse_positive_number,
        default=DEFAULT_LIMIT,
        help=f"how many runs to list at most; {DEFAULT_LIMIT} by default",
    )


def run_runs_command(options: argparse.Namespace) -> None:
    """Read the runs, and print them."""
    url, token = complete_url(options.url, "runs"), read_token(options.bearer_token_file)
    runs = _fetch_runs(url, token, options.job, options.limit)
    if options.json:
        write_json(runs)
        return
    names_scheduler = len({run["scheduler"] for run in runs}) > 1
    rows = [_format_run(run, names_scheduler=names_scheduler) for run in runs]
    lines = format_table(_TABLE_HEADER, rows, max_line_width()) if rows else ["No runs"]
    write_output("\n".join(lines) + "\n")


def _fetch_runs(url: str, token: str | None, job: str | None, limit: int) -> list[dict[str, Any]]:
    """Return the latest runs; each page continues where the one before has ended."""
    runs: list[dict[str, Any]] = []
    before: int | None = None
    while len(runs) < limit:
        query = [("limit", str(min(limit - len(runs), MAX_RUNS_PER_PAGE)))]
        query += [("job_id", job)] if job is not None else []
        query += [("before", str(before))] if before is not None else []
        answer = fetch_json(url, token, query, advice=_URL_ADVICE)
        try:
            page = [{name: run[name] for name in _RUN_FIELDS} for run in answer["runs"]]
            for run in page:  # which fails if it has fields of other types
                _format_run(run, names_scheduler=False)
            following = answer["next_before"]
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            msg = f"{url} does not list runs. {_URL_ADVICE}."
            raise CommandError(msg) from error
        runs += page
        if following is None or not page:
            break
        before = following
    return runs[:limit]


_RUN_FIELDS = (
    *("number", "scheduler", "job_id", "scheduled_time", "start_time", "end_time", "duration"),
    *("outcome", "error_type", "error_message", "trace_id"),
)


def _format_run(run: dict[str, Any], *, names_scheduler: bool) -> Sequence[str]:
    error = ": ".join(str(run[name]) for name in ("error_type", "error_message") if run[name])
    job = str(run["job_id"])
    return (
        format_time(run["scheduled_time"]),
        format_time(run["start_time"]),
        format_duration(run["duration"]),
        str(run["outcome"]),
        f"{run['scheduler']}/{job}" if names_scheduler else job,
        " ".join(error.split()),
    )


def _parse_positive_number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        msg = f"{text!r} is no whole number of at least 1"
        raise argparse.ArgumentTypeError(msg)
    return int(text)
