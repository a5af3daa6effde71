"""Callables that the application passes, and that raise what is no `Exception`."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from tests.helpers import jobs
from tests.helpers.schedulers import HandDriven, hand_driven_scheduler
from tests.helpers.waiting import wait_until
from tests.helpers.watching import Watched, due, watched


class OwnError(BaseException):
    """Of the application, which has chosen the wrong base class."""


def raising(error: BaseException) -> Callable[..., Any]:
    """Return a callable that raises an exception."""

    def function(*_: Any) -> Any:
        raise error

    return function


def leave(*_: Any) -> Any:
    sys.exit("no")


def leave_and_ignore_the_signal(number: int, _: Any) -> Any:
    signal.signal(number, signal.SIG_IGN)
    sys.exit("no")


def leave_without_the_frame(number: int, frame: Any) -> Any:
    del frame
    sys.exit("no")


def leave_application(application: Any, number: int, frame: Any) -> Any:
    sys.exit("no")


class Leaving:
    """A handler of a signal that is an object."""

    def __call__(self, number: int, frame: Any) -> Any:
        sys.exit("no")


HANDLERS = [
    pytest.param(leave, id="function"),
    pytest.param(leave_without_the_frame, id="function that deletes the frame"),
    pytest.param(leave_and_ignore_the_signal, id="function that ignores the signal"),
    pytest.param(partial(leave_application, None), id="partial"),
    pytest.param(Leaving(), id="object"),
]
FAILURES = [SystemExit(1), asyncio.CancelledError(), GeneratorExit(), OwnError()]
OPTIONS = ["job_label", "grace", "max_duration", "severity", "owner"]


def has_errors(seen: Watched, number: int) -> bool:
    """Tell whether so many errors of the context store are counted."""
    return seen.own_errors().get("spans", 0) >= number


class TestCallablesThatExit:
    """What they raise is counted as their failure, and the application goes on."""

    @pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("option", OPTIONS)
    def test_options_for_jobs(self, option: str, error: BaseException) -> None:
        """A job is added and run with the default."""
        with watched(hand_driven_scheduler(), **{option: raising(error)}) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, **due())
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert seen.own_errors().keys() == {option}
            assert seen.job("grace_seconds") == 60.0

    @pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
    def test_redact(self, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
        """The span is exported without the text, and the log says which exception it was."""
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        export = pytest.importorskip("opentelemetry.sdk.trace.export")
        spans = memory.InMemorySpanExporter()
        provider = sdk.TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(export.SimpleSpanProcessor(spans))
        scheduler = HandDriven(executors={"default": ThreadPoolExecutor(1)})
        options = {"redact": raising(error), "capture_stacktrace": True}
        with watched(scheduler, tracer_provider=provider, **options) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.fail, **due(), args=["hunter2"])
            seen.scheduler.turn()
            wait_until(spans.get_finished_spans)
            [span] = spans.get_finished_spans()
            assert "hunter2" not in span.to_json()
            assert seen.runs() == {"error": 1}
            assert seen.own_errors().keys() == {"redact"}
        [record] = [r for r in caplog.records if r.name.startswith("apscheduler_telemetry")]
        assert re.search(rf"redact raised (\w+\.)*{type(error).__name__}\b", record.getMessage())
        assert "concurrent.futures" not in {r.name for r in caplog.records}

    def test_redact_in_an_event_loop(self) -> None:
        """The event loop goes on."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        provider = sdk.TracerProvider(shutdown_on_exit=False)

        async def fail() -> None:
            raise ValueError

        async def main() -> None:
            with watched(AsyncIOScheduler(), tracer_provider=provider, redact=leave) as seen:
                seen.scheduler.start()
                seen.scheduler.add_job(fail, **due())
                await asyncio.to_thread(wait_until, seen.own_errors)
                assert seen.runs() == {"error": 1}

        asyncio.run(asyncio.wait_for(main(), jobs.WAIT_TIMEOUT))

    def test_context_store(self, tmp_path: Any) -> None:
        """The thread that writes into it goes on, and so does the call that reads it."""
        pytest.importorskip("sqlalchemy")
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        class LeavingStore(dict[str, str]):
            get = __setitem__ = pop = leave

        url = f"sqlite:///{tmp_path}/jobs.db"
        tracer = sdk.TracerProvider(shutdown_on_exit=False).get_tracer("test")
        scheduler = hand_driven_scheduler(jobstores={"default": SQLAlchemyJobStore(url)})
        with watched(scheduler, context_store=LeavingStore()) as seen:
            seen.scheduler.start()
            for number in range(1, 4):
                with tracer.start_as_current_span("request"):
                    seen.scheduler.add_job(jobs.nothing, **due(f"job {number}"))
                wait_until(partial(has_errors, seen, number))
            seen.scheduler.turn()
            assert seen.runs("job 1") == {"success": 1}


def check_exit_goes_its_way(handler: Any) -> None:
    """Let a signal arrive in a callable; its handler exits, which is no failure of the callable."""

    def label(job: Any) -> str:
        signal.raise_signal(signal.SIGUSR1)
        return "label"

    assert threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGUSR1, handler)
    try:
        with watched(hand_driven_scheduler(), job_label=label) as seen:
            seen.scheduler.start()
            with pytest.raises(SystemExit):
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
            assert seen.own_errors() == {}
    finally:
        signal.signal(signal.SIGUSR1, former)


class TestInterruptions:
    """What interrupts a callable from outside is not its failure."""

    def test_keyboard_interrupt_goes_its_way(self) -> None:
        """Ctrl-C while it runs."""
        with watched(hand_driven_scheduler(), job_label=raising(KeyboardInterrupt())) as seen:
            seen.scheduler.start()
            with pytest.raises(KeyboardInterrupt):
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
            assert seen.own_errors() == {}

    @pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
    @pytest.mark.parametrize("is_method", [False, True])
    def test_exit_of_a_signal_handler_goes_its_way(self, is_method: bool) -> None:
        """A process that is told to end while a callable runs does end."""

        class Application:
            def end(self, *_: Any) -> None:
                self.leave()

            def leave(self) -> None:
                sys.exit(3)

        def end(*_: Any) -> None:
            leave()

        check_exit_goes_its_way(Application().end if is_method else end)

    @pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
    @pytest.mark.parametrize("handler", HANDLERS)
    def test_exit_of_an_unusual_signal_handler_goes_its_way(self, handler: Any) -> None:
        """A handler that is not a plain function, or that is not installed any more."""
        check_exit_goes_its_way(handler)

    def test_exit_of_a_function_with_a_frame_is_a_failure(self) -> None:
        """A frame that is not that of its caller, or a variable that equals everything."""

        class Equal:
            def __eq__(self, other: object) -> bool:
                return True

            __hash__ = None  # type: ignore[assignment]

        def label(job: Any) -> str:
            frame = sys._getframe()
            exit_with(Equal(), (Equal(),), [frame])
            return "label"

        def exit_with(*_: Any) -> None:
            sys.exit(3)

        with watched(hand_driven_scheduler(), job_label=label) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
            assert seen.own_errors().keys() == {"job_label"}

    @pytest.mark.parametrize("name", ["GreenletExit", "Timeout"])
    def test_exceptions_of_gevent_go_their_way(self, name: str) -> None:
        """A greenlet that is killed, or has timed out, while a callable waits."""
        error = getattr(pytest.importorskip("gevent"), name)
        with watched(hand_driven_scheduler(), job_label=raising(error())) as seen:
            seen.scheduler.start()
            with pytest.raises(error):
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
            assert seen.own_errors() == {}
