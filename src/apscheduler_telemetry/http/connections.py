"""
The open connections of the built-in server, and the limits on them.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from apscheduler_telemetry.http import limits


class ConnectionTracker:
    """
    Tracks the open connections of a server, and ends those that exceed the limits.

    Connections are added by the accepting thread and removed by their own threads.
    """

    def __init__(self) -> None:
        self._opened_at: dict[socket.socket, float] = {}

    def __len__(self) -> int:
        """Return the number of open connections."""
        return len(self._opened_at)

    def add(self, connection: socket.socket) -> None:
        """Track a connection that was just accepted."""
        self._opened_at[connection] = time.monotonic()

    def remove(self, connection: socket.socket) -> None:
        """Stop tracking a connection, if it is tracked."""
        self._opened_at.pop(connection, None)

    def enforce_limits(self) -> None:
        """Shut down connections that are too old, and the oldest if there are too many."""
        # A copy, which is atomic: other threads add and remove connections meanwhile.
        opened_at = self._opened_at.copy()
        excess = len(opened_at) - limits.MAX_CONNECTIONS
        earliest = time.monotonic() - limits.MAX_CONNECTION_AGE
        for index, (connection, since) in enumerate(opened_at.items()):
            if index < excess or since < earliest:
                shutdown_socket(connection)

    def shutdown_all(self) -> None:
        """Shut down all connections."""
        for connection in self._opened_at.copy():
            shutdown_socket(connection)


def shutdown_socket(connection: socket.socket) -> None:
    """
    Shut down a socket, so that the thread that waits for it continues.

    This bypasses the TLS layer, whose state may only be used by the thread of the connection.
    """
    with suppress(OSError):  # already closed
        socket.socket.shutdown(connection, socket.SHUT_RDWR)
