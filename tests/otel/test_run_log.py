"""One log record for each run, by the standard library and by OpenTelemetry."""

from __future__ import annotations

import inspect
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from opentelemetry import trace
from opentelemetry._logs import Logger, get_logger_provider
from opentelemetry.context import Context

from apscheduler_telemetry import ArgumentTypeError, current_run, instrument
from apscheduler_telemetry.export import run_log
from apscheduler_telemetry.run_log import JSONFormatter
from tests.helpers import jobs
from tests.helpers.rigs import Gate, HandRig, hand_driven_rig
from tests.helpers.run_log_records import LOGGER, Records, extra_of, recording
from tests.helpers.schedulers import forkserver_pool, hand_driven_scheduler
from tests.helpers.scripts import output_of_script
from tests.helpers.threads import in_fork
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until


@pytest.fixture
def records() -> Iterator[Records]:
    """Keep all records of runs."""
    with recording() as records:
        yield records


@pytest.fixture
def exporter() -> Any:
    """Keep spans, or skip the test where there is no SDK."""
    name = "opentelemetry.sdk.trace.export.in_memory_span_exporter"
    return pytest.importorskip(name).InMemorySpanExporter()


@pytest.fixture
def tracer_provider(exporter: Any) -> Any:
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    return provider


def run_once(rig: HandRig, function: Callable[..., Any], **options: Any) -> None:
    rig.add(function, **options)
    rig.scheduler.turn()
    rig.settle()


LOGGED = {"run_log": True}


class Unprintable:
    """A value whose text cannot be had."""

    def __str__(self) -> str:
        msg = "by the test"
        raise ValueError(msg)


