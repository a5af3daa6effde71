"""The webhook that stands in for all receivers, and the notifications that it got."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class DrillError(AssertionError):
    """A drill went wrong, or an alert did not come."""


@dataclass(frozen=True)
class Notice:
    """A notification about one alert."""

    at: float
    receiver: str
    status: str
    alert: str
    labels: dict[str, str]
    annotations: dict[str, str]
    fingerprint: str

    @property
    def job(self) -> str:
        return self.labels.get("job", "")


class Webhook:
    """The receiver of all notifications."""

    def __init__(self) -> None:
        self.notices: list[Notice] = []
        self._changed = threading.Condition()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                webhook.take(json.loads(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # its name
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def take(self, message: dict[str, Any]) -> None:
        now = time.time()
        with self._changed:
            for alert in message["alerts"]:
                notice = Notice(
                    at=now,
                    receiver=message["receiver"],
                    status=alert["status"],
                    alert=alert["labels"]["alertname"],
                    labels=alert["labels"],
                    annotations=alert["annotations"],
                    fingerprint=alert["fingerprint"],
                )
                self.notices.append(notice)
            self._changed.notify_all()

    def wait(
        self, matches: Callable[[Notice], bool], timeout: float, ended: threading.Event
    ) -> Notice | None:
        """Return the first notice that matches, or None if there is none in time."""
        end = time.monotonic() + timeout
        looked_at = 0
        with self._changed:
            while not ended.is_set():
                for notice in self.notices[looked_at:]:
                    if matches(notice):
                        return notice
                looked_at = len(self.notices)
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 1.0))
        return None

    def about(self, jobs: Iterable[str]) -> list[Notice]:
        """Return what arrived about some values of the label ``job``."""
        names = set(jobs)
        with self._changed:
            return [notice for notice in self.notices if notice.job in names]
