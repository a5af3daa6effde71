"""Objects that wrap a scheduler: the one that runs is instrumented, or the user is told which."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import threading
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import STATE_RUNNING, BaseScheduler
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import ArgumentTypeError, instrument
from tests.helpers import jobs, watching
from tests.helpers.instrumented_parts import ours
from tests.helpers.metrics import errors_of, outcomes
from tests.helpers.schedulers import HandDriven, hand_driven_scheduler
from tests.helpers.waiting import wait_until, wait_until_async


def _logged(start: Any) -> Any:
    @functools.wraps(start)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return start(self, *args, **kwargs)

    return wrapper


class Forwarding(BaseScheduler):
    """Passes on what an application calls, as the decorator of apscheduler-di does."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        super().__init__()

    def start(self, *args: Any, **kwargs: Any) -> None:
        self._scheduler.start(*args, **kwargs)

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        self._scheduler.shutdown(*args, **kwargs)

    def wakeup(self) -> None:
        self._scheduler.wakeup()

    def add_job(self, *args: Any, **kwargs: Any) -> Any:
        return self._scheduler.add_job(*args, **kwargs)


class ForwardingListeners(Forwarding):
    """Passes listeners on, too."""

    def add_listener(self, *args: Any, **kwargs: Any) -> None:
        self._scheduler.add_listener(*args, **kwargs)


class ForwardingBackground(BackgroundScheduler):
    """Inherits from the kind of scheduler that it wraps, and mangles the name of the attribute."""

    def __init__(self, scheduler: Any) -> None:
        self.__inner = scheduler
        super().__init__()

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.__inner.start(*args, **kwargs)

    def shutdown(self, *args: Any, **kwargs: Any) -> None:
        self.__inner.shutdown(*args, **kwargs)

    def add_job(self, *args: Any, **kwargs: Any) -> Any:
        return self.__inner.add_job(*args, **kwargs)


