"""The status page of all jobs, and what all pages for people have in common."""

from __future__ import annotations

import base64
import gc
import gzip
import hashlib
import importlib.util
import logging
import sys
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import Expectations, instrument
from apscheduler_telemetry.export.status import StatusReporter
from apscheduler_telemetry.http import HTTPEndpoints
from apscheduler_telemetry.http.status_pages import OverviewPage, StatusVariant
from tests.helpers import jobs
from tests.helpers.clocks import START
from tests.helpers.collectors import ReportedErrors
from tests.helpers.html_pages import HOSTILE_IDS, Element, read_html, read_page
from tests.helpers.http_clients import HEALTHY, Reply, ask_asgi_sync, ask_wsgi, fetch
from tests.helpers.rigs import Gate, HandRig, hand_driven_rig
from tests.helpers.schedulers import hand_driven_scheduler
from tests.helpers.triggers import cron, every
from tests.helpers.waiting import wait_until


@pytest.fixture(autouse=True)
def needs_jinja2(request: pytest.FixtureRequest) -> None:
    if request.cls is not TestWithoutJinja2:
        pytest.importorskip("jinja2")


def ask(rig: HandRig, path: str = "/", **request: Any) -> Reply:
    return ask_wsgi(rig.telemetry.wsgi_app, path, **request)


def rows(rig: HandRig) -> list[list[str]]:
    """Return the text of each job's cells."""
    listed = read_page(rig).one("ul", **{"class": "jobs"})
    return [[cell.text for cell in row.all("div")] for row in listed.all("li")]


def states(rig: HandRig) -> dict[str, str]:
    """Return the state of each job, in the order of the page."""
    cells = (row[0].split() for row in rows(rig))
    return {job_id: f"{sign} {word}" for sign, word, job_id in cells}


