"""What is expected of a job: the order of the sources, their failures, and the series."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from apscheduler_telemetry import Expectations, expect
from apscheduler_telemetry.core.expectation_resolver import (
    MIN_DEFAULT_GRACE_SECONDS,
    ExpectationResolver,
)
from apscheduler_telemetry.core.expectations import EXPECTATION_NAMES
from apscheduler_telemetry.core.model import NOTHING_EXPECTED, JobExpectations
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.export.metric_families import Sample, job_samples
from tests.helpers.jobs import nothing
from tests.helpers.metrics import recorder_of
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.watching import Watched, watched

URL = "https://wiki.example/imports"
ALL = Expectations(
    grace=5,
    max_duration=60,
    min_duration=0.5,
    deadline=90,
    max_failures=2,
    min_recorded={"rows": 1, "bytes": 1e6},
    severity="warning",
    owner="data-team",
    runbook_url=URL,
)
OTHER = Expectations(
    grace=6,
    max_duration=61,
    min_duration=0.6,
    deadline=91,
    max_failures=3,
    min_recorded={"pages": 2},
    severity="info",
    owner="shop",
    runbook_url="https://wiki.example/shop",
)


@expect(owner="decorator", max_duration=30)
def decorated() -> None: ...


def boom(_job: object) -> Any:
    msg = "no"
    raise LookupError(msg)


def resolved(
    source: Any, func: Callable[..., Any] = nothing, misfire_grace_time: int | None = 1
) -> tuple[float, JobExpectations]:
    """Return what is expected of a job; no error may happen."""
    errors = ErrorReporter()
    job = SimpleNamespace(id="job", func=func, misfire_grace_time=misfire_grace_time)
    found = ExpectationResolver(source, errors).resolve(job, lambda: pytest.fail("no zone needed"))
    assert not any(errors.counts().values())
    return found


def add(seen: Watched, func: Callable[..., Any] = nothing, **options: Any) -> Any:
    """Add a job that is due in an hour."""
    seen.scheduler.start(paused=True)
    return seen.scheduler.add_job(func, "interval", hours=1, id="job", **options)


def expectation_samples(seen: Watched) -> dict[str, list[tuple[tuple[str, ...], Any]]]:
    """Return the series that only jobs have of which something is expected."""
    (snapshot,) = recorder_of(seen.telemetry).job_snapshots()
    plain = snapshot._replace(info=snapshot.info._replace(expectations=NOTHING_EXPECTED))
    usual = {sample[0] for sample in job_samples("default", plain)}
    found: dict[str, list[tuple[tuple[str, ...], Any]]] = {}
    sample: Sample
    for sample in job_samples("default", snapshot):
        family, labels, value = sample
        if family not in usual:
            found.setdefault(family.prometheus_family_name, []).append((labels[2:], value))
    return found


class TestOrder:
    """A callable overrides the decorator, which overrides expectations of all jobs."""

    def test_nothing(self) -> None:
        """By default only the grace is expected, which is that of the job, or a minute."""
        assert resolved(None) == (MIN_DEFAULT_GRACE_SECONDS, NOTHING_EXPECTED)
        assert resolved(lambda job: None) == (MIN_DEFAULT_GRACE_SECONDS, NOTHING_EXPECTED)
        assert resolved(None, misfire_grace_time=300)[0] == 300
        assert resolved(None, misfire_grace_time=None)[0] == MIN_DEFAULT_GRACE_SECONDS
        # No float can hold it, and APScheduler cannot run the job.
        assert resolved(None, misfire_grace_time=10**400)[0] == MIN_DEFAULT_GRACE_SECONDS

    @pytest.mark.parametrize("kind", ["value", "callable", "decorator"])
    def test_each_source_passes_on_all_fields(self, kind: str) -> None:
        """Each field arrives from each source."""

        def function() -> None: ...

        if kind == "decorator":
            expect(**{name: getattr(ALL, name) for name in EXPECTATION_NAMES})(function)
        source = {"value": ALL, "callable": lambda job: ALL, "decorator": None}[kind]
        assert resolved(source, function) == (
            5,
            JobExpectations(
                max_duration=60,
                min_duration=0.5,
                deadline=90,
                max_failures=2,
                min_recorded=(("bytes", 1e6), ("rows", 1)),
                severity="warning",
                owner="data-team",
                runbook_url=URL,
            ),
        )

    @pytest.mark.parametrize("name", EXPECTATION_NAMES)
    def test_order_holds_for_each_field(self, name: str) -> None:
        """The source that says most about one field says nothing about the others."""
        one = Expectations(**{name: getattr(OTHER, name)})

        def function() -> None: ...

        def values(source: Any) -> dict[str, Any]:
            grace, found = resolved(source, function)
            return {"grace": grace, **found._asdict()}

        plain, other = values(ALL), values(OTHER)
        expect(**{name: getattr(one, name)})(function)
        assert values(ALL) == {**plain, name: other[name]}  # the decorator above the value
        assert values(lambda job: dataclasses.replace(ALL, **{name: None})) == {
            **plain,
            name: other[name],
        }
        assert values(lambda job: ALL) == plain  # the callable above the decorator

    def test_callable_gets_the_job(self) -> None:
        """It is called when the job is added and when it is changed, and not at a scrape."""
        calls = []

        def expected_of(job: Any) -> Expectations | None:
            calls.append((job.id, job.max_instances))
            return Expectations(grace=job.max_instances)

        with watched(hand_driven_scheduler(), expect=expected_of) as seen:
            job = add(seen)
            assert [seen.job("grace_seconds") for _ in range(3)] == [1, 1, 1]
            job.modify(max_instances=7)
            assert seen.job("grace_seconds") == 7
        assert calls == [("job", 1), ("job", 7)]

    def test_limits_of_two_sources_may_contradict_each_other(self) -> None:
        """Both are exported, so that the alerts show it."""
        grace, found = resolved(Expectations(min_duration=60), decorated)
        assert (grace, found.min_duration, found.max_duration) == (60, 60, 30)


class TestFailures:
    """A source that fails is counted under `expect`, and left out."""

    @pytest.mark.parametrize(
        "source",
        [
            boom,
            lambda job: 60,
            lambda job: {"grace": 60},
            lambda job: Expectations,
            lambda job: Expectations(grace=-1),
            lambda job: expect(grace=60),
            lambda: None,
        ],
        ids=["raises", "number", "dict", "class", "invalid", "decorator", "no argument"],
    )
    def test_decorator_holds_if_the_callable_fails(
        self, source: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The job is added, each failure is counted, and the first one is logged."""
        with watched(hand_driven_scheduler(), expect=source) as seen:
            job = add(seen, decorated, misfire_grace_time=300)
            job.modify(max_instances=2)
            assert seen.job("grace_seconds") == 300
            assert seen.job("max_duration_seconds") == 30
            assert seen.own_errors() == {"expect": 2}
        ours = [r for r in caplog.records if r.name == "apscheduler_telemetry"]
        assert [r.levelno for r in ours] == [logging.ERROR]

    def test_job_whose_attributes_raise(self) -> None:
        """It counts as not decorated, and expectations of all jobs hold."""

        class Hostile:
            def __init__(self, error: BaseException) -> None:
                self.error = error

            def __call__(self) -> None: ...

            def __getattr__(self, name: str) -> Any:
                if name == "_apscheduler_telemetry_expectations":
                    raise self.error
                raise AttributeError(name)

        with watched(hand_driven_scheduler(), expect=Expectations(grace=7)) as seen:
            job = add(seen, Hostile(RuntimeError()), name="hostile")
            assert seen.job("grace_seconds") == 7
            assert seen.own_errors() == {}
            job.modify(func=Hostile(SystemExit(3)))
            assert seen.job("grace_seconds") == 7
            assert seen.own_errors() == {}

    def test_owner_that_utf8_cannot_encode_is_escaped(self) -> None:
        """Characters that UTF-8 cannot encode are escaped, as in every label."""
        assert resolved(Expectations(owner="\ud800"))[1].owner == "\\ud800"
        assert len(resolved(Expectations(owner="x" * 1000))[1].owner) == 200


