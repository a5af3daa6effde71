"""The warning at the exit of a process whose scheduler has jobs to run."""

from __future__ import annotations

from tests.helpers.scripts import output_of_script


class TestJobsAtExit:
    """A process that exits while its scheduler, in a daemon thread, has several jobs."""

    def test_warning_names_the_job_that_runs_next(self) -> None:
        """The warning names the job with the earliest next run."""
        _, errors = output_of_script(
            """
            from apscheduler.schedulers.background import BackgroundScheduler
            from apscheduler_telemetry import instrument

            scheduler = BackgroundScheduler(timezone="UTC")
            instrument(scheduler)
            for hours, job_id in ((5, "later"), (1, "next"), (9, "last")):
                scheduler.add_job(print, "interval", hours=hours, id=job_id)
            scheduler.start()
            """
        )
        assert len(errors.splitlines()) == 1
        assert [job_id for job_id in ("next", "later", "last") if repr(job_id) in errors] == [
            "next"
        ]
