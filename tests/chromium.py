"""Pages as a person's browser shows them: headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_WITHOUT_NETWORK = (
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-unsafe-swiftshader",  # WebGL without a graphics card
)


@contextmanager
def shown(
    path: Path,
    *,
    width: int = 1200,
    dark: bool = False,
    ready: str = "document.documentElement.dataset.drawn === 'yes'",
) -> Iterator[object]:
    """Open a page that is drawn; fail if it logs an error or asks for anything from a network.

    Args:
        path: Of the file.
        width: Of the window, in pixels.
        dark: Whether the system asks for dark pages.
        ready: What is true once the page is drawn, in JavaScript; a report page marks itself.
    """
    playwright = pytest.importorskip("playwright.sync_api")
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as start:
        chromium = start.chromium.launch(executable_path=browser, args=list(_WITHOUT_NETWORK))
        page = chromium.new_page(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
        )
        errors: list[str] = []
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "request",
            lambda r: (
                None if r.url.startswith(("file:", "data:", "blob:")) else errors.append(r.url)
            ),
        )
        page.goto(path.resolve().as_uri())
        page.wait_for_function(ready, timeout=120_000)
        yield page
        assert errors == []
        chromium.close()
