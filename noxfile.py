"""
Lint, type-check and test: what `make test`, `make check` and CI do.

The wheel is built once, through the source distribution, and that wheel is tested, never the
source tree:

- on the oldest supported Python with the oldest supported dependencies, on the newest Python with
  the newest ones, and on Pythons in between without any optional dependency: all tests but those
  marked `slow`, `integration` or `once`. Tests skip what they cannot do;
- on the default Python with the newest dependencies: the tests that are marked so; of these, the
  drills have a session of their own.

Coverage is measured on the newest Python, which does so nearly for nothing. mypy, ruff and the
sessions that are tagged `check` look at the working tree, with one Python.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import nox
from nox.virtualenv import UV

ROOT = Path(__file__).resolve().parent
sys.path.append(str(ROOT / "tools"))

import debian  # noqa: E402  # of tools

nox.needs_version = ">=2026.10.20"
nox.options.default_venv_backend = "uv"
nox.options.envdir = ".envs"
nox.options.allow_parallel = True
nox.options.download_python = "never"  # tools/start.py has asked uv, before NEWEST is chosen

DEFAULT = f"{sys.version_info[0]}.{sys.version_info[1]}"
SUPPORTED = nox.project.python_versions(nox.project.load_toml("pyproject.toml"))
AVAILABLE_PYTHONS = [each for each in SUPPORTED if each == DEFAULT or shutil.which(f"python{each}")]
OLDEST, NEWEST = AVAILABLE_PYTHONS[0], AVAILABLE_PYTHONS[-1]
PYTHONS_BETWEEN = [each for each in AVAILABLE_PYTHONS if each not in {OLDEST, DEFAULT, NEWEST}]

BUILD = ROOT / "build"
VENV = ROOT / ".venv"
EXTRAS = "expect,instrumentation,otlp,status"
TEST_DEPENDENCY_GROUPS = ("test", "integrations", "demo")
FAST_TESTS = "not slow and not integration"
TESTS_FOR_EACH_PYTHON = f"{FAST_TESTS} and not once"
TESTS_FOR_ONE_PYTHON = "(slow or integration or once) and not drill"
# By file, so that module-wide servers are started once; and in their order, as else the files of
# the fewest tests would come last, which take longest.
BY_FILE = ("--dist", "loadfile", "--no-loadscope-reorder")
# More than the two cores that we expect, as some tests wait, and slow tests mostly do.
WORKERS = ("-n", "3", *BY_FILE)
WORKERS_FOR_SLOW_TESTS = ("-n", "5", *BY_FILE)
# Ends the tests of a session that take more than 20 minutes: with Ctrl-C, and 20 seconds later with
# SIGKILL. In the foreground, so that nox reaches them in its process group.
TIMEOUT_COMMAND = ("timeout", "--foreground", "--signal=INT", "--kill-after=20", "1200")


def create_venv(session: nox.Session, directory: Path, checkout: str, *requirements: str) -> None:
    """
    Make an environment that lasts, with this checkout in it, editable; unless it is there.

    It is made again whenever pyproject.toml or the default Python changes. nox can reuse an
    environment too, but would also take one whose installation was interrupted.
    """
    mark = directory / "made-for"
    parts = ("--editable", checkout, *requirements)
    made_for = "\n".join(
        (Path("pyproject.toml").read_text("utf-8"), sys.version, sys.base_prefix, *parts)
    )
    if not (
        (directory / "bin" / "python").exists()
        and mark.exists()
        and mark.read_text("utf-8") == made_for
    ):
        venv = (UV, "venv", "--quiet", "--clear", "--python", sys.executable, str(directory))
        session.run(*venv, external=True)
        install = (UV, "pip", "install", "--python", str(directory), *parts)
        # Its progress cannot be seen where sessions run beside each other.
        session.run(*install, external=True, silent=session.parallel)
        mark.write_text(made_for, "utf-8")


def pytest(session: nox.Session, *arguments: str, coverage: bool = False) -> None:
    """Run pytest, and leave a report for the table."""
    report = BUILD / "reports" / f"{session.name}.xml"
    command = [*TIMEOUT_COMMAND, "python", "-m"]
    env = {}
    if session.python is False:  # so nox has no environment for it, and that of `dev` is used
        command = [*TIMEOUT_COMMAND, str(VENV / "bin" / "python"), "-m"]
        env["PATH"] = f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}"
    if coverage:
        command += ["coverage", "run", "-m"]
        shutil.rmtree(BUILD / "coverage", ignore_errors=True)
        (BUILD / "coverage").mkdir(parents=True)
        # Absolute, as tests start processes in directories of their own.
        env["COVERAGE_FILE"] = str(BUILD / "coverage" / "data")
        env["COVERAGE_CORE"] = "sysmon"  # from Python 3.12 on; before, the usual one is used
    session.run(
        *(*command, "pytest", "-q", f"--junitxml={report}", *arguments),
        env=env,
        external=True,
        interrupt_timeout=20,  # after Ctrl-C, for tests to end what they have started
    )


@nox.session(python=False, tags=["check"])
def dev(session: nox.Session) -> None:
    """Make .venv, which has the working tree and all that checks it."""
    create_venv(session, VENV, f".[{EXTRAS}]", "--group", "dev")


def add_check(name: str, *command: str, tags: tuple[str, ...] = ()) -> None:
    """Add a session that runs a program of .venv over the working tree."""

    @nox.session(name=name, python=False, requires=["dev"], tags=tags)
    def check(session: nox.Session) -> None:
        session.run(str(VENV / "bin" / command[0]), *command[1:], external=True)


add_check(f"mypy-{SUPPORTED[0]}", "mypy", "--python-version", SUPPORTED[0], tags=("check",))
# Of the package only, which is what has code that depends on the version.
add_check(f"mypy-{SUPPORTED[-1]}", "mypy", "--python-version", SUPPORTED[-1], "src")
add_check("ruff-check", "ruff", "check", ".", tags=("check",))
add_check("ruff-format", "ruff", "format", "--check", ".", tags=("check",))
if sys.version_info >= (3, 11):  # which grafana-foundation-sdk needs
    add_check("dashboards", "python", "grafana/build.py", "--check", tags=("check",))


@nox.session(python=False, requires=["dev"], tags=["check"], default=False)
def fast(session: nox.Session) -> None:
    """Run the fast tests on the working tree."""
    pytest(session, *WORKERS, "-m", FAST_TESTS, *session.posargs)


@nox.session(python=False, requires=["dev"], default=False)
def format(session: nox.Session) -> None:  # noqa: A001
    """Format the code, and fix what can be fixed by itself."""
    session.run(str(VENV / "bin" / "ruff"), "check", "--fix", ".", external=True)
    session.run(str(VENV / "bin" / "ruff"), "format", ".", external=True)


@nox.session(python=False)
def build(session: nox.Session) -> None:
    """Build the source distribution, and from that the wheel."""
    shutil.rmtree(BUILD / "dist", ignore_errors=True)
    uv = (UV, "build", "--python", sys.executable, "--out-dir", str(BUILD / "dist"))
    session.run(*uv, external=True)


def install(session: nox.Session, *groups: str, extras: str = EXTRAS, oldest: bool = False) -> None:
    """Install the wheel, and say with what."""
    [wheel] = (BUILD / "dist").glob("*.whl")
    requirements = [f"apscheduler-telemetry[{extras}] @ {wheel.as_uri()}"]
    for group in groups:
        requirements += ["--group", group]
    if oldest:
        # Only what pyproject.toml asks for is to be old, and not the test tools as well.
        pins = str(BUILD / f"{session.name}.txt")
        session.run(
            *("uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"),
            *("--resolution", "lowest-direct", "--python", session.bin + "/python"),
            *("pyproject.toml", "--all-extras", "--group", "oldest", "--output-file", pins),
            external=True,
        )
        requirements += ["--constraint", pins]
    session.install(*requirements)
    installed = session.run("uv", "pip", "freeze", silent=True, external=True) or ""
    shown = ("apscheduler=", "opentelemetry-api=", "opentelemetry-sdk=", "prometheus-client=")
    session.log(" ".join(line for line in installed.splitlines() if line.startswith(shown)))


@nox.session(requires=["build"])
def drills(session: nox.Session) -> None:
    """Break real applications, and see which alert reaches a webhook."""
    if session.posargs:
        session.skip("arguments for pytest are given")
    if not all(map(debian.which, debian.PROMETHEUS)):
        session.skip("no Prometheus")
    install(session, *TEST_DEPENDENCY_GROUPS)
    pytest(session, "-m", "drill", "-n", "0")  # together in one process, as they share servers


def add_tests(
    name: str,
    version: str,
    *groups: str,
    extras: str = EXTRAS,
    oldest: bool = False,
) -> None:
    """
    Add a session that runs the fast tests on the wheel.

    Args:
        name: of the session.
        version: of Python.
        groups: dependency groups to install.
        extras: of the wheel.
        oldest: whether to install the oldest supported dependencies.
    """
    python = None if version == DEFAULT else version

    @nox.session(name=name, python=python, requires=["build"])
    def run_tests(session: nox.Session) -> None:
        install(session, *groups, extras=extras, oldest=oldest)
        measured = session.name == f"py{NEWEST}"
        # Its bytecode is written once, where each worker would compile all tests for itself.
        collect = ("python", "-m", "pytest", "-q", "--collect-only", *session.posargs)
        session.run(*collect, silent=True)
        pytest(session, *WORKERS, "-m", TESTS_FOR_EACH_PYTHON, *session.posargs, coverage=measured)


add_tests(f"py{OLDEST}-oldest", OLDEST, *TEST_DEPENDENCY_GROUPS, "oldest", oldest=True)
for between in PYTHONS_BETWEEN or [DEFAULT]:
    add_tests(f"py{between}-bare", between, "test", extras="")
add_tests(f"py{NEWEST}", NEWEST, *TEST_DEPENDENCY_GROUPS, "runtimes")


# Alone, as these tests are the ones that a busy machine delays too much.
@nox.session(requires=["build"], allow_parallel=False)
def slow(session: nox.Session) -> None:
    """Run the slow and the integration tests, and those that run once, on the wheel."""
    install(session, *TEST_DEPENDENCY_GROUPS, "browser", "compose", "grafana", "rotel", "runtimes")
    selection = TESTS_FOR_ONE_PYTHON
    if not all(map(debian.which, debian.PROMETHEUS)):
        session.warn("No Prometheus, so no integration tests.")
        selection = f"{TESTS_FOR_ONE_PYTHON} and not integration"
    pytest(session, *WORKERS_FOR_SLOW_TESTS, "-m", selection, *session.posargs)


@nox.session(python=False, requires=["dev", f"py{NEWEST}"])
def coverage(session: nox.Session) -> None:
    """Combine what the processes of the tests measured, and hold it against the threshold."""
    if session.posargs:
        session.skip("arguments for pytest are given")
    program = str(VENV / "bin" / "coverage")
    session.run(program, "combine", "--quiet", external=True)
    session.run(program, "report", external=True)


def add_env(group: str) -> None:
    """Add a session that makes the environment of a dependency group."""

    @nox.session(name=f"env-{group}", python=False, default=False)
    def env(session: nox.Session) -> None:
        create_venv(session, ROOT / ".envs" / group, ".", "--group", group)


for script_group in ("bench", "demo", "drill"):
    add_env(script_group)
