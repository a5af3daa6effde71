"""
Put the HTTP endpoints of one registry together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry

from apscheduler_telemetry.http.app import TelemetryApp
from apscheduler_telemetry.http.asgi import ASGIApp
from apscheduler_telemetry.http.pages import HealthPage, MetricsExposer, MetricsPage, Page
from apscheduler_telemetry.http.server import HTTPServer, start_http_server
from apscheduler_telemetry.http.tls import TLSOptions
from apscheduler_telemetry.http.wsgi import WSGIApp


class HTTPEndpoints:
    """
    ``/metrics`` and ``/health``, as a WSGI application, an ASGI application or a server.

    Nothing is collected before the first request.

    Args:
        registry: the metrics to serve; None to serve ``/health`` only.
        get_health_report: returns the health report; its ``status`` is ``healthy`` or
            ``unhealthy``.
        report_exception: called with ``"http"`` while an exception of `registry` or
            `get_health_report` is being handled.
        expose_from_cache: a faster way to encode `registry`, if there is one.

    Attributes:
        wsgi_app: the WSGI application.
        asgi_app: the ASGI application.
    """

    def __init__(
        self,
        *,
        registry: CollectorRegistry | None,
        get_health_report: Callable[[], Mapping[str, object]],
        report_exception: Callable[[str], None],
        expose_from_cache: MetricsExposer | None = None,
    ) -> None:
        pages: dict[str, Page] = {"health": HealthPage(get_health_report)}
        if registry is not None:
            pages = {"metrics": MetricsPage(registry, expose_from_cache), **pages}
        app = TelemetryApp(pages, report_exception=report_exception)
        self.wsgi_app = WSGIApp(app)
        self.asgi_app = ASGIApp(app)

    def serve(  # noqa: PLR0913  # the arguments of prometheus_client.start_http_server
        self,
        port: int = 9476,
        addr: str = "127.0.0.1",
        *,
        certfile: str | os.PathLike[str] | None = None,
        keyfile: str | os.PathLike[str] | None = None,
        client_cafile: str | os.PathLike[str] | None = None,
        client_capath: str | os.PathLike[str] | None = None,
        client_auth_required: bool = False,
    ) -> HTTPServer:
        """Start a server: see `start_http_server`, and `TLSOptions` for the keyword arguments."""
        tls = TLSOptions(
            certfile=certfile,
            keyfile=keyfile,
            client_cafile=client_cafile,
            client_capath=client_capath,
            client_auth_required=client_auth_required,
        )
        return start_http_server(self.wsgi_app, port, addr, tls)
