"""The instrumentor: how it patches APScheduler's class, and how this is undone."""

from __future__ import annotations

import functools
import gc
import json
import logging
import sys
import weakref
from collections.abc import Iterator
from importlib.metadata import distribution, entry_points
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "opentelemetry.instrumentation.instrumentor",
    reason="opentelemetry-instrumentation comes with the extra 'instrumentation' of this package",
)

from apscheduler.schedulers.background import BackgroundScheduler
from apscheduler.schedulers.base import BaseScheduler
from packaging.requirements import Requirement
from prometheus_client import REGISTRY, CollectorRegistry, Gauge, generate_latest

from apscheduler_telemetry import Expectations, environment_variables, instrument
from apscheduler_telemetry.api import get_handle
from apscheduler_telemetry.core.recorder import Recorder
from apscheduler_telemetry.errors import ArgumentTypeError
from apscheduler_telemetry.instrumentor import APSchedulerInstrumentor
from tests.helpers.schedulers import HandDriven
from tests.helpers.scripts import output_of_script
from tests.helpers.servers import get
from tests.helpers.waiting import wait_until

START = BaseScheduler.start


@pytest.fixture
def instrumentor() -> Iterator[APSchedulerInstrumentor]:
    instrumentor = APSchedulerInstrumentor()
    yield instrumentor
    if instrumentor.is_instrumented_by_opentelemetry:
        instrumentor.uninstrument()
    assert BaseScheduler.start is START


@pytest.fixture
def schedulers() -> Iterator[Any]:
    """Make schedulers that are shut down after the test."""
    made = []

    def make(cls: Any = HandDriven) -> Any:
        made.append(cls())
        return made[-1]

    yield make
    for scheduler in made:
        if scheduler.running:
            scheduler.shutdown()


def name_of(scheduler: Any) -> str | None:
    handle = get_handle(scheduler)
    return None if handle is None else handle.name


class TestMetadata:
    def test_entry_points_are_found_by_the_distro(self) -> None:
        """The distro finds the instrumentor and its variables under the name `apscheduler`."""
        (point,) = entry_points(group="opentelemetry_instrumentor", name="apscheduler")
        assert point.load() is APSchedulerInstrumentor
        (point,) = entry_points(group="opentelemetry_environment_variables", name="apscheduler")
        assert point.load() is environment_variables

    def test_extra_names_the_instrumented_package(self) -> None:
        """The requirement in the metadata is that of the instrumentor."""
        requires = map(Requirement, distribution("apscheduler-telemetry").requires or ())
        extra = [r for r in requires if r.marker and "instruments" in str(r.marker)]
        declared = map(Requirement, APSchedulerInstrumentor().instrumentation_dependencies())
        assert [(r.name, r.specifier) for r in extra] == [(r.name, r.specifier) for r in declared]

    def test_each_variable_is_named_as_its_constant(self) -> None:
        """Each variable has the name of its constant, as `opentelemetry-instrument` requires."""
        names = {n: v for n, v in vars(environment_variables).items() if n.startswith("OTEL")}
        assert names
        assert all(name == value for name, value in names.items())

    def test_missing_dependency_error_names_the_extra(self) -> None:
        """Without opentelemetry-instrumentation, the import error names the extra."""
        code = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            "sys.modules['opentelemetry.instrumentation'] = None\n"
            "import apscheduler_telemetry.instrumentor"
        )
        _, errors = output_of_script(code)
        assert "pip install 'apscheduler-telemetry[instrumentation]'" in errors


