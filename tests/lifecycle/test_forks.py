"""Forks at any moment: telemetry works in the child."""

from __future__ import annotations

import _thread
import fcntl
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.base import BaseExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from opentelemetry import trace
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from apscheduler_telemetry.adapters.apscheduler3.triggers import FireTimeSearch
from apscheduler_telemetry.core.forks import create_daemon_thread, is_thread_alive
from tests.helpers import jobs
from tests.helpers.metrics import (
    adapter_of,
    errors_of,
    job_state,
    recorder_of,
    registry_of,
    value_or_usual,
)
from tests.helpers.paths import ROOT
from tests.helpers.rigs import Gate, hand_driven_rig
from tests.helpers.schedulers import HandDriven
from tests.helpers.scripts import output_of_script
from tests.helpers.threads import in_fork
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.slow
class TestSchedulerThatStartsInTheChild:
    """An application that is loaded before its server forks, as with ``gunicorn --preload``."""

    def test_background_work_goes_on_in_the_child(self) -> None:
        """The child computes intervals of jobs, also after the parent has done so."""
        written, errors = output_of_script(
            f"""
            import os, sys, warnings
            sys.path.insert(0, {str(ROOT)!r})
            warnings.simplefilter("ignore")
            from prometheus_client import CollectorRegistry
            from apscheduler_telemetry import instrument
            from tests.helpers.schedulers import hand_driven_scheduler
            from tests.helpers.waiting import wait_until

            def has_intervals(job_id):
                labels = {{"scheduler": "default", "job_id": job_id}}
                name = "apscheduler_job_shortest_interval_seconds"
                return registry.get_sample_value(name, labels) is not None

            registry = CollectorRegistry()
            scheduler = hand_driven_scheduler(timezone="UTC")
            telemetry = instrument(scheduler, registry=registry)
            scheduler.start(paused=True)
            scheduler.add_job(print, "cron", hour="1-5", id="parent")
            wait_until(lambda: has_intervals("parent"))
            if child := os.fork():
                os.waitpid(child, 0)
            else:
                scheduler.shutdown()
                scheduler.start(paused=True)
                scheduler.add_job(print, "cron", hour="1-5", id="child")
                try:
                    wait_until(lambda: has_intervals("child"), timeout=10)
                    os.write(1, b"child")
                finally:
                    os._exit(0)
            """
        )
        assert errors == ""
        assert written == "child"


FORK_OF_A_GREENLET = """
    from gevent import monkey
    monkey.patch_all()
    import os, sys, urllib.error, urllib.request
    import gevent
    from apscheduler.schedulers.gevent import GeventScheduler
    from prometheus_client import CollectorRegistry
    from apscheduler_telemetry import instrument

    def status(path):
        try:
            return urllib.request.urlopen(f"{server.url}{path}").status
        except urllib.error.HTTPError as error:
            return error.code

    registry = CollectorRegistry()
    scheduler = GeventScheduler(timezone="UTC")
    telemetry = instrument(scheduler, registry=registry)
    scheduler.add_job(str, "interval", hours=1)
    scheduler.start()
    gevent.sleep(0.1)
    if child := os.fork():
        os.waitpid(child, 0)
        scheduler.shutdown()
        sys.exit()
    labels = {"scheduler": "default"}
    print(int(registry.get_sample_value("apscheduler_scheduler_up", labels)))
    print([reason["code"] for reason in telemetry.health()["reasons"]])
    server = telemetry.start_http_server(0)
    print(status("/health"), status("/livez"))
"""


@pytest.mark.slow
def test_child_of_a_process_with_greenlets() -> None:
    """A child without the thread of the scheduler's greenlet says so, and logs no failure."""
    pytest.importorskip("gevent")
    written, errors = output_of_script(FORK_OF_A_GREENLET)
    assert errors == ""
    assert written.splitlines() == ["0", "['forked']", "503 503"]


