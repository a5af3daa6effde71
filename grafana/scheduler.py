"""The dashboard that answers: do the schedulers turn, and do they have what they need?"""

from __future__ import annotations

from typing import Any

from grafana_foundation_sdk.models import dashboard, units

import parts
import promql
from parts import BAD, GOOD, GREY, INFO, OTHER, SKY, WARNING, Query, table_query
from promql import BY_SCHEDULER, SCHEDULER

S = f"{{{SCHEDULER}}}"
WHO = "{{scheduler}} of {{job}}, {{instance}}"
BY_INSTANCE = "by (job, scheduler, instance)"
HERE = f"and on (job, instance) apscheduler_scheduler_info{S}"
"""What other metrics of the same processes are held against, such as process_*."""
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
        "Do the schedulers turn, and do they have what they need?",
        since="3h",
    )
    page.variables(job=False, several=True)
    page.annotations(SCHEDULER)
    page.link("Overview", "apscheduler-overview", "datasource", "application", "scheduler")
    page.row(
        4,
        (8, states()),
        (4, uptime()),
        (4, starts()),
        (4, logged_errors()),
        (4, telemetry_failures()),
    )
    page.row(6, (24, loops()))
    page.row(6, (24, about()))
    page.heading("Executors")
    page.row(8, (12, load()), (12, queue()))
    page.row(9, (12, busiest()), (12, delays()))
    page.heading("Loop, job stores and what APScheduler only logs")
    page.row(8, (8, passes()), (8, stores()), (8, errors()))
    page.heading("Process")
    page.row(8, (8, memory()), (8, processor()), (8, descriptors()))
    page.heading("What the telemetry costs, and how it fares")
    page.row(8, (8, scrape_time()), (8, series()), (8, telemetry_errors()))
    return page.build()


def states() -> Any:
    """Return a tile for each scheduler."""
    return parts.tiles(
        "Schedulers",
        "Up: the loop turns. Loop dead: the process answers, but no job will run until it is"
        " restarted. Gone: the process is no longer scraped, and has promised runs.",
        [Query(promql.scheduler_state(SCHEDULER), "{{scheduler}} of {{job}}", instant=True)],
        no_value="no scheduler",
        mappings=[parts.words(parts.SCHEDULER_STATES)],
        names=True,
        size=22,
    )


def uptime() -> Any:
    """Return since when the youngest scheduler runs."""
    return parts.tiles(
        "Shortest uptime",
        "Since the youngest of the selected schedulers was started.",
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
        "Starts of the selected schedulers in the time range, those of deploys and of replicas"
        " included. APSchedulerCrashLoop fires at three within a quarter of an hour.",
        [
            Query(
                f"sum(changes({started}[$__range]))\n"
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
        "Errors only logged",
        "What APScheduler itself only logs, in the time range; by kind below.",
        [Query(f"sum(increase(apscheduler_scheduler_errors_total{S}[$__range]))", instant=True)],
        no_value="not scraped",
        steps=((None, GOOD), (0.5, BAD)),
    )


def telemetry_failures() -> Any:
    """Return the number of our own failures."""
    return parts.tiles(
        "Telemetry failures",
        "Failures of the telemetry itself in the time range. No job is harmed by them, but numbers"
        " may be wrong.",
        [Query(f"sum(increase(apscheduler_telemetry_errors_total{S}[$__range]))", instant=True)],
        no_value="not scraped",
        steps=((None, GOOD), (0.5, WARNING)),
    )


def loops() -> Any:
    """Return how the loops of all instances fared."""
    return parts.history(
        "Loops",
        "Each scheduler in each process: up while its loop turns. A gap is time in which it was"
        " not scraped; gone, if it had promised runs.",
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
                WHO,
            )
        ],
        no_value="no scheduler was seen in the time range",
        mappings=[parts.words(parts.SCHEDULER_STATES)],
        points=parts.FEW,
    )


