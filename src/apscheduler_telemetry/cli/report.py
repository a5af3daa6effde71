"""
``apscheduler-telemetry report``: what was due, ran and failed, from Prometheus, as a text or page.
"""

from __future__ import annotations

import argparse
import html
import time
from collections.abc import Callable, Mapping, Sequence

from apscheduler_telemetry.cli.client import add_token_argument, complete_url, read_token
from apscheduler_telemetry.cli.output import one_line, write_output
from apscheduler_telemetry.cli.report_data import (
    OUTCOMES,
    ApplicationReport,
    parse_duration,
    read_reports,
)
from apscheduler_telemetry.cli.table import format_duration, format_table

QUERY_PATH = "api/v1/query"

_JOB_HEADER = ("JOB", "DUE", *(outcome.upper() for outcome in OUTCOMES), "SLOWER THAN USUAL")
_ALERT_HEADER = ("ALERT", "SEVERITY", "JOB", "NOW")

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "report",
        help="report what was due, ran and failed, such as for a mail each morning",
        description="Report the runs and the alerts of a time range, for each application that a "
        "Prometheus scrapes.",
        epilog="Exit status: 0, also if runs have failed, or 1 if Prometheus does not answer.",
    )
    parser.add_argument(
        "--prometheus",
        metavar="URL",
        required=True,
        help="the address of Prometheus, such as http://127.0.0.1:9090",
    )
    add_token_argument(parser, "Prometheus")
    parser.add_argument(
        "--since",
        metavar="DURATION",
        default="24h",
        type=_duration,
        help="the time range, such as 24h, 90m or 7d; 24h by default",
    )
    parser.add_argument(
        "--format", choices=sorted(_WRITERS), default="text", help="text by default"
    )
    parser.set_defaults(run_command=run_report_command)


def run_report_command(options: argparse.Namespace) -> None:
    """Query Prometheus, and print the report."""
    text, seconds = options.since
    url = complete_url(options.prometheus, QUERY_PATH)
    reports = read_reports(url, read_token(options.bearer_token_file), seconds)
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    write_output(_WRITERS[options.format](f"Jobs in the {text} until {until}", reports))


def _duration(text: str) -> tuple[str, int]:
    return text, parse_duration(text)


def _tables(report: ApplicationReport) -> list[Table]:
    """Return the tables of an application, without those that are empty."""
    jobs = [
        (
            f"{job.scheduler}/{job.job_id}",
            str(job.due),
            *(str(job.counts.get(outcome, "")) for outcome in OUTCOMES),
            ""
            if job.slowest is None
            else f"{format_duration(job.slowest)}, usually {format_duration(job.usual)}",
        )
        for job in report.jobs
    ]
    alerts = [
        (
            alert.name,
            alert.severity,
            "/".join(filter(None, (alert.scheduler, alert.job_id))),
            "firing" if alert.is_firing else "resolved",
        )
        for alert in report.alerts
    ]
    return [table for table in ((_JOB_HEADER, jobs), (_ALERT_HEADER, alerts)) if table[1]]


def _summarize(report: ApplicationReport) -> str:
    due = sum(job.due for job in report.jobs)
    succeeded = sum(job.counts.get("success", 0) for job in report.jobs)
    return f"{succeeded} of {due} due runs succeeded, {len(report.alerts)} alerts fired"


def _write_text(title: str, reports: Sequence[ApplicationReport]) -> str:
    lines = [title]
    for report in reports:
        lines += ["", one_line(f"{report.name}: {_summarize(report)}")]
        for header, rows in _tables(report):
            lines += ["", *format_table(header, rows)]
    return "\n".join(lines if reports else [title, "", "No runs and no alerts"]) + "\n"


def _write_markdown(title: str, reports: Sequence[ApplicationReport]) -> str:
    lines = [f"# {title}"]
    for report in reports:
        lines += ["", f"## {_escape_markdown(report.name)}", "", f"{_summarize(report)}."]
        for header, rows in _tables(report):
            lines += ["", _markdown_row([name.capitalize() for name in header])]
            lines.append("|" + "---|" * len(header))
            lines += [_markdown_row([_escape_markdown(text) for text in row]) for row in rows]
    return "\n".join(lines if reports else [*lines, "", "No runs and no alerts."]) + "\n"


def _markdown_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _escape_markdown(text: str) -> str:
    return "".join(f"\\{char}" if char in _MARKDOWN else char for char in one_line(text))


_MARKDOWN = frozenset("\\`*_{}[]()<>#+-!|~&")


def _write_html(title: str, reports: Sequence[ApplicationReport]) -> str:
    """Return a page that mail programs show: no script, and nothing loaded from elsewhere."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"]
    for report in reports:
        parts += [f"<h2>{_escape_html(report.name)}</h2>", f"<p>{_summarize(report)}.</p>"]
        for header, rows in _tables(report):
            lines = [_html_row("th", [name.capitalize() for name in header])]
            lines += [_html_row("td", row) for row in rows]
            parts.append(f"<table border=1 cellpadding=4>{''.join(lines)}</table>")
    return "\n".join(parts if reports else [*parts, "<p>No runs and no alerts.</p>"]) + "\n"


def _html_row(element: str, texts: Sequence[str]) -> str:
    cells = (f"<{element}>{_escape_html(text)}</{element}>" for text in texts)
    return f"<tr>{''.join(cells)}</tr>"


def _escape_html(text: str) -> str:
    return html.escape(one_line(text))


_WRITERS: Mapping[str, Callable[[str, Sequence[ApplicationReport]], str]] = {
    "html": _write_html,
    "markdown": _write_markdown,
    "text": _write_text,
}