BACKGROUND_SCHEDULER_BELOW_GEVENT = """
    from gevent import monkey
    monkey.patch_all()
    import gc, os, sys, time
    import gevent
    from apscheduler.schedulers.background import BackgroundScheduler
    from prometheus_client import CollectorRegistry
    from apscheduler_telemetry import instrument
    from apscheduler_telemetry.adapters.apscheduler3.background_worker import BackgroundWorker

    def wait_until(condition):
        deadline = time.perf_counter() + 20
        while not condition():
            assert time.perf_counter() < deadline
            time.sleep(0.001)

    def value(name, **labels):
        return registry.get_sample_value(f"apscheduler_{name}", {"scheduler": "default", **labels})

    def runs():
        return value("job_runs_total", job_id="job", outcome="success") or 0

    def workers():
        found = [each for each in gc.get_objects() if isinstance(each, gevent.Greenlet)]
        return [each for each in found if "(apscheduler-telemetry," in repr(each)]

    BackgroundWorker.IDLE_SECONDS = 0.05
    registry = CollectorRegistry()
    scheduler = BackgroundScheduler(timezone="UTC")
    telemetry = instrument(scheduler, registry=registry)
    scheduler.add_job(str, "interval", seconds=0.1, id="job")
    scheduler.start()
    wait_until(lambda: runs())
    scheduler.add_job(str, "cron", hour=3)
    wait_until(workers)
    child = os.fork()
    before = runs()
    wait_until(lambda: runs() > before + 1)
    wait_until(lambda: not any(not worker.dead for worker in workers()))
    # In one piece, as the other process writes to the same pipe.
    os.write(1, f"{value('scheduler_up')} {telemetry.health()['reasons']}\\n".encode())
    if child:
        os.waitpid(child, 0)
    os._exit(0)
"""


@pytest.mark.slow
def test_child_in_which_greenlets_go_on() -> None:
    """Below gevent the scheduler runs in parent and child; both say so, and no thread fails."""
    pytest.importorskip("gevent")
    written, errors = output_of_script(BACKGROUND_SCHEDULER_BELOW_GEVENT)
    assert errors == ""
    assert written.splitlines() == ["1 []"] * 2


class TestLoopThatGoesOn:
    """A process that forks into the background before its event loop runs, as by twistd."""

    def test_child_is_up_from_its_first_pass_on(self) -> None:
        """Until then, its scheduler counts as a copy that does not run."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            started_at = adapter_of(rig.telemetry).started_at

            def go_on() -> Any:
                before = rig.telemetry.health()
                rig.after(10)
                after = rig.telemetry.health()
                return [
                    [reason["code"] for reason in before["reasons"]],
                    [after["status"], after["reasons"]],
                    adapter_of(rig.telemetry).started_at - started_at,
                    rig.outcomes(),
                ]

            assert result_in_child(go_on) == [["forked"], ["healthy", []], 20, {"success": 2}]
            assert rig.telemetry.health()["status"] == "healthy"
            assert adapter_of(rig.telemetry).started_at == started_at

    def test_pass_that_forks_is_followed_by_the_first_of_the_child(self) -> None:
        """If a job turns its process into a daemon, the next pass shows that the loop goes on."""
        ends = os.pipe()
        forked: list[int] = []
        with hand_driven_rig({"default": DebugExecutor()}) as rig:

            def reasons() -> list[str]:
                return [reason["code"] for reason in rig.telemetry.health()["reasons"]]

            def turn_twice() -> Any:
                before = reasons()
                rig.scheduler.turn()
                return [before, reasons()]

            rig.add(lambda: forked.append(os.fork()))
            try:
                rig.scheduler.turn()
            finally:
                if forked == [0]:
                    answer_and_exit(turn_twice, ends[1])
            assert answer_of(forked[0], *ends) == [["forked"], []]
            assert reasons() == []

    def test_work_that_the_parent_has_begun_is_done(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Jobs whose intervals the parent's thread was computing have intervals in the child."""
        is_asked, go_on = threading.Event(), threading.Event()
        run, parent = FireTimeSearch.run, os.getpid()

        def run_in_child(search: FireTimeSearch, *args: Any) -> None:
            if os.getpid() == parent:
                is_asked.set()
                go_on.wait(jobs.WAIT_TIMEOUT)
            run(search, *args)

        monkeypatch.setattr(FireTimeSearch, "run", run_in_child)
        with hand_driven_rig() as rig:

            def intervals() -> list[float]:
                states = recorder_of(rig.telemetry).job_snapshots()
                return [state.interval_range[0] for state in states if state.interval_range]

            def count_intervals() -> int:
                rig.scheduler.turn()
                wait_until(lambda: len(intervals()) == 2)
                return len(intervals())

            # No other test has these triggers, whose search all alike share.
            rig.add(jobs.nothing, "cron", hour=1, second=37, id="one")
            rig.add(jobs.nothing, "cron", hour=2, second=37, id="two")
            assert is_asked.wait(jobs.WAIT_TIMEOUT)
            try:
                assert result_in_child(count_intervals) == 2
            finally:
                go_on.set()


