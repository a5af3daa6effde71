"""A web application with a scheduler in each of its workers, for gunicorn; see `drill`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler

from apscheduler_telemetry import Expectations, instrument


def report() -> None:
    """Do a little."""


scheduler = BackgroundScheduler()
telemetry = instrument(scheduler, name="main", expect=Expectations(grace=2))
scheduler.add_job(report, "interval", seconds=3, id="report")
scheduler.start()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve metrics under their path, and a page that takes its time."""
    if environ["PATH_INFO"] != "/":
        return telemetry.wsgi_app(environ, start_response)
    time.sleep(0.1)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
