"""
Drills: real faults of real applications, and whether an alert reaches somebody.

One Prometheus and one Alertmanager for all of them, with the rules and routes of `alerts/` made
`FACTOR` times faster, scrape and evaluate every second; all receivers are one webhook, which notes
what arrives. The drills run side by side, as they mostly wait; each has a ``job`` label of its own.
``python tests/drills/drill.py`` prints the table, `tests.test_drills` asserts what is in it.
"""

# ruff: noqa: T201  # main() talks to a person

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(HERE.parent)]  # as pytest does

import yaml
from examples.demo import speed

from servers import Prometheus, eventually, free_port, get, running

FACTOR = 30
"""A minute of the rules is two seconds here, and two scrapes."""
PATIENCE = 180.0
"""Seconds after which an alert will not come any more; the machine may be busy with other tests."""
CONTROL = 130.0
"""Seconds of the quiet control; more than an hour of production."""
LIFE = 20.0
"""
Seconds from one start to the next in the control: ten minutes in production. Three starts in a
quarter of an hour are a crash loop, and rightly so.
"""
PORT = 9476
"""Of all applications, each on a loopback address of its own, so that ports are never taken."""


class DrillError(AssertionError):
    """A drill went wrong, or an alert did not come."""


# What reaches somebody


@dataclass(frozen=True)
class Notice:
    """What the webhook was told of one alert."""

    at: float
    receiver: str
    status: str
    alert: str
    labels: dict[str, str]
    annotations: dict[str, str]
    fingerprint: str

    @property
    def job(self) -> str:
        return self.labels.get("job", "")


class Webhook:
    """The receiver of all notifications."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self._changed = threading.Condition()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.take(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, message: dict[str, Any]) -> None:
        now = time.time()
        with self._changed:
            for alert in message["alerts"]:
                notice = Notice(
                    at=now,
                    receiver=message["receiver"],
                    status=alert["status"],
                    alert=alert["labels"]["alertname"],
                    labels=alert["labels"],
                    annotations=alert["annotations"],
                    fingerprint=alert["fingerprint"],
                )
                self.notices.append(notice)
            self._changed.notify_all()

    def wait(
        self, matches: Callable[[Notice], bool], patience: float, ended: threading.Event
    ) -> Notice | None:
        """Return the first notice that matches, or None if there is none in time."""
        end = time.monotonic() + patience
        looked_at = 0
        with self._changed:
            while not ended.is_set():
                for notice in self.notices[looked_at:]:
                    if matches(notice):
                        return notice
                looked_at = len(self.notices)
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 1.0))
        return None

    def about(self, jobs: Iterable[str]) -> list[Notice]:
        """Return what arrived about some values of the label ``job``."""
        names = set(jobs)
        with self._changed:
            return [notice for notice in self.notices if notice.job in names]


# The stage


class App:
    """A process that plays a scene, in a session of its own."""

    def __init__(
        self, stage: Stage, job: str, command: Sequence[str | Path], log: Path, *, orders: bool
    ) -> None:
        self._stage = stage
        self._log = log
        self.job = job
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.PIPE if orders else subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environ(),
            )

    def ready(self) -> App:
        """Wait until it has imported all that it needs."""

        def is_ready() -> bool:
            self.must_live()
            return self._stage.ended.is_set() or "ready" in self.log()

        eventually(is_ready, PATIENCE)
        return self

    def tell(self, *words: str) -> None:
        """Give orders."""
        assert self.process.stdin is not None
        self.process.stdin.write("".join(f"{word}\n" for word in words).encode())
        self.process.stdin.flush()

    def go(self, *words: str) -> App:
        """Let it start, which it does within milliseconds once it is ready."""
        self.ready().tell(*words, "go")
        return self

    def must_live(self) -> None:
        if self.process.poll() is not None:
            msg = f"{self.job} ended with status {self.process.returncode}: {self.log()}"
            raise DrillError(msg)

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End its session at once, whatever it is doing."""
        self.signal(signal.SIGKILL)
        self.process.wait(30)
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()

    def stop(self) -> None:
        """Let it end in order."""
        self.signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.kill()

    def log(self) -> str:
        return self._log.read_text(errors="replace")


