"""The labels that an application wants on the alerts of its jobs."""

from __future__ import annotations

from typing import Any

import pytest

from support import by_hand, sample
from support_jobs import nothing


class TestAlertInfo:
    """``apscheduler_job_alert_info``, which carries the labels to the alert rules."""

    @pytest.mark.parametrize(
        "options",
        [{"severity": "critical"}, {"owner": "billing"}, {"severity": "warning", "owner": "shop"}],
        ids=["severity", "owner", "both"],
    )
    def test_is_there_if_either_label_is_set(self, options: dict[str, Any]) -> None:
        """A job with one of the two labels has the series, the other label being empty."""
        labels = {"severity": "", "owner": "", **options}
        with by_hand(telemetry=options) as rig:
            rig.add(nothing, "interval", hours=1)
            assert sample(rig.telemetry, "apscheduler_job_alert_info", job_id="job", **labels) == 1

    def test_is_absent_without_labels(self) -> None:
        """A job of which the application says nothing has no such series."""
        with by_hand() as rig:
            rig.add(nothing, "interval", hours=1)
            with pytest.raises(AssertionError, match="no sample"):
                sample(
                    rig.telemetry,
                    "apscheduler_job_alert_info",
                    job_id="job",
                    severity="",
                    owner="",
                )
