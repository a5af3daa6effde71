"""
Jobs for processes of a pool. A spawned child imports this module, so it stays light.
"""

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
    """Raise the exception that is called `name`, `BaseException` and its like included."""
    raise {
        "BaseException": BaseException,
        "GeneratorExit": GeneratorExit,
        "KeyboardInterrupt": KeyboardInterrupt,
        "SystemExit": SystemExit,
    }[name](name)


def nap(seconds: float) -> float:
    """Sleep, and return for how long."""
    time.sleep(seconds)
    return seconds


def nap_and_fail(seconds: float) -> NoReturn:
    """Sleep, then raise."""
    time.sleep(seconds)
    fail()


def kill_me() -> None:
    """Die as a process dies that the kernel runs out of memory for."""
    os.kill(os.getpid(), signal.SIGKILL)


def result_without_pickle() -> Callable[[], None]:
    """Return something that cannot be pickled."""
    return lambda: None


class UnloadableError(Exception):
    """An exception that can be pickled and not unpickled, as its arguments are not its text."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


def fail_without_unpickle() -> NoReturn:
    """Raise what the parent cannot load."""
    raise UnloadableError(7, "no way home")


def announce(directory: str, name: str) -> None:
    """Let the test see that the job has come here."""
    Path(directory, name).touch()


def hold(directory: str, name: str = "gate") -> int:
    """Say in `directory` that the job runs, and go on when it is let go; return the process id."""
    announce(directory, f"{name}.in")
    deadline = time.monotonic() + WAIT_TIMEOUT
    while not Path(directory, f"{name}.out").exists():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.005)
    return os.getpid()


def die_when_let_go(directory: str, name: str) -> None:
    """Wait in `directory`, then die."""
    hold(directory, name)
    kill_me()


def lose_the_first(directory: str) -> Any:
    """Of two runs at a time, return from the first what cannot be pickled."""
    try:
        Path(directory, "first.in").touch(exist_ok=False)
    except FileExistsError:
        return hold(directory, "second")
    hold(directory, "first")
    return result_without_pickle()
