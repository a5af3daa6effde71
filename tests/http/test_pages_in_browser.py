"""The pages for people in a real browser: narrow and wide, dark and light, keyboard, refreshing."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

from apscheduler_telemetry.http import HTTPServer
from tests.helpers import jobs
from tests.helpers.html_pages import HOSTILE_IDS
from tests.helpers.rigs import Rig, live_rig
from tests.helpers.waiting import wait_until

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("jinja2")

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
]
PATHS = ("/", "/upcoming", "/job?job_id=failing", f"/job?job_id={'x' * 200}", "/job?job_id=gone")
CONTRAST_OF_TEXTS = """
() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  };
  const back = light(getComputedStyle(document.body).backgroundColor);
  const found = {};
  for (const element of document.querySelectorAll("body *")) {
    const isText = [...element.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    if (isText && !element.closest("script, noscript")) {
      const text = light(getComputedStyle(element).color);
      const name = `${element.tagName}.${element.className}`;
      found[name] = (Math.max(back, text) + 0.05) / (Math.min(back, text) + 0.05);
    }
  }
  return found;
}
"""
RECORD_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(e.violatedDirective));
"""


class Site:
    """
    Pages of a running scheduler.

    Attributes:
        rig: the scheduler.
        server: its server.
    """

    def __init__(self, rig: Rig, server: HTTPServer, browser: Any) -> None:
        self.rig = rig
        self.server = server
        self._browser = browser

    @contextmanager
    def open(self, path: str = "/", *, expected: str = "", **options: Any) -> Iterator[Any]:
        """Open a page; nothing unexpected is logged to its console, and no policy is violated."""
        context = self._browser.new_context(**options)
        page = context.new_page()
        messages: list[str] = []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: messages.append(dialog.message))
        page.add_init_script(RECORD_VIOLATIONS)
        page.goto(f"http://127.0.0.1:{self.server.port}{path}")
        yield page
        if options.get("java_script_enabled", True):
            assert page.evaluate("violations") == []
        assert [text for text in messages if not expected or expected not in text] == []
        context.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as library:
        browser = library.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def site(browser: Any, caplog: pytest.LogCaptureFixture) -> Iterator[Site]:
    caplog.set_level(logging.CRITICAL, "apscheduler")  # no report can have a lone surrogate
    with live_rig(BackgroundScheduler(timezone=timezone.utc)) as rig:
        rig.checks_events = False
        for job_id in (*HOSTILE_IDS, "failing"):
            options = {"hours": 1, "next_run_time": datetime.now(timezone.utc)}
            rig.add(jobs.fail, "interval", id=job_id, args=[job_id], **options)
        rig.add(jobs.nothing, "interval", id="x" * 64 + "/" * 20, hours=1)
        wait_until(lambda: len(rig.telemetry.runs()) == len(HOSTILE_IDS) + 1, "the runs")
        with rig.telemetry.start_http_server(0) as server:
            yield Site(rig, server, browser)


class TestLooks:
    @pytest.mark.parametrize("path", PATHS, ids=lambda path: path[:20])
    @pytest.mark.parametrize("width", [380, 1400])
    def test_page_fits_into_the_window(self, site: Site, path: str, width: int) -> None:
        """No page has to be scrolled sideways, whatever the ids."""
        expected = "404" if path.endswith("gone") else ""
        size = {"width": width, "height": 800}
        with site.open(path, expected=expected, viewport=size) as page:
            assert page.evaluate("document.documentElement.scrollWidth") == width

    @pytest.mark.parametrize("path", PATHS[:3])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_text_can_be_read_in_both_colour_schemes(
        self, site: Site, path: str, scheme: str
    ) -> None:
        """Each text has the contrast to its background that WCAG 2.2 asks for at level AA."""
        with site.open(path, color_scheme=scheme) as page:
            contrasts = page.evaluate(CONTRAST_OF_TEXTS)
            back = page.evaluate("getComputedStyle(document.body).backgroundColor")

        assert (back == "rgb(255, 255, 255)") == (scheme == "light")
        assert len(contrasts) > 10
        assert {name: value for name, value in contrasts.items() if value < 4.5} == {}

    def test_columns_are_labelled_in_a_narrow_window(self, site: Site) -> None:
        """A narrow window has labels in each job, a wide one has them above the list."""
        with site.open(viewport={"width": 380, "height": 800}) as page:
            assert page.locator(".jobs .label").first.bounding_box()["width"] > 20
            assert not page.locator(".heads").is_visible()
        with site.open(viewport={"width": 1400, "height": 800}) as page:
            assert page.locator(".jobs .label").first.bounding_box()["width"] == 1
            assert page.locator(".heads").is_visible()


