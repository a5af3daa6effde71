"""Numbers in the documentation are equal on all pages, and are those of the code."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry, generate_latest

from apscheduler_telemetry import Expectations, Telemetry, context_store, instrument
from apscheduler_telemetry.adapters.apscheduler3 import (
    loop_liveness,
    unsubmitted_runs,
)
from apscheduler_telemetry.adapters.apscheduler3.jobstore_poller import JobStorePoller
from apscheduler_telemetry.adapters.apscheduler3.tracked_jobs import MAX_OBSERVED_INTERVALS
from apscheduler_telemetry.adapters.apscheduler3.triggers import MAX_UPCOMING_FIRE_TIMES
from apscheduler_telemetry.core import current_run, labels, model, recorder, safe_repr, stats
from apscheduler_telemetry.core.exception_text import MAX_STACKTRACE_LENGTH
from apscheduler_telemetry.core.expectation_resolver import MIN_DEFAULT_GRACE_SECONDS
from apscheduler_telemetry.core.observers import ERROR_COMPONENTS
from apscheduler_telemetry.core.run_journal import RunJournal
from apscheduler_telemetry.export import metric_families, run_log
from apscheduler_telemetry.export.multiprocess import slots, writer
from tests.helpers.metrics import recorder_of
from tests.helpers.paths import ROOT
from tests.helpers.waiting import wait_until

pytestmark = pytest.mark.once

PAGES = {path.name: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
RULES = (ROOT / "alerts" / "apscheduler.rules.yml").read_text("utf-8")

WORDS = {"one": 1, "three": 3, "five": 5, "six": 6, "ten": 10, "second": 1}
"""Numbers that the pages write as words."""

SDK_SERIES = 2_000
"""Series that an OpenTelemetry SDK keeps of one metric, by its specification."""

SOMETIMES_RECORDED = {
    *("running_seconds", "in_progress_since_timestamp_seconds", "slow_since_timestamp_seconds"),
    *("in_progress_seen_timestamp_seconds", "interrupted_run_timestamp_seconds"),
    *("deadline_timestamp_seconds", "deadline_run_timestamp_seconds"),
    *("grace_seconds", "oldest_unsettled_run_timestamp_seconds"),
    *("awaited_run_timestamp_seconds", "last_in_progress_timestamp_seconds"),
}
"""What the rules record only in some states of a job, or only for jobs that expect it."""
MAX_SERIES = 50
"""Series of a job without trouble, those that the rules record included: we keep it at that."""
MEASUREMENTS = {
    "alerts.md": (1_000, r"with ([\d,]+) jobs without trouble \(([\d,]+) series\)"),
    "dashboards.md": (500, r"with ([\d,]+) jobs without trouble \(([\d,]+) series\)"),
}
"""Jobs in the measurement that a page gives, and how it says them and their series."""


def documented_numbers(pattern: str) -> list[int]:
    """Return the numbers that a pattern with groups finds on all pages; at least one."""
    found = [
        group
        for page in PAGES.values()
        for match in re.finditer(pattern, page)
        for group in match.groups()
        if group
    ]
    assert found, f"no page has {pattern!r}"
    return [WORDS.get(text) or int(text.replace(",", "")) for text in found]


def table(page: str, header: str) -> list[list[str]]:
    """Return the cells of a table, without its header."""
    lines = PAGES[page].split(header, 1)[1].split("\n")[2:]
    rows: list[list[str]] = []
    for line in lines:
        if not line.strip().startswith("|"):
            return rows
        rows.append([cell.strip() for cell in line.strip().strip("|").split(" | ")])
    return rows


def names(cells: list[str]) -> set[str]:
    """Return the words in backquotes."""
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


CONSTANTS: dict[str, tuple[float, tuple[str, ...]]] = {
    "removed jobs": (
        recorder.REMOVED_JOB_SECONDS / 60,
        (
            r"removed job stay for (\d+) minutes",
            r"they stay for (\d+) minutes after",
            r"shown for another (\d+) minutes",
            r"ends (\d+) minutes after the last of these jobs",
            r"their series end (\d+) minutes later",
            r"removed job, after (\d+) minutes",
            r"removed job takes longer than (\d+) minutes",
            r"earlier or later than after (\d+) minutes",
        ),
    ),
    "overdue loops": (
        loop_liveness.OVERDUE_SECONDS,
        (
            r"pass over due jobs is (\d+) seconds late, or takes longer than (\d+) seconds",
            r"pass over due jobs takes longer than (\d+) seconds",
            r"blocked for more than (\d+) seconds",
        ),
    ),
    "least default grace": (MIN_DEFAULT_GRACE_SECONDS, (r"but at least (\d+)",)),
    "values of job_id": (
        labels.DEFAULT_MAX_LABELS,
        (
            r"has at most ([\d,]+) values of `job_id`",
            r"has had more than ([\d,]+) values of `job_id`",
            r"scheduler has more than ([\d,]+) jobs",
        ),
    ),
    "length of a label": (
        labels.MAX_LABEL_LENGTH,
        (r"id of more than (\d+) characters", r"each, at most (\d+) characters"),
    ),
    "generated ids": (model.GENERATED_ID_LENGTH, (r"\((\d+) hexadecimal digits\)",)),
    "quantities": (current_run.MAX_QUANTITIES, (r"has at most (\d+) quantities",)),
    "series of quantities": (
        2 * (current_run.MAX_QUANTITIES + 1),
        (r"two for each quantity that it records, at most (\d+)",),
    ),
    "length of a quantity's name": (
        current_run.MAX_QUANTITY_NAME_LENGTH,
        (r"an identifier of at most (\d+) characters",),
    ),
    "exception types": (stats.MAX_EXCEPTION_TYPES, (r"After (\d+) types",)),
    "coming fire times": (MAX_UPCOMING_FIRE_TIMES, (r"among the next (\w+) fire times",)),
    "observed intervals": (MAX_OBSERVED_INTERVALS, (r"among the last (\w+) intervals",)),
    "coalesced at once": (
        unsubmitted_runs.MAX_TRIGGER_CALLS_PER_JOB_IN_PASS,
        (r"more than (\d+) coalesced runs of a cron trigger",),
    ),
    "interval of reads": (
        JobStorePoller.POLL_INTERVAL_SECONDS,
        (r"every (\d+) seconds\. Normally",),
    ),
    "pause after a read": (1 / JobStorePoller.MAX_DUTY_CYCLE, (r"waits for (\d+) times the",)),
    "share of reads": (100 * JobStorePoller.MAX_DUTY_CYCLE, (r"at most (\d+) % of the time",)),
    "interval of writes": (writer.WRITE_INTERVAL_SECONDS, (r"writes its values every (\w+)\.",)),
    "share of writes": (100 * writer.MAX_DUTY_CYCLE, (r"at most (\d+) % of one CPU",)),
    "stale gauges": (
        slots.STALE_GAUGE_SECONDS,
        (r"not written its gauges for (\d+) seconds", r"gauges are removed after (\d+) seconds"),
    ),
    "recorded characters": (safe_repr.MAX_CHARACTERS, (r"([\d,]+) characters, \d+ items",)),
    "recorded items": (safe_repr.MAX_ITEMS, (r"characters, (\d+) items of a collection",)),
    "recorded levels": (safe_repr.MAX_DEPTH, (r"items of a collection, (\d+) levels deep",)),
    "messages": (model.MAX_MESSAGE_LENGTH, (r"Messages are cut at ([\d,]+) characters",)),
    "jobs with links": (context_store.DEFAULT_MAX_JOBS, (r"It keeps ([\d,]+) jobs",)),
    "ended runs": (recorder.MAX_RUNS_NOT_ADDED_UP, (r"at most ([\d,]+) ended runs",)),
    "outcomes": (
        len(model.Outcome),
        (r"exactly one of (\w+) outcomes", r"with (\w+) outcomes", r"(\w+) series for each job"),
    ),
    "jobs by OTLP": (
        SDK_SERIES // len(model.Outcome),
        (r"so with more than (\d+) jobs, raise the limit",),
    ),
    "port": (
        inspect.signature(Telemetry.start_http_server).parameters["port"].default,
        (r"127\.0\.0\.1:(94\d\d)", r"http_port (\d+)"),
    ),
}
"""A number of the code, and how the pages say it."""


class TestConstants:
    """Numbers that are constants in the code."""

    @pytest.mark.parametrize("fact", CONSTANTS)
    def test_all_pages_have_the_number_of_the_code(self, fact: str) -> None:
        """Each sentence with a limit has the number that is in the code."""
        number, patterns = CONSTANTS[fact]
        assert {pattern: set(documented_numbers(pattern)) for pattern in patterns} == {
            pattern: {number} for pattern in patterns
        }

    def test_length_of_stack_traces(self) -> None:
        """The pages have the limit of stack traces."""
        assert set(documented_numbers(r"the last ([\d,]+) characters")) == {MAX_STACKTRACE_LENGTH}

    @pytest.mark.parametrize(
        ("name", "buckets"),
        [("Durations", stats.DURATION_BUCKETS), ("Start delays", stats.DELAY_BUCKETS)],
        ids=["durations", "delays"],
    )
    def test_buckets(self, name: str, buckets: tuple[float, ...]) -> None:
        """The page lists all default buckets, with units."""
        [listed] = re.findall(rf"^{name}: (.*)\.$", PAGES["metrics.md"], re.MULTILINE)
        seconds: list[float] = []
        for numbers, unit in re.findall(r"([\d, .and]+?) (ms|s|min|h)\b", listed):
            factor = {"ms": 0.001, "s": 1, "min": 60, "h": 3600}[unit]
            seconds += [float(number) * factor for number in re.findall(r"[\d.]+", numbers)]
        assert seconds == pytest.approx(buckets)


def series_of(registry: CollectorRegistry, job_id: str) -> list[str]:
    """Return the lines of the exposition that are about a job."""
    lines = generate_latest(registry).decode().splitlines()
    return [line for line in lines if f'job_id="{job_id}"' in line]


class JobSeries(NamedTuple):
    """The lines of a job in the exposition, and the number of its series that OTLP has."""

    scraped: list[str]
    by_otlp: int


@pytest.fixture(scope="module")
def series() -> Iterator[JobSeries]:
    """Return the series of an interval job after its first successful run."""
    registry = CollectorRegistry()
    scheduler = BackgroundScheduler(executors={"default": DebugExecutor()})
    telemetry = instrument(scheduler, registry=registry)
    now = datetime.now(timezone.utc)
    scheduler.add_job(
        len, "interval", hours=1, args=[""], id="job", next_run_time=now, misfire_grace_time=None
    )
    scheduler.start()
    success = 'outcome="success",scheduler="default"} 1.0'
    wait_until(lambda: any(success in line for line in series_of(registry, "job")))
    [job] = recorder_of(telemetry).job_snapshots()
    by_otlp = sum(
        len(value.bounds) + 3 if isinstance(value, stats.Histogram) else 1
        for _, _, value in metric_families.job_samples("default", job)
    )
    yield JobSeries(series_of(registry, "job"), by_otlp)
    scheduler.shutdown()
    telemetry.uninstrument()


class TestSeries:
    """The number of series per job."""

    def test_scraped(self, series: JobSeries) -> None:
        """All pages have the number of series that a job really has."""
        links = r"\[(\d+) series\]\(metrics\.md#series-per-job\)"
        assert (
            set(documented_numbers(links))
            == set(documented_numbers(r"has (\d+) series after"))
            == {len(series.scraped)}
        )
        changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
        assert re.findall(r"has (\d+) series, and", changes) == [str(len(series.scraped))]

    def test_by_otlp(self, series: JobSeries) -> None:
        """The page has the number of series with usual values, and how many these are at most."""
        assert documented_numbers(r"multiprocess-mode\), it has (\d+)\.") == [series.by_otlp]
        more = documented_numbers(r"up to (\w+) more for what is \[not usual\]")
        assert more == [series.by_otlp - len(series.scraped)]
        outcomes = documented_numbers(r"of which (\d+) are outcomes")
        assert outcomes == [len(model.Outcome) - 1]

    def test_expectations(self) -> None:
        """A job of which everything is expected has the series that the page says, and no more."""
        expected = Expectations(
            grace=1,
            max_duration=60,
            min_duration=1,
            deadline=60,
            max_failures=1,
            min_recorded={"rows": 1, "bytes": 1, "pages": 1},
            severity="info",
            owner="billing",
            runbook_url="https://wiki.example",
        )
        counts = []
        for expect in (Expectations(grace=1), expected):  # both have a series for it
            registry = CollectorRegistry()
            scheduler = BackgroundScheduler()
            telemetry = instrument(scheduler, registry=registry, expect=expect)
            scheduler.start(paused=True)
            scheduler.add_job(len, "interval", hours=1, args=[""], id="job")
            counts.append(len(series_of(registry, "job")))
            scheduler.shutdown()
            telemetry.uninstrument()
        without, with_all = counts
        pattern = r"has up to (\w+) more, and (\w+) for each quantity"
        more, for_each = documented_numbers(pattern)
        assert with_all == without + more + 3 * for_each

    def test_histograms(self, series: JobSeries) -> None:
        """The page has the number of histogram series."""
        histograms = [line for line in series.scraped if re.search(r"_(bucket|sum|count){", line)]
        assert documented_numbers(r"(\d+) of them are the two histograms") == [len(histograms)]

    @pytest.mark.parametrize("page", MEASUREMENTS)
    def test_measurements(self, series: JobSeries, page: str) -> None:
        """The number of series of a measurement follows from its number of jobs."""
        jobs, pattern = MEASUREMENTS[page]
        [found] = re.findall(pattern, PAGES[page])
        numbers = [int(number.replace(",", "")) for number in found]
        assert numbers == [jobs, jobs * len(series.scraped)]

    def test_recorded(self) -> None:
        """The pages have the number of series that the rules record for an idle job."""
        recorded = re.findall(r"- record: apscheduler_job:(\S+)", RULES)
        at_rest = [name for name in recorded if ":" not in name and name not in SOMETIMES_RECORDED]
        assert set(documented_numbers(r"\[?(\d+) recorded series")) == {len(at_rest)}
        [scraped] = documented_numbers(r"has (\d+) series after")
        [in_all] = documented_numbers(r"that Prometheus scrapes: (\d+) in all")
        assert in_all == scraped + len(at_rest) <= MAX_SERIES


class TestTables:
    """Tables with a row for each member of an enumeration."""

    @pytest.mark.parametrize(
        ("page", "header"),
        [
            ("metrics.md", "| `outcome` | meaning |"),
            ("opentelemetry.md", "| `apscheduler.outcome` | status |"),
        ],
        ids=["metrics", "spans"],
    )
    def test_outcomes(self, page: str, header: str) -> None:
        """The table lists each outcome."""
        rows = [row[0] for row in table(page, header)]
        assert names(rows) == {outcome.value for outcome in model.Outcome}

    def test_kinds_of_errors(self) -> None:
        """The table lists each kind of scheduler error."""
        rows = [row[0] for row in table("metrics.md", "| `kind` | error |")]
        assert names(rows) == {kind.value for kind in model.SchedulerErrorKind}

    def test_components(self) -> None:
        """The runbook explains each component of telemetry errors."""
        rows = [row[0] for row in table("runbook.md", "| `component` | what failed |")]
        assert names(rows) == {*ERROR_COMPONENTS, RunJournal.component, run_log.ERROR_COMPONENT}

    def test_reasons_of_dead_loops(self) -> None:
        """The runbook explains each reason for which `/health` reports a dead loop."""
        code = Path(loop_liveness.__file__).read_text("utf-8")
        pattern = r'"([a-z_]+)"(?:, (?:message|f?"[A-Z])|: \(\s*"[A-Z])'
        codes = set(re.findall(pattern, code)) - {"stopped"}
        assert len(codes) > 1
        rows = [row[0] for row in table("runbook.md", "| code in `reasons` | cause |")]
        assert names(rows) == codes


class TestEnvironmentVariables:
    """The list of environment variables."""

    def test_variables(self) -> None:
        """The tables have each variable that the package reads, and no other."""
        code = [
            name
            for source in (ROOT / "src").rglob("*.py")
            for name in re.findall(r'= "((?:OTEL|PROMETHEUS)_\w+)"', source.read_text("utf-8"))
        ]
        section = PAGES["deployment.md"].split("\n## Environment variables\n")[1].split("\n## ")[0]
        assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == sorted(code)


@pytest.fixture(scope="module")
def alerts() -> dict[str, list[dict[str, Any]]]:
    """Return the alerting rules by their names."""
    yaml = pytest.importorskip("yaml")
    found: dict[str, list[dict[str, Any]]] = {}
    for group in yaml.safe_load(RULES)["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                found.setdefault(rule["alert"], []).append(rule)
    return found


def rows_of_alerts() -> dict[str, list[list[str]]]:
    """Return the rows of the table of alerts by the alert's name; some alerts have two."""
    found: dict[str, list[list[str]]] = {}
    name = ""
    for first, *others in table("alerts.md", "| alert | default severity |"):
        name = next(iter(re.findall(r"\[(\w+)\]", first)), name)
        found.setdefault(name, []).append(others)
    return found


