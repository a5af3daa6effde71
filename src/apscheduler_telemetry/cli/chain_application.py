"""
Checks of the application itself, for ``doctor --url``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple

from apscheduler_telemetry.cli.chain_checks import (
    JSON_CONTENT_TYPE,
    OK,
    ChainServer,
    CheckResult,
    abbreviate,
    check_clock,
)
from apscheduler_telemetry.cli.errors import AnswerStatusError, CommandError
from apscheduler_telemetry.cli.metrics import (
    JOB_INFO_METRIC,
    NEXT_RUN_METRIC,
    SCHEDULER_INFO_METRIC,
)
from apscheduler_telemetry.core.findings import INFO, SERIOUS
from apscheduler_telemetry.core.labels import OVERFLOW_LABEL

METRIC_PREFIX = "apscheduler_"

_MAX_REASON_LENGTH = 200
"""Characters of an error of a parser: it may quote a long line."""
_TEXT_CONTENT_TYPE = "text/plain;version=0.0.4"
_OPENMETRICS_CONTENT_TYPE = "application/openmetrics-text"

NameAndLabels = tuple[str, Mapping[str, str]]


class ApplicationMetrics(NamedTuple):
    """
    What the metrics of an application show.

    Attributes:
        schedulers: the labels hostname, pid and scheduler of each of its schedulers.
        job_count: how many jobs have a series of their next run.
        sample_names: the names of its samples.
    """

    schedulers: frozenset[tuple[str, str, str]]
    job_count: int
    sample_names: frozenset[str]


def read_application_metrics(
    server: ChainServer,
) -> tuple[ApplicationMetrics | None, list[CheckResult]]:
    """
    Return what the metrics show, if they can be read, and checks of them.

    Raises:
        CommandError: the application does not answer.
    """
    answer = server.fetch(None, content_type=_TEXT_CONTENT_TYPE)
    try:
        samples = _parse_text(answer.text)
        other = server.fetch(None, content_type=f"{_OPENMETRICS_CONTENT_TYPE};version=1.0.0")
        if other.content_type.startswith(_OPENMETRICS_CONTENT_TYPE):
            _parse_openmetrics(other.text)
    except CommandError:
        raise
    except Exception as error:  # noqa: BLE001  # the parsers raise whatever a wrong line leads to
        if answer.content_type.startswith("text/html"):
            message = f"{server.url} shows a web page, and no metrics"
            return None, [CheckResult("metrics", SERIOUS, message, f"{server.advice}.")]
        reason = str(error)
        if len(reason) > _MAX_REASON_LENGTH:
            reason = f"{reason[:_MAX_REASON_LENGTH]} (and so on)"
        message = f"The metrics at {server.url} cannot be parsed: {reason}"
        fix = "If the address is right, find out which program adds to this registry."
        return None, [CheckResult("metrics", SERIOUS, message, fix)]
    application = _summarize_samples(samples)
    if not application.schedulers:
        message = f"{server.url} shows metrics, but none of apscheduler-telemetry"
        fix = "Call instrument(scheduler) in this process, with the registry that it shows."
        return None, [CheckResult("metrics", SERIOUS, message, fix)]
    names = sorted({scheduler for _, _, scheduler in application.schedulers})
    message = (
        f"they parse, and show {application.job_count} "
        f"{'job' if application.job_count == 1 else 'jobs'} "
        f"of the {'scheduler' if len(names) == 1 else 'schedulers'} {abbreviate(names)}"
    )
    return application, [
        CheckResult("metrics", OK, message),
        *_check_job_series(samples),
        *check_clock(answer, server),
    ]


def check_health(server: ChainServer) -> Iterator[CheckResult]:
    """Yield what ``/health`` says."""
    try:
        # Not to be healthy is an answer.
        answer = server.fetch(
            "health", content_type=JSON_CONTENT_TYPE, statuses=(HTTPStatus.SERVICE_UNAVAILABLE,)
        )
        report = json.loads(answer.text)
        is_healthy = report["status"] == "healthy"
        reasons = [f"{each['code']}: {each['message']}" for each in report["reasons"]]
    except (AnswerStatusError, LookupError, RecursionError, TypeError, ValueError):
        message = f"{server.url} has no /health, so only its metrics are checked"
        fix = "Serve it with telemetry.start_http_server(), wsgi_app or asgi_app."
        yield CheckResult("health", INFO, message, fix)
        return
    if is_healthy:
        yield CheckResult("health", OK, "healthy")
        return
    yield CheckResult(
        "health",
        SERIOUS,
        f"Not healthy: {'; '.join(reasons) or 'without a reason'}",
        "See the log of the application, and docs/failures.md for this reason.",
    )


def _check_job_series(samples: Sequence[NameAndLabels]) -> Iterator[CheckResult]:
    """Check that the rules can see each job: they read its next run."""
    known = {_scheduler_and_job_id(labels) for name, labels in samples if name == JOB_INFO_METRIC}
    shown = {_scheduler_and_job_id(labels) for name, labels in samples if name == NEXT_RUN_METRIC}
    missing = sorted(job_id for _, job_id in known - shown)
    if missing:
        yield CheckResult(
            "next-runs",
            SERIOUS,
            f"The metrics have no {NEXT_RUN_METRIC} of {abbreviate(missing)}, so no alert fires if "
            "a run is missed",
            "Do not filter the metrics of the process, such as with name[].",
        )
    elif shown:
        yield CheckResult("next-runs", OK, "the metrics have the next run of each job")
    else:
        yield CheckResult(
            "next-runs",
            INFO,
            "The application has no job now",
            "If it should have jobs, see whether they are added and the scheduler is started.",
        )
    if any(labels.get("job_id") == OVERFLOW_LABEL for _, labels in samples):
        yield CheckResult(
            "max-labels",
            SERIOUS,
            f'More jobs than max_labels allows: the others share job_id="{OVERFLOW_LABEL}", and no '
            "alert tells them apart",
            "Pass job_label= to give jobs of one kind the same label, or a higher max_labels=.",
        )
    else:
        yield CheckResult("max-labels", OK, "no jobs are above the limit of labels")


def _parse_text(text: str) -> list[NameAndLabels]:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  # slow

    return _select_own_samples(text_string_to_metric_families(text))


def _parse_openmetrics(text: str) -> list[NameAndLabels]:
    from prometheus_client.openmetrics.parser import (  # noqa: PLC0415  # slow
        text_string_to_metric_families,
    )

    return _select_own_samples(text_string_to_metric_families(text))  # type: ignore[no-untyped-call]


def _select_own_samples(families: Iterable[Any]) -> list[NameAndLabels]:
    """Return our samples; reading all families is what parses them."""
    return [
        (sample.name, sample.labels)
        for family in families
        for sample in family.samples
        if sample.name.startswith(METRIC_PREFIX)
    ]


def _summarize_samples(samples: Sequence[NameAndLabels]) -> ApplicationMetrics:
    return ApplicationMetrics(
        frozenset(
            (labels.get("hostname", ""), labels.get("pid", ""), labels["scheduler"])
            for name, labels in samples
            if name == SCHEDULER_INFO_METRIC
        ),
        len({_scheduler_and_job_id(labels) for name, labels in samples if name == NEXT_RUN_METRIC}),
        frozenset(name for name, _ in samples),
    )


def _scheduler_and_job_id(labels: Mapping[str, str]) -> tuple[str, str]:
    return labels["scheduler"], labels["job_id"]
