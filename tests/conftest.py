"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# Real schedulers run inside properties, on machines that are busy: slow is not wrong.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
