"""
The command ``apscheduler-telemetry``; each of its sub-commands is a module of this package.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Sequence

from apscheduler_telemetry._version import __version__
from apscheduler_telemetry.cli import doctor, export, jobs, report, runs, top
from apscheduler_telemetry.cli.errors import CommandError, OutputClosedError
from apscheduler_telemetry.cli.output import escape_unprintable

__all__ = ["main"]

INTERRUPTED_EXIT_STATUS = 130
"""As shells have it for SIGINT: 128, and its number."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the sub-command that the command line names.

    Returns:
        The exit status: 0, or 1 if the sub-command failed or its output is a closed pipe, or
        another one that its help names. An invalid command line exits with 2, and Ctrl-C with 130.
    """
    options = _create_parser().parse_args(arguments)
    run_command: Callable[[argparse.Namespace], int | None] = options.run_command
    try:
        _check_stdout_is_open()
        return run_command(options) or 0
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT_STATUS
    except OutputClosedError:
        return 1
    except CommandError as error:
        message = escape_unprintable(" ".join(str(error).split()))
        with contextlib.suppress(OSError):  # so that the exit status says it
            print(f"apscheduler-telemetry: {message}", file=sys.stderr)  # noqa: T201  # its output
        return error.exit_status


def _check_stdout_is_open() -> None:
    if sys.stdout is None:  # as by `>&-` in a shell
        msg = "standard output is closed. Send it to /dev/null if you do not want it."
        raise CommandError(msg)


def _create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apscheduler-telemetry",
        description="Work with the telemetry of APScheduler's jobs.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (doctor, export, jobs, report, runs, top):
        command.add_parser(commands)
    return parser
