"""DICE sharpeners beside CFG: right images, passes and effective guidance, on both demo models and over alpha.

The sharpener of the demo SD1.5 is the included one, and its guidance LoRA is measured too, the other way for models
without pooled text. The sharpener of the demo SD3 is used if `distill_student --recipe sharpener` has trained it.
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from runner.stop import say

from lab.demo_world.distill_student import RECIPES
from lab.demo_world.host import MODELS
from teefusion_core.evaluation.guidance_report import levels_between
from teefusion_core.evaluation.labels import Labels
from teefusion_core.evaluation.plot import INK, OTHER, PAPER, STRONG, Frame, Point
from teefusion_core.guidance.methods import DICE, GUIDANCE_LORA

from ._methods import BASE, GRID, TEACHER, Arm, Wanted, student_arm, teachers
from ._report import Job, Row, measured_rows
from ._sampling import sampled
from ._scores import gain_text, values
from ._study import Study, mean_guidance

NUM_PROMPTS, FEW, SECOND_NOISE = 256, 64, 2025
"""Number of prompts that are judged, and of those whose effective guidance is measured and that get a second image."""
GUIDANCE = (0.5, 1.0, 2.0, 3.0)
GUIDED_AT = 2.0
"""w of the CFG whose states are used, that of the training."""
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
TEXT = 14
LORA = MODELS / "demo_sd15_student_guidance_lora.safetensors"
Lines = dict[str, tuple[list[Point], list[Point]]]
"""Model -> points over alpha, and a thin line."""
INCLUDED = MODELS / "demo_sd15_sharpener.safetensors"
SHARPENER = Wanted(DICE, "", "sharpener")
SHOWN = {"sd15": "demo SD1.5", "base": "demo SD3"}


def sharpeners() -> dict[str, Path]:
    """Return model -> file of its sharpener."""
    found = {"sd15": INCLUDED, "base": RECIPES["sharpener"].student}
    return {model: path for model, path in found.items() if path.is_file()}


@torch.inference_mode()
def measure() -> dict[str, Any]:
    """Return a row per model, method and strength, and the effective guidance over alpha at the same states."""
    settings = {"prompts": NUM_PROMPTS, "prompts for guidance": FEW}
    result = measured_rows("sharpening", settings, (job for item in sharpeners().items() for job in _jobs(*item)))
    return result | {"same_states": {model: _at_same_states(model, path) for model, path in sharpeners().items()}}


def _jobs(model: str, path: Path) -> Iterator[Job]:
    base, cfg = teachers()[:2]
    sharpened = student_arm(SHARPENER, 0, path, None)
    wanted = [(base, (0.0,)), (cfg, GUIDANCE), (sharpened, ALPHAS)]
    if model == "sd15":
        wanted.append((student_arm(Wanted(GUIDANCE_LORA, "CFG", "lora"), 0, LORA, None), GRID))
    for arm, strengths in wanted:
        for strength in strengths:
            named = {"model": model, "method": arm.method, "strength": strength}
            yield named, partial(_row, model, arm, strength)


def _at_same_states(model: str, path: Path) -> dict[str, float]:
    """Return alpha -> effective guidance at the states that CFG passes, as it is measured for students."""
    from teefusion_core.comfy_host.prompts.conditioning import load_sharpener, sharpen

    study, found, sharpener = _study(model), {}, load_sharpener(path, ALPHAS)
    where, _, cond, uncond = study.trajectory("CFG", GUIDED_AT)
    for alpha in (0.0, *ALPHAS):
        prompt = sharpen(study.first, sharpener, alpha=alpha, null=study.bench.null)
        found[f"{alpha:g}"] = round(mean_guidance(study.velocities(study.base, prompt, where), cond, uncond), 3)
    say(f"{model}: {found}")
    return found


@cache
def _study(model: str) -> Study:
    return Study(NUM_PROMPTS, FEW, base=model)


def _row(model: str, arm: Arm, strength: float) -> Row:
    study = _study(model)
    other_BCHW = torch.randn(study.bench.noise_NCHW[:FEW].shape, generator=torch.Generator().manual_seed(SECOND_NOISE))
    row = sampled(study, arm, strength, other_BCHW=other_BCHW).row
    say(f"{model}, {arm.method} {strength:g}: {values([row]).mean():.3f} at {row['effective']:.2f}")
    return {name: row[name] for name in ("passes", "effective", "diversity", "right")}


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading and a line per row, with the share of the gain of the best CFG scale."""
    lines = [
        ["model", "method", "passes/step", "effective guidance", "at CFG's states", "all right", "of CFG's gain (95 %)"]
    ]
    for model in dict.fromkeys(row["model"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["model"] == model]
        none, best = (values([row]) for row in (rows[0], best_cfg(rows)))
        for row in rows:
            kept = same_states = ""
            if row["method"] == DICE:
                same_states = f"{result['same_states'][model][format(row['strength'], 'g')]:.2f}"
            if row["method"] not in (BASE, TEACHER):
                kept = gain_text(values([row]), none, best)
            cells = [SHOWN[model], _shown(row), f"{row['passes']:g}", f"{row['effective']:.2f}", same_states]
            lines.append([*cells, f"{float(values([row]).mean()):.3f}", kept])
    return lines


def best_cfg(rows: list[Row]) -> Row:
    """Return the row of the CFG scale with the best images."""
    return max((row for row in rows if row["method"] == TEACHER), key=lambda row: float(values([row]).mean()))


def plot(result: dict[str, Any]) -> Image.Image:
    """Draw effective guidance at the same states and right images over alpha, these with the best CFG as thin lines."""
    image = Image.new("RGB", (760, 320), PAPER)
    labels = Labels(image)
    same_states = result["same_states"]
    guidance: Lines = {model: ([(float(a), y) for a, y in of.items()], []) for model, of in same_states.items()}
    right: Lines = {model: _right(result["rows"], model) for model in guidance}
    for place, (title, lines) in enumerate((("effective guidance (1: none)", guidance), ("all right", right))):
        highest = max(y for points, limit in lines.values() for _, y in (*points, *limit))
        left = 56.0 + 380 * place
        frame = Frame(labels, (left, 64.0, left + 300, 262.0), (0.0, ALPHAS[-1]), (0.0, 1.05 * highest))
        labels.text((left, 12), title, INK, TEXT)
        for level in levels_between(*frame.y):
            frame.level(level, f"{level:g}", TEXT)
        for alpha in (0.0, *ALPHAS[1::2]):
            frame.mark(alpha, f"{alpha:g}", TEXT)
        labels.text((left + 150, 290), "alpha", INK, TEXT, anchor="ma")
        for number, (colour, model) in enumerate(zip((STRONG, OTHER), lines, strict=False)):
            points, limit = lines[model]
            frame.line(points, colour, width=3, dots=True)
            frame.line(limit, colour)
            labels.text((left + 150 * number, 38), SHOWN[model], colour, TEXT)
    return image


def _right(rows: list[Row], model: str) -> tuple[list[Point], list[Point]]:
    """Return right images over alpha, where alpha 0 is no guidance, and a level line of the best CFG scale."""
    own = [row for row in rows if row["model"] == model]
    best = float(values([best_cfg(own)]).mean())
    points = [(row["strength"], float(values([row]).mean())) for row in own if row["method"] in (BASE, DICE)]
    return points, [(0.0, best), (ALPHAS[-1], best)]


def _shown(row: Row) -> str:
    if row["method"] in (BASE, GUIDANCE_LORA):
        return BASE if row["method"] == BASE else f"guidance LoRA, w {row['strength']:g}"
    return f"alpha {row['strength']:g}" if row["method"] == DICE else f"CFG {1 + row['strength']:g}"
