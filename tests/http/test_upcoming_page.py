"""The page of the next 24 hours: what is due when, and where workers are too few."""

from __future__ import annotations

import math
import threading
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.triggers.combining import OrTrigger
from apscheduler.triggers.cron import CronTrigger

from apscheduler_telemetry.core.records import JobSnapshot
from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.html_pages import read_page
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.triggers import Every, cron, every
from tests.helpers.waiting import wait_until

UPCOMING = "apscheduler_telemetry.adapters.apscheduler3.upcoming_runs"


@pytest.fixture(autouse=True)
def needs_jinja2() -> None:
    pytest.importorskip("jinja2")


def due(rig: HandRig) -> dict[str, list[str]]:
    """Return the lines of each hour, by its heading."""
    section = read_page(rig, "/upcoming").one("section")
    lists = section.all("ol", **{"class": "due"})
    return {
        heading.text: [item.text for item in items.all("li")]
        for heading, items in zip(section.all("h4"), lists, strict=True)
    }


def job_snapshot(rig: HandRig) -> JobSnapshot:
    [snapshot] = rig.telemetry._exported_scheduler.recorder.job_snapshots()
    return snapshot


def find(rig: HandRig, seconds: float = 86_400, max_count: int = 10_000) -> Any:
    until = (START + timedelta(seconds=seconds)).timestamp()
    return rig.telemetry._exported_scheduler.find_upcoming_runs(until, max_count=max_count)


