"""
``apscheduler-telemetry export``: write alert rules, their runbook, and dashboards.

The wheel contains these files, which Prometheus, Alertmanager, Grafana and people read elsewhere.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urljoin

from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.expected_jobs import read_expected_jobs
from apscheduler_telemetry.cli.never_seen_rules import EXPECTED_RULES_FILE, build_rules
from apscheduler_telemetry.cli.output import write_json, write_output
from apscheduler_telemetry.cli.shipped_files import find_shipped_directory
from apscheduler_telemetry.core.files import (
    UnusableFileError,
    describe_file_kind,
    open_regular_file,
    replace_public_file,
)

_SOURCE_DIRECTORIES = ("alerts", "grafana/dashboards", "grafana/provisioning")
_EXPORTED_FILE_SUFFIXES = frozenset({".json", ".tmpl", ".yaml", ".yml"})
_EXCLUDED_DIRECTORIES = frozenset({"tests"})
_SHIPPED_RULES_PATH = Path("alerts/apscheduler.rules.yml")
_RUNBOOK_PATH = Path("docs/runbook.md")
_DEFAULT_RUNBOOK_URL = (
    "https://github.com/apscheduler-telemetry/apscheduler-telemetry/blob/main/docs/runbook.md"
)
_RELATIVE_LINK_PATTERN = re.compile(r"(?<=\]\()(?!#|https?:)[^)\s]+")
# No character means anything in YAML, in JSON, or to the templates of Prometheus, Alertmanager and
# Grafana, and there is no "#", which the rules append with the name of the alert.
_SAFE_URL_PATTERN = re.compile(r"https?://[A-Za-z0-9][A-Za-z0-9._~:/?@!&()*+,;=%-]*")
_ADVICE_BY_ERRNO = {
    errno.ENOSPC: "Make room on that disk, or pass a directory on another one.",
    errno.EDQUOT: "Delete files of yours on that disk, or pass a directory on another one.",
    errno.EACCES: "Pass a directory that you may write to.",
    errno.EPERM: "Pass a directory that you may write to.",
    errno.EROFS: "Pass a directory that you may write to.",
}


class PreparedExport(NamedTuple):
    """
    The files of an export, by their path.

    Attributes:
        to_write: contents of files that are to be created or overwritten.
        unchanged: contents of files that exist already with that content.
    """

    to_write: dict[Path, bytes]
    unchanged: dict[Path, bytes]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "export",
        help="write alert rules, an Alertmanager configuration, Grafana dashboards and the runbook",
        description="Write alert rules, an Alertmanager configuration, Grafana dashboards and the "
        "runbook.",
        epilog="Exit status: 0, or 1 if a file is in the way or JOBS_YML is wrong; then nothing "
        "is written. Also 1 if a file cannot be written, such as when the disk is full; the "
        "message says how many have been, and each of these is complete.",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="where to write them; created if missing"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that differ")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="write nothing, and list what would be written, with sizes; errors are the same",
    )
    parser.add_argument("--json", action="store_true", help="write the list of files as JSON")
    parser.add_argument(
        "--expect",
        metavar="JOBS_YML",
        type=Path,
        action="append",
        default=[],
        help="a file with jobs that must exist, as `jobs` writes it; adds "
        f"alerts/{EXPECTED_RULES_FILE}. May be given several times",
    )
    parser.add_argument(
        "--runbook-url",
        metavar="URL",
        type=_parse_runbook_url,
        default=_DEFAULT_RUNBOOK_URL,
        help="the address of your copy of runbook.md, for all links to it; in alerts, # and the "
        "name of the alert follow (default: the copy on GitHub)",
    )
    parser.set_defaults(run_command=run_export_command)


def run_export_command(options: argparse.Namespace) -> None:
    """Export the files, unless it is a dry run, and print a line for each."""
    export = prepare_export(
        options.directory,
        force=options.force,
        expect=options.expect,
        runbook_url=options.runbook_url,
    )
    if not options.dry_run:
        _write_files(export.to_write)
    action = "would write" if options.dry_run else "wrote"
    files = [(action, path, content) for path, content in export.to_write.items()]
    files += [("unchanged", path, content) for path, content in export.unchanged.items()]
    if options.json:
        write_json(
            [
                {"action": action, "path": str(path), "bytes": len(content)}
                for action, path, content in files
            ]
        )
    elif options.dry_run:
        write_output(
            "".join(
                f"{action:11}  {path}  {len(content):,} bytes\n" for action, path, content in files
            )
        )
    else:
        write_output("".join(f"{action:9}  {path}\n" for action, path, _ in files))


def export_files(directory: Path, *, force: bool = False, expect: Sequence[Path] = ()) -> None:
    """
    Do what `prepare_export` prepares.

    Other users, such as that of Prometheus, may read the files.

    Raises:
        CommandError: as of `prepare_export`, or a file cannot be written. Each file is then
            complete, or as it was before.
    """
    _write_files(prepare_export(directory, force=force, expect=expect).to_write)


def prepare_export(
    directory: Path,
    *,
    force: bool = False,
    expect: Sequence[Path] = (),
    runbook_url: str = _DEFAULT_RUNBOOK_URL,
) -> PreparedExport:
    """
    Make the files for a directory and look for conflicts, without writing anything.

    No symbolic link below the directory is followed.

    Args:
        directory: where to write them; it may be missing.
        force: whether to overwrite files that differ.
        expect: files with jobs that must exist; if any, there is a file of rules for these jobs.
        runbook_url: the address of the runbook in all files.

    Raises:
        CommandError: a file exists and differs, or cannot be written, or one of `expect` is wrong.
    """
    sources = _read_source_files(runbook_url)
    if expect:
        rules = build_rules(read_expected_jobs(expect), sources[_SHIPPED_RULES_PATH])
        sources[_SHIPPED_RULES_PATH.with_name(EXPECTED_RULES_FILE)] = rules
    contents = {directory / name: content for name, content in sources.items()}
    try:
        _reject_linked_directories(directory, contents)
        _reject_obstacles(contents)
        unchanged = {
            path: content for path, content in contents.items() if _has_same_content(path, content)
        }
        written = {path: contents[path] for path in contents if path not in unchanged}
        if not force:
            _reject_existing_files(written)
        _reject_unwritable_directories(written)
    except OSError as error:
        msg = f"{_describe_write_failure(error.filename, error)} Nothing was written."
        raise CommandError(msg) from error
    return PreparedExport(written, unchanged)


def _parse_runbook_url(text: str) -> str:
    if not _SAFE_URL_PATTERN.fullmatch(text):
        msg = (
            f"{text!r} is not an address such as https://wiki.example/runbook, without # and what "
            "follows it. Encode other special characters as %XX."
        )
        raise argparse.ArgumentTypeError(msg)
    return text


def _write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files, each completely or not at all: the error of a full disk names no file."""
    written = []
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_public_file(path, content)
            written.append(path)
    except OSError as error:
        msg = (
            f"{_describe_write_failure(path, error)} {len(written)} of {len(contents)} files were "
            "written; run the command again to write the rest."
        )
        raise CommandError(msg) from error


