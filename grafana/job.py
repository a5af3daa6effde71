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
    20: ("● Kept", GOOD),
    21: ("▲ Due", INFO),
    22: ("✖ Missed", BAD),
    23: ("– Nothing promised", GREY),
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
BUCKETS = f"apscheduler_job_run_duration_seconds_bucket{{{JOB}}}"
DUE = f"apscheduler_job:due_run_timestamp_seconds{{{JOB}}}"
SETTLED = f"apscheduler_job:settled_run_timestamp_seconds{{{JOB}}}"


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
    page.heading("Promise and fact")
    page.row(8, (14, promise_against_fact()), (10, times()))
    page.heading("Runs")
    page.row(9, (12, durations()), (12, duration_cells()))
    page.row(8, (12, outcomes()), (12, delays()))
    page.row(8, (12, exceptions()), (12, exceptions_in_total()))
    page.heading("Alerts, and what it is")
    page.row(5, (24, alerts()))
    page.row(5, (24, about()))
    return page.build()


def state() -> Any:
    """Return the state of the job, in words."""
    return parts.tiles(
        "State",
        "Missed: a run was due and has not started. Stuck: a run takes longer than it may."
        " Failing: the latest run failed. Dropping runs: some did not take place within ten"
        " minutes.",
        [Query(promql.job_state(JOB), instant=True)],
        no_value="unknown job",
        mappings=[parts.words(parts.STATES)],
        size=26,
    )


def failures() -> Any:
    """Return how often it failed in a row."""
    return parts.tiles(
        "Failed in a row",
        "Errors and losses since the last success. APSchedulerJobFailing fires at three, or at"
        " the first one if the job runs once an hour or less often.",
        [Query(f"max {BY_JOB} (apscheduler_job_consecutive_failures{{{JOB}}})", instant=True)],
        no_value="not scraped",
        steps=((None, GOOD), (1, WARNING), (3, BAD)),
    )


def success_age() -> Any:
    """Return how long ago the last success was."""
    return parts.tiles(
        "Last success, ago",
        "Since the latest successful run ended; remembered for a job whose process is dead.",
        [Query(f"time() - {promql.last_success(JOB)}", instant=True)],
        unit=units.Seconds,
        no_value="none yet",
        plain=True,
    )


def countdown() -> Any:
    """Return when the next run is due."""
    return parts.tiles(
        "Next run, in",
        "Until the promised run. Below zero, the promise has not been kept so far.",
        [Query(f"{promql.promise(JOB)} - time()", instant=True)],
        unit=units.Seconds,
        no_value="nothing planned",
        steps=((None, BAD), (-60, WARNING), (-15, "text")),
        plain=True,
    )


def success() -> Any:
    """Return the share of runs that succeeded."""
    return parts.tiles(
        "Runs that succeeded",
        "Of the runs that fell due in the time range; those that were folded into a later one"
        " (coalesced) do not count.",
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
            Query(
                f"histogram_quantile(0.95, sum by (le) (\n  increase({BUCKETS}[$__range])\n)) >= 0",
                instant=True,
            )
        ],
        unit=units.Seconds,
        no_value="no runs",
        plain=True,
    )


def run_history() -> Any:
    """Return where in the chain it broke, and when."""
    late = promql.recorded_lateness(JOB)
    runs = f"apscheduler_job_runs_total{{{JOB}, outcome="
    links = [
        ("lost", 54),
        ("missed", 53),
        ("skipped", 52),
        ("coalesced", 51),
    ]
    dropped = [
        f'(sum {BY_JOB} (increase({runs}"{outcome}"}}[$__rate_interval])) > 0) * 0 + {code}'
        for outcome, code in links
    ]
    return parts.history(
        "Run history",
        "Where did it break? Scheduler: does its loop live? Promise: was the run that was due"
        " started? Latest run: how it ended, until the next one ends. At work: is one under way?"
        " Dropped: runs that did not take place, or were never heard of again.",
        [
            Query(f"(\n{promql.scheduler_state(SCHEDULER, JOB)}\n) + 10", "Scheduler"),
            Query(
                f"{late} * 0 + 22\n"
                f"or (({DUE} > 0) unless {SETTLED} >= {DUE}) * 0 + 21\n"
                f"or {promql.promise(JOB)} * 0 + 20\n"
                f"or max {BY_JOB} (apscheduler_job_next_run_timestamp_seconds{{{JOB}}}) * 0 + 23",
                "Promise",
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
                f"or max {BY_JOB} (apscheduler_job_running{{{JOB}}}) * 0 + 40",
                "At work",
            ),
            Query(
                "\nor ".join(dropped) + f'\nor sum {BY_JOB} ({runs}"success"}}) * 0 + 50',
                "Dropped",
            ),
        ],
        no_value="this job was not seen in the time range",
        mappings=[parts.words(HISTORY)],
        points=400,
    )