class TestJobs:
    def test_job_is_shown_with_its_next_run_and_runs(self) -> None:
        """A job is shown with its state, its next run and its latest runs."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.settle()

            [[state, next_run, runs, failure]] = rows(rig)

            assert state == "● Waiting job"
            assert next_run == f"Next run: in 10 s {START + timedelta(seconds=10):%F %T}"
            assert (runs, failure) == ("", "")
            [strip] = read_page(rig).one("ul", **{"class": "jobs"}).all("svg")
            assert strip.attributes["aria-label"] == "Last runs: 1 success. The latest: success."

    def test_failure_is_shown_with_its_reason(self) -> None:
        """The latest failure is shown with its time, its type and its message."""
        with hand_driven_rig() as rig:
            rig.add(jobs.fail, every(10), args=["no <connection>"])
            rig.scheduler.turn()
            rig.settle()

            [[state, *_, failure]] = rows(rig)

            assert state == "✖ Failing job"
            assert failure == f"Last failure: {START:%F %T} error ValueError: no <connection>"
            assert read_page(rig).one("title").text == "✖ Jobs (1 in trouble)"

    def test_success_after_a_failure_is_no_trouble(self) -> None:
        """A job that has succeeded since is not in trouble; its failure of the night is shown."""
        with hand_driven_rig(telemetry={"history": 1}) as rig:
            rig.add(jobs.fail, every(10))
            rig.after(0)
            rig.settle()
            rig.scheduler.get_job("job").modify(func=jobs.nothing, args=[])
            for _ in range(2):
                rig.after(10)
                rig.settle()

            [[state, *_, failure]] = rows(rig)

            assert state == "● Waiting job"
            assert "ValueError" in failure
            assert read_page(rig).one("title").text == "Jobs"

    def test_runs_are_drawn_again_only_for_jobs_that_have_run(self) -> None:
        """A page shows the runs since the page before, and keeps what it drew of other jobs."""
        with hand_driven_rig() as rig:
            report = StatusReporter(lambda: [rig.telemetry._exported_scheduler])
            rig.add(jobs.nothing, every(10), id="runs")
            rig.add(jobs.nothing, every(15), id="waits")
            rig.after(0)
            rig.settle()
            before = {
                job.label: job.strip for job in report.describe_overview()["schedulers"][0]["jobs"]
            }
            rig.after(10)
            rig.settle()
            after = {
                job.label: job.strip for job in report.describe_overview()["schedulers"][0]["jobs"]
            }

        assert after["runs"].text == "Last runs: 2 success. The latest: success."
        assert after["waits"] is before["waits"]
        assert after["waits"].text == "Last runs: 1 success. The latest: success."

    def test_message_that_may_not_be_exported_is_not_shown(self) -> None:
        """With ``capture_message=False``, only the type of an exception is shown."""
        with hand_driven_rig(telemetry={"capture_message": False}) as rig:
            rig.add(jobs.fail, every(10), args=["secret"])
            rig.scheduler.turn()
            rig.settle()

            assert rows(rig)[0][-1].endswith("error ValueError")
            assert "secret" not in ask(rig).text

    def test_arguments_and_results_are_not_shown(self) -> None:
        """What a job is called with and what it returns is on no page."""
        with hand_driven_rig() as rig:
            rig.add(jobs.give_back, every(10), args=["a secret"])
            rig.scheduler.turn()
            rig.settle()

            assert "a secret" not in ask(rig).text

    def test_trouble_comes_first(self) -> None:
        """Jobs in trouble come first, the worst at the top; then by the next run."""
        gate = Gate()
        with hand_driven_rig(
            telemetry={
                "expect": lambda job: Expectations(max_duration=60) if job.id == "stuck" else None
            }
        ) as rig:
            rig.add(jobs.nothing, every(600), id="later")
            rig.add(jobs.nothing, every(500), id="sooner")
            rig.add(gate.hold, every(900), id="running")
            rig.add(gate.hold, every(900), id="stuck")
            rig.add(jobs.fail, every(900), id="failing")
            rig.add(gate.hold, every(400), id="dropping")
            rig.add(jobs.nothing, every(1000), id="paused")
            rig.scheduler.turn()
            rig.scheduler.pause_job("paused")
            for _ in range(3):
                gate.wait_for_run()
            others = ("later", "sooner", "failing")
            wait_until(lambda: all(any(rig.outcomes(job).values()) for job in others), "the others")
            rig.after(401)

            assert list(states(rig).items()) == [
                ("stuck", "✖ Stuck"),
                ("failing", "✖ Failing"),
                ("dropping", "▲ Dropping"),
                ("sooner", "● Waiting"),
                ("later", "● Waiting"),
                ("running", "▶ Running"),
                ("paused", "– Idle"),
            ]
            assert read_page(rig).one("h1").text == "3 of 7 jobs in trouble"
            gate.open()

    def test_overdue_job_is_missed(self) -> None:
        """A job that is later than its grace is missed."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            rig.clock.advance(3600)
            assert states(rig) == {"job": "✖ Missed"}
            assert rows(rig)[0][1].startswith("Next run: 1 h late ")

    def test_paused_scheduler_is_shown(self) -> None:
        """The jobs of a paused scheduler are paused, and so is the scheduler."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10), next_run_time=START + timedelta(hours=1))
            rig.scheduler.pause()

            assert states(rig) == {"job": "‖ Paused"}
            assert "‖ Paused" in read_page(rig).one("h2", id="scheduler-1").text

    def test_stopped_scheduler_is_down_with_the_reason(self) -> None:
        """The jobs of a scheduler that does not run are down, and the page says why."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10), next_run_time=START + timedelta(hours=1))
            rig.scheduler.shutdown()

            assert states(rig) == {"job": "✖ Down"}
            [reason] = read_page(rig).all("p", **{"class": "reason"})
            assert reason.text == rig.telemetry.health()["reasons"][0]["message"]

    def test_uninstrumented_scheduler_is_down(self) -> None:
        """After `uninstrument`, the page says that it is not followed any more."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            rig.telemetry.uninstrument()

            assert (
                "uninstrument() was called" in read_page(rig).one("p", **{"class": "reason"}).text
            )
            rig.checks_events = False

    def test_there_may_be_no_jobs(self) -> None:
        """A scheduler without jobs says so."""
        with hand_driven_rig() as rig:
            assert "This scheduler has no jobs." in read_page(rig).text

    def test_executors_and_job_stores_are_shown(self) -> None:
        """Executors are shown with their workers, and job stores with their jobs."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            facts = read_page(rig).one("dl")
            texts = [f"{each.one('dt').text}: {each.one('dd').text}" for each in facts.all("div")]

            assert "Executor default: 0 running of 4, 0 queued" in texts
            assert "Jobs in store default: 1" in texts
            assert "Times in: UTC" in texts

    def test_without_history_there_are_no_runs(self) -> None:
        """With ``history=0``, no runs are drawn."""
        with hand_driven_rig(telemetry={"history": 0}) as rig:
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.settle()

            assert rows(rig)[0][2] == "Last runs: none"
            assert "/runs" not in ask(rig).text

    def test_number_of_jobs_is_limited(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """More jobs than fit are counted, and the worst are listed."""
        monkeypatch.setattr("apscheduler_telemetry.export.status.MAX_LISTED_JOBS", 2)
        with hand_driven_rig() as rig:
            for number in range(4):
                rig.add(jobs.nothing, every(10), id=f"good-{number}")
            rig.add(jobs.fail, every(10), id="bad")
            rig.scheduler.turn()
            rig.settle()

            assert list(states(rig)) == ["bad", "good-0"]
            assert "3 more jobs are not listed here." in read_page(rig).text


class TestHostileTexts:
    @pytest.mark.parametrize("job_id", HOSTILE_IDS, ids=lambda text: ascii(text[:10]))
    def test_hostile_text_is_shown_as_text(
        self, job_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whatever an id and a message contain is shown as text, isolated from what is around."""
        caplog.set_level(logging.CRITICAL, "apscheduler")  # no report can have a lone surrogate
        label, shown = failing_page(job_id)

        [row] = [row for row in shown.all("li") if "Failing" in row.text]
        texts = [each.text for each in row.all("bdi")]
        message = " ".join(job_id.replace("\ud800", "?").split())
        assert texts == [label, "ValueError", message]
        assert shown.tags() == failing_page("harmless")[1].tags()


def failing_page(job_id: str) -> tuple[str, Element]:
    """Return the label of a job that has failed with its id as message, and the page."""
    with hand_driven_rig() as rig:
        rig.add(jobs.fail, every(10), id=job_id, args=[job_id])
        rig.scheduler.turn()
        rig.settle()
        [run] = rig.telemetry.runs()
        return " ".join(run["job_id"].split()), read_page(rig)


class TestResponse:
    def test_policy_allows_the_own_style_and_script_only(self) -> None:
        """The Content-Security-Policy allows nothing but the style and the script of the page."""
        with hand_driven_rig() as rig:
            reply = ask(rig)
            shown = read_html(reply.text)

        policy = dict(
            part.split(" ", 1) for part in reply.headers["content-security-policy"].split("; ")
        )
        assert policy == {
            "default-src": "'none'",
            "style-src": _hash(shown.one("style")),
            "script-src": _hash(shown.one("script")),
            "connect-src": "'self'",
            "img-src": "data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["content-type"] == "text/html; charset=utf-8"

    def test_nothing_is_loaded_and_no_style_or_handler_is_inline(self) -> None:
        """No element loads anything, and none has a style or a handler as an attribute."""
        with hand_driven_rig() as rig:
            rig.add(jobs.nothing, every(10))
            rig.scheduler.turn()
            rig.settle()
            shown = read_page(rig)

        elements = [each for tag in shown.tags() for each in shown.all(tag)]
        names = {name for each in elements for name in each.attributes}
        assert not [name for name in names if name.startswith("on") or name in {"style", "src"}]
        assert shown.one("link").attributes == {"rel": "icon", "href": "data:,"}
        assert not shown.all("form")

    def test_head_has_the_headers_of_get(self) -> None:
        """HEAD is answered with the headers of GET, and without a body."""
        with hand_driven_rig() as rig:
            got, head = ask(rig), ask(rig, method="HEAD")

        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-security-policy"] == got.headers["content-security-policy"]

    def test_body_is_compressed_if_the_client_accepts_it(self) -> None:
        """The page is compressed with gzip for clients that accept it."""
        with hand_driven_rig() as rig:
            reply = ask(rig, headers={"Accept-Encoding": "gzip, br"})

        assert reply.headers["content-encoding"] == "gzip"
        assert read_html(gzip.decompress(reply.body).decode()).one("h1").text

    def test_asgi_and_the_server_serve_it(self) -> None:
        """The ASGI application and the built-in server have the same page."""
        with hand_driven_rig() as rig, rig.telemetry.start_http_server(0) as server:
            expected = ask(rig).text

            assert ask_asgi_sync(rig.telemetry.asgi_app, "/").text == expected
            assert fetch(server, "/").text == expected

    def test_links_lead_below_the_mount_point(self) -> None:
        """All links of a mounted page lead to pages below the mount point."""
        with hand_driven_rig() as rig:
            for path, root in (("", "./x%20y/"), ("/", "./"), ("/upcoming/", "./../")):
                shown = read_page(rig, path, mount="/ops/x y")

                links = {each.attributes["href"] for each in shown.all("a")} - {"#content"}
                assert {root, f"{root}metrics", f"{root}runs"} <= links
                assert all(link.startswith(root) for link in links)

    def test_page_is_found_at_each_form_of_the_root(self) -> None:
        """The page is at the mount point, with or without a slash at its end."""
        with hand_driven_rig() as rig:
            for mount, path in (("/ops", ""), ("/ops", "/"), ("/ops", "/ops/"), ("", "/")):
                assert read_page(rig, path, mount=mount).one("h1").text

    def test_unknown_path_is_not_the_page(self) -> None:
        """Another path leads to the 404 that names the pages."""
        with hand_driven_rig() as rig:
            reply = ask(rig, "/index.html")

            assert reply.status == 404
            assert reply.text == "Not found. There are /metrics, /health, /runs and /livez.\n"

    def test_post_is_refused(self) -> None:
        """The page only reads, so that POST is refused."""
        with hand_driven_rig() as rig:
            assert ask(rig, method="POST").status == 405

    @pytest.mark.parametrize("path", ["/", "/upcoming"])
    def test_jobs_get_their_turn_while_a_page_is_made(
        self, path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While a long page is made, other threads get their turn again and again."""
        with hand_driven_rig() as rig:
            for number in range(100):
                rig.add(jobs.nothing, cron(hour="1-9"), id=f"job-{number}")
            pauses: list[None] = []
            monkeypatch.setattr(
                "apscheduler_telemetry.core.pauses.let_other_threads_run",
                lambda: pauses.append(None),
            )
            for module in ("adapters.apscheduler3.upcoming_runs", "http.status_pages"):
                monkeypatch.setattr(
                    f"apscheduler_telemetry.{module}.let_other_threads_run",
                    lambda: pauses.append(None),
                )
            read_page(rig, path)

        assert len(pauses) >= 10

    def test_filling_the_template_triggers_no_garbage_collection(self) -> None:
        """However many jobs there are: a full collection would stop all threads meanwhile."""
        variant = StatusVariant(relative_root=".", query="", is_gzipped=True)
        collections = []

        def note(phase: str, info: object) -> None:
            collections.append((phase, info))

        with hand_driven_rig() as rig:
            for number in range(300):
                rig.add(jobs.nothing, every(10), id=f"job-{number}")
            reporter = StatusReporter(lambda: [rig.telemetry._exported_scheduler])
            page, content = OverviewPage(reporter, []), reporter.describe_overview()
            page.respond(variant, content)
            gc.collect()
            gc.callbacks.append(note)
            try:
                page.respond(variant, content)
            finally:
                gc.callbacks.remove(note)
        assert collections == []

    def test_access_rules_apply(self, tmp_path: Any) -> None:
        """The token and the allowed hosts of the server apply to the page, too."""
        token = tmp_path / "token"
        token.write_text("open-sesame")
        with (
            hand_driven_rig() as rig,
            rig.telemetry.start_http_server(0, bearer_token_file=token) as server,
        ):
            assert fetch(server, "/").status == 401
            allowed = {"Authorization": "Bearer open-sesame"}
            assert fetch(server, "/", headers=allowed).status == 200
            assert fetch(server, "/", headers={**allowed, "Host": "evil.example"}).status == 421

    def test_failure_is_reported_without_its_text(self) -> None:
        """If the page cannot be made, the response is a plain error, which is reported."""

        def fail() -> Any:
            raise RuntimeError("secret")

        failures = ReportedErrors()
        endpoints = HTTPEndpoints(
            registry=CollectorRegistry(),
            get_health_report=lambda: HEALTHY,
            status_source=StatusReporter(fail),
            is_healthy=lambda: True,
            report_exception=failures,
        )

        reply = ask_wsgi(endpoints.wsgi_app, "/")

        assert (reply.status, reply.text) == (500, "Internal error; see the application log.\n")
        assert [component for component, _ in failures] == ["http"]


class TestAccessibility:
    def test_page_has_a_language_landmarks_and_one_heading(self) -> None:
        """The page has a language, landmarks, one main heading and a link past the rest."""
        with hand_driven_rig() as rig:
            shown = read_page(rig)

        assert shown.attributes["lang"] == "en"
        assert len(shown.all("h1")) == len(shown.all("main")) == len(shown.all("title")) == 1
        assert {nav.attributes["aria-label"] for nav in shown.all("nav")} == {"Pages", "Data"}
        assert shown.all("a")[0].attributes["href"] == f"#{shown.one('main').attributes['id']}"
        assert all(svg.attributes["aria-label"] for svg in shown.all("svg"))

    def test_each_element_that_is_referred_to_exists_once(self) -> None:
        """Ids are unique, and what is labelled by an id is."""
        with hand_driven_rig() as rig:
            shown = read_page(rig)

        elements = [each for tag in shown.tags() for each in shown.all(tag)]
        ids = [each.attributes["id"] for each in elements if "id" in each.attributes]
        assert len(ids) == len(set(ids))
        labels = {each.attributes.get("aria-labelledby") for each in elements} - {None}
        assert labels <= set(ids)


class TestWithoutJinja2:
    def test_landing_page_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without Jinja2, the landing page has the links, and says how to get the status page."""
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == "jinja2" else find_spec(name)
        )
        with hand_driven_rig() as rig:
            reply = ask(rig)

        assert reply.status == 200
        assert 'href="./metrics"' in reply.text
        assert "restart this process: pip install &#x27;apscheduler-telemetry[status]&#x27;" in (
            reply.text
        )

    def test_it_is_not_loaded_before_the_page_is_requested(self) -> None:
        """Jinja2 is loaded by the first request of a page, and not before."""
        import subprocess

        code = (
            "import sys\n"
            "from apscheduler.schedulers.background import BackgroundScheduler\n"
            "from apscheduler_telemetry import instrument\n"
            "instrument(BackgroundScheduler(timezone='UTC'))\n"
            "print('jinja2' in sys.modules)"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert done.stdout == "False\n"


class TestSeveralSchedulers:
    def test_zero_code_shows_all_schedulers(self) -> None:
        """The source of a whole process shows the schedulers one after the other."""
        registry = CollectorRegistry()
        handles = [
            instrument(hand_driven_scheduler(), name=name, registry=registry)
            for name in ("one", "two")
        ]
        report = StatusReporter(lambda: [each._exported_scheduler for each in handles])

        assert [each["name"] for each in report.describe_overview()["schedulers"]] == ["one", "two"]
        for each in handles:
            each.uninstrument()


def _hash(element: Element) -> str:
    [text] = element.children
    assert isinstance(text, str)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