class Stage:
    """What all drills share."""

    def __init__(self, directory: Path, jobs: Sequence[str]) -> None:
        self.directory = directory
        self.ended = threading.Event()
        self.prometheus: Prometheus
        self.webhook = Webhook()
        # Any of 127.0.0.0/8 is this machine, so nobody needs to hope that a free port stays free.
        dice = random.SystemRandom()
        self.network = f"127.{dice.randint(64, 250)}.{dice.randint(1, 250)}"
        self.link = f"169.254.{dice.randint(1, 250)}"
        self.jobs = list(jobs)
        self._apps: list[App] = []
        self._lock = threading.Lock()

    def address(self, job: str, number: int = 0) -> str:
        """Return the address of an application."""
        return f"{self.network}.{1 + self.jobs.index(job) * 10 + number}"

    def targets_file(self, job: str) -> Path:
        return self.directory / f"targets-{job}.json"

    def set_targets(self, job: str, addresses: Iterable[str]) -> None:
        """Tell Prometheus whom to scrape; it takes some seconds to look."""
        targets = [f"{address}:{PORT}" for address in addresses]
        file = self.targets_file(job)
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps([{"targets": targets, "labels": {"job": job}}]))
        draft.rename(file)

    def start(self, job: str, scene: str, address: str, directory: Path, *wrapper: str) -> App:
        """Start a process that waits for the order to go."""
        python = [*wrapper, sys.executable]
        return self.run(job, [*python, HERE / "scenes.py", scene, address, directory])

    def run(self, job: str, command: Sequence[str | Path], *, orders: bool = True) -> App:
        with self._lock:
            if self.ended.is_set():
                msg = "all is ending"
                raise DrillError(msg)
            log = self.directory / f"{job}-{len(self._apps)}.log"
            app = App(self, job, command, log, orders=orders)
            self._apps.append(app)
            return app

    def end(self) -> None:
        """End all that was started."""
        with self._lock:
            self.ended.set()
        for app in self._apps:
            app.kill()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return self.prometheus.query(expression)


@contextlib.contextmanager
def stage(directory: Path, drills: Sequence[Drill]) -> Iterator[Stage]:
    """Run Prometheus, Alertmanager and the webhook."""
    directory.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        jobs = [job for drill in drills for job in drill.jobs]
        scene = Stage(directory, jobs)
        stack.callback(scene.webhook.close)
        alertmanager = f"127.0.0.1:{free_port()}"
        rules = ROOT / "alerts" / "apscheduler.rules.yml"
        (directory / "rules.yml").write_text(speed.faster_rules(rules.read_text(), FACTOR))
        routes = ROOT / "alerts" / "alertmanager.yml"
        (directory / "alertmanager.yml").write_text(
            to_webhook(speed.faster_routes(routes.read_text(), FACTOR), scene.webhook.url)
        )
        stack.enter_context(
            running(
                [
                    *guarded(),
                    program("prometheus-alertmanager"),
                    f"--config.file={directory / 'alertmanager.yml'}",
                    f"--storage.path={directory / 'alertmanager'}",
                    f"--web.listen-address={alertmanager}",
                    "--cluster.listen-address=",
                ],
                directory / "alertmanager.log",
            )
        )
        _wait_for_server(f"http://{alertmanager}/-/ready", directory / "alertmanager.log")
        for drill in drills:
            for job in drill.jobs:
                scene.set_targets(job, drill.targets(scene, job))
        (directory / "prometheus.yml").write_text(
            json.dumps(prometheus_config(scene, alertmanager))
        )
        url = f"http://127.0.0.1:{free_port()}"
        stack.enter_context(
            running(
                [
                    *guarded(),
                    program("prometheus"),
                    f"--config.file={directory / 'prometheus.yml'}",
                    f"--storage.tsdb.path={directory / 'tsdb'}",
                    f"--web.listen-address={url.removeprefix('http://')}",
                ],
                directory / "prometheus.log",
            )
        )
        _wait_for_server(f"{url}/-/ready", directory / "prometheus.log")
        scene.prometheus = Prometheus(url)
        stack.callback(scene.end)
        yield scene


