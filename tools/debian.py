"""
Programs of Debian that tests and the demo use: found, installed, or unpacked without root.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parent.parent
UNPACKED = ROOT / ".envs" / "debian"
PACKAGES = {
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "prometheus-alertmanager": "prometheus-alertmanager",
    "amtool": "prometheus-alertmanager",
    "victoria-metrics": "victoria-metrics",
    "vmalert": "victoria-metrics",
    "postgres": "postgresql",
    "redis-server": "redis-server",
    "uwsgi_python3": "uwsgi-plugin-python3",
    "callgrind_control": "valgrind",
    "chromium": "chromium",
}
"""Which package a program is in."""
PROMETHEUS = frozenset({"prometheus", "promtool", "prometheus-alertmanager", "amtool"})
"""What the integration tests, the drills and the demo need."""
VICTORIA_METRICS = frozenset({"victoria-metrics", "vmalert"})
"""Another engine for the rules; only tests use it."""
SERVERS = frozenset({"postgres", "redis-server", "uwsgi_python3"})
"""Servers that cannot be unpacked, as each consists of many packages."""
PROFILERS = frozenset({"callgrind_control"})
"""What only benchmarks use; it cannot be unpacked either, as it looks for its parts in /usr."""
BROWSER = frozenset({"chromium"})
"""For the tests of the status page; it cannot be unpacked, as it consists of many packages."""

_POLICY = Path("/usr/sbin/policy-rc.d")
_PRIVATE = UNPACKED / "apt"


def search_path() -> str:
    """Return a PATH on which unpacked programs come after installed ones."""
    # Debian keeps PostgreSQL's programs apart, as several versions can be installed.
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    newest_first = sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
    places = [os.environ.get("PATH", os.defpath), *newest_first, UNPACKED / "usr" / "bin"]
    return os.pathsep.join(map(str, places))


def which(program: str) -> str | None:
    """Return the path of an installed or unpacked program."""
    return shutil.which(program, path=search_path())


def provide(programs: Iterable[str]) -> bool:
    """
    Make programs available, and print one line for what is missing, and why.

    With root, or sudo that asks for no password, their packages are installed, and no service is
    started or left enabled. Otherwise they are unpacked into this checkout, which needs no rights;
    not so `SERVERS`, `PROFILERS` and `BROWSER`, to be asked for apart. What is there already is
    left alone.

    Returns:
        Whether all of them are there now.
    """
    programs = list(programs)
    missing = sorted({PACKAGES[program] for program in programs if not which(program)})
    if not missing:
        return True
    names = " ".join(missing)
    if shutil.which("apt-get") is None:
        print(f"Missing: {names}. This is no Debian, so please install them yourself.")
        return False
    root = _root()
    if root is not None:
        print(f"Installing {names} with apt-get; no service is started or left enabled.")
        why = _install(missing, root)
        if why is None:
            return True
        print(f"apt-get could not install them ({why}).")
    if (SERVERS | PROFILERS | BROWSER) & set(programs):
        print(f"Missing: {names}. Only root can install them.")
        return False
    print(f"Unpacking {names} into {UNPACKED.relative_to(ROOT)}, which needs no root.")
    why = unpack(missing)
    if why is not None:
        print(f"Missing: {names}. Neither installed nor unpacked ({why}).")
    return why is None


def unpack(packages: Iterable[str]) -> str | None:
    """
    Download packages and unpack them below `UNPACKED`; nothing of the system is changed.

    Returns:
        None, or in one line why it did not work.
    """
    downloads = _PRIVATE / "downloads"
    for directory in ("lists/partial", "cache/archives/partial", "downloads"):
        (_PRIVATE / directory).mkdir(parents=True, exist_ok=True)
    get = ("apt-get", "-qq", "-o", "APT::Sandbox::User=")
    private = (
        *get,
        "-o",
        f"Dir::State::Lists={_PRIVATE}/lists",
        "-o",
        f"Dir::Cache={_PRIVATE}/cache",
    )
    try:
        if _run((*get, "download", *packages), cwd=downloads) is not None:
            # The machine's package lists are missing or old, so fetch some for this checkout.
            for command in (("update",), ("download", *packages)):
                why = _run((*private, *command), cwd=downloads)
                if why is not None:
                    return why
        for archive in downloads.glob("*.deb"):
            why = _run(("dpkg-deb", "--extract", str(archive), str(UNPACKED)))
            if why is not None:
                return why
    except OSError as error:
        return str(error)
    finally:
        shutil.rmtree(_PRIVATE, ignore_errors=True)
    return None


def _root() -> tuple[str, ...] | None:
    """Return what a command has to be preceded by to run as root; None if that cannot be."""
    if os.geteuid() == 0:
        return ()
    sudo = ("sudo", "-n")
    if shutil.which("sudo") and _run((*sudo, "true")) is None:
        return sudo
    return None


def _install(packages: list[str], root: tuple[str, ...]) -> str | None:
    get = (
        *root,
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-qq",
        "-o",
        "DPkg::Lock::Timeout=120",
    )
    install = (*get, "install", "--yes", "--no-install-recommends", *packages)
    with _no_services(root):
        why = _run(install)
        if why is not None:  # most often: package lists that were never fetched, or are old
            why = _run((*get, "update")) or _run(install)
    if why is None:
        for package in packages:  # each has a service of its name, which systemd hears of too
            _run((*root, "update-rc.d", package, "disable"))
    return why


@contextlib.contextmanager
def _no_services(root: tuple[str, ...]) -> Iterator[None]:
    """Forbid package scripts to start services, the way Debian documents it."""
    if _POLICY.exists():  # the administrator's own policy, which we do not change
        yield
        return
    with tempfile.NamedTemporaryFile("w", suffix=".policy-rc.d") as script:
        script.write("#!/bin/sh\nexit 101\n")
        script.flush()
        _run((*root, "install", "--mode=755", script.name, str(_POLICY)))
    try:
        yield
    finally:
        _run((*root, "rm", "--force", str(_POLICY)))


def _run(command: tuple[str, ...], cwd: Path | None = None) -> str | None:
    """Run a command silently; return None, or in one line why it failed."""
    done = subprocess.run(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")] or lines
    return errors[0] if errors else f"{command[0]} ended with status {done.returncode}"
