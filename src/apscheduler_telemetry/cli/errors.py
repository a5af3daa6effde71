"""
Errors of the command line.

    CommandError
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


class OutputClosedError(CommandError):
    """Raised if nobody reads the output any more, as in ``apscheduler-telemetry ... | head``."""


class UsageError(CommandError):
    """Raised if a command cannot do what it is asked for, so that its status says nothing else."""

    exit_status = 2
