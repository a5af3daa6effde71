"""
Draw the dashboards into docs/images, from what two live applications do: ``draw.py [--seconds N]``.

Panels are drawn by Grafana's own published components (@grafana/ui and @grafana/data of
package.json) in headless Chromium, so that units, mappings, overrides, transformations, tables,
numbers and lines look as Grafana makes them. It is not Grafana: the page around them, the bands of
state timelines and the heatmap are drawn by main.jsx. There is no Loki and no Tempo, so single runs
are the records that the applications send, with the fields that records.py says.

Needs node, npm and Chromium (Debian package chromium), and Pillow to make the files small.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zoneinfo
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from scene import ROOT, Scene, scene

import records  # isort: skip  # after the scene, which finds tests
from tests.helpers import grafana_queries
from tests.helpers.servers import Prometheus

HERE = Path(__file__).parent
BUILD = ROOT / "build" / "pictures"
IMAGES = ROOT / "docs" / "images"
WIDTHS = {"overview": 1366, "job": 1366, "scheduler": 1366, "runs": 1430}
"""Of the window; that of the runs shows whole columns."""
COLORS = 256  # of the palette: they look the same as all colors, and the files are smaller
CHOSEN = {
    "overview": {},
    "job": {"application": "billing", "scheduler": "background", "job_id": "pull-rates"},
    "scheduler": {"application": ["shop"]},
    "runs": {},
}
LINKS = {
    "overview": "Scheduler  Runs",
    "job": "Overview  Scheduler  Runs",
    "scheduler": "Overview  Runs",
    "runs": "Overview  Scheduler",
}
SOURCES = {"datasource": "Prometheus", "logs": "Loki", "traces": "Tempo"}
DAY = 86_400


def bundle() -> None:
    """Make bundle.js of main.jsx and Grafana's components."""
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


@dataclass(frozen=True)
class Times:
    """The time range of all dashboards, in seconds, and the time zone of their days."""

    seconds: float
    end: float
    zone: str

    def of(self, panel: Any) -> tuple[float, float]:
        """Return the length and the end of a panel's time range."""
        if "timeFrom" not in panel:
            return self.seconds, self.end
        today = midnight(self.zone, self.end)
        return (DAY, today) if "timeShift" in panel else (self.end - today, self.end)


def time_zone(begin: float, end: float) -> str:
    """Return a time zone in which a day begins between two times; UTC if there is none."""
    for name in sorted(zoneinfo.available_timezones()):
        if "/" in name and begin < midnight(name, end):
            return name
    return "UTC"


def midnight(zone: str, end: float) -> float:
    """Return the last begin of a day."""
    day = datetime.fromtimestamp(end, zoneinfo.ZoneInfo(zone))
    return day.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()


def answers(asked: Scene, name: str, times: Times) -> Any:
    """Return what each query of each panel of a dashboard answers."""
    dashboard = grafana_queries.load(name)
    server = Prometheus(asked.prometheus)
    model = grafana_queries.variables(dashboard)
    values = {key: CHOSEN[name].get(key, [grafana_queries.ALL]) for key in model}
    found: dict[int, dict[str, Any]] = {}
    for panel, target in grafana_queries.queries(dashboard):
        length, until = times.of(panel)
        span = grafana_queries.Range(length, points=panel["gridPos"]["w"] * WIDTHS[name] // 24 // 4)
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
    for source, key, read in (
        ("loki", "expr", records.from_loki),
        ("tempo", "query", records.from_tempo),
    ):
        for panel, target in grafana_queries.queries_of(source, dashboard):
            query = grafana_queries.fill(target[key], model, values, {})
            frame = read(asked.received, target, query, (times.end - times.seconds, times.end))
            found.setdefault(panel["id"], {})[target["refId"]] = frame
    return found


def ask(asked: Scene, seconds: float, end: float) -> None:
    """Write the page of each dashboard, with what its queries answer."""
    # So that both days have runs, if a zone has its midnight in this hour or half hour.
    times = Times(seconds, end, time_zone(end - 2 * seconds + 60, end - 60))
    for name, chosen in CHOSEN.items():
        dashboard = grafana_queries.load(name)
        values = {
            "dashboard": dashboard,
            "results": answers(asked, name, times),
            "range": {"from": end - seconds, "to": end},
            "zone": times.zone,
            "width": WIDTHS[name],
            "links": LINKS[name],
            "chosen": [
                (variable.get("label", key), SOURCES.get(key) or shown(chosen.get(key, "All")))
                for key, variable in grafana_queries.variables(dashboard).items()
            ],
        }
        text = json.dumps(values).replace("</", "<\\/")
        (BUILD / f"{name}.html").write_text(
            "<!doctype html><meta charset=utf-8><link rel=stylesheet href=bundle.css>"
            "<div id=root></div>"
            f"<script>window.DATA = {text}</script>"
            "<script src=bundle.js></script>",
            encoding="utf-8",
        )


def shown(chosen: str | list[str]) -> str:
    """Return the text of a variable that has these values."""
    return chosen if isinstance(chosen, str) else " + ".join(chosen)


def draw(name: str, picture: Path, *, light: bool) -> None:
    """Draw the page of a dashboard in Chromium."""
    panels = grafana_queries.load(name)["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * 38 + 105
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
                f"--window-size={WIDTHS[name]},{height}",
                f"--screenshot={picture}",
                f"{(BUILD / name).as_uri()}.html{'#light' if light else ''}",
            ],
            check=True,
            capture_output=True,
            timeout=120,
        )
    with Image.open(picture) as image:
        image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(picture, optimize=True)


def main() -> int:
    """Draw all, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument(
        "--seconds",
        type=float,
        default=360,
        help="the time range of the dashboards; the applications run twice as long",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="start nothing, and draw the answers of the last time again",
    )
    parser.add_argument("--light", action="store_true", help="on a light page, as NAME-light.png")
    parser.add_argument("--only", choices=CHOSEN)
    options = parser.parse_args()
    bundle()
    if not options.again:
        with scene(options.seconds * 1.8) as asked:
            time.sleep(options.seconds * 0.2)
            ask(asked, options.seconds, time.time())
    for name in [options.only] if options.only else CHOSEN:
        picture = BUILD / f"{name}-light.png" if options.light else IMAGES / f"{name}.png"
        draw(name, picture, light=options.light)
        print(f"{picture}: {picture.stat().st_size // 1000} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
