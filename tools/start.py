"""
Install nox and uv into `.envs/nox`, and start them: what every target of the Makefile does.

    start.py test [ARGUMENTS FOR NOX] [-- ARGUMENTS FOR PYTEST]
    start.py check [-- ARGUMENTS FOR PYTEST]
    start.py format
    start.py run GROUP SCRIPT [ARGUMENTS]

GROUP is a dependency group of pyproject.toml, in whose environment the script runs. What the
sessions of nox do is written in noxfile.py. This file uses the standard library only, as nothing
else is there yet.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree as ET

import debian

ROOT = Path(__file__).resolve().parent.parent
ENVS = ROOT / ".envs"
NOX = ENVS / "nox"
PYTHONS = ENVS / "pythons"
REPORTS = ROOT / "build" / "reports"
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
SUPPORTED = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)


def stop(message: str) -> NoReturn:
    """End the program with a message and exit status 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


def say(message: str) -> None:
    """Print before what is printed by the program that is started next."""
    print(message, flush=True)


def set_variables() -> None:
    """Set the variables for all that is started from here."""
    # These make other code importable than the environment has.
    for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTEST_ADDOPTS"):
        os.environ.pop(name, None)
    # Tests start hundreds of processes. Each would compile all that it imports if bytecode were
    # not written. In this directory it is kept from run to run.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(ENVS / "bytecode")
    os.environ["UV_PYTHON_INSTALL_DIR"] = str(PYTHONS)
    # pyenv's stand-in for a Python fails unless that Python is switched on: its real Pythons are
    # used instead. nox and uv would not find them.
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    places = debian.search_path().split(os.pathsep)
    places = [place for place in places if Path(place) != pyenv / "shims"]
    for version in SUPPORTED:
        places += sorted(map(str, pyenv.glob(f"versions/{version}.*/bin")), reverse=True)
        places += map(str, PYTHONS.glob(f"cpython-{version}.*/bin"))
    os.environ["PATH"] = os.pathsep.join(places)


def install_nox() -> None:
    """Make the environment of nox and uv, unless it is there and whole."""
    mark = NOX / "made-for"
    python = NOX / "bin" / "python"
    [requirement] = re.findall(r'"(nox\[uv\][^"]*)"', PYPROJECT)
    made_for = f"{requirement}\n{sys.version}\n{sys.base_prefix}"
    if python.exists() and mark.exists() and mark.read_text("utf-8") == made_for:
        return
    say("Setting up .envs/nox, with nox and uv.")
    command = [sys.executable, "-m", "venv", "--clear", str(NOX)]
    variables = dict(os.environ)
    if importlib.util.find_spec("ensurepip") is None:
        # Debian's python3 cannot make environments with pip, and its python3-venv wants root.
        # The wheel of pip in this package does as well.
        command.append("--without-pip")
        why = debian.unpack(["python3-pip-whl"])
        wheels = sorted(debian.UNPACKED.glob("usr/share/python-wheels/pip-*.whl"))
        if why is not None or not wheels:
            stop(
                f"{sys.executable} cannot make environments with pip ({why}):"
                " please install python3-venv (apt-get install python3-venv)."
            )
        variables["PYTHONPATH"] = str(wheels[-1])
    install = [str(python), "-m", "pip", "install", "--retries=2", requirement]
    for step in (command, install):
        if subprocess.run(step, env=variables, check=False).returncode != 0:
            stop(
                "nox and uv could not be installed; the reason is above. This needs a Python"
                " package index, directly or through pip's own configuration."
            )
    mark.write_text(made_for, "utf-8")


def fetch_pythons() -> None:
    """Have uv download the supported Pythons that this machine does not have."""
    default = f"{sys.version_info[0]}.{sys.version_info[1]}"
    missing = [v for v in SUPPORTED if v != default and not shutil.which(f"python{v}")]
    if not missing:
        return
    say(f"Not on this machine: Python {', '.join(missing)}. Downloading with uv.")
    command = [str(NOX / "bin" / "uv"), "python", "install", "--no-bin", *missing]
    if subprocess.run(command, check=False).returncode != 0:
        say("Nothing is tested on a Python that is missing.")
    set_variables()