def prometheus_config(scene: Stage, alertmanager: str) -> dict[str, Any]:
    every_second = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    files = [str(scene.targets_file(job)) for job in scene.jobs]
    return {
        "global": every_second,
        "rule_files": [str(scene.directory / "rules.yml")],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": [alertmanager]}]}]},
        "scrape_configs": [{"job_name": "drills", "file_sd_configs": [{"files": files}]}],
    }


def to_webhook(config: str, url: str) -> str:
    """Return a configuration of Alertmanager whose receivers are all a webhook."""
    document = yaml.safe_load(config)
    document["receivers"] = [
        {"name": receiver["name"], "webhook_configs": [{"url": url, "send_resolved": True}]}
        for receiver in document["receivers"]
    ]
    # Only what receivers need, of which there are none any more.
    document.pop("templates", None)
    resolve_timeout = document.pop("global", {}).get("resolve_timeout")
    if resolve_timeout:
        document["global"] = {"resolve_timeout": resolve_timeout}
    text: str = yaml.safe_dump(document, sort_keys=False)
    return text


def program(name: str) -> str:
    """Return the path of a program, which `make test` has installed or unpacked."""
    path = shutil.which(name)
    if path is None:
        msg = f"{name} is not on PATH; `make drill` and `make test` see to that"
        raise DrillError(msg)
    return path


def guarded() -> list[str]:
    """Return what makes a command end with us, however we end."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL"] if setpriv else []


def environ() -> dict[str, str]:
    """Return the variables for applications, which coverage must neither slow down nor measure."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("COV")},
        "PYTHONUNBUFFERED": "1",
    }


def _wait_for_server(url: str, log: Path) -> None:
    try:
        eventually(lambda: get(url)[0] == 200)
    except AssertionError as error:
        msg = f"{url}: {error}\n{log.read_text(errors='replace')}"
        raise DrillError(msg) from None


# Drills


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
    """A fault, the alert that is to tell of it, and how it is played."""

    name: str
    fault: str
    alert: str
    job_id: str | None
    play: Callable[[Performance], None]
    jobs: tuple[str, ...]

    def targets(self, stage: Stage, job: str) -> list[str]:
        if self.name == "partition" and has_namespaces():
            return [f"{stage.link}.2"]
        return [stage.address(job)]


class Performance:
    """One drill under way."""

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
        Start an application in the place of another one.

        The end of that one resolves some alerts already, and nobody may be so busy with imports
        then that the news comes before it is waited for.
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
            eventually(lambda: self.stage.ended.is_set() or probe(), PATIENCE)
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
        """Tell whether the alert has arrived already."""
        return any(self._is_it(notice) for notice in self.stage.webhook.about([self.job]))

    def caught(self) -> None:
        """Wait for the alert."""
        notice = self.stage.webhook.wait(self._is_it, PATIENCE, self.stage.ended)
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

        notice = self.stage.webhook.wait(is_over, PATIENCE, self.stage.ended)
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


DRILLS: dict[str, Drill] = {}


def drill(
    fault: str, alert: str, job_id: str | None = None, *, jobs: Sequence[str] = ()
) -> Callable[[Callable[[Performance], None]], Callable[[Performance], None]]:
    """Make a drill of a function that plays it."""

    def register(play: Callable[[Performance], None]) -> Callable[[Performance], None]:
        name = play.__name__.replace("_", "-")
        DRILLS[name] = Drill(name, fault, alert, job_id, play, tuple(jobs) or (name,))
        return play

    return register


@drill("the application is killed (SIGKILL)", "APSchedulerSchedulerDown")
def killed(it: Performance) -> None:
    app = it.start("steady")
    it.watched()
    app.kill()
    it.fault()
    it.caught()
    it.start("steady")
    it.repaired("restarted")