def about() -> Any:
    """Return what the schedulers are."""
    return parts.rows(
        "What they are",
        "Singleton: one live scheduler of that name is meant; otherwise each replica runs its own"
        " copies of the jobs. Last pass: since its loop last looked for due jobs; it sleeps until"
        " the next one.",
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
        "Workers that are busy",
        "Share of each executor's workers that are inside a callable; at 100 %, further runs wait."
        " An executor without a limit, as on an event loop, is not shown here.",
        [Query(f"{busy} / ({workers} < Inf)", "{{executor}}, " + WHO)],
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
        "Handed to an executor and not begun. APSchedulerExecutorSaturated fires when some have"
        " waited for five minutes while all workers were busy.",
        [Query(f"apscheduler_executor_queued{S}", "{{executor}}, " + WHO)],
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
        "Who uses the workers",
        "Workers that each job occupied on average over the time range, the ten busiest; 1 is one"
        " worker all the time. Click a bar to see the job.",
        [
            Query(
                "topk(10, sum by (job, scheduler, job_id) (\n"
                f"  rate(apscheduler_job_run_duration_seconds_sum{S}[$__range])\n) > 0.0005)",
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
        "Start delay, on average",
        "Actual start minus scheduled time, of all runs. It grows when the loop is held up, or when"
        " all workers are busy.",
        [
            Query(
                f"sum {BY_SCHEDULER} (rate({delay}_sum{S}[$__rate_interval]))\n"
                f"/ (sum {BY_SCHEDULER} (rate({delay}_count{S}[$__rate_interval])) > 0)",
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
    """Return how long ago the loop looked for due jobs."""
    return parts.lines(
        "Since the last pass over due jobs",
        "The loop sleeps until the next job is due, so this may grow to that job's interval; it"
        " must never exceed it.",
        [Query(f"time() - apscheduler_scheduler_last_wakeup_timestamp_seconds{S}", WHO)],
        unit=units.Seconds,
        no_value="no pass so far",
        area=True,
        calcs=("lastNotNull", "max"),
    )


def stores() -> Any:
    """Return the number of jobs in each job store."""
    return parts.lines(
        "Jobs",
        "Known jobs by job store. A number that falls without a deploy has a reason.",
        [Query(f"apscheduler_scheduler_jobs{S}", "{{jobstore}}, " + WHO)],
        unit=units.Short,
        no_value="no job store",
        calcs=("lastNotNull", "min", "max"),
    )


def errors() -> Any:
    """Return the errors that APScheduler only logs, by kind."""
    panel = parts.lines(
        "Errors only logged, by kind",
        "For each bar. jobstore: a store failed inside the loop. restore: a stored job could not be"
        " read, and was deleted. executor_lookup: a job's executor does not exist; it was deleted."
        " submit: an executor refused a run. loop: the loop died. listener: a listener raised.",
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
        ("jobstore", "restore", "executor_lookup", "submit", "loop", "listener"),
        (WARNING, OTHER, INFO, SKY, BAD, GREY),
        strict=True,
    ):
        parts.color_of(panel, kind, color)
    return panel


def _process(title: str, description: str, expr: str, unit: str, **options: Any) -> Any:
    return parts.lines(
        title,
        description + " Of the processes that expose process_* metrics, as prometheus_client's"
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
    """Return the processor time of the processes."""
    return _process(
        "Processor",
        "Cores in use; a process of Python that is at one core has none left for its loop.",
        f"rate(process_cpu_seconds_total{{{promql.APPLICATION}}}[$__rate_interval]) {HERE}",
        units.Short,
        steps=((None, "transparent"), (1, WARNING)),
    )


def descriptors() -> Any:
    """Return the share of file descriptors that is in use."""
    return _process(
        "File descriptors",
        "Share of those that the process may have open.",
        f"process_open_fds{{{promql.APPLICATION}}}\n"
        f"/ process_max_fds{{{promql.APPLICATION}}} {HERE}",
        units.PercentUnit,
        steps=((None, "transparent"), (0.8, WARNING)),
    )


def scrape_time() -> Any:
    """Return how long a scrape takes."""
    return parts.lines(
        "Time for a scrape",
        "What rendering and sending the metrics takes, other metrics of the process included.",
        [Query(f"scrape_duration_seconds{{{promql.APPLICATION}}} {HERE}", "{{job}}, {{instance}}")],
        unit=units.Seconds,
        no_value="not scraped",
        steps=((None, "transparent"), (1, WARNING)),
    )


def series() -> Any:
    """Return how many series there are."""
    return parts.lines(
        "Series",
        "Samples of a scrape, other metrics of the process included: about 60 for each job, and"
        " never more than 1,000 jobs have series of their own.",
        [Query(f"scrape_samples_scraped{{{promql.APPLICATION}}} {HERE}", "{{job}}, {{instance}}")],
        unit=units.Short,
        no_value="not scraped",
        steps=((None, "transparent"), (60000, WARNING)),
    )


def telemetry_errors() -> Any:
    """Return our own failures, by component."""
    return parts.lines(
        "Telemetry failures, by component",
        "For each bar. No job is harmed, but numbers may be wrong; the application's log says more,"
        " under apscheduler_telemetry.",
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
