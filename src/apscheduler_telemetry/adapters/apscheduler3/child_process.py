"""
Measures runs in the child of a process pool.

A spawned child imports this module, so it uses the standard library only. The parent sends run
times, which arrive here as `MeasuringRunTimes`. While APScheduler's ``run_job`` iterates over them,
they are measured, and each comes as a `DueTimeWithMeasurement`, which ``run_job`` puts into the
run's event. Pickled on its way back, that becomes the plain run time again, and leaves the
measurement with the `MeasurementSink` in the parent.
"""

from __future__ import annotations

import functools
import itertools
import opcode
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from sys import _getframe  # public, as documented
from types import CodeType, FrameType
from typing import Any, Protocol

from apscheduler_telemetry.core.current_run import MeasuredRun, set_run_of_context

MAX_ERROR_LENGTH = 1_000
"""Characters of the description of an error that a child process sends."""


def is_job_runner(caller: FrameType) -> bool:
    """
    Return whether a function that takes the first of the run times runs the job in its steps.

    ``run_job`` and ``run_coroutine_job`` do, and so does a replacement of the user's: they iterate
    in a ``for`` statement, and mention the job's attributes ``func``, ``args`` and ``kwargs``.
    Others only look at the times or copy them; the steps of ``list(run_times)`` are no runs.
    """
    return _is_loop_over_run_times(caller.f_code, caller.f_lasti)


@functools.lru_cache  # a child asks the same for each submission
def _is_loop_over_run_times(code: CodeType, at: int) -> bool:
    """Return whether this instruction of a function begins the loop of a job runner."""
    names = code.co_names
    if not ("func" in names and "args" in names and "kwargs" in names):
        return False
    # Each operation takes two bytes. A comprehension, which may only copy the times, has more
    # between the two.
    instructions = code.co_code
    while instructions[at] == opcode.EXTENDED_ARG:  # of a long loop, to which Python 3.10 points
        at += 2
    operations = instructions[: at + 2 : 2].translate(None, _IGNORED_OPCODES)
    return operations.endswith(_FOR_LOOP_OPCODES)


_FOR_LOOP_OPCODES = bytes([opcode.opmap["GET_ITER"], opcode.opmap["FOR_ITER"]])
_IGNORED_OPCODES = bytes([opcode.EXTENDED_ARG, opcode.opmap.get("CACHE", opcode.EXTENDED_ARG)])


class MeasurementSink(Protocol):
    """Takes in the parent what the children of a process pool measure."""

    def receive_measurement(  # noqa: PLR0913, PLR0917  # by position, which is shorter when pickled
        self,
        submission_id: int,
        due: datetime,
        position: int,
        started_at: float,
        duration: float,
        telemetry_error: str | None,
        recorded: Mapping[str, float] | None = None,
        failure_reason: str | None = None,
    ) -> datetime:
        """
        Take the measurement of a run, just before its event comes.

        Args:
            submission_id: identifies the submission.
            due: a copy of the run time.
            position: which run time of the submission it is.
            started_at: Unix seconds of the start.
            duration: seconds from the start to the end.
            telemetry_error: what went wrong in telemetry itself, if anything did.
            recorded: the quantities that the callable has recorded of its run, if any.
            failure_reason: the reason for which it has let the run count as an error, if it has.

        Returns:
            The run time itself, or the copy if it is not known any more.
        """


def register_sink(sink: MeasurementSink) -> int:
    """Return the id by which `deliver_measurement` finds a sink, as long as it exists."""
    measurement_sink_id = next(_sink_ids)
    _sinks[measurement_sink_id] = sink
    return measurement_sink_id


def deliver_measurement(
    measurement_sink_id: int, submission_id: int, due: datetime, *measurement: Any
) -> datetime:
    """Pass a measurement on to its sink, if that exists, and return the plain run time."""
    sink = _sinks.get(measurement_sink_id)
    return due if sink is None else sink.receive_measurement(submission_id, due, *measurement)


_sink_ids = itertools.count()
_sinks: weakref.WeakValueDictionary[int, MeasurementSink] = weakref.WeakValueDictionary()


class DueTimeWithMeasurement(datetime):
    """A run time that carries the measurement of its run back to the parent."""

    _due: datetime
    _delivery_args: tuple[Any, ...] | None

    @classmethod
    def copy_of(cls, due: datetime) -> DueTimeWithMeasurement:
        """Return a copy of a run time that will carry a measurement."""
        copy = cls(*datetime.__reduce_ex__(due, 4)[1])  # as unpickling does
        copy._due = due
        copy._delivery_args = None
        return copy

    def set_measurement(self, *measurement: Any) -> None:
        """Let it carry these arguments of `deliver_measurement`."""
        self._delivery_args = measurement

    def __str__(self) -> str:
        return str(self._due)

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._delivery_args is None:
            return self._due.__reduce_ex__(protocol)
        return deliver_measurement, self._delivery_args


class MeasuringRunTimes(list[datetime]):
    """
    The run times of one submission, as its child gets them.

    Args:
        times: the run times.
        carriers: the W3C carrier of each run, empty if there is nothing to carry.
        measurement_sink_id: of the sink in the parent that takes the measurements.
        submission_id: identifies the submission to the sink.
    """

    def __init__(
        self,
        times: Sequence[datetime],
        carriers: Sequence[Mapping[str, str]],
        measurement_sink_id: int,
        submission_id: int,
    ) -> None:
        super().__init__(times)
        self._trace_carriers = carriers
        self._sink_and_submission_ids = measurement_sink_id, submission_id

    def __iter__(self) -> Iterator[datetime]:
        if not is_job_runner(_getframe(1)):
            yield from self[:]
            return
        for position, due in enumerate(super().__iter__()):
            carrier = self._trace_carriers[position] if self._trace_carriers else None
            measured = DueTimeWithMeasurement.copy_of(due)
            token, error = None, None
            if carrier:
                try:
                    token = _attach_context(carrier)
                except Exception as exception:  # noqa: BLE001  # telemetry never changes the job
                    error = repr(exception)[:MAX_ERROR_LENGTH]
            started_at = time.time()
            run = MeasuredRun(started_at)
            set_run_of_context(run)
            since = time.perf_counter()
            try:
                yield measured
            finally:
                run.set_duration(time.perf_counter() - since)
                if token is not None:
                    try:
                        _detach_context(token)
                    except Exception as exception:  # noqa: BLE001
                        error = repr(exception)[:MAX_ERROR_LENGTH]
                measurement = due, position, started_at, run.duration, error
                reported: tuple[Any, ...] = ()  # usually, as that is shorter when pickled
                if run.current_run is not None:
                    reported = run.current_run.recorded, run.current_run.failure_reason
                measured.set_measurement(*self._sink_and_submission_ids, *measurement, *reported)


def _attach_context(carrier: Mapping[str, str]) -> Any:
    # Imported only if a trace is to be continued: a child without one pays nothing.
    from opentelemetry import context  # noqa: PLC0415
    from opentelemetry.trace.propagation import tracecontext  # noqa: PLC0415

    remote = tracecontext.TraceContextTextMapPropagator().extract(carrier)
    if "baggage" in carrier:
        from opentelemetry.baggage.propagation import W3CBaggagePropagator  # noqa: PLC0415

        remote = W3CBaggagePropagator().extract(carrier, remote)
    return context.attach(remote)


def _detach_context(token: Any) -> None:
    from opentelemetry import context  # noqa: PLC0415

    context.detach(token)
