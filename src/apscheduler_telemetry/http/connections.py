"""
The open connections of the built-in server, and the limits on them.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.limits import ServerLimits, report_exceeded_limit

SOCKET_ENVIRON_KEY = "apscheduler_telemetry.socket"
"""Key of the connection in the WSGI environment of our server."""


class TooManyConnectionsError(ConnectionAbortedError):
    """Reports that a connection was closed because there were too many."""

    def __init__(self, max_connections: int) -> None:
        super().__init__(
            f"more than {max_connections} connections were open, and the oldest was closed; "
            "start_http_server(max_connections=...) changes the limit"
        )


class ConnectionTracker:
    """
    Tracks the open connections of a server, and ends those that exceed the limits.

    Connections are added by the accepting thread and removed by their own threads.

    Args:
        connection_limits: the limits.
        report_exception: called with ``"http"`` for each connection that is closed because there
            are too many.
    """

    def __init__(
        self, connection_limits: ServerLimits, report_exception: Callable[[str], None]
    ) -> None:
        self._limits = connection_limits
        self._report_exception = report_exception
        self._deadlines: dict[socket.socket, float] = {}

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._deadlines)

    def add(self, connection: socket.socket) -> None:
        """Track a connection that was just accepted."""
        self.set_deadline(connection, self._limits.max_connection_age)

    def set_deadline(self, connection: socket.socket, seconds: float) -> None:
        """Let a connection end after so many seconds from now at the latest."""
        self._deadlines[connection] = time.monotonic() + seconds

    def remove(self, connection: socket.socket) -> None:
        """Stop tracking a connection, if it is tracked."""
        self._deadlines.pop(connection, None)

    def enforce_limits(self) -> None:
        """Shut down connections that are too old, and the oldest if there are too many."""
        # A copy, which is atomic: other threads add and remove connections meanwhile.
        deadlines = self._deadlines.copy()
        excess = len(deadlines) - self._limits.max_connections
        now = time.monotonic()
        for index, (connection, deadline) in enumerate(deadlines.items()):
            if index < excess or deadline < now:
                shutdown_socket(connection)
            if index < excess:
                self.remove(connection)
                error = TooManyConnectionsError(self._limits.max_connections)
                report_exceeded_limit(self._report_exception, error)

    def shutdown_all(self) -> None:
        """Shut down all connections."""
        for connection in self._deadlines.copy():
            shutdown_socket(connection)


def shutdown_socket(connection: Any) -> None:
    """
    Shut down a socket, so that the thread that waits for it continues.

    This bypasses the TLS layer, whose state may only be used by the thread of the connection.
    """
    # Already closed, or a socket of an unknown kind, which a foreign server uses.
    with suppress(OSError, TypeError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def is_disconnected(connection: Any, *, request_read_at: float) -> bool:
    """
    Return whether the client of a connection is gone, as far as the kernel knows.

    Args:
        connection: the connection, whose request was read.
        request_read_at: when that was, in seconds of `time.monotonic`.
    """
    if not hasattr(select, "poll"):  # as on Windows
        return False
    poller = select.poll()
    half_closed = getattr(select, "POLLRDHUP", 0)  # Linux only
    try:
        poller.register(connection, half_closed)
    except ValueError:  # closed by the server
        return True
    except TypeError:  # of an unknown kind, which a foreign server uses
        return False
    events = poller.poll(0)
    flags = events[0][1] if events else 0
    if flags & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
        return True
    return (
        bool(flags & half_closed)
        and time.monotonic() - request_read_at > limits.HALF_CLOSED_CLIENT_GRACE_SECONDS
    )
