"""
A data set in which every number is known: three hours of two applications.

Both applications have the same schedulers, jobs and instances, and different numbers, so that a
query that mixes them up is noticed. The results of the recording rules are part of the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

NOW = 1_700_000_000
"""When the dashboards are looked at."""
SCRAPE = 60
LENGTH = 3 * 3600
RANGE = 3600
"""Seconds that the dashboards show."""

Number = Callable[[float], "float | None"]
"""The value of a series so many seconds before (below zero) or at NOW; None where it is absent."""


def _always(value: float) -> Number:
    return lambda _: value


def _ago(seconds: float) -> Number:
    return _always(NOW - seconds)


def _per_minute(count: float) -> Number:
    return lambda at: count * (at + LENGTH) / 60


def _lines() -> Iterator[tuple[str, dict[str, str], Number]]:
    for job, times in (("shop", 1), ("bank", 7)):
        yield from _application(job, times)
    yield "ALERTS", {"alertname": "APSchedulerWatchdog", "alertstate": "firing"}, _always(1)
    yield "ALERTS_FOR_STATE", {"alertname": "APSchedulerWatchdog"}, _ago(9999)


def _application(job: str, times: int) -> Iterator[tuple[str, dict[str, str], Number]]:
    for instance in ("one:1", "two:1"):
        process = {"job": job, "instance": instance}
        first = instance == "one:1"
        yield from _process(process, times)
        main = {**process, "scheduler": "main"}
        yield from _scheduler(main, times, first=first)
        yield from _report({**main, "job_id": "report"}, times, first=first)
    # Another process of the same application, without any scheduler.
    yield from _process({"job": job, "instance": "web:1"}, times)
    yield from _recorded(job, times)
    yield from _others(job)
    yield from _alerts(job, times)


def _process(process: dict[str, str], times: int) -> Iterator[tuple[str, dict[str, str], Number]]:
    yield "scrape_duration_seconds", process, _always(0.25 * times)
    yield "scrape_samples_scraped", process, _always(300 * times)
    yield "process_resident_memory_bytes", process, _always(1e6 * times)
    yield "process_cpu_seconds_total", process, _per_minute(6 * times)
    yield "process_open_fds", process, _always(20 * times)
    yield "process_max_fds", process, _always(200)


def _scheduler(
    main: dict[str, str], times: int, *, first: bool
) -> Iterator[tuple[str, dict[str, str], Number]]:
    yield "apscheduler_scheduler_up", main, _always(1)
    for state in ("running", "paused", "stopped"):
        labels = {**main, "state": state}
        yield "apscheduler_scheduler_state", labels, _always(float(state == "running"))
    info = {"type": "BackgroundScheduler", "version": "3.11", "hostname": "host", "pid": "42"}
    more = {"timezone": "UTC", "singleton": "false"}
    yield "apscheduler_scheduler_info", {**main, **info, **more}, _always(1)
    # The first one was started again 20 minutes ago, the second one long ago.
    started = (lambda at: NOW - (1200 if at >= -1200 else 9000)) if first else _ago(20000)
    yield "apscheduler_scheduler_start_timestamp_seconds", main, started
    wakeup = 5 * times if first else 9 * times
    yield "apscheduler_scheduler_last_wakeup_timestamp_seconds", main, _ago(wakeup)
    yield "apscheduler_scheduler_jobs", {**main, "jobstore": "default"}, _always(3 * times)
    for kind, count in (("jobstore", 2), ("loop", 0)):
        labels = {**main, "kind": kind}
        yield "apscheduler_scheduler_errors_total", labels, _per_minute(count * times)
    for component, count in (("spans", 3), ("http", 0)):
        labels = {**main, "component": component}
        yield "apscheduler_telemetry_errors_total", labels, _per_minute(count * times)
    for executor, workers in (("default", 10.0), ("loop", float("inf"))):
        labels = {**main, "executor": executor}
        yield "apscheduler_executor_workers", labels, _always(workers)
        yield "apscheduler_executor_running", labels, _always(4.0 if times == 1 else 5.0)
        yield "apscheduler_executor_queued", labels, _always(2 * times)


def _report(
    report: dict[str, str], times: int, *, first: bool
) -> Iterator[tuple[str, dict[str, str], Number]]:
    # Of five runs a minute, the first instance has four and the second one has one.
    runs = (
        {"success": 3, "error": 1, "coalesced": 5, "lost": 0, "missed": 0, "skipped": 0}
        if first
        else {"success": 1, "error": 0, "coalesced": 0, "lost": 0, "missed": 0, "skipped": 0}
    )
    for outcome, count in runs.items():
        labels = {**report, "outcome": outcome}
        # The bank fails as often as it succeeds.
        per_minute = count * times if outcome != "error" or times == 1 else 4 * count * times
        yield "apscheduler_job_runs_total", labels, _per_minute(per_minute)
    if first:
        labels = {**report, "exception": "ValueError"}
        yield "apscheduler_job_exceptions_total", labels, _per_minute(times)
        labels = {**report, "exception": "KeyError"}
        yield "apscheduler_job_exceptions_total", labels, _always(0)
    # Half of the runs take up to 1 s, half of them up to 5 s; those of the bank all up to 0.5 s.
    histogram = "apscheduler_job_run_duration_seconds"
    for le, count in zip(("0.5", "1.0", "5.0", "+Inf"), (0, 1, 2, 2), strict=True):
        per_minute = count if times == 1 else 2
        yield f"{histogram}_bucket", {**report, "le": le}, _per_minute(per_minute)
    yield f"{histogram}_sum", report, _per_minute(15 * times)
    yield f"{histogram}_count", report, _per_minute(2)
    histogram = "apscheduler_job_start_delay_seconds"
    for le, count in zip(("0.1", "1.0", "+Inf"), (1, 2, 2), strict=True):
        per_minute = count if times == 1 else 2
        yield f"{histogram}_bucket", {**report, "le": le}, _per_minute(per_minute)
    yield f"{histogram}_sum", report, _per_minute(3 * times)
    yield f"{histogram}_count", report, _per_minute(2)
    for name, one, two in (
        ("next_run", -40 * times, -100 * times),
        ("last_run", 20 * times, 80 * times),
        ("last_success", 30 * times, 90 * times),
        ("last_failure", 150 * times, 110 * times),
        ("withdrawn_run", 700 * times, 500 * times),
    ):
        yield f"apscheduler_job_{name}_timestamp_seconds", report, _ago(one if first else two)
    since = NOW - 50 * times if first else 0
    yield "apscheduler_job_running_since_timestamp_seconds", report, _always(since)
    yield "apscheduler_job_running", report, _always(float(first) * times)
    yield "apscheduler_job_consecutive_failures", report, _always(0 if first else 2 * times)
    yield "apscheduler_job_max_duration_seconds", report, _always(600 * times)
    yield "apscheduler_job_grace_seconds", report, _always(60 * times)
    yield "apscheduler_job_shortest_interval_seconds", report, _always(20 * times)
    yield "apscheduler_job_longest_interval_seconds", report, _always(30 * times)
    # Until an hour ago 4 s; then 1 s for most of the hour, 2 s at its end, and 3 s at last.
    yield "apscheduler_job_last_run_duration_seconds", report, _durations(times, first=first)
    info = {"name": "Report", "func": "jobs:report", "trigger": "interval", "executor": "default"}
    more = {"jobstore": "default", "persistent": "false"}
    yield "apscheduler_job_info", {**report, **info, **more}, _always(1)


def _durations(times: int, *, first: bool) -> Number:
    def seconds(at: float) -> float:
        if not first:
            return times
        steps = ((-RANGE, 4), (-1200, 1), (-2 * SCRAPE, 2))
        return times * next((value for end, value in steps if at <= end), 3)

    return seconds


def _recorded(job: str, times: int) -> Iterator[tuple[str, dict[str, str], Number]]:
    """Yield the results of recording rules for a live job, and for one whose process is dead."""
    report = {"job": job, "scheduler": "main", "job_id": "report"}
    archive = {"job": job, "scheduler": "night", "job_id": "archive"}
    for labels, next_run, due, settled, unsettled, success in (
        # Recorded just before the last scrape, so the values of the process itself are newer.
        (report, -45, 80, 20, None, 33),
        (archive, 400, 400, 4000, 400, 5000),
    ):
        for name, ago in (
            ("promised_run", next_run),
            ("due_run", due),
            ("settled_run", settled),
            ("last_success", success),
        ):
            yield f"apscheduler_job:{name}_timestamp_seconds", labels, _ago(ago * times)
        oldest = _always(0) if unsettled is None else _ago(unsettled * times)
        yield "apscheduler_job:oldest_unsettled_run_timestamp_seconds", labels, oldest
        in_progress = _ago(5000 * times)
        yield "apscheduler_job:last_in_progress_timestamp_seconds", labels, in_progress
        yield "apscheduler_job:grace_seconds", labels, _always(60 * times)
    # Only where there is no classic histogram do dashboards read these.
    scheduler = {"job": job, "scheduler": "main"}
    yield "apscheduler_scheduler:mean_start_delay_seconds", scheduler, _always(99)
    for instance in ("one:1", "two:1"):
        labels = {**report, "instance": instance}
        yield "apscheduler_job:run_duration_seconds_sum", labels, _per_minute(999)
    failed = {**report, "outcome": "error"}
    yield "apscheduler_job:failed_runs:increase10m", failed, _always(10 * times)
    skipped = {**report, "outcome": "skipped"}
    yield "apscheduler_job:omitted_runs:increase10m", skipped, _always(20 * times)


def _others(job: str) -> Iterator[tuple[str, dict[str, str], Number]]:
    """Yield jobs and schedulers of which only the state matters."""
    one = {"job": job, "instance": "one:1"}
    yield "apscheduler_scheduler_up", {**one, "scheduler": "dead"}, _always(0)
    yield "apscheduler_scheduler_up", {**one, "scheduler": "resting"}, _always(1)
    for scheduler in ("dead", "resting"):
        state = {**one, "scheduler": scheduler, "state": "paused"}
        yield "apscheduler_scheduler_state", state, _always(float(scheduler == "resting"))
    for scheduler, job_id, due in (
        ("main", "stuck", 40),
        ("main", "hangs", 40),
        ("main", "skips", 40),
        ("main", "loses", 40),
        ("main", "misses", 40),
        ("main", "late", -300),
        ("main", "behind", -30),
        ("main", "waits", 40),
        ("main", "runs", 40),
        ("main", "idle", None),
        ("resting", "naps", -300),
    ):
        labels = {**one, "scheduler": scheduler, "job_id": job_id}
        next_run = 0 if due is None else NOW + due
        yield "apscheduler_job_next_run_timestamp_seconds", labels, _always(next_run)
        yield "apscheduler_job_grace_seconds", labels, _always(60)
        yield "apscheduler_job_consecutive_failures", labels, _always(0)
        running = job_id in {"stuck", "hangs", "runs"}
        yield "apscheduler_job_running", labels, _always(float(running))
        since = NOW - 700 if running else 0
        yield "apscheduler_job_running_since_timestamp_seconds", labels, _always(since)
        # The alert on the one that hangs has no limit that the dashboard could know of.
        if job_id != "hangs":
            limit = {"stuck": 600}.get(job_id, 900)
            yield "apscheduler_job_max_duration_seconds", labels, _always(limit)
        for outcome in ("success", "lost", "missed", "skipped", "coalesced"):
            bad = {"loses": "lost", "misses": "missed", "skips": "skipped"}.get(job_id)
            runs = _per_minute(float(outcome == bad))
            yield "apscheduler_job_runs_total", {**labels, "outcome": outcome}, runs
    # A job whose process was alive until ten minutes ago.
    archive = {**one, "scheduler": "night", "job_id": "archive"}
    info = {"name": "Archive", "func": "jobs:archive", "trigger": "cron", "executor": "default"}
    more = {"jobstore": "default", "persistent": "true"}
    until: Number = lambda at: 1 if at < -600 else None  # noqa: E731
    yield "apscheduler_job_info", {**archive, **info, **more}, until
    for name, ago in (("last_run", 4000), ("last_failure", 4100), ("withdrawn_run", 4200)):
        metric = f"apscheduler_job_{name}_timestamp_seconds"
        yield metric, archive, lambda at, ago=ago: NOW - ago if at < -600 else None  # type: ignore[misc]
    yield "apscheduler_job_grace_seconds", archive, lambda at: 60 if at < -600 else None
    longest: Number = lambda at: 86400 if at < -600 else None  # noqa: E731
    yield "apscheduler_job_longest_interval_seconds", archive, longest
    # A next run of a scheduler whose loop is dead.
    down = {"job": job, "scheduler": "dead", "job_id": "down"}
    yield "apscheduler_job:promised_run_timestamp_seconds", down, _ago(-40)


def _alerts(job: str, times: int) -> Iterator[tuple[str, dict[str, str], Number]]:
    main = {"job": job, "scheduler": "main"}
    night = {"job": job, "scheduler": "night"}
    for name, labels, severity, state in (
        ("MissedRun", {**night, "job_id": "archive"}, "critical", "firing"),
        ("SchedulerDown", night, "critical", "firing"),
        ("JobStuck", {**main, "job_id": "stuck"}, "critical", "pending"),
        ("JobStuck", {**main, "job_id": "hangs"}, "critical", "firing"),
        ("RunsSkipped", {**main, "job_id": "skips", "owner": "ann"}, "warning", "firing"),
        ("RunsLost", {**main, "job_id": "loses"}, "critical", "firing"),
        ("RunsMissed", {**main, "job_id": "misses"}, "warning", "firing"),
        ("MissedRun", {**main, "job_id": "late"}, "critical", "pending"),
    ):
        alert = {"alertname": f"APScheduler{name}", "severity": severity, **labels}
        yield "ALERTS", {**alert, "alertstate": state}, _always(1)
        yield "ALERTS_FOR_STATE", alert, _ago(330 * times)


USUAL: dict[str, float] = {
    "apscheduler_job_consecutive_failures": 0,
    "apscheduler_job_grace_seconds": 60,
    "apscheduler_job_running": 0,
    "apscheduler_job_running_since_timestamp_seconds": 0,
    "apscheduler_job_runs_total": 0,
}
"""Metrics, and the value for which they may have no series, except of successes."""


def openmetrics(*, usual: bool = True) -> Iterator[str]:
    """
    Yield the data in the format of `promtool tsdb create-blocks-from openmetrics`.

    Args:
        usual: with usual values, as by OTLP; `/metrics` may leave them out.
    """
    for name, labels, number in sorted(_lines(), key=lambda line: line[0]):
        series = ",".join(f'{key}="{value}"' for key, value in labels.items())
        for at in range(-LENGTH, 1, SCRAPE):
            value = number(at)
            if value is None:
                continue
            if usual or labels.get("outcome") == "success" or USUAL.get(name) != value:
                text = "+Inf" if value == float("inf") else f"{value:.17g}"
                yield f"{name}{{{series}}} {text} {NOW + at}\n"
    yield "# EOF\n"


def _both(value: float, *labels: str) -> dict[str, float]:
    """Return an answer that is the same for both processes."""
    return {
        " ".join((*labels[:1], instance, *labels[1:])): value for instance in ("one:1", "two:1")
    }


_REPORT = "report main"
_SCHEDULERS: dict[str, float] = {"main": 0, "resting": 1, "dead": 2, "night": 3}
_STATES = {
    "stuck main": 8,
    "hangs main": 8,
    "archive night": 7,
    "late main": 7,
    "down dead": 6,
    "report main": 5,
    "skips main": 4,
    "loses main": 4,
    "misses main": 4,
    "runs main": 3,
    "naps resting": 2,
    "waits main": 1,
    "behind main": 1,
    "idle main": 0,
}
_DUE: dict[str, float] = {
    job: {"late main": -300, "behind main": -30, "naps resting": -300, "archive night": -400}.get(
        job, 40
    )
    for job in _STATES
    if job != "idle main"
}

# Four of five due runs of the one job succeeded; overdue runs are due, and coalesced ones are not.
_DAY: list[dict[str, float]] = [
    {
        "300 report 240 of 300 main 240": 1,
        **{f"60 {job} 0 of 60 main 0": 1 for job in ("loses", "misses", "skips")},
        "1 late 0 of 1 main 0": 1,
        "1 archive 0 of 1 night 0": 1,
    },
    {
        _REPORT: 60,
        **{f"{job} main": 60 for job in ("loses", "misses", "skips")},
        "late main": 1,
        "archive night": 1,
    },
]

ANSWERS: dict[str, dict[str, list[dict[str, float]]]] = {
    "overview": {
        "Jobs in trouble": [{"": 9}],
        "Alerts firing": [{"": 6}],
        "Schedulers": [_SCHEDULERS],
        # Of 8 in 10 of the one job, and none of the others.
        "Runs that succeeded": [{"": 4 / 8}],
        "Running now": [{"": 4}],
        "Jobs, those in trouble first": [
            {job: float(state + 10**12) for job, state in _STATES.items()},
            {_REPORT: 30, "archive night": 5000},
            _DUE,
            {
                "report main 80 %": 1,
                **{f"{job} main 0 %": 1 for job in ("loses", "misses", "skips")},
            },
            {_REPORT: 2},
            {"0.5 × report main": 1},
            {_REPORT: 3},
        ],
        "Timeline of all jobs": [
            {
                "archive night": 5,
                "late main": 5,
                "report main": 4,
                "loses main": 4,
                "misses main": 3,
                "skips main": 3,
                **{f"{job} main": 1 for job in ("stuck", "hangs", "runs")},
                **{f"{job} main": 0 for job in ("waits", "behind", "idle")},
                "naps resting": 0,
            }
        ],
        "Runs of today": _DAY,
        "Runs of yesterday": _DAY,
        "Firing alerts": [
            {
                "MissedRun archive night ✖ critical": 330,
                "JobStuck hangs main ✖ critical": 330,
                "SchedulerDown night ✖ critical": 330,
                "RunsSkipped skips ann main ▲ warning": 330,
                "RunsLost loses main ✖ critical": 330,
                "RunsMissed misses main ▲ warning": 330,
            }
        ],
        "Runs without success, last 10 minutes": [{"error": 10, "skipped": 20}],
    },
    "job": {
        "State": [{_REPORT: 5}],
        "Failures in a row": [{_REPORT: 2}],
        "Last success, ago": [{_REPORT: 30}],
        "Next run, in": [{_REPORT: 40}],
        "Runs that succeeded": [{_REPORT: 0.8}],
        # Nineteen twentieths of the runs: nine tenths of the way from 1 s to 5 s.
        "95 % of runs": [{"": 4.6}],
        "Run history": [{"main": 10}, {_REPORT: 20}, {_REPORT: 31}, {_REPORT: 41}, {_REPORT: 51}],
        "Countdown to the next run": [{_REPORT: 40}, {}, {_REPORT: -60}],
        "Times": [{_REPORT: 1000 * (NOW - ago)} for ago in (-40, 80, 20, 30, 110, 500, 50)],
        "Durations": [{"": 1}, {"": 4.6}, {"": 4.92}, {_REPORT: 3}, {_REPORT: 600}, {_REPORT: 20}],
        # In the four minutes of $__rate_interval.
        "Durations, all runs": [{"0.5": 0, "1.0": 8, "5.0": 16, "+Inf": 16}],
        "Outcomes": [{"success": 16, "error": 4, "coalesced": 20}],
        "Start delay": [{"": 0.1}, {"": 0.91}, {_REPORT: 60}],
        "Exceptions over time": [{"ValueError": 4, "KeyError": 0}],
        "Exceptions in the time range": [{"ValueError": 60}],
        "Firing alerts": [{}],
        "Description of the job": [
            {
                f"default jobs:report {instance} report default Report false interval": 1
                for instance in ("one:1", "two:1")
            },
            {f"{instance} report": 30 for instance in ("one:1", "two:1")},
        ],
    },
    "runs": {
        "Runs by outcome": [
            {"success": 16, "error": 4, "coalesced": 20, "lost": 4, "missed": 4, "skipped": 4}
        ],
    },
    "scheduler": {
        "Schedulers": [_SCHEDULERS],
        "Shortest uptime": [{"": 1200}],
        "Starts": [{"": 1}],
        "APScheduler errors": [{"": 240}],
        "Telemetry errors": [{"": 360}],
        "Scheduler loops": [
            {
                "one:1 main": 0,
                "two:1 main": 0,
                "one:1 resting": 1,
                "one:1 dead": 2,
                "no process night": 3,
            }
        ],
        "Description of the schedulers": [
            {
                f"host {instance} 42 host:42 main false UTC Background 3.11": 1
                for instance in ("one:1", "two:1")
            },
            {"one:1 main": 5, "two:1 main": 9},
            {"one:1 main": 1200, "two:1 main": 20000},
        ],
        "Busy workers": [_both(0.4, "default", "main")],
        "Runs that wait for a worker": [
            {**_both(2, "default", "main"), **_both(2, "loop", "main")}
        ],
        "Jobs that use the most workers": [{_REPORT: 0.5}],
        "Average start delay": [{"main": 1.5}],
        "Time since the last pass over due jobs": [{"one:1 main": 5, "two:1 main": 9}],
        "Jobs": [{f"{instance} default main": 3 for instance in ("one:1", "two:1")}],
        "APScheduler errors by kind": [{"jobstore": 16, "loop": 0}],
        "Memory": [{"one:1": 1e6, "two:1": 1e6}],
        "CPU": [{"one:1": 0.1, "two:1": 0.1}],
        "File descriptors": [{"one:1": 0.1, "two:1": 0.1}],
        "Scrape duration": [{"one:1": 0.25, "two:1": 0.25}],
        "Series": [{"one:1": 300, "two:1": 300}],
        "Telemetry errors by component": [{"spans": 24, "http": 0}],
    },
}
"""
What each query has to say of the shop: by dashboard and panel, for each query in turn, the values
by the labels that distinguish them, in the order of their names and without the application's.

