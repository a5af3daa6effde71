"""
Start and stop the built-in server.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Collection, Iterable
from typing import Any

from apscheduler_telemetry.core.forks import create_daemon_thread
from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError, TelemetryError
from apscheduler_telemetry.http.access import (
    AccessControlMiddleware,
    AllowedHosts,
    BearerTokenFile,
    is_loopback_address,
)
from apscheduler_telemetry.http.limits import ServerLimits
from apscheduler_telemetry.http.messages import LIVENESS_PAGE_NAME
from apscheduler_telemetry.http.tls import ReloadingTLSContext, TLSOptions
from apscheduler_telemetry.http.wsgi_server import HardenedWSGIServer


class HTTPServer:
    """
    The handle of a server that runs in its own daemon thread; usable as a context manager.

    Attributes:
        addr: the address that it listens on.
        port: the port that it listens on; the actual one if 0 was requested.
        url: its base URL, without a trailing slash.
    """

    def __init__(self, server: HardenedWSGIServer) -> None:
        """Serve requests from `server`, which is already listening."""
        self.addr: str
        self.port: int
        self.addr, self.port = server.server_address[:2]  # type: ignore[assignment]  # never bytes
        scheme = "https" if server.is_https else "http"
        self.url = f"{scheme}://{_format_netloc(self.addr, self.port)}"
        self._server = server
        self._lock = threading.Lock()
        self._thread = create_daemon_thread(server.serve_forever, name="apscheduler-telemetry-http")
        spare_thread = create_daemon_thread(
            server.serve_in_spare_thread, name="apscheduler-telemetry-http-spare"
        )
        spare_thread.start()
        self._thread.start()

    @property
    def is_serving(self) -> bool:
        """Whether this process answers there: not if it was closed, or the port was taken."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Stop serving and wait until the port is free; further calls do nothing."""
        with self._lock:
            if self._thread.is_alive():  # not in a forked child, which has no such thread
                self._server.stop()
                self._thread.join()
            self._server.server_close()

    def __enter__(self) -> HTTPServer:  # noqa: PYI034  # Self needs Python 3.11
        """Return this server."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the server."""
        self.close()


class UnavailableHTTPServer(HTTPServer):
    """
    The handle of a server that could not be started, as its port is taken.

    Args:
        port: the port that was requested.
        addr: the address that was requested.
        is_https: whether it would speak TLS.
    """

    def __init__(self, port: int, addr: str, *, is_https: bool) -> None:
        self.addr, self.port = addr, port
        self.url = f"{'https' if is_https else 'http'}://{_format_netloc(addr, port)}"

    @property
    def is_serving(self) -> bool:
        """Whether this process answers there: never."""
        return False

    def close(self) -> None:
        """Do nothing."""


def serve_wsgi_app(  # noqa: PLR0913  # keyword-only
    app: Callable[..., Iterable[bytes]],
    port: int,
    addr: str,
    *,
    tls: TLSOptions,
    connection_limits: ServerLimits,
    allowed_hosts: Collection[str] | None,
    bearer_token_file: str | os.PathLike[str] | None,
    report_exception: Callable[[str], None],
) -> HTTPServer:
    """
    Serve a WSGI application from a daemon thread until the returned server is closed.

    Args:
        app: the WSGI application.
        port: 0 to 65535; 0 takes a free one.
        addr: an address or host name of this machine; ``0.0.0.0`` or ``::`` opens all of them.
        tls: whether and how to speak HTTPS.
        connection_limits: the limits on connections.
        allowed_hosts: names by which clients may call the server, besides those of the loopback,
            or ``*``. By default none if it listens on the loopback, and otherwise any.
        bearer_token_file: a file with the token that clients must send; by default none is
            necessary.
        report_exception: called with ``"http"`` for what keeps clients from being served.

    Raises:
        ArgumentTypeError: `port`, `addr` or another option is of the wrong type.
        ArgumentValueError: `port` is out of range, `addr` is empty, or an option is impossible or
            missing.
        OSError: the port is taken or forbidden, the address is not one of this machine, or a file
            cannot be loaded; ``errno`` says which.
        TelemetryError: no thread can be started, as after the main thread has ended.
    """
    _validate_address(port, addr)
    tls_context = ReloadingTLSContext(tls, report_exception)
    hosts = None if allowed_hosts is None else AllowedHosts(allowed_hosts)
    token = (
        None if bearer_token_file is None else BearerTokenFile(bearer_token_file, report_exception)
    )
    try:
        family, address = _resolve_address(addr, port)
        if hosts is None:
            hosts = AllowedHosts([addr] if is_loopback_address(str(address[0])) else ["*"])
        server = HardenedWSGIServer(
            family=family,
            address=address,
            app=AccessControlMiddleware(
                app, hosts=hosts, token=token, page_without_token=LIVENESS_PAGE_NAME
            ),
            tls=tls_context,
            connection_limits=connection_limits,
            report_exception=report_exception,
        )
    except (OSError, ValueError) as error:  # ValueError: impossible as a host name
        code = getattr(error, "errno", errno.EADDRNOTAVAIL)
        hint = (
            "most likely another worker or the reloader of this application serves there: start "
            "the server in one process only, or pass another port; port=0 takes a free one"
            if code == errno.EADDRINUSE
            else "pass an addr of this machine, such as '127.0.0.1', and a port you may use"
        )
        reason = getattr(error, "strerror", None) or error
        msg = f"cannot serve metrics on {_format_netloc(addr, port)}: {reason}; {hint}"
        raise OSError(code, msg) from error
    try:
        return HTTPServer(server)
    except RuntimeError as error:
        server.server_close()
        reason = (
            f"{error}; end some threads of this process, or raise its limit"
            if threading.main_thread().is_alive()
            else "the main thread has ended, and since Python 3.12 no thread can be started after "
            "that; start the server before, and let the main thread wait for the others, as by "
            "thread.join()"
        )
        msg = f"cannot serve metrics on {_format_netloc(addr, port)}: {reason}"
        raise TelemetryError(msg) from error


def has_address_in_common(server: HTTPServer, port: int, addr: str) -> bool:
    """Return whether a server listens where one of `port` and `addr` would."""
    if server.port != port:
        return False
    requested = str(_resolve_address(addr, port)[1][0])
    return server.addr == requested or any(
        ipaddress.ip_address(address.partition("%")[0]).is_unspecified
        for address in (server.addr, requested)
    )


def _resolve_address(addr: str, port: int) -> tuple[socket.AddressFamily, Any]:
    """Return the family and the address to bind."""
    found = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return family, address


def _validate_address(port: object, addr: object) -> None:
    if not isinstance(port, int) or isinstance(port, bool):
        msg = f"port must be an int, not {port!r}; pass one of 0 to 65535, such as 9476"
        raise ArgumentTypeError(msg)
    if not isinstance(addr, str):
        msg = f"addr must be a str, not {addr!r}; pass an address such as '127.0.0.1'"
        raise ArgumentTypeError(msg)
    if port not in range(65536):
        msg = f"port {port} does not exist; pass one of 0 to 65535, where 0 takes a free one"
        raise ArgumentValueError(msg)
    if not addr:
        msg = "addr is empty; pass '127.0.0.1', or '0.0.0.0' to be reachable from other machines"
        raise ArgumentValueError(msg)


def _format_netloc(addr: str, port: int) -> str:
    return f"[{addr}]:{port}" if ":" in addr else f"{addr}:{port}"
