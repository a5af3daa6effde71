"""
Keeps telemetry's own failures away from jobs: counts them, logs each kind once, goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from apscheduler_telemetry.core.model import Outcome, RunError, RunObserver, RunView

logger = logging.getLogger("apscheduler_telemetry")

COMPONENTS = (
    "adapter",
    "collector",
    "grace",
    "http",
    "job_label",
    "max_duration",
    "meter",
    "multiprocess",
    "owner",
    "schedule",
    "severity",
    "spans",
)
"""The ``component`` label of ``apscheduler_telemetry_errors_total``; each exists at 0."""


class Guard:
    """Counts what fails inside telemetry, and logs the first failure of each component."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counts = dict.fromkeys(COMPONENTS, 0)
        renew_lock_after_fork(self)

    def failed(self, component: str) -> None:
        """Note a failure of `component`; to be called where its exception is being handled."""
        self._count(component, exc_info=True)

    def noted(self, component: str, what: str) -> None:
        """Note a failure of `component` that came to light elsewhere, as in a pool's worker."""
        self._count(component, what)

    def _count(self, component: str, what: str = "see below", *, exc_info: bool = False) -> None:
        with self._lock:
            first = not self._counts.get(component)
            self._counts[component] = self._counts.get(component, 0) + 1
        if first:
            logger.error(
                "apscheduler-telemetry failed in its component %r (%s); jobs and scheduler are "
                "not affected. Further failures of it are not logged, only counted in "
                "apscheduler_telemetry_errors_total",
                component,
                what,
                exc_info=exc_info,
            )

    def counts(self) -> Mapping[str, int]:
        """Return how often each component failed."""
        with self._lock:
            return dict(self._counts)


class Pipeline:
    """
    Passes runs on to observers, none of which can harm the job or another observer.

    What the first one enters is around the others: they leave in the opposite order.

    Attributes:
        is_followed: whether any observer had something to do when that was last looked at. If none
            has, a run costs less.
        is_settled: whether that is so for good, and need not be looked at again.
    """

    def __init__(self, guard: Guard, observers: Iterable[RunObserver] = ()) -> None:
        self._guard = guard
        self.observers = tuple(observers)
        self.look()

    def look(self) -> None:
        """See whether runs from now on are followed by anybody."""
        is_followed, is_settled = False, True
        for observer in self.observers:
            try:
                is_awake = observer.is_awake()
            except Exception:  # noqa: BLE001  # the next calls will say so
                self._guard.failed(observer.component)
                is_awake = True
            if is_awake:
                is_followed = is_settled = True
                break
            if is_awake is not None:
                is_settled = False
        self.is_followed, self.is_settled = is_followed, is_settled

    def enter(self, run: RunView) -> None:
        for observer in self.observers:
            try:
                observer.enter(run)
            except Exception:  # noqa: BLE001, PERF203  # each observer on its own
                self._guard.failed(observer.component)

    def leave(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:
        for observer in reversed(self.observers):
            try:
                observer.leave(run, outcome, error)
            except Exception:  # noqa: BLE001, PERF203
                self._guard.failed(observer.component)

    def settle(self, run: RunView, outcome: Outcome, error: RunError | None) -> None:
        for observer in self.observers:
            try:
                observer.settle(run, outcome, error)
            except Exception:  # noqa: BLE001, PERF203
                self._guard.failed(observer.component)

    def carry(self, run: RunView) -> Mapping[str, str] | None:
        carrier: dict[str, str] = {}
        for observer in self.observers:
            try:
                carrier.update(observer.carry(run) or {})
            except Exception:  # noqa: BLE001, PERF203
                self._guard.failed(observer.component)
        return carrier or None


def renew_lock_after_fork(owner: Any) -> None:
    """
    Give `owner` a fresh ``_lock`` in every forked child.

    A reentrant one, as its thread may be interrupted by the handler of a signal, or by a
    ``__del__``, that shuts the scheduler down or scrapes.

    A fork copies a lock in the state it has; one that another thread held at that moment would
    stay held in the child for ever, and a scrape of the child would hang.
    """
    _owners.add(owner)


def _renew_locks() -> None:
    for owner in list(_owners):
        owner._lock = threading.RLock()  # noqa: SLF001  # ours


_owners: weakref.WeakSet[Any] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_renew_locks)