def test_thread_that_python_has_forgotten_ends() -> None:
    """As it does below gevent, where a fork copies a thread that Python does not know then."""
    failures: list[Any] = []

    def forget() -> None:
        del threading._active[threading.get_ident()]  # type: ignore[attr-defined]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "excepthook", failures.append)
        patch.setattr(sys, "unraisablehook", failures.append)
        thread = create_daemon_thread(forget, name="forgotten")
        thread.start()
        thread.join(jobs.WAIT_TIMEOUT)
    assert not thread.is_alive()
    assert failures == []
    assert thread not in threading.enumerate()


def test_thread_that_python_has_not_started() -> None:
    """In a child it is not alive, and asking for it does not fail."""
    found: list[threading.Thread] = []
    is_asked, end = threading.Event(), threading.Event()

    def run() -> None:
        found.append(threading.current_thread())
        is_asked.set()
        end.wait()

    _thread.start_new_thread(run, ())
    try:
        assert is_asked.wait(jobs.WAIT_TIMEOUT)
        assert is_thread_alive(found[0])
        assert in_fork(lambda: not is_thread_alive(found[0]))
    finally:
        end.set()


def result_in_child(ask: Callable[[], Any]) -> Any:
    """Return what `ask` returns in a forked child, as JSON."""
    end_of_parent, end_of_child = os.pipe()
    child = os.fork()
    if not child:
        answer_and_exit(ask, end_of_child)
    return answer_of(child, end_of_parent, end_of_child)


def answer_and_exit(ask: Callable[[], Any], end_of_child: int) -> None:
    """In a child: write what `ask` returns, or why it fails, and end."""
    try:
        answer = json.dumps(ask())
    except BaseException:  # noqa: BLE001  # pytest must not continue in the child
        answer = json.dumps(traceback.format_exc())
    os.write(end_of_child, answer.encode())
    os._exit(0)


def answer_of(child: int, end_of_parent: int, end_of_child: int) -> Any:
    """Return what a child has written."""
    os.close(end_of_child)
    with open(end_of_parent, "rb") as file:
        answer = file.read()
    os.waitpid(child, 0)
    return json.loads(answer)


class Holding(BaseExecutor):
    """Takes jobs and does nothing with them."""

    def _do_submit_job(self, job: Any, run_times: Any) -> None:
        pass


