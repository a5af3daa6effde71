"""
The applications of the drills: ``scenes.py SCENE ADDRESS DIRECTORY``; at first, all are healthy.

Each is a process that uses the public API only. It reads orders on standard input, one word per
line. ``go`` starts it, when the slow imports are done; any other word is for its scene, and
``-word`` takes that back. When standard input ends, its whole session ends, so that no application
outlives the drill.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor as Threads
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from apscheduler.executors.pool import ProcessPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import event

from apscheduler_telemetry import Expectations, current_run, expect, instrument

PORT = 9476
SECOND = timedelta(seconds=1)
GRACE = 2.0
"""Seconds, where rules are 30 times as fast as in production: a minute, as is the default."""
GRACE_OF_CONTROL = 10.0
"""Seconds; five minutes in production. The control must be quiet on a machine that is busy."""


class Orders:
    """The words that the drill has sent so far."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._words: set[str] = set()
        self._heard: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def __contains__(self, word: str) -> bool:
        with self._changed:
            return word in self._words

    def wait_for(self, word: str) -> None:
        """Wait until the drill has sent a word."""
        with self._changed:
            self._changed.wait_for(lambda: word in self._words)

    def next(self) -> str:
        """Wait for the next word that is not taken yet."""
        with self._changed:
            self._changed.wait_for(lambda: self._heard)
            return self._heard.pop(0)

    def _read(self) -> None:
        rest = b""
        while data := os.read(0, 4096):  # not sys.stdin, whose lock would be in the way at exit
            *lines, rest = (rest + data).split(b"\n")
            with self._changed:
                for line in lines:
                    word = line.decode()
                    self._heard.append(word)
                    if word.startswith("-"):
                        self._words.discard(word[1:])
                    else:
                        self._words.add(word)
                self._changed.notify_all()
        os.killpg(0, signal.SIGKILL)


orders: Orders
address: str
directory: Path


# Jobs


def report() -> None:
    """Do a little, as most jobs."""
    time.sleep(0.05)


def busy(seconds: float) -> None:
    """Keep a CPU busy."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(1000))


def unreliable() -> None:
    """Fail while the drill has ordered it."""
    if "fail" in orders:
        msg = "the supplier's server says no"
        raise ConnectionError(msg)


def hanging() -> None:
    """Hang while the drill has ordered it."""
    while "hang" in orders:
        time.sleep(0.1)


def slow() -> None:
    """Take longer than the interval while the drill has ordered it."""
    time.sleep(3 if "slow" in orders else 0.05)


def crunch(where: str) -> None:
    """Run out of memory, in a worker of a process pool, once there is a file that says so."""
    hungry = Path(where, "hungry")
    if not hungry.exists():
        return
    cgroup = hungry.read_text()
    hungry.unlink()
    if cgroup:  # small, so that the kernel kills this process and no other
        Path(cgroup, "cgroup.procs").write_text(str(os.getpid()))
        held = [b"\1" * (4 << 20) for _ in range(64)]
        held.clear()
    victim = Path(where, "victim")
    victim.with_suffix(".new").write_text(str(os.getpid()))
    victim.with_suffix(".new").rename(victim)
    time.sleep(600)  # until the drill does what the kernel would do


def import_orders() -> None:
    """Take as long as a long job does, and all memory if the drill has ordered it."""
    held = []
    for _ in range(6000):
        time.sleep(0.1)
        if "eat" in orders:
            held.append(b"\1" * (8 << 20))


def export_report() -> None:
    """Take longer than the five minutes from which on runs are watched, thirty times faster."""
    time.sleep(11)


@expect(deadline=5)
def close_books() -> None:
    """Be done in time, unless the drill has ordered it to hang."""
    hanging()


@expect(min_duration=0.5)
def compress() -> None:
    """Take at least half a second, unless the drill has ordered it to do nothing."""
    if "nothing" not in orders:
        time.sleep(0.6)


@expect(min_recorded={"rows": 1})
def load() -> None:
    """Load rows, unless the drill has ordered it to do nothing."""
    current_run().record(rows=0 if "nothing" in orders else 5)


def reindex() -> None:
    """Take much longer than usual while the drill has ordered it."""
    time.sleep(11 if "slow" in orders else 0.02)


def archive() -> None:
    """Stand for a job that a later version of the application no longer has."""


# Scenes


def serve(scheduler: Any, *, name: str = "main", grace: float = GRACE, **options: Any) -> Any:
    """Instrument, serve and start."""
    telemetry = instrument(scheduler, name=name, expect=Expectations(grace=grace), **options)
    server = telemetry.start_http_server(PORT, address)
    scheduler.start()
    return server


def wait_for_the_end(scheduler: Any) -> None:
    """Run until SIGTERM, then end in order."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    while not ended.wait(3600):
        pass
    scheduler.shutdown()


