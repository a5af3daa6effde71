"""
When the jobs of a scheduler will run, as far as that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import tzinfo
from typing import NamedTuple, Protocol


class UpcomingRun(NamedTuple):
    """
    A run that will be due.

    Attributes:
        due_at: when, in Unix seconds.
        label: the value of the ``job_id`` label.
        executor: alias of the executor.
    """

    due_at: float
    label: str
    executor: str


class UnlistedRuns(NamedTuple):
    """
    Runs of a job that are not listed.

    Attributes:
        label: the value of the ``job_id`` label.
        last_listed_at: Unix seconds of the last run that is listed.
        reason: why, as the rest of a sentence about the job.
    """

    label: str
    last_listed_at: float
    reason: str


class UpcomingRuns(NamedTuple):
    """
    What is known of upcoming runs.

    Attributes:
        runs: the runs, in the order in which they are due.
        complete_until: Unix seconds from which on runs are not listed, as there are too many;
            infinity if all of them are, apart from `unlisted`.
        unlisted: jobs of which more is not known, or not listed.
    """

    runs: Sequence[UpcomingRun]
    complete_until: float
    unlisted: Sequence[UnlistedRuns]


class Timetable(Protocol):
    """When the jobs of a scheduler are due, which its adapter provides to the status page."""

    @property
    def timezone(self) -> tzinfo:
        """The time zone of the scheduler."""

    def find_upcoming_runs(
        self, until: float, *, label: str | None = None, max_count: int
    ) -> UpcomingRuns:
        """
        Return the upcoming runs, without jitter; in bounded time, and without calling user code.

        Args:
            until: Unix seconds up to which runs are looked for.
            label: only those of this value of the ``job_id`` label; None for all.
            max_count: how many runs to return at most.
        """
