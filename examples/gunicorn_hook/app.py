"""A Flask app whose scheduler is started by gunicorn.conf.py, in one of the workers."""

from __future__ import annotations

import os
import random
import time

from apscheduler.schedulers.background import BackgroundScheduler
from flask import Flask
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from apscheduler_telemetry import instrument

scheduler = BackgroundScheduler(timezone="UTC")
telemetry = instrument(scheduler, name="gunicorn-hook-example")


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
def index() -> dict[str, int | bool]:
    """Return which worker has answered, and whether it runs the scheduler."""
    return {"pid": os.getpid(), "runs jobs": scheduler.running}