class KeepingHandler(logging.Handler):
    """Keeps records in a list."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self.emit = records.append  # type: ignore[assignment, method-assign]


class TestStandardLibrary:
    def test_success_is_logged_with_its_fields(self, records: Records) -> None:
        """A success is a record of level INFO with all fields in ``extra``."""
        with hand_driven_rig(telemetry=LOGGED) as rig:
            run_once(rig, lambda: current_run().record(rows=17), name="Nightly")
            record = records.only()

        extra = extra_of(record)
        duration = extra.pop("apscheduler.job.run.duration")
        assert (record.name, record.levelname) == ("apscheduler_telemetry.runs", "INFO")
        assert record.getMessage() == f"job: success after {duration:.3f} s"
        assert extra == {
            "job.system": "apscheduler",
            "apscheduler.job.id": "job",
            "apscheduler.job.label": "job",
            "apscheduler.job.name": "Nightly",
            "apscheduler.job.function": "tests.otel.test_run_log.TestStandardLibrary."
            "test_success_is_logged_with_its_fields.<locals>.<lambda>",
            "apscheduler.scheduler": "default",
            "apscheduler.executor": "default",
            "apscheduler.jobstore": "default",
            "apscheduler.trigger": "date",
            "apscheduler.scheduled_time": "2030-01-01T00:00:00+00:00",
            "apscheduler.start_time": "2030-01-01T00:00:00+00:00",
            "apscheduler.start_delay": 0.0,
            "apscheduler.outcome": "success",
            "apscheduler.recorded.rows": 17.0,
        }

    def test_error_is_logged_with_its_exception(self, records: Records) -> None:
        """A run that raises is a record of level ERROR with type and message."""
        with hand_driven_rig(telemetry=LOGGED) as rig:
            run_once(rig, jobs.fail, args=["refused"])
            record = records.only()

        extra = extra_of(record)
        assert record.levelname == "ERROR"
        assert record.getMessage().endswith(" s: ValueError: refused")
        assert extra["error.type"] == extra["exception.type"] == "ValueError"
        assert extra["apscheduler.error.message"] == extra["exception.message"] == "refused"
        assert "exception.stacktrace" not in extra
        assert record.exc_info is None

    def test_message_is_one_line(self, records: Records) -> None:
        """Line breaks and control characters of ids and errors cannot forge another line."""
        with hand_driven_rig(telemetry=LOGGED) as rig:
            run_once(rig, jobs.fail, args=["a\nb\x1b[2J\u2028ü"], id="two\nlines")
            record = records.only()

        message = record.getMessage()
        assert message.startswith("two\\nlines: error after ")
        assert message.endswith(": ValueError: a\\nb\\x1b[2J\\u2028ü")
        assert extra_of(record)["exception.message"] == "a\nb\x1b[2J\u2028ü"

    def test_captured_data_is_in_it(self, records: Records) -> None:
        """Arguments, results and stack traces are logged on request."""
        options = {
            "capture_arguments": True,
            "capture_result": True,
            "capture_stacktrace": True,
            **LOGGED,
        }
        with hand_driven_rig(telemetry=options) as rig:
            run_once(rig, jobs.give_back, args=[7], id="returns")
            run_once(rig, jobs.fail, id="raises")
            returned, raised = map(extra_of, records.wait_for(2))

        assert (returned["apscheduler.job.arguments"], returned["apscheduler.result"]) == ("7", "7")
        assert "ValueError" in raised["exception.stacktrace"]

    @pytest.mark.parametrize(
        ("options", "message"),
        [({"capture_message": False}, None), ({"redact": lambda _: "redacted"}, "redacted")],
    )
    def test_message_is_what_may_be_exported(
        self, records: Records, options: dict[str, Any], message: str | None
    ) -> None:
        """`capture_message` and `redact` hold for the log of runs, too."""
        with hand_driven_rig(telemetry={**options, **LOGGED}) as rig:
            run_once(rig, jobs.fail, args=["password=secret"])
            record = records.only()

        assert extra_of(record).get("apscheduler.error.message") == message
        assert "secret" not in JSONFormatter().format(record)

    def test_reported_failure_is_an_error(self, records: Records) -> None:
        """A failure that the callable reports has its reason, and no exception."""
        with hand_driven_rig(telemetry=LOGGED) as rig:
            rig.checks_events = False
            run_once(rig, lambda: current_run().fail("no file"))
            record = records.only()

        extra = extra_of(record)
        assert (record.levelname, extra["error.type"]) == ("ERROR", "__fail__")
        assert extra["apscheduler.error.message"] == "no file"
        assert "exception.type" not in extra

    def test_each_run_that_does_not_start_is_logged(self, records: Records) -> None:
        """Missed, skipped, coalesced and lost runs are logged with their reasons."""
        gate = Gate()
        with hand_driven_rig(telemetry=LOGGED) as rig:
            rig.add(gate.hold, every(10), id="skips", coalesce=True)
            rig.add(jobs.nothing, every(3_600), id="misses", misfire_grace_time=5)
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.clock.advance(3_630)
            rig.scheduler.turn()
            gate.open()
            rig.settle()
            rig.scheduler._executors["default"]._pool.shutdown()
            rig.add(jobs.nothing, id="loses")
            rig.scheduler.turn()
            wanted = {"success", "missed", "skipped", "coalesced", "lost"}
            wait_until(
                lambda: {extra_of(r)["apscheduler.outcome"] for r in records.records} == wanted
            )

        last = {extra_of(r)["apscheduler.outcome"]: r for r in records.records}
        assert {outcome: record.levelname for outcome, record in last.items()} == {
            "success": "INFO",
            "coalesced": "INFO",
            "missed": "ERROR",
            "skipped": "ERROR",
            "lost": "ERROR",
        }
        assert last["missed"].getMessage() == (
            "misses: missed, due 2030-01-01T01:00:00+00:00: started too late, so APScheduler "
            "dropped the run (misfire)"
        )
        assert {
            outcome: extra_of(record).get("apscheduler.error.message")
            for outcome, record in last.items()
        } == {
            "success": None,
            "coalesced": None,
            "missed": "started too late, so APScheduler dropped the run (misfire)",
            "skipped": "max_instances runs of the job were in progress",
            "lost": "cannot schedule new futures after shutdown",
        }
        assert extra_of(last["missed"])["error.type"] == "missed"
        assert extra_of(last["lost"])["error.type"] == "RuntimeError"
        assert "apscheduler.start_time" not in extra_of(last["skipped"])

    def test_run_in_a_child_process_is_logged(self, records: Records) -> None:
        """A run in a process pool is logged by the parent, once, with its measured start."""
        with hand_driven_rig({"default": forkserver_pool()}, telemetry=LOGGED) as rig:
            run_once(rig, jobs.nothing)
            extra = extra_of(records.only())

        assert extra["apscheduler.job.run.duration"] >= 0
        assert datetime.fromisoformat(extra["apscheduler.start_time"]).tzinfo is not None

    def test_nothing_is_logged_unless_asked(self, records: Records) -> None:
        """By default there are no records."""
        with hand_driven_rig() as rig:
            run_once(rig, jobs.nothing)

        assert records.records == []

    def test_level_of_the_logger_holds(self, records: Records) -> None:
        """With the level ERROR, only failures are logged."""
        LOGGER.setLevel(logging.ERROR)
        with hand_driven_rig(telemetry=LOGGED) as rig:
            run_once(rig, jobs.nothing, id="succeeds")
            run_once(rig, jobs.fail, id="fails")

        assert records.only().levelname == "ERROR"

    def test_record_factory_may_set_the_same_fields(
        self, records: Records, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A factory that adds a trace id to every record does not keep a run out of the log."""

        def create_record(*args: Any, **kwargs: Any) -> logging.LogRecord:
            record = logging.LogRecord(*args, **kwargs)
            vars(record).update({"trace_id": "0", "apscheduler.outcome": "of the application"})
            return record

        monkeypatch.setattr(logging, "_logRecordFactory", create_record)
        with hand_driven_rig(telemetry=LOGGED) as rig:
            run_once(rig, jobs.nothing)
            record = records.only()

        assert extra_of(record)["apscheduler.outcome"] == "success"

    def test_record_is_in_the_trace_of_the_run(
        self, records: Records, tracer_provider: Any, exporter: Any
    ) -> None:
        """The span of the run is current for handlers, also if the run never started."""
        options = {"tracer_provider": tracer_provider, **LOGGED}
        with hand_driven_rig(telemetry=options) as rig:
            rig.add(jobs.nothing, every(60), misfire_grace_time=30)
            rig.scheduler.turn()
            rig.settle()
            rig.after(100)
            rig.settle()
            records.wait_for(2)

        spans = [span.context for span in exporter.get_finished_spans()]
        assert [span.trace_id for span in records.spans] == [span.trace_id for span in spans]
        assert [extra_of(record)["trace_id"] for record in records.records] == [
            trace.format_trace_id(span.trace_id) for span in spans
        ]
        assert [extra_of(record)["span_id"] for record in records.records] == [
            trace.format_span_id(span.span_id) for span in spans
        ]


