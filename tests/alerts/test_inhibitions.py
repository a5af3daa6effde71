"""Alerts that are not sent because of another alert or a maintenance window."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml")

from tests.helpers.alertmanager_config import alert, destinations, fresh, hasten, resolved, shipped
from tests.helpers.alertmanager_server import Alertmanager, Receiver, alertmanager
from tests.helpers.servers import required_program
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.integration


def hooked(config: dict[str, Any], http: Receiver) -> dict[str, Any]:
    """Return a configuration in which each receiver is a webhook whose path is its name."""
    config["receivers"] = [
        {"name": name, "webhook_configs": [{"url": f"{http.url}/{name}"}]}
        for name in destinations(config)
    ]
    return config


@pytest.fixture(scope="module")
def hooks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Alertmanager, Receiver]]:
    """Run the shipped routes and inhibitions, with webhooks at their ends."""
    config = shipped()
    hasten(config)
    with Receiver() as http:
        config = hooked(config, http)
        directory = tmp_path_factory.mktemp("hooks")
        with alertmanager(required_program("prometheus-alertmanager"), directory, config) as server:
            yield server, http


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
        )
        for unlike in (WEEKLY, OTHER_SCHEDULER, OTHER_JOB)
    ),
]

UNRELATED = {"critical": "APSchedulerRunsLost", "warning": "APSchedulerRunsMissed"}
"""Alerts that nothing silences; each is sent in the message in which a symptom would be."""


class TestInhibition:
    """A cause inhibits its symptoms."""

    def test_tests_know_all_inhibitions_of_the_file(self) -> None:
        """The inhibitions in this file are exactly those of the configuration."""
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
    def test_symptom_is_not_sent_while_its_cause_fires(
        self, hooks: tuple[Alertmanager, Receiver], inhibition: Inhibition
    ) -> None:
        """Cause and unrelated alerts are sent; the symptom of the cause is not."""
        server, http = hooks
        application = fresh("inhibition")
        labels = {"job": application, "scheduler": "default", **inhibition.same}
        source = alert(f"APScheduler{inhibition.source}", **labels, **inhibition.source_labels)
        name = f"APScheduler{inhibition.target}"
        labels |= inhibition.target_labels
        unlike = {**labels, **inhibition.unlike}
        if unlike["job"] != application:
            unlike["job"] = f"{application}-other"
        # The first symptom only shows when Alertmanager has processed the cause.
        probe, target, other = (
            alert(name, probe=number, **own)
            for number, own in (("0", labels), ("1", labels), ("2", unlike))
        )
        server.post(source, probe)
        cause = wait_for_answer(lambda: server.suppressed(**probe["labels"]))
        assert [found["fingerprint"] for found in server.alerts(**source["labels"])] == cause
        beside = alert(UNRELATED[target["labels"]["severity"]], **labels)
        server.post(target, beside, other)
        http.wait_for(lambda post: post.has(**source["labels"]))
        http.wait_for(lambda post: post.has(**beside["labels"]))
        http.wait_for(lambda post: post.has(**other["labels"]))
        assert server.suppressed(**target["labels"]) == cause
        assert not any(post.has(**target["labels"]) for post in http.items)

    def test_symptom_that_outlives_its_cause_is_sent(
        self, hooks: tuple[Alertmanager, Receiver]
    ) -> None:
        """When the cause is resolved and the symptom still fires, the symptom is sent."""
        server, http = hooks
        labels = {"job": fresh("follows"), "scheduler": "default"}
        down = alert("APSchedulerSchedulerDown", **labels)
        missed = alert("APSchedulerMissedRun", job_id="nightly", **labels)
        server.post(down, missed)
        wait_for_answer(lambda: server.suppressed(**missed["labels"]))
        server.post(resolved(down))
        http.wait_for(lambda post: post.has(**missed["labels"]))

    def test_alert_without_job_id_inhibits_no_alert_on_jobs(
        self, hooks: tuple[Alertmanager, Receiver]
    ) -> None:
        """A JobDisappeared alert without `job_id` inhibits no alert about a job."""
        server, http = hooks
        labels = {"job": fresh("nameless"), "scheduler": "default"}
        nameless = alert("APSchedulerMissedRun", **labels)  # shows when the cause is processed
        server.post(alert("APSchedulerJobDisappeared", **labels), nameless)
        wait_for_answer(lambda: [a for a in server.alerts(**labels) if a["status"]["inhibitedBy"]])
        missed = alert("APSchedulerMissedRun", job_id="nightly", **labels)
        server.post(missed)
        http.wait_for(lambda post: post.has(**missed["labels"]))


class TestMaintenance:
    """The maintenance window, which mutes routes."""

    def test_nothing_but_the_watchdog_is_sent_in_the_window(self, tmp_path: Path) -> None:
        """During the maintenance window only the Watchdog is sent."""
        config = shipped()
        hasten(config)
        config["route"]["group_interval"] = "1h"  # so that each group is looked at once
        config["time_intervals"][0]["time_intervals"] = [{"years": ["1970:2999"]}]  # now
        labels = {"job": fresh("muted"), "scheduler": "default", "job_id": "nightly"}
        with Receiver() as http:
            config = hooked(config, http)
            binary = required_program("prometheus-alertmanager")
            with alertmanager(binary, tmp_path, config, "--log.level=debug") as server:
                server.post(
                    alert("APSchedulerRunsLost", owner="payments", **labels),
                    alert("APSchedulerRunsMissed", **labels),
                )
                # Payments, critical and warning.
                wait_for_answer(
                    lambda: server.log.read_text().count("route is within mute time") >= 3
                )
                server.post(alert("APSchedulerWatchdog"))
                http.wait_for(lambda post: post.path == "/watchdog")
                assert {post.path for post in http.items} == {"/watchdog"}
