"""The dashboard that answers: which jobs are in trouble now?"""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models import dashboard, units

import parts
import promql
from parts import BAD, GOOD, WARNING, Query, table_query
from promql import BY_JOB, JOB, JOB_OR_NONE, SCHEDULER

SERIES_TO_SCHEDULER = parts.to_scheduler(
    "${__field.labels.job:percentencode}", "${__field.labels.scheduler:percentencode}"
)


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    page = parts.Page(
        "apscheduler-overview",
        "APScheduler / Overview",
        "Which jobs are in trouble now? Click a job to see what is wrong with it.",
        since="1h",
    )
    page.variables(job=True, several=True)
    page.annotations(JOB_OR_NONE)
    page.link("Scheduler", "apscheduler-scheduler", "datasource", "application", "scheduler")
    page.link("Runs", "apscheduler-runs", "datasource", "application", "scheduler", "job_id")
    page.row(
        4,
        (4, in_trouble()),
        (4, firing()),
        (8, schedulers()),
        (4, succeeded()),
        (4, working()),
    )
    page.row(13, (24, jobs()))
    page.row(9, (24, timeline()))
    page.row(9, (12, day("today")), (12, day("yesterday")))
    page.row(8, (14, alerts()), (10, unsuccessful()))
    return page.build()


def in_trouble() -> Any:
    """Return the number of jobs in trouble."""
    return parts.tiles(
        "Jobs in trouble",
        "Jobs in the state Stuck, Missed, Down, Failing or Dropping: those at the top of the table"
        " below.",
        [Query(f"sum((\n{promql.job_state(JOB)}\n) >= bool {promql.DROPPING})", instant=True)],
        no_value="no jobs",
        steps=((None, GOOD), (1, BAD)),
    )


def firing() -> Any:
    """Return the number of alerts that fire."""
    alerts = f'ALERTS{{{promql.ALERTS}, alertstate="firing", {JOB_OR_NONE}}}'
    known = f"apscheduler_scheduler_info{{{SCHEDULER}}}"
    return parts.tiles(
        "Alerts firing",
        "Alerts of alerts/apscheduler.rules.yml that fire, except the Watchdog.",
        [Query(f"count({alerts}) or count({known}) * 0", instant=True)],
        no_value="no scheduler",
        steps=((None, GOOD), (1, BAD)),
    )


def schedulers() -> Any:
    """Return a tile for each scheduler."""
    return parts.tiles(
        "Schedulers",
        parts.SCHEDULER_STATES_EXPLAINED,
        [Query(promql.scheduler_state(SCHEDULER), "{{scheduler}} of {{job}}", instant=True)],
        no_value="no scheduler",
        mappings=[parts.words(parts.SCHEDULER_STATES)],
        links=[("Scheduler ${__field.labels.scheduler}", SERIES_TO_SCHEDULER)],
        names=True,
        size=22,
    )


def succeeded() -> Any:
    """Return the share of runs that succeeded."""
    return parts.tiles(
        "Runs that succeeded",
        "Share of the runs in the time range that succeeded. Coalesced runs (merged into a later"
        " one) do not count.",
        [Query(promql.success_rate(JOB, ""), instant=True)],
        unit=units.PercentUnit,
        no_value="no runs",
        steps=((None, BAD), (0.95, WARNING), (0.99, GOOD)),
    )


def working() -> Any:
    """Return the number of runs in progress."""
    return parts.tiles(
        "Running now",
        "Runs that have started and have not ended.",
        [
            Query(
                f"sum(apscheduler_job_running{{{JOB}}})\n"
                f"or sum(apscheduler_job_runs_total{{{JOB}}}) * 0",
                instant=True,
            )
        ],
        no_value="no jobs",
        plain=True,
    )


def jobs() -> Any:
    """Return the table of all jobs."""
    now, before = promql.slow_runs(JOB), promql.slow_runs(JOB, " offset $__range")
    return parts.rows(
        "Jobs, those in trouble first",
        "Stuck: a run takes longer than it may. Missed: a run was due and has not started. Down: no"
        " live scheduler can start the job. Failing: the latest run failed. Dropping: runs were"
        " skipped, missed or lost within the last 10 minutes. 95 % of runs: the 95th percentile of"
        " the durations that Prometheus has scraped in the time range. vs. before: this value,"
        " compared with the previous time range. Click a row to see the job.",
        [
            table_query(promql.job_state(JOB, promql.TABLE_CODES)),
            table_query(f"time() - {promql.last_success(JOB)}"),
            table_query(f"{promql.next_run(JOB)} - time()"),
            table_query(
                promql.as_text(f"floor(1000 * {promql.success_rate(JOB)}) / 10", "success", "$1 %")
            ),
            table_query(now),
            table_query(promql.as_text(f"round({now}\n/ ({before} > 0), 0.1)", "against", "$1 ×")),
            Query(f"max {BY_JOB} (apscheduler_job_last_run_duration_seconds{{{JOB}}})"),
        ],
        columns={
            "Value #A": "State",
            "job_id": "Job",
            "scheduler": "Scheduler",
            "job": "Application",
            "Value #B": "Success, ago",
            "Value #C": "Next run, in",
            "success": "Success rate",
            "Value #E": "95 % of runs",
            "against": "vs. before",
            "Trend #G": "Durations",
        },
        no_value="none",
        mappings=[
            parts.words(parts.STATES, promql.TABLE_CODES),
            parts.paint("/^(\\d|[0-8]\\d)(\\.\\d)? %$/", BAD),
            parts.paint("/^9\\d(\\.\\d)? %$/", WARNING),
            parts.paint("/^100 %$/", GOOD),
            parts.paint("/^([2-9]|\\d{2,})(\\.\\d)? ×$/", BAD),
        ],
        painted=["State"],
        colored=["Success rate", "vs. before"],
        wrapped=["Job"],
        sparkline="G",
        sort="State",
        links=[("Job ${__data.fields.job_id}", parts.ROW_TO_JOB)],
    )


