"""Images of the training world as latents on disk.

Shapes: N pictures, B batch, latents [N,16,8,8] in the host's SD3 latent space.
"""

import hashlib
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import scenes as scenes_module
from .host import MODELS, RUNS
from .scenes import Scene, sample_picture
from .vae import SD3_SCALE, SD3_SHIFT


def load_codec(path: Path):
    """Load the trained TAESD in channels-last layout, without the host's loaders for speed."""
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import load_file

    codec = TAESD(latent_channels=16)
    codec.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return codec.eval().to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)


@torch.no_grad()
def encode(codec, pictures_BHW3: np.ndarray) -> Tensor:
    """Return model-scaled latents [B,16,8,8] of uint8 images."""
    device = next(codec.parameters()).device
    x_B3HW = torch.from_numpy(pictures_BHW3).to(device).movedim(-1, 1).float().div_(127.5).sub_(1)
    with torch.autocast(device.type, torch.bfloat16):
        z = codec.encode(x_B3HW.contiguous(memory_format=torch.channels_last))
    return ((z.float() - SD3_SHIFT) * SD3_SCALE).cpu()


def dataset(num: int, seed: int) -> tuple[list[Scene], Tensor]:
    """Return `num` training scenes, which the seed determines, and their float16 latents, which are encoded once."""
    from safetensors.torch import load_file, save_file

    codec_path = MODELS / "demo_sd3_vae.safetensors"
    # another VAE or another world must not use these latents
    made_by = codec_path.read_bytes() + Path(scenes_module.__file__).read_bytes()
    cache = RUNS / f"latents_{num}_{seed}_{hashlib.sha256(made_by).hexdigest()[:8]}.safetensors"
    rng = random.Random(seed)
    scenes: list[Scene] = []
    parts: list[Tensor] = []
    codec = None if cache.exists() else load_codec(codec_path)
    for start in range(0, num, 128):
        batch = [sample_picture(rng) for _ in range(min(128, num - start))]
        scenes += [scene for scene, _ in batch]
        if codec is not None:
            parts.append(encode(codec, np.stack([picture for _, picture in batch])).half())
            if start % 12800 == 0:
                print(f"encoded {start} of {num}", flush=True)
    if parts:
        RUNS.mkdir(exist_ok=True)
        save_file({"latents": torch.cat(parts).contiguous()}, cache)
    return scenes, load_file(cache)["latents"]
