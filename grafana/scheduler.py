"""The dashboard that answers: are the scheduler loops alive, and do they have enough workers?"""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models import dashboard, units

import parts
import promql
from parts import BAD, GOOD, GREY, INFO, OTHER, SKY, WARNING, Query, table_query
from promql import BY_SCHEDULER, SCHEDULER

S = f"{{{SCHEDULER}}}"
INSTANCE = "{{scheduler}} of {{job}}, {{instance}}"
BY_INSTANCE = "by (job, scheduler, instance)"
HERE = f"and on (job, instance) apscheduler_scheduler_info{S}"
"""Limits other metrics, such as process_*, to the processes of the selected schedulers."""
SERIES_TO_JOB = parts.to_job(
    "${__field.labels.job:percentencode}",
    "${__field.labels.scheduler:percentencode}",
    "${__field.labels.job_id:percentencode}",
)


def build() -> dashboard.Dashboard:
    """Return the dashboard."""
    page = parts.Page(
        "apscheduler-scheduler",
        "APScheduler / Scheduler",
        "Are the scheduler loops alive, and do they have enough workers?",
        since="3h",
    )
    page.variables(job=False, several=True)
    page.annotations(SCHEDULER)
    for title in ("Overview", "Runs"):
        page.link(title, f"apscheduler-{title.lower()}", "datasource", "application", "scheduler")
    page.row(
        4,
        (8, states()),
        (4, uptime()),
        (4, starts()),
        (4, logged_errors()),
        (4, all_telemetry_errors()),
    )
    page.row(6, (24, loops()))
    page.row(6, (24, about()))
    page.heading("Executors")
    page.row(8, (12, load()), (12, queue()))
    page.row(9, (12, busiest()), (12, delays()))
    page.heading("Loop, job stores and APScheduler errors")
    page.row(8, (8, passes()), (8, stores()), (8, errors()))
    page.heading("Process")
    page.row(8, (8, memory()), (8, processor()), (8, descriptors()))
    page.heading("Cost and errors of the telemetry")
    page.row(8, (8, scrape_time()), (8, series()), (8, telemetry_errors()))
    return page.build()


def states() -> Any:
    """Return a tile for each scheduler."""
    return parts.tiles(
        "Schedulers",
        parts.SCHEDULER_STATES_EXPLAINED,
        [Query(promql.scheduler_state(SCHEDULER), "{{scheduler}} of {{job}}", instant=True)],
        no_value="no scheduler",
        mappings=[parts.words(parts.SCHEDULER_STATES)],
        names=True,
        size=22,
    )


def uptime() -> Any:
    """Return the uptime of the scheduler that was started last."""
    return parts.tiles(
        "Shortest uptime",
        "Time since the latest start of one of the selected schedulers.",
        [Query(f"min(time() - apscheduler_scheduler_start_timestamp_seconds{S})", instant=True)],
        unit=units.Seconds,
        no_value="not scraped",
        steps=((None, WARNING), (300, "text")),
        plain=True,
    )


def starts() -> Any:
    """Return the number of starts."""
    started = f"apscheduler_scheduler_start_timestamp_seconds{S}"
    return parts.tiles(
        "Starts",
        "Starts of the selected schedulers in the time range, including deploys and replicas."
        " APSchedulerCrashLoop fires at 3 restarts within 15 minutes.",
        [
            Query(
                # Not changes(), which counts the first sample, too, in VictoriaMetrics.
                f"sum(resets((-{started})[$__range:1m]))\n"
                f"+ sum(min_over_time({started}[$__range]) > bool time() - $__range_s)",
                instant=True,
            )
        ],
        no_value="not scraped",
        steps=((None, "text"), (1, WARNING)),
        plain=True,
    )


