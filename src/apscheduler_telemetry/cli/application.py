"""
Imports the application that a command is to check, and finds its schedulers.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from apscheduler_telemetry.adapters.base import ImportFacts, StartPrevention
from apscheduler_telemetry.adapters.registry import START_PREVENTIONS, find_adapter
from apscheduler_telemetry.api import get_handle
from apscheduler_telemetry.cli.errors import UsageError
from apscheduler_telemetry.core.findings import Finding
from apscheduler_telemetry.errors import ArgumentTypeError

_TARGET = re.compile(r"(?P<module>\w+(\.\w+)*)(:(?P<path>\w+(\.\w+)*)(?P<call>\(\))?)?")

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


class FoundScheduler(NamedTuple):
    """
    A scheduler of an application.

    Attributes:
        name: the value of its ``scheduler`` label if it is instrumented, or else its class.
        scheduler: the scheduler.
        facts: what was seen of it at the import.
    """

    name: str
    scheduler: Any
    facts: ImportFacts

    def check(self, others: Sequence[Any]) -> Sequence[Finding]:
        """Return its risks; `others` are further schedulers of the application."""
        adapter, scheduler = find_adapter(self.scheduler)
        return adapter.check_imported(scheduler, self.facts, others)


def import_schedulers(target: str) -> list[FoundScheduler]:
    """
    Return the schedulers of an application, which are not started.

    Args:
        target: ``module:scheduler``, ``module:create_app()`` or ``module``. If this is no
            scheduler, those that the import and the call have created are returned.

    Raises:
        UsageError: it cannot be imported or called, or has no scheduler.
    """
    match = _TARGET.fullmatch(target)
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
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        preventions = [each() for each in START_PREVENTIONS]
        for prevention in preventions:
            prevention.install()
            stack.callback(prevention.uninstall)
        found = _evaluate(match["module"], match["path"], is_call=match["call"] is not None)
    modules = [sys.modules[name] for name in set(sys.modules) - known if name in sys.modules]
    calls_shutdown = any(_mentions_shutdown(module) for module in modules)
    is_web_application = any(name in sys.modules for name in WEB_FRAMEWORKS)
    schedulers = _choose(found, preventions, target)
    return [
        each._replace(
            facts=replace(
                each.facts, calls_shutdown=calls_shutdown, is_web_application=is_web_application
            )
        )
        for each in schedulers
    ]


def _evaluate(module: str, path: str | None, *, is_call: bool) -> Any:
    try:
        found: Any = importlib.import_module(module)
        for name in path.split(".") if path else ():
            found = getattr(found, name)
        if is_call:
            found = found()
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        places = [frame for frame in frames if _is_of_application(Path(frame.filename))]
        where = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        msg = f"cannot import {module}: {what}{where}"
        if isinstance(error, AttributeError) and not places:
            msg = f"{module} has no attribute {path!r}. Pass module:scheduler."
        raise UsageError(msg) from error
    return found


def _choose(found: Any, preventions: list[StartPrevention], target: str) -> list[FoundScheduler]:
    created = [pair for each in preventions for pair in each.created_schedulers()]
    try:
        _, scheduler = find_adapter(found)
    except ArgumentTypeError:
        chosen = created
    else:
        facts = next((facts for each, facts in created if each is scheduler), ImportFacts())
        chosen = [(scheduler, facts)]
    if not chosen:
        msg = (
            f"{target} has no scheduler of APScheduler 3, and its import creates none. Pass "
            "module:scheduler, or a function that creates it: module:create_app()."
        )
        raise UsageError(msg)
    return [FoundScheduler(_name_of(scheduler), scheduler, facts) for scheduler, facts in chosen]


def _name_of(scheduler: Any) -> str:
    handle = get_handle(scheduler)
    return type(scheduler).__name__ if handle is None else handle.name


def _mentions_shutdown(module: ModuleType) -> bool:
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or not _is_of_application(Path(path)):
        return False
    with contextlib.suppress(OSError):
        return re.search(r"\bshutdown\b", Path(path).read_text("utf-8", "replace")) is not None
    return True  # nothing is known


def _is_of_application(path: Path) -> bool:
    """Tell whether a file is in the current directory, and not of an environment in it."""
    return (
        path.is_relative_to(Path.cwd())
        and path.suffix == ".py"
        and not {"site-packages", "dist-packages"} & set(path.parts)
    )
