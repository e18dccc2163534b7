"""A real ComfyUI, started for as long as a block lasts."""

import contextlib
import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .environment import clean_env
from .places import PACK, PROBE_NAME, VENV, python_of
from .stop import Stop

ADDRESS = "127.0.0.1"
USUAL_PORT = 8188
START_SECONDS = 240.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.2
_BLAME = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b.*")


@dataclass
class Server:
    """A running ComfyUI."""

    port: int
    log: Path
    process: subprocess.Popen

    @property
    def url(self) -> str:
        """Address to open in a browser."""
        return f"http://{ADDRESS}:{self.port}"

    def get(self, path: str, timeout: float = 60.0) -> Any:
        """Fetch a JSON answer."""
        return json.loads(self.read(path, timeout))

    def read(self, path: str, timeout: float = 60.0) -> bytes:
        """Fetch the bytes of an answer."""
        try:
            with _open(self.url + path, timeout) as answer:
                return answer.read()
        except OSError as error:
            self.check_alive("while working")
            raise Stop(f"ComfyUI at {self.url} did not answer {path} ({error}); see {self.log}, run again.") from error

    def check_alive(self, when: str) -> None:
        """Raise the sentence for a server that is gone."""
        code = self.process.poll()
        if code is not None:
            raise Stop(
                f"ComfyUI stopped {when} (exit code {code}{_last_words(self.log)}); "
                f"its log is {self.log}: read it, then run the same command again."
            )


def _open(address: str, timeout: float):
    # straight to this machine: a proxy that is set for the internet knows nothing of it
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=timeout)


def _last_words(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    blamed = [line.strip() for line in lines if _BLAME.match(line.strip())]
    return f": {blamed[-1][:200]}" if blamed else ""


def is_free(port: int) -> bool:
    """Tell whether nobody listens on the port."""
    with socket.socket() as probe:
        # as the server itself does it: a port whose last connections linger is free
        if os.name != "nt":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ADDRESS, port))
        except OSError:
            return False
    return True


def any_free_port() -> int:
    """Return a port that the system has just given us."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def choose_port(asked: int | None) -> int:
    """Return the asked port, or any free one; a taken port is a sentence."""
    if asked is None:
        return any_free_port()
    if not is_free(asked):
        raise Stop(f"Port {asked} is taken by another program; stop that one, or choose another with --port.")
    return asked


@contextlib.contextmanager
def running(
    comfyui: Path, base: Path, log: Path, *, port: int | None = None, packs: Sequence[str] = (PACK, PROBE_NAME)
) -> Iterator[Server]:
    """Start ComfyUI on the CPU with only our packs, wait until it answers, stop it at the end."""
    port = choose_port(port)
    command = [
        python_of(VENV), comfyui / "main.py", "--cpu", "--listen", ADDRESS, "--port", port, "--disable-auto-launch",
        "--disable-api-nodes", "--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs,
        "--base-directory", base, "--preview-method", "latent2rgb",
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=clean_env(),
            cwd=comfyui,
            # Ctrl-C goes to us alone; we stop the server in order
            start_new_session=True,
        )
    server = Server(port, log, process)
    try:
        _wait_until_ready(server, base)
        yield server
    finally:
        _stop(process)


def _wait_until_ready(server: Server, base: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        server.check_alive("while starting")
        with contextlib.suppress(OSError, ValueError):
            with _open(f"{server.url}/system_stats", 5.0) as answer:
                arguments = json.load(answer)["system"].get("argv", [])
            with _open(f"{server.url}/object_info", 60.0) as answer:
                answer.read()
            if str(base) in arguments:
                return
        time.sleep(POLL_SECONDS)
    raise Stop(f"ComfyUI did not answer on {server.url} in {START_SECONDS:.0f} s; see {server.log}, then run again.")


def _stop(process: subprocess.Popen) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
