"""The dashboard that answers: what is wrong with this job, and since when?"""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models import dashboard, units
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

import parts
import promql
from parts import BAD, GOOD, GREY, INFO, SKY, WARNING, Query, table_query
from promql import BY_JOB, JOB, JOB_OR_NONE, SCHEDULER

HISTORY = {
    **{10 + code: words for code, words in parts.SCHEDULER_STATES.items()},
    20: ("● Scheduled", GOOD),
    21: ("▲ Due", INFO),
    22: ("✖ Missed", BAD),
    23: ("– No next run", GREY),
    30: ("● Success", GOOD),
    31: ("✖ Failure", BAD),
    40: ("– Idle", GREY),
    41: ("▶ Running", INFO),
    42: ("✖ Stuck", BAD),
    50: ("– None", GREY),
    51: ("● Coalesced", INFO),
    52: ("▲ Skipped", WARNING),
    53: ("▲ Missed", WARNING),
    54: ("✖ Lost", BAD),
}
DURATIONS = "apscheduler_job_run_duration_seconds"
DELAYS = "apscheduler_job_start_delay_seconds"
DUE = f"apscheduler_job:due_run_timestamp_seconds{{{JOB}}}"
SETTLED = f"apscheduler_job:settled_run_timestamp_seconds{{{JOB}}}"
NO_RUNS = f'sum {BY_JOB} (apscheduler_job_runs_total{{{JOB}, outcome="success"}}) * 0'
"""The value 0 for each job that is scraped."""

TO_RUNS = [("Single runs", parts.to_runs(*parts.SELECTED_JOB))]
TO_FAILED_RUNS = [("Runs that failed", parts.to_runs(*parts.SELECTED_JOB, ["error", "lost"]))]
TO_RUNS_OF_OUTCOME = [
    (
        "Runs with the outcome ${__field.labels.outcome}",
        parts.to_runs(*parts.SELECTED_JOB, ["${__field.labels.outcome}"]),
    )
]


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    page = parts.Page(
        "apscheduler-job",
        "APScheduler / Job",
        "What is wrong with this job, and since when?",
        since="6h",
    )
    page.variables(job=True, several=False)
    page.annotations(JOB_OR_NONE)
    for title, uid in (("Overview", "overview"), ("Scheduler", "scheduler")):
        page.link(title, f"apscheduler-{uid}", "datasource", "application", "scheduler")
    page.link("Runs", "apscheduler-runs", "datasource", "application", "scheduler", "job_id")
    page.row(
        4,
        (5, state()),
        (4, failures()),
        (4, success_age()),
        (4, countdown()),
        (4, success()),
        (3, slow()),
    )
    page.row(8, (24, run_history()))
    page.heading("Next run")
    page.row(8, (14, countdown_graph()), (10, times()))
    page.heading("Runs")
    page.row(9, (12, durations()), (12, duration_cells()))
    page.row(8, (12, outcomes()), (12, delays()))
    page.row(8, (12, exceptions()), (12, exceptions_in_total()))
    page.heading("Alerts and description")
    page.row(5, (24, alerts()))
    page.row(5, (24, about()))
    return page.build()


def state() -> Any:
    """Return the state of the job, in words."""
    return parts.tiles(
        "State",
        "Missed: a run was due and has not started. Stuck: a run takes longer than it may."
        " Failing: the latest run failed. Dropping: runs were skipped, missed or lost within the"
        " last 10 minutes.",
        [Query(promql.job_state(JOB), instant=True)],
        no_value="unknown job",
        mappings=[parts.words(parts.STATES)],
        size=26,
    )


def failures() -> Any:
    """Return the number of failures since the last success."""
    return parts.tiles(
        "Failures in a row",
        "Runs that failed or were lost since the last success. APSchedulerJobFailing fires at 3,"
        " or at 1 if the job has an hour or more between runs.",
        [
            Query(
                f"max {BY_JOB} (apscheduler_job_consecutive_failures{{{JOB}}})\nor {NO_RUNS}",
                instant=True,
            )
        ],
        no_value="not scraped",
        steps=((None, GOOD), (1, WARNING), (3, BAD)),
    )


