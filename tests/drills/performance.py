"""The run of a drill: start applications, cause the fault, wait for the alert and its end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

from apscheduler_telemetry.cli.expected_jobs import ExpectedJob
from tests.drills.stage import WAIT_TIMEOUT, App, Stage
from tests.drills.webhook import DrillError, Notice
from tests.helpers.waiting import wait_for_answer


@dataclass
class Result:
    """What a drill has shown: a line of the table. Times are seconds."""

    fault: str
    alert: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    receiver: str = ""
    seconds: float | None = None
    since: str = "the fault"
    resolved_by: str = ""
    seconds_to_resolve: float | None = None
    also: list[str] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Drill:
    """A fault, the alert that must report it, and the function that causes it."""

    name: str
    fault: str
    alert: str
    job_id: str | None
    play: Callable[[Performance], None]
    jobs: tuple[str, ...]
    expected_jobs: tuple[ExpectedJob, ...] = ()
    """Those of ``jobs.yml``."""

    def targets(self, stage: Stage, job: str) -> list[str]:
        if self.name == "partition" and has_namespaces():
            return [f"{stage.link}.2"]
        return [stage.address(job)]


class Performance:
    """A drill while it runs."""

    def __init__(self, drill: Drill, stage: Stage) -> None:
        self.drill = drill
        self.stage = stage
        self.job = drill.jobs[0]
        self.address = stage.address(self.job)
        self.directory = stage.directory / drill.name
        self.directory.mkdir()
        self.result = Result(drill.fault)
        self.since = 0.0
        self.is_over = threading.Event()
        self._notice: Notice | None = None

    # What the application does

    def prepare(self, scene: str, *wrapper: str) -> App:
        """Start a process that waits for the order to go."""
        return self.stage.start(self.job, scene, self.address, self.directory, *wrapper)

    def start(self, scene: str, *words: str) -> App:
        """Start an application."""
        return self.prepare(scene).go(*words)

    def replace(self, app: App, scene: str) -> App:
        """
        Start an application in place of another one.

        The new one is imported before the old one ends, because that end resolves alerts, and the
        drill must already wait for them.
        """
        successor = self.prepare(scene).ready()
        app.kill()
        return successor.go()

    def watched(self, job_id: str | None = None) -> None:
        """Wait until Prometheus has known the application, or one of its jobs, for a while."""
        job_id = job_id or self.drill.job_id
        series = f'apscheduler_scheduler_up{{job="{self.job}"}}'
        if job_id:
            series = (
                f'apscheduler_job_next_run_timestamp_seconds{{job="{self.job}",job_id="{job_id}"}}'
            )
        self.until(f"max(count_over_time({series}[30s])) >= 5")

    def until(self, expression: str) -> None:
        """Wait until Prometheus finds something."""
        self.wait(lambda: self.stage.query(expression), expression)

    def wait(self, probe: Callable[[], Any], what: str) -> None:
        """Wait until a probe returns something true."""
        try:
            wait_for_answer(lambda: self.stage.ended.is_set() or probe(), WAIT_TIMEOUT)
        except AssertionError as error:
            self.fail(f"{what}: {error}")
        self.check()

    def ran(self, job_id: str) -> None:
        """Wait until Prometheus has seen a job succeed."""
        job = f'job="{self.job}",job_id="{job_id}",outcome="success"'
        self.until(f"apscheduler_job_runs_total{{{job}}} > 0")

    def sleep(self, seconds: float) -> None:
        self.stage.ended.wait(max(0.0, seconds))
        self.check()

    def check(self) -> None:
        if self.stage.ended.is_set():
            msg = "interrupted"
            raise DrillError(msg)

    # What comes of it

    def fault(self, at: float | None = None, since: str = "the fault") -> None:
        """Note that it went wrong, now or at a time."""
        self.since = time.time() if at is None else at
        self.result.since = since

    def is_caught(self) -> bool:
        """Return whether the alert has arrived."""
        return any(self._is_it(notice) for notice in self.stage.webhook.about([self.job]))

    def caught(self) -> None:
        """Wait for the alert."""
        notice = self.stage.webhook.wait(self._is_it, WAIT_TIMEOUT, self.stage.ended)
        self.check()
        if notice is None:
            self.fail(f"{self.drill.alert} has not reached the webhook")
        self._notice = notice
        self.result.alert = notice.alert
        self.result.labels = notice.labels
        self.result.annotations = notice.annotations
        self.result.receiver = notice.receiver
        self.result.seconds = notice.at - self.since

    def repaired(self, by: str) -> None:
        """Wait for the news that it is over."""
        self.result.resolved_by = by
        since = time.time()
        caught = self._notice
        assert caught is not None

        def is_over(notice: Notice) -> bool:
            is_it = notice.fingerprint == caught.fingerprint
            return is_it and notice.status == "resolved" and notice.at >= since

        notice = self.stage.webhook.wait(is_over, WAIT_TIMEOUT, self.stage.ended)
        self.check()
        if notice is None:
            self.fail(f"{self.drill.alert} was not resolved")
        self.result.seconds_to_resolve = notice.at - since

    def fail(self, what: str) -> NoReturn:
        """End the drill, with all that can be known."""
        parts = [what, f"at the webhook: {self.arrived() or 'nothing'}"]
        with contextlib.suppress(OSError, AssertionError, ValueError):
            jobs = "|".join(self.drill.jobs)
            alerts = self.stage.query(f'ALERTS{{job=~"{jobs}"}}')
            parts.append(f"alerts of Prometheus: {[labels for labels, _ in alerts] or 'none'}")
            up_timestamps_query = (
                f'timestamp(apscheduler_scheduler_up{{job=~"{jobs}"}} == 1)[10m:1s]'
            )
            first, last = (
                {
                    labels["instance"]: at
                    for labels, at in self.stage.query(f"{function}({up_timestamps_query})")
                }
                for function in ("min_over_time", "max_over_time")
            )
            parts += [
                f"{instance} was up from {first[instance]:.0f} to {last[instance]:.0f}"
                for instance in sorted(first, key=first.__getitem__)
            ]
        logs = sorted(self.stage.directory.glob(f"{self.job}-[0-9]*.log"))
        parts += [f"{log.name}: {log.read_text(errors='replace')[-1500:]}" for log in logs[-2:]]
        raise DrillError("\n".join(parts))

    def arrived(self) -> list[str]:
        """Return what has reached the webhook so far, in short."""
        notices = self.stage.webhook.about(self.drill.jobs)
        seen = {
            f"{n.alert}({n.labels.get('job_id', n.labels.get('scheduler', ''))})": None
            for n in notices
            if n.status == "firing"
        }
        return list(seen)

    def _is_it(self, notice: Notice) -> bool:
        return (
            notice.job == self.job
            and notice.alert == self.drill.alert
            and notice.status == "firing"
            and notice.at >= self.since
            and notice.labels.get("job_id") in {None, self.drill.job_id}
        )


def has_namespaces() -> bool:
    """Return whether network namespaces can be made, with the rights and programs for that."""
    global _namespaces  # noqa: PLW0603  # asked once
    if _namespaces is None:
        try:
            command("unshare --net ip link add name probe type veth peer name other")
            command("nsenter --version")
            _namespaces = os.geteuid() == 0
        except (DrillError, OSError):
            _namespaces = False
    return _namespaces


_namespaces: bool | None = None


def command(words: str) -> None:
    """Run a command, whose failure is the drill's."""
    done = subprocess.run(words.split(), capture_output=True, text=True, check=False, timeout=30)
    if done.returncode:
        msg = f"{words}: {done.stdout}{done.stderr}"
        raise DrillError(msg)
