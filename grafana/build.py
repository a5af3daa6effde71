"""
Write the dashboards: ``build.py`` writes them, ``build.py --check`` only compares.

Needs the dependency group ``grafana`` of pyproject.toml. Its versions are pinned, so that the same
sources always produce the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any

# Grafana 10 to 13 all import the classic model. The package warns that there is a newer one, which
# only the latest versions accept.
warnings.filterwarnings("ignore", "Prefer using", DeprecationWarning)

from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402

import job  # noqa: E402
import overview  # noqa: E402
import runs  # noqa: E402
import scheduler  # noqa: E402

DASHBOARDS = Path(__file__).parent / "dashboards"
PAGES = {
    "overview": overview.build,
    "job": job.build,
    "scheduler": scheduler.build,
    "runs": runs.build,
}


def render(dashboard: Any) -> str:
    """Return the text of a dashboard's file."""
    model = json.loads(json.dumps(dashboard, cls=JSONEncoder))
    model["id"] = None  # the encoder omits it, and some importers require it
    return json.dumps(model, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> int:
    """Write or compare, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if they differ")
    check = parser.parse_args().check
    stale = []
    for name, build in PAGES.items():
        path = DASHBOARDS / f"{name}.json"
        text = render(build())
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not check:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
    unknown = sorted(path.name for path in DASHBOARDS.glob("*.json") if path.stem not in PAGES)
    if unknown:
        print(f"Not built by grafana/build.py: {', '.join(unknown)}.", file=sys.stderr)
        return 1
    if check and stale:
        print(
            f"Not up to date: {', '.join(stale)}. Run `python grafana/build.py`.", file=sys.stderr
        )
        return 1
    print(f"{len(PAGES)} dashboards, {len(stale)} written.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