def success_age() -> Any:
    """Return how long ago the last success was."""
    return parts.tiles(
        "Last success, ago",
        "Time since the latest successful run ended. It is also shown if the process is dead.",
        [Query(f"time() - {promql.last_success(JOB)}", instant=True)],
        unit=units.Seconds,
        no_value="none yet",
        plain=True,
    )


def countdown() -> Any:
    """Return when the next run is due."""
    return parts.tiles(
        "Next run, in",
        "Time until the next run is due. Below zero: it is due and has not started.",
        [Query(f"{promql.next_run(JOB)} - time()", instant=True)],
        unit=units.Seconds,
        no_value="no next run",
        steps=((None, BAD), (-60, WARNING), (-15, "text")),
        plain=True,
    )


def success() -> Any:
    """Return the share of runs that succeeded."""
    return parts.tiles(
        "Runs that succeeded",
        "Share of the runs in the time range that succeeded. Coalesced runs (merged into a later"
        " one) do not count.",
        [Query(promql.success_rate(JOB), instant=True)],
        unit=units.PercentUnit,
        no_value="no runs",
        steps=((None, BAD), (0.95, WARNING), (0.99, GOOD)),
    )


def slow() -> Any:
    """Return the 95th percentile of the durations."""
    return parts.tiles(
        "95 % of runs",
        "The 95th percentile of the durations in the time range, from the histogram.",
        [
            Query(f"{promql.quantile(0.95, DURATIONS, JOB, '$__range')} >= 0", instant=True),
        ],
        unit=units.Seconds,
        no_value="no runs",
        plain=True,
    )


def run_history() -> Any:
    """Return the bands that show which part failed, and when."""
    late = promql.recorded_lateness(JOB)
    runs = f"apscheduler_job_runs_total{{{JOB}, outcome="
    links = [
        ("lost", 54),
        ("missed", 53),
        ("skipped", 52),
        ("coalesced", 51),
    ]
    dropped = [
        f"(sum {BY_JOB} ({increase}) > 0) * 0 + {code}"
        for outcome, code in links
        for increase in [promql.increase(f'{runs}"{outcome}"}}', "$__rate_interval")]
    ]
    return parts.history(
        "Run history",
        "Scheduler: is its loop alive? Next run: is it due or missed? Latest run: how it ended,"
        " until the next one ends. In progress: does the job run? Dropped: runs that were"
        " coalesced, skipped, missed or lost.",
        [
            Query(f"(\n{promql.scheduler_state(SCHEDULER, JOB)}\n) + 10", "Scheduler"),
            Query(
                f"{late} * 0 + 22\n"
                f"or (({DUE} > 0) unless {SETTLED} >= {DUE}) * 0 + 21\n"
                f"or {promql.next_run(JOB)} * 0 + 20\n"
                f"or max {BY_JOB} (apscheduler_job_next_run_timestamp_seconds{{{JOB}}}) * 0 + 23",
                "Next run",
            ),
            Query(
                f"(max {BY_JOB} (apscheduler_job_consecutive_failures{{{JOB}}}) > 0) * 0 + 31\n"
                f"or max {BY_JOB} (apscheduler_job_last_success_timestamp_seconds{{{JOB}}}) * 0"
                " + 30",
                "Latest run",
            ),
            Query(
                f"{promql.overlong(JOB)} * 0 + 42\n"
                f"or (max {BY_JOB} (apscheduler_job_running{{{JOB}}}) > 0) * 0 + 41\n"
                f"or {NO_RUNS} + 40",
                "In progress",
            ),
            Query("\nor ".join([*dropped, f"{NO_RUNS} + 50"]), "Dropped"),
        ],
        no_value="no data of this job in the time range",
        mappings=[parts.words(HISTORY)],
        points=400,
        links=TO_RUNS,
    )


