"""``apscheduler-telemetry doctor`` with addresses: real servers, and each link broken once."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import pytest
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

yaml = pytest.importorskip("yaml")

from apscheduler_telemetry import instrument
from apscheduler_telemetry.cli import main
from tests.helpers.alertmanager_server import Alertmanager, Receiver, alertmanager
from tests.helpers.commands import list_chain_checks
from tests.helpers.jobs import nothing
from tests.helpers.paths import ROOT
from tests.helpers.servers import configured_prometheus, free_port, required_program
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.integration

RULES = ROOT / "alerts" / "apscheduler.rules.yml"
WATCHDOG = {"alertname": "APSchedulerWatchdog", "severity": "none", "cluster": "eu"}
FAILING = 'vector(1) * on () (label_replace(vector(1), "a", "b", "", "") or vector(2))'

Doctor = Callable[..., tuple[int, dict[str, Any]]]


class Stage(NamedTuple):
    """
    An application, and servers that watch it.

    Attributes:
        port: of the application, which listens on all addresses of the loopback.
        prometheus: an address; it scrapes the application under another address.
        alertmanager: the server that it sends alerts to.
        receiver: what gets the alerts.
        broken_prometheus: it scrapes a wrong path, drops series, and has other rules.
        empty_prometheus: it scrapes nothing, has no rules, and sends alerts elsewhere.
        broken_alertmanager: it sends critical alerts nowhere.
    """

    port: int
    prometheus: str
    alertmanager: Alertmanager
    receiver: Receiver
    broken_prometheus: str
    empty_prometheus: str
    broken_alertmanager: Alertmanager

    @property
    def url(self) -> str:
        """The address of the application."""
        return f"http://127.0.0.1:{self.port}"


def rules(directory: Path, name: str, change: Callable[[list[Any]], None]) -> str:
    """Write changed rules, which are all evaluated every second; return the path."""
    document = yaml.safe_load(RULES.read_text("utf-8"))
    for group in document["groups"]:
        group.pop("interval", None)
    change(document["groups"])
    path = directory / name
    path.write_text(json.dumps(document), "utf-8")  # JSON is YAML
    return str(path)


def break_rules(groups: list[Any]) -> None:
    """Remove the Watchdog, change two rules, and let a third one fail."""
    del groups[-1]
    by_name = {
        rule.get("alert") or rule["record"]: rule for group in groups for rule in group["rules"]
    }
    by_name["APSchedulerMissedRun"]["for"] = "5m"
    by_name["APSchedulerMissedRun"]["labels"] = {"severity": "info"}
    by_name["APSchedulerSchedulerPaused"]["expr"] += " > 1"
    by_name["APSchedulerSchedulerPaused"]["annotations"]["runbook_url"] = "https://wiki.example"
    by_name["APSchedulerSeriesOverflow"]["expr"] = FAILING


@contextlib.contextmanager
def prometheus(
    directory: Path, scrape: list[Any], rule_files: list[str], alertmanager_url: str | None
) -> Iterator[str]:
    directory.mkdir()
    config: dict[str, Any] = {
        "global": {
            "scrape_interval": "1s",
            "evaluation_interval": "1s",
            "external_labels": {"cluster": "eu"},
        },
        "rule_files": rule_files,
        "scrape_configs": scrape,
    }
    if alertmanager_url is not None:
        target = alertmanager_url.removeprefix("http://")
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [target]}]}]}
    (directory / "prometheus.yml").write_text(json.dumps(config), "utf-8")
    binary = required_program("prometheus")
    path = directory / "prometheus.yml"
    # Prometheus drops the first alerts, as it finds its Alertmanagers only after some seconds.
    options = ("--rules.alert.resend-delay=1s",)
    with configured_prometheus(binary, directory, path, *options) as server:
        yield server.url


def scraping(job: str, target: str, **options: Any) -> dict[str, Any]:
    return {"job_name": job, "static_configs": [{"targets": [target]}], **options}


def routes(receiver_url: str) -> dict[str, Any]:
    """Return a configuration that sends each severity, and the Watchdog, to a path of its own."""
    names = ("critical", "warning", "info", "watchdog")
    return {
        "route": {
            "receiver": "warning",
            "group_wait": "0s",
            "routes": [
                {"receiver": "watchdog", "matchers": ["alertname = APSchedulerWatchdog"]},
                {"receiver": "critical", "matchers": ['severity="critical"', "cluster=eu"]},
                {"receiver": "info", "match_re": {"severity": "info|none"}},
            ],
        },
        "receivers": [
            {"name": name, "webhook_configs": [{"url": f"{receiver_url}/{name}"}]} for name in names
        ],
    }


def broken_routes(receiver_url: str) -> dict[str, Any]:
    """Return one that sends critical alerts and the Watchdog nowhere, and inhibits warnings."""
    config = routes(receiver_url)
    for name in ("critical", "watchdog"):
        [receiver] = (each for each in config["receivers"] if each["name"] == name)
        del receiver["webhook_configs"]
    config["inhibit_rules"] = [
        {
            "source_matchers": ["alertname=APSchedulerWatchdog"],
            "target_matchers": ["severity=warning"],
        }
    ]
    return config


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Run everything that the tests of this file share."""
    directory = tmp_path_factory.mktemp("chain")
    port, binary = free_port(), required_program("prometheus-alertmanager")
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_job(nothing, "cron", hour=2, id="nightly")
    telemetry = instrument(scheduler, registry=CollectorRegistry())
    scheduler.start()
    telemetry.start_http_server(port, "0.0.0.0", allowed_hosts=["*"])
    healthy = rules(directory, "rules.yml", lambda _: None)
    changed = rules(directory, "changed.yml", break_rules)
    next_run = "apscheduler_job_next_run_timestamp_seconds"
    with contextlib.ExitStack() as stack:
        stack.callback(scheduler.shutdown)
        stack.callback(telemetry.uninstrument)
        receiver = stack.enter_context(Receiver())
        working, broken = (
            stack.enter_context(alertmanager(binary, directory / name, config))
            for name, config in (
                ("am", routes(receiver.url)),
                ("broken-am", broken_routes(receiver.url)),
            )
        )
        without_next_run = [{"source_labels": ["__name__"], "regex": next_run, "action": "drop"}]
        answering, misconfigured, empty = (
            stack.enter_context(prometheus(directory / name, scrape, rule_files, alertmanager_url))
            for name, scrape, rule_files, alertmanager_url in (
                ("prom", [scraping("app", f"127.0.0.2:{port}")], [healthy], working.url),
                (
                    "broken-prom",
                    [
                        scraping("wrong-path", f"127.0.0.1:{port}", metrics_path="/wrong"),
                        scraping(
                            "dropping",
                            f"127.0.0.2:{port}",
                            metric_relabel_configs=without_next_run,
                        ),
                    ],
                    [changed],
                    None,
                ),
                ("empty-prom", list[Any](), list[str](), "http://127.0.0.1:1"),
            )
        )
        yield Stage(port, answering, working, receiver, misconfigured, empty, broken)


