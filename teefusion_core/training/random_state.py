"""The state of torch's global random generators for training on a device."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of the generators of the CPU and of the device, uint8 [...] by device type."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = _of(device).get_rng_state(*_arguments(device))
    return states


def set_random_state(device: torch.device, states: Mapping[str, Tensor]) -> None:
    """Restore states that `random_state` returned; states of other device types are ignored."""
    torch.set_rng_state(states["cpu"])
    if device.type != "cpu" and device.type in states:
        _of(device).set_rng_state(states[device.type], *_arguments(device))


def seed_random(device: torch.device, seed: int) -> None:
    """Seed both generators; the seed is in [0, 2^64)."""
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        _of(device).manual_seed(seed)


@contextmanager
def kept_random_state(device: torch.device) -> Iterator[None]:
    """Restore the generators at the end of the block."""
    states = random_state(device)
    try:
        yield
    finally:
        set_random_state(device, states)


def _of(device: torch.device) -> Any:
    return getattr(torch, device.type)


def _arguments(device: torch.device) -> tuple[torch.device, ...]:
    """Return the device for torch.cuda or torch.xpu; torch.mps has a single device and takes no argument."""
    return () if device.type == "mps" else (device,)
