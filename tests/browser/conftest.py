"""One server with one browser for the tier; a page for each way to draw the nodes."""

import contextlib
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright
from runner.chromium import find_chromium

from .interface import Interface, opened

SHOTS = Path(__file__).resolve().parents[2] / ".artefacts" / "browser"
FLAGS = [
    "--no-sandbox",  # containers run as root
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-gpu",  # a graphics card that a CPU imitates draws the canvas twenty times slower
]


@pytest.fixture(scope="session")
def browser():
    """Return a running Chromium; where there is none, every test of the tier fails with the reason."""
    program = find_chromium()
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def open_page(browser, server):
    """Return a function that opens ComfyUI in a page with some settings of the interface."""
    SHOTS.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as pages:
        yield lambda **settings: pages.enter_context(opened(browser, server, SHOTS, settings))


@pytest.fixture(scope="session")
def classic_page(open_page):
    """Return a page whose nodes are drawn on the canvas."""
    return open_page()


@pytest.fixture(scope="session")
def vue_page(open_page):
    """Return a page whose nodes are drawn as elements, `Nodes 2.0`."""
    return open_page(**{"Comfy.VueNodes.Enabled": True})


@pytest.fixture
def ui(classic_page) -> Interface:
    """Return the classic page with an empty canvas; what went wrong in it during the test fails the test."""
    with classic_page.watched():
        yield classic_page


@pytest.fixture(params=["classic", "vue"])
def each_ui(request) -> Interface:
    """Return both pages in turn, as `ui`."""
    page = request.getfixturevalue(f"{request.param}_page")
    with page.watched():
        yield page
