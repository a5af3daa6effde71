"""
``apscheduler-telemetry top``: show the jobs of running processes, again and again.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from apscheduler_telemetry.cli.alertmanager import ALERTMANAGER_TOKEN_OPTION, Alert, AlertWatcher
from apscheduler_telemetry.cli.client import add_token_argument, complete_url, read_token
from apscheduler_telemetry.cli.errors import CommandError, UsageError
from apscheduler_telemetry.cli.health import describe_job_state, fetch_schedulers
from apscheduler_telemetry.cli.output import (
    BOLD,
    escape_unprintable,
    max_line_width,
    style,
    write_json,
    write_output,
)
from apscheduler_telemetry.cli.table import (
    OUTCOMES,
    cut_text,
    display_width,
    fit_columns,
    format_duration,
    format_table,
    table_width,
)

DEFAULT_INTERVAL_SECONDS = 2.0
"""Seconds between two tables; a scrape of many jobs takes less."""
MIN_INTERVAL_SECONDS = 0.2
MAX_INTERVAL_SECONDS = 86_400.0
MIN_ALERT_LINES = 8
"""
Lines that alerts get at least in a low terminal: an empty one, the title, the header, four alerts,
and how many there are besides.
"""

_COUNT_COLUMNS = tuple(outcome.upper() for outcome in OUTCOMES)
_JOB_HEADER = (
    *("JOB", "STATE", "LAST", *_COUNT_COLUMNS, "SUCCEEDED", "NEXT RUN", "DURATION"),
    *("TRIGGER", "SCHEDULER"),
)
"""The columns; the last one is only there if there are several schedulers."""
_LEAST_IMPORTANT_COLUMNS = (
    *("TRIGGER", "SCHEDULER", "DURATION", "SUCCESS", "COALESCED", "NEXT RUN", "SUCCEEDED"),
    *("LAST", "SKIPPED", "MISSED", "ERROR", "LOST"),
)
"""Columns that a narrow terminal lacks, the first of them first. JOB and STATE always stay."""
_ALERT_HEADER = ("ALERT", "ABOUT", "STATE", "SEVERITY", "SINCE", "APPLICATION")
_LEAST_IMPORTANT_ALERT_COLUMNS = ("APPLICATION", "SINCE", "SEVERITY")

_ENTER_SCREEN, _LEAVE_SCREEN = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_CURSOR_HOME, _ERASE_REST_OF_LINE, _ERASE_REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


class ShownJobsAndAlerts(NamedTuple):
    """
    What the tables show.

    Attributes:
        schedulers: those of the health reports.
        alerts: the alerts to list; None if no Alertmanager is read.
        alertmanager_url: the address of that Alertmanager.
    """

    schedulers: Sequence[dict[str, Any]]
    alerts: Sequence[Alert] | None = None
    alertmanager_url: str = ""


class _JobsAndAlertsReader:
    """Reads processes and an Alertmanager; of one that does not answer, the last answer stays."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._urls = [complete_url(url, "health") for url in options.urls]
        self._token = read_token(options.bearer_token_file)
        self._alertmanager_url: str = options.alertmanager or ""
        token = read_token(options.alertmanager_token_file)
        self._alert_watcher = (
            AlertWatcher(self._alertmanager_url, token=token) if self._alertmanager_url else None
        )
        self._schedulers_by_url: dict[str, list[dict[str, Any]]] = {}
        self._alerts: Sequence[Alert] = ()

    def read(self) -> list[CommandError]:
        """Read all, and return why some do not answer."""
        errors = []
        for url in self._urls:
            try:
                self._schedulers_by_url[url] = fetch_schedulers(url, self._token)
            except CommandError as error:  # noqa: PERF203  # of a few processes
                errors.append(error)
        try:
            self._alerts = self._alert_watcher.read() if self._alert_watcher else ()
        except CommandError as error:
            errors.append(error)
        return errors

    @property
    def shown(self) -> ShownJobsAndAlerts:
        """What was read last, without alerts on schedulers of other applications."""
        found = [
            (url, each)
            for url, schedulers in self._schedulers_by_url.items()
            for each in schedulers
        ]
        names = Counter(each["name"] for _, each in found)
        alerts = [alert for alert in self._alerts if alert.scheduler in {"", *names}]
        schedulers = [
            {**each, "name": f"{each['name']} ({urlsplit(url).netloc})"}
            if names[each["name"]] > 1  # of several processes of one application
            else each
            for url, each in found
        ]
        return ShownJobsAndAlerts(
            schedulers, alerts if self._alert_watcher else None, self._alertmanager_url
        )


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "top",
        help="show the jobs of running processes, and refresh them",
        description="Show the jobs of running processes, those in trouble first, until Ctrl-C. "
        "Without a terminal, it writes one table, or with --interval one after the other.",
        epilog="Exit status: 0, also after Ctrl-C, or 1 if a process does not answer at first.",
    )
    parser.add_argument(
        "urls", metavar="URL", nargs="+", help="of a process, such as http://127.0.0.1:9476"
    )
    add_token_argument(parser, "each process")
    parser.add_argument(
        "--alertmanager",
        metavar="URL",
        help="also list the alerts on these jobs, such as of http://127.0.0.1:9093",
    )
    add_token_argument(parser, "Alertmanager", ALERTMANAGER_TOKEN_OPTION)
    parser.add_argument("--once", action="store_true", help="write one table")
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_parse_interval,
        help=f"time between two tables; {DEFAULT_INTERVAL_SECONDS:g} by default",
    )
    parser.add_argument(
        "--title", help="what to write above the tables, beside the time; by default the addresses"
    )
    parser.add_argument("--json", action="store_true", help="write the jobs once, as JSON")
    parser.set_defaults(run_command=run_top_command)


