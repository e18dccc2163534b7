"""Stand-ins for the trained networks, so that graphs can be tried before a training has ended.

They have the shapes of the shipped files with random numbers inside: every node runs, the pictures mean nothing.
Run: python -m tiny_sd3.untrained FOLDER
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from .host import MODELS, use_comfy
from .pretrain import build_network
from .ship import eighth, half

WIDTH = 128
"""Of context with pooled text, as the text encoder gives them."""
RANK = 4


def write_untrained(folder: Path) -> None:
    """Fill a folder with base, weak, student; text encoder with codec are the trained ones."""
    from safetensors.torch import save_file

    from teefusion_core.student_file import StudentInfo, fingerprint, write_student
    from teefusion_core.trainable import Lora

    folder.mkdir(parents=True, exist_ok=True)
    for part in ("text", "vae"):
        shutil.copyfile(MODELS / f"tiny_sd3_{part}.safetensors", folder / f"tiny_sd3_{part}.safetensors")
    for seed, (variant, narrow) in enumerate((("weak", eighth), ("base", half))):
        torch.manual_seed(seed)
        network = build_network(WIDTH, WIDTH)
        for parameter in network.parameters():
            if not parameter.any():  # gates that training would have opened
                torch.nn.init.normal_(parameter, std=0.05)
        tensors = narrow({name: tensor.detach() for name, tensor in network.state_dict().items()})
        save_file(tensors, folder / f"tiny_sd3_{variant}.safetensors")
    info = StudentInfo(
        method="teefusion",
        mode="lora",
        w_min=0.5,
        w_max=6.0,
        gain=1.0,
        guidance_timestep_scale=1000.0,
        w_precision="exact",
        teacher="none, this student is untrained",
        base=fingerprint(tensors),
        step=0,
        pack_version="0.1.0",
    )
    lora = Lora({name: tensor.float() for name, tensor in tensors.items() if name.endswith(".weight")}, RANK)
    write_student(folder / "tiny_sd3_student.safetensors", lora.state(), info)


def main() -> None:
    """Write into the folder of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    use_comfy()
    write_untrained(parser.parse_args().folder)


if __name__ == "__main__":
    main()
