"""
Errors of the command line.

    CommandError
    └── OutputClosedError
"""

from __future__ import annotations


class CommandError(Exception):
    """Raised if a command fails; the message tells the user what to do."""


class OutputClosedError(CommandError):
    """Raised if nobody reads the output any more, as in ``apscheduler-telemetry ... | head``."""
