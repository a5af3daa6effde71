"""
What runs beside the job: in its thread, its task, or the process of a pool.

A spawned child imports this module, so it knows the standard library only. How it works:
APScheduler's ``run_job`` walks over the run times, reads ``job.func`` and calls it, and puts
``job.id`` into the event that it makes. Each of the three is ours to answer: `RunTimes` says
which run is meant, `TimedCall` measures around the callable, and in another process `MeasuredId`
carries the measurement home inside that event. ``run_job`` itself stays APScheduler's, and so
does the event: what comes home is the plain id, and the measurement goes to whom it may concern.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Protocol


class Owner(Protocol):
    """The side that keeps the books of one submission: `ChildJob` here, or the parent's."""

    def at(self, index: int) -> None:
        """Note that the run time of this index is looked at now."""

    def through(self) -> None:
        """Note that no run time will be looked at any more."""

    def enter(self) -> Any:
        """Note that the callable starts; whatever is returned goes to `leave`."""

    def leave(self, token: Any, exception: BaseException | None, result: Any = None) -> None:
        """Note that the callable has ended, and what it returned or raised."""


class RunTimes(list[datetime]):
    """The run times of one submission, telling its owner which of them is looked at."""

    __slots__ = ("_owner",)

    def __init__(self, owner: Owner, times: Sequence[datetime]) -> None:
        super().__init__(times)
        self._owner = owner

    def __iter__(self) -> Iterator[datetime]:
        owner = self._owner
        try:
            for index, run_time in enumerate(super().__iter__()):
                owner.at(index)
                yield run_time
        finally:  # also where run_job itself fails, in a logging handler for example
            owner.through()

    def __reduce__(self) -> tuple[Any, ...]:
        # A slice, as list(self) would walk through __iter__ and tell the owner.
        return RunTimes, (self._owner, self[:])


class TimedCall:
    """A job's callable, measured; for everything but the call it is the callable itself."""

    __slots__ = ("__wrapped__", "_owner")

    def __init__(self, func: Callable[..., Any], owner: Owner) -> None:
        self.__wrapped__ = func
        self._owner = owner

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        token = self._owner.enter()
        try:
            result = self.__wrapped__(*args, **kwargs)
        except BaseException as exception:
            self._owner.leave(token, exception)
            hide_this_frame(exception)
            raise
        self._owner.leave(token, None, result)
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __reduce__(self) -> tuple[Any, ...]:
        # Whoever pickles the callable on its own gets the user's, not ours.
        return itself, (self.__wrapped__,)


def timed_coroutine(func: Callable[..., Any], owner: Owner) -> Callable[..., Any]:
    """Measure a coroutine function; the result is one too, as executors ask for it."""

    async def call(*args: Any, **kwargs: Any) -> Any:
        token = owner.enter()
        try:
            result = await func(*args, **kwargs)
        except BaseException as exception:
            owner.leave(token, exception)
            hide_this_frame(exception)
            raise
        owner.leave(token, None, result)
        return result

    return call


class Measurement(NamedTuple):
    """
    What a child process measured of one run.

    Attributes:
        position: which run time of the submission it was.
        started: Unix seconds of the start in the callable.
        duration: seconds inside the callable.
        failure: what went wrong in the telemetry itself, if anything did.
    """

    position: int
    started: float
    duration: float
    failure: str | None


class Home(Protocol):
    """The side that waits for what was measured in another process."""

    def measured(self, measurement: Measurement) -> None:
        """Take note of what was measured."""


class MeasuredId(str):
    """A job id that brings a measurement home; there, it is the plain id again."""

    __slots__ = ("_address", "_measurement")
    _address: int
    _measurement: Measurement

    def __new__(  # noqa: PYI034  # Self is 3.11's
        cls, value: str, address: int, measurement: Measurement
    ) -> MeasuredId:
        self = super().__new__(cls, value)
        self._address = address
        self._measurement = measurement
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return bring_home, (str(self), self._address, self._measurement)


def address_of(home: Home) -> int:
    """Return where `bring_home` finds `home` as long as it lives."""
    address = next(_new_address)
    _homes[address] = home
    return address


def bring_home(job_id: str, address: int, measurement: Measurement) -> str:
    """Hand over a measurement, if anybody still waits for it, and return the plain id."""
    home = _homes.get(address)
    if home is not None:
        home.measured(measurement)
    return job_id