class ForwardingMore(Forwarding):
    """Does more when it is started, and inherits how; also has a scheduler that it never starts."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self.spare = hand_driven_scheduler()
        self.starts = 0

    @property
    def target(self) -> Any:
        return self._scheduler

    @functools.wraps(BaseScheduler.start)
    def start(self, *args: Any, **kwargs: Any) -> Any:
        super().configure(timezone="UTC")
        self.starts += 1
        self._log()
        if not self.target.running:
            super().start(*args, **kwargs)
        return self

    def _log(self) -> None:
        logging.getLogger(__name__).debug("start %d", self.starts)


class ForwardingDecorated(Forwarding):
    """Its own start() is decorated, and uses a property."""

    @property
    def target(self) -> Any:
        return self._scheduler

    @_logged
    def start(self, *args: Any, **kwargs: Any) -> None:
        self.target.start(*args, **kwargs)


class Proxy:
    """Is no scheduler, and passes every attribute on."""

    __slots__ = ("_target",)

    def __init__(self, target: Any) -> None:
        self._target = target

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)


class Intercepting(BaseScheduler):
    """Passes on even what it inherits."""

    def __init__(self, scheduler: Any) -> None:
        object.__setattr__(self, "target", scheduler)

    def __getattribute__(self, name: str) -> Any:
        if name in {"__class__", "__dict__"}:
            return object.__getattribute__(self, name)
        return getattr(object.__getattribute__(self, "target"), name)

    def wakeup(self) -> None:
        raise NotImplementedError

    def shutdown(self, wait: bool = True) -> None:
        raise NotImplementedError


def _local_proxy(scheduler: Any) -> Any:
    return pytest.importorskip("werkzeug.local").LocalProxy(lambda: scheduler)


def _object_proxy(scheduler: Any) -> Any:
    return pytest.importorskip("wrapt").ObjectProxy(scheduler)


def _lazy_object(scheduler: Any) -> Any:
    return pytest.importorskip("django.utils.functional").SimpleLazyObject(lambda: scheduler)


def _twice(scheduler: Any) -> Any:
    return ForwardingListeners(Proxy(Forwarding(scheduler))._target)


WRAPPERS: list[Callable[[Any], Any]] = [
    Forwarding,
    ForwardingListeners,
    ForwardingBackground,
    ForwardingMore,
    ForwardingDecorated,
    Proxy,
    Intercepting,
    _twice,
    _local_proxy,
    _object_proxy,
    _lazy_object,
]


class TestWrapperOfOneScheduler:
    @pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
    def test_scheduler_that_runs_is_instrumented(self, wrap: Callable[[Any], Any]) -> None:
        """Runs count, the scheduler is healthy once the wrapper was started, and nothing fails."""
        inner = BackgroundScheduler(timezone="UTC")
        wrapper = wrap(inner)
        telemetry = instrument(wrapper, registry=CollectorRegistry())
        wrapper.start()
        try:
            wrapper.add_job(jobs.nothing, **watching.due())
            wait_until(lambda: outcomes(telemetry, "job") == {"success": 1})
            assert telemetry.health()["status"] == "healthy"
            assert not any(errors_of(telemetry).counts().values())
        finally:
            wrapper.shutdown()
        telemetry.uninstrument()
        assert ours(inner) == []

    @pytest.mark.parametrize("wrap", WRAPPERS, ids=lambda wrap: wrap.__name__)
    def test_wrapper_and_scheduler_have_one_handle(self, wrap: Callable[[Any], Any]) -> None:
        """Instrumenting both, in either order, gives the same handle."""
        inner = hand_driven_scheduler()
        registry = CollectorRegistry()
        telemetry = instrument(wrap(inner), registry=registry)
        assert instrument(inner, registry=registry) is telemetry
        assert instrument(wrap(inner), registry=registry) is telemetry
        telemetry.uninstrument()

    def test_scheduler_of_apscheduler_di_is_instrumented(self) -> None:
        """The same for apscheduler-di itself, where it is installed, on an event loop."""
        apscheduler_di = pytest.importorskip("apscheduler_di")

        async def main() -> None:
            wrapper = apscheduler_di.ContextSchedulerDecorator(AsyncIOScheduler(timezone="UTC"))
            telemetry = instrument(wrapper, registry=CollectorRegistry())
            wrapper.add_job(jobs.nothing, "interval", seconds=0.1, id="job")
            wrapper.start()
            await wait_until_async(lambda: outcomes(telemetry, "job").get("success", 0) >= 2)
            assert telemetry.health()["status"] == "healthy"
            assert not any(errors_of(telemetry).counts().values())
            wrapper.shutdown()

        asyncio.run(main())


class _WithOther(HandDriven):
    def __init__(self, other: Any) -> None:
        self.other = other
        super().__init__()


class Fallback(_WithOther):
    """Runs by itself, and has another scheduler besides."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        super().start(*args, **kwargs)


class DecoratedFallback(_WithOther):
    """Its own start() is decorated, and calls that of its base class by name."""

    @_logged
    def start(self, *args: Any, **kwargs: Any) -> None:
        HandDriven.start(self, *args, **kwargs)


class WrappedFallback(_WithOther):
    """Its own start() calls a method that calls the inherited one."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        self._really_start(*args, **kwargs)

    @functools.wraps(BaseScheduler.start)
    def _really_start(self, *args: Any, **kwargs: Any) -> None:
        super().start(*args, **kwargs)


class SelfMade(_WithOther):
    """Starts without any code of APScheduler."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.state = STATE_RUNNING


class _Bound:
    """A decorator that is no function."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return functools.partial(self.function, instance)


class PartialFallback(_WithOther):
    """Its own start() is no function."""

    start = functools.partialmethod(HandDriven.start, paused=True)


class DescriptorFallback(_WithOther):
    """The same, made by a decorator."""

    @_Bound
    def start(self, *args: Any, **kwargs: Any) -> None:
        super().start(*args, **kwargs)


class CachedFallback(_WithOther):
    """The same, made by a decorator of the standard library."""

    @functools.lru_cache  # noqa: B019  # on purpose
    def start(self, *args: Any, **kwargs: Any) -> None:
        super().start(*args, **kwargs)


_start_of_fallback = HandDriven.start


def _boot(scheduler: Any, *args: Any, **kwargs: Any) -> None:
    _start_of_fallback(scheduler, *args, **kwargs)


class AliasFallback(_WithOther):
    """Passes itself to a function, and starts the other one, too."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        _boot(self, *args, **kwargs)
        self.other.start()


