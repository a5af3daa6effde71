"""The text that is cached between scrapes equals that of prometheus_client, byte by byte."""

from __future__ import annotations

import gc
import random
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timezone
from types import FrameType
from typing import Any

import pytest
import time_machine
from opentelemetry.trace import SpanContext
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client import Counter as CounterMetric
from prometheus_client.exposition import choose_encoder

from apscheduler_telemetry.core.model import (
    ErrorDescription,
    JobExpectations,
    Outcome,
    RemovalReason,
)
from apscheduler_telemetry.core.recorder import REMOVED_JOB_SECONDS
from apscheduler_telemetry.core.records import JobRecord, JobSnapshot, Run
from apscheduler_telemetry.core.stats import DURATION_BUCKETS
from apscheduler_telemetry.export.metric_families import Sample, scraped_job_samples
from apscheduler_telemetry.export.prometheus import get_or_create_exporter
from apscheduler_telemetry.export.text_format import JOBS_PER_BLOCK
from tests.helpers.exported_schedulers import NOW, FakeScheduler, Scene
from tests.helpers.faults import Boom, raise_boom
from tests.helpers.interruptions import Timeout
from tests.helpers.waiting import run_in_thread

TEXT_FORMAT = "apscheduler_telemetry.export.text_format"
FORMATS = (
    "",
    "text/plain;version=1.0.0",
    "text/plain;version=1.0.0;escaping=allow-utf-8",
    "application/openmetrics-text",
    "application/openmetrics-text;version=1.0.0",
    "application/openmetrics-text;version=1.0.0;escaping=dots",
    "application/openmetrics-text;version=1.0.0;escaping=values",
)
"""Values of Accept; what the installed library does not know of them, it takes for the first."""


@pytest.fixture(autouse=True)
def _at_one_moment() -> Iterator[None]:
    """Stop the clock, as the time of the last look at a memory store is that of the scrape."""
    with time_machine.travel(NOW, tick=False):
        yield


@pytest.fixture
def scene() -> Scene:
    return Scene()


def check(scene: Scene) -> None:
    """Check that every format is what the library would write."""
    for accept in FORMATS:
        encode, _ = choose_encoder(accept)
        assert encode(scene.registry) == b"".join(scene.exporter.expose(encode)), accept


class TestBytes:
    """The exposition from cached text equals that of prometheus_client, byte by byte."""

    def test_text_of_all_kinds_of_metrics_is_that_of_the_library(self, scene: Scene) -> None:
        """Counters, gauges, histograms and exemplars have the text of prometheus_client."""
        check(scene)
        check(scene)

    def test_metrics_of_others_keep_their_place(self, scene: Scene) -> None:
        """Metrics of other collectors stay before and after those of this package."""
        CounterMetric("after", "After ours.", registry=scene.registry).inc()
        check(scene)
        scene.registry.unregister(scene.exporter)
        Gauge("before", "Now before\nours.", registry=scene.registry).set(1e9)
        scene.registry.register(scene.exporter)
        check(scene)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "\0",
            "a\0b",
            "{",
            "}",
            "{0}",
            "%s",
            '"',
            "\\",
            "\\n",
            "\n",
            "é🦉",
            "# HELP x",
            "}\n# EOF",
        ],
    )
    def test_any_label_value_is_written_as_the_library_does(self, scene: Scene, text: str) -> None:
        """Any label value is written as prometheus_client writes it."""
        job = scene.main.add_job(
            "odd",
            label=text or "empty",
            name=text,
            trigger=text,
            expectations=JobExpectations(owner=text, min_recorded=((text, 1.0),)),
        )
        scene.main.run(job, NOW, 0.5, ErrorDescription(type=text, message=""))
        check(scene)

    @pytest.mark.parametrize(
        "value",
        [0.0, 1.0, 0.1, 1e-9, 123456.75, 999_999, 1_000_000, 1e6, 1.5e9, 1e21, float("inf")],
    )
    def test_any_number_is_written_as_the_library_does(self, scene: Scene, value: float) -> None:
        """Any number is written as prometheus_client writes it, in Go's notation."""
        job = scene.main.add_job("odd", grace=value)
        scene.main.run(job, NOW, value, exemplar=SpanContext(1, 2, is_remote=False))
        scene.main.recorder.runs_unsubmitted(job, Outcome.SKIPPED, int(min(value, 1e9)))
        check(scene)

    def test_text_without_jobs_is_that_of_the_library(self) -> None:
        """Without jobs, or without schedulers, the text is that of prometheus_client."""
        scene = Scene()
        for scheduler in (scene.main, scene.other):
            scene.exporter.remove_scheduler(scheduler)
        check(scene)
        scene.registry.register(scene.exporter)
        scene.exporter.add_scheduler(scene.other)
        check(scene)


