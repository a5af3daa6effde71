"""
Errors of the command line.
"""

from __future__ import annotations


class CommandError(Exception):
    """Raised if a command fails; the message tells the user what to do."""
