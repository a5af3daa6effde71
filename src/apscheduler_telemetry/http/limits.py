"""
Time limits and size limits of the HTTP endpoints.

Other modules read them as ``limits.NAME`` at the time of use, so that tests can change them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from apscheduler_telemetry.core.safe_repr import safe_repr
from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError

RENDER_TIMEOUT_SECONDS = 60.0
"""
Seconds to produce a response; a scrape that takes longer fails.

Prometheus itself gives up after 10 s unless configured otherwise.
"""

PARALLEL_RENDER_AFTER_SECONDS = 1.0
"""
Seconds after which a page is rendered for other requests, without waiting for a rendering that has
started and may hang.

Rendering 10,000 jobs takes less than a second, even if all of them have run.
"""

SHARED_RESPONSE_SECONDS = 1.0
"""
Seconds for which a response is shared with further requests, while a client still reads it.

As long as the shortest interval at which a Prometheus is usually made to scrape.
"""

MAX_THREADS_PER_PAGE = 8
"""Threads per page. So many are busy only if renderings hang."""

IDLE_THREAD_SECONDS = 60.0
"""
Seconds for which a thread waits for the next request; longer than most intervals of scrapes.

glibc gives threads different arenas, and each one keeps memory of the responses made there.
"""

MAX_PENDING_REQUESTS = 1000
"""Requests per page that may wait for a thread; so many wait only if collecting hangs."""

MAX_REQUEST_HEAD_BYTES = 32 * 1024
"""
Bytes of the request line and the headers that the built-in server reads of one request.

A Prometheus sends less than 1 kB, and most servers accept from 8 to 64 kB. To parse the head takes
about five times as much memory, before it is known who the client is.
"""

MAX_BUFFERED_BYTES = 24 * 1024 * 1024
"""
Default of the bytes that are kept for clients that read slowly.

Five bodies of 1,000 jobs, or one of 5,000 jobs; with gzip, as Prometheus reads, far more. An ASGI
server keeps up to 80 kB for each client besides, so that 250 clients stay below 60 MB in all.
"""

MAX_CHUNK_BYTES = 512 * 1024
"""
Bytes of a part of ``/metrics``.

The exporter's own parts, which are seldom larger, need not be split. No other thread can run while
Python copies one, which takes less than a millisecond.
"""

MAX_PIECE_BYTES_FOR_OTHER_SERVERS = 16 * 1024
"""
Bytes that are passed to an ASGI server, or to a WSGI server other than the built-in one, at a time.

Such a server may keep a piece for each client that does not read. uvicorn accepts pieces until it
keeps 64 kB for the client.
"""

SEND_BUFFER_BYTES = 128 * 1024
"""
Bytes that the kernel keeps for a client of the built-in server.

By default they are up to 4 MB on Linux, which containers count as their memory. 128 kB are enough
for a megabyte per second if a packet takes 100 ms for its way and back.
"""

ACCEPT_RETRY_SECONDS = 0.25
"""
Seconds to wait if a connection cannot be accepted because file descriptors or memory are used up.

The connection stays readable meanwhile, so that without waiting the server would use a whole CPU.
"""

FILE_RETRY_SECONDS = 1.0
"""
Seconds after which a certificate, key or token that could not be read is tried again.

To try costs a few milliseconds in which no connection is accepted.
"""

HALF_CLOSED_CLIENT_GRACE_SECONDS = 1.0
"""
Seconds after which a client that has closed its sending side is taken for one that is gone.

The kernel reports both in the same way. Clients that send a request, close their sending side and
read the response, as netcat may do, have it by then unless many requests are waiting.
"""

SPARE_THREAD_CONNECTION_SECONDS = 5.0
"""Seconds for one connection in the spare thread, as all others wait meanwhile."""


@dataclass(frozen=True, kw_only=True)
class ServerLimits:
    """
    The limits of one built-in server.

    Attributes:
        max_connections: open connections; beyond it, the oldest is closed for a new client.
        idle_timeout: seconds that the server waits for a client that neither sends nor reads.
        max_buffered_bytes: bytes that the server keeps for clients that read slowly; beyond it,
            the slowest are disconnected. The latest response is always kept, whatever its size.
    """

    max_connections: int = 256
    idle_timeout: float = 30.0
    max_buffered_bytes: int = MAX_BUFFERED_BYTES

    @property
    def max_connection_age(self) -> float:
        """
        Seconds that the server keeps any connection open.

        `idle_timeout` alone does not stop a client that sends or reads one byte now and then.
        """
        return 2 * self.idle_timeout + RENDER_TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        """Validate the values."""
        for name in ("max_connections", "max_buffered_bytes"):
            _validate_number(name, getattr(self, name), (int,), "an int of 1 or more")
        _validate_number(
            "idle_timeout", self.idle_timeout, (int, float), "seconds greater than 0, such as 30"
        )


def report_exceeded_limit(report_exception: Callable[[str], None], error: OSError) -> None:
    """Report an error that ended a connection, and that no code of ours can raise."""
    try:
        raise error  # `report_exception` reports what is being handled
    except OSError:
        report_exception("http")
    finally:
        del error  # its traceback has this frame, and so those of all callers, with large responses


def _validate_number(name: str, value: object, types: tuple[type, ...], expectation: str) -> None:
    if not isinstance(value, types) or isinstance(value, bool):
        msg = f"{name} must not be {value!r}; pass {expectation}"
        raise ArgumentTypeError(msg)
    try:
        is_possible = isfinite(value) and value > 0  # type: ignore[arg-type, operator]  # a number
    except OverflowError:  # an int that no float can hold
        is_possible = False
    if not is_possible:
        msg = f"{name}={safe_repr(value)} is impossible; pass {expectation}"
        raise ArgumentValueError(msg)
