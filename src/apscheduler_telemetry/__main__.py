"""
``python -m apscheduler_telemetry``: the command ``apscheduler-telemetry``.
"""

from __future__ import annotations

import sys

from apscheduler_telemetry.cli import main

if __name__ == "__main__":
    sys.exit(main())
