"""CFG, Z-Sampling and W2SD on the demo model of the SD1.5 class, as `reflection` measures them on the demo SD3.

The weak model is an early checkpoint of its pre-training, which lab/demo_world/README.md says how to make again.
"""

from typing import Any

import torch

from lab.demo_world.host import RUNS

from .reflection import Arm, Reflections, measured, table

NUM_PROMPTS = 256
CFG_SCALES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
WEAK = RUNS / "sd15" / "base_002500.safetensors"
__all__ = ["measure", "table"]


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return one row per way to sample."""
    from teefusion_core.comfy_host.demo_sd15 import load_sd15

    study = Reflections(load_sd15(WEAK), base="sd15", prompts=NUM_PROMPTS)
    return measured(study, [Arm("CFG", scale) for scale in CFG_SCALES])
