"""
The Alertmanager configuration: who hears of what, what is silenced, and what messages say.

Routes are asked of amtool. Everything else is done by a real Alertmanager that runs the shipped
file, with its receivers pointed to servers of these tests and its durations divided.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

from servers import eventually, get
from support_alertmanager import Alertmanager, Mail, Mailbox, Post, Receiver, alertmanager

pytestmark = pytest.mark.integration

ALERTS = Path(__file__).parent.parent / "alerts"
RULES = ALERTS / "apscheduler.rules.yml"
RUNBOOK = "https://github.com/apscheduler-telemetry/apscheduler-telemetry/blob/main/docs/runbook.md"
SECRETS = "/etc/alertmanager/secrets"

JOBS = {
    "APSchedulerMissedRun": "critical",
    "APSchedulerRunFailed": "warning",
    "APSchedulerJobFailing": "critical",
    "APSchedulerRunsLost": "critical",
    "APSchedulerRunsMissed": "warning",
    "APSchedulerRunsSkipped": "warning",
    "APSchedulerRunsCoalesced": "info",
    "APSchedulerJobOverrunning": "warning",
    "APSchedulerJobStuck": "critical",
    "APSchedulerJobStarved": "warning",
    "APSchedulerJobDisappeared": "critical",
    "APSchedulerStartDelayHigh": "warning",
}
"""Alerts on single jobs, whose severity and owner are the application's if it gave any."""

