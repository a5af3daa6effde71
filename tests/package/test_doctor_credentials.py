"""``apscheduler-telemetry doctor`` with servers that ask for a user and a password."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from tests.helpers.commands import list_chain_checks
from tests.helpers.servers import running_http_server


class TestBasicAuthentication:
    """Servers that ask for a user and a password, as Prometheus and Alertmanager themselves do."""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        """Serve an API that only ``me:secret`` may read."""

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_known = self.headers.get("Authorization") == "Basic bWU6c2VjcmV0"
                self.send_response(200 if is_known else 401)
                self.send_header("WWW-Authenticate", "Basic")
                self.end_headers()
                self.wfile.write(b'{"status": "success", "data": {"result": [], "groups": []}}')

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        with running_http_server(Handler) as address:
            yield f"http://{address}"

    def test_file_may_have_user_and_password(
        self, url: str, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
    ) -> None:
        """The message names the form; a wrong password is no endless loop."""
        pytest.importorskip("yaml")
        path = tmp_path / "credentials"
        for content, level in (("token", "serious"), ("me:wrong", "serious"), ("me:secret", "ok")):
            path.write_text(content)
            arguments = ("--prometheus", url, "--prometheus-token-file", str(path))
            _, checks = list_chain_checks(capfdbinary, *arguments)
            assert (checks[0]["code"], checks[0]["level"]) == ("prometheus-api", level)
            assert level == "ok" or "user:password" in checks[0]["fix"]
