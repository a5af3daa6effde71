"""
The endpoints as an ASGI application.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import closing, suppress
from functools import partial
from typing import Any

from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.app import PageRouter, abandon_response
from apscheduler_telemetry.http.messages import Request
from apscheduler_telemetry.http.readers import BufferBudget, ResponseReader

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class ASGIApp:
    """
    Serves a `PageRouter` by ASGI 3 on asyncio, wherever it is mounted.

    This is an object with ``__call__`` because uvicorn takes a bound method for an ASGI 2 app.

    Args:
        app: produces the responses.
        budget: limits the memory for clients that read slowly.
    """

    def __init__(self, app: PageRouter, budget: BufferBudget) -> None:
        self._page_router = app
        self._buffer_budget = budget

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        """
        Handle one connection.

        Raises:
            ValueError: the scope is of a type that ASGI 3 does not define.
        """
        if scope["type"] == "http":
            # How a server of ASGI 2.4 says that the client disconnected, and `SlowReaderError`:
            # a server closes the connection if the response is not completed.
            with suppress(OSError):
                await self._handle_http(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        elif scope["type"] == "lifespan":
            await self._handle_lifespan(receive, send)
        else:
            msg = f"unknown ASGI scope type {scope['type']!r}; this app serves HTTP"
            raise ValueError(msg)

    async def _handle_http(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        request = _to_request(scope)
        disconnect = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            reader = await self._wait_for_reader(request, disconnect)
            if reader is not None:
                with closing(reader):
                    await _send_response(reader, send, disconnect, request.method)
        finally:
            disconnect.cancel()

    async def _wait_for_reader(
        self, request: Request, disconnect: asyncio.Future[None]
    ) -> ResponseReader | None:
        """Return the reader of the response; None if the client has disconnected."""
        open_reader = partial(
            self._buffer_budget.open_reader,
            max_piece_bytes=limits.MAX_PIECE_BYTES_FOR_OTHER_SERVERS,
        )
        try:
            submitted = self._page_router.submit_request(request, open_reader)
            return await _wait_for_submitted_reader(submitted, disconnect)
        except Exception:  # noqa: BLE001  # of any collector, or the timeout
            return open_reader(self._page_router.handle_exception(request))

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


async def _wait_for_submitted_reader(
    submitted: concurrent.futures.Future[ResponseReader], disconnect: asyncio.Future[None]
) -> ResponseReader | None:
    """
    Wait for the reader of a response.

    Args:
        submitted: the reader.
        disconnect: done once the client has disconnected.

    Returns:
        None if the client disconnects before that.

    Raises:
        TimeoutError: it took longer than `limits.RENDER_TIMEOUT_SECONDS`.
    """
    if submitted.done():
        return submitted.result()
    future = asyncio.wrap_future(submitted)
    reader = None
    try:
        done, _ = await asyncio.wait(
            (future, disconnect),
            timeout=limits.RENDER_TIMEOUT_SECONDS,
            return_when=asyncio.FIRST_COMPLETED,
        )
        if not done:
            msg = f"no response within {limits.RENDER_TIMEOUT_SECONDS} s; does a collector hang?"
            raise TimeoutError(msg)
        reader = future.result() if future in done else None
    finally:
        if reader is None:
            abandon_response(
                submitted
            )  # at once, unlike `future.cancel()`, which the loop passes on later
            future.cancel()
    return reader


async def _send_response(
    reader: ResponseReader, send: Send, disconnect: asyncio.Future[None], method: str
) -> None:
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in reader.headers]
    status = int(reader.status)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if method != "HEAD":
        for piece in reader:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            # A server may buffer without letting the loop turn, by which alone it is noticed that
            # the client has disconnected.
            await asyncio.sleep(0)
            if disconnect.done():
                return
    await send({"type": "http.response.body", "body": b""})


async def _wait_for_disconnect(receive: Receive) -> None:
    """Return once the client has disconnected; never if the server does not tell it."""
    is_request_complete = False
    with suppress(Exception):  # a server that fails here will fail when the response is sent, too
        while (message := await receive())["type"] != "http.disconnect":
            if is_request_complete:  # not as ASGI specifies it
                break
            is_request_complete = not message.get("more_body", False)
        else:
            return
    await asyncio.Event().wait()
