"""The command line, as it is installed."""

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

ROOT = Path(__file__).parent.parent


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command that pip has installed beside this Python."""
    command = Path(sys.executable).parent / "apscheduler-telemetry"
    return subprocess.run(
        [command, *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def handed_out() -> dict[str, bytes]:
    """Return the files of the repository that are to be handed out, tests aside."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_bytes()
        for part in ("alerts", "grafana/dashboards", "grafana/provisioning")
        for path in (ROOT / part).rglob("*")
        if path.suffix in {".json", ".tmpl", ".yml", ".yaml"}
        and "tests" not in path.relative_to(ROOT).parts
    }


def found(directory: Path) -> dict[str, bytes]:
    """Return all files below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


class TestExport:
    """`apscheduler-telemetry export DIR`."""

    def test_writes_what_is_in_the_repository(self, tmp_path: Path) -> None:
        """Every rule, route, template and dashboard, byte for byte, and nothing else."""
        done = run("export", tmp_path / "new" / "directory")
        assert (done.returncode, done.stderr) == (0, "")
        expected = handed_out()
        assert "alerts/apscheduler.rules.yml" in expected
        assert "alerts/templates/apscheduler.tmpl" in expected
        assert "grafana/dashboards/overview.json" in expected
        assert "grafana/provisioning/dashboards/apscheduler.yml" in expected
        assert found(tmp_path / "new" / "directory") == expected

    def test_says_what_it_wrote(self, tmp_path: Path) -> None:
        """A line for each file, with its path."""
        lines = run("export", tmp_path).stdout.splitlines()
        assert sorted(lines) == sorted(f"wrote      {tmp_path / name}" for name in handed_out())

    def test_again(self, tmp_path: Path) -> None:
        """What is there with the same content is left alone."""
        run("export", tmp_path)
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        done = run("export", tmp_path)
        assert done.returncode == 0
        assert {line.split()[0] for line in done.stdout.splitlines()} == {"unchanged"}
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    def test_never_overwrites(self, tmp_path: Path) -> None:
        """A file that differs stays, is named, and nothing else is written either."""
        mine = tmp_path / "alerts" / "alertmanager.yml"
        mine.parent.mkdir()
        mine.write_text("mine")
        done = run("export", tmp_path)
        assert done.returncode == 1
        assert done.stdout == ""
        assert str(mine) in done.stderr
        assert "--force" in done.stderr
        assert found(tmp_path) == {"alerts/alertmanager.yml": b"mine"}

    def test_force(self, tmp_path: Path) -> None:
        """With --force it does."""
        mine = tmp_path / "alerts" / "alertmanager.yml"
        mine.parent.mkdir()
        mine.write_text("mine")
        done = run("export", tmp_path, "--force")
        assert done.returncode == 0
        assert f"wrote      {mine}" in done.stdout
        assert found(tmp_path) == handed_out()

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        """A directory that is a file is an error in a sentence."""
        (tmp_path / "file").touch()
        with pytest.raises(CommandError, match=r"cannot write .*file"):
            export_files(tmp_path / "file")

    def test_all_or_nothing(self, tmp_path: Path) -> None:
        """What cannot be written is found before the first file is, with --force as well."""
        (tmp_path / "grafana").touch()
        with pytest.raises(CommandError, match=r"cannot write .*grafana"):
            export_files(tmp_path, force=True)
        assert found(tmp_path) == {"grafana": b""}

    def test_a_directory_in_the_way(self, tmp_path: Path) -> None:
        """A directory where a file should go is named, not replaced, and nothing is written."""
        directory = tmp_path / "grafana" / "dashboards" / "job.json"
        directory.mkdir(parents=True)
        with pytest.raises(CommandError, match=r"cannot write .*/job\.json: Is a directory"):
            export_files(tmp_path, force=True)
        assert found(tmp_path) == {}
        assert directory.is_dir()

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_directory_of_somebody_else(self, tmp_path: Path) -> None:
        """So is one that cannot be written to."""
        tmp_path.chmod(0o500)
        assert main(["export", str(tmp_path / "new")]) == 1

    def test_a_dangling_link(self, tmp_path: Path) -> None:
        """What is in the way and cannot be read counts as different."""
        (tmp_path / "alerts").mkdir()
        (tmp_path / "alerts" / "alertmanager.yml").symlink_to(tmp_path / "nowhere")
        with pytest.raises(CommandError, match=r"alertmanager\.yml"):
            export_files(tmp_path)


class TestCommand:
    """The command itself."""

    def test_help(self) -> None:
        """It fits on a screen, and names the one thing that it does."""
        done = run("--help")
        assert done.returncode == 0
        assert "export" in done.stdout
        assert len(done.stdout.splitlines()) <= 24

    def test_version(self) -> None:
        """It says its version."""
        assert run("--version").stdout.strip() == __version__

    @pytest.mark.parametrize("arguments", [(), ("export",), ("import", "x")], ids=str)
    def test_wrong(self, arguments: tuple[str, ...]) -> None:
        """A wrong command line is told how it goes, with status 2."""
        done = run(*arguments)
        assert done.returncode == 2
        assert "usage: apscheduler-telemetry" in done.stderr

    def test_loads_nothing(self) -> None:
        """Neither APScheduler nor Prometheus nor OpenTelemetry is loaded for it."""
        script = (
            "import sys; from apscheduler_telemetry.cli import main\n"
            "print([m for m in ('apscheduler', 'opentelemetry', 'prometheus_client')"
            " if m in sys.modules])"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"