class TestKeyboardAndScreenReader:
    def test_links_are_reached_by_tab_and_show_their_focus(self, site: Site) -> None:
        """Tab goes to the skip link, the navigation, the option and the jobs, visibly."""
        with site.open() as page:
            reached = []
            for _ in range(5):
                page.keyboard.press("Tab")
                reached.append(page.evaluate("document.activeElement.textContent || 'option'"))
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid"

        assert reached[:4] == ["Skip to the content", "Jobs", "Next 24 hours", "option"]
        assert reached[4] in {run["job_id"] for run in site.rig.telemetry.runs()}

    def test_skip_link_leads_to_the_content(self, site: Site) -> None:
        """The skip link is shown when it has the focus, and moves it to the content."""
        with site.open() as page:
            assert page.locator(".skip").bounding_box()["x"] < 0
            page.keyboard.press("Tab")
            assert page.locator(".skip").bounding_box()["x"] >= 0
            page.keyboard.press("Enter")
            assert page.evaluate("document.activeElement.id") == "content"

    def test_screen_reader_gets_states_and_runs_as_words(self, site: Site) -> None:
        """The accessibility tree has the state, the runs and the labels as text."""
        with site.open() as page:
            tree = page.locator("main").aria_snapshot()

        assert "Failing" in tree
        assert 'img "Last runs: 1 error. The latest: error."' in tree
        assert "Next run:" in tree
        assert "✖" not in tree


class TestHostileIds:
    @pytest.mark.parametrize("number", range(len(HOSTILE_IDS)))
    def test_hostile_id_is_text_and_its_link_works(self, site: Site, number: int) -> None:
        """A hostile id is shown as it is, and its link leads to the page with its message."""
        with site.open() as page:
            labels = {run["job_id"] for run in site.rig.telemetry.runs()}
            shown = page.locator(".jobs a").evaluate_all("all => all.map((a) => a.textContent)")
            assert labels <= set(shown)

            label = next(each for each in labels if each[:5] == HOSTILE_IDS[number][:5])
            page.locator(".jobs a").nth(shown.index(label)).click()

            assert page.locator("h1 bdi").text_content() == label
            message = HOSTILE_IDS[number].replace("\ud800", "?")
            assert message in page.locator("tbody td").last.text_content()


class TestRefreshing:
    def test_page_refreshes_itself_and_keeps_focus_and_position(self, site: Site) -> None:
        """After 15 seconds the page shows what is new, without losing the focus."""
        with site.open() as page:
            page.clock.install()
            page.reload()
            link = page.locator(".jobs a", has_text="failing")
            link.focus()
            site.rig.add(jobs.nothing, "interval", id="new", hours=1)

            page.clock.run_for(16_000)
            page.locator(".jobs a", has_text="new").wait_for()

            assert page.evaluate("document.activeElement.textContent") == "failing"

    def test_it_can_be_switched_off(self, site: Site) -> None:
        """Without the option, nothing is requested any more."""
        with site.open() as page:
            page.clock.install()
            page.reload()
            page.locator("#refresh input").uncheck()
            requests: list[Any] = []
            page.on("request", lambda request: requests.append(request))  # noqa: PLW0108  # a bound built-in is refused

            page.clock.run_for(60_000)

            assert requests == []

    def test_countdown_goes_on(self, site: Site) -> None:
        """The time until the next run is counted down each second."""
        with site.open("/job?job_id=failing") as page:
            page.clock.install()
            page.reload()
            page.locator("#refresh input").uncheck()
            page.clock.run_for(1_800_000)

            assert page.locator(".countdown").first.text_content().startswith("in 29 min")

            page.clock.run_for(1_860_000)

            assert page.locator(".countdown").first.text_content().endswith(" late")

    def test_page_says_that_the_process_is_gone(self, site: Site) -> None:
        """If the process does not answer any more, the page keeps its content and says so."""
        with site.open(expected="ERR_CONNECTION_REFUSED") as page:
            page.clock.install()
            page.reload()
            site.server.close()

            page.clock.run_for(16_000)
            page.locator("#problem", has_text="does not answer").wait_for()

            assert page.locator(".jobs a", has_text="failing").count() == 1

    def test_page_works_without_scripts(self, site: Site) -> None:
        """Without scripts, the page has its content, and the browser reloads it."""
        with site.open(java_script_enabled=False) as page:
            assert page.locator(".jobs a", has_text="failing").count() == 1
            assert not page.locator("#refresh").is_visible()
            assert page.locator("meta[http-equiv=refresh]").get_attribute("content") == "30"