def promise_against_fact() -> Any:
    """Return the countdown, and how late it is."""
    panel = parts.lines(
        "Promise against fact",
        "Until the next run: it counts down, and jumps up when the job is started. Overdue: below"
        " zero, since when a run has been due that has not started; past the tolerance, it is"
        " missed. This goes on when the process that made the promise is dead.",
        [
            Query(f"clamp_min({promql.promise(JOB)} - time(), 0)", "until the next run"),
            Query(
                f"(({DUE} > 0) unless {SETTLED} >= {DUE}) - time()\n"
                f"or -((time() - (min {BY_JOB}"
                f" (apscheduler_job_next_run_timestamp_seconds{{{JOB}}} > 0))) > 0)",
                "overdue",
            ),
            Query(
                f"-max {BY_JOB} (apscheduler_job_grace_seconds{{{JOB}}})\n"
                f"or -apscheduler_job:grace_seconds{{{JOB}}}",
                "tolerance",
            ),
        ],
        unit=units.Seconds,
        no_value="nothing was promised in the time range",
        steps=((None, "transparent"), (0, GREY)),
        area=True,
        floor=None,
        calcs=("lastNotNull", "min", "max"),
    )
    parts.color_of(panel, "until the next run", INFO)
    parts.color_of(panel, "overdue", BAD, "long")
    parts.color_of(panel, "tolerance", WARNING, "limit")
    return panel


def times() -> Any:
    """Return the timestamps that promise and fact are made of."""
    job = f"{{{JOB}}}"

    def latest(name: str) -> str:
        timestamps = f"apscheduler_job_{name}_timestamp_seconds{job}"
        return f"1000 * max {BY_JOB} (last_over_time({timestamps}[$__range]) > 0)"

    return parts.tiles(
        "Times",
        "Promised: the next run. Was due: the latest run that fell due. Started: the scheduled time"
        " of the latest run that started. Taken back: a promise that was withdrawn on purpose, by"
        " a pause, a change or a removal. The others are when runs ended, or began.",
        [
            Query(f"1000 * {promql.promise(JOB)}", "promised", instant=True),
            Query(f"1000 * ({DUE} > 0)", "was due", instant=True),
            Query(latest("last_run"), "started", instant=True),
            Query(f"1000 * {promql.last_success(JOB)}", "last success", instant=True),
            Query(latest("last_failure"), "last failure", instant=True),
            Query(latest("withdrawn_run"), "taken back", instant=True),
            Query(
                f"1000 * min {BY_JOB} (apscheduler_job_running_since_timestamp_seconds{job} > 0)",
                "running since",
                instant=True,
            ),
        ],
        unit=units.DatetimeISO,
        no_value="nothing has happened yet",
        names=True,
        plain=True,
        size=15,
    )


def durations() -> Any:
    """Return the quantiles of the durations, and what limits them."""

    def quantile(share: float) -> str:
        return f"histogram_quantile({share}, sum by (le) (rate({BUCKETS}[$__rate_interval])))"

    panel = parts.lines(
        "Durations",
        "Time inside the callable, of successes and failures alike. Diamonds are single runs with"
        " a trace, if the application records spans: click one to see it. Allowed:"
        " max_duration, if the application says one; past it, the run counts as stuck. Interval:"
        " the shortest time between two runs.",
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
        "How many runs took how long: the darker or brighter, the more. Diamonds are single runs"
        " with a trace, if the application records spans.",
        Query(
            f"sum by (le) (\n  increase({BUCKETS}[$__rate_interval])\n)",
            "{{le}}",
            format=PromQueryFormat.HEATMAP,
            exemplar=True,
        ),
        no_value="no runs in the time range",
    )


