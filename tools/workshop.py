"""
What the targets of the Makefile share: uv, the Pythons of this machine, and environments.

Everything is made inside the checkout, in `.venv`, `.envs` and `build`. Standard library only.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import debian

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
ENVS = ROOT / ".envs"
BUILD = ROOT / "build"
PYPROJECT = ROOT / "pyproject.toml"

_BOOTSTRAP = ENVS / "uv"


class SetupError(Exception):
    """Something that is needed cannot be had; the message says it in one sentence."""


def stop(message: object) -> NoReturn:
    """End the program with a message and exit status 2."""
    print(message, file=sys.stderr)
    raise SystemExit(2)


if sys.version_info < (3, 10):  # noqa: UP036  # whoever has only an older one shall read this
    stop(
        f"python3 is {sys.version.split()[0]}, and 3.10 or newer is needed;"
        " name one that is, such as `make test PYTHON=python3.12`."
    )


def supported_versions() -> list[str]:
    """Return the Pythons that pyproject.toml promises, oldest first, such as ``3.10``."""
    return re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT.read_text("utf-8"))


def default_version() -> str:
    """Return the version of the Python that runs this."""
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def default_python() -> str:
    """Return the path of the Python that runs this, seen through an environment that is active."""
    if sys.prefix == sys.base_prefix:
        return sys.executable
    return str(Path(sys.base_prefix) / "bin" / f"python{default_version()}")


def find_pythons() -> dict[str, str]:
    """
    Return the Pythons of this machine to test with, by version.

    That is each supported one, on PATH or under pyenv, and whatever the default `python3` is.
    """
    found = {}
    for version in supported_versions():
        pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
        candidates = [
            shutil.which(f"python{version}"),
            *sorted(pyenv.glob(f"{version}.*/bin/python{version}"), reverse=True),
        ]
        for candidate in candidates:
            if candidate is not None and _version_of(str(candidate)) == version:
                found[version] = str(candidate)
                break
    return {**found, default_version(): default_python()}


def _version_of(python: str) -> str | None:
    """Return the version that an interpreter really is; pyenv's stand-ins may be nothing."""
    code = "import sys; print(*sys.version_info[:2], sep='.')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def environ(python: Path | None = None) -> dict[str, str]:
    """
    Return the variables for sub-processes.

    Args:
        python: interpreter of an environment, whose programs come first on PATH.
    """
    variables = {
        name: value
        for name, value in os.environ.items()
        # These make other code importable than the environment has.
        if name not in {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTEST_ADDOPTS"}
    }
    # Tests start hundreds of processes, each of which would compile all that it imports, where
    # bytecode is written nowhere. Here it is in nobody's way, and is still there the next time.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    variables["PYTHONPYCACHEPREFIX"] = str(ENVS / "bytecode")
    path = debian.search_path()
    variables["PATH"] = path if python is None else f"{python.parent}{os.pathsep}{path}"
    variables["UV_PYTHON_DOWNLOADS"] = "never"
    return variables


def uv(*arguments: str | Path) -> str:
    """
    Run uv, which is installed first if need be, and return what it printed.

    Raises:
        SetupError: it did not work.
    """
    command = [str(part) for part in (_uv(), *arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        print(done.stdout + done.stderr, file=sys.stderr)
        what = " ".join(command[1:3])
        msg = f"`uv {what}` failed; its words are above. Is a Python package index within reach?"
        raise SetupError(msg)
    return done.stdout


def _uv() -> Path:
    program = _BOOTSTRAP / "bin" / "uv"
    stamp = _BOOTSTRAP / ".complete"
    if stamp.exists() and _version_of(str(_BOOTSTRAP / "bin" / "python")):
        return program
    print("Installing uv into .envs/uv.", flush=True)
    shutil.rmtree(_BOOTSTRAP, ignore_errors=True)
    venv = [default_python(), "-m", "venv", str(_BOOTSTRAP)]
    python = _BOOTSTRAP / "bin" / "python"
    variables = environ()
    if _try(venv, variables) is not None:
        # Debian's python3 comes without ensurepip, and its python3-venv wants root. The wheel of
        # pip in this package does as well.
        why = _try([*venv, "--clear", "--without-pip"], variables)
        why = why or debian.unpack(["python3-pip-whl"])
        wheels = sorted(debian.UNPACKED.glob("usr/share/python-wheels/pip-*.whl"))
        if why is not None or not wheels:
            msg = (
                f"{default_python()} cannot make environments with pip ({why}):"
                " please install python3-venv (apt-get install python3-venv)."
            )
            raise SetupError(msg)
        variables["PYTHONPATH"] = str(wheels[-1])
    install = [python, "-m", "pip", "install", "--quiet", "--retries=2", "uv"]
    why = _try([str(part) for part in install], variables)
    if why is not None:
        msg = (
            f"pip cannot install uv ({why}): this needs a Python package index, directly or through"
            " pip's own configuration."
        )
        raise SetupError(msg)
    stamp.touch()
    return program


def _try(command: list[str], variables: dict[str, str]) -> str | None:
    """Run a command silently; return None, or in one line why it failed."""
    done = subprocess.run(
        command,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines
    return errors[-1] if errors else f"status {done.returncode}"


def make_env(directory: Path, python: str, *requirements: str | Path) -> Path:
    """
    Make an environment anew and return its interpreter.

    Args:
        directory: where to.
        python: interpreter to make it with.
        requirements: arguments for ``uv pip install``.
    """
    uv("venv", "--quiet", "--clear", "--python", python, directory)
    executable = directory / "bin" / "python"
    uv("pip", "install", "--quiet", "--python", executable, *requirements)
    return executable


def keep_env(directory: Path, checkout: str, *requirements: str) -> Path:
    """
    Return the interpreter of a lasting environment with this checkout in it, editable.

    It is made with the default Python, and again whenever pyproject.toml or that Python changes.

    Args:
        directory: where the environment is.
        checkout: ``.``, or with extras ``.[otlp]``.
        requirements: more arguments for ``uv pip install``.
    """
    requirements = ("--editable", checkout, *requirements)
    state = "\n".join((PYPROJECT.read_text("utf-8"), sys.version, default_python(), *requirements))
    key = hashlib.sha256(state.encode()).hexdigest()
    stamp = directory / ".made-for"
    python = directory / "bin" / "python"
    if not (stamp.exists() and stamp.read_text("utf-8") == key and python.exists()):
        print(f"Setting up {directory.relative_to(ROOT)}.", flush=True)
        make_env(directory, default_python(), *requirements)
        stamp.write_text(key, "utf-8")
    return python
