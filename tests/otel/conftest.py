"""An SDK for one test, and a check that no test leaves a context attached."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import context

from apscheduler_telemetry.export import otel_traces as otel
from tests.helpers.span_observer import Spans


@pytest.fixture
def sampling() -> Any:
    """Give the SDK's samplers, or skip the test where there is no SDK."""
    return pytest.importorskip(
        "opentelemetry.sdk.trace.sampling", reason="opentelemetry-sdk is not installed"
    )


@pytest.fixture
def spans(sampling: Any) -> Spans:
    """Give an SDK that samples everything."""
    return Spans(sampling.ALWAYS_ON)


@pytest.fixture
def clean_context(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(otel.EXCEPTION_SIGNAL_VARIABLE, raising=False)
    before = context.get_current()
    yield
    assert context.get_current() == before, "a test left something in the context"