SCHEDULERS = {
    "APSchedulerSchedulerDown": "critical",
    "APSchedulerLoopDead": "critical",
    "APSchedulerDuplicateSchedulers": "critical",
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
    """Return the configuration as it is shipped, but for paths that depend on where it lies."""
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
    """Return where each receiver's messages end up."""
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


def program(name: str) -> str:
    """Return the path of a program; a machine without it cannot run these tests."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed; `make test` installs it, or says why it cannot")
    return path


def amtool(*arguments: str) -> str:
    """Run amtool in the directory of the configuration, and return what it printed."""
    done = subprocess.run(
        [program("amtool"), *arguments],
        cwd=ALERTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def heard(**labels: str) -> set[str]:
    """Return where amtool says that an alert with these labels is heard."""
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
    """Return the name of an application that no other test uses, and so a group of its own."""
    return f"{word}-{next(_numbers):03}"  # so that none is the beginning of another


class TestFile:
    """The file as it is shipped."""

    def test_loads(self) -> None:
        """Amtool takes it where it lies, with its templates, and without the files of secrets."""
        printed = amtool("check-config", "alertmanager.yml")
        assert "SUCCESS" in printed
        assert "1 templates" in printed
        assert "FAILED" not in printed

    def test_starts_without_secrets(self, tmp_path: Path) -> None:
        """A secret that is missing keeps nothing from starting, and is told where it is needed."""
        config = json.loads(json.dumps(shipped()).replace(SECRETS, str(tmp_path / "none")))
        hasten(config)
        binary = program("prometheus-alertmanager")
        with alertmanager(binary, tmp_path / "am", config) as server:
            server.post(alert("APSchedulerRunsLost", job="billing", scheduler="default"))
            failed = r'notifications_failed_total{integration="(\w+)".*} [1-9]'
            expected = {"pagerduty", "slack"}
            eventually(lambda: set(re.findall(failed, get(f"{server.url}/metrics")[1])) == expected)
            assert f"open {tmp_path / 'none'}" in server.log.read_text()

    def test_secrets(self) -> None:
        """Every secret is read from a file."""
        text = json.dumps(shipped())
        secret = r'"(slack_api_url|api_url|routing_key|service_key|\w*password|credentials)":'
        assert re.findall(secret, text) == []
        assert sorted(re.findall(rf"{SECRETS}/(\w+)", text)) == [
            "pagerduty_routing_key",
            "slack_api_url",
            "smtp_password",
        ]

    def test_resolved(self) -> None:
        """Every receiver says when it is over, but the switch, which would take it for a ping."""
        told = {
            (receiver["name"], one["send_resolved"])
            for receiver in shipped()["receivers"]
            for kind, several in receiver.items()
            if kind != "name"
            for one in several
        }
        names = {receiver["name"] for receiver in shipped()["receivers"]}
        assert told == {(name, name != "watchdog") for name in names}

    def test_slack_is_slack(self) -> None:
        """All channels get the same message."""
        messages = [
            {key: value for key, value in one.items() if key != "channel"}
            for receiver in shipped()["receivers"]
            for one in receiver.get("slack_configs", ())
        ]
        assert len(messages) == 3
        assert messages == messages[:1] * 3

    def test_grouping(self) -> None:
        """An application's scheduler is a group; an application is an e-mail."""
        grouping = {
            route["receiver"]: route["group_by"]
            for route in routes(shipped())
            if "group_by" in route
        }
        assert grouping == {
            "slack": ["job", "scheduler"],
            "watchdog": ["alertname"],
            "digest": ["job"],
        }

    def test_digest_waits_less_than_events_last(self) -> None:
        """A group that is over before its first message gets none, and events last ten minutes."""
        [digest] = (route for route in routes(shipped()) if route["receiver"] == "digest")
        assert seconds(digest["group_wait"]) < 600
        assert seconds(digest["group_interval"]) >= 3600

    def test_watchdog_is_in_time(self) -> None:
        """The ping of five minutes is not put off to the next look, and by a minute at most."""
        [watchdog] = (route for route in routes(shipped()) if route["receiver"] == "watchdog")
        assert seconds(watchdog["repeat_interval"]) == 300
        assert seconds(watchdog["group_interval"]) <= 60

    def test_maintenance(self) -> None:
        """The window mutes all but the switch and the digest, and is over until it is moved."""
        config = shipped()
        muted = {route["receiver"] for route in routes(config) if "mute_time_intervals" in route}
        assert muted == {"critical", "payments", "slack"}
        [window] = config["time_intervals"]
        assert {
            route.get("mute_time_intervals", ["maintenance"])[0] for route in routes(config)
        } == {window["name"]}
        assert all(int(part["years"][0]) < 2024 for part in window["time_intervals"])


class TestRoutes:
    """Where amtool says that alerts go."""

    def test_alerts_are_those_of_the_rules(self) -> None:
        """What is tested here are all alerts there are, at the severity that the rules give."""
        given: dict[str, set[str]] = {}
        for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    # Either a word, or the job's own severity and else a word.
                    default = rule["labels"]["severity"].removesuffix("{{ end }}")
                    default = default.rpartition("{{ else }}")[2]
                    given.setdefault(rule["alert"], set()).add(default)
        expected = {**JOBS, **SCHEDULERS, **WATCHDOG}
        assert given.keys() == expected.keys()
        assert {
            name: severity for name, severity in expected.items() if severity not in given[name]
        } == {}

    @pytest.mark.parametrize(("name", "severity"), {**JOBS, **SCHEDULERS}.items())
    def test_default(self, name: str, severity: str) -> None:
        """An alert goes where its severity belongs."""
        labels = {"job": "billing", "scheduler": "default", "severity": severity}
        assert heard(alertname=name, **labels) == HEARD[severity]

    @pytest.mark.parametrize("severity", HEARD)
    @pytest.mark.parametrize("name", ["APSchedulerMissedRun", "APSchedulerRunsCoalesced"])
    def test_overridden(self, name: str, severity: str) -> None:
        """The severity that the application gave its job decides, and not the alert's name."""
        assert heard(alertname=name, job_id="nightly", severity=severity) == HEARD[severity]

    @pytest.mark.parametrize(("name", "severity"), JOBS.items())
    def test_owner(self, name: str, severity: str) -> None:
        """The owner hears of it besides; the digest is kept free of that."""
        also = set() if severity == "info" else {"slack #payments"}
        labels = {"job_id": "nightly", "severity": severity}
        assert heard(alertname=name, owner="payments", **labels) == HEARD[severity] | also
        assert heard(alertname=name, owner="nobody", **labels) == HEARD[severity]

    def test_watchdog(self) -> None:
        """The Watchdog goes to the switch and to nobody else, even if somebody relabels it."""
        assert heard(alertname="APSchedulerWatchdog", severity="none") == {"webhook"}
        assert heard(alertname="APSchedulerWatchdog", severity="critical", owner="payments") == {
            "webhook"
        }

    @pytest.mark.parametrize("labels", [{}, {"severity": "urgent"}], ids=["none", "made-up"])
    def test_unknown_severity(self, labels: dict[str, str]) -> None:
        """What has no severity, or one that somebody made up, is not lost."""
        assert heard(alertname="APSchedulerMissedRun", **labels) == {"slack #alerts"}


@dataclass(frozen=True, kw_only=True)
class Wires:
    """An Alertmanager with the shipped receivers, and where they end."""

    server: Alertmanager
    http: Receiver
    mailbox: Mailbox

    def slack(self, *words: str, channel: str = "#alerts-critical") -> dict[str, Any]:
        """Return the first message to a channel whose text has all the words."""

        def wanted(post: Post) -> bool:
            return (
                post.path == "/slack"
                and post.json["channel"] == channel
                and all(word in post.json["attachments"][0]["text"] for word in words)
            )

        attachment: dict[str, Any] = self.http.wait_for(wanted)[0].json["attachments"][0]
        return attachment

    def pagerduty(self, application: str, action: str = "trigger") -> dict[str, Any]:
        """Return the first event of a kind for an application."""

        def wanted(post: Post) -> bool:
            if post.path != "/pagerduty" or post.json["event_action"] != action:
                return False
            return application in json.dumps(post.json)

        event: dict[str, Any] = self.http.wait_for(wanted)[0].json
        return event

    def mail(self, *words: str) -> Mail:
        """Return the first e-mail that has all the words."""

        def wanted(mail: Mail) -> bool:
            return all(word in mail.body("plain") for word in words)

        return self.mailbox.wait_for(wanted)[0]


def repointed(config: dict[str, Any], directory: Path, http: Receiver, mailbox: Mailbox) -> Any:
    """Return a configuration whose secrets and addresses are those of the tests' own servers."""
    secrets = {
        "slack_api_url": f"{http.url}/slack\n",  # with the end of line that editors leave
        "smtp_password": "open sesame",
        "pagerduty_routing_key": "the-key",
    }
    for name, value in secrets.items():
        (directory / name).write_text(value)
    config = json.loads(json.dumps(config).replace(SECRETS, str(directory)))
    config["global"].update(
        smtp_smarthost=mailbox.address,
        smtp_require_tls=False,
        pagerduty_url=f"{http.url}/pagerduty",
    )
    [watchdog] = (receiver for receiver in config["receivers"] if receiver["name"] == "watchdog")
    watchdog["webhook_configs"][0]["url"] = f"{http.url}/watchdog"
    return config


def hooked(config: dict[str, Any], http: Receiver) -> dict[str, Any]:
    """Return a configuration in which each receiver is a webhook whose path is its name."""
    config["receivers"] = [
        {"name": name, "webhook_configs": [{"url": f"{http.url}/{name}"}]}
        for name in destinations(config)
    ]
    return config


@pytest.fixture(scope="module")
def wires(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wires]:
    """Run the shipped configuration, every message of which comes here."""
    directory = tmp_path_factory.mktemp("wires")
    config = shipped()
    hasten(config)
    with Receiver() as http, Mailbox() as mailbox:
        config = repointed(config, directory, http, mailbox)
        with alertmanager(program("prometheus-alertmanager"), directory, config) as server:
            yield Wires(server=server, http=http, mailbox=mailbox)


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Alertmanager, Receiver]]:
    """Run the shipped routes and inhibitions, with webhooks at their ends."""
    config = shipped()
    hasten(config)
    with Receiver() as http:
        config = hooked(config, http)
        directory = tmp_path_factory.mktemp("hooks")
        with alertmanager(program("prometheus-alertmanager"), directory, config) as server:
            yield server, http


TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
"""How every time in a message looks, in the annotations of the rules as well."""

ANNOTATIONS = {
    "summary": "A run was due and has not started.",
    "description": "Job nightly of scheduler default was due. First check its process.",
    "due": "2026-03-01 02:00:00 UTC",
    "last_success": "2026-02-28 02:00:07 UTC",
    "last_seen": "host web-1, instance 10.0.0.5:9476, process 4711",
    "runbook_url": f"{RUNBOOK}#apschedulermissedrun",
}


class TestSlack:
    """What Alertmanager posts to Slack."""

    def test_names_everything(self, wires: Wires) -> None:
        """The message has a line for each label and annotation, and says how many alerts fire."""
        application = fresh("slack")
        labels = {"job": application, "scheduler": "default", "job_id": "nightly"}
        wires.server.post(alert("APSchedulerMissedRun", ANNOTATIONS, owner="accounts", **labels))
        message = wires.slack(application)
        title = f"[FIRING:1] APSchedulerMissedRun job default/nightly of {application}"
        assert message["title"] == message["fallback"] == title
        assert message["title_link"].endswith("/#/alerts?receiver=critical")
        assert message["color"] == "danger"
        lines = re.sub(rf"since: {TIME}", "since: TIME", message["text"].strip()).splitlines()
        assert lines == [
            "*Firing: 1*",
            "*APSchedulerMissedRun* (critical): A run was due and has not started.",
            "Job nightly of scheduler default was due. First check its process.",
            "• Job: `default/nightly`",
            f"• Application: `{application}`",
            "• Owner: accounts",
            "• Due: 2026-03-01 02:00:00 UTC",
            "• Last success: 2026-02-28 02:00:07 UTC",
            "• Last seen: host web-1, instance 10.0.0.5:9476, process 4711",
            "• Firing since: TIME",
            f"• <{RUNBOOK}#apschedulermissedrun|Runbook>",
        ]

    def test_bare(self, wires: Wires) -> None:
        """What an alert lacks has no line."""
        instance = fresh("bare")
        wires.server.post({"labels": {"instance": instance, "severity": "warning"}})
        message = wires.slack(instance, channel="#alerts")
        assert message["title"] == "[FIRING:1] APScheduler"
        assert message["color"] == "warning"
        lines = message["text"].strip().splitlines()
        assert lines[:3] == ["*Firing: 1*", "*Alert* (warning)", f"• Instance: `{instance}`"]
        assert lines[3].startswith("• Firing since: ")
        assert len(lines) == 4

    def test_group(self, wires: Wires) -> None:
        """A scheduler's alerts come together, those that are over apart from those that fire."""
        application = fresh("group")
        labels = {"job": application, "scheduler": "default"}
        first, second, third = (
            alert("APSchedulerRunsLost", ANNOTATIONS, job_id=job_id, **labels)
            for job_id in ("first", "second", "third")
        )
        wires.server.post(first, second, third)
        both = wires.slack(application, "*Firing: 3*")
        assert both["title"] == f"[FIRING:3] APSchedulerRunsLost scheduler default of {application}"
        wires.server.post(resolved(first))
        later = wires.slack(application, "*No longer firing: 1*")
        assert later["title"].startswith("[FIRING:2 RESOLVED:1] APSchedulerRunsLost")
        firing, _, over = later["text"].partition("*No longer firing: 1*")
        assert [job in firing for job in ("default/first", "default/second")] == [False, True]
        assert [job in over for job in ("default/first", "default/second")] == [True, False]
        assert "• Ended: " in over
        assert "• Ended: " not in firing

    def test_over(self, wires: Wires) -> None:
        """The end of all is good news."""
        application = fresh("over")
        down = alert("APSchedulerSchedulerDown", job=application, scheduler="default")
        wires.server.post(down)
        assert wires.slack(application)["title"].endswith(f" scheduler default of {application}")
        wires.server.post(resolved(down))
        attachment = wires.slack(application, "*No longer firing: 1*")
        assert attachment["title"].startswith("[RESOLVED:1] APSchedulerSchedulerDown")
        assert attachment["color"] == "good"
        assert "Firing:" not in attachment["text"]

    def test_markup(self, wires: Wires) -> None:
        """Names such as <lambda> are shown, and not taken for links."""
        application = fresh("markup")
        annotations = {
            "description": "<!channel> a & b",
            "summary": "<b>",
            "due": "<",
            "last_success": ">",
            "last_seen": "<&>",
        }
        labels = {"job": application, "scheduler": "<s>", "job_id": "app:<lambda>"}
        wires.server.post(alert("APSchedulerRunsLost", annotations, **labels))
        message = wires.slack(application)
        assert message["title"].endswith(f"job &lt;s&gt;/app:&lt;lambda&gt; of {application}")
        assert "`&lt;s&gt;/app:&lt;lambda&gt;`" in message["text"]
        assert "&lt;!channel&gt; a &amp; b" in message["text"]
        assert "<" not in message["text"]

    def test_bounded(self, wires: Wires) -> None:
        """Of many alerts, twenty are listed, and all are counted."""
        application = fresh("many")
        labels = {"job": application, "scheduler": "default"}
        wires.server.post(
            *(alert("APSchedulerRunsLost", job_id=f"j{i}", **labels) for i in range(25))
        )
        text = wires.slack(application, "*Firing: 25*")["text"]
        assert text.count("*APSchedulerRunsLost*") == 20
        assert "Only 20 of 25 are listed: <" in text


