"""Records what a user can see of a scheduler: its events, its log, its jobs."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from apscheduler import events as ev
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers.metrics import errors_of, job_states

ENDS = ev.EVENT_JOB_EXECUTED | ev.EVENT_JOB_ERROR | ev.EVENT_JOB_MISSED


class AsyncHandDriven(AsyncIOScheduler):
    """An asyncio scheduler whose passes are started by the test."""

    def wakeup(self) -> None:
        """Do nothing: see `turn`."""

    def turn(self) -> None:
        self._process_jobs()


class Recording:
    """Everything that a user can see of a scenario."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.logs: list[Any] = []

    def listen(self, event: Any) -> None:
        attributes = dict(vars(event))
        attributes["exception"] = described(attributes.get("exception"))
        job_id = attributes.get("job_id", "")
        self.events.append((type(event).__name__, type(job_id), attributes))

    def ended(self, count: int) -> bool:
        """Return whether this many runs have ended."""
        codes = [attributes["code"] for _, _, attributes in list(self.events)]
        return sum(1 for code in codes if code & ENDS) >= count

    def codes(self) -> set[int]:
        return {attributes["code"] for _, _, attributes in self.events}


def described(exception: BaseException | None) -> Any:
    """Return all properties of an exception and its causes, except for its identity."""
    if exception is None:
        return None
    frames = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(exception.__traceback__)]
    return {
        "type": type(exception),
        "args": exception.args,
        "frames": frames,
        "cause": described(exception.__cause__),
        "context": described(exception.__context__),
        "suppressed": exception.__suppress_context__,
    }


class Handler(logging.Handler):
    """Keeps the properties that log records have when they are created."""

    def __init__(self, recording: Recording) -> None:
        super().__init__(logging.DEBUG)
        self.recording = recording

    def emit(self, record: logging.LogRecord) -> None:
        # A thread may write about a job before or after the loop has moved it on.
        message = re.sub(r"next run at: [^)]*", "next run at: ...", record.getMessage())
        trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
        self.recording.logs.append(
            (
                record.name,
                record.levelname,
                message,
                f"{record.pathname}:{record.lineno} {record.funcName}",
                record.threadName,
                trace,
            )
        )


@contextmanager
def recorded(scheduler: Any, instrumented: bool) -> Iterator[Recording]:
    """Record a scenario with or without telemetry, and check that it was recorded in that way."""
    recording = Recording()
    logger = logging.getLogger("apscheduler")
    handler, level = Handler(recording), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    telemetry = instrument(scheduler, registry=CollectorRegistry()) if instrumented else None
    scheduler.add_listener(recording.listen)
    try:
        yield recording
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        if scheduler.running:
            with suppress(RuntimeError):  # its event loop may be closed
                scheduler.shutdown(wait=False)
        if telemetry is not None:
            telemetry.uninstrument()
    if telemetry is not None:
        assert sum(job.due_count for job in job_states(telemetry))
        assert set(errors_of(telemetry).counts().values()) == {0}


def as_coroutine(func: Callable[..., Any]) -> Callable[..., Any]:
    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return func(*args, **kwargs)

    return coroutine
