"""
PromQL that the dashboards share.

Variables are inserted into regular expressions as `${name:regex}` between backquotes: Grafana
escapes the special characters of regular expressions, and Prometheus changes nothing between
backquotes. So ids with dots, quotes, backslashes and spaces work, and several values become
`(a|b)`. An id with a backquote does not work, because PromQL cannot escape it there.

Queries use the series that the rules of `alerts/` record where they can, because these series
continue when the process is gone.
"""

from textwrap import indent

APPLICATION = "job=~`${application:regex}`"
SCHEDULER = APPLICATION + ", scheduler=~`${scheduler:regex}`"
JOB = SCHEDULER + ", job_id=~`${job_id:regex}`"
JOB_OR_NONE = SCHEDULER + ", job_id=~`(?:${job_id:regex})?`"
"""Matches alerts on schedulers as well, which have no `job_id`."""

BY_JOB = "by (job, scheduler, job_id)"
BY_SCHEDULER = "by (job, scheduler)"

ALERTS = 'alertname=~"APScheduler.+", alertname!="APSchedulerWatchdog"'

SEVERITIES = {"critical": "✖ critical", "warning": "▲ warning", "info": "● info"}
"""
What tables show.

The queries add the symbols, because a mapping would also change a job that is called `info`.
"""

# States of a job, the worst first; a state that explains another one comes before it. Tables
# cannot map the values of a single column (see `parts.override`), so their codes are higher than
# any duration.
STUCK, MISSED, DOWN, FAILING, DROPPING, RUNNING, PAUSED, WAITING, IDLE = range(8, -1, -1)
TABLE_CODES = 10**12

# What a job does around a time.
OVERDUE, FAILED, DROPPED, SUCCEEDED, IN_PROGRESS, NOTHING = range(5, -1, -1)


def recorded_lateness(jobs: str) -> str:
    """Return a query for jobs that are later than their grace, as in APSchedulerMissedRun."""
    due = f"apscheduler_job:oldest_unsettled_run_timestamp_seconds{{{jobs}}}"
    next_runs = f"apscheduler_job_next_run_timestamp_seconds{{{jobs}}}"
    graces = f"apscheduler_job_grace_seconds{{{jobs}}}"
    return f"""(
  (
    (
      ({due} > 0)
      and time() - {due} > (apscheduler_job:grace_seconds{{{jobs}}} or {due} * 0 + 60)
      unless apscheduler_job:last_success_timestamp_seconds{{{jobs}}} >= {due}
      unless apscheduler_job:last_in_progress_timestamp_seconds{{{jobs}}} >= {due}
    )
    or
    max {BY_JOB} (
      ({next_runs} > 0) and time() - {next_runs} > ({graces} or {next_runs} * 0 + 60)
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


def next_run(jobs: str) -> str:
    """Return a query for the next run, from a live scheduler or as recorded from a dead one."""
    return (
        f"(min {BY_JOB} (apscheduler_job_next_run_timestamp_seconds{{{jobs}}} > 0)"
        f" or (apscheduler_job:promised_run_timestamp_seconds{{{jobs}}} > 0))"
    )


def grace(jobs: str) -> str:
    """Return a query for how late a run may start: 60 seconds, where nothing else is exported."""
    return (
        f"(max {BY_JOB} (apscheduler_job_grace_seconds{{{jobs}}})"
        f" or apscheduler_job:grace_seconds{{{jobs}}}"
        f" or max {BY_JOB} (apscheduler_job_next_run_timestamp_seconds{{{jobs}}}) * 0 + 60"
        f" or apscheduler_job:promised_run_timestamp_seconds{{{jobs}}} * 0 + 60)"
    )


def last_success(jobs: str) -> str:
    """Return a query for the end of the last successful run."""
    return (
        f"(max {BY_JOB} (apscheduler_job_last_success_timestamp_seconds{{{jobs}}})"
        f" or apscheduler_job:last_success_timestamp_seconds{{{jobs}}})"
    )


def job_state(jobs: str, offset: int = 0) -> str:
    """
    Return a query for the state of each job, as one of the codes above plus `offset`.

    Problems are taken from the pending and firing alerts. The rules read far more series than a
    dashboard of hundreds of jobs can, which is refreshed every 30 seconds.
    """

    def alerts(names: str) -> str:
        return f'group {BY_JOB} (ALERTS{{alertname=~"APScheduler({names})", {jobs}}})'

    up = f"apscheduler_scheduler_up{{{APPLICATION}}}"
    paused = f'max {BY_SCHEDULER} (apscheduler_scheduler_state{{{APPLICATION}, state="paused"}})'
    next_runs = f"apscheduler_job:promised_run_timestamp_seconds{{{jobs}}}"
    branches = (
        (STUCK, alerts("JobStuck")),
        (MISSED, alerts("MissedRun")),
        (DOWN, f"(({next_runs} > 0) unless on (job, scheduler) {up} == 1)"),
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


def increase(counters: str, duration: str) -> str:
    """
    Return a query for how much counters have grown within a duration, those included that began.

    The function `increase` ignores the first value of a series, and most outcomes and all
    exceptions have a series from their first run on. After a time without scrapes all series look
    new, so such a series counts only if its process was scraped before, or has started since.
    """
    start = f"apscheduler_scheduler_start_timestamp_seconds{{{SCHEDULER}}}"
    known = f"{start} offset {duration}"
    if duration == "$__range":  # the only one that Grafana also has in seconds
        known += f" or {start} > time() - $__range_s"
    return f"""
  (
    last_over_time({counters}[{duration}])
    unless {counters} offset {duration}
    and on (job, instance, scheduler) ({known})
  )
  or
  increase({counters}[{duration}])
