"""
The application behind all servers: routes requests to pages, and limits the work on them.
"""

from __future__ import annotations

import html
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from http import HTTPStatus

from apscheduler_telemetry.http.messages import (
    INTERNAL_ERROR_RESPONSE,
    LIVENESS_PAGE_NAME,
    LIVEZ_HEALTHY_RESPONSE,
    LIVEZ_UNHEALTHY_RESPONSE,
    Request,
    Response,
)
from apscheduler_telemetry.http.pages import Page
from apscheduler_telemetry.http.readers import ResponseReader
from apscheduler_telemetry.http.render_queue import RenderQueue

ALLOWED_METHODS = ("GET", "HEAD", "OPTIONS")


class PageRouter:
    """
    Routes requests to pages, which are rendered in daemon threads.

    A collector that hangs then blocks neither an event loop, nor another page, nor the exit of the
    interpreter.

    Args:
        pages: the pages by name, that of ``/`` being empty.
        link_names: which of them the landing page and a 404 name, in this order.
        landing_hint: a sentence of the landing page; not used if `pages` has one for ``/``.
        is_healthy: what ``/livez`` tells by its status; must return at once.
        report_exception: called with ``"http"`` while the exception of a page is being handled.
    """

    def __init__(
        self,
        pages: Mapping[str, Page],
        *,
        link_names: Sequence[str],
        landing_hint: str = "",
        is_healthy: Callable[[], bool],
        report_exception: Callable[[str], None],
    ) -> None:
        self._pages = pages
        self._link_names = link_names
        self._landing_hint = landing_hint
        self._is_healthy = is_healthy
        self._report_exception = report_exception
        # One queue each, so that /health responds even if every scrape hangs.
        self._queues_by_page = {name: RenderQueue() for name in pages}
        self._latest_responses: weakref.WeakValueDictionary[Hashable, Response] = (
            weakref.WeakValueDictionary()
        )

    def submit_request(
        self, request: Request, open_reader: Callable[[Response], ResponseReader]
    ) -> Future[ResponseReader]:
        """
        Start to produce the response to a request.

        Args:
            request: the request.
            open_reader: opens the reader of the response, as soon as there is one. So a response
                counts in the `BufferBudget` also while the request has not taken it yet.

        Returns:
            The reader of the response, which may be that of other requests, too. It is cancelled if
            the client has disconnected before the response could be produced. If no client wants it
            any more, call `abandon_response`.

        Raises:
            RuntimeError: too many requests for the page are already waiting.
        """
        name = request.page_name
        if name not in self._pages or request.method not in ("GET", "HEAD"):
            return _completed_future(open_reader(self._response_without_rendering(request)))
        page = self._pages[name]
        variant = page.choose_variant(request)
        key = (name, variant)
        latest = self._latest_responses.get(key)
        if latest is not None and latest.may_be_shared_now:
            return _completed_future(open_reader(latest))

        def render() -> Response:
            response = page.render(variant)
            self._latest_responses[key] = response
            return response

        return self._queues_by_page[name].submit(
            key, render, request.check_client_gone, convert_result=open_reader
        )

    def handle_exception(self, request: Request) -> Response:
        """
        Report the exception that is being handled, and return the response to send instead.

        The response contains nothing of the exception, which may hold secrets.
        """
        self._report_exception("http")
        page = self._pages.get(request.page_name)
        return INTERNAL_ERROR_RESPONSE if page is None else page.render_error()

    def _response_without_rendering(self, request: Request) -> Response:
        """Return the response to a request that no page has to be rendered for."""
        if request.page_name not in ("", LIVENESS_PAGE_NAME, *self._pages):
            return self._not_found_response()
        allow = (("Allow", ", ".join(ALLOWED_METHODS)),)
        if request.method == "OPTIONS":
            return Response(HTTPStatus.OK, [b""], extra_headers=allow)
        if request.method not in ALLOWED_METHODS:
            body = f"Method not allowed. Use {', '.join(ALLOWED_METHODS)}.\n".encode()
            return Response(HTTPStatus.METHOD_NOT_ALLOWED, [body], extra_headers=allow)
        if request.page_name == LIVENESS_PAGE_NAME:
            return LIVEZ_HEALTHY_RESPONSE if self._is_healthy() else LIVEZ_UNHEALTHY_RESPONSE
        return self._landing_page_response(request.relative_root)

    def _not_found_response(self) -> Response:
        *names, last = self._link_names
        paths = f"{', '.join(f'/{name}' for name in names)} and /{last}"
        return Response(HTTPStatus.NOT_FOUND, [f"Not found. There are {paths}.\n".encode()])

    def _landing_page_response(self, relative_root: str) -> Response:
        root = html.escape(relative_root)
        links = (f'<p><a href="{root}/{name}">/{name}</a></p>' for name in self._link_names)
        hint = f"<p>{html.escape(self._landing_hint)}</p>" if self._landing_hint else ""
        title = "<title>APScheduler telemetry</title>"
        body = f"<!doctype html>{title}{''.join(links)}{hint}\n".encode()
        return Response(HTTPStatus.OK, [body], "text/html; charset=utf-8")


def abandon_response(future: Future[ResponseReader]) -> bool:
    """Give up a response of `submit_request`; return whether nothing has started to produce it."""
    if future.cancel():
        return True
    future.add_done_callback(_close_reader)
    return False


def _close_reader(future: Future[ResponseReader]) -> None:
    if not future.exception():
        future.result().close()


def _completed_future(reader: ResponseReader) -> Future[ResponseReader]:
    future: Future[ResponseReader] = Future()
    future.set_result(reader)
    return future