class DynamicFallback(_WithOther):
    """Finds what it inherits by its name, and starts the other one, too."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        getattr(super(), "start")(*args, **kwargs)  # noqa: B009  # on purpose
        self.other.start()


class SuperFallback(_WithOther):
    """Passes on access to what it inherits."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        _start_parent(super(), *args, **kwargs)
        self.other.start()


def _start_parent(parent: Any, *args: Any, **kwargs: Any) -> None:
    parent.start(*args, **kwargs)


class ClosureFallback(_WithOther):
    """Starts itself in a function within its method."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        def start() -> None:
            HandDriven.start(self, *args, **kwargs)

        start()
        self.other.start()


class ThreadFallback(_WithOther):
    """Starts itself in a thread."""

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.starter = threading.Thread(target=self._start)
        self.starter.start()
        self.starter.join()
        self.other.start()

    def _start(self) -> None:
        super().start()


class CallbackFallback(_WithOther):
    """Is started by what it has as an attribute."""

    def __init__(self, other: Any) -> None:
        super().__init__(other)
        self.boot = functools.partial(HandDriven.start, self)

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.boot(*args, **kwargs)
        self.other.start()


STARTED_BY_THEMSELVES = [
    Fallback,
    DecoratedFallback,
    WrappedFallback,
    SelfMade,
    PartialFallback,
    DescriptorFallback,
    CachedFallback,
    AliasFallback,
    DynamicFallback,
    SuperFallback,
    ClosureFallback,
    ThreadFallback,
    CallbackFallback,
]


class TestSchedulerWithAnotherOne:
    @pytest.mark.parametrize("kind", STARTED_BY_THEMSELVES)
    def test_scheduler_that_runs_by_itself_is_instrumented(self, kind: type[Any]) -> None:
        """It is not taken for a wrapper of the other one."""
        scheduler = kind(hand_driven_scheduler())
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        assert ours(scheduler.other) == []
        assert ours(scheduler) != []
        telemetry.uninstrument()
        scheduler.start()
        assert scheduler.running
        for started in (scheduler, scheduler.other):  # or a later test finds those in the cache
            if started.running:
                started.shutdown()

    def test_scheduler_that_was_started_is_instrumented(self) -> None:
        """Even if its start() seems to be that of a wrapper."""
        scheduler = Forwarding(hand_driven_scheduler())
        BaseScheduler.start(scheduler, paused=True)
        telemetry = instrument(scheduler, registry=CollectorRegistry())
        assert ours(scheduler) != []
        telemetry.uninstrument()


class Choosing(Forwarding):
    """May start either of two schedulers."""

    def __init__(self, scheduler: Any, other: Any) -> None:
        self.other = other
        super().__init__(scheduler)

    def start(self, *args: Any, **kwargs: Any) -> None:
        if kwargs:
            self.other.start(*args, **kwargs)
        else:
            self._scheduler.start(*args)


class Late(Forwarding):
    """Makes the scheduler when it is started."""

    def __init__(self) -> None:
        super().__init__(None)


class Facade:
    """Is no scheduler, and has its own start()."""

    def __init__(self, **schedulers: Any) -> None:
        vars(self).update(schedulers)

    def start(self) -> None:
        """Do as it likes."""


class Unbound:
    """A proxy that raises what it likes as long as it has no object."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no application context")


class Endless:
    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class ClassUnreadable(Unbound):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no application context")


class Uninitialized(BackgroundScheduler):
    def __init__(self) -> None:
        """Forget the constructor of APScheduler."""


def unbound_local_proxy() -> Any:
    local = pytest.importorskip("werkzeug.local")
    return local.LocalProxy(contextvars.ContextVar("scheduler"))


