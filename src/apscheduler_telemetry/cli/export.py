"""
``apscheduler-telemetry export``: write alert rules, Alertmanager configuration and dashboards.

The wheel contains these files, which Prometheus, Alertmanager and Grafana read on other machines.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.core.files import (
    UnusableFileError,
    describe_kind,
    open_regular,
    replace_public,
)

_SOURCE_DIRECTORIES = ("alerts", "grafana/dashboards", "grafana/provisioning")
_EXPORTED_FILE_SUFFIXES = frozenset({".json", ".tmpl", ".yaml", ".yml"})
_EXCLUDED_DIRECTORIES = frozenset({"tests"})


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
        epilog="Exit status: 0, or 1 if a file is in the way; then nothing is written.",
    )
    parser.add_argument(
        "directory", metavar="DIR", type=Path, help="where to write them; created if missing"
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that differ")
    parser.set_defaults(run_command=run_export_command)


def run_export_command(options: argparse.Namespace) -> None:
    """Export the files and print a line for each."""
    result = export_files(options.directory, force=options.force)
    for path in result.written:
        print(f"wrote      {path}")  # noqa: T201  # the output of the command
    for path in result.unchanged:
        print(f"unchanged  {path}")  # noqa: T201


def export_files(directory: Path, *, force: bool = False) -> ExportedFiles:
    """
    Write alert rules, Alertmanager configuration and dashboards into a directory.

    All conflicts are found before the first file is written. Other users, such as that of
    Prometheus, may read the files; no symbolic link below the directory is followed.

    Args:
        directory: where to write them; created if missing.
        force: whether to overwrite files that differ.

    Raises:
        CommandError: a file exists and differs, or cannot be written.
    """
    contents = {directory / name: source.read_bytes() for name, source in _find_files_to_export()}
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
