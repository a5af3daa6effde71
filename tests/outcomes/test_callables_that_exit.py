"""Callables that the application passes, and that raise what is no `Exception`."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import re
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import MAXYEAR, datetime, timedelta, timezone, tzinfo
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger
from apscheduler.triggers.combining import OrTrigger

from apscheduler_telemetry.adapters.apscheduler3 import adapter
from apscheduler_telemetry.adapters.apscheduler3.job_describer import default_name
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from apscheduler_telemetry.core import labels
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.times import to_datetime, to_unix_seconds
from tests.helpers import jobs
from tests.helpers.metrics import job_states
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


def call_former_handler(number: int, frame: Any) -> Any:
    signal.signal(number, signal.SIG_DFL)
    try:
        leave_without_a_signal(number, frame)
    finally:
        del frame


def leave_without_a_signal(number: int, frame: Any) -> Any:
    sys.exit("no")


def forgetting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does the same, and refers to no argument when it has ended."""

    def call(*args: Any) -> Any:
        try:
            return function(*args)
        finally:
            args = ()

    return call


def raise_timeout(number: int, frame: Any) -> Any:
    raise TimeoutError


def raise_timeout_without_the_frame(number: int, frame: Any) -> Any:
    del frame
    raise TimeoutError


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
    pytest.param(call_former_handler, id="function that restores and calls the former handler"),
    pytest.param(forgetting(leave_without_a_signal), id="decorated function"),
]
TIME_LIMITS = [
    pytest.param(raise_timeout, id="function"),
    pytest.param(raise_timeout_without_the_frame, id="function that deletes the frame"),
    pytest.param(lambda *_: raising(TimeoutError())(), id="lambda"),
    pytest.param(partial(raise_timeout), id="partial"),
]
FAILURES = [SystemExit(1), asyncio.CancelledError(), GeneratorExit(), OwnError()]
OPTIONS = ["job_label", "expect"]


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


class Text(str):
    """A text of a class of the user's, all of which fails but being a text."""

    __slots__ = ("error",)
    error: BaseException

    def fail(self, *_: Any) -> Any:
        raise self.error

    __str__ = fail
    __eq__ = fail
    __hash__ = fail


def text(value: str, error: BaseException) -> Text:
    result = Text(value)
    result.error = error
    return result


class Unshown(BaseTrigger):
    """Fires at once, and then after an hour; nothing can be read of it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return now if previous is None else previous + timedelta(hours=1)

    def __str__(self) -> str:
        raise self.error

    __reduce_ex__: Any = __str__


class UnshownByRepr(Unshown):
    __str__ = object.__str__

    def __repr__(self) -> str:
        raise self.error


class Nameless:
    """A callable whose name cannot be read."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self) -> None: ...

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise self.error

    def __getattr__(self, _: str) -> Any:
        raise self.error


class Unconvertible(int):
    """A number of seconds that cannot be made a float."""

    error: BaseException

    def __float__(self) -> float:
        raise self.error


