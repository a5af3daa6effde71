"""
``apscheduler-telemetry jobs``: write the jobs of a running process as ``jobs.yml``.
"""

from __future__ import annotations

import argparse
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.expected_jobs import ExpectedJob, format_jobs, quote
from apscheduler_telemetry.cli.output import write_output
from apscheduler_telemetry.cli.yaml_library import import_yaml
from apscheduler_telemetry.core.labels import OVERFLOW

NEXT_RUN = "apscheduler_job_next_run_timestamp_seconds"
JOB_INFO = "apscheduler_job_info"
ALERT_INFO = "apscheduler_job_alert_info"
SCHEDULER_INFO = "apscheduler_scheduler_info"
_METRICS = (NEXT_RUN, JOB_INFO, ALERT_INFO, SCHEDULER_INFO)

ANSWER_SECONDS = 10.0
"""How long to wait for a connection, or for the next bytes: what Prometheus allows for a scrape."""
TOTAL_SECONDS = 30.0
"""How long reading may take as a whole."""
MAX_BYTES = 50_000_000
"""More than all metrics of 5,000 jobs; these four metrics are some hundred bytes of each job."""

_NO_NEXT_RUN = "has no next run now: it is paused, or was removed"
_RUNS_ONCE = "runs only once"
_OVERFLOW = "stands for all jobs above the limit of the label job_id: see max_labels="


class RunningJob(NamedTuple):
    """
    A job that a process shows.

    Attributes:
        job: the job.
        reason: why it is not expected to have a next run always; None if it is.
    """

    job: ExpectedJob
    reason: str | None


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "jobs",
        help="write the jobs of a running process as jobs.yml, for `export --expect`",
        description="Read the jobs of a running process, and write them as YAML, for the option "
        "--expect of `export`.",
        epilog="Exit status: 0, or 1 if the process does not answer or has no jobs.",
    )
    parser.add_argument("url", metavar="URL", help="such as http://127.0.0.1:9476")
    parser.add_argument(
        "--application",
        metavar="NAME",
        required=True,
        help="the label `job` that Prometheus gives its metrics: the job_name of the scrape "
        "configuration, or the service name by OTLP",
    )
    parser.add_argument(
        "--bearer-token-file",
        metavar="FILE",
        type=Path,
        help="a file with the token that the process requires",
    )
    parser.set_defaults(run_command=run_jobs_command)


def run_jobs_command(options: argparse.Namespace) -> None:
    """Read the metrics and print the jobs."""
    if not options.application.strip():
        msg = "--application must not be empty. Pass the label `job` of its metrics in Prometheus."
        raise CommandError(msg)
    import_yaml()  # so that a missing one is said first
    url = complete_url(options.url)
    lines = _select_lines(fetch(url, _read_token(options.bearer_token_file)))
    if not any(line.startswith(f"{SCHEDULER_INFO}{{") for line in lines):
        msg = (
            f"{url} does not show metrics of apscheduler-telemetry. Pass the address at which "
            "Prometheus scrapes the application, with its path."
        )
        raise CommandError(msg)
    jobs = parse_jobs(lines, options.application)
    if all(job.reason for job in jobs):
        msg = f"{url} shows no job that has a next run and runs more than once."
        raise CommandError(msg)
    write_output(_format(jobs, url))


def complete_url(text: str) -> str:
    """
    Return the address of the metrics; `/metrics` is the path if there is none.

    Raises:
        CommandError: it is no address.
    """
    try:
        parts = urllib.parse.urlsplit(text)
        valid = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:  # a port that is no number
        valid = False
    if not valid or not text.isascii() or not text.isprintable() or " " in text:
        msg = f"{text!r} is no address. Pass one such as http://127.0.0.1:9476/metrics."
        raise CommandError(msg)
    if parts.username is not None:
        msg = "the address must not contain a user. Pass a token with --bearer-token-file."
        raise CommandError(msg)
    path = parts.path if parts.path.strip("/") else "/metrics"
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def fetch(url: str, token: str | None) -> str:
    """
    Return the metrics of an address.

    Raises:
        CommandError: there is no answer, or another one than the metrics.
    """
    names = urllib.parse.urlencode([("name[]", name) for name in _METRICS])
    request = urllib.request.Request(  # noqa: S310  # http or https: see complete_url
        f"{url}{'&' if '?' in url else '?'}{names}",
        headers={"Accept": "text/plain;version=0.0.4"},
    )
    if token is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(_NoRedirects)
    deadline = time.monotonic() + TOTAL_SECONDS
    try:
        with opener.open(request, timeout=ANSWER_SECONDS) as response:
            return _read(response, url, deadline)
    except urllib.error.HTTPError as error:
        with error:
            raise CommandError(_describe_status(url, error)) from error
    except urllib.error.URLError as error:
        msg = f"cannot connect to {url}: {error.reason}"
        raise CommandError(msg) from error
    except UnicodeDecodeError as error:
        msg = f"{url} does not show metrics: its answer is not UTF-8"
        raise CommandError(msg) from error
    except (OSError, HTTPException) as error:
        msg = f"{url} does not answer in HTTP: {str(error) or type(error).__name__}"
        raise CommandError(msg) from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Makes redirects errors: the token is for no other address."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _read(response: Any, url: str, deadline: float) -> str:
    content = bytearray()
    while chunk := response.read1(65_536):
        content += chunk
        if len(content) > MAX_BYTES:
            msg = f"{url} sends more than {MAX_BYTES // 1_000_000} MB, and is not read"
            raise CommandError(msg)
        if time.monotonic() > deadline:
            msg = f"{url} takes longer than {TOTAL_SECONDS:.0f} seconds, and is not read"
            raise CommandError(msg)
    return content.decode()


