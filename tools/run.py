"""
Run a script of this checkout in an environment that is set up first: ``run.py GROUP SCRIPT``.

GROUP is a dependency group of pyproject.toml. The script takes this process's place, so that
signals reach it and its exit status is what the caller gets.
"""

from __future__ import annotations

import os
import sys

import debian
from workshop import ENVS, ROOT, SetupError, environ, keep_env, stop


def main(group: str, script: str, *arguments: str) -> None:
    """Set up, then become the script."""
    try:
        python = keep_env(ENVS / group, ".", "--group", group)
    except SetupError as error:
        stop(error)
    if not debian.provide(["prometheus", "prometheus-alertmanager"]):
        print(f"Going on without; {script} says what it cannot show.")
    if group == "bench" and not debian.provide(debian.PROFILERS):
        print("Going on without; benchmarks then go by clocks instead of instructions.")
    sys.stdout.flush()
    command = [str(python), str(ROOT / script), *arguments]
    os.execve(python, command, environ(python))  # noqa: S606  # no shell is wanted


if __name__ == "__main__":
    main(*sys.argv[1:])
