"""
Put the HTTP endpoints of one registry together.
"""

from __future__ import annotations

import difflib
import inspect
import os
from collections.abc import Callable, Collection, Mapping

from prometheus_client import CollectorRegistry

from apscheduler_telemetry.errors import ArgumentTypeError
from apscheduler_telemetry.http import limits
from apscheduler_telemetry.http.app import PageRouter
from apscheduler_telemetry.http.asgi import ASGIApp
from apscheduler_telemetry.http.limits import ServerLimits
from apscheduler_telemetry.http.messages import LIVENESS_PAGE_NAME
from apscheduler_telemetry.http.pages import (
    HealthPage,
    MetricsExposer,
    MetricsPage,
    Page,
    RunListGetter,
    RunsPage,
)
from apscheduler_telemetry.http.readers import BufferBudget
from apscheduler_telemetry.http.server import HTTPServer, serve_wsgi_app
from apscheduler_telemetry.http.status_pages import (
    MISSING_LIBRARY_HINT,
    StatusSource,
    create_status_pages,
    has_template_library,
)
from apscheduler_telemetry.http.tls import TLSOptions
from apscheduler_telemetry.http.wsgi import WSGIApp


class HTTPEndpoints:
    """
    The pages, as a WSGI application, an ASGI application or a server.

    Nothing is collected before the first request.

    Args:
        registry: the metrics to serve; None to serve no ``/metrics``.
        get_health_report: returns the health report; its ``status`` is ``healthy`` or
            ``unhealthy``.
        is_healthy: whether it is ``healthy``; must return at once, whatever the number of jobs.
        get_run_list: returns the list of the latest runs; None for no page ``/runs``.
        status_source: returns what the status page shows; None for no such page.
        report_exception: called with ``"http"`` while an exception of `registry`,
            `get_health_report`, `get_run_list` or `status_source` is being handled.
        expose_from_cache: a faster way to encode `registry`, if there is one.

    Attributes:
        wsgi_app: the WSGI application.
        asgi_app: the ASGI application.
    """

    def __init__(  # noqa: PLR0913  # each part by name
        self,
        *,
        registry: CollectorRegistry | None,
        get_health_report: Callable[[], Mapping[str, object]],
        is_healthy: Callable[[], bool],
        get_run_list: RunListGetter | None = None,
        status_source: StatusSource | None = None,
        report_exception: Callable[[str], None],
        expose_from_cache: MetricsExposer | None = None,
    ) -> None:
        pages: dict[str, Page] = {"health": HealthPage(get_health_report)}
        if registry is not None:
            pages = {"metrics": MetricsPage(registry, expose_from_cache), **pages}
        if get_run_list is not None:
            pages["runs"] = RunsPage(get_run_list)
        link_names, landing_hint = [*pages, LIVENESS_PAGE_NAME], ""
        if status_source is not None:
            if has_template_library():
                pages.update(create_status_pages(status_source, link_names))
            else:
                landing_hint = MISSING_LIBRARY_HINT
        self._report_exception = report_exception
        self._page_router = PageRouter(
            pages,
            link_names=link_names,
            landing_hint=landing_hint,
            is_healthy=is_healthy,
            report_exception=report_exception,
        )
        budget = BufferBudget(limits.MAX_BUFFERED_BYTES, report_exception)
        self.wsgi_app = WSGIApp(self._page_router, budget)
        self.asgi_app = ASGIApp(self._page_router, budget)

    def start_server(  # noqa: PLR0913  # keyword-only, each with a default
        self,
        port: int = 9476,
        addr: str = "127.0.0.1",
        *,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        client_cafile: str | os.PathLike[str] | None = None,
        client_capath: str | os.PathLike[str] | None = None,
        client_auth_required: bool = False,
        bearer_token_file: str | os.PathLike[str] | None = None,
        allowed_hosts: Collection[str] | None = None,
        max_connections: int = ServerLimits.max_connections,
        idle_timeout: float = ServerLimits.idle_timeout,
        max_buffered_bytes: int = ServerLimits.max_buffered_bytes,
    ) -> HTTPServer:
        """
        Start a server.

        See `start_http_server`, `TLSOptions` and `ServerLimits` for the arguments.
        """
        tls = TLSOptions(
            certfile=certfile,
            keyfile=keyfile,
            client_cafile=client_cafile,
            client_capath=client_capath,
            client_auth_required=client_auth_required,
        )
        connection_limits = ServerLimits(
            max_connections=max_connections,
            idle_timeout=idle_timeout,
            max_buffered_bytes=max_buffered_bytes,
        )
        budget = BufferBudget(max_buffered_bytes, self._report_exception)
        return serve_wsgi_app(
            WSGIApp(self._page_router, budget),
            port,
            addr,
            tls=tls,
            connection_limits=connection_limits,
            allowed_hosts=allowed_hosts,
            bearer_token_file=bearer_token_file,
            report_exception=self._report_exception,
        )


def reject_unknown_server_options(options: Collection[str]) -> None:
    """
    Check the names of options for `HTTPEndpoints.start_server`.

    Raises:
        ArgumentTypeError: there is no such option; the message says which one may be meant.
    """
    known = [
        name for name in inspect.signature(HTTPEndpoints.start_server).parameters if name != "self"
    ]
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, 1)
            hint = _SERVER_OPTION_SYNONYMS.get(option) or (close[0] if close else None)
            advice = f"pass {hint}=" if hint else f"there are {', '.join(known)}"
            msg = f"start_http_server() has no option {option!r}; {advice}"
            raise ArgumentTypeError(msg)


_SERVER_OPTION_SYNONYMS = {
    **dict.fromkeys(("host", "hostname", "address", "bind", "interface", "ip", "listen"), "addr"),
    **dict.fromkeys(("ssl_certfile", "cert", "certificate", "tls_cert"), "certfile"),
    **dict.fromkeys(("ssl_keyfile", "key", "private_key", "tls_key"), "keyfile"),
    **dict.fromkeys(("ssl_ca_certs", "cafile", "ca_certs"), "client_cafile"),
}
"""What other servers call the same."""
