"""
The command ``apscheduler-telemetry``: hands out the files that are not Python.

Alert rules, an Alertmanager configuration and dashboards belong to Prometheus, Alertmanager and
Grafana, which run elsewhere. The wheel carries them, so that ``pip install`` is all one needs.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from apscheduler_telemetry._version import __version__

_PARTS = ("alerts", "grafana/dashboards", "grafana/provisioning")
_HANDED_OUT = frozenset({".json", ".tmpl", ".yaml", ".yml"})
_NOT_HANDED_OUT = frozenset({"tests"})


class ExportError(Exception):
    """Raised when files cannot be written; the message says why, and what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Do as the command line says.

    Returns:
        0; 1 if nothing could be written. A wrong command line ends the program with 2.
    """
    options = _parser().parse_args(arguments)
    try:
        written, same = export(Path(options.directory), force=options.force)
    except ExportError as error:
        print(f"apscheduler-telemetry: {error}", file=sys.stderr)  # noqa: T201  # its output
        return 1
    for path in written:
        print(f"wrote      {path}")  # noqa: T201
    for path in same:
        print(f"unchanged  {path}")  # noqa: T201
    return 0


def export(directory: Path, *, force: bool = False) -> tuple[list[Path], list[Path]]:
    """
    Write alert rules, Alertmanager configuration and dashboards into a directory.

    All or nothing: whatever is in the way is found before the first file is written.

    Args:
        directory: where to; made if it is not there.
        force: whether to overwrite files that differ.

    Returns:
        The files that were written, and those that were there already with the same content.

    Raises:
        ExportError: a file is there already and differs, or cannot be written.
    """
    wanted = {directory / name: source.read_bytes() for name, source in _files()}
    try:
        same = [path for path, content in wanted.items() if _has(path, content)]
        different = [path for path in wanted if path not in same and os.path.lexists(path)]
        if different and not force:
            listed = "\n".join(f"  {path}" for path in different)
            msg = (
                f"these files are there already and differ:\n{listed}\n"
                "Nothing was written. Pass another directory, or --force to overwrite them."
            )
            raise ExportError(msg)
        written = [path for path in wanted if path not in same]
        for path in written:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        for path in written:
            # Beside it and then renamed, so that whoever reads it meets a whole file.
            partial = path.with_name(f".{path.name}.partial")
            partial.write_bytes(wanted[path])
            partial.replace(path)
    except OSError as error:
        msg = f"cannot write {error.filename}: {error.strerror}. Pass a directory that is yours."
        raise ExportError(msg) from error
    return written, same


def _has(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _files() -> Iterator[tuple[Path, Path]]:
    """Yield the files to hand out: their names below the directory, and where they are."""
    here = Path(__file__).parent
    root = here / "_exported"
    if not root.is_dir():  # not installed from a wheel, but from a checkout in place
        root = here.parent.parent
    for part in _PARTS:
        for path in sorted((root / part).rglob("*")):
            name = path.relative_to(root)
            if path.suffix in _HANDED_OUT and _NOT_HANDED_OUT.isdisjoint(name.parts):
                yield name, path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="apscheduler-telemetry",
        description="Files that go with the metrics of apscheduler-telemetry.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "export",
        help="write alert rules, an Alertmanager configuration and Grafana dashboards",
        description="Write alert rules, an Alertmanager configuration and Grafana dashboards.",
        epilog="Exit status: 0; 1 if something is in the way, and then nothing is written.",
    )
    command.add_argument("directory", metavar="DIR", help="where to; made if it is not there")
    command.add_argument("--force", action="store_true", help="overwrite files that differ")
    return parser
