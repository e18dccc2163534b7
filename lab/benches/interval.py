"""Guidance in an interval of sampling beside constant guidance: CFG, W2SD and the shipped student.

Every method is compared with itself at the same w, prompt by prompt.
Source of the interval: Kynkaanniemi et al., arXiv 2404.07724.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from runner.stop import say

from lab.demo_world.host import MODELS
from teefusion_core.guidance.calibration import Calibration
from teefusion_core.guidance.cfg import cfg_scale_of
from teefusion_core.guidance.schedule import CONSTANT, INTERVAL, GuidanceSchedule

from ._methods import TEACHER, Arm, Prepared
from ._sampling import sampled
from ._scores import estimate, interval_text, mean_text, values
from ._study import Study, load

NUM_PROMPTS, FEW, OTHER_SEED = 512, 64, 1
"""Prompts that are scored, prompts of which diversity is measured, and the seed of their second noise."""
GUIDANCE = (1.0, 2.0, 3.0)
CURVES = {
    CONSTANT: GuidanceSchedule(),
    "20 to 80 %": GuidanceSchedule(INTERVAL, 0.2, 0.8),
    "0 to 60 %": GuidanceSchedule(INTERVAL, 0.0, 0.6),
}
"""Name -> curve; the second is the default of the node, the third leaves out the end only."""
STUDENT = "demo_sd3_student.safetensors"


def measure() -> dict[str, Any]:
    """Return scores, costs, diversity and clipped colors of every method with every curve."""
    with torch.inference_mode():
        study = Study(NUM_PROMPTS, FEW)
        shape = study.bench.noise_NCHW[:FEW].shape
        other_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(OTHER_SEED))
        rows = []
        for name, prepare in PREPARED.items():
            for curve, schedule in CURVES.items():
                arm = Arm(TEACHER, name, curve, None, None, "w", GUIDANCE, _with(prepare, schedule))
                for w in GUIDANCE:
                    row = sampled(study, arm, w, other_BCHW=other_BCHW).row
                    rows.append({"curve": curve, **row})
                    right = row["right"]["overall"].count("1") / NUM_PROMPTS
                    say(f"{name} {curve} w {w:g}: {right:.3f}, {row['passes']} passes, diversity {row['diversity']}")
    return {"rows": rows, "settings": {"prompts": NUM_PROMPTS, "few": FEW, "guidance": GUIDANCE}}


def _with(prepare: Callable, schedule: GuidanceSchedule) -> Callable[[Study, list, float, str], Prepared]:
    return lambda study, prompt, w, sampler: prepare(study, prompt, w, schedule)


def _cfg(study: Study, prompt: list, w: float, schedule: GuidanceSchedule) -> Prepared:
    from teefusion_core.comfy_host.guidance.scheduled_cfg import ScheduledCFGGuider

    teacher = study.teacher("CFG")
    teacher.guider = ScheduledCFGGuider(study.base, schedule)
    return teacher, prompt, cfg_scale_of(w)


def _w2sd(study: Study, prompt: list, w: float, schedule: GuidanceSchedule) -> Prepared:
    teacher = study.teacher("W2SD")
    teacher.guider.schedule = schedule
    return teacher, prompt, cfg_scale_of(w)


def _student(study: Study, prompt: list, w: float, schedule: GuidanceSchedule) -> Prepared:
    import comfy.samplers

    from teefusion_core.comfy_host.guidance.attachments import STUDENT_KEY
    from teefusion_core.comfy_host.guidance.patch import apply_fusion
    from teefusion_core.comfy_host.training.teacher import Teacher

    student = load(study.base, MODELS / STUDENT)
    curve = Calibration.of(student.get_attachment(STUDENT_KEY)["calibration"])
    schedule = replace(schedule, low=curve.wanted[0])  # it cannot be guided less
    fused, positive = apply_fusion(student, prompt, study.bench.null, w, schedule=schedule)
    return Teacher(comfy.samplers.CFGGuider(fused), comfy.samplers.sampler_object("euler")), positive, 1.0


PREPARED = {"CFG": _cfg, "W2SD": _w2sd, "student of W2SD": _student}
"""Name of a method -> (study, prompts, w, schedule) -> what to sample."""


def table(result: dict[str, Any]) -> list[list[str]]:
    """Return the heading, and a line per method, curve and w: scores, and how they differ from constant guidance."""
    lines = [["method", "guidance", "w", "passes / step", "right", "minus constant", "verdict", "diversity", "clipped"]]
    for row in result["rows"]:
        same = {"teacher": row["teacher"], "strength": row["strength"], "curve": CONSTANT}
        [constant] = [other for other in result["rows"] if other | same == other]
        cells = [row["teacher"], row["curve"], f"{row['strength']:g}", f"{row['passes']:.3g}", mean_text(values([row]))]
        if row is constant:
            cells += ["", ""]
        else:
            gap = estimate(lambda own, plain: own - plain, values([row]), values([constant]))
            cells += [interval_text(gap, "+"), gap["verdict"]]
        lines.append([*cells, f"{row['diversity']:.4f}", f"{100 * row['clipped']:.2f} %"])
    return lines
