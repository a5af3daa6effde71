"""
``apscheduler-telemetry export``: write alert rules, Alertmanager configuration and dashboards.

The wheel contains these files, which Prometheus, Alertmanager and Grafana read on other machines.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.expected_jobs import read_expected_jobs
from apscheduler_telemetry.cli.expected_rules import FILE_NAME, build_rules
from apscheduler_telemetry.cli.output import write_output
from apscheduler_telemetry.core.files import (
    UnusableFileError,
    describe_kind,
    open_regular,
    replace_public,
)

_SOURCE_DIRECTORIES = ("alerts", "grafana/dashboards", "grafana/provisioning")
_EXPORTED_FILE_SUFFIXES = frozenset({".json", ".tmpl", ".yaml", ".yml"})
_EXCLUDED_DIRECTORIES = frozenset({"tests"})
_SHIPPED_RULES = Path("alerts/apscheduler.rules.yml")


class ExportedFiles(NamedTuple):
    """
    What `export_files` did.

    Attributes:
        written: files that were created or overwritten.
        unchanged: files that existed already with the same content.
    """

    written: list[Path]
    unchanged: list[Path]


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the parser of this command."""
    parser = commands.add_parser(
        "export",
        help="write alert rules, an Alertmanager configuration and Grafana dashboards",
        description="Write alert rules, an Alertmanager configuration and Grafana dashboards.",
        epilog="Exit status: 0, or 1 if a file is in the way or JOBS_YML is wrong; then nothing "
        "is written.",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="where to write them; created if missing"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that differ")
    parser.add_argument(
        "--expect",
        metavar="JOBS_YML",
        type=Path,
        action="append",
        default=[],
        help=f"a file with jobs that must exist, as `jobs` writes it; adds alerts/{FILE_NAME}. "
        "May be given several times",
    )
    parser.set_defaults(run_command=run_export_command)


def run_export_command(options: argparse.Namespace) -> None:
    """Export the files and print a line for each."""
    result = export_files(options.directory, force=options.force, expect=options.expect)
    lines = [f"wrote      {path}" for path in result.written]
    lines += [f"unchanged  {path}" for path in result.unchanged]
    write_output("\n".join(lines) + "\n")


def export_files(
    directory: Path, *, force: bool = False, expect: Sequence[Path] = ()
) -> ExportedFiles:
    """
    Write alert rules, Alertmanager configuration and dashboards into a directory.

    All conflicts are found before the first file is written. Other users, such as that of
    Prometheus, may read the files; no symbolic link below the directory is followed.

    Args:
        directory: where to write them; created if missing.
        force: whether to overwrite files that differ.
        expect: files with jobs that must exist; if any, a file of rules for these jobs is written.

    Raises:
        CommandError: a file exists and differs, or cannot be written, or one of `expect` is wrong.
    """
    sources = {name: source.read_bytes() for name, source in _find_files_to_export()}
    if expect:
        rules = build_rules(read_expected_jobs(expect), sources[_SHIPPED_RULES])
        sources[_SHIPPED_RULES.with_name(FILE_NAME)] = rules
    contents = {directory / name: content for name, content in sources.items()}
    try:
        _reject_linked_directories(directory, contents)
        _reject_obstacles(contents)
        unchanged = [path for path, content in contents.items() if _has_same_content(path, content)]
        written = [path for path in contents if path not in unchanged]
        if not force:
            _reject_existing(written)
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
        for path in written:
            replace_public(path, contents[path])
    except OSError as error:
        msg = (
            f"cannot write {error.filename}: {error.strerror}. "
            "Pass a directory that you may write to."
        )
        raise CommandError(msg) from error
    return ExportedFiles(written, unchanged)


def _find_files_to_export() -> Iterator[tuple[Path, Path]]:
    """Yield each file to export: its name below the target directory, and its path."""
    package = Path(__file__).parent.parent
    root = package / "_exported"
    if not root.is_dir():  # an editable install, whose files are where they are in the repository
        root = package.parent.parent
    for directory in _SOURCE_DIRECTORIES:
        for path in sorted((root / directory).rglob("*")):
            name = path.relative_to(root)
            if path.suffix in _EXPORTED_FILE_SUFFIXES and _EXCLUDED_DIRECTORIES.isdisjoint(
                name.parts
            ):
                yield name, path


def _has_same_content(path: Path, content: bytes) -> bool:
    try:
        with os.fdopen(open_regular(path), "rb") as file:
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
            problem = f"{nearest} is {describe_kind(nearest.lstat().st_mode)} and no directory"
        msg = (
            f"cannot write {path}: {problem}. Nothing was written. Remove it, or pass another "
            "directory."
        )
        raise CommandError(msg)


def _reject_existing(paths: list[Path]) -> None:
    existing = [path for path in paths if os.path.lexists(path)]
    if existing:
        listed = "\n".join(f"  {path}" for path in existing)
        msg = (
            f"these files exist and differ:\n{listed}\n"
            "Nothing was written. Pass another directory, or --force to overwrite them."
        )
        raise CommandError(msg)
