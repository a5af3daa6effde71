"""
``apscheduler-telemetry doctor``: find risks in an application, or broken links to its alerts.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apscheduler_telemetry.cli.alertmanager import ALERTMANAGER_TOKEN_OPTION
from apscheduler_telemetry.cli.chain import MonitoringChain
from apscheduler_telemetry.cli.chain_checks import OK, SERVER_NAMES, ChainServer, CheckResult
from apscheduler_telemetry.cli.client import TOKEN_OPTION, add_token_argument, read_token
from apscheduler_telemetry.cli.errors import CommandError, UsageError
from apscheduler_telemetry.cli.output import (
    BOLD,
    GREEN,
    RED,
    YELLOW,
    escape_unprintable,
    max_line_width,
    style,
    write_json,
    write_output,
)
from apscheduler_telemetry.cli.rule_files import SEVERITIES
from apscheduler_telemetry.cli.yaml_library import import_yaml
from apscheduler_telemetry.core.findings import INFO, SERIOUS

_PROMETHEUS_TOKEN_OPTION = "--prometheus-token-file"  # noqa: S105  # the name of an option

FINDING_CODES = (
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


CHAIN_CHECK_CODES = (
    "alertmanager-api",
    "alertmanagers",
    "clock",
    "health",
    "max-labels",
    "metrics",
    "mutes",
    "next-runs",
    "prometheus-api",
    "receiver-critical",
    "receiver-info",
    "receiver-warning",
    "rule-evaluation",
    "rule-version",
    "rules",
    "scrape",
    "series",
    "test-alert",
    "watchdog",
    "watchdog-arrival",
    "watchdog-receiver",
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "doctor",
        help="find risks in an application, or broken links between it and its alerts",
        description="With TARGET: import an application, start none of its schedulers, and report "
        "risks of their configuration and their jobs, each with the line that fixes it. With "
        "addresses: check the chain of a running installation, from the metrics to the receivers "
        "of alerts, and say for each broken link what to do.",
        epilog="Exit status: 0, 1 if something serious is found, or 2 if the application cannot "
        "be imported or the command line is wrong.",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        nargs="?",
        help="module:scheduler, package.module:create_app(), or a module that creates schedulers",
    )
    chain = parser.add_argument_group("the chain of a running installation; any of the addresses")
    chain.add_argument(
        "--url", metavar="URL", help="the application, such as http://127.0.0.1:9476"
    )
    chain.add_argument(
        "--prometheus", metavar="URL", help="Prometheus, such as http://127.0.0.1:9090"
    )
    chain.add_argument(
        "--alertmanager", metavar="URL", help="Alertmanager, such as http://127.0.0.1:9093"
    )
    chain.add_argument(
        "--send-test-alert",
        metavar="SEVERITY",
        nargs="?",
        const="critical",
        choices=SEVERITIES,
        help="send an alert to Alertmanager that is labelled as a test; critical by default, or "
        "warning or info",
    )
    add_token_argument(chain, "the application")
    add_token_argument(chain, "Prometheus", _PROMETHEUS_TOKEN_OPTION)
    add_token_argument(chain, "Alertmanager", ALERTMANAGER_TOKEN_OPTION)
    parser.add_argument(
        "--ignore",
        metavar="CODE",
        action="append",
        choices=sorted({*FINDING_CODES, *CHAIN_CHECK_CODES}),
        default=[],
        help="do not report this risk or check; may be repeated",
    )
    parser.add_argument("--json", action="store_true", help="write the findings as JSON")
    parser.set_defaults(run_command=run_doctor_command)


def run_doctor_command(options: argparse.Namespace) -> int:
    """Check the application or the chain, and print the findings."""
    addresses = (options.url, options.prometheus, options.alertmanager)
    if options.send_test_alert is not None and options.alertmanager is None:
        msg = "--send-test-alert needs --alertmanager, the address to send the alert to."
        raise UsageError(msg)
    if options.target is not None and any(addresses):
        msg = "pass either TARGET, or addresses of a running installation. For both, call it twice."
        raise UsageError(msg)
    if options.target is None and not any(addresses):
        msg = "pass TARGET, such as module:scheduler, or --url, --prometheus or --alertmanager."
        raise UsageError(msg)
    return (
        _check_imported_application(options)
        if options.target is not None
        else _check_chain(options)
    )


def _check_imported_application(options: argparse.Namespace) -> int:
    # Loads APScheduler, Prometheus and OpenTelemetry, which no other command needs.
    from apscheduler_telemetry.cli.imported_application import import_schedulers  # noqa: PLC0415

    found = import_schedulers(options.target)
    findings = []
    for each in found:
        findings += [
            finding.to_json_dict(each.name)
            for finding in each.check()
            if finding.code not in options.ignore
        ]
    if options.json:
        write_json(findings)
    else:
        text = _format_findings(findings, names_scheduler=len(found) > 1)
        if not any(each.has_jobs for each in found):
            module = options.target.partition(":")[0]
            text += (
                f"No jobs were added. If a function adds them, pass it, such as {module}:main()\n"
            )
        write_output(text)
    return 1 if any(finding["level"] == SERIOUS for finding in findings) else 0


def _check_chain(options: argparse.Namespace) -> int:
    try:
        chain = _create_chain(options)
    except CommandError as error:  # nothing was checked
        raise UsageError(str(error)) from error
    found = [(server, check) for server, check in chain.check() if check.code not in options.ignore]
    if options.json:
        findings = [{"server": server.kind, **check._asdict()} for server, check in found]
        write_json(findings)
    else:
        write_output(_format_chain_checks(found))
    return 1 if any(check.level == SERIOUS for _, check in found) else 0


def _create_chain(options: argparse.Namespace) -> MonitoringChain:
    """
    Return what is checked.

    Raises:
        CommandError: an address or a file is wrong, or PyYAML is needed and not installed.
    """
    if options.prometheus or options.alertmanager:
        import_yaml()
    application, prometheus, alertmanager = (
        _create_server(kind, url, token_file, option)
        for kind, url, token_file, option in (
            ("application", options.url, options.bearer_token_file, TOKEN_OPTION),
            (
                "prometheus",
                options.prometheus,
                options.prometheus_token_file,
                _PROMETHEUS_TOKEN_OPTION,
            ),
            (
                "alertmanager",
                options.alertmanager,
                options.alertmanager_token_file,
                ALERTMANAGER_TOKEN_OPTION,
            ),
        )
    )
    return MonitoringChain(application, prometheus, alertmanager, options.send_test_alert)


def _create_server(
    kind: str, url: str | None, token_file: Path | None, option: str
) -> ChainServer | None:
    if url is not None:
        return ChainServer(kind, url, read_token(token_file), option)
    if token_file is not None:
        msg = f"{option} is given without the address of {SERVER_NAMES[kind]}."
        raise CommandError(msg)
    return None


def _format_chain_checks(found: Sequence[tuple[ChainServer, CheckResult]]) -> str:
    lines = []
    for server, checks in itertools.groupby(found, key=lambda each: each[0]):
        lines.append(
            style(
                escape_unprintable(f"{server.name[0].upper()}{server.name[1:]}, {server.url}"), BOLD
            )
        )
        for _, check in checks:
            message = escape_unprintable(check.message)
            if check.level == OK:
                lines.append(f"{style(f'{OK:<7}', GREEN)}  {check.code}: {message}")
                continue
            color = RED if check.level == SERIOUS else YELLOW
            lines.append(style(f"{check.level:<7}  {check.code}", BOLD, color))
            lines += [*_indent(f"{message}."), f"  {style(escape_unprintable(check.fix), BOLD)}"]
        lines.append("")
    levels = [check.level for _, check in found]
    counts = (f"{levels.count(level)} {level}" for level in (SERIOUS, INFO, OK))
    return "\n".join([*lines, ", ".join(counts)]) + "\n"


def _indent(text: str) -> list[str]:
    """Return the lines of a text that is wrapped between words; no word is cut."""
    return textwrap.wrap(
        text,
        max_line_width() or sys.maxsize,
        initial_indent="  ",
        subsequent_indent="  ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _format_findings(findings: Sequence[dict[str, Any]], *, names_scheduler: bool) -> str:
    lines = []
    for finding in findings:
        is_serious = finding["level"] == SERIOUS
        head = f"{finding['level']:<7}  {finding['code']}"
        place = [finding["scheduler"]] if names_scheduler else []
        place += finding["job_ids"]
        lines.append(style(head, BOLD, RED if is_serious else YELLOW))
        if place:
            lines += _indent(escape_unprintable(", ".join(place)))
        lines += _indent(escape_unprintable(finding["message"]) + ".")
        lines += ["  " + style(finding["fix"], BOLD), ""]
    serious = sum(finding["level"] == SERIOUS for finding in findings)
    lines.append(
        f"{serious} serious, {len(findings) - serious} info" if findings else "No risks found"
    )
    return "\n".join(lines) + "\n"
