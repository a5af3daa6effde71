"""
The alerts on jobs that an Alertmanager has.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NamedTuple

from apscheduler_telemetry.cli.client import complete_url, fetch_json
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.core.model import Clock

ALERTMANAGER_TOKEN_OPTION = "--alertmanager-token-file"  # noqa: S105  # the name of an option
ALERTS_PATH = "api/v2/alerts"
KEEP_RESOLVED_SECONDS = 900.0
"""Seconds for which an alert is still shown after it has resolved."""

_ALERT_FILTERS = (
    ("filter", 'alertname=~"APScheduler.+"'),
    ("filter", 'alertname!="APSchedulerWatchdog"'),  # which always fires
)


class Alert(NamedTuple):
    """
    An alert of this package's rules.

    Attributes:
        name: the name of its rule.
        severity: its label.
        application: its label ``job``.
        scheduler: its scheduler; empty if it is about an application.
        job_id: its job; empty if it is about a scheduler or an application.
        state: ``firing``, ``silenced``, ``inhibited`` or ``resolved``.
        since: when it began to fire or, if it has resolved, when that was seen; in Unix seconds.
    """

    name: str
    severity: str
    application: str
    scheduler: str
    job_id: str
    state: str
    since: float


class AlertWatcher:
    """
    Reads the alerts of an Alertmanager, and remembers those that have resolved since.

    Alertmanager itself lists no resolved alerts.

    Args:
        url: the address of Alertmanager.
        clock: returns Unix seconds.
        token: what it requires; None for nothing.

    Raises:
        CommandError: `url` is no address.
    """

    def __init__(self, url: str, clock: Clock = time.time, *, token: str | None = None) -> None:
        self._url = complete_url(url, ALERTS_PATH, ALERTMANAGER_TOKEN_OPTION)
        self._token = token
        self._clock = clock
        self._alerts: dict[str, Alert] = {}

    def read(self) -> list[Alert]:
        """
        Return the alerts, those that have resolved last, and of each kind the latest first.

        Raises:
            CommandError: Alertmanager does not answer.
        """
        advice = "Pass the address of Alertmanager"
        answer = fetch_json(
            self._url,
            self._token,
            _ALERT_FILTERS,
            advice=advice,
            token_option=ALERTMANAGER_TOKEN_OPTION,
        )
        try:
            current = {each["fingerprint"]: _parse_alert(each) for each in answer}
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            msg = f"{self._url} does not list alerts. {advice}."
            raise CommandError(msg) from error
        now = self._clock()
        for key, alert in self._alerts.items():
            if key not in current:
                is_new = alert.state != "resolved"
                resolved = alert._replace(state="resolved", since=now) if is_new else alert
                if now - resolved.since < KEEP_RESOLVED_SECONDS:
                    current[key] = resolved
        self._alerts = current
        return sorted(current.values(), key=lambda each: (each.state == "resolved", -each.since))


def _parse_alert(alert: Mapping[str, Any]) -> Alert:
    labels, status = alert["labels"], alert["status"]
    if status["silencedBy"]:
        state = "silenced"
    else:
        state = "inhibited" if status["inhibitedBy"] else "firing"
    return Alert(
        name=labels["alertname"],
        severity=labels.get("severity", ""),
        application=labels.get("job", ""),
        scheduler=labels.get("scheduler", ""),
        job_id=labels.get("job_id", ""),
        state=state,
        since=datetime.fromisoformat(alert["startsAt"].replace("Z", "+00:00")).timestamp(),
    )
