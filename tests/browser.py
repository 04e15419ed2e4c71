"""A real browser: Debian's chromium and chromium-driver, without which its tests are skipped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
NEEDS_BROWSER = [
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="chromium and chromium-driver are not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # selenium's pipes to the driver
]


@contextmanager
def open_browser(folder: Path) -> Iterator[webdriver.Chrome]:
    """Yields a browser whose profile lies in a folder, and ends it."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        f"--user-data-dir={folder}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = webdriver.Chrome(options, Service(DRIVER))
    try:
        yield started
    finally:
        started.quit()
