"""
Keeps schedulers from starting, and notes what an application does with them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from apscheduler.schedulers.base import BaseScheduler
from apscheduler.triggers.cron import CronTrigger

from apscheduler_telemetry.adapters.base import ImportFacts


class PreventedStarts:
    """
    Keeps schedulers of APScheduler 3 from starting; see `StartPrevention`.

    Those that are created meanwhile never start, also not later, in the threads and the functions
    for the end of the process that their application has registered.
    """

    def __init__(self) -> None:
        self._created: dict[int, _CreatedScheduler] = {}
        self._local_triggers: list[Any] = []
        self._originals = BaseScheduler.__init__, BaseScheduler._configure  # noqa: SLF001
        self._original_trigger_init = CronTrigger.__init__

    def install(self) -> None:
        """Let no scheduler start that is created from now on."""
        original_init, original_configure = self._originals
        original_trigger_init = self._original_trigger_init
        parameters = inspect.signature(original_trigger_init)

        @functools.wraps(original_init)
        def init(scheduler: Any, *args: Any, **kwargs: Any) -> None:
            self._add(scheduler)
            original_init(scheduler, *args, **kwargs)

        @functools.wraps(original_configure)
        def configure(scheduler: Any, config: Any) -> None:
            self._add(scheduler).on_configured(config)
            original_configure(scheduler, config)

        @functools.wraps(original_trigger_init)
        def init_trigger(trigger: Any, *args: Any, **kwargs: Any) -> None:
            original_trigger_init(trigger, *args, **kwargs)
            given = parameters.bind(trigger, *args, **kwargs).arguments
            dates = given.get("start_date"), given.get("end_date")  # whose zone is taken as well
            if given.get("timezone") is None and dates == (None, None):
                self._local_triggers.append(trigger)

        BaseScheduler.__init__, BaseScheduler._configure = init, configure  # noqa: SLF001
        CronTrigger.__init__ = init_trigger

    def uninstall(self) -> None:
        """Let schedulers start again that are created from now on."""
        BaseScheduler.__init__, BaseScheduler._configure = self._originals  # noqa: SLF001
        CronTrigger.__init__ = self._original_trigger_init

    def created_schedulers(self) -> Sequence[tuple[Any, ImportFacts]]:
        """Return the schedulers that were created meanwhile, and what was seen of each."""
        triggers = tuple(self._local_triggers)
        return [
            (each.scheduler, replace(each.facts, local_triggers=triggers))
            for each in self._created.values()
        ]

    def _add(self, scheduler: Any) -> _CreatedScheduler:
        created = self._created.get(id(scheduler))
        if created is None:
            created = self._created[id(scheduler)] = _CreatedScheduler(scheduler)
            # On the object itself, so that no method of a class is called, its own ones included.
            scheduler.start, scheduler.shutdown = created.start, created.shutdown
        return created


class _CreatedScheduler:
    """A scheduler that does not start, and what is seen of it."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.facts = ImportFacts()

    def on_configured(self, config: Mapping[str, Any]) -> None:
        """Note how it is configured."""
        self.facts = replace(self.facts, has_timezone=bool(config.get("timezone")))

    def start(self, paused: bool = False, *_: Any, **__: Any) -> None:  # noqa: FBT001, FBT002
        """Stand in for its `start`."""
        self.facts = replace(self.facts, was_started=True, was_paused=bool(paused))

    def shutdown(self, *_: Any, **__: Any) -> None:
        """Stand in for its `shutdown`, which would raise an error as it does not run."""
