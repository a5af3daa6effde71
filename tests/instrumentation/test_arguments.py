"""Arguments of `instrument()`: invalid values, and callables that fail."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from apscheduler_telemetry import (
    ArgumentTypeError,
    ArgumentValueError,
    Expectations,
    TelemetryError,
    expect,
    instrument,
)
from apscheduler_telemetry.adapters.apscheduler3.jobstores import JobStoreHooks
from tests.helpers import jobs
from tests.helpers.faults import Boom, raise_boom
from tests.helpers.instrumented_parts import assert_same, ours_of, snapshot
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.watching import watched


class Unprintable:
    def __repr__(self) -> str:
        raise Boom("no words")


class Scheduler4:
    """What a scheduler of APScheduler 4 looks like from here."""


Scheduler4.__module__ = "apscheduler._schedulers.sync"


class TestBadInput:
    """Invalid arguments are rejected at once, and nothing is instrumented."""

    SCHEDULERS = (
        (None, r"BackgroundScheduler\(\); got None"),
        (BackgroundScheduler, "the class BackgroundScheduler itself; pass an instance"),
        (Scheduler4(), r"APScheduler 4 is not supported: install 'apscheduler>=3.10,<4'"),
        (Scheduler4, "the class Scheduler4 itself"),
        ("scheduler", r"BackgroundScheduler\(\)"),
        (Unprintable(), r"BackgroundScheduler\(\).*Unprintable"),
        (SimpleNamespace(scheduler=BackgroundScheduler()), "has one; pass its attribute scheduler"),
    )

    @pytest.mark.parametrize(("scheduler", "message"), SCHEDULERS, ids=lambda v: type(v).__name__)
    def test_only_schedulers_of_apscheduler_3_are_accepted(
        self, scheduler: Any, message: str
    ) -> None:
        """Only a scheduler of APScheduler 3 can be instrumented."""
        registry = CollectorRegistry()
        with pytest.raises(ArgumentTypeError, match=message):
            instrument(scheduler, registry=registry)
        assert generate_latest(registry) == b""

    VALUES: tuple[Any, ...] = (
        ("name", 7, ArgumentTypeError, "name must be a str, such as 'billing', got 7"),
        ("name", None, ArgumentTypeError, "name must be a str"),
        ("name", b"shop", ArgumentTypeError, "name must be a str"),
        ("name", "", ArgumentValueError, "name must not be empty.*omit it"),
        ("name", "  ", ArgumentValueError, "name must not be empty"),
        ("name", "a\nb", ArgumentValueError, r"printable.*got 'a\\nb'; pass letters"),
        ("name", "a\0b", ArgumentValueError, "printable"),
        ("name", "a\ud800b", ArgumentValueError, "printable"),
        ("registry", 1, ArgumentTypeError, r"prometheus_client\.CollectorRegistry, or None"),
        ("registry", CollectorRegistry, ArgumentTypeError, r"or None, got <class"),
        ("registry", "default", ArgumentTypeError, "CollectorRegistry"),
        ("registry", Unprintable(), ArgumentTypeError, "or None, got .*Unprintable"),
        ("meter_provider", object(), ArgumentTypeError, "an OpenTelemetry MeterProvider, got"),
        ("tracer_provider", "otlp", ArgumentTypeError, "an OpenTelemetry TracerProvider"),
        ("tracer_provider", NoOpTracerProvider, ArgumentTypeError, "TracerProvider, got <class"),
        ("job_label", "job", ArgumentTypeError, "callable that takes a job and returns a str"),
        (
            "expect",
            60,
            ArgumentTypeError,
            r"Expectations\(\.\.\.\), a callable that returns.*got 60",
        ),
        ("expect", Expectations, ArgumentTypeError, "Expectations.*got <class"),
        (
            "expect",
            expect(owner="billing"),
            ArgumentTypeError,
            "Expectations.*got <.*ExpectDecorator",
        ),
        ("expect", {"owner": "billing"}, ArgumentTypeError, "Expectations.*got {'owner'"),
        ("expect", Unprintable(), ArgumentTypeError, "Expectations.*got <"),
        ("singleton", "no", ArgumentTypeError, "singleton must be True or False, got 'no'"),
        ("singleton", None, ArgumentTypeError, "singleton must be True or False"),
        ("duration_buckets", [], ArgumentValueError, "at least one"),
        ("duration_buckets", [2, 1], ArgumentValueError, "ascending order"),
        ("duration_buckets", [1, 1], ArgumentValueError, "ascending order"),
        ("duration_buckets", [-1, 1], ArgumentValueError, "seconds"),
        ("duration_buckets", [1, math.nan], ArgumentValueError, "ascending order"),
        ("duration_buckets", [-math.inf, 1], ArgumentValueError, "ascending order"),
        ("duration_buckets", [math.inf], ArgumentValueError, "at least one"),
        pytest.param(
            "duration_buckets",
            [1, 10**400],
            ArgumentValueError,
            "ascending order",
            id="duration_buckets too large",
        ),
        ("duration_buckets", None, ArgumentTypeError, "a sequence of seconds, got None"),
        ("duration_buckets", 5, ArgumentTypeError, "a sequence of seconds"),
        ("duration_buckets", "125", ArgumentTypeError, "a sequence of seconds, got '125'"),
        ("duration_buckets", b"125", ArgumentTypeError, "a sequence of seconds"),
        ("duration_buckets", ["a"], ArgumentTypeError, "a sequence of seconds"),
        ("delay_buckets", [2, 1], ArgumentValueError, "delay_buckets must be seconds in ascending"),
        ("max_labels", 1.5, ArgumentTypeError, "max_labels must be a number of label values"),
        ("max_labels", True, ArgumentTypeError, "max_labels must be a number of label values"),
        ("journal", 7, ArgumentTypeError, "journal must be the path of a directory, such as"),
        ("journal", b"journal", ArgumentTypeError, "path of a directory.*got b'journal'"),
        ("journal", "", ArgumentValueError, "path of a directory, got ''; omit it"),
        ("journal", "a\0b", ArgumentValueError, r"path of a directory, got 'a\\x00b'"),
        ("max_labels", 0, ArgumentValueError, "max_labels must be 1 or more, got 0; omit it for"),
        pytest.param(
            "max_labels",
            -(10**5000),
            ArgumentValueError,
            "max_labels must be 1 or more",
            id="max_labels too large",
        ),
    )

    @pytest.mark.parametrize(("argument", "value", "error", "message"), VALUES)
    @pytest.mark.parametrize("started", [False, True], ids=["stopped", "running"])
    def test_impossible_value_is_an_error_and_changes_nothing(
        self, argument: str, value: Any, error: type[Exception], message: str, started: bool
    ) -> None:
        """An impossible value is an error of its kind, and leaves scheduler and registry alone."""
        scheduler = hand_driven_scheduler()
        if started:
            scheduler.start()
        registry = CollectorRegistry()
        before = snapshot(scheduler)
        with pytest.raises(error, match=f"(?s){message}") as raised:
            instrument(scheduler, **{"registry": registry, argument: value})
        assert isinstance(raised.value, TelemetryError)
        assert_same(snapshot(scheduler), before)
        assert list(registry.collect()) == []
        if started:  # or auto-instrumentation finds it in a later test
            scheduler.shutdown()

    @pytest.mark.parametrize(
        "options",
        [
            {"name": "Rechnungen 🦉"},
            {"name": 'a "quoted" one'},
            {"expect": Expectations(grace=0)},
            {"expect": lambda job: Expectations(grace=1.5)},
            {"duration_buckets": (0, 1)},
            {"duration_buckets": [1, 2, math.inf]},
            {"delay_buckets": range(1, 4)},
            {"max_labels": 1},
            {"tracer_provider": NoOpTracerProvider()},
        ],
        ids="-".join,
    )
    def test_unusual_values_are_accepted(self, options: Mapping[str, Any]) -> None:
        """Unusual but valid values are accepted."""
        with watched(hand_driven_scheduler(), **options) as seen:
            assert seen.up() == 0

    def test_options_are_keyword_only(self) -> None:
        """Options are keyword-only."""
        with pytest.raises(TypeError, match="positional"):
            instrument(BackgroundScheduler(), "shop")  # type: ignore[call-arg]

    def test_registry_with_a_metric_of_our_names_is_refused(self) -> None:
        """A registry with a metric of the same name is rejected, and nothing is changed."""
        scheduler = hand_driven_scheduler()
        registry = CollectorRegistry()
        Gauge("apscheduler_job_running", "not ours", registry=registry)
        before, shown = snapshot(scheduler), generate_latest(registry)
        with pytest.raises(ArgumentValueError, match=r"registry=.*apscheduler_job_running"):
            instrument(scheduler, registry=registry)
        assert_same(snapshot(scheduler), before)
        assert generate_latest(registry) == shown

    @pytest.mark.parametrize("started", [False, True], ids=["stopped", "running"])
    def test_failure_half_way_removes_all_hooks(
        self, monkeypatch: pytest.MonkeyPatch, started: bool
    ) -> None:
        """If instrumenting fails halfway, all hooks that were installed are removed."""
        scheduler = hand_driven_scheduler(jobstores={"default": MemoryJobStore()})
        if started:
            scheduler.start()
        registry = CollectorRegistry()
        before = snapshot(scheduler)
        monkeypatch.setattr(JobStoreHooks, "on_added_to_scheduler", raise_boom)
        with pytest.raises(Boom):
            instrument(scheduler, registry=registry)
        assert_same(snapshot(scheduler), before)
        assert list(registry.collect()) == []
        monkeypatch.undo()
        with watched(scheduler, registry=registry) as seen:
            assert seen.up() == started


class TestCallbacks:
    """Users' callbacks that fail are counted, logged once, and replaced by the default."""

    @pytest.mark.parametrize(
        "job_label",
        [lambda job: job.nothing, lambda job: None, lambda job: 7, lambda job: "", lambda: "x"],
        ids=["raises", "None", "number", "empty", "takes nothing"],
    )
    def test_failing_job_label_is_replaced_by_the_id(
        self, job_label: Callable[..., Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        """If `job_label` fails, the label is the job's id."""
        with watched(hand_driven_scheduler(), job_label=job_label) as seen:
            seen.scheduler.start()
            for job_id in ("a", "b"):
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id=job_id)
                assert seen.job("running", job_id) == 0
            assert seen.own_errors() == {"job_label": 2}
            assert seen.value("telemetry_errors_total", component="job_label") == 2
        assert len(ours_of(caplog)) == 1

    def test_histograms_have_the_buckets_that_were_passed(self) -> None:
        """Histograms have the buckets that were passed."""
        with watched(hand_driven_scheduler(), duration_buckets=[1, 2.5], delay_buckets=[7]) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id="job")
            text = generate_latest(seen.registry).decode()
        bounds = {
            name: re.findall(rf'{name}_seconds_bucket{{.*?le="(.*?)"', text)
            for name in ("run_duration", "start_delay")
        }
        assert bounds == {"run_duration": ["1.0", "2.5", "+Inf"], "start_delay": ["7.0", "+Inf"]}

    def test_jobs_beyond_max_labels_share_one(self) -> None:
        """Jobs beyond `max_labels` share one label."""
        with watched(hand_driven_scheduler(), max_labels=2) as seen:
            seen.scheduler.start()
            for name in ("a", "b", "c", "d"):
                seen.scheduler.add_job(jobs.nothing, "interval", hours=1, id=name)
            text = generate_latest(seen.registry).decode()
        assert {"a", "b", "__overflow__"} == set(re.findall(r'job_id="(.*?)"', text))
