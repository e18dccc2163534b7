"""Runs that are killed, forked off a helper: see loop_parts."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from .loop_parts import SETTINGS, opened, same

REPO = Path(__file__).resolve().parent.parent.parent


class Helper:
    """Forks runs: folder and name in, process id out, then how it ended."""

    def __init__(self):
        path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command, pipe = [sys.executable, Path(__file__).with_name("loop_parts.py")], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def start(self, root, name):
        self.process.stdin.write(json.dumps([str(root), name]) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def ended(self):
        """Wait; return the exit code, minus the signal for the killed."""
        return int(self.process.stdout.readline())


@pytest.fixture
def helper():
    helper = Helper()
    yield helper
    helper.process.communicate()


def finished(root, name):
    """The last checkpoint of a run, all of it."""
    stored = opened(root, name).load(vars(SETTINGS))
    assert stored.step == SETTINGS.steps
    return {"shared": stored.shared, "own": stored.own}


@pytest.mark.parametrize("kills", [20, pytest.param(50, marks=pytest.mark.extended)])
def test_kills_at_random_moments_change_no_bit(helper, tmp_path, record_property, kills):
    helper.start(tmp_path, "whole")
    start = time.monotonic()
    assert helper.ended() == 0
    duration, rng, found, number = time.monotonic() - start, random.Random(0), [], 0
    expected = finished(tmp_path, "whole")
    while len(found) < kills:
        pid = helper.start(tmp_path, f"killed-{number}")
        time.sleep(rng.uniform(0, duration / 2))
        with suppress(ProcessLookupError):  # it was faster
            os.kill(pid, signal.SIGKILL)
        code = helper.ended()
        if code == -signal.SIGKILL:
            found.append(max(opened(tmp_path, f"killed-{number}").steps(), default=None))
        else:
            assert code == 0
            assert same(finished(tmp_path, f"killed-{number}"), expected)
            number += 1
    helper.start(tmp_path, f"killed-{number}")
    assert helper.ended() == 0
    assert same(finished(tmp_path, f"killed-{number}"), expected)
    assert not list(tmp_path.glob("*/*.part"))
    record_property("newest checkpoint at each kill", found)