On the dashboard of a job that is `report` of `main`. The bank, which has the same names, must not
show in any of them.
"""

OTHERS: dict[tuple[str, str], dict[str, list[dict[str, float]]]] = {
    ("night", "archive"): {
        "State": [{"archive night": 7}],
        "Failures in a row": [{}],
        "Last success, ago": [{"archive night": 5000}],
        "Next run, in": [{"archive night": -400}],
        "Run history": [{"night": 13}, {"archive night": 22}, {}, {}, {}],
        "Countdown to the next run": [
            {"archive night": 0},
            {"archive night": -400},
            {"archive night": -60},
        ],
        "Times": [
            {"archive night": 1000.0 * (NOW - ago)} for ago in (400, 400, 4000, 5000, 4100, 4200)
        ]
        + [dict[str, float]()],
        "Firing alerts": [{"MissedRun ✖ critical": 330, "SchedulerDown ✖ critical": 330}],
        "Description of the job": [
            {"default jobs:archive one:1 archive default Archive true cron": 1},
            {"one:1 archive": 86400},
        ],
    },
    **{
        ("main", job): {
            "State": [{f"{job} main": state}],
            "Run history": [
                {"main": 10},
                {f"{job} main": next_run},
                {},
                {f"{job} main": work},
                {f"{job} main": dropped},
            ],
            "Countdown to the next run": [
                {f"{job} main": 40} if next_run == 20 else {},
                {},
                {f"{job} main": -60},
            ],
        }
        for job, state, next_run, work, dropped in (
            ("stuck", 8, 20, 42, 50),
            ("hangs", 8, 20, 42, 50),
            ("runs", 3, 20, 41, 50),
            ("waits", 1, 20, 40, 50),
            ("loses", 4, 20, 40, 54),
            ("misses", 4, 20, 40, 53),
            ("skips", 4, 20, 40, 52),
            ("idle", 0, 23, 40, 50),
        )
    },
    ("main", "late"): {
        "Run history": [
            {"main": 10},
            {"late main": 22},
            {},
            {"late main": 40},
            {"late main": 50},
        ],
        "Countdown to the next run": [{"late main": 0}, {"late main": -300}, {"late main": -60}],
    },
    ("main", "behind"): {
        "Run history": [
            {"main": 10},
            {"behind main": 20},
            {},
            {"behind main": 40},
            {"behind main": 50},
        ],
        "Countdown to the next run": [
            {"behind main": 0},
            {"behind main": -30},
            {"behind main": -60},
        ],
    },
    # What a paused scheduler does not start is not missed.
    ("resting", "naps"): {
        "State": [{"naps resting": 2}],
        "Run history": [
            {"resting": 11},
            {"naps resting": 20},
            {},
            {"naps resting": 40},
            {"naps resting": 50},
        ],
    },
}
"""What the dashboard of a job says of others of the shop, by scheduler and job: what is special."""
