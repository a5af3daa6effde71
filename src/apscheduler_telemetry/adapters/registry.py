"""
The adapters that exist, and which of them fits what the user passes.
"""

from __future__ import annotations

import reprlib
from typing import Any

from apscheduler_telemetry.adapters.apscheduler3.adapter import APScheduler3Adapter
from apscheduler_telemetry.adapters.apscheduler3.auto_instrumentation import (
    APScheduler3AutomaticInstrumentation,
)
from apscheduler_telemetry.adapters.apscheduler3.start_prevention import APScheduler3StartPrevention
from apscheduler_telemetry.adapters.base import (
    AutomaticInstrumentation,
    SchedulerAdapter,
    StartPrevention,
)
from apscheduler_telemetry.errors import ArgumentTypeError

ADAPTERS: list[type[SchedulerAdapter]] = [APScheduler3Adapter]
AUTOMATIC_INSTRUMENTATIONS: list[type[AutomaticInstrumentation]] = [
    APScheduler3AutomaticInstrumentation
]
START_PREVENTIONS: list[type[StartPrevention]] = [APScheduler3StartPrevention]


def find_adapter(candidate: Any) -> tuple[type[SchedulerAdapter], Any]:
    """
    Return the adapter that can watch `candidate`, and the scheduler to watch.

    They differ if `candidate` wraps the scheduler that runs.

    Raises:
        ArgumentTypeError: none can; the message suggests what to pass instead.
    """
    for adapter in ADAPTERS:
        scheduler = adapter.find_scheduler(candidate)
        if scheduler is not None:
            return adapter, scheduler
    hints = (adapter.describe_rejected_candidate(candidate) for adapter in ADAPTERS)
    hint = next((hint for hint in hints if hint), None) or _short_repr(candidate)
    msg = (
        "instrument() takes a scheduler of APScheduler 3, such as "
        f"apscheduler.schedulers.background.BackgroundScheduler(); got {hint}"
    )
    raise ArgumentTypeError(msg)


_repr_formatter = reprlib.Repr()  # in a line, and surviving a __repr__ that raises
_repr_formatter.maxother = _repr_formatter.maxstring = 100
_short_repr = _repr_formatter.repr
