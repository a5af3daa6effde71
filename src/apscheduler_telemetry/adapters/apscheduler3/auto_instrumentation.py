"""
Calls back for every APScheduler 3 scheduler of the process: those that run, and later ones.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

from apscheduler.schedulers.base import STATE_STOPPED, BaseScheduler


class APScheduler3AutomaticInstrumentation:
    """Patches the start of all schedulers; see `AutomaticInstrumentation` in `adapters.base`."""

    def __init__(self) -> None:
        self._on_scheduler_start: Callable[[Any], None] | None = None
        self._original: Any = None
        self._replacement: Any = None

    def install(self, on_scheduler_start: Callable[[Any], None]) -> None:
        """Call back with each scheduler that runs already, and that is started later."""
        self._on_scheduler_start = on_scheduler_start
        self._original = original = BaseScheduler.start

        @functools.wraps(original)
        def start(scheduler: Any, *args: Any, **kwargs: Any) -> Any:
            # Unless this stays after `uninstall`, as another tool has wrapped it.
            if self._on_scheduler_start is not None:
                self._on_scheduler_start(scheduler)
            return original(scheduler, *args, **kwargs)

        # Every scheduler of APScheduler 3 calls this, whatever its own start() does.
        self._replacement = BaseScheduler.start = start
        # By type(), as isinstance() would wake lazy objects that only pretend to be something.
        for scheduler in [o for o in gc.get_objects() if issubclass(type(o), BaseScheduler)]:
            if getattr(scheduler, "state", STATE_STOPPED) != STATE_STOPPED:
                on_scheduler_start(scheduler)

    def uninstall(self) -> None:
        """Stop calling back."""
        self._on_scheduler_start = None
        if vars(BaseScheduler).get("start") is self._replacement:
            BaseScheduler.start = self._original
