"""
Finds the scheduler that runs the jobs of an object that wraps one.

A wrapper may be a `BaseScheduler` itself, as that of apscheduler-di, and pass every call on to
another one. Nothing of it ever runs, so there is nothing to watch.

A scheduler is taken for such a wrapper only if the code of its ``start()`` proves it: `self` goes
nowhere, nothing inherited from APScheduler starts it, and ``start()`` of one of its attributes is
called. In doubt, it is what it claims to be, and runs by itself.

If there is none, `describe_rejected_candidate` says what to pass instead.
"""

from __future__ import annotations

import dis
import functools
import inspect
import reprlib
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from types import FunctionType, MemberDescriptorType, MethodType
from typing import Any

from apscheduler.schedulers.base import STATE_STOPPED, BaseScheduler

from apscheduler_telemetry.core.interruptions import raise_if_interruption
from apscheduler_telemetry.core.model import exception_type_name


def find_scheduler_started_by(candidate: object) -> Any:
    """
    Return the scheduler that runs when `candidate` is started.

    Returns:
        `candidate`, if it is a scheduler that runs, or may run, by itself; the one that it passes
        ``start()`` on to, also over several wrappers; None if there is none, or more than one.
    """
    seen: list[object] = []
    while not any(candidate is other for other in seen):
        seen.append(candidate)
        if is_scheduler(candidate) and _has_started(candidate):
            return candidate
        owner = _scheduler_of_start_method(candidate)
        if owner is not None and owner is not candidate:
            candidate = owner
            continue
        if not is_scheduler(candidate):
            return None
        targets = _find_objects_started_instead(candidate)
        if targets is None:
            return candidate
        if len(targets) == 1:
            candidate = targets[0]
    return None


def describe_rejected_candidate(candidate: object) -> str | None:
    """Return what an object without a scheduler is, and what to pass; None for nothing special."""
    texts = (describe(candidate, type(candidate)) for describe in _REJECTION_DESCRIBERS)
    return next(filter(None, texts), None)


def is_initialized(scheduler: object) -> bool:
    """Return whether the constructor of APScheduler was called for a scheduler."""
    try:
        object.__getattribute__(scheduler, "_executors")
    except AttributeError:
        return False
    return True


def is_scheduler(thing: object) -> bool:
    """Return whether an object is a scheduler of APScheduler 3, and does not only pretend to be."""
    return issubclass(type(thing), BaseScheduler)


def find_schedulers_in_attributes(holder: object) -> Mapping[str, Any]:
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


def _scheduler_of_start_method(candidate: object) -> Any:
    """Return the scheduler that ``candidate.start`` is a method of, as a proxy shows it."""
    try:
        owner = getattr(candidate.start, "__self__", None)  # type: ignore[attr-defined]
    except BaseException as error:  # noqa: BLE001  # user code
        raise_if_interruption(error)
        return None
    return owner if is_scheduler(owner) else None


def _has_started(scheduler: object) -> bool:
    """Return whether a scheduler itself was started, whatever a property of its class returns."""
    if any("state" in vars(cls) for cls in type(scheduler).__mro__):
        return False
    # Not by its `__dict__`: before Python 3.13, looking at that makes every later use of the
    # object's attributes slower, which every run would pay for.
    try:
        return bool(object.__getattribute__(scheduler, "state") != STATE_STOPPED)
    except AttributeError:  # it does not call the constructor of APScheduler
        return False