@drill("the application is frozen (SIGSTOP)", "APSchedulerSchedulerDown")
def frozen(it: Performance) -> None:
    # Guarded, as while it is frozen it cannot see that we have ended.
    app = it.prepare("steady", *guarded()).go()
    it.watched()
    app.signal(signal.SIGSTOP)
    it.fault()
    it.caught()
    app.signal(signal.SIGCONT)
    it.repaired("SIGCONT")


@drill("a worker of a process pool runs out of memory", "APSchedulerRunsLost", "crunch")
def out_of_memory(it: Performance) -> None:
    with small_memory() as cgroup:
        it.start("pool")
        it.ran("crunch")
        hungry, victim = it.directory / "hungry", it.directory / "victim"
        draft = hungry.with_suffix(".new")
        draft.write_text(cgroup)
        draft.rename(hungry)
        it.wait(lambda: not hungry.exists(), "the job begins to eat")
        it.fault()
        it.wait(lambda: it.is_caught() or victim.exists(), "the job is killed")
        if victim.exists():
            os.kill(int(victim.read_text()), signal.SIGKILL)
            it.fault()
            it.result.fault += " (killed as the kernel does it)"
        it.caught()
        it.repaired("later runs succeed")


@drill("the job store fails on update_job, the scheduler's thread dies", "APSchedulerLoopDead")
def dead_loop(it: Performance) -> None:
    app = it.start("store")
    it.ran("report")
    app.tell("fail")
    it.fault()
    it.caught()
    it.replace(app, "store")
    it.repaired("restarted")


@drill("a network partition", "APSchedulerSchedulerDown")
def partition(it: Performance) -> None:
    if not has_namespaces():
        it.result.fault += " (its port closed)"
        app = it.start("port")
        it.watched()
        app.tell("close")
        it.fault()
        it.caught()
        app.tell("open")
        it.repaired("the port open again")
        return
    link = f"drill{os.getpid()}"
    it.address = f"{it.stage.link}.2"
    # The namespace goes with its last process, and the link with the namespace.
    app = it.prepare("steady", "unshare", "--net").ready()
    pid = str(app.process.pid)
    command(f"ip link add name {link} type veth peer name inside netns {pid}")
    inside = f"nsenter --target {pid} --net ip"
    command(f"{inside} address add {it.address}/30 dev inside")
    command(f"{inside} link set inside up")
    command(f"ip address add {it.stage.link}.1/30 dev {link}")
    command(f"ip link set {link} up")
    app.go()
    it.watched()
    command(f"ip link set {link} down")
    it.fault()
    it.caught()
    command(f"ip link set {link} up")
    it.repaired("the link up again")


@drill("a script that exits at once after scheduler.start()", "APSchedulerSchedulerDown")
def exits_at_once(it: Performance) -> None:
    app = it.start("script")
    it.watched()
    app.stop()
    it.fault()
    while (
        not it.is_caught() and time.time() < it.since + PATIENCE
    ):  # as systemd would, with RestartSec=2
        it.start("script", "tidy").process.wait(30)
        it.sleep(2)
    it.caught()
    it.start("script")
    it.repaired("waits again")


@drill("a restart across the due time", "APSchedulerMissedRun", "nightly")
def skipped_by_restart(it: Performance) -> None:
    app = it.start("nightly", "often")
    it.watched()
    restarted = it.prepare("nightly").ready()
    left = 0.0
    while left < 0.5:  # again, where the machine was so busy that it was too late for a restart
        due = time.time() + 8
        (it.directory / "due").write_text(str(due))
        app.tell("due")
        series = f'apscheduler_job_next_run_timestamp_seconds{{job="{it.job}"}}'
        it.until(f"{series} > {due - 0.1} or {series} > {due + 10}")
        left = due - time.time() - 1.5
    it.sleep(left)
    app.kill()
    it.sleep(due - time.time() + 1)
    restarted.go()
    it.fault(due, "the due time")
    it.caught()
    it.repaired("the next run")