class TestAlerts:
    """The table of alerts."""

    def test_names(self, alerts: dict[str, list[dict[str, Any]]]) -> None:
        """Each alert has as many rows as rules."""
        rows = rows_of_alerts()
        assert {name: len(found) for name, found in rows.items()} == {
            name: len(found) for name, found in alerts.items()
        }

    def test_severities(self, alerts: dict[str, list[dict[str, Any]]]) -> None:
        """The severity in a row is the default of the rule."""
        wrong = []
        for name, rules in alerts.items():
            for rule, row in zip(rules, rows_of_alerts()[name], strict=True):
                default = re.sub(r"\{\{.*?\}\}", " ", rule["labels"]["severity"]).split()[-1]
                if row[0].split(",")[0] != default:
                    wrong.append(name)
        assert wrong == []

    def test_waits(self, alerts: dict[str, list[dict[str, Any]]]) -> None:
        """The duration `for` of a rule is in its row, or in the sentence below the table."""
        below = re.findall(
            r"^The conditions of (.*) must be true for 1 minute\.$",
            PAGES["alerts.md"],
            re.MULTILINE,
        )
        wrong = []
        for name, rules in alerts.items():
            for rule, row in zip(rules, rows_of_alerts()[name], strict=True):
                number, unit = re.fullmatch(r"(\d+)([sm])", rule.get("for", "0s")).groups()  # type: ignore[union-attr]
                wait = rf"\b{number} {'seconds?' if unit == 's' else 'minutes?'}\b"
                in_sentence = name in below[0] and rule["for"] == "1m"
                if number != "0" and not re.search(wait, row[1]) and not in_sentence:
                    wrong.append(name)
        assert wrong == []

    def test_groups(self) -> None:
        """The page has the number of groups, and of the rules in the largest group."""
        yaml = pytest.importorskip("yaml")
        groups = yaml.safe_load(RULES)["groups"]
        assert documented_numbers(r"has (\w+) groups, and the largest group has (\d+) rules") == [
            len(groups),
            max(len(group["rules"]) for group in groups),
        ]


