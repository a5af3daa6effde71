"""
The files for other programs that the package contains: rules, dashboards and the runbook.
"""

from __future__ import annotations

from pathlib import Path


def find_shipped_directory() -> Path:
    """Return the directory that has ``alerts``, ``docs`` and ``grafana``."""
    package = Path(__file__).parent.parent
    root = package / "_exported"
    # In an editable install, the files are where they are in the repository.
    return root if root.is_dir() else package.parent.parent
