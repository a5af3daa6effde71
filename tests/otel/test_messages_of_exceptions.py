"""`capture_message=False` and `redact=`: what of exceptions' messages leaves the process."""

from __future__ import annotations

import asyncio
import linecache
import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timezone
from typing import Any, NoReturn

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")

from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import ArgumentTypeError, instrument
from apscheduler_telemetry.api import get_handle
from apscheduler_telemetry.core.exception_text import (
    MAX_EXCEPTIONS_AND_NOTES,
    MAX_REDACT_INPUT_LENGTH,
    ExceptionDescriber,
)
from apscheduler_telemetry.core.model import MAX_MESSAGE_LENGTH, CaptureOptions
from apscheduler_telemetry.instrumentor import APSchedulerInstrumentor
from tests.helpers.metrics import errors_of
from tests.helpers.schedulers import finish_pass, forkserver_pool
from tests.helpers.waiting import wait_until, wait_until_async

SECRET = "hunter2"
EXECUTORS = [DebugExecutor, ThreadPoolExecutor, forkserver_pool]


class RefusingError(Exception):
    """An exception that cannot be pickled, and whose error quotes its argument."""

    def __reduce__(self) -> NoReturn:
        msg = f"cannot pickle {self}"
        raise TypeError(msg)


class GroupError(Exception):
    """Like an `ExceptionGroup`, which Python 3.10 does not have."""

    def __init__(self, *exceptions: Any) -> None:
        super().__init__(f"{len(exceptions)} failures with {SECRET}")
        self.exceptions = exceptions


def plain(secret: str) -> NoReturn:
    msg = f"cannot connect to postgres://app:{secret}@db"
    raise ConnectionError(msg)


def chained(secret: str) -> NoReturn:
    try:
        try:
            raise KeyError(secret)
        except KeyError:
            msg = f"no {secret}"
            raise LookupError(msg)  # noqa: B904  # with a context
    except LookupError as error:
        msg = f"bad {secret}"
        raise ValueError(msg) from error


def literal(_: str) -> NoReturn:
    raise ValueError("the password is hunter2")


def lines(secret: str) -> NoReturn:
    msg = f'first\n  File "{secret}", line 1, in {secret}\n    {secret}\n{secret}'
    raise ValueError(msg)


def noted(secret: str) -> NoReturn:
    error = ValueError(secret)
    vars(error)["__notes__"] = [f"a note with {secret}", 7]  # anything can be put there
    raise error


def grouped(secret: str) -> NoReturn:
    parts = []
    for kind in (ValueError, OSError):
        try:
            raise kind(secret)
        except (ValueError, OSError) as error:
            parts.append(error)
    raise GroupError(*parts, GroupError(KeyError(secret)))


def refused(secret: str) -> NoReturn:
    raise RefusingError(secret)


async def fail_later(secret: str) -> NoReturn:
    await asyncio.sleep(0)
    chained(secret)


FAILURES = [plain, chained, literal, lines, noted, grouped, refused]


def masked(text: str) -> str:
    return text.replace(SECRET, "***")


@contextmanager
def scheduler(executor: Any, **options: Any) -> Iterator[tuple[Any, InMemorySpanExporter]]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = BackgroundScheduler(executors={"default": executor}, timezone=timezone.utc)
    instrument(made, registry=CollectorRegistry(), tracer_provider=provider, **options)
    made.start()
    try:
        yield made, exporter
    finally:
        finish_pass(made)
        made.shutdown()