class FailingZone(tzinfo):
    """A time zone that fails."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def fail(self, _: Any) -> Any:
        raise self.error

    utcoffset = dst = tzname = fromutc = fail

    def __str__(self) -> str:
        raise self.error


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
class TestObjectsThatExit:
    """What telemetry reads of objects of the user's may fail, and the application goes on."""

    @pytest.mark.parametrize(
        "wrap", [lambda own: own, lambda own: OrTrigger([own])], ids=["alone", "part of or"]
    )
    @pytest.mark.parametrize("kind", [Unshown, UnshownByRepr])
    def test_texts_of_triggers(
        self, kind: type[Unshown], wrap: Callable[[Any], Any], error: BaseException
    ) -> None:
        """The class stands for the text."""
        trigger = wrap(kind(error))
        with watched(hand_driven_scheduler()) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, trigger, id="job")
            seen.scheduler.turn()
            assert seen.runs() == {"success": 1}
            assert seen.own_errors() == {}
            [info] = [state.info for state in job_states(seen.telemetry)]
            assert info.trigger == type(trigger).__qualname__

    def test_names_of_callables(self, error: BaseException) -> None:
        """The class stands for the name."""
        job = SimpleNamespace(func=Nameless(error), func_ref=None)
        assert labels.function_name(job) == f"{__name__}:Nameless"
        assert default_name(job) is None
        job.func = partial(job.func)
        assert labels.function_name(job) == f"{__name__}:Nameless"

    def test_misfire_grace_time(self, error: BaseException) -> None:
        """The default of the grace is used."""
        grace = Unconvertible(600)
        grace.error = error
        with watched(hand_driven_scheduler()) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, **{**due(), "misfire_grace_time": grace})
            assert seen.job("grace_seconds") == 60.0
            assert seen.own_errors() == {}

    def test_texts(self, error: BaseException) -> None:
        """A text is that which it is; the class stands for another object."""
        assert labels.label_value(text("backup", error)) == "backup"
        assert labels.label_value(Unshown(error)) == "Unshown"

    def test_time_zones(self, error: BaseException) -> None:
        """Times in it are taken for UTC, or are at an end of the calendar."""
        zone = FailingZone(error)
        at = datetime(2030, 1, 1, tzinfo=timezone.utc)
        assert to_unix_seconds(at.replace(tzinfo=zone)) == at.timestamp()
        assert to_datetime(at.timestamp(), zone).year == MAXYEAR
        assert adapter._timezone_text(zone) == "FailingZone"

    def test_job_stores(
        self, error: BaseException, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A store that exits while telemetry reads it is read again later."""
        pytest.importorskip("sqlalchemy")
        monkeypatch.setattr(JobStorePoller, "POLL_INTERVAL_SECONDS", 0.05)
        monkeypatch.setattr(JobStorePoller, "MAX_DUTY_CYCLE", 1.0)
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        class LeavingOnce(SQLAlchemyJobStore):
            """It lists jobs by itself, so that it is read only after a start, until that works."""

            answers: ClassVar = [error]

            def get_all_jobs(self) -> Any:
                if self.answers:
                    raise self.answers.pop()
                return super().get_all_jobs()

        store = LeavingOnce(f"sqlite:///{tmp_path}/jobs.db")
        with watched(hand_driven_scheduler(jobstores={"default": store})) as seen:
            seen.scheduler.start(paused=True)
            wait_until(lambda: seen.value("jobstore_read_failures_total", jobstore="default") == 1)
            wait_until(lambda: seen.last_read() is not None)
            assert seen.own_errors() == {}
        store.engine.dispose()


def signalled(job: Any) -> str:
    """Return a label; meanwhile, a signal arrives."""
    signal.raise_signal(signal.SIGUSR1)
    return "label"


@contextmanager
def handled_signal(handler: Any) -> Iterator[None]:
    """Handle this signal, as the application does."""
    assert threading.current_thread() is threading.main_thread()
    former = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, former)


def check_goes_its_way(expected: type[BaseException], job_label: Callable[[Any], str]) -> None:
    """Add a job, and expect this exception, which is no failure of `job_label`."""
    with watched(hand_driven_scheduler(), job_label=job_label) as seen:
        seen.scheduler.start()
        with pytest.raises(expected):
            seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
        assert seen.own_errors() == {}


def check_is_a_failure(job_label: Callable[[Any], str]) -> None:
    """Add a job whose `job_label` fails."""
    with watched(hand_driven_scheduler(), job_label=job_label) as seen:
        seen.scheduler.start()
        seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
        assert seen.own_errors() == {"job_label": 1}


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
class TestInterruptions:
    """What interrupts a callable from outside is not its failure."""

    @pytest.mark.parametrize("option", OPTIONS)
    def test_keyboard_interrupt_goes_its_way(self, option: str) -> None:
        """Ctrl-C while it runs."""
        options = {option: raising(KeyboardInterrupt())}
        with watched(hand_driven_scheduler(), **options) as seen:
            seen.scheduler.start()
            with pytest.raises(KeyboardInterrupt):
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1)
            assert seen.own_errors() == {}

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

        with handled_signal(Application().end if is_method else end):
            check_goes_its_way(SystemExit, signalled)

    @pytest.mark.parametrize("handler", HANDLERS)
    def test_exit_of_an_unusual_signal_handler_goes_its_way(self, handler: Any) -> None:
        """A handler that is not a plain function, or that is not installed any more."""
        with handled_signal(handler):
            check_goes_its_way(SystemExit, signalled)

    @pytest.mark.parametrize("handler", TIME_LIMITS)
    def test_time_limit_of_the_application_goes_its_way(self, handler: Any) -> None:
        """A handler that raises an `Exception`, as libraries for time limits do."""
        with handled_signal(handler):
            check_goes_its_way(TimeoutError, signalled)

    def test_time_limit_of_the_callable_itself_is_a_failure(self) -> None:
        """Nothing but the callable is to end, and it has restored the former handler."""

        def label(job: Any) -> str:
            with handled_signal(raise_timeout):
                return signalled(job)

        check_is_a_failure(label)

    def test_call_of_an_installed_handler_is_no_signal(self) -> None:
        """Whatever the callable passes in place of a frame."""
        with handled_signal(leave_without_a_signal):
            check_is_a_failure(lambda _: leave_without_a_signal(signal.SIGUSR1, None))

    @pytest.mark.parametrize("error", [SystemExit, ValueError])
    def test_decorator_that_a_handler_has_as_well_is_no_handler(
        self, error: type[BaseException]
    ) -> None:
        """The functions that it returns share their code with the handler."""
        with handled_signal(forgetting(leave)):
            check_is_a_failure(forgetting(raising(error())))

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

        check_is_a_failure(label)

    @pytest.mark.parametrize("name", ["GreenletExit", "Timeout"])
    def test_exceptions_of_gevent_go_their_way(self, name: str) -> None:
        """A greenlet that is killed, or has timed out, while a callable waits."""
        error = getattr(pytest.importorskip("gevent"), name)
        check_goes_its_way(error, raising(error()))


class TestReferences:
    """To look for a signal handler keeps nothing alive."""

    @pytest.mark.parametrize("kind", [ValueError, SystemExit])
    def test_reported_exception_does_not_wait_for_garbage_collection(
        self, kind: type[BaseException]
    ) -> None:
        """Nor does what the functions in its traceback refer to, such as a large response."""
        reporter = ErrorReporter()
        reporter.exception("http")  # the first one is logged, and pytest keeps what is logged
        references: list[weakref.ref[Any]] = []
        failures: list[Any] = []

        def fail() -> None:
            large = threading.Event()
            references.append(weakref.ref(large))
            try:
                raise kind
            except BaseException as error:  # noqa: BLE001  # of the test
                failures.append(error.args)
                reporter.exception("http")

        gc.disable()
        try:
            fail()
            assert [reference() for reference in references] == [None]
            assert failures == [()]
        finally:
            gc.enable()


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="no such signal")
class TestInterruptionsThatLookLikeFailures:
    """Python does not show that these come from outside, so they count as the callable's."""

    def test_handler_that_leaves_no_trace(self) -> None:
        """It deletes the frame, and is not installed any more."""

        def end(number: int, frame: Any) -> None:
            del frame
            signal.signal(number, signal.SIG_IGN)
            sys.exit("no")

        with handled_signal(end):
            check_is_a_failure(signalled)

    @pytest.mark.skipif(sys.implementation.name != "cpython", reason="of CPython's C API")
    def test_exception_that_another_thread_has_set(self) -> None:
        """By `PyThreadState_SetAsyncExc`."""

        def label(job: Any) -> str:
            thread_id = ctypes.c_ulong(threading.get_ident())
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread_id, ctypes.py_object(SystemExit))
            wait_until(lambda: False)
            return "label"

        check_is_a_failure(label)

    def test_gevent_timeout_with_an_exception(self) -> None:
        """Timeouts of gevent's sockets, which are the callable's failures, look the same."""
        gevent = pytest.importorskip("gevent")

        def label(job: Any) -> str:
            gevent.sleep(jobs.WAIT_TIMEOUT)
            return "label"

        with gevent.Timeout(0.001, TimeoutError):
            check_is_a_failure(label)
