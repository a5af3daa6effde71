"""Real faults of real applications cause alerts; a healthy application causes none."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

for _module in ("gunicorn", "sqlalchemy", "yaml"):
    pytest.importorskip(_module)

from tests.drills import drill
from tests.drills.faults import DRILLS
from tests.drills.performance import Result

pytestmark = [
    pytest.mark.drill,
    pytest.mark.integration,
    pytest.mark.slow,
    # All drills run at once, in the fixture of whichever test comes first.
    pytest.mark.timeout(600),
]


class Expected(NamedTuple):
    """What is to arrive."""

    alert: str
    severity: str
    job_id: str | None = None


EXPECTED = {
    "killed": Expected("APSchedulerSchedulerDown", "critical"),
    "frozen": Expected("APSchedulerSchedulerDown", "critical"),
    "never-seen": Expected("APSchedulerJobNeverSeen", "critical", "nightly"),
    "out-of-memory": Expected("APSchedulerRunsLost", "critical", "crunch"),
    "cut-off": Expected("APSchedulerRunInterrupted", "critical", "import"),
    "cut-off-elsewhere": Expected("APSchedulerRunInterrupted", "critical", "import"),
    "cut-off-out-of-memory": Expected("APSchedulerRunInterrupted", "critical", "import"),
    "cut-off-with-journal": Expected("APSchedulerRunsLost", "critical", "sync"),
    "deadline": Expected("APSchedulerDeadlineMissed", "critical", "close_books"),
    "too-short": Expected("APSchedulerRunTooShort", "warning", "compress"),
    "did-nothing": Expected("APSchedulerRunDidNothing", "warning", "load"),
    "slower": Expected("APSchedulerJobSlow", "warning", "reindex"),
    "dead-loop": Expected("APSchedulerLoopDead", "critical"),
    "partition": Expected("APSchedulerSchedulerDown", "critical"),
    "exits-at-once": Expected("APSchedulerSchedulerDown", "critical"),
    "skipped-by-restart": Expected("APSchedulerMissedRun", "critical", "nightly"),
    "blocked": Expected("APSchedulerMissedRun", "critical", "sync"),
    "starved": Expected("APSchedulerJobStarved", "warning", "sync"),
    "hung": Expected("APSchedulerJobStuck", "critical", "hanging"),
    "slow": Expected("APSchedulerJobOverrunning", "warning", "slow"),
    "unpicklable": Expected("APSchedulerJobDisappeared", "critical"),
    "two-workers": Expected("APSchedulerDuplicateSchedulers", "critical"),
    "paused": Expected("APSchedulerSchedulerPaused", "warning"),
    "failing": Expected("APSchedulerJobFailing", "critical", "unreliable"),
}


def selected(item: pytest.Item) -> set[str]:
    """Return the drills that a test needs."""
    if not isinstance(item, pytest.Function) or Path(item.path) != Path(__file__):
        return set()
    if hasattr(item, "callspec"):
        return {str(item.callspec.params["name"])}
    return {"control"} if "results" in item.fixturenames else set()


@pytest.fixture(scope="module")
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Result]:
    """Play those drills that are asked for, side by side."""
    wanted = set[str]().union(*(selected(item) for item in request.session.items))
    names = [name for name in DRILLS if name in wanted]
    found = drill.rehearse(names, tmp_path_factory.mktemp("drills"))
    print(drill.table(found.values()))  # noqa: T201  # beside whatever fails
    return found


class TestDrills:
    """Each fault, the alert at the webhook, and its resolution."""

    @pytest.mark.parametrize("name", EXPECTED)
    def test_alert_arrives_and_is_resolved(self, name: str, results: dict[str, Result]) -> None:
        """The alert arrives with all its annotations, and is resolved after the repair."""
        result = results[name]

        assert not result.error, result.error
        labels = result.labels
        actual = Expected(result.alert, labels["severity"], labels.get("job_id"))
        assert actual == EXPECTED[name]
        assert (labels["job"], labels["scheduler"]) == (name, "main")
        assert result.annotations["summary"]
        assert result.annotations["runbook_url"].endswith(f"#{result.alert.lower()}")
        assert result.seconds is not None
        assert result.seconds > 0
        assert result.seconds_to_resolve is not None

    def test_every_drill_has_an_expected_alert(self) -> None:
        """Every drill has an alert that it expects."""
        assert set(EXPECTED) | {"control"} == set(DRILLS)


class TestControl:
    """Healthy applications under load, with restarts, deployments and changes of jobs."""

    def test_healthy_applications_cause_no_alert(self, results: dict[str, Result]) -> None:
        """Healthy applications cause no alert but the Watchdog."""
        result = results["control"]

        assert not result.error, result.error
        assert (result.alert, result.also) == ("APSchedulerWatchdog", [])