class TestPage:
    def test_runs_are_grouped_by_hour(self) -> None:
        """Each hour has one line for each job, with its first run and how often it runs."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, cron(hour="1,2"), id="nightly")
            rig.add(jobs.nothing, cron(hour=1, minute="*/20"), id="often")

            assert due(rig) == {
                "From 2030-01-01 01:00: 4 runs": [
                    "01:00:00 nightly",
                    "01:00:00 often and 2 more times in this hour",
                ],
                "From 2030-01-01 02:00: 1 run": ["02:00:00 nightly"],
            }

    def test_runs_after_24_hours_are_not_listed(self) -> None:
        """What is due later than in 24 hours is not listed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(86_400), id="b", next_run_time=START + timedelta(days=1))

            assert due(rig) == {}
            assert "Nothing." in read_page(rig, "/upcoming").text

    def test_hours_are_those_of_the_time_zone(self) -> None:
        """Hours begin where they do in the time zone of the scheduler."""
        with hand_driven_rig(zone=ZoneInfo("Asia/Kathmandu")) as rig:  # UTC+05:45
            rig.add(jobs.nothing, CronTrigger(hour=6, minute=10, timezone="Asia/Kathmandu"))

            assert due(rig) == {"From 2030-01-01 06:00: 1 run": ["06:10:00 job"]}

    def test_hour_that_comes_twice_is_listed(self) -> None:
        """The hour that clocks show twice is listed twice, with the offsets from UTC."""
        berlin = ZoneInfo("Europe/Berlin")
        midnight = datetime(2030, 10, 27, tzinfo=timezone.utc)
        with hand_driven_rig(zone=berlin, at=midnight - timedelta(hours=1)) as rig:
            rig.add(jobs.nothing, every(3600), next_run_time=midnight)

            shown = due(rig)
            assert shown["From 2030-10-27 02:00 +02:00: 1 run"] == ["02:00:00 +02:00 job"]
            assert shown["From 2030-10-27 02:00 +01:00: 1 run"] == ["02:00:00 +01:00 job"]
            assert shown["From 2030-10-27 03:00: 1 run"] == ["03:00:00 job"]

    def test_state_of_the_scheduler_is_shown(self) -> None:
        """What a scheduler that is down would run is not shown as if it were to run."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(3600))
            assert read_page(rig, "/upcoming").one("h2").text == "Scheduler default ● Up"
            rig.scheduler.shutdown()

            shown = read_page(rig, "/upcoming")
            assert shown.one("h2").text == "Scheduler default ✖ Down"
            assert "was shut down" in shown.all("p", **{"class": "reason"})[0].text

    def test_links_lead_to_the_jobs(self) -> None:
        """Each line links to the page of its job."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, cron(hour=1), id="a b")
            shown = read_page(rig, "/upcoming", mount="/ops")

            [item] = shown.one("ol").all("a")
            assert item.attributes["href"] == "./job?scheduler=default&job_id=a%20b"

    def test_number_of_lines_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beyond the limit of lines, jobs are counted."""
        monkeypatch.setattr("apscheduler_telemetry.export.status.MAX_SHOWN_UPCOMING_LINES", 3)
        with hand_driven_rig() as rig:
            for number in range(5):
                rig.add(jobs.nothing, cron(hour=1), id=f"job-{number}")

            [lines] = due(rig).values()
            assert lines[2:] == ["01:00:00 job-2", "2 more jobs"]


class TestCrowds:
    def test_time_with_more_runs_than_workers_is_shown(self) -> None:
        """A time at which more runs are due than the executor has workers is in the table."""
        executors = {"default": ThreadPoolExecutor(2), "other": ThreadPoolExecutor(1)}
        with hand_driven_rig(executors) as rig:
            for number in range(3):
                rig.add(jobs.nothing, cron(hour=1), id=f"job-{number}")
            rig.add(jobs.nothing, cron(hour="1,2"), id="else", executor="other")

            [row] = read_page(rig, "/upcoming").one("tbody").all("tr")

            assert [cell.text for cell in row.all("td")] == [
                "2030-01-01 01:00:00",
                "default",
                "▲ 3 for 2 workers",
                "job-0, job-1, job-2",
            ]

    def test_nothing_is_shown_if_workers_suffice(self) -> None:
        """If each executor has enough workers, the page says so."""
        with hand_driven_rig({"default": ThreadPoolExecutor(2)}) as rig:
            for number in range(2):
                rig.add(jobs.nothing, cron(hour=1), id=f"job-{number}")

            assert "At no time are more runs due" in read_page(rig, "/upcoming").text


class TestSearch:
    def test_runs_come_in_order(self) -> None:
        """The runs of all jobs are in the order in which they are due."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(7), id="a")
            rig.add(jobs.nothing, every(11), id="b")
            rig.add(jobs.nothing, cron(second="*/5"), id="c")

            found = find(rig, 60)

            times = [run.due_at for run in found.runs]
            assert times == sorted(times)
            assert {label: sum(r.label == label for r in found.runs) for label in "abc"} == {
                "a": 9,
                "b": 6,
                "c": 12,
            }
            assert (found.complete_until, found.unlisted) == (math.inf, [])

    def test_number_of_runs_is_limited_in_time(self) -> None:
        """With too many runs, all are listed up to a time, which is returned."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(60), id="a")
            rig.add(jobs.nothing, every(60), id="b")

            found = find(rig, max_count=10)

            assert len(found.runs) == 10
            assert found.complete_until == START.timestamp() + 300

    def test_runs_of_one_job_are_limited(self) -> None:
        """A job that runs often does not keep the runs of others from being listed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(1), id="busy")
            rig.add(jobs.nothing, cron(hour=23), id="late")

            found = find(rig)

            assert sum(run.label == "busy" for run in found.runs) == 300
            assert found.runs[-1].label == "late"
            assert found.unlisted == [("busy", START.timestamp() + 299, "runs often")]
            assert "Not all runs of 1 job are listed" in read_page(rig, "/upcoming").text

    def test_slow_trigger_is_not_asked_for_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A trigger that takes long is not called any more, and others still are."""
        monkeypatch.setattr(f"{UPCOMING}.MAX_SEARCH_SECONDS_OF_JOB", -1.0)
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(60))

            found = find(rig)

            assert len(found.runs) == 1
            assert found.unlisted == [("job", START.timestamp(), "has a slow trigger")]

    def test_search_ends_after_some_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """After a time that is limited, the search ends with what it has found."""
        monkeypatch.setattr(f"{UPCOMING}.MAX_SEARCH_SECONDS", -1.0)
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(60))

            assert find(rig) == ([], START.timestamp(), [])

    def test_trigger_that_raises_is_not_asked_again(self) -> None:
        """If a trigger cannot answer, what was found before is listed."""
        never = OrTrigger([cron(hour=1), CronTrigger(hour=2, timezone=timezone.utc)])
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, never)
            wait_until(lambda: job_snapshot(rig).interval_range, "the intervals")
            never.triggers[0].fields = None

            found = find(rig)

            assert len(found.runs) == 1
            assert [each.reason for each in found.unlisted] == ["has a trigger that failed"]

    def test_trigger_of_the_user_is_not_asked(self) -> None:
        """Of a trigger of the user's own class, only the next run is listed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, Every(10))

            found = find(rig)

            assert len(found.runs) == 1
            [unlisted] = found.unlisted
            assert unlisted.reason.endswith("which only APScheduler calls")

    def test_equal_cron_triggers_are_asked_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Jobs with the same cron schedule share one search."""
        asked: list[object] = []
        original = CronTrigger.get_next_fire_time

        def ask(self: Any, *arguments: Any) -> Any:
            if threading.current_thread() is threading.main_thread():
                asked.append(self)  # and not to find out the intervals
            return original(self, *arguments)

        with hand_driven_rig() as rig:
            for number in range(5):
                rig.add(jobs.nothing, cron(hour="*"), id=f"job-{number}")
            monkeypatch.setattr(CronTrigger, "get_next_fire_time", ask)

            assert len(find(rig).runs) == 5 * 24
            assert len(asked) == 24
