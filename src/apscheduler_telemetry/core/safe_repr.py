"""
Bounded ``repr()`` of arbitrary values that calls no code of the user's.

Only values of plain types are written out. All others are represented by their type, as a
``__repr__`` may raise, take minutes, or reveal a secret. What is named like a secret is masked.
"""

from __future__ import annotations

import datetime as dt
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo

from apscheduler_telemetry.core.model import qualified_class_name

MAX_CHARACTERS = 1_024
"""Of a whole text: enough for ids and numbers, and far below the limits of tracing backends."""
MAX_ITEMS = 20
"""Of each collection; an ellipsis stands for the others."""
MAX_DEPTH = 4
"""Of nested collections, which may contain themselves."""
MAX_BITS = 256
"""Of an integer; the time to convert one grows with the square of its length."""

MASK = "***"
"""Stands for the value of an argument, or of a key, that is named like a secret."""

_SECRET_WORDS = frozenset(
    {
        "auth",
        "bearer",
        "cookie",
        "cookies",
        "cred",
        "credential",
        "credentials",
        "creds",
        "csrf",
        "dsn",
        "hmac",
        "jwt",
        "oauth",
        "otp",
        "pass",
        "pem",
        "pin",
        "pw",
        "pwd",
        "signature",
        "totp",
        "xsrf",
    }
)
"""Words that make a name that of a secret; as parts of other words, as of "author", they do not."""
_SECRET_PATTERN = re.compile(
    "accesskey|apikey|authorization|authtoken|connectionstring|connstr|credential|encryptionkey|"
    "licen[cs]ekey|passphrase|passwd|passwor[dt]|passcode|privatekey|sessionid|sessionkey|"
    "signingkey|sshkey|webhook|"
    # Addresses that mostly contain a password.
    "(broker|database|db|mongo|mongodb|mysql|postgres|postgresql|redis)ur[il]|"
    # Not in "secretary" and "tokenizer".
    "secret(?!ar)|token(?!i[sz])|"
    # As in "userpw".
    "pwd?$"
)
"""The same anywhere in a name, of which only letters and digits are looked at, in lower case."""
_NON_SECRET_WORDS = frozenset(
    {"age", "count", "len", "length", "limit", "max", "min", "n", "num", "size", "total", "ttl"}
)
"""A name that begins or ends with one is that of a number, as ``max_tokens`` is, and no secret."""
_KEYS_OF_NAMES = frozenset({"key", "name"})
"""Keys of a dictionary that has a name, and under `_KEY_OF_NAMED_VALUE` the value of that name."""
_KEY_OF_NAMED_VALUE = "value"
_WORD_PATTERN = re.compile(r"[A-Z]*[a-z]+|[A-Z]+|[0-9]+")

_SAFE_REPR_TYPES = (
    bool,
    float,
    complex,
    type(None),
    dt.date,
    dt.timedelta,
    uuid.UUID,
)
_TIMEZONE_TYPES = (type(None), dt.timezone, ZoneInfo)


def safe_repr(value: object) -> str:
    """Return `value` as Python writes it, truncated to `MAX_CHARACTERS`."""
    return _truncate(_format_value(value, MAX_DEPTH))


def safe_repr_call(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """Return the arguments of a call as Python writes them, truncated to `MAX_CHARACTERS`."""
    positional = (_format_value(value, MAX_DEPTH) for value in args)
    named = (
        f"{_truncate(name)}={_format_value_unless_secret(name, value, MAX_DEPTH)}"
        for name, value in kwargs.items()
    )
    return _truncate(", ".join([*_limit_items(positional), *_limit_items(named)]))


def is_secret_name(name: Any) -> bool:
    """
    Return whether an argument or a key of this name looks like that of a secret.

    A name consists of words, such as ``db``, ``pass`` and ``1`` in ``dbPass1``. It is that of a
    secret if one of them is in `_SECRET_WORDS`, or if `_SECRET_PATTERN` is in all of them together,
    unless the first or the last word says that it is a number.
    """
    kind = type(name)  # `isinstance` would ask the object for its class
    if issubclass(kind, bytes):
        text = bytes.decode(bytes.__getitem__(name, slice(MAX_CHARACTERS)), "utf-8", "replace")
    elif issubclass(kind, str):
        text = str.__getitem__(name, slice(MAX_CHARACTERS))
    else:
        return False
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)  # full-width letters become plain ones
    words = [word.lower() for word in _WORD_PATTERN.findall(text)]
    if not words or not _NON_SECRET_WORDS.isdisjoint({words[0], words[-1]}):
        return False
    return not _SECRET_WORDS.isdisjoint(words) or bool(_SECRET_PATTERN.search("".join(words)))


