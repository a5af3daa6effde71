"""
The endpoints as an ASGI application.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from typing import Any

from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.app import TelemetryApp
from apscheduler_telemetry.http.messages import Request, Response

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ASGIApp:
    """
    Serves a `TelemetryApp` by ASGI 3 on asyncio, wherever it is mounted.

    This is an object with ``__call__`` because uvicorn takes a bound method for an ASGI 2 app.

    Args:
        app: produces the responses.
    """

    def __init__(self, app: TelemetryApp) -> None:
        self._app = app

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """
        Handle one connection.

        Raises:
            ValueError: the scope is of a type that ASGI 3 does not define.
        """
        if scope["type"] == "http":
            with suppress(OSError):  # raised by an ASGI 2.4 server if the client disconnected
                await self._handle_http(scope, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        elif scope["type"] == "lifespan":
            await self._handle_lifespan(receive, send)
        else:
            msg = f"unknown ASGI scope type {scope['type']!r}; this app serves HTTP"
            raise ValueError(msg)

    async def _handle_http(self, scope: Mapping[str, Any], send: Send) -> None:
        request = _to_request(scope)
        try:
            future = asyncio.wrap_future(self._app.submit_request(request))
            response = await asyncio.wait_for(future, limits.RENDER_TIMEOUT)
        except Exception:  # noqa: BLE001  # of any collector, or the timeout
            response = self._app.handle_exception(request)
        await _send_response(response, send, with_body=request.method != "HEAD")

    async def _handle_lifespan(self, receive: Receive, send: Send) -> None:
        event = ""
        while event != "lifespan.shutdown":
            event = (await receive())["type"]
            await send({"type": f"{event}.complete"})


def _to_request(scope: Mapping[str, Any]) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope.get("headers", ()):
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return Request(
        method=scope["method"],
        root_path=scope.get("root_path", ""),
        path=scope["path"],
        query=scope.get("query_string", b"").decode("latin-1"),
        accept=headers.get("accept", ""),
        accept_encoding=headers.get("accept-encoding", ""),
    )


async def _send_response(response: Response, send: Send, *, with_body: bool) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in response.headers]
    await send({"type": "http.response.start", "status": int(response.status), "headers": headers})
    *chunks, last = response.chunks if with_body else [b""]
    for chunk in chunks:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": last})
