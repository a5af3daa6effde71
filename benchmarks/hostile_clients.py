"""
What hostile clients cost: our server, WSGI and ASGI, beside the server of prometheus_client.

Usage: hostile_clients.py [--jobs 1000] [--clients 250] [--seconds 10]

A process of its own runs a scheduler with so many jobs, and one job that is due every 50 ms. It is
left alone, then attacked in five ways:

- silent: clients request ``/metrics`` and read nothing. After that, each reads what it still gets.
- subsets: the same, but each client requests other metrics: all but two of them, by ``name[]``.
- pages: the same, but the clients request the status pages ``/``, ``/job`` and ``/upcoming``, each
  with another query, and prometheus_client has no such pages.
- vanished: each second, so many clients request ``/metrics`` and reset the connection.
- headers: all through the time, so many clients send 1 MB of headers that do not end. Half of them
  then hang up, and the others stay.

Meanwhile another client scrapes as Prometheus does, twice a second, and gives up after 10 seconds.
The process then has 30 seconds to tell how late the job was.
Told are the connections that the process still holds at the end, how much its memory grew, how late
the job of 20 Hz started, how many scrapes succeeded, how long the slowest took, and how many of the
silent clients got a whole response in the end.
"""

import argparse
import contextlib
import itertools
import logging
import math
import os
import re
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import Any

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from interference import HEADERS, PERIOD, Watched, answer, ask, work
from prometheus_client import CollectorRegistry, start_http_server

from apscheduler_telemetry import Telemetry, instrument

GIVE_UP = 10.0  # seconds, as Prometheus does by default
PATIENCE = 30.0  # seconds for a process that is overloaded
TARGET_MB = 60
TARGETS = (
    *(
        (server, attack)
        for attack in ("silent", "subsets", "pages")
        for server in ("ours", "wsgi", "asgi")
    ),
    ("ours", "headers"),
)
"""How much our server and applications may grow with 1,000 jobs and 250 clients, and in what."""
SERVER_THREADS = 8
LARGE_HEAD = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + b"".join(
    b"X-%d: %s\r\n" % (number, b"a" * 20_000) for number in range(50)
)


def serve_by_prometheus_client(_telemetry: Telemetry, registry: CollectorRegistry) -> int:
    """Serve as most applications do."""
    server, _ = start_http_server(0, "127.0.0.1", registry)
    return int(server.server_port)


def serve_by_uvicorn(telemetry: Telemetry, _registry: CollectorRegistry) -> int:
    """Serve the ASGI application."""
    import uvicorn  # noqa: PLC0415  # only here

    config = uvicorn.Config(telemetry.asgi_app, port=0, log_level="critical")
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return int(server.servers[0].sockets[0].getsockname()[1])


