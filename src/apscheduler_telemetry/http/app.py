"""
The application behind all servers: routes requests to pages, and limits the work on them.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from http import HTTPStatus
from urllib.parse import quote

from apscheduler_telemetry.http.messages import INTERNAL_ERROR_RESPONSE, Request, Response
from apscheduler_telemetry.http.pages import Page
from apscheduler_telemetry.http.thread_pool import DaemonThreadPool

ALLOWED_METHODS = ("GET", "HEAD", "OPTIONS")


class TelemetryApp:
    """
    Routes requests to pages, which are rendered in daemon threads.

    A collector that hangs then blocks neither an event loop, nor another page, nor the exit of the
    interpreter.

    Args:
        pages: the pages by name; the landing page links to them in this order.
        report_exception: called with ``"http"`` while the exception of a page is being handled.
    """

    def __init__(
        self, pages: Mapping[str, Page], *, report_exception: Callable[[str], None]
    ) -> None:
        self._pages = pages
        self._report_exception = report_exception
        # One pool each, so that /health responds even if every scrape hangs.
        self._pools_by_page = {name: DaemonThreadPool() for name in pages}

    def submit_request(self, request: Request) -> Future[Response]:
        """
        Start to produce the response to a request.

        Raises:
            RuntimeError: too many requests for the page are already waiting.
        """
        name = request.page_name
        if name in self._pages and request.method in ("GET", "HEAD"):
            return self._pools_by_page[name].submit(partial(self._pages[name].render, request))
        response: Future[Response] = Future()
        response.set_result(self._static_response(request))
        return response

    def handle_exception(self, request: Request) -> Response:
        """
        Report the exception that is being handled, and return the response to send instead.

        The response contains nothing of the exception, which may hold secrets.
        """
        self._report_exception("http")
        page = self._pages.get(request.page_name)
        return INTERNAL_ERROR_RESPONSE if page is None else page.render_error()

    def _static_response(self, request: Request) -> Response:
        """Return the response to a request that no page has to be rendered for."""
        if request.page_name not in ("", *self._pages):
            return self._not_found_response()
        allow = (("Allow", ", ".join(ALLOWED_METHODS)),)
        if request.method == "OPTIONS":
            return Response(HTTPStatus.OK, [b""], extra_headers=allow)
        if request.method not in ALLOWED_METHODS:
            body = f"Method not allowed. Use {', '.join(ALLOWED_METHODS)}.\n".encode()
            return Response(HTTPStatus.METHOD_NOT_ALLOWED, [body], extra_headers=allow)
        return self._landing_page_response(request.root_path)

    def _not_found_response(self) -> Response:
        paths = " and ".join(f"/{name}" for name in self._pages)
        verb = "are" if len(self._pages) > 1 else "is"
        return Response(HTTPStatus.NOT_FOUND, [f"Not found. There {verb} {paths}.\n".encode()])

    def _landing_page_response(self, root_path: str) -> Response:
        prefix = html.escape(quote(root_path.rstrip("/"), errors="replace"))
        links = (f'<p><a href="{prefix}/{name}">/{name}</a></p>' for name in self._pages)
        body = f"<!doctype html><title>APScheduler telemetry</title>{''.join(links)}\n".encode()
        return Response(HTTPStatus.OK, [body], "text/html; charset=utf-8")
