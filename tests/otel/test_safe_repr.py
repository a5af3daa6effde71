"""Bounded representations: plain values have Python's, others only their type."""

from __future__ import annotations

import datetime as dt
import tracemalloc
import uuid
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from apscheduler_telemetry.core.safe_repr import (
    MAX_CHARACTERS,
    is_secret_name,
    safe_repr,
    safe_repr_call,
)


class Untouchable:
    """None of whose code may be called."""

    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(name)

    def __repr__(self) -> str:
        raise AssertionError("repr")

    def __str__(self) -> str:
        raise AssertionError("str")


class Text(str):
    """A string that keeps a secret."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise AssertionError("repr")

    def __getitem__(self, key: Any) -> str:
        raise AssertionError("getitem")


class Zone(dt.tzinfo):
    def __repr__(self) -> str:
        raise AssertionError("repr")

    def utcoffset(self, moment: dt.datetime | None) -> dt.timedelta:
        raise AssertionError("utcoffset")

    dst = tzname = utcoffset  # type: ignore[assignment]


class TestPlain:
    @pytest.mark.parametrize(
        "value",
        [
            *(None, True, 7, -1.5, 2j, "text", "it's", b"bytes", (), (1,), (1, "a"), [], [1, [2]]),
            *({}, {"a": [1]}, set(), {1}, dt.date(2030, 1, 1), dt.timedelta(seconds=5)),
            *(dt.time(1, 2), dt.datetime(2030, 1, 1, tzinfo=dt.timezone.utc), uuid.UUID(int=7)),
            dt.datetime(2030, 1, 1, tzinfo=ZoneInfo("Europe/Vienna")),
        ],
        ids=str,
    )
    def test_plain_values_are_written_as_python_does(self, value: object) -> None:
        """Plain values have Python's representation."""
        assert safe_repr(value) == repr(value)

    def test_both_kinds_of_sets_are_written(self) -> None:
        """Sets and frozen sets have a representation."""
        assert safe_repr(frozenset({1})) == "frozenset({1})"


class TestOthers:
    def test_other_values_are_written_by_their_type_only(self) -> None:
        """A value that is not plain is represented by its type, and none of its code is called."""
        here = __name__
        assert safe_repr(Untouchable()) == f"<{here}.Untouchable>"
        assert safe_repr(Text("secret")) == f"<{here}.Text>"
        assert (
            safe_repr([Untouchable(), {1: Untouchable()}])
            == f"[<{here}.Untouchable>, {{1: <{here}.Untouchable>}}]"
        )
        assert safe_repr(dt.datetime(2030, 1, 1, tzinfo=Zone())) == "<datetime.datetime>"
        assert safe_repr(len) == "<builtin_function_or_method>"


class TestBounds:
    def test_long_text_is_truncated_first(self) -> None:
        """A text of megabytes is truncated before it is converted."""
        assert len(safe_repr("x" * 10_000_000)) == MAX_CHARACTERS
        assert safe_repr("x" * 10_000_000).endswith("...")
        assert len(safe_repr(b"x" * 10_000_000)) == MAX_CHARACTERS

    @pytest.mark.parametrize("encode", [str, str.encode], ids=["str", "bytes"])
    @pytest.mark.parametrize(
        "describe",
        [safe_repr, is_secret_name, lambda text: safe_repr_call((), {text: 1})],
        ids=["value", "name", "name of an argument"],
    )
    def test_long_text_takes_no_memory(
        self, encode: Callable[[str], Any], describe: Callable[[Any], Any]
    ) -> None:
        """Only the start of a long text is copied or searched."""
        text = encode("x " * 5_000_000)
        tracemalloc.start()
        try:
            describe(text)
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()

    def test_long_number_is_written_by_its_length(self) -> None:
        """A number that would take long to convert is represented by its length."""
        assert safe_repr(1 << 100_000) == "<int of 100001 bits>"
        assert safe_repr(1 << 255) == repr(1 << 255)

    def test_first_twenty_items_are_written(self) -> None:
        """The first twenty items of a collection are written."""
        assert safe_repr(list(range(21))) == f"[{', '.join(map(str, range(20)))}, ...]"
        assert safe_repr(list(range(20))) == f"[{', '.join(map(str, range(20)))}]"
        assert safe_repr(dict.fromkeys(range(10**6))).endswith("...}")

    def test_collection_that_contains_itself_is_cut_off(self) -> None:
        """A collection that contains itself is truncated."""
        endless: list[Any] = []
        endless.append(endless)
        assert safe_repr(endless) == "[[[[...]]]]"

    def test_whole_text_is_bounded(self) -> None:
        """The length of the whole text is bounded."""
        assert len(safe_repr([["x" * 500] * 50] * 50)) == MAX_CHARACTERS


