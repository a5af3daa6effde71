"""
Draw the dashboards into docs/images, from a live Prometheus: ``draw.py [--url URL] [--seconds N]``.

Panels are drawn by Grafana's own published components (@grafana/ui and @grafana/data of
package.json) in headless Chromium, so that units, mappings, overrides, transformations, tables,
numbers and lines look as Grafana makes them. It is not Grafana: the page around them, the bands of
state timelines and the heatmap are drawn by main.jsx.

Needs node, npm and Chromium (Debian package chromium), and Pillow to make the files small.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from scene import ROOT, scene

sys.path.insert(0, str(ROOT))

from tests.helpers import grafana_queries
from tests.helpers.servers import Prometheus

HERE = Path(__file__).parent
BUILD = ROOT / "build" / "pictures"
IMAGES = ROOT / "docs" / "images"
WIDTH = 1366
COLORS = 256  # of the palette: they look the same as all colors, and the files are smaller
CHOSEN = {
    "overview": {},
    "job": {"application": "billing", "scheduler": "background", "job_id": "pull-rates"},
    "scheduler": {"application": ["shop"]},
}
LINKS = {
    "overview": "Scheduler  Runs",
    "job": "Overview  Scheduler  Runs",
    "scheduler": "Overview  Runs",
}
DAY = 86_400


def bundle() -> Path:
    """Return what esbuild makes of main.jsx and Grafana's components."""
    BUILD.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json", "main.jsx"):
        shutil.copy(HERE / name, BUILD / name)
    if not (BUILD / "node_modules").exists():
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--legacy-peer-deps", "--no-audit", "--no-fund"],
            cwd=BUILD,
            check=True,
        )
    options = ["--bundle", "--outfile=bundle.js", "--log-level=error"]
    options += [f"--loader:.{kind}=dataurl" for kind in ("svg", "woff", "woff2", "ttf")]
    options += ['--define:process.env.NODE_ENV="production"', "--define:global=window"]
    # Their CommonJS builds: those of ES modules import others in a way that only works elsewhere.
    for name in ("data", "ui"):
        options.append(f"--alias:@grafana/{name}=./node_modules/@grafana/{name}/dist/cjs/index.cjs")
    subprocess.run(["npx", "esbuild", "main.jsx", *options], cwd=BUILD, check=True)
    return BUILD / "bundle.js"


def time_range(panel: Any, seconds: float, end: float) -> tuple[float, float]:
    """Return the length and the end of a panel's time range; its days are those of UTC."""
    if "timeFrom" not in panel:
        return seconds, end
    midnight = end // DAY * DAY
    return (DAY, midnight) if "timeShift" in panel else (end - midnight, end)


def answers(server: Prometheus, dashboard: Any, chosen: Any, seconds: float, end: float) -> Any:
    """Return what each query of each panel answers."""
    model = grafana_queries.variables(dashboard)
    found: dict[int, dict[str, Any]] = {}
    for panel, target in grafana_queries.queries(dashboard):
        length, until = time_range(panel, seconds, end)
        span = grafana_queries.Range(length, points=panel["gridPos"]["w"] * WIDTH // 24 // 4)
        values = {name: chosen.get(name, [grafana_queries.ALL]) for name in model}
        query = grafana_queries.fill(target["expr"], model, values, span.values(panel))
        if target.get("instant"):
            series = server.api("query", query=query, time=str(until))["result"]
            series = [{"metric": s["metric"], "values": [s["value"]]} for s in series]
        else:
            step = span.interval(panel)
            series = server.api(
                "query_range",
                query=query,
                start=str((until - length) // step * step),
                end=str(until),
                step=str(step),
            )["result"]
        found.setdefault(panel["id"], {})[target["refId"]] = series
    return found


def page(script: Path, values: dict[str, Any], height: int, picture: Path) -> None:
    """Draw a page in Chromium."""
    html = script.parent / f"{picture.stem}.html"
    text = json.dumps(values).replace("</", "<\\/")
    html.write_text(
        "<!doctype html><meta charset=utf-8><link rel=stylesheet href=bundle.css>"
        "<div id=root></div>"
        f"<script>window.DATA = {text}</script>"
        f"<script src={script.name}></script>",
        encoding="utf-8",
    )
    chromium = shutil.which("chromium") or "chromium-browser"
    with tempfile.TemporaryDirectory(prefix="chromium-") as profile:
        subprocess.run(
            [
                chromium,
                *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *("--no-first-run", "--disable-background-networking", "--disable-sync"),
                *("--disable-quic", "--disable-component-update"),
                *("--allow-file-access-from-files", f"--user-data-dir={profile}"),
                *("--virtual-time-budget=8000", "--force-device-scale-factor=1"),
                f"--window-size={WIDTH},{height}",
                f"--screenshot={picture}",
                html.as_uri(),
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(picture, optimize=True)


@contextlib.contextmanager
def prometheus(url: str | None, seconds: float) -> Iterator[str]:
    """Yield the address of the Prometheus to ask."""
    if url:
        yield url
    else:
        with scene(seconds * 0.8) as address:
            time.sleep(seconds * 0.2)
            yield address


def main() -> int:
    """Draw all, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("--url", help="of a Prometheus that watches such a scene already")
    parser.add_argument("--seconds", type=float, default=600, help="the time range")
    parser.add_argument("--light", action="store_true", help="on a light page, as NAME-light.png")
    parser.add_argument("--only", choices=CHOSEN)
    options = parser.parse_args()
    script = bundle()
    IMAGES.mkdir(exist_ok=True)
    with prometheus(options.url, options.seconds) as url:
        end = time.time()
        for name, chosen in CHOSEN.items():
            if options.only not in {None, name}:
                continue
            dashboard = grafana_queries.load(name)
            model = grafana_queries.variables(dashboard)
            height = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in dashboard["panels"])
            picture = (BUILD if options.light else IMAGES) / f"{name}.png"
            page(
                script,
                {
                    "dashboard": dashboard,
                    "results": answers(Prometheus(url), dashboard, chosen, options.seconds, end),
                    "range": {"from": end - options.seconds, "to": end},
                    "dark": not options.light,
                    "links": LINKS[name],
                    "chosen": [
                        (
                            variable.get("label", key),
                            "Prometheus"
                            if key == "datasource"
                            else " + ".join(
                                [chosen[key]] if isinstance(chosen[key], str) else chosen[key]
                            )
                            if key in chosen
                            else "All",
                        )
                        for key, variable in model.items()
                    ],
                },
                height * 38 + 105,
                picture,
            )
            print(f"{picture}: {picture.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
