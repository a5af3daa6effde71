"""
Keeps schedulers from starting, and notes what an application does with them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from apscheduler.job import Job
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.triggers.cron import CronTrigger

from apscheduler_telemetry.adapters.apscheduler3.checked_jobs import find_upcoming_fire_times
from apscheduler_telemetry.adapters.base import SchedulerImportFacts


class APScheduler3StartPrevention:
    """
    Keeps schedulers of APScheduler 3 from starting; see `StartPrevention`.

    Those that are created meanwhile never start, also not later, in the threads and the functions
    for the end of the process that their application has registered.
    """

    def __init__(self, on_start: Callable[[], None]) -> None:
        self._on_start = on_start
        self._created_schedulers: dict[int, _CreatedScheduler] = {}
        self._local_triggers: list[Any] = []
        self._original_init_and_configure = BaseScheduler.__init__, BaseScheduler._configure  # noqa: SLF001
        self._original_create_trigger = BaseScheduler._create_trigger  # noqa: SLF001
        self._original_cron_trigger_init = CronTrigger.__init__

    def install(self) -> None:
        """Let no scheduler start that is created from now on."""
        original_init, original_configure = self._original_init_and_configure
        original_create_trigger = self._original_create_trigger
        original_trigger_init = self._original_cron_trigger_init
        parameters = inspect.signature(original_trigger_init)

        @functools.wraps(original_init)
        def init(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            self._get_or_add_created(scheduler)
            original_init(scheduler, *args, **kwargs)

        @functools.wraps(original_configure)
        def configure(scheduler: Any, config: Any) -> None:
            self._get_or_add_created(scheduler).on_configured(config)
            original_configure(scheduler, config)

        @functools.wraps(original_trigger_init)
        def init_trigger(trigger: Any, *args: Any, **kwargs: Any) -> None:
            original_trigger_init(trigger, *args, **kwargs)
            given = parameters.bind(trigger, *args, **kwargs).arguments
            dates = given.get("start_date"), given.get("end_date")  # whose zone is taken as well
            if given.get("timezone") is None and dates == (None, None):
                self._local_triggers.append(trigger)

        @functools.wraps(original_create_trigger)
        def create_trigger(scheduler: Any, trigger: Any, arguments: Any) -> Any:
            has_own_timezone = bool(arguments.get("timezone"))
            found = original_create_trigger(scheduler, trigger, arguments)
            created = self._created_schedulers.get(id(scheduler))
            has_configured_timezone = (
                created is None or created.import_facts.has_configured_timezone
            )
            if found is not trigger and not has_own_timezone and not has_configured_timezone:
                self._local_triggers.append(found)
            return found

        def get_missing_next_run_time(job: Any, name: str) -> Any:
            """Return the next run that a job would have by now if its scheduler had started."""
            scheduler = job._scheduler if name == "next_run_time" else None  # noqa: SLF001
            created = self._created_schedulers.get(id(scheduler))
            if created is None or not created.import_facts.was_started:
                msg = f"'Job' object has no attribute {name!r}"
                raise AttributeError(msg)
            now = datetime.now(created.scheduler.timezone)
            return next(iter(find_upcoming_fire_times(job.trigger, None, now).times), None)

        BaseScheduler.__init__, BaseScheduler._configure = init, configure  # noqa: SLF001
        BaseScheduler._create_trigger = create_trigger  # noqa: SLF001
        CronTrigger.__init__ = init_trigger
        Job.__getattr__ = get_missing_next_run_time

    def uninstall(self) -> None:
        """Let schedulers start again that are created from now on."""
        BaseScheduler.__init__, BaseScheduler._configure = self._original_init_and_configure  # noqa: SLF001
        BaseScheduler._create_trigger = self._original_create_trigger  # noqa: SLF001
        CronTrigger.__init__ = self._original_cron_trigger_init
        del Job.__getattr__

    def created_schedulers(self) -> Sequence[tuple[Any, SchedulerImportFacts]]:
        """Return the schedulers that were created meanwhile, and what was seen of each."""
        triggers = tuple(self._local_triggers)
        return [
            (
                each.scheduler,
                replace(
                    each.import_facts,
                    local_triggers=triggers,
                    looked_up_job_ids=each.find_looked_up_job_ids(),
                ),
            )
            for each in self._created_schedulers.values()
        ]

    def _get_or_add_created(self, scheduler: Any) -> _CreatedScheduler:
        created = self._created_schedulers.get(id(scheduler))
        if created is None:
            created = self._created_schedulers[id(scheduler)] = _CreatedScheduler(
                scheduler, self._on_start
            )
            # On the object itself, so that no method of a class is called, its own ones included.
            scheduler.start, scheduler.shutdown = created.start, created.shutdown
        return created


class _CreatedScheduler:
    """A scheduler that does not start, and what is seen of it."""

    def __init__(self, scheduler: Any, on_start: Callable[[], None]) -> None:
        self.scheduler = scheduler
        self._on_start = on_start
        self._looked_up_ids: set[str] = set()
        self._ids_before_listing: set[str] | None = None
        self.import_facts = SchedulerImportFacts()

    def find_looked_up_job_ids(self) -> frozenset[str]:
        """Return which jobs were added after the application had looked for them."""
        before = self._ids_before_listing
        return frozenset(
            job_id
            for job_id in self._list_added_ids()
            if job_id in self._looked_up_ids or (before is not None and job_id not in before)
        )

    def _list_added_ids(self) -> set[str]:
        return {job.id for job, *_ in self.scheduler._pending_jobs}  # noqa: SLF001

    def _note_lookup(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def look_up(job_id: str, *args: Any, **kwargs: Any) -> Any:
            if job_id not in self._list_added_ids():
                self._looked_up_ids.add(job_id)
            return original(job_id, *args, **kwargs)

        return look_up

    def _note_listing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def list_or_remove(*args: Any, **kwargs: Any) -> Any:
            if self._ids_before_listing is None:
                self._ids_before_listing = self._list_added_ids()
            return original(*args, **kwargs)

        return list_or_remove

    def on_configured(self, config: Mapping[str, Any]) -> None:
        """Note how it is configured."""
        self.import_facts = replace(
            self.import_facts, has_configured_timezone=bool(config.get("timezone"))
        )

    def start(self, paused: bool = False, *_: Any, **__: Any) -> None:  # noqa: FBT001, FBT002
        """Stand in for its `start`."""
        self.import_facts = replace(self.import_facts, was_started=True, was_paused=bool(paused))
        # Only from now on: before, these would raise an error in a process that runs, too, and
        # those below would not see the jobs that are stored.
        scheduler = self.scheduler
        for name, method in {
            "pause": self.pause,
            "resume": self.resume,
            "wakeup": self.wakeup,
            "get_job": self._note_lookup(scheduler.get_job),
            "remove_job": self._note_lookup(scheduler.remove_job),
            "get_jobs": self._note_listing(scheduler.get_jobs),
            "remove_all_jobs": self._note_listing(scheduler.remove_all_jobs),
        }.items():
            setattr(scheduler, name, method)
        self._on_start()

    def pause(self) -> None:
        """Stand in for its `pause`."""
        self.import_facts = replace(self.import_facts, was_paused=True)

    def resume(self) -> None:
        """Stand in for its `resume`."""
        self.import_facts = replace(self.import_facts, was_paused=False)

    def wakeup(self) -> None:
        """Stand in for its `wakeup`."""

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Stand in for its `shutdown`, which would raise an error as it does not run."""
