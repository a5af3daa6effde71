"""What tests of several commands need."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from apscheduler_telemetry.cli import main


@pytest.fixture
def output_of(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Return what a command prints; it must succeed."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments: str) -> str:
        status = main(arguments)
        output, errors = capfdbinary.readouterr()
        assert (status, errors) == (0, b"")
        return output.decode()

    return run