def obeying(scheduler: Any, **actions: Callable[[], object]) -> None:
    """Do what orders say, from a thread."""

    def obey() -> None:
        while True:
            word = orders.next()
            if word in actions:
                actions[word]()

    threading.Thread(target=obey, daemon=True).start()
    wait_for_the_end(scheduler)


def steady() -> None:
    """A healthy application, to which things happen from outside."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(report, "interval", seconds=3, id="report")
    scheduler.add_job(report, "interval", hours=24, id="nightly")
    serve(scheduler)
    wait_for_the_end(scheduler)


def port() -> None:
    """An application that closes its port on an order."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(report, "interval", seconds=3, id="report")
    telemetry = instrument(scheduler, name="main", expect=Expectations(grace=GRACE))
    servers = [telemetry.start_http_server(PORT, address)]
    scheduler.start()
    obeying(
        scheduler,
        close=lambda: servers.pop().close(),
        open=lambda: servers.append(telemetry.start_http_server(PORT, address)),
    )


def pool() -> None:
    """One with a pool of processes."""
    scheduler = BackgroundScheduler(executors={"default": ProcessPoolExecutor(1)})
    scheduler.add_job(crunch, "interval", [str(directory)], seconds=2, id="crunch")
    serve(scheduler)
    wait_for_the_end(scheduler)


class FailingStore(MemoryJobStore):
    """A job store whose database is not available on an order."""

    def update_job(self, job: Any) -> None:
        """Update, or fail."""
        if "fail" in orders:
            msg = "database is locked"
            raise OSError(msg)
        super().update_job(job)


def store() -> None:
    """One whose job store fails."""
    scheduler = BackgroundScheduler(jobstores={"default": FailingStore()})
    scheduler.add_job(report, "interval", seconds=2, id="report")
    serve(scheduler)
    wait_for_the_end(scheduler)


def script() -> None:
    """A script that waits for SIGTERM, or exits at once by mistake."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(report, "interval", seconds=3, id="report")
    serve(scheduler)
    if "tidy" not in orders:
        wait_for_the_end(scheduler)


def nightly() -> None:
    """One whose job is due at the time that a file says, and every 25 s, or 5 s, thereafter."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(report, "interval", seconds=5 if "often" in orders else 25, id="nightly")
    serve(scheduler)

    def due() -> None:
        at = float((directory / "due").read_text())
        scheduler.modify_job("nightly", next_run_time=datetime.fromtimestamp(at, timezone.utc))

    obeying(scheduler, due=due)


def importing() -> None:
    """One with a run that takes long, unless it is idle, and with no handler of SIGTERM."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(report, "interval", seconds=3, id="report")
    scheduler.add_job(import_orders, "interval", hours=24, id="import")
    if "idle" not in orders:
        scheduler.modify_job("import", next_run_time=_in(0.5))
    serve(scheduler)
    threading.Event().wait()


def expecting() -> None:
    """One whose jobs say what is expected of them, and one that becomes slow."""
    scheduler = BackgroundScheduler()
    for job, seconds in ((compress, 2), (load, 2), (reindex, 1)):
        scheduler.add_job(job, "interval", seconds=seconds, id=job.__name__)
    scheduler.add_job(close_books, "interval", hours=24, id="close_books", next_run_time=_in(5))
    serve(scheduler)
    wait_for_the_end(scheduler)


def journaling() -> None:
    """One with a journal, and a short job, of which the rules without a journal know nothing."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(time.sleep, "interval", [2], seconds=3, id="sync")
    serve(scheduler, journal=directory / "journal")
    wait_for_the_end(scheduler)


def patient() -> None:
    """One whose job runs some time after the start and not earlier."""
    scheduler = BackgroundScheduler()
    scheduler.add_job(report, "interval", seconds=12, id="sync")
    serve(scheduler)
    wait_for_the_end(scheduler)


def troubled() -> None:
    """An application that, on orders, has hanging, slow or failing jobs, or is paused."""
    scheduler = BackgroundScheduler()
    for job, seconds in ((hanging, 3), (slow, 2), (unreliable, 2)):
        scheduler.add_job(job, "interval", seconds=seconds, id=job.__name__)
    serve(scheduler)
    obeying(scheduler, pause=scheduler.pause, resume=scheduler.resume)


