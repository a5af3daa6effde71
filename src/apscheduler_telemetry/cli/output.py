"""
What commands print.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Any

from apscheduler_telemetry.cli.errors import CommandError, OutputClosedError

BOLD, RED, GREEN, YELLOW = "1", "31", "32", "33"
"""Codes of ANSI for `style`."""


def style(text: str, *codes: str) -> str:
    """Return a text in a style if a terminal shows it, unless NO_COLOR is set: see no-color.org."""
    if not codes or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


def max_line_width() -> int | None:
    """
    Return how many columns lines may have; None for no limit.

    That is the width of the terminal that shows the output, or what COLUMNS says; a pipe or a file
    has no limit without it.
    """
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return None
    return shutil.get_terminal_size().columns


def escape_unprintable(text: str) -> str:
    """Return a text of the application on one line, and without codes for a terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


def write_json(content: Any) -> None:
    """Write something as JSON; the errors are those of `write_output`."""
    write_output(json.dumps(content, indent=2) + "\n")


def write_output(text: str) -> None:
    """
    Write a text to standard output, in UTF-8 whatever the locale is.

    Raises:
        OutputClosedError: the reader, such as ``head``, has closed its end of the pipe.
        CommandError: it cannot be written, as the disk is full.
    """
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except OSError as error:
        # The rest of the text is still in the buffer, and Python would try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise OutputClosedError from error
        msg = f"cannot write to standard output: {error.strerror}"
        raise CommandError(msg) from error
