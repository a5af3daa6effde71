"""
The exposition: names, types, labels and every byte of it.

`golden/exposition.txt` and `golden/exposition.openmetrics.txt` are compared as a whole. Where a
change of them is meant, ``UPDATE_GOLDEN=1 pytest tests/test_prometheus.py`` writes them anew.
"""

from __future__ import annotations

import functools
import gc
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from opentelemetry.trace import SpanContext
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

import support_jobs as jobs
import support_scenes as scenes
from apscheduler_telemetry import DuplicateNameError
from apscheduler_telemetry.core.labels import MAX_TEXT
from apscheduler_telemetry.core.model import ErrorKind, JobInfo, Liveness, Outcome, RunError
from apscheduler_telemetry.core.observers import COMPONENTS, Guard
from apscheduler_telemetry.core.recorder import Ledger, Removal
from apscheduler_telemetry.errors import ArgumentValueError
from apscheduler_telemetry.export.prometheus import LedgerCollector, collector_of
from support import Gate, until
from support_scenes import Boom, Clock, watched

GOLDEN = Path(__file__).parent / "golden"
NOW = 1_800_000_000.0

JOB = ("scheduler", "job_id")
EXECUTOR = ("scheduler", "executor")
FAMILIES = {
    "apscheduler_job_runs": ("counter", (*JOB, "outcome")),
    "apscheduler_job_exceptions": ("counter", (*JOB, "exception")),
    "apscheduler_job_run_duration_seconds": ("histogram", JOB),
    "apscheduler_job_start_delay_seconds": ("histogram", JOB),
    "apscheduler_job_next_run_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_last_run_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_last_success_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_last_failure_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_last_run_duration_seconds": ("gauge", JOB),
    "apscheduler_job_consecutive_failures": ("gauge", JOB),
    "apscheduler_job_running": ("gauge", JOB),
    "apscheduler_job_running_since_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_withdrawn_run_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_shortest_interval_seconds": ("gauge", JOB),
    "apscheduler_job_longest_interval_seconds": ("gauge", JOB),
    "apscheduler_job_grace_seconds": ("gauge", JOB),
    "apscheduler_job_max_duration_seconds": ("gauge", JOB),
    "apscheduler_job_alert_info": ("gauge", (*JOB, "severity", "owner")),
    "apscheduler_job_info": (
        "gauge",
        (*JOB, "name", "func", "trigger", "executor", "jobstore", "persistent"),
    ),
    "apscheduler_scheduler_up": ("gauge", ("scheduler",)),
    "apscheduler_scheduler_state": ("gauge", ("scheduler", "state")),
    "apscheduler_scheduler_start_timestamp_seconds": ("gauge", ("scheduler",)),
    "apscheduler_scheduler_last_wakeup_timestamp_seconds": ("gauge", ("scheduler",)),
    "apscheduler_scheduler_jobs": ("gauge", ("scheduler", "jobstore")),
    "apscheduler_jobstore_last_read_timestamp_seconds": ("gauge", ("scheduler", "jobstore")),
    "apscheduler_jobstore_read_failures": ("counter", ("scheduler", "jobstore")),
    "apscheduler_scheduler_errors": ("counter", ("scheduler", "kind")),
    "apscheduler_executor_workers": ("gauge", EXECUTOR),
    "apscheduler_executor_running": ("gauge", EXECUTOR),
    "apscheduler_executor_queued": ("gauge", EXECUTOR),
    "apscheduler_scheduler_info": (
        "gauge",
        ("scheduler", "type", "version", "hostname", "pid", "timezone", "singleton"),
    ),
    "apscheduler_telemetry_errors": ("counter", ("scheduler", "component")),
}
"""DESIGN section 4: name (a counter's samples add ``_total``), type, labels."""

VALUES = {
    "outcome": {"success", "error", "missed", "skipped", "coalesced", "lost"},
    "kind": {"jobstore", "restore", "executor_lookup", "submit", "loop", "listener"},
    "state": {"running", "paused", "stopped"},
    "component": set(COMPONENTS),
    "persistent": {"true", "false"},
    "singleton": {"true", "false"},
}
"""All values of the labels that have a fixed set of them."""


