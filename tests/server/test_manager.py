"""The real ComfyUI-Manager installs the pack from a git address, then takes it away."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runner.places import PACK, ROOT
from runner.server import FOLDERS, any_free_port, running


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Return the address of a git server on this machine that has the last commit."""
    folder, port = tmp_path_factory.mktemp("served"), any_free_port()
    subprocess.run(["git", "clone", "-q", "--bare", ROOT, folder / f"{PACK}.git"], check=True)
    daemon = ["git", "daemon", f"--base-path={folder}", "--export-all", "--listen=127.0.0.1", f"--port={port}"]
    url = f"git://127.0.0.1:{port}/{PACK}.git"
    with subprocess.Popen(daemon, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(100):
                if subprocess.run(["git", "ls-remote", url], capture_output=True).returncode == 0:
                    break
                time.sleep(0.1)
            else:
                pytest.fail("git daemon did not answer within 10 s; it is part of git")
            yield url
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def host(comfyui, tmp_path_factory):
    """Return a copy of ComfyUI without packs: the manager knows no other place for them than inside of it."""
    folder = tmp_path_factory.mktemp("managed") / "ComfyUI"
    theirs = shutil.ignore_patterns(".git", "custom_nodes", "input", "models", "output", "temp", "user")
    shutil.copytree(comfyui, folder, ignore=lambda at, names: theirs(at, names) if Path(at) == comfyui else ())
    for name in FOLDERS:
        (folder / name).mkdir(parents=True)
    return folder


def manager(host, *arguments):
    """Return what the manager says."""
    env = {**os.environ, "COMFYUI_PATH": str(host), "HOME": str(host.parent)}
    command = [sys.executable, "-m", "cm_cli", *arguments, "--mode", "local"]
    done = subprocess.run(command, env=env, cwd=host, capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


def test_it_is_installed_found_by_comfyui_removed(address, host, tmp_path):
    pack, log = host / "custom_nodes" / PACK, tmp_path / "comfyui.log"
    assert "[INSTALLED]" in (said := manager(host, "install", address)), said
    with running(host, host, log, packs=[PACK]) as server:
        found = server.get("/object_info").values()
    ours = {node["name"] for node in found if node["python_module"] == f"custom_nodes.{PACK}"}
    assert "TeEFusionConditioning" in ours and "DistillTrainer" in ours
    text = log.read_text(encoding="utf-8")
    assert "IMPORT FAILED" not in text and "Traceback" not in text
    assert "[UNINSTALLED]" in (said := manager(host, "uninstall", f"{PACK}@unknown")), said
    assert not pack.exists()
