"""
The exposition: names, types, labels, and the whole text.

The text is compared with `golden/exposition.txt` and `golden/exposition.openmetrics.txt`. After an
intended change, ``UPDATE_GOLDEN=1 pytest tests/export`` writes these files.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from apscheduler_telemetry import DuplicateNameError
from apscheduler_telemetry.core import locks
from apscheduler_telemetry.core.labels import MAX_LABEL_LENGTH
from apscheduler_telemetry.core.model import ErrorDescription, Outcome, RemovalReason
from apscheduler_telemetry.core.observers import ERROR_COMPONENTS
from apscheduler_telemetry.errors import ArgumentValueError
from apscheduler_telemetry.export import metric_families, prometheus
from apscheduler_telemetry.export.metric_families import MetricKind
from apscheduler_telemetry.export.prometheus import PrometheusExporter, get_or_create_exporter
from tests.helpers.exported_schedulers import NOW, FakeScheduler, Scene, samples
from tests.helpers.faults import iterate_to_boom, raise_boom
from tests.helpers.metrics import LONGEST, VALUES_OMITTED_FROM_SCRAPES

GOLDEN = Path(__file__).parent / "golden"

JOB = ("scheduler", "job_id")
EXECUTOR = ("scheduler", "executor")
FAMILIES = {
    "apscheduler_job_runs": ("counter", (*JOB, "outcome")),
    "apscheduler_job_exceptions": ("counter", (*JOB, "exception")),
    "apscheduler_job_recorded": ("counter", (*JOB, "quantity")),
    "apscheduler_job_run_duration_seconds": ("histogram", JOB),
    "apscheduler_job_start_delay_seconds": ("histogram", JOB),
    "apscheduler_job_next_run_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_last_run_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_last_success_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_last_failure_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_last_run_duration_seconds": ("gauge", JOB),
    "apscheduler_job_last_recorded": ("gauge", (*JOB, "quantity")),
    "apscheduler_job_consecutive_failures": ("gauge", JOB),
    "apscheduler_job_running": ("gauge", JOB),
    "apscheduler_job_running_since_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_withdrawn_run_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_shortest_interval_seconds": ("gauge", JOB),
    "apscheduler_job_longest_interval_seconds": ("gauge", JOB),
    "apscheduler_job_grace_seconds": ("gauge", JOB),
    "apscheduler_job_max_duration_seconds": ("gauge", JOB),
    "apscheduler_job_min_duration_seconds": ("gauge", JOB),
    "apscheduler_job_deadline_timestamp_seconds": ("gauge", JOB),
    "apscheduler_job_max_failures": ("gauge", JOB),
    "apscheduler_job_min_recorded": ("gauge", (*JOB, "quantity")),
    "apscheduler_job_alert_info": ("gauge", (*JOB, "severity", "owner", "runbook_url")),
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
"""
Name (a counter's samples add ``_total``), type and labels, as in ``docs/metrics.md``.

Written here once more, so that a change of what alert rules and dashboards depend on is noticed.
"""

VALUES = {
    "outcome": {"success", "error", "missed", "skipped", "coalesced", "lost"},
    "kind": {"jobstore", "restore", "executor_lookup", "submit", "loop", "listener", "not_awaited"},
    "state": {"running", "paused", "stopped"},
    "component": set(ERROR_COMPONENTS),
    "persistent": {"true", "false"},
    "singleton": {"true", "false"},
}
"""All values of the labels that have a fixed set of them."""


@pytest.fixture
def scene() -> Scene:
    return Scene()


class TestGolden:
    @pytest.mark.parametrize(
        ("file", "render"),
        [
            ("exposition.txt", Scene.text),
            ("exposition.openmetrics.txt", Scene.openmetrics),
        ],
    )
    def test_exposition_is_that_of_the_golden_file(
        self, scene: Scene, file: str, render: Callable[[Scene], str]
    ) -> None:
        """The exposition of a given state equals the golden file, byte by byte."""
        actual = render(scene)
        if os.environ.get("UPDATE_GOLDEN"):
            (GOLDEN / file).write_text(actual)
        assert actual == (GOLDEN / file).read_text()

    def test_golden_file_has_an_exemplar(self) -> None:
        """The golden file has an exemplar, so that a change of its format is noticed."""
        text = (GOLDEN / "exposition.openmetrics.txt").read_text()
        assert '# {span_id="00f067aa0ba902b7",trace_id="4bf92f3577b34da6a3ce929d0e0e4736"}' in text

    @pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
    def test_promtool_accepts_the_golden_file(self) -> None:
        """`promtool check metrics` reports no problem in the golden file."""
        with (GOLDEN / "exposition.txt").open() as exposition:
            done = subprocess.run(
                ["promtool", "check", "metrics"],
                stdin=exposition,
                capture_output=True,
                text=True,
                check=False,
            )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    def test_golden_file_has_every_metric(self) -> None:
        """Every documented metric has a sample in the golden file."""
        text = (GOLDEN / "exposition.txt").read_text()
        shown = {family.name for family in parse_text(text) if family.samples}
        assert shown == set(FAMILIES)


class TestContract:
    def test_names_and_types_are_those_of_the_contract(self, scene: Scene) -> None:
        """The families have the documented names and types, and there are no others."""
        families = {family.name: family.type for family in scene.registry.collect()}
        assert families == {name: kind for name, (kind, _) in FAMILIES.items()}

    def test_samples_have_exactly_the_labels_of_their_family(self, scene: Scene) -> None:
        """Every sample has exactly the labels of its family; buckets also have `le`."""
        for family in scene.registry.collect():
            for sample in family.samples:
                extra = {"le"} if sample.name.endswith("_bucket") else set()
                assert sample.labels.keys() == {*FAMILIES[family.name][1], *extra}

    def test_no_label_is_reserved_by_prometheus(self) -> None:
        """No label has the name of one that Prometheus adds."""
        assert not {"job", "instance"} & {
            label for _, labels in FAMILIES.values() for label in labels
        }

    def test_labels_with_fixed_values_show_all_of_them(self, scene: Scene) -> None:
        """Labels with fixed values show all of them from the start."""
        seen: dict[str, set[str]] = {label: set() for label in VALUES}
        for sample in samples(scene.text()):
            for label in VALUES.keys() & sample.labels.keys():
                seen[label].add(sample.labels[label])
        del seen["singleton"]  # a scheduler is the one or the other
        assert seen == {label: VALUES[label] for label in seen}

    def test_no_created_series(self, scene: Scene) -> None:
        """There are no `_created` series, which would make the exposition a third longer."""
        assert "_created" not in scene.text()
        assert "_created" not in scene.openmetrics()

    def test_every_family_has_a_help(self, scene: Scene) -> None:
        """Each family has a sentence as its help text."""
        assert all(family.documentation.endswith(".") for family in scene.registry.collect())

    def test_describe_names_what_collect_yields(self) -> None:
        """`describe` names all families, so that the registry can detect duplicates."""
        exporter = PrometheusExporter(CollectorRegistry())
        assert [f.name for f in exporter.describe()] == [f.name for f in exporter.collect()]


class TestUsualValues:
    """Series that a scrape leaves out where they have their usual value."""

    @staticmethod
    def unusual(scene: Scene, job_id: str = "job") -> dict[str, float]:
        """Return the series of a job that it does not always have, by outcome or by metric."""
        text = b"".join(scene.exporter.expose(generate_latest)).decode()
        assert text == scene.text()
        shown = {
            sample.labels.get("outcome", sample.name): sample.value
            for sample in samples(text)
            if sample.labels.get("job_id") == job_id
            and (sample.name in VALUES_OMITTED_FROM_SCRAPES or sample.name == LONGEST)
        }
        shown.pop("success")
        return shown

    @pytest.mark.parametrize("job_id", ["job", "success"])
    def test_job_without_trouble_has_none_of_them(self, scene: Scene, job_id: str) -> None:
        """A job that runs at a fixed interval, and succeeds, has only series that say something."""
        record = scene.main.add_job(job_id)
        assert self.unusual(scene, job_id) == {}
        scene.main.recorder.job_intervals_changed(record, (60.0, 60.0))
        scene.main.run(record, NOW, 0.5)
        assert self.unusual(scene, job_id) == {}

    def test_outcome_is_shown_from_its_first_run_on(self, scene: Scene) -> None:
        """An outcome that has happened stays."""
        record = scene.main.add_job("job")
        outcomes = [outcome for outcome in Outcome if outcome is not Outcome.SUCCESS]
        for outcome in outcomes:
            scene.main.finish(scene.main.submit(record, NOW), outcome)
        scene.main.run(record, NOW, 0.5)
        assert self.unusual(scene) == {outcome.value: 1 for outcome in outcomes}

    def test_gauges_end_with_what_they_show(self, scene: Scene) -> None:
        """Runs in progress and failures in a row have a series as long as there are any."""
        record = scene.main.add_job("job")
        run = scene.main.submit(record, NOW)
        run.try_start(NOW + 1)
        running = {
            "apscheduler_job_running": 1,
            "apscheduler_job_running_since_timestamp_seconds": NOW + 1,
        }
        assert self.unusual(scene) == running
        scene.main.finish(run, Outcome.ERROR)
        assert self.unusual(scene) == {"error": 1, "apscheduler_job_consecutive_failures": 1}
        scene.main.run(record, NOW, 0.5)
        assert self.unusual(scene) == {"error": 1}

    def test_grace_and_interval_are_shown_if_they_are_not_usual(self, scene: Scene) -> None:
        """A grace other than 60 seconds is shown, and a longest interval that is not the only."""
        record = scene.main.add_job("job", grace=61.0)
        scene.main.recorder.job_intervals_changed(record, (60.0, 120.0))
        assert self.unusual(scene) == {"apscheduler_job_grace_seconds": 61, LONGEST: 120}

    def test_success_is_always_shown(self, scene: Scene) -> None:
        """A job without a run has `success`, by which queries know of the job."""
        scene.main.add_job("job")
        assert 'runs_total{job_id="job",outcome="success",scheduler="main"} 0.0' in scene.text()

    def test_rules_are_tested_without_the_same_values(self) -> None:
        """The values are those without which the rules are tested."""
        suffixes = {MetricKind.COUNTER: "_total"}
        left_out = {
            f"{family.prometheus_family_name}{suffixes.get(family.kind, '')}": value
            for family, value in metric_families.VALUES_OMITTED_FROM_SCRAPES.items()
        }
        assert left_out == VALUES_OMITTED_FROM_SCRAPES


class TestParsers:
    def test_text_format_is_read_back_as_it_was(self, scene: Scene) -> None:
        """Parsing the text format returns the same samples."""
        read = {(s.name, tuple(sorted(s.labels.items()))): s.value for s in samples(scene.text())}
        meant = {
            (s.name, tuple(sorted(s.labels.items()))): s.value
            for family in scene.registry.collect()
            for s in family.samples
        }
        assert read == meant

    def test_openmetrics_format_is_read_back_with_exemplars(self, scene: Scene) -> None:
        """The OpenMetrics parser accepts the exposition and returns the exemplar."""
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
    """Any names of executors and exceptions; for jobs see `test_hostile_names`."""

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
    def test_executors_jobstores_exceptions_and_hosts_may_have_any_name(self, name: str) -> None:
        """Executors, job stores, exceptions and hosts may have any name."""
        registry = CollectorRegistry()
        scheduler = FakeScheduler()
        scheduler.recorder.executor_added(name, lambda: 1)
        scheduler.recorder.jobstore_added(name, is_local=True)
        error = ErrorDescription(type=name, message=name)
        scheduler.run(scheduler.add_job("job"), NOW, 1.0, error)
        scheduler.hostname = name
        get_or_create_exporter(registry).add_scheduler(scheduler)
        self.check(registry)
        assert scheduler.error_reporter.counts()["collector"] == 0

    @staticmethod
    def check(registry: CollectorRegistry) -> None:
        for sample in samples(generate_latest(registry).decode()):
            assert all(len(value) <= MAX_LABEL_LENGTH for value in sample.labels.values())
        text = generate_openmetrics(registry).decode()  # type: ignore[no-untyped-call]
        list(parse_openmetrics(text))  # type: ignore[no-untyped-call]


class TestIsolation:
    def test_failing_scheduler_is_left_out_and_counted(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Samples of a scheduler that raises are left out and counted; others are shown."""
        monkeypatch.setattr(scene.main, "liveness", raise_boom)
        text = scene.text()
        assert 'apscheduler_scheduler_up{scheduler="main"}' not in text
        assert 'apscheduler_scheduler_up{scheduler="other"} 0.0' in text
        assert 'apscheduler_job_info{executor="default",func="shop.jobs:backup"' in text
        assert 'errors_total{component="collector",scheduler="main"} 1.0' in text

    def test_failing_recorder_is_left_out_and_counted(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Jobs that cannot be read are left out and counted."""
        monkeypatch.setattr(scene.main.recorder, "job_snapshots", iterate_to_boom)
        text = scene.text()
        assert 'job_id="backup"' not in text
        assert 'apscheduler_scheduler_up{scheduler="main"} 1.0' in text
        assert 'errors_total{component="collector",scheduler="main"} 1.0' in text

    def test_failing_job_does_not_hide_the_others(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job that cannot be shown does not hide the others."""
        jobs = [
            job._replace(info=None) if job.label == "backup" else job  # type: ignore[arg-type]
            for job in scene.main.recorder.job_snapshots()
        ]
        monkeypatch.setattr(scene.main.recorder, "job_snapshots", lambda **_: iter(jobs))
        text = scene.text()
        assert 'apscheduler_job_running{job_id="backup",scheduler="main"}' not in text
        assert 'apscheduler_job_running{job_id="report",scheduler="main"}' in text
        assert 'errors_total{component="collector",scheduler="main"} 1.0' in text

    def test_failing_scrapes_are_logged_once(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Repeated failures of scrapes write one log record."""
        monkeypatch.setattr(scene.main, "liveness", raise_boom)
        for _ in range(3):
            scene.text()
        assert len(caplog.records) == 1
        assert scene.main.error_reporter.counts()["collector"] == 3


class TestConcurrency:
    @pytest.mark.slow
    def test_scrapes_during_runs_show_possible_states(self) -> None:
        """Concurrent scrapes and runs neither fail nor show an impossible state."""
        scheduler = FakeScheduler()
        registry = CollectorRegistry()
        get_or_create_exporter(registry).add_scheduler(scheduler)
        stop = threading.Event()
        failures: list[BaseException] = []

        def runs(name: str) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                record = scheduler.add_job(f"{name}-{number % 7}")
                scheduler.run(record, NOW, 0.01)
                if number % 11 == 0:
                    scheduler.recorder.job_removed(record, RemovalReason.FINISHED)

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
        assert scheduler.error_reporter.counts()["collector"] == 0

    def test_scrape_shows_the_schedulers_that_exist(self) -> None:
        """A scrape while schedulers are added, freed and removed shows the existing ones."""
        registry = CollectorRegistry()
        exporter = get_or_create_exporter(registry)
        first = FakeScheduler("first")
        exporter.add_scheduler(first)
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
            scheduler = FakeScheduler(f"scheduler-{number % 5}")
            exporter.add_scheduler(scheduler)
            if number % 2:
                exporter.remove_scheduler(scheduler)
            del scheduler
        stop.set()
        scraper.join()
        assert failures == []

    def test_forked_child_gets_new_locks(self, scene: Scene) -> None:
        """A forked child has new locks for the exporter, its cache and the recorder."""
        held: list[Any] = [
            scene.exporter,
            scene.exporter._text_renderer,
            scene.main.recorder,
            scene.main.error_reporter,
        ]
        before = [each._lock for each in held]
        locks._renew_locks()
        assert not {*map(id, before)} & {id(each._lock) for each in held}
        encode, _ = choose_encoder("")
        for lock in before:
            lock.acquire()  # as another thread of the parent would have held them
        other = threading.Thread(target=scene.exporter.expose, args=[encode])
        other.start()
        other.join(10)
        assert not other.is_alive()
        with before[0]:
            assert 'up{scheduler="main"} 1.0' in scene.text()


class TestRegistry:
    def test_schedulers_of_one_registry_share_a_collector(self) -> None:
        """Schedulers of one registry share a collector, so that no family is exposed twice."""
        registry = CollectorRegistry()
        assert get_or_create_exporter(registry) is get_or_create_exporter(registry)

    def test_last_scheduler_unregisters_the_collector(self) -> None:
        """When the last scheduler is removed, the collector is unregistered."""
        registry = CollectorRegistry()
        before = dict(vars(registry))
        empty = {name: list(value) for name, value in before.items() if isinstance(value, dict)}
        exporter = get_or_create_exporter(registry)
        first, second = FakeScheduler("first"), FakeScheduler("second")
        exporter.add_scheduler(first)
        exporter.add_scheduler(second)
        exporter.remove_scheduler(first)
        assert 'scheduler="second"' in generate_latest(registry).decode()
        exporter.remove_scheduler(second)
        assert generate_latest(registry) == b""
        after = {n: list(v) for n, v in vars(registry).items() if isinstance(v, dict)}
        assert after == empty

    def test_second_scheduler_of_one_name_is_rejected(self) -> None:
        """A second scheduler with the same name is rejected; the error says what to pass."""
        exporter = get_or_create_exporter(registry := CollectorRegistry())
        first = FakeScheduler("shop")
        exporter.add_scheduler(first)
        with pytest.raises(DuplicateNameError, match=r"'shop'.*name=.*registry.*uninstrument\(\)"):
            exporter.reject_duplicate_name("shop")
        assert 'scheduler="shop"' in generate_latest(registry).decode()

    def test_name_of_a_removed_scheduler_is_free(self) -> None:
        """A name is free after its scheduler was removed or freed."""
        exporter = get_or_create_exporter(registry := CollectorRegistry())
        taken_off, forgotten = FakeScheduler("taken off"), FakeScheduler("forgotten")
        exporter.add_scheduler(taken_off)
        exporter.add_scheduler(forgotten)
        exporter.remove_scheduler(taken_off)
        del forgotten
        gc.collect()
        for name in ("taken off", "forgotten"):
            exporter.reject_duplicate_name(name)
        assert "scheduler=" not in generate_latest(registry).decode()

    @pytest.mark.parametrize(
        "name", ["apscheduler_job_running", "apscheduler_job_run_duration_seconds_count"]
    )
    def test_registry_with_a_metric_of_our_names_is_rejected(self, name: str) -> None:
        """A registry that already has one of the names is rejected and left unchanged."""
        registry = CollectorRegistry()
        Gauge(name, "not ours", registry=registry)
        before = generate_latest(registry)
        with pytest.raises(ArgumentValueError, match=rf"registry=.*{name}"):
            get_or_create_exporter(registry)
        assert generate_latest(registry) == before

    def test_registry_is_not_kept_alive(self) -> None:
        """The exporter does not keep its registry alive."""
        gc.collect()
        before = len(prometheus._exporters_by_registry)
        registry = CollectorRegistry()
        get_or_create_exporter(registry)
        assert len(prometheus._exporters_by_registry) == before + 1
        del registry
        gc.collect()
        assert len(prometheus._exporters_by_registry) == before


class TestCollection:
    """Metrics are read when they are needed, once per collection."""

    @pytest.fixture
    def readings(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return a list that grows with each reading of the recorder."""
        readings: list[str] = []
        snapshots = scene.main.recorder.job_snapshots

        def read(**_: Any) -> Iterator[Any]:
            readings.append("jobs")
            return snapshots()

        monkeypatch.setattr(scene.main.recorder, "job_snapshots", read)
        return readings

    def test_collection_shows_the_state_at_its_end(self, scene: Scene, readings: list[str]) -> None:
        """A collection shows the state at its end, whenever it is read."""
        before = list(scene.registry.collect())
        assert readings == ["jobs"]
        scene.main.run(scene.main.add_job("backup"), NOW, 1.0)
        samples = {(s.name, *s.labels.values()): s.value for m in before for s in m.samples}
        key = ("apscheduler_job_runs_total", "main", "backup", "success")
        assert samples[key] == 1
        assert readings == ["jobs"]

    def test_collection_reads_the_state_once(self, scene: Scene, readings: list[str]) -> None:
        """A collection that is read metric by metric comes from one reading of the state."""
        for metric in scene.registry.collect():
            assert isinstance(metric.samples, list)
        assert readings == ["jobs"]
        assert list(scene.registry.collect()) == list(scene.registry.collect())

    def test_cached_text_reads_nothing_twice(self, scene: Scene, readings: list[str]) -> None:
        """An exposition from cached text reads the state once."""
        encode, _ = choose_encoder("")
        scene.exporter.expose(encode)
        assert readings == []

    def test_scrape_inside_of_a_scrape_is_complete(self, scene: Scene) -> None:
        """A signal handler may scrape during a scrape: both are complete."""
        nested: list[bytes] = []
        encode, _ = choose_encoder("")

        class Scraping:
            def collect(self) -> Iterator[Any]:
                nested.append(generate_latest(scene.registry))
                nested.append(b"".join(scene.exporter.expose(generate_latest)))
                yield from ()

            def describe(self) -> list[Any]:
                return []

        registry = scene.registry
        expected = generate_latest(registry)
        del registry, nested[:]
        scraping = Scraping()

        def encode_while_scraping(metrics: Any) -> bytes:
            list(scraping.collect())
            return encode(metrics)

        assert b"".join(scene.exporter.expose(encode_while_scraping)) == expected
        assert set(nested) == {expected}


class TestNames:
    """Expositions that are restricted to some names."""

    @pytest.mark.parametrize(
        "names",
        [
            ["apscheduler_job_runs_total"],
            ["apscheduler_job_runs"],
            ["apscheduler_job_runs_created"],
            ["apscheduler_job_run_duration_seconds_count"],
            ["apscheduler_job_run_duration_seconds_sum", "apscheduler_job_start_delay_seconds_sum"],
            ["apscheduler_job_run_duration_seconds_bucket", "apscheduler_scheduler_up"],
            [
                "apscheduler_job_run_duration_seconds_sum",
                "apscheduler_job_run_duration_seconds_bucket",
                "apscheduler_job_run_duration_seconds_count",
                "apscheduler_telemetry_errors_total",
            ],
            ["apscheduler_job_max_duration_seconds", "apscheduler_job_exceptions_total"],
            ["apscheduler_scheduler_state", "apscheduler_job_info"],
            ["unknown"],
        ],
        ids="+".join,
    )
    @pytest.mark.parametrize(
        "accept",
        [
            "",
            "application/openmetrics-text",
            "application/openmetrics-text;version=1.0.0;escaping=dots",
        ],
    )
    def test_restricted_exposition_is_that_of_the_library(
        self, scene: Scene, names: list[str], accept: str
    ) -> None:
        """The response has the samples of the requested names only, as in prometheus_client."""
        encode, _ = choose_encoder(accept)
        expected = encode(scene.registry.restricted_registry(names))
        assert b"".join(scene.exporter.expose(encode, names)) == expected

    def test_metrics_of_the_application_can_be_asked_for(self, scene: Scene) -> None:
        """Metrics of the application are included if they are requested."""
        Counter("orders", "Orders.", registry=scene.registry).inc()
        encode, _ = choose_encoder("")
        names = ["orders_total", "apscheduler_scheduler_up"]
        text = b"".join(scene.exporter.expose(encode, names)).decode()
        assert {family.name for family in parse_text(text)} == {
            "orders",
            "apscheduler_scheduler_up",
        }
        text = b"".join(scene.exporter.expose(encode, ["apscheduler_scheduler_up"])).decode()
        assert "orders" not in text

    def test_restricted_exposition_reads_only_what_it_needs(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Jobs are read only for names of job metrics, schedulers only for the others."""
        encode, _ = choose_encoder("")
        monkeypatch.setattr(scene.main.recorder, "job_snapshots_since", raise_boom)
        scene.exporter.expose(encode, ["apscheduler_scheduler_up"])
        monkeypatch.undo()
        monkeypatch.setattr(scene.main, "liveness", raise_boom)
        scene.exporter.expose(encode, ["apscheduler_job_runs_total"])
        assert scene.main.error_reporter.counts()["collector"] == 0
