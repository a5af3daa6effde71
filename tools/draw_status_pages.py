"""
Draw the status page into docs/images: ``draw_status_pages.py [SECONDS]``.

The pages are those of the demo's application, except for "Next 24 hours": the jobs of the demo run
every few seconds, so that page is of some nightly jobs, which are made here.

Needs this package with the extra ``status``, playwright, Pillow and Chromium.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from PIL import Image
from playwright.sync_api import sync_playwright

from apscheduler_telemetry import instrument

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PORT = 9486
COLORS = 160
DEMO = (
    ("status", "/", 1400, 760, "light"),
    ("status-job", "/job?job_id=pull-rates", 1400, 760, "dark"),
    ("status-narrow", "/", 380, 760, "dark"),
)
NIGHTLY = (("status-upcoming", "/upcoming", 1400, 830, "light"),)
"""For each: its name, the path, width and height of the window, and the colour scheme."""


Picture = tuple[str, str, int, int, str]


def draw(address: str, pictures: tuple[Picture, ...]) -> None:
    """Draw some pictures of an application."""
    with sync_playwright() as library:
        browser = library.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, path, width, height, scheme in pictures:
            size = {"width": width, "height": height}
            page = browser.new_context(viewport=size, color_scheme=scheme).new_page()
            page.goto(f"{address}{path}")
            image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            picture = IMAGES / f"{name}.png"
            image.quantize(COLORS, dither=Image.Dither.NONE).save(picture, optimize=True)
            print(f"{picture.relative_to(ROOT)}: {picture.stat().st_size} bytes")
        browser.close()


def main(seconds: float = 90) -> None:
    """Run the application for some seconds, and draw its pages."""
    application = ROOT / "examples" / "demo" / "app.py"
    with tempfile.TemporaryDirectory(prefix="status-") as directory:
        command = [sys.executable, str(application), directory, str(PORT)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            time.sleep(seconds)
            draw(f"http://127.0.0.1:{PORT}", DEMO)
        finally:
            process.terminate()
            process.wait()
    draw_nightly_jobs()


def draw_nightly_jobs() -> None:
    """Draw what is due in an application with more jobs at two o'clock than workers."""
    scheduler = BackgroundScheduler(
        executors={"default": ThreadPoolExecutor(3)}, timezone="Europe/Berlin"
    )
    telemetry = instrument(scheduler, name="nightly")
    every_night = {"trigger": "cron", "func": time.time, "misfire_grace_time": 3600}
    for job in ("backup-database", "import-orders", "rebuild-index", "send-invoices"):
        scheduler.add_job(id=job, hour=2, **every_night)
    scheduler.add_job(id="sync-stock", hour="*/6", minute="*/15", **every_night)
    scheduler.add_job(id="morning-report", hour=6, minute=15, **every_night)
    scheduler.start()
    try:
        with telemetry.start_http_server(PORT) as server:
            draw(server.url, NIGHTLY)
    finally:
        scheduler.shutdown()


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
