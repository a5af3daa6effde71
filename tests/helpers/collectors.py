"""Collectors of a user that fail or hang, and what is reported of them."""

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
    """A collector of a user that raises."""

    def __init__(self, error: BaseException, names: Sequence[str] = ()) -> None:
        self.error = error
        self.names = names

    def describe(self) -> list[Any]:
        return [Metric(name, "", "gauge") for name in self.names]

    def collect(self) -> list[Any]:
        raise self.error


class HangingCollector:
    """A collector of a user that blocks until it is released."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.release = threading.Event()

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        self.entered.release()
        self.release.wait(RESPONSE_TIMEOUT)
        return []
