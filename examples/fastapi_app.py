"""
A FastAPI app with jobs on its event loop, and /metrics and /health beside its own routes.

    pip install apscheduler-telemetry fastapi uvicorn
    uvicorn --app-dir examples fastapi_app:app
    curl http://127.0.0.1:8000/metrics

In production let one process run the jobs: no --workers, or see docs/deployment.md.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from fastapi import FastAPI
from starlette.routing import Route

from apscheduler_telemetry import instrument

scheduler = AsyncIOScheduler(timezone="UTC")
telemetry = instrument(scheduler, name="fastapi-example")


async def send_mails() -> None:
    """Stand in for a job that runs often."""
    await asyncio.sleep(random.uniform(0.01, 0.1))


async def write_report() -> None:
    """Stand in for an important job."""
    await asyncio.sleep(5)


scheduler.add_job(send_mails, "interval", seconds=1, id="send-mails")
scheduler.add_job(write_report, "cron", hour=2, id="nightly-report", misfire_grace_time=3600)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    """Run the jobs while the app runs: an AsyncIOScheduler needs its event loop."""
    scheduler.start()
    yield
    scheduler.shutdown()


app = FastAPI(lifespan=lifespan)
# app.mount("/metrics", telemetry.asgi_app) does it, too, but redirects /metrics to /metrics/.
app.router.routes += [
    Route("/metrics", telemetry.asgi_app),
    Route("/health", telemetry.asgi_app),
]


@app.get("/")
async def index() -> dict[str, str]:
    """Return when each job runs next."""
    return {job.id: str(job.next_run_time) for job in scheduler.get_jobs()}
