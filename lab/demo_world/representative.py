"""Choose the prompt of a template: the first held-out one whose images are as often right as those of 512 prompts.

Run: python -m lab.demo_world.representative
"""

from functools import partial

import torch

from .captions import held_out_prompts
from .distill_student import TEACHERS
from .host import MODELS, use_comfy
from .measure import SCHEDULER, STEPS, encode, pictures, sample
from .scored import scored
from .verifier import judge

PROMPTS, IMAGES, SEED, W = 64, 3, 1, 2.0
"""Number of prompts to try, and the images, the seed and the guidance of the template."""
SCALES = {"Unguided": 1.0, "CFG": 1 + W, "W2SD": 1 + W, "Student": 1 + W}
"""Method of the template -> its CFG scale."""


def wanted() -> dict[str, int]:
    """Return how many of the images should be right, from the shares of many prompts."""
    shares = scored()[1]
    return {name: round(IMAGES * shares[name, scale]) for name, scale in SCALES.items()}


@torch.inference_mode()
def main() -> None:
    """Print the prompts in order, with the number of right images, until one fits."""
    use_comfy()
    import comfy.sample

    from teefusion_core.comfy_host.demo_model import load_demo
    from teefusion_core.comfy_host.guidance.patch import apply_fusion
    from teefusion_core.comfy_host.sampling import schedule
    from teefusion_core.comfy_host.training.from_file import teacher_of

    base, clip, vae = load_demo("base")
    student, teacher, null = load_demo("student")[0], teacher_of(TEACHERS["W2SD"], base, MODELS)[0], encode(clip, [""])
    noise_BCHW = comfy.sample.prepare_noise(torch.zeros(IMAGES, 16, 8, 8), SEED)
    sigmas, target = schedule(base, SCHEDULER, STEPS, 1.0), wanted()
    for text, claim in held_out_prompts(PROMPTS):
        prompt = encode(clip, [text])
        plain = partial(sample, negative=null, noise_BCHW=noise_BCHW, seed=SEED)
        fused, guided = apply_fusion(student, prompt, null, W)
        states = teacher.sample(prompt, null, noise_BCHW, sigmas, 1 + W)[0]
        made = {
            "Unguided": plain(base, prompt, cfg=1.0), "CFG": plain(base, prompt, cfg=1 + W),
            "W2SD": base.model.process_latent_out(states[-1]), "Student": plain(fused, guided, cfg=1.0),
        }  # fmt: skip
        right = {
            name: sum(judge(image, claim).overall for image in pictures(vae, latents)) for name, latents in made.items()
        }
        print(text, right, flush=True)
        if right == target:
            return


if __name__ == "__main__":
    main()
