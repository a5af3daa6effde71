"""
Errors of the command line.
"""

from __future__ import annotations


class CommandError(Exception):
    """Raised if a command fails; the message is for the user, and says what to do."""
