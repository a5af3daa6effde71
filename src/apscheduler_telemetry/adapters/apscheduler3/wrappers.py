"""
Finds the scheduler that runs the jobs of an object that wraps one.

A wrapper may be a `BaseScheduler` itself, as that of apscheduler-di, and pass every call on to
another one. Nothing of it ever runs, so there is nothing to watch.
"""

from __future__ import annotations

import dis
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import FunctionType, MemberDescriptorType
from typing import Any

from apscheduler.schedulers.base import BaseScheduler


def find_running_scheduler(candidate: object) -> Any:
    """
    Return the scheduler that runs when `candidate` is started.

    Returns:
        `candidate`, if it is a scheduler that runs by itself; the one that it passes ``start()``
        on to, also over several wrappers; None if there is none, or more than one.
    """
    seen: list[object] = []
    while not any(candidate is other for other in seen):
        seen.append(candidate)
        starting = _owner_of_start(candidate)
        if starting is not None and starting is not candidate:
            candidate = starting
            continue
        if not is_scheduler(candidate):
            return None
        if _runs_by_itself(type(candidate)):
            return candidate
        held = held_schedulers(candidate)
        if len({id(scheduler) for scheduler in held.values()}) == 1:
            candidate = next(iter(held.values()))
    return None


def is_scheduler(thing: object) -> bool:
    """Tell whether an object is a scheduler of APScheduler 3, and does not only pretend to be."""
    return issubclass(type(thing), BaseScheduler)


def held_schedulers(holder: object) -> Mapping[str, Any]:
    """Return the schedulers that an object has, by attribute, without its class's own code."""
    attributes: dict[str, Any] = {}
    with suppress(Exception):  # user code
        attributes.update(getattr(holder, "__dict__", {}))
    for kind in type(holder).__mro__:
        for name, member in vars(kind).items():
            if isinstance(member, MemberDescriptorType):  # of __slots__
                attributes[name] = getattr(holder, name, None)
    return {
        name: value
        for name, value in attributes.items()
        if is_scheduler(value) and value is not holder
    }


def _owner_of_start(candidate: object) -> Any:
    """Return the scheduler that ``candidate.start`` is a method of, as a proxy shows it."""
    try:
        owner = getattr(candidate.start, "__self__", None)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001  # user code
        return None
    return owner if is_scheduler(owner) else None


def _runs_by_itself(kind: type) -> bool:
    """
    Tell whether ``start()`` of a class starts the object itself.

    It does if it is that of APScheduler, if any method of the user's own classes calls what it
    inherits, or if one sets ``state``, without which no scheduler runs.
    """
    own = [cls for cls in kind.__mro__ if cls.__module__.partition(".")[0] != "apscheduler"]
    if not any("start" in vars(cls) for cls in own):
        return True
    return any(
        _calls_inherited_start(function, kind) or _sets_state(function)
        for cls in own
        for value in vars(cls).values()
        for function in _functions_in(value)
    )


def _functions_in(value: Any, depth: int = 3) -> Iterator[FunctionType]:
    """Yield a function, and those that it decorates."""
    if not isinstance(value, FunctionType) or not depth:
        return
    yield value
    for cell in value.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield from _functions_in(cell.cell_contents, depth - 1)


def _calls_inherited_start(function: FunctionType, kind: type) -> bool:
    code = function.__code__
    if "start" not in code.co_names:
        return False
    names = {cls.__name__ for cls in kind.__mro__}
    return "__class__" in code.co_freevars or any(
        name in names or function.__globals__.get(name) in kind.__mro__ for name in code.co_names
    )


def _sets_state(function: FunctionType) -> bool:
    return any(
        instruction.opname == "STORE_ATTR" and instruction.argval == "state"
        for instruction in dis.get_instructions(function)
    )
