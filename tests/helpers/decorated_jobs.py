"""Jobs with expectations, for stores and process pools. It imports as little as an application."""

from __future__ import annotations

import sys
from typing import Any

from apscheduler_telemetry import expect


@expect(max_duration=60, owner="payments")
def settle() -> str:
    """Return which modules this process has imported."""
    return " ".join(sorted({name.partition(".")[0] for name in sys.modules}))


class Books:
    """A class with jobs of each kind."""

    @expect(owner="method")
    def close(self) -> None: ...

    @staticmethod
    @expect(owner="inner")
    def check() -> None: ...

    @expect(owner="outer")
    @staticmethod
    def recheck() -> None: ...

    @classmethod
    @expect(owner="inner")
    def open(cls) -> None: ...

    @expect(owner="outer")
    @classmethod
    def reopen(cls) -> None: ...


@expect(owner="class")
class Report:
    """A class whose instances are jobs."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self) -> None: ...
