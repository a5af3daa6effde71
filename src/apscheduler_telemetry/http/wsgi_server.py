"""
The built-in WSGI server: threads, TLS handshakes and malformed requests.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from queue import SimpleQueue
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from apscheduler_telemetry.core.forks import create_daemon_thread, reset_in_forked_children
from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.connections import (
    SOCKET_ENVIRON_KEY,
    ConnectionTracker,
    shutdown_socket,
)
from apscheduler_telemetry.http.limits import ServerLimits
from apscheduler_telemetry.http.tls import ReloadingTLSContext

logger = logging.getLogger("apscheduler_telemetry")

_EXHAUSTED_RESOURCE_ERRNOS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""The errors of ``accept`` after which the connection is still waiting to be accepted."""

_EMPTY_LINES = (b"\r\n", b"\n")
_ABSOLUTE_URL_PATTERN = re.compile(r"https?://(?P<authority>[^/?#]+)", re.IGNORECASE)


class RequestHandler(WSGIRequestHandler):
    """Reads one request, with a timeout, and writes nothing to stderr."""

    default_request_version = "HTTP/1.0"  # so that errors have a status line, unlike with 0.9
    server: HardenedWSGIServer

    def setup(self) -> None:
        """Set the timeout of the connection."""
        self.request.settimeout(self.server.limits.idle_timeout)
        super().setup()

    def handle(self) -> None:
        """
        Respond to the request if its whole head arrives and is small.

        The library gets nothing but the head. On its own it would read 100 lines of 64 kB, take
        carriage returns for ends of further lines, and parse what a client leaves behind.
        """
        self.requestline = self.request_version = self.command = ""  # for errors
        with self.rfile as stream:
            head = self._read_head(stream)
        if len(head) > limits.MAX_REQUEST_HEAD_BYTES:
            self.send_error(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                if b"\n" in head
                else HTTPStatus.REQUEST_URI_TOO_LONG
            )
        elif b"\r" in head.replace(b"\r\n", b""):
            self.send_error(HTTPStatus.BAD_REQUEST, "Carriage return without line feed")
        # A request of HTTP 0.9 may end after its only line.
        elif head.endswith((b"\n\r\n", b"\n\n")) or b"\n" not in head[:-1]:
            self.rfile = io.BytesIO(head)
            super().handle()

    @staticmethod
    def _read_head(stream: io.BufferedIOBase) -> bytes:
        """Read up to an empty line, the end of what the client sends, or one byte too many."""
        head = bytearray()  # and no list, as each short line in it would take 60 bytes
        while line := stream.readline(limits.MAX_REQUEST_HEAD_BYTES + 1 - len(head)):
            head += line
            if head in _EMPTY_LINES:  # one may precede a request (RFC 9112, section 2.2)
                continue
            # What starts with no letter is another protocol, such as TLS: it gets 400 at once.
            if line in _EMPTY_LINES or not head.lstrip(b"\r\n")[:1].isalpha():
                break
        return bytes(head).lstrip(b"\r\n")

    def get_environ(self) -> dict[str, Any]:
        """Add the connection, so that `WSGIApp` can look whether the client is still there."""
        return {**super().get_environ(), SOCKET_ENVIRON_KEY: self.request}

    def parse_request(self) -> bool:
        """
        Reject malformed headers; the library ignores them and all headers after them.

        If the target is a whole URL, its host replaces the header (RFC 9112, section 3.2.2).
        """
        if not super().parse_request():
            return False
        has_control = any(set("\r\n\0").intersection(value) for value in self.headers.values())
        length = self.headers.get("Content-Length", "0").strip()
        if self.headers.defects or has_control or not length.isdecimal():
            self.send_error(HTTPStatus.BAD_REQUEST, "Malformed header")
            return False
        if absolute := _ABSOLUTE_URL_PATTERN.match(self.path):
            del self.headers["Host"]
            self.headers["Host"] = absolute["authority"]
            self.path = f"/{self.path[absolute.end() :].removeprefix('/')}"
        return True

    def get_stderr(self) -> io.StringIO:
        """Keep tracebacks of broken connections off stderr."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # name of the base class
        """Keep the request log off stderr."""


class HardenedWSGIServer(ThreadingMixIn, WSGIServer):
    """
    A server that untrusted clients cannot block: one thread for each connection, with limits.

    The server of `prometheus_client` is not used because it does TLS handshakes in its only
    accepting thread, waits forever for silent clients, writes tracebacks of broken connections to
    stderr, and speaks plain HTTP if it is given a certificate without a key.

    Args:
        family: of the address.
        address: where to listen.
        app: the WSGI application.
        tls: the TLS context, if it has one.
        connection_limits: the limits on connections.
        report_exception: called with ``"http"`` for what keeps clients from being served.

    Attributes:
        is_https: whether it speaks TLS.
        limits: the limits on connections.
        connections: the open connections.
    """

    daemon_threads = True
    request_queue_size = 128
    # On Windows this option would let two servers listen on one port,
    allow_reuse_address = os.name != "nt"
    # and this one would elsewhere.
    allow_reuse_port = False

    def __init__(  # noqa: PLR0913  # keyword-only
        self,
        *,
        family: socket.AddressFamily,
        address: Any,
        app: Callable[..., Iterable[bytes]],
        tls: ReloadingTLSContext,
        connection_limits: ServerLimits,
        report_exception: Callable[[str], None],
    ) -> None:
        self.address_family = family
        self.is_https = tls.is_enabled
        self.limits = connection_limits
        self.connections = ConnectionTracker(connection_limits, report_exception)
        self._tls = tls
        self._report_exception = report_exception
        self._stopping_event = threading.Event()
        self._connections_without_thread: SimpleQueue[tuple[Any, Any] | None] = SimpleQueue()
        super().__init__(address, RequestHandler)
        self.set_app(app)
        reset_in_forked_children(self)

    def server_bind(self) -> None:
        """Bind without resolving the name of the machine, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def get_request(self) -> tuple[Any, Any]:
        """
        Accept a connection.

        If the process has no file descriptor left, wait, as the connection cannot even be refused.
        """
        try:
            connection, address = self.socket.accept()
        except OSError as error:
            if error.errno in _EXHAUSTED_RESOURCE_ERRNOS:
                self._report_exception("http")
                self._stopping_event.wait(limits.ACCEPT_RETRY_SECONDS)
            raise
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, limits.SEND_BUFFER_BYTES)
        context = self._tls.get_current_context()
        if context is None:
            return connection, address
        try:
            # The first read does the handshake, in the thread of the connection.
            wrapped = context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        except BaseException:
            connection.close()
            raise
        return wrapped, address

    def process_request(self, request: Any, client_address: Any) -> None:
        """
        Track the connection, and start its thread.

        No thread can be started if the process has too many, or, since Python 3.12, after the main
        thread has ended. Then `serve_in_spare_thread` handles the connection.
        """
        self.connections.add(request)
        try:
            create_daemon_thread(
                self.process_request_thread,
                request,
                client_address,
                name="apscheduler-telemetry-http-connection",
            ).start()
        except RuntimeError:
            if threading.main_thread().is_alive():
                self._report_exception("http")
            self._connections_without_thread.put((request, client_address))

    def serve_in_spare_thread(self) -> None:
        """Handle connections that no thread could be started for, until `server_close`."""
        while (pending := self._connections_without_thread.get()) is not None:
            request, client_address = pending
            self.connections.set_deadline(request, limits.SPARE_THREAD_CONNECTION_SECONDS)
            self.process_request_thread(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Close the connection."""
        self.connections.remove(request)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Enforce the limits on connections; `serve_forever` calls this twice a second or more."""
        self.connections.enforce_limits()

    def stop(self) -> None:
        """End `serve_forever` and all connections; call this from another thread."""
        self._stopping_event.set()
        # Wakes the accepting thread, and stops copies of the socket in forked children too.
        shutdown_socket(self.socket)
        self.shutdown()
        self.connections.shutdown_all()

    def server_close(self) -> None:
        """Close the socket, and end `serve_in_spare_thread`."""
        super().server_close()
        self._connections_without_thread.put(None)

    def reset_after_fork(self) -> None:
        """Close the socket, so that a child does not hold the port after the parent has ended."""
        self.socket.close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  # base class
        """Log a broken connection at debug level only; clients can cause any number of them."""
        message = "Connection from %s failed"
        logger.debug(message, client_address, exc_info=True)  # noqa: LOG014  # called in a handler
