"""The page of one job: its runs, its trigger and its next fire times."""

from __future__ import annotations

import logging
from datetime import datetime, time, timedelta, timezone
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import pytest
from apscheduler.triggers.cron import CronTrigger

from apscheduler_telemetry import Expectations
from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.html_pages import HOSTILE_IDS, Element, read_html, read_page
from tests.helpers.http_clients import ask_wsgi
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.triggers import Every, every


@pytest.fixture(autouse=True)
def needs_jinja2() -> None:
    pytest.importorskip("jinja2")


def job_page(rig: HandRig, query: str = "job_id=job") -> Element:
    return read_page(rig, "/job", query=query)


def facts(shown: Element) -> dict[str, str]:
    pairs = shown.one("dl").all("div")
    return {pair.one("dt").text: pair.one("dd").text for pair in pairs}


def next_runs(rig: HandRig) -> list[str]:
    return [item.text for item in job_page(rig).one("ol").all("li")]


class TestJob:
    def test_description_is_shown(self) -> None:
        """The page has the trigger, the function and what is expected of the job."""
        expected = Expectations(max_duration=60, deadline=time(6, 30), owner="payments <x>")
        with hand_driven_rig(telemetry={"expect": expected}) as rig:
            rig.add(jobs.nothing, every(10), name="A job")

            shown = facts(job_page(rig))

            assert shown["Trigger"] == "interval[0:00:10]"
            assert shown["Function"] == "tests.helpers.jobs:nothing"
            assert shown["Name"] == "A job"
            assert shown["Executor"] == shown["Job store"] == shown["Scheduler"] == "default"
            assert shown["Longest allowed run"] == "1 min"
            assert shown["Deadline"] == "06:30"
            assert shown["Owner"] == "payments <x>"

    def test_runs_are_listed_latest_first(self) -> None:
        """The latest runs are in a table, each with its outcome and its error."""
        with hand_driven_rig() as rig:
            rig.add(jobs.fail, every(10), args=["no connection"])
            for _ in range(3):
                rig.scheduler.turn()
                rig.settle()
                rig.clock.advance(10)

            shown = job_page(rig)

            table = [[cell.text for cell in row.all("td")] for row in shown.all("tr")[1:]]
            due = [f"{START + timedelta(seconds=seconds):%F %T}" for seconds in (20, 10, 0)]
            assert [row[0] for row in table] == due
            assert {row[3] for row in table} == {"error ValueError: no connection"}
            assert shown.one("figure").one("svg").attributes["aria-label"] == (
                "Last runs: 3 error. The latest: error."
            )
            assert facts(shown)["Error"] == "3"
            assert shown.one("title").text == "✖ job"

    def test_number_of_listed_runs_is_limited(self) -> None:
        """Not more runs are listed than fit into the page."""
        with hand_driven_rig(telemetry={"history": 200}) as rig:
            rig.add(jobs.nothing, every(1))
            for _ in range(120):
                rig.scheduler.turn()
                rig.settle()
                rig.clock.advance(1)

            assert len(job_page(rig).all("tr")) == 1 + 100

    def test_job_that_has_not_run_says_so(self) -> None:
        """A job without runs has no chart and no table."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))

            shown = job_page(rig)

            assert "No run has ended in this process" in shown.text
            assert not shown.all("table")


class TestNextRuns:
    def test_next_ten_fire_times_are_in_the_zone_of_the_scheduler(self) -> None:
        """The next ten fire times are listed, in the time zone of the scheduler."""
        berlin = ZoneInfo("Europe/Berlin")
        with hand_driven_rig(zone=berlin, at=datetime(2030, 3, 29, tzinfo=timezone.utc)) as rig:
            rig.add(jobs.nothing, CronTrigger(hour=6, timezone="Europe/Berlin"))

            listed = next_runs(rig)

            days = ("29", "30", "31")
            assert [each.rpartition("2030-")[2] for each in listed[:3]] == [
                f"03-{day} 06:00:00" for day in days
            ]
            # The night in which clocks go forward is an hour shorter.
            assert listed[1].startswith("in 1 d 5 h")
            assert listed[2].startswith("in 2 d 4 h")
            assert len(listed) == 10
            assert "In Europe/Berlin, without jitter." in job_page(rig).text

    def test_trigger_of_the_user_is_not_asked(self) -> None:
        """Of a trigger of the user's own class, only the next run is shown."""
        asked = []

        class Custom(Every):
            def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
                asked.append(previous)
                return super().get_next_fire_time(previous, now)

        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, Custom(10))
            count = len(asked)

            assert len(next_runs(rig)) == 1
            assert "which only APScheduler calls" in job_page(rig).text
            assert len(asked) == count

    def test_paused_job_has_none(self) -> None:
        """A paused job has no next runs, and those of its trigger after it is resumed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10), next_run_time=START + timedelta(seconds=5))
            rig.scheduler.pause_job("job")
            assert "There are none" in job_page(rig).text

            rig.clock.advance(1)
            rig.scheduler.resume_job("job")
            assert len(next_runs(rig)) == 10

    def test_jobs_that_share_a_label_are_merged(self) -> None:
        """The fire times of all jobs of a label are listed in order."""
        with hand_driven_rig(telemetry={"job_label": lambda job: "shared"}) as rig:
            rig.add(jobs.nothing, every(10), id="a", next_run_time=START + timedelta(seconds=5))
            rig.add(jobs.nothing, every(10), id="b", next_run_time=START + timedelta(seconds=7))
            items = job_page(rig, "job_id=shared").one("ol").all("li")

            assert [item.text[-2:] for item in items[:4]] == ["05", "07", "15", "17"]


class TestParameters:
    def test_missing_parameter_is_refused(self) -> None:
        """Without ``job_id``, the response is 400 and says what is missing."""
        with hand_driven_rig() as rig:
            reply = ask_wsgi(rig.telemetry.wsgi_app, "/job")

            assert reply.status == 400
            assert "The parameter job_id is missing." in read_html(reply.text).text

    @pytest.mark.parametrize("query", ["job_id=gone", "job_id=job&scheduler=other", "job_id="])
    def test_unknown_job_is_not_found(self, query: str) -> None:
        """For a job that does not exist, the response is 404."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            reply = ask_wsgi(rig.telemetry.wsgi_app, "/job", query=query)

            assert reply.status == 404
            assert "There is no job" in read_html(reply.text).one("main").text
            assert "content-security-policy" in reply.headers

    def test_unknown_job_is_named_in_a_bounded_form(self) -> None:
        """The name of an unknown job is shown as text, and cut."""
        with hand_driven_rig() as rig:
            query = f"job_id=<script>{'x' * 5_000}"
            reply = ask_wsgi(rig.telemetry.wsgi_app, "/job", query=query)

            assert f"There is no job <script>{'x' * 192} any more." in read_html(reply.text).text

    def test_head_is_answered_without_a_body(self) -> None:
        """HEAD gets the status of the page, and no body."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            app = rig.telemetry.wsgi_app
            for query, status in (("job_id=job", 200), ("job_id=x", 404)):
                reply = ask_wsgi(app, "/job", query=query, method="HEAD")
                assert (reply.status, reply.body) == (status, b"")

    @pytest.mark.parametrize("job_id", HOSTILE_IDS, ids=lambda text: ascii(text[:10]))
    def test_link_of_a_hostile_id_leads_to_its_page(
        self, job_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The link to any job leads to its page, which shows its id and its error as text."""
        caplog.set_level(logging.CRITICAL, "apscheduler")  # no report can have a lone surrogate
        name = job_id if job_id.isprintable() else "default"  # others are refused
        with hand_driven_rig(telemetry={"name": name}) as rig:
            rig.add(jobs.fail, every(10), id=job_id, args=[job_id])
            rig.scheduler.turn()
            rig.settle()
            [run] = rig.telemetry.runs()
            [link] = read_page(rig, mount="/ops").all("a", **{"class": "id"})
            parts = urlsplit(link.attributes["href"])

            shown = read_page(rig, "/job", mount="/ops", query=parts.query)

            assert parts.path == "./job"
            assert parse_qs(parts.query)["job_id"] == [run["job_id"]]
            assert shown.one("h1").one("bdi").text == " ".join(run["job_id"].split())
            assert shown.all("script")[0].text.startswith('"use strict"')
            assert len(shown.all("script")) == 1
