"""Next runs of jobs that APScheduler has dropped with an error: they never happen."""

from __future__ import annotations

from tests.helpers.clocks import at
from tests.helpers.http_clients import ask_wsgi
from tests.helpers.jobs import nothing
from tests.helpers.rigs import HandRig, hand_driven_rig
from tests.helpers.web_servers import Page

SHOWN_FOR = 900.0
"""Seconds for which jobs that are gone are shown; see docs/metrics.md."""


def shown_next_run(rig: HandRig) -> float | None:
    """Return the next run on the page that a scrape gets, whose text may be kept from before."""
    page = Page(ask_wsgi(rig.telemetry.wsgi_app, "/metrics").text)
    return page.value("job_next_run_timestamp_seconds", job_id="shared")


class TestLabelThatJobsShare:
    """Two jobs with one label, of which APScheduler drops one when it is due."""

    def test_page_shows_the_broken_next_run_for_a_while_only(self) -> None:
        """The missed next run is shown for 15 minutes, then that of the other job."""
        with hand_driven_rig(telemetry={"job_label": lambda job: "shared"}) as rig:
            rig.add(nothing, "interval", seconds=10, id="dropped", executor="unknown")
            rig.add(nothing, "interval", hours=10, id="kept")
            assert shown_next_run(rig) == at(10).timestamp()
            rig.after(10)
            assert rig.outcomes("shared") == {"lost": 1}
            assert shown_next_run(rig) == at(10).timestamp()
            rig.clock.advance(SHOWN_FOR - 1)
            assert shown_next_run(rig) == at(10).timestamp()
            rig.clock.advance(1)
            assert shown_next_run(rig) == at(36_000).timestamp()