class TestPagerDuty:
    """What Alertmanager posts to PagerDuty."""

    def test_event(self, wires: Wires) -> None:
        """The event has the key from its file, and a line for each label and annotation."""
        application = fresh("page")
        labels = {"job": application, "scheduler": "default", "job_id": "nightly"}
        missed = alert("APSchedulerMissedRun", ANNOTATIONS, **labels)
        wires.server.post(missed)
        event = wires.pagerduty(application)
        assert event["routing_key"] == "the-key"
        assert event["links"] == [{"href": f"{RUNBOOK}#apschedulermissedrun", "text": "Runbook"}]
        payload = event["payload"]
        summary = f"[FIRING:1] APSchedulerMissedRun job default/nightly of {application}"
        assert payload["summary"] == summary
        assert payload["severity"] == "critical"
        assert payload["class"] == "APSchedulerMissedRun"
        assert payload["component"] == "default"
        assert payload["group"] == application
        details = payload["custom_details"]
        assert details["num_firing"] == "1"
        assert details["num_resolved"] == "0"
        assert details["runbook"] == f"{RUNBOOK}#apschedulermissedrun"
        assert details["resolved"] == ""
        firing = re.sub(rf"since: {TIME}", "since: TIME", details["firing"])
        assert [line.strip() for line in firing.splitlines() if line] == [
            "APSchedulerMissedRun (critical): A run was due and has not started.",
            "Job nightly of scheduler default was due. First check its process.",
            "Job: default/nightly",
            f"Application: {application}",
            "Due: 2026-03-01 02:00:00 UTC",
            "Last success: 2026-02-28 02:00:07 UTC",
            "Last seen: host web-1, instance 10.0.0.5:9476, process 4711",
            "Firing since: TIME",
            f"Runbook: {RUNBOOK}#apschedulermissedrun",
        ]
        wires.server.post(resolved(missed))
        # Only the incident's key tells which one is over.
        key = event["dedup_key"]
        wires.http.wait_for(
            lambda post: (
                post.path == "/pagerduty"
                and (post.json["event_action"], post.json["dedup_key"]) == ("resolve", key)
            )
        )

    def test_bare(self, wires: Wires) -> None:
        """Without annotations and job, the link leads to the beginning of the runbook."""
        application = fresh("bare")
        wires.server.post({"labels": {"severity": "critical", "job": application}})
        event = wires.pagerduty(application)
        assert event["payload"]["summary"] == f"[FIRING:1] APScheduler of {application}"
        assert event["links"] == [{"href": RUNBOOK, "text": "Runbook"}]

    def test_besides_slack(self, wires: Wires) -> None:
        """A critical alert of a team pages, and is in both channels."""
        application = fresh("owner")
        labels = {"job": application, "scheduler": "default", "job_id": "nightly"}
        wires.server.post(alert("APSchedulerRunsLost", owner="payments", **labels))
        wires.pagerduty(application)
        wires.slack(application, channel="#alerts-critical")
        wires.slack(application, channel="#payments")


