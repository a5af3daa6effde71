"""
A Flask app with background jobs, and /metrics and /health beside its own pages.

    pip install apscheduler-telemetry flask
    python examples/flask_app.py
    curl http://127.0.0.1:8000/metrics

In production let one process run the jobs: gunicorn --workers 1 --threads 8 flask_app:app, or
see docs/deployment.md.
"""

from __future__ import annotations

import atexit
import random
import time

from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from apscheduler_telemetry import instrument

scheduler = BackgroundScheduler(timezone="UTC")
telemetry = instrument(scheduler, name="flask-example")


def send_mails() -> None:
    """Stand in for a job that runs often."""
    time.sleep(random.uniform(0.01, 0.1))


def write_report() -> None:
    """Stand in for an important job."""
    time.sleep(5)


scheduler.add_job(send_mails, "interval", seconds=1, id="send-mails")
scheduler.add_job(write_report, "cron", hour=2, id="nightly-report", misfire_grace_time=3600)

app = Flask(__name__)
app.wsgi_app = DispatcherMiddleware(  # type: ignore[method-assign]
    app.wsgi_app, {"/metrics": telemetry.wsgi_app, "/health": telemetry.wsgi_app}
)


@app.get("/")
def index() -> dict[str, str]:
    """Return when each job runs next."""
    return {job.id: str(job.next_run_time) for job in scheduler.get_jobs()}


scheduler.start()
atexit.register(scheduler.shutdown)  # which waits for runs in progress

if __name__ == "__main__":
    app.run(port=8000)