def span_of(executor: Any, func: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
    """Return the span of one run of `func`, and the errors of telemetry."""
    with scheduler(executor, capture_stacktrace=True, **options) as (made, exporter):
        made.add_job(func, args=[SECRET], id="job", misfire_grace_time=None)
        wait_until(exporter.get_finished_spans)
        (span,) = exporter.get_finished_spans()
        handle = get_handle(made)
        assert handle is not None
        return span, errors_of(handle).counts()


def our_log(caplog: pytest.LogCaptureFixture) -> str:
    """Return what this package has logged, with tracebacks."""
    formatter = logging.Formatter()
    ours = [r for r in caplog.records if r.name.startswith("apscheduler_telemetry")]
    return "\n".join(map(formatter.format, ours))


@pytest.mark.parametrize("executor", EXECUTORS, ids=lambda e: e.__name__)
@pytest.mark.parametrize("func", FAILURES, ids=lambda f: f.__name__)
class TestKeptBack:
    """No part of a message is in a span, whatever the exception and the executor."""

    def test_messages_are_not_captured(
        self, executor: Any, func: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A span has the type of the exception and its stack, and no message and no source."""
        span, errors = span_of(executor(), func, capture_message=False)
        assert SECRET not in span.to_json()
        assert SECRET not in our_log(caplog)
        assert span.status.status_code.name == "ERROR"
        assert span.status.description is None
        (event,) = span.events
        assert event.attributes["exception.type"] == span.attributes["error.type"]
        assert "exception.message" not in event.attributes
        if span.attributes["apscheduler.outcome"] == "error":
            stack = event.attributes["exception.stacktrace"]
            assert f'File "{__file__}"' in stack
            assert f"in {func.__name__}\n" in stack
            assert "    raise" not in stack
        assert not any(errors.values())

    def test_messages_are_redacted(
        self, executor: Any, func: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A span has what `redact` returns."""
        span, errors = span_of(executor(), func, redact=masked)
        assert SECRET not in span.to_json()
        assert "***" in span.status.description
        (event,) = span.events
        assert event.attributes["exception.message"] == span.status.description
        if func is plain:
            assert "    raise ConnectionError(" in event.attributes["exception.stacktrace"]
            assert event.attributes["exception.stacktrace"].endswith("app:***@db\n")
        assert SECRET not in our_log(caplog)
        assert not any(errors.values())


class TestStackTraces:
    """The form of a stack trace that is restricted."""

    def test_chained_exceptions_of_a_coroutine(self) -> None:
        """The stack trace ends with the type of the last one, and no message is in the span."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))

        async def main() -> None:
            made = AsyncIOScheduler(executors={"default": AsyncIOExecutor()}, timezone=timezone.utc)
            instrument(
                made,
                registry=CollectorRegistry(),
                tracer_provider=provider,
                capture_stacktrace=True,
                capture_message=False,
            )
            made.start()
            made.add_job(fail_later, args=[SECRET], misfire_grace_time=None)
            await wait_until_async(exporter.get_finished_spans)
            made.shutdown()
            await asyncio.sleep(0)

        asyncio.run(main())
        (span,) = exporter.get_finished_spans()
        assert SECRET not in span.to_json()
        stack = str(span.events[0].attributes["exception.stacktrace"])  # type: ignore[index]
        assert stack.endswith("ValueError\n")

    def test_whole_chain_of_an_exception(self) -> None:
        """All exceptions that led to one are in its stack trace, without their messages."""
        text = ExceptionDescriber(CaptureOptions(captures_message=False), pytest.fail)
        with pytest.raises(ValueError, match="bad") as raised:
            chained(SECRET)
        raised.value.__cause__.__context__.__context__ = raised.value  # type: ignore[union-attr]
        stack = text.format_stacktrace(raised.value)
        types = re.findall(r"^(\w+Error)$", stack, re.MULTILINE)
        assert types == ["KeyError", "LookupError", "ValueError"]
        assert "direct cause of the following" in stack
        assert "During handling of the above" in stack
        assert SECRET not in stack

    def test_suppressed_context_is_left_out(self) -> None:
        """What ``raise ... from None`` hides is hidden, as Python does it."""
        error = ValueError()
        error.__context__ = KeyError()
        text = ExceptionDescriber(CaptureOptions(captures_message=False), pytest.fail)
        assert "KeyError" in text.format_stacktrace(error)
        error.__suppress_context__ = True
        assert text.format_stacktrace(error) == "ValueError\n"

    def test_end_of_a_long_chain_is_kept(self) -> None:
        """Of a long chain, the last exceptions are in the stack trace."""
        last: Exception = KeyError()
        for number in range(100):
            following = OSError(number)
            following.__cause__ = last
            last = following
        stack = ExceptionDescriber(
            CaptureOptions(captures_message=False), pytest.fail
        ).format_stacktrace(last)
        assert stack.count("OSError\n") == MAX_EXCEPTIONS_AND_NOTES
        assert "KeyError" not in stack

    def test_parts_of_a_group_are_told_by_their_types(self) -> None:
        """Each exception of a group, and of groups in it, is named; what is none is left out."""
        parts: list[Any] = []
        for fail in (plain, literal):
            try:
                fail(SECRET)
            except (ConnectionError, ValueError) as error:
                parts.append(error)
        group = GroupError(*parts, SECRET, GroupError(KeyError(SECRET)))
        stack = ExceptionDescriber(
            CaptureOptions(captures_message=False), pytest.fail
        ).format_stacktrace(group)
        named = re.findall(r"^Part of it, (?:\w+\.)*(\w+):$", stack, re.MULTILINE)
        assert named == ["ConnectionError", "ValueError", "GroupError", "KeyError"]
        assert "in literal\n" in stack
        assert SECRET not in stack

    def test_parts_of_a_large_group_are_bounded(self) -> None:
        """The first exceptions of a large group are named."""
        group = GroupError(*(ValueError() for _ in range(100)))
        stack = ExceptionDescriber(
            CaptureOptions(captures_message=False), pytest.fail
        ).format_stacktrace(group)
        assert stack.count("Part of it, ") == MAX_EXCEPTIONS_AND_NOTES

    def test_notes_are_redacted(self) -> None:
        """Notes are in the stack trace, redacted like messages."""
        error = ValueError(SECRET)
        vars(error)["__notes__"] = [f"a note with {SECRET}", 7]
        stack = ExceptionDescriber(CaptureOptions(redact=masked), pytest.fail).format_stacktrace(
            error
        )
        assert stack.endswith("ValueError: ***\na note with ***\n")

    def test_line_of_source_that_looks_like_a_frame_is_none(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The source may be a template, of which a line can begin as that of a frame does."""
        line = f'  File "{SECRET}", line 1, in {SECRET}\n'
        monkeypatch.setitem(linecache.cache, "template", (len(line), None, [line], "template"))
        with pytest.raises(ZeroDivisionError) as raised:
            exec(compile("1 / 0", "template", "exec"))
        stack = ExceptionDescriber(
            CaptureOptions(captures_message=False), pytest.fail
        ).format_stacktrace(raised.value)
        assert 'File "template", line 1' in stack
        assert SECRET not in stack

    @pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 has no groups")
    def test_group_of_exceptions(self) -> None:
        """Neither the message of a group nor those of its exceptions are in the span."""

        def group(secret: str) -> NoReturn:
            groups: Any = __builtins__["ExceptionGroup"]  # type: ignore[index]
            raise groups(secret, [ValueError(secret), groups(secret, [OSError(secret)])])

        span, _ = span_of(DebugExecutor(), group, capture_message=False)
        assert span.attributes["error.type"] == "ExceptionGroup"
        assert SECRET not in span.to_json()


class TestRedact:
    """What `redact` gets, and what becomes of what it returns."""

    def test_redact_gets_more_than_is_exported(self) -> None:
        """It gets a long text, so that nothing is cut that it looks for, and the result is cut."""
        got: list[str] = []

        def note(text: str) -> str:
            got.append(text)
            return text

        def fail(_: str) -> NoReturn:
            raise ValueError("x" * 1_000_000)

        with scheduler(DebugExecutor(), redact=note) as (made, exporter):
            made.add_job(fail, args=[SECRET], misfire_grace_time=None)
            wait_until(exporter.get_finished_spans)
        assert [len(text) for text in got] == [MAX_REDACT_INPUT_LENGTH]
        (span,) = exporter.get_finished_spans()
        assert len(span.status.description or "") == MAX_MESSAGE_LENGTH

    def test_long_result_is_cut(self) -> None:
        """What it makes of a short message may be long, and is cut like a message."""
        text = ExceptionDescriber(CaptureOptions(redact=lambda text: text * 100_000), pytest.fail)
        assert len(text.exportable_message(ValueError("short")) or "") == MAX_MESSAGE_LENGTH

    def test_redact_gets_no_more_of_a_note(self) -> None:
        """Notes and lines of source may be as long as messages, and are cut as these are."""
        lengths: list[int] = []

        def note_length(text: str) -> str:
            lengths.append(len(text))
            return ""

        error = ValueError()
        vars(error)["__notes__"] = ["x" * 1_000_000]
        ExceptionDescriber(CaptureOptions(redact=note_length), pytest.fail).format_stacktrace(error)
        assert max(lengths) == MAX_REDACT_INPUT_LENGTH

    def test_empty_text_is_recorded_as_such(self) -> None:
        """Nothing of the message is recorded if it returns an empty text."""
        span, errors = span_of(DebugExecutor(), plain, redact=lambda _: "")
        assert span.status.description in {None, ""}
        assert SECRET not in span.to_json()
        assert errors["redact"] == 0

    @pytest.mark.parametrize("executor", EXECUTORS, ids=lambda e: e.__name__)
    @pytest.mark.parametrize("wrong", ["raises", None, 7, b"bytes", ["text"]], ids=str)
    def test_failing_redact_exports_nothing(
        self, executor: Any, wrong: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The run is recorded without the message; the failure is counted and logged without it."""

        def redact(text: str) -> Any:
            if wrong == "raises":
                # The first text may be a line of source without a secret, and only that is logged.
                msg = f"cannot redact {text}, nor {SECRET}"
                raise ValueError(msg)
            return wrong

        span, errors = span_of(executor(), plain, redact=redact)
        assert span.attributes["apscheduler.outcome"] == "error"
        assert span.attributes["error.type"] == "ConnectionError"
        assert SECRET not in span.to_json()
        assert errors["redact"] > 0
        assert sum(errors.values()) == errors["redact"]
        log = our_log(caplog)
        assert SECRET not in log
        assert log.count("failed in its component 'redact'") == 1


class TestLog:
    """The log of this package has no messages either."""

    @pytest.mark.parametrize(
        "options", [{"capture_message": False}, {"redact": masked}], ids=["kept back", "redacted"]
    )
    def test_failures_of_telemetry_are_logged_without_messages(
        self, options: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The traceback of a callable of the user's tells types and frames only."""

        def label(_: Any) -> str:
            chained(SECRET)

        with scheduler(DebugExecutor(), job_label=label, **options) as (made, exporter):
            made.add_job(print, misfire_grace_time=None)
            wait_until(exporter.get_finished_spans)
        log = our_log(caplog)
        assert "failed in its component 'job_label'" in log
        assert "ValueError" in log
        assert "in chained" in log
        assert SECRET not in log
        assert not any(r.exc_info for r in caplog.records if "job_label" in r.getMessage())

    def test_error_in_a_child_process_is_logged_by_its_type(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a child process reports of telemetry's own errors is cut to the type."""
        with scheduler(DebugExecutor(), capture_message=False) as (made, _):
            handle = get_handle(made)
            assert handle is not None
            executor: Any = handle._exported_scheduler.adapter
            trackers = [v for v in vars(executor).values() if hasattr(v, "report_child_error")]
            (tracker,) = trackers
            tracker.report_child_error(f"ValueError('{SECRET}')")
        log = our_log(caplog)
        assert "(ValueError)" in log
        assert SECRET not in log


class TestOptions:
    """How the options are set."""

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"capture_message": "no"}, "capture_message must be True or False"),
            ({"redact": "***"}, "redact must be a callable that takes a str and returns one"),
        ],
    )
    def test_wrong_options_are_refused(self, options: Any, message: str) -> None:
        """Anything else is refused with a message that says what to pass."""
        with pytest.raises(ArgumentTypeError, match=message):
            instrument(BackgroundScheduler(), **options)

    def test_variable_keeps_messages_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """``OTEL_PYTHON_APSCHEDULER_CAPTURE_MESSAGE=false`` does the same without code."""
        monkeypatch.setenv("OTEL_PYTHON_APSCHEDULER_CAPTURE_MESSAGE", "false")
        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        instrumentor = APSchedulerInstrumentor()
        instrumentor.instrument(tracer_provider=provider)
        made = BackgroundScheduler(timezone=timezone.utc)
        try:
            made.start()
            made.add_job(plain, args=[SECRET], misfire_grace_time=None)
            wait_until(exporter.get_finished_spans)
        finally:
            made.shutdown()
            instrumentor.uninstrument()
        (span,) = exporter.get_finished_spans()
        assert SECRET not in span.to_json()
        assert (span.attributes or {})["error.type"] == "ConnectionError"
