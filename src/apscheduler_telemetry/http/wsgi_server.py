"""
The built-in WSGI server: threads, TLS handshakes and malformed requests.
"""

from __future__ import annotations

import io
import logging
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from apscheduler_telemetry.core.forks import reset_in_forked_children
from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.connections import ConnectionTracker, shutdown_socket

logger = logging.getLogger("apscheduler_telemetry")


class RequestHandler(WSGIRequestHandler):
    """Reads one request, with a timeout, and writes nothing to stderr."""

    default_request_version = "HTTP/1.0"  # so that errors have a status line, unlike with 0.9

    def setup(self) -> None:
        """Set the timeout of the connection."""
        self.request.settimeout(limits.IDLE_TIMEOUT)
        super().setup()

    def parse_request(self) -> bool:
        """Reject malformed headers; the library ignores them and all headers after them."""
        if not super().parse_request():
            return False
        has_control = any(set("\r\n\0").intersection(value) for value in self.headers.values())
        length = self.headers.get("Content-Length", "0").strip()
        if self.headers.defects or has_control or not length.isdecimal():
            self.send_error(HTTPStatus.BAD_REQUEST, "Malformed header")
            return False
        return True

    def get_stderr(self) -> io.StringIO:
        """Keep tracebacks of broken connections off stderr."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # name of the base class
        """Keep the request log off stderr."""


class ThreadingWSGIServer(ThreadingMixIn, WSGIServer):
    """
    A server that untrusted clients cannot block: one thread for each connection, with limits.

    The server of `prometheus_client` is not used because it does TLS handshakes in its only
    accepting thread, waits forever for silent clients, writes tracebacks of broken connections to
    stderr, and speaks plain HTTP if it is given a certificate without a key.

    Attributes:
        is_https: whether it speaks TLS.
        connections: the open connections.
    """

    daemon_threads = True
    request_queue_size = 128
    # On Windows this option would let two servers listen on one port,
    allow_reuse_address = os.name != "nt"
    # and this one would elsewhere.
    allow_reuse_port = False

    def __init__(
        self,
        family: socket.AddressFamily,
        address: Any,
        app: Callable[..., Iterable[bytes]],
        tls_context: ssl.SSLContext | None,
    ) -> None:
        self.address_family = family
        self.is_https = tls_context is not None
        self.connections = ConnectionTracker()
        super().__init__(address, RequestHandler)
        self.set_app(app)
        if tls_context is not None:
            # The first read does the handshake, in the thread of the connection.
            self.socket = tls_context.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        reset_in_forked_children(self)

    def server_bind(self) -> None:
        """Bind without resolving the name of the machine, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Track the connection and start its thread."""
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        self.connections.remove(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Enforce the limits on connections; `serve_forever` calls this twice a second or more."""
        self.connections.enforce_limits()

    def stop(self) -> None:
        """End `serve_forever` and all connections; call this from another thread."""
        # Wakes the accepting thread, and stops copies of the socket in forked children too.
        shutdown_socket(self.socket)
        self.shutdown()
        self.connections.shutdown_all()

    def reset_after_fork(self) -> None:
        """Close the socket, so that a child does not hold the port after the parent has ended."""
        self.socket.close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # base class
        """Log a broken connection at debug level only; clients can cause any number of them."""
        message = "Connection from %s failed"
        logger.debug(message, client_address, exc_info=True)  # noqa: LOG014  # called in a handler
