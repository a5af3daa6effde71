"""
Serves ``/metrics`` and ``/health``: as a WSGI app, as an ASGI app, or by a server of its own.

Whatever is asked for is made in a few daemon threads, so that a collector that hangs holds up
neither an event loop, nor ``/health``, nor the exit of the interpreter.
"""

from __future__ import annotations

import asyncio
import errno
import html
import io
import json
import logging
import os
import socket
import ssl
import threading
import time
import weakref
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from urllib.parse import parse_qs, quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError

logger = logging.getLogger("apscheduler_telemetry")

ANSWER_SECONDS = 60.0
"""A scrape that takes longer fails. Prometheus gives up after 10 s unless told otherwise."""

IDLE_SECONDS = 30.0
"""How long the server waits for a client that neither sends nor reads."""

CONNECTION_SECONDS = 2 * IDLE_SECONDS + ANSWER_SECONDS
"""The server's patience with a client that sends or reads a byte now and then."""

MAX_CONNECTIONS = 256
"""The oldest connection goes when there are more, so that silent clients lock nobody out."""

MAX_THREADS = 8
"""Collecting is work for the CPU: more threads would only take turns."""

MAX_WAITING = 1000
"""Requests that wait for a thread; where so many do, collecting hangs."""

METHODS = ("GET", "HEAD", "OPTIONS")

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What matters of a request; `mount` is the ``SCRIPT_NAME`` or ``root_path``."""

    method: str
    mount: str
    path: str
    query: str
    accept: str
    accept_encoding: str

    @property
    def page(self) -> str:
        """
        The path below the mount, without slashes at its ends.

        A bare mount at ``/metrics`` or ``/health`` is that page, as with `make_wsgi_app`.
        """
        path, mount = self.path, self.mount.rstrip("/")
        # An ASGI path has the mount in front of it (the specification), or no longer has it (older
        # Starlette), or has only its end (FastAPI's own `root_path` behind a proxy that strips it).
        while mount:
            if f"{path}/".startswith(f"{mount}/"):
                path = path[len(mount) :]
                break
            _, slash, rest = mount[1:].partition("/")
            mount = slash + rest
        last = self.mount.rstrip("/").rpartition("/")[2]
        return path.strip("/") or (last if last in ("metrics", "health") else "")


GZIP_LEVEL = 1
"""
A tenth of the time of zlib's best, for a fifth more bytes: of 10 MB, 23 ms and 354 kB instead of
218 ms and 294 kB.
"""


@dataclass(frozen=True)
class _Answer:
    status: HTTPStatus
    pieces: Sequence[bytes]
    content_type: str = "text/plain; charset=utf-8"
    extra: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [
            ("Content-Type", self.content_type),
            ("Content-Length", str(sum(map(len, self.pieces)))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *self.extra,
        ]


class Endpoints:
    """
    ``/metrics`` and ``/health`` of one registry, for any server.

    Attributes:
        asgi: an ASGI 3 app for asyncio, which may be mounted anywhere.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry | None,
        health: Callable[[], Mapping[str, object]],
        on_error: Callable[[str], None],
        expose: Callable[[Callable[[Any], bytes]], Sequence[bytes]] | None = None,
    ) -> None:
        """
        Take what is to be served; nothing runs before the first request.

        Args:
            registry: what ``/metrics`` shows; None where there is no such page.
            health: returns what ``/health`` shows; its ``status`` is ``healthy`` or ``unhealthy``.
            on_error: called with ``"http"`` where an exception of `registry` or `health` is being
                handled.
            expose: returns what an encoder makes of the registry, in pieces, where there is a
                quicker way than to ask the encoder.
        """
        self._report = health
        self._on_error = on_error
        # Apart, as /health must answer even when every scrape hangs.
        self._pages = {"health": (_Workers(), self._health)}
        if registry is not None:
            metrics = partial(self._metrics, registry, expose)
            self._pages = {"metrics": (_Workers(), metrics), **self._pages}
        self.asgi = _AsgiApp(self)

    def wsgi(
        self, environ: Mapping[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        """Answer a WSGI request (PEP 3333), wherever the app is mounted."""
        request = _Request(
            method=environ["REQUEST_METHOD"],
            mount=environ.get("SCRIPT_NAME", ""),
            path=environ.get("PATH_INFO", ""),
            query=environ.get("QUERY_STRING", ""),
            accept=environ.get("HTTP_ACCEPT", ""),
            accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
        )
        try:
            answer = self.begin(request).result(ANSWER_SECONDS)
        except Exception:  # noqa: BLE001  # of any collector, or no answer in time
            answer = self.failed(request)
        start_response(f"{answer.status:d} {answer.status.phrase}", answer.headers)
        return [] if request.method == "HEAD" else answer.pieces

    def serve(  # noqa: PLR0913  # the words of prometheus_client.start_http_server
        self,
        port: int = 9476,
        addr: str = "127.0.0.1",
        *,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        client_cafile: str | os.PathLike[str] | None = None,
        client_capath: str | os.PathLike[str] | None = None,
        client_auth_required: bool = False,
    ) -> HTTPServer:
        """
        Serve from a daemon thread until the handle is closed.

        Args:
            port: 0 to 65535; 0 takes a free one.
            addr: address or host name of this machine; ``0.0.0.0`` or ``::`` opens all of them.
            certfile: PEM certificate chain; given, the server speaks HTTPS (TLS 1.2 or newer).
            keyfile: PEM private key; by default it is looked for in `certfile`.
            client_cafile: PEM certificates of whoever signs the certificates of clients.
            client_capath: a directory of such certificates.
            client_auth_required: turn away clients without such a certificate.

        Raises:
            ArgumentTypeError: `port` or `addr` is of the wrong type.
            ArgumentValueError: `port` is out of range, `addr` empty, or TLS is asked for by half.
            OSError: the port is taken or forbidden, the address not of this machine, or a file
                cannot be loaded; ``errno`` says which.
        """
        _check_address(port, addr)
        tls = _tls(certfile, keyfile, client_cafile, client_capath, required=client_auth_required)
        try:
            found = socket.getaddrinfo(addr, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, _, _, _, address = found[0]
            return HTTPServer(_Server(family, address, self.wsgi, tls))
        except (OSError, ValueError) as error:  # ValueError: no host name could look like that
            code = getattr(error, "errno", errno.EADDRNOTAVAIL)
            hint = (
                "stop what holds it, or pass another port; port=0 takes a free one"
                if code == errno.EADDRINUSE
                else "pass an addr of this machine, such as '127.0.0.1', and a port you may use"
            )
            reason = getattr(error, "strerror", None) or error
            msg = f"cannot serve metrics on {_netloc(addr, port)}: {reason}; {hint}"
            raise OSError(code, msg) from error

    def begin(self, request: _Request) -> Future[_Answer]:
        """Have the answer made in a thread, unless it is at hand."""
        page = request.page
        if page in self._pages and request.method in ("GET", "HEAD"):
            workers, make = self._pages[page]
            return workers.submit(partial(make, request))
        answer: Future[_Answer] = Future()
        answer.set_result(_at_hand(page, request, list(self._pages)))
        return answer

    def _metrics(
        self,
        registry: CollectorRegistry,
        expose: Callable[[Callable[[Any], bytes]], Sequence[bytes]] | None,
        request: _Request,
    ) -> _Answer:
        # The library may repeat a part of Accept in its Content-Type: let nothing odd pass.
        plain = request.accept.isascii() and request.accept.isprintable()
        try:
            encode, content_type = choose_encoder(_liked(request.accept) if plain else "")
        except (TypeError, ValueError):  # a version that is not one, such as "version=x"
            encode, content_type = choose_encoder("")
        names = parse_qs(request.query).get("name[]")
        if expose is not None and not names:
            pieces = expose(encode)
        else:
            pieces = [encode(registry.restricted_registry(names) if names else registry)]
        if any(name == "gzip" for name, _, _ in _wishes(request.accept_encoding)):
            encoding = (("Content-Encoding", "gzip"),)
            return _Answer(HTTPStatus.OK, [packed(pieces)], content_type, encoding)
        return _Answer(HTTPStatus.OK, pieces, content_type)

    def _health(self, _request: _Request) -> _Answer:
        return _health_answer(self._report())

    def failed(self, request: _Request) -> _Answer:
        """Account for the exception that is being handled; the client learns nothing of it."""
        self._on_error("http")
        message = "No answer could be made; the log of the application says why."
        if request.page == "health":
            reason = {"code": "health_failed", "message": message}
            return _health_answer({"status": "unhealthy", "reasons": [reason]})
        return _Answer(HTTPStatus.INTERNAL_SERVER_ERROR, [f"{message}\n".encode()])


class _AsgiApp:
    """The endpoints as an ASGI 3 app; an object, as uvicorn takes bound methods for ASGI 2."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """
        Answer a request on an asyncio loop, wherever the app is mounted.

        Raises:
            ValueError: the scope is of a type that ASGI 3 does not have.
        """
        if scope["type"] == "http":
            with suppress(OSError):  # the client went away, says a server of ASGI 2.4
                await self._http(scope, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        elif scope["type"] == "lifespan":
            message = ""
            while message != "lifespan.shutdown":
                message = (await receive())["type"]
                await send({"type": f"{message}.complete"})
        else:
            msg = f"unknown ASGI scope type {scope['type']!r}; this app serves HTTP"
            raise ValueError(msg)

    async def _http(self, scope: Mapping[str, Any], send: Send) -> None:
        headers: dict[str, str] = {}
        for raw_name, raw_value in scope.get("headers", ()):
            name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
            headers[name] = f"{headers[name]},{value}" if name in headers else value
        request = _Request(
            method=scope["method"],
            mount=scope.get("root_path", ""),
            path=scope["path"],
            query=scope.get("query_string", b"").decode("latin-1"),
            accept=headers.get("accept", ""),
            accept_encoding=headers.get("accept-encoding", ""),
        )
        try:
            pending = asyncio.wrap_future(self._endpoints.begin(request))
            answer = await asyncio.wait_for(pending, ANSWER_SECONDS)
        except Exception:  # noqa: BLE001  # of any collector, or no answer in time
            answer = self._endpoints.failed(request)
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in answer.headers]
        await send({"type": "http.response.start", "status": int(answer.status), "headers": raw})
        *pieces, last = [b""] if request.method == "HEAD" else answer.pieces
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": last})


class HTTPServer:
    """
    A server that runs in a thread of its own; usable as a context manager.

    Attributes:
        addr: the address that it listens on.
        port: the port that it listens on, the real one where 0 was asked for.
        url: where it is reached, without a slash at the end.
    """

    def __init__(self, server: _Server) -> None:
        """Start `server`, which listens already."""
        self.addr: str
        self.port: int
        self.addr, self.port = server.server_address[:2]  # type: ignore[assignment]  # never bytes
        self.url = f"http{'s' if server.tls else ''}://{_netloc(self.addr, self.port)}"
        self._server = server
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=server.serve_forever, name="apscheduler-telemetry-http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and wait until the port is free; harmless when repeated."""
        with self._lock:
            if self._thread.is_alive():  # not so in a forked child
                self._server.stop()
                self._thread.join()
            self._server.server_close()

    def __enter__(self) -> HTTPServer:  # noqa: PYI034  # Self needs Python 3.11
        """Return this server."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close it."""
        self.close()


class _Workers:
    """
    A few daemon threads, which live only while there is something to do.

    Not a `ThreadPoolExecutor`: the interpreter would wait for its threads at exit, for ever if a
    collector hangs.
    """

    def __init__(self) -> None:
        self.after_fork()
        _fork_aware.add(self)

    def after_fork(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Future[_Answer], Callable[[], _Answer]]] = deque()
        self._threads = 0

    def submit(self, work: Callable[[], _Answer]) -> Future[_Answer]:
        """
        Have `work` done.

        Raises:
            RuntimeError: too much waits already, or no thread can be started.
        """
        future: Future[_Answer] = Future()
        with self._lock:
            if len(self._waiting) >= MAX_WAITING:
                msg = f"{MAX_WAITING} requests wait already; does a collector hang?"
                raise RuntimeError(msg)
            if self._threads < MAX_THREADS:
                name = "apscheduler-telemetry-collect"
                threading.Thread(target=self._work, name=name, daemon=True).start()
                self._threads += 1
            self._waiting.append((future, work))
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                future, work = self._waiting.popleft()
            if future.set_running_or_notify_cancel():  # false: whoever asked has given up
                try:
                    future.set_result(work())
                except Exception as error:  # noqa: BLE001  # raised again where it is awaited
                    future.set_exception(error)
                except BaseException as error:  # noqa: BLE001  # a collector's sys.exit() is no
                    future.set_exception(RuntimeError(repr(error)))  # reason to end the server


class _Handler(WSGIRequestHandler):
    timeout = IDLE_SECONDS
    default_request_version = "HTTP/1.0"  # whose errors have a status line; 0.9 has none

    def parse_request(self) -> bool:
        """Refuse headers that are none; the library ignores them, and all that come after."""
        if not super().parse_request():
            return False
        broken = any(set("\r\n\0").intersection(value) for value in self.headers.values())
        length = self.headers.get("Content-Length", "0").strip()
        if self.headers.defects or broken or not length.isdecimal():
            self.send_error(HTTPStatus.BAD_REQUEST, "Malformed header")
            return False
        return True

    def get_stderr(self) -> io.StringIO:
        """Keep the tracebacks of connections that break off from stderr."""
        return io.StringIO()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its name in http
        """Keep requests from stderr."""


class _Server(ThreadingMixIn, WSGIServer):
    """
    The server of wsgiref, made fit for strangers.

    That of `prometheus_client` does TLS handshakes in its only accepting thread, waits for silent
    clients for ever, writes the tracebacks of broken connections to stderr and speaks plain HTTP
    when given a certificate without a key.
    """

    daemon_threads = True
    request_queue_size = 128
    allow_reuse_address = os.name != "nt"  # on Windows two servers would share the port
    allow_reuse_port = False  # or they would elsewhere

    def __init__(
        self,
        family: socket.AddressFamily,
        address: Any,
        app: Callable[..., Iterable[bytes]],
        tls: ssl.SSLContext | None,
    ) -> None:
        self.address_family = family
        self.tls = tls
        self._since: dict[Any, float] = {}
        super().__init__(address, _Handler)
        self.set_app(app)
        if tls:  # the handshake comes with the first read, in the client's own thread
            self.socket = tls.wrap_socket(
                self.socket, server_side=True, do_handshake_on_connect=False
            )
        _fork_aware.add(self)

    def server_bind(self) -> None:
        """Bind without looking up the machine's name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._since[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Drop connections that are too old, and the oldest where there are too many."""
        open_since = self._since.copy()
        too_many = len(open_since) - MAX_CONNECTIONS
        too_old = time.monotonic() - CONNECTION_SECONDS
        for number, (request, since) in enumerate(open_since.items()):
            if number < too_many or since < too_old:
                _shut(request)

    def stop(self) -> None:
        """End `serve_forever` and every connection; for use from another thread."""
        _shut(self.socket)  # wakes the accepting thread, and ends copies in forked children
        self.shutdown()
        for request in self._since.copy():
            _shut(request)

    def after_fork(self) -> None:
        """Let go of the port, which a child would hold when the parent is dead or closed."""
        self.socket.close()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Keep the tracebacks of connections that break off from stderr."""
        what = "connection from %s broke off"
        logger.debug(what, client_address, exc_info=True)  # noqa: LOG014  # called in a handler


def _check_address(port: object, addr: object) -> None:
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
        msg = "addr is empty; pass '127.0.0.1', or '0.0.0.0' to be reached from other machines"
        raise ArgumentValueError(msg)


def _netloc(addr: str, port: int) -> str:
    return f"[{addr}]:{port}" if ":" in addr else f"{addr}:{port}"


def _shut(connection: Any) -> None:
    """Wake whoever waits for `connection`; below TLS, whose state is its thread's own."""
    with suppress(OSError):  # gone already
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _tls(
    certfile: str | os.PathLike[str] | None,
    keyfile: str | os.PathLike[str] | None,
    client_cafile: str | os.PathLike[str] | None,
    client_capath: str | os.PathLike[str] | None,
    *,
    required: bool,
) -> ssl.SSLContext | None:
    if required != bool(client_cafile or client_capath):
        msg = (
            "client_auth_required=True asks clients for certificates and client_cafile (or "
            "client_capath) says whose count: one without the other protects nothing; pass both"
        )
        raise ArgumentValueError(msg)
    if certfile is None:
        if keyfile or required:
            msg = "without certfile the server would speak plain HTTP; pass certfile as well"
            raise ArgumentValueError(msg)
        return None
    try:
        tls = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=client_cafile, capath=client_capath
        )
        # The empty password makes an encrypted key an error, not a prompt that hangs a service.
        tls.load_cert_chain(certfile, keyfile, password="")
    except OSError as error:
        files = ", ".join(str(f) for f in (certfile, keyfile, client_cafile, client_capath) if f)
        reason = error.strerror or error
        msg = f"cannot load {files}: {reason}; pass PEM files that this process may read"
        raise type(error)(error.errno, msg) from error
    if required:
        tls.verify_mode = ssl.CERT_REQUIRED
    return tls


def _wishes(header: str) -> list[tuple[str, float, str]]:
    """
    Return what a client accepts, what it likes best first, and not what it refuses.

    The library looks at the names only: it would send what is refused by ``q=0``.

    Args:
        header: an ``Accept`` or its like.

    Returns:
        Name in lower case, quality, and the whole wish with its parameters.
    """
    wishes = []
    for wish in header.split(","):
        name, *parameters = (part.strip().lower() for part in wish.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                with suppress(ValueError):  # nonsense refuses nothing
                    quality = float(parameter[2:])
        if name and quality > 0:
            wishes.append((name, quality, wish))
    return sorted(wishes, key=lambda wish: -wish[1])


def _liked(accept: str) -> str:
    """Return the wishes for OpenMetrics that are no weaker than any for a text."""
    wishes = _wishes(accept)
    text = max((quality for name, quality, _ in wishes if name in _TEXTS), default=0.0)
    return ",".join(wish for name, quality, wish in wishes if name in _TEXTS or quality >= text)


_TEXTS = ("text/plain", "text/*", "*/*")


def _at_hand(page: str, request: _Request, pages: Sequence[str]) -> _Answer:
    """Answer what needs no collecting."""
    if page not in ("", *pages):
        there = " and ".join(f"/{name}" for name in pages)
        body = f"Not found. There {'are' if pages[1:] else 'is'} {there}.\n".encode()
        return _Answer(HTTPStatus.NOT_FOUND, [body])
    allow = (("Allow", ", ".join(METHODS)),)
    if request.method == "OPTIONS":
        return _Answer(HTTPStatus.OK, [b""], extra=allow)
    if request.method not in METHODS:
        body = f"Method not allowed. Use {', '.join(METHODS)}.\n".encode()
        return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, [body], extra=allow)
    mount = html.escape(quote(request.mount.rstrip("/"), errors="replace"))
    links = (f'<p><a href="{mount}/{name}">/{name}</a></p>' for name in pages)
    body = f"<!doctype html><title>APScheduler telemetry</title>{''.join(links)}\n".encode()
    return _Answer(HTTPStatus.OK, [body], "text/html; charset=utf-8")


def packed(pieces: Iterable[bytes]) -> bytes:
    """Return a gzip file; other threads run while a piece is packed, and between two of them."""
    pack = zlib.compressobj(GZIP_LEVEL, wbits=zlib.MAX_WBITS | 16)
    return b"".join([*map(pack.compress, pieces), pack.flush()])


def _health_answer(report: Mapping[str, object]) -> _Answer:
    healthy = report["status"] == "healthy"
    return _Answer(
        HTTPStatus.OK if healthy else HTTPStatus.SERVICE_UNAVAILABLE,
        [f"{json.dumps(report, indent=2, default=str)}\n".encode()],
        "application/json",
    )


def _after_fork() -> None:
    """Prepare a forked child, which has what the threads of the parent held, but none of them."""
    for each in list(_fork_aware):
        each.after_fork()


_fork_aware: weakref.WeakSet[Any] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
