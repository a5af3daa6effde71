"""Exceptions whose attributes cannot be read, in spans and in the log."""

from __future__ import annotations

import logging
from typing import Any, NoReturn

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.watching import due, watched

SECRET = "hunter2"


def _raise(*_: Any) -> NoReturn:
    raise RuntimeError(SECRET)


def _exit(*_: Any) -> NoReturn:
    raise SystemExit(SECRET)


class NotesError(Exception):
    __notes__ = property(_raise)


class ExitNotesError(Exception):
    __notes__ = property(_exit)


class CauseError(Exception):
    __cause__ = property(_raise)
    __context__ = property(_raise)


class TracebackError(Exception):
    __traceback__ = property(_raise)


class GroupError(Exception):
    exceptions = property(_raise)


class OddCauseError(Exception):
    __cause__ = 7  # type: ignore[assignment]


class AttributeReadError(Exception):
    def __getattribute__(self, name: str) -> NoReturn:
        raise RuntimeError(name)


class Nameless(type):
    def __getattribute__(cls, name: str) -> Any:
        if name in {"__name__", "__qualname__", "__module__"}:
            raise RuntimeError(name)
        return super().__getattribute__(name)


class NamelessError(Exception, metaclass=Nameless):
    pass


class Text(str):
    """A note that answers nothing."""

    __len__ = __getitem__ = encode = splitlines = __str__ = _raise  # type: ignore[assignment]
    __slots__ = ()


class TextNotesError(Exception):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.__notes__ = [Text("a note")]


ERRORS = [
    NotesError,
    ExitNotesError,
    CauseError,
    TracebackError,
    GroupError,
    OddCauseError,
    AttributeReadError,
    NamelessError,
    TextNotesError,
]
OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without messages": {"capture_message": False},
    "redacted": {"redact": lambda text: text.replace(SECRET, "***")},
}
ids = pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: type.__repr__(kind).split(".")[-1])
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


class TestStackTraces:
    @ids
    @options
    def test_span_has_the_stack_trace(
        self, kind: type[Exception], options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """What can be read of the exception is exported, and nothing is logged."""
        caplog.set_level(logging.CRITICAL, "apscheduler")
        spans = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(spans))

        def fail_in_the_job() -> None:
            raise kind(SECRET)

        options = {"capture_stacktrace": True, "tracer_provider": provider, **options}
        with watched(hand_driven_scheduler(), **options) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(fail_in_the_job, **due())
            seen.scheduler.turn()
            assert seen.own_errors() == {}
            assert seen.runs() == {"error": 1}
        [span] = spans.get_finished_spans()
        [event] = span.events
        trace = str(event.attributes["exception.stacktrace"])  # type: ignore[index]
        if kind is not TracebackError:
            assert "in fail_in_the_job" in trace
        assert (SECRET in span.to_json()) is not (
            "capture_message" in options or "redact" in options
        )
        assert [r for r in caplog.records if r.name.startswith("apscheduler_telemetry")] == []


class TestLog:
    @ids
    @options
    def test_failure_is_logged_without_another_one(
        self,
        kind: type[Exception],
        options: dict[str, Any],
        caplog: pytest.LogCaptureFixture,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The exception of a callable of the user's is logged as far as it can be read."""

        def job_label(_: Any) -> NoReturn:
            raise kind(SECRET)

        with watched(hand_driven_scheduler(), job_label=job_label, **options) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(print, "interval", hours=1)
        [record] = [r for r in caplog.records if r.name.startswith("apscheduler_telemetry")]
        text = logging.Formatter().format(record)
        if kind is not TracebackError:
            assert "in job_label" in text
        assert (SECRET in text) is not bool(options)
        assert "Logging error" not in capsys.readouterr().err
