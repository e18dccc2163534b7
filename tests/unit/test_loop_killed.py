"""Runs that are killed, runs of several processes: forked off a helper, see loop_parts."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from .loop_parts import SETTINGS, names_in, opened, same

REPO = Path(__file__).resolve().parent.parent.parent
KILLS = 20


class Helper:
    """Forks runs: a line of JSON in, their process ids out, then how they ended."""

    def __init__(self):
        path = os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        command, pipe = [sys.executable, Path(__file__).with_name("loop_parts.py")], subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def start(self, root, name, *, size=1, noise=0.1, stop_after=None, **settings):
        job = {"root": str(root), "name": name, "size": size, "noise": noise, "stop_after": stop_after}
        job["settings"] = settings
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def ended(self):
        """Wait; return the exit codes, minus the signal for the killed."""
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def helper():
    helper = Helper()
    yield helper
    helper.close()


def finished(root, name, settings=SETTINGS, **options):
    """The last checkpoint of a run, all of it."""
    stored = opened(root, name, **options).load(vars(settings))
    assert stored.step == settings.steps
    return {"shared": stored.shared, "own": stored.own}


def test_20_kills_at_random_moments_change_no_bit(helper, tmp_path, record_property):
    helper.start(tmp_path, "whole")
    start = time.monotonic()
    assert helper.ended() == [0]
    duration, rng, found, number = time.monotonic() - start, random.Random(0), [], 0
    expected = finished(tmp_path, "whole")
    while len(found) < KILLS:
        [pid] = helper.start(tmp_path, f"killed-{number}")
        time.sleep(rng.uniform(0, duration / 2))
        with suppress(ProcessLookupError):  # it was faster
            os.kill(pid, signal.SIGKILL)
        [code] = helper.ended()
        if code == -signal.SIGKILL:
            found.append(max(opened(tmp_path, f"killed-{number}").steps(), default=None))
        else:
            assert code == 0
            assert same(finished(tmp_path, f"killed-{number}"), expected)
            number += 1
    helper.start(tmp_path, f"killed-{number}")
    assert helper.ended() == [0]
    assert same(finished(tmp_path, f"killed-{number}"), expected)
    assert not list(tmp_path.glob("*/*.part"))
    record_property("newest checkpoint at each kill", found)


def test_two_processes_equal_one(helper, tmp_path):
    plain = dict(gradient_accumulation=1, steps=20)
    # what each process draws for itself one process cannot draw
    quiet = dict(plain, noise=0.0)
    helper.start(tmp_path, "one", **quiet, batch_size=8)
    assert helper.ended() == [0]
    helper.start(tmp_path, "two", **quiet, batch_size=4, size=2)
    assert helper.ended() == [0, 0]
    one = finished(tmp_path, "one", replace(SETTINGS, **plain, batch_size=8))
    two = Pair(tmp_path, "two", replace(SETTINGS, **plain, batch_size=4))
    assert names_in(tmp_path / "two" / "step-00000020").count("rank-1.safetensors") == 1
    torch.testing.assert_close(two.shared["progress"]["losses"], one["shared"]["progress"]["losses"], rtol=0, atol=1e-6)
    for name, weight in one["shared"]["weights"].items():
        torch.testing.assert_close(two.shared["weights"][name], weight, rtol=1e-4, atol=1e-5)

    helper.start(tmp_path, "stopped", **quiet, batch_size=4, size=2, stop_after=7)
    assert helper.ended() == [0, 0]
    assert opened(tmp_path, "stopped").steps()[-1] == 7
    helper.start(tmp_path, "stopped", **quiet, batch_size=4, size=2)
    assert helper.ended() == [0, 0]
    again = Pair(tmp_path, "stopped", replace(SETTINGS, **plain, batch_size=4))
    assert same(again.shared, two.shared) and same(again.own, two.own)


class Pair:
    """The last checkpoint of two processes, read by the second."""

    rank, size, first = 1, 2, False

    def __init__(self, root, name, settings):
        stored = opened(root, name, processes=self).load(vars(settings))
        self.shared, self.own = stored.shared, stored.own

    def any(self, flag):
        return flag
