"""Jobs for process pools. Spawned children import this module, so it imports little."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

WAIT_TIMEOUT = 60.0
"""Seconds after which a test, or a job that waits for one, has waited too long."""


def nothing() -> None:
    """Do nothing, fast."""


def give_back(value: Any) -> Any:
    """Return what was passed."""
    return value


def fail(message: str = "as asked") -> NoReturn:
    """Raise a `ValueError`."""
    raise ValueError(message)


def fail_with_cause() -> NoReturn:
    """Raise an exception because of another."""
    try:
        fail()
    except ValueError as error:
        raise LookupError("because of it") from error


def fail_with_context() -> NoReturn:
    """Raise an exception while another is being handled."""
    try:
        fail()
    except ValueError:
        raise LookupError("meanwhile")  # noqa: B904  # that is the point


def throw(name: str) -> NoReturn:
    """Raise the exception with this name, which may be a `BaseException`."""
    raise {
        "BaseException": BaseException,
        "GeneratorExit": GeneratorExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "SystemExit": SystemExit,
    }[name](name)


def nap(seconds: float) -> float:
    """Sleep, and return the number of seconds."""
    time.sleep(seconds)
    return seconds


def nap_and_fail(seconds: float) -> NoReturn:
    """Sleep, then raise."""
    time.sleep(seconds)
    fail()


def kill_me() -> None:
    """Be killed, as the kernel does when it is out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def result_without_pickle() -> Callable[[], None]:
    """Return something that cannot be pickled."""
    return lambda: None


class UnloadableError(Exception):
    """An exception that can be pickled, but not unpickled."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


def fail_without_unpickle() -> NoReturn:
    """Raise an exception that the parent cannot unpickle."""
    raise UnloadableError(7, "no way home")


def announce(directory: str, name: str) -> None:
    """Create a file that says that the job has come to this point."""
    Path(directory, name).touch()


def hold(directory: str, name: str = "gate") -> int:
    """Announce in `directory` that the job runs; wait for its release; return the process id."""
    announce(directory, f"{name}.in")
    deadline = time.monotonic() + WAIT_TIMEOUT
    while not Path(directory, f"{name}.out").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.005)
    return os.getpid()


def die_when_let_go(directory: str, name: str) -> None:
    """Wait for the release in `directory`, then kill this process."""
    hold(directory, name)
    kill_me()


def lose_the_first(directory: str) -> Any:
    """Of two concurrent runs, return a result that cannot be pickled from the first."""
    try:
        Path(directory, "first.in").touch(exist_ok=False)
    except FileExistsError:
        return hold(directory, "second")
    hold(directory, "first")
    return result_without_pickle()
