"""
Imports the application that a command is to check, and finds its schedulers.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import contextlib
import importlib
import inspect
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, NamedTuple

from apscheduler_telemetry.adapters.base import SchedulerImportFacts, StartPrevention
from apscheduler_telemetry.adapters.registry import START_PREVENTIONS, find_adapter
from apscheduler_telemetry.api import get_handle
from apscheduler_telemetry.cli.errors import UsageError
from apscheduler_telemetry.core.findings import Finding
from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.errors import ArgumentTypeError

_TARGET_PATTERN = re.compile(r"(?P<module>\w+(\.\w+)*)(:(?P<path>\w+(\.\w+)*)(?P<call>\(\))?)?")

WEB_FRAMEWORKS = (
    "aiohttp.web",
    "bottle",
    "django",
    "falcon",
    "fastapi",
    "flask",
    "litestar",
    "pyramid",
    "quart",
    "sanic",
    "starlette",
    "tornado.web",
    "twisted.web",
)
"""If one is imported, a server of it is expected to keep the main thread."""
MAX_SECONDS_AFTER_START = 10.0
"""How long an application may go on after it has started a scheduler: `main` often never ends."""
MAX_SECONDS_AFTER_INTERRUPT = 10.0
"""How long it may then take to end: it may ignore the interrupt."""
_STDOUT_FILENO, _STDERR_FILENO = 1, 2


class FoundScheduler(NamedTuple):
    """
    A scheduler of an application.

    Attributes:
        name: the value of its ``scheduler`` label if it is instrumented, or else its class.
        scheduler: the scheduler.
        import_facts: what was seen of it at the import.
        others: further schedulers of the application that may run the jobs of their job stores.
    """

    name: str
    scheduler: Any
    import_facts: SchedulerImportFacts
    others: Sequence[Any]

    @property
    def has_jobs(self) -> bool:
        """Whether the application has added jobs to it."""
        return bool(self.scheduler.get_jobs())

    def check(self) -> Sequence[Finding]:
        """Return its risks."""
        adapter, scheduler = find_adapter(self.scheduler)
        return adapter.check_imported(scheduler, self.import_facts, self.others)


def import_schedulers(target: str) -> list[FoundScheduler]:
    """
    Return the schedulers of an application, which are not started.

    Args:
        target: ``module:scheduler``, ``module:create_app()`` or ``module``. If this is no
            scheduler, those that the import and the call have created are returned.

    Raises:
        UsageError: it cannot be imported or called, or has no scheduler.
    """
    match = _TARGET_PATTERN.fullmatch(target)
    if match is None:
        msg = (
            f"{target!r} names nothing that can be imported. Pass module:scheduler, "
            "package.module:create_app() or package.module."
        )
        raise UsageError(msg)
    sys.path.insert(0, os.getcwd())  # noqa: PTH109  # as Python itself does for a script
    known = set(sys.modules)
    with contextlib.ExitStack() as stack:
        # What the application prints is not what the command prints.
        stack.enter_context(_redirecting_output())
        # Called before the functions for the end of the process that the application registers.
        stack.callback(atexit.register, _redirect_output_at_exit)
        stack.enter_context(_replacing_arguments(match["module"]))
        stack.enter_context(_starting_threads_as_daemons())
        limit = _TimeLimit(target)
        stack.callback(limit.cancel)
        preventions = [each(limit.start) for each in START_PREVENTIONS]
        for prevention in preventions:
            prevention.install()
            stack.callback(prevention.uninstall)
        found = _evaluate_target(
            match["module"], match["path"], limit, is_call=match["call"] is not None
        )
    modules = [sys.modules[name] for name in set(sys.modules) - known if name in sys.modules]
    calls_shutdown = any(_mentions_shutdown(module) for module in modules)
    keeps_main_thread = limit.is_over or any(name in sys.modules for name in WEB_FRAMEWORKS)
    schedulers = _choose_schedulers(found, preventions, target)
    return [
        each._replace(
            import_facts=replace(
                each.import_facts,
                calls_shutdown=calls_shutdown,
                keeps_main_thread=keeps_main_thread,
            )
        )
        for each in schedulers
    ]


@contextlib.contextmanager
def _starting_threads_as_daemons() -> Iterator[None]:
    """Let no thread of the application keep the command from ending."""
    original_start = Thread.start
    waited_for: Any = concurrent.futures.thread._threads_queues  # noqa: SLF001
    known = set(waited_for)

    def start(self: Thread) -> None:
        if not self.is_alive():
            self.daemon = True
        original_start(self)

    Thread.start = start  # type: ignore[method-assign]
    try:
        yield
    finally:
        Thread.start = original_start  # type: ignore[method-assign]
        # At exit, Python waits for what runs in thread pools, also in daemon threads.
        for thread in set(waited_for) - known:
            del waited_for[thread]


@contextlib.contextmanager
def _replacing_arguments(module: str) -> Iterator[None]:
    """Let an application that reads its command line find no arguments."""
    original = sys.argv
    sys.argv = [module]
    try:
        yield
    finally:
        sys.argv = original


@contextlib.contextmanager
def _redirecting_output() -> Iterator[None]:
    """Send what the application and its child processes print to standard error."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # one of the two is closed
            original = os.dup(_STDOUT_FILENO)
            stack.callback(os.close, original)
            os.dup2(_STDERR_FILENO, _STDOUT_FILENO)
            stack.callback(os.dup2, original, _STDOUT_FILENO)
        yield