class Shown:
    """A scheduler as the collector sees it, its books at a fixed time."""

    def __init__(self, name: str = "main") -> None:
        self.name = name
        self.clock = Clock(NOW)
        self.ledger = Ledger(name, clock=self.clock)
        self.guard = Guard()
        self.started_at: float | None = NOW - 3600
        self.last_wakeup: float | None = NOW - 0.5
        self.alive = Liveness(state="running", up=True)

    def liveness(self) -> Liveness:
        return self.alive

    def facts(self) -> Mapping[str, str]:
        return {
            "type": "BackgroundScheduler",
            "version": "3.11.3",
            "hostname": "web-1",
            "pid": "4711",
            "timezone": "Europe/Berlin",
            "singleton": "true",
        }

    def know(self, job_id: str, promise: float | None = NOW + 60, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "id": job_id,
            "label": job_id,
            "name": job_id.title(),
            "func": f"shop.jobs:{job_id}",
            "trigger": "interval[0:01:00]",
            "executor": "default",
            "jobstore": "default",
            "persistent": False,
            "grace": 60.0,
        }
        return self.ledger.know(JobInfo(**{**values, **changes}), promise)

    def hand_over(self, entry: Any, due: float, executor: Any = None) -> Any:
        (run,) = self.ledger.hand_over(entry, executor, [datetime.fromtimestamp(due, timezone.utc)])
        return run

    def run(
        self,
        entry: Any,
        due: float,
        duration: float,
        error: RunError | None = None,
        exemplar: SpanContext | None = None,
    ) -> None:
        run = self.hand_over(entry, due)
        self.ledger.start(run, due + 0.125)
        run.exemplar = exemplar
        outcome = Outcome.SUCCESS if error is None else Outcome.ERROR
        self.ledger.finish(run, outcome, duration=duration, error=error)


def fill(shown: Shown) -> None:
    """Write a bit of everything into the books."""
    ledger = shown.ledger
    default = ledger.executor("default", lambda: 10)
    ledger.executor("loop", lambda: float("inf"))
    ledger.open_store("default", exact=True)
    ledger.open_store("sql", exact=False)
    ledger.store_read("sql", NOW - 3.5)
    ledger.store_read("sql", None)

    backup = shown.know(
        "backup",
        jobstore="sql",
        persistent=True,
        grace=300.0,
        max_duration=600.0,
        severity="warning",
        owner="billing",
    )
    ledger.set_intervals(backup, (86_400.0, 259_200.0))
    trace = SpanContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, is_remote=False)
    shown.run(backup, NOW - 180, 0.75, exemplar=trace)
    shown.run(backup, NOW - 120, 12.5, RunError(type="OSError", message="disk"))
    shown.run(backup, NOW - 60, 0.25, RunError(type="shop.errors.Full", message=""))
    ledger.never_ran(backup, Outcome.COALESCED, 3)
    ledger.settle(shown.hand_over(backup, NOW - 30), Outcome.LOST)

    report = shown.know("report", NOW + 0.25)
    ledger.set_intervals(report, (60.0, 60.0))
    ledger.start(shown.hand_over(report, NOW - 5, default), NOW - 4.5)
    shown.hand_over(report, NOW - 1, default)
    ledger.never_ran(report, Outcome.SKIPPED, 1)
    ledger.settle(shown.hand_over(report, NOW - 65), Outcome.MISSED)

    paused = shown.know('a "quoted"\\path\nof 🦉', NOW + 60)
    ledger.promise(paused, None, on_purpose=True)

    ledger.remove(shown.know("gone", NOW + 90), Removal.WITHDRAWN)

    ledger.error(ErrorKind.JOBSTORE)
    ledger.error(ErrorKind.LISTENER)
    shown.guard.noted("job_label", "it returned None")


