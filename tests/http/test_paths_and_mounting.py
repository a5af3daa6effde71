"""Paths that are not endpoints, the landing page, and applications mounted below a path."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote, urljoin

import pytest

from apscheduler_telemetry.http import HTTPEndpoints
from apscheduler_telemetry.http.messages import Request
from tests.helpers.http_clients import HEALTHY, Reply, ask_asgi_sync, ask_wsgi


class TestOtherPaths:
    @pytest.mark.parametrize("path", ["/metric", "/metrics/x", "/%zz%ff", "/\xff\xfe", "/../etc"])
    def test_unknown_path_leads_to_404_with_the_known_ones(
        self, ask: Callable[..., Reply], path: str
    ) -> None:
        """An unknown path leads to a 404 that lists the known ones."""
        reply = ask(path)

        assert reply.status == 404
        assert reply.text == "Not found. There are /metrics, /health and /livez.\n"

    def test_landing_page_links_to_all_pages(self, ask: Callable[..., Reply]) -> None:
        """The landing page links to all pages, relatively."""
        reply = ask("/", mount="/ops/x y")

        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/html")
        assert 'href="./metrics"' in reply.text
        assert 'href="./health"' in reply.text
        assert 'href="./livez"' in reply.text

    @pytest.mark.parametrize("path", ["/metrics/", "/health/", "/livez/"])
    def test_trailing_slash_is_ignored(self, ask: Callable[..., Reply], path: str) -> None:
        """A trailing slash is ignored."""
        assert ask(path).status == 200


class TestMounting:
    @pytest.mark.parametrize(
        ("mount", "path"),
        [
            ("", "/health"),
            ("/ops", "/health"),
            ("/ops", "/ops/health"),
            ("/api/ops", "/ops/health"),
            ("/ops/", "/ops/health"),
            ("/health", ""),
            ("/health", "/"),
            ("/health", "/health"),
            ("/health", "/health/"),
            ("/api/health", "/api/health"),
            ("/api/health", "/health"),
            ("/metrics", "/metrics/health"),
        ],
    )
    def test_pages_are_found_below_any_mount_point(
        self, ask: Callable[..., Reply], mount: str, path: str
    ) -> None:
        """Pages are found below any mount point, in each way in which servers pass it."""
        assert ask(path, mount=mount).json == HEALTHY

    @pytest.mark.parametrize(
        ("mount", "path"), [("/ops", "/opsx/health"), ("/ops", "/opshealth"), ("/ops", "/x")]
    )
    def test_path_that_shares_a_prefix_with_the_mount_point_is_unknown(
        self, ask: Callable[..., Reply], mount: str, path: str
    ) -> None:
        """A path that only shares a prefix with the mount point is unknown."""
        assert ask(path, mount=mount).status == 404

    @pytest.mark.parametrize(
        ("mount", "path"),
        [
            ("", "/"),
            ("", "/job"),
            ("", "/upcoming/"),
            ("/ops", ""),
            ("/ops/", ""),
            ("/ops", "/job"),
            ("/ops/x y:z", ""),
        ],
    )
    def test_relative_root_leads_to_the_mount_point(self, mount: str, path: str) -> None:
        """A link resolves to the mount point, whatever a proxy adds before it."""
        request = Request(
            method="GET", root_path=mount, path=path, query="", accept="", accept_encoding=""
        )
        for added in ("", "/proxy/path"):
            base = f"http://host{added}{quote(mount.rstrip('/') + path)}"
            expected = f"http://host{added}{quote(mount.rstrip('/'))}/runs"
            assert urljoin(base, f"{request.relative_root}/runs") == expected

    @pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/ops/metrics", "/ops/metrics/"])
    def test_application_works_below_werkzeugs_dispatcher(
        self, endpoints: HTTPEndpoints, path: str
    ) -> None:
        """The application works below Werkzeug's dispatcher, at any mount point."""
        dispatcher = pytest.importorskip("werkzeug.middleware.dispatcher")
        flask = pytest.importorskip("flask")
        mounts = {"/metrics": endpoints.wsgi_app, "/ops": endpoints.wsgi_app}
        app = dispatcher.DispatcherMiddleware(flask.Flask(__name__), mounts)

        assert "runs_total" in ask_wsgi(app, path).text

    @pytest.mark.parametrize("root_path", ["", "/proxy"])
    @pytest.mark.parametrize(
        "path", ["/metrics", "/bare/metrics/", "/ops/metrics", "/ops/metrics/"]
    )
    def test_application_works_below_starlettes_routes(
        self, endpoints: HTTPEndpoints, path: str, root_path: str
    ) -> None:
        """The application works below Starlette's routes, also if a proxy strips a prefix."""
        routing = pytest.importorskip("starlette.routing")
        app = routing.Router(
            [
                routing.Route("/metrics", endpoints.asgi_app),
                routing.Mount("/bare/metrics", endpoints.asgi_app),
                routing.Mount("/ops", endpoints.asgi_app),
            ]
        )

        for given in (path, root_path + path):
            assert "runs_total" in ask_asgi_sync(app, given, mount=root_path).text
