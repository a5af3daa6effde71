"""
The books as a health report: what ``/health`` serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from apscheduler_telemetry.core.model import Liveness
from apscheduler_telemetry.core.recorder import Account, Ledger


def report(
    ledger: Ledger,
    liveness: Liveness,
    last_wakeup: float | None,
    clock: Callable[[], float] = time.time,
) -> dict[str, Any]:
    """
    Return what is to be known about a scheduler now, ready for JSON.

    Times are ISO 8601 in UTC, None where there is none. Jobs that share a label are one entry.
    A job that fails does not make the scheduler unhealthy: restarting it would not help, and
    there are alerts for that.
    """
    now = clock()
    return {
        "status": "healthy" if liveness.up else "unhealthy",
        "reasons": [{"code": code, "message": message} for code, message in liveness.reasons],
        "scheduler": {
            "name": ledger.scheduler,
            "state": liveness.state,
            "loop_alive": liveness.up,
            "last_wakeup": _iso(last_wakeup),
        },
        "jobs": [_job(a, now) for a in sorted(ledger.accounts(), key=lambda a: a.label)],
    }


def together(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the reports of all schedulers of a process as one, as unhealthy as the worst."""
    return {
        "status": "unhealthy" if any(r["status"] != "healthy" for r in reports) else "healthy",
        "reasons": [
            {"scheduler": report["scheduler"]["name"], **reason}
            for report in reports
            for reason in report["reasons"]
        ],
        "schedulers": [
            {**report["scheduler"], "status": report["status"], "jobs": report["jobs"]}
            for report in reports
        ],
    }


def _job(account: Account, now: float) -> dict[str, Any]:
    next_run = account.next_run or None
    return {
        "id": account.label,
        "next_run": _iso(next_run),
        "trigger": account.info.trigger,
        "last_outcome": account.last_outcome.value if account.last_outcome else None,
        "last_success": _iso(account.last_success),
        "running_since": _iso(account.running_since or None),
        "overdue": next_run is not None and now > next_run + account.info.grace,
    }


def _iso(timestamp: float | None) -> str | None:
    if timestamp is None:
        return None
    return datetime.fromtimestamp(timestamp, timezone.utc).isoformat(timespec="milliseconds")
