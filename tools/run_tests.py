"""
Lint, type-check and test: ``run_tests.py all | fast | format``.

``all`` is what `make test` and CI do. The wheel is built once, through the source distribution,
and that wheel is tested, never the source tree:

- on the default Python with the newest dependencies: every test; after that, while the others
  are under way, the drills, which mostly wait;
- on every other supported Python of this machine: all but the slow and the integration tests, and
  those that could find nothing new there;
- with the oldest supported dependencies, on the newest of these Pythons, where they are the most
  likely to break: the same;
- without any optional dependency: the same, where tests skip what they cannot do.

Coverage is measured on the newest Python, which does so nearly for nothing. ``fast`` is what
`make check` does: the fast tests on the working tree, with one Python. Either ends with a table and
the line that CI reads.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import debian
from workshop import (
    BUILD,
    ENVS,
    PYPROJECT,
    ROOT,
    VENV,
    SetupError,
    default_python,
    default_version,
    environ,
    find_pythons,
    keep_env,
    make_env,
    stop,
    supported_versions,
    uv,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import IO

EXTRAS = "otlp,instrumentation"
FAST = ("-m", "not slow and not integration")
ELSEWHERE = ("-m", "not slow and not integration and not once")
DRILLS = ("-m", "drill", "-n", "0")  # together in one process, as they share their servers
# By file, so that module-wide servers are started once; and in their order, as else the files of
# the fewest tests would come last, which take longest. Three on two cores, as some tests wait.
WORKERS = ("-n", "3", "--dist", "loadfile", "--no-loadscope-reorder")
PATIENCE = 1200
"""Seconds after which an environment's tests hang, as no single test is allowed to."""


@dataclass
class Row:
    """A line of the closing table."""

    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    remark: str = ""


@dataclass
class Env:
    """An environment to test the wheel in."""

    name: str
    python: str
    groups: tuple[str, ...]
    extra: str = ""
    oldest: bool = False
    selection: tuple[str, ...] = ELSEWHERE
    measured: bool = False


@dataclass
class Session:
    """What has been done so far."""

    arguments: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[Row]:
        """Time what is done for a row; what cannot be set up is one failure."""
        print(f"\n=== {name}", flush=True)
        row = Row(name)
        self.rows.append(row)
        begin = time.monotonic()
        try:
            yield row
        except SetupError as error:
            print(error, file=sys.stderr)
            row.failed += 1
            row.remark = "not set up"
        finally:
            row.seconds = time.monotonic() - begin

    def step(self, name: str, python: Path, *command: str) -> None:
        """Run something that passes or fails as a whole."""
        with self.row(name) as row:
            status = subprocess.run(
                [str(python.parent / command[0]), *command[1:]],
                cwd=ROOT,
                env=environ(python),
                check=False,
            ).returncode
            judge(row, status)

    def lint(self, python: Path) -> None:
        """Run the linters over the working tree."""
        self.step("ruff check", python, "ruff", "check", ".")
        self.step("ruff format", python, "ruff", "format", "--check", ".")
        if sys.version_info >= (3, 11):  # which grafana-foundation-sdk needs
            self.step("dashboards", python, "python", "grafana/build.py", "--check")

    def test(self, row: Row, python: Path, selection: Sequence[str], *, measured: bool) -> None:
        """Run pytest with an interpreter, and count from its report."""
        report = BUILD / "reports" / f"{row.name}.xml"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.unlink(missing_ok=True)
        command = [str(python), "-m"]
        if measured:
            command += ["coverage", "run", "-m"]
        command += ["pytest", "-q", f"--junitxml={report}", *WORKERS, *selection, *self.arguments]
        variables = environ(python)
        # Absolute, as tests start processes in directories of their own.
        variables["COVERAGE_FILE"] = str(BUILD / "coverage" / "data")
        variables["COVERAGE_CORE"] = "sysmon"  # from Python 3.12 on; before, the usual one is used
        status = run_to_its_end(command, variables)
        count(row, status, report)

    def types(self, python: Path, version: str) -> contextlib.AbstractContextManager[None]:
        """Check types as of a version of Python, beside what is done meanwhile."""
        command = [str(python.parent / "mypy"), "--python-version", version]
        return self.beside(f"mypy {version}", python, command, judge)

    def drills(self, python: Path) -> contextlib.AbstractContextManager[None]:
        """Run the drills beside what is done meanwhile."""
        report = BUILD / "reports" / "drills.xml"
        report.unlink(missing_ok=True)
        command = [str(python), "-m", "pytest", "-q", f"--junitxml={report}", *DRILLS]
        return self.beside("drills", python, command, partial(count, report=report))

    @contextlib.contextmanager
    def beside(
        self, name: str, python: Path, command: list[str], verdict: Callable[[Row, int], None]
    ) -> Iterator[None]:
        """Run a command beside what is done meanwhile, and tell at its end what it said."""
        log = BUILD / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        with log.open("wb") as output, started(command, environ(python), output) as process:
            yield
            with self.row(name) as row:
                verdict(row, wait(process))
                print(log.read_text("utf-8", "replace"), flush=True)
        row.seconds = time.monotonic() - begin

    def summary(self) -> int:
        """Print the table and the line that CI reads; return the exit status."""
        width = max(len(row.name) for row in self.rows)
        print(f"\n{'':{width}}  passed  failed  skipped  seconds")
        for row in self.rows:
            line = f"{row.name:{width}}  {row.passed:6}  {row.failed:6}  {row.skipped:7}"
            print(f"{line}  {row.seconds:7.1f}  {row.remark}".rstrip())
        passed, failed, skipped = (
            sum(getattr(row, what) for row in self.rows) for what in ("passed", "failed", "skipped")
        )
        print(f"\n{passed} passed, {failed} failed, {skipped} skipped", flush=True)
        return int(failed != 0)