def _redirect_output_at_exit() -> None:
    """Do it for the functions for the end of the process as well."""
    sys.stdout = sys.stderr


class _TimeLimit:
    """
    Interrupts an application that does not return after it has started a scheduler, as Ctrl-C does.

    Args:
        target: names the application in the message.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self._timer: threading.Timer | None = None
        self.is_over = False

    def start(self) -> None:
        """Begin, unless it has begun."""
        if self._timer is None and hasattr(signal, "pthread_kill"):
            self._timer = threading.Timer(MAX_SECONDS_AFTER_START, self._interrupt)
            self._timer.start()

    def cancel(self) -> None:
        """Let the application go on."""
        if self._timer is not None:
            self._timer.cancel()

    def _interrupt(self) -> None:
        self.is_over = True
        message = (
            f"apscheduler-telemetry: {self._target} has not returned "
            f"{MAX_SECONDS_AFTER_START:.0f} s after it has started a scheduler, and is "
            "interrupted. What it has added by now is checked."
        )
        print(message, file=sys.stderr)  # noqa: T201  # the output of the command
        self._timer = threading.Timer(MAX_SECONDS_AFTER_INTERRUPT, self._end_process)
        self._timer.start()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def _end_process(self) -> None:
        message = (
            f"apscheduler-telemetry: {self._target} ignores the interrupt, so it is not checked. "
            "Pass a function that adds the jobs and returns."
        )
        print(message, file=sys.stderr, flush=True)  # noqa: T201  # the output of the command
        os._exit(UsageError.exit_status)


def _evaluate_target(module: str, path: str | None, limit: _TimeLimit, *, is_call: bool) -> Any:
    try:
        found: Any = importlib.import_module(module)
        for name in path.split(".") if path else ():
            found = getattr(found, name)
        if is_call:
            found = found()
        if inspect.iscoroutine(found):
            found = asyncio.run(found)
    except BaseException as error:  # which may be one of the application's own
        if limit.is_over:  # it may raise anything
            return None
        raise_if_interruption(error)
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame for frame in frames if _is_application_file(Path(frame.filename))]
        where = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
        text = ""
        with contextlib.suppress(Exception):  # its __str__ is the user's code
            text = str(error)
        what = f"{type(error).__name__}: {text}" if text else type(error).__name__
        msg = f"cannot import {module}: {what}{where}"
        if isinstance(error, AttributeError) and not places:
            msg = f"{module} has no attribute {path!r}. Pass module:scheduler."
        raise UsageError(msg) from error
    return found


def _choose_schedulers(
    found: Any, preventions: list[StartPrevention], target: str
) -> list[FoundScheduler]:
    created = [pair for each in preventions for pair in each.created_schedulers()]
    try:
        _, scheduler = find_adapter(found)
    except ArgumentTypeError:
        chosen = created
    else:
        facts = next(
            (facts for each, facts in created if each is scheduler), SchedulerImportFacts()
        )
        chosen = [(scheduler, facts)]
    if not chosen:
        msg = (
            f"{target} has no scheduler of APScheduler 3, and its import creates none. Pass "
            "module:scheduler, or a function that creates it: module:create_app()."
        )
        raise UsageError(msg)
    return [
        FoundScheduler(
            _scheduler_name(scheduler),
            scheduler,
            facts,
            [
                other
                for other, other_facts in created
                if other is not scheduler and not other_facts.was_paused
            ],
        )
        for scheduler, facts in chosen
    ]


def _scheduler_name(scheduler: Any) -> str:
    handle = get_handle(scheduler)
    return type(scheduler).__name__ if handle is None else handle.name


def _mentions_shutdown(module: ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or not _is_application_file(Path(path)):
        return False
    with contextlib.suppress(OSError):
        return re.search(r"\bshutdown\b", Path(path).read_text("utf-8", "replace")) is not None
    return True  # nothing is known


def _is_application_file(path: Path) -> bool:
    """Return whether a file is in the current directory, and not of an environment in it."""
    return (
        path.is_relative_to(Path.cwd())
        and path.suffix == ".py"
        and not {"site-packages", "dist-packages"} & set(path.parts)
    )
