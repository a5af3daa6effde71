"""
``apscheduler-telemetry report``: what was due, ran and failed, from Prometheus, as a text or page.
"""

from __future__ import annotations

import argparse
import html
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apscheduler_telemetry.cli.client import add_token_argument, complete_url, read_token
from apscheduler_telemetry.cli.output import (
    escape_unprintable,
    max_line_width,
    write_json,
    write_output,
)
from apscheduler_telemetry.cli.report_data import (
    ApplicationReport,
    JobRunSummary,
    parse_time_range,
    read_reports,
)
from apscheduler_telemetry.cli.table import OUTCOMES, fit_columns, format_duration, format_table

PROMETHEUS_QUERY_PATH = "api/v1/query"

_COUNT_COLUMNS = ("DUE", *(outcome.upper() for outcome in OUTCOMES))
_JOB_HEADER = ("JOB", *_COUNT_COLUMNS, "SLOWER THAN USUAL")
_ALERT_HEADER = ("ALERT", "SEVERITY", "JOB", "NOW")

HeaderAndRows = tuple[Sequence[str], Sequence[Sequence[str]]]


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
        type=_parse_duration_option,
        help="the time range, such as 24h, 90m or 7d; 24h by default",
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument(
        "--format", choices=sorted(_FORMATTERS), default="text", help="text by default"
    )
    formats.add_argument("--json", action="store_true", help="write the numbers as JSON")
    parser.set_defaults(run_command=run_report_command)


def run_report_command(options: argparse.Namespace) -> None:
    """QueryParameters Prometheus, and print the report."""
    text, seconds = options.since
    url = complete_url(options.prometheus, PROMETHEUS_QUERY_PATH)
    reports = read_reports(url, read_token(options.bearer_token_file), seconds)
    if options.json:
        write_json([_to_json_content(report) for report in reports])
        return
    until = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    write_output(_FORMATTERS[options.format](f"Jobs in the {text} until {until}", reports))


def _to_json_content(report: ApplicationReport) -> dict[str, Any]:
    return {
        "application": report.name,
        "jobs": [
            {
                "scheduler": job.scheduler,
                "job_id": job.job_id,
                "due": job.due_count,
                "outcomes": dict(job.counts_by_outcome),
                "slowest": job.slowest_seconds,
                "usual": job.usual_seconds,
            }
            for job in report.jobs
        ],
        "alerts": [alert._asdict() for alert in report.alerts],
    }


def _parse_duration_option(text: str) -> tuple[str, int]:
    try:
        return text, parse_time_range(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _build_tables(report: ApplicationReport) -> list[HeaderAndRows]:
    """Return the tables of an application, without those that are empty."""
    jobs = [
        (
            f"{job.scheduler}/{job.job_id}",
            str(job.due_count),
            *(str(job.counts_by_outcome.get(outcome, "")) for outcome in OUTCOMES),
            _format_slowest(job),
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


def _format_slowest(job: JobRunSummary) -> str:
    if job.slowest_seconds is None:
        return ""
    slowest, usual = format_duration(job.slowest_seconds), format_duration(job.usual_seconds)
    return f"{slowest}, usually {usual}"


def _summarize(report: ApplicationReport) -> str:
    due = sum(job.due_count for job in report.jobs)
    succeeded = sum(job.counts_by_outcome.get("success", 0) for job in report.jobs)
    count = len(report.alerts)
    alerts = "1 alert" if count == 1 else f"{count} alerts"
    return f"{succeeded} of {due} due runs succeeded, {alerts} fired"


def _format_as_text(title: str, reports: Sequence[ApplicationReport]) -> str:
    lines = [title]
    for report in reports:
        lines += ["", escape_unprintable(f"{report.name}: {_summarize(report)}")]
        for header, rows in _build_tables(report):
            # A narrow terminal lacks only columns that have nothing to say.
            empty = [name for name, *texts in zip(header, *rows, strict=True) if not any(texts)]
            kept, cells = fit_columns(header, rows, max_line_width(), empty[::-1])
            lines += ["", *format_table(kept, cells, counts=_COUNT_COLUMNS)]
    return "\n".join(lines if reports else [title, "", "No runs and no alerts"]) + "\n"


def _format_as_markdown(title: str, reports: Sequence[ApplicationReport]) -> str:
    lines = [f"# {title}"]
    for report in reports:
        lines += ["", f"## {_escape_markdown(report.name)}", "", f"{_summarize(report)}."]
        for header, rows in _build_tables(report):
            lines += ["", _markdown_row([name.capitalize() for name in header])]
            lines.append("|" + "---|" * len(header))
            lines += [_markdown_row([_escape_markdown(text) for text in row]) for row in rows]
    return "\n".join(lines if reports else [*lines, "", "No runs and no alerts."]) + "\n"


def _markdown_row(texts: Sequence[str]) -> str:
    return f"| {' | '.join(texts)} |"


def _escape_markdown(text: str) -> str:
    return "".join(
        f"\\{char}" if char in _MARKDOWN_SPECIAL_CHARACTERS else char
        for char in escape_unprintable(text)
    )


_MARKDOWN_SPECIAL_CHARACTERS = frozenset("\\`*_{}[]()<>#+-!|~&")


def _format_as_html(title: str, reports: Sequence[ApplicationReport]) -> str:
    """Return a page that mail programs show: no script, and nothing loaded from elsewhere."""
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><h1>{title}</h1>"]
    for report in reports:
        parts += [f"<h2>{_escape_html(report.name)}</h2>", f"<p>{_summarize(report)}.</p>"]
        for header, rows in _build_tables(report):
            lines = [_html_row("th", [name.capitalize() for name in header])]
            lines += [_html_row("td", row) for row in rows]
            parts.append(f"<table border=1 cellpadding=4>{''.join(lines)}</table>")
    return "\n".join(parts if reports else [*parts, "<p>No runs and no alerts.</p>"]) + "\n"


def _html_row(element: str, texts: Sequence[str]) -> str:
    cells = (f"<{element}>{_escape_html(text)}</{element}>" for text in texts)
    return f"<tr>{''.join(cells)}</tr>"


def _escape_html(text: str) -> str:
    return html.escape(escape_unprintable(text))


_FORMATTERS: Mapping[str, Callable[[str, Sequence[ApplicationReport]], str]] = {
    "html": _format_as_html,
    "markdown": _format_as_markdown,
    "text": _format_as_text,
}