class TestCall:
    def test_arguments_are_written_as_in_the_call(self) -> None:
        """Arguments are written as in a call."""
        assert safe_repr_call((1, "a"), {"key": [None], "other": Untouchable()}) == (
            f"1, 'a', key=[None], other=<{__name__}.Untouchable>"
        )
        assert safe_repr_call((), {}) == ""

    def test_first_twenty_arguments_are_written(self) -> None:
        """The first twenty positional and keyword arguments are written."""
        assert safe_repr_call(range(25), {"last": 1}).endswith("18, 19, ..., last=1")


class TestSecrets:
    """Values whose names look like those of secrets are masked."""

    @pytest.mark.parametrize(
        "name",
        [
            *("password", "PASSWORD", "db_password", "dbPassword", "password2", "passwd", "pwd"),
            *("user_pwd", "smtp_pass", "MY_PASS1", "passphrase", "secret", "client_secret"),
            *("token", "access_token", "accessToken", "api_key", "apiKey", "APIKEY", "X-Api-Key"),
            *("authorization", "Proxy-Authorization", "auth", "basic_auth", "credential"),
            *("credentials", "aws_secret_access_key", "private_key", "cookie", "Set-Cookie"),
            *("bearer", "request_cookies", "creds", "otp", "pin", "pw", "accessKey", "passcode"),
            *("connection_string", "encryption_key", "session_key", "signing-key"),
            *("sessionid", "jwt", "dsn", b"password", Text("password"), "x" * 1_000 + "Token"),
        ],
        ids=lambda name: f"{type(name).__name__} of {len(name)}",
    )
    def test_names_of_secrets(self, name: Any) -> None:
        """A key at any depth and the name in a pair are recognised."""
        assert is_secret_name(name)
        assert "hunter2" not in safe_repr({"a": [{name: "hunter2"}]})
        assert "hunter2" not in safe_repr([(name, "hunter2"), [name, "hunter2"]])

    @pytest.mark.parametrize(
        "name",
        [
            *("author", "keys", "primary_key", "passenger", "compass", "user", "url", "pinned"),
            *("monkey", "bypass", "option", "", 1, None, ("user",)),
        ],
        ids=str,
    )
    def test_other_names(self, name: Any) -> None:
        """Names that only contain such a word by chance are not masked."""
        assert not is_secret_name(name)
        assert safe_repr({name: "plain"}) == f"{{{name!r}: 'plain'}}"

    def test_only_the_second_of_a_pair_is_the_value_of_a_name(self) -> None:
        """A list of more items, or of one, is no pair of a name and a value."""
        for items in (["token", "a", "b"], ("token",), ["a", "token"]):
            assert safe_repr(items) == repr(items)

    def test_masked_call(self) -> None:
        """Names stay, and only values of secrets are masked."""
        kwargs = {
            "user": "ann",
            "password": "hunter2",
            "headers": [("Authorization", "Bearer hunter2"), ("Accept", "*/*")],
            "config": {"db": {"api_key": {"deep": "hunter2"}, "port": 1}},
        }
        assert safe_repr_call([("a", "b")], kwargs) == (
            "('a', 'b'), user='ann', password=***, "
            "headers=[('Authorization', ***), ('Accept', '*/*')], "
            "config={'db': {'api_key': ***, 'port': 1}}"
        )
