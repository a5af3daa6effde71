"""
An application without any code for telemetry, for ``opentelemetry-instrument``.

Its scheduler is started, and gets its job, within a request. The span of that request must not
become the parent of spans of the scheduler. The directory is the only argument.
"""

from __future__ import annotations

import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import requests
import uvicorn
from apscheduler.jobstores.sqlalchemy import SQLAlchemyJobStore
from apscheduler.schedulers.background import BackgroundScheduler
from fastapi import FastAPI
from flask import Flask
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from sqlalchemy import create_engine, text
from werkzeug.serving import make_server

if not SQLAlchemyInstrumentor().is_instrumented_by_opentelemetry:
    # It declares itself incompatible with the newest SQLAlchemy, and works.
    SQLAlchemyInstrumentor().instrument(skip_dep_check=True)

RUNS = 3
INTERVAL = 0.3

directory = Path(sys.argv[1])
engine = create_engine(f"sqlite:///{directory / 'app.db'}")
scheduler = BackgroundScheduler(
    jobstores={"default": SQLAlchemyJobStore(f"sqlite:///{directory / 'jobs.db'}")},
    timezone=timezone.utc,
)
flask_app = Flask(__name__)
fastapi_app = FastAPI()
addresses: list[str] = []
runs = threading.Semaphore(0)


def report() -> None:
    """Send requests to both web applications, and query the database."""
    for address in addresses:
        requests.get(f"{address}/work", timeout=20).raise_for_status()
    with engine.connect() as connection:
        connection.execute(text("SELECT 42"))
    runs.release()


@flask_app.get("/start")
def start() -> str:
    """Start the scheduler, and add a job, within a request."""
    scheduler.start()
    # The end is counted from the first run, and the first run is given to the scheduler, so that
    # there are as many runs as wanted, however long the next lines take.
    first = datetime.now(timezone.utc) + timedelta(seconds=INTERVAL)
    scheduler.add_job(
        report,
        "interval",
        seconds=INTERVAL,
        start_date=first,
        end_date=first + timedelta(seconds=INTERVAL * (RUNS - 0.5)),
        next_run_time=first,
        id="report",
        misfire_grace_time=None,
        coalesce=False,
        max_instances=RUNS,
    )
    return "started"


@flask_app.get("/work")
def flask_work() -> str:
    """Answer."""
    return "done"


@fastapi_app.get("/work")
def fastapi_work() -> str:
    """Answer."""
    return "done"


def main() -> None:
    """Run until the job has run `RUNS` times."""
    flask_server = make_server("127.0.0.1", 0, flask_app, threaded=True)
    fastapi_server = uvicorn.Server(
        uvicorn.Config(fastapi_app, port=0, log_level="warning", lifespan="off")
    )
    threads = [
        threading.Thread(target=flask_server.serve_forever, daemon=True),
        threading.Thread(target=fastapi_server.run, daemon=True),
    ]
    for thread in threads:
        thread.start()
    while not fastapi_server.started:
        assert threads[1].is_alive(), "uvicorn did not start"
        threading.Event().wait(0.01)
    [listening] = fastapi_server.servers[0].sockets
    addresses.append(f"http://127.0.0.1:{flask_server.server_port}")
    addresses.append(f"http://127.0.0.1:{listening.getsockname()[1]}")
    requests.get(f"{addresses[0]}/start", timeout=20).raise_for_status()
    for _ in range(RUNS):
        assert runs.acquire(timeout=30), "the job did not run"
    scheduler.shutdown()
    flask_server.shutdown()
    fastapi_server.should_exit = True
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