def nox(*arguments: str) -> int:
    """Run nox and return its exit status."""
    # Ctrl-C reaches nox as well, which then ends its sessions; so wait for it. This is no SIG_IGN,
    # as nox would inherit that.
    signal.signal(signal.SIGINT, lambda *_: None)
    command = [str(NOX / "bin" / "python"), "-m", "nox", *arguments]
    status = subprocess.run(command, cwd=ROOT, check=False).returncode
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return status


def run_sessions(*arguments: str) -> int:
    """Run sessions beside each other, print the table of their results, return the status."""
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    report = REPORTS / "nox.json"
    # Two, as one of them may be the drills, which mostly wait.
    status = nox("--parallel=2", f"--report={report}", *arguments)
    if not report.exists():  # interrupted, or the arguments are wrong, and nox has said so
        return status
    sessions = json.loads(report.read_text("utf-8"))["sessions"]
    width = max(len(session["name"]) for session in sessions)
    print(f"\n{'':{width}}  passed  failed  skipped  seconds")
    total = [0, 0, 0]
    for session in sessions:
        counts = count(session["name"], session["result"])
        total = [a + b for a, b in zip(total, counts, strict=True)]
        line = "{:{}}  {:6}  {:6}  {:7}  {:7.1f}  {}".format(
            session["name"], width, *counts, session["duration"], session["reason"] or ""
        )
        print(line.rstrip())
    print("\n{} passed, {} failed, {} skipped".format(*total))
    return status


def count(name: str, result: str) -> tuple[int, int, int]:
    """Return how many tests of a session passed, failed and were skipped."""
    report = REPORTS / f"{name}.xml"
    passed, failed, skipped = 0, 0, 0
    if report.exists():
        for suite in ET.parse(report).getroot().iter("testsuite"):  # noqa: S314  # pytest's own
            failed += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped += int(suite.get("skipped", 0))
            passed += int(suite.get("tests", 0))
        passed -= failed + skipped
    elif result == "success":
        passed = 1
    # A session can fail outside of its tests, or before them.
    return passed, max(failed, int(result in {"failed", "aborted"})), skipped


def run_script(group: str, script: str, *arguments: str) -> NoReturn:
    """
    Set up an environment and become the script.

    It takes this process's place, so that signals reach it and its exit status is what the caller
    gets. nox would stand between.
    """
    if nox("--session", f"env-{group}") != 0:
        raise SystemExit(2)
    if not debian.provide(["prometheus", "prometheus-alertmanager"]):
        print(f"Continuing without them; {script} reports what it cannot show.")
    if group == "bench" and not debian.provide(debian.PROFILERS):
        print("Continuing without it; benchmarks then measure time instead of instructions.")
    sys.stdout.flush()
    programs = ENVS / group / "bin"
    os.environ["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    os.execv(programs / "python", ["python", str(ROOT / script), *arguments])  # noqa: S606


def main(task: str, *arguments: str) -> int:
    """Run the command."""
    set_variables()
    install_nox()
    if task == "run":
        run_script(*arguments)
    if task == "test":
        fetch_pythons()
        debian.provide(debian.PROMETHEUS)
        debian.provide(debian.VICTORIA_METRICS)  # tests that need what is missing are skipped
        debian.provide(debian.SERVERS)
        debian.provide(debian.BROWSER)
        return run_sessions(*arguments)
    if task == "check":
        return run_sessions("--tags=check", *arguments)
    return nox("--session=format")


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036  # with an older one, this is what to read
        stop(
            f"python3 is {sys.version.split()[0]}, and 3.10 or newer is needed;"
            " name one that is, such as `make test PYTHON=python3.12`."
        )
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        stop("Interrupted.")
