"""
What commands print.
"""

from __future__ import annotations

import os
import shutil
import sys

from apscheduler_telemetry.cli.errors import CommandError, OutputClosedError

BOLD, RED, GREEN, YELLOW = "1", "31", "32", "33"
"""Codes of ANSI for `style`."""


def style(text: str, *codes: str) -> str:
    """Return a text in a style if a terminal shows it, unless NO_COLOR is set: see no-color.org."""
    if not codes or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{';'.join(codes)}m{text}\x1b[0m"


def terminal_width() -> int | None:
    """Return how many columns the terminal has that shows the output; None if none does."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def one_line(text: str) -> str:
    """Return a text of the application on one line, and without codes for a terminal."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)


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