def _parse_interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not MIN_INTERVAL_SECONDS <= seconds < MAX_INTERVAL_SECONDS:
        least = MIN_INTERVAL_SECONDS
        msg = f"{text!r} is no number of seconds of at least {least} and less than a day"
        raise argparse.ArgumentTypeError(msg)
    return seconds


def run_top_command(options: argparse.Namespace) -> None:
    """Show the jobs once, or until Ctrl-C."""
    if options.json and options.alertmanager:
        msg = "--json writes no alerts. Leave out --alertmanager."
        raise UsageError(msg)
    title = options.title or " ".join(url.partition("?")[0] for url in options.urls)
    reader = _JobsAndAlertsReader(options)
    for error in reader.read():
        raise error
    in_terminal = sys.stdout.isatty()
    if options.json:
        write_json(reader.shown.schedulers)
    elif options.once or (options.interval is None and not in_terminal):
        write_output("\n".join(format_jobs_and_alerts(reader.shown, max_line_width())) + "\n")
    else:
        interval = DEFAULT_INTERVAL_SECONDS if options.interval is None else options.interval
        _show_until_interrupted(reader, title, interval, in_terminal=in_terminal)


def _show_until_interrupted(
    reader: _JobsAndAlertsReader, title: str, interval: float, *, in_terminal: bool
) -> None:
    """Show tables until Ctrl-C or SIGTERM, and leave the last one in the terminal."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the screen is restored
    write_output(_ENTER_SCREEN if in_terminal else "")
    lines: list[str] = []
    errors: Sequence[CommandError] = ()
    try:
        while True:
            heading = _format_heading(title, errors)
            lines = [heading, *format_jobs_and_alerts(reader.shown, max_line_width())]
            if in_terminal:
                _draw_screen(heading, reader.shown)
            else:
                write_output("\n".join([*lines, "", ""]))
            time.sleep(interval)
            errors = reader.read()
    except KeyboardInterrupt:
        pass
    finally:
        if in_terminal:
            write_output(_LEAVE_SCREEN + "\n".join([*lines, ""]))


def _draw_screen(heading: str, shown: ShownJobsAndAlerts) -> None:
    """Fill the terminal, whose size may have changed."""
    width, height = shutil.get_terminal_size()
    lines = [cut_text(heading, width), *format_jobs_and_alerts(shown, width, height - 1)][:height]
    write_output(
        _CURSOR_HOME
        + f"{_ERASE_REST_OF_LINE}\n".join(lines)
        + _ERASE_REST_OF_LINE
        + _ERASE_REST_OF_SCREEN
    )


def _format_heading(title: str, errors: Sequence[CommandError]) -> str:
    """Return the time, and the title or why something is not up to date."""
    text = "; ".join(str(error) for error in errors) or title
    return f"{time.strftime('%H:%M:%S')}  {escape_unprintable(text)}"


def format_jobs_and_alerts(
    shown: ShownJobsAndAlerts, width: int | None, height: int | None = None
) -> list[str]:
    """
    Return the lines that show jobs and alerts; no id of a job, no state and no header is cut.

    Args:
        shown: what they show.
        width: columns of the terminal; None for no limit.
        height: lines of the terminal; None for no limit.
    """
    lines = [
        escape_unprintable(f"{each['name']}: {each['state']}, {each.get('status')}")
        for each in shown.schedulers
    ]
    room = sys.maxsize if height is None else height - _count_lines(lines, width)
    alert_lines = min(_count_lines(_format_alerts(shown, width), width), MIN_ALERT_LINES)
    jobs = _format_jobs(shown.schedulers, width, room - alert_lines)
    return lines + jobs + _format_alerts(shown, width, room - _count_lines(jobs, width))


def _format_jobs(schedulers: Sequence[dict[str, Any]], width: int | None, height: int) -> list[str]:
    """Return a table of jobs, those in trouble first."""
    now = time.time()
    jobs = sorted(
        ((each["name"], job) for each in schedulers for job in each["jobs"]),
        key=lambda pair: (not _is_in_trouble(pair[1]), pair[1]["id"], pair[0]),
    )
    if not jobs:
        return ["No jobs"]
    header, rows = _JOB_HEADER, [_format_job_row(job, name, now) for name, job in jobs]
    left_out = list(_LEAST_IMPORTANT_COLUMNS)
    if len(schedulers) == 1:
        header, rows = header[:-1], [row[:-1] for row in rows]
    if len(schedulers) == 1 or len({job["id"] for _, job in jobs}) < len(jobs):
        left_out.remove("SCHEDULER")  # it is not there, or tells jobs apart
    return _format_fitting_table(header, rows, left_out, width, height, "more jobs")


def _format_job_row(job: dict[str, Any], scheduler: str, now: float) -> Sequence[str]:
    """Return a text for each column of a job."""
    state = describe_job_state(job)
    if state == "running":
        state = (
            f"running {_format_with_one_unit(_seconds_since(job['running_since'], now))}".rstrip()
        )
    outcomes = job["outcomes"] or {}
    success, due = _seconds_since(job["last_success"], now), _seconds_since(job["next_run"], now)
    return (
        job["id"],
        state,
        job["last_outcome"] or "",
        *(str(outcomes.get(outcome, "")) for outcome in OUTCOMES),
        "never" if success is None else _format_age(success),
        "" if due is None else _format_age(due),
        format_duration(job["last_duration"]),
        str(job["trigger"] or ""),
        scheduler,
    )


def _is_in_trouble(job: dict[str, Any]) -> bool:
    """Return whether a job is overdue, or its last run has not succeeded."""
    return bool(job["overdue"]) or job["last_outcome"] not in {None, "success", "coalesced"}


def _format_alerts(
    shown: ShownJobsAndAlerts, width: int | None, height: int = sys.maxsize
) -> list[str]:
    """Return a table of alerts below an empty line and a title; nothing if none are read."""
    if shown.alerts is None:
        return []
    now = time.time()
    title = ["", style(escape_unprintable(f"Alerts of {shown.alertmanager_url}"), BOLD)]
    if not shown.alerts:
        return [*title, "No alerts"]
    rows = [
        (
            alert.name,
            alert.job_id or alert.scheduler,
            alert.state,
            alert.severity,
            _format_age(now - alert.since),
            alert.application,
        )
        for alert in shown.alerts
    ]
    height -= _count_lines(title, width)
    return title + _format_fitting_table(
        _ALERT_HEADER, rows, _LEAST_IMPORTANT_ALERT_COLUMNS, width, height, "more alerts"
    )


def _format_fitting_table(  # noqa: PLR0913, PLR0917  # what a table is
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left_out: Sequence[str],
    width: int | None,
    height: int,
    rest_name: str,
) -> list[str]:
    """Return the lines of a table; if it is too high, the last line counts the rows left out."""
    header, rows = fit_columns(header, rows, width, left_out)
    lines = format_table(header, rows, counts=_COUNT_COLUMNS)
    # A row that is wider than the terminal continues on its next line.
    room = height // _count_lines([" " * table_width(header, rows)], width) - 1
    if len(rows) <= room:
        return lines
    room = max(room - 1, 0)
    return [*lines[: room + 1], f"{len(rows) - room} {rest_name}"]


def _count_lines(lines: Sequence[str], width: int | None) -> int:
    """Return how many lines of a terminal these lines take."""
    if width is None:
        return len(lines)
    widths = (display_width(re.sub(r"\x1b\[\d+m", "", line)) for line in lines)
    return sum(max(1, -(-each // width)) for each in widths)


def _format_age(age: float) -> str:
    """Return how long ago a time was, or how far ahead it is, in whole seconds or longer."""
    text = re.sub(r"\.\d+", "", format_duration(float(abs(int(age)))))
    return f"{text} ago" if age > 0 else f"in {text}"


def _format_with_one_unit(seconds: float | None) -> str:
    """Return a length of time with one unit, so that states remain short; nothing for None."""
    if seconds is None:
        return ""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def _seconds_since(text: str | None, now: float) -> float | None:
    """Return how many seconds ago a time in ISO 8601 was; None if there is none."""
    if not text:
        return None
    try:
        return now - datetime.fromisoformat(text).timestamp()
    except ValueError:  # a time that only newer versions of Python know
        return None