def outcomes() -> Any:
    """Return the runs by outcome over time."""
    panel = parts.lines(
        "Outcomes",
        "Runs that fell due, by how they ended, for each bar. Error: raised. Lost: never heard of"
        " again. Missed: too late, dropped. Skipped: the one before was still under way."
        " Coalesced: folded into a later one.",
        [
            Query(
                "sum by (outcome) (\n"
                f"  increase(apscheduler_job_runs_total{{{JOB}}}[$__rate_interval])\n)",
                "{{outcome}}",
            )
        ],
        unit=units.Short,
        no_value="no runs in the time range",
        bars=True,
        ceiling=1,
        inline=True,
        calcs=("max",),
        interval="1m",
    )
    return parts.outcomes_of(panel)


def delays() -> Any:
    """Return how late runs start."""

    def quantile(share: float) -> str:
        buckets = f"apscheduler_job_start_delay_seconds_bucket{{{JOB}}}"
        return f"histogram_quantile({share}, sum by (le) (rate({buckets}[$__rate_interval])))"

    panel = parts.lines(
        "Start delay",
        "Actual start minus scheduled time: the loop was busy, or all workers were. Tolerance:"
        " grace, past which the run counts as missed.",
        [
            Query(quantile(0.5), "p50"),
            Query(quantile(0.95), "p95"),
            Query(
                f"max {BY_JOB} (apscheduler_job_grace_seconds{{{JOB}}})",
                "tolerance",
            ),
        ],
        unit=units.Seconds,
        no_value="no runs in the time range",
        logarithmic=True,
        floor=None,
    )
    parts.color_of(panel, "p50", SKY)
    parts.color_of(panel, "p95", INFO, "long")
    parts.color_of(panel, "tolerance", WARNING, "limit")
    return panel


def exceptions() -> Any:
    """Return what runs raised, over time."""
    return parts.lines(
        "Exceptions over time",
        "Runs that raised, by the type's name, for each bar.",
        [
            Query(
                "sum by (exception) (\n"
                f"  increase(apscheduler_job_exceptions_total{{{JOB}}}[$__rate_interval])\n)",
                "{{exception}}",
            )
        ],
        unit=units.Short,
        no_value="no run has raised",
        bars=True,
        ceiling=1,
        shades=BAD,
        calcs=("max",),
        interval="1m",
    )


def exceptions_in_total() -> Any:
    """Return what runs raised, in the time range."""
    return parts.bars(
        "Exceptions in the time range",
        "Runs that raised, by the type's name. The application's log has the tracebacks.",
        [
            Query(
                "sort_desc(sum by (exception) (\n"
                f"  increase(apscheduler_job_exceptions_total{{{JOB}}}[$__range])\n) > 0)",
                "{{exception}}",
                instant=True,
            )
        ],
        unit=units.Short,
        no_value="no run has raised in the time range",
        steps=((None, BAD),),
    )


def alerts() -> Any:
    """Return the alerts on this job."""
    selected = f"{promql.ALERTS}, {JOB_OR_NONE}"
    return parts.rows(
        "Alerts that fire",
        "On this job, or on its scheduler, and for how long it has been true.",
        [table_query(promql.firing(selected, "severity, alertname"))],
        columns={"severity": "Severity", "alert": "Alert", "Value": "Since, ago"},
        no_value="none",
        mappings=[parts.words(parts.SEVERITIES)],
        painted=["Severity"],
        sort="Since, ago",
        descending=False,
        links=[("Runbook", parts.RUNBOOK)],
    )


def about() -> Any:
    """Return what the job is, or was."""
    info = f"apscheduler_job_info{{{JOB}}}"
    labels = "job_id, name, func, trigger, executor, jobstore, persistent, instance"
    return parts.rows(
        "What it is",
        "The job as its scheduler knows it, or knew it before it went, with the longest time"
        " between two of its next runs.",
        [
            table_query(
                f"max by ({labels}) ({info})\n"
                f"or max by ({labels}) (\n  last_over_time({info}[$__range])"
                f" unless on (job, scheduler, job_id) {info}\n)"
            ),
            table_query(
                "max by (job_id, instance) (last_over_time(\n"
                f"  apscheduler_job_longest_interval_seconds{{{JOB}}}[$__range]\n))"
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
