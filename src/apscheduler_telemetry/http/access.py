"""
Who may use the built-in server: bearer tokens and host names.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from apscheduler_telemetry.core import files
from apscheduler_telemetry.errors import ArgumentTypeError, ArgumentValueError
from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.messages import Response
from apscheduler_telemetry.http.watched_files import FileReloader

MAX_TOKEN_FILE_BYTES = limits.MAX_REQUEST_HEAD_BYTES // 2
"""Longer tokens could not be sent, with the rest of a request in the other half of its head."""

_WSGICallable = Callable[[Mapping[str, Any], Callable[..., object]], Iterable[bytes]]
_BEARER_PATTERN = re.compile(r"bearer +(\S+)\s*\Z", re.IGNORECASE)
_PORT_PATTERN = re.compile(r":[0-9]*\Z")
_ALLOWED_HOST_PATTERN = re.compile(r"[^\s/:,*\[\]]+|\*")


class BearerTokenFile:
    """
    A token in a file, which is read again when the file changes.

    If the file cannot be read then, or has no token, the previous token stays valid, and the file
    is tried again; see `FileReloader`.

    Args:
        path: a file that has the token, and nothing else but white space around it.
        report_exception: called with ``"http"`` while the error of such a failure is being handled.

    Raises:
        ArgumentTypeError: `path` is no path.
        ArgumentValueError: the file has no token, or one that is too long to be sent.
        OSError: the file cannot be read.
    """

    def __init__(self, path: object, report_exception: Callable[[str], None]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            msg = f"bearer_token_file must not be {path!r}; pass the path of a file with the token"
            raise ArgumentTypeError(msg)
        self._path = Path(path)
        self._reloader = FileReloader(lambda: [self._path], self._read_token_file, report_exception)
        self._read_token_file()

    def matches_header(self, authorization: str) -> bool:
        """Return whether an ``Authorization`` header has the token."""
        self._reloader.reload_if_necessary()
        match = _BEARER_PATTERN.match(authorization)
        given = match.group(1).encode("latin-1", "replace") if match else b""
        return hmac.compare_digest(given, self._bearer_token_file)

    def _read_token_file(self) -> None:
        self._bearer_token_file = read_token(self._path)


def read_token(path: Path) -> bytes:
    """
    Return the token of a file.

    Raises:
        ArgumentValueError: the file has no token, or one that is too long to be sent.
        OSError: the file cannot be read.
    """
    expectation = (
        f"pass a regular file with one token of at most {MAX_TOKEN_FILE_BYTES} ASCII characters "
        "without spaces, such as `openssl rand -hex 32` prints"
    )
    try:
        token = files.read_configured_file(path, MAX_TOKEN_FILE_BYTES).strip()
    except files.UnusableFileError as error:
        msg = f"bearer_token_file={str(path)!r} cannot be used: {error.strerror}; {expectation}"
        raise ArgumentValueError(msg) from error
    if not re.fullmatch(rb"[!-~]+", token):
        msg = f"bearer_token_file={str(path)!r} does not have one token; {expectation}"
        raise ArgumentValueError(msg)
    return token


class AllowedHosts:
    """
    The names by which clients may call a server, against DNS rebinding.

    In such an attack, a page of another site lets its own name point to the server, and the
    browser of a user then reads the server's responses. Names and addresses of the loopback are
    always allowed, as no such page has them. So are requests without a ``Host`` header, which
    browsers do not send.

    Args:
        hosts: the names, in addition to those of the loopback; None or ``*`` for any name.

    Raises:
        ArgumentTypeError, ArgumentValueError: `hosts` is no collection of host names.
    """

    def __init__(self, hosts: Collection[str] | None) -> None:
        if isinstance(hosts, (str, bytes)):
            msg = f"allowed_hosts must not be {hosts!r}; pass a list, such as [{hosts!r}]"
            raise ArgumentTypeError(msg)
        names = {"*"} if hosts is None else {*map(_validate_host, hosts)}
        self._allowed_names = None if "*" in names else names

    def is_allowed(self, host_header: str | None) -> bool:
        """Return whether a ``Host`` header, with a port or not, names an allowed host."""
        if self._allowed_names is None or host_header is None:
            return True
        host = _normalize_host(_PORT_PATTERN.sub("", host_header.strip()))
        return host in self._allowed_names or _is_loopback(host)


def _validate_host(host: object) -> str:
    expectation = "pass names or addresses without a port, such as 'metrics.example', or '*'"
    if not isinstance(host, str):
        msg = f"allowed_hosts has {host!r}, which is not a str; {expectation}"
        raise ArgumentTypeError(msg)
    normalized = _normalize_host(host)
    if not _ALLOWED_HOST_PATTERN.fullmatch(normalized) and not _is_ip_address(normalized):
        msg = f"allowed_hosts has {host!r}, which is no host; {expectation}"
        raise ArgumentValueError(msg)
    return normalized


def _normalize_host(host: str) -> str:
    host = host.lower().removesuffix(".")
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    return _is_ip_address(host) and is_loopback_address(host)


def is_loopback_address(address: str) -> bool:
    """Return whether an IP address is one of the loopback."""
    parsed = ipaddress.ip_address(address)
    mapped = getattr(parsed, "ipv4_mapped", None)  # ::ffff:127.0.0.1
    return (mapped or parsed).is_loopback


class AccessControlMiddleware:
    """
    A WSGI application that passes on the requests that are allowed.

    Args:
        app: the application.
        hosts: the allowed hosts.
        token: the token that clients must send; None if none is necessary.
        page_without_token: the name of a page that needs no token.
    """

    def __init__(
        self,
        app: _WSGICallable,
        *,
        hosts: AllowedHosts,
        token: BearerTokenFile | None,
        page_without_token: str,
    ) -> None:
        self._app = app
        self._allowed_hosts = hosts
        self._bearer_token_file = token
        self._page_without_token = page_without_token

    def __call__(
        self, environ: Mapping[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        """Respond to one request."""
        rejection = self._find_rejection(environ)
        if rejection is None:
            return self._app(environ, start_response)
        start_response(f"{rejection.status:d} {rejection.status.phrase}", rejection.headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else rejection.chunks

    def _find_rejection(self, environ: Mapping[str, Any]) -> Response | None:
        if not self._allowed_hosts.is_allowed(environ.get("HTTP_HOST")):
            return _HOST_REJECTION
        if (
            self._bearer_token_file is None
            or environ.get("PATH_INFO", "").strip("/") == self._page_without_token
        ):
            return None
        if self._bearer_token_file.matches_header(environ.get("HTTP_AUTHORIZATION", "")):
            return None
        return _TOKEN_REJECTION


_HOST_ADVICE = (
    "The Host header names a host that is not allowed here. To allow it, pass it in "
    "start_http_server(allowed_hosts=[...]).\n"
)
_HOST_REJECTION = Response(HTTPStatus.MISDIRECTED_REQUEST, [_HOST_ADVICE.encode()])
_AUTHORIZATION_ADVICE = (
    "The header 'Authorization: Bearer ...' is missing, or its token is not the one in the file "
    "of start_http_server(bearer_token_file=...).\n"
)
_TOKEN_REJECTION = Response(
    HTTPStatus.UNAUTHORIZED,
    [_AUTHORIZATION_ADVICE.encode()],
    extra_headers=(("WWW-Authenticate", "Bearer"),),
)
