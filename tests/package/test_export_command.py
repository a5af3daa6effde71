"""
Options of ``apscheduler-telemetry export``, and what it says if a file cannot be written.

The files themselves, and directories of other users, are the subject of test_cli.py.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apscheduler_telemetry.cli import main
from apscheduler_telemetry.cli.errors import CommandError
from apscheduler_telemetry.cli.export import export_files
from tests.helpers.paths import ROOT

REPOSITORY = "https://github.com/apscheduler-telemetry/apscheduler-telemetry/blob/main/"
RUNBOOK_URL = f"{REPOSITORY}docs/runbook.md"


def sizes_in(directory: Path) -> dict[Path, int]:
    """Return all files below a directory, hidden ones too, with their sizes."""
    return {path: path.stat().st_size for path in directory.rglob("*") if path.is_file()}


def put_a_file_for_the_target(target: Path, _: pytest.MonkeyPatch) -> None:
    target.rmdir()
    target.touch()


def put_a_file_for_a_directory(target: Path, _: pytest.MonkeyPatch) -> None:
    (target / "alerts").touch()


def put_a_directory_for_a_file(target: Path, _: pytest.MonkeyPatch) -> None:
    (target / "docs" / "runbook.md").mkdir(parents=True)


def put_a_link_for_a_directory(target: Path, _: pytest.MonkeyPatch) -> None:
    (target / "alerts").symlink_to(target.parent)


def put_another_file(target: Path, _: pytest.MonkeyPatch) -> None:
    (target / "docs").mkdir()
    (target / "docs" / "runbook.md").write_text("x")


def deny_access(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere, so that the permissions of the directory would deny nothing."""
    monkeypatch.setattr(os, "access", lambda path, mode: path != target)


OBSTACLES = (
    put_a_file_for_the_target,
    put_a_file_for_a_directory,
    put_a_directory_for_a_file,
    put_a_link_for_a_directory,
    put_another_file,
    deny_access,
)


class TestDryRun:
    """`export --dry-run`."""

    def test_paths_and_sizes_are_listed_and_nothing_is_written(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It lists what a run would write, with the sizes, and creates not even the directory."""
        target = tmp_path / "target"
        assert main(["export", "--dry-run", str(target)]) == 0
        assert not target.exists()
        lines = capsys.readouterr().out.splitlines()
        export_files(target)
        assert sorted(lines) == sorted(
            f"would write  {path}  {size:,} bytes" for path, size in sizes_in(target).items()
        )

    @pytest.mark.once
    def test_page_shows_what_it_prints(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The example of docs/cli.md begins as the output does, but for the sizes."""
        monkeypatch.chdir(tmp_path)
        assert main(["export", "--dry-run", "monitoring"]) == 0
        begin = "\n".join(capsys.readouterr().out.splitlines()[:2])
        page = (ROOT / "docs" / "cli.md").read_text("utf-8")
        begin, page = (re.sub(r"  [\d,]+ bytes", "  N bytes", text) for text in (begin, page))
        assert f"export --dry-run monitoring\n{begin}\n..." in page

    def test_json_says_what_was_done_with_each_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Paths and sizes are those of the files, in a dry run, a real one, and one after it."""
        target = tmp_path / "target"
        for action, options in (("would write", ["--dry-run"]), ("wrote", []), ("unchanged", [])):
            assert main(["export", "--json", *options, str(target)]) == 0
            listed = json.loads(capsys.readouterr().out)
            assert {each["action"] for each in listed} == {action}
        assert {each["path"]: each["bytes"] for each in listed} == {
            str(path): size for path, size in sizes_in(target).items()
        }

    def test_only_files_that_change_would_be_written(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A file that has the content already is unchanged; with --force, another is written."""
        export_files(tmp_path)
        changed = tmp_path / "alerts" / "alertmanager.yml"
        changed.write_text("mine")
        assert main(["export", "--dry-run", "--force", str(tmp_path)]) == 0
        assert changed.read_text() == "mine"
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[2] for line in lines if line.startswith("would write  ")] == [
            str(changed)
        ]
        assert {line.split("  ")[0] for line in lines} == {"would write", "unchanged"}

    @pytest.mark.parametrize("make", OBSTACLES)
    def test_errors_are_those_of_a_real_run(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        make: Callable[[Path, pytest.MonkeyPatch], None],
    ) -> None:
        """Status and message are the same, and neither run writes anything."""
        target = tmp_path / "target"
        target.mkdir()
        make(target, monkeypatch)
        before = sizes_in(tmp_path)
        assert main(["export", "--dry-run", str(target)]) == 1
        dry = capsys.readouterr()
        assert main(["export", str(target)]) == 1
        assert capsys.readouterr() == dry
        assert dry.out == ""
        assert "Nothing was written." in dry.err
        assert sizes_in(tmp_path) == before


