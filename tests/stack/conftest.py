"""The stack of `docker-compose.yml`, for all its tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.helpers.compose_stack import compose


@pytest.fixture(scope="session")
def resolved() -> dict[str, Any]:
    """Return the stack as Compose understands it."""
    done = compose("config", "--format", "json")
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document
