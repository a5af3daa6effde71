"""
The endpoints as a WSGI application.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.app import TelemetryApp
from apscheduler_telemetry.http.messages import Request


class WSGIApp:
    """
    Serves a `TelemetryApp` by WSGI (PEP 3333), wherever it is mounted.

    Args:
        app: produces the responses.
    """

    def __init__(self, app: TelemetryApp) -> None:
        self._app = app

    def __call__(
        self, environ: Mapping[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        """Respond to one request, within `limits.RENDER_TIMEOUT`."""
        request = Request(
            method=environ["REQUEST_METHOD"],
            root_path=environ.get("SCRIPT_NAME", ""),
            path=environ.get("PATH_INFO", ""),
            query=environ.get("QUERY_STRING", ""),
            accept=environ.get("HTTP_ACCEPT", ""),
            accept_encoding=environ.get("HTTP_ACCEPT_ENCODING", ""),
        )
        try:
            response = self._app.submit_request(request).result(limits.RENDER_TIMEOUT)
        except Exception:  # noqa: BLE001  # of any collector, or the timeout
            response = self._app.handle_exception(request)
        start_response(f"{response.status:d} {response.status.phrase}", response.headers)
        return [] if request.method == "HEAD" else response.chunks