def run_to_its_end(command: list[str], variables: dict[str, str]) -> int:
    """Run a command in a session of its own, and return its exit status."""
    with started(command, variables) as process:
        return wait(process)


@contextlib.contextmanager
def started(
    command: list[str], variables: dict[str, str], output: IO[bytes] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in a session of its own, which ends with the block and with Ctrl-C."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, start_new_session=True, stdout=output, stderr=output
    )
    try:
        yield process
    except BaseException:
        interrupt(process)
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit status of a process, which fails if it takes too long."""
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        interrupt(process)
        print(f"Not done after {PATIENCE} seconds, so interrupted.", file=sys.stderr)
        return 1


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Let a process end what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)


def judge(row: Row, status: int) -> None:
    """Take the exit status of something that passes or fails as a whole."""
    row.failed, row.passed = int(status != 0), int(status == 0)


def count(row: Row, status: int, report: Path) -> None:
    """Add what a JUnit report says; a run that failed without saying where is one failure."""
    with contextlib.suppress(OSError, ET.ParseError):
        for suite in ET.parse(report).getroot().iter("testsuite"):  # noqa: S314  # pytest's own
            tests, failures, errors, skipped = (
                int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")
            )
            row.failed += failures + errors
            row.skipped += skipped
            row.passed += tests - failures - errors - skipped
    if status != 0 and not row.failed:
        row.failed += 1
        row.remark = f"pytest ended with status {status}"


def environments(pythons: dict[str, str]) -> list[Env]:
    """Return the environments to test in; the one with every test comes first."""
    default = default_version()
    everything = ("test", "integrations", "demo")
    every = ("-m", "not drill")
    first = (*everything, "compose", "grafana", "rotel", "worlds")
    envs = [Env(f"py{default}", pythons[default], first, EXTRAS, selection=every)]
    envs += [
        Env(f"py{version}", python, everything, EXTRAS)
        for version, python in pythons.items()
        if version != default
    ]
    newest = list(pythons)[-1]
    next(env for env in envs if env.name == f"py{newest}").measured = True
    return [
        *envs,
        Env(f"py{newest}-oldest", pythons[newest], (*everything, "oldest"), EXTRAS, oldest=True),
        Env(f"py{default}-bare", pythons[default], ("test",)),
    ]


def build_wheel() -> Path:
    """Build the source distribution, and from that the wheel, whose path is returned."""
    directory = BUILD / "dist"
    shutil.rmtree(directory, ignore_errors=True)
    uv("build", "--quiet", "--python", default_python(), "--out-dir", directory)
    [wheel] = directory.glob("*.whl")
    return wheel


def install(env: Env, wheel: Path) -> tuple[Path, str]:
    """Make an environment with the wheel in it; return its interpreter, and what it has."""
    extra = f"[{env.extra}]" if env.extra else ""
    requirements = [f"apscheduler-telemetry{extra} @ {wheel.as_uri()}"]
    for group in env.groups:
        requirements += ["--group", group]
    if env.oldest:
        # Only what pyproject.toml asks for is to be old, and not the test tools as well.
        pins = BUILD / f"{env.name}.txt"
        uv(
            *("pip", "compile", "--quiet", "--no-header", "--no-annotate"),
            *("--resolution", "lowest-direct", "--python", env.python),
            *(PYPROJECT, "--all-extras", "--group", "oldest", "--output-file", pins),
        )
        requirements += ["--constraint", str(pins)]
    python = make_env(ENVS / env.name, env.python, *requirements)
    listed = uv("pip", "list", "--quiet", "--format", "freeze", "--python", python)
    told = ("apscheduler=", "opentelemetry-api=", "opentelemetry-sdk=", "prometheus-client=")
    return python, " ".join(line for line in listed.splitlines() if line.startswith(told))


def judge_coverage(session: Session, python: Path) -> None:
    """Combine what the processes of the tests measured, and hold it against the threshold."""
    variables = environ(python)
    coverage = [str(python), "-m", "coverage"]
    with session.row("coverage") as row:
        for command in (["combine", "--quiet"], ["report"]):
            status = subprocess.run(
                [*coverage, *command], cwd=ROOT, env=variables, check=False
            ).returncode
            if status != 0:
                row.failed = 1
                return
        row.passed = 1


def test_all(session: Session, only: Sequence[str]) -> None:
    """Do what `make test` does."""
    pythons = find_pythons()
    absent = [version for version in supported_versions() if version not in pythons]
    print(f"Pythons found: {', '.join(pythons)}; absent: {', '.join(absent) or 'none'}.")
    envs = environments(pythons)
    unknown = set(only) - {env.name for env in envs}
    if unknown:
        stop(f"No such environment: {', '.join(unknown)}; there are {[env.name for env in envs]}.")
    programs = debian.provide(debian.PACKAGES.keys() - debian.SERVERS - debian.PROFILERS)
    debian.provide(debian.SERVERS)  # without them, tests skip what they must
    dev = keep_env(VENV, f".[{EXTRAS}]", "--group", "dev")
    shutil.rmtree(BUILD / "coverage", ignore_errors=True)
    (BUILD / "coverage").mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        if not only:
            for version in (supported_versions()[0], supported_versions()[-1]):
                stack.enter_context(session.types(dev, version))
            session.lint(dev)
        with session.row("build") as row:
            wheel = build_wheel()
            row.passed = 1
    if row.failed:
        return
    chosen = [env for env in envs if not only or env.name in only]
    with contextlib.ExitStack() as stack:
        # Each while those before it are tested.
        installer = ThreadPoolExecutor(1)
        stack.callback(installer.shutdown, cancel_futures=True)
        installed = [installer.submit(install, env, wheel) for env in chosen]
        for env, ready in zip(chosen, installed, strict=True):
            with session.row(env.name) as row:
                python, versions = ready.result()
                print(versions, flush=True)
                selection = env.selection
                if env is envs[0] and not programs:
                    selection = ("-m", "not integration")
                    row.remark = "without integration tests and drills: no Prometheus"
                session.test(row, python, selection, measured=env.measured)
            if env is envs[0] and programs and not session.arguments:
                stack.enter_context(session.drills(python))
    if not only:
        judge_coverage(session, dev)
    for version in absent:
        session.rows.append(Row(f"py{version}", remark="absent on this machine"))


def test_fast(session: Session, only: Sequence[str]) -> None:
    """Do what `make check` does."""
    if only:
        stop("There is only one environment in the fast loop.")
    dev = keep_env(VENV, f".[{EXTRAS}]", "--group", "dev")
    with session.types(dev, supported_versions()[0]):
        session.lint(dev)
        with session.row(f"py{default_version()}") as row:
            session.test(row, dev, FAST, measured=False)


def reformat(session: Session, only: Sequence[str]) -> None:  # noqa: ARG001  # as the others
    """Do what `make format` does."""
    dev = keep_env(VENV, f".[{EXTRAS}]", "--group", "dev")
    session.step("ruff check", dev, "ruff", "check", "--fix", ".")
    session.step("ruff format", dev, "ruff", "format", ".")


def main() -> int:
    """Do as the command line says."""
    tasks: dict[str, Callable[[Session, Sequence[str]], None]] = {
        "all": test_all,
        "fast": test_fast,
        "format": reformat,
    }
    # Cut by hand, as argparse takes no positional arguments after options.
    cut = [*sys.argv, "--"].index("--")
    arguments, for_pytest = sys.argv[1:cut], sys.argv[cut + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="What comes after -- is for pytest."
    )
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--env", action="append", default=[], help="only this environment")
    options = parser.parse_args(arguments)
    session = Session(arguments=for_pytest)
    try:
        tasks[options.task](session, options.env)
    except SetupError as error:
        stop(error)
    except KeyboardInterrupt:
        stop("Interrupted.")
    return session.summary()


if __name__ == "__main__":
    sys.exit(main())
