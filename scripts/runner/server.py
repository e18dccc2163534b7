"""A real ComfyUI, started for as long as a block lasts, in a folder of ours for its models, pictures, settings."""

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
from .places import PACK, PROBE, PROBE_NAME, ROOT, VENV, python_of
from .stop import Stop

FOLDERS = ("custom_nodes", "models/loras", "input", "output", "temp", "user")
ADDRESS = "127.0.0.1"
USUAL_PORT = 8188
LAST_PORT = 65535
START_SECONDS = 240.0
STOP_SECONDS = 15.0
POLL_SECONDS = 0.2
_BLAME = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b.*")


@dataclass
class Server:
    port: int
    log: Path
    process: subprocess.Popen

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.port}"

    def get(self, path: str, timeout: float = 60.0) -> Any:
        return json.loads(self.read(path, timeout))

    def read(self, path: str, timeout: float = 60.0) -> bytes:
        try:
            with _open(self.url + path, timeout) as answer:
                return answer.read()
        except OSError as error:
            self.check_alive("while working")
            raise Stop(f"ComfyUI at {self.url} did not answer {path} ({error}); see {self.log}, run again.") from error

    def check_alive(self, when: str) -> None:
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
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return probe.getsockname()[1]


def choose_port(asked: int | None) -> int:
    """Return the asked port, or any free one; a taken or impossible port is a sentence."""
    if asked is None:
        return any_free_port()
    if not 1 <= asked <= LAST_PORT:
        raise Stop(f"There is no port {asked}; choose one from 1 to {LAST_PORT} with --port.")
    if not is_free(asked):
        raise Stop(f"Port {asked} is taken by another program; stop that one, or choose another with --port.")
    return asked


def make_base(folder: Path, *, probe: bool = True, pack: Path = ROOT) -> Path:
    """Make a base directory with this pack linked into its custom_nodes."""
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)
    link_folder(folder / "custom_nodes" / PACK, pack)
    if probe:
        link_folder(folder / "custom_nodes" / PROBE_NAME, PROBE)
    return folder


def link_folder(link: Path, target: Path) -> None:
    if link.is_symlink():
        if os.readlink(link) == str(target):
            return
        link.unlink()
    elif link.exists():
        raise Stop(f"{link} is in the way of a link to {target}; move it elsewhere, then run the same command again.")
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError as error:
        raise Stop(
            f"Cannot link {target} into {link.parent} ({error.strerror}); allow symbolic links there."
        ) from error


@contextlib.contextmanager
def running(
    comfyui: Path,
    base: Path,
    log: Path,
    *,
    port: int | None = None,
    packs: Sequence[str] = (PACK, PROBE_NAME),
    frontend: str | None = None,
    packages: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """Start ComfyUI on the CPU with only the named packs, wait until it answers, stop it at the end.

    `packages` is a folder of Python packages that other packs need; `options` are more options of ComfyUI.
    """
    port = choose_port(port)
    command = [
        python_of(VENV), comfyui / "main.py", "--cpu", "--listen", ADDRESS, "--port", port, "--disable-auto-launch",
        "--disable-api-nodes", "--disable-all-custom-nodes", "--whitelist-custom-nodes", *packs,
        "--base-directory", base, "--preview-method", "latent2rgb",
        *(("--front-end-root", frontend) if frontend else ()), *options,
    ]  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        # in a new session, so that Ctrl-C reaches only this process, which then stops the server properly
        process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            env=clean_env() | ({"PYTHONPATH": str(packages)} if packages else {}), cwd=comfyui, start_new_session=True,
        )  # fmt: skip
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
