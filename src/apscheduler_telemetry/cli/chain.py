"""
Checks the chain from the metrics of an application to the receivers of its alerts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from apscheduler_telemetry.cli.chain_alertmanager import check_alertmanager
from apscheduler_telemetry.cli.chain_application import (
    ApplicationMetrics,
    check_health,
    read_application_metrics,
)
from apscheduler_telemetry.cli.chain_checks import (
    ChainServer,
    CheckResult,
    yield_checks_until_failure,
)
from apscheduler_telemetry.cli.chain_prometheus import (
    check_alertmanagers,
    check_scrape,
    check_series,
    find_schedulers,
    open_prometheus,
)
from apscheduler_telemetry.cli.chain_rules import check_rules

Labels = Mapping[str, str]


class MonitoringChain:
    """
    The servers of a chain, those that are given.

    What is found out about one is used to check the next.
    """

    def __init__(
        self,
        application: ChainServer | None,
        prometheus: ChainServer | None,
        alertmanager: ChainServer | None,
        test_severity: str | None,
    ) -> None:
        self._application = application
        self._prometheus = prometheus
        self._alertmanager = alertmanager
        self._test_severity = test_severity
        self._application_metrics: ApplicationMetrics | None = None
        self._schedulers: list[Labels] | None = None

    def check(self) -> Iterator[tuple[ChainServer, CheckResult]]:
        """Yield checks, with the server that each is about."""
        for server, code, checks in (
            (self._application, "metrics", self._check_application_metrics),
            (self._application, "health", self._check_application_health),
            (self._prometheus, "prometheus-api", self._check_prometheus),
            (self._alertmanager, "alertmanager-api", self._check_alertmanager),
        ):
            if server is not None:
                for check in yield_checks_until_failure(code, server, checks(server)):
                    yield server, check

    def _check_application_metrics(self, server: ChainServer) -> Iterator[CheckResult]:
        self._application_metrics, checks = read_application_metrics(server)
        yield from checks

    def _check_application_health(self, server: ChainServer) -> Iterator[CheckResult]:
        if self._application_metrics is not None:
            yield from check_health(server)

    def _check_prometheus(self, server: ChainServer) -> Iterator[CheckResult]:
        api, checks = open_prometheus(server)
        yield from checks
        url = self._application.url if self._application else None
        self._schedulers = find_schedulers(api, url, self._application_metrics)
        other = self._alertmanager.url if self._alertmanager else None
        # Each on its own, as other servers than Prometheus may answer only some of them.
        for code, of_link in (
            ("scrape", check_scrape(api, url, self._schedulers)),
            ("series", check_series(api, self._application_metrics, self._schedulers)),
            ("rules", check_rules(api)),
            ("alertmanagers", check_alertmanagers(api, other)),
        ):
            yield from yield_checks_until_failure(code, server, of_link)

    def _check_alertmanager(self, server: ChainServer) -> Iterator[CheckResult]:
        labels = {
            (labels["job"], labels["scheduler"]): {
                "job": labels["job"],
                "scheduler": labels["scheduler"],
            }
            for labels in self._schedulers or ()
        }
        yield from check_alertmanager(server, list(labels.values()), self._test_severity)