@pytest.fixture(scope="module")
def server(stage: Stage) -> Alertmanager:
    """Return one that has the Watchdog, which inhibits warnings there."""
    server = stage.broken_alertmanager
    ends = datetime.now(timezone.utc) + timedelta(minutes=5)
    server.post({"labels": WATCHDOG, "endsAt": ends.isoformat()})
    wait_for_answer(lambda: server.alerts(**WATCHDOG))
    return server


@pytest.fixture
def doctor(capfdbinary: pytest.CaptureFixture[bytes]) -> Doctor:
    """Run the command with --json, and return its status, and the checks by their code."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        status, listed = list_chain_checks(capfdbinary, *arguments)
        order = ("ok", "info", "serious")  # the most serious one stays
        checks = sorted(listed, key=lambda check: order.index(check["level"]))
        return status, {check["code"]: check for check in checks}

    return run


def wait_for(
    doctor: Doctor, level: str, code: str, *arguments: str, text: str = ""
) -> dict[str, Any]:
    """
    Return the check of a code as soon as it has a level, and a text in its message.

    It must have a fix unless it is ok.
    """

    def probe() -> dict[str, Any] | None:
        status, found = doctor(*arguments)
        check: dict[str, Any] = found[code]
        assert status == any(each["level"] == "serious" for each in found.values())
        assert check["level"] == level, check
        assert text in check["message"], check
        return check

    check = wait_for_answer(probe)
    assert check is not None
    assert bool(check["fix"]) == (level != "ok")
    return check


def wait_until_all_is_ok(doctor: Doctor, *arguments: str) -> dict[str, Any]:
    """Return the checks as soon as all of them are ok."""

    def probe() -> dict[str, Any]:
        status, found = doctor(*arguments)
        assert [check for check in found.values() if check["level"] != "ok"] == []
        assert status == 0
        return found

    return wait_for_answer(probe)


def whole(stage: Stage) -> list[str]:
    return [
        *("--url", stage.url),
        *("--prometheus", stage.prometheus),
        *("--alertmanager", stage.alertmanager.url),
    ]


class TestHealthyChain:
    """An installation without a fault."""

    def test_every_link_is_ok(self, stage: Stage, doctor: Doctor) -> None:
        """Every check is ok, and the exit status is 0; the application has another address."""
        found = wait_until_all_is_ok(doctor, *whole(stage))
        assert len(found) == 21 - 1  # all but the test alert
        assert {check["fix"] for check in found.values()} == {""}
        assert "under another address" in found["scrape"]["message"]
        assert "next runs of 1 jobs" in found["series"]["message"]
        assert "critical (webhook)" in found["receiver-critical"]["message"]
        assert "warning (webhook; the default)" in found["receiver-warning"]["message"]

    @pytest.mark.parametrize("server", ["--url", "--prometheus", "--alertmanager"])
    def test_one_server_can_be_checked_alone(
        self, stage: Stage, doctor: Doctor, server: str
    ) -> None:
        """Each address can be given alone."""
        arguments = dict(zip(*[iter(whole(stage))] * 2, strict=True))
        found = wait_until_all_is_ok(doctor, server, arguments[server])
        assert {c["server"] for c in found.values()} == {
            server.strip("-").replace("url", "application")
        }

    def test_output_has_a_line_for_each_link(
        self, stage: Stage, capfdbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        """Without --json, each link that is ok is one line below its server."""
        assert main(["doctor", "--url", stage.url]) == 0
        lines = capfdbinary.readouterr().out.decode().splitlines()
        assert lines == [
            f"The application, {stage.url}",
            "ok       metrics: they parse, and show 1 job of the scheduler default",
            "ok       next-runs: the metrics have the next run of each job",
            "ok       max-labels: no jobs are above the limit of labels",
            "ok       clock: its clock agrees with the one of this machine",
            "ok       health: healthy",
            "",
            "0 serious, 0 info, 5 ok",
        ]

    @pytest.mark.parametrize("severity", ["critical", "warning", "info"])
    def test_test_alert_reaches_the_receiver_of_its_severity(
        self, stage: Stage, doctor: Doctor, severity: str
    ) -> None:
        """The test alert is labelled as one, has the labels of Prometheus, and ends by itself."""
        wait_for(doctor, "ok", "watchdog-arrival", "--alertmanager", stage.alertmanager.url)
        arguments = ("--alertmanager", stage.alertmanager.url, "--send-test-alert", severity)
        check = wait_for(doctor, "ok", "test-alert", *arguments)
        assert f"took APSchedulerTestAlert for {severity}. Only you can see" in check["message"]
        wanted = {"alertname": "APSchedulerTestAlert", "severity": severity, "cluster": "eu"}
        stage.receiver.wait_for(
            lambda post: post.path == f"/{severity}" and post.has(**wanted), timeout=20
        )
        [alert] = stage.alertmanager.alerts(**wanted)
        assert alert["annotations"]["summary"] == "This is a test. Nothing is wrong."
        ends = datetime.fromisoformat(alert["endsAt"].replace("Z", "+00:00"))
        left = ends - datetime.now(timezone.utc)
        assert timedelta(minutes=5) < left <= timedelta(minutes=10)


class TestBrokenApplication:
    """Faults of the application, or of its address."""

    def test_application_is_down(self, doctor: Doctor) -> None:
        """A port without a server is serious."""
        wait_for(
            doctor,
            "serious",
            "metrics",
            "--url",
            f"http://127.0.0.1:{free_port()}",
            text="Connection refused",
        )

    def test_path_is_wrong(self, stage: Stage, doctor: Doctor) -> None:
        """A path without metrics is serious."""
        wait_for(
            doctor,
            "serious",
            "metrics",
            "--url",
            f"{stage.url}/wrong",
            text="answers with status 404",
        )

    def test_address_is_another_program(self, stage: Stage, doctor: Doctor) -> None:
        """Metrics without ours are serious."""
        wait_for(
            doctor,
            "serious",
            "metrics",
            "--url",
            stage.prometheus,
            text="none of apscheduler-telemetry",
        )


class TestBrokenPrometheus:
    """Faults of Prometheus' configuration and of its rules."""

    @pytest.mark.parametrize(
        ("level", "code", "text"),
        [
            ("serious", "scrape", '/wrong (job="wrong-path" and'),
            (
                "serious",
                "series",
                'no series apscheduler_job_next_run_timestamp_seconds with job="dropping"',
            ),
            ("serious", "rules", "1 rules of version"),
            (
                "info",
                "rule-version",
                "APSchedulerMissedRun (for, labels), APSchedulerSchedulerPaused (expr), APSch",
            ),
            ("serious", "rule-evaluation", "1 rules fail: APSchedulerSeriesOverflow. "),
            ("serious", "watchdog", "APSchedulerWatchdog should always fire, but is not loaded"),
            ("serious", "alertmanagers", "knows no Alertmanager"),
        ],
    )
    def test_fault_is_found(
        self, stage: Stage, doctor: Doctor, level: str, code: str, text: str
    ) -> None:
        """Each planted fault is found, and only rules that differ may be so on purpose."""
        arguments = ("--url", stage.url, "--prometheus", stage.broken_prometheus)
        wait_for(doctor, level, code, *arguments, text=text)

    def test_failed_scrape_has_its_error(self, stage: Stage, doctor: Doctor) -> None:
        """The error of the scrape is part of the message."""
        arguments = ("--url", stage.url, "--prometheus", stage.broken_prometheus)
        text = "has failed: server returned HTTP status 404 Not Found"
        check = wait_for(doctor, "serious", "scrape", *arguments, text=text)
        assert check["message"].endswith(text)

    @pytest.mark.parametrize(
        ("level", "code", "text"),
        [
            ("serious", "scrape", "No target of"),
            ("serious", "rules", "has not loaded apscheduler.rules.yml"),
            ("info", "alertmanagers", "Alerts are sent to 127.0.0.1:1."),
        ],
    )
    def test_empty_server_is_found(
        self, stage: Stage, doctor: Doctor, level: str, code: str, text: str
    ) -> None:
        """A Prometheus that knows neither application nor rules nor this Alertmanager."""
        arguments = (*whole(stage), "--prometheus", stage.empty_prometheus)
        wait_for(doctor, level, code, *arguments, text=text)

    def test_server_without_any_series_is_serious(self, stage: Stage, doctor: Doctor) -> None:
        """Without --url, there must be an application at least."""
        wait_for(
            doctor,
            "serious",
            "scrape",
            "--prometheus",
            stage.empty_prometheus,
            text="no series of any scheduler",
        )

    def test_ignored_checks_do_not_count(self, stage: Stage, doctor: Doctor) -> None:
        """--ignore removes a check from output and exit status."""
        ignored = [f"--ignore={code}" for code in ("rules", "scrape")]
        status, found = doctor("--prometheus", stage.empty_prometheus, *ignored)
        assert status == 0
        assert not {"rules", "scrape"} & found.keys()

    def test_address_of_another_server_is_serious(self, stage: Stage, doctor: Doctor) -> None:
        """An Alertmanager has no API of Prometheus."""
        arguments = ("--prometheus", stage.alertmanager.url)
        wait_for(doctor, "serious", "prometheus-api", *arguments, text="has no API of Prometheus")


