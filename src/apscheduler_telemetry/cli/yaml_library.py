"""
PyYAML, which the commands for ``jobs.yml`` need, and ``doctor`` with addresses.
"""

from __future__ import annotations

from typing import Any

from apscheduler_telemetry.cli.errors import CommandError


def import_yaml() -> Any:
    """
    Return the module of PyYAML.

    Raises:
        CommandError: it is not installed; the message names the extra.
    """
    try:
        import yaml  # noqa: PLC0415  # optional
    except ImportError as error:
        msg = (
            "this command needs PyYAML, which is not installed. "
            "Run: pip install 'apscheduler-telemetry[expect]'"
        )
        raise CommandError(msg) from error
    return yaml
