"""Real servers for tests: started on free ports of the loopback, and ended with their children."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.waiting import wait_for_answer


def required_program(name: str) -> str:
    """Return the path of a program; fail on a machine without it."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is not installed; `make test` installs it, or says why it cannot")
    return path


def free_port() -> int:
    """
    Return a TCP port of the loopback that is free now.

    It is below the range from which the kernel takes ports for outgoing connections. A port of that
    range could be taken by any connection of another test before the server listens on it.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def get(url: str, **headers: str) -> tuple[int, str]:
    """
    Return the status and body of a response, whatever the status.

    Raises:
        OSError: there was no complete response.
    """
    request = urllib.request.Request(url, headers=headers)  # loopback
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as response:
        with response:
            return response.code, response.read().decode()
    except http.client.HTTPException as error:  # the server ended while it responded
        raise ConnectionError from error


@contextlib.contextmanager
def running_process(
    command: Sequence[str | Path], log: Path, **kwargs: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a session of its own, its output in `log`; end the whole session."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # what the tests start
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **kwargs,
        )
    try:
        yield process
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)


@contextlib.contextmanager
def running_http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve HTTP in a thread of this process; yields host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Prometheus:
    """A real Prometheus that scrapes and evaluates every second."""

    def __init__(self, url: str) -> None:
        self.url = url

    def api(self, path: str, **parameters: str) -> Any:
        """Return the data of an API call."""
        status, body = get(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
        answer = json.loads(body)
        assert status == 200, answer
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series of an instant query."""
        result = self.api("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def value(self, expression: str) -> float:
        """Return the value of an instant query that has one series."""
        series = self.query(expression)
        if len(series) != 1:
            msg = f"{len(series)} series, not 1: {expression}"
            raise LookupError(msg)
        return series[0][1]


@contextlib.contextmanager
def prometheus(
    binary: str, directory: Path, targets: Sequence[str], *, rules: Sequence[Path] = ()
) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes `targets` (host:port)."""
    directory.mkdir(exist_ok=True)
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rule) for rule in rules],
        "scrape_configs": [{"job_name": "app", "static_configs": [{"targets": list(targets)}]}],
    }
    (directory / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    with configured_prometheus(binary, directory, directory / "prometheus.yml") as server:
        yield server


@contextlib.contextmanager
def configured_prometheus(
    binary: str, directory: Path, config: Path, *options: str, features: str = "exemplar-storage"
) -> Iterator[Prometheus]:
    """Run a Prometheus with a configuration file, which keeps its data in `directory`."""
    port = free_port()
    command = [
        binary,
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        f"--enable-feature={features}",
        *options,
    ]
    with running_process(command, directory / "prometheus.log"):
        server = Prometheus(f"http://127.0.0.1:{port}")
        wait_for_answer(lambda: get(f"{server.url}/-/ready")[0] == 200)
        yield server
