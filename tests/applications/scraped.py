"""An instrumented application for integration tests; prints the port of its /metrics."""

from __future__ import annotations

import os
import signal
import threading
import time

from apscheduler.executors.pool import ProcessPoolExecutor, ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from apscheduler_telemetry import instrument


def ok() -> None:
    """Succeed after a moment."""
    time.sleep(0.02)


def fails() -> None:
    """Fail."""
    msg = "no"
    raise ValueError(msg)


def killed() -> None:
    """Be killed, as the kernel does when it is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Run until SIGTERM."""
    try:
        from opentelemetry.sdk.trace import TracerProvider

        provider = TracerProvider()
    except ImportError:
        provider = None
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(4), "processes": ProcessPoolExecutor(1)}
    )
    with instrument(scheduler, tracer_provider=provider).start_http_server(0) as server:
        scheduler.start()
        scheduler.add_job(ok, "interval", seconds=0.5, id="ok")
        scheduler.add_job(fails, "interval", seconds=0.5, id="fails")
        scheduler.add_job(killed, "interval", seconds=2, id="killed", executor="processes")
        print(server.port, flush=True)  # noqa: T201  # for the test
        ended = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: ended.set())
        ended.wait()
        scheduler.shutdown()


if __name__ == "__main__":
    main()