def logged_errors() -> Any:
    """Return the number of errors that APScheduler only logs."""
    return parts.tiles(
        "APScheduler errors",
        "Errors in the time range, other than exceptions that jobs raise. A panel below shows them"
        " by kind.",
        [Query(f"sum(increase(apscheduler_scheduler_errors_total{S}[$__range]))", instant=True)],
        no_value="not scraped",
        steps=((None, GOOD), (0.5, BAD)),
    )


def all_telemetry_errors() -> Any:
    """Return the number of errors of the telemetry itself."""
    return parts.tiles(
        "Telemetry errors",
        "Errors of the telemetry itself in the time range. Jobs are not affected, but metrics may"
        " be wrong.",
        [Query(f"sum(increase(apscheduler_telemetry_errors_total{S}[$__range]))", instant=True)],
        no_value="not scraped",
        steps=((None, GOOD), (0.5, WARNING)),
    )


def loops() -> Any:
    """Return the states of the loops of all instances over time."""
    return parts.history(
        "Scheduler loops",
        "The state of each scheduler in each process. It has a gap while Prometheus does not scrape"
        " the process. Gone: no process of this scheduler is scraped, and its jobs have next runs.",
        [
            Query(
                f"(max {BY_INSTANCE} (apscheduler_scheduler_up{S}) == 0) * 0 + 2\n"
                f"or (max {BY_INSTANCE} (apscheduler_scheduler_state"
                f'{{{SCHEDULER}, state="paused"}}) == 1) * 0 + 1\n'
                f"or max {BY_INSTANCE} (apscheduler_scheduler_up{S}) * 0\n"
                "or label_replace(\n"
                f"  count {BY_SCHEDULER} (apscheduler_job:promised_run_timestamp_seconds{S} > 0)\n"
                f"  unless on (job, scheduler) apscheduler_scheduler_up{S},\n"
                '  "instance", "no process", "", ""\n) * 0 + 3',
                INSTANCE,
            )
        ],
        no_value="no scheduler in the time range",
        mappings=[parts.words(parts.SCHEDULER_STATES)],
        points=parts.FEW,
    )


def about() -> Any:
    """Return the descriptions of the schedulers."""
    return parts.rows(
        "Description of the schedulers",
        "Singleton: true if only one scheduler of this name should be alive; false if each replica"
        " runs its own copies of the jobs. Last pass: time since the loop last looked for due jobs;"
        " it sleeps until the next job is due.",
        [
            table_query(
                "label_replace(\n  label_join(\n"
                "    max by (job, scheduler, instance, type, version, hostname, pid, timezone,"
                f" singleton) (\n      apscheduler_scheduler_info{S}\n    ),\n"
                '    "process", ":", "hostname", "pid"\n  ),\n'
                '  "type", "$1", "type", "(.+)Scheduler"\n)'
            ),
            table_query(
                f"time() - max {BY_INSTANCE}"
                f" (apscheduler_scheduler_last_wakeup_timestamp_seconds{S})"
            ),
            table_query(
                f"time() - max {BY_INSTANCE} (apscheduler_scheduler_start_timestamp_seconds{S})"
            ),
        ],
        columns={
            "scheduler": "Scheduler",
            "job": "Application",
            "instance": "Instance",
            "type": "Type",
            "version": "APScheduler",
            "process": "Host:process",
            "timezone": "Time zone",
            "singleton": "Singleton",
            "Value #B": "Last pass, ago",
            "Value #C": "Up for",
        },
        no_value="none",
        wrapped=["Type", "Instance", "Host:process"],
        sort="Scheduler",
        descending=False,
    )


def load() -> Any:
    """Return how many workers are busy."""
    busy = f"apscheduler_executor_running{S}"
    workers = f"apscheduler_executor_workers{S}"
    return parts.lines(
        "Busy workers",
        "Share of each executor's workers that are running a job. At 100 %, further runs wait. An"
        " executor without a limit, as on an event loop, is not shown.",
        [Query(f"{busy} / ({workers} < Inf)", "{{executor}}, " + INSTANCE)],
        unit=units.PercentUnit,
        no_value="no executor with a limit",
        steps=((None, "transparent"), (1, BAD)),
        area=True,
        calcs=("lastNotNull", "mean", "max"),
    )


