"""Opening and replacing files in directories that other users may write to."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry.core import files
from tests.helpers.foreign_files import FOREIGN_FILES, PRECIOUS, assert_untouched, make_victim
from tests.helpers.threads import in_fork

pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="Windows has neither FIFOs nor owners of this kind"
)

USER, OTHER_USER = 65534, 65533


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a file, which is there, in a directory of its own."""
    directory = tmp_path / "shared"
    directory.mkdir()
    path = directory / "file"
    path.write_bytes(b"old")
    path.chmod(files.OWNER_ONLY_MODE)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Return a file elsewhere that must stay as it is."""
    victim = make_victim(tmp_path / "elsewhere")
    yield victim
    assert_untouched(victim)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """List the names of the files that are opened."""
    names: list[str] = []
    open_file = os.open

    def note_and_open(path: Any, *args: Any, **kwargs: Any) -> int:
        names.append(os.fspath(path))
        return open_file(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", note_and_open)
    return names


def next_descriptor() -> int:
    """Return the number of the next file that this process opens."""
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    return descriptor


@pytest.mark.parametrize("foreign", FOREIGN_FILES.values(), ids=FOREIGN_FILES)
class TestForeignFiles:
    """What is no regular file."""

    def test_it_is_looked_at_before_it_is_opened(
        self, path: Path, victim: Path, foreign: Callable[[Path, Path], None], opened: list[str]
    ) -> None:
        """It is not opened at all, as opening a device may already do something."""
        path.unlink()
        foreign(path, victim)
        opened.clear()
        with pytest.raises(files.UnusableFileError, match=f"is not opened: '{path}'"):
            files.open_regular_file(path)
        assert opened == []

    @pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR], ids=["read", "written"])
    def test_it_is_refused_if_it_is_put_there_in_between(
        self,
        path: Path,
        victim: Path,
        foreign: Callable[[Path, Path], None],
        flags: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """If it is exchanged after it was looked at, it is not used, and nothing is waited for."""
        check_regular_file = files.check_regular_file

        def check_and_exchange(path: Path) -> os.stat_result:
            status = check_regular_file(path)
            path.unlink()
            foreign(path, victim)
            return status

        monkeypatch.setattr(files, "check_regular_file", check_and_exchange)
        descriptor = next_descriptor()
        with pytest.raises(OSError, match=str(path)):
            files.open_regular_file(path, flags)
        assert next_descriptor() == descriptor

    def test_it_is_replaced_by_a_file(
        self, path: Path, victim: Path, foreign: Callable[[Path, Path], None]
    ) -> None:
        """A new content replaces it, unless it is a directory, and leaves nothing else there."""
        path.unlink()
        foreign(path, victim)
        if path.is_dir() and not path.is_symlink():
            with pytest.raises(IsADirectoryError):
                files.replace_private_file(path, b"new")
        else:
            files.replace_private_file(path, b"new")
            assert (path.read_bytes(), path.is_symlink()) == (b"new", False)
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]


class TestReplacement:
    """A file that is replaced in one step."""

    def test_names_of_temporary_files_cannot_be_foreseen(
        self, path: Path, opened: list[str]
    ) -> None:
        """Each has a random name, by which it is known as one that was left over."""
        for _ in range(2):
            files.replace_private_file(path, b"new")
        first, second = opened
        assert first != second
        assert all(len(name) > len(str(path)) + 16 for name in opened)
        assert all(map(files.is_partial_file, map(Path, opened)))
        assert not files.is_partial_file(path)

    def test_temporary_file_of_somebody_else_is_not_used(
        self, path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If somebody foresees the name after all, nothing is written there."""
        monkeypatch.setattr(secrets, "token_hex", lambda _: "foreseen")
        path.with_name(".file.foreseen.partial").hardlink_to(victim)
        with pytest.raises(FileExistsError):
            files.replace_private_file(path, b"new")
        assert path.read_bytes() == b"old"

    def test_content_is_never_partial(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The old content is there until the new one is complete, and after a failure."""
        seen: list[bytes] = []
        replace = Path.replace

        def look_and_replace(partial: Path, target: Path) -> Path:
            seen.append(path.read_bytes())
            return replace(partial, target)

        monkeypatch.setattr(Path, "replace", look_and_replace)
        with path.open("rb") as reader:
            files.replace_private_file(path, b"new")
            assert reader.read() == b"old"
        assert (seen, path.read_bytes()) == ([b"old"], b"new")

    @pytest.mark.parametrize("umask", [0o000, 0o022])
    def test_mode(self, path: Path, umask: int) -> None:
        """Files are for their owner only, or have the usual mode, whatever they had before."""
        previous = os.umask(umask)
        try:
            for mode in (0o600, 0o644, 0o666):
                path.chmod(mode)
                files.replace_private_file(path, b"private")
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
                files.replace_public_file(path, b"public")
                assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
        finally:
            os.umask(previous)


class TestHardLink:
    def test_nothing_stays_open(self, path: Path, victim: Path) -> None:
        """A hard link is refused by name and when it is opened, and no descriptor is lost."""
        path.unlink()
        path.hardlink_to(victim)
        descriptor = next_descriptor()
        for refuse in (files.open_or_create_private_file, files.ensure_private_file):
            with pytest.raises(files.UnusableFileError, match="Is a hard link"):
                refuse(path)
        assert next_descriptor() == descriptor
        assert victim.read_bytes() == PRECIOUS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
class TestOwners:
    """Root and the users of services share a directory."""

    @pytest.fixture
    def directory(self) -> Iterator[Path]:
        """Make a directory of `USER`, to which all may write, and of which all can be reached."""
        directory = Path(tempfile.mkdtemp())
        os.chown(directory, USER, -1)
        directory.chmod(0o777)
        yield directory
        shutil.rmtree(directory)

    @staticmethod
    def check_as(user: int, check: Callable[[], bool]) -> bool:
        """Return what `check` returns in a process of a user."""

        def change_user_and_check() -> bool:
            os.setgroups([])
            os.setuid(user)
            return check()

        return in_fork(change_user_and_check)

    @staticmethod
    def make_file(directory: Path, owner: int) -> Path:
        path = directory / "file"
        path.write_bytes(b"text")
        path.chmod(0o644)
        os.chown(path, owner, -1)
        return path

    @pytest.mark.parametrize("user", [USER, OTHER_USER])
    @pytest.mark.parametrize("owner", [0, USER], ids=["root", "owner of the directory"])
    def test_file_of_root_or_of_the_directorys_owner_is_used(
        self, directory: Path, owner: int, user: int
    ) -> None:
        """It is used by every user, although only its owner can change its mode."""
        path = self.make_file(directory, owner)

        def check() -> bool:
            return (
                files.is_missing_or_has_trusted_owner(path)
                and os.read(files.open_or_create_private_file(path), 4) == b"text"
            )

        assert self.check_as(user, check)
        assert stat.S_IMODE(path.stat().st_mode) == (0o600 if user == owner else 0o644)

    def test_file_of_the_own_user_is_used(self, directory: Path) -> None:
        """It is used in a directory of another user, and gets the mode for its owner only."""
        path = self.make_file(directory, OTHER_USER)
        assert self.check_as(
            OTHER_USER,
            lambda: (
                files.is_missing_or_has_trusted_owner(path)
                and bool(files.open_or_create_private_file(path))
            ),
        )
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_file_of_a_third_user_is_refused(self, directory: Path) -> None:
        """It is refused by every user, root included, and stays as it is."""
        path = self.make_file(directory, OTHER_USER)

        def check() -> bool:
            with pytest.raises(files.UnusableFileError, match="Belongs to another user"):
                files.open_or_create_private_file(path)
            return not files.is_missing_or_has_trusted_owner(path)

        assert check()
        assert self.check_as(USER, check)
        assert stat.S_IMODE(path.stat().st_mode) == 0o644

    def test_root_gives_private_files_to_the_owner_of_the_directory(self, directory: Path) -> None:
        """So that a service can go on with what root has created; public files stay root's."""
        os.close(files.open_or_create_private_file(directory / "created"))
        files.replace_private_file(directory / "replaced", b"new")
        files.replace_public_file(directory / "public", b"new")
        owners = {path.name: path.stat().st_uid for path in directory.iterdir()}
        assert owners == {"created": USER, "replaced": USER, "public": 0}


def test_file_keeps_its_path_where_names_of_open_files_are_forbidden(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the process may not look into /dev/fd, a library opens the file by its path."""
    look_up = os.stat

    def forbid(name: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if str(name).startswith("/dev/fd/"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(name))
        return look_up(name, *args, **kwargs)

    monkeypatch.setattr(os, "stat", forbid)
    with files.pinned_path(path, 3) as name:
        assert name == str(path)
