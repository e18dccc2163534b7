"""The tiers of tests, each a few programs that must succeed."""

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from .chromium import make_chromium
from .environment import clean_env
from .frontends import FRONTENDS, make_frontend
from .places import ROOT
from .stop import Stop, say

TOGETHER = ("unit", "property", "golden", "guard", "demo_world", "setup")
"""Tiers without a ComfyUI in the process share one pytest; the others need a process each."""
TIERS = ("lint", *TOGETHER, "host", "distributed", "server", "browser")
EXTENDED = ("unit", "host", "server", "browser")
"""Tiers that run again in the extended tests, with the tests marked so, on the ComfyUI that COMFYUI_PATH names."""
LINT = (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",))


@dataclass
class Count:
    name: str
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0


def run_tiers(comfyui: Path, chosen: Sequence[str]) -> int:
    """Run the chosen tiers in their order, print the sum as the last line."""
    env = clean_env() | {"COMFYUI_PATH": str(comfyui)}
    if "browser" in chosen:
        _browser()
    shared = [tier for tier in TOGETHER if tier in chosen]
    alone = [[tier] for tier in TIERS if tier in chosen and tier not in (*TOGETHER, "lint")]
    with ThreadPoolExecutor() as beside:  # lint and the fast tests keep one core each
        lint = beside.submit(_lint, env) if "lint" in chosen else None
        counts = [_pytest(shared, env)] if shared else []
        counts = [lint.result(), *counts] if lint else counts
    counts += [_pytest(group, env) for group in alone]
    return report(counts)


def run_extended(comfyui: Path) -> int:
    """Run what takes long or needs a newer ComfyUI; print which one it was, then the sum."""
    env = clean_env() | {"COMFYUI_PATH": str(comfyui)}
    make_chromium()
    say(f"ComfyUI {_version_of(comfyui)} in {comfyui}")
    counts = [_pytest([tier], env, "-m", "") for tier in EXTENDED]
    for version in FRONTENDS:
        count = _pytest(["browser"], env | {"COMFYUI_FRONTEND": str(make_frontend(version))})
        count.name = f"browser, frontend {version}"
        counts.append(count)
    return report(counts)


def _version_of(comfyui: Path) -> str:
    text = (comfyui / "comfyui_version.py").read_text(encoding="utf-8")
    commit = subprocess.run(["git", "-C", comfyui, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    version = text.partition('"')[2].partition('"')[0]
    inside = (comfyui / ".git").exists() and commit.returncode == 0
    return f"{version}, commit {commit.stdout.strip()}" if inside else version


def _browser() -> None:
    """Install a browser where that is possible; where it is not, its own tier fails with the reason."""
    try:
        make_chromium()
    except Stop as stop:
        say(f"browser: {stop}")


def _lint(env: dict[str, str]) -> Count:
    count, started = Count("lint"), time.monotonic()
    for tool, *arguments in LINT:
        command = [sys.executable, "-m", tool, *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, check=False, capture_output=True, text=True)
        say(f"$ {' '.join((tool, *arguments))}\n{done.stdout}{done.stderr}".rstrip())
        count.passed += done.returncode == 0
        count.failed += done.returncode != 0
    count.seconds = time.monotonic() - started
    return count


def _pytest(tiers: list[str], env: dict[str, str], *options: str) -> Count:
    folders = [f"tests/{tier}" for tier in tiers if any((ROOT / "tests" / tier).rglob("test_*.py"))]
    if not folders:
        say(f"no tests yet in: {', '.join(tiers)}")
        return Count(" ".join(tiers))
    started = time.monotonic()
    say(f"$ pytest {' '.join(folders)}")
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--durations=3", f"--junitxml={result}", *options, *folders]
        code = subprocess.run(command, cwd=ROOT, env=env, check=False).returncode
        count = read_result(" ".join(tiers), result, code)
    count.seconds = time.monotonic() - started
    return count


def read_result(name: str, result: Path, code: int) -> Count:
    """Count what pytest wrote; a run that broke off, or that ran nothing, has failed."""
    count = Count(name)
    if result.exists():
        for suite in ElementTree.parse(result).getroot().iter("testsuite"):
            bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
            skipped = int(suite.get("skipped", 0))
            count.failed += bad
            count.skipped += skipped
            count.passed += int(suite.get("tests", 0)) - bad - skipped
    if code != 0 and count.failed == 0:
        count.failed = 1
    return count


def report(counts: Sequence[Count]) -> int:
    """Print a table of the tiers, then the sum; return the exit code."""
    strict = os.environ.get("CI", "").lower() in ("1", "true")
    print()
    for count in counts:
        if strict and count.skipped:
            say(f"{count.name}: {count.skipped} skipped, which counts as failed in CI")
            count.failed, count.skipped = count.failed + count.skipped, 0
        skipped = f", {count.skipped} skipped" if count.skipped else ""
        say(f"{count.name:40} {count.seconds:6.1f} s  {count.passed} ok, {count.failed} not ok{skipped}")
    passed, failed = sum(c.passed for c in counts), sum(c.failed for c in counts)
    say(f"{passed} passed, {failed} failed")
    return int(failed > 0 or passed == 0)