def queue() -> Any:
    """Return how many runs wait for a worker."""
    return parts.lines(
        "Runs that wait for a worker",
        "Runs that were submitted to an executor and have not started."
        " APSchedulerExecutorSaturated fires if runs wait and all workers are busy for 5 minutes.",
        [Query(f"apscheduler_executor_queued{S}", "{{executor}}, " + INSTANCE)],
        unit=units.Short,
        no_value="no executor",
        steps=((None, "transparent"), (1, WARNING)),
        area=True,
        ceiling=2,
        calcs=("lastNotNull", "mean", "max"),
    )


def busiest() -> Any:
    """Return the jobs that use most of the workers."""
    return parts.bars(
        "Jobs that use the most workers",
        "The ten jobs that occupied the most workers, as an average over the time range. 1 means"
        " one worker all the time. Click a bar to see the job.",
        [
            Query(
                "topk(10, sum by (job, scheduler, job_id) (\n"
                f"  rate(apscheduler_job_run_duration_seconds_sum{S}[$__range])\n"
                f"  or rate(apscheduler_job:run_duration_seconds_sum{S}[$__range])\n) > 0.0005)",
                "{{job_id}}, {{scheduler}} of {{job}}",
                instant=True,
            )
        ],
        unit=units.Short,
        no_value="no job has run in the time range",
        steps=((None, INFO),),
        links=[("Job ${__field.labels.job_id}", SERIES_TO_JOB)],
    )


def delays() -> Any:
    """Return how late runs start."""
    delay = "apscheduler_job_start_delay_seconds"
    return parts.lines(
        "Average start delay",
        "Actual start minus scheduled time, of all runs. It grows if the scheduler loop is slow, or"
        " if all workers are busy.",
        [
            Query(
                f"sum {BY_SCHEDULER} (rate({delay}_sum{S}[$__rate_interval]))\n"
                f"/ (sum {BY_SCHEDULER} (rate({delay}_count{S}[$__rate_interval])) > 0)\n"
                f"or apscheduler_scheduler:mean_start_delay_seconds{S}",
                "{{scheduler}} of {{job}}",
            )
        ],
        unit=units.Seconds,
        no_value="no runs in the time range",
        steps=((None, "transparent"), (10, WARNING)),
        area=True,
        points=parts.FEW,
        calcs=("lastNotNull", "mean", "max"),
    )


def passes() -> Any:
    """Return the time since the loop last looked for due jobs."""
    return parts.lines(
        "Time since the last pass over due jobs",
        "The loop sleeps until the next job is due, so the value may grow until then. If it grows"
        " further, the loop is late.",
        [Query(f"time() - apscheduler_scheduler_last_wakeup_timestamp_seconds{S}", INSTANCE)],
        unit=units.Seconds,
        no_value="no pass so far",
        area=True,
        calcs=("lastNotNull", "max"),
    )


def stores() -> Any:
    """Return the number of jobs in each job store."""
    return parts.lines(
        "Jobs",
        "Known jobs by job store. If the number falls without a deploy, jobs may have been lost.",
        [Query(f"apscheduler_scheduler_jobs{S}", "{{jobstore}}, " + INSTANCE)],
        unit=units.Short,
        no_value="no job store",
        calcs=("lastNotNull", "min", "max"),
    )


