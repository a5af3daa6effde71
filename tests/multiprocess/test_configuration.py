"""The variable that enables multiprocess mode, and the modules of the mode."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import ArgumentValueError, instrument
from apscheduler_telemetry.export import multiprocess as package
from apscheduler_telemetry.export.multiprocess.directory import (
    DIRECTORY_VARIABLE,
    find_multiprocess_directory,
)
from tests.helpers.schedulers import HandDriven


class TestModules:
    """The modules of the package."""

    def test_imports_follow_the_documented_order(self) -> None:
        """The docstring lists all modules, and each one imports only those above it."""
        assert package.__doc__ is not None
        documented = re.findall(r"^- `(\w+)`:", package.__doc__, re.MULTILINE)
        files = {path.stem: path for path in Path(package.__file__).parent.glob("*.py")}
        assert set(documented) == files.keys() - {"__init__"}
        for number, module in enumerate(documented):
            imports = re.findall(
                rf"{re.escape(package.__name__)}\W+(\w+)", files[module].read_text()
            )
            assert set(imports) <= set(documented[:number]), module

    def test_public_module_imports_no_writer(self) -> None:
        """Importing the public module does not import the writer, which would add hooks."""
        code = (
            "import sys; from apscheduler_telemetry.multiprocess import *;"
            " print(child_exit.__name__, mark_process_dead.__name__,"
            " 'apscheduler_telemetry.export.multiprocess.writer' in sys.modules)"
        )
        printed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.split()
        assert printed == ["child_exit", "mark_process_dead", "False"]


class TestConfigured:
    """The check of the environment variable."""

    @pytest.fixture(params=["absent", "file", "empty", "read-only"])
    def wrong(self, request: pytest.FixtureRequest, tmp_path: Path) -> str:
        """Return a directory that cannot be used."""
        (tmp_path / "file").touch()
        if request.param == "read-only":
            return "/proc/self"  # to root, too
        return "" if request.param == "empty" else str(tmp_path / request.param)

    def test_unusable_directory_is_an_error_with_advice(
        self, wrong: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`instrument` raises an error that says what to do, and installs nothing."""
        monkeypatch.setenv(DIRECTORY_VARIABLE, wrong)
        scheduler = HandDriven()
        registry = CollectorRegistry()
        before = dict(vars(scheduler)), list(scheduler._listeners)
        with pytest.raises(ArgumentValueError, match=r"PROMETHEUS_MULTIPROC_DIR is .* Set it to"):
            instrument(scheduler, registry=registry)
        assert (dict(vars(scheduler)), list(scheduler._listeners)) == before
        assert list(registry.collect()) == []
        monkeypatch.delenv(DIRECTORY_VARIABLE)
        instrument(scheduler, registry=registry).uninstrument()

    def test_lower_case_variable_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The variable is also read in lower case, as by prometheus_client."""
        monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
        monkeypatch.setenv(DIRECTORY_VARIABLE.lower(), str(tmp_path))
        assert find_multiprocess_directory() == tmp_path

    def test_mode_is_off_without_the_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the variable, the mode is off."""
        monkeypatch.delenv(DIRECTORY_VARIABLE, raising=False)
        assert find_multiprocess_directory() is None
