"""
A web application that does not take several worker processes into account.

``START`` says which processes start the scheduler: ``each`` process that imports the module, or the
``first``, which creates the file ``FLAG``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry, Counter, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector

from apscheduler_telemetry import instrument
from tests.helpers.metrics import registry_of

Application = Callable[..., Iterable[bytes]]


def tick() -> None:
    """Do nothing."""


scheduler = BackgroundScheduler()
telemetry = instrument(scheduler, name="main")
scheduler.add_job(tick, "interval", seconds=0.5, id="tick", misfire_grace_time=None)
scheduler.add_job(tick, "interval", seconds=100, id="seldom")
requests = Counter("application_requests", "What the application itself counts.")


def is_first() -> bool:
    """Return whether this process is the first that calls this function."""
    with suppress(FileExistsError):
        Path(os.environ["FLAG"]).touch(exist_ok=False)
        return True
    return False


if os.environ["START"] == "each" or is_first():
    try:
        scheduler.start()
    except RuntimeError as error:  # of uWSGI without threads
        sys.stderr.write(f"{error}\n")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve the handle's pages, and ``/standard`` as documented by prometheus_client."""
    requests.inc()
    if environ["PATH_INFO"] == "/standard":
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        app: Application = make_wsgi_app(registry)
        return app(environ, start_response)
    if environ["PATH_INFO"] == "/":
        time.sleep(0.2)  # so that the other workers get something to do
        start_response("200 OK", [("Content-Type", "text/plain")])
        up = registry_of(telemetry).get_sample_value(
            "apscheduler_scheduler_up", {"scheduler": "main"}
        )
        reasons = [reason["code"] for reason in telemetry.health()["reasons"]]
        return [f"{os.getpid()} {up:g} {reasons}".encode()]
    return telemetry.wsgi_app(environ, start_response)
