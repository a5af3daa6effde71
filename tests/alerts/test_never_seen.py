"""
The rules that ``apscheduler-telemetry export --expect`` writes, and APSchedulerJobNeverSeen.

promtool evaluates them together with the shipped rules.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

from apscheduler_telemetry.cli.expected_jobs import ExpectedJob, format_jobs_as_yaml
from apscheduler_telemetry.cli.export import export_files
from apscheduler_telemetry.cli.never_seen_rules import (
    EXPECTED_RULES_FILE,
    MAX_EXPRESSION_LENGTH,
    NEVER_SEEN_ALERT,
    build_rules,
)
from examples.demo import speed
from tests.helpers.paths import APPLICATIONS, ROOT
from tests.helpers.promtool import run_rule_tests
from tests.helpers.servers import prometheus, required_program
from tests.helpers.waiting import wait_for_answer

pytestmark = pytest.mark.integration

RUNBOOK = "https://github.com/apscheduler-telemetry/apscheduler-telemetry/blob/main/docs/runbook.md"
SHIPPED = (ROOT / "alerts" / "apscheduler.rules.yml").read_bytes()
HOSTILE = "we\"ird\\ {{ .x }} {{ end }} $1 ${job} '%s' \n\u2028\x85ü😀\x1b[31m #: - no"
NIGHTLY = ExpectedJob(application="shop", scheduler="main", job_id="nightly")
LABELS = {"job": "shop", "instance": "a", "scheduler": "main"}
DAY = 24 * 60

Series = Mapping[str, str]


def selector(name: str, **labels: str) -> str:
    """Return the name of a series, as promtool reads it."""
    pairs = [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in labels.items()]
    return f"{name}{{{','.join(pairs)}}}"


def series_of(
    next_run: str, alive: str, *, state: str = "running", job_id: str = "nightly", **labels: str
) -> Series:
    """Return the series of a scheduler with one job; the values are promtool's notation."""
    of = {**LABELS, **labels}
    singleton = of.pop("singleton", "true")
    process = {"hostname": "web-1", "pid": "7", "singleton": singleton}
    return {
        selector("apscheduler_scheduler_info", **of, **process): alive,
        selector("apscheduler_scheduler_up", **of): alive,
        selector("apscheduler_scheduler_start_timestamp_seconds", **of): alive,
        **{
            selector("apscheduler_scheduler_state", **of, state=each): (
                alive if each == state else re.sub(r"\b1x", "0x", alive)
            )
            for each in ("running", "paused", "stopped")
        },
        selector("apscheduler_job_next_run_timestamp_seconds", **of, job_id=job_id): next_run,
        selector("apscheduler_job_grace_seconds", **of, job_id=job_id): re.sub(
            r"\d+x", "60x", next_run
        ),
    }