class Scene:
    """Two schedulers on one registry; the second one is idle and stopped."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.collector = collector_of(self.registry)
        self.main, self.other = Shown("main"), Shown("other")
        fill(self.main)
        self.other.alive = Liveness(state="stopped", up=False, reasons=[("stopped", "It is.")])
        self.other.started_at = self.other.last_wakeup = None
        for shown in (self.main, self.other):
            self.collector.add(shown)

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def openmetrics(self) -> str:
        text: str = generate_openmetrics(self.registry).decode()  # type: ignore[no-untyped-call]
        return text


@pytest.fixture
def scene() -> Scene:
    return Scene()


def samples(exposition: str) -> Iterator[Any]:
    for family in parse_text(exposition):
        yield from family.samples


class TestGolden:
    @pytest.mark.parametrize(
        ("file", "render"),
        [
            ("exposition.txt", Scene.text),
            ("exposition.openmetrics.txt", Scene.openmetrics),
        ],
    )
    def test_whole_exposition(
        self, scene: Scene, file: str, render: Callable[[Scene], str]
    ) -> None:
        """The exposition of a given state of the books is this one, to the byte."""
        actual = render(scene)
        if os.environ.get("UPDATE_GOLDEN"):
            (GOLDEN / file).write_text(actual)
        assert actual == (GOLDEN / file).read_text()

    def test_has_an_exemplar(self) -> None:
        """The golden file shows what an exemplar looks like, so that a change of it is seen."""
        text = (GOLDEN / "exposition.openmetrics.txt").read_text()
        assert '# {span_id="00f067aa0ba902b7",trace_id="4bf92f3577b34da6a3ce929d0e0e4736"}' in text

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
    def test_promtool_is_content(self) -> None:
        """Prometheus' own linter has nothing to say about the exposition."""
        with (GOLDEN / "exposition.txt").open() as exposition:
            done = subprocess.run(
                ["promtool", "check", "metrics"],
                stdin=exposition,
                capture_output=True,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_has_every_metric(self) -> None:
        """Every name of the contract has a sample in the golden file; none shows by its absence."""
        text = (GOLDEN / "exposition.txt").read_text()
        shown = {family.name for family in parse_text(text) if family.samples}
        assert shown == set(FAMILIES)


class TestContract:
    def test_names_and_types(self, scene: Scene) -> None:
        """The families are those of the contract, and no others."""
        families = {family.name: family.type for family in scene.registry.collect()}
        assert families == {name: kind for name, (kind, _) in FAMILIES.items()}

    def test_labels(self, scene: Scene) -> None:
        """Every sample has exactly the labels of its family; a bucket has `le` besides."""
        for family in scene.registry.collect():
            for sample in family.samples:
                extra = {"le"} if sample.name.endswith("_bucket") else set()
                assert sample.labels.keys() == {*FAMILIES[family.name][1], *extra}

    def test_reserved_labels(self) -> None:
        """No label is called as one that Prometheus adds itself."""
        assert not {"job", "instance"} & {
            label for _, labels in FAMILIES.values() for label in labels
        }

    def test_fixed_label_values(self, scene: Scene) -> None:
        """Labels with a fixed set of values show all of them, so that no series is born late."""
        seen: dict[str, set[str]] = {label: set() for label in VALUES}
        for sample in samples(scene.text()):
            for label in VALUES.keys() & sample.labels.keys():
                seen[label].add(sample.labels[label])
        del seen["singleton"]  # a scheduler is the one or the other
        assert seen == {label: VALUES[label] for label in seen}

    def test_no_created_series(self, scene: Scene) -> None:
        """Nothing reads creation times, and they would add a third to the exposition."""
        assert "_created" not in scene.text()
        assert "_created" not in scene.openmetrics()

    def test_every_family_has_a_help(self, scene: Scene) -> None:
        """Each family says in a sentence what it is."""
        assert all(family.documentation.endswith(".") for family in scene.registry.collect())

    def test_describe_names_what_collect_yields(self) -> None:
        """The registry is told beforehand of all families, by which it finds duplicates."""
        collector = LedgerCollector(CollectorRegistry())
        assert [f.name for f in collector.describe()] == [f.name for f in collector.collect()]


class TestParsers:
    def test_text(self, scene: Scene) -> None:
        """What the text format shows is read back as it was."""
        read = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples(scene.text())}
        meant = {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in scene.registry.collect()
            for s in family.samples
        }
        assert read == meant

    def test_openmetrics(self, scene: Scene) -> None:
        """The stricter parser of OpenMetrics accepts all of it, and gives the exemplar back."""
        parsed = parse_openmetrics(scene.openmetrics())  # type: ignore[no-untyped-call]
        families = {family.name: family for family in parsed}
        assert families.keys() == FAMILIES.keys()
        (exemplar,) = [
            sample.exemplar
            for sample in families["apscheduler_job_run_duration_seconds"].samples
            if sample.exemplar
        ]
        assert exemplar.labels["span_id"] == "00f067aa0ba902b7"
        assert exemplar.value == 0.75
        assert float(exemplar.timestamp) == NOW - 180 + 0.125 + 0.75

    def test_buckets_are_cumulative(self, scene: Scene) -> None:
        """Each bucket includes the ones before it, and the last one is the count."""
        labels = {"scheduler": "main", "job_id": "backup"}
        name = "apscheduler_job_run_duration_seconds"
        buckets = [
            sample.value
            for sample in samples(scene.text())
            if sample.name == f"{name}_bucket" and labels.items() <= sample.labels.items()
        ]
        assert buckets == sorted(buckets)
        assert buckets[-1] == scene.registry.get_sample_value(f"{name}_count", labels) == 3
        assert scene.registry.get_sample_value(f"{name}_sum", labels) == 0.75 + 12.5 + 0.25


