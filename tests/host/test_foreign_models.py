"""MODELs of other loaders, such as GGUF, with our nodes: each equals a stock MODEL with the decoded weights."""

import pytest
import torch

from teefusion_core.training.loop_settings import TrainSettings

from ..unit.allocator import allocated
from .composition_columns import STUDENT_FILE
from .distillation_parts import example_of, shaken
from .foreign_loader import Coded, foreign_model
from .reflection_parts import SD3_LORA, randn, relative
from .test_student_loader import fused_picture

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
EXACT, MATTERS = 2e-4, 1e-2
FC1 = "diffusion_model.joint_blocks.1.x_block.mlp.fc1.weight"


@pytest.fixture(scope="module")
def models(pack):
    return pack.comfy_host.load_demo.__globals__["MODELS"]


@pytest.fixture(scope="module")
def sides(host, models):
    """Return the foreign MODEL and two stock ones with the same values."""
    model, twin = foreign_model(host.comfy, models / "demo_sd3_base.safetensors")
    assert isinstance(model.model.diffusion_model.joint_blocks[1].x_block.mlp.fc1.weight, Coded)
    return model, twin(), twin()


def test_the_loader_is_foreign(top, sides):
    with pytest.raises(AttributeError, match="temp"):
        sides[0].get_key_patches()
    plain, lora = (top.euler(top.world(), model=model, steps=2) for model in (sides[0], top.lora(sides[0], SD3_LORA)))
    assert relative(plain, top.euler(top.world(), model=sides[1], steps=2)) < EXACT
    assert relative(lora, top.euler(top.world(), model=top.lora(sides[1], SD3_LORA), steps=2)) < EXACT
    assert relative(lora, plain) > MATTERS


def test_a_student_on_it(top, pack, sides, models):
    got, expected = (
        fused_picture(pack, top, pack.comfy_host.load_student(model, models / STUDENT_FILE)) for model in sides[:2]
    )
    assert relative(got, expected) < EXACT


def test_one_network(top, sides):
    got, expected = (top.reflect(top.world(), model=model, steps=2).samples for model in sides[:2])
    assert relative(got, expected) < EXACT


@pytest.mark.parametrize(("strong", "weak"), [(1.0, 0.0), (0.0, 1.0), (1.0, -1.5)])
def test_lora_gap(top, sides, strong, weak):
    def pair(a, b):
        return [
            top.lora(model, SD3_LORA, strength) if strength else model for model, strength in ((a, strong), (b, weak))
        ]

    def picture(strong, weak):
        return top.reflect(top.world(), model=strong, weak=weak, steps=2).samples

    foreign, one, two = sides
    got = picture(*pair(foreign, foreign))
    assert relative(got, picture(*pair(one, two))) < EXACT
    assert relative(got, picture(pair(one, one)[0], pair(one, one)[0])) > MATTERS


def test_what_is_no_lora_is_refused(top, pack, sides):
    weak = sides[0].clone()
    assert weak.add_patches({FC1: ("diff", (0.1 * randn(9, 1024, 256),))}, 0.7)
    with pytest.raises(pack.errors.InvalidConfig, match="quantised"):
        top.reflect(top.world(), model=sides[0], weak=weak)


class TestTraining:
    def test_lora(self, sides, distil):
        found = []
        with torch.inference_mode(False):
            for model in sides[:2]:
                distillation = shaken(distil(model=model))
                with distillation.in_training():
                    loss = distillation.loss(example_of(distillation.trajectory(0)))
                    loss.backward()
                grads = [weight.grad for weight in distillation.student.update.parameters() if weight.grad is not None]
                found.append((float(loss.detach()), sum(float(grad.norm()) ** 2 for grad in grads) ** 0.5))
        assert found[0] == pytest.approx(found[1], rel=1e-3) and found[0][1] > 0

    def test_the_memory_check(self, sides, distil, pack, tmp_path):
        loop, needs = TrainSettings(steps=2, batch_size=4, learning_rate=1e-4), []
        with torch.inference_mode(False):
            distillation = distil(model=sides[0])
            training = pack.comfy_host.Training(distillation, loop, root=tmp_path, name="r", teacher="")
            peak = allocated(lambda: training.run(on_forecast=needs.append))
        assert needs[0].peak - pack.comfy_host.memory_check.KERNELS == pytest.approx(peak, rel=0.15)

    @pytest.mark.parametrize("trainable", ["embedders", "everything"])
    def test_what_needs_the_values_is_refused(self, sides, distil, pack, trainable):
        with pytest.raises(pack.errors.InvalidConfig, match="quantised weights"):
            distil(model=sides[0], trainable=trainable)

    def test_a_whole_model_is_refused(self, sides, distil, pack, tmp_path):
        loop = TrainSettings(steps=2, batch_size=1, learning_rate=1e-4)
        where = {"root": tmp_path, "name": "r", "teacher": "", "whole_model": True}
        with torch.inference_mode(False), pytest.raises(pack.errors.InvalidConfig, match="quantised weights"):
            pack.comfy_host.Training(distil(model=sides[0]), loop, **where)