@pytest.mark.skipif(os.name == "nt", reason="Windows does not limit the size of files")
class TestWriteErrors:
    """Errors that only appear while files are written."""

    def test_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The message says what to do and what was written; each file is old or new, as a whole."""
        target = tmp_path / "target"
        export_files(target)
        complete = sizes_in(target)
        for path in complete:
            path.write_text("old")
        open_file, opened = os.fdopen, list[Any]()

        def open_on_full_disk(descriptor: int, mode: str) -> Any:
            file = open_file(descriptor, mode)
            if mode == "wb":
                opened.append(file)
            if len(opened) == 3:  # it takes a part, and its error names no file
                file.write(b"part")
                file.flush()
                with open_file(os.open("/dev/full", os.O_WRONLY), "wb") as full:
                    os.dup2(full.fileno(), descriptor)
            return file

        monkeypatch.setattr(os, "fdopen", open_on_full_disk)
        with pytest.raises(CommandError) as info:
            export_files(target, force=True)
        monkeypatch.undo()
        [failed] = re.findall(r"^cannot write (\S+): No space left on device\. ", str(info.value))
        assert Path(failed) in complete
        assert "Make room on that disk" in str(info.value)
        assert f"2 of {len(complete)} files were written" in str(info.value)
        left = sizes_in(target)
        assert left.keys() == complete.keys()
        assert Path(failed).read_text() == "old"
        new = {path for path in complete if path.read_text("utf-8") != "old"}
        assert len(new) == 2
        assert all(left[path] == complete[path] for path in new)

    def test_limit_of_the_size_of_files(self, tmp_path: Path) -> None:
        """A limit of the system is an error of one line, and every file is complete or absent."""
        export_files(tmp_path / "complete")
        complete = sizes_in(tmp_path / "complete")
        largest = max(complete, key=complete.__getitem__)
        limit = complete[largest] - 1
        script = (
            "import resource, sys; from apscheduler_telemetry.cli import main\n"
            f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
            "sys.exit(main(sys.argv[1:]))"
        )
        target = tmp_path / "target"
        completed = subprocess.run(
            [sys.executable, "-c", script, "export", target],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        failed = target / largest.relative_to(tmp_path / "complete")
        assert completed.returncode == 1
        assert completed.stdout == ""
        assert completed.stderr.startswith(
            f"apscheduler-telemetry: cannot write {failed}: File too large."
        )
        assert len(completed.stderr.splitlines()) == 1
        for path, size in sizes_in(target).items():
            assert complete[tmp_path / "complete" / path.relative_to(target)] == size
        assert not failed.exists()

    def test_unreadable_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """If a file of the package is missing or cannot be read, the message names it."""

        def fail(path: Path) -> bytes:
            raise OSError(errno.EIO, "Input/output error", str(path))

        monkeypatch.setattr(Path, "read_bytes", fail)
        with pytest.raises(CommandError, match=r"cannot read .*: Input/output error\. Install"):
            export_files(tmp_path)


class TestRunbook:
    """The runbook, and the links to it."""

    def test_links_of_the_runbook_lead_somewhere_from_everywhere(self, tmp_path: Path) -> None:
        """Each link is absolute and names a file of the repository, or stays in the page."""
        export_files(tmp_path)
        text = (tmp_path / "docs" / "runbook.md").read_text("utf-8")
        links = set(re.findall(r"\]\(([^)]+)\)", text))
        outside = {link for link in links if not link.startswith("#")}
        assert {
            f"{REPOSITORY}docs/alerts.md",
            f"{REPOSITORY}alerts/apscheduler.rules.yml",
        } < outside
        assert len(outside) < len(links)
        for link in outside:
            assert link.startswith(REPOSITORY)
            assert (ROOT / link.removeprefix(REPOSITORY).partition("#")[0]).is_file()

    def test_runbook_url_replaces_the_address_everywhere(self, tmp_path: Path) -> None:
        """Rules, templates and dashboards link to the address of the option, and never to ours."""
        pytest.importorskip("yaml")
        (tmp_path / "jobs.yml").write_text(
            "- application: shop\n  scheduler: default\n  jobs:\n  - job_id: nightly\n"
        )
        arguments = ["export", "--expect", str(tmp_path / "jobs.yml")]
        assert main([*arguments, str(tmp_path / "ours")]) == 0
        url = "https://wiki.example/pages/runbook?version=1&view=full"
        assert main([*arguments, "--runbook-url", url, str(tmp_path / "theirs")]) == 0
        with_address = set()
        for path in sizes_in(tmp_path / "ours"):
            name = path.relative_to(tmp_path / "ours")
            ours, theirs = path.read_text("utf-8"), (tmp_path / "theirs" / name).read_text("utf-8")
            assert theirs == ours.replace(RUNBOOK_URL, url)
            if RUNBOOK_URL in ours:
                with_address.add(name.as_posix())
        assert with_address == {
            "alerts/apscheduler.expected.rules.yml",
            "alerts/apscheduler.rules.yml",
            "alerts/templates/apscheduler.tmpl",
            "grafana/dashboards/job.json",
            "grafana/dashboards/overview.json",
        }
        rules = (tmp_path / "theirs" / "alerts" / "apscheduler.expected.rules.yml").read_text()
        assert f"runbook_url: {url}#apschedulerjobneverseen" in rules

    @pytest.mark.parametrize(
        "url",
        [
            "wiki.example/runbook",
            "ftp://wiki.example/runbook",
            "https://",
            "https://wiki.example/runbook#top",
            "https://wiki.example/my runbook",
            'https://wiki.example/"',
            "https://wiki.example/{{ .Labels.job }}",
            "https://wiki.example/${application}",
            "https://wiki.example/[[application]]",
            "https://wiki.example/\n",
        ],
        ids=repr,
    )
    def test_what_is_no_plain_address_is_rejected(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], url: str
    ) -> None:
        """Nothing gets into rules and dashboards that they would not take as a part of a link."""
        with pytest.raises(SystemExit) as info:
            main(["export", "--runbook-url", url, str(tmp_path / "target")])
        assert info.value.code == 2
        assert "is not an address such as" in capsys.readouterr().err
        assert not (tmp_path / "target").exists()