class TestHostileNames:
    """Whatever a job, an executor or an exception is called, the scrape succeeds."""

    HOSTILE = (
        'with "quotes" and \\ backslash',
        "line\nbreak\r\n",
        "nul\0byte",
        "🦉 naïve",
        "lone \ud800 surrogate",
        "x" * 10_000,
        "{}=,#",
        " ",
    )

    @pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:12]))
    def test_ids_and_names(self, name: str) -> None:
        """A hostile id or name of a job is shown, legal and bounded, in both formats."""
        with watched(scenes.by_hand()) as seen:
            seen.scheduler.start()
            seen.scheduler.add_job(jobs.nothing, **scenes.due(name), name=name)
            seen.scheduler.turn()
            self.check(seen.registry)
            assert seen.own_errors() == {}
            runs = [
                sample
                for sample in samples(generate_latest(seen.registry).decode())
                if sample.name == "apscheduler_job_runs_total" and sample.value
            ]
            assert [sample.labels["outcome"] for sample in runs] == ["success"]

    @pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:12]))
    def test_everything_else(self, name: str) -> None:
        """So with executors, job stores, exceptions, and the machine."""
        registry = CollectorRegistry()
        shown = Shown()
        shown.ledger.executor(name, lambda: 1)
        shown.ledger.open_store(name, exact=True)
        shown.run(shown.know("job"), NOW, 1.0, RunError(type=name, message=name))
        hostname = {**shown.facts(), "hostname": name}
        shown.facts = lambda: hostname  # type: ignore[method-assign]
        collector_of(registry).add(shown)
        self.check(registry)
        assert shown.guard.counts()["collector"] == 0

    @pytest.mark.parametrize(
        "func",
        [
            lambda: None,
            functools.partial(scenes.succeed, 1),
            Gate().open,
            type("Nameless", (), {"__call__": lambda self: None})(),
            [].clear,
            dict,
        ],
        ids=["lambda", "partial", "bound method", "callable object", "builtin", "class"],
    )
    def test_callables(self, func: Callable[..., Any]) -> None:
        """Any callable that APScheduler takes can be shown."""
        with watched(scenes.by_hand()) as seen:
            seen.scheduler.start()
            name = {} if hasattr(func, "__name__") else {"name": "nameless"}
            seen.scheduler.add_job(func, **scenes.due(), **name)
            seen.scheduler.turn()
            self.check(seen.registry)
            assert seen.own_errors() == {}

    def test_alias_that_is_no_text(self) -> None:
        """An alias that is a number, which APScheduler allows, is shown like any other."""
        with watched(scenes.by_hand(executors={7: DebugExecutor()})) as seen:
            seen.scheduler.start()
            self.check(seen.registry)
            assert seen.value("executor_workers", executor="7") == 1
            assert seen.own_errors() == {}

    @staticmethod
    def check(registry: CollectorRegistry) -> None:
        for sample in samples(generate_latest(registry).decode()):
            assert all(len(value) <= MAX_TEXT for value in sample.labels.values())
        text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
        list(parse_openmetrics(text))  # type: ignore[no-untyped-call]