def countdown_graph() -> Any:
    """Return the time until the next run, and how late it is."""
    panel = parts.lines(
        "Countdown to the next run",
        "The time until the next run counts down, and jumps up when the run starts. Below zero, a"
        " run is due and has not started. If it is later than grace, it counts as missed. The"
        " countdown continues when the process is dead.",
        [
            Query(f"clamp_min({promql.next_run(JOB)} - time(), 0)", "until the next run"),
            Query(
                f"(({DUE} > 0) unless {SETTLED} >= {DUE}) - time()\n"
                f"or -((time() - (min {BY_JOB}"
                f" (apscheduler_job_next_run_timestamp_seconds{{{JOB}}} > 0))) > 0)",
                "overdue",
            ),
            # Not `-x`, for which Prometheus refuses a graph in which `or` continues a series of a
            # live process with a recorded one.
            Query(f"0 - {promql.grace(JOB)}", "grace"),
        ],
        unit=units.Seconds,
        no_value="no next run in the time range",
        steps=((None, "transparent"), (0, GREY)),
        area=True,
        floor=None,
        calcs=("lastNotNull", "min", "max"),
    )
    parts.color_of(panel, "until the next run", INFO)
    parts.color_of(panel, "overdue", BAD, "long")
    parts.color_of(panel, "grace", WARNING, "limit")
    return panel


def times() -> Any:
    """Return the timestamps of the job."""
    job = f"{{{JOB}}}"

    def latest(name: str) -> str:
        timestamps = f"apscheduler_job_{name}_timestamp_seconds{job}"
        return f"1000 * max {BY_JOB} (last_over_time({timestamps}[$__range]) > 0)"

    return parts.tiles(
        "Times",
        "Next run: when it is due. Last due: when the latest run was due. Last started: the"
        " scheduled time of the latest run that started. Cancelled: the scheduled time of the"
        " latest run that was cancelled by a pause, a change or a removal. Last success and last"
        " failure: when these runs ended.",
        [
            Query(f"1000 * {promql.next_run(JOB)}", "next run", instant=True),
            Query(f"1000 * ({DUE} > 0)", "last due", instant=True),
            Query(latest("last_run"), "last started", instant=True),
            Query(f"1000 * {promql.last_success(JOB)}", "last success", instant=True),
            Query(latest("last_failure"), "last failure", instant=True),
            Query(latest("withdrawn_run"), "cancelled", instant=True),
            Query(
                f"1000 * min {BY_JOB} (apscheduler_job_running_since_timestamp_seconds{job} > 0)",
                "running since",
                instant=True,
            ),
        ],
        unit=units.DatetimeISO,
        no_value="no data",
        names=True,
        plain=True,
        size=15,
    )


def durations() -> Any:
    """Return the quantiles of the durations, and what limits them."""

    def quantile(share: float) -> str:
        return promql.quantile(share, DURATIONS, JOB, "$__rate_interval")

    panel = parts.lines(
        "Durations",
        "Durations of successes and failures. Diamonds are single runs with a trace, if the"
        " application records spans: click one to open it. Allowed: max_duration, if the"
        " application sets it; a longer run counts as stuck. Interval: the shortest time between"
        " two runs.",
        [
            Query(quantile(0.5), "p50", exemplar=True),
            Query(quantile(0.95), "p95"),
            Query(quantile(0.99), "p99"),
            Query(
                f"max {BY_JOB} (apscheduler_job_last_run_duration_seconds{{{JOB}}})",
                "last run",
            ),
            Query(
                f"max {BY_JOB} (apscheduler_job_max_duration_seconds{{{JOB}}})",
                "allowed",
            ),
            Query(
                f"min {BY_JOB} (apscheduler_job_shortest_interval_seconds{{{JOB}}})",
                "interval",
            ),
        ],
        unit=units.Seconds,
        no_value="no runs in the time range",
        logarithmic=True,
        floor=None,
        inline=True,
        links=TO_RUNS,
    )
    parts.color_of(panel, "p50", SKY)
    parts.color_of(panel, "p95", INFO, "long")
    parts.color_of(panel, "p99", parts.OTHER, "p99")
    parts.color_of(panel, "last run", GREY, "short")
    parts.color_of(panel, "allowed", BAD, "limit")
    parts.color_of(panel, "interval", WARNING, "limit")
    return panel


def duration_cells() -> Any:
    """Return the distribution of the durations over time."""
    return parts.cells(
        "Durations, all runs",
        "How many runs took how long: a stronger color means more runs. Diamonds are single runs"
        " with a trace, if the application records spans.",
        Query(
            # `on ()`: if there is a native histogram, there is nothing else.
            f"sum (increase({DURATIONS}{{{JOB}}}[$__rate_interval]))\n"
            f"or on () sum by (le) (increase({DURATIONS}_bucket{{{JOB}}}[$__rate_interval]))",
            "{{le}}",
            format=PromQueryFormat.HEATMAP,
            exemplar=True,
        ),
        no_value="no runs in the time range",
    )


