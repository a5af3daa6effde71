"""
Reads and writes ``jobs.yml``: the jobs that must always have a next run.

The file is a list with an item for each scheduler, so that the output of several
``apscheduler-telemetry jobs --yaml`` can be put one after the other::

    - application: shop
      scheduler: default
      jobs:
      - job_id: nightly-import
        severity: critical
        owner: data
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.yaml_library import import_yaml
from apscheduler_telemetry.core.expectations import SEVERITIES
from apscheduler_telemetry.core.files import UnusableFileError, read_configured_file
from apscheduler_telemetry.core.labels import OVERFLOW_LABEL, label_value

MAX_FILE_BYTES = 1_000_000
"""Some 10,000 jobs, which are ten times the default limit of one scheduler."""


@dataclass(frozen=True, kw_only=True)
class ExpectedJob:
    """
    A job that must always have a next run, with the values of its labels in Prometheus.

    Attributes:
        application: the value of Prometheus' label ``job``.
        scheduler: the name of the scheduler.
        job_id: the value of the label ``job_id``.
        severity: that of the alert; None for the default.
        owner: whom the alert is for; None if not set.
    """

    application: str
    scheduler: str
    job_id: str
    severity: str | None = None
    owner: str | None = None


def read_expected_jobs(paths: Sequence[Path]) -> list[ExpectedJob]:
    """
    Read the jobs of one or more files.

    Every value is a text, with or without quotes: ``job_id: 007`` and ``job_id: no`` are the jobs
    ``007`` and ``no``.

    Raises:
        CommandError: a file cannot be read, lists no job, or has an error, whose line is named.
    """
    places: dict[tuple[str, str, str], str] = {}
    jobs = []
    for path in paths:
        for job, line in _JobsFileReader(path).read():
            key = (job.application, job.scheduler, job.job_id)
            place = f"{path}, line {line}"
            if key in places:
                msg = (
                    f"{place}: job {job.job_id!r} of scheduler {job.scheduler!r} in application "
                    f"{job.application!r} is there twice: see {places[key]}. Remove one of them."
                )
                raise CommandError(msg)
            places[key] = place
            jobs.append(job)
    return jobs


class _JobsFileReader:
    """
    Reads one file.

    It uses the nodes that PyYAML composes and not the objects that it would make of them: nodes
    have their lines, and their values are the texts of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[tuple[ExpectedJob, int]]:
        """Return each job with the line on which it begins."""
        root = self._compose_yaml()
        if root is None or not root.value:
            msg = (
                f"{self._path} lists no jobs. Write such a file with `apscheduler-telemetry jobs "
                "URL --yaml --application NAME`."
            )
            raise CommandError(msg)
        return [
            job for item in self._read_items(root, "the file") for job in self._read_scheduler(item)
        ]

    def _compose_yaml(self) -> Any:
        yaml = import_yaml()
        try:
            content = read_configured_file(self._path, MAX_FILE_BYTES)
        except UnusableFileError as error:
            msg = f"cannot read {self._path}: it {error.problem}. Pass a regular file."
            raise CommandError(msg) from error
        except OSError as error:
            msg = f"cannot read {self._path}: {error.strerror}"
            raise CommandError(msg) from error
        try:
            return yaml.compose(content, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            msg = f"{self._path}, line {mark.line + 1 if mark else '?'}: no YAML: {error.problem}"
            raise CommandError(msg) from error
        except (yaml.YAMLError, ValueError) as error:  # characters that YAML does not allow
            msg = f"{self._path} is no YAML: {' '.join(str(error).split())}"
            raise CommandError(msg) from error
        except RecursionError:
            msg = f"{self._path} is no list of jobs: it is nested too deeply"
            raise CommandError(msg) from None

    def _read_scheduler(self, node: Any) -> Iterable[tuple[ExpectedJob, int]]:
        fields = self._read_fields(node, required=("application", "scheduler", "jobs"))
        application = self._read_text(fields["application"], "application")
        scheduler = self._read_label(fields["scheduler"], "scheduler")
        for item in self._read_items(fields["jobs"], "jobs"):
            job = self._read_fields(item, required=("job_id",), optional=("severity", "owner"))
            yield (
                ExpectedJob(
                    application=application,
                    scheduler=scheduler,
                    job_id=self._read_job_id(job["job_id"]),
                    severity=self._read_severity(job["severity"]) if "severity" in job else None,
                    owner=self._read_label(job["owner"], "owner") if "owner" in job else None,
                ),
                item.start_mark.line + 1,
            )

    def _read_items(self, node: Any, name: str) -> Sequence[Any]:
        if node.id != "sequence" or not node.value:
            raise self._create_error(node, f"{name} must be a list with at least one item")
        items: Sequence[Any] = node.value
        return items

    def _read_fields(
        self, node: Any, *, required: Sequence[str], optional: Sequence[str] = ()
    ) -> Mapping[str, Any]:
        allowed = (*required, *optional)
        if node.id != "mapping":
            raise self._create_error(node, f"this item must have {_join_names(required)}")
        fields: dict[str, Any] = {}
        for key, value in node.value:
            if key.id != "scalar" or key.value not in allowed:
                name = repr(key.value) if key.id == "scalar" else "a key that is no text"
                raise self._create_error(
                    key, f"{name} is not known here. Use {_join_names(allowed)}"
                )
            if key.value in fields:
                raise self._create_error(key, f"{key.value} is there twice in one item")
            fields[key.value] = value
        missing = [name for name in required if name not in fields]
        if missing:
            raise self._create_error(node, f"this item lacks {_join_names(missing)}")
        return fields

    def _read_text(self, node: Any, name: str) -> str:
        if node.id != "scalar" or not node.value.strip():
            raise self._create_error(node, f"{name} must be a text that is not empty")
        text: str = node.value
        if text.encode("utf-8", "ignore").decode() != text:
            raise self._create_error(node, f"{name} has characters that UTF-8 cannot encode")
        return text

    def _read_label(self, node: Any, name: str) -> str:
        text = self._read_text(node, name)
        if label_value(text) != text:
            shortened = label_value(text)
            raise self._create_error(
                node, f"{name} is too long. Write it as metrics do: {shortened!r}"
            )
        return text

    def _read_job_id(self, node: Any) -> str:
        text = self._read_label(node, "job_id")
        if text == OVERFLOW_LABEL:
            raise self._create_error(
                node,
                f"{OVERFLOW_LABEL} is no job: all jobs above the limit share it. Remove this item, "
                "and raise the limit with max_labels=",
            )
        return text

    def _read_severity(self, node: Any) -> str:
        text = self._read_text(node, "severity")
        if text not in SEVERITIES:
            raise self._create_error(
                node, f"severity must be {_join_names(SEVERITIES, 'or')}, got {text!r}"
            )
        return text

    def _create_error(self, node: Any, problem: str) -> CommandError:
        return CommandError(f"{self._path}, line {node.start_mark.line + 1}: {problem}.")


def format_jobs_as_yaml(jobs: Iterable[ExpectedJob]) -> str:
    """Return the items of all schedulers of some jobs; they must be sorted by scheduler."""
    yaml = import_yaml()
    items: dict[tuple[str, str], list[dict[str, str]]] = {}
    for job in jobs:
        fields = {"job_id": job.job_id, "severity": job.severity, "owner": job.owner}
        items.setdefault((job.application, job.scheduler), []).append(
            {name: value for name, value in fields.items() if value is not None}
        )
    document = [
        {"application": application, "scheduler": scheduler, "jobs": listed}
        for (application, scheduler), listed in items.items()
    ]
    text: str = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=float("inf"))
    return text


def quote_as_yaml(text: str) -> str:
    """Return a text as YAML on one line, in double quotes."""
    yaml = import_yaml()
    quoted: str = yaml.safe_dump(
        text, default_style='"', allow_unicode=True, width=float("inf")
    ).rstrip("\n")
    return quoted


def _join_names(names: Sequence[str], word: str = "and") -> str:
    *others, last = names
    return f"{', '.join(others)} {word} {last}" if others else last
