"""Runs that a kill cuts off: the next process counts them as lost, and ends their spans."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from datetime import timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import instrument
from apscheduler_telemetry.core import journal_file, run_journal
from apscheduler_telemetry.core.files import scheduler_file_stem
from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.foreign_files import FOREIGN_FILES, assert_untouched, make_victim
from tests.helpers.journals import as_if_killed, entries_in, journal_path, labels_in
from tests.helpers.metrics import errors_of, registry_of, value_or_usual
from tests.helpers.paths import ROOT
from tests.helpers.rigs import Gate, HandRig, hand_driven_rig, live_rig
from tests.helpers.run_log_records import extra_of, recording
from tests.helpers.schedulers import HandDriven
from tests.helpers.threads import in_fork

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs flock()")

AT = START.timestamp()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def left(directory: Path) -> Iterator[Path]:
    """A journal with a run of the job "job", one of "gone", and one of "gone" that waits."""
    gate = Gate()
    executors = {"default": ThreadPoolExecutor(2)}
    with hand_driven_rig(executors, telemetry={"journal": directory}) as rig:
        rig.add(gate.hold)
        rig.add(gate.hold, id="gone")
        rig.scheduler.turn()
        for _ in range(2):
            gate.wait_for_run()
        rig.add(jobs.nothing, id="waits", name="gone")
        rig.after(5)
        yield as_if_killed(directory)
        gate.open()


def sample_of(rig: HandRig, name: str, job_id: str = "job", **labels: str) -> float | None:
    labels = {"scheduler": "default", "job_id": job_id, **labels}
    return value_or_usual(registry_of(rig.telemetry), name, labels)


class TestCounts:
    """The metrics of the next process."""

    def test_runs_are_lost(self, left: Path) -> None:
        """Each run is lost once, under its label, at the time at which it was found."""
        with hand_driven_rig(at=START + timedelta(seconds=60), telemetry={"journal": left}) as rig:
            for job_id in ("job", "gone", "waits"):
                assert rig.outcomes(job_id) == {"lost": 1}
                name = "apscheduler_job_exceptions_total"
                assert sample_of(rig, name, job_id, exception="interrupted") == 1
                assert rig.job(job_id).consecutive_failures == 1
                assert (
                    rig.job(job_id).last_failure_at == (START + timedelta(seconds=60)).timestamp()
                )
                assert sum(rig.job(job_id).delays.counts) == 0
            assert (rig.job().last_run_due_at, rig.job("waits").last_run_due_at) == (AT, None)
            assert entries_in(left) == []

    def test_job_that_is_not_known_promises_nothing(self, left: Path) -> None:
        """What is not known of a job is absent, until a job has the label; 0 would cancel a run."""
        names = [
            "apscheduler_job_next_run_timestamp_seconds",
            "apscheduler_job_grace_seconds",
        ]
        with hand_driven_rig(telemetry={"journal": left}) as rig:
            assert [sample_of(rig, name) for name in names] == [None, None]
            assert b"apscheduler_job_info{" not in generate_latest(registry_of(rig.telemetry))
            assert {job["overdue"] for job in rig.telemetry.health()["jobs"]} == {False}
            rig.add(jobs.nothing, "date", run_date=START + timedelta(seconds=60))
            assert [sample_of(rig, name) for name in names] == [AT + 60, 60]
            assert rig.outcomes() == {"lost": 1}
            rig.after(60)
            rig.settle()
            assert rig.outcomes() == {"lost": 1, "success": 1}
            assert rig.job().consecutive_failures == 0

    def test_label_without_a_job_ends_after_some_time(self, left: Path) -> None:
        """A label that only the journal has is shown as long as that of a removed job."""
        with hand_driven_rig(telemetry={"journal": left}) as rig:
            assert rig.outcomes("gone") == {"lost": 1}
            rig.clock.advance(890)
            assert rig.outcomes("gone") == {"lost": 1}
            rig.clock.advance(20)
            assert sample_of(rig, "apscheduler_job_running", "gone") is None

    def test_labels_have_their_limit(self, left: Path) -> None:
        """Labels of a journal share the label of the overflow, too."""
        with hand_driven_rig(telemetry={"journal": left, "max_labels": 1}) as rig:
            lost = [rig.outcomes(label)["lost"] for label in ("gone", "__overflow__")]
            assert sorted(lost) == [1, 2]

    def test_jobs_added_before_the_start_are_known(self, left: Path) -> None:
        """The runs count for the jobs that have the label, which are described as always."""
        with live_rig(HandDriven(timezone=timezone.utc), start=False, journal=left) as rig:
            rig.add(jobs.nothing, "date", run_date=START)
            rig.scheduler.start()
            assert rig.outcomes() == {"lost": 1}
            assert rig.job().next_run == AT
            assert b'job_info{executor="default",func="tests' in generate_latest(
                registry_of(rig.telemetry)
            )


class TestLists:
    """The interrupted runs among the latest runs, and in the log of runs."""

    def test_latest_runs_have_them(self, left: Path) -> None:
        """Each run is listed as lost, with its start and that the process has ended."""
        with hand_driven_rig(at=START + timedelta(seconds=60), telemetry={"journal": left}) as rig:
            (run,) = rig.telemetry.runs("job")
            (waited,) = rig.telemetry.runs("waits")

        assert (run["outcome"], run["error_type"]) == ("lost", "interrupted")
        assert run["error_message"] == "the process ended during the run"
        assert run["start_time"] == run["scheduled_time"] == "2030-01-01T00:00:00.000+00:00"
        assert run["end_time"] == "2030-01-01T00:01:00.000+00:00"
        assert waited["start_time"] is None

    def test_each_is_logged(self, left: Path) -> None:
        """Each run is logged as an error, without an exception and what the journal lacks."""
        with recording() as records:
            telemetry = {"journal": left, "run_log": True}
            with hand_driven_rig(telemetry=telemetry):
                extras = [extra_of(record) for record in records.wait_for(3)]
                messages = [record.getMessage() for record in records.records]

        assert {extra["apscheduler.job.id"] for extra in extras} == {"job", "gone", "waits"}
        assert {extra["error.type"] for extra in extras} == {"interrupted"}
        assert {extra["apscheduler.outcome"] for extra in extras} == {"lost"}
        assert not any("apscheduler.trigger" in extra for extra in extras)
        assert not any("exception.type" in extra for extra in extras)
        assert "job: lost: interrupted: the process ended during the run" in messages


class TestReading:
    """Interrupted runs stay in their file until metrics are read that have them."""

    def test_process_that_dies_unread_hands_them_on(self, left: Path) -> None:
        """If nobody reads the metrics of the next process, the one after it counts the runs."""
        with hand_driven_rig(telemetry={"journal": left}) as rig:
            assert len(rig.telemetry.health()["jobs"]) == 3
            assert labels_in(left) == ["gone", "job", "waits"]
            after = as_if_killed(left)
        with hand_driven_rig(telemetry={"journal": after}) as rig:
            assert rig.outcomes() == {"lost": 1}
            assert labels_in(after) == []
            afterwards = as_if_killed(after)
        with hand_driven_rig(telemetry={"journal": afterwards}) as rig:
            rig.add(jobs.nothing)
            assert rig.outcomes() == {}

    def test_without_metrics_nobody_has_to_read_them(self, left: Path) -> None:
        """Where only spans are exported, the runs are removed at once."""
        with hand_driven_rig() as rig:
            rig.scheduler.shutdown()
            rig.telemetry.uninstrument()
            telemetry = instrument(rig.scheduler, registry=None, journal=left)
            rig.scheduler.start()
            assert labels_in(left) == []
            telemetry.uninstrument()
            rig.telemetry = instrument(rig.scheduler, registry=CollectorRegistry())

    def test_process_that_ends_later_is_found(
        self, left: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The runs of an old process that outlives the start of the new one are found, too."""
        file = journal_file.JournalFile.open(journal_path(left), "default")
        assert file is not None
        with hand_driven_rig(telemetry={"journal": left}) as rig:
            rig.add(jobs.nothing, "date", run_date=START + timedelta(seconds=600))
            assert rig.outcomes() == {}
            file.close()  # as its process ends
            rig.clock.advance(run_journal.SEARCH_INTERVAL_SECONDS - 1)
            assert rig.outcomes() == {}
            rig.clock.advance(1)
            assert rig.outcomes() == {"lost": 1}
            assert (labels_in(left, 0), labels_in(left, 1)) == ([], [])
            rig.clock.advance(run_journal.SEARCH_INTERVAL_SECONDS)
            assert rig.outcomes() == {"lost": 1}

    def test_log_names_the_jobs(self, left: Path, caplog: pytest.LogCaptureFixture) -> None:
        """One warning for each file says how many runs of which jobs were interrupted, and why."""
        caplog.set_level(logging.WARNING, "apscheduler_telemetry")
        with hand_driven_rig(telemetry={"journal": left}):
            pass
        (message,) = caplog.messages
        assert message.startswith(
            "3 run(s) of the scheduler 'default' were interrupted, as process"
        )
        assert (
            f"process {os.getpid()} ended (its scheduler was started at 2030-01-01T00:00:00+00:00)"
            in message
        )
        assert "1 of 'gone'" in message
        assert message.endswith("They count as lost")

    def test_log_tells_a_restart_of_the_machine(
        self, left: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A crash of the machine is told from the end of a process."""
        path = journal_path(left)
        content = path.read_bytes()
        boot_id = journal_file.read_boot_id().encode()
        if not boot_id:
            pytest.skip("this system has no boot id")
        path.write_bytes(content.replace(boot_id, b"0" * len(boot_id)))
        with hand_driven_rig(telemetry={"journal": left}):
            assert "the machine was restarted" in caplog.text


class TestSpans:
    """The spans of interrupted runs."""

    @pytest.fixture
    def provider(self) -> Any:
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        exporting = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        processors = pytest.importorskip("opentelemetry.sdk.trace.export")
        provider = sdk.TracerProvider(shutdown_on_exit=False)
        provider.exporter = exporting.InMemorySpanExporter()
        provider.add_span_processor(processors.SimpleSpanProcessor(provider.exporter))
        return provider

    def test_span_keeps_its_ids_and_its_start(self, directory: Path, provider: Any) -> None:
        """It is the span that was current in the job; a run that did not start has one of now."""
        from opentelemetry import trace

        gate = Gate()
        current: list[Any] = []

        def hold() -> None:
            current.append(trace.get_current_span().get_span_context())
            gate.hold()

        telemetry = {"journal": directory, "tracer_provider": provider}
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}, telemetry=telemetry) as rig:
            rig.add(hold)
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.add(jobs.nothing, id="waits")
            rig.after(5)
            left = as_if_killed(directory)
            gate.open()
            rig.settle()
        provider.exporter.clear()

        at = START + timedelta(seconds=60)
        with hand_driven_rig(at=at, telemetry={**telemetry, "journal": left}):
            pass
        spans = {span.name: span for span in provider.exporter.get_finished_spans()}
        assert spans.keys() == {"job", "waits"}
        job, waits = spans["job"], spans["waits"]
        assert (job.context.trace_id, job.context.span_id) == (
            *(current[0].trace_id, current[0].span_id),
        )
        assert job.parent is None
        assert job.start_time == job.end_time == AT * 1e9
        assert waits.start_time == waits.end_time == at.timestamp() * 1e9
        assert waits.context.trace_id != job.context.trace_id
        for span, when in ((job, "during the run"), (waits, "before the run started")):
            assert span.status.status_code is StatusCode.ERROR
            assert span.status.description == f"the process ended {when}"
            assert span.attributes["apscheduler.outcome"] == "lost"
            assert span.attributes["error.type"] == "interrupted"
            assert span.attributes["apscheduler.job.id"] == span.name
            assert "" not in span.attributes.values()
            assert span.events == ()

    def test_later_spans_have_ids_of_their_own(self, left: Path, provider: Any) -> None:
        """Only the span of the interrupted run has its ids."""
        telemetry = {"journal": left, "tracer_provider": provider}
        with hand_driven_rig(telemetry=telemetry) as rig:
            rig.add(jobs.nothing)
            rig.scheduler.turn()
            rig.settle()
        ids = [span.context.span_id for span in provider.exporter.get_finished_spans()]
        assert len(set(ids)) == 4

    def test_processor_that_fails_is_counted(self, left: Path, provider: Any) -> None:
        """What a span processor raises is counted, and the runs are lost."""

        class Failing:
            def __getattr__(self, name: str) -> Any:
                raise OSError(name)

        provider.add_span_processor(Failing())
        with hand_driven_rig(telemetry={"journal": left, "tracer_provider": provider}) as rig:
            rig.failing.add("spans")
            assert rig.outcomes() == {"lost": 1}


class TestRefused:
    """Files that are not used: the scheduler runs, and another file is used."""

    @pytest.mark.parametrize(
        ("damage", "problem"),
        [
            (lambda content: b"precious", "has 8 bytes and is no journal"),
            (lambda content: b"x" * len(content), "is no journal"),
            (lambda content: content + b"\0", "is no journal"),
            (lambda content: content[:8] + b"\1" + content[9:], "of another version, 1"),
            (lambda content: content.replace(b"default", b"another"), "of another scheduler"),
        ],
        ids=["short", "foreign", "long", "version", "scheduler"],
    )
    def test_damaged_or_foreign_file(
        self, left: Path, caplog: pytest.LogCaptureFixture, damage: Any, problem: str
    ) -> None:
        """A file that is no journal of this scheduler stays as it is, and is named once."""
        path = journal_path(left)
        path.write_bytes(damage(path.read_bytes()))
        before = path.read_bytes()
        gate = Gate()
        with hand_driven_rig(telemetry={"journal": left}) as rig:
            rig.failing.add("journal")
            rig.add(gate.hold)
            rig.scheduler.turn()
            gate.wait_for_run()
            assert labels_in(left, 1) == ["job"]
            gate.open()
        assert path.read_bytes() == before
        (message,) = [text for text in caplog.messages if "journal" in text]
        assert str(path) in message
        assert problem in message

    @pytest.mark.parametrize("kind", FOREIGN_FILES)
    def test_other_kinds_of_files(self, directory: Path, tmp_path: Path, kind: str) -> None:
        """Links are not followed, and FIFOs and devices are not opened."""
        victim = make_victim(tmp_path / "elsewhere")
        directory.mkdir()
        FOREIGN_FILES[kind](journal_path(directory), victim)
        with hand_driven_rig(telemetry={"journal": directory}) as rig:
            rig.failing.add("journal")
            assert journal_path(directory, 1).exists()
        assert_untouched(victim)

    def test_path_of_a_file(self, directory: Path, caplog: pytest.LogCaptureFixture) -> None:
        """A journal that is a file, or whose parent is missing, is counted and named."""
        directory.write_text("precious")
        for path in (directory, directory.parent / "missing" / "journal"):
            with hand_driven_rig(telemetry={"journal": path}) as rig:
                rig.failing.add("journal")
                rig.add(jobs.nothing)
                rig.scheduler.turn()
                rig.settle()
                assert rig.outcomes() == {"success": 1}
                assert errors_of(rig.telemetry).counts()["journal"] == 1
        assert directory.read_text() == "precious"
        assert "is not a directory" in caplog.text
        assert "No such file or directory" in caplog.text

    def test_damaged_runs(self, left: Path, caplog: pytest.LogCaptureFixture) -> None:
        """Runs that cannot be read are an error, and the others are counted."""
        with journal_path(left).open("r+b") as file:
            for slot in journal_file.SLOT_INDEXES[:2]:
                file.seek(
                    slot * journal_file.NUMBER_SIZE + journal_file.SLOT_BEGIN_FROM_DUE_TIME_BYTES
                )
                file.write(b"\xff" * 8)  # texts beyond the slot
        with hand_driven_rig(telemetry={"journal": left}) as rig:
            rig.failing.add("journal")
            assert errors_of(rig.telemetry).counts()["journal"] == 1
            assert rig.outcomes("waits") == {"lost": 1}
            assert b'job_id="job"' not in generate_latest(registry_of(rig.telemetry))
        assert f"2 damaged run(s) in '{journal_path(left)}'" in caplog.text

    def test_file_whose_creator_was_killed(self, directory: Path) -> None:
        """A file that was not finished has no runs, and is used."""
        directory.mkdir()
        for size in (0, 5_000, journal_file.FILE_SIZE):
            journal_path(directory).write_bytes(bytes(size))
            with hand_driven_rig(telemetry={"journal": directory}):
                pass
            assert [path.name for path in directory.iterdir()] == [journal_path(directory).name]
            assert entries_in(directory) == []

    def test_full_disk_leaves_no_file(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A file that cannot get its size is removed, or each start would leave one more."""
        room = [5_000]

        def write(descriptor: int, content: bytes, position: int) -> int:
            if position >= room[0]:
                raise OSError(errno.ENOSPC, "No space left on device")
            return pwrite(descriptor, content[: room[0] - position], position)

        pwrite = os.pwrite
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", write)
            for _ in range(3):
                with hand_driven_rig(telemetry={"journal": directory}) as rig:
                    rig.failing.add("journal")
                    assert list(directory.iterdir()) == []
                    assert errors_of(rig.telemetry).counts()["journal"] == 1
        with hand_driven_rig(telemetry={"journal": directory}):
            assert list(directory.iterdir()) == [journal_path(directory)]

    def test_component_exists_at_zero_with_a_journal_only(self, directory: Path) -> None:
        """Only a scheduler with a journal has the component."""
        with hand_driven_rig() as rig:
            assert "journal" not in errors_of(rig.telemetry).counts()
        with hand_driven_rig(telemetry={"journal": directory}) as rig:
            assert errors_of(rig.telemetry).counts()["journal"] == 0

    def test_names_of_schedulers_are_kept_apart(self, left: Path) -> None:
        """A scheduler of another name has other files in the same directory."""
        with hand_driven_rig(telemetry={"journal": left, "name": "other"}) as rig:
            rig.add(jobs.nothing)
            assert rig.outcomes() == {}
        assert labels_in(left) == ["gone", "job", "waits"]
        assert journal_path(left, scheduler="other").exists()
        assert scheduler_file_stem("other") != scheduler_file_stem("default")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestForks:
    """Forked children."""

    def test_child_leaves_the_file_to_its_parent(self, directory: Path) -> None:
        """A child neither writes into the file of its parent, nor keeps it after its parent."""
        gate = Gate()
        with hand_driven_rig(telemetry={"journal": directory}) as rig:
            rig.add(gate.hold)
            rig.scheduler.turn()
            gate.wait_for_run()

            def submit_and_look() -> bool:
                rig.add(jobs.nothing, id="child")
                rig.scheduler.turn()
                generate_latest(registry_of(rig.telemetry))
                return labels_in(directory) == ["job"]

            assert in_fork(submit_and_look)
            assert labels_in(directory) == ["job"]
            gate.open()

    def test_fork_while_another_thread_has_the_lock(self, directory: Path) -> None:
        """A child does not wait for a thread that it does not have."""
        with hand_driven_rig(telemetry={"journal": directory}) as rig:
            journal: Any = rig.telemetry._journal
            is_held, may_end = threading.Event(), threading.Event()

            def hold_lock() -> None:
                with journal._lock:
                    is_held.set()
                    may_end.wait(jobs.WAIT_TIMEOUT)

            thread = threading.Thread(target=hold_lock)
            thread.start()
            assert is_held.wait(jobs.WAIT_TIMEOUT)
            assert in_fork(lambda: bool(generate_latest(registry_of(rig.telemetry))))
            may_end.set()
            thread.join()

    def test_child_that_starts_the_scheduler_has_its_own_file(self, directory: Path) -> None:
        """A child that starts the scheduler has a file of its own."""
        with hand_driven_rig(telemetry={"journal": directory}) as rig:
            gate = Gate()

            def start_and_look() -> bool:
                rig.scheduler.shutdown(wait=False)
                rig.scheduler.start()
                rig.scheduler.add_executor(ThreadPoolExecutor(1), "fresh")
                rig.add(gate.hold, executor="fresh")
                rig.scheduler.turn()
                gate.wait_for_run()
                return (labels_in(directory, 0), labels_in(directory, 1)) == ([], ["job"])

            assert in_fork(start_and_look)


@pytest.mark.slow
class TestKill:
    """A process that is really killed."""

    def test_forked_workers_do_not_keep_the_lock(self, directory: Path) -> None:
        """Workers of a process pool outlive their parent, and its runs are lost nevertheless."""
        program = f"""
            import multiprocessing, os, sys, time
            from apscheduler.executors.pool import ProcessPoolExecutor
            from apscheduler.schedulers.background import BackgroundScheduler
            from apscheduler_telemetry import instrument
            from tests.helpers.journals import entries_in
            from tests.helpers.waiting import wait_until
            from pathlib import Path

            directory = Path({str(directory)!r})
            options = {{"mp_context": multiprocessing.get_context("fork")}}
            executors = {{"default": ProcessPoolExecutor(1, pool_kwargs=options)}}
            scheduler = BackgroundScheduler(executors=executors, timezone="UTC")
            instrument(scheduler, journal=directory)
            scheduler.start()
            scheduler.add_job(time.sleep, args=[20], id="job")
            wait_until(lambda: [e for e in entries_in(directory) if e.started_at])
            workers = scheduler._executors["default"]._pool._processes
            print(*workers, flush=True)
            os.kill(os.getpid(), 9)
        """
        killed = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert killed.stdout is not None
        workers = [int(pid) for pid in killed.stdout.readline().split()]
        assert killed.wait(30) == -9
        try:
            with hand_driven_rig(telemetry={"journal": directory}) as rig:
                assert rig.outcomes() == {"lost": 1}
                for worker in workers:
                    os.kill(worker, 0)  # it is alive still
        finally:
            for worker in workers:
                os.kill(worker, 9)
            killed.stdout.close()
