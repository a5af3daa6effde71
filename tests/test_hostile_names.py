"""Hostile names of real jobs: whatever a job is called, the scrape succeeds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client import generate_latest

import support_jobs as jobs
import support_scenes as scenes
from support import Gate
from support_exposition import samples
from support_scenes import watched
from test_prometheus import TestHostileNames as OtherHostileNames

HOSTILE, check = OtherHostileNames.HOSTILE, OtherHostileNames.check


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:12]))
def test_ids_and_names(name: str) -> None:
    """A hostile id or name of a job is shown, legal and bounded, in both formats."""
    with watched(scenes.by_hand()) as seen:
        seen.scheduler.start()
        seen.scheduler.add_job(jobs.nothing, **scenes.due(name), name=name)
        seen.scheduler.turn()
        check(seen.registry)
        assert seen.own_errors() == {}
        runs = [
            sample
            for sample in samples(generate_latest(seen.registry).decode())
            if sample.name == "apscheduler_job_runs_total" and sample.value
        ]
        assert [sample.labels["outcome"] for sample in runs] == ["success"]


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
def test_callables(func: Callable[..., Any]) -> None:
    """Any callable that APScheduler takes can be shown."""
    with watched(scenes.by_hand()) as seen:
        seen.scheduler.start()
        name = {} if hasattr(func, "__name__") else {"name": "nameless"}
        seen.scheduler.add_job(func, **scenes.due(), **name)
        seen.scheduler.turn()
        check(seen.registry)
        assert seen.own_errors() == {}


def test_alias_that_is_no_text() -> None:
    """An alias that is a number, which APScheduler allows, is shown like any other."""
    with watched(scenes.by_hand(executors={7: DebugExecutor()})) as seen:
        seen.scheduler.start()
        check(seen.registry)
        assert seen.value("executor_workers", executor="7") == 1
        assert seen.own_errors() == {}
