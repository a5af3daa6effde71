"""Users' collectors that fail or hang, and the reported errors."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

from prometheus_client import Metric

from tests.helpers.http_clients import RESPONSE_TIMEOUT


class ReportedErrors(list[tuple[str, BaseException | None]]):
    """Collects the components that failed, with the exception that was being handled."""

    def __call__(self, component: str) -> None:
        self.append((component, sys.exc_info()[1]))


class RaisingCollector:
    """A user's collector that raises."""

    def __init__(self, error: BaseException, names: Sequence[str] = ()) -> None:
        self.error = error
        self.names = names

    def describe(self) -> list[Any]:
        return [Metric(name, "", "gauge") for name in self.names]

    def collect(self) -> list[Any]:
        raise self.error


class HangingCollector:
    """A user's collector that blocks until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        self.entered.release()
        self.release.wait(RESPONSE_TIMEOUT)
        return []
