"""Start the demo's processes, each in a session of its own, and end them with their children."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

import speed
from sources import fetch

ROOT = Path(__file__).parent.parent.parent
ALERTS = ROOT / "alerts"
STACK = ROOT / "compose"
"""The configuration of docker-compose.yml, which the demo uses with other addresses, and faster."""
FASTER = 30
"""How much faster than in production the rules and routes are: 15 minutes become 30 seconds."""


def application(
    directory: Path, port: int
) -> contextlib.AbstractContextManager["subprocess.Popen[bytes]"]:
    """Start the application, whose pages are on `port`."""
    command = [sys.executable, str(Path(__file__).parent / "app.py"), str(directory), str(port)]
    return running(command, directory)


def telemetry_command(*arguments: str) -> list[str]:
    """Return the command `apscheduler-telemetry` of this environment, with arguments."""
    return [sys.executable, "-m", "apscheduler_telemetry", *arguments]


@contextlib.contextmanager
def start_alertmanager(directory: Path) -> Iterator[str | None]:
    """Start Alertmanager with the routes of `alerts/`, and yield its URL; None if not installed."""
    binary = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if binary is None:
        yield None
        return
    routes = yaml.safe_load(speed.faster_routes((STACK / "alertmanager.yml").read_text(), FASTER))
    # Without receivers: the demo shows the alerts itself.
    routes["receivers"] = [{"name": receiver["name"]} for receiver in routes["receivers"]]
    del routes["global"], routes["templates"]
    config = directory / "alertmanager.yml"
    config.write_text(json.dumps(routes))  # JSON is YAML
    url = f"http://127.0.0.1:{free_port(9093)}"
    command = [
        binary,
        f"--config.file={config}",
        f"--storage.path={directory / 'alertmanager'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--cluster.listen-address=",  # alone
        "--log.level=warn",
    ]
    with running(command, directory) as process:
        wait_for(f"{url}/-/ready", process)
        yield url


@contextlib.contextmanager
def start_prometheus(directory: Path, port: int, alertmanager: str | None) -> Iterator[str | None]:
    """
    Start Prometheus with the rules of `alerts/`, and yield its URL; None if not installed.

    It scrapes the application every second, and evaluates the rules as often.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        yield None
        return
    rules = directory / "rules.yml"
    rules.write_text(speed.faster_rules((ALERTS / "apscheduler.rules.yml").read_text(), FASTER))
    settings = yaml.safe_load((STACK / "prometheus.yml").read_text())
    settings["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    settings["rule_files"] = [str(rules)]
    [demo], [managers] = settings["scrape_configs"], settings["alerting"]["alertmanagers"]
    demo["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    targets = [alertmanager.removeprefix("http://")] if alertmanager else []
    managers["static_configs"] = [{"targets": targets}]
    config = directory / "prometheus.yml"
    config.write_text(json.dumps(settings))
    url = f"http://127.0.0.1:{free_port(9090)}"
    command = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address={url.removeprefix('http://')}",
        "--enable-feature=exemplar-storage",
        "--rules.alert.resend-delay=5s",
        "--log.level=warn",
    ]
    with running(command, directory) as process:
        wait_for(f"{url}/-/ready", process)
        yield url


@contextlib.contextmanager
def running(command: list[str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own, its output in a file, and end the whole session."""
    log = directory / f"{Path(command[0]).name}-{len(list(directory.iterdir()))}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    process.log = log  # type: ignore[attr-defined]
    with ended(process):
        yield process


@contextlib.contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process that has a session of its own, and its children, at the end of the block."""
    try:
        yield
    finally:
        for number, patience in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def wait_for(url: str, process: subprocess.Popen[bytes], patience: float = 30.0) -> None:
    """Wait until `url` answers; if it does not, end the demo with the log of its process."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            fetch(url)
            return
        time.sleep(0.1)
    log = Path(process.log).read_text(errors="replace")[-2000:]  # type: ignore[attr-defined]
    msg = f"{url} does not answer; the end of the log of its process:\n{log}"
    raise SystemExit(msg)


def free_port(preferred: int) -> int:
    """Return `preferred` if it is free, else another port that is free."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return int(probe.getsockname()[1])
    msg = "no port is free on 127.0.0.1"
    raise SystemExit(msg)
