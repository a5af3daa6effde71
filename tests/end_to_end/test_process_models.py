"""
Real servers with several processes, and how their schedulers are shown.

Three of these ways are recommended, and are examples. The others are common mistakes, which alerts
and metrics must reveal.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.servers import get
from tests.helpers.waiting import wait_for_answer
from tests.helpers.web_servers import Page, Server, alerts, gunicorn, server

pytestmark = pytest.mark.integration

EXAMPLES = ROOT / "examples"
APP = "tests.applications.web_workers:application"


@pytest.fixture
def room(tmp_path: Path) -> Path:
    """Return a directory with one for metrics in it."""
    (tmp_path / "metrics").mkdir()
    return tmp_path


class TestEachWorker:
    """Every gunicorn worker starts the scheduler, because each imports the module."""

    @pytest.fixture
    def workers(self, room: Path) -> Iterator[Server]:
        """Run two workers in multiprocess mode."""
        pytest.importorskip("gunicorn")
        command = gunicorn("--workers", "2", APP)
        metrics = str(room / "metrics")
        with server(room, *command, START="each", PROMETHEUS_MULTIPROC_DIR=metrics) as found:
            wait_for_answer(lambda: self.running_schedulers(found) == 2)
            yield found

    @staticmethod
    def running_schedulers(workers: Server) -> float | None:
        """Return how many workers have reported that their scheduler runs."""
        return workers.page().value("scheduler_state", state="running")

    def test_scheduler_in_each_worker_fires_the_duplicate_alert(
        self, workers: Server, room: Path
    ) -> None:
        """Any worker reports that two workers run the jobs, and the alert fires."""
        wait_for_answer(lambda: workers.page().runs >= 1)
        page = workers.page()
        assert page.pids == workers.workers()
        assert page.value("scheduler_state", state="running") == 2
        assert page.value("scheduler_up") == 1
        assert alerts(room, [page] * 6, at=5) == {"APSchedulerDuplicateSchedulers"}

    def test_gauges_of_a_killed_worker_go_and_its_counts_stay(self, workers: Server) -> None:
        """
        The gauges of a killed worker are removed, and its counters are kept.

        The worker in its place continues the counters, and no scrape shows a lower count.
        """
        wait_for_answer(lambda: workers.page().runs >= 3)
        before = workers.page("/standard")
        victim = min(workers.workers())
        os.kill(victim, signal.SIGKILL)
        seen: list[Page] = [before]

        def replaced() -> bool:
            seen.append(workers.page("/standard"))
            return len(seen[-1].pids - {victim}) == 2

        wait_for_answer(replaced)
        wait_for_answer(lambda: victim not in workers.page("/standard").pids)
        wait_for_answer(lambda: workers.page().runs > seen[-1].runs)
        runs = [page.runs for page in seen]
        assert runs == sorted(runs)
        wait_for_answer(lambda: self.running_schedulers(workers) == 2)

    def test_each_worker_shows_itself_without_multiprocess_mode(self, room: Path) -> None:
        """Without multiprocess mode each worker shows its own scheduler only."""
        pytest.importorskip("gunicorn")
        with server(room, *gunicorn("--workers", "2", APP), START="each") as workers:
            wait_for_answer(lambda: len(workers.workers()) == 2)
            wait_for_answer(lambda: workers.ask_all() == {f"{p} 1 []" for p in workers.workers()})


class TestPreload:
    """The scheduler is started by gunicorn's first process, which then forks the workers."""

    def test_forked_workers_without_the_mode_report_that_they_are_copies(self, room: Path) -> None:
        """Workers have a copy of the scheduler that does not run, and report this."""
        pytest.importorskip("gunicorn")
        command = gunicorn("--workers", "2", "--preload", APP)
        with server(room, *command, START="each") as workers:
            wait_for_answer(lambda: len(workers.workers()) == 2)
            wait_for_answer(
                lambda: workers.ask_all() == {f"{p} 0 ['forked']" for p in workers.workers()}
            )
            status, health = get(f"{workers.url}/health")
            assert (status, "forked" in health) == (503, True)
            assert workers.page().value("scheduler_up") == 0

    def test_forked_workers_in_the_mode_show_the_first_process(self, room: Path) -> None:
        """Workers show the scheduler of the first process, which runs the jobs."""
        pytest.importorskip("gunicorn")
        command = gunicorn("--workers", "2", "--preload", APP)
        metrics = str(room / "metrics")
        with server(room, *command, START="each", PROMETHEUS_MULTIPROC_DIR=metrics) as workers:
            wait_for_answer(lambda: workers.page().runs >= 2)
            page = workers.page()
            assert page.pids == {workers.process.pid}
            assert page.value("scheduler_up") == 1
            assert page.value("scheduler_state", state="running") == 1
            assert alerts(room, [page] * 6, at=5) == set()


