"""
HTTP requests and responses, independent of WSGI and ASGI.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import quote

from apscheduler_telemetry.http import limits

LIVENESS_PAGE_NAME = "livez"
PAGE_NAMES = ("metrics", "health", "runs", LIVENESS_PAGE_NAME)


def assume_client_connected() -> bool:
    """Return that the client is not gone, where that cannot be known."""
    return False


@dataclass(frozen=True, kw_only=True)
class Request:
    """
    The parts of an HTTP request that the endpoints use.

    Attributes:
        method: such as ``GET``.
        root_path: the path that the application is mounted at, which WSGI calls ``SCRIPT_NAME``.
        path: the path as the server passes it, with or without `root_path` in front.
        query: the query string, without the question mark.
        accept: the ``Accept`` header, empty if there is none.
        accept_encoding: the ``Accept-Encoding`` header, empty if there is none.
        check_client_gone: returns whether the client has disconnected, as far as that is known.
    """

    method: str
    root_path: str
    path: str
    query: str
    accept: str
    accept_encoding: str
    check_client_gone: Callable[[], bool] = assume_client_connected

    @property
    def page_name(self) -> str:
        """
        The path below the mount point, without leading and trailing slashes.

        An application that is mounted at the path of a page serves that page at its root, as
        `prometheus_client.make_wsgi_app` does.
        """
        last_segment = self._last_segment_of_root
        return self._path_below_root.strip("/") or (
            last_segment if last_segment in PAGE_NAMES else ""
        )

    @property
    def relative_root(self) -> str:
        """
        The mount point as a link from the requested page, quoted, without a slash at its end.

        Links that begin with it also work if a reverse proxy adds a path of its own.
        """
        below = self._path_below_root
        if not below and self.root_path:  # a browser takes the last segment for a page
            return f"./{quote(self._last_segment_of_root, errors='replace')}"
        return "/".join([".", *[".."] * (below.count("/") - 1)])

    @property
    def _last_segment_of_root(self) -> str:
        return self.root_path.rstrip("/").rpartition("/")[2]

    @property
    def _path_below_root(self) -> str:
        path, root_path = self.path, self.root_path.rstrip("/")
        # An ASGI path starts with the whole root_path (the specification), without it (older
        # Starlette), or with only its end (FastAPI's `root_path` behind a proxy that strips it).
        while root_path:
            if f"{path}/".startswith(f"{root_path}/"):
                path = path[len(root_path) :]
                break
            _, slash, rest = root_path[1:].partition("/")
            root_path = slash + rest
        return path


@dataclass(eq=False)
class Response:
    """
    A response to `GET`; one to `HEAD` has the same headers and no body.

    Attributes:
        status: the status code.
        chunks: the body, in one or more parts.
        content_type: the ``Content-Type`` header.
        extra_headers: headers besides those that every response has.
        created_at: when it was created, in seconds of `time.monotonic`.
        readers: the `ResponseReader`s that have not been given the last chunk.
        has_ended_reader: whether one of them was given it, or has ended before.
    """

    status: HTTPStatus
    chunks: Sequence[bytes]
    content_type: str = "text/plain; charset=utf-8"
    extra_headers: tuple[tuple[str, str], ...] = ()
    created_at: float = field(default_factory=time.monotonic)
    readers: set[object] = field(default_factory=set, repr=False)
    has_ended_reader: bool = False

    @property
    def size(self) -> int:
        """The number of bytes of the body."""
        return sum(map(len, self.chunks))

    @property
    def may_be_shared_now(self) -> bool:
        """
        Whether further requests may get this response, instead of one that is made for them.

        Only while a client still has to read it, as it is in memory in any case then, and for at
        most `limits.SHARED_RESPONSE_SECONDS`.
        """
        age = time.monotonic() - self.created_at
        is_in_use = bool(self.readers) or not self.has_ended_reader
        return is_in_use and age < limits.SHARED_RESPONSE_SECONDS

    def end_reading(self, reader: object) -> None:
        """Note that a reader was given the last chunk, or has ended before."""
        self.has_ended_reader = True
        self.readers.discard(reader)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers, with their names in title case."""
        return [
            ("Content-Type", self.content_type),
            ("Content-Length", str(self.size)),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *self.extra_headers,
        ]


INTERNAL_ERROR_MESSAGE = "Internal error; see the application log."
INTERNAL_ERROR_RESPONSE = Response(
    HTTPStatus.INTERNAL_SERVER_ERROR, [f"{INTERNAL_ERROR_MESSAGE}\n".encode()]
)
LIVEZ_HEALTHY_RESPONSE = Response(HTTPStatus.OK, [b"healthy\n"])
LIVEZ_UNHEALTHY_RESPONSE = Response(HTTPStatus.SERVICE_UNAVAILABLE, [b"unhealthy\n"])