class TestDashboards:
    """Facts on the page about dashboards."""

    def test_queries(self) -> None:
        """The page has the number of queries in PromQL, whose cost it describes."""
        dashboards = [
            json.loads(path.read_text("utf-8"))
            for path in (ROOT / "grafana" / "dashboards").glob("*.json")
        ]

        def count(panels: list[dict[str, Any]]) -> int:
            return sum(
                sum(target["datasource"]["type"] == "prometheus" for target in p.get("targets", []))
                + count(p.get("panels", []))
                for p in panels
            )

        queries = sum(count(dashboard["panels"]) for dashboard in dashboards)
        assert documented_numbers(r"each of the (\d+) queries") == [queries]

    def test_states(self) -> None:
        """Each state in the table is one that the overview shows."""
        overview = json.loads((ROOT / "grafana/dashboards/overview.json").read_text("utf-8"))
        text = json.dumps(overview, ensure_ascii=False)
        states = [row[0] for row in table("dashboards.md", "| state | meaning |")]
        assert len(states) > 1
        assert [state for state in states if state not in text] == []


class TestStack:
    """Facts on the page about the stack."""

    def test_memory(self) -> None:
        """The page has the sum of the memory limits of all services."""
        compose = (ROOT / "docker-compose.yml").read_text("utf-8")
        limits = re.findall(r"^ +mem_limit: (\d+)([mg])$", compose, re.MULTILINE)
        gigabytes = sum(int(number) / (1024 if unit == "m" else 1) for number, unit in limits)
        [said_to_be] = re.findall(r"add up to ([\d.]+) GiB", PAGES["stack.md"])
        assert float(said_to_be) == gigabytes


