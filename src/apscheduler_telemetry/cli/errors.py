"""
Errors of the command line.

    CommandError
    ├── AnswerStatusError
    ├── OutputClosedError
    └── UsageError
"""

from __future__ import annotations


class CommandError(Exception):
    """
    Raised if a command fails; the message tells the user what to do.

    Attributes:
        exit_status: that of the command.
    """

    exit_status = 1


class AnswerStatusError(CommandError):
    """
    Raised if a server answers with a status of HTTP that is an error.

    Attributes:
        status: the status, such as 404.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class OutputClosedError(CommandError):
    """Raised if nobody reads the output any more, as in ``apscheduler-telemetry ... | head``."""


class UsageError(CommandError):
    """Raised if a command cannot do what it is asked for, so that its status says nothing else."""

    exit_status = 2
