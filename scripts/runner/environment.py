"""The private Python environment, .venv/."""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from .commands import quietly
from .places import CACHE, LOCK_FILE, ROOT, VENV, python_of
from .stop import Stop, say

STAMP = ".teefusion-stamp"
"""Written last, inside the folder: a folder without the expected stamp counts as not made."""
UV_VERSION = "0.13.8"
NEEDED_GB = 8.0
"""The CUDA builds of torch take 5.3 GB; uv holds archives while it unpacks them."""


def stamped(folder: Path, stamp: str) -> bool:
    """Tell whether the folder was finished from exactly these inputs."""
    try:
        return (folder / STAMP).read_text(encoding="utf-8") == stamp
    except OSError:
        return False


@contextlib.contextmanager
def fresh(folder: Path, stamp: str) -> Iterator[Path]:
    """Give a sibling to fill; when the block ends well it becomes the folder.

    A run that is killed leaves only the sibling, which the next run clears away.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    # named after us: a helper that outlived a killed run may still write into that run's sibling
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    old = folder.with_name(folder.name + ".old")
    _clear(folder)
    try:
        yield partial
        (partial / STAMP).write_text(stamp, encoding="utf-8")
        if folder.exists():
            os.replace(folder, old)
        os.replace(partial, folder)
    finally:
        _clear(folder)


def _clear(folder: Path) -> None:
    for leftover in [*folder.parent.glob(f"{folder.name}.partial*"), *folder.parent.glob(f"{folder.name}.old")]:
        shutil.rmtree(leftover, ignore_errors=True)


def base_python() -> str:
    """Return the interpreter outside any virtual environment: the one that has pip."""
    return getattr(sys, "_base_executable", None) or sys.executable


def clean_env() -> dict[str, str]:
    """Return the environment of helper programs: the user's, less what points into other environments.

    Nor does a helper of a test count as a test: some packs bring no nodes under pytest.
    """
    foreign = ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTEST_CURRENT_TEST")
    env = {k: v for k, v in os.environ.items() if k not in foreign}
    env["PYTHONNOUSERSITE"] = "1"
    return env


def run_pip(what: str, *arguments: object) -> None:
    """Run pip of the base interpreter; its settings (index, proxy, certificates) are the user's."""
    if importlib.util.find_spec("pip") is None and base_python() == sys.executable:
        raise Stop("This Python has no pip; install it (on Debian: apt install python3-pip), then run again.")
    quietly(
        what, [base_python(), "-m", "pip", *arguments, "--disable-pip-version-check", "--retries", "2"], clean_env()
    )


def uv_program() -> Path:
    """Return uv of the pinned version, installed with pip into its own folder when it is missing."""
    folder = CACHE / "uv"
    if not stamped(folder, UV_VERSION):
        with fresh(folder, UV_VERSION) as partial:
            run_pip("Installing uv", "install", "--target", partial, "--no-deps", f"uv=={UV_VERSION}")
    return folder / "bin" / ("uv.exe" if os.name == "nt" else "uv")


def _uv_env() -> dict[str, str]:
    env = clean_env() | {"UV_PYTHON_DOWNLOADS": "never"}
    # a mirror that was set for pip alone serves uv as well
    if "PIP_INDEX_URL" in env:
        env.setdefault("UV_DEFAULT_INDEX", env["PIP_INDEX_URL"])
    return env


def environment_stamp(extra_requirements: Path | None) -> str:
    """Return what the environment was made from, as a short text."""
    text = LOCK_FILE.read_text(encoding="utf-8")
    if extra_requirements and extra_requirements.is_file():
        text += extra_requirements.read_text(encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def environment_ready(stamp: str) -> bool:
    """Tell whether .venv/ is finished, current, and its interpreter still there."""
    return stamped(VENV, stamp) and python_of(VENV).exists()


def make_environment(extra_requirements: Path | None) -> None:
    """Build .venv/ beside itself, then put it in place; what a ComfyUI that is not ours needs comes after our pins."""
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < NEEDED_GB:
        raise Stop(
            f"The disk that holds {ROOT} has {free:.1f} GB free, set-up needs {NEEDED_GB:.0f} GB; "
            "free some space, then run the same command again."
        )
    say("set-up 1/2: the Python environment .venv (about 30 s to 5 min, by the network)")
    uv, env = uv_program(), _uv_env()
    with fresh(VENV, environment_stamp(extra_requirements)) as partial:
        create = [uv, "venv", partial, "--python", base_python(), "--relocatable", "--prompt", "teefusion"]
        quietly("Making the Python environment", create, env)
        install = [uv, "pip", "install", "--python", python_of(partial)]
        quietly("Installing the packages", [*install, "--requirement", LOCK_FILE], env)
        if extra_requirements is not None:
            quietly("Installing what your ComfyUI needs", [*install, "--requirement", extra_requirements], env)
