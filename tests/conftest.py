"""What every tier shares: the repository on the path, one thread, fixed seeds, no deadlines."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

REPO = Path(__file__).resolve().parent.parent

# appended, never first: our `nodes` would hide the host's module of that name
sys.path += [str(REPO), str(REPO / "tests" / "golden")]

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _same_numbers_every_time():
    torch.manual_seed(0)
    torch.set_num_threads(1)