def _find_objects_started_instead(scheduler: object) -> list[Any] | None:
    """
    Return what ``start()`` starts instead of the scheduler, also by way of its other methods.

    Returns:
        Each object once, without those that are still to be made; None if nothing proves that the
        scheduler itself is not started.
    """
    mro = type(scheduler).__mro__
    targets: dict[int, Any] = {}
    members = [("start", 0)]  # that are used, and the position in `mro` from which to look them up
    for name, first in members:  # grows
        cls = next((cls for cls in mro[first:] if name in vars(cls)), object)
        if name != "start" and cls.__module__.partition(".")[0] == "apscheduler":
            continue
        paths = _attribute_paths_of_member(scheduler, name, vars(cls).get(name))
        if paths is None:
            return None
        for path in paths:
            used = (path[1], mro.index(cls) + 1) if path[0] == _SUPER_NAME else (path[0], 0)
            if used not in members:
                members.append(used)
            if path[0] != _SUPER_NAME and path[-1] == "start":
                target = _get_attribute_by_path(scheduler, path[:-1])
                if target is scheduler or not (target is None or _is_scheduler_or_proxy(target)):
                    return None
                targets[id(target)] = target
    return [target for target in targets.values() if target is not None] if targets else None


def _attribute_paths_of_member(
    scheduler: object, name: str, member: object
) -> Iterable[tuple[str, ...]] | None:
    """Do the same as `_attribute_paths_from_self` for any member of a class or of the object."""
    function = member.fget if isinstance(member, property) else member
    if isinstance(function, FunctionType):
        paths = _attribute_paths_from_self(function)
        decorated = inspect.unwrap(function)
        return (
            _attribute_paths_from_self(decorated)
            if paths is None and decorated is not function
            else paths
        )
    value = _get_attribute_by_path(scheduler, (name,))
    return None if callable(value) and not _is_scheduler_or_proxy(value) else ()


def _is_scheduler_or_proxy(thing: object) -> bool:
    return is_scheduler(thing) or _scheduler_of_start_method(thing) is not None


def _get_attribute_by_path(thing: Any, path: Iterable[str]) -> Any:
    """Return an attribute of an attribute; None if it is missing."""
    try:
        for name in path:
            thing = getattr(thing, name)
    except BaseException as error:  # noqa: BLE001  # user code
        raise_if_interruption(error)
        return None
    return thing


def _attribute_paths_from_self(function: FunctionType) -> set[tuple[str, ...]] | None:
    """
    Return the attributes that a method reads from `self`, and theirs.

    Returns:
        The names in ``self.scheduler.start`` and ``super().configure``, as ``("scheduler",
        "start")`` and ``("super", "configure")``; None if the method may start `self`, as it
        passes it on, sets its state, or reads a ``start`` from elsewhere.
    """
    code = function.__code__
    own_name = code.co_varnames[0] if code.co_argcount else None
    if own_name is None or own_name in code.co_cellvars or "start" in code.co_consts:
        return None
    paths: set[tuple[str, ...]] = set()
    path: tuple[str, ...] | None = None  # the one that is being read
    for instruction in dis.get_instructions(function):
        operation, argument = instruction.opname, instruction.argval
        loaded = argument if isinstance(argument, tuple) else (argument,)
        if path is not None and operation in _ATTRIBUTE_READ_INSTRUCTIONS:
            path += (argument,)
            continue
        if path == () and operation in _COPY_INSTRUCTIONS:  # as in self.count += 1
            continue
        if path == (_SUPER_NAME,) and (
            operation in _CALL_INSTRUCTIONS or argument in (own_name, "__class__")
        ):
            continue
        if (
            path == (_SUPER_NAME,)
            or (path == () and operation not in {"STORE_ATTR", "RETURN_VALUE"})
            or (operation in _ATTRIBUTE_READ_INSTRUCTIONS and argument == "start")
            or (operation == "STORE_ATTR" and argument == "state")
            or ("LOAD_FAST" in operation and own_name in loaded[:-1])
        ):
            return None
        if path:
            paths.add(path)
        path = None
        if operation == "LOAD_GLOBAL" and argument == _SUPER_NAME:
            path = (_SUPER_NAME,)
        elif "LOAD_FAST" in operation and loaded[-1] == own_name:
            path = ()
    return paths


# Descriptions of what was passed. They get its class, as `isinstance` would ask the object for it.


def _describe_if_class(candidate: object, kind: type) -> str | None:
    if not issubclass(kind, type):
        return None
    name = _get_attribute_by_path(candidate, ["__name__"])
    return f"the class {name} itself; pass an instance of it"


