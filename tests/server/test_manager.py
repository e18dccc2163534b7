"""The real ComfyUI-Manager installs the pack from a git address, updates it, takes it away."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runner.client import pictures, run_prompt
from runner.comparison import WORKFLOW, read_workflow
from runner.graph import find, to_prompt
from runner.places import PACK, ROOT
from runner.server import FOLDERS, any_free_port, running

NEWER = "0.1.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return the folder of the git server."""
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def address(folder):
    """Return the address of a git server on this machine that has the last commit."""
    port = any_free_port()
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


def release(folder, work, version):
    """Publish a commit whose only change is the version."""
    subprocess.run(["git", "clone", "-q", folder / f"{PACK}.git", work], check=True)
    project = work / "pyproject.toml"
    changed, count = re.subn(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text(encoding="utf-8"))
    assert count == 1
    project.write_text(changed, encoding="utf-8")
    author = ["-c", "user.name=tests", "-c", "user.email=tests@localhost"]
    subprocess.run(["git", "-C", work, *author, "commit", "-qam", f"release {version}"], check=True)
    subprocess.run(["git", "-C", work, "push", "-q", "origin", "HEAD"], check=True)


def sampled(host, log):
    """Run the first template on the installed pack; return its image."""
    with running(host, host, log, packs=[PACK]) as server:
        prompt = to_prompt(read_workflow(WORKFLOW), server.get("/object_info"))
        for node in prompt.values():
            if "steps" in node["inputs"]:
                node["inputs"]["steps"] = 2
        image = pictures(server, run_prompt(server, prompt), find(prompt, "Result"))
    text = log.read_text(encoding="utf-8")
    assert "IMPORT FAILED" not in text and "Traceback" not in text
    return image


def test_it_is_installed_updated_removed(address, folder, host, tmp_path):
    pack = host / "custom_nodes" / PACK
    assert "[INSTALLED]" in (said := manager(host, "install", address)), said
    before = sampled(host, tmp_path / "installed.log")
    release(folder, tmp_path / "work", NEWER)
    said = manager(host, "update", f"{PACK}@unknown")
    assert f'version = "{NEWER}"' in (pack / "pyproject.toml").read_text(encoding="utf-8"), said
    assert np.array_equal(sampled(host, tmp_path / "updated.log"), before)
    assert "[UNINSTALLED]" in (said := manager(host, "uninstall", f"{PACK}@unknown")), said
    assert not pack.exists()
