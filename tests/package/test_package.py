"""The package as a whole: its exports, its metadata, and the files of the repository."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from apscheduler.schedulers.background import BackgroundScheduler

import apscheduler_telemetry
from tests.helpers.paths import ROOT

GENERATED = {".envs", ".git", ".hypothesis", ".venv", "__pycache__", "build", "dist"}


class TestExports:
    """The exports of `import apscheduler_telemetry`."""

    def test_every_exported_name_is_importable(self) -> None:
        """Every exported name can be imported lazily, and is the same object the second time."""
        for name in apscheduler_telemetry.__all__:
            exported = getattr(apscheduler_telemetry, name)
            assert exported is getattr(apscheduler_telemetry, name)

    def test_dir_lists_every_exported_name(self) -> None:
        """`dir` lists the exported names, imported or not."""
        assert set(apscheduler_telemetry.__all__) <= set(dir(apscheduler_telemetry))

    def test_names_for_type_checkers_are_those_at_run_time(self) -> None:
        """Type checkers see exactly the names that exist at run time."""
        path = importlib.resources.files(apscheduler_telemetry) / "__init__.py"
        seen_by_type_checkers = {
            alias.asname or alias.name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for statement in node.body
            if isinstance(statement, ast.ImportFrom)
            for alias in statement.names
        }
        assert seen_by_type_checkers == set(apscheduler_telemetry.__all__)

    def test_nothing_else_is_public(self) -> None:
        """Every public name of the namespace is exported, or a module of the package."""
        modules = {
            path.name.removesuffix(".py")
            for path in importlib.resources.files(apscheduler_telemetry).iterdir()
        }
        helpers = {"Any", "TYPE_CHECKING", "annotations"}
        public = {name for name in vars(apscheduler_telemetry) if not name.startswith("_")}
        assert public - modules - helpers <= set(apscheduler_telemetry.__all__)

    def test_handle_has_the_documented_members(self) -> None:
        """The public members of the handle are those that README and docs describe."""
        scheduler = BackgroundScheduler()
        telemetry = apscheduler_telemetry.instrument(scheduler, registry=None)
        public = {name for name in dir(telemetry) if not name.startswith("_")}
        telemetry.uninstrument()
        expected = {
            "asgi_app",
            "check",
            "health",
            "name",
            "runs",
            "start_http_server",
            "uninstrument",
            "wsgi_app",
        }
        assert public == expected

    def test_unknown_name_is_an_attribute_error(self) -> None:
        """An unknown name raises AttributeError."""
        with pytest.raises(AttributeError, match=r"apscheduler_telemetry.*has no attribute 'no'"):
            _ = apscheduler_telemetry.no


class TestMetadata:
    """Metadata for pip and type checkers."""

    def test_version_is_that_of_the_metadata(self) -> None:
        """The version is that of the metadata."""
        expected = importlib.metadata.version("apscheduler-telemetry")
        assert expected == apscheduler_telemetry.__version__

    def test_package_is_typed(self) -> None:
        """The marker `py.typed` is installed."""
        assert (importlib.resources.files(apscheduler_telemetry) / "py.typed").is_file()

    def test_changelog_names_the_version(self) -> None:
        """The changelog has an entry for the version, or for the next one."""
        changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
        [latest, *_] = re.findall(r"^## \[?([\w.]+)", changelog, re.MULTILINE)
        assert latest in {"Unreleased", apscheduler_telemetry.__version__}

    def test_classifiers_name_the_supported_pythons(self) -> None:
        """The oldest Python in the classifiers is that of `requires-python`."""
        metadata = importlib.metadata.metadata("apscheduler-telemetry")
        classifiers = metadata.get_all("Classifier") or []
        oldest = next(c for c in classifiers if "Python :: 3." in c).rpartition(" ")[2]
        assert metadata["Requires-Python"] == f">={oldest}"


@pytest.mark.once
class TestRepository:
    """The repository contains nothing about the machines of its developers."""

    # In pieces, so that this file does not contain what it looks for.
    PRIVATE = (
        "/ro" + "ot/",
        "/wo" + "rk/",
        "/home/" + r"[a-z][\w.-]*/",
        "files.python" + r"hosted\.",
        "py" + r"pi\.(org|python)",
        "/sim" + r"ple/?\b.*index|index-" + "url *=",
        "deb" + r"\.debian\.org",
        "registry" + r"\.npmjs",
    )

    def files(self) -> Iterator[Path]:
        """Yield the files of the checkout: those that git tracks or would add; all without git."""
        listed = None
        if shutil.which("git") and (ROOT / ".git").exists():
            listed = subprocess.run(
                ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
        if listed is not None and listed.returncode == 0:
            paths = [ROOT / name for name in listed.stdout.split("\0") if name]
        else:
            paths = [
                path
                for path in ROOT.rglob("*")
                if GENERATED.isdisjoint(path.relative_to(ROOT).parts)
                and not re.search(r"\.\w+_cache/", path.relative_to(ROOT).as_posix())
            ]
        return (path for path in paths if path.is_file())

    def test_repository_has_nothing_private(self) -> None:
        """No file names the host of a package registry or a path of a developer's machine."""
        pattern = re.compile("|".join(self.PRIVATE).encode())
        found = [
            f"{path.relative_to(ROOT)}: {match[0].decode(errors='replace')}"
            for path in self.files()
            for match in pattern.finditer(path.read_bytes())
        ]
        assert found == []

    def test_search_finds_the_files_of_the_repository(self) -> None:
        """The test above finds files to check."""
        names = {path.relative_to(ROOT).as_posix() for path in self.files()}
        assert {"pyproject.toml", "Makefile", "tests/package/test_package.py"} <= names
        assert not any(name.startswith((".venv/", ".envs/", "build/")) for name in names)