class TestManyJobs:
    """A scrape of many jobs does not block other threads for long."""

    @pytest.fixture
    def scene(self, scene: Scene) -> Scene:
        for number in range(int(3.5 * JOBS_PER_BLOCK)):
            scene.main.run(scene.main.add_job(f"job-{number}"), NOW, 0.5)
        return scene

    def test_text_of_many_jobs_comes_in_chunks(self, scene: Scene) -> None:
        """The text of many jobs comes in several chunks, that of few jobs in one."""
        encode, _ = choose_encoder("")
        chunks = scene.exporter.expose(encode)
        assert b"".join(chunks) == encode(scene.registry)
        assert 3 < len(chunks) < 12
        assert max(map(len, chunks)) < 1_000_000
        assert len(Scene().exporter.expose(encode)) == 1

    def test_rendering_triggers_no_garbage_collection(self, scene: Scene) -> None:
        """Rendering makes so few objects that Python starts no garbage collection."""
        encode, _ = choose_encoder("")
        collections = []
        scene.exporter.expose(encode)

        def note(phase: str, info: object) -> None:
            collections.append((phase, info))

        gc.collect()
        gc.callbacks.append(note)
        try:
            scene.exporter.expose(encode)
        finally:
            gc.callbacks.remove(note)
        assert collections == []


