"""The journal of runs in flight: what is in its file, from the submission of a run to its end."""

from __future__ import annotations

import asyncio
import os
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from apscheduler.executors.asyncio import AsyncIOExecutor
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from opentelemetry.trace import SpanContext

from apscheduler_telemetry.core.journal_file import (
    MAX_JOURNALED_RUNS,
    NUMBER_SIZE,
    SLOT_INDEXES,
    SLOT_SIZE,
    JournalFile,
)
from apscheduler_telemetry.core.model import Outcome
from apscheduler_telemetry.core.observers import ErrorReporter
from apscheduler_telemetry.core.records import Run
from apscheduler_telemetry.core.run_journal import InterruptedRuns, RunJournal
from apscheduler_telemetry.core.times import to_datetime
from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.interruptions import interrupt, raise_timeout
from tests.helpers.journals import as_if_killed, entries_in, journal_path, labels_in
from tests.helpers.recorder_rig import AT, RecorderRig, job_info
from tests.helpers.recording import AsyncHandDriven
from tests.helpers.rigs import Gate, Rig, hand_driven_rig
from tests.helpers.schedulers import forkserver_pool
from tests.helpers.threads import in_fork
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until, wait_until_async

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs flock()")

FILES = ("core/run_journal.py", "core/journal_file.py", "core/recorder.py", "core/records.py")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "journal"


