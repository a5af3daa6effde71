"""The drills: each causes a fault that one alert must report; the control causes none."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from apscheduler_telemetry.cli.expected_jobs import ExpectedJob
from tests.drills.performance import Drill, Performance, command, has_namespaces
from tests.drills.stage import FACTOR, HERE, PORT, WAIT_TIMEOUT, App, guarded
from tests.helpers.servers import get

CONTROL = 130.0
"""Seconds of the quiet control; more than an hour of production."""
LIFE = 20.0
"""
Seconds from one start to the next in the control: ten minutes in production. Three starts in a
quarter of an hour are a crash loop, and rightly so.
"""

DRILLS: dict[str, Drill] = {}


def drill(
    fault: str,
    alert: str,
    job_id: str | None = None,
    *,
    jobs: Sequence[str] = (),
    expected_jobs: Sequence[ExpectedJob] = (),
) -> Callable[[Callable[[Performance], None]], Callable[[Performance], None]]:
    """Make a drill of a function that plays it."""

    def register(play: Callable[[Performance], None]) -> Callable[[Performance], None]:
        name = play.__name__.replace("_", "-")
        DRILLS[name] = Drill(
            name, fault, alert, job_id, play, tuple(jobs) or (name,), tuple(expected_jobs)
        )
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


@drill(
    "an application with jobs in jobs.yml is never started",
    "APSchedulerJobNeverSeen",
    "nightly",
    expected_jobs=[
        ExpectedJob(application="never-seen", scheduler="main", job_id="nightly"),
    ],
)
def never_seen(it: Performance) -> None:
    it.fault()
    it.caught()
    it.start("steady")
    it.repaired("started")


@drill("the application is frozen (SIGSTOP)", "APSchedulerSchedulerDown")
def frozen(it: Performance) -> None:
    # Guarded, because a frozen process does not notice the end of the drill.
    app = it.prepare("steady", *guarded()).go()
    it.watched()
    app.signal(signal.SIGSTOP)
    it.fault()
    it.caught()
    app.signal(signal.SIGCONT)
    it.repaired("SIGCONT")


@drill("a run is still in progress at its deadline", "APSchedulerDeadlineMissed", "close_books")
def deadline(it: Performance) -> None:
    app = it.start("expecting", "hang")
    it.until(f'apscheduler_job_running{{job="{it.job}",job_id="close_books"}} > 0')
    it.fault()
    it.caught()
    app.send("-hang")
    it.repaired("the run succeeds")


@drill("a run succeeds at once", "APSchedulerRunTooShort", "compress")
def too_short(it: Performance) -> None:
    app = it.start("expecting")
    it.ran("compress")
    app.send("nothing")
    it.fault()
    it.caught()
    app.send("-nothing")
    it.repaired("a run of its usual length")


@drill("a run succeeds and records nothing", "APSchedulerRunDidNothing", "load")
def did_nothing(it: Performance) -> None:
    app = it.start("expecting")
    it.ran("load")
    app.send("nothing")
    it.fault()
    it.caught()
    app.send("-nothing")
    it.repaired("a run that records rows")


@drill("runs become much longer", "APSchedulerJobSlow", "reindex")
def slower(it: Performance) -> None:
    app = it.start("expecting")
    it.until(f'apscheduler_job:known_runs{{job="{it.job}",job_id="reindex"}} >= 10')
    app.send("slow")
    it.fault()
    it.caught()
    app.send("-slow")
    it.repaired("a run of its usual length")


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


def _import_is_in_progress(it: Performance) -> None:
    job = f'job="{it.job}",job_id="import"'
    it.until(f"apscheduler_job:in_progress_since_timestamp_seconds{{{job}}}")


@drill(
    "a run is cut off by SIGKILL, the process is back at once",
    "APSchedulerRunInterrupted",
    "import",
)
def cut_off(it: Performance) -> None:
    app = it.start("importing")
    successor = it.prepare("importing").ready()
    _import_is_in_progress(it)
    app.kill()
    it.fault()
    successor.go("idle")
    it.caught()
    it.repaired("ten minutes")


@drill(
    "a run is cut off by SIGTERM, another process is there five minutes later",
    "APSchedulerRunInterrupted",
    "import",
)
def cut_off_elsewhere(it: Performance) -> None:
    app = it.start("importing")
    other = it.stage.address(it.job, 1)
    successor = it.stage.start(it.job, "importing", other, it.directory).ready()
    _import_is_in_progress(it)
    app.signal(signal.SIGTERM)
    it.wait(lambda: app.process.poll() is not None, "SIGTERM ends the process")
    it.fault()
    it.sleep(300 / FACTOR)
    it.stage.set_targets(it.job, [other])
    successor.go("idle")
    it.caught()
    it.repaired("ten minutes")


@drill("a run takes all memory, and the process is killed", "APSchedulerRunInterrupted", "import")
def cut_off_out_of_memory(it: Performance) -> None:
    with small_memory() as cgroup:
        app = it.start("importing")
        successor = it.prepare("importing").ready()
        _import_is_in_progress(it)
        if cgroup:
            Path(cgroup, "cgroup.procs").write_text(str(app.process.pid))
            app.send("eat")
            it.wait(lambda: app.process.poll() is not None, "the kernel kills the process")
        else:
            app.kill()
            it.result.fault += " (killed as the kernel does it)"
        it.fault()
        successor.go("idle")
        it.caught()
        it.repaired("ten minutes")


@drill("a short run is cut off by SIGKILL, and there is a journal", "APSchedulerRunsLost", "sync")
def cut_off_with_journal(it: Performance) -> None:
    app = it.start("journaling")
    successor = it.prepare("journaling").ready()
    it.ran("sync")
    it.until(f'apscheduler_job_running{{job="{it.job}",job_id="sync"}} > 0')
    app.kill()
    it.fault()
    successor.go()
    it.caught()
    it.repaired("ten minutes")


@drill("the job store fails on update_job, the scheduler's thread dies", "APSchedulerLoopDead")
def dead_loop(it: Performance) -> None:
    app = it.start("store")
    it.ran("report")
    app.send("fail")
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
        app.send("close")
        it.fault()
        it.caught()
        app.send("open")
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
        not it.is_caught() and time.time() < it.since + WAIT_TIMEOUT
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
        app.send("due")
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


@drill("other code holds the threads of a job of every second", "APSchedulerMissedRun", "sync")
def blocked(it: Performance) -> None:
    app = it.start("sharing")
    it.ran("sync")
    app.send("hang")
    it.fault()
    it.caught()
    app.send("-hang")
    it.repaired("the threads are free")


@drill("an interval job starved by restarts", "APSchedulerJobStarved", "sync")
def starved(it: Performance) -> None:
    app = it.start("patient")
    it.ran("sync")  # it worked before the restarts begin
    it.fault()
    started = time.time()
    while not it.is_caught() and time.time() < it.since + WAIT_TIMEOUT:
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
    app.send("hang")
    it.fault()
    it.caught()
    it.replace(app, "troubled")
    it.repaired("restarted")


@drill("a job is slower than its interval", "APSchedulerJobOverrunning", "slow")
def slow(it: Performance) -> None:
    app = it.start("troubled")
    it.ran("slow")
    app.send("slow")
    it.fault()
    it.caught()
    app.send("-slow")
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
    app.send("pause")
    it.fault()
    it.caught()
    app.send("resume")
    it.repaired("resumed")


@drill("a job fails, and recovers", "APSchedulerJobFailing", "unreliable")
def failing(it: Performance) -> None:
    app = it.start("troubled")
    it.ran("unreliable")
    app.send("fail")
    it.fault()
    it.caught()
    app.send("-fail")
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
        except BaseException as error:  # noqa: BLE001  # raised again below
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

    has_next_run = "apscheduler_job_next_run_timestamp_seconds{%s} > 0"
    nothing_promised = "apscheduler_job_next_run_timestamp_seconds{%s} == 0"
    succeeded = 'apscheduler_job_runs_total{outcome="success",%s} > 0'
    seen("busy-0", has_next_run)
    app.send("add", "once", "rest", "change")
    seen("extra", has_next_run)
    app.send("remove")
    seen("extra", nothing_promised)
    app.send("pause")
    it.sleep(2)
    app.send("resume", "far", "unrest")
    seen("extra", has_next_run)
    app.send("remove")
    seen("extra", nothing_promised)
    seen("once", succeeded)
    seen("rested", has_next_run)


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
