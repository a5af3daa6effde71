"""The endpoint that lists the latest runs."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry.http import HTTPEndpoints
from tests.helpers import jobs
from tests.helpers.collectors import ReportedErrors
from tests.helpers.http_clients import HEALTHY, Reply, ask_asgi_sync, ask_wsgi
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.triggers import every


def ask(rig: HandRig, query: str = "") -> Reply:
    return ask_wsgi(rig.telemetry.wsgi_app, "/runs", query=query)


def run_times(rig: HandRig, count: int) -> None:
    """Let the job run, some times."""
    for _ in range(count):
        rig.scheduler.turn()
        rig.settle()
        rig.clock.advance(10)


def due(reply: Reply) -> list[str]:
    """Return the seconds at which the listed runs were due."""
    assert reply.status == 200
    return [run["scheduled_time"][17:19] for run in reply.json["runs"]]


class TestList:
    def test_latest_runs_come_first(self) -> None:
        """The response is what the handle lists, and says that there are no more."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            run_times(rig, 3)

            reply = ask(rig)

            assert reply.headers["content-type"] == "application/json"
            assert reply.json == {"runs": rig.telemetry.runs(), "next_before": None}
            assert due(reply) == ["20", "10", "00"]
            assert ask_asgi_sync(rig.telemetry.asgi_app, "/runs").json == reply.json

    def test_job_id_selects_a_job(self) -> None:
        """``job_id`` selects the runs of one job; an id may have any characters."""
        odd = 'a&b=c "ä" 100%'
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            rig.add(jobs.nothing, every(10), id=odd)
            run_times(rig, 1)

            reply = ask(rig, "job_id=a%26b%3Dc+%22%C3%A4%22+100%25")

            assert [run["job_id"] for run in reply.json["runs"]] == [odd]
            assert ask(rig, "job_id=unknown").json == {"runs": [], "next_before": None}
            assert ask(rig, "job_id=").json == {"runs": [], "next_before": None}

    def test_texts_that_utf_8_cannot_encode_are_escaped(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A lone surrogate in a message is an escape, as in spans and logs."""
        caplog.set_level(logging.CRITICAL, "apscheduler")  # no report can have a lone surrogate
        with hand_driven_rig() as rig:
            rig.add(jobs.fail, every(10), args=["lone \ud800"])
            run_times(rig, 1)

            [run] = rig.telemetry.runs()
            assert run["error_message"] == "lone \\ud800"

    def test_pages_follow_each_other(self) -> None:
        """``next_before`` leads to the next page, until there is no more."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            run_times(rig, 5)

            pages, query = [], "limit=2"
            while True:
                reply = ask(rig, query)
                pages.append(due(reply))
                if reply.json["next_before"] is None:
                    break
                query = f"limit=2&before={reply.json['next_before']}"
                run_times(rig, 1)  # what runs meanwhile comes before the first page

            assert pages == [["40", "30"], ["20", "10"], ["00"]]

    def test_full_last_page_has_no_next(self) -> None:
        """If the last page is full, it has no next one."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            run_times(rig, 4)

            first = ask(rig, "limit=2").json["next_before"]

            assert ask(rig, f"limit=2&before={first}").json["next_before"] is None


class TestParameters:
    @pytest.mark.parametrize(
        ("query", "error"),
        [
            ("limit=0", "limit must be a whole number, from 1 to 1,000."),
            ("limit=1001", "limit must be a whole number, from 1 to 1,000."),
            ("limit=-1", "limit must be a whole number, from 1 to 1,000."),
            ("limit=", "limit must be a whole number, from 1 to 1,000."),
            ("limit=%C2%B2", "limit must be a whole number, from 1 to 1,000."),
            ("before=1.5", "before must be a whole number, 0 or more."),
            (f"before={'9' * 5_000}", "before must be a whole number, 0 or more."),
            ("job=x", "There is no parameter 'job'; there are job_id, limit and before."),
        ],
    )
    def test_wrong_parameter_is_refused(self, query: str, error: str) -> None:
        """A wrong parameter gets a response that says what is possible."""
        with hand_driven_rig() as rig:
            reply = ask(rig, query)

            assert (reply.status, reply.json) == (400, {"error": error})

    def test_last_of_several_values_counts(self) -> None:
        """Of several values of a parameter, the last one counts."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            run_times(rig, 3)

            assert due(ask(rig, "limit=0&limit=1")) == ["20"]


class TestPage:
    def test_there_is_no_page_without_history(self) -> None:
        """With ``history=0`` there is no such page, and no link to it."""
        with hand_driven_rig(telemetry={"history": 0}) as rig:
            reply = ask(rig)

            assert reply.status == 404
            assert "/runs" not in reply.text
            assert "/runs" not in ask_wsgi(rig.telemetry.wsgi_app, "/").text

    def test_landing_page_links_to_it(self) -> None:
        """The landing page has a link to the runs."""
        with hand_driven_rig() as rig:
            assert 'href="./runs"' in ask_wsgi(rig.telemetry.wsgi_app, "/").text

    def test_error_is_json(self) -> None:
        """If the list cannot be made, the response is an error without its text."""

        def get_run_list(*_: Any) -> Any:
            msg = "secret"
            raise RuntimeError(msg)

        failures = ReportedErrors()
        endpoints = HTTPEndpoints(
            registry=CollectorRegistry(),
            get_health_report=lambda: HEALTHY,
            get_run_list=get_run_list,
            is_healthy=lambda: True,
            report_exception=failures,
        )

        reply = ask_wsgi(endpoints.wsgi_app, "/runs")

        assert reply.status == 500
        assert reply.json == {"error": "Internal error; see the application log."}
        assert [component for component, _ in failures] == ["http"]

    def test_runs_are_listed_after_uninstrument(self) -> None:
        """The runs until `uninstrument` can still be read; later ones are not among them."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            run_times(rig, 1)
            rig.telemetry.uninstrument()
            rig.scheduler.turn()

            assert due(ask(rig)) == ["00"]
            rig.checks_events = False
