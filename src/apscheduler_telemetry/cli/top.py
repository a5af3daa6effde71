"""
``apscheduler-telemetry top``: show the jobs of a running process, again and again.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, NamedTuple

from apscheduler_telemetry.cli.client import (
    add_address_arguments,
    complete_url,
    fetch_json,
    read_token,
)
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.output import one_line, terminal_width, write_output
from apscheduler_telemetry.cli.table import cut_text, format_duration, format_table, table_width

DEFAULT_INTERVAL = 2.0
"""Seconds between two tables; a scrape of many jobs takes less."""
MIN_INTERVAL = 0.2

_HEADER = ("JOB", "STATE", "NEXT RUN", "LAST", "RUNNING FOR", "LAST SUCCESS", "TRIGGER")
"""The columns; the later ones are left out first if the terminal is narrow."""
_REQUIRED_COLUMNS = 2
_ENTER_SCREEN, _LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_FROM_THE_TOP, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class ShownJob(NamedTuple):
    """
    A job, with the texts of its row.

    Attributes:
        is_in_trouble: whether it is overdue, or its last run has not succeeded.
        row: a text for each column.
    """

    is_in_trouble: bool
    row: Sequence[str]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "top",
        help="show the jobs of a running process, and refresh them",
        description="Show the jobs of a running process, those in trouble first, until Ctrl-C. "
        "Without a terminal, it writes one table.",
        epilog="Exit status: 0, also after Ctrl-C, or 1 if the process does not answer at first.",
    )
    add_address_arguments(parser)
    parser.add_argument("--once", action="store_true", help="write one table")
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=float,
        default=DEFAULT_INTERVAL,
        help=f"time between two tables; {DEFAULT_INTERVAL:g} by default",
    )
    parser.add_argument("--json", action="store_true", help="write the jobs once, as JSON")
    parser.set_defaults(run_command=run_top_command)


def run_top_command(options: argparse.Namespace) -> None:
    """Show the jobs once, or until Ctrl-C."""
    url, token = complete_url(options.url, "health"), read_token(options.bearer_token_file)
    schedulers = _fetch_schedulers(url, token)
    if options.json:
        write_output(json.dumps(schedulers, indent=2) + "\n")
    elif options.once or not sys.stdout.isatty():
        write_output("\n".join(format_screen(schedulers, terminal_width())) + "\n")
    else:
        write_output(_ENTER_SCREEN)
        try:
            _refresh(lambda: _fetch_schedulers(url, token), max(options.interval, MIN_INTERVAL))
        except KeyboardInterrupt:
            pass
        finally:
            write_output(_LEAVE_SCREEN)


def _refresh(fetch_schedulers: Callable[[], Any], interval: float) -> None:
    """Draw tables for ever; while the process does not answer, the last one stays."""
    shown: Any = []
    while True:
        problem = ""
        try:
            shown = fetch_schedulers()
        except CommandError as error:  # the application may be restarted
            problem = str(error)
        width, height = shutil.get_terminal_size()
        lines = [cut_text(time.strftime("%H:%M:%S  ") + one_line(problem), width)]
        lines += format_screen(shown, width, height - len(lines))
        write_output(
            _FROM_THE_TOP + f"{_REST_OF_LINE}\n".join(lines) + _REST_OF_LINE + _REST_OF_SCREEN
        )
        time.sleep(interval)


def _fetch_schedulers(url: str, token: str | None) -> list[dict[str, Any]]:
    """Return the schedulers of the health report of a process, each with its jobs."""
    # That of an unhealthy process has this status.
    report = fetch_json(url, token, statuses=(HTTPStatus.SERVICE_UNAVAILABLE,))
    try:
        schedulers = [
            {**scheduler, "jobs": [{**_EMPTY_JOB, **job, "id": str(job["id"])} for job in jobs]}
            for scheduler, jobs in (
                [(each, each["jobs"]) for each in report["schedulers"]]
                if "schedulers" in report
                else [({**report["scheduler"], "status": report["status"]}, report["jobs"])]
            )
        ]
        for scheduler in schedulers:
            _ = scheduler["name"], scheduler["state"]
    except (LookupError, TypeError) as error:
        msg = f"{url} shows no scheduler. Pass the address of the application's telemetry."
        raise CommandError(msg) from error
    return schedulers


_EMPTY_JOB = dict.fromkeys(
    ("next_run", "trigger", "last_outcome", "last_success", "running_since", "overdue")
)


def format_screen(
    schedulers: Sequence[dict[str, Any]], width: int | None, height: int | None = None
) -> list[str]:
    """
    Return the lines that show schedulers and their jobs; no id of a job and no state is cut.

    Args:
        schedulers: those of the health report.
        width: columns of the terminal; None for no limit.
        height: lines of the terminal; None for no limit.
    """
    now = time.time()
    lines = [
        one_line(f"{each['name']}: {each['state']}, {each.get('status')}") for each in schedulers
    ]
    names_scheduler = len(schedulers) > 1
    jobs = sorted(
        (
            _show_job(job, f"{each['name']}/" if names_scheduler else "", now)
            for each in schedulers
            for job in each["jobs"]
        ),
        key=lambda job: (not job.is_in_trouble, job.row[0]),
    )
    if not jobs:
        return [*lines, "No jobs"]
    rows = [job.row for job in jobs]
    header = _choose_columns(rows, width)
    rows = [row[: len(header)] for row in rows]
    if width is None or height is None:
        return lines + format_table(header, rows)
    # A row that is wider than the terminal continues on its next line.
    room = (height - len(lines)) // math.ceil(table_width(header, rows) / width) - 1
    if len(rows) > room:
        room = max(room - 1, 0)
    more = [f"{len(rows) - room} more jobs"] if len(rows) > room else []
    return [*lines, *format_table(header, rows)[: room + 1], *more]


def _choose_columns(rows: Sequence[Sequence[str]], width: int | None) -> Sequence[str]:
    """Return the names of the first columns, as many as there is room for."""
    count = len(_HEADER)
    while width is not None and count > _REQUIRED_COLUMNS:
        if table_width(_HEADER[:count], [row[:count] for row in rows]) <= width:
            break
        count -= 1
    return _HEADER[:count]


def _show_job(job: dict[str, Any], prefix: str, now: float) -> ShownJob:
    outcome = job["last_outcome"] or ""
    if job["overdue"]:
        state = "overdue"
    elif job["running_since"]:
        state = "running"
    else:
        state = "waiting" if job["next_run"] else "no next run"
    since, success = _age(job["running_since"], now), _age(job["last_success"], now)
    wait = _age(job["next_run"], now)
    return ShownJob(
        bool(job["overdue"]) or outcome not in {"", "success", "coalesced"},
        (
            prefix + job["id"],
            state,
            "" if wait is None else _format_wait(-wait),
            outcome,
            "" if since is None else format_duration(max(since, 0.0)),
            "" if success is None else f"{format_duration(max(success, 0.0))} ago",
            str(job["trigger"] or ""),
        ),
    )


def _format_wait(seconds: float) -> str:
    text = format_duration(float(abs(int(seconds)))).replace(".000s", "s").replace(".0s", "s")
    return f"in {text}" if seconds >= 0 else f"{text} ago"


def _age(text: str | None, now: float) -> float | None:
    """Return how many seconds ago a time in ISO 8601 was; None if there is none."""
    if not text:
        return None
    try:
        return now - datetime.fromisoformat(text).timestamp()
    except ValueError:  # a time that only newer versions of Python know
        return None
