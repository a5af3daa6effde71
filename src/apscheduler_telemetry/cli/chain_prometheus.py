"""
Checks of Prometheus, for ``doctor --prometheus``: that it scrapes, and that it sends alerts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from apscheduler_telemetry.cli.chain_application import ApplicationMetrics
from apscheduler_telemetry.cli.chain_checks import (
    OK,
    ChainServer,
    CheckResult,
    abbreviate,
    check_clock,
)
from apscheduler_telemetry.cli.errors import AnswerStatusError, CommandError
from apscheduler_telemetry.cli.metrics import NEXT_RUN_METRIC, SCHEDULER_INFO_METRIC
from apscheduler_telemetry.cli.rule_files import RULES_FILE, parse_duration, read_rules
from apscheduler_telemetry.core.findings import INFO, SERIOUS

_STATUSES_IF_UNSUPPORTED = frozenset(
    {
        HTTPStatus.BAD_REQUEST,  # VictoriaMetrics and vmalert
        HTTPStatus.NOT_FOUND,
        HTTPStatus.METHOD_NOT_ALLOWED,
        HTTPStatus.NOT_IMPLEMENTED,
    }
)
_METRICS_ALWAYS_PRESENT = frozenset(
    {
        SCHEDULER_INFO_METRIC,
        "apscheduler_scheduler_start_timestamp_seconds",
        "apscheduler_scheduler_state",
        "apscheduler_scheduler_up",
    }
)
_METRICS_SOMETIMES_PRESENT = frozenset(
    {
        "apscheduler_job_consecutive_failures",
        "apscheduler_job_running",
        "apscheduler_job_running_since_timestamp_seconds",
    }
)
"""Metrics that `/metrics` has only at times, so that the last scrape may not have seen them."""
_MAX_SCRAPE_INTERVAL_SECONDS = 60.0
"""Seconds: APSchedulerSchedulerDown fires if there was no scrape for 90."""
_HISTOGRAM_SAMPLE_NAME_PATTERN = re.compile(r".+_(?:bucket|count|sum)")
_ALERTS_PATH_PATTERN = re.compile(r"/api/v\d/alerts$")
_LOOPBACK_HOSTS = frozenset({"localhost", "::1"})

Labels = Mapping[str, str]


class PrometheusApi:
    """
    The API of Prometheus, of which other servers have only parts.

    Attributes:
        server: the server.
        is_prometheus: whether it says that it is Prometheus itself.
        description: what it is, with its version.
    """

    def __init__(self, server: ChainServer) -> None:
        self.server = server
        self.build_info_answer = server.fetch(
            "api/v1/status/buildinfo", statuses=tuple(_STATUSES_IF_UNSUPPORTED)
        )
        try:
            build = self.server.read_json(self.build_info_answer)["data"] or {}
        except (CommandError, LookupError, TypeError):
            build = {}
        name = build.get("application", "Prometheus")
        # VictoriaMetrics answers with the version of an old Prometheus, and no more.
        self.is_prometheus = "goVersion" in build and "application" not in build
        self.description = (
            f"{name} {build.get('version', '')}"
            if "goVersion" in build
            else "it is not Prometheus itself, but has parts of its API"
        )

    def get(self, page: str, **query: str) -> Any:
        """
        Return the data of a page of the API; None if this server does not have that page.

        Raises:
            CommandError: it does not answer, or with an error.
        """
        try:
            answer = self.server.fetch(f"api/v1/{page}", list(query.items()))
        except AnswerStatusError as error:
            if error.status in _STATUSES_IF_UNSUPPORTED:
                return None
            raise
        content = self.server.read_json(answer)
        return content["data"] if content["status"] == "success" else None

    def query(self, expression: str) -> list[tuple[Labels, float]] | None:
        """Return labels and values of an instant query; None if there are no queries."""
        data = self.get("query", query=expression)
        if data is None:
            return None
        return [(each["metric"], float(each["value"][1])) for each in data["result"]]


class ScrapeTarget(NamedTuple):
    """
    A target that is scraped.

    Attributes:
        url: its address.
        labels: those that its series have, among them `job` and `instance`.
        health: ``up``, ``down`` or ``unknown``.
        error: that of the last scrape; empty if there was none.
        interval: how often it is scraped, such as ``15s``; empty if the server does not say it.
    """

    url: str
    labels: Labels
    health: str
    error: str
    interval: str


def open_prometheus(server: ChainServer) -> tuple[PrometheusApi, list[CheckResult]]:
    """
    Return the API of a server, and what it is.

    Raises:
        CommandError: it does not answer, or has nothing of the API.
    """
    api = PrometheusApi(server)
    if all(
        api.get(page, **query) is None
        for page, query in (("query", {"query": "vector(1)"}), ("rules", {"type": "alert"}))
    ):
        msg = f"{server.url} has no API of Prometheus. {server.advice}."
        raise CommandError(msg)
    return api, [
        CheckResult("prometheus-api", OK, api.description),
        *check_clock(api.build_info_answer, server),
    ]


def find_schedulers(
    api: PrometheusApi, url: str | None, application: ApplicationMetrics | None
) -> list[Labels] | None:
    """
    Return the labels of the series of schedulers; None if the server cannot be queried.

    Args:
        api: of the server.
        url: the address of the application to look for; None for all applications.
        application: what its metrics show; None if they cannot be read.
    """
    found = api.query(SCHEDULER_INFO_METRIC)
    if found is None:
        return None
    shown = application.schedulers if application else frozenset()
    return [
        labels
        for labels, _ in found
        if url is None
        or labels.get("instance") == _host_and_port(url)
        or (labels.get("hostname", ""), labels.get("pid", ""), labels["scheduler"]) in shown
    ]


def check_scrape(
    api: PrometheusApi, url: str | None, schedulers: Sequence[Labels] | None
) -> Iterator[CheckResult]:
    """
    Check that an application is scraped, or all applications that have series.

    Args:
        api: of the server.
        url: the address of the application; None for all.
        schedulers: of `find_schedulers`.
    """
    data = api.get("targets", state="active")
    if data is None:
        yield CheckResult(
            "scrape",
            INFO,
            f"{api.server.url} lists no targets, so it is not checked how often it scrapes",
            "If another server scrapes, such as vmagent or VictoriaMetrics, check that as well.",
        )
        return
    targets = [_parse_target(each) for each in data["activeTargets"]]
    places = {_job_and_instance(labels) for labels in schedulers or ()}
    known = set(places)
    if url is None:  # those that cannot be scraped any more are missing in `schedulers`
        recent = api.query(f"last_over_time({SCHEDULER_INFO_METRIC}[10m])") or []
        known |= {_job_and_instance(labels) for labels, _ in recent}
    matching = [
        target
        for target in targets
        if _job_and_instance(target.labels) in known
        or (url is not None and _host_and_port(target.url) == _host_and_port(url))
    ]
    if matching:
        for target in matching:
            yield _check_scrape_target(target, url)
    elif places:
        job, instance = min(places)
        yield CheckResult(
            "scrape",
            INFO,
            f'There are series with job="{job}" and instance="{instance}", but from no target of '
            "this server, so it is not checked how often they arrive",
            "That is right if they come by OTLP, remote write or federation.",
        )
    elif url is None:
        yield CheckResult(
            "scrape",
            SERIOUS,
            f"{api.server.url} has no series of any scheduler within the last 10 minutes",
            "Add the address of the application to scrape_configs, and pass it as --url.",
        )
    else:
        address = _host_and_port(url)
        yield CheckResult(
            "scrape",
            SERIOUS,
            f"No target of {api.server.url} is {address}, and there are no series of this process",
            f"Add to scrape_configs: {{job_name: my-application, static_configs: [{{targets: "
            f"['{address}']}}]}}. If the process has just started, wait for the next scrape.",
        )


def check_series(
    api: PrometheusApi, application: ApplicationMetrics | None, schedulers: Sequence[Labels] | None
) -> Iterator[CheckResult]:
    """Check that Prometheus stores the series that the rules read."""
    if schedulers is None:
        yield CheckResult(
            "series",
            INFO,
            f"{api.server.url} answers no queries, so its series are not checked",
            "For vmalert, pass the address of VictoriaMetrics as well, in a second call.",
        )
        return
    read = {
        name
        for rule in read_rules(RULES_FILE)
        for name in re.findall(r"\bapscheduler_\w+(?![\w:])", rule.expression)
    }
    for job, instance in sorted({_job_and_instance(labels) for labels in schedulers}):
        selector = f"job={_quote_promql(job)},instance={_quote_promql(instance)}"
        found = api.query(f'count by (__name__) ({{__name__=~"apscheduler_.+",{selector}}})') or []
        names = {labels["__name__"] for labels, _ in found}
        shown = (
            application.sample_names - _METRICS_SOMETIMES_PRESENT if application else frozenset()
        )
        wanted = _METRICS_ALWAYS_PRESENT | shown
        missing = sorted(
            # Without classic histograms, there are native ones.
            name
            for name in (wanted & read) - names
            if not _HISTOGRAM_SAMPLE_NAME_PATTERN.fullmatch(name)
        )
        place = f'job="{job}" and instance="{instance}"'
        if missing:
            yield CheckResult(
                "series",
                SERIOUS,
                f"There are no series {abbreviate(missing)} with {place}, which the rules read",
                "See whether metric_relabel_configs or a limit of this scrape_config drops them.",
            )
        else:
            jobs = next(
                (value for labels, value in found if labels["__name__"] == NEXT_RUN_METRIC), 0
            )
            yield CheckResult("series", OK, f"next runs of {jobs:.0f} jobs with {place}")


def check_alertmanagers(api: PrometheusApi, alertmanager: str | None) -> Iterator[CheckResult]:
    """
    Check that Prometheus sends its alerts to an Alertmanager.

    Args:
        api: of the server.
        alertmanager: the address of the one that it should know; None for any.
    """
    data = api.get("alertmanagers")
    if data is None:
        yield CheckResult(
            "alertmanagers",
            INFO,
            f"{api.server.url} does not say to which Alertmanager it sends alerts",
            "Pass --alertmanager to see whether alerts arrive there.",
        )
        return
    addresses = [_host_and_port(each["url"]) for each in data["activeAlertmanagers"]]
    if not addresses:
        yield CheckResult(
            "alertmanagers",
            SERIOUS,
            f"{api.server.url} knows no Alertmanager, so no alert leaves it",
            "Add to prometheus.yml: alerting: {alertmanagers: [{static_configs: [{targets: "
            "['HOST:9093']}]}]}",
        )
        return
    prefixes = {
        _ALERTS_PATH_PATTERN.sub("", urlsplit(each["url"]).path)
        for each in data["activeAlertmanagers"]
        if alertmanager is not None and _host_and_port(each["url"]) == _host_and_port(alertmanager)
    }
    prefix = urlsplit(alertmanager or "").path.rstrip("/")
    if prefixes and prefix not in prefixes:
        yield CheckResult(
            "alertmanagers",
            INFO,
            f"Alerts are sent to {abbreviate(addresses)} with the path "
            f"{abbreviate(sorted(each or '/' for each in prefixes))}, but the address that is "
            f"given has {prefix or '/'}",
            f"Set path_prefix: {prefix or '/'} under alertmanagers: in prometheus.yml. "
            "If the check watchdog-arrival is ok, a proxy changes the path, and nothing is wrong.",
        )
    elif alertmanager is None or _host_and_port(alertmanager) in addresses:
        yield CheckResult("alertmanagers", OK, f"alerts are sent to {abbreviate(addresses)}")
    else:
        yield CheckResult(
            "alertmanagers",
            INFO,
            f"Alerts are sent to {abbreviate(addresses)}. {_host_and_port(alertmanager)} is not "
            "among these addresses, but may be another name of one",
            "If the check watchdog-arrival is ok, it is the same Alertmanager.",
        )


def _check_scrape_target(target: ScrapeTarget, url: str | None) -> CheckResult:
    job, instance = _job_and_instance(target.labels)
    place = f'job="{job}" and instance="{instance}"'
    if target.health == "down":
        return CheckResult(
            "scrape",
            SERIOUS,
            f"The last scrape of {target.url} ({place}) has failed: {target.error}",
            "See whether this address is right and can be reached from Prometheus, and whether it "
            "needs a token.",
        )
    if target.health != "up":
        return CheckResult(
            "scrape",
            INFO,
            f"{target.url} ({place}) was not scraped yet",
            "Wait for the next scrape, and call this command again.",
        )
    other = (
        " under another address"
        if url and _host_and_port(url) != _host_and_port(target.url)
        else ""
    )
    often = f", every {target.interval}" if target.interval else ""
    message = f"{target.url} is scraped{other}{often}, with {place}"
    if target.interval and parse_duration(target.interval) > _MAX_SCRAPE_INTERVAL_SECONDS:
        return CheckResult(
            "scrape",
            INFO,
            message[0].upper() + message[1:],
            "Scrape at least once a minute, or APSchedulerSchedulerDown fires between two scrapes.",
        )
    return CheckResult("scrape", OK, message)


def _parse_target(item: Mapping[str, Any]) -> ScrapeTarget:
    return ScrapeTarget(
        item["scrapeUrl"],
        item["labels"],
        item["health"],
        item.get("lastError", ""),
        # VictoriaMetrics only has it in the labels before relabeling.
        item.get("scrapeInterval") or item["discoveredLabels"].get("__scrape_interval__", ""),
    )


def _job_and_instance(labels: Labels) -> tuple[str, str]:
    return labels.get("job", ""), labels.get("instance", "")


def _host_and_port(url: str) -> str:
    """Return host and port of an address; all names of the loopback are the same."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return f"{'127.0.0.1' if host in _LOOPBACK_HOSTS else host}:{port}"


def _quote_promql(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