def _describe_status(url: str, error: urllib.error.HTTPError) -> str:
    answer = f"{url} answers with status {error.code}"
    if error.code in {401, 403}:
        return f"{answer}. Pass the token of the application with --bearer-token-file."
    if 300 <= error.code < 400:  # noqa: PLR2004  # redirects
        location = error.headers.get("Location", "")
        return f"{answer}, to {location!r}. Pass that address if you trust it."
    return f"{answer}. Pass the address at which Prometheus scrapes the application."


def _read_token(path: Path | None) -> str | None:
    from apscheduler_telemetry.errors import ArgumentValueError  # noqa: PLC0415
    from apscheduler_telemetry.http.access import read_token  # noqa: PLC0415  # loads dependencies

    if path is None:
        return None
    try:
        return read_token(path).decode("ascii")
    except ArgumentValueError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise CommandError(msg) from error


def _select_lines(text: str) -> list[str]:
    """Return the lines of our metrics; only line feeds end them, as labels have other breaks."""
    starts = tuple(f"{name}{{" for name in _METRICS)
    return [line for line in text.split("\n") if line.startswith(starts)]


def parse_jobs(lines: Iterable[str], application: str) -> list[RunningJob]:
    """
    Return the jobs of an exposition, sorted by scheduler and job.

    Raises:
        CommandError: a line cannot be read.
    """
    samples = _parse(lines)
    once: dict[tuple[str, str], bool] = {}
    for labels, _ in samples[JOB_INFO]:
        trigger = labels.get("trigger", "")
        is_date = trigger == "date" or trigger.startswith("date[")
        once[_key(labels)] = is_date and once.get(_key(labels), True)
    info = {_key(labels): labels for labels, _ in samples[ALERT_INFO]}
    next_runs: dict[tuple[str, str], float] = {}
    for labels, value in samples[NEXT_RUN]:  # of several processes, if they are shown together
        next_runs[_key(labels)] = max(value, next_runs.get(_key(labels), 0))
    jobs = []
    for key, next_run in sorted(next_runs.items()):
        scheduler, job_id = key
        alert_labels = info.get(key, {})
        job = ExpectedJob(
            application=application,
            scheduler=scheduler,
            job_id=job_id,
            severity=alert_labels.get("severity") or None,
            owner=alert_labels.get("owner") or None,
        )
        reason = None
        if job_id == OVERFLOW:
            reason = _OVERFLOW
        elif once.get(key):
            reason = _RUNS_ONCE
        elif not next_run > 0:
            reason = _NO_NEXT_RUN
        jobs.append(RunningJob(job, reason))
    return jobs


def _parse(lines: Iterable[str]) -> dict[str, list[tuple[dict[str, str], float]]]:
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415  # slow

    samples: dict[str, list[tuple[dict[str, str], float]]] = {name: [] for name in _METRICS}
    try:
        for family in text_string_to_metric_families("\n".join(lines) + "\n"):
            for sample in family.samples:
                samples[sample.name].append((dict(sample.labels), float(sample.value)))
        for labels, _ in samples[NEXT_RUN]:
            _key(labels)
    except Exception as error:  # the parser raises whatever a wrong line leads to
        msg = f"the metrics cannot be read: {error}"
        raise CommandError(msg) from error
    return samples


def _key(labels: Mapping[str, str]) -> tuple[str, str]:
    return labels["scheduler"], labels["job_id"]


def _format(jobs: Sequence[RunningJob], url: str) -> str:
    parts = [
        f"# Read from {url.partition('?')[0]} by `apscheduler-telemetry jobs`.\n",
        "# Remove the jobs that need not exist always, and keep this file in version control.\n",
    ]
    for scheduler in dict.fromkeys(each.job.scheduler for each in jobs):
        of_scheduler = [each for each in jobs if each.job.scheduler == scheduler]
        expected = [each.job for each in of_scheduler if each.reason is None]
        if expected:
            parts.append(format_jobs(expected))
        parts += [
            f"# Left out of scheduler {quote(scheduler)}, because it {each.reason}:\n"
            f"# - job_id: {quote(each.job.job_id)}\n"
            for each in of_scheduler
            if each.reason
        ]
    return "".join(parts)