def _describe_if_mock(candidate: object, kind: type) -> str | None:
    if kind.__module__ != "unittest.mock":
        return None
    return f"{_short_repr(candidate)}, a mock, which runs no jobs; pass a real scheduler"


def _describe_if_other_version(_: object, kind: type) -> str | None:
    module = str(kind.__module__)
    if module.partition(".")[0] != "apscheduler" or issubclass(kind, BaseScheduler):
        return None
    return (
        f"{module}.{kind.__name__}, which is not of APScheduler 3; APScheduler 4 is not supported: "
        "install 'apscheduler>=3.10,<4'"
    )


def _describe_if_function(candidate: Any, kind: type) -> str | None:
    if not issubclass(kind, (FunctionType, MethodType, functools.partial, weakref.ref)):
        return None
    function = candidate
    while isinstance(function, functools.partial):
        function = function.func
    if is_scheduler(_get_attribute_by_path(function, ["__self__"])):
        return f"{_short_repr(candidate)}, a method of a scheduler; pass the scheduler itself"
    return f"{_short_repr(candidate)}; call it and pass its result, if that is a scheduler"


def _describe_if_holder_of_schedulers(candidate: object, _: type) -> str | None:
    attributes = list(find_schedulers_in_attributes(candidate))
    if len(attributes) <= 1 and is_scheduler(_get_attribute_by_path(candidate, ["scheduler"])):
        attributes = ["scheduler"]  # perhaps a property, which is the public name
    if not attributes:
        return None
    text = _short_repr(candidate)
    if len(attributes) > 1:
        return f"{text}, which has several; pass one of its attributes {', '.join(attributes)}"
    return f"{text}, which has one; pass its attribute {attributes[0]}"


def _describe_if_unusable_scheduler(candidate: object, kind: type) -> str | None:
    if not issubclass(kind, BaseScheduler):
        return None
    text = _short_repr(candidate)
    if not is_initialized(candidate):
        return f"{text}, whose class does not call super().__init__(); call it in its constructor"
    return (
        f"{text}, whose start() does not start it, but another one; pass the scheduler that it "
        "starts"
    )


def _describe_if_attributes_unreadable(candidate: object, _: type) -> str | None:
    try:
        getattr(candidate, "start", None)
    except BaseException as error:  # noqa: BLE001  # user code
        raise_if_interruption(error)
        return (
            f"{_short_repr(candidate)}, whose attributes cannot be read "
            f"({exception_type_name(error)}), such as a proxy that has no object yet; pass the "
            "scheduler itself"
        )
    return None


def _describe_if_iterable(candidate: object, kind: type) -> str | None:
    if not issubclass(kind, Iterable) or issubclass(kind, (str, bytes)):
        return None
    return (
        f"{_short_repr(candidate)}; pass each scheduler of the {kind.__name__} on its own, with "
        "its own name="
    )


_REJECTION_DESCRIBERS = (
    _describe_if_class,
    _describe_if_mock,
    _describe_if_other_version,
    _describe_if_function,
    _describe_if_holder_of_schedulers,
    _describe_if_unusable_scheduler,
    _describe_if_attributes_unreadable,
    _describe_if_iterable,
)
_repr_formatter = reprlib.Repr()  # in a line, and surviving a __repr__ that raises
_repr_formatter.maxother = _repr_formatter.maxstring = 100
_short_repr = _repr_formatter.repr
_SUPER_NAME = "super"
_ATTRIBUTE_READ_INSTRUCTIONS = {"LOAD_ATTR", "LOAD_METHOD", "LOAD_SUPER_ATTR"}
_COPY_INSTRUCTIONS = {"COPY", "DUP_TOP"}
_CALL_INSTRUCTIONS = {"CALL", "CALL_FUNCTION", "PRECALL", "PUSH_NULL"}
"""Names of instructions, in all versions of Python."""
