"""
Draw the status page of the demo's application into docs/images: ``draw_status_pages.py [SECONDS]``.

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

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
PORT = 9486
COLORS = 160
PICTURES = (
    ("status", "/", 1400, 760, "light"),
    ("status-job", "/job?job_id=pull-rates", 1400, 760, "dark"),
    ("status-narrow", "/", 380, 760, "dark"),
)
"""For each: its name, the path, width and height of the window, and the colour scheme."""


def draw(address: str) -> None:
    """Draw all pictures."""
    with sync_playwright() as library:
        browser = library.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for name, path, width, height, scheme in PICTURES:
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
            draw(f"http://127.0.0.1:{PORT}")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
