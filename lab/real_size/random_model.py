"""A MODEL of a published layout with random weights, made in memory."""

from __future__ import annotations

from typing import Any

import torch

from . import layouts
from .files import random_pool, random_weight


def random_model(name: str, dtype: torch.dtype, *, depth: int | None = None) -> Any:
    """Return a MODEL that stores its weights in a dtype and computes in it as well."""
    import comfy.sd

    pool = random_pool()
    layout = layouts.network_layout(name, depth)
    state = {key: random_weight(key, shape, pool).to(dtype) for key, shape in layout.items()}
    model = comfy.sd.load_diffusion_model_state_dict(state, model_options={"dtype": dtype})
    model.model.manual_cast_dtype = None
    return model
