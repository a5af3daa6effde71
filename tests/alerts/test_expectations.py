"""`Expectations`: what is valid, what is kept, and what an error says."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from datetime import datetime, time, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from apscheduler_telemetry import ArgumentTypeError, ArgumentValueError, Expectations
from apscheduler_telemetry.core.current_run import MAX_QUANTITIES
from apscheduler_telemetry.core.expectations import (
    EXPECTATION_NAMES,
    MAX_MAX_FAILURES,
    MAX_URL_LENGTH,
)

BERLIN = ZoneInfo("Europe/Berlin")
URL = "https://wiki.example/imports#failed"

VALID: list[Any] = [
    ("grace", 0, 0.0),
    ("grace", 2.5, 2.5),
    ("grace", timedelta(hours=1), 3600.0),
    ("max_duration", timedelta(milliseconds=1), 0.001),
    ("max_duration", 60, 60.0),
    ("min_duration", 0.5, 0.5),
    ("deadline", 90, 90.0),
    ("deadline", timedelta(hours=2), 7200.0),
    ("deadline", time(6, 30), time(6, 30)),
    ("deadline", time(6, 30, tzinfo=BERLIN), time(6, 30, tzinfo=BERLIN)),
    ("deadline", "06:30", time(6, 30)),
    ("deadline", " 6:30:15 ", time(6, 30, 15)),
    ("deadline", "00:00", time(0)),
    ("deadline", "06:30 Europe/Berlin", time(6, 30, tzinfo=BERLIN)),
    ("deadline", "23:59:59  UTC", time(23, 59, 59, tzinfo=timezone.utc)),
    ("max_failures", 1, 1),
    ("max_failures", MAX_MAX_FAILURES, MAX_MAX_FAILURES),
    ("min_recorded", {"rows": 1, "bytes_read": 0.5}, {"rows": 1.0, "bytes_read": 0.5}),
    ("min_recorded", {}, {}),
    ("severity", "critical", "critical"),
    ("owner", "billing", "billing"),
    ("owner", "Zoë & co", "Zoë & co"),
    ("runbook_url", URL, URL),
    ("runbook_url", "http://[::1]:8080/", "http://[::1]:8080/"),
]

INVALID: list[Any] = [
    ("grace", "60", ArgumentTypeError, "grace must be seconds or a datetime.timedelta, got '60'"),
    ("grace", True, ArgumentTypeError, "got True"),
    ("grace", -1, ArgumentValueError, "grace must be 0 or more seconds, got -1; omit it"),
    ("grace", timedelta(-1), ArgumentValueError, "0 or more seconds"),
    ("grace", math.nan, ArgumentValueError, "0 or more seconds, got nan"),
    ("grace", math.inf, ArgumentValueError, "0 or more seconds, got inf"),
    ("grace", lambda job: 60, ArgumentTypeError, "grace must be seconds"),
    pytest.param("grace", 10**400, ArgumentValueError, "got <int of 1329 bits>", id="grace huge"),
    ("max_duration", 0, ArgumentValueError, "max_duration must be more than 0 seconds, got 0"),
    ("max_duration", math.inf, ArgumentValueError, "more than 0 seconds"),
    ("min_duration", 0, ArgumentValueError, "min_duration must be more than 0 seconds"),
    ("min_duration", timedelta(0), ArgumentValueError, "min_duration must be more than 0"),
    ("min_duration", None.__class__, ArgumentTypeError, "min_duration must be seconds"),
    ("deadline", 0, ArgumentValueError, "deadline must be more than 0 seconds"),
    ("deadline", b"06:30", ArgumentTypeError, "datetime.time, or a str such as '06:30' or"),
    ("deadline", datetime(2030, 1, 1), ArgumentTypeError, "deadline must be seconds or"),  # noqa: DTZ001
    ("deadline", "", ArgumentValueError, "a time of day such as '06:30' or"),
    ("deadline", "half past six", ArgumentValueError, "got 'half past six'"),
    ("deadline", "24:00", ArgumentValueError, "a time of day such as '06:30'"),
    ("deadline", "06:60", ArgumentValueError, "a time of day such as '06:30'"),
    ("deadline", "٠٦:٣٠", ArgumentValueError, "a time of day such as '06:30'"),
    ("deadline", "06:30 Mars/Base", ArgumentValueError, "IANA.*got 'Mars/Base'.*tzdata"),
    ("deadline", "06:30 Europe", ArgumentValueError, "IANA database, such as Europe/Berlin"),
    ("deadline", "06:30 ../../etc/passwd", ArgumentValueError, "IANA database"),
    ("deadline", "06:30 Europe/Berlin x", ArgumentValueError, "a time of day such as"),
    ("max_failures", 0, ArgumentValueError, "max_failures must be from 1 to 1,000,000 runs, got 0"),
    ("max_failures", MAX_MAX_FAILURES + 1, ArgumentValueError, "from 1 to 1,000,000"),
    ("max_failures", 1.5, ArgumentTypeError, "max_failures must be a whole number of runs"),
    ("max_failures", True, ArgumentTypeError, "whole number of runs, got True"),
    ("min_recorded", 1, ArgumentTypeError, "min_recorded must be a mapping.*such as {'rows': 1}"),
    ("min_recorded", ["rows"], ArgumentTypeError, "min_recorded must be a mapping"),
    ("min_recorded", {1: 1}, ArgumentTypeError, "a name in min_recorded must be a str"),
    ("min_recorded", {"": 1}, ArgumentValueError, "in min_recorded must be one that record"),
    ("min_recorded", {"a\n": 1}, ArgumentValueError, "an identifier of at most 100 characters"),
    ("min_recorded", {"bytes read": 1}, ArgumentValueError, "an identifier.*got 'bytes read'"),
    ("min_recorded", {"a" * 101: 1}, ArgumentValueError, "at most 100 characters"),
    ("min_recorded", {"rows": "1"}, ArgumentTypeError, "a value in min_recorded must be a number"),
    ("min_recorded", {"rows": -1}, ArgumentValueError, "a value in min_recorded must be 0 or more"),
    ("min_recorded", {"rows": math.nan}, ArgumentValueError, "0 or more, got nan"),
    pytest.param("min_recorded", {"rows": 10**400}, ArgumentValueError, "0 or", id="least huge"),
    pytest.param(
        "min_recorded",
        {f"q{number}": 1 for number in range(MAX_QUANTITIES + 1)},
        ArgumentValueError,
        "at most 10 quantities, as.*got 11",
        id="quantities",
    ),
    ("severity", 1, ArgumentTypeError, "severity must be a str, got 1"),
    ("severity", "page", ArgumentValueError, "'critical' or 'warning' or 'info', got 'page'"),
    ("owner", b"billing", ArgumentTypeError, "owner must be a str"),
    ("owner", " ", ArgumentValueError, "owner must be a name, got ' '; omit it"),
    ("runbook_url", 1, ArgumentTypeError, "runbook_url must be a str"),
    ("runbook_url", "wiki.example", ArgumentValueError, "with http or https, such as 'https://"),
    ("runbook_url", "ftp://wiki.example", ArgumentValueError, "with http or https"),
    ("runbook_url", "javascript:alert(1)", ArgumentValueError, "with http or https"),
    ("runbook_url", "https://", ArgumentValueError, "with http or https"),
    ("runbook_url", "https://[", ArgumentValueError, "with http or https"),
    ("runbook_url", "https://wiki.example/a b", ArgumentValueError, "with http or https"),
    ("runbook_url", "https://wiki.example/\n", ArgumentValueError, "with http or https"),
    ("runbook_url", "https://wiki.example/\ud800", ArgumentValueError, "with http or https"),
    pytest.param(
        "runbook_url",
        URL + "x" * MAX_URL_LENGTH,
        ArgumentValueError,
        "at most 1,000 characters, got 1,035",
        id="runbook_url too long",
    ),
]


class TestValues:
    """Each value is checked and converted when `Expectations` are created."""

    def test_default_is_that_nothing_is_expected(self) -> None:
        """All fields are None by default, and None is valid."""
        nothing = Expectations(**dict.fromkeys(EXPECTATION_NAMES))
        assert nothing == Expectations()
        assert set(vars(nothing).values()) == {None}

    @pytest.mark.parametrize(("name", "value", "kept"), VALID)
    def test_valid_value_is_kept_in_one_form(self, name: str, value: Any, kept: Any) -> None:
        """Durations become seconds, and a time of day becomes a `datetime.time`."""
        found = getattr(Expectations(**{name: value}), name)
        assert found == kept
        assert type(found) is type(kept)
        assert getattr(found, "tzinfo", None) is getattr(kept, "tzinfo", None)

    @pytest.mark.parametrize(("name", "value", "error", "message"), INVALID)
    def test_invalid_value_raises_an_error_that_says_what_to_pass(
        self, name: str, value: Any, error: type[Exception], message: str
    ) -> None:
        """An invalid value raises an error of its kind, which names the field and a valid value."""
        with pytest.raises(error, match=message):
            Expectations(**{name: value})

    @pytest.mark.parametrize("shortest", [60, 61])
    def test_every_run_would_be_too_short_or_too_long(self, shortest: float) -> None:
        """The shortest duration has to be below the longest."""
        with pytest.raises(ArgumentValueError, match="min_duration must be less than max_duration"):
            Expectations(min_duration=shortest, max_duration=60)
        assert Expectations(min_duration=59, max_duration=60).min_duration == 59

    def test_arguments_are_named(self) -> None:
        """There are no positional arguments, and no unknown ones."""
        with pytest.raises(TypeError, match="positional"):
            Expectations(60)  # type: ignore[call-arg]
        with pytest.raises(TypeError, match="max_time"):
            Expectations(max_time=60)  # type: ignore[call-arg]


class TestObject:
    """`Expectations` are values: frozen, comparable, and independent of what was passed."""

    ALL = Expectations(
        grace=1,
        max_duration=60,
        min_duration=2,
        deadline="06:30 Europe/Berlin",
        max_failures=3,
        min_recorded={"rows": 1},
        severity="info",
        owner="billing",
        runbook_url=URL,
    )

    def test_fields_are_frozen(self) -> None:
        """A field cannot be changed; `dataclasses.replace` checks the new value."""
        with pytest.raises(dataclasses.FrozenInstanceError):
            self.ALL.owner = "shop"  # type: ignore[misc]
        assert dataclasses.replace(self.ALL, owner="shop").owner == "shop"
        with pytest.raises(ArgumentValueError, match="owner"):
            dataclasses.replace(self.ALL, owner="")

    def test_mapping_is_copied(self) -> None:
        """A mapping that is changed later changes nothing."""
        least = {"rows": 1}
        expectations = Expectations(min_recorded=least)
        least["rows"] = 2
        assert expectations.min_recorded == {"rows": 1}

    def test_equal_ones_are_equal(self) -> None:
        """They are compared by value, can be hashed, copied and pickled."""
        assert Expectations(grace=60) == Expectations(grace=timedelta(minutes=1))
        assert Expectations(grace=60) != Expectations(grace=61)
        for same in (copy.deepcopy(self.ALL), pickle.loads(pickle.dumps(self.ALL))):
            assert same == self.ALL
            assert hash(same) == hash(self.ALL)

    def test_override_field_by_field(self) -> None:
        """Fields that are None are taken from the others."""
        own = Expectations(owner="shop", min_recorded={})
        assert own.override(self.ALL) == dataclasses.replace(
            self.ALL, owner="shop", min_recorded={}
        )
        assert own.override(Expectations()) == own
