"""
The PromQL that the dashboards share.

Variables go into regular expressions as `${name:regex}` between backquotes: Grafana escapes what
is special in a regular expression, and between backquotes Prometheus takes the rest as it is. So
ids with dots, quotes, backslashes and spaces work, and several values become `(a|b)`. Only a
backquote in an id does not, which PromQL has no way to write there.

Where a rule of `alerts/` has recorded what is needed, it is used: it is what outlives a process.
"""

from textwrap import indent

APPLICATION = "job=~`${application:regex}`"
SCHEDULER = APPLICATION + ", scheduler=~`${scheduler:regex}`"
JOB = SCHEDULER + ", job_id=~`${job_id:regex}`"
JOB_OR_NONE = SCHEDULER + ", job_id=~`(?:${job_id:regex})?`"
"""What alerts on a scheduler have no label for matches as well."""

BY_JOB = "by (job, scheduler, job_id)"
BY_SCHEDULER = "by (job, scheduler)"

ALERTS = 'alertname=~"APScheduler.+", alertname!="APSchedulerWatchdog"'

SEVERITIES = {"critical": "✖ critical", "warning": "▲ warning", "info": "● info"}
"""
What tables show. Signs come from queries, as a mapping would change a job that is called `info`.
"""

# States of a job, the worst first, and what explains the others before them. Tables cannot give a
# mapping of values to a single column (see `parts.override`), so there the codes begin where no
# duration ever comes.
STUCK, MISSED, DOWN, FAILING, DROPPING, RUNNING, PAUSED, WAITING, IDLE = range(8, -1, -1)
TABLE_CODES = 10**12


def recorded_lateness(jobs: str) -> str:
    """Return a query for jobs that are later than tolerated, as APSchedulerMissedRun sees them."""
    due = f"apscheduler_job:due_run_timestamp_seconds{{{jobs}}}"
    return f"""(
  (
    (
      ({due} > 0)
      and time() - {due} > apscheduler_job:grace_seconds{{{jobs}}}
      unless apscheduler_job:settled_run_timestamp_seconds{{{jobs}}} >= {due}
    )
    or
    max {BY_JOB} (
      (apscheduler_job_next_run_timestamp_seconds{{{jobs}}} > 0)
      and time() - apscheduler_job_next_run_timestamp_seconds{{{jobs}}}
        > apscheduler_job_grace_seconds{{{jobs}}}
    )
  )
  unless on (job, scheduler) apscheduler_scheduler_state{{{APPLICATION}, state="paused"}} == 1
)"""


def overlong(jobs: str) -> str:
    """Return a query for jobs with a run that takes longer than it may."""
    return f"""(
  (
    time() - min {BY_JOB} (apscheduler_job_running_since_timestamp_seconds{{{jobs}}} > 0)
    > max {BY_JOB} (apscheduler_job_max_duration_seconds{{{jobs}}})
  )
  or group {BY_JOB} (ALERTS{{alertname="APSchedulerJobStuck", alertstate="firing", {jobs}}})
)"""


def promise(jobs: str) -> str:
    """Return a query for the next run: of live schedulers, or what a dead one has promised."""
    return (
        f"(min {BY_JOB} (apscheduler_job_next_run_timestamp_seconds{{{jobs}}} > 0)"
        f" or (apscheduler_job:promised_run_timestamp_seconds{{{jobs}}} > 0))"
    )


def last_success(jobs: str) -> str:
    """Return a query for the end of the last successful run."""
    return (
        f"(max {BY_JOB} (apscheduler_job_last_success_timestamp_seconds{{{jobs}}})"
        f" or apscheduler_job:last_success_timestamp_seconds{{{jobs}}})"
    )