class TestBrokenAlertmanager:
    """Faults of Alertmanager's configuration, and what mutes alerts."""

    def test_watchdog_that_does_not_arrive_is_serious(self, tmp_path: Path, doctor: Doctor) -> None:
        """An Alertmanager to which no Prometheus sends is found."""
        binary = required_program("prometheus-alertmanager")
        with alertmanager(binary, tmp_path / "am", routes("http://127.0.0.1:1")) as server:
            arguments = ("--alertmanager", server.url)
            wait_for(
                doctor, "serious", "watchdog-arrival", *arguments, text="no alert arrives here"
            )

    def test_severity_without_receiver_is_serious(
        self, server: Alertmanager, doctor: Doctor
    ) -> None:
        """A receiver without an integration sends nothing; the others are not touched by that."""
        arguments = ("--alertmanager", server.url)
        check = wait_for(doctor, "serious", "receiver-critical", *arguments)
        assert check["message"].startswith(
            "Alerts of severity critical go only to the receiver critical"
        )
        wait_for(doctor, "ok", "receiver-info", *arguments)

    def test_watchdog_that_goes_nowhere_is_serious(
        self, server: Alertmanager, doctor: Doctor
    ) -> None:
        """The external check would never get the Watchdog."""
        wait_for(doctor, "serious", "watchdog-receiver", "--alertmanager", server.url)

    def test_alert_that_inhibits_is_named(self, server: Alertmanager, doctor: Doctor) -> None:
        """Alertmanager says of the test alert what the check says of all warnings."""
        arguments = ("--alertmanager", server.url, "--send-test-alert", "warning")
        wait_for(
            doctor,
            "serious",
            "mutes",
            *arguments,
            text="The alert APSchedulerWatchdog inhibits others",
        )
        wait_for(doctor, "serious", "test-alert", *arguments)

    def test_test_alert_without_integration_is_serious(
        self, server: Alertmanager, doctor: Doctor
    ) -> None:
        """A test alert that the receiver swallows is not called fine."""
        arguments = ("--alertmanager", server.url, "--send-test-alert")
        wait_for(doctor, "serious", "test-alert", *arguments, text="critical has no integration")

    @pytest.mark.parametrize(
        ("matchers", "level"),
        [
            ([("alertname", "APScheduler.+", True)], "serious"),
            ([("alertname", "APSchedulerMissedRun", False)], "info"),
            ([("job", "app", False), ("scheduler", "default", False)], "serious"),
            ([("alertname", "APScheduler.+", True), ("cluster", "us", False)], "ok"),
        ],
        ids=["all", "one alert", "an application", "another cluster"],
    )
    def test_silence_is_found(
        self,
        stage: Stage,
        doctor: Doctor,
        matchers: list[tuple[str, str, bool]],
        level: str,
    ) -> None:
        """A silence is serious if it mutes all alerts of a severity, and else only said."""
        wait_for(doctor, "ok", "mutes", *whole(stage))
        with silence(stage.alertmanager, matchers):
            check = wait_for(doctor, level, "mutes", *whole(stage))
        assert ("silence" in check["message"]) == (
            level != "ok" or "no silence" in check["message"]
        )


@contextlib.contextmanager
def silence(server: Alertmanager, matchers: list[tuple[str, str, bool]]) -> Iterator[None]:
    """Silence alerts meanwhile."""
    now = datetime.now(timezone.utc)
    content = {
        "matchers": [
            {"name": name, "value": value, "isRegex": is_regex, "isEqual": True}
            for name, value, is_regex in matchers
        ],
        "startsAt": now.isoformat(),
        "endsAt": (now + timedelta(minutes=5)).isoformat(),
        "createdBy": "ops",
        "comment": "deploy",
    }
    with _request(f"{server.url}/api/v2/silences", "POST", content) as answer:
        name = json.load(answer)["silenceID"]
    try:
        yield
    finally:
        with _request(f"{server.url}/api/v2/silence/{name}", "DELETE"):
            pass


def _request(url: str, method: str, content: Mapping[str, Any] | None = None) -> Any:
    data = None if content is None else json.dumps(content).encode()
    request = Request(url, data, {"Content-Type": "application/json"}, method=method)
    return urlopen(request, timeout=10)
