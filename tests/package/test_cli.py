"""
Tests of the installed command ``apscheduler-telemetry``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from apscheduler_telemetry import __version__
from apscheduler_telemetry.cli import main
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.export import export_files
from tests.helpers.foreign_files import FOREIGN_FILES, assert_untouched, make_victim
from tests.helpers.paths import ROOT


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command that is installed next to this Python."""
    command = Path(sys.executable).parent / "apscheduler-telemetry"
    return subprocess.run(
        [command, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def exported_files() -> dict[str, bytes]:
    """Return the files of the repository that the command exports, as it exports them."""
    repository = "https://github.com/apscheduler-telemetry/apscheduler-telemetry/blob/main"
    runbook = (ROOT / "docs" / "runbook.md").read_text("utf-8").replace("](../", f"]({repository}/")
    runbook = re.sub(r"\]\((\w+\.md)", rf"]({repository}/docs/\1", runbook)
    return {"docs/runbook.md": runbook.encode()} | {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for part in ("alerts", "grafana/dashboards", "grafana/provisioning")
        for path in (ROOT / part).rglob("*")
        if path.suffix in {".json", ".tmpl", ".yml", ".yaml"}
        and "tests" not in path.relative_to(ROOT).parts
    }


def files_in(directory: Path) -> dict[str, bytes]:
    """Return all files below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


class TestExport:
    """`apscheduler-telemetry export DIR`."""

    def test_export_writes_the_files_of_the_repository(self, tmp_path: Path) -> None:
        """It writes every rule, route, template and dashboard unchanged, and the runbook."""
        completed = run("export", tmp_path / "new" / "directory")
        assert (completed.returncode, completed.stderr) == (0, "")
        expected = exported_files()
        assert "alerts/apscheduler.rules.yml" in expected
        assert "alerts/apscheduler.native.rules.yml" in expected
        assert "alerts/templates/apscheduler.tmpl" in expected
        assert "grafana/dashboards/overview.json" in expected
        assert "grafana/provisioning/dashboards/apscheduler.yml" in expected
        assert files_in(tmp_path / "new" / "directory") == expected

    def test_export_prints_a_line_for_each_file(self, tmp_path: Path) -> None:
        """It prints a line for each file."""
        lines = run("export", tmp_path).stdout.splitlines()
        assert sorted(lines) == sorted(f"wrote      {tmp_path / name}" for name in exported_files())

    def test_file_that_only_begins_alike_differs(self, tmp_path: Path) -> None:
        """A file with more than the content is another one, and is not read as a whole."""
        export_files(tmp_path)
        path = tmp_path / "alerts" / "apscheduler.rules.yml"
        with path.open("ab") as file:
            file.truncate(path.stat().st_size + 50_000_000)
        tracemalloc.start()
        try:
            with pytest.raises(CommandError, match="exist and differ"):
                export_files(tmp_path)
            assert tracemalloc.get_traced_memory()[1] < 25_000_000
        finally:
            tracemalloc.stop()

    def test_unchanged_files_are_not_written(self, tmp_path: Path) -> None:
        """Files that have the same content already are not written."""
        run("export", tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        completed = run("export", tmp_path)
        assert completed.returncode == 0
        assert {line.split()[0] for line in completed.stdout.splitlines()} == {"unchanged"}
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    def test_differing_file_is_not_overwritten(self, tmp_path: Path) -> None:
        """If a file differs, the error names it, and nothing is written."""
        existing = tmp_path / "alerts" / "alertmanager.yml"
        existing.parent.mkdir()
        existing.write_text("existing")
        completed = run("export", tmp_path)
        assert completed.returncode == 1
        assert completed.stdout == ""
        assert str(existing) in completed.stderr
        assert "--force" in completed.stderr
        assert files_in(tmp_path) == {"alerts/alertmanager.yml": b"existing"}

    def test_force_overwrites_files(self, tmp_path: Path) -> None:
        """With --force it overwrites files."""
        existing = tmp_path / "alerts" / "alertmanager.yml"
        existing.parent.mkdir()
        existing.write_text("existing")
        completed = run("export", tmp_path, "--force")
        assert completed.returncode == 0
        assert f"wrote      {existing}" in completed.stdout
        assert files_in(tmp_path) == exported_files()

    def test_file_instead_of_the_directory_is_an_error(self, tmp_path: Path) -> None:
        """A file instead of the directory leads to an error."""
        (tmp_path / "file").touch()
        with pytest.raises(CommandError, match=r"cannot write .*file"):
            export_files(tmp_path / "file")

    def test_conflicts_are_found_before_the_first_file_is_written(self, tmp_path: Path) -> None:
        """Conflicts are found before the first file is written, with --force too."""
        (tmp_path / "grafana").touch()
        with pytest.raises(CommandError, match=r"cannot write .*grafana"):
            export_files(tmp_path, force=True)
        assert files_in(tmp_path) == {"grafana": b""}

    def test_directory_instead_of_a_file_is_an_error(self, tmp_path: Path) -> None:
        """A directory instead of a file leads to an error, and nothing is written."""
        directory = tmp_path / "grafana" / "dashboards" / "job.json"
        directory.mkdir(parents=True)
        with pytest.raises(CommandError, match=r"cannot write .*/job\.json: Is a directory"):
            export_files(tmp_path, force=True)
        assert files_in(tmp_path) == {}
        assert directory.is_dir()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root has all permissions")
    def test_directory_without_write_permission_is_an_error(self, tmp_path: Path) -> None:
        """A directory without write permission leads to exit status 1."""
        tmp_path.chmod(0o500)
        assert main(["export", str(tmp_path / "new")]) == 1

    def test_dangling_link_is_an_error(self, tmp_path: Path) -> None:
        """A dangling symbolic link counts as a file that differs."""
        (tmp_path / "alerts").mkdir()
        (tmp_path / "alerts" / "alertmanager.yml").symlink_to(tmp_path / "nowhere")
        with pytest.raises(CommandError, match=r"alertmanager\.yml"):
            export_files(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs")
class TestSharedDirectory:
    """`apscheduler-telemetry export` to a directory that other users may write to."""

    @pytest.mark.parametrize("foreign", FOREIGN_FILES.values(), ids=FOREIGN_FILES)
    def test_foreign_file_is_not_opened(
        self, tmp_path: Path, foreign: Callable[[Path, Path], None]
    ) -> None:
        """What is no regular file counts as a file that differs; --force replaces it."""
        victim = make_victim(tmp_path / "elsewhere")
        path = tmp_path / "m" / "alerts" / "alertmanager.yml"
        path.parent.mkdir(parents=True)
        foreign(path, victim)
        with pytest.raises(CommandError, match=r"alertmanager\.yml"):
            export_files(tmp_path / "m")
        assert not (tmp_path / "m" / "grafana").exists()
        if path.is_dir():
            with pytest.raises(CommandError, match="Is a directory"):
                export_files(tmp_path / "m", force=True)
        else:
            export_files(tmp_path / "m", force=True)
            assert files_in(tmp_path / "m") == exported_files()
        assert_untouched(victim)

    @pytest.mark.parametrize("foreign", FOREIGN_FILES.values(), ids=FOREIGN_FILES)
    def test_temporary_file_has_a_random_name(
        self, tmp_path: Path, foreign: Callable[[Path, Path], None]
    ) -> None:
        """A file with a name that could be guessed changes nothing."""
        victim = make_victim(tmp_path / "elsewhere")
        alerts = tmp_path / "m" / "alerts"
        alerts.mkdir(parents=True)
        foreign(alerts / ".alertmanager.yml.partial", victim)
        export_files(tmp_path / "m")
        assert_untouched(victim)

    @pytest.mark.parametrize("name", ["alerts", "grafana", "grafana/dashboards"])
    @pytest.mark.parametrize("force", [False, True])
    def test_link_to_a_directory_is_not_followed(
        self, tmp_path: Path, name: str, *, force: bool
    ) -> None:
        """Nothing is written, neither there nor elsewhere."""
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "m" / name
        link.parent.mkdir(parents=True)
        link.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CommandError, match=f"{link} is a symbolic link"):
            export_files(tmp_path / "m", force=force)
        assert files_in(tmp_path) == {}

    @pytest.mark.parametrize("where", ["", "alerts", "grafana/dashboards"])
    @pytest.mark.parametrize(
        ("make", "kind"),
        [
            (os.mkfifo, "a FIFO"),
            (Path.touch, "a file"),
            (lambda path: path.symlink_to("nowhere"), "a symbolic link"),
            (lambda path: path.symlink_to(path), "a symbolic link"),
        ],
        ids=["fifo", "file", "dangling link", "endless link"],
    )
    @pytest.mark.parametrize("force", [False, True])
    def test_message_names_what_is_in_the_way(
        self, tmp_path: Path, where: str, make: Callable[[Path], None], kind: str, *, force: bool
    ) -> None:
        """What is no directory is named with its kind, and nothing is written."""
        obstacle = tmp_path / "m" / where
        obstacle.parent.mkdir(parents=True, exist_ok=True)
        make(obstacle)
        with pytest.raises(CommandError, match=f"{obstacle} is {kind}") as info:
            export_files(tmp_path / "m", force=force)
        assert "Nothing was written" in str(info.value)
        assert "pass another directory" in str(info.value)
        assert set(files_in(tmp_path)) <= {obstacle.relative_to(tmp_path).as_posix()}

    def test_directory_in_the_place_of_a_file_is_not_to_be_forced(self, tmp_path: Path) -> None:
        """The message does not recommend --force, which replaces no directory."""
        (tmp_path / "alerts" / "alertmanager.yml").mkdir(parents=True)
        with pytest.raises(CommandError, match="Is a directory") as info:
            export_files(tmp_path)
        assert "--force" not in str(info.value)

    def test_other_users_may_read_the_files(self, tmp_path: Path) -> None:
        """Prometheus runs as another user: the files have the mode that the umask allows."""
        previous = os.umask(0o022)
        try:
            export_files(tmp_path)
        finally:
            os.umask(previous)
        modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in exported_files()}
        assert modes == {0o644}

    def test_no_temporary_file_remains_after_an_error(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """If a file cannot be replaced, the temporary file is removed."""

        def fail(*_: object) -> None:
            raise OSError(errno.EIO, "Input/output error", "x")

        monkeypatch.setattr(Path, "replace", fail)
        with pytest.raises(CommandError, match=r"cannot write .*/runbook\.md: Input/output error"):
            export_files(tmp_path)
        assert files_in(tmp_path) == {}


class TestCommand:
    """The command and its help."""

    def test_help_names_the_subcommands(self) -> None:
        """The help fits on a screen and lists the sub-commands."""
        completed = run("--help")
        assert completed.returncode == 0
        assert "export" in completed.stdout
        assert len(completed.stdout.splitlines()) <= 24

    def test_version_is_printed(self) -> None:
        """It prints the version."""
        assert run("--version").stdout.strip() == __version__

    @pytest.mark.parametrize("arguments", [(), ("export",), ("import", "x")], ids=str)
    def test_invalid_arguments_are_an_error(self, arguments: tuple[str, ...]) -> None:
        """An invalid command line leads to a usage message and exit status 2."""
        completed = run(*arguments)
        assert completed.returncode == 2
        assert "usage: apscheduler-telemetry" in completed.stderr

    def test_command_imports_no_dependency(self) -> None:
        """The command imports neither APScheduler nor Prometheus nor OpenTelemetry."""
        script = (
            "import sys; from apscheduler_telemetry.cli import main\n"
            "print([m for m in ('apscheduler', 'opentelemetry', 'prometheus_client')"
            " if m in sys.modules])"
        )
        completed = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert completed.stdout.strip() == "[]"
