"""The log records of runs, as a handler gets them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace

from apscheduler_telemetry.export import run_log
from tests.helpers.jobs import WAIT_TIMEOUT
from tests.helpers.waiting import wait_until

LOGGER = logging.getLogger("apscheduler_telemetry.runs")
_STANDARD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))


class Records(logging.Handler):
    """Keeps records, and which span was current for each."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.spans: list[trace.SpanContext] = []
        self.threads: set[threading.Thread] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.threads.add(threading.current_thread())
        self.spans.append(trace.get_current_span().get_span_context())
        self.records.append(record)

    def wait_for(self, count: int) -> list[logging.LogRecord]:
        wait_until(lambda: len(self.records) >= count, "records")
        return self.records

    def only(self) -> logging.LogRecord:
        (record,) = self.wait_for(1)
        return record


def extra_of(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


@contextmanager
def recording() -> Iterator[Records]:
    """Keep all records of runs, also those of successes."""
    handler, level = Records(), LOGGER.level
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    try:
        yield handler
    finally:
        for writer in list(run_log._writers):
            writer.flush(WAIT_TIMEOUT)  # so that no later test gets what is still waiting
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
