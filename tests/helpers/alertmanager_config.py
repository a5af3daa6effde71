"""The shipped Alertmanager configuration, changed for tests, and alerts to post."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.servers import required_program

ALERTS = ROOT / "alerts"
RULES = ALERTS / "apscheduler.rules.yml"
RUNBOOK = "https://github.com/apscheduler-telemetry/apscheduler-telemetry/blob/main/docs/runbook.md"
SECRETS = "/etc/alertmanager/secrets"

JOBS = {
    "APSchedulerMissedRun": "critical",
    "APSchedulerRunFailed": "warning",
    "APSchedulerJobFailing": "critical",
    "APSchedulerRunsLost": "critical",
    "APSchedulerRunInterrupted": "critical",
    "APSchedulerDeadlineMissed": "critical",
    "APSchedulerRunsMissed": "warning",
    "APSchedulerRunsSkipped": "warning",
    "APSchedulerRunsCoalesced": "info",
    "APSchedulerJobOverrunning": "warning",
    "APSchedulerJobStuck": "critical",
    "APSchedulerJobSlow": "warning",
    "APSchedulerRunTooShort": "warning",
    "APSchedulerRunDidNothing": "warning",
    "APSchedulerJobStarved": "warning",
    "APSchedulerJobDisappeared": "critical",
    "APSchedulerStartDelayHigh": "warning",
}
"""Alerts on single jobs, whose severity and owner are the application's if it gave any."""

SCHEDULERS = {
    "APSchedulerSchedulerDown": "critical",
    "APSchedulerLoopDead": "critical",
    "APSchedulerDuplicateSchedulers": "critical",
    "APSchedulerExecutorBlocked": "critical",
    "APSchedulerExecutorSaturated": "warning",
    "APSchedulerJobStoreErrors": "warning",
    "APSchedulerSchedulerErrors": "warning",
    "APSchedulerSchedulerPaused": "warning",
    "APSchedulerCrashLoop": "critical",
    "APSchedulerTelemetryErrors": "warning",
    "APSchedulerSeriesOverflow": "info",
}

WATCHDOG = {"APSchedulerWatchdog": "none"}

HEARD = {
    "critical": {"pagerduty", "slack #alerts-critical"},
    "warning": {"slack #alerts"},
    "info": {"email team@example.org"},
}
"""Where an alert of a severity is to be heard."""

HASTE = 1000
"""What durations are divided by: a group waits for 30 ms and a Watchdog repeats after 300 ms,
while nothing else repeats within a test."""

_numbers = itertools.count()


def shipped() -> dict[str, Any]:
    """Return the shipped configuration, with paths of this checkout."""
    config: dict[str, Any] = yaml.safe_load((ALERTS / "alertmanager.yml").read_text("utf-8"))
    config["templates"] = [str(ALERTS / pattern) for pattern in config["templates"]]
    return config


def routes(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the top route and those below it."""
    top: dict[str, Any] = config["route"]
    return [top, *top["routes"]]


def seconds(duration: str) -> float:
    """Return a duration of one unit in seconds."""
    found = re.fullmatch(r"(\d+)([smhd])", duration)
    assert found is not None, duration
    return int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def hasten(config: Mapping[str, Any], factor: int = HASTE) -> None:
    """Divide the durations of all routes."""
    for route in routes(config):
        for key in {"group_wait", "group_interval", "repeat_interval"} & set(route):
            route[key] = f"{seconds(route[key]) * 1000 / factor:.0f}ms"


def destinations(config: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the address of each receiver."""
    return {
        receiver["name"]: {
            " ".join(
                filter(None, (kind.removesuffix("_configs"), one.get("channel", one.get("to"))))
            )
            for kind, several in receiver.items()
            if kind != "name"
            for one in several
        }
        for receiver in config["receivers"]
    }


def amtool(*arguments: str) -> str:
    """Run amtool in the directory of the configuration, and return what it printed."""
    done = subprocess.run(
        [required_program("amtool"), *arguments],
        cwd=ALERTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def heard(**labels: str) -> set[str]:
    """Return the receivers that `amtool config routes test` reports for these labels."""
    printed = amtool(
        *("config", "routes", "test", "--config.file=alertmanager.yml"),
        *(f"{name}={value}" for name, value in labels.items()),
    )
    places = destinations(shipped())
    return set().union(*(places[name] for name in printed.strip().split(",")))


def alert(
    name: str, annotations: Mapping[str, str] | None = None, /, **labels: str
) -> dict[str, Any]:
    """Return a firing alert as Prometheus posts it; its severity is the default one."""
    severity = {**JOBS, **SCHEDULERS, **WATCHDOG}[name]
    return {
        "labels": {"alertname": name, "severity": severity, **labels},
        "annotations": dict(annotations or {}),
    }


def resolved(firing: Mapping[str, Any]) -> dict[str, Any]:
    """Return an alert that has ended."""
    now = datetime.now(timezone.utc)
    return {
        **firing,
        "startsAt": (now - timedelta(minutes=10)).isoformat(),
        "endsAt": (now - timedelta(seconds=1)).isoformat(),
    }


def fresh(word: str) -> str:
    """Return the name of an application that no other test uses, which gives a new group."""
    return f"{word}-{next(_numbers):03}"  # so that none is the beginning of another
