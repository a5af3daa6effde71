"""
What `instrument` and its handle raise.

    TelemetryError
    ├── ArgumentTypeError(TypeError)
    └── ArgumentValueError(ValueError)
        └── DuplicateNameError

Nothing here is ever raised into a job, a listener or a scrape.
"""

from __future__ import annotations


class TelemetryError(Exception):
    """Base of every error that this package raises."""


class ArgumentTypeError(TelemetryError, TypeError):
    """Raised when an argument is of the wrong type, such as `None` for the scheduler."""


class ArgumentValueError(TelemetryError, ValueError):
    """Raised when an argument has the right type and an impossible value."""


class DuplicateNameError(ArgumentValueError):
    """Raised when another live scheduler already uses the name on the same registry."""
