"""Paths in this checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout. Programs that import `tests` run there."""
APPLICATIONS = ROOT / "tests" / "applications"
"""Programs that tests start in processes of their own."""
