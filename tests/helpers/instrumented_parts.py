"""The objects that telemetry patches, their attributes, and schedulers to test this with."""

from __future__ import annotations

import pytest

try:
    import sqlalchemy
    from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
except ImportError:
    sqlalchemy = None  # type: ignore[assignment]

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers import watching
from tests.helpers.metrics import registry_of
from tests.helpers.schedulers import forkserver_pool
from tests.helpers.waiting import wait_until

Snapshot = dict[str, dict[str, Any]]


def parts(scheduler: Any) -> dict[str, Any]:
    """Return the objects that telemetry may patch, and their pools."""
    found = {"scheduler": scheduler}
    for alias, executor in scheduler._executors.items():
        found[f"executor {alias}"] = executor
        if hasattr(executor, "_pool"):
            found[f"pool {alias}"] = executor._pool
    for alias, store in scheduler._jobstores.items():
        found[f"store {alias}"] = store
    return found


def snapshot(scheduler: Any) -> Snapshot:
    """Return all attributes of a scheduler and its parts; containers as copies."""

    def copy(value: Any) -> Any:
        return value.copy() if isinstance(value, (list, dict, set)) else value

    return {
        part: {name: copy(value) for name, value in vars(thing).items()}
        for part, thing in parts(scheduler).items()
    }


def assert_same(actual: Snapshot, expected: Snapshot) -> None:
    """Check that two snapshots have the same attributes with identical objects."""
    assert actual.keys() == expected.keys()
    for part, attributes in expected.items():
        assert actual[part].keys() == attributes.keys(), part
        for name, value in attributes.items():
            if isinstance(value, (list, dict, set)):
                assert actual[part][name] == value, (part, name)
            else:
                assert actual[part][name] is value, (part, name)


def ours(scheduler: Any) -> list[tuple[str, str]]:
    """Return the attributes of a scheduler and its parts that telemetry has set."""

    def is_missing_or_has_trusted_owner(value: Any) -> bool:
        function = getattr(value, "__func__", value)
        modules = type(value).__module__, getattr(function, "__module__", None)
        return any(str(module).startswith("apscheduler_telemetry") for module in modules)

    return [
        (part, name)
        for part, thing in parts(scheduler).items()
        for name, value in vars(thing).items()
        if is_missing_or_has_trusted_owner(value)
    ]


def stores(directory: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"default": MemoryJobStore()}
    if sqlalchemy is not None:
        url = f"sqlite:///{directory / 'jobs.sqlite'}"
        # APScheduler looks for due jobs once more after its shutdown, and would leave a connection.
        options = {"poolclass": sqlalchemy.pool.NullPool}
        found["sql"] = SQLAlchemyJobStore(url, engine_options=options)
    return found


def executors() -> dict[str, Any]:
    return {
        "default": DebugExecutor(),
        "threads": ThreadPoolExecutor(2),
        "processes": forkserver_pool(),
    }


@contextmanager
def started(scheduler: Any) -> Iterator[Any]:
    """Start a scheduler, also one whose `start` blocks, and shut it down at the end."""
    thread = threading.Thread(target=scheduler.start)
    thread.start()
    wait_until(lambda: scheduler.running)
    yield scheduler
    if scheduler.running:
        scheduler.shutdown()
    thread.join()


def runs_of(registry: CollectorRegistry) -> dict[str, float]:
    """Return successful runs of the job ``job`` by scheduler."""
    return {
        sample.labels["scheduler"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == "apscheduler_job_runs_total"
        and sample.labels["outcome"] == "success"
        and sample.labels["job_id"] == "job"
    }


def info_of(seen: Any) -> dict[str, str]:
    (labels,) = [
        sample.labels
        for family in seen.registry.collect()
        for sample in family.samples
        if sample.name == "apscheduler_scheduler_info"
    ]
    return dict(labels)


def ours_of(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "apscheduler_telemetry"]


@contextmanager
def watched_only(scheduler: Any) -> Iterator[watching.Watched]:
    """Instrument a scheduler, and leave it running at the end."""
    telemetry = instrument(scheduler, registry=CollectorRegistry())
    yield watching.Watched(scheduler, telemetry, registry_of(telemetry))
    telemetry.uninstrument()


def wrap(function: Any) -> Any:
    """Wrap a function, as other libraries do, and count its calls."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        wrapper.calls += 1  # type: ignore[attr-defined]
        return function(*args, **kwargs)

    wrapper.calls = 0  # type: ignore[attr-defined]
    wrapper.__module__ = "another.tool"
    return wrapper