class TestEmail:
    """What Alertmanager sends by e-mail."""

    def test_names_everything(self, wires: Wires) -> None:
        """The e-mail has a line for each label and annotation, as text and as HTML."""
        application = fresh("mail")
        labels = {"job": application, "scheduler": "default", "job_id": "nightly"}
        wires.server.post(alert("APSchedulerRunsCoalesced", ANNOTATIONS, **labels))
        mail = wires.mail(application)
        assert mail.login == ("alertmanager@example.org", "open sesame")
        assert mail.to == "team@example.org"
        subject = f"[FIRING:1] APSchedulerRunsCoalesced job default/nightly of {application}"
        assert mail.message["Subject"] == subject
        for kind in ("plain", "html"):
            body = mail.body(kind)
            for words in ("default/nightly", application, *ANNOTATIONS.values()):
                assert words in body, (kind, words)
            assert "Firing: 1" in body
            assert "No longer firing" not in body
            assert "/#/alerts?receiver=digest" in body
        assert f'<a href="{RUNBOOK}#apschedulermissedrun">' in mail.body("html")

    def test_bare(self, wires: Wires) -> None:
        """What an alert lacks has no line."""
        instance = fresh("bare")
        wires.server.post({"labels": {"severity": "info", "instance": instance}})
        mail = wires.mail(instance)
        assert mail.message["Subject"] == "[FIRING:1] APScheduler"
        for kind in ("plain", "html"):
            for words in ("Job", "Scheduler:", "Application", "Due", "Last", "Runbook"):
                assert words not in mail.body(kind)

    def test_escaped(self, wires: Wires) -> None:
        """Whatever names and annotations hold, no HTML comes of it, and no link but to the web."""
        application = fresh("escaped")
        evil = "<script>alert('x')</script>"
        annotations = dict.fromkeys(
            ("summary", "description", "due", "last_success", "last_seen"), evil
        )
        annotations["runbook_url"] = "javascript:alert('x')"
        labels = dict.fromkeys(("scheduler", "job_id", "instance", "owner"), evil)
        wires.server.post(alert("APSchedulerRunsCoalesced", annotations, job=application, **labels))
        mail = wires.mail(application)
        assert evil in mail.body("plain")
        html = mail.body("html")
        assert "<script" not in html
        assert html.count("&lt;script&gt;") >= 9
        assert 'href="javascript:' not in html

    def test_digest(self, tmp_path: Path) -> None:
        """An application's alerts are one e-mail, and what came and went since is in the next."""
        config = shipped()
        hasten(config, 20 * HASTE)  # twelve hours are two seconds
        application = fresh("digest")
        first, second = (
            alert("APSchedulerRunsCoalesced", job=application, scheduler=name, job_id=name)
            for name in ("first", "second")
        )
        with Receiver() as http, Mailbox() as mailbox:
            config = repointed(config, tmp_path, http, mailbox)
            with alertmanager(program("prometheus-alertmanager"), tmp_path, config) as server:
                wires = Wires(server=server, http=http, mailbox=mailbox)
                server.post(first)
                wires.mail("first/first")
                server.post(second)
                server.post(resolved(second))
                assert "first/first" in wires.mail("second/second").body("plain")