class TestOneWorkerByFlag:
    """The worker that creates a file first starts the scheduler; no other worker replaces it."""

    def test_worker_with_the_scheduler_is_shown_until_it_is_killed(self, room: Path) -> None:
        """
        All workers show the same series, by the handle and by prometheus_client's own way.

        When the worker with the scheduler is killed, its jobs miss their next runs, and alerts
        fire.
        """
        pytest.importorskip("gunicorn")
        environment: dict[str, Any] = {
            "START": "first",
            "FLAG": str(room / "flag"),
            "PROMETHEUS_MULTIPROC_DIR": str(room / "metrics"),
        }
        with server(room, *gunicorn("--workers", "2", APP), **environment) as workers:
            wait_for_answer(lambda: workers.page().runs >= 2)
            self.whichever_answers(workers)
            self.killed_for_good(workers, room)

    def whichever_answers(self, workers: Server) -> None:
        (pid,) = workers.page().pids
        assert pid in workers.workers()
        keys = {frozenset(workers.page(path).series) for path in ["/metrics", "/standard"] * 6}
        assert len(keys) == 1
        names = {name for name, _ in next(iter(keys))}
        assert {"apscheduler_scheduler_up", "application_requests_total"} <= names
        wait_for_answer(lambda: {answer.split()[1] for answer in workers.ask_all()} == {"0", "1"})

    def killed_for_good(self, workers: Server, room: Path) -> None:
        before = workers.page()
        (pid,) = before.pids
        os.kill(pid, signal.SIGKILL)
        wait_for_answer(lambda: pid not in workers.workers() and len(workers.workers()) == 2)
        wait_for_answer(lambda: not workers.page().pids)
        after = workers.page()
        assert after.value("scheduler_up") is None
        assert after.runs >= before.runs > 0
        pages = [before] * 2 + [after] * 10
        assert alerts(room, pages, at=1) == set()
        assert alerts(room, pages, at=8) == {
            "APSchedulerSchedulerDown",
            "APSchedulerMissedRun",
        }


class TestUvicorn:
    def test_scheduler_in_each_uvicorn_worker_is_seen(self, room: Path) -> None:
        """If each uvicorn worker starts the scheduler, two running schedulers are shown."""
        pytest.importorskip("uvicorn")
        command = [sys.executable, "-m", "uvicorn", "--workers", "2", "--port", "{port}"]
        metrics = str(room / "metrics")
        asgi = "tests.applications.web_workers:telemetry.asgi_app"
        with server(
            room, *command, asgi, START="each", PROMETHEUS_MULTIPROC_DIR=metrics
        ) as workers:
            wait_for_answer(lambda: workers.page().value("scheduler_state", state="running") == 2)
            page = workers.page()
            assert page.pids <= workers.workers()
            assert len(page.pids) == 2
            wait_for_answer(lambda: workers.page().runs >= 2)


class TestUwsgi:
    """
    Debian's uWSGI, whose Python uses the packages of the Python that runs the tests.

    Other builds of uWSGI must be compiled. All packages that are needed are pure Python.
    """

    @pytest.fixture
    def command(self) -> list[str]:
        """Return the command line of uWSGI."""
        path = shutil.which("uwsgi_python3")
        if path is None:
            pytest.skip("uwsgi-plugin-python3 of Debian is not installed")
        command = [path, "--http-socket", "127.0.0.1:{port}", "--module", APP]
        return [*command, "--master", "--processes", "1", "--need-app", "--die-on-term"]

    @pytest.fixture
    def environment(self) -> dict[str, Any]:
        """Return the variables with which it finds the application and its packages."""
        import apscheduler_telemetry

        ours = Path(apscheduler_telemetry.__file__).parents[1]
        path = [str(ours), sysconfig.get_path("purelib"), str(ROOT)]
        return {"PYTHONPATH": os.pathsep.join(path), "START": "each"}

    def test_uwsgi_without_threads_is_reported_as_stopped(
        self, command: list[str], environment: dict[str, Any], room: Path
    ) -> None:
        """APScheduler does not start without threads, and `/health` responds with 503."""
        with server(room, *command, "--lazy-apps", **environment) as uwsgi:
            status, health = get(f"{uwsgi.url}/health")
            assert (status, '"stopped"' in health) == (503, True)
            assert uwsgi.page().value("scheduler_up") == 0
            assert "--enable-threads" in uwsgi.log.read_text()

    def test_uwsgi_with_threads_runs_jobs(
        self, command: list[str], environment: dict[str, Any], room: Path
    ) -> None:
        """With threads, and the application loaded in each worker, jobs run."""
        arguments = ["--enable-threads", "--lazy-apps"]
        with server(room, *command, *arguments, **environment) as uwsgi:
            wait_for_answer(lambda: uwsgi.page().runs >= 2)
            assert get(f"{uwsgi.url}/health")[0] == 200


