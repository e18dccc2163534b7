"""Run a helper program quietly, with its words kept in a log."""

import subprocess
import time
from collections.abc import Sequence

from .places import HOST
from .stop import Stop, disk_full, say

LOG = HOST / "setup.log"
LIFE_SIGN_SECONDS = 10.0
POLL_SECONDS = 0.1

_FULL = ("no space left on device", "os error 28", "errno 28", "disk quota exceeded")
_UNREACHABLE = (
    "connection", "connect error", "dns error", "error sending request", "failed to fetch", "max retries exceeded",
    "name resolution", "name or service not known", "timed out", "tls", "ssl",
)  # fmt: skip


def explain(what: str, output: str) -> Stop:
    """Turn what a failed program wrote into the sentence that fits."""
    text = output.lower()
    if any(word in text for word in _FULL):
        return disk_full(HOST.parent)
    if any(word in text for word in _UNREACHABLE):
        return Stop(
            f"{what} failed because the Python package index cannot be reached; check the network, the proxy or "
            f"PIP_INDEX_URL, then run the same command again (details: {LOG})."
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    return Stop(f"{what} failed ({last}); see {LOG}, then run the same command again.")


def quietly(what: str, command: Sequence[object], env: dict[str, str]) -> None:
    """Run a program; say every few seconds that it still works, raise Stop when it fails."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    with LOG.open("a+", encoding="utf-8", errors="replace") as log:
        print(f"\n$ {' '.join(map(str, command))}", file=log, flush=True)
        begin = log.tell()
        started = reported = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                if time.monotonic() - reported > LIFE_SIGN_SECONDS:
                    reported = time.monotonic()
                    say(f"   ... {what} ({reported - started:.0f} s)")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode != 0:
            log.seek(begin)
            raise explain(what, log.read())
