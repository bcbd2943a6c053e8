"""A real browser, and what it hears of a page's faults."""

import os
import shutil

import pytest

BROWSER = os.environ.get("REFMETA_BROWSER") or shutil.which("chromium")
WIDTHS, SCHEMES = [1400, 390], ["light", "dark"]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="a browser needs the extra docs")
    if not BROWSER:
        pytest.skip("needs Chromium (REFMETA_BROWSER names one)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a tab with these options; `heard` is its list of faults."""
    tabs = []

    def new(**options):
        tab = browser.new_page(**options)
        tab.heard = []
        tab.on("console", lambda m: m.type in ("error", "warning") and tab.heard.append(f"console: {m.text}"))
        tab.on("pageerror", lambda error: tab.heard.append(f"script: {error}"))
        tab.on("request", lambda r: r.url.startswith(("file:", "data:")) or tab.heard.append(f"network: {r.url}"))
        tab.on("requestfailed", lambda r: tab.heard.append(f"not found: {r.url}"))
        tabs.append(tab)
        return tab

    yield new
    for tab in tabs:
        tab.close()


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in SCHEMES], ids=lambda p: f"{p[0]}-{p[1]}")
def tab(opened, request):
    width, scheme = request.param
    return opened(viewport={"width": width, "height": 900}, color_scheme=scheme)
