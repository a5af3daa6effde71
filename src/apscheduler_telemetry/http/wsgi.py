"""
The endpoints as a WSGI application.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeoutError  # the built-in one from 3.11 on
from functools import partial
from typing import Any

from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.app import PageRouter, abandon_response
from apscheduler_telemetry.http.connections import (
    SOCKET_ENVIRON_KEY,
    is_disconnected,
    shutdown_socket,
)
from apscheduler_telemetry.http.messages import (
    INTERNAL_ERROR_RESPONSE,
    Request,
    Response,
    assume_client_connected,
)
from apscheduler_telemetry.http.readers import BufferBudget, ResponseReader

_SOCKET_KEYS = (SOCKET_ENVIRON_KEY, "gunicorn.socket", "werkzeug.socket")
"""Keys of the connection in the WSGI environments of our server and of others."""


class WSGIApp:
    """
    Serves a `PageRouter` by WSGI (PEP 3333), wherever it is mounted.

    Args:
        app: produces the responses.
        budget: limits the memory for clients that read slowly.
    """

    def __init__(self, app: PageRouter, budget: BufferBudget) -> None:
        self._page_router = app
        self._buffer_budget = budget

    def __call__(
        self, environ: Mapping[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        """Respond to one request, within `limits.RENDER_TIMEOUT_SECONDS`."""
        connection = next((environ[key] for key in _SOCKET_KEYS if key in environ), None)
        request = _to_request(environ, connection)
        open_reader = partial(
            self._buffer_budget.open_reader,
            disconnect=None if connection is None else partial(shutdown_socket, connection),
            max_piece_bytes=(
                None if SOCKET_ENVIRON_KEY in environ else limits.MAX_PIECE_BYTES_FOR_OTHER_SERVERS
            ),
        )
        reader = self._wait_for_reader(request, open_reader)
        start_response(f"{reader.status:d} {reader.status.phrase}", reader.headers)
        if request.method == "HEAD":
            reader.close()
            return []
        return reader

    def _wait_for_reader(
        self, request: Request, open_reader: Callable[[Response], ResponseReader]
    ) -> ResponseReader:
        try:
            future = self._page_router.submit_request(request, open_reader)
            try:
                return future.result(limits.RENDER_TIMEOUT_SECONDS)
            except FutureTimeoutError:
                if abandon_response(future):
                    seconds = limits.RENDER_TIMEOUT_SECONDS
                    msg = f"no thread was free for {seconds} s; does a collector hang?"
                    raise TimeoutError(msg) from None
                raise
        except CancelledError:
            return open_reader(INTERNAL_ERROR_RESPONSE)  # the client is gone, so no one reads it
        except Exception:  # noqa: BLE001  # of any collector, or the timeout
            return open_reader(self._page_router.handle_exception(request))


def _to_request(environ: Mapping[str, Any], connection: Any) -> Request:
    if connection is not None:
        check_client_gone = partial(is_disconnected, connection, request_read_at=time.monotonic())
    else:  # waitress knows it if its option channel_request_lookahead is set
        check_client_gone = environ.get("waitress.client_disconnected", assume_client_connected)
    return Request(
        method=environ["REQUEST_METHOD"],
        root_path=environ.get("SCRIPT_NAME", ""),
        path=environ.get("PATH_INFO", ""),
        query=environ.get("QUERY_STRING", ""),
        accept=environ.get("HTTP_ACCEPT", ""),
        accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
        check_client_gone=check_client_gone,
    )
