"""
A process that does nothing but run the jobs, beside a web application of many workers.

    pip install apscheduler-telemetry
    python examples/dedicated_process.py
    curl http://127.0.0.1:9476/metrics

The web application starts no scheduler; if it is to add jobs, by a job store that both share.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

from apscheduler.schedulers.blocking import BlockingScheduler

from apscheduler_telemetry import instrument

scheduler = BlockingScheduler(timezone="UTC")
telemetry = instrument(scheduler, name="dedicated-example")


def send_mails() -> None:
    """Stand in for a job that runs often."""
    time.sleep(random.uniform(0.01, 0.1))


def write_report() -> None:
    """Stand in for an important job."""
    time.sleep(5)


scheduler.add_job(send_mails, "interval", seconds=1, id="send-mails")
scheduler.add_job(write_report, "cron", hour=2, id="nightly-report", misfire_grace_time=3600)

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that `finally` is reached
    with telemetry.start_http_server(int(os.environ.get("PORT", "9476"))) as server:
        if not server.is_serving:
            sys.exit("The port is taken, perhaps by another process that runs the same jobs.")
        print(f"running on {server.url}", flush=True)
        try:
            scheduler.start()
        finally:
            scheduler.shutdown()  # waits for runs that are under way