class TestIsolation:
    def test_a_source_that_fails(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """A scheduler that cannot be asked is left out and counted; the rest is shown."""
        monkeypatch.setattr(scene.main, "liveness", raise_boom)
        text = scene.text()
        assert 'apscheduler_scheduler_up{scheduler="main"}' not in text
        assert 'apscheduler_scheduler_up{scheduler="other"} 0.0' in text
        assert 'apscheduler_job_running{job_id="backup",scheduler="main"}' in text
        assert 'errors_total{component="collector",scheduler="main"} 1.0' in text

    def test_books_that_fail(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """Books that cannot be read are left out and counted."""
        monkeypatch.setattr(scene.main.ledger, "accounts", raise_boom)
        text = scene.text()
        assert 'job_id="backup"' not in text
        assert 'apscheduler_scheduler_up{scheduler="main"} 1.0' in text
        assert 'errors_total{component="collector",scheduler="main"} 1.0' in text

    def test_an_account_that_fails(self, scene: Scene) -> None:
        """An account that cannot be shown does not take the others along."""
        scene.main.ledger._accounts["report"].info = None  # type: ignore[assignment]
        snapshots = scene.main.ledger.accounts

        def accounts() -> Iterator[Any]:
            for account in list(scene.main.ledger._accounts.values()):
                if account.label == "report":
                    yield account
            scene.main.ledger._accounts.pop("report", None)
            yield from snapshots()

        scene.main.ledger.accounts = accounts  # type: ignore[method-assign]
        text = scene.text()
        assert 'apscheduler_job_running{job_id="backup",scheduler="main"}' in text
        assert 'apscheduler_job_running{job_id="report",scheduler="main"}' not in text
        assert 'errors_total{component="collector",scheduler="main"} 1.0' in text

    def test_is_logged_once(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A scrape that fails every few seconds writes one record and not one per scrape."""
        monkeypatch.setattr(scene.main, "liveness", raise_boom)
        for _ in range(3):
            scene.text()
        assert len(caplog.records) == 1
        assert scene.main.guard.counts()["collector"] == 3


class TestConcurrency:
    @pytest.mark.slow
    def test_scrapes_during_runs(self) -> None:
        """Scrapes and runs in many threads at once neither fail nor show an impossible state."""
        shown = Shown()
        registry = CollectorRegistry()
        collector_of(registry).add(shown)
        stop = threading.Event()
        failures: list[BaseException] = []

        def runs(name: str) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                entry = shown.know(f"{name}-{number % 7}")
                shown.run(entry, NOW, 0.01)
                if number % 11 == 0:
                    shown.ledger.remove(entry, Removal.FINISHED)

        def scrapes() -> None:
            try:
                for _ in range(10):
                    check_histograms(generate_latest(registry).decode())
            except BaseException as error:  # noqa: BLE001  # for the test's thread to see
                failures.append(error)

        def check_histograms(text: str) -> None:
            name = "apscheduler_job_run_duration_seconds"
            totals = {}
            counts: dict[Any, Any] = {}
            for sample in samples(text):
                if sample.name == f"{name}_bucket" and sample.labels["le"] == "+Inf":
                    totals[sample.labels["job_id"]] = sample.value
                elif sample.name == "apscheduler_job_runs_total":
                    job_id = sample.labels["job_id"]
                    counts[job_id] = counts.get(job_id, 0) + sample.value
            assert totals == counts

        workers = [threading.Thread(target=runs, args=(name,)) for name in "ab"]
        scrapers = [threading.Thread(target=scrapes) for _ in range(3)]
        for thread in (*workers, *scrapers):
            thread.start()
        for thread in scrapers:
            thread.join()
        stop.set()
        for thread in workers:
            thread.join()
        assert failures == []
        assert shown.guard.counts()["collector"] == 0

    def test_schedulers_that_come_and_go(self) -> None:
        """A scrape while schedulers come, are forgotten and go shows what there is."""
        registry = CollectorRegistry()
        collector = collector_of(registry)
        first = Shown("first")
        collector.add(first)
        stop = threading.Event()
        failures: list[BaseException] = []

        def scrapes() -> None:
            try:
                while not stop.is_set():
                    assert 'up{scheduler="first"} 1.0' in generate_latest(registry).decode()
            except BaseException as error:  # noqa: BLE001  # for the test's thread to see
                failures.append(error)

        scraper = threading.Thread(target=scrapes)
        scraper.start()
        for number in range(300):
            shown = Shown(f"scheduler-{number % 5}")
            collector.add(shown)
            if number % 2:
                collector.remove(shown)
            del shown
        stop.set()
        scraper.join()
        assert failures == []

    def test_survives_a_fork_under_lock(self, scene: Scene) -> None:
        """The lock of the collector is one that a forked child gets anew."""
        from apscheduler_telemetry.core import observers as _pipeline

        before = scene.collector._lock
        with before:
            _pipeline._renew_locks()
            assert 'up{scheduler="main"} 1.0' in scene.text()


class TestRegistry:
    def test_one_collector_for_all(self) -> None:
        """Schedulers of one registry share a collector, as no family may be exposed twice."""
        registry = CollectorRegistry()
        assert collector_of(registry) is collector_of(registry)

    def test_the_last_one_takes_it_off(self) -> None:
        """With its last scheduler the collector leaves the registry as it was."""
        registry = CollectorRegistry()
        before = dict(vars(registry))
        empty = {name: list(value) for name, value in before.items() if isinstance(value, dict)}
        collector = collector_of(registry)
        first, second = Shown("first"), Shown("second")
        collector.add(first)
        collector.add(second)
        collector.remove(first)
        assert 'scheduler="second"' in generate_latest(registry).decode()
        collector.remove(second)
        assert generate_latest(registry) == b""
        after = {n: list(v) for n, v in vars(registry).items() if isinstance(v, dict)}
        assert after == empty

    def test_a_name_is_taken(self) -> None:
        """A second scheduler of one name is refused, with what to pass instead."""
        collector = collector_of(registry := CollectorRegistry())
        first = Shown("shop")
        collector.add(first)
        with pytest.raises(DuplicateNameError, match=r"'shop'.*name=.*registry.*uninstrument\(\)"):
            collector.check_free("shop")
        assert 'scheduler="shop"' in generate_latest(registry).decode()

    def test_a_name_is_free_again(self) -> None:
        """A name is free once its scheduler is taken off, or is no more."""
        collector = collector_of(registry := CollectorRegistry())
        taken_off, forgotten = Shown("taken off"), Shown("forgotten")
        collector.add(taken_off)
        collector.add(forgotten)
        collector.remove(taken_off)
        del forgotten
        gc.collect()
        for name in ("taken off", "forgotten"):
            collector.check_free(name)
        assert "scheduler=" not in generate_latest(registry).decode()

    @pytest.mark.parametrize(
        "name", ["apscheduler_job_running", "apscheduler_job_run_duration_seconds_count"]
    )
    def test_somebody_else_s_metrics(self, name: str) -> None:
        """A registry that has one of our names already is refused, and left as it was."""
        registry = CollectorRegistry()
        Gauge(name, "not ours", registry=registry)
        before = generate_latest(registry)
        with pytest.raises(ArgumentValueError, match=rf"registry=.*{name}"):
            collector_of(registry)
        assert generate_latest(registry) == before

    def test_a_registry_can_be_forgotten(self) -> None:
        """Nothing here keeps a registry alive."""
        from apscheduler_telemetry.export import prometheus

        gc.collect()
        before = len(prometheus._collectors)
        registry = CollectorRegistry()
        collector_of(registry)
        assert len(prometheus._collectors) == before + 1
        del registry
        until(lambda: gc.collect() >= 0 and len(prometheus._collectors) == before)


def raise_boom(*args: Any) -> Any:
    raise Boom("on purpose")
