"""Students of fewer steps than their teacher."""

import pytest
import torch

from teefusion_core.files.student_file import write_student
from teefusion_core.training.loop_settings import TrainSettings

from .distillation_parts import LATENT, ROWS, TEXTS
from .reflection_parts import PROMPT, relative
from .test_distillation import predicted

STEPS, PARTS = 2, 3
FEW = dict(student_steps=STEPS, teacher_steps=STEPS * PARTS, scheduler="sgm_uniform", timestep_sampling="schedule")


def test_a_step_of_the_student_is_several_of_its_teacher(distil, world, encoded, pack):
    trajectory = distil(**FEW).trajectory(0)
    schedule = pack.comfy_host.schedule(world.model, "sgm_uniform", STEPS, 1.0)
    assert torch.equal(trajectory.sigma_S, schedule[:-1]) and len(trajectory.x_SBCHW) == STEPS
    for row in range(ROWS):
        x = trajectory.x_SBCHW[0, row : row + 1]
        for step in range(STEPS):
            text, start, high, low = TEXTS[int(trajectory.prompt_SB[0, row])], x, *schedule[step : step + 2].tolist()
            assert relative(trajectory.x_SBCHW[step, row : row + 1], start) < 1e-4
            for part in range(PARTS):
                sigma, after = (high + (low - high) * at / PARTS for at in (part, part + 1))
                cond, uncond = (predicted(world, encoded, t, x, sigma) for t in (text, ""))
                x = x + (after - sigma) * (cond + trajectory.w * (cond - uncond))
            assert relative(trajectory.target_SBCHW[step, row : row + 1], (x - start) / (low - high)) < 1e-3


@pytest.mark.parametrize("method", ["teefusion", "guidance lora"])
def test_a_student_tells_if_it_runs_at_other_steps(pack, host, distil, world, encoded, tmp_path, caplog, method):
    options = FEW | dict(method=method, reuse=0, cache_size=1)
    options |= dict(nulls=("",), initial_gain_ratio=0.0) if method == "guidance lora" else {}
    loop = TrainSettings(steps=2, batch_size=4, learning_rate=1e-3)
    training = pack.comfy_host.Training(distil(**options), loop, root=tmp_path, name="run", teacher="CFG")
    file, path = training.run().file, tmp_path / "student.safetensors"
    write_student(path, file.tensors, file.info)
    student, positive = pack.comfy_host.apply_fusion(
        pack.comfy_host.load_student(world.model, path), encoded[PROMPT], encoded[""], 2.0
    )
    for number, (sigmas, warned) in enumerate(runs(pack, world.model)):
        caplog.clear()
        guider = host.custom_sampler.BasicGuider.execute(student, positive).args[0]
        with torch.inference_mode():
            noise = torch.zeros(1, *LATENT)
            guider.sample(noise, noise, host.comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)
        said = [line for line in caplog.messages if f"{STEPS} steps" in line and "sgm_uniform" in line]
        assert len(said) == warned, number


def runs(pack, model):
    """Return noise levels, and whether the student has not learned to go from each to the next."""
    learned, twice, thrice, other, half = (
        pack.comfy_host.schedule(model, *settings)
        for settings in (
            ("sgm_uniform", STEPS, 1.0), ("sgm_uniform", 2 * STEPS, 1.0), ("sgm_uniform", STEPS + 1, 1.0),
            ("karras", STEPS, 1.0), ("sgm_uniform", STEPS, 0.5),
        )
    )  # fmt: skip
    right = learned, learned[:-1], learned[1:]  # as Split Sigmas makes them
    wrong = twice, thrice, other, half, learned[[0, -1]]
    return [(sigmas, False) for sigmas in right] + [(sigmas, True) for sigmas in wrong]