"""


def overdue(jobs: str) -> str:
    """Return a query for jobs with a run that is later than its grace, also of a dead process."""
    return f'group {BY_JOB} (ALERTS{{alertname="APSchedulerMissedRun", {jobs}}})'


def runs_in_range(jobs: str) -> tuple[str, str]:
    """
    Return queries for the runs that succeeded in the time range, and for those that were due.

    Both are whole numbers, also where Prometheus extrapolates. Coalesced runs are not due. A run
    that is overdue is due in every time range until it starts, as no counter knows of it if its
    process is dead. Jobs of which no run was due are left out of the second one.
    """
    runs = f"apscheduler_job_runs_total{{{jobs}"
    successes = increase(f'{runs}, outcome="success"}}', "$__range")
    counted = increase(f'{runs}, outcome!="coalesced"}}', "$__range")
    return (
        f"(sum {BY_JOB} (round({successes})) or {overdue(jobs)} * 0)",
        f"(sum {BY_JOB} (round({counted}) or {overdue(jobs)}) > 0)",
    )


def successes_as_text(jobs: str, label: str) -> str:
    """Return a query that writes "N of M", successes and due runs, into a label."""
    successes, due = runs_in_range(jobs)
    return (
        "label_join(\n"
        f'  count_values {BY_JOB} ("succeeded",\n{successes}\n)\n'
        "  * on (job, scheduler, job_id) group_left (due)\n"
        f'  count_values {BY_JOB} ("due",\n{due}\n),\n'
        f'  "{label}", " of ", "succeeded", "due"\n)'
    )


def job_activity(jobs: str) -> str:
    """
    Return a query for what each job did around each time, as one of the codes above.

    If a process is not scraped, its jobs have no value, unless a run is overdue.
    """

    def counted(outcomes: str) -> str:
        runs = f'apscheduler_job_runs_total{{{jobs}, outcome=~"{outcomes}"}}'
        return f"(sum {BY_JOB} ({increase(runs, '$__rate_interval')}) > 0)"

    branches = (
        (OVERDUE, overdue(jobs)),
        (FAILED, counted("error|lost")),
        (DROPPED, counted("missed|skipped")),
        (SUCCEEDED, counted("success")),
        (IN_PROGRESS, f"(max {BY_JOB} (apscheduler_job_running{{{jobs}}}) > 0)"),
        (NOTHING, f'sum {BY_JOB} (apscheduler_job_runs_total{{{jobs}, outcome="success"}})'),
    )
    return "\nor\n".join(f"{query} * 0 + {code}" for code, query in branches)


def success_rate(jobs: str, by: str = BY_JOB) -> str:
    """Return a query for the share of due runs that succeeded, over the dashboard's time range."""
    runs = f"apscheduler_job_runs_total{{{jobs}"
    successes = increase(f'{runs}, outcome="success"}}', "$__range")
    due = increase(f'{runs}, outcome!="coalesced"}}', "$__range")
    return f"sum {by} ({successes})\n/ (sum {by} ({due}) > 0)"


def quantile(share: float, histogram: str, jobs: str, duration: str) -> str:
    """
    Return a query for a quantile of a histogram within a duration.

    The histogram is native, or else classic. `or` is outside of `histogram_quantile`, because a
    query cannot aggregate both kinds at once.
    """
    return (
        f"(\n  histogram_quantile({share}, sum (rate({histogram}{{{jobs}}}[{duration}])))\n"
        f"  or histogram_quantile({share},"
        f" sum by (le) (rate({histogram}_bucket{{{jobs}}}[{duration}])))\n)"
    )


def slow_runs(jobs: str, offset: str = "") -> str:
    """Return a query for the 95th percentile of the last durations that were scraped."""
    return (
        f"max {BY_JOB} (quantile_over_time(0.95,"
        f" apscheduler_job_last_run_duration_seconds{{{jobs}}}[$__range]{offset}))"
    )


def as_text(query: str, label: str, template: str, by: str = BY_JOB) -> str:
    """
    Return a query that writes its values, with their unit, into a label.

    A column of a table cannot have its own unit; see `parts.override`.
    """
    return (
        f'label_replace(\n  count_values {by} ("{label}",\n    {query}\n  ),\n'
        f'  "{label}", "{template}", "{label}", "(.*)"\n)'
    )


def scheduler_state(schedulers: str, jobs: str = "") -> str:
    """
    Return a query for the state of each scheduler: 3 gone, 2 dead, 1 paused, 0 up.

    A scheduler is gone if it is not scraped and one of `jobs`, by default of all, has a next run.
    """
    up = f"max {BY_SCHEDULER} (apscheduler_scheduler_up{{{schedulers}}})"
    paused = f'max {BY_SCHEDULER} (apscheduler_scheduler_state{{{schedulers}, state="paused"}})'
    next_runs = f"apscheduler_job:promised_run_timestamp_seconds{{{jobs or schedulers}}} > 0"
    return (
        f"({up} == 0) * 0 + 2\n"
        f"or ({paused} == 1) * 0 + 1\n"
        f"or {up} * 0\n"
        f"or count {BY_SCHEDULER} ({next_runs}) * 0 + 3"
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