def errors() -> Any:
    """Return the errors that APScheduler only logs, by kind."""
    panel = parts.lines(
        "APScheduler errors by kind",
        "Errors other than exceptions that jobs raise, for each bar. jobstore: a job store failed"
        " in the scheduler loop. restore: APScheduler deleted a stored job that it could not"
        " unpickle. executor_lookup: APScheduler deleted a job because its executor does not exist."
        " submit: an executor rejected a run. loop: an exception ended a pass over due jobs."
        " listener: a listener raised an exception. not_awaited: a job only returned a coroutine or"
        " a generator, and its code did not run.",
        [
            Query(
                "sum by (kind) (\n"
                f"  increase(apscheduler_scheduler_errors_total{S}[$__rate_interval])\n)",
                "{{kind}}",
            )
        ],
        unit=units.Short,
        no_value="no scheduler",
        bars=True,
        ceiling=1,
        inline=True,
        calcs=("max",),
        interval="1m",
    )
    for kind, color in zip(
        ("jobstore", "restore", "executor_lookup", "submit", "loop", "listener", "not_awaited"),
        (WARNING, OTHER, INFO, SKY, BAD, GREY, GOOD),
        strict=True,
    ):
        parts.color_of(panel, kind, color)
    return panel


def _process(title: str, description: str, expr: str, unit: str, **options: Any) -> Any:
    return parts.lines(
        title,
        description + " Shown for processes that expose process_* metrics, as prometheus_client's"
        " default registry does on Linux.",
        [Query(expr, "{{job}}, {{instance}}")],
        unit=unit,
        no_value="no process_* metrics are exposed",
        **options,
    )


def memory() -> Any:
    """Return the memory of the processes."""
    return _process(
        "Memory",
        "Resident memory.",
        f"process_resident_memory_bytes{{{promql.APPLICATION}}} {HERE}",
        units.BytesIEC,
    )


def processor() -> Any:
    """Return the CPU time of the processes."""
    return _process(
        "CPU",
        "CPU cores in use. A Python process that uses one whole core has no time left for its"
        " scheduler loop.",
        f"rate(process_cpu_seconds_total{{{promql.APPLICATION}}}[$__rate_interval]) {HERE}",
        units.Short,
        steps=((None, "transparent"), (1, WARNING)),
    )


def descriptors() -> Any:
    """Return the share of file descriptors that is in use."""
    return _process(
        "File descriptors",
        "Open file descriptors, as a share of the limit of the process.",
        f"process_open_fds{{{promql.APPLICATION}}}\n"
        f"/ process_max_fds{{{promql.APPLICATION}}} {HERE}",
        units.PercentUnit,
        steps=((None, "transparent"), (0.8, WARNING)),
    )


def scrape_time() -> Any:
    """Return how long a scrape takes."""
    return parts.lines(
        "Scrape duration",
        "Time to render and send all metrics of the process, including those of other libraries.",
        [Query(f"scrape_duration_seconds{{{promql.APPLICATION}}} {HERE}", "{{job}}, {{instance}}")],
        unit=units.Seconds,
        no_value="not scraped",
        steps=((None, "transparent"), (1, WARNING)),
    )


def series() -> Any:
    """Return how many series there are."""
    return parts.lines(
        "Series",
        "Samples of a scrape, including other metrics of the process. Each job has about 52; at"
        " most 1,000 jobs have their own series, unless max_labels is higher.",
        [Query(f"scrape_samples_scraped{{{promql.APPLICATION}}} {HERE}", "{{job}}, {{instance}}")],
        unit=units.Short,
        no_value="not scraped",
        steps=((None, "transparent"), (60000, WARNING)),
    )


def telemetry_errors() -> Any:
    """Return the errors of the telemetry itself, by component."""
    return parts.lines(
        "Telemetry errors by component",
        "Errors of the telemetry itself, for each bar. Jobs are not affected, but metrics may be"
        " wrong. The application's log has details, from the logger apscheduler_telemetry.",
        [
            Query(
                "sum by (component) (\n"
                f"  increase(apscheduler_telemetry_errors_total{S}[$__rate_interval])\n)",
                "{{component}}",
            )
        ],
        unit=units.Short,
        no_value="none",
        bars=True,
        ceiling=1,
        shades=WARNING,
        inline=True,
        calcs=("max",),
        interval="1m",
    )
