"""Choose the prompts of templates 01, 11 and 14 among held-out ones.

Template 01: the images of each method are as often right as those of 512 prompts. Template 11: the student gets fewer
images right at its smallest guidance, and with the seed of the template it is wrong there and right at w = 2. With most
prompts of the demo model, guidance changes little. Template 14: the student for negative prompts shows a background in
some of its images, and in none if that is the negative prompt. Each is the first prompt for which this holds.

Run: python -m lab.demo_world.representative
"""

from collections.abc import Callable
from functools import partial

import torch

from .captions import held_out_prompts, open_prompts
from .distill_student import NEGATIVES, TEACHERS
from .host import MODELS, use_comfy
from .measure import SCHEDULER, STEPS, encode, pictures, sample
from .scenes import BACKGROUNDS
from .scored import scored
from .verifier import judge

PROMPTS, IMAGES, SEEDS, LOWEST, W = 64, 3, range(1, 9), 0.6, 2.0
"""Number of prompts to try, and the images, the seeds, the smallest guidance and the guidance of the templates."""
SCALES = {"Unguided": 1.0, "CFG": 1 + W, "W2SD": 1 + W, "Student": 1 + W}
"""Method of template 01 -> its CFG scale."""


def wanted() -> dict[str, int]:
    """Return how many of the images should be right, from the shares of many prompts."""
    shares = scored()[1]
    return {name: round(IMAGES * shares[name, scale]) for name, scale in SCALES.items()}


def chosen(rights: Callable[[str, object, int, int], dict[str, int]]) -> tuple[str, str]:
    """Return the prompt of template 01, and prompt and seed of template 11.

    Args:
        rights: (prompt, claim, images, seed) -> number of right images by method; "Lowest" is the student at LOWEST.
    """
    first = sweep = ""
    for text, claim in held_out_prompts(PROMPTS):
        right = rights(text, claim, IMAGES, SEEDS[0])
        print(text, right, flush=True)
        lowest = right.pop("Lowest")
        first = first or (text if right == wanted() else "")
        for seed in () if sweep or lowest >= right["Student"] else SEEDS:
            alone = rights(text, claim, 1, seed)
            if alone["Lowest"] < alone["Student"]:
                sweep = f"{text}, seed {seed}"
                break
        if first and sweep:
            break
    return first, sweep


def with_negative(backgrounds: Callable[..., list[str]], null, negatives: dict) -> str:
    """Return the prompt and the background of template 14.

    Args:
        backgrounds: (prompt, claim, null) -> background of each image.
        null: the encoded empty prompt.
        negatives: background -> encoded negative prompt.
    """
    for text, claim in zip(*open_prompts(PROMPTS), strict=True):
        shown = backgrounds(text, claim, null)
        for ground in sorted(set(shown) & negatives.keys()):
            if ground not in backgrounds(text, claim, negatives[ground]):
                return f"{text}, not {ground}"
    return ""


@torch.inference_mode()
def main() -> None:
    """Print the prompts in order, with the number of right images, and those that were chosen."""
    use_comfy()
    import comfy.sample

    from teefusion_core.comfy_host.demo_model import load_demo
    from teefusion_core.comfy_host.guidance.patch import apply_fusion
    from teefusion_core.comfy_host.sampling import schedule
    from teefusion_core.comfy_host.training.from_file import teacher_of

    base, clip, vae = load_demo("base")
    student, teacher, null = load_demo("student")[0], teacher_of(TEACHERS["W2SD"], base, MODELS)[0], encode(clip, [""])
    sigmas = schedule(base, SCHEDULER, STEPS, 1.0)

    def rights(text: str, claim, images: int, seed: int) -> dict[str, int]:
        noise_BCHW = comfy.sample.prepare_noise(torch.zeros(images, 16, 8, 8), seed)
        prompt = encode(clip, [text])
        plain = partial(sample, negative=null, noise_BCHW=noise_BCHW, seed=seed)
        guided = {w: apply_fusion(student, prompt, null, w) for w in (LOWEST, W)}
        states = teacher.sample(prompt, null, noise_BCHW, sigmas, 1 + W)[0]
        made = {
            "Unguided": plain(base, prompt, cfg=1.0), "CFG": plain(base, prompt, cfg=1 + W),
            "W2SD": base.model.process_latent_out(states[-1]), "Student": plain(*guided[W], cfg=1.0),
            "Lowest": plain(*guided[LOWEST], cfg=1.0),
        }  # fmt: skip
        return {
            name: sum(judge(image, claim).overall for image in pictures(vae, latents)) for name, latents in made.items()
        }

    def backgrounds(text: str, claim, null) -> list[str]:
        noise_BCHW = comfy.sample.prepare_noise(torch.zeros(IMAGES, 16, 8, 8), SEEDS[0])
        fused, guided = apply_fusion(obedient, encode(clip, [text]), null, W)
        latents = sample(fused, guided, null, 1.0, noise_BCHW, SEEDS[0])
        return [judge(image, claim).background for image in pictures(vae, latents)]

    first, sweep = chosen(rights)
    obedient = load_demo("student_negatives")[0]
    negatives = {ground: encode(clip, [text]) for ground, text in zip(BACKGROUNDS, NEGATIVES, strict=True)}
    negative = with_negative(backgrounds, null, negatives)
    print(f"template 01: {first}\ntemplate 11: {sweep}\ntemplate 14: {negative}")


if __name__ == "__main__":
    main()
