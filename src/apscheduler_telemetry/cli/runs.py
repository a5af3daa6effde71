"""
``apscheduler-telemetry runs``: list the latest runs of a running process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from apscheduler_telemetry.cli.client import (
    add_address_arguments,
    complete_url,
    fetch_json,
    read_token,
)
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.output import terminal_width, write_output
from apscheduler_telemetry.cli.table import format_duration, format_table

DEFAULT_LIMIT = 100
"""Runs; as many as ``/runs`` lists by default."""
MAX_PAGE = 1_000
"""Runs that ``/runs`` lists at most in one response."""

_HEADER = ("SCHEDULED", "STARTED", "DURATION", "OUTCOME", "JOB", "ERROR")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "runs",
        help="list the latest runs of a running process",
        description="List the latest runs of a running process, the latest first; times are UTC.",
        epilog="Exit status: 0, also if there are no runs, or 1 if the process does not answer.",
    )
    add_address_arguments(parser)
    parser.add_argument("--job", metavar="ID", help="only the runs of this job")
    parser.add_argument(
        "--limit",
        metavar="N",
        type=_positive,
        default=DEFAULT_LIMIT,
        help=f"how many runs to list at most; {DEFAULT_LIMIT} by default",
    )
    parser.add_argument("--json", action="store_true", help="write the runs as JSON")
    parser.set_defaults(run_command=run_runs_command)


def run_runs_command(options: argparse.Namespace) -> None:
    """Read the runs, and print them."""
    url, token = complete_url(options.url, "runs"), read_token(options.bearer_token_file)
    runs = _fetch_runs(url, token, options.job, options.limit)
    if options.json:
        write_output(json.dumps(runs, indent=2) + "\n")
        return
    names_scheduler = len({run["scheduler"] for run in runs}) > 1
    rows = [_format_run(run, names_scheduler=names_scheduler) for run in runs]
    lines = format_table(_HEADER, rows, terminal_width()) if rows else ["No runs"]
    write_output("\n".join(lines) + "\n")


def _fetch_runs(url: str, token: str | None, job: str | None, limit: int) -> list[dict[str, Any]]:
    """Return the latest runs; each page continues where the one before has ended."""
    runs: list[dict[str, Any]] = []
    before: int | None = None
    while len(runs) < limit:
        query = [("limit", str(min(limit - len(runs), MAX_PAGE)))]
        query += [("job_id", job)] if job is not None else []
        query += [("before", str(before))] if before is not None else []
        answer = fetch_json(url, token, query)
        try:
            page = [{name: run[name] for name in _FIELDS} for run in answer["runs"]]
            following = answer["next_before"]
        except (LookupError, TypeError) as error:
            msg = f"{url} does not list runs. Pass the address of the application's telemetry."
            raise CommandError(msg) from error
        runs += page
        if following is None or not page:
            break
        before = following
    return runs[:limit]


_FIELDS = (
    *("number", "scheduler", "job_id", "scheduled_time", "start_time", "end_time", "duration"),
    *("outcome", "error_type", "error_message", "trace_id"),
)


def _format_run(run: dict[str, Any], *, names_scheduler: bool) -> Sequence[str]:
    error = ": ".join(str(run[name]) for name in ("error_type", "error_message") if run[name])
    job = str(run["job_id"])
    return (
        _format_time(run["scheduled_time"]),
        _format_time(run["start_time"]),
        format_duration(run["duration"]),
        str(run["outcome"]),
        f"{run['scheduler']}/{job}" if names_scheduler else job,
        " ".join(error.split()),
    )


def _format_time(text: str | None) -> str:
    """Return a time of ``/runs`` to the second, without the zone, which is UTC."""
    return str(text)[:19].replace("T", " ") if text else ""


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number
