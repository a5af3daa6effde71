"""The pages of a process whose schedulers were instrumented on one registry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Telemetry, instrument
from apscheduler_telemetry.core.model import Liveness
from tests.helpers import jobs
from tests.helpers.html_pages import read_html
from tests.helpers.http_clients import Reply, ask_wsgi
from tests.helpers.schedulers import HandDriven
from tests.helpers.waiting import wait_until


class Process:
    """
    Two schedulers on one registry, and one on another, each with a job that has run.

    Attributes:
        schedulers: the schedulers by name.
        handles: their handles.
    """

    def __init__(self) -> None:
        shared = CollectorRegistry()
        registries = {"one": shared, "two": shared, "elsewhere": CollectorRegistry()}
        self.schedulers = {name: HandDriven() for name in registries}
        self.handles: dict[str, Telemetry] = {}
        for name, scheduler in self.schedulers.items():
            telemetry = instrument(scheduler, name=name, registry=registries[name])
            self.handles[name] = telemetry
            scheduler.add_job(jobs.nothing, id=f"job of {name}", misfire_grace_time=None)
            scheduler.start()
            scheduler.turn()
            wait_until(telemetry.runs, "the job to run")

    def ask(self, path: str, handle: str = "one") -> Reply:
        return ask_wsgi(self.handles[handle].wsgi_app, path)

    def end(self) -> None:
        for name, scheduler in self.schedulers.items():
            self.handles[name].uninstrument()
            if scheduler.running:
                scheduler.shutdown()


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.end()


def names_of(health: Any) -> list[str]:
    return [scheduler["name"] for scheduler in health["schedulers"]]


def test_every_path_shows_all_schedulers_of_the_registry(process: Process) -> None:
    """One of the handles serves both schedulers, with its own first."""
    assert names_of(process.ask("/health").json) == ["one", "two"]
    assert names_of(process.ask("/health", "two").json) == ["two", "one"]
    listed = [run["job_id"] for run in process.ask("/runs").json["runs"]]
    assert listed == ["job of two", "job of one"]


def test_status_page_shows_all_schedulers(process: Process) -> None:
    """The status page has a section for each scheduler."""
    pytest.importorskip("jinja2")
    page = read_html(process.ask("/").text)
    assert [heading.text for heading in page.all("h2")][:2] == [
        "Scheduler one ● Up",
        "Scheduler two ● Up",
    ]


def test_dead_scheduler_makes_the_process_unhealthy(process: Process) -> None:
    """/health and /livez are 503 if any of the schedulers is dead, and name it."""
    assert (process.ask("/health").status, process.ask("/livez").status) == (200, 200)
    process.schedulers["two"].shutdown()
    health = process.ask("/health")
    assert (health.status, process.ask("/livez").status) == (503, 503)
    [reason] = health.json["reasons"]
    assert (reason["scheduler"], reason["code"]) == ("two", "stopped")


def test_uninstrumented_scheduler_is_no_longer_shown(process: Process) -> None:
    """A scheduler that is alone again has the report of a single one."""
    process.handles["two"].uninstrument()
    health = process.ask("/health")
    assert (health.status, health.json["scheduler"]["name"]) == (200, "one")
    assert [run["job_id"] for run in process.ask("/runs").json["runs"]] == ["job of one"]


def test_copy_of_the_parent_process_is_not_shown(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forked child is not unhealthy because of a scheduler that runs in its parent."""
    forked = Liveness(up=False, scheduler_state="running", reasons=(("forked", "by the test"),))
    other = process.handles["two"]._exported_scheduler
    monkeypatch.setattr(other, "liveness", lambda: forked)
    health = process.ask("/health")
    assert (health.status, health.json["scheduler"]["name"]) == (200, "one")