class TestHandlers:
    def test_handler_that_hangs_holds_up_no_job(
        self, records: Records, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While a handler hangs, jobs run; what is too much for the queue is counted."""
        monkeypatch.setattr(run_log, "MAX_WAITING_RECORDS", 3)
        hangs, release = threading.Event(), threading.Event()

        class Hanging(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                hangs.set()
                assert release.wait(60)

        handler = Hanging()
        LOGGER.addHandler(handler)
        try:
            with hand_driven_rig(telemetry=LOGGED) as rig:
                rig.failing.add("run_log")
                run_once(rig, jobs.nothing, trigger=every(10))
                assert hangs.wait(60)
                for _ in range(5):
                    rig.after(10)
                    rig.settle()
                assert rig.outcomes() == {"success": 6}
                errors = rig.telemetry._exported_scheduler.error_reporter.counts()
                assert errors["run_log"] == 2  # one is written, and three wait
                release.set()
                records.wait_for(4)
        finally:
            release.set()
            LOGGER.removeHandler(handler)

    def test_filter_that_raises_is_counted(self, records: Records) -> None:
        """An error of a filter is counted, and the next record is logged."""

        def reject_first(_: logging.LogRecord) -> bool:
            LOGGER.removeFilter(reject_first)
            msg = "of the filter"
            raise RuntimeError(msg)

        LOGGER.addFilter(reject_first)
        with hand_driven_rig(telemetry=LOGGED) as rig:
            rig.failing.add("run_log")
            run_once(rig, jobs.nothing, id="first")
            run_once(rig, jobs.nothing, id="second")
            assert extra_of(records.only())["apscheduler.job.id"] == "second"

    def test_thread_ends_without_records(
        self, records: Records, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread ends when there is nothing to log, and another one logs the next run."""
        monkeypatch.setattr(run_log, "IDLE_SECONDS", 0.01)
        with hand_driven_rig(telemetry=LOGGED) as rig:
            run_once(rig, jobs.nothing, id="first")
            records.wait_for(1)
            wait_until(lambda: not any(thread.is_alive() for thread in records.threads))
            run_once(rig, jobs.nothing, id="second")
            records.wait_for(2)

    def test_records_are_written_before_the_process_ends(self) -> None:
        """A process that ends at once after a run writes its record before that."""
        printed, errors = output_of_script(
            """
            import logging, sys, time
            from apscheduler.schedulers.background import BackgroundScheduler
            from apscheduler_telemetry import instrument
            from apscheduler_telemetry.run_log import JSONFormatter

            class Slow(logging.StreamHandler):
                def emit(self, record):
                    time.sleep(0.2)
                    super().emit(record)

            handler = Slow(sys.stdout)
            handler.setFormatter(JSONFormatter())
            logger = logging.getLogger("apscheduler_telemetry.runs")
            logger.addHandler(handler)
            logger.setLevel(logging.INFO)
            scheduler = BackgroundScheduler()
            telemetry = instrument(scheduler, run_log=True)
            scheduler.add_job(id, args=[0], id="last")
            scheduler.start()
            while not telemetry.runs():
                time.sleep(0.01)
            """
        )

        (record,) = map(json.loads, printed.splitlines())
        assert (record["apscheduler.job.id"], record["apscheduler.outcome"]) == ("last", "success")
        assert errors == ""

    def test_filter_that_hangs_does_not_keep_the_process(self) -> None:
        """A filter that hangs delays the end of the process by a limited time."""
        printed, _ = output_of_script(
            """
            import logging, threading, time
            from apscheduler.schedulers.background import BackgroundScheduler
            from apscheduler_telemetry import instrument
            from apscheduler_telemetry.export import run_log

            # A filter, as a handler that hangs would keep logging.shutdown() waiting for its lock.
            run_log.MAX_EXIT_FLUSH_SECONDS = 0.1
            logger = logging.getLogger("apscheduler_telemetry.runs")
            logger.addFilter(lambda record: threading.Event().wait())
            logger.setLevel(logging.INFO)
            scheduler = BackgroundScheduler()
            telemetry = instrument(scheduler, run_log=True)
            scheduler.add_job(id, args=[0], id="last")
            scheduler.start()
            while not telemetry.runs():
                time.sleep(0.01)
            print("the end")
            """
        )

        assert printed == "the end\n"

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
    def test_forked_child_does_not_repeat_records(
        self, records: Records, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What waits in the parent is written by the parent only; the child writes its own."""
        gate = Gate()
        monkeypatch.setattr(records, "emit", lambda _: gate.hold())
        with hand_driven_rig(telemetry=LOGGED) as rig:
            run_once(rig, jobs.nothing, id="first")
            gate.wait_for_run()
            run_once(rig, jobs.nothing, id="second")
            (writer,) = [writer for writer in run_log._writers if writer._records]

            def check() -> bool:
                written: list[logging.LogRecord] = []
                LOGGER.handlers = [KeepingHandler(written)]
                record = logging.makeLogRecord({"levelno": logging.INFO})
                writer.write(LOGGER, record, Context())
                wait_until(lambda: written)
                return written == [record]

            assert in_fork(check)
            gate.open()

    def test_json_has_every_field(self, records: Records) -> None:
        """The formatter writes one line of JSON with all fields of the run."""
        with hand_driven_rig(telemetry=LOGGED) as rig:
            run_once(rig, jobs.fail, args=["two\nlines ü"])
            record = records.only()

        text = JSONFormatter().format(record)
        fields = json.loads(text)

        assert "\n" not in text
        assert fields.items() >= extra_of(record).items()
        assert fields["level"] == "ERROR"
        assert fields["logger"] == "apscheduler_telemetry.runs"
        assert fields["message"] == record.getMessage()
        assert datetime.fromisoformat(fields["time"]).tzinfo is not None

    @pytest.mark.parametrize("value", [float("nan"), {(1, 2): 3}, Unprintable()])
    def test_value_that_json_does_not_have_is_a_text(self, value: object) -> None:
        """A record of the application is written as valid JSON, whatever its extra fields are."""
        record = logging.makeLogRecord({"msg": "hello", "value": value, "other": 1})
        fields = json.loads(JSONFormatter().format(record), parse_constant=pytest.fail)

        assert isinstance(fields["value"], str)
        assert (fields["message"], fields["other"]) == ("hello", 1)

    def test_json_has_the_stack_trace_of_other_records(self) -> None:
        """A record with an exception, of another logger, has its stack trace."""
        try:
            jobs.fail("of another")
        except ValueError as error:
            info = (type(error), error, error.__traceback__)
        record = logging.getLogger("other").makeRecord(
            "other", logging.ERROR, "", 0, "at %s", (object,), info
        )

        fields = json.loads(JSONFormatter().format(record))

        assert fields["message"] == "at <class 'object'>"
        assert fields["exception"].endswith("ValueError: of another")


HAS_EVENTS = "event_name" in inspect.signature(Logger.emit).parameters


class TestOldOpenTelemetry:
    @pytest.mark.skipif(HAS_EVENTS, reason="this OpenTelemetry has events")
    def test_events_need_a_newer_one(self) -> None:
        """An OpenTelemetry without events is refused with a clear error."""
        with pytest.raises(ArgumentTypeError, match="logger_provider= needs opentelemetry-api 1"):
            instrument(
                hand_driven_scheduler(), registry=None, logger_provider=get_logger_provider()
            )


@pytest.mark.skipif(not HAS_EVENTS, reason="this OpenTelemetry has no events")
class TestOpenTelemetry:
    @pytest.fixture
    def log_exporter(self) -> Any:
        export = pytest.importorskip("opentelemetry.sdk._logs.export")
        name = "InMemoryLogRecordExporter"  # since 1.39
        return (getattr(export, name, None) or export.InMemoryLogExporter)()

    @pytest.fixture
    def logger_provider(self, log_exporter: Any) -> Any:
        sdk = pytest.importorskip("opentelemetry.sdk._logs")
        export = pytest.importorskip("opentelemetry.sdk._logs.export")
        provider = sdk.LoggerProvider(shutdown_on_exit=False)
        provider.add_log_record_processor(export.SimpleLogRecordProcessor(log_exporter))
        return provider

    def test_event_has_name_severity_body_and_trace(
        self,
        log_exporter: Any,
        logger_provider: Any,
        tracer_provider: Any,
        exporter: Any,
    ) -> None:
        """Each run is an event in the trace of the run, at its end."""
        options = {"tracer_provider": tracer_provider, "logger_provider": logger_provider}
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}, telemetry=options) as rig:
            run_once(rig, jobs.nothing, id="succeeds")
            run_once(rig, jobs.fail, id="fails", args=["refused"])

        fine, failed = [log.log_record for log in log_exporter.get_finished_logs()]
        spans = exporter.get_finished_spans()
        assert fine.event_name == failed.event_name == "apscheduler.job.run"
        assert (fine.severity_text, failed.severity_text) == ("INFO", "ERROR")
        assert (fine.severity_number.value, failed.severity_number.value) == (9, 17)
        assert failed.body.endswith("ValueError: refused")
        assert [log.span_id for log in (fine, failed)] == [span.context.span_id for span in spans]
        assert failed.attributes["code.function.name"] == "tests.helpers.jobs.fail"
        assert failed.attributes["apscheduler.outcome"] == "error"
        assert failed.attributes["exception.message"] == "refused"
        assert set(spans[1].attributes or {}) <= set(failed.attributes)
        assert abs(failed.timestamp - spans[1].end_time) < 60e9

    def test_run_without_a_span_is_an_event_without_a_trace(
        self, log_exporter: Any, logger_provider: Any
    ) -> None:
        """Without spans, the event has no trace."""
        with hand_driven_rig(telemetry={"logger_provider": logger_provider}) as rig:
            run_once(rig, jobs.nothing)

        (event,) = [log.log_record for log in log_exporter.get_finished_logs()]
        assert not event.trace_id

    def test_wrong_provider_is_refused(self) -> None:
        """Something that is no logger provider gets a clear error."""
        wrong: Any = logging.getLogger()
        with pytest.raises(ArgumentTypeError, match="must be an OpenTelemetry LoggerProvider"):
            instrument(hand_driven_scheduler(), registry=None, logger_provider=wrong)