@drill("an interval job starved by restarts", "APSchedulerJobStarved", "sync")
def starved(it: Performance) -> None:
    app = it.start("patient")
    it.ran("sync")  # it did work before somebody made it restart all the time
    it.fault()
    started = time.time()
    while not it.is_caught() and time.time() < it.since + PATIENCE:
        successor = it.prepare("patient").ready()
        it.sleep(started + 5 - time.time())
        app.kill()
        app = successor.go()
        started = time.time()
    it.caught()
    it.repaired("left alone, it runs")


@drill("a job hangs", "APSchedulerJobStuck", "hanging")
def hung(it: Performance) -> None:
    app = it.start("troubled")
    it.ran("hanging")
    app.tell("hang")
    it.fault()
    it.caught()
    it.replace(app, "troubled")
    it.repaired("restarted")


@drill("a job is slower than its interval", "APSchedulerJobOverrunning", "slow")
def slow(it: Performance) -> None:
    app = it.start("troubled")
    it.ran("slow")
    app.tell("slow")
    it.fault()
    it.caught()
    app.tell("-slow")
    it.repaired("a quick run")


@drill("a job is deleted, as it no longer unpickles", "APSchedulerJobDisappeared")
def unpicklable(it: Performance) -> None:
    app = it.start("stored")
    it.watched("archive")
    app.stop()
    app = it.start("stored", "renamed")
    it.fault()
    it.caught()
    it.replace(app, "stored")
    it.repaired("deployed with the job's function")


@drill("two workers of gunicorn, each with a scheduler", "APSchedulerDuplicateSchedulers")
def two_workers(it: Performance) -> None:
    gunicorn = [*guarded(), sys.executable, "-m", "gunicorn", "workers"]
    gunicorn += ["--bind", f"{it.address}:{PORT}", "--workers", "2", "--chdir", str(HERE)]
    app = it.stage.run(it.job, gunicorn, orders=False)
    visitor = threading.Thread(
        target=_visit, args=(it, f"http://{it.address}:{PORT}/"), daemon=True
    )
    visitor.start()
    it.watched()
    it.fault(since="the first scrapes")
    it.caught()
    os.kill(app.process.pid, signal.SIGTTOU)  # the first process': one worker less
    it.repaired("one worker")


def _visit(it: Performance, url: str) -> None:
    """Use a web application, so that its workers take turns in answering."""
    while not it.is_over.is_set():
        with contextlib.suppress(OSError):
            get(url)
        it.is_over.wait(0.05)


@drill("a scheduler is paused and forgotten", "APSchedulerSchedulerPaused")
def paused(it: Performance) -> None:
    app = it.start("troubled")
    it.watched()
    app.tell("pause")
    it.fault()
    it.caught()
    app.tell("resume")
    it.repaired("resumed")


@drill("a job fails, and recovers", "APSchedulerJobFailing", "unreliable")
def failing(it: Performance) -> None:
    app = it.start("troubled")
    it.ran("unreliable")
    app.tell("fail")
    it.fault()
    it.caught()
    app.tell("-fail")
    it.repaired("a run that succeeds")


# The quiet control


@drill(
    "none: healthy, busy, restarted and redeployed again and again",
    "",
    jobs=("control", "control-rolling", "control-replicas"),
)
def control(it: Performance) -> None:
    end = time.time() + CONTROL
    failures: list[BaseException] = []

    def played(play: Callable[[Performance, str, float], int], job: str) -> None:
        try:
            starts.append(play(it, job, end))
        except BaseException as error:  # noqa: BLE001  # told below
            failures.append(error)

    starts: list[int] = []
    plays = zip((_services, _rolling, _replicas), it.drill.jobs, strict=True)
    threads = [threading.Thread(target=played, args=play, daemon=True) for play in plays]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    it.check()
    if failures:
        raise failures[0]
    jobs = "|".join(it.drill.jobs)
    fired = it.stage.query(f'count_over_time(ALERTS{{alertstate="firing",job=~"{jobs}"}}[10m])')
    if fired:  # those as well that were inhibited
        it.fail(f"false alarms: {[labels for labels, _ in fired]}")
    if it.arrived():
        it.fail(f"false alarms at the webhook: {it.arrived()}")
    watchdogs = [n for n in it.stage.webhook.notices if n.alert == "APSchedulerWatchdog"]
    if not watchdogs or any(n.status != "firing" for n in watchdogs):
        it.fail("the watchdog is not heard")
    it.result.fault = f"none: healthy and busy for {CONTROL:g} s, with {sum(starts)} starts"
    it.result.alert = "APSchedulerWatchdog"