_new_address = itertools.count()
_homes: weakref.WeakValueDictionary[int, Home] = weakref.WeakValueDictionary()


class ChildJob:
    """What ``run_job`` sees of a job in another process: the job, measured there."""

    __slots__ = ("_address", "_carriers", "_failure", "_index", "_job", "_measurement")

    def __init__(
        self, job: Any, carriers: Sequence[Mapping[str, str] | None], address: int
    ) -> None:
        self._job = job
        self._carriers = carriers
        self._address = address
        self._index = 0
        self._measurement: Measurement | None = None
        self._failure: str | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job, name)

    def __str__(self) -> str:
        return str(self._job)

    def __repr__(self) -> str:
        return repr(self._job)

    @property
    def func(self) -> Callable[..., Any]:
        return TimedCall(self._job.func, self)

    @property
    def id(self) -> str:
        measurement, self._measurement = self._measurement, None
        job_id: str = self._job.id
        if measurement is None:
            return job_id
        return MeasuredId(job_id, self._address, measurement)

    def at(self, index: int) -> None:
        self._index = index

    def through(self) -> None:
        """Nothing to do: the parent learns it from the result."""

    def enter(self) -> tuple[Any, float, float]:
        context = None
        self._failure = None
        if self._index < len(self._carriers) and (carrier := self._carriers[self._index]):
            try:
                context = _attach(carrier)
            except Exception as exception:  # noqa: BLE001  # telemetry never changes the job
                self._failure = repr(exception)
        return context, time.time(), time.perf_counter()

    def leave(
        self,
        token: tuple[Any, float, float],
        exception: BaseException | None,  # noqa: ARG002  # the parent gets both in the event
        result: Any = None,  # noqa: ARG002
    ) -> None:
        duration = time.perf_counter() - token[2]
        context, started = token[:2]
        if context is not None:
            try:
                _detach(context)
            except Exception as failure:  # noqa: BLE001
                self._failure = repr(failure)
        self._measurement = Measurement(self._index, started, duration, self._failure)


def revive(job: Any, carriers: Sequence[Mapping[str, str] | None], address: int) -> ChildJob:
    """Rebuild in another process what the parent pickled as a view of `job`."""
    return ChildJob(job, carriers, address)


def itself(thing: Any) -> Any:
    """Return `thing`; what a view pickles to, as pickle wants a call."""
    return thing


HIDES_FRAMES = sys.version_info >= (3, 11)
"""Whether `hide_this_frame` is all that it takes."""


def hide_this_frame(exception: BaseException) -> None:
    """
    Take the caller's frame out of the traceback of the exception that it is about to raise again.

    APScheduler's log then shows the traceback as it is without us. Not so on Python 3.10, which
    puts the frame back: there only what listeners get is clean, see `hide_frames`.
    """
    if exception.__traceback__ is not None:
        exception.__traceback__ = exception.__traceback__.tb_next


def hide_frames(exception: BaseException) -> None:
    """Take our own frames out of the traceback of `exception`, in place."""
    previous = None
    entry = exception.__traceback__
    while entry is not None:
        if entry.tb_frame.f_code.co_filename not in OUR_FILES:
            previous = entry
        elif previous is None:
            exception.__traceback__ = entry.tb_next
        else:
            previous.tb_next = entry.tb_next
        entry = entry.tb_next


def hide_entries(formatted: str) -> str:
    """Take our own entries out of what ``traceback.format_tb`` made, joined."""
    ours = tuple(f'  File "{file}", ' for file in OUR_FILES)
    if not any(start in formatted for start in ours):
        return formatted
    entries = re.split(r'(?m)^(?=  File ")', formatted)
    return "".join(e for e in entries if not e.startswith(ours))


def _attach(carrier: Mapping[str, str]) -> Any:
    # Imported only where a trace is to be continued: a child without one pays nothing.
    from opentelemetry import context  # noqa: PLC0415
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

    there = tracecontext.TraceContextTextMapPropagator().extract(carrier)
    if "baggage" in carrier:
        from opentelemetry.baggage.propagation import W3CBaggagePropagator  # noqa: PLC0415

        there = W3CBaggagePropagator().extract(carrier, there)
    return context.attach(there)


def _detach(token: Any) -> None:
    from opentelemetry import context  # noqa: PLC0415

    context.detach(token)


OUR_FILES = {hide_frames.__code__.co_filename}
"""Files whose frames stand between APScheduler's and the job's."""
