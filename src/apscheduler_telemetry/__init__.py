"""
Prometheus metrics and OpenTelemetry spans for every run of an APScheduler scheduler.

    from apscheduler_telemetry import instrument

    telemetry = instrument(scheduler)
    telemetry.start_http_server()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apscheduler_telemetry._version import __version__
    from apscheduler_telemetry.api import Telemetry, instrument
    from apscheduler_telemetry.context_store import FileContextStore
    from apscheduler_telemetry.core.current_run import current_run
    from apscheduler_telemetry.core.expectations import Expectations, expect
    from apscheduler_telemetry.errors import (
        ArgumentTypeError,
        ArgumentValueError,
        DuplicateNameError,
        NotInstrumentedError,
        TelemetryError,
    )
    from apscheduler_telemetry.http import HTTPServer

__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "DuplicateNameError",
    "Expectations",
    "FileContextStore",
    "HTTPServer",
    "NotInstrumentedError",
    "Telemetry",
    "TelemetryError",
    "__version__",
    "current_run",
    "expect",
    "instrument",
]

_MODULES_OF_PUBLIC_NAMES = {
    "ArgumentTypeError": "errors",
    "ArgumentValueError": "errors",
    "DuplicateNameError": "errors",
    "Expectations": "core.expectations",
    "FileContextStore": "context_store",
    "HTTPServer": "http",
    "NotInstrumentedError": "errors",
    "Telemetry": "api",
    "TelemetryError": "errors",
    "__version__": "_version",
    "current_run": "core.current_run",
    "expect": "core.expectations",
    "instrument": "api",
}


def __getattr__(name: str) -> Any:
    # Lazily, as every spawned child of a process pool imports this package to reach
    # adapters.apscheduler3.child_process, and must not pay for Prometheus and OpenTelemetry.
    if name not in _MODULES_OF_PUBLIC_NAMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module  # noqa: PLC0415

    try:
        module = import_module(f"{__name__}.{_MODULES_OF_PUBLIC_NAMES[name]}")
    except AttributeError as error:  # which Python would take for an unknown name
        raise ImportError(str(error)) from error
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
