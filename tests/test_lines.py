"""Lines that are kept between scrapes, and must be those of the library to the byte."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
import time_machine
from opentelemetry.trace import SpanContext
from prometheus_client import Counter, Gauge
from prometheus_client.exposition import choose_encoder

from apscheduler_telemetry.core.model import Outcome, RunError
from apscheduler_telemetry.core.recorder import DURATION_BUCKETS, REMOVED_FOR, Removal
from apscheduler_telemetry.export.metric_families import of_job
from apscheduler_telemetry.export.text_format import BLOCK
from test_prometheus import NOW, Scene, raise_boom

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
        assert encode(scene.registry) == b"".join(scene.collector.expose(encode)), accept


class TestBytes:
    """What is exposed by kept lines is what the standard encoders write, to the byte."""

    def test_of_a_bit_of_everything(self, scene: Scene) -> None:
        """Counters, gauges, histograms, exemplars, quotes and owls; the first time and again."""
        check(scene)
        check(scene)

    def test_between_other_metrics(self, scene: Scene) -> None:
        """Metrics of others stay where they are, before ours and after."""
        Counter("after", "After ours.", registry=scene.registry).inc()
        check(scene)
        scene.registry.unregister(scene.collector)
        Gauge("before", "Now before\nours.", registry=scene.registry).set(1e9)
        scene.registry.register(scene.collector)
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
    def test_of_any_label(self, scene: Scene, text: str) -> None:
        """Whatever a label's value looks like: a form, a head, the end, or nothing."""
        job = scene.main.know("odd", label=text or "empty", name=text, owner=text, trigger=text)
        scene.main.run(job, NOW, 0.5, RunError(type=text, message=""))
        check(scene)

    @pytest.mark.parametrize(
        "value",
        [0.0, 1.0, 0.1, 1e-9, 123456.75, 999_999, 1_000_000, 1e6, 1.5e9, 1e21, float("inf")],
    )
    def test_of_any_number(self, scene: Scene, value: float) -> None:
        """Whatever a number looks like: Go's way of writing it is not Python's."""
        job = scene.main.know("odd", grace=value)
        scene.main.run(job, NOW, value, exemplar=SpanContext(1, 2, is_remote=False))
        scene.main.ledger.never_ran(job, Outcome.SKIPPED, int(min(value, 1e9)))
        check(scene)

    def test_of_no_jobs(self) -> None:
        """A scheduler without jobs, and a registry without schedulers."""
        scene = Scene()
        for shown in (scene.main, scene.other):
            scene.collector.remove(shown)
        check(scene)
        scene.registry.register(scene.collector)
        scene.collector.add(scene.other)
        check(scene)


class TestManyJobs:
    """A scrape of many jobs holds nobody up for long."""

    @pytest.fixture
    def scene(self, scene: Scene) -> Scene:
        for number in range(int(3.5 * BLOCK)):
            scene.main.run(scene.main.know(f"job-{number}"), NOW, 0.5)
        return scene

    def test_comes_in_pieces(self, scene: Scene) -> None:
        """None of them takes long to copy; of few jobs there is one."""
        encode, _ = choose_encoder("")
        pieces = scene.collector.expose(encode)
        assert b"".join(pieces) == encode(scene.registry)
        assert 3 < len(pieces) < 12
        assert max(map(len, pieces)) < 1_000_000
        assert len(Scene().collector.expose(encode)) == 1

    def test_leaves_garbage_alone(self, scene: Scene) -> None:
        """It makes so few objects that Python does not look for garbage among those of all."""
        encode, _ = choose_encoder("")
        collections = []
        scene.collector.expose(encode)

        def note(phase: str, info: object) -> None:
            collections.append((phase, info))

        gc.collect()
        gc.callbacks.append(note)
        try:
            scene.collector.expose(encode)
        finally:
            gc.callbacks.remove(note)
        assert collections == []


class TestChanges:
    """What has changed is written anew, whatever it was."""

    @pytest.mark.slow
    def test_at_random(self, scene: Scene) -> None:
        """Jobs come and go, run, wait and are rescheduled, and each scrape is right."""
        dice = random.Random(7)
        ledger = scene.main.ledger
        entries = {}
        waiting = []
        for step in range(150):
            name = f"job-{dice.randrange(8)}"
            if name not in entries:
                entries[name] = scene.main.know(name)
            elif (action := dice.randrange(7)) == 0:
                ledger.remove(entries.pop(name), dice.choice(list(Removal)))
            elif action == 1:
                scene.main.run(entries[name], NOW, dice.choice(DURATION_BUCKETS))
            elif action == 2:
                ledger.promise(entries[name], NOW + step, on_purpose=True)
            elif action == 3:
                ledger.goes_on(entries[name], datetime.fromtimestamp(NOW + step, timezone.utc))
            elif action == 4:
                waiting.append(scene.main.hand_over(entries[name], NOW))
            elif action == 5 and waiting:
                ledger.start(waiting[-1], NOW + step)
            elif waiting:
                ledger.settle(waiting.pop(), dice.choice(list(Outcome)))
            if step % 40 == 39:
                scene.main.clock.now += REMOVED_FOR
            encode, _ = choose_encoder(FORMATS[step % len(FORMATS)])
            assert encode(scene.registry) == b"".join(scene.collector.expose(encode)), step

    def test_nothing_is_written_twice(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job that nothing happened to is not looked at again."""
        encode, _ = choose_encoder("")
        asked = []

        def of_job_and_tell(scheduler: str, account: object) -> object:
            asked.append(account.label)  # type: ignore[attr-defined]
            return of_job(scheduler, account)  # type: ignore[arg-type]

        monkeypatch.setattr("apscheduler_telemetry.export.text_format.of_job", of_job_and_tell)
        scene.collector.expose(encode)
        assert {"backup", "report", "gone"} < set(asked)
        asked.clear()
        scene.collector.expose(encode)
        assert asked == []
        scene.main.run(scene.main.ledger.entry("sql", "backup"), NOW, 1.0)
        scene.collector.expose(encode)
        assert asked == ["backup"]

    def test_a_failure_is_tried_again(self, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job that could not be shown once is shown as soon as it can be."""
        encode, _ = choose_encoder("")
        with monkeypatch.context() as patch:
            patch.setattr(
                "apscheduler_telemetry.export.text_format.of_job", lambda *_: map(raise_boom, "x")
            )
            exposed = b"".join(scene.collector.expose(encode))
        assert b'job_id="backup"' not in exposed
        assert b'errors_total{component="collector",scheduler="main"} ' in exposed
        assert scene.main.guard.counts()["collector"] > 0
        check(scene)
