"""Concurrent runs of one job: each is counted separately."""

from __future__ import annotations

import copy
import gc
import itertools
import threading
import weakref
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any, ClassVar

import pytest
from apscheduler.events import (
    EVENT_JOB_ERROR,
    EVENT_JOB_EXECUTED,
    EVENT_JOB_MISSED,
    EVENT_JOB_SUBMITTED,
)
from apscheduler.executors.debug import DebugExecutor
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.jobstores.memory import MemoryJobStore
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.interval import IntervalTrigger

from apscheduler_telemetry.adapters.apscheduler3 import triggers
from tests.helpers import jobs
from tests.helpers.clocks import START, freeze_time
from tests.helpers.metrics import recorder_of
from tests.helpers.rigs import Gate, Rig, hand_driven_rig
from tests.helpers.schedulers import HandDriven
from tests.helpers.triggers import every
from tests.helpers.waiting import wait_until

UTC = timezone.utc


class TestRunsOfOneJob:
    """Successive and concurrent runs of one job."""

    @staticmethod
    def settle(rig: Rig) -> None:
        """Wait until no run is in flight, without a reading of the metrics state."""
        executors = rig.scheduler._executors.values()

        def have_all_runs_ended() -> bool:
            events = list(rig.events)
            due = sum(len(e.scheduled_run_times) for e in events if e.code == EVENT_JOB_SUBMITTED)
            codes = {EVENT_JOB_EXECUTED, EVENT_JOB_ERROR, EVENT_JOB_MISSED}
            ends = sum(e.code in codes for e in events)
            return ends >= due and not any(any(list(e._instances.values())) for e in executors)

        wait_until(have_all_runs_ended)

    def test_the_failure_of_a_run_from_before_us_is_not_taken_for_a_later_one(self) -> None:
        """A run from before `instrument` fails; the later run stays in flight."""
        before, after = Gate(), Gate()
        gates = iter([before, after])

        def hold() -> None:
            gate = next(gates)
            gate.hold()
            if gate is before:
                jobs.fail()

        scheduler = HandDriven(executors={"default": ThreadPoolExecutor(2)}, timezone=UTC)
        with freeze_time() as clock:
            scheduler.start()
            scheduler.add_job(hold, every(10), id="job", max_instances=2, misfire_grace_time=None)
            clock.advance(10)
            scheduler.turn()
            before.wait_for_run()
            rig = Rig(scheduler)
            clock.advance(10)
            scheduler.turn()
            after.wait_for_run()
            before.open()
            wait_until(lambda: "error" in rig.codes("job"))
            assert rig.job().running == 1
            after.open()
            wait_until(lambda: "executed" in rig.codes("job"))
            assert rig.outcomes() == {"success": 1}
            scheduler.shutdown()
        rig.telemetry.uninstrument()

    @pytest.mark.parametrize("kind", ["inline", "threads"])
    def test_a_callable_that_cannot_be_called_is_an_error(self, kind: str) -> None:
        """Arguments that do not fit the callable are an error."""
        executor = DebugExecutor() if kind == "inline" else ThreadPoolExecutor(2)
        with hand_driven_rig({"default": executor}) as rig:
            job = rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            rig.settle()
            job.kwargs = {1: 2}
            rig.after(10)
            rig.settle()
            job.kwargs = {}
            rig.after(10)
            rig.settle()
            assert rig.outcomes() == {"success": 2, "error": 1}
            assert rig.job().exceptions == {"TypeError": 1}

    def test_a_job_that_runs_within_itself_has_two_runs(self) -> None:
        """A job that makes the loop run it again has two runs."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            within: list[bool] = []

            def turn() -> None:
                if not within:
                    within.append(True)
                    rig.scheduler.turn()

            rig.add(turn, "interval", seconds=10)
            rig.after(10)
            assert rig.job().due_count == 2
            assert rig.outcomes() == {"success": 2}

    def test_a_scrape_before_the_next_run_is_set_does_not_hide_it(self) -> None:
        """After a scrape during a pass, the next scrape shows the job's next run."""
        gate = Gate()

        class Scraping(IntervalTrigger):
            def get_next_fire_time(self, *args: Any) -> Any:
                if started and rig.job().due_count == 3:  # not before the run is submitted
                    gate.wait_for_run()
                    started.clear()
                    for label, job in recorder_of(rig.telemetry).job_snapshots_since({}):
                        assert job is not None
                        assert job.in_flight_summary.running == 1
                        known[label] = job.version
                return super().get_next_fire_time(*args)

        def hold() -> None:
            if started:
                gate.hold()

        started: list[bool] = []
        known: dict[str, int] = {}
        with hand_driven_rig() as rig:
            rig.add(hold, Scraping(seconds=10, timezone=UTC))
            for _ in range(2):
                rig.after(10)
                rig.settle()
            next_run = rig.job().next_run
            started.append(True)
            rig.after(10)
            ((_, job),) = recorder_of(rig.telemetry).job_snapshots_since(known)
            assert job is not None
            assert job.next_run == next_run + 10
            gate.open()
            rig.settle()

    def test_intervals_that_are_computed_late_are_computed_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Intervals that are outdated when they are computed are computed again."""
        compute, may_compute = triggers.compute_interval_range, threading.Event()

        def compute_late(*args: Any) -> Any:
            assert may_compute.wait(jobs.WAIT_TIMEOUT)
            return compute(*args)

        # Every minute, 15 times, and every hour from then on.
        fast = IntervalTrigger(minutes=1, end_date=START + timedelta(minutes=15), timezone=UTC)
        trigger = OrTrigger([fast, IntervalTrigger(hours=1, timezone=UTC)])
        monkeypatch.setattr(triggers, "compute_interval_range", compute_late)
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            rig.add(jobs.nothing, trigger, next_run_time=START)
            rig.scheduler.turn()
            rig.after(60)
            assert rig.job().interval_range is None
            may_compute.set()
            wait_until(lambda: rig.job().interval_range == (60, 60))
            for _ in range(13):
                rig.after(60)
            wait_until(lambda: rig.job().interval_range == (60, 3600))

    def test_intervals_of_a_former_trigger_that_are_computed_late_are_dropped(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Late intervals of a former trigger are dropped; those of the new one stay."""
        compute, may_compute = triggers.compute_interval_range, threading.Event()

        def compute_late(*args: Any) -> Any:
            assert may_compute.wait(jobs.WAIT_TIMEOUT)
            return compute(*args)

        monkeypatch.setattr(triggers, "compute_interval_range", compute_late)
        with hand_driven_rig() as rig:
            job = rig.add(jobs.nothing, "cron", hour=3)
            job.reschedule("interval", seconds=10)
            rig.add(jobs.nothing, "cron", hour=3, id="next")
            may_compute.set()
            wait_until(lambda: rig.job("next").interval_range is not None)
            assert rig.job().interval_range == (10, 10)

    @pytest.mark.parametrize("is_paused", [False, True])
    def test_intervals_of_a_job_that_gets_another_label(self, *, is_paused: bool) -> None:
        """When a paused job with a new label is resumed, its intervals are known."""
        with hand_driven_rig(telemetry={"job_label": lambda job: job.name}) as rig:
            job = rig.add(jobs.nothing, "interval", seconds=10, name="job")
            if is_paused:
                job.pause()
            job.modify(name="renamed")
            if is_paused:
                job.resume()
            assert rig.job("renamed").interval_range == (10, 10)

    @pytest.mark.parametrize("kind", ["inline", "threads"])
    def test_each_of_100_runs_counts_once(self, kind: str) -> None:
        """Each of 100 runs counts once, however often the metrics are read."""
        executor = DebugExecutor() if kind == "inline" else ThreadPoolExecutor(2)
        with hand_driven_rig({"default": executor}) as rig:
            rig.add(jobs.give_back, "interval", seconds=10, args=[1])
            for number in range(1, 101):
                rig.after(10)
                self.settle(rig)
                if number % 30 == 0:
                    assert rig.outcomes() == {"success": number}
            job = rig.job()
            assert sum(job.delays.counts) == sum(job.durations.counts) == 100
            assert job.last_run_due_at == (START + timedelta(seconds=1000)).timestamp()

    def test_a_run_that_a_scrape_has_seen_counts_once(self) -> None:
        """A run that a scrape has shown as running counts once, and so does the next one."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(gate.hold, "interval", seconds=10)
            rig.after(10)
            gate.wait_for_run()
            assert rig.job().running == 1
            gate.open()
            self.settle(rig)
            rig.after(10)
            self.settle(rig)
            assert rig.outcomes() == {"success": 2}

    def test_a_missed_run_between_two_others_counts_as_missed(self) -> None:
        """A run that waits too long for a thread is missed; the runs around it succeed."""
        with hand_driven_rig() as rig:
            gate = Gate()
            rig.add(jobs.nothing, "interval", seconds=10, misfire_grace_time=1)
            rig.after(10)
            self.settle(rig)
            for number in range(4):
                rig.add(gate.hold, id=f"hold-{number}")
            rig.scheduler.turn()
            for _ in range(4):
                gate.wait_for_run()
            rig.after(10)
            rig.clock.advance(2)
            gate.open()
            self.settle(rig)
            assert rig.outcomes() == {"success": 1, "missed": 1}
            rig.after(8)
            self.settle(rig)
            assert rig.outcomes() == {"success": 2, "missed": 1}

    @pytest.mark.parametrize("way", ["modify", "by hand", "by name"])
    def test_a_run_gets_the_arguments_that_its_job_has_by_then(self, way: str) -> None:
        """A run gets the current arguments, also if they were changed past APScheduler."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            job = rig.add(jobs.give_back, "interval", seconds=10, args=["old"])
            rig.after(10)
            if way == "modify":
                job.modify(args=["new"])
            elif way == "by name":
                job.modify(args=(), kwargs={"value": "new"})
            else:
                job.args = ("new",)
            rig.after(10)
            results = [event.retval for event in rig.events if event.code == EVENT_JOB_EXECUTED]
            assert results == ["old", "new"]

    def test_limits_that_were_set_past_apscheduler_apply(self) -> None:
        """A grace time and `max_instances` that were set on the job object apply."""
        with hand_driven_rig() as rig:
            job = rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            self.settle(rig)
            job.misfire_grace_time = 1
            rig.after(12)
            self.settle(rig)
            assert rig.outcomes() == {"success": 1, "missed": 1}
            job.misfire_grace_time = None
            rig.after(10)
            self.settle(rig)
            job.max_instances = 0
            rig.after(10)
            assert rig.outcomes() == {"success": 2, "missed": 1, "skipped": 1}

    def test_events_of_missed_runs_are_not_taken_for_those_of_others(self) -> None:
        """Of three queued runs of one job, two are missed and one runs."""
        gate = Gate()
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}) as rig:
            options: dict[str, Any] = {"seconds": 10, "max_instances": 3, "coalesce": False}
            rig.add(jobs.nothing, "interval", **options, misfire_grace_time=15)
            rig.after(10)
            self.settle(rig)
            rig.add(gate.hold, id="hold")
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(20)  # two at once
            rig.after(10)  # and one alone
            rig.clock.advance(10)
            gate.open()
            self.settle(rig)
            assert rig.outcomes() == {"success": 2, "missed": 2}

    def test_an_executor_that_gets_a_copy_of_the_job_runs_the_copy(self) -> None:
        """A copy of a job that the user submits is run, and counts as a run of the job."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            job = rig.add(jobs.give_back, "interval", seconds=10, args=["job"])
            rig.after(10)
            copied = copy.copy(job)
            copied.args, copied._jobstore_alias = ("copy",), "default"
            rig.scheduler._executors["default"].submit_job(copied, [job.next_run_time])
            results = [event.retval for event in rig.events if event.code == EVENT_JOB_EXECUTED]
            assert results == ["job", "copy"]
            assert rig.outcomes() == {"success": 2}

    def test_a_span_has_the_name_that_the_job_had_at_its_submission(self) -> None:
        """A span has the name that the job had when it was submitted."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        export = pytest.importorskip("opentelemetry.sdk.trace.export")
        memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
        exporter, provider = memory.InMemorySpanExporter(), sdk.TracerProvider()
        provider.add_span_processor(export.SimpleSpanProcessor(exporter))
        options = {"tracer_provider": provider}
        with hand_driven_rig({"default": DebugExecutor()}, telemetry=options) as rig:
            names = iter(["2", "2", "4", "5"])

            def rename() -> None:
                job.modify(name=next(names))

            job = rig.add(rename, "interval", seconds=10, name="1")
            for _ in range(4):
                rig.after(10)
            spans = exporter.get_finished_spans()
        names_of_spans = [(span.attributes or {})["apscheduler.job.name"] for span in spans]
        assert names_of_spans == ["1", "2", "2", "4"]

    def test_only_a_sampled_run_is_an_exemplar(self) -> None:
        """If one run in two is sampled, the other runs leave the exemplar unchanged."""
        sdk = pytest.importorskip("opentelemetry.sdk.trace")
        sampling = pytest.importorskip("opentelemetry.sdk.trace.sampling")
        turns = itertools.cycle([sampling.ALWAYS_ON, sampling.ALWAYS_OFF])

        class InTurns(sampling.Sampler):  # type: ignore[name-defined]
            def should_sample(self, *args: Any, **kwargs: Any) -> Any:
                return next(turns).should_sample(*args, **kwargs)

            def get_description(self) -> str:
                return "in turns"

        seen = []
        # One bucket, as a bucket has its own exemplar, and a run that is interrupted on a busy
        # machine may take longer than the default of the first one, 5 ms.
        provider = sdk.TracerProvider(sampler=InTurns())
        options = {"tracer_provider": provider, "duration_buckets": [60]}
        with hand_driven_rig({"default": DebugExecutor()}, telemetry=options) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            for number in range(1, 5):
                rig.after(10)
                seen.append(rig.job().durations.exemplars.copy())
                assert len(seen[-1]) == 1, number
        assert seen[0] == seen[1] != seen[2] == seen[3]

    def test_jobs_of_one_id_on_one_executor_are_kept_apart(self) -> None:
        """Jobs with the same id in two stores are counted separately."""
        gate = Gate()
        stores = {"default": MemoryJobStore(), "other": MemoryJobStore()}
        with hand_driven_rig({"default": ThreadPoolExecutor(1)}, jobstores=stores) as rig:
            options: dict[str, Any] = {"seconds": 10, "max_instances": 2}
            rig.add(jobs.nothing, "interval", **options, misfire_grace_time=1)
            later = START + timedelta(seconds=15)
            rig.add(jobs.nothing, "interval", **options, start_date=later, jobstore="other")
            for _ in range(4):  # in turns, up to 20 s
                rig.after(5)
                self.settle(rig)
            rig.add(gate.hold, id="hold")
            rig.scheduler.turn()
            gate.wait_for_run()
            rig.after(10)  # both
            rig.clock.advance(2)
            gate.open()
            self.settle(rig)
            assert rig.outcomes() == {"success": 4, "missed": 1}

    def test_a_run_that_the_user_submits_leaves_the_next_run_as_it_is(self) -> None:
        """A run that the user submits keeps the next run; a later change cancels it."""
        with hand_driven_rig({"default": DebugExecutor()}) as rig:
            job = rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            next_run = rig.job().next_run
            rig.scheduler._executors["default"].submit_job(job, [job.next_run_time])
            job.modify(next_run_time=START + timedelta(seconds=100))
            job_now = rig.job()
            assert job_now.cancelled_run_due_at == next_run
            assert job_now.next_run == next_run + 80
            assert rig.outcomes() == {"success": 2}

    def test_a_patch_that_a_wrapper_keeps_in_place_measures_nothing(self) -> None:
        """After `uninstrument`, a patch that a user's wrapper still calls measures nothing."""
        executor = DebugExecutor()
        with hand_driven_rig({"default": executor}) as rig:
            rig.add(jobs.nothing, "interval", seconds=10)
            rig.after(10)
            patch = executor.submit_job
            executor.submit_job = partial(patch)
            rig.telemetry.uninstrument()
            rig.after(10)
            assert rig.codes().count("executed") == 2
            assert rig.job().due_count == 1
            rig.checks_events = False

    def test_due_jobs_that_can_be_read_only_once_all_run(self) -> None:
        """All due jobs run if a user's store returns them as an iterator."""

        class OneByOne(MemoryJobStore):
            def get_due_jobs(self, now: datetime) -> Any:
                yield from super().get_due_jobs(now)

        stores = {"default": OneByOne()}
        with hand_driven_rig({"default": DebugExecutor()}, jobstores=stores) as rig:
            rig.add(jobs.nothing, "interval", seconds=10, id="lost", executor="gpu")
            for job_id in ("a", "b"):
                rig.add(jobs.nothing, "interval", seconds=10, id=job_id)
            rig.after(10)
            assert rig.outcomes("lost") == {"lost": 1}
            assert rig.outcomes("a") == rig.outcomes("b") == {"success": 1}

    def test_a_stored_job_is_not_kept_after_its_run(self) -> None:
        """A job that was unpickled for a run is freed after it, without a garbage collection."""
        sqlalchemy = pytest.importorskip("sqlalchemy")
        from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore

        engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.StaticPool)
        stores = {"default": SQLAlchemyJobStore(engine=engine)}
        with hand_driven_rig({"default": DebugExecutor()}, jobstores=stores) as rig:
            rig.add(jobs.give_back, "interval", seconds=10, args=[Kept()])
            gc.collect()
            gc.disable()
            try:
                for _ in range(2):
                    rig.after(10)
                    rig.events.clear()
                    assert not list(Kept.unpickled)
            finally:
                gc.enable()
            rig.checks_events = False
            assert rig.outcomes() == {"success": 2}
            rig.scheduler.remove_job("job")
        engine.dispose()

    @pytest.mark.parametrize("ends", ["before", "after"])
    def test_a_job_is_not_kept_after_a_shutdown(self, ends: str) -> None:
        """A job is freed after a shutdown, also if its run ends later; its next run stays."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(lambda *_: gate.hold(), "interval", seconds=10, args=[Kept()])
            kept = weakref.ref(rig.scheduler.get_job("job").args[0])
            rig.after(10)
            gate.wait_for_run()
            if ends == "before":
                gate.open()
                self.settle(rig)
            executor = rig.scheduler._executors["default"]
            rig.scheduler.shutdown(wait=False)
            gate.open()
            wait_until(lambda: not any(executor._instances.values()))
            wait_until(lambda: gc.collect() >= 0 and kept() is None)
            assert rig.job().next_run == START.timestamp() + 20

    def test_a_job_that_was_removed_is_not_kept_after_its_last_run(self) -> None:
        """A one-off job, which is removed before its run ends, is freed."""
        gate = Gate()
        with hand_driven_rig() as rig:
            rig.add(lambda *_: gate.hold(), args=[Kept()])
            kept = weakref.ref(rig.scheduler.get_job("job").args[0])
            rig.scheduler.turn()
            gate.wait_for_run()
            assert recorder_of(rig.telemetry).job_records_of_jobstore("default") == []
            gate.open()
            self.settle(rig)
            wait_until(lambda: gc.collect() >= 0 and kept() is None)
            assert rig.outcomes() == {"success": 1}

    def test_an_executor_that_was_removed_is_not_kept(self) -> None:
        """A removed executor is freed, also if a job that ran there stays."""
        with hand_driven_rig() as rig:
            executor = DebugExecutor()
            rig.scheduler.add_executor(executor, "other")
            rig.add(jobs.nothing, "interval", seconds=10, executor="other")
            rig.after(10)
            rig.scheduler.remove_executor("other")
            reference = weakref.ref(executor)
            del executor
            wait_until(lambda: gc.collect() >= 0 and reference() is None)

    def test_a_job_that_moves_to_another_executor_runs_there(self) -> None:
        """A job that moves to another executor runs there and is counted there."""
        executors = {"default": DebugExecutor(), "other": ThreadPoolExecutor(1)}
        with hand_driven_rig(executors) as rig:
            job = rig.add(threading.get_ident, "interval", seconds=10)
            for executor in ("default", "other", "default"):
                job.modify(executor=executor)
                for _ in range(2):
                    rig.after(10)
                    self.settle(rig)
            assert rig.outcomes() == {"success": 6}
            here = threading.get_ident()
            ran = [event.retval == here for event in rig.events if event.code == EVENT_JOB_EXECUTED]
            assert ran == [True, True, False, False, True, True]


class Kept:
    """What a job is called with, and which of them are alive that came out of a store."""

    unpickled: ClassVar[weakref.WeakSet[Kept]] = weakref.WeakSet()

    def __setstate__(self, _: object) -> None:
        self.unpickled.add(self)

    def __getstate__(self) -> object:
        return True
