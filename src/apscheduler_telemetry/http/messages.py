"""
HTTP requests and responses, independent of WSGI and ASGI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus


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
    """

    method: str
    root_path: str
    path: str
    query: str
    accept: str
    accept_encoding: str

    @property
    def page_name(self) -> str:
        """
        The path below the mount point, without leading and trailing slashes.

        An application that is mounted at ``/metrics`` or ``/health`` serves that page at its root,
        as `prometheus_client.make_wsgi_app` does.
        """
        path, root_path = self.path, self.root_path.rstrip("/")
        # An ASGI path starts with the whole root_path (the specification), without it (older
        # Starlette), or with only its end (FastAPI's `root_path` behind a proxy that strips it).
        while root_path:
            if f"{path}/".startswith(f"{root_path}/"):
                path = path[len(root_path) :]
                break
            _, slash, rest = root_path[1:].partition("/")
            root_path = slash + rest
        last_segment = self.root_path.rstrip("/").rpartition("/")[2]
        return path.strip("/") or (last_segment if last_segment in ("metrics", "health") else "")


@dataclass(frozen=True)
class Response:
    """
    A response to `GET`; one to `HEAD` has the same headers and no body.

    Attributes:
        status: the status code.
        chunks: the body, in one or more parts.
        content_type: the ``Content-Type`` header.
        extra_headers: headers besides those that every response has.
    """

    status: HTTPStatus
    chunks: Sequence[bytes]
    content_type: str = "text/plain; charset=utf-8"
    extra_headers: tuple[tuple[str, str], ...] = ()

    @property
    def headers(self) -> list[tuple[str, str]]:
        """All headers, with their names in title case."""
        return [
            ("Content-Type", self.content_type),
            ("Content-Length", str(sum(map(len, self.chunks)))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
            *self.extra_headers,
        ]


INTERNAL_ERROR_MESSAGE = "Internal error; see the application log."
INTERNAL_ERROR_RESPONSE = Response(
    HTTPStatus.INTERNAL_SERVER_ERROR, [f"{INTERNAL_ERROR_MESSAGE}\n".encode()]
)
