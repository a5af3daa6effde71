"""
Clients for tests of the HTTP endpoints: WSGI, ASGI and raw sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import io
import json
import socket
from collections.abc import Callable
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from apscheduler_telemetry.http import HTTPServer

RESPONSE_TIMEOUT = 30.0
"""Seconds to wait for a response, or for what a request causes, before a test fails."""


class Reply(NamedTuple):
    """A response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def ask_wsgi(
    app: Callable[..., Any],
    path: str,
    *,
    method: str = "GET",
    mount: str = "",
    query: str = "",
    headers: dict[str, str] | None = None,
) -> Reply:
    """Send a request to a WSGI app, and check that the app complies with PEP 3333."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ.update(REQUEST_METHOD=method, SCRIPT_NAME=mount, PATH_INFO=path, QUERY_STRING=query)
    environ["wsgi.input"] = io.BytesIO()
    for name, value in (headers or {}).items():
        environ[f"HTTP_{name.upper().replace('-', '_')}"] = value
    started: list[Any] = []

    def start_response(status: str, fields: list[Any], exc_info: Any = None) -> Any:
        started.extend((status, fields, exc_info))
        return lambda _data: None

    # The validator returns an iterator with a `close` method that its type does not have.
    chunks: Any = validator(app)(environ, start_response)
    with contextlib.closing(chunks):
        body = b"".join(chunks)
    status, fields, _ = started
    return Reply(int(status.split()[0]), {k.lower(): v for k, v in fields}, body)


async def ask_asgi(
    app: Callable[..., Any],
    path: str,
    *,
    method: str = "GET",
    mount: str = "",
    query: str = "",
    headers: dict[str, str] | None = None,
) -> Reply:
    """Send a request to an ASGI app."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "root_path": mount,
        "query_string": query.encode("latin-1"),
        "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in (headers or {}).items()],
    }
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    start, *rest, last = sent
    assert {message["type"] for message in (*rest, last)} == {"http.response.body"}
    assert all(message["more_body"] for message in rest)
    assert not last.get("more_body")
    fields = {k.decode(): v.decode() for k, v in start["headers"]}
    body = b"".join(message["body"] for message in (*rest, last))
    return Reply(start["status"], fields, body)


def ask_asgi_sync(app: Callable[..., Any], path: str, **request: Any) -> Reply:
    """Send a request to an ASGI app in a new event loop."""
    return asyncio.run(ask_asgi(app, path, **request))


def read_all(connection: socket.socket) -> bytes:
    """Read until the peer closes or resets the connection."""
    chunks = []
    try:
        while chunk := connection.recv(65536):
            chunks.append(chunk)
    except (ConnectionError, BrokenPipeError):
        pass
    return b"".join(chunks)


def send_raw(address: tuple[str, int], *chunks: bytes) -> bytes:
    """Send bytes, shut down the sending side, and return all bytes that are received."""
    with socket.create_connection(address, timeout=RESPONSE_TIMEOUT) as connection:
        try:
            for chunk in chunks:
                connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # a server may close the connection before it has read everything
        return read_all(connection)


OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


HEALTHY = {"status": "healthy", "reasons": [], "jobs": [{"id": "nightly"}]}


UNHEALTHY = {"status": "unhealthy", "reasons": [{"code": "loop_dead", "message": "It died."}]}


GET_METRICS = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"


def address(server: HTTPServer) -> tuple[str, int]:
    return server.addr, server.port


def fetch(server: HTTPServer, path: str = "/metrics", method: str = "GET", **kw: Any) -> Reply:
    """Send a well-formed request to a server."""
    client = http.client.HTTPConnection(server.addr, server.port, timeout=RESPONSE_TIMEOUT)
    if "context" in kw:
        client = http.client.HTTPSConnection(
            server.addr, server.port, timeout=RESPONSE_TIMEOUT, context=kw.pop("context")
        )
    try:
        client.request(method, path, **kw)
        response = client.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Reply(response.status, headers, response.read())
    finally:
        client.close()
