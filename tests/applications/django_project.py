"""
A Django project whose jobs django-apscheduler keeps in its database, for tests/end_to_end.

Usage: python -m tests.applications.django_project DATABASE first | second

The first process adds jobs and runs them; the second one finds them. Each prints a report as JSON.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime, timezone

import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": sys.argv[1],
            # The scheduler's thread and those of its executor write at the same time. By default,
            # SQLite refuses at once a transaction that has read and then wants to write.
            "OPTIONS": {"timeout": 60, "transaction_mode": "IMMEDIATE"},
        }
    },
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    INSTALLED_APPS=["django_apscheduler"],
    USE_TZ=True,
)
django.setup()

from apscheduler.schedulers.background import BackgroundScheduler
from django_apscheduler.jobstores import DjangoJobStore, register_events
from django_apscheduler.models import DjangoJob, DjangoJobExecution
from prometheus_client import CollectorRegistry

from apscheduler_telemetry import instrument
from tests.helpers import jobs
from tests.helpers.metrics import errors_of, job_states, outcomes
from tests.helpers.waiting import wait_until


def main() -> None:
    call_command("migrate", verbosity=0)
    scheduler = BackgroundScheduler(timezone="UTC")
    scheduler.add_jobstore(DjangoJobStore(), "default")
    register_events(scheduler)
    telemetry = instrument(scheduler, registry=CollectorRegistry())
    if sys.argv[2] == "first":
        options = {"seconds": 3600, "misfire_grace_time": None, "replace_existing": True}
        scheduler.add_job(jobs.give_back, "interval", args=[1], id="good", **options)
        scheduler.add_job(jobs.fail, "interval", id="bad", **options)
    scheduler.start()
    wait_until(lambda: {"good", "bad"} <= {job.label for job in job_states(telemetry)}, "the jobs")
    if sys.argv[2] == "first":
        for job in scheduler.get_jobs():
            job.modify(next_run_time=datetime.now(timezone.utc))
        wait_until(lambda: outcomes(telemetry, "good") and outcomes(telemetry, "bad"), "the runs")
        rows = DjangoJobExecution.objects.exclude(status=DjangoJobExecution.SENT)
        wait_until(lambda: rows.count() == 2, "the rows of both runs to have an outcome")
    states = {job.label: job for job in job_states(telemetry)}
    report = {
        "good": outcomes(telemetry, "good"),
        "bad": outcomes(telemetry, "bad"),
        "persistent": states["good"].info.persistent,
        "has a next run": states["good"].next_run > 0,
        "rows": sorted(DjangoJobExecution.objects.values_list("status", flat=True)),
        "stored": sorted(DjangoJob.objects.values_list("id", flat=True)),
        "up": telemetry._exported_scheduler.liveness().up,
        "own failures": {k: n for k, n in errors_of(telemetry).counts().items() if n},
    }
    scheduler.shutdown()
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main()
