"""Alert labels that an application sets for its jobs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.jobs import nothing
from tests.helpers.metrics import sample
from tests.helpers.rigs import hand_driven_rig


class TestAlertInfo:
    """``apscheduler_job_alert_info``, which passes the labels to the alert rules."""

    @pytest.mark.parametrize(
        "options",
        [{"severity": "critical"}, {"owner": "billing"}, {"severity": "warning", "owner": "shop"}],
        ids=["severity", "owner", "both"],
    )
    def test_job_with_owner_or_severity_has_the_series(self, options: dict[str, Any]) -> None:
        """A job with one of the two labels has the series, the other label being empty."""
        labels = {"severity": "", "owner": "", **options}
        with hand_driven_rig(telemetry=options) as rig:
            rig.add(nothing, "interval", hours=1)
            assert sample(rig.telemetry, "apscheduler_job_alert_info", job_id="job", **labels) == 1

    def test_job_without_owner_and_severity_has_no_series(self) -> None:
        """A job without an owner and a severity has no such series."""
        with hand_driven_rig() as rig:
            rig.add(nothing, "interval", hours=1)
            with pytest.raises(AssertionError, match="no sample"):
                sample(
                    rig.telemetry,
                    "apscheduler_job_alert_info",
                    job_id="job",
                    severity="",
                    owner="",
                )
