"""Hostile names of real jobs: with any name, the scrape succeeds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
from apscheduler.executors.debug import DebugExecutor
from prometheus_client import generate_latest

from tests.export.test_exposition import TestHostileNames as OtherHostileNames
from tests.helpers import jobs, watching
from tests.helpers.exported_schedulers import samples
from tests.helpers.rigs import Gate
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.watching import watched

HOSTILE, check = OtherHostileNames.HOSTILE, OtherHostileNames.check


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name[:12]))
def test_hostile_ids_and_names_are_shown_legal_and_bounded(name: str) -> None:
    """Hostile ids and names are shown in a valid and bounded form, in both formats."""
    with watched(hand_driven_scheduler()) as seen:
        seen.scheduler.start()
        seen.scheduler.add_job(jobs.nothing, **watching.due(name), name=name)
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
        functools.partial(watching.succeed, 1),
        Gate().open,
        type("Nameless", (), {"__call__": lambda self: None})(),
        [].clear,
        dict,
    ],
    ids=["lambda", "partial", "bound method", "callable object", "builtin", "class"],
)
def test_any_callable_can_be_shown(func: Callable[..., Any]) -> None:
    """Any callable that APScheduler accepts can be shown."""
    with watched(hand_driven_scheduler()) as seen:
        seen.scheduler.start()
        name = {} if hasattr(func, "__name__") else {"name": "nameless"}
        seen.scheduler.add_job(func, **watching.due(), **name)
        seen.scheduler.turn()
        check(seen.registry)
        assert seen.own_errors() == {}


def test_alias_that_is_a_number_is_shown() -> None:
    """An alias that is a number, as APScheduler allows, is shown."""
    with watched(hand_driven_scheduler(executors={7: DebugExecutor()})) as seen:
        seen.scheduler.start()
        check(seen.registry)
        assert seen.value("executor_workers", executor="7") == 1
        assert seen.own_errors() == {}
