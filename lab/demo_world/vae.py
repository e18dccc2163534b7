"""Train the demo model's VAE: the host's TAESD with 16 latent channels.

Shapes: B batch, H W picture, 3 colours in 0..1; latents are [B,16,H/8,W/8].
The scale and shift of the VAE give its latents the range that the host's SD3 latent format expects.
Run: python -m lab.demo_world.vae --minutes 12
"""

import json
import random
import time

import numpy as np
import torch
from torch import Tensor

from .host import MODELS, RUNS, parser_of, use_comfy
from .scenes import SIZE, sample_picture

SD3_SCALE, SD3_SHIFT = 1.5305, 0.0609
"""comfy.latent_formats.SD3: model latents are (vae - shift) * scale."""
LATENT_NOISE = 0.1
LATENT_PENALTY = 1e-3
CROP = 32
OBJECT_WEIGHT = 4.0
"""Objects cover a tenth of an image; without weights the VAE first learns only the backgrounds."""


def pictures(num: int, seed: int) -> Tensor:
    """Return `num` training images, float [num,3,64,64] in 0..1."""
    rng = random.Random(seed)
    stack = np.stack([sample_picture(rng)[1] for _ in range(num)])
    return torch.from_numpy(stack).movedim(-1, 1).float().div_(255.0)


def crops(data_N3HW: Tensor, batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Return crops [batch,3,size,size] around objects; crops of background contain nothing new to learn."""
    rows = torch.randint(len(data_N3HW), (batch,), generator=generator)
    starts = torch.randint(data_N3HW.shape[-1] - size + 1, (batch, 3, 2), generator=generator)
    windows = []
    for row, spots in zip(rows.tolist(), starts.tolist(), strict=True):
        picture = data_N3HW[row]
        tries = [picture[:, y : y + size, x : x + size] for y, x in spots]
        windows.append(max(tries, key=lambda window: float(window.std())))
    return torch.stack(windows)


def train(minutes, batch, lr, pool, seed, start_from, freeze):
    """Train encoder and decoder, with a little latent noise so that decoding is smooth.

    The loss is mostly L2: with L1 only, the hole of a small ring, a minority of its pixels, disappears first.
    """
    from comfy.taesd.taesd import TAESD
    from safetensors.torch import load_file

    torch.manual_seed(seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    codec = TAESD(latent_channels=16).to(device, memory_format=torch.channels_last)
    for module in codec.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.Conv2d.reset_parameters(module)  # the host's layers are not initialised
    if start_from:
        codec.load_state_dict({k: v.float() for k, v in load_file(start_from).items()})
    data = pictures(pool, seed)
    codec.taesd_encoder.requires_grad_(not freeze)
    params = [p for n, p in codec.named_parameters() if p.requires_grad and not n.startswith("vae_")]
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=0.0, betas=(0.9, 0.98))
    generator = torch.Generator().manual_seed(seed)
    start, step, log = time.time(), 0, []
    while (done := (time.time() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 30) * (0.5 + 0.5 * np.cos(np.pi * done)) + 1e-6
        whole = done > 0.85
        x_B3HW = crops(data, batch // 4 if whole else batch, SIZE if whole else CROP, generator)
        x_B3HW = x_B3HW.to(device).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            z = codec.taesd_encoder(x_B3HW)
            noisy = z + LATENT_NOISE * torch.randn_like(z) * (torch.rand(len(z), 1, 1, 1, device=device) < 0.8)
            out_B3HW = codec.taesd_decoder(noisy)
        error = out_B3HW.float() - x_B3HW
        ground_B311 = x_B3HW.flatten(2).median(2).values[..., None, None]
        weight_B1HW = 1 + OBJECT_WEIGHT * ((x_B3HW - ground_B311).abs().amax(1, keepdim=True) > 0.1)
        loss = (
            weight_B1HW * (0.2 * error.abs() + 5 * error.square())
        ).mean() + LATENT_PENALTY * z.float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        if step % 20 == 0:
            mse, spread = error.square().mean().item(), z.float().std().item()
            log.append(
                {"step": step, "loss": loss.item(), "mse": mse, "latent_std": spread, "seconds": time.time() - start}
            )
            print(json.dumps(log[-1]), flush=True)
    return codec.float().eval().to("cpu"), data


@torch.no_grad()
def normalise(codec, data_B3HW: Tensor) -> None:
    """Set scale and shift so that the host's SD3 latents have mean 0 and standard deviation 1 overall."""
    z = codec.taesd_encoder(data_B3HW[:512])
    codec.vae_scale.data.fill_(z.std().item() * SD3_SCALE)
    codec.vae_shift.data.fill_(SD3_SHIFT - z.mean().item() / codec.vae_scale.item())


def main() -> None:
    out = str(RUNS / "demo_sd3_vae.safetensors")
    parser = parser_of(__doc__, minutes=12.0, batch=32, lr=1e-3, pool=8192, seed=0, out=out)
    parser.add_argument("--start-from", help="continue from a codec file, for another --minutes")
    parser.add_argument("--freeze-encoder", action="store_true", help="train only the decoder; latents stay the same")
    args = parser.parse_args()
    use_comfy()
    from safetensors.torch import save_file

    RUNS.mkdir(exist_ok=True)
    MODELS.mkdir(exist_ok=True)
    codec, data = train(args.minutes, args.batch, args.lr, args.pool, args.seed, args.start_from, args.freeze_encoder)
    if not args.freeze_encoder:
        normalise(codec, data)
    state = {k: v.detach().half().contiguous() for k, v in codec.state_dict().items()}
    save_file(state, args.out, metadata={"architecture": "TAESD, 16 latent channels", "seed": str(args.seed)})
    print("saved", args.out)


if __name__ == "__main__":
    main()
