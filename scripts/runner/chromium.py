"""The browser that tests drive: found, or installed where that is ours to do."""

import os
import shutil
from pathlib import Path

from .commands import LOG, quietly
from .environment import clean_env
from .stop import Stop, say

NAMES = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "fonts-wqy-zenhei")
"""The browser with a font that has Chinese letters, else pictures of Chinese pages show boxes."""
FLAGS = [
    "--no-sandbox",  # containers run as root
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-gpu",  # a graphics card that a CPU imitates draws the canvas twenty times slower
]


def find_chromium() -> Path:
    """Return the browser that CHROMIUM names, else the first on the path; raise Stop if neither exists."""
    named = os.environ.get("CHROMIUM", "").strip()
    if named and not Path(named).is_file():
        raise Stop(f"CHROMIUM is {named}, where no program is; point it at Chromium or Chrome, or unset it.")
    found = named or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise Stop(
            f"No browser is on the path ({', '.join(NAMES)}); install Chromium (on Debian: apt-get install chromium) "
            "or name a program in CHROMIUM, then run the same command again."
        )
    return Path(found)


def make_chromium() -> None:
    """Install Debian's Chromium when there is no browser and we are root; else leave that to the user."""
    try:
        find_chromium()
    except Stop:
        if not hasattr(os, "geteuid") or os.geteuid() or shutil.which("apt-get") is None:
            raise
        _install()


def _install() -> None:
    say("set-up: Chromium for the browser tests (about a minute)")
    env = clean_env() | {"DEBIAN_FRONTEND": "noninteractive"}
    try:
        quietly("Reading the list of packages", ["apt-get", "update"], env)
        quietly("Installing Chromium", ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES], env)
    except Stop as stop:
        raise Stop(f"Chromium could not be installed: see {LOG}, then run again.") from stop