def _describe_write_failure(path: object, error: OSError) -> str:
    advice = _ADVICE_BY_ERRNO.get(error.errno or 0, "Pass another directory.")
    return f"cannot write {path}: {error.strerror}. {advice}"


def _read_source_files(runbook_url: str) -> dict[Path, bytes]:
    """Return the content of each file to export, by its name below the target directory."""
    try:
        contents = {name: source.read_bytes() for name, source in _find_files_to_export()}
    except OSError as error:
        msg = f"cannot read {error.filename}: {error.strerror}. Install this package again."
        raise CommandError(msg) from error
    # People may put their copy anywhere, so it has no link to a file beside it.
    runbook = _RELATIVE_LINK_PATTERN.sub(
        lambda link: urljoin(_DEFAULT_RUNBOOK_URL, link[0]), contents[_RUNBOOK_PATH].decode()
    )
    contents[_RUNBOOK_PATH] = runbook.encode()
    old, new = _DEFAULT_RUNBOOK_URL.encode(), runbook_url.encode()
    return {name: content.replace(old, new) for name, content in contents.items()}


def _find_files_to_export() -> Iterator[tuple[Path, Path]]:
    """Yield each file to export: its name below the target directory, and its path."""
    root = find_shipped_directory()
    yield _RUNBOOK_PATH, root / _RUNBOOK_PATH
    for directory in _SOURCE_DIRECTORIES:
        for path in sorted((root / directory).rglob("*")):
            name = path.relative_to(root)
            if path.suffix in _EXPORTED_FILE_SUFFIXES and _EXCLUDED_DIRECTORIES.isdisjoint(
                name.parts
            ):
                yield name, path


def _has_same_content(path: Path, content: bytes) -> bool:
    try:
        with os.fdopen(open_regular_file(path), "rb") as file:
            return file.read(len(content) + 1) == content
    except (FileNotFoundError, NotADirectoryError, UnusableFileError):
        return False


def _reject_linked_directories(directory: Path, paths: Iterable[Path]) -> None:
    """Reject links to directories: whoever may write to `directory` decides where they lead."""
    names = {parent for path in paths for parent in path.relative_to(directory).parents}
    for name in sorted(names - {Path()}):
        if (directory / name).is_symlink():
            msg = (
                f"{directory / name} is a symbolic link, which is not followed. Nothing was "
                "written. Replace the link by a directory, or pass another directory."
            )
            raise CommandError(msg)


def _reject_obstacles(paths: Iterable[Path]) -> None:
    """Reject directories in the place of files, and what is in the place of directories."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            problem = "Is a directory"
        else:
            upwards = (each for each in path.parents if os.path.lexists(each))
            nearest = next(upwards, None)
            if nearest is None or nearest.is_dir():
                continue
            problem = f"{nearest} is {describe_file_kind(nearest.lstat().st_mode)} and no directory"
        msg = (
            f"cannot write {path}: {problem}. Nothing was written. Remove it, or pass another "
            "directory."
        )
        raise CommandError(msg)


def _reject_unwritable_directories(paths: Iterable[Path]) -> None:
    """Raise PermissionError if a file could not be created, so that not only some are written."""
    for path in paths:
        nearest = next((each for each in path.parents if each.is_dir()), path.parent)
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def _reject_existing_files(paths: Iterable[Path]) -> None:
    existing = [path for path in paths if os.path.lexists(path)]
    if existing:
        listed = "\n".join(f"  {path}" for path in existing)
        msg = (
            f"these files exist and differ:\n{listed}\n"
            "Nothing was written. Pass another directory, or --force to overwrite them."
        )
        raise CommandError(msg)
