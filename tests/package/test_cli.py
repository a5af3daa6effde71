"""
Tests of the installed command ``apscheduler-telemetry``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apscheduler_telemetry import __version__
from apscheduler_telemetry.cli import main
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.export import export_files
from tests.helpers.paths import ROOT


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command that is installed next to this Python."""
    command = Path(sys.executable).parent / "apscheduler-telemetry"
    return subprocess.run(
        [command, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def exported_files() -> dict[str, bytes]:
    """Return the files of the repository that the command exports."""
    return {
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
        """It writes every rule, route, template and dashboard unchanged, and nothing else."""
        completed = run("export", tmp_path / "new" / "directory")
        assert (completed.returncode, completed.stderr) == (0, "")
        expected = exported_files()
        assert "alerts/apscheduler.rules.yml" in expected
        assert "alerts/templates/apscheduler.tmpl" in expected
        assert "grafana/dashboards/overview.json" in expected
        assert "grafana/provisioning/dashboards/apscheduler.yml" in expected
        assert files_in(tmp_path / "new" / "directory") == expected

    def test_export_prints_a_line_for_each_file(self, tmp_path: Path) -> None:
        """It prints a line for each file."""
        lines = run("export", tmp_path).stdout.splitlines()
        assert sorted(lines) == sorted(f"wrote      {tmp_path / name}" for name in exported_files())

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