EACH = r"pass each scheduler of the {} on its own, with its own name="
UNREADABLE = r"whose attributes cannot be read \({}\).*; pass the scheduler itself"
SELF = "a method of a scheduler; pass the scheduler itself"
CALL = "call it and pass its result"
MOCK = "a mock, which runs no jobs; pass a real scheduler"
NO_SCHEDULERS: dict[str, tuple[Callable[[], Any], str]] = {
    "list": (lambda: [hand_driven_scheduler()], EACH.format("list")),
    "tuple": (lambda: (hand_driven_scheduler(),), EACH.format("tuple")),
    "dict": (lambda: {"a": hand_driven_scheduler()}, EACH.format("dict")),
    "values": ({"a": None}.values, EACH.format("dict_values")),
    "generator": (lambda: (hand_driven_scheduler() for _ in "a"), EACH.format("generator")),
    "method": (lambda: hand_driven_scheduler().start, SELF),
    "partial": (lambda: functools.partial(hand_driven_scheduler().start), SELF),
    "function": (lambda: hand_driven_scheduler, CALL),
    "weak reference": (lambda: weakref.ref(hand_driven_scheduler()), CALL),
    "mock": (mock.MagicMock, MOCK),
    "mock of a scheduler": (lambda: mock.Mock(spec=BackgroundScheduler), MOCK),
    "mock that wraps": (lambda: mock.Mock(wraps=hand_driven_scheduler()), MOCK),
    "unbound proxy": (Unbound, UNREADABLE.format("RuntimeError")),
    "endless proxy": (Endless, UNREADABLE.format("RecursionError")),
    "unreadable class": (ClassUnreadable, UNREADABLE.format("RuntimeError")),
    "unbound LocalProxy": (unbound_local_proxy, UNREADABLE.format("RuntimeError")),
    "uninitialized": (Uninitialized, r"does not call super\(\).__init__\(\); call it"),
    "text": (lambda: "apscheduler", r"'apscheduler'"),
}


class TestRefused:
    """Where it is not clear which scheduler runs, the message says what to pass."""

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (
                lambda: Choosing(hand_driven_scheduler(), hand_driven_scheduler()),
                "has several; pass one of its attributes other, _scheduler",
            ),
            (Late, "does not start it, but another one; pass the scheduler that it starts"),
            (
                lambda: Facade(_aps=hand_driven_scheduler()),
                "has one; pass its attribute _aps",
            ),
            (
                lambda: Facade(cron=hand_driven_scheduler(), once=hand_driven_scheduler()),
                "has several; pass one of its attributes cron, once",
            ),
            (
                lambda: SimpleNamespace(job_scheduler=hand_driven_scheduler()),
                "has one; pass its attribute job_scheduler",
            ),
        ],
        ids=["two", "made later", "facade", "facade of two", "no start"],
    )
    def test_message_names_what_to_pass(self, make: Callable[[], Any], message: str) -> None:
        """The attributes that hold schedulers are named, and nothing is instrumented."""
        registry = CollectorRegistry()
        with pytest.raises(ArgumentTypeError, match=message):
            instrument(make(), registry=registry)
        assert generate_latest(registry) == b""

    @pytest.mark.parametrize(("make", "message"), NO_SCHEDULERS.values(), ids=NO_SCHEDULERS)
    def test_other_objects_are_refused_with_advice(
        self, make: Callable[[], Any], message: str
    ) -> None:
        """Never by an error of another library, or by an AttributeError."""
        registry = CollectorRegistry()
        with pytest.raises(ArgumentTypeError, match=f"got (?s:.*){message}"):
            instrument(make(), registry=registry)
        assert generate_latest(registry) == b""

    def test_wrappers_of_each_other_are_refused(self) -> None:
        """Two wrappers that wrap each other have no scheduler, and do not hang the search."""
        first = Forwarding(None)
        first._scheduler = Forwarding(first)
        with pytest.raises(ArgumentTypeError, match="pass"):
            instrument(first, registry=CollectorRegistry())