def _services(it: Performance, job: str, end: float) -> int:
    """Restart under the same address and redeploy to others, and change jobs meanwhile."""
    addresses = [it.stage.address(job, number) for number in (0, 0, 1, 2, 2, 0, 3, 4, 4, 5)]
    directory = it.directory / job
    directory.mkdir()
    app: App | None = None
    starts = 0
    while time.time() < end:
        before, here, there = (addresses[(starts + n) % 10] for n in (-1, 0, 1))
        # Prometheus takes seconds to look for new targets, which would be minutes in production.
        it.stage.set_targets(job, dict.fromkeys((before, here, there)))
        successor = it.stage.start(job, "busy_service", here, directory).ready()
        if app is not None:
            app.stop()
        app = successor.go()
        begun = time.time()
        starts += 1
        _changes(it, app, job, here)
        it.sleep(begun + LIFE - time.time())
    return starts


def _changes(it: Performance, app: App, job: str, address: str) -> None:
    """Add, remove, pause, resume and reschedule jobs, run one once, pause the scheduler."""

    def seen(job_id: str, what: str) -> None:
        labels = f'job="{job}",job_id="{job_id}",instance="{address}:{PORT}"'
        it.until(what % labels)
        app.must_live()

    promised = "apscheduler_job_next_run_timestamp_seconds{%s} > 0"
    nothing_promised = "apscheduler_job_next_run_timestamp_seconds{%s} == 0"
    succeeded = 'apscheduler_job_runs_total{outcome="success",%s} > 0'
    seen("busy-0", promised)
    app.tell("add", "once", "rest", "change")
    seen("extra", promised)
    app.tell("remove")
    seen("extra", nothing_promised)
    app.tell("pause")
    it.sleep(2)
    app.tell("resume", "far", "unrest")
    seen("extra", promised)
    app.tell("remove")
    seen("extra", nothing_promised)
    seen("once", succeeded)
    seen("rested", promised)


def _rolling(it: Performance, job: str, end: float) -> int:
    """Deploy as rolling updates do: the new one is there before the old one goes."""
    app: App | None = None
    starts = 0
    while time.time() < end:
        before, here, there = (it.stage.address(job, (starts + n) % 10) for n in (-1, 0, 1))
        it.stage.set_targets(job, (before, here, there))
        successor = it.stage.start(job, "rolling", here, it.directory).ready().go()
        begun = time.time()
        starts += 1
        if app is not None:
            it.sleep(1.5)
            app.stop()
        app = successor
        it.sleep(begun + LIFE - time.time())
    return starts


def _replicas(it: Performance, job: str, end: float) -> int:
    """Scale replicas that each run their own copies up and down."""
    addresses = [it.stage.address(job, number) for number in range(3)]
    it.stage.set_targets(job, addresses)
    apps: list[App] = []
    starts = 0
    while time.time() < end:
        while len(apps) < 3:
            address = addresses[len(apps)]
            apps.append(it.stage.start(job, "replica", address, it.directory).ready().go())
            starts += 1
        it.sleep(LIFE)
        it.stage.set_targets(job, addresses[:1])
        apps.pop().stop()
        apps.pop().kill()
        it.sleep(LIFE)
        it.stage.set_targets(job, addresses)
    return starts


# Tools