class TestRunsInFlight:
    """Runs that are queued or running when their process forks."""

    def test_child_shows_no_runs_in_flight_of_its_parent(self) -> None:
        """The child shows no runs in flight of its parent; ended runs count in both."""
        gates = [Gate(), Gate(), Gate()]
        first, second, third = gates
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:

            def show() -> Any:
                job = job_state(rig.telemetry)
                executor = recorder_of(rig.telemetry).executors()["default"]
                on_page = rig.telemetry.health()["jobs"][0]["running_since"]
                return [
                    *job.in_flight_summary,
                    executor.running,
                    executor.queued,
                    on_page,
                    job.due_count,
                ]

            rig.add(lambda: gates.pop(0).hold(), "interval", seconds=10, max_instances=3)
            first.open()
            rig.after(10)
            rig.settle()
            rig.after(10)
            second.wait_for_run()
            rig.after(10)
            before = show()
            assert before[:2] == [1, 1]
            in_child = result_in_child(show)
            assert in_child == [0, 0, 0, 0, 0, 0, None, 1]
            assert show() == before
            second.open()
            third.open()
            rig.settle()
            assert rig.outcomes() == {"success": 3}

    def test_child_whose_parent_is_being_read_shows_none_either(self) -> None:
        """The child shows no run that a scrape of the parent has shown as running."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold)
            rig.scheduler.turn()
            gate.wait_for_run()
            registry = registry_of(rig.telemetry)
            name = "apscheduler_job_running", {"scheduler": "default", "job_id": "job"}
            assert value_or_usual(registry, *name) == 1
            assert result_in_child(lambda: value_or_usual(registry, *name)) == 0
            gate.open()

    def test_run_that_forks_ends_in_its_parent(self) -> None:
        """If a job forks, the child neither counts the run nor ends its span."""
        pytest.importorskip("opentelemetry.sdk.trace", reason="it comes with the extra 'otlp'")
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        ends = os.pipe()
        forked: list[int] = []
        options = {"tracer_provider": provider}
        with hand_driven_rig({"default": DebugExecutor()}, telemetry=options) as rig:

            def show() -> Any:
                job = job_state(rig.telemetry)
                spans = len(exporter.get_finished_spans())
                is_current = trace.get_current_span().get_span_context().is_valid
                return [job.due_count, sum(job.outcomes.values()), spans, is_current]

            rig.add(lambda: forked.append(os.fork()))
            try:
                rig.scheduler.turn()
            finally:
                if forked == [0]:
                    answer_and_exit(show, ends[1])
            in_child = answer_of(forked[0], *ends)
            assert in_child == [0, 0, 0, False]
            assert show() == [1, 1, 1, False]

    def test_error_in_the_child_is_about_the_run_of_the_child(self) -> None:
        """An error in the child ends the run of the child, not that of the parent."""
        with hand_driven_rig({"default": Holding()}) as rig:
            executor = rig.scheduler._executors["default"]
            rig.add(jobs.nothing, "interval", seconds=10, max_instances=2)
            rig.after(10)

            def fail() -> Any:
                rig.after(10)
                executor._run_job_error("job", OSError("in the child"))
                return [rig.outcomes(), recorder_of(rig.telemetry).executors()["default"].queued]

            assert result_in_child(fail) == [{"lost": 1}, 0]
            assert not any(errors_of(rig.telemetry).counts().values())
            executor._run_job_error("job", OSError("in the parent"))
            assert rig.outcomes() == {"lost": 1}


class TestMultiprocessDirectory:
    """The directory that several processes share in Prometheus' multiprocess mode."""

    def test_child_that_is_forked_meanwhile_does_not_keep_the_lock(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The lock is free when its owner unlocks it, also if a child has a copy of the file."""
        children: list[int] = []
        end_of_child, end_of_parent = os.pipe()
        lock = fcntl.flock

        def lock_and_fork(file: Any, operation: int) -> None:
            lock(file, operation)
            is_directory = os.path.samestat(_status(file), tmp_path.stat())
            if is_directory and not children and operation & fcntl.LOCK_EX:
                child = os.fork()
                if not child:
                    os.close(end_of_parent)
                    os.read(end_of_child, 1)  # which returns when the parent closes its end
                    os._exit(0)
                children.append(child)

        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        monkeypatch.setattr(fcntl, "flock", lock_and_fork)
        try:
            instrument(HandDriven(), registry=CollectorRegistry()).uninstrument()
            assert children, "nothing was locked"
            file = os.open(tmp_path, os.O_RDONLY)
            try:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(file)
        finally:
            os.close(end_of_parent)
            os.close(end_of_child)
            for child in children:
                os.waitpid(child, 0)


def _status(file: Any) -> os.stat_result:
    return os.fstat(file if isinstance(file, int) else file.fileno())