class TestInstrument:
    def test_later_schedulers_are_instrumented_when_they_start(
        self, instrumentor: Any, schedulers: Any
    ) -> None:
        """A new scheduler is instrumented when it starts, under a name of its own."""
        before = schedulers()
        instrumentor.instrument()
        first, second = schedulers(), schedulers(BackgroundScheduler)
        assert name_of(first) is None

        for scheduler in (first, second, before):
            scheduler.start()

        assert [name_of(s) for s in (first, second, before)] == [
            "default",
            "default-2",
            "default-3",
        ]

    def test_garbage_is_collected_once_for_a_name(
        self, instrumentor: Any, schedulers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not once for each scheduler that runs: in a large application, this takes seconds."""
        instrumentor.instrument()
        for _ in range(4):
            schedulers().start()
        collections = []
        monkeypatch.setattr(gc, "collect", lambda *_: collections.append(1))

        last = schedulers()
        last.start()

        assert (name_of(last), len(collections)) == ("default-5", 1)

    def test_name_of_a_stopped_scheduler_is_used_again(
        self, instrumentor: Any, schedulers: Any
    ) -> None:
        """The name is the first one that no running scheduler has."""
        instrumentor.instrument()
        made = [schedulers() for _ in range(4)]
        for scheduler in made[:3]:
            scheduler.start()
        made[1].shutdown()

        made[3].start()

        assert name_of(made[3]) == "default-2"

    def test_running_schedulers_are_instrumented(self, instrumentor: Any, schedulers: Any) -> None:
        """Running schedulers are instrumented at once; others when they start."""
        runs, idle = schedulers(BackgroundScheduler), schedulers()
        runs.start()

        instrumentor.instrument(name="shop")

        assert (name_of(runs), name_of(idle)) == ("shop", None)

    def test_scheduler_that_is_started_again_keeps_its_handle(
        self, instrumentor: Any, schedulers: Any
    ) -> None:
        """A scheduler that is started again keeps its handle."""
        instrumentor.instrument()
        scheduler = schedulers()
        scheduler.start()
        handle = get_handle(scheduler)
        scheduler.shutdown()
        scheduler.start()

        assert get_handle(scheduler) is handle

    def test_options_apply_to_every_scheduler(self, instrumentor: Any, schedulers: Any) -> None:
        """Options of `instrument` apply to every scheduler."""
        registry = CollectorRegistry()
        instrumentor.instrument(registry=registry, expect=Expectations(owner="billing"))
        scheduler = schedulers()
        scheduler.start()
        scheduler.add_job(print, id="job")

        labels = {"severity": "", "owner": "billing", "runbook_url": ""}
        job = {"scheduler": "default", "job_id": "job"}
        assert registry.get_sample_value("apscheduler_job_alert_info", {**job, **labels}) == 1

    def test_unknown_option_is_an_error(self, instrumentor: Any) -> None:
        """An unknown option raises an error, and nothing is instrumented."""
        with pytest.raises(ArgumentTypeError, match="no such option: nmae; there are"):
            instrumentor.instrument(nmae="shop")
        assert BaseScheduler.start is START

    def test_global_registry_is_left_alone(self, instrumentor: Any, schedulers: Any) -> None:
        """The global registry is not used, as OpenTelemetry's Prometheus exporter uses it."""
        instrumentor.instrument()
        schedulers().start()

        assert not [f for f in REGISTRY.collect() if f.name.startswith("apscheduler_")]

    def test_scheduler_instrumented_by_hand_before_is_left_alone(
        self, instrumentor: Any, schedulers: Any
    ) -> None:
        """A scheduler that the application has instrumented keeps that handle."""
        instrumentor.instrument()
        scheduler = schedulers()
        handle = instrument(scheduler, name="own", registry=CollectorRegistry())
        scheduler.start()

        assert get_handle(scheduler) is handle
        instrumentor.uninstrument()
        assert get_handle(scheduler) is handle

    def test_instrumenting_by_hand_later_takes_over(
        self, instrumentor: Any, schedulers: Any
    ) -> None:
        """If the application instruments a scheduler later, its options replace these."""
        instrumentor.instrument()
        scheduler = schedulers()
        scheduler.start()
        handle = instrument(scheduler, name="own", registry=CollectorRegistry())

        assert get_handle(scheduler) is handle
        assert handle.name == "own"

    def test_forgotten_scheduler_is_freed(self, instrumentor: Any) -> None:
        """A scheduler without references is freed, and its name can be used again."""
        instrumentor.instrument()
        scheduler = HandDriven()
        scheduler.start()
        scheduler.shutdown()
        forgotten = weakref.ref(scheduler)
        del scheduler
        wait_until(lambda: (gc.collect() and not forgotten()) or not forgotten())
        scheduler = HandDriven()
        scheduler.start()

        assert name_of(scheduler) == "default"
        scheduler.shutdown()

    def test_scheduler_that_cannot_be_instrumented_runs_without(
        self, instrumentor: Any, schedulers: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A scheduler that cannot be instrumented runs without telemetry; the log says why."""
        instrumentor.instrument(expect="loud")
        scheduler = schedulers()
        scheduler.start()

        assert scheduler.running
        assert get_handle(scheduler) is None
        (record,) = (r for r in caplog.records if r.name == "apscheduler_telemetry.instrumentor")
        assert "cannot be instrumented, and runs without" in record.getMessage()
        assert "expect must be" in str(record.exc_info)


class TestUninstrument:
    def test_puts_everything_back(self, instrumentor: Any, schedulers: Any) -> None:
        """`uninstrument` restores schedulers and the class; `instrument` can be called again."""
        instrumentor.instrument()
        scheduler = schedulers()
        scheduler.start()
        instrumentor.uninstrument()
        other = schedulers()
        other.start()

        assert (get_handle(scheduler), get_handle(other)) == (None, None)
        assert BaseScheduler.start is START
        instrumentor.instrument()
        assert {name_of(scheduler), name_of(other)} == {"default", "default-2"}

    def test_wrapper_of_others_stays_after_uninstrument(
        self, instrumentor: Any, schedulers: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A wrapper that another tool has added stays; the one below it does nothing."""
        instrumentor.instrument()
        ours = BaseScheduler.start
        monkeypatch.setattr(BaseScheduler, "start", functools.partialmethod(ours))
        instrumentor.uninstrument()
        scheduler = schedulers()
        scheduler.start()

        assert scheduler.running
        assert get_handle(scheduler) is None
        monkeypatch.undo()
        BaseScheduler.start = START


class TestVariables:
    def test_bad_value_is_logged_and_left_out(
        self,
        instrumentor: Any,
        schedulers: Any,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """An invalid value is logged and ignored; other variables apply."""
        monkeypatch.setenv("OTEL_PYTHON_APSCHEDULER_GRACE", "soon")
        monkeypatch.setenv("OTEL_PYTHON_APSCHEDULER_MAX_DURATION", "0")
        monkeypatch.setenv("OTEL_PYTHON_APSCHEDULER_SEVERITY", "loud")
        monkeypatch.setenv("OTEL_PYTHON_APSCHEDULER_OWNER", "billing")
        monkeypatch.setenv("OTEL_PYTHON_APSCHEDULER_SINGLETON", "maybe")
        monkeypatch.setenv("OTEL_PYTHON_APSCHEDULER_HTTP_PORT", "")
        monkeypatch.setenv("OTEL_PYTHON_APSCHEDULER_NAME", "shop")
        instrumentor.instrument()
        scheduler = schedulers()
        scheduler.start()

        assert name_of(scheduler) == "shop"
        ignored = {
            "SINGLETON='maybe'": "true or false",
            "GRACE='soon'": "a number of seconds",
            "MAX_DURATION='0'": "a number of seconds, more than 0",
            "SEVERITY='loud'": "critical, warning or info",
        }
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
            f"OTEL_PYTHON_APSCHEDULER_{variable} is ignored: it is not {kind}"
            for variable, kind in ignored.items()
        ]
        handle = get_handle(scheduler)
        assert handle is not None
        assert handle._config.expect == Expectations(owner="billing")

    def test_each_variable_sets_its_option(
        self, instrumentor: Any, schedulers: Any, monkeypatch: Any, tmp_path: Path
    ) -> None:
        """Each variable sets its option; arguments have priority."""
        for name, value in {
            "SINGLETON": "False",
            "GRACE": "300",
            "MAX_DURATION": "60.5",
            "SEVERITY": "critical",
            "OWNER": "billing",
            "JOURNAL": str(tmp_path / "journal"),
            "NAME": "from-environment",
        }.items():
            monkeypatch.setenv(f"OTEL_PYTHON_APSCHEDULER_{name}", value)
        instrumentor.instrument(name="argument")
        scheduler = schedulers()
        scheduler.start()

        handle = get_handle(scheduler)
        assert handle is not None
        expected = {
            "name": "argument",
            "singleton": False,
            "expect": Expectations(
                grace=300, max_duration=60.5, severity="critical", owner="billing"
            ),
            "journal": tmp_path / "journal",
        }
        assert {key: getattr(handle._config, key) for key in expected} == expected
        assert len(list((tmp_path / "journal").iterdir())) == 1


class TestServer:
    def test_health_is_that_of_the_worst_scheduler(
        self, instrumentor: Any, schedulers: Any
    ) -> None:
        """The process is unhealthy if any of its schedulers is."""
        instrumentor.instrument(http_port=0)
        well, dead = schedulers(), schedulers()
        for scheduler in (well, dead):
            scheduler.start()
            scheduler.turn()
        url = f"http://127.0.0.1:{instrumentor._instrumentation._server.port}"
        assert get(f"{url}/health")[0] == 200
        dead.shutdown()
        status, body = get(f"{url}/health")

        assert status == 503
        health = json.loads(body)
        assert [s["status"] for s in health["schedulers"]] == ["healthy", "unhealthy"]
        assert [(r["scheduler"], r["code"]) for r in health["reasons"]] == [
            ("default-2", "stopped")
        ]

    def test_variables_protect_the_port(
        self, instrumentor: Any, schedulers: Any, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """The token and the allowed hosts apply to the port, and its errors are counted."""
        token_file = tmp_path / "token"
        token_file.write_text("secret")
        prefix = "OTEL_PYTHON_APSCHEDULER_HTTP_"
        monkeypatch.setenv(f"{prefix}BEARER_TOKEN_FILE", str(token_file))
        monkeypatch.setenv(f"{prefix}ALLOWED_HOSTS", "a.example, b.example")
        instrumentor.instrument(http_port=0)
        schedulers().start()
        url = f"http://127.0.0.1:{instrumentor._instrumentation._server.port}"

        assert get(f"{url}/livez")[0] == 200
        assert get(f"{url}/metrics")[0] == 401
        token_file.unlink()
        headers = {"Authorization": "Bearer secret", "Host": "b.example"}
        status, page = get(f"{url}/metrics", **headers)
        assert status == 200
        assert 'errors_total{component="http",scheduler="default"} 1.0' in page
        assert get(f"{url}/metrics", **headers | {"Host": "c.example"})[0] == 421

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no multiprocess mode")
    def test_port_shows_the_schedulers_of_all_processes_in_multiprocess_mode(
        self, instrumentor: Any, schedulers: Any, tmp_path: Path, monkeypatch: Any
    ) -> None:
        """In multiprocess mode the port shows the schedulers of all processes."""
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        instrumentor.instrument(http_port=0)
        elsewhere = schedulers()  # on a registry of its own, as in another process
        handle = instrument(elsewhere, name="elsewhere", registry=CollectorRegistry())
        elsewhere.start()
        schedulers().start()
        url = f"http://127.0.0.1:{instrumentor._instrumentation._server.port}/metrics"

        def are_both_shown() -> bool:
            page = get(url)[1]
            return all(
                f'apscheduler_scheduler_state{{scheduler="{name}",state="running"}} 1.0' in page
                for name in ("default", "elsewhere")
            )

        # Where one of them has the directory locked, the other writes its first values later.
        wait_until(are_both_shown)
        handle.uninstrument()

    def test_port_renders_only_jobs_that_have_changed(
        self, instrumentor: Any, schedulers: Any, monkeypatch: Any
    ) -> None:
        """The text of unchanged jobs is cached between scrapes, as for a handle."""
        rendered: list[str] = []
        job_snapshots_since = Recorder.job_snapshots_since

        def snapshots(recorder: Recorder, known: Any, **_: Any) -> Iterator[Any]:
            for label, snapshot in job_snapshots_since(recorder, known):
                if snapshot is not None:
                    rendered.append(label)
                yield label, snapshot

        monkeypatch.setattr(Recorder, "job_snapshots_since", snapshots)
        instrumentor.instrument(http_port=0)
        scheduler = schedulers()
        scheduler.start()
        for job_id in ("a", "b"):
            scheduler.add_job(print, "interval", hours=1, id=job_id)
        url = f"http://127.0.0.1:{instrumentor._instrumentation._server.port}/metrics"
        wait_until(lambda: get(url)[1].count("apscheduler_job_shortest_interval_seconds{") == 2)
        first = get(url)[1]
        rendered.clear()
        scheduler.reschedule_job("b", trigger="interval", hours=2)
        second = get(url)[1]

        assert set(rendered) == {"b"}
        assert [line for line in first.splitlines() if 'job_id="a"' in line] == [
            line for line in second.splitlines() if 'job_id="a"' in line
        ]

    def test_port_of_a_process_without_instrumented_schedulers(
        self, instrumentor: Any, schedulers: Any
    ) -> None:
        """Without instrumented schedulers, the port shows the rest of the registry."""
        registry = CollectorRegistry()
        Gauge("mine", "stays", registry=registry)
        before = generate_latest(registry).decode()
        instrumentor.instrument(http_port=0, registry=registry)
        scheduler = schedulers()
        scheduler.start()
        url = f"http://127.0.0.1:{instrumentor._instrumentation._server.port}/metrics"
        assert "apscheduler_scheduler_up" in get(url)[1]
        handle = get_handle(scheduler)
        assert handle is not None
        handle.uninstrument()

        assert get(url)[1] == before
        assert get(f"{url}?name%5B%5D=mine")[1] == before
        assert generate_latest(registry).decode() == before

    def test_taken_port_is_logged_once(
        self, instrumentor: Any, schedulers: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A taken port is logged once, and nothing else changes."""
        instrumentor.instrument(http_port=0)
        schedulers().start()
        taken = instrumentor._instrumentation._server.port
        instrumentor._instrumentation._http_port = taken
        for _ in range(2):
            scheduler = schedulers()
            scheduler.start()
            assert scheduler.running

        messages = [r.getMessage() for r in caplog.records if "HTTP_PORT" in r.getMessage()]
        assert len(messages) == 1
        assert f"cannot serve metrics on 127.0.0.1:{taken}" in messages[0]