class JournalRig(RecorderRig):
    """A recorder with a journal that has been started."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.errors = ErrorReporter()
        self.interrupted: list[InterruptedRuns] = []
        self.journal = RunJournal(
            directory,
            "default",
            error_reporter=self.errors,
            on_interrupted=self.interrupted.append,
            clock=self.clock,
        )
        self.recorder.use_journal(self.journal)
        self.journal.start()


class TestLifeOfARun:
    """A run is in the file from its submission to its end."""

    @pytest.mark.parametrize("coalesce", [True, False])
    def test_runs_in_a_thread_pool(self, directory: Path, coalesce: bool) -> None:
        """Running and queued runs are in the file, each with its times, and no other run is."""
        gate = Gate()
        executors = {"default": ThreadPoolExecutor(1)}
        with hand_driven_rig(executors, telemetry={"journal": directory}) as rig:
            rig.add(jobs.nothing, every(10), id="past")
            rig.after(0)
            rig.settle()
            assert entries_in(directory) == []
            rig.add(gate.hold, "date", run_date=START, id="running")
            rig.after(0)
            gate.wait_for_run()
            rig.add(jobs.nothing, every(10), id="queued", coalesce=coalesce)
            rig.scheduler.get_job("past").remove()
            rig.after(20)
            running, *queued = sorted(entries_in(directory), key=lambda entry: entry.due_at)
            assert (running.label, running.job_id, running.executor, running.pid) == (
                *("running", "running", "default"),
                os.getpid(),
            )
            assert running.due_at == running.started_at == START.timestamp()
            assert [entry.label for entry in queued] == ["queued"] * (1 if coalesce else 3)
            assert {entry.started_at for entry in queued} == {None}
            assert running.span is None
            gate.open()
            rig.settle()
            assert entries_in(directory) == []

    def test_burst_in_a_debug_executor(self, directory: Path) -> None:
        """The runs of a burst are all in the file until the burst is over."""
        seen: list[list[bool]] = []

        def look() -> None:
            entries = sorted(entries_in(directory), key=lambda entry: entry.due_at)
            seen.append([entry.started_at is not None for entry in entries])

        with hand_driven_rig({"default": DebugExecutor()}, telemetry={"journal": directory}) as rig:
            rig.add(look, every(10), coalesce=False)
            rig.after(20)
            assert seen == [[True, False, False], [True, True, False], [True, True, True]]
            assert entries_in(directory) == []

    def test_coroutines(self, directory: Path) -> None:
        """A coroutine is in the file until it has ended."""

        async def check() -> None:
            may_end = asyncio.Event()
            scheduler = AsyncHandDriven(executors={"default": AsyncIOExecutor()}, timezone="UTC")
            rig = Rig(scheduler, journal=directory)
            scheduler.start()
            rig.add(may_end.wait)
            scheduler.turn()
            await wait_until_async(lambda: rig.job().running)
            (entry,) = entries_in(directory)
            assert (entry.label, entry.started_at is not None) == ("job", True)
            may_end.set()
            await wait_until_async(rig.is_quiet)
            assert entries_in(directory) == []
            scheduler.shutdown()
            await wait_until_async(lambda: not scheduler.running)
            rig.telemetry.uninstrument()

        asyncio.run(check())

    def test_runs_in_a_process_pool(self, directory: Path, tmp_path: Path) -> None:
        """The parent writes runs of a process pool; they start when they are sent to it."""
        executors = {"default": forkserver_pool(1)}
        with hand_driven_rig(executors, telemetry={"journal": directory}) as rig:
            rig.add(jobs.hold, args=[str(tmp_path)])
            rig.scheduler.turn()
            wait_until((tmp_path / "gate.in").exists)
            (entry,) = entries_in(directory)
            assert (entry.label, entry.started_at) == ("job", START.timestamp())
            (tmp_path / "gate.out").touch()
            rig.settle()
            assert entries_in(directory) == []

    @pytest.mark.parametrize("outcome", ["error", "missed", "skipped", "lost"])
    def test_runs_that_do_not_succeed(self, directory: Path, outcome: str) -> None:
        """No run that has ended stays in the file, however it has ended."""
        executor = ThreadPoolExecutor(2)
        gate = Gate()
        with hand_driven_rig({"default": executor}, telemetry={"journal": directory}) as rig:
            if outcome == "missed":
                rig.add(jobs.nothing, next_run_time=START - timedelta(60), misfire_grace_time=1)
            elif outcome == "skipped":
                rig.add(gate.hold, every(10))
                rig.after(0)
                gate.wait_for_run()
                rig.clock.advance(10)
            elif outcome == "lost":
                rig.add(jobs.nothing)
                executor.shutdown()
            else:
                rig.add(jobs.fail)
            rig.after(0)
            if outcome == "skipped":
                assert labels_in(directory) == ["job"]
            gate.open()
            rig.settle()
            assert rig.outcomes()[outcome] == 1
            assert entries_in(directory) == []

    def test_long_and_strange_names_are_cut(self, directory: Path) -> None:
        """A label of 200 characters is whole in most scripts; longer ones end in a hash."""
        rig = JournalRig(directory)
        labels = ["a" * 200, "語" * 200, "🦉" * 200, "\ud800"]
        for label in labels:
            info = job_info(label, id=label * 3, executor=label)
            rig.submit(record=rig.recorder.job_upserted(info, None))
        entries = entries_in(directory)
        assert [entry.label for entry in entries[:2]] == labels[:2]
        assert entries[2].label.startswith("🦉" * 147 + "..")
        assert entries[3].label == "\\ud800"
        assert all(len(entry.job_id.encode()) <= 200 for entry in entries)
        assert all(len(entry.executor.encode()) <= 200 for entry in entries)


class TestFile:
    """The file of a process."""

    def test_is_for_its_owner_only_and_has_its_whole_size(self, directory: Path) -> None:
        """Nobody else can read the file, and a full disk cannot end the process later."""
        JournalRig(directory)
        status = journal_path(directory).stat()
        assert (status.st_mode & 0o777, directory.stat().st_mode & 0o777) == (0o600, 0o700)
        assert status.st_size == SLOT_SIZE * (MAX_JOURNALED_RUNS + 1)
        assert status.st_blocks * 512 >= status.st_size

    def test_more_runs_than_slots_are_counted(self, directory: Path) -> None:
        """Runs for which the file has no place are not in it, but go on; and places are reused."""
        rig = JournalRig(directory)
        runs = rig.submit(*range(MAX_JOURNALED_RUNS + 2))
        assert rig.errors.counts()["journal"] == 2
        assert len(entries_in(directory)) == MAX_JOURNALED_RUNS
        for run in runs:
            run.finish(Outcome.SUCCESS)
        assert entries_in(directory) == []
        rig.submit(*range(MAX_JOURNALED_RUNS))
        assert len(entries_in(directory)) == MAX_JOURNALED_RUNS
        assert rig.errors.counts()["journal"] == 2

    def test_run_at_the_epoch(self, directory: Path) -> None:
        """A run may be due at 1970-01-01, the time that is 0."""
        rig = JournalRig(directory)
        rig.submit(-AT)
        (entry,) = entries_in(directory)
        assert to_datetime(entry.due_at) == datetime(1970, 1, 1, tzinfo=timezone.utc)

    def test_two_schedulers_have_a_file_each(self, directory: Path) -> None:
        """As long as one lives, another one of the same name uses the next file."""
        first, second = JournalRig(directory), JournalRig(directory)
        first.submit(0)
        second.submit(0, 10)
        assert (len(entries_in(directory, 0)), len(entries_in(directory, 1))) == (1, 2)
        assert (first.interrupted, second.interrupted) == ([], [])

    def test_span_is_known_as_a_whole_or_not_at_all(self, directory: Path) -> None:
        """Without a span id, as when the process is killed in between, there is no span."""
        rig = JournalRig(directory)
        (run,) = rig.submit()
        run.try_start(AT + 1)
        run.set_exemplar_span(SpanContext(3, 0, is_remote=False))
        assert [entry.span for entry in entries_in(directory)] == [None]
        run.set_exemplar_span(SpanContext(3 << 64 | 5, 4, is_remote=False))
        assert [entry.span for entry in entries_in(directory)] == [(3 << 64 | 5, 4)]

    def test_run_that_is_sent_to_another_process_has_started(self, directory: Path) -> None:
        """A run that has a span and no start was sent to a process pool, until it is measured."""
        rig = JournalRig(directory)
        (run,) = rig.submit()
        rig.clock.now += 1
        run.set_exemplar_span(SpanContext(3, 4, is_remote=False))
        assert [entry.started_at for entry in entries_in(directory)] == [AT + 1]
        run.try_set_estimated_start(AT + 2)
        assert [entry.started_at for entry in entries_in(directory)] == [AT + 2]
        run.try_start(AT + 3)
        assert [entry.started_at for entry in entries_in(directory)] == [AT + 3]

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_forked_child_writes_its_own_process_id(self, directory: Path) -> None:
        """What a child starts is its own, and it ends no run of its parent."""
        rig = JournalRig(directory)
        rig.submit()

        def start_and_submit() -> bool:
            rig.journal.start()
            rig.submit()
            return [entry.pid for entry in entries_in(directory, 1)] == [os.getpid()]

        assert in_fork(start_and_submit)
        assert [entry.pid for entry in entries_in(directory)] == [os.getpid()]

    def test_damaged_slot_is_removed(self, directory: Path) -> None:
        """A slot without a valid content, as after a crash of the machine, is no run."""
        rig = JournalRig(directory)
        rig.submit(0, 10, 20)
        copy = as_if_killed(directory)
        with journal_path(copy).open("r+b") as file:
            file.seek(SLOT_INDEXES[0] * NUMBER_SIZE)
            file.write(b"\xff" * 8)  # a due time that is no number
            file.seek(2 * SLOT_SIZE)
            file.write(b"\xff" * 8)  # texts beyond the slot
        assert len(entries_in(copy)) == 1


class TestStop:
    """`uninstrument()`."""

    def test_runs_that_go_on_stay_until_they_end(self, directory: Path) -> None:
        """A run in flight stays in the file until it ends, and then the file is free."""
        gate = Gate()
        with hand_driven_rig(telemetry={"journal": directory}) as rig:
            rig.checks_events = False
            rig.add(gate.hold)
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.telemetry.uninstrument()
            assert labels_in(directory) == ["job"]
            rig.add(jobs.nothing, id="new")
            rig.scheduler.turn()
            assert labels_in(directory) == ["job"]
            assert JournalFile.open(journal_path(directory), "default") is None
            gate.open()
            wait_until(lambda: entries_in(directory) == [])
            file = wait_until(lambda: JournalFile.open(journal_path(directory), "default"))
            file.close()

    def test_file_is_free_at_once_if_no_run_goes_on(self, directory: Path) -> None:
        """Without runs in flight, the file is free at once."""
        with hand_driven_rig(telemetry={"journal": directory}) as rig:
            rig.telemetry.uninstrument()
            file = JournalFile.open(journal_path(directory), "default")
            assert file is not None
            file.close()

    def test_nothing_is_created_before_the_start(self, directory: Path) -> None:
        """A process that does not start the scheduler has no file, and takes no runs of others."""
        with hand_driven_rig() as rig:
            rig.telemetry.uninstrument()
            again = Rig(rig.scheduler, journal=directory / "other")
            assert (directory / "other").exists() is False
            again.telemetry.uninstrument()


class TestInterruptions:
    """An exception from outside at any line, or what another thread does meanwhile."""

    def test_at_the_end_of_a_run(self, directory: Path) -> None:
        """A run that has ended is not in the file, and one that has not can still be ended."""
        rig = JournalRig(directory)
        line = 0
        while True:
            other, run = rig.submit(0, 10)
            end = lambda: run.finish(Outcome.SUCCESS)  # noqa: B023, E731
            is_interrupted = interrupt(end, FILES, raise_timeout, line)
            if run.outcome is None:
                run.finish(Outcome.LOST)
            assert [entry.due_at for entry in entries_in(directory)] == [AT]
            other.finish(Outcome.SUCCESS)
            if not is_interrupted:
                break
            line += 1
        assert line > 5
        # At most one slot is out of use for each exception.
        assert len(rig.submit(*range(MAX_JOURNALED_RUNS - line))) == len(entries_in(directory))

    @pytest.mark.parametrize("step", ["finish", "try_start", "try_set_estimated_start", "span"])
    def test_another_run_gets_the_slot_meanwhile(self, directory: Path, step: str) -> None:
        """Whenever another thread ends a run, what is still written of it is in no other run."""
        rig = JournalRig(directory)
        line = 0
        is_interrupted = True
        while is_interrupted:
            (run,) = rig.submit(10)
            successors: list[Run] = []

            def end_and_submit() -> None:
                run.finish(Outcome.LOST)  # noqa: B023
                successors.extend(rig.submit())  # noqa: B023

            do = {
                "finish": lambda: run.finish(Outcome.SUCCESS),  # noqa: B023
                "try_start": lambda: run.try_start(AT),  # noqa: B023
                "try_set_estimated_start": lambda: run.try_set_estimated_start(AT),  # noqa: B023
                "span": lambda: run.set_exemplar_span(SpanContext(3, 4, is_remote=False)),  # noqa: B023
            }[step]
            is_interrupted = interrupt(do, FILES, end_and_submit, line)
            run.finish(Outcome.LOST)
            entries = [(e.due_at, e.started_at, e.span) for e in entries_in(directory)]
            assert entries == [(AT, None, None)] * len(successors)
            for successor in successors:
                successor.finish(Outcome.SUCCESS)
            line += 1
        assert line > 5

    def test_at_the_submission(self, directory: Path) -> None:
        """A run is in the file or not, and after its end it is not."""
        rig = JournalRig(directory)
        line = 0
        while interrupt(rig.submit, FILES, raise_timeout, line):
            for run in list(rig.recorder._runs_not_added_up):
                run.finish(Outcome.LOST)
            assert entries_in(directory) == []
            line += 1
        assert line > 5

    def test_readings_while_runs_end(self, directory: Path) -> None:
        """Readings in one thread and ends in others remove each run once."""
        rig = JournalRig(directory)
        is_over = threading.Event()

        def submit_and_end() -> None:
            for _ in range(500):
                (run,) = rig.submit()
                run.finish(Outcome.SUCCESS)

        def read() -> None:
            while not is_over.is_set():
                rig.job()

        reading = threading.Thread(target=read)
        ending = [threading.Thread(target=submit_and_end) for _ in range(4)]
        for thread in (reading, *ending):
            thread.start()
        for thread in ending:
            thread.join()
        is_over.set()
        reading.join()
        assert entries_in(directory) == []
        file = rig.journal._file
        assert file is not None
        assert sorted(file.free_slots) == list(SLOT_INDEXES)
