"""Wrong and hostile arguments of `record` and `fail`; they raise the same outside of a run."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from apscheduler_telemetry import ArgumentTypeError, ArgumentValueError, current_run
from apscheduler_telemetry.core.current_run import (
    MAX_QUANTITY_NAME_LENGTH,
    MAX_REASON_LENGTH,
    CurrentRun,
)


class Text(str):
    """A text with methods of the user's."""

    __slots__ = ()

    def __str__(self) -> str:
        raise AssertionError

    def __getitem__(self, _: Any) -> str:
        raise AssertionError


class Unconvertible:
    """Something like an array of several numbers."""

    def __float__(self) -> float:
        msg = "only one number can be converted"
        raise TypeError(msg)


class TestRecord:
    """The numbers and names that `record` takes."""

    @pytest.mark.parametrize(
        ("value", "amount"),
        [
            (0, 0.0),
            (17, 17.0),
            (0.5, 0.5),
            (Decimal("1.5"), 1.5),
            (Fraction(1, 4), 0.25),
            (-0.0, 0),
        ],
        ids=repr,
    )
    def test_numbers_are_recorded_as_floats(self, value: Any, amount: float) -> None:
        """Numbers of any type are recorded as floats."""
        run = CurrentRun()
        run.record(rows=value)
        assert run.recorded == {"rows": amount}
        assert type(run.recorded["rows"]) is float

    @pytest.mark.parametrize(
        "value", ["17", None, True, [1], 1j, Unconvertible()], ids=lambda v: type(v).__name__
    )
    @pytest.mark.parametrize("run", [CurrentRun(), current_run()], ids=["inside", "outside"])
    def test_other_types_are_an_error(self, run: CurrentRun, value: Any) -> None:
        """What is no number is an error that names the quantity and the type."""
        message = rf"record\(\) takes a number for rows, got {type(value).__name__}"
        with pytest.raises(ArgumentTypeError, match=message):
            run.record(cells=1, rows=value)
        assert run.recorded == {}

    @pytest.mark.parametrize(
        "value", [-1, math.nan, math.inf, -math.inf, Decimal("sNaN"), 10**400], ids=str
    )
    def test_numbers_that_no_counter_can_add_are_an_error(self, value: Any) -> None:
        """Negative, infinite and undefined numbers are an error, and nothing is recorded."""
        run = CurrentRun()
        with pytest.raises(ArgumentValueError, match=r"finite and not negative, got"):
            run.record(cells=1, rows=value)
        assert run.recorded == {}

    @pytest.mark.parametrize(
        "name", ["", "two words", "1st", "line\nbreak", "\udc80", 'a"b', "x" * 101], ids=ascii
    )
    def test_names_that_are_no_identifiers_are_an_error(self, name: str) -> None:
        """A name that is no identifier, or too long, is an error."""
        with pytest.raises(ArgumentValueError, match="as the name of a quantity"):
            current_run().record(**{name: 1})

    @pytest.mark.parametrize("name", ["self", "größe", "x" * MAX_QUANTITY_NAME_LENGTH, Text("t")])
    def test_identifiers_are_names(self, name: str) -> None:
        """Any identifier is the name of a quantity, and is kept as a plain text."""
        run = CurrentRun()
        run.record(**{name: 1})
        assert [type(each) for each in run.recorded] == [str]

    def test_exception_of_a_number_is_that_of_the_caller(self) -> None:
        """What the user's own number raises reaches the caller."""

        class Broken:
            def __float__(self) -> float:
                raise LookupError

        with pytest.raises(LookupError):
            current_run().record(rows=Broken())


class TestFail:
    """The reasons that `fail` takes."""

    @pytest.mark.parametrize("reason", [None, ValueError("x"), b"x", 1], ids=repr)
    @pytest.mark.parametrize("run", [CurrentRun(), current_run()], ids=["inside", "outside"])
    def test_reason_must_be_a_text(self, run: CurrentRun, reason: Any) -> None:
        """What is no text is an error that says what to pass."""
        with pytest.raises(ArgumentTypeError, match=r"pass str\(exception\), or raise it"):
            run.fail(reason)
        assert run.failure_reason is None

    def test_reason_is_kept_as_a_plain_text(self) -> None:
        """A text of the user's class is kept as a plain one, of bounded length."""
        run = CurrentRun()
        run.fail(Text("x" * 100_000))
        assert run.failure_reason == "x" * MAX_REASON_LENGTH
        assert type(run.failure_reason) is str

    def test_repr_names_what_was_reported(self) -> None:
        """The representation has the quantities and the reason, in brief."""
        run = CurrentRun()
        run.record(rows=1)
        run.fail("x" * 1_000)
        assert repr(run) == f"<CurrentRun {{'rows': 1.0}}, failed: '{'x' * 100}'>"
