"""
What `instrument` and its handle raise.

    TelemetryError
    ├── ArgumentTypeError(TypeError)
    ├── ArgumentValueError(ValueError)
    │   └── DuplicateNameError
    └── NotInstrumentedError(RuntimeError)

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
    """Raised when another scheduler that runs already uses the name on the same registry."""


class NotInstrumentedError(TelemetryError, RuntimeError):
    """Raised when a handle is to serve a scheduler that it does not follow any more."""
