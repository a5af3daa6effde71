"""
What the runs of each job link to, and where that is kept across restarts.

Each run links to where its job was added; a run whose time the user set links to where that was
done, too. APScheduler's job stores have no place for it, and what they pickle is left alone: where
it is to outlive the process, the application gives a mapping of its own.
"""

from __future__ import annotations

import atexit
import json
import threading
import time
import weakref
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

from apscheduler_telemetry.adapters.apscheduler3.background_worker import Aside
from apscheduler_telemetry.core.observers import Guard, renew_lock_after_fork
from apscheduler_telemetry.core.recorder import NEVER, Entry

COMPONENT = "spans"

FLUSH_SECONDS = 1.0
"""How long the end of the process may wait for what is to be kept: a local file takes a moment."""


class Origins(Protocol):
    """What knows how to tell where something happens."""

    def current(self, reason: str) -> Any:
        """Return where we are, None if that is nowhere; `reason` is why a run links to it."""

    def dump(self, origin: Any) -> Mapping[str, str]:
        """Return `origin` as texts."""

    def load(self, reason: str, texts: Mapping[str, str]) -> Any:
        """Return what was dumped."""


class Links:
    """
    Finds, keeps and finds again what runs link to.

    Args:
        origins: what knows where we are.
        store: where it is kept across restarts, None for nowhere.
        aside: does the writing.
        guard: counts what fails.
    """

    def __init__(
        self,
        origins: Origins,
        store: MutableMapping[str, str] | None,
        aside: Aside,
        guard: Guard,
    ) -> None:
        self._origins = origins
        self._store = store
        self._aside = aside
        self._guard = guard
        self._pending: dict[str, Any] = {}
        self._idle = threading.Event()
        self._unwritten = 0
        self._lock = threading.RLock()
        if store is not None:
            _all.add(self)
            renew_lock_after_fork(self)

    def pending(self, job_id: str) -> None:
        """Note where a job was added that enters its store when the scheduler starts."""
        self._pending[job_id] = self._current("added")

    def started(self) -> None:
        """Note that no job is pending any more."""
        self._pending.clear()

    def added(self, entry: Entry) -> None:
        """Note where a job was added, or replaced."""
        job_id = entry.key[1]
        pending = job_id in self._pending
        _set(entry, self._pending.pop(job_id) if pending else self._current("added"), None)
        self._keep(entry)

    def pushed(self, entry: Entry) -> None:
        """Note where the next run of a job was set; only that run links to it."""
        _set(entry, entry.link, None if entry.promise is None else self._current("triggered"))
        self._keep(entry)

    def went_on(self, entry: Entry) -> None:
        """Note that the run whose time was set has come."""
        _set(entry, entry.link, None)
        self._keep(entry)

    def removed(self, entry: Entry) -> None:
        """Keep nothing of a job that is gone."""
        _set(entry, None, None)
        self._keep(entry)

    def recall(self, entry: Entry) -> None:
        """Find what was kept of a job, by a former process or another one."""
        if self._store is None or not entry.info.persistent:
            return
        try:
            kept = self._store.get(_key(entry))
            if kept is None:
                return
            what = json.loads(kept)
            link = push = None
            if "added" in what:
                link = self._origins.load("added", what["added"])
            if "triggered" in what and what["due"] == entry.promise:
                push = self._origins.load("triggered", what["triggered"])
            _set(entry, link or entry.link, push)
        except Exception:  # noqa: BLE001  # whatever is in there, and whoever wrote it
            self._guard.failed(COMPONENT)

    def flush(self, timeout: float) -> None:
        """Wait until what is to be kept is written, for so many seconds at most."""
        with self._lock:
            if not self._unwritten:
                return
            self._idle.clear()
        self._idle.wait(timeout)

    def _current(self, reason: str) -> Any:
        try:
            return self._origins.current(reason)
        except Exception:  # noqa: BLE001
            self._guard.failed(COMPONENT)
            return None

    def _keep(self, entry: Entry) -> None:
        """Write what there is of a job, aside; a job in memory is not kept, and neither is this."""
        store = self._store
        if store is None or not entry.info.persistent:
            return
        what: dict[str, Any] = {}
        try:
            if entry.link is not None:
                what["added"] = self._origins.dump(entry.link)
            if entry.push is not None:
                what |= {"triggered": self._origins.dump(entry.push), "due": entry.promise}
        except Exception:  # noqa: BLE001
            self._guard.failed(COMPONENT)
        key, value = _key(entry), json.dumps(what) if what else None

        def write() -> None:
            try:
                if value is None:
                    store.pop(key, None)
                else:
                    store[key] = value
            finally:
                with self._lock:
                    self._unwritten -= 1
                    if not self._unwritten:
                        self._idle.set()

        with self._lock:
            self._unwritten += 1
        self._aside.do(COMPONENT, write)


def _set(entry: Entry, link: Any, push: Any) -> None:
    entry.link, entry.push = link, push
    entry.steady_until = NEVER  # what pushed it is to be forgotten with its run
    entry.links = tuple(origin for origin in (link, push) if origin is not None)


def _key(entry: Entry) -> str:
    return json.dumps(entry.key)


def _flush_all() -> None:
    deadline = time.monotonic() + FLUSH_SECONDS
    for links in list(_all):
        links.flush(max(0.0, deadline - time.monotonic()))


_all: weakref.WeakSet[Links] = weakref.WeakSet()
atexit.register(_flush_all)
