"""Faults that tests cause: an exception, a job store that fails, a file that cannot be opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from apscheduler.jobstores.memory import MemoryJobStore


class Boom(Exception):  # noqa: N818  # short, as many tests raise it
    """An exception that tests raise on purpose."""


class FaultyStore(MemoryJobStore):
    """A memory store whose methods fail if their names are in `faults`."""

    def __init__(self) -> None:
        super().__init__()
        self.faults: set[str] = set()
        self.calls: list[str] = []

    def _pass(self, method: str) -> None:
        self.calls.append(method)
        if method in self.faults:
            raise Boom(method)

    def get_due_jobs(self, now: datetime) -> Any:
        self._pass("get_due_jobs")
        return super().get_due_jobs(now)

    def get_next_run_time(self) -> Any:
        self._pass("get_next_run_time")
        return super().get_next_run_time()

    def update_job(self, job: Any) -> None:
        self._pass("update_job")
        super().update_job(job)

    def remove_job(self, job_id: str) -> None:
        self._pass("remove_job")
        super().remove_job(job_id)

    def lookup_job(self, job_id: str) -> Any:
        self._pass("lookup_job")
        return super().lookup_job(job_id)

    def get_all_jobs(self) -> Any:
        self._pass("get_all_jobs")
        return super().get_all_jobs()


def raise_boom(*_: Any, **__: Any) -> Any:
    """Raise `Boom`."""
    raise Boom("on purpose")


def iterate_to_boom(*_: Any, **__: Any) -> Iterator[Any]:
    """Raise `Boom` when the result is iterated over."""
    return map(raise_boom, [None])


@contextmanager
def failing_open(path: Path, code: int) -> Iterator[None]:
    """Let `os.open` of one file fail, with an error number that tells nothing about the file."""
    open_file = os.open

    def fail(opened: Any, *args: Any, **kwargs: Any) -> int:
        if opened == path:
            raise OSError(code, os.strerror(code), str(path))
        return open_file(opened, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", fail)
        yield
