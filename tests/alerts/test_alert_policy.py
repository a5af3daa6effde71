"""What alert rules expect of jobs: values are validated, and failing callables are ignored."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest

from apscheduler_telemetry import ArgumentTypeError, ArgumentValueError
from apscheduler_telemetry.core.alert_policy import MIN_DEFAULT_GRACE, AlertPolicy, validate
from apscheduler_telemetry.core.observers import ErrorReporter

JOB = SimpleNamespace(id="job", misfire_grace_time=1)


def boom(_job: object) -> Any:
    msg = "no"
    raise LookupError(msg)


class TestValidate:
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
    def test_valid_value_is_returned_as_it_is(self, option: str, value: Any) -> None:
        """A valid value is returned as it is."""
        assert validate(option, value) is value

    @pytest.mark.parametrize(
        ("option", "value", "error"),
        [
            ("grace", "60", ArgumentTypeError),
            ("grace", True, ArgumentTypeError),
            ("grace", -1, ArgumentValueError),
            ("grace", math.nan, ArgumentValueError),
            pytest.param("grace", 10**400, ArgumentValueError, id="grace too large"),
            pytest.param("max_duration", 10**400, ArgumentValueError, id="max_duration too large"),
            ("max_duration", 0, ArgumentValueError),
            ("max_duration", math.inf, ArgumentValueError),
            ("severity", 1, ArgumentTypeError),
            ("severity", "page", ArgumentValueError),
            ("owner", b"billing", ArgumentTypeError),
            ("owner", " ", ArgumentValueError),
        ],
    )
    def test_invalid_value_raises_an_error_with_the_valid_ones(
        self, option: str, value: Any, error: type[Exception]
    ) -> None:
        """An invalid value raises an error that names the option and the valid values."""
        with pytest.raises(error, match=f"^{option} must be "):
            validate(option, value)


class TestAlertPolicy:
    """The policy of one job, from values and callables."""

    def test_grace_follows_the_job_and_other_options_are_unset(self) -> None:
        """Grace follows the job, but is at least a minute; the others are not set."""
        policy = AlertPolicy(ErrorReporter())
        assert policy.grace(JOB) == MIN_DEFAULT_GRACE
        assert policy.grace(SimpleNamespace(misfire_grace_time=300)) == 300
        assert policy.grace(SimpleNamespace(misfire_grace_time=None)) == MIN_DEFAULT_GRACE
        # No float can hold it, and APScheduler cannot run the job.
        assert policy.grace(SimpleNamespace(misfire_grace_time=10**400)) == MIN_DEFAULT_GRACE
        assert policy.max_duration(JOB) is None
        assert policy.severity(JOB) == policy.owner(JOB) == ""

    def test_value_holds_for_every_job(self) -> None:
        """A value holds for every job."""
        options = {"grace": 5, "max_duration": 30, "severity": "info", "owner": "billing"}
        policy = AlertPolicy(ErrorReporter(), **options)
        assert policy.grace(JOB) == 5
        assert policy.max_duration(JOB) == 30
        assert policy.severity(JOB) == "info"
        assert policy.owner(JOB) == "billing"

    def test_callable_is_called_for_each_job(self) -> None:
        """A callable is called for each job; if it returns None, the default applies."""
        owners = {"job": "billing"}
        policy = AlertPolicy(ErrorReporter(), owner=lambda job: owners.get(job.id))
        assert policy.owner(JOB) == "billing"
        assert policy.owner(SimpleNamespace(id="other")) == ""

    def test_owner_that_utf8_cannot_encode_is_escaped(self) -> None:
        """Characters that UTF-8 cannot encode are escaped, as in every label."""
        assert AlertPolicy(ErrorReporter(), owner=lambda _: "\ud800").owner(JOB) == "\\ud800"

    @pytest.mark.parametrize("option", ["grace", "max_duration", "severity", "owner"])
    @pytest.mark.parametrize(
        "callback",
        [boom, lambda _: object(), lambda _: -1, lambda _: 10**400],
        ids=["raises", "object", "negative", "too large"],
    )
    def test_callable_that_fails_is_counted_and_ignored(
        self, option: str, callback: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A callable that raises or returns an invalid value is counted, logged and ignored."""
        errors = ErrorReporter()
        policy = AlertPolicy(errors, **{option: callback})
        default = getattr(AlertPolicy(ErrorReporter()), option)(JOB)
        with caplog.at_level(logging.ERROR):
            assert getattr(policy, option)(JOB) == default
            assert getattr(policy, option)(JOB) == default
        assert errors.counts()[option] == 2
        assert len(caplog.records) == 1
