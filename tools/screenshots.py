"""Makes the README's pictures of the playground: start the server, then

.venv/bin/python tools/screenshots.py http://127.0.0.1:8000 docs/images
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

NUM_COLOURS = 256
DESKTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


def main(url: str, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=arguments
        )
        page = opened(browser, url, viewport=DESKTOP, color_scheme="light")
        page.get_by_role("button", name="Ask", exact=True).click()
        page.locator("#answer").wait_for()
        save(page, folder / "playground-ask.png")
        page = opened(browser, url, viewport=DESKTOP, color_scheme="dark")
        page.locator("#examples button").last.click()
        sweep(page)
        save(page, folder / "playground-sweep.png")
        page = opened(browser, url, viewport=PHONE, color_scheme="light", device_scale_factor=2)
        page.get_by_role("button", name="Compare").click()
        page.locator("#verdict").wait_for()
        page.wait_for_timeout(800)
        save(page, folder / "playground-phone.png")
        browser.close()


def opened(browser: Browser, url: str, **options: Any) -> Page:
    page = browser.new_context(**options).new_page()
    page.goto(url)
    page.locator("#saved").wait_for()
    return page


def sweep(page: Page) -> None:
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Sweep").click()
    page.locator("#sweep-table tr.picked").wait_for(timeout=60_000)


def save(page: Page, path: Path) -> None:
    """8 bits a pixel."""
    page.mouse.move(2, 2)
    page.wait_for_timeout(300)
    with Image.open(io.BytesIO(page.screenshot())) as shot:
        reduced = shot.convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
        reduced.save(path, "PNG", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