class TestWatchdog:
    """The alert that always fires."""

    def test_pings_and_nothing_else(self, wires: Wires) -> None:
        """It pings the switch again and again, nobody else hears of it, and its end is no ping."""
        watchdog = alert("APSchedulerWatchdog")
        wires.server.post(watchdog)

        def ping(post: Post) -> bool:
            return post.path == "/watchdog"

        wires.http.wait_for(ping, 3)
        wires.server.post(resolved(watchdog))
        eventually(lambda: not wires.server.alerts(alertname="APSchedulerWatchdog"))
        # What comes after it in the same group is sent together with its end, if that is sent.
        again = alert("APSchedulerWatchdog", cluster=fresh("again"))
        wires.server.post(again)
        wires.http.wait_for(lambda post: ping(post) and post.has(**again["labels"]))
        pings = wires.http.at("/watchdog")
        assert {entry["status"] for post in pings for entry in post.alerts} == {"firing"}
        elsewhere = [post for post in wires.http.items if not ping(post)]
        assert "APSchedulerWatchdog" not in str(elsewhere)
        assert not any("Watchdog" in mail.body("plain") for mail in wires.mailbox.items)
        wires.server.post(resolved(again))


@dataclass(frozen=True, kw_only=True)
class Inhibition:
    """
    A cause and a symptom of it.

    Attributes:
        source: the cause, by name without APScheduler.
        target: the symptom.
        same: labels that both have, besides job and scheduler.
        unlike: labels that make the symptom that of something else.
        source_labels: labels of the cause alone.
        target_labels: labels of the symptom alone.
    """

    source: str
    target: str
    unlike: dict[str, str]
    same: dict[str, str] = field(default_factory=dict)
    source_labels: dict[str, str] = field(default_factory=dict)
    target_labels: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        replica = "-of-replica" if "instance" in self.same else ""
        return f"{self.source}-{self.target}{replica}-{'-'.join(self.unlike)}"


