"""
A Flask app in several workers, one of which runs the jobs: the one that has a lock.

    pip install apscheduler-telemetry flask gunicorn
    export PROMETHEUS_MULTIPROC_DIR=$(mktemp -d)
    gunicorn --chdir examples --workers 4 one_worker:app
    curl http://127.0.0.1:8000/metrics

All workers wait for the lock, and the kernel gives it to one of them; when that is dead, to the
next. So there is always one, also after a reload. Other servers than gunicorn will do, as long as
each worker imports the app by itself: no --preload.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import random
import tempfile
import threading
import time
from pathlib import Path

from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from apscheduler_telemetry import instrument

LOCK = Path(os.environ.get("SCHEDULER_LOCK", f"{tempfile.gettempdir()}/one-worker-example.lock"))

scheduler = BackgroundScheduler(timezone="UTC")
telemetry = instrument(scheduler, name="one-worker-example")


def send_mails() -> None:
    """Stand in for a job that runs often."""
    time.sleep(random.uniform(0.01, 0.1))


def write_report() -> None:
    """Stand in for an important job."""
    time.sleep(5)


scheduler.add_job(send_mails, "interval", seconds=1, id="send-mails")
scheduler.add_job(write_report, "cron", hour=2, id="nightly-report", misfire_grace_time=3600)


def run_jobs_when_it_is_our_turn() -> None:
    """Wait for the lock, which is kept until this process ends, and then start the scheduler."""
    fcntl.lockf(lock, fcntl.LOCK_EX)
    scheduler.start()
    # It waits for runs in progress; if they take long, it may be too late for other jobs: see "The
    # end of the process" in docs/deployment.md.
    atexit.register(scheduler.shutdown)


lock = LOCK.open("w")
threading.Thread(target=run_jobs_when_it_is_our_turn, daemon=True).start()

app = Flask(__name__)
app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, {"/metrics": telemetry.wsgi_app, "/health": telemetry.wsgi_app}
)


@app.get("/")
def index() -> dict[str, int | bool]:
    """Return which worker has answered, and whether it runs the scheduler."""
    return {"pid": os.getpid(), "runs jobs": scheduler.running}
