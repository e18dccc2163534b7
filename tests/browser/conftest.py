"""One server with one browser for the tier; a page for each way to draw the nodes."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import sync_playwright
from runner.chromium import FLAGS, find_chromium

from .interface import Interface, opened

SHOTS = Path(__file__).resolve().parents[2] / ".artefacts" / "browser"


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


@pytest.fixture
def is_red_on_white(server):
    """Return a function that looks at a shown picture for a red shape on a white ground."""

    def look(address):
        picture_HW3 = np.asarray(Image.open(io.BytesIO(server.read(address))).convert("RGB")).astype(int)
        r, g, b = picture_HW3[..., 0], picture_HW3[..., 1], picture_HW3[..., 2]
        red, white = (r > 150) & (g < 100) & (b < 100), (r > 200) & (g > 200) & (b > 200)
        return red.mean() > 0.05 and white.mean() > 0.3

    return look
