"""A headless Chromium without a network, for the pages that flatmin writes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """The browser; the test is skipped where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs chromium and chromedriver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (
        "--headless",
        "--no-sandbox",
        "--use-angle=swiftshader",
        "--enable-unsafe-swiftshader",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1280,900",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    running.execute_cdp_cmd("Network.enable", {})
    running.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    try:
        yield running
    finally:
        running.quit()


def media(browser: Any, scheme: str, kind: str = "screen") -> None:
    """Show pages as on a light or dark screen, or as printed."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": kind, "features": features})


def drawn(browser: Any, plot: str, section: str = ".section") -> list[str]:
    """The colours of the lines that a plot has drawn, in one part of the page."""
    return browser.execute_script(
        """return [...document.querySelector(arguments[0])
             .querySelectorAll(`${arguments[1]} .chart .line`)]
             .filter(line => line.getTotalLength() > 0)
             .map(line => getComputedStyle(line).stroke)""",
        section,
        plot,
    )


def tab_to(browser: Any, selector: str, steps: int = 30) -> Any:
    """Press Tab until something that fits is focused."""
    body = browser.find_element("css selector", "body")
    for _ in range(steps):
        body.send_keys("\ue004")
        focused = browser.switch_to.active_element
        if browser.execute_script("return arguments[0].matches(arguments[1])", focused, selector):
            return focused
    return pytest.fail(f"no {selector} within {steps} steps of the Tab key")