class TestChanges:
    """Text of what has changed is rendered again."""

    @pytest.mark.slow
    def test_text_is_right_after_random_changes(self, scene: Scene) -> None:
        """After random changes of jobs and runs, each scrape has the right text."""
        rng = random.Random(7)
        recorder = scene.main.recorder
        records: dict[str, JobRecord] = {}
        in_flight: list[Run] = []
        for step in range(150):
            name = f"job-{rng.randrange(8)}"
            if name not in records:
                records[name] = scene.main.add_job(name)
            elif (action := rng.randrange(7)) == 0:
                recorder.job_removed(records.pop(name), rng.choice(list(RemovalReason)))
            elif action == 1:
                scene.main.run(records[name], NOW, rng.choice(DURATION_BUCKETS))
            elif action == 2:
                recorder.job_rescheduled(records[name], NOW + step, cancels=True)
            elif action == 3:
                next_run = datetime.fromtimestamp(NOW + step, timezone.utc)
                recorder.job_advanced(records[name], next_run)
            elif action == 4:
                in_flight.append(scene.main.submit(records[name], NOW))
            elif action == 5 and in_flight and in_flight[-1].started_at is None:
                in_flight[-1].try_start(NOW + step)
            elif in_flight:
                scene.main.finish(in_flight.pop(), rng.choice(list(Outcome)))
            if step % 40 == 39:
                scene.main.clock.now += REMOVED_JOB_SECONDS
            encode, _ = choose_encoder(FORMATS[step % len(FORMATS)])
            assert encode(scene.registry) == b"".join(scene.exporter.expose(encode)), step

    def test_unchanged_job_is_not_rendered_again(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The text of an unchanged job is not rendered again."""
        encode, _ = choose_encoder("")
        rendered = []

        def samples_and_note(scheduler: str, job: JobSnapshot) -> Iterator[Sample]:
            rendered.append(job.label)
            return scraped_job_samples(scheduler, job)

        monkeypatch.setattr(f"{TEXT_FORMAT}.scraped_job_samples", samples_and_note)
        scene.exporter.expose(encode)
        assert {"backup", "report", "gone"} < set(rendered)
        rendered.clear()
        scene.exporter.expose(encode)
        assert rendered == []
        record = scene.main.recorder.find_job_record("sql", "backup")
        assert record is not None
        scene.main.run(record, NOW, 1.0)
        scene.exporter.expose(encode)
        assert rendered == ["backup"]

    def test_job_that_failed_to_render_is_rendered_again(
        self, scene: Scene, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job whose rendering failed is rendered again by the next scrape."""
        encode, _ = choose_encoder("")
        with monkeypatch.context() as patch:
            patch.setattr(f"{TEXT_FORMAT}.scraped_job_samples", lambda *_: map(raise_boom, "x"))
            exposed = b"".join(scene.exporter.expose(encode))
        assert b'job_id="backup"' not in exposed
        assert b'errors_total{component="collector",scheduler="main"} ' in exposed
        assert scene.main.error_reporter.counts()["collector"] > 0
        check(scene)


FILES = (
    *("export/prometheus.py", "export/text_format.py", "export/metric_families.py"),
    *("core/locks.py", "core/observers.py", "core/recorder.py", "core/records.py", "core/stats.py"),
)


class SmallScene:
    """A scheduler with two jobs, and histograms with few buckets."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.exporter = get_or_create_exporter(self.registry)
        self.main = FakeScheduler(duration_buckets=(1,), delay_buckets=(1,))
        for name in ("report", "gone"):
            record = self.main.add_job(name)
            self.main.run(record, NOW, 0.5, exemplar=SpanContext(1, 2, is_remote=False))
            self.main.submit(record, NOW).try_start(NOW + 1)
        self.main.recorder.job_removed(record, RemovalReason.FAILED)
        self.exporter.add_scheduler(self.main)


class Interrupter:
    """
    Raises at one occurrence of one line.

    Args:
        error: what to raise.
        executions: at how many executions of each line, from the first one on.
        seen: lines at which it was raised before, of which it takes the next.
    """

    def __init__(
        self, error: type[BaseException], executions: int, seen: set[tuple[str, int, int]]
    ) -> None:
        self._error = error
        self._executions = executions
        self._seen = seen
        self._counts: Counter[tuple[str, int]] = Counter()
        self.has_raised = False

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """Be a trace function."""
        file = frame.f_code.co_filename
        if self.has_raised or not file.endswith(FILES):
            return None
        if event == "line":
            self._counts[file, frame.f_lineno] += 1
            place = (file, frame.f_lineno, self._counts[file, frame.f_lineno])
            if place[2] <= self._executions and place not in self._seen:
                self._seen.add(place)
                self.has_raised = True
                sys.settrace(None)
                raise self._error
        return self.trace


@pytest.mark.slow
class TestInterruptions:
    """An exception that ends a scrape does not affect later scrapes."""

    @pytest.mark.parametrize(
        ("error", "executions", "accept"),
        [(Timeout, 2, ""), (Boom, 1, "application/openmetrics-text")],
    )
    def test_exception_at_any_line_leaves_the_next_exposition_right(
        self, error: type[BaseException], executions: int, accept: str
    ) -> None:
        """
        The next exposition is right, in this thread and in another.

        The exception is raised at the first executions of each line. An `Exception` counts as an
        error of telemetry; nothing else differs.
        """
        encode, _ = choose_encoder(accept)
        seen: set[tuple[str, int, int]] = set()
        while True:
            scene = SmallScene()
            interrupter = Interrupter(error, executions, seen)
            for _ in range(2):  # as the second scrape takes other ways through the cache
                sys.settrace(interrupter.trace)
                try:
                    scene.exporter.expose(encode)
                except (Timeout, Boom):
                    pass
                finally:
                    sys.settrace(None)
            if not interrupter.has_raised:
                break
            scene.main.run(scene.main.add_job("report", NOW + 0.25), NOW, 1.0)
            expected = run_in_thread(lambda: encode(scene.registry))  # noqa: B023
            exposed = run_in_thread(lambda: scene.exporter.expose(encode))  # noqa: B023
            assert b"".join(exposed) == expected
            assert b"".join(scene.exporter.expose(encode)) == expected
        assert len(seen) > 300
