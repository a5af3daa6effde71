"""
A formatter that writes log records as JSON lines, with all fields of a run.

    import logging
    from apscheduler_telemetry.run_log import JSONFormatter

    handler = logging.StreamHandler()
    handler.setFormatter(JSONFormatter())
    logging.getLogger("apscheduler_telemetry.runs").addHandler(handler)

For applications that have no formatter of their own for JSON.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from apscheduler_telemetry.core.safe_repr import safe_repr
from apscheduler_telemetry.core.times import to_iso

_STANDARD_RECORD_ATTRIBUTES = frozenset(
    (*vars(logging.makeLogRecord({})), "message", "asctime", "taskName")
)


class JSONFormatter(logging.Formatter):
    """
    Formats a record as one line of JSON.

    The keys are ``time`` (ISO 8601 in UTC), ``level``, ``logger``, ``message``, ``exception`` with
    the stack trace if the record has one, and those of ``extra``. A value that JSON does not have
    becomes a text.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as a line, without a line break at its end."""
        fields: dict[str, Any] = {
            "time": to_iso(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        extra = {k: v for k, v in vars(record).items() if k not in _STANDARD_RECORD_ATTRIBUTES}
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        fields.update(extra)
        try:
            return _dump_json(fields)
        except Exception:  # noqa: BLE001  # NaN, a dict with other keys, a `__str__` that fails
            return _dump_json({str(key): _to_json_value(value) for key, value in fields.items()})


def _dump_json(value: Any) -> str:
    return json.dumps(value, default=str, allow_nan=False)


def _to_json_value(value: Any) -> Any:
    try:
        _dump_json(value)
    except Exception:  # noqa: BLE001  # as above
        return safe_repr(value)
    return value