class Promtool:
    """The shipped rules, and those for some jobs, in promtool."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def export(self, jobs: Sequence[ExpectedJob]) -> Path:
        """Export the rules, and return their directory."""
        (self.directory / "jobs.yml").write_text(format_jobs_as_yaml(jobs), "utf-8")
        out = self.directory / "out"
        export_files(out, expect=[self.directory / "jobs.yml"], force=True)
        return out / "alerts"

    def check(
        self,
        jobs: Sequence[ExpectedJob],
        series: Series,
        firing: Mapping[int, set[str]],
        alerts: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
        minutes: int = 1,
    ) -> None:
        """
        Let promtool check which alerts fire.

        Args:
            jobs: the jobs that are expected.
            series: the input.
            firing: the alerts that fire at some minutes.
            alerts: for some minutes, APSchedulerJobNeverSeen with all labels and annotations.
            minutes: the interval of scrapes and evaluations.
        """
        directory = self.export(jobs)
        files = ["apscheduler.rules.yml", EXPECTED_RULES_FILE]
        groups = [yaml.safe_load((directory / name).read_text("utf-8"))["groups"] for name in files]
        query = (
            'count by (alertname) (ALERTS{alertstate="firing",alertname!="APSchedulerWatchdog"})'
        )
        document = {
            "rule_files": files,
            "evaluation_interval": f"{minutes}m",
            "group_eval_order": [group["name"] for some in groups for group in some],
            "tests": [
                {
                    "interval": f"{minutes}m",
                    "input_series": [{"series": k, "values": v} for k, v in series.items()],
                    "alert_rule_test": [
                        {
                            "eval_time": f"{at}m",
                            "alertname": NEVER_SEEN_ALERT,
                            "exp_alerts": list(expected),
                        }
                        for at, expected in (alerts or {}).items()
                    ],
                    "promql_expr_test": [
                        {
                            "expr": f"{query} * 0",
                            "eval_time": f"{at}m",
                            "exp_samples": [
                                {"labels": selector("", alertname=name), "value": 0}
                                for name in sorted(names)
                            ],
                        }
                        for at, names in firing.items()
                    ],
                }
            ],
        }
        (directory / "test.yml").write_text(yaml.safe_dump(document), "utf-8")
        ran = run_rule_tests(directory / "test.yml")
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture
def promtool(tmp_path: Path) -> Promtool:
    return Promtool(tmp_path)


def alert(
    job: ExpectedJob, *, severity: str = "critical", last_seen: str = "unknown"
) -> dict[str, Any]:
    """Return the alert on a job, with all labels and annotations."""
    labels = {
        "job": job.application,
        "scheduler": job.scheduler,
        "job_id": job.job_id,
        "severity": severity,
    }
    if job.owner is not None:
        labels["owner"] = job.owner
    return {
        "exp_labels": labels,
        "exp_annotations": {
            "summary": "A job that must exist has no next run, and no scheduler has it.",
            "description": (
                f"Job {job.job_id} of scheduler {job.scheduler} in application {job.application} "
                "is in jobs.yml, but for more than 15 minutes no scheduler has had it, and "
                "Prometheus has no next run of it. It probably does not run. First check whether "
                "the application runs and Prometheus scrapes it: look at "
                f'up{{job="{job.application}"}}. If the job was removed on purpose, remove it from '
                "jobs.yml as well."
            ),
            "last_success": "none seen",
            "last_seen": last_seen,
            "runbook_url": f"{RUNBOOK}#apschedulerjobneverseen",
        },
    }


class TestFiring:
    def test_application_that_was_never_scraped(self, promtool: Promtool) -> None:
        """The alert fires after 15 minutes, without any series of the application."""
        promtool.check(
            [NIGHTLY],
            {},
            {14: set(), 15: {NEVER_SEEN_ALERT}, 60: {NEVER_SEEN_ALERT}},
            {15: [alert(NIGHTLY)]},
        )

    def test_severity_and_owner_are_those_of_the_file(self, promtool: Promtool) -> None:
        """The alert has severity and owner of the file; a job without them has the default."""
        own = ExpectedJob(
            application="shop",
            scheduler="main",
            job_id="invoices",
            severity="warning",
            owner="payments",
        )
        promtool.check(
            [NIGHTLY, own], {}, {}, {20: [alert(own, severity="warning"), alert(NIGHTLY)]}
        )

    def test_hostile_ids(self, promtool: Promtool) -> None:
        """Quotes, templates, groups of patterns and line breaks arrive in labels as they are."""
        job = ExpectedJob(application=HOSTILE, scheduler=HOSTILE, job_id=HOSTILE, owner=HOSTILE)
        promtool.check([job], {}, {}, {20: [alert(job)]})

    def test_scheduler_that_was_never_started(self, promtool: Promtool) -> None:
        """A process that is scraped, and whose scheduler is not started, has no jobs."""
        series = {
            name: values
            for name, values in series_of("0x60", "1x60", state="stopped").items()
            if "apscheduler_job" not in name
        }
        promtool.check([NIGHTLY], series, {14: set(), 15: {NEVER_SEEN_ALERT}})

    def test_job_of_another_scheduler_or_application(self, promtool: Promtool) -> None:
        """A job of the same id elsewhere is another job."""
        promtool.check(
            [NIGHTLY],
            {
                **series_of("999999x60", "1x60", scheduler="other"),
                **series_of("999999x60", "1x60", job="other"),
            },
            {15: {NEVER_SEEN_ALERT}},
        )

    def test_job_that_was_removed(self, promtool: Promtool) -> None:
        """
        The alert fires 15 minutes after the series of a removed job have ended.

        Nothing else fires, as the job was removed on purpose.
        """
        next_run = "999999x10 0x14 stale"
        promtool.check(
            [NIGHTLY],
            series_of(next_run, "1x90"),
            {25: set(), 40: set(), 41: {NEVER_SEEN_ALERT}},
            {41: [alert(NIGHTLY, last_seen="host web-1, instance a, process 7")]},
        )

    def test_application_that_is_gone(self, promtool: Promtool) -> None:
        """
        SchedulerDown and MissedRun fire while Prometheus keeps the next run, which is a week.

        Then they end, and the alert fires from then on.
        """
        next_run = f"{DAY * 60}x2 stale"  # due after a day
        promtool.check(
            [NIGHTLY],
            series_of(next_run, "1x2 stale"),
            {
                2 * 60: {"APSchedulerSchedulerDown"},
                2 * DAY: {"APSchedulerSchedulerDown", "APSchedulerMissedRun"},
                8 * DAY - 30: {"APSchedulerSchedulerDown", "APSchedulerMissedRun"},
                8 * DAY + 60: {NEVER_SEEN_ALERT},
                9 * DAY: {NEVER_SEEN_ALERT},
            },
            minutes=30,
        )

    def test_paused_job_whose_process_is_gone(self, promtool: Promtool) -> None:
        """Prometheus keeps no next run of a paused job, so the alert fires when it is gone."""
        promtool.check(
            [NIGHTLY], series_of("0x30 stale", "1x30 stale"), {45: set(), 46: {NEVER_SEEN_ALERT}}
        )

    def test_paused_job_of_a_scheduler_that_was_shut_down(self, promtool: Promtool) -> None:
        """A scheduler that was shut down has no jobs any more."""
        promtool.check(
            [NIGHTLY],
            series_of("0x60", "1x60", state="stopped"),
            {14: set(), 15: {NEVER_SEEN_ALERT}},
        )

    def test_replicas_that_are_all_gone(self, promtool: Promtool) -> None:
        """Prometheus keeps no next run of replicas, and the alert fires when the last is gone."""
        promtool.check(
            [NIGHTLY],
            {
                **series_of("999999x10 stale", "1x10 stale", singleton="false", instance="a"),
                **series_of("999999x30 stale", "1x30 stale", singleton="false", instance="b"),
            },
            {30: set(), 45: set(), 46: {NEVER_SEEN_ALERT}},
        )


class TestSilent:
    def test_job_with_a_next_run(self, promtool: Promtool) -> None:
        """A job that is scraped is there."""
        promtool.check([NIGHTLY], series_of("999999x90", "1x90"), {15: set(), 60: set()})

    def test_hostile_ids_are_found(self, promtool: Promtool) -> None:
        """The labels of the rules are those of the exposition, for every character."""
        promtool.check(
            [ExpectedJob(application="shop", scheduler="main", job_id=HOSTILE)],
            series_of("999999x90", "1x90", job_id=HOSTILE),
            {15: set(), 60: set()},
        )

    def test_job_that_is_paused(self, promtool: Promtool) -> None:
        """A live scheduler has it, and somebody has paused it on purpose."""
        promtool.check([NIGHTLY], series_of("0x90", "1x90"), {15: set(), 60: set()})

    def test_first_deploy(self, promtool: Promtool) -> None:
        """The rules may be loaded a quarter of an hour before the application starts."""
        promtool.check(
            [NIGHTLY], series_of("_x14 999999x90", "_x14 1x90"), {13: set(), 15: set(), 60: set()}
        )

    def test_restart(self, promtool: Promtool) -> None:
        """A process that is away for ten minutes is known by its next run."""
        promtool.check(
            [NIGHTLY],
            series_of("999999x20 stale _x9 999999x90", "1x20 stale _x9 1x90"),
            {29: {"APSchedulerSchedulerDown"}, 40: set(), 60: set()},
        )

    def test_replicas_of_which_one_is_left(self, promtool: Promtool) -> None:
        """One live replica with the job is enough."""
        promtool.check(
            [NIGHTLY],
            {
                **series_of("999999x10 stale", "1x10 stale", singleton="false", instance="a"),
                **series_of("999999x90", "1x90", singleton="false", instance="b"),
            },
            {60: set()},
        )


class TestFile:
    """The file of rules."""

    def test_file_is_valid(self, promtool: Promtool) -> None:
        """The file passes all checks of promtool, alone and with the shipped rules."""
        jobs = [
            ExpectedJob(application=HOSTILE, scheduler=HOSTILE, job_id=job_id, owner=owner)
            for job_id, owner in (("a", None), ("b", HOSTILE), (HOSTILE, HOSTILE))
        ]
        directory = promtool.export(jobs)
        program = required_program("promtool")
        for names in ([EXPECTED_RULES_FILE], ["apscheduler.rules.yml", EXPECTED_RULES_FILE]):
            checked = subprocess.run(
                [program, "check", "rules", "--lint=all", "--lint-fatal", *names],
                cwd=directory,
                capture_output=True,
                text=True,
                check=False,
            )
            assert checked.returncode == 0, checked.stdout + checked.stderr

    def test_expressions_are_bounded(self, promtool: Promtool) -> None:
        """A thousand jobs are a few rules, none of which is too long for other engines."""
        jobs = [
            ExpectedJob(
                application="shop",
                scheduler=f"scheduler-{number % 7}",
                job_id=f"nightly-import-{number}",
                owner=f"team-{number % 11}",
            )
            for number in range(1000)
        ]
        directory = promtool.export(jobs)
        [group] = yaml.safe_load((directory / EXPECTED_RULES_FILE).read_text())["groups"]
        expressions = [rule["expr"] for rule in group["rules"]]
        assert len(expressions) <= 20  # Mimir's default limit
        assert max(map(len, expressions)) <= MAX_EXPRESSION_LENGTH
        assert sorted(re.findall(r'"job_id", "([^"]+)"', "".join(expressions))) == sorted(
            job.job_id for job in jobs
        )
        promtool.check(jobs, {}, {})

    def test_longest_labels_have_a_rule_of_their_own(self) -> None:
        """Jobs with labels of the greatest length are divided as well."""
        jobs = [
            ExpectedJob(application="shop", scheduler="s" * 200, job_id=f"{n:03}" + "\x01" * 197)
            for n in range(40)
        ]
        [group] = yaml.safe_load(build_rules(jobs, SHIPPED))["groups"]
        *recorded, _ = group["rules"]
        assert len(recorded) > 1
        assert {len(rule["expr"]) <= MAX_EXPRESSION_LENGTH for rule in recorded} == {True}

    def test_file_does_not_depend_on_the_order_of_jobs(self) -> None:
        """The same jobs in another order are the same file, for the sake of version control."""
        jobs = [ExpectedJob(application=a, scheduler="s", job_id=j) for a in "ab" for j in "xyz"]
        assert build_rules(jobs, SHIPPED) == build_rules(jobs[::-1], SHIPPED)


@pytest.mark.slow
class TestPrometheus:
    def test_job_that_no_process_has_fires(self, tmp_path: Path) -> None:
        """In a real Prometheus, the alert fires for the job that is missing, and for no other."""
        binary = required_program("prometheus")
        missing = ExpectedJob(application="gone", scheduler="default", job_id=HOSTILE)
        present = ExpectedJob(application="app", scheduler="default", job_id="ok")
        directory = Promtool(tmp_path).export([missing, present])
        rules = []
        for name in ("apscheduler.rules.yml", EXPECTED_RULES_FILE):
            rules.append(tmp_path / name)
            rules[-1].write_text(
                speed.faster_rules((directory / name).read_text("utf-8"), 300), "utf-8"
            )
        with subprocess.Popen(
            [sys.executable, APPLICATIONS / "scraped.py"], stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                assert process.stdout is not None
                target = f"127.0.0.1:{process.stdout.readline().strip()}"
                with prometheus(binary, tmp_path / "data", [target], rules=rules) as server:
                    firing = f'ALERTS{{alertstate="firing",alertname="{NEVER_SEEN_ALERT}"}}'

                    def only_missing_job_fires() -> bool:
                        # Prometheus scrapes nothing in its first seconds, which are minutes here.
                        expected = server.query("apscheduler_job:expected")
                        ids = [labels["job_id"] for labels, _ in server.query(firing)]
                        return len(expected) == 2 and ids == [HOSTILE]

                    wait_for_answer(only_missing_job_fires)
            finally:
                process.terminate()