class TestRight:
    """The three recommended ways, as in the examples."""

    def test_dedicated_process_runs_and_shows_the_jobs(self, room: Path) -> None:
        """The process runs the jobs, serves their metrics, and ends on SIGTERM."""
        command = [sys.executable, EXAMPLES / "dedicated_process.py"]
        with server(room, *command) as process:
            wait_for_answer(lambda: process.page().runs >= 1)
            assert get(f"{process.url}/health")[0] == 200

    def test_worker_with_the_lock_runs_the_jobs_and_is_replaced(self, room: Path) -> None:
        """The worker with the lock runs the jobs; after a kill or a reload, another one does."""
        pytest.importorskip("gunicorn")
        pytest.importorskip("flask")
        environment: dict[str, Any] = {
            "SCHEDULER_LOCK": str(room / "lock"),
            "PROMETHEUS_MULTIPROC_DIR": str(room / "metrics"),
        }
        command = gunicorn("--workers", "2", "one_worker:app")
        with server(room, *command, cwd=EXAMPLES, **environment) as workers:
            pid = self.runs_in_one(workers)
            os.kill(pid, signal.SIGKILL)
            pid = self.runs_in_one(workers, not_in=pid)
            workers.process.send_signal(signal.SIGHUP)
            self.runs_in_one(workers, not_in=pid)

    @pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
    def test_worker_that_the_hook_chooses_runs_the_jobs_and_is_replaced(
        self, room: Path, preload: list[str]
    ) -> None:
        """The worker that the hook chooses runs the jobs; after a kill, another one does."""
        pytest.importorskip("gunicorn")
        pytest.importorskip("flask")
        command = gunicorn("--workers", "2", *preload, "app:app")
        metrics = str(room / "metrics")
        where = EXAMPLES / "gunicorn_hook"
        with server(room, *command, cwd=where, PROMETHEUS_MULTIPROC_DIR=metrics) as workers:
            pid = self.runs_in_one(workers)
            os.kill(pid, signal.SIGKILL)
            self.runs_in_one(workers, not_in=pid)

    def runs_in_one(self, workers: Server, *, not_in: int = 0) -> int:
        """Wait until one worker runs the jobs and they are counted; return its process id."""
        # A request may reach the worker that has just been killed.
        before = wait_for_answer(workers.page).runs if not_in else 0.0

        def one() -> set[int]:
            # After a reload, a worker that is about to end may have the scheduler for a moment.
            assert len(workers.workers()) == 2
            page = workers.page()
            assert page.value("scheduler_state", state="running") == 1
            assert page.value("scheduler_up") == 1
            assert page.runs > before
            pids = page.pids - {not_in}
            assert len(pids) == 1
            assert pids <= workers.workers()
            return pids

        (pid,) = wait_for_answer(one)
        return pid


class TestChildren:
    """Children that an application starts with `multiprocessing`."""

    SCRIPT = """
        import multiprocessing, sys, threading, time
        from apscheduler.schedulers.background import BackgroundScheduler
        from prometheus_client import REGISTRY, generate_latest
        from apscheduler_telemetry import instrument

        scheduler = BackgroundScheduler()
        telemetry = instrument(scheduler)

        def tick():
            ran.set()

        def look(queue):
            codes = [reason["code"] for reason in telemetry.health()["reasons"]]
            up = REGISTRY.get_sample_value("apscheduler_scheduler_up", {"scheduler": "default"})
            queue.put((codes, up))
            own = BackgroundScheduler()
            shown = instrument(own, name="default" if codes == ["forked"] else "own")
            with shown.start_http_server(0):
                own.start()
                own.add_job(tick, id="own")
                assert ran.wait(20)
                while own.get_jobs():  # or APScheduler may trip over its own shutdown
                    time.sleep(0.01)
                own.shutdown()
            runs = {"scheduler": shown.name, "job_id": "own", "outcome": "success"}
            queue.put(REGISTRY.get_sample_value("apscheduler_job_runs_total", runs))
            shown.uninstrument()
            telemetry.uninstrument()
            generate_latest(REGISTRY)

        ran = threading.Event()

        if __name__ == "__main__":
            scheduler.start()
            scheduler.add_job(tick, id="parent")
            assert ran.wait(20)
            ran.clear()
            context = multiprocessing.get_context(sys.argv[1])
            queue = context.SimpleQueue()
            child = context.Process(target=look, args=(queue,))
            child.start()
            print(*queue.get())
            print(queue.get())
            child.join()
            print(child.exitcode, telemetry.health()["status"])
            runs = {"scheduler": "default", "job_id": "parent", "outcome": "success"}
            print(REGISTRY.get_sample_value("apscheduler_job_runs_total", runs))
    """

    @pytest.mark.parametrize(
        ("method", "seen"),
        [
            ("fork", "['forked'] 0"),
            ("spawn", "['stopped'] 0"),
            ("forkserver", "['stopped'] 0"),
        ],
    )
    def test_child_of_multiprocessing_sees_only_its_own_scheduler(
        self, method: str, seen: str, tmp_path: Path
    ) -> None:
        """A child reports that its copy does not run, and can run a scheduler of its own."""
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(self.SCRIPT))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", script, method],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stderr == ""
        assert done.stdout.splitlines() == [seen, "1", "0 healthy", "1"]
