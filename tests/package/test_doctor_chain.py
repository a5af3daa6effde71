"""
``apscheduler-telemetry doctor`` with addresses: applications, and what other servers answer.

`tests/end_to_end/test_doctor_chain.py` has real servers.
"""

from __future__ import annotations

import copy
import functools
import json
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.cli import main
from apscheduler_telemetry.cli.client import Answer
from apscheduler_telemetry.cli.doctor import CHAIN_CHECK_CODES
from apscheduler_telemetry.cli.errors import AnswerStatusError
from apscheduler_telemetry.cli.rule_files import parse_duration
from tests.helpers.commands import list_chain_checks
from tests.helpers.jobs import nothing
from tests.helpers.paths import ROOT
from tests.helpers.servers import free_port

Doctor = Callable[..., tuple[int, dict[str, Any]]]

TEXT = "text/plain; version=0.0.4"
PROMETHEUS = ("--prometheus", "http://prom:9090")
ALERTMANAGER = ("--alertmanager", "http://am:9093/prefix/")


@pytest.fixture
def doctor(capfdbinary: pytest.CaptureFixture[bytes]) -> Doctor:
    """Run the command with --json, and return its status, and the checks by their code."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        status, listed = list_chain_checks(capfdbinary, *arguments)
        found = {check["code"]: check for check in listed}
        assert status == any(check["level"] == "serious" for check in found.values())
        assert all(bool(c["fix"]) == (c["level"] != "ok") for c in found.values())
        return status, found

    return run


class TestCommandLine:
    """Which arguments belong together."""

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "pass TARGET"),
            (["--json"], "pass TARGET"),
            (["module:scheduler", "--url", "http://h"], "pass either TARGET, or addresses"),
            (["--send-test-alert"], "--send-test-alert needs --alertmanager"),
            (["--url", "http://h", "--send-test-alert"], "--send-test-alert needs --alertmanager"),
            (["--url", "http://h", "--prometheus-token-file", "f"], "without the address of Prom"),
        ],
    )
    def test_wrong_combination_is_an_error(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The message is one line, and the status is 2."""
        assert main(["doctor", *arguments]) == 2
        output, errors = capsys.readouterr()
        assert (output, errors.count("\n")) == ("", 1)
        assert message in errors

    @pytest.mark.parametrize("option", ["--url", "--prometheus", "--alertmanager"])
    def test_address_must_be_one(self, option: str, capsys: pytest.CaptureFixture[str]) -> None:
        """What is no address is an error before anything is asked."""
        if option != "--url":
            pytest.importorskip("yaml")
        assert main(["doctor", option, "shop:9476"]) == 2
        assert "is no address" in capsys.readouterr().err

    def test_file_of_a_token_must_exist(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """That nothing was checked has another status than that something is broken."""
        arguments = ("--url", "http://h", "--bearer-token-file", str(tmp_path / "none"))
        assert main(["doctor", *arguments]) == 2
        assert "cannot read" in capsys.readouterr().err

    def test_codes_are_documented(self) -> None:
        """docs/cli.md has a row for each code, in the order in which they are checked."""
        lines = (ROOT / "docs" / "cli.md").read_text("utf-8").splitlines()
        section = lines[lines.index("## Check the chain to the alerts") :]
        rows = [line.split("`")[1] for line in section if line.startswith("| `")]
        documented = [row for row in rows if row in CHAIN_CHECK_CODES]
        assert sorted(documented) == list(CHAIN_CHECK_CODES)

    @pytest.mark.parametrize("arguments", [PROMETHEUS, ALERTMANAGER])
    def test_missing_yaml_names_the_extra(
        self,
        arguments: tuple[str, str],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """The rules and the configuration are in YAML."""
        monkeypatch.setitem(sys.modules, "yaml", None)
        assert main(["doctor", *arguments]) == 2
        assert "apscheduler-telemetry[expect]" in capsys.readouterr().err

    def test_messages_are_wrapped_between_words(
        self, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
    ) -> None:
        """They are indented, and an address is not cut."""
        monkeypatch.setenv("COLUMNS", "30")
        assert main(["doctor", "--url", f"http://127.0.0.1:{free_port()}"]) == 1
        assert b"\n  cannot connect to\n  http://127.0.0.1:" in capsysbinary.readouterr().out


class TestApplication:
    """A real application with a fault."""

    @pytest.fixture
    def serve(self) -> Iterator[Callable[..., str]]:
        """Serve a scheduler with two jobs, and return its address."""
        ends: list[Callable[[], object]] = []

        def start(
            *,
            is_started: bool = True,
            token: Path | None = None,
            certificate: Path | None = None,
            **options: Any,
        ) -> str:
            scheduler = BackgroundScheduler(timezone="UTC")
            for name in ("a", "b"):
                scheduler.add_job(nothing, "cron", hour=2, id=name)
            telemetry = instrument(scheduler, registry=CollectorRegistry(), **options)
            ends.append(telemetry.uninstrument)
            if is_started:
                scheduler.start()
                ends.append(scheduler.shutdown)
            port = free_port()
            telemetry.start_http_server(
                port, bearer_token_file=token, certfile=certificate, keyfile=certificate
            )
            return f"http{'s' if certificate else ''}://127.0.0.1:{port}"

        yield start
        for end in reversed(ends):
            end()

    def test_application_without_a_fault(self, serve: Callable[..., str], doctor: Doctor) -> None:
        """Nothing is found."""
        _, found = doctor("--url", serve())
        assert {check["level"] for check in found.values()} == {"ok"}

    def test_jobs_above_the_limit_of_labels(
        self, serve: Callable[..., str], doctor: Doctor
    ) -> None:
        """Alerts cannot tell these jobs apart."""
        _, found = doctor("--url", serve(max_labels=1))
        assert found["max-labels"]["level"] == "serious"

    def test_scheduler_that_is_not_started(self, serve: Callable[..., str], doctor: Doctor) -> None:
        """The reasons of /health are said."""
        _, found = doctor("--url", serve(is_started=False))
        assert found["health"]["level"] == "serious"
        assert "stopped: The scheduler has not been started" in found["health"]["message"]

    def test_filtered_metrics_hide_next_runs(
        self, serve: Callable[..., str], doctor: Doctor
    ) -> None:
        """What a scrape with such a path does not get is said."""
        names = "name[]=apscheduler_scheduler_info&name[]=apscheduler_job_info"
        _, found = doctor("--url", f"{serve()}/metrics?{names}")
        assert found["next-runs"]["level"] == "serious"
        assert "of a, b, so no alert fires" in found["next-runs"]["message"]

    def test_token_is_required(
        self, serve: Callable[..., str], doctor: Doctor, tmp_path: Path
    ) -> None:
        """Without it, the message names the option; with it, all is fine."""
        path = tmp_path / "token"
        path.write_text("secret")
        url = serve(token=path)
        _, found = doctor("--url", url)
        assert found["metrics"]["level"] == "serious"
        assert found["metrics"]["fix"] == "Pass its token with --bearer-token-file."
        status, _ = doctor("--url", url, "--bearer-token-file", str(path))
        assert status == 0

    def test_host_that_is_not_allowed(
        self, serve: Callable[..., str], doctor: Doctor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The fix is what the server itself says."""
        monkeypatch.setattr(
            "socket.getaddrinfo", functools.partial(_resolve_as_loopback, socket.getaddrinfo)
        )
        _, found = doctor("--url", serve().replace("127.0.0.1", "shop.example"))
        assert found["metrics"]["level"] == "serious"
        assert "allowed_hosts" in found["metrics"]["fix"]

    def test_authority_of_the_user(
        self,
        serve: Callable[..., str],
        doctor: Doctor,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Its certificate is found by the environment variable that the message names."""
        authority = trustme.CA()
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(
            str(tmp_path / "own")
        )
        authority.cert_pem.write_to_path(str(tmp_path / "authority"))
        url = serve(certificate=tmp_path / "own")
        _, found = doctor("--url", url)
        assert found["metrics"]["level"] == "serious"
        assert "set SSL_CERT_FILE" in found["metrics"]["fix"]
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority"))
        status, _ = doctor("--url", url)
        assert status == 0


def _resolve_as_loopback(original: Callable[..., Any], _: str, *args: Any, **kwargs: Any) -> Any:
    return original("127.0.0.1", *args, **kwargs)


class Pages:
    """What servers answer: by path, or by path and the first parameter of the query."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.date: datetime | None = datetime.now(timezone.utc)
        self.tokens: dict[str, str | None] = {}

    def fetch(self, url: str, token: str | None, query: Any = (), **options: Any) -> Answer:
        parts = urlsplit(url)
        self.tokens[parts.netloc] = token
        key = parts.path + "".join(f"?{value}" for name, value in query if name == "query")
        found = self.answers.get(key, self.answers.get(parts.path, 404))
        if isinstance(found, int) and found not in options.get("statuses", ()):
            message = f"{url} answers with status {found}. Pass {options['token_option']}."
            raise AnswerStatusError(message, found)
        text = found if isinstance(found, str) else json.dumps(found)
        date = "" if self.date is None else format_datetime(self.date)
        content_type = TEXT if isinstance(found, str) else "application/json"
        return Answer(text, content_type, date)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    pages = Pages()
    monkeypatch.setattr("apscheduler_telemetry.cli.chain_checks.fetch", pages.fetch)
    return pages


SCHEDULER = (
    'apscheduler_scheduler_info{scheduler="default",hostname="vm",pid="7",singleton="true"} 1\n'
)


class TestAnswersOfApplications:
    """What an application may answer."""

    URL = ("--url", "http://shop:9476")

    def test_metrics_that_cannot_be_parsed(self, pages: Pages, doctor: Doctor) -> None:
        """Prometheus could not parse them either."""
        pages.answers["/metrics"] = SCHEDULER + "nonsense {"
        _, found = doctor(*self.URL)
        assert found["metrics"]["level"] == "serious"
        assert "cannot be parsed" in found["metrics"]["message"]

    def test_long_line_is_not_repeated(self, pages: Pages, doctor: Doctor) -> None:
        """Another file may have all on one line."""
        pages.answers["/metrics"] = "[" * 9_999
        _, found = doctor(*self.URL)
        assert len(found["metrics"]["message"]) < 300

    def test_web_page_shows_no_metrics(
        self, pages: Pages, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As that of a proxy which asks the user to sign in."""
        monkeypatch.setattr(f"{__name__}.TEXT", "text/html; charset=utf-8")
        pages.answers["/metrics"] = "<html>Sign in</html>"
        _, found = doctor(*self.URL)
        assert found["metrics"]["message"] == "http://shop:9476 shows a web page, and no metrics"

    def test_metrics_without_health(self, pages: Pages, doctor: Doctor) -> None:
        """prometheus_client's own server has no /health, which is no fault."""
        pages.answers["/metrics"] = SCHEDULER
        status, found = doctor(*self.URL)
        assert status == 0
        assert {code: check["level"] for code, check in found.items()} == {
            "metrics": "ok",
            "next-runs": "info",
            "max-labels": "ok",
            "clock": "ok",
            "health": "info",
        }

    @pytest.mark.parametrize(
        ("seconds", "text"), [(90, "90 s ahead of"), (-90, "90 s behind"), (3, None)]
    )
    def test_clock_that_differs(
        self, pages: Pages, doctor: Doctor, seconds: int, text: str | None
    ) -> None:
        """It is no more than said, as the clock of this machine may be the wrong one."""
        pages.answers["/metrics"] = SCHEDULER
        pages.date = datetime.now(timezone.utc) + timedelta(seconds=seconds)
        _, found = doctor(*self.URL)
        assert found["clock"]["level"] == ("info" if text else "ok")
        # A second may end between both readings of the clock.
        assert text is None or text in found["clock"]["message"].replace("89 s", "90 s").replace(
            "91 s", "90 s"
        )

    def test_server_without_a_clock(self, pages: Pages, doctor: Doctor) -> None:
        """Without the header there is nothing to compare."""
        pages.answers["/metrics"] = SCHEDULER
        pages.date = None
        _, found = doctor(*self.URL)
        assert "clock" not in found


@functools.cache
def shipped_rules() -> Any:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((ROOT / "alerts" / "apscheduler.rules.yml").read_text("utf-8"))


def loaded_rules(**changes: Any) -> list[dict[str, Any]]:
    """Return the groups of the API for the shipped rules, as they are in the file."""
    now = datetime.now(timezone.utc).isoformat()
    return [
        {
            "name": group["name"],
            "interval": 30,
            "rules": [
                {
                    "name": rule.get("alert") or rule["record"],
                    "query": rule["expr"],
                    "duration": parse_duration(rule.get("for", "0s")),
                    "labels": rule.get("labels", {}),
                    "state": "firing",
                    "health": "ok",
                    "lastEvaluation": now,
                    "evaluationTime": 0.001,
                    **changes,
                }
                for rule in group["rules"]
            ],
        }
        for group in shipped_rules()["groups"]
    ]


def data(content: Any) -> dict[str, Any]:
    return {"status": "success", "data": content}


def series(*labels: dict[str, str]) -> dict[str, Any]:
    return data({"result": [{"metric": each, "value": [0, "1"]} for each in labels]})


INFO = {"job": "app", "instance": "10.0.0.7:9476", "scheduler": "default"}
TARGET = {
    "scrapeUrl": "http://10.0.0.7:9476/metrics",
    "labels": {"job": "app", "instance": "10.0.0.7:9476"},
    "discoveredLabels": {"__scrape_interval__": "30s"},
    "health": "up",
    "lastError": "",
}


@pytest.fixture
def prometheus(pages: Pages) -> Pages:
    """Return what a Prometheus without a fault answers."""
    api = "/api/v1"
    names = ("info", "start_timestamp_seconds", "state", "up")
    pages.answers |= {
        f"{api}/status/buildinfo": data({"version": "3.5.0", "goVersion": "go1.24"}),
        f"{api}/targets": data({"activeTargets": [copy.deepcopy(TARGET)]}),
        f"{api}/rules": data({"groups": loaded_rules()}),
        f"{api}/alertmanagers": data({"activeAlertmanagers": [{"url": "http://am:9093/api"}]}),
        f"{api}/query": series(*({"__name__": f"apscheduler_scheduler_{name}"} for name in names)),
        f"{api}/query?apscheduler_scheduler_info": series(INFO),
        f"{api}/query?last_over_time(apscheduler_scheduler_info[10m])": series(INFO),
    }
    return pages


class TestAnswersOfPrometheus:
    """What Prometheus, and other servers with parts of its API, may answer."""

    def test_no_fault(self, prometheus: Pages, doctor: Doctor) -> None:
        """Nothing is found."""
        _, found = doctor(*PROMETHEUS)
        assert {check["level"] for check in found.values()} == {"ok"}
        assert prometheus.tokens == {"prom:9090": None}

    @pytest.mark.parametrize(
        ("change", "level", "text"),
        [
            ({"health": "unknown"}, "info", "was not scraped yet"),
            ({"scrapeInterval": "2m"}, "info", "is scraped, every 2m"),
            ({"scrapeInterval": "1m"}, "ok", "is scraped, every 1m"),
            ({"health": "down", "lastError": "EOF"}, "serious", "has failed: EOF"),
            ({"labels": {"job": "other", "instance": "x"}}, "info", "from no target"),
        ],
    )
    def test_targets(
        self, prometheus: Pages, doctor: Doctor, change: dict[str, Any], level: str, text: str
    ) -> None:
        """A target may be down, too slow, or another one than the series come from."""
        targets = prometheus.answers["/api/v1/targets"]["data"]["activeTargets"]
        targets[0].update(change)
        _, found = doctor(*PROMETHEUS)
        assert found["scrape"]["level"] == level
        assert text in found["scrape"]["message"]

    @pytest.mark.parametrize(
        ("name", "level"), [("consecutive_failures", "ok"), ("max_failures", "serious")]
    )
    def test_series_that_come_and_go_may_be_missing(
        self, prometheus: Pages, doctor: Doctor, name: str, level: str
    ) -> None:
        """A job may have failed since the last scrape; what it always has must be there."""
        sample = f'apscheduler_job_{name}{{scheduler="default",job_id="nightly"}} 1\n'
        prometheus.answers["/metrics"] = SCHEDULER + sample
        _, found = doctor(*PROMETHEUS, "--url", "http://10.0.0.7:9476")
        assert found["series"]["level"] == level

    @pytest.mark.parametrize(("path", "level"), [("", "info"), ("/prefix", "ok")])
    def test_path_of_alertmanager(
        self, prometheus: Pages, doctor: Doctor, path: str, level: str
    ) -> None:
        """Alerts that are sent to another path of the same server do not arrive."""
        url = f"http://am:9093{path}/api/v2/alerts"
        prometheus.answers["/api/v1/alertmanagers"] = data({"activeAlertmanagers": [{"url": url}]})
        _, found = doctor(*PROMETHEUS, *ALERTMANAGER)
        assert found["alertmanagers"]["level"] == level
        assert level == "ok" or "path_prefix: /prefix " in found["alertmanagers"]["fix"]

    def test_target_of_an_application_that_cannot_be_reached(
        self, prometheus: Pages, doctor: Doctor
    ) -> None:
        """Its target is found by the address."""
        prometheus.answers["/metrics"] = 500
        _, found = doctor(*PROMETHEUS, "--url", "http://10.0.0.7:9476")
        assert found["metrics"]["level"] == "serious"
        assert (found["scrape"]["level"], found["series"]["level"]) == ("ok", "ok")

    @pytest.mark.parametrize(
        ("change", "level", "text"),
        [
            ({"lastEvaluation": "2020-01-01T00:00:00.123456789Z"}, "serious", "is more than 3"),
            ({"lastEvaluation": "0001-01-01T00:00:00Z"}, "info", "were not evaluated yet"),
            ({"evaluationTime": 31}, "serious", "takes longer than its interval"),
            ({"health": "err", "lastError": "many-to-many"}, "serious", ": many-to-many"),
        ],
    )
    def test_evaluation(
        self, prometheus: Pages, doctor: Doctor, change: dict[str, Any], level: str, text: str
    ) -> None:
        """Rules may be late, too slow, or fail."""
        prometheus.answers["/api/v1/rules"] = data({"groups": loaded_rules(**change)})
        _, found = doctor(*PROMETHEUS)
        assert found["rule-evaluation"]["level"] == level
        assert text in found["rule-evaluation"]["message"]

    def test_rules_that_are_evaluated_rarely(self, prometheus: Pages, doctor: Doctor) -> None:
        """Alerts would be late."""
        for group in prometheus.answers["/api/v1/rules"]["data"]["groups"]:
            group["interval"] = 300
        _, found = doctor(*PROMETHEUS)
        assert found["rule-evaluation"]["level"] == "info"

    def test_watchdog_that_does_not_fire(self, prometheus: Pages, doctor: Doctor) -> None:
        """The rule alone is not enough."""
        prometheus.answers["/api/v1/rules"] = data({"groups": loaded_rules(state="inactive")})
        _, found = doctor(*PROMETHEUS)
        assert found["watchdog"]["level"] == "serious"

    def test_rules_of_the_user_are_not_demanded(self, prometheus: Pages, doctor: Doctor) -> None:
        """Rules of other programs, and those for jobs.yml, are not compared."""
        rule = {
            "query": "vector(1)",
            "lastEvaluation": datetime.now(timezone.utc).isoformat(),
            "evaluationTime": 0.001,
        }
        for name, health in (("APSchedulerJobNeverSeen", "ok"), ("Other", "err")):
            rules = [{**rule, "name": name, "health": health}]
            group = {"name": name, "interval": 30, "rules": rules}
            prometheus.answers["/api/v1/rules"]["data"]["groups"].append(group)
        status, found = doctor(*PROMETHEUS)
        assert status == 0
        assert found["rule-version"]["level"] == "ok"

    def test_one_page_that_fails_leaves_the_others(self, prometheus: Pages, doctor: Doctor) -> None:
        """A proxy may forbid one page, and another server answer in another form."""
        prometheus.answers |= {"/api/v1/targets": 403, "/api/v1/alertmanagers": data([])}
        _, found = doctor(*PROMETHEUS)
        assert (found["scrape"]["level"], found["rules"]["level"]) == ("serious", "ok")
        assert found["scrape"]["fix"] == "Pass --prometheus-token-file."
        assert "answers in an unknown form" in found["alertmanagers"]["message"]

    @pytest.mark.parametrize(
        ("has_watchdog", "level"), [(True, "ok"), (False, "serious")], ids=["with", "without"]
    )
    def test_victoria_metrics_without_its_vmalert(
        self, prometheus: Pages, doctor: Doctor, level: str, *, has_watchdog: bool
    ) -> None:
        """The rules are elsewhere; what vmalert writes shows whether they are evaluated."""
        prometheus.answers |= {
            "/api/v1/status/buildinfo": data({}),
            "/api/v1/rules": data({"groups": []}),
            "/api/v1/alertmanagers": 400,
            '/api/v1/query?ALERTS{alertname="APSchedulerWatchdog",alertstate="firing"}': series(
                *[{}] * has_watchdog
            ),
        }
        _, found = doctor(*PROMETHEUS)
        assert {c["code"]: c["level"] for c in found.values() if c["level"] != "ok"} == {
            "rules": "info",
            "alertmanagers": "info",
            **({} if level == "ok" else {"watchdog": level}),
        }

    def test_vmalert(self, prometheus: Pages, doctor: Doctor) -> None:
        """Only its rules can be checked, which is said."""
        for name in list(prometheus.answers):
            if not name.endswith("/rules"):
                prometheus.answers[name] = 400
        status, found = doctor(*PROMETHEUS)
        assert status == 0
        unknown = {code for code, check in found.items() if check["level"] == "info"}
        assert unknown == {"scrape", "series", "alertmanagers"}
        assert "has parts of its API" in found["prometheus-api"]["message"]

    def test_rules_that_another_version_formats_otherwise(
        self, prometheus: Pages, doctor: Doctor
    ) -> None:
        """The server itself says how it writes an expression."""
        group = prometheus.answers["/api/v1/rules"]["data"]["groups"][0]
        rule, original = group["rules"][0], group["rules"][0]["query"]
        rule["query"] = f"({original})"
        _, found = doctor(*PROMETHEUS)
        assert f"{rule['name']} (expr)" in found["rule-version"]["message"]
        prometheus.answers[f"/api/v1/format_query?{original}"] = data(f"(\n{original}\n)")
        _, found = doctor(*PROMETHEUS)
        assert found["rule-version"]["level"] == "ok"


CONFIG = """
route:
  receiver: people
receivers:
- name: people
  slack_configs: [{}]
"""


class TestAnswersOfAlertmanager:
    """What Alertmanager may answer, below a prefix."""

    @pytest.fixture
    def alertmanager(self, pages: Pages) -> Pages:
        """Return what one without routes answers."""
        pytest.importorskip("yaml")
        watchdog = {
            "labels": {"alertname": "APSchedulerWatchdog", "severity": "none"},
            "updatedAt": datetime.now(timezone.utc).isoformat(),
            "status": {"state": "active"},
        }
        pages.answers |= {
            "/prefix/api/v2/status": {
                "config": {"original": CONFIG},
                "versionInfo": {"version": "0.28.0"},
            },
            "/prefix/api/v2/alerts": [watchdog],
            "/prefix/api/v2/silences": [],
        }
        return pages

    def test_default_receiver_gets_all(self, alertmanager: Pages, doctor: Doctor) -> None:
        """That is fine for people, but the Watchdog should go elsewhere."""
        status, found = doctor(*ALERTMANAGER)
        assert status == 0
        assert {code for code, check in found.items() if check["level"] != "ok"} == {
            "watchdog-receiver"
        }
        assert "people (slack; the default)" in found["receiver-info"]["message"]
        assert alertmanager.tokens == {"am:9093": None}

    def test_watchdog_that_does_not_come_any_more(
        self, alertmanager: Pages, doctor: Doctor
    ) -> None:
        """Alertmanager may keep an alert for long."""
        then = datetime.now(timezone.utc) - timedelta(minutes=20)
        alertmanager.answers["/prefix/api/v2/alerts"][0]["updatedAt"] = then.isoformat()
        _, found = doctor(*ALERTMANAGER)
        assert found["watchdog-arrival"]["level"] == "serious"
        assert "20 minutes ago" in found["watchdog-arrival"]["message"]

    def test_alert_without_a_name(self, alertmanager: Pages, doctor: Doctor) -> None:
        """Other programs may send such alerts; one can inhibit ours."""
        alertmanager.answers["/prefix/api/v2/alerts"].insert(0, {"labels": {"source": "other"}})
        status, found = doctor(*ALERTMANAGER)
        assert (status, found["watchdog-arrival"]["level"]) == (0, "ok")
        answer = alertmanager.answers["/prefix/api/v2/status"]
        answer["config"]["original"] += (
            "inhibit_rules: [{source_matchers: [source=other], target_matchers: [severity=info]}]"
        )
        _, found = doctor(*ALERTMANAGER)
        assert "The alert without a name inhibits others" in found["mutes"]["message"]

    def test_watchdog_that_is_muted(self, alertmanager: Pages, doctor: Doctor) -> None:
        """The external service would notify people although all is fine."""
        alertmanager.answers["/prefix/api/v2/alerts"][0]["status"]["state"] = "suppressed"
        _, found = doctor(*ALERTMANAGER)
        assert found["watchdog-receiver"]["level"] == "serious"

    def test_test_alert_that_is_not_processed(
        self, alertmanager: Pages, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If Alertmanager does not list the alert, that is said."""
        monkeypatch.setattr("apscheduler_telemetry.cli.chain_alertmanager._MAX_ARRIVAL_SECONDS", 0)
        _, found = doctor(*ALERTMANAGER, "--send-test-alert")
        assert found["test-alert"]["level"] == "serious"
        assert "has not processed it" in found["test-alert"]["message"]

    def test_configuration_that_is_not_understood(
        self, alertmanager: Pages, doctor: Doctor
    ) -> None:
        """A later version may have other matchers, and there is no traceback."""
        status = alertmanager.answers["/prefix/api/v2/status"]
        status["config"]["original"] = CONFIG.replace(
            "people\nrec", "people\n  routes: [{matchers: ['?']}]\nrec"
        )
        _, found = doctor(*ALERTMANAGER)
        assert found["alertmanager-api"]["level"] == "serious"
        assert "unknown matcher: ?" in found["alertmanager-api"]["message"]

    def test_each_server_gets_its_own_token(
        self, alertmanager: Pages, prometheus: Pages, doctor: Doctor, tmp_path: Path
    ) -> None:
        """No server sees the token of another one."""
        assert alertmanager is prometheus
        arguments = []
        for option in ("bearer", "prometheus", "alertmanager"):
            (tmp_path / option).write_text(f"{option}-secret")
            arguments += [f"--{option}-token-file", str(tmp_path / option)]
        alertmanager.answers["/metrics"] = SCHEDULER
        doctor(*PROMETHEUS, *ALERTMANAGER, "--url", "http://shop", *arguments)
        assert alertmanager.tokens == {
            "shop": "bearer-secret",
            "prom:9090": "prometheus-secret",
            "am:9093": "alertmanager-secret",
        }
