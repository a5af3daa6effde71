"""A recorder with a clock that the test sets."""

from __future__ import annotations

import pytest

from tests.helpers.recorder_rig import RecorderRig


@pytest.fixture
def rig() -> RecorderRig:
    return RecorderRig()
