"""
What commands print.
"""

from __future__ import annotations

import os
import sys

from apscheduler_telemetry.cli.errors import CommandError, OutputClosedError


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