def serve_by_wsgi_threads(telemetry: Telemetry, _registry: CollectorRegistry) -> int:
    """Serve the WSGI application from the threading server of Werkzeug."""
    from werkzeug.serving import WSGIRequestHandler, make_server  # noqa: PLC0415  # only here

    WSGIRequestHandler.log = lambda *_args: None  # type: ignore[method-assign]
    server = make_server("127.0.0.1", 0, telemetry.wsgi_app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.port


SERVERS: dict[str, Callable[[Telemetry, CollectorRegistry], int]] = {
    "ours": lambda telemetry, _registry: telemetry.start_http_server(0).port,
    "wsgi": serve_by_wsgi_threads,
    "asgi": serve_by_uvicorn,
    "theirs": serve_by_prometheus_client,
}
"""Our server, our applications in Werkzeug and uvicorn, and the server of prometheus_client."""


def serve(kind: str, jobs: int) -> None:
    """Be the process that is measured."""
    logging.disable()  # skipped runs, and connections that were reset
    executors = {"default": ThreadPoolExecutor(4), "watched": Watched(1)}
    scheduler = BackgroundScheduler(executors=executors, timezone="UTC")
    registry = CollectorRegistry()
    telemetry = instrument(scheduler, registry=registry, max_labels=jobs + 1)
    far = datetime(2099, 1, 1, tzinfo=timezone.utc)
    for number in range(jobs):
        run_date = far + timedelta(seconds=number)
        scheduler.add_job(work, "date", run_date=run_date, id=f"job-{number}")
    options: dict[str, Any] = {"misfire_grace_time": None, "coalesce": True}
    scheduler.add_job(work, "interval", seconds=PERIOD, id="fast", executor="watched", **options)
    scheduler.start()
    answer(SERVERS[kind](telemetry, registry))


def ask_patiently(process: Any) -> list[float]:
    """Return how many milliseconds the job was late; NaN if it does not answer."""
    answers: list[list[float]] = []
    thread = threading.Thread(target=lambda: answers.append(ask(process)), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return [1000 * value for value in answers[0]] if answers else [float("nan")]


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def count_sockets(pid: int) -> int:
    """Return how many sockets a process holds."""
    count = 0
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            count += str(link.readlink()).startswith("socket:")
    return count


def connect(port: int, target: str = "/metrics") -> socket.socket:
    """Connect with a small buffer, and request a page."""
    client = socket.socket()
    client.settimeout(GIVE_UP)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    head = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    client.sendall(head.encode())
    return client


def got_whole_response(client: socket.socket) -> bool:
    """Read what a client still gets, and tell whether it was all of a response."""
    received = bytearray()
    with contextlib.suppress(OSError), client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        while data := client.recv(1 << 20):
            received += data
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) == int(line.split(b":")[1])
    return b"200 OK" in head and body.endswith((b"\n", b">"))  # without a length, as theirs


class Attack:
    """Clients that attack a server for some time."""

    survivors: int | None = None

    def __init__(self, port: int, clients: int, seconds: float) -> None:
        self.port, self.clients, self.seconds = port, clients, seconds

    def run(self) -> None:
        """Do nothing."""
        time.sleep(self.seconds)

    def end(self) -> None:
        """Let go of all connections."""


class Silent(Attack):
    """Clients that read nothing."""

    def run(self) -> None:
        """Connect, and wait."""
        since = time.monotonic()
        self.connections = [connect(self.port, target) for target in self.create_targets()]
        time.sleep(max(0.0, self.seconds - (time.monotonic() - since)))

    def create_targets(self) -> list[str]:
        """Return what each client requests: all metrics."""
        return ["/metrics"] * self.clients

    def end(self) -> None:
        """Read at last; count who gets a whole response."""
        self.survivors = sum(map(got_whole_response, self.connections))


class Subsets(Silent):
    """Clients that read nothing, and cannot share a response."""

    def create_targets(self) -> list[str]:
        """Return what each client requests: all metrics but two."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with urllib.request.urlopen(url) as reply:
            text = reply.read().decode()
        names = sorted(set(re.findall(r"^\w+", text, re.MULTILINE)))
        left_out = itertools.islice(itertools.combinations(names, 2), self.clients)
        return [
            "/metrics?" + "&".join(f"name[]={name}" for name in names if name not in pair)
            for pair in left_out
        ]


class Pages(Silent):
    """Clients that do not read the status pages, and cannot share a response."""

    def create_targets(self) -> list[str]:
        """Return what each client requests: one of the three pages."""
        pages = itertools.cycle(("/?n={}", "/job?job_id=job-{}", "/upcoming?n={}"))
        return [next(pages).format(number) for number in range(self.clients)]


class Vanished(Attack):
    """Clients that are gone before they are answered."""

    def run(self) -> None:
        """Connect, and reset the connection."""
        start = time.monotonic()
        for number in range(round(self.clients * self.seconds)):
            now = time.monotonic() - start
            if now > self.seconds:
                return
            time.sleep(max(0.0, number // self.clients - now))
            with contextlib.suppress(OSError), connect(self.port) as client:
                linger = struct.pack("ii", 1, 0)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)


class Headers(Attack):
    """Clients that send very large headers, and no end of them."""

    def run(self) -> None:
        """Connect, send the headers, and hang up or stay."""
        self.connections = []
        start = time.monotonic()
        for number in range(self.clients):
            now = time.monotonic() - start
            if now > self.seconds:
                return
            time.sleep(max(0.0, number * self.seconds / self.clients - now))
            with contextlib.suppress(OSError):
                client = socket.create_connection(("127.0.0.1", self.port), GIVE_UP)
                self.connections.append(client)
                client.sendall(LARGE_HEAD)
                if number % 2:
                    client.close()

    def end(self) -> None:
        """Hang up."""
        for client in self.connections:
            client.close()


ATTACKS = {
    "alone": Attack,
    "silent": Silent,
    "subsets": Subsets,
    "pages": Pages,
    "vanished": Vanished,
    "headers": Headers,
}


class Scraper(threading.Thread):
    """Scrapes as Prometheus does, but more often."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=HEADERS)
        self.is_stopping = threading.Event()
        self.seconds: list[float] = []
        self.attempts = 0

    def run(self) -> None:
        """Scrape until the end."""
        while not self.is_stopping.wait(0.5):
            self.attempts += 1
            since = time.perf_counter()
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(self.request, timeout=GIVE_UP) as reply:  # noqa: S310
                    reply.read()
                self.seconds.append(time.perf_counter() - since)


def measure(kind: str, name: str, jobs: int, clients: int, seconds: float) -> float:
    """Print what an attack costs; return by how many megabytes the process grew."""
    command = [sys.executable, __file__, "--serve", kind, str(jobs)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdout is not None  # noqa: S101  # as it was asked for
        port = int(process.stdout.readline())
        scraper = Scraper(port)
        for _ in range(3):
            urllib.request.urlopen(scraper.request).read()  # noqa: S310
        got_whole_response(connect(port))
        time.sleep(1)
        memory, sockets = memory_mb(process.pid), count_sockets(process.pid)
        ask(process)
        attack = ATTACKS[name](port, clients, seconds)
        attacker = threading.Thread(target=attack.run)
        attacker.start()
        scraper.start()
        peak = memory
        while attacker.is_alive():
            peak = max(peak, memory_mb(process.pid))
            time.sleep(0.02)
        late_ms = ask_patiently(process) or [math.nan]  # an attack may end before the first run
        held = max(0, count_sockets(process.pid) - sockets)
        attack.end()
        scraper.is_stopping.set()
        scraper.join()
        print(
            f"{kind:7} {name:9} {held:6} {peak - memory:8.1f}"
            f" {statistics.median(late_ms):8.2f} {late_ms[int(0.99 * len(late_ms))]:8.2f}"
            f" {f'{len(scraper.seconds)}/{scraper.attempts}':>9}"
            f" {max(scraper.seconds, default=float('nan')):10.2f}"
            f" {'' if attack.survivors is None else attack.survivors:>10}",
            flush=True,
        )
        process.kill()
    return peak - memory


def main() -> int:
    """Print the table; the exit status is 1 if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--jobs", type=int, default=1_000)
    parser.add_argument("--clients", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--servers", nargs="*", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--attacks", nargs="*", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], int(options.serve[1]))
        return 0
    print("server  clients     held  more MB   p50 ms   p99 ms   scrapes  slowest s  survivors")
    run = partial(measure, jobs=options.jobs, clients=options.clients, seconds=options.seconds)
    grown = {
        (kind, name): run(kind, name)
        for name in options.attacks
        for kind in options.servers
        if (kind, name) != ("theirs", "pages")
    }
    return int(any(grown.get(measured, 0) > TARGET_MB for measured in TARGETS))


if __name__ == "__main__":
    sys.exit(main())
