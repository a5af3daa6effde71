"""What the application expects of its jobs: checked at once, asked for safely."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest

from apscheduler_telemetry import ArgumentTypeError, ArgumentValueError
from apscheduler_telemetry.core.alert_policy import MIN_GRACE, Expectations, checked
from apscheduler_telemetry.core.observers import Guard

JOB = SimpleNamespace(id="job", misfire_grace_time=1)


def boom(_job: object) -> Any:
    msg = "no"
    raise LookupError(msg)


class TestChecked:
    """Options that are one value for all jobs."""

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("grace", 0),
            ("grace", 2.5),
            ("max_duration", 0.1),
            ("severity", "critical"),
            ("owner", "billing"),
            ("owner", None),
            ("severity", boom),
        ],
    )
    def test_good(self, option: str, value: Any) -> None:
        """What is possible is passed on as it is."""
        assert checked(option, value) is value

    @pytest.mark.parametrize(
        ("option", "value", "error"),
        [
            ("grace", "60", ArgumentTypeError),
            ("grace", True, ArgumentTypeError),
            ("grace", -1, ArgumentValueError),
            ("grace", math.nan, ArgumentValueError),
            ("max_duration", 0, ArgumentValueError),
            ("max_duration", math.inf, ArgumentValueError),
            ("severity", 1, ArgumentTypeError),
            ("severity", "page", ArgumentValueError),
            ("owner", b"billing", ArgumentTypeError),
            ("owner", " ", ArgumentValueError),
        ],
    )
    def test_bad(self, option: str, value: Any, error: type[Exception]) -> None:
        """What is not is refused, in words that name the option and what it can be."""
        with pytest.raises(error, match=f"^{option} must be "):
            checked(option, value)


class TestExpectations:
    """What is expected of one job."""

    def test_defaults(self) -> None:
        """Grace follows the job, but is a minute at least; of the others nothing is said."""
        expectations = Expectations(Guard())
        assert expectations.grace(JOB) == MIN_GRACE
        assert expectations.grace(SimpleNamespace(misfire_grace_time=300)) == 300
        assert expectations.grace(SimpleNamespace(misfire_grace_time=None)) == MIN_GRACE
        assert expectations.max_duration(JOB) is None
        assert expectations.severity(JOB) == expectations.owner(JOB) == ""

    def test_one_for_all(self) -> None:
        """A value holds for every job."""
        options = {"grace": 5, "max_duration": 30, "severity": "info", "owner": "billing"}
        expectations = Expectations(Guard(), **options)
        assert expectations.grace(JOB) == 5
        assert expectations.max_duration(JOB) == 30
        assert expectations.severity(JOB) == "info"
        assert expectations.owner(JOB) == "billing"

    def test_asked_for(self) -> None:
        """A callable is asked, and None of it is the default."""
        owners = {"job": "billing"}
        expectations = Expectations(Guard(), owner=lambda job: owners.get(job.id))
        assert expectations.owner(JOB) == "billing"
        assert expectations.owner(SimpleNamespace(id="other")) == ""

    def test_owner_is_a_label(self) -> None:
        """What UTF-8 cannot carry is escaped, as in every label."""
        assert Expectations(Guard(), owner=lambda _: "\ud800").owner(JOB) == "\\ud800"

    @pytest.mark.parametrize("option", ["grace", "max_duration", "severity", "owner"])
    @pytest.mark.parametrize("answer", [boom, lambda _: object(), lambda _: -1])
    def test_a_callable_that_fails(
        self, option: str, answer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """One that raises, or returns what cannot be, is counted, logged once, and ignored."""
        guard = Guard()
        expectations = Expectations(guard, **{option: answer})
        default = getattr(Expectations(Guard()), option)(JOB)
        with caplog.at_level(logging.ERROR):
            assert getattr(expectations, option)(JOB) == default
            assert getattr(expectations, option)(JOB) == default
        assert guard.counts()[option] == 2
        assert len(caplog.records) == 1
