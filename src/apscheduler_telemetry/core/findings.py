"""
Risks in how a scheduler and its jobs are set up: what `Telemetry.check` and ``doctor`` report.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

SERIOUS = "serious"
"""Runs get lost, run twice or do nothing, as the code stands."""
INFO = "info"
"""It depends on something that the code does not show."""


class Finding(NamedTuple):
    """
    One risk.

    Attributes:
        code: names the kind of risk.
        level: `SERIOUS` or `INFO`.
        job_ids: the jobs that have it; empty if it is a risk of the scheduler.
        message: one or two sentences that say what happens.
        fix: the line of code that fixes it.
    """

    code: str
    level: str
    job_ids: tuple[str, ...]
    message: str
    fix: str

    def to_json_dict(self, scheduler: str) -> dict[str, Any]:
        """Return it ready for JSON, with the name of its scheduler."""
        return {"scheduler": scheduler, **self._asdict(), "job_ids": list(self.job_ids)}


def summarize_codes(findings: Iterable[Finding]) -> str:
    """Return the codes of findings as a text, each with the number of the jobs that have it."""
    job_counts: Counter[str] = Counter()
    for finding in findings:
        job_counts[finding.code] += len(finding.job_ids)
    return ", ".join(
        f"{code} ({count} job{'' if count == 1 else 's'})" if count else code
        for code, count in job_counts.items()
    )


def group_findings_of_jobs(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings with one for all jobs about which the same is said, serious ones first."""
    jobs: dict[Finding, list[str]] = {}
    for finding in findings:
        jobs.setdefault(finding._replace(job_ids=()), []).extend(finding.job_ids)
    merged = [finding._replace(job_ids=tuple(ids)) for finding, ids in jobs.items()]
    return sorted(merged, key=lambda finding: (finding.level != SERIOUS, finding.code))