class TestTraceQL:
    """Queries of traces."""

    def test_queries_have_braces(self) -> None:
        """Each query can be pasted: Tempo rejects a query that has no braces."""
        queries = [
            query.strip("` ")
            for page in PAGES.values()
            for query in re.findall(r"`[^`\n]+`|^ {2,}[^`\n]+$", page, re.MULTILINE)
            if re.search(r"\b(span|resource)\.[\w.]+ (=|!=|=~|!~|<|>) ", query)
        ]
        assert len(queries) > 2
        assert [query for query in queries if not re.match(r"\{ .* \}", query)] == []

    def test_span_metrics_count_only_runs_with_a_duration(self) -> None:
        """The filter for metrics from spans names each outcome whose span has no duration."""
        [excluded] = re.findall(
            r"key: span\.apscheduler\.outcome\n +value: (.+)\n", PAGES["opentelemetry.md"]
        )
        rows = table("opentelemetry.md", "| `apscheduler.outcome` | status |")
        assert set(excluded.split("|")) == names([row[0] for row in rows if row[-1].endswith("0")])


class TestPages:
    """The first sentence of each page."""

    @pytest.mark.parametrize("page", sorted(PAGES.keys()))
    def test_says_what_it_is_for(self, page: str) -> None:
        """The first sentence below the title says what the page is for."""
        title, empty, first = PAGES[page].split("\n")[:3]
        assert title.startswith("# ")
        assert empty == ""
        assert re.match(r"This page \w+s ", first)
