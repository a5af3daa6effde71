"""
Opens and replaces files in directories that other users may write to.

Another user can put a symbolic link, a FIFO or a device in the place of a file of ours. A link
would make this process change a file elsewhere, and opening a FIFO waits until somebody writes to
it. So nothing but regular files is opened here, no link in the last part of a path is followed
unless the user has chosen that path, and temporary files have random names. Files that this package
writes are for their owner only, unless the caller says otherwise.

Everything that reads or writes a file uses this module.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

OWNER_ONLY_MODE = 0o600
"""The mode of a file that only its owner may read and write."""

# O_NOFOLLOW and O_NONBLOCK matter only if the file is exchanged after `lstat` has looked at it.
_SAFE_OPEN_FLAGS = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)  # on Windows
)


class UnusableFileError(OSError):
    """Raised instead of using what is no regular file, is too large, or others control."""

    @property
    def problem(self) -> str:
        """What is wrong with the file, as the rest of a sentence that begins with its name."""
        text = str(self.strerror)
        return f"{text[:1].lower()}{text[1:]}"


def open_regular_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """
    Open an existing regular file, without waiting for anything.

    Args:
        path: the file; a symbolic link is not followed.
        flags: those of `os.open`.

    Returns:
        A descriptor that child programs do not inherit.

    Raises:
        UnusableFileError: there is something else than a regular file.
        OSError: it is missing, or cannot be opened.
    """
    check_regular_file(path)  # first, as opening a device may already do something
    return _open_and_reject_irregular(path, flags | _SAFE_OPEN_FLAGS)


def read_configured_file(path: Path, max_bytes: int) -> bytes:
    """
    Read a small file whose path the user has chosen, without waiting for anything.

    Args:
        path: the file; symbolic links are followed, as Kubernetes replaces secrets by these.
        max_bytes: the largest size.

    Raises:
        UnusableFileError: there is something else than a regular file, or it is larger.
        OSError: it is missing, or cannot be read.
    """
    with os.fdopen(_open_configured_file(path), "rb") as file:
        content = file.read(max_bytes + 1)
    _check_size(path, len(content), max_bytes)
    return content


@contextmanager
def pinned_path(path: Path, max_bytes: int) -> Iterator[str]:
    """
    Check a file as `read_configured_file` does, for a library that opens it by name.

    Yields:
        A name of the file that was checked, so that the library opens no other one that replaces
        it meanwhile. If the system has no such names, it is the path. Each library call needs a
        name of its own, as some systems share the position in the file.
    """
    descriptor = _open_configured_file(path)
    try:
        _check_size(path, os.fstat(descriptor).st_size, max_bytes)
        name = f"/dev/fd/{descriptor}"
        # Before Python 3.14, `Path.exists` raises PermissionError where /dev/fd is forbidden.
        yield name if os.path.exists(name) else str(path)  # noqa: PTH110  # see above
    finally:
        os.close(descriptor)


def check_regular_file(path: Path) -> os.stat_result:
    """
    Return the status of a regular file; for files that a library opens by name.

    Raises:
        UnusableFileError: there is something else than a regular file.
        FileNotFoundError: it is missing.
    """
    status = path.lstat()
    _reject_irregular(path, status.st_mode)
    return status


def open_or_create_private_file(path: Path, flags: int = os.O_RDONLY) -> int:
    """
    Open a regular file that only its owner may read and write, and create it if it is missing.

    A file that is there already gets that mode. A file that root creates gets the owner of the
    directory, so that root and the user of a service can share a directory of that user.

    Args:
        path: the file; a symbolic link is not followed.
        flags: those of `os.open`.

    Returns:
        A descriptor that child programs do not inherit.

    Raises:
        UnusableFileError: there is something else than a regular file, a file of a third user, or
            one with another name elsewhere (a hard link).
        OSError: it cannot be created or opened.
    """
    try:
        descriptor = os.open(
            path, flags | os.O_CREAT | os.O_EXCL | _SAFE_OPEN_FLAGS, OWNER_ONLY_MODE
        )
    except FileExistsError:
        descriptor = open_regular_file(path, flags)
        try:
            status = os.fstat(descriptor)
            _reject_hard_link_or_untrusted_owner(path, status)
            if not _is_owner_only(status):
                with suppress(PermissionError):  # it belongs to root, or the directory's owner
                    os.fchmod(descriptor, OWNER_ONLY_MODE)
        except BaseException:
            os.close(descriptor)
            raise
    else:
        _give_to_owner_of_directory(path, descriptor)
    return descriptor


def ensure_private_file(path: Path) -> None:
    """
    Do the same as `open_or_create_private_file` for a file that a library opens by name.

    The file is not even opened if nothing has to be changed: closing it would release all locks
    that SQLite holds on it in this process.

    Raises:
        OSError: as of `open_or_create_private_file`.
    """
    with suppress(FileNotFoundError):
        status = check_regular_file(path)
        _reject_hard_link_or_untrusted_owner(path, status)
        if _is_owner_only(status):
            return
    os.close(open_or_create_private_file(path))


def is_missing_or_has_trusted_owner(path: Path) -> bool:
    """Return whether nothing is there, or a regular file that no third user controls."""
    try:
        status = check_regular_file(path)
    except FileNotFoundError:
        return True
    except UnusableFileError:
        return False
    return _has_trusted_owner(path, status)


def replace_private_file(path: Path, content: bytes) -> None:
    """
    Replace a file in one step by one that only its owner may read and write.

    If root does so, the file gets the owner of the directory.

    Args:
        path: the file; if it is a symbolic link, the link is replaced.
        content: the whole new content.

    Raises:
        OSError: it cannot be written; the old content is still there.
    """
    _replace_file(path, content, OWNER_ONLY_MODE)


def replace_public_file(path: Path, content: bytes) -> None:
    """Do the same as `replace_private_file` for a file for others, with the usual mode."""
    _replace_file(path, content, 0o666)


def scheduler_file_stem(scheduler: str) -> str:
    """Return the first part of the names of all files of a scheduler: readable, and unique."""
    readable = re.sub(r"[^A-Za-z0-9]+", "-", scheduler)[:30]
    digest = hashlib.sha256(scheduler.encode("utf-8", "backslashreplace")).hexdigest()[:8]
    return f"apscheduler-{readable}-{digest}"


def describe_file_kind(mode: int) -> str:
    """Return what a file is whose `os.stat_result.st_mode` is given, such as ``a FIFO``."""
    return next((text for is_kind, text in _FILE_KINDS if is_kind(mode)), "no regular file")


def is_partial_file(path: Path) -> bool:
    """Return whether this is a temporary file, whose content is to replace that of another."""
    return path.suffix == _PARTIAL_SUFFIX


def _replace_file(path: Path, content: bytes, mode: int) -> None:
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}{_PARTIAL_SUFFIX}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE_OPEN_FLAGS, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode == OWNER_ONLY_MODE:
                _give_to_owner_of_directory(path, descriptor)
            file.write(content)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def _open_configured_file(path: Path) -> int:
    _reject_irregular(path, path.stat().st_mode)
    return _open_and_reject_irregular(
        path, os.O_RDONLY | _SAFE_OPEN_FLAGS & ~getattr(os, "O_NOFOLLOW", 0)
    )


def _open_and_reject_irregular(path: Path, flags: int) -> int:
    descriptor = os.open(path, flags)
    try:
        _reject_irregular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check_size(path: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        message = f"Has more than {max_bytes} bytes and is not read"
        raise UnusableFileError(errno.EFBIG, message, str(path))


def _reject_irregular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        message = f"Is {describe_file_kind(mode)} and is not opened"
        raise UnusableFileError(errno.EINVAL, message, str(path))


def _reject_hard_link_or_untrusted_owner(path: Path, status: os.stat_result) -> None:
    if status.st_nlink > 1:
        raise UnusableFileError(errno.EMLINK, "Is a hard link and is not opened", str(path))
    if not _has_trusted_owner(path, status):
        message = "Belongs to another user and is not opened"
        raise UnusableFileError(errno.EPERM, message, str(path))


def _is_owner_only(status: os.stat_result) -> bool:
    return os.name == "nt" or not stat.S_IMODE(status.st_mode) & ~OWNER_ONLY_MODE


def _has_trusted_owner(path: Path, status: os.stat_result) -> bool:
    """Return whether a file belongs to this process' user, to root, or to the directory's owner."""
    if os.name == "nt":
        return True
    # The owner of the directory could replace the file anyway. A network file system may show an
    # owner that is none of its users, but then it shows the same one for the directory.
    return status.st_uid in {os.geteuid(), 0, path.parent.stat().st_uid}


def _give_to_owner_of_directory(path: Path, descriptor: int) -> None:
    if os.name != "nt" and os.geteuid() == 0:
        owner = path.parent.stat().st_uid
        if owner:
            with suppress(PermissionError):  # a root without that capability
                os.fchown(descriptor, owner, -1)


_PARTIAL_SUFFIX = ".partial"
_FILE_KINDS = (
    (stat.S_ISREG, "a file"),
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
