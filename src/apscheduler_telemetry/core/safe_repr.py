"""
Shows values of the user's in a few characters, whatever they are.

Only values of plain types are written out. Of all others the type is told, and no code of theirs is
called: a ``__repr__`` may raise, take minutes, or say what should stay secret.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler_telemetry.core.model import qualified_name

MAX_CHARACTERS = 1_024
"""Of one text; long enough for ids and numbers, short beside the limits of any backend."""
MAX_ITEMS = 20
"""Of each collection; what is left out is told by an ellipsis."""
MAX_DEPTH = 4
"""Of collections in collections, which may contain themselves."""
MAX_BITS = 256
"""Of an integer; the time that it takes to write one grows with the square of its length."""

_AS_THEY_ARE = (
    bool,
    float,
    complex,
    type(None),
    dt.date,
    dt.timedelta,
    uuid.UUID,
)
_TIMEZONES = (type(None), dt.timezone, ZoneInfo)


def brief(value: object) -> str:
    """Return `value` as Python would write it, cut where it is long."""
    return _cut(_write(value, MAX_DEPTH))


def brief_call(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """Return the arguments of a call as Python would write them, cut where they are long."""
    positional = (_write(value, MAX_DEPTH) for value in args)
    named = (f"{_cut(name)}={_write(value, MAX_DEPTH)}" for name, value in kwargs.items())
    return _cut(", ".join([*_few(positional), *_few(named)]))


def _write(value: Any, depth: int) -> str:
    kind = type(value)  # its very type, as a subclass may do anything
    if kind is str or kind is bytes:
        return repr(value[:MAX_CHARACTERS]) + ("..." if len(value) > MAX_CHARACTERS else "")
    if kind is int:
        bits = value.bit_length()
        return repr(value) if bits <= MAX_BITS else f"<int of {bits} bits>"
    is_moment = (kind is dt.datetime or kind is dt.time) and type(value.tzinfo) in _TIMEZONES
    if is_moment or kind in _AS_THEY_ARE:
        return repr(value)
    write = _COLLECTIONS.get(kind)
    if write is None:
        return f"<{qualified_name(kind)}>"
    return write(value, depth - 1) if depth else "..."


def _items(value: Iterable[object], depth: int) -> str:
    return ", ".join(_few(_write(item, depth) for item in value))


def _dict(value: Mapping[object, object], depth: int) -> str:
    items = (f"{_write(key, depth)}: {_write(item, depth)}" for key, item in value.items())
    return "{" + ", ".join(_few(items)) + "}"


def _tuple(value: tuple[object, ...], depth: int) -> str:
    return f"({_items(value, depth)}{',' if len(value) == 1 else ''})"


_COLLECTIONS: Mapping[type, Callable[[Any, int], str]] = {
    dict: _dict,
    frozenset: lambda value, depth: f"frozenset({{{_items(value, depth)}}})",
    list: lambda value, depth: f"[{_items(value, depth)}]",
    set: lambda value, depth: f"{{{_items(value, depth)}}}" if value else "set()",
    tuple: _tuple,
}


def _few(texts: Iterator[str]) -> Iterator[str]:
    yield from islice(texts, MAX_ITEMS)
    if next(texts, None) is not None:
        yield "..."


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
