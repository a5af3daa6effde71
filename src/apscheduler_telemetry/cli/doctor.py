"""
``apscheduler-telemetry doctor``: find risks in how the schedulers of an application are set up.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from apscheduler_telemetry.cli.output import BOLD, RED, YELLOW, one_line, style, write_output

CODES = (
    "and-trigger-hangs",
    "coalesce",
    "daemon-thread",
    "dst-gap",
    "generated-id",
    "local-timezone",
    "max-instances",
    "memory-jobstore",
    "misfire-grace-time",
    "never-awaited",
    "no-replace-existing",
    "no-shutdown",
    "not-serializable",
    "pool-pre-ping",
    "pool-recycle",
    "pool-size",
    "shared-jobstore",
    "uwsgi-threads",
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "doctor",
        help="find risks in how the schedulers of an application are set up",
        description="Import an application, start none of its schedulers, and report risks of "
        "their configuration and their jobs, each with the line that mends it.",
        epilog="Exit status: 0, 1 if something serious is found, or 2 if the application cannot "
        "be imported or the command line is wrong.",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="module:scheduler, package.module:create_app(), or a module that creates schedulers",
    )
    parser.add_argument(
        "--ignore",
        metavar="CODE",
        action="append",
        choices=CODES,
        default=[],
        help="do not report this risk; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="write the findings as JSON")
    parser.set_defaults(run_command=run_doctor_command)


def run_doctor_command(options: argparse.Namespace) -> int:
    """Check the application, and print the findings."""
    # Loads APScheduler, Prometheus and OpenTelemetry, which no other command needs.
    from apscheduler_telemetry.cli.application import import_schedulers  # noqa: PLC0415

    found = import_schedulers(options.target)
    findings = []
    for each in found:
        others = [
            other.scheduler
            for other in found
            if other.scheduler is not each.scheduler and not other.facts.was_paused
        ]
        findings += [
            finding.describe(each.name)
            for finding in each.check(others)
            if finding.code not in options.ignore
        ]
    if options.json:
        write_output(json.dumps(findings, indent=2) + "\n")
    else:
        write_output(_format(findings, names_scheduler=len(found) > 1))
    return 1 if any(finding["level"] == "serious" for finding in findings) else 0


def _format(findings: Sequence[dict[str, Any]], *, names_scheduler: bool) -> str:
    lines = []
    for finding in findings:
        is_serious = finding["level"] == "serious"
        head = f"{finding['level']:<7}  {finding['code']}"
        place = [finding["scheduler"]] if names_scheduler else []
        place += finding["job_ids"]
        lines.append(style(head, BOLD, RED if is_serious else YELLOW))
        if place:
            lines.append("  " + one_line(", ".join(place)))
        lines += ["  " + one_line(finding["message"]) + ".", "  " + style(finding["fix"], BOLD), ""]
    serious = sum(finding["level"] == "serious" for finding in findings)
    lines.append(
        f"{serious} serious, {len(findings) - serious} info" if findings else "No risks found"
    )
    return "\n".join(lines) + "\n"