class TestSeries:
    """The series, which only jobs have of which something is expected."""

    def test_all(self) -> None:
        """Each expectation is a series."""
        with watched(hand_driven_scheduler(), expect=ALL) as seen:
            job = add(seen)
            due = job.next_run_time.timestamp()
            assert expectation_samples(seen) == {
                "apscheduler_job_max_duration_seconds": [((), 60)],
                "apscheduler_job_min_duration_seconds": [((), 0.5)],
                "apscheduler_job_deadline_timestamp_seconds": [((), due + 90)],
                "apscheduler_job_max_failures": [((), 2)],
                "apscheduler_job_min_recorded": [(("bytes",), 1e6), (("rows",), 1)],
                "apscheduler_job_alert_info": [(("warning", "data-team", URL), 1)],
            }
            assert seen.job("grace_seconds") == 5
            labels = {"severity": "warning", "owner": "data-team", "runbook_url": URL}
            assert seen.job("alert_info", **labels) == 1
            assert seen.job("min_recorded", quantity="rows") == 1

    @pytest.mark.parametrize("source", [None, Expectations(), Expectations(grace=9)], ids=repr)
    def test_none(self, source: Any) -> None:
        """A job of which nothing but grace is expected has none of them."""
        with watched(hand_driven_scheduler(), expect=source) as seen:
            add(seen)
            assert expectation_samples(seen) == {}

    @pytest.mark.parametrize("name", ["severity", "owner", "runbook_url"])
    def test_alert_info_has_empty_labels(self, name: str) -> None:
        """One of its three labels is enough; the others are empty."""
        value = getattr(ALL, name)
        with watched(hand_driven_scheduler(), expect=Expectations(**{name: value})) as seen:
            add(seen)
            labels = {"severity": "", "owner": "", "runbook_url": "", name: value}
            assert seen.job("alert_info", **labels) == 1
            assert len(expectation_samples(seen)) == 1

    def test_scheduler_without_expectations_beside_one_with(self) -> None:
        """Two schedulers expect different things of the same function."""
        with (
            watched(hand_driven_scheduler(), expect=lambda job: Expectations(owner="one")) as one,
            watched(hand_driven_scheduler()) as two,
        ):
            add(one, decorated)
            add(two, decorated)
            labels = {"severity": "", "runbook_url": ""}
            assert one.job("alert_info", owner="one", **labels) == 1
            assert two.job("alert_info", owner="decorator", **labels) == 1
