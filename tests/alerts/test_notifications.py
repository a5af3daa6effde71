"""What Alertmanager sends to Slack, PagerDuty, by e-mail and to the watchdog's webhook."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

from tests.helpers.alertmanager_config import (
    HASTE,
    RUNBOOK,
    SECRETS,
    alert,
    fresh,
    hasten,
    resolved,
    shipped,
)
from tests.helpers.alertmanager_server import (
    Alertmanager,
    Mail,
    Mailbox,
    Post,
    Receiver,
    alertmanager,
)
from tests.helpers.servers import required_program
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.integration


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


@pytest.fixture(scope="module")
def wires(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wires]:
    """Run the shipped configuration, every message of which comes here."""
    directory = tmp_path_factory.mktemp("wires")
    config = shipped()
    hasten(config)
    with Receiver() as http, Mailbox() as mailbox:
        config = repointed(config, directory, http, mailbox)
        with alertmanager(required_program("prometheus-alertmanager"), directory, config) as server:
            yield Wires(server=server, http=http, mailbox=mailbox)


TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"
"""How every time in a message looks, in the annotations of the rules as well."""

ANNOTATIONS = {
    "summary": "A run was due and has not started.",
    "description": "Job nightly of scheduler default was due. First check its process.",
    "due": "2026-03-01 02:00:00 UTC",
    "started": "2026-03-01 02:00:01 UTC",
    "deadline": "2026-03-01 03:00:00 UTC",
    "exceptions": "KeyError (2)",
    "running_jobs": "sync since 2026-03-01 01:00:00 UTC",
    "usual": "20s",
    "last_success": "2026-02-28 02:00:07 UTC",
    "last_seen": "host web-1, instance 10.0.0.5:9476, process 4711",
    "runbook_url": f"{RUNBOOK}#apschedulermissedrun",
    "job_runbook_url": "https://wiki.example.org/nightly",
}


class TestSlack:
    """What Alertmanager posts to Slack."""

    def test_message_names_job_due_time_last_success_and_runbook(self, wires: Wires) -> None:
        """The message has a line for each label and annotation, and the number of alerts."""
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
            "• Started: 2026-03-01 02:00:01 UTC",
            "• Deadline: 2026-03-01 03:00:00 UTC",
            "• Exceptions: KeyError (2)",
            "• Running: sync since 2026-03-01 01:00:00 UTC",
            "• Usually takes: 20s",
            "• Last success: 2026-02-28 02:00:07 UTC",
            "• Last seen: host web-1, instance 10.0.0.5:9476, process 4711",
            "• Firing since: TIME",
            f"• <{RUNBOOK}#apschedulermissedrun|Runbook>",
            "• <https://wiki.example.org/nightly|Runbook of the job>",
        ]

    def test_missing_labels_and_annotations_have_no_line(self, wires: Wires) -> None:
        """Labels and annotations that an alert does not have get no line."""
        instance = fresh("bare")
        wires.server.post({"labels": {"instance": instance, "severity": "warning"}})
        message = wires.slack(instance, channel="#alerts")
        assert message["title"] == "[FIRING:1] APScheduler"
        assert message["color"] == "warning"
        lines = message["text"].strip().splitlines()
        assert lines[:3] == ["*Firing: 1*", "*Alert* (warning)", f"• Instance: `{instance}`"]
        assert lines[3].startswith("• Firing since: ")
        assert len(lines) == 4

    def test_alerts_of_a_scheduler_come_in_one_message(self, wires: Wires) -> None:
        """Alerts of a scheduler are in one message, resolved alerts apart from firing ones."""
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

    def test_resolved_group_has_a_message_of_its_own(self, wires: Wires) -> None:
        """When all alerts of a group are resolved, a message in another colour says so."""
        application = fresh("over")
        down = alert("APSchedulerSchedulerDown", job=application, scheduler="default")
        wires.server.post(down)
        assert wires.slack(application)["title"].endswith(f" scheduler default of {application}")
        wires.server.post(resolved(down))
        attachment = wires.slack(application, "*No longer firing: 1*")
        assert attachment["title"].startswith("[RESOLVED:1] APSchedulerSchedulerDown")
        assert attachment["color"] == "good"
        assert "Firing:" not in attachment["text"]

    def test_names_in_angle_brackets_are_shown_as_text(self, wires: Wires) -> None:
        """Names such as <lambda> are shown as text, and not as links."""
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

    def test_twenty_alerts_are_listed_and_all_are_counted(self, wires: Wires) -> None:
        """Twenty alerts of a group are listed, and all are counted."""
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

    def test_event_has_its_key_and_names_job_due_time_and_runbook(self, wires: Wires) -> None:
        """The event has the routing key from the file, and a line for each label and annotation."""
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
            "Started: 2026-03-01 02:00:01 UTC",
            "Deadline: 2026-03-01 03:00:00 UTC",
            "Exceptions: KeyError (2)",
            "Running: sync since 2026-03-01 01:00:00 UTC",
            "Usually takes: 20s",
            "Last success: 2026-02-28 02:00:07 UTC",
            "Last seen: host web-1, instance 10.0.0.5:9476, process 4711",
            "Firing since: TIME",
            f"Runbook: {RUNBOOK}#apschedulermissedrun",
            "Runbook of the job: https://wiki.example.org/nightly",
        ]
        wires.server.post(resolved(missed))
        # PagerDuty finds the incident by its key only.
        key = event["dedup_key"]
        wires.http.wait_for(
            lambda post: (
                post.path == "/pagerduty"
                and (post.json["event_action"], post.json["dedup_key"]) == ("resolve", key)
            )
        )

    def test_event_without_annotations_links_to_the_runbook(self, wires: Wires) -> None:
        """Without annotations and job, the link leads to the top of the runbook."""
        application = fresh("bare")
        wires.server.post({"labels": {"severity": "critical", "job": application}})
        event = wires.pagerduty(application)
        assert event["payload"]["summary"] == f"[FIRING:1] APScheduler of {application}"
        assert event["links"] == [{"href": RUNBOOK, "text": "Runbook"}]

    def test_critical_alert_of_a_team_pages_and_is_in_both_channels(self, wires: Wires) -> None:
        """A critical alert with an owner pages, and is posted to both Slack channels."""
        application = fresh("owner")
        labels = {"job": application, "scheduler": "default", "job_id": "nightly"}
        wires.server.post(alert("APSchedulerRunsLost", owner="payments", **labels))
        wires.pagerduty(application)
        wires.slack(application, channel="#alerts-critical")
        wires.slack(application, channel="#payments")


class TestEmail:
    """What Alertmanager sends by e-mail."""

    def test_email_names_job_due_time_last_success_and_runbook(self, wires: Wires) -> None:
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

    def test_missing_labels_and_annotations_have_no_line(self, wires: Wires) -> None:
        """Labels and annotations that an alert does not have get no line."""
        instance = fresh("bare")
        wires.server.post({"labels": {"severity": "info", "instance": instance}})
        mail = wires.mail(instance)
        assert mail.message["Subject"] == "[FIRING:1] APScheduler"
        for kind in ("plain", "html"):
            for words in ("Job", "Scheduler:", "Application", "Due", "Last", "Runbook"):
                assert words not in mail.body(kind)

    def test_names_and_annotations_are_escaped_in_html(self, wires: Wires) -> None:
        """Names and annotations are escaped in HTML, and only web addresses become links."""
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

    def test_alerts_of_an_application_are_one_email(self, tmp_path: Path) -> None:
        """Alerts of an application are in one e-mail; later changes are in the next one."""
        config = shipped()
        hasten(config, 20 * HASTE)  # twelve hours are two seconds
        application = fresh("digest")
        first, second = (
            alert("APSchedulerRunsCoalesced", job=application, scheduler=name, job_id=name)
            for name in ("first", "second")
        )
        with Receiver() as http, Mailbox() as mailbox:
            config = repointed(config, tmp_path, http, mailbox)
            with alertmanager(
                required_program("prometheus-alertmanager"), tmp_path, config
            ) as server:
                wires = Wires(server=server, http=http, mailbox=mailbox)
                server.post(first)
                wires.mail("first/first")
                server.post(second)
                server.post(resolved(second))
                assert "first/first" in wires.mail("second/second").body("plain")


class TestWatchdog:
    """The alert that always fires."""

    def test_watchdog_pings_its_webhook_and_no_other_receiver(self, wires: Wires) -> None:
        """The Watchdog is sent to its webhook repeatedly, not to others, and not when resolved."""
        watchdog = alert("APSchedulerWatchdog")
        wires.server.post(watchdog)

        def ping(post: Post) -> bool:
            return post.path == "/watchdog"

        wires.http.wait_for(ping, 3)
        wires.server.post(resolved(watchdog))
        wait_for_answer(lambda: not wires.server.alerts(alertname="APSchedulerWatchdog"))
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
