"""
The directory of multiprocess mode, from the environment.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from apscheduler_telemetry.core.file_locks import trying_to_lock_directory
from apscheduler_telemetry.errors import ArgumentValueError

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""The name in lower case is read as well, as prometheus_client does."""


def read_directory_variable() -> str | None:
    """Return the value of the environment variable, None if it is not set."""
    return os.environ.get(DIRECTORY_VARIABLE, os.environ.get(DIRECTORY_VARIABLE.lower()))


def find_multiprocess_directory() -> Path | None:
    """
    Return the directory of multiprocess mode, None if that mode is off.

    Raises:
        ArgumentValueError: the directory cannot be used.
    """
    value = read_directory_variable()
    if value is None:
        return None
    problem = _find_directory_problem(value)
    if problem is None:
        return Path(value)
    msg = (
        f"{DIRECTORY_VARIABLE} is {value!r}, but metrics cannot be stored there: {problem}. Set it "
        "to a directory on a local file system that this process can write to and that is empty "
        "when the application starts; or unset it if one process serves all metrics"
    )
    raise ArgumentValueError(msg)


def _find_directory_problem(directory: str) -> str | None:
    if os.name == "nt":
        return "Windows has no flock()"
    if not directory or not Path(directory).is_dir():
        return "this is not an existing directory"
    try:
        with tempfile.TemporaryFile(dir=directory), trying_to_lock_directory(Path(directory)):
            pass
    except OSError as error:
        return error.strerror or str(error)
    return None
