"""Every text that leaves in spans, metrics, logs and health has a limited length."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from datetime import timezone, tzinfo
from typing import Any, NoReturn

import pytest

pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")

from apscheduler.executors.debug import DebugExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.triggers.date import DateTrigger
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import ArgumentValueError, Expectations, instrument
from apscheduler_telemetry.core import observers
from apscheduler_telemetry.core.exception_text import MAX_STACKTRACE_LENGTH
from apscheduler_telemetry.core.labels import MAX_LABEL_LENGTH
from apscheduler_telemetry.core.model import MAX_MESSAGE_LENGTH
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.safe_repr import MAX_CHARACTERS
from tests.helpers.waiting import wait_until

HUGE = "x" * 1_000_000
HugeError: Any = type("E" * 1_000_000, (Exception,), {"__module__": "m" * 1_000_000})
HugeScheduler: Any = type("S" * 1_000_000, (BackgroundScheduler,), {})
HugeTrigger: Any = type("T" * 1_000_000, (DateTrigger,), {"__str__": lambda _: HUGE})


class HugeZone(tzinfo):
    """UTC with a long name."""

    def utcoffset(self, _: Any) -> Any:
        return timezone.utc.utcoffset(None)

    dst = utcoffset

    def tzname(self, _: Any) -> str:
        return HUGE

    def __str__(self) -> str:
        return HUGE


def fail(**_: Any) -> NoReturn:
    raise HugeError(HUGE) from HugeError(HUGE)


fail.__qualname__ = HUGE


@pytest.fixture(name="seen")
def _seen() -> Iterator[Any]:
    """Run a job of which everything has a huge name; yield its handle, registry and span."""
    exporter, registry = InMemorySpanExporter(), CollectorRegistry()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    scheduler = HugeScheduler(timezone=HugeZone())
    scheduler.add_executor(DebugExecutor(), HUGE)
    scheduler.add_jobstore(MemoryJobStore(), HUGE)
    telemetry = instrument(
        scheduler,
        registry=registry,
        tracer_provider=provider,
        expect=lambda _: Expectations(owner=HUGE),
        capture_arguments=True,
        capture_stacktrace=True,
    )
    scheduler.start()
    try:
        scheduler.add_job(
            fail,
            HugeTrigger(),
            kwargs={HUGE: HUGE},
            id=HUGE,
            name=HUGE,
            executor=HUGE,
            jobstore=HUGE,
            misfire_grace_time=None,
        )
        scheduler.add_job(fail, "interval", days=1, id=HUGE, executor=HUGE)
        wait_until(exporter.get_finished_spans)
        (span,) = exporter.get_finished_spans()
        yield telemetry, registry, span
    finally:
        scheduler.shutdown()


class TestExported:
    """A job, a scheduler and an exception with names of a million characters."""

    def test_texts_of_spans(self, seen: Any) -> None:
        """Names are cut as everywhere, messages and stack traces at their own limits."""
        _, _, span = seen
        limits = {
            "apscheduler.job.arguments": MAX_CHARACTERS,
            "exception.message": MAX_MESSAGE_LENGTH,
            "exception.stacktrace": MAX_STACKTRACE_LENGTH,
        }
        (event,) = span.events
        assert {
            "error.type",
            "apscheduler.job.id",
            "apscheduler.jobstore",
        } <= span.attributes.keys()
        assert {*limits, "exception.type"} <= {*span.attributes, *event.attributes}
        for name, text in (*span.attributes.items(), *event.attributes.items()):
            assert len(str(text)) <= limits.get(name, MAX_LABEL_LENGTH), name
        assert len(span.name) <= MAX_LABEL_LENGTH
        assert len(span.status.description) == MAX_MESSAGE_LENGTH

    def test_long_types_stay_distinct(self) -> None:
        """Two types whose long names begin alike are two error types."""
        from apscheduler_telemetry.core.model import exception_type_name

        names = {exception_type_name(type("E" * 300 + end, (Exception,), {})()) for end in "ab"}
        assert len(names) == 2
        assert {len(name) for name in names} == {MAX_LABEL_LENGTH}

    def test_labels_of_metrics(self, seen: Any) -> None:
        """No label value is longer than its limit."""
        _, registry, _ = seen
        lengths = [
            len(value)
            for metric in registry.collect()
            for sample in metric.samples
            for value in sample.labels.values()
        ]
        assert max(lengths) == MAX_LABEL_LENGTH
        assert max(map(len, generate_latest(registry).split(b"\n"))) < 10 * MAX_LABEL_LENGTH

    def test_health(self, seen: Any) -> None:
        """The report of a scheduler with one job has a few kilobytes."""
        telemetry, _, _ = seen
        assert len(json.dumps(telemetry.health())) < 10 * MAX_LABEL_LENGTH

    def test_name_of_a_scheduler_is_refused_if_it_is_too_long(self) -> None:
        """The error says what to pass."""
        with pytest.raises(ArgumentValueError, match=r"at most 200 characters.*got 201"):
            instrument(BackgroundScheduler(), name="x" * (MAX_LABEL_LENGTH + 1))


class TestLog:
    """Failures of telemetry, whose messages may be long."""

    @pytest.mark.parametrize("error", [ValueError(HUGE), HugeError(), HugeError(HUGE)], ids=repr)
    def test_exceptions_are_cut(
        self, error: BaseException, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The end of a long traceback is logged."""
        try:
            raise error from ValueError(HUGE)
        except (ValueError, HugeError):
            ErrorReporter().exception("spans")
        (record,) = caplog.records
        assert len(logging.Formatter().format(record)) < 2 * MAX_STACKTRACE_LENGTH

    def test_descriptions_are_cut(self, caplog: pytest.LogCaptureFixture) -> None:
        """A description is cut like a message, and the name of a file like a long path."""
        reporter = ErrorReporter()
        reporter.report("spans", HUGE)
        reporter.report_unusable_path("multiprocess", HUGE, "is damaged")
        assert all(len(message) < 2 * MAX_MESSAGE_LENGTH for message in caplog.messages)

    def test_subjects_in_the_log_are_bounded(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of many things, such as files, the first ones are named; all of them are counted."""
        monkeypatch.setattr(observers, "MAX_LOGGED_FILE_PATHS", 5)
        reporter = ErrorReporter()
        for number in (*range(10), *range(10)):
            reporter.report_unusable_path("multiprocess", f"file {number}", "is damaged")
        assert [message.partition(" is")[0] for message in caplog.messages] == [
            f"file {number}" for number in range(5)
        ]
        assert reporter.counts()["multiprocess"] == 20

    @pytest.mark.parametrize("option", ["job_label", "expect"])
    def test_wrong_values_of_options_are_cut(
        self, option: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What a callable of the user's returned instead is in the log in brief."""
        scheduler = BackgroundScheduler(timezone=timezone.utc)
        options: dict[str, Any] = {option: lambda _: [HUGE]}
        instrument(scheduler, registry=CollectorRegistry(), **options)
        scheduler.start(paused=True)
        scheduler.add_job(print, id=HUGE)
        scheduler.shutdown()
        (record,) = [r for r in caplog.records if repr(option) in r.getMessage()]
        assert len(logging.Formatter().format(record)) < 2 * MAX_STACKTRACE_LENGTH
