"""
Checks of Alertmanager, for ``doctor --alertmanager``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from http import HTTPStatus
from typing import Any, NamedTuple

from apscheduler_telemetry.cli.alert_routes import (
    Labels,
    find_destinations,
    find_integrations,
    is_inhibited,
    is_silenced,
)
from apscheduler_telemetry.cli.chain_checks import (
    OK,
    ChainServer,
    CheckResult,
    abbreviate,
    check_clock,
    parse_time,
)
from apscheduler_telemetry.cli.rule_files import WATCHDOG_ALERT, alerts_by_severity
from apscheduler_telemetry.cli.yaml_library import import_yaml
from apscheduler_telemetry.core.findings import INFO, SERIOUS

TEST_ALERT_NAME = "APSchedulerTestAlert"

_STATUS_PATH, _ALERTS_PATH, _SILENCES_PATH = "api/v2/status", "api/v2/alerts", "api/v2/silences"
_MAX_WATCHDOG_AGE = timedelta(minutes=10)
"""Prometheus sends an alert that fires every minute or two."""
_TEST_ALERT_DURATION = timedelta(minutes=10)
"""Longer than the digest of alertmanager.yml waits before it sends an alert."""
_MAX_ARRIVAL_SECONDS = 10.0
_POLL_INTERVAL_SECONDS = 0.2
_LABELS_SET_BY_RULES = frozenset({"alertgroup", "alertname", "severity"})
"""What a rule sets, or vmalert; Prometheus adds the other labels of the Watchdog to all alerts."""


class AlertmanagerState(NamedTuple):
    """
    What an Alertmanager answers.

    Attributes:
        config: its configuration, without secrets.
        alerts: the alerts that fire.
        silences: the silences in force.
    """

    config: Mapping[str, Any]
    alerts: Sequence[Mapping[str, Any]]
    silences: Sequence[Mapping[str, Any]]

    @property
    def external_labels(self) -> dict[str, str]:
        """The labels that Prometheus adds to each alert, as the Watchdog has them."""
        for alert in self.alerts:
            if alert["labels"].get("alertname") == WATCHDOG_ALERT:
                return {
                    name: value
                    for name, value in alert["labels"].items()
                    if name not in _LABELS_SET_BY_RULES
                }
        return {}


def check_alertmanager(
    server: ChainServer, schedulers: Iterable[Labels], test_severity: str | None
) -> Iterator[CheckResult]:
    """
    Yield checks of an Alertmanager.

    Args:
        server: the Alertmanager.
        schedulers: labels that alerts have on known schedulers; empty if none is known.
        test_severity: that of the alert to send as a test; None to send none.

    Raises:
        CommandError: it does not answer.
    """
    status_answer = server.fetch(_STATUS_PATH)
    status = server.read_json(status_answer)
    alertmanager = AlertmanagerState(
        import_yaml().safe_load(status["config"]["original"]),
        server.read_json(server.fetch(_ALERTS_PATH)),
        [
            silence
            for silence in server.read_json(server.fetch(_SILENCES_PATH))
            if silence["status"]["state"] == "active"
        ],
    )
    version = status.get("versionInfo", {}).get("version", "of an unknown version")
    yield CheckResult("alertmanager-api", OK, f"Alertmanager {version}")
    yield from check_clock(status_answer, server)
    yield from _check_watchdog_arrival(alertmanager)
    known = [{**alertmanager.external_labels, **labels} for labels in schedulers]
    known = known or [alertmanager.external_labels]
    alerts = {
        severity: [
            {**labels, "alertname": name, "severity": severity}
            for labels in known
            for name in names
        ]
        for severity, names in alerts_by_severity().items()
    }
    for severity, labels_of_alerts in alerts.items():
        yield _check_receivers(alertmanager.config, severity, labels_of_alerts)
    yield _check_muted_alerts(alertmanager, alerts)
    if test_severity is not None:
        yield from _send_test_alert(server, alertmanager, test_severity)


def _check_watchdog_arrival(alertmanager: AlertmanagerState) -> Iterator[CheckResult]:
    watchdogs = [
        alert for alert in alertmanager.alerts if alert["labels"].get("alertname") == WATCHDOG_ALERT
    ]
    if not watchdogs:
        yield CheckResult(
            "watchdog-arrival",
            SERIOUS,
            f"Alertmanager has no alert {WATCHDOG_ALERT}, which always fires, so no alert "
            "arrives here",
            "Name this Alertmanager under alerting: in prometheus.yml, and see whether the rules "
            "are loaded there. If Prometheus has just started, wait for a minute.",
        )
        return
    sent = max(parse_time(alert["updatedAt"]) for alert in watchdogs)
    age = datetime.now(timezone.utc) - sent
    if age > _MAX_WATCHDOG_AGE:
        yield CheckResult(
            "watchdog-arrival",
            SERIOUS,
            f"{WATCHDOG_ALERT} was sent the last time {age.total_seconds() / 60:.0f} minutes ago",
            "See whether Prometheus runs, and whether it can reach this Alertmanager.",
        )
    else:
        ago = max(age.total_seconds(), 0)
        yield CheckResult("watchdog-arrival", OK, f"{WATCHDOG_ALERT} was sent {ago:.0f} s ago")
    labels = {**alertmanager.external_labels, "alertname": WATCHDOG_ALERT, "severity": "none"}
    yield _check_watchdog_receiver(alertmanager, labels, watchdogs)


def _check_watchdog_receiver(
    alertmanager: AlertmanagerState, labels: Labels, watchdogs: Sequence[Mapping[str, Any]]
) -> CheckResult:
    code = "watchdog-receiver"
    advice = "Route it to an external service that notices when it stops: see docs/heartbeat.md."
    destinations = find_destinations(alertmanager.config["route"], labels)
    integrations = find_integrations(alertmanager.config)
    names = abbreviate(list(dict.fromkeys(each.receiver for each in destinations)))
    if not any(integrations.get(each.receiver) for each in destinations):
        message = f"{WATCHDOG_ALERT} goes to {names}, which sends it nowhere"
        return CheckResult(
            code, SERIOUS, f"{message}, so no one learns that Prometheus is down", advice
        )
    if any(each["status"]["state"] == "suppressed" for each in watchdogs):
        message = f"A silence or an inhibition rule mutes {WATCHDOG_ALERT}"
        return CheckResult(code, SERIOUS, message, "Exclude this alert from it.")
    if all(each.is_default for each in destinations):
        message = f"No route is for {WATCHDOG_ALERT}, so it goes to {names}, the default receiver"
        return CheckResult(code, INFO, message, advice)
    return CheckResult(code, OK, f"{WATCHDOG_ALERT} goes to {names}")


def _check_receivers(
    config: Mapping[str, Any], severity: str, alerts: Sequence[Labels]
) -> CheckResult:
    """Check that all alerts of a severity reach a receiver with an integration."""
    code = f"receiver-{severity}"
    integrations = find_integrations(config)
    receivers: dict[str, bool] = {}
    lost: dict[str, str] = {}
    for labels in alerts:
        destinations = find_destinations(config["route"], labels)
        if any(integrations.get(each.receiver) for each in destinations):
            receivers.update((each.receiver, each.is_default) for each in destinations)
        else:
            lost[labels["alertname"]] = destinations[0].receiver
    if lost:
        names = {labels["alertname"] for labels in alerts}
        which = "Alerts" if lost.keys() == names else abbreviate(sorted(lost))
        return CheckResult(
            code,
            SERIOUS,
            f"{which} of severity {severity} go only to the receiver "
            f"{abbreviate(sorted(set(lost.values())))}, which has no integration and sends nothing",
            f'Add a route with the matcher severity="{severity}" to a receiver that sends e-mails '
            "or chat messages, as in alerts/alertmanager.yml.",
        )
    texts = [
        f"{name} ({', '.join(integrations[name])}{'; the default' if is_default else ''})"
        for name, is_default in receivers.items()
    ]
    return CheckResult(code, OK, f"alerts of severity {severity} go to {abbreviate(texts)}")


def _check_muted_alerts(
    alertmanager: AlertmanagerState, alerts: Mapping[str, Sequence[Labels]]
) -> CheckResult:
    """Check that no silence, and no alert that fires, mutes our alerts now."""
    muted: dict[str, str] = {}
    is_severity_muted = False
    for labels_of_alerts in alerts.values():
        reasons = [(labels, _describe_mute(alertmanager, labels)) for labels in labels_of_alerts]
        muted.update((labels["alertname"], reason) for labels, reason in reasons if reason)
        is_severity_muted |= all(reason for _, reason in reasons)
    if not muted:
        return CheckResult("mutes", OK, "no silence and no inhibition rule mutes these alerts now")
    return CheckResult(
        "mutes",
        SERIOUS if is_severity_muted else INFO,
        f"{'; '.join(dict.fromkeys(muted.values()))}. This mutes {abbreviate(sorted(muted))}",
        "End the silence, or change the inhibition rule, unless this is on purpose.",
    )


def _describe_mute(alertmanager: AlertmanagerState, labels: Labels) -> str | None:
    """Return what mutes an alert, as a text."""
    for silence in alertmanager.silences:
        if is_silenced(silence, labels):
            return (
                f"The silence {silence['id']} of {silence['createdBy']} is in force until "
                f"{silence['endsAt']}"
            )
    for rule in alertmanager.config.get("inhibit_rules") or ():
        for alert in alertmanager.alerts:
            if is_inhibited(rule, alert["labels"], labels):
                name = alert["labels"].get("alertname", "without a name")
                return f"The alert {name} inhibits others"
    return None


def _send_test_alert(
    server: ChainServer, alertmanager: AlertmanagerState, severity: str
) -> Iterator[CheckResult]:
    """Send an alert, and wait until Alertmanager lists it."""
    labels = {**alertmanager.external_labels, "alertname": TEST_ALERT_NAME, "severity": severity}
    now = datetime.now(timezone.utc)
    alert = {
        "labels": labels,
        "annotations": {
            "summary": "This is a test. Nothing is wrong.",
            "description": "The command apscheduler-telemetry doctor --send-test-alert has sent "
            "this alert, to see whether alerts arrive here. Nothing needs to be done. The alert "
            "ends by itself.",
        },
        "startsAt": now.isoformat(),
        "endsAt": (now + _TEST_ALERT_DURATION).isoformat(),
    }
    server.fetch(_ALERTS_PATH, json_to_post=[alert], statuses=(HTTPStatus.ACCEPTED,))
    deadline = time.monotonic() + _MAX_ARRIVAL_SECONDS
    while True:
        listed = server.read_json(
            server.fetch(_ALERTS_PATH, [("filter", f'alertname="{TEST_ALERT_NAME}"')])
        )
        found = next((each for each in listed if each["labels"] == labels), None)
        if found is not None and found["status"]["state"] != "unprocessed":
            yield _describe_test_alert(alertmanager, found)
            return
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_INTERVAL_SECONDS)
    yield CheckResult(
        "test-alert",
        SERIOUS,
        f"Alertmanager answered that it took {TEST_ALERT_NAME}, but has not processed it within "
        f"{_MAX_ARRIVAL_SECONDS:.0f} s",
        "See the log of Alertmanager.",
    )


def _describe_test_alert(alertmanager: AlertmanagerState, alert: Mapping[str, Any]) -> CheckResult:
    integrations = find_integrations(alertmanager.config)
    receivers = [each["name"] for each in alert["receivers"]]
    names = abbreviate(receivers)
    taken = f"Alertmanager took {TEST_ALERT_NAME}"
    if alert["status"]["state"] == "suppressed":
        message = f"{taken}, but a silence or an inhibition rule mutes it"
        return CheckResult("test-alert", SERIOUS, message, "Exclude it there, and send it again.")
    if not any(integrations.get(name) for name in receivers):
        message = f"{taken}, but {names} has no integration and sends nothing"
        return CheckResult("test-alert", SERIOUS, message, "Add an integration to this receiver.")
    return CheckResult(
        "test-alert",
        OK,
        f"{taken} for {names}. Only you can see whether the message arrives there: look "
        "within the next minutes (group_wait). The alert ends by itself in ten minutes",
    )