NIGHTLY, WEEKLY = {"job_id": "nightly"}, {"job_id": "weekly"}
HERE, THERE = {"instance": "here"}, {"instance": "there"}
OTHER_SCHEDULER, OTHER_JOB = {"scheduler": "other"}, {"job": "other"}

INHIBITIONS = [
    *(
        Inhibition(source=source, target=target, unlike=unlike, target_labels=NIGHTLY, **labels)
        for source, target, labels in (
            ("SchedulerDown", "MissedRun", {}),
            ("SchedulerDown", "JobStarved", {}),
            ("LoopDead", "MissedRun", {"source_labels": HERE}),
        )
        for unlike in (OTHER_SCHEDULER, OTHER_JOB)
    ),
    *(
        Inhibition(
            source="LoopDead", target="MissedRun", unlike=unlike, same=HERE, target_labels=NIGHTLY
        )
        for unlike in (THERE, OTHER_SCHEDULER, OTHER_JOB)
    ),
    *(
        Inhibition(source=source, target=target, unlike=unlike, same=NIGHTLY)
        for source, target in (
            ("JobStuck", "RunsSkipped"),
            ("JobStuck", "JobOverrunning"),
            ("JobStuck", "MissedRun"),
            ("JobFailing", "RunFailed"),
            ("JobDisappeared", "MissedRun"),
            ("RunsSkipped", "MissedRun"),
        )
        for unlike in (WEEKLY, OTHER_SCHEDULER, OTHER_JOB)
    ),
]

UNRELATED = {"critical": "APSchedulerRunsLost", "warning": "APSchedulerRunsMissed"}
"""Alerts that nothing silences; each is sent in the message in which a symptom would be."""


