"""The parameter `name[]` of the endpoint of metrics."""

from __future__ import annotations

import itertools
import string
import tracemalloc
from collections.abc import Iterator
from datetime import timezone

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from apscheduler_telemetry import Telemetry, instrument
from apscheduler_telemetry.http.messages import Request
from apscheduler_telemetry.http.pages import MetricsPage
from tests.helpers.clocks import freeze_time
from tests.helpers.collectors import RaisingCollector
from tests.helpers.http_clients import OPENMETRICS, ask_wsgi
from tests.helpers.schedulers import HandDriven
from tests.helpers.threads import calls_in_threads


class TestNameFilter:
    """``name[]`` with an instrumented scheduler, whose lines are cached."""

    FORMATS = (
        "",
        OPENMETRICS,
        "application/openmetrics-text; version=1.0.0; escaping=dots",
        "text/plain; version=1.0.0; escaping=allow-utf-8",
    )
    DURATION = "apscheduler_job_run_duration_seconds"
    JOBS = 40

    @pytest.fixture
    def telemetry(self, registry: CollectorRegistry) -> Iterator[Telemetry]:
        """Instrument two schedulers on one registry, one of them with jobs that have run."""
        with freeze_time() as clock:
            scheduler = HandDriven(executors={"default": DebugExecutor()}, timezone=timezone.utc)
            telemetry = instrument(scheduler, registry=registry)
            other = instrument(HandDriven(timezone=timezone.utc), name="other", registry=registry)
            scheduler.start()
            for number in range(self.JOBS):
                label = f"{number}\n{self.DURATION}_sum{{" if number % 2 else str(number)
                scheduler.add_job(bool, "interval", seconds=number + 1, id=label)
            clock.advance(100)
            scheduler.turn()
            yield telemetry
            scheduler.shutdown()
            telemetry.uninstrument()
            other.uninstrument()

    @pytest.mark.parametrize("accept", FORMATS)
    @pytest.mark.parametrize(
        "names",
        [
            ["apscheduler_scheduler_up"],
            ["apscheduler_job_runs_total", "jobs"],
            ["apscheduler_job_runs", "apscheduler_scheduler_info", "nothing"],
            [f"{DURATION}_bucket"],
            [f"{DURATION}_count"],
            [f"{DURATION}_sum"],
            [f"{DURATION}_bucket", f"{DURATION}_sum"],
            [f"{DURATION}_sum", f"{DURATION}_bucket", f"{DURATION}_count"],
            [DURATION],
            ["jobs"],
            ["nothing"],
            ["apscheduler_telemetry_place"],
        ],
        ids=" ".join,
    )
    def test_same_samples_as_the_library(
        self, telemetry: Telemetry, registry: CollectorRegistry, accept: str, names: list[str]
    ) -> None:
        """The response has the families of prometheus_client's restricted registry."""
        query = "&".join(f"name[]={name}" for name in names)
        encode, _ = choose_encoder(accept)
        expected = encode(registry.restricted_registry(names)).decode()

        for _ in range(2):  # the second response comes from cached lines
            body = ask_wsgi(
                telemetry.wsgi_app, "/metrics", query=query, headers={"Accept": accept}
            ).text
            families = body.removesuffix("# EOF\n").split("# HELP ")
            assert sorted(families) == sorted(expected.removesuffix("# EOF\n").split("# HELP "))
            assert body.endswith("# EOF\n") == expected.endswith("# EOF\n")

    @pytest.mark.parametrize("name", ["apscheduler_scheduler_up", f"{DURATION}_bucket"])
    def test_filtered_response_uses_cached_lines(self, telemetry: Telemetry, name: str) -> None:
        """Cached lines are reused: a filter costs at most two Python calls per job."""
        ask_wsgi(telemetry.wsgi_app, "/metrics")

        whole = calls_in_threads(lambda: ask_wsgi(telemetry.wsgi_app, "/metrics"))
        filtered = calls_in_threads(
            lambda: ask_wsgi(telemetry.wsgi_app, "/metrics", query=f"name[]={name}")
        )

        assert 0 < filtered < whole + 2 * self.JOBS

    def test_empty_name_is_none(self, telemetry: Telemetry) -> None:
        """``name[]=`` names nothing, and so the whole page is sent, from the same cache."""
        pages = {ask_wsgi(telemetry.wsgi_app, "/metrics", query=q).text for q in ("", "name[]=")}
        assert len(pages) == 1
        (page,) = pages
        assert "\napscheduler_scheduler_up{" in page

    def test_many_names_take_little_memory_while_a_request_waits(
        self, registry: CollectorRegistry
    ) -> None:
        """What is kept of a request is at most four times as large as what was sent."""
        names = itertools.product(string.ascii_letters, repeat=3)
        query = "&".join(f"name[]={''.join(name)}" for name in itertools.islice(names, 3000))
        request = Request(
            method="GET", root_path="", path="/metrics", query=query, accept="", accept_encoding=""
        )
        page = MetricsPage(registry)
        page.choose_variant(request)  # fills caches of the standard library
        tracemalloc.start()
        try:
            variant = page.choose_variant(request)
            assert tracemalloc.get_traced_memory()[0] < 4 * len(query)
        finally:
            tracemalloc.stop()
        assert len(variant.sample_names) > 3000

    def test_other_collectors_are_not_called(
        self, telemetry: Telemetry, registry: CollectorRegistry
    ) -> None:
        """Collectors without a requested name are not called."""
        registry.register(RaisingCollector(ValueError("boom"), names=["broken"]))

        query = "name[]=apscheduler_scheduler_up"
        assert ask_wsgi(telemetry.wsgi_app, "/metrics", query=query).status == 200
        assert ask_wsgi(telemetry.wsgi_app, "/metrics").status == 500