def sharing() -> None:
    """One on asyncio whose other code takes the threads that its job needs, when told so."""
    loop, threads = asyncio.new_event_loop(), Threads(2)
    loop.set_default_executor(threads)
    threading.Thread(target=loop.run_forever, daemon=True).start()
    scheduler = AsyncIOScheduler(event_loop=loop)
    scheduler.add_job(report, "interval", seconds=1, id="sync")
    serve(scheduler)
    obeying(scheduler, hang=lambda: [threads.submit(hanging) for _ in range(2)])


def stored() -> None:
    """One whose job is in a database; the next version no longer has the job's function."""
    if "renamed" in orders:
        del globals()["archive"]
    scheduler = BackgroundScheduler(jobstores={"default": database(directory / "jobs.sqlite")})
    scheduler.add_job(report, "interval", seconds=3, id="report", replace_existing=True)
    if "renamed" not in orders:
        scheduler.add_job(archive, "interval", seconds=10, id="archive", replace_existing=True)
    serve(scheduler)
    wait_for_the_end(scheduler)


# The quiet control


def busy_service() -> None:
    """A healthy application with all sorts of jobs, that are changed on purpose all the time."""
    scheduler = BackgroundScheduler(
        jobstores={"stored": database(directory / "jobs.sqlite")},
        # However late a busy machine makes them, all runs run.
        job_defaults={"misfire_grace_time": 60, "coalesce": False, "max_instances": 5},
    )
    for number, seconds in enumerate((3, 4, 5)):
        job_id = f"busy-{number}"
        scheduler.add_job(busy, "interval", [0.05], seconds=seconds, id=job_id)
    scheduler.add_job(report, "cron", second="*/6", id="cron")
    scheduler.add_job(report, "interval", seconds=4, id="changing")
    scheduler.add_job(report, "interval", seconds=4, id="rested")
    serve(scheduler, grace=GRACE_OF_CONTROL)
    if scheduler.get_job("stored") is None:
        scheduler.add_job(report, "interval", seconds=7, id="stored", jobstore="stored")
    add = scheduler.add_job

    def soon() -> None:
        # Just before its run is due, so that a very near next run is cancelled.
        due = scheduler.get_job("changing").next_run_time
        time.sleep(max(0.0, due.timestamp() - time.time() - 0.3))
        scheduler.reschedule_job("changing", trigger="interval", seconds=5)

    obeying(
        scheduler,
        add=lambda: add(report, "interval", seconds=3, id="extra"),
        far=lambda: add(report, "interval", seconds=3000, id="extra", replace_existing=True),
        remove=lambda: scheduler.remove_job("extra"),
        once=lambda: add(report, "date", run_date=_in(2), id="once", replace_existing=True),
        rest=lambda: scheduler.pause_job("rested"),
        unrest=lambda: scheduler.resume_job("rested"),
        change=soon,
        pause=scheduler.pause,
        resume=scheduler.resume,
    )


def replica(*, singleton: bool = False) -> None:
    """One of several alike."""
    scheduler = BackgroundScheduler(job_defaults={"misfire_grace_time": 60, "coalesce": False})
    scheduler.add_job(busy, "interval", [0.05], seconds=4, id="refresh")
    scheduler.add_job(report, "interval", hours=1, id="hourly")
    # In progress at most deploys, which wait for it.
    scheduler.add_job(export_report, "interval", seconds=14, id="export", next_run_time=_in(1))
    serve(scheduler, name="replica", grace=GRACE_OF_CONTROL, singleton=singleton)
    wait_for_the_end(scheduler)


def database(path: Path) -> Any:
    """Return a job store that does not wait for the disk, which may be slow and is no topic."""
    job_store = SQLAlchemyJobStore(url=f"sqlite:///{path}")

    @event.listens_for(job_store.engine, "connect")
    def connected(connection: Any, _: object) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    return job_store


def _in(seconds: float) -> datetime:
    return datetime.now(timezone.utc) + seconds * SECOND


SCENES: dict[str, Callable[[], None]] = {
    scene.__name__: scene
    for scene in (
        *(steady, port, pool, store, script, nightly, importing, journaling, expecting),
        *(patient, troubled, sharing, stored),
        *(busy_service, replica),
    )
}
SCENES["rolling"] = functools.partial(replica, singleton=True)


if __name__ == "__main__":
    scene, address = sys.argv[1:3]
    directory = Path(sys.argv[3])
    orders = Orders()
    print("ready", flush=True)  # noqa: T201  # for the drill
    orders.wait_for("go")
    with contextlib.suppress(KeyboardInterrupt):
        SCENES[scene]()