def _format_value_unless_secret(name: Any, value: object, depth: int) -> str:
    parts = name[:MAX_ITEMS] if type(name) is tuple else (name,)
    return MASK if any(map(is_secret_name, parts)) else _format_value(value, depth)


def _format_value(value: Any, depth: int) -> str:
    kind = type(value)  # exactly this type, as a subclass may do anything
    if kind is str or kind is bytes:
        return repr(value[:MAX_CHARACTERS]) + ("..." if len(value) > MAX_CHARACTERS else "")
    if kind is int:
        bits = value.bit_length()
        return repr(value) if bits <= MAX_BITS else f"<int of {bits} bits>"
    is_moment = (kind is dt.datetime or kind is dt.time) and type(value.tzinfo) in _TIMEZONE_TYPES
    if is_moment or kind in _SAFE_REPR_TYPES:
        return repr(value)
    format_collection = _COLLECTION_FORMATTERS.get(kind)
    if format_collection is None:
        return f"<{qualified_class_name(kind)}>"
    return format_collection(value, depth - 1) if depth else "..."


def _format_sequence(value: Sequence[object], depth: int) -> str:
    # A pair of a name and a value, as of HTTP headers.
    if len(value) == 2 and not _command_line_option_or_empty(value[0]) and is_secret_name(value[0]):  # noqa: PLR2004
        return f"{_format_value(value[0], depth)}, {MASK}"
    return ", ".join(_limit_items(_mask_option_values(value, depth)))


def _mask_option_values(value: Sequence[object], depth: int) -> Iterator[str]:
    """Yield items, without the values of options of a command, as in ``["--password", "x"]``."""
    is_value_secret = False
    for item in value:
        option = _command_line_option_or_empty(item)
        name, separator, _ = option.partition("=")
        if is_value_secret and not option:
            yield MASK
        elif separator and is_secret_name(name):
            yield repr(f"{name}={MASK}")
        else:
            yield _format_value(item, depth)
        is_value_secret = not separator and is_secret_name(name)


def _command_line_option_or_empty(item: object) -> str:
    """Return the start of an argument that is an option of a command, and nothing of others."""
    return item[:MAX_CHARACTERS] if type(item) is str and item.startswith("-") else ""


def _format_set_items(value: Iterable[object], depth: int) -> str:
    return ", ".join(_limit_items(_format_value(item, depth) for item in value))


def _format_dict(value: Mapping[object, object], depth: int) -> str:
    has_secret_name = any(
        type(key) is str and key in _KEYS_OF_NAMES and is_secret_name(item)
        for key, item in islice(value.items(), MAX_ITEMS)
    )
    items = (
        f"{_format_value(key, depth)}: {MASK}"
        if has_secret_name and type(key) is str and key == _KEY_OF_NAMED_VALUE
        else f"{_format_value(key, depth)}: {_format_value_unless_secret(key, item, depth)}"
        for key, item in value.items()
    )
    return "{" + ", ".join(_limit_items(items)) + "}"


def _format_tuple(value: tuple[object, ...], depth: int) -> str:
    return f"({_format_sequence(value, depth)}{',' if len(value) == 1 else ''})"


_COLLECTION_FORMATTERS: Mapping[type, Callable[[Any, int], str]] = {
    dict: _format_dict,
    frozenset: lambda value, depth: f"frozenset({{{_format_set_items(value, depth)}}})",
    list: lambda value, depth: f"[{_format_sequence(value, depth)}]",
    set: lambda value, depth: f"{{{_format_set_items(value, depth)}}}" if value else "set()",
    tuple: _format_tuple,
}


def _limit_items(texts: Iterator[str]) -> Iterator[str]:
    yield from islice(texts, MAX_ITEMS)
    if next(texts, None) is not None:
        yield "..."


def _truncate(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[: MAX_CHARACTERS - 3]}..."