def outcomes() -> Any:
    """Return the runs by outcome over time."""
    return parts.runs_by_outcome(
        "Outcomes", "Runs by outcome, for each bar.", JOB, links=TO_RUNS_OF_OUTCOME
    )


def delays() -> Any:
    """Return how late runs start."""

    def quantile(share: float) -> str:
        return promql.quantile(share, DELAYS, JOB, "$__rate_interval")

    panel = parts.lines(
        "Start delay",
        "Actual start minus scheduled time. Runs start late if the scheduler loop is slow, or if"
        " all workers are busy. Grace: how late a run may start before an alert fires.",
        [
            Query(quantile(0.5), "p50"),
            Query(quantile(0.95), "p95"),
            Query(promql.grace(JOB), "grace"),
        ],
        unit=units.Seconds,
        no_value="no runs in the time range",
        logarithmic=True,
        floor=None,
    )
    parts.color_of(panel, "p50", SKY)
    parts.color_of(panel, "p95", INFO, "long")
    parts.color_of(panel, "grace", WARNING, "limit")
    return panel


def exceptions() -> Any:
    """Return the exceptions of runs over time."""
    raised = f"apscheduler_job_exceptions_total{{{JOB}}}"
    return parts.lines(
        "Exceptions over time",
        "Runs that raised an exception, by its type, for each bar.",
        [
            Query(
                f"sum by (exception) ({promql.increase(raised, '$__rate_interval')})",
                "{{exception}}",
            )
        ],
        unit=units.Short,
        no_value="no exceptions",
        bars=True,
        ceiling=1,
        shades=BAD,
        calcs=("max",),
        interval="1m",
        links=TO_FAILED_RUNS,
    )


def exceptions_in_total() -> Any:
    """Return the exceptions of runs in the time range."""
    raised = f"apscheduler_job_exceptions_total{{{JOB}}}"
    return parts.bars(
        "Exceptions in the time range",
        "Runs that raised an exception, by its type. Click one to see the runs.",
        [
            Query(
                f"sort_desc(sum by (exception) ({promql.increase(raised, '$__range')}) > 0)",
                "{{exception}}",
                instant=True,
            )
        ],
        unit=units.Short,
        no_value="no exceptions in the time range",
        steps=((None, BAD),),
        links=TO_FAILED_RUNS,
    )


def alerts() -> Any:
    """Return the alerts on this job."""
    selected = f"{promql.ALERTS}, {JOB_OR_NONE}"
    return parts.rows(
        "Firing alerts",
        "Alerts on this job or its scheduler. Active for: how long the condition has been true.",
        [table_query(promql.firing(selected, "severity, alertname"))],
        columns={"severity": "Severity", "alert": "Alert", "Value": "Active for"},
        no_value="none",
        mappings=[parts.words(parts.SEVERITIES)],
        painted=["Severity"],
        sort="Active for",
        descending=False,
        links=[("Runbook", parts.RUNBOOK)],
    )


def about() -> Any:
    """Return the description of the job."""
    info = f"apscheduler_job_info{{{JOB}}}"
    intervals = [
        f"apscheduler_job_{which}_interval_seconds{{{JOB}}}" for which in ("longest", "shortest")
    ]
    known_intervals = [*intervals, *(f"last_over_time({one}[$__range])" for one in intervals)]
    labels = "job_id, name, func, trigger, executor, jobstore, persistent, instance"
    return parts.rows(
        "Description of the job",
        "If the job is gone, this is its last known description. Longest interval: the longest time"
        " between two of its next runs.",
        [
            table_query(
                f"max by ({labels}) ({info})\n"
                f"or max by ({labels}) (\n  last_over_time({info}[$__range])"
                f" unless on (job, scheduler, job_id) {info}\n)"
            ),
            table_query(
                "max by (job_id, instance) (\n  {}\n)".format("\n  or ".join(known_intervals))
            ),
        ],
        columns={
            "name": "Name",
            "func": "Function",
            "trigger": "Trigger",
            "executor": "Executor",
            "jobstore": "Job store",
            "persistent": "Persistent",
            "instance": "Instance",
            "Value #B": "Longest interval",
        },
        no_value="none",
        wrapped=["Name", "Function", "Trigger"],
    )
