"""How long a new user waits: the demo from a fresh clone with an empty home folder, then a second run."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from runner.places import ROOT
from runner.stop import Stop, say

COMMAND = ["python3", "scripts/demo.py"]
KEPT = ("PATH", "LANG", "SSL_CERT_FILE", "SSL_CERT_DIR")
"""Variables of this shell that the new user has too; settings of pip and uv are also kept, by prefix."""
KEPT_PREFIXES = ("PIP_", "UV_")


def measure() -> dict[str, Any]:
    """Return seconds of both runs, with the table that the second one printed."""
    git, python = shutil.which("git"), shutil.which("python3", path=_path_outside())
    if git is None or python is None:
        raise Stop("This benchmark needs git and a python3 outside of its environment; install them.")
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder) / "clone", Path(folder) / "home"
        home.mkdir()
        subprocess.run([git, "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {k: v for k, v in os.environ.items() if k in KEPT or k.startswith(KEPT_PREFIXES)}
        environment |= {"HOME": str(home), "PATH": _path_outside(), "UV_CACHE_DIR": str(home / "uv")}
        runs = [_run([python, *COMMAND[1:]], clone, environment) for _ in range(2)]
    (first, _), (second, output) = runs
    lines = output.strip().splitlines()
    start = max(index for index, line in enumerate(lines) if line.startswith("method"))
    return {"first_seconds": round(first, 1), "second_seconds": round(second, 1), "printed": lines[start : start + 6]}


def _path_outside() -> str:
    """The search path without the environment that this bench itself runs in."""
    inside = str(ROOT / ".venv")
    return os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not p.startswith(inside))


def _run(command: list[str], clone: Path, environment: dict[str, str]) -> tuple[float, str]:
    start = time.monotonic()
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    say(f"exit code {done.returncode} after {seconds:.0f} s")
    if done.returncode:
        raise Stop(f"The demo failed in a fresh clone: {done.stderr.strip()[-500:]} Fix it, then measure again.")
    return seconds, done.stdout


def table(result: dict[str, Any]) -> list[list[str]]:
    return [
        ["run", "seconds"],
        ["first, from a fresh clone (set-up included)", f"{result['first_seconds']:.0f}"],
        ["every later one", f"{result['second_seconds']:.0f}"],
    ]