@contextlib.contextmanager
def small_memory() -> Iterator[str]:
    """Make a control group with little memory; yield its path, or "" where that cannot be."""
    name = f"drill-{os.getpid()}"
    limits = {"memory.limit_in_bytes": "64M", "memory.max": "64M", "memory.swap.max": "0"}
    for parent in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        for left in parent.glob("drill-*"):  # by a drill that was killed
            if not Path("/proc", left.name.removeprefix("drill-")).exists():
                _remove(left)
        cgroup = parent / name
        try:
            cgroup.mkdir()
        except OSError:
            continue
        try:
            for file, limit in limits.items():
                with contextlib.suppress(OSError):
                    if (cgroup / file).exists():
                        (cgroup / file).write_text(limit)
            if not any((cgroup / file).exists() for file in limits):
                continue  # the memory controller is somewhere else
            yield str(cgroup)
        finally:
            _remove(cgroup)
        return
    yield ""


def _remove(cgroup: Path) -> None:
    end = time.monotonic() + 5  # seconds, in which the processes in it have gone
    while cgroup.exists() and time.monotonic() < end:
        with contextlib.suppress(OSError):
            cgroup.rmdir()
        time.sleep(0.05)


def has_namespaces() -> bool:
    """Tell whether there is the right to make network namespaces, and there are the programs."""
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


# All of them


def rehearse(names: Sequence[str], directory: Path) -> dict[str, Result]:
    """Play some drills, all at once, and return what they have shown."""
    drills = [DRILLS[name] for name in names]
    with stage(directory, drills) as scene:
        performances = [Performance(drill, scene) for drill in drills]
        threads = [
            threading.Thread(target=_perform, args=(performance,), daemon=True)
            for performance in performances
        ]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:
            scene.end()
            for thread in threads:
                thread.join(10)  # seconds, in which those that are interrupted clean up
        return {performance.drill.name: performance.result for performance in performances}


def _perform(performance: Performance) -> None:
    try:
        performance.drill.play(performance)
    except Exception as error:  # noqa: BLE001  # told by whoever asks for the result
        performance.result.error = f"{type(error).__name__}: {error}"
    finally:
        performance.is_over.set()
        result = performance.result
        result.also = [
            words
            for words in performance.arrived()
            if not result.alert or not words.startswith(f"{result.alert}(")
        ]


def table(results: Iterable[Result]) -> str:
    """Return the results as a table in Markdown."""
    lines = [("fault", "alert that arrived", "after", "resolved by", "after", "also arrived")]
    lines += [
        (
            result.fault,
            result.alert.removeprefix("APScheduler") if result.alert else "NONE",
            f"{result.seconds:.1f} s from {result.since}" if result.seconds is not None else "-",
            result.resolved_by if result.seconds_to_resolve is not None else "-",
            f"{result.seconds_to_resolve:.1f} s" if result.seconds_to_resolve is not None else "-",
            ", ".join(words.removeprefix("APScheduler") for words in result.also) or "-",
        )
        for result in results
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, tuple("-" * width for width in widths))  # type: ignore[arg-type]
    return "\n".join(
        "| "
        + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )


def main(*names: str) -> int:
    """Play all drills, or those that are named, and print the table."""
    unknown = set(names) - DRILLS.keys()
    if unknown:
        print(f"No such drill: {', '.join(sorted(unknown))}; there are {', '.join(DRILLS)}.")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="drills-") as directory:
        try:
            results = rehearse(names or list(DRILLS), Path(directory))
        except KeyboardInterrupt:
            print("Interrupted.")
            return 130
        if os.environ.get("DRILLS_KEEP"):
            shutil.copytree(directory, os.environ["DRILLS_KEEP"], dirs_exist_ok=True)
    print(table(results.values()))
    print(
        f"\nRules and routes are {FACTOR} times as fast as in production: a second here is half a"
        f" minute there. Took {time.monotonic() - begin:.0f} s."
    )
    failed = {name: result for name, result in results.items() if result.error}
    for name, result in failed.items():
        print(f"\nFAILED  {name}: {result.error}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