def timeline() -> Any:
    """Return a band for each job: what was due, and what ran."""
    return parts.history(
        "Timeline of all jobs",
        "Due, not started: a run is later than its grace. Failed: a run raised an exception, or was"
        " lost. Dropped: a run was missed or skipped. Ran: a run succeeded. Nothing due: the"
        " scheduler lives, and had nothing to do. A gap, without a band: the process was not"
        " scraped. Click a band to see the job.",
        [Query(promql.job_activity(JOB), "{{job_id}} of {{job}}")],
        no_value="no jobs in the time range",
        mappings=[parts.words(parts.ACTIVITIES)],
        points=parts.FEW,
        links=[("Job ${__field.labels.job_id}", parts.SERIES_TO_JOB)],
    )


def day(name: str) -> Any:
    """Return how many of the runs that were due today, or yesterday, succeeded."""
    successes, due = promql.runs_in_range(JOB)
    panel = parts.rows(
        f"Runs of {name}",
        f"How many of the runs that were due {name} succeeded. A run that was due earlier, and has"
        " not started yet, counts as well. Coalesced runs (merged into a later one) do not count."
        " It needs a relative time range of the dashboard, such as the last hour.",
        [
            table_query(promql.successes_as_text(JOB, "runs")),
            table_query(f"{due}\n- {successes}"),
        ],
        columns={
            "job_id": "Job",
            "scheduler": "Scheduler",
            "job": "Application",
            "runs": "Succeeded",
            "Value #B": "Without success",
        },
        unit=units.Short,
        no_value="no run was due",
        mappings=[
            parts.paint("/^(\\d+) of \\1$/", GOOD),
            parts.paint("/^\\d+ of \\d+$/", BAD),
        ],
        colored=["Succeeded"],
        wrapped=["Job"],
        sort="Without success",
        decimals=0,
        links=[
            ("Job ${__data.fields.job_id}", parts.ROW_TO_JOB),
            ("Runs of ${__data.fields.job_id}", parts.ROW_TO_RUNS),
        ],
    )
    # The days of the dashboard's time zone: until now, and all of the one before.
    panel.time_from("now/d")
    return panel if name == "today" else panel.time_shift("1d/d")


def alerts() -> Any:
    """Return the alerts that fire."""
    selected = f"{promql.ALERTS}, {JOB_OR_NONE}"
    return parts.rows(
        "Firing alerts",
        "Active for: how long the condition has been true. The runbook explains each alert and what"
        " to do.",
        [
            table_query(
                promql.firing(selected, "severity, alertname, job_id, scheduler, job, owner")
            )
        ],
        columns={
            "severity": "Severity",
            "alert": "Alert",
            "job_id": "Job",
            "scheduler": "Scheduler",
            "job": "Application",
            "owner": "Owner",
            "Value": "Active for",
        },
        no_value="none",
        mappings=[parts.words(parts.SEVERITIES)],
        painted=["Severity"],
        wrapped=["Alert", "Job"],
        sort="Active for",
        descending=False,
        links=[
            ("Job ${__data.fields.job_id}", parts.ROW_TO_JOB),
            ("Scheduler ${__data.fields.scheduler}", parts.ROW_TO_SCHEDULER),
            ("Runbook", parts.RUNBOOK),
        ],
    )


def unsuccessful() -> Any:
    """Return the runs that did not succeed, over time."""
    panel = parts.lines(
        "Runs without success, last 10 minutes",
        "At each time, the runs of the 10 minutes before, by outcome. " + parts.OUTCOMES_EXPLAINED,
        [
            Query(
                'sum by (outcome) ({__name__=~"apscheduler_job:(failed|omitted)_runs:increase10m",'
                f" {JOB}}})",
                "{{outcome}}",
            )
        ],
        unit=units.Short,
        no_value="none",
        ceiling=1,
        area=True,
        inline=True,
        points=parts.FEW,
    )
    return parts.outcomes_of(panel)
