"""What is measured: passes over due jobs, and calls of `add_job`."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from .contenders import contender
from .drivers import START, DebugDriver, Frozen

STEP = 1  # seconds, the interval of all jobs


class Workload(Protocol):
    """Does the same again and again."""

    driver: DebugDriver

    def run_pass(self) -> float:
        """Do it once; return the seconds of CPU time, for each run or call."""
        ...


class DueJobs:
    """
    Runs all jobs of a scheduler in each pass.

    Args:
        driver: What kind of scheduler.
        name: The contender that watches it.
        jobs: How many jobs are due in a pass.
        burst: How many runs of each job are due by then, submitted at once.
        executors: How many executors share the jobs.
    """

    def __init__(
        self,
        driver: Callable[[int], DebugDriver],
        name: str,
        *,
        jobs: int,
        burst: int = 1,
        executors: int = 1,
    ) -> None:
        chosen = contender(name)
        Frozen.at = START
        self.driver = driver(executors)
        scheduler = self.driver.scheduler
        chosen.watch(scheduler)
        coroutines = self.driver.runs_coroutines
        for number in range(jobs):
            scheduler.add_job(
                chosen.job.coroutine if coroutines else chosen.job.function,
                "interval",
                seconds=STEP,
                id=f"job-{number}",
                executor=str(number % executors) if number % executors else "default",
                misfire_grace_time=None,
                coalesce=burst == 1,
                start_date=START + timedelta(seconds=STEP),
            )
        scheduler.start()
        self._passes = 0
        self._step = timedelta(seconds=burst * STEP)
        self._runs = jobs * burst

    def run_pass(self) -> float:
        """Make all jobs due and run them; return the seconds of CPU time for each run."""
        self._passes += 1
        Frozen.at = START + self._passes * self._step
        driver = self.driver
        since = driver.cpu_time()
        driver.run_due()
        return (driver.cpu_time() - since) / self._runs


class AddedJobs:
    """
    Adds jobs to a scheduler that runs.

    Args:
        trigger: The kind of trigger, and its options.
        name: The contender that watches the scheduler.
        jobs: How many jobs a pass adds.
    """

    def __init__(self, trigger: tuple[str, dict[str, Any]], name: str, *, jobs: int) -> None:
        chosen = contender(name)
        Frozen.at = START
        self.driver = DebugDriver()
        chosen.watch(self.driver.scheduler)
        self.driver.scheduler.start()
        self._func = chosen.job.function
        self._kind, self._options = trigger
        self._jobs, self._added = jobs, 0

    def run_pass(self) -> float:
        """Add jobs; return the seconds of CPU time for each call."""
        numbers = range(self._added, self._added + self._jobs)
        self._added += self._jobs
        add_job, func, kind, options = (
            self.driver.scheduler.add_job,
            self._func,
            self._kind,
            self._options,
        )
        since = self.driver.cpu_time()
        for number in numbers:
            add_job(func, kind, id=f"job-{number:08}", **options)
        return (self.driver.cpu_time() - since) / self._jobs
