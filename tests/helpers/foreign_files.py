"""What other users can put in the place of a file, in a directory that they may write to."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

PRECIOUS = b"precious\n"


def _link_to_file(path: Path, victim: Path) -> None:
    path.symlink_to(victim)


def _dangling_link(path: Path, victim: Path) -> None:
    path.symlink_to(victim.with_name("nothing"))


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _link_to_fifo(path: Path, victim: Path) -> None:
    os.mkfifo(victim.with_name("fifo"))
    path.symlink_to(victim.with_name("fifo"))


def _directory(path: Path, _: Path) -> None:
    path.mkdir()
    (path / "file").touch()  # so that it is not removed by accident


def _socket(path: Path, _: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket has at most 107 bytes
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def _device(path: Path, _: Path) -> None:
    try:
        os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))  # as /dev/zero, which never ends
    except PermissionError:
        pytest.skip("only root can make a device")


FOREIGN_FILES: Mapping[str, Callable[[Path, Path], None]] = {
    "link to a file": _link_to_file,
    "dangling link": _dangling_link,
    "fifo": _fifo,
    "link to a fifo": _link_to_fifo,
    "directory": _directory,
    "socket": _socket,
    "device": _device,
}
"""Puts something at a path; the second argument is a file that must stay as it is."""


def make_victim(directory: Path) -> Path:
    """Return a new file outside of the shared directory."""
    directory.mkdir()
    victim = directory / "victim"
    victim.write_bytes(PRECIOUS)
    victim.chmod(0o644)
    os.utime(victim, (1, 1))
    return victim


def assert_untouched(victim: Path) -> None:
    """Check that nothing was written to the file, and nothing next to it."""
    status = victim.stat()
    assert victim.read_bytes() == PRECIOUS
    assert (status.st_mode & 0o777, status.st_mtime) == (0o644, 1)
    assert not victim.with_name("nothing").exists()