def job_state(jobs: str, offset: int = 0) -> str:
    """
    Return a query for the state of each job, as a code of the above plus `offset`.

    What is wrong is what the alert rules say, pending or firing: they look at far more series than
    a dashboard may that has hundreds of jobs and is drawn anew every 30 seconds.
    """

    def alerts(names: str) -> str:
        return f'group {BY_JOB} (ALERTS{{alertname=~"APScheduler({names})", {jobs}}})'

    up = f"apscheduler_scheduler_up{{{APPLICATION}}}"
    paused = f'max {BY_SCHEDULER} (apscheduler_scheduler_state{{{APPLICATION}, state="paused"}})'
    promised = f"apscheduler_job:promised_run_timestamp_seconds{{{jobs}}}"
    branches = (
        (STUCK, alerts("JobStuck")),
        (MISSED, alerts("MissedRun")),
        (DOWN, f"(({promised} > 0) unless on (job, scheduler) {up} == 1)"),
        (FAILING, f"(max {BY_JOB} (apscheduler_job_consecutive_failures{{{jobs}}}) > 0)"),
        (DROPPING, alerts("RunsLost|RunsMissed|RunsSkipped")),
        (RUNNING, f"(max {BY_JOB} (apscheduler_job_running{{{jobs}}}) > 0)"),
    )
    rest = f"""clamp_max(
  (max {BY_JOB} (apscheduler_job_next_run_timestamp_seconds{{{jobs}}}) > bool 0)
  + on (job, scheduler) group_left () {PAUSED} * {paused},
  {PAUSED}
) + {offset}"""
    return "\nor\n".join([*(f"{query} * 0 + {code + offset}" for code, query in branches), rest])


def success_rate(jobs: str, by: str = BY_JOB) -> str:
    """Return a query for the share of due runs that succeeded, over the dashboard's time range."""
    runs = f"apscheduler_job_runs_total{{{jobs}"
    return (
        f'sum {by} (increase({runs}, outcome="success"}}[$__range]))\n'
        f'/ (sum {by} (increase({runs}, outcome!="coalesced"}}[$__range])) > 0)'
    )


def slow_runs(jobs: str, offset: str = "") -> str:
    """Return a query for the 95th percentile of the runs that scrapes have seen, in the range."""
    return (
        f"max {BY_JOB} (quantile_over_time(0.95,"
        f" apscheduler_job_last_run_duration_seconds{{{jobs}}}[$__range]{offset}))"
    )


def as_text(query: str, label: str, template: str, by: str = BY_JOB) -> str:
    """
    Return a query whose values stand in a label, with a unit of their own.

    For a column of a table that cannot have a unit of its own; see `parts.override`.
    """
    return (
        f'label_replace(\n  count_values {by} ("{label}",\n    {query}\n  ),\n'
        f'  "{label}", "{template}", "{label}", "(.*)"\n)'
    )


def scheduler_state(schedulers: str, jobs: str = "") -> str:
    """
    Return a query for the state of each scheduler: 3 gone, 2 dead, 1 paused, 0 up.

    Gone is one that has promised runs of `jobs`, by default of any.
    """
    up = f"max {BY_SCHEDULER} (apscheduler_scheduler_up{{{schedulers}}})"
    paused = f'max {BY_SCHEDULER} (apscheduler_scheduler_state{{{schedulers}, state="paused"}})'
    promised = f"apscheduler_job:promised_run_timestamp_seconds{{{jobs or schedulers}}} > 0"
    return (
        f"({up} == 0) * 0 + 2\n"
        f"or ({paused} == 1) * 0 + 1\n"
        f"or {up} * 0\n"
        f"or count {BY_SCHEDULER} ({promised}) * 0 + 3"
    )


def firing(alerts: str, labels: str) -> str:
    """Return a query for how long alerts have been true, by `labels` and a short name `alert`."""
    query = (
        f"time() - ALERTS_FOR_STATE{{{alerts}}}\n"
        f'and ignoring (alertstate) ALERTS{{alertstate="firing", {alerts}}}'
    )
    shown = [("alert", "$1", "alertname", "APScheduler(.*)")]
    shown += [("severity", sign, "severity", name) for name, sign in SEVERITIES.items()]
    for names in shown:
        query = "label_replace(\n{},\n  {}\n)".format(
            indent(query, "  "), ", ".join(f'"{name}"' for name in names)
        )
    return f"max by ({labels.replace('alertname', 'alert')}) (\n{indent(query, '  ')}\n)"