class TestInhibition:
    """A cause silences its symptoms."""

    def test_nothing_else_is_inhibited(self) -> None:
        """The causes and symptoms tested here are all that the file has."""
        pairs = {
            pair
            for rule in shipped()["inhibit_rules"]
            for pair in itertools.product(
                *(
                    re.findall(r"APScheduler(\w+)", str(rule[side]))
                    for side in ("source_matchers", "target_matchers")
                )
            )
        }
        assert pairs == {(inhibition.source, inhibition.target) for inhibition in INHIBITIONS}

    @pytest.mark.parametrize("inhibition", INHIBITIONS, ids=str)
    def test_symptom(self, hooks: tuple[Alertmanager, Receiver], inhibition: Inhibition) -> None:
        """The cause arrives, its symptom does not, and the same symptom of another thing does."""
        server, http = hooks
        application = fresh("inhibition")
        labels = {"job": application, "scheduler": "default", **inhibition.same}
        source = alert(f"APScheduler{inhibition.source}", **labels, **inhibition.source_labels)
        name = f"APScheduler{inhibition.target}"
        labels |= inhibition.target_labels
        unlike = {**labels, **inhibition.unlike}
        if unlike["job"] != application:
            unlike["job"] = f"{application}-other"
        # The first symptom only tells when Alertmanager knows the cause, which takes it a moment.
        probe, target, other = (
            alert(name, probe=number, **own)
            for number, own in (("0", labels), ("1", labels), ("2", unlike))
        )
        server.post(source, probe)
        cause = eventually(lambda: server.suppressed(**probe["labels"]))
        assert [found["fingerprint"] for found in server.alerts(**source["labels"])] == cause
        beside = alert(UNRELATED[target["labels"]["severity"]], **labels)
        server.post(target, beside, other)
        http.wait_for(lambda post: post.has(**source["labels"]))
        http.wait_for(lambda post: post.has(**beside["labels"]))
        http.wait_for(lambda post: post.has(**other["labels"]))
        assert server.suppressed(**target["labels"]) == cause
        assert not any(post.has(**target["labels"]) for post in http.items)

    def test_symptom_follows(self, hooks: tuple[Alertmanager, Receiver]) -> None:
        """A symptom that outlives its cause is sent then."""
        server, http = hooks
        labels = {"job": fresh("follows"), "scheduler": "default"}
        down = alert("APSchedulerSchedulerDown", **labels)
        missed = alert("APSchedulerMissedRun", job_id="nightly", **labels)
        server.post(down, missed)
        eventually(lambda: server.suppressed(**missed["labels"]))
        server.post(resolved(down))
        http.wait_for(lambda post: post.has(**missed["labels"]))

    def test_nameless_job(self, hooks: tuple[Alertmanager, Receiver]) -> None:
        """When APScheduler has dropped a job and does not say which, all jobs are still heard."""
        server, http = hooks
        labels = {"job": fresh("nameless"), "scheduler": "default"}
        nameless = alert("APSchedulerMissedRun", **labels)  # tells when the cause is known
        server.post(alert("APSchedulerJobDisappeared", **labels), nameless)
        eventually(lambda: [a for a in server.alerts(**labels) if a["status"]["inhibitedBy"]])
        missed = alert("APSchedulerMissedRun", job_id="nightly", **labels)
        server.post(missed)
        http.wait_for(lambda post: post.has(**missed["labels"]))


class TestMaintenance:
    """The window that mutes."""

    def test_window(self, tmp_path: Path) -> None:
        """While it is open, neither pages nor messages leave, and the Watchdog pings on."""
        config = shipped()
        hasten(config)
        config["route"]["group_interval"] = "1h"  # so that each group is looked at once
        config["time_intervals"][0]["time_intervals"] = [{"years": ["1970:2999"]}]  # now
        labels = {"job": fresh("muted"), "scheduler": "default", "job_id": "nightly"}
        with Receiver() as http:
            config = hooked(config, http)
            binary = program("prometheus-alertmanager")
            with alertmanager(binary, tmp_path, config, "--log.level=debug") as server:
                server.post(
                    alert("APSchedulerRunsLost", owner="payments", **labels),
                    alert("APSchedulerRunsMissed", **labels),
                )
                # Payments, critical and warning.
                eventually(lambda: server.log.read_text().count("route is within mute time") >= 3)
                server.post(alert("APSchedulerWatchdog"))
                http.wait_for(lambda post: post.path == "/watchdog")
                assert {post.path for post in http.items} == {"/watchdog"}
