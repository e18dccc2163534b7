"""Training in bfloat16 with weights in float32, where that is faster."""

from contextlib import AbstractContextManager, nullcontext

import torch


def mixed_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Compute the matrix products of a network in float32 in bfloat16 inside the block, if the device has them.

    Args:
        device: device of the network.
        dtype: dtype that it computes in; in half precision there is nothing to gain.
    """
    if dtype == torch.float32 and _multiplies_bfloat16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()


def _multiplies_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
