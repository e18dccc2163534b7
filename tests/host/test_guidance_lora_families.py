"""The guidance LoRA on every family, on the host's own small networks: with pooled text and without."""

import pytest
import torch

from teefusion_core.files.student_file import write_student
from teefusion_core.training.loop_settings import TrainSettings

from .backbones_parts import BACKBONES, WITHOUT, built, prompt
from .distillation_parts import shaken
from .reflection_parts import randn, relative, weights_of
from .test_backbones import EQUAL, OTHER, distillation, sampled

METHOD, W = {"method": "guidance lora", "initial_gain_ratio": 0.0, "guidance_min": 1.0}, 3.0
each = pytest.mark.parametrize("backbone", [*BACKBONES, *WITHOUT], ids=lambda backbone: backbone.name)


@pytest.fixture
def tell(backbone, record_property):
    return lambda column, outcome: record_property("cell", "|".join((backbone.name, column, outcome)))


@each
def test_two_steps_of_training_make_a_lora_that_loads(backbone, host, pack, tell, tmp_path):
    parts, model = pack.comfy_host, built(host, backbone)
    positive, null, before = prompt(backbone, 1), prompt(backbone, 2), weights_of(model)
    path = tmp_path / "student.safetensors"
    with torch.inference_mode(False), torch.enable_grad():
        distil = distillation(host, pack, backbone, model, **METHOD)
        loop = TrainSettings(steps=2, batch_size=2, learning_rate=0.02, warmup_steps=0, ema_decay=0.0)
        training = parts.Training(distil, loop, root=tmp_path, name="run", teacher="CFG", calibration=1)
        progress = parts.TrainingProgress(training, every=2 * (len(backbone.latent) == 4))  # of videos their preview
        student = training.run(progress.on_step)
        assert student.finished and all(0 < loss < 1e6 for loss in student.losses)
        assert all(torch.equal(value, before[name]) for name, value in model.model.state_dict().items())
        write_student(path, student.file.tensors, student.file.info)
        shaken(distil)
        rows_have_their_own_strength(distil, parts, model, backbone, tmp_path)
    with torch.inference_mode():
        plain = sampled(host, backbone, model, positive, null)
        loaded = parts.load_student(model, path)
        w = student.calibration.wanted[-1] if student.calibration else W
        guided = sampled(host, backbone, *parts.apply_fusion(loaded, positive, null, w), null)
        assert relative(guided, plain) > OTHER, "the update is heard"
        assert torch.equal(sampled(host, backbone, model, positive, null), plain), "and leaves nothing behind"
    with pytest.raises(pack.errors.CheckpointMismatch):
        parts.load_student(built(host, backbone, seed=9), path)
    assert len(parts.latent_shape(model, 64, 64)) == len(backbone.latent)
    tell("guidance lora", f"2 steps, {len(student.file.tensors)} tensors, its file on its base")


def rows_have_their_own_strength(distil, parts, model, backbone, tmp_path):
    """In training each row has its own strength; afterwards the host merges the LoRA at it."""
    x, w_B = randn(5, 3, *backbone.latent), torch.tensor([1.0, 3.0, 6.0])
    sigma_B, rows = torch.tensor([0.8, 0.5, 0.3]), range(3)
    with torch.no_grad(), distil.in_training():
        together = distil.velocity([0, 1, 0], [0, 0, 0], w_B)(x, sigma_B)
        alone = [
            distil.velocity([row % 2], [0], w_B[row : row + 1])(x[row : row + 1], sigma_B[row : row + 1])
            for row in rows
        ]
    assert not distil.student.one_w_per_batch, "all rows in one pass"
    for row in rows:
        assert relative(together[row], alone[row][0]) < EQUAL, f"row {row}"
    path = tmp_path / "shaken.safetensors"
    file = distil.student.file(teacher="", base=parts.base_fingerprint(model), step=1)
    write_student(path, file.tensors, file.info)
    loaded = parts.load_student(model, path)
    for row in rows:
        merged, _ = parts.apply_fusion(loaded, prompt(backbone, 1), prompt(backbone, 2), float(w_B[row]))
        got = parts.Network(merged).velocity(
            x[row : row + 1], sigma_B[row : row + 1], distil.positives.batch([row % 2])
        )
        assert relative(got, together[row : row + 1]) < OTHER, "float16 in the file"
    distil.network.load()


@pytest.mark.parametrize("backbone", [BACKBONES[0], BACKBONES[3], *WITHOUT], ids=lambda backbone: backbone.name)
def test_gradients_are_right_with_activations_kept_or_made_again(backbone, host, pack):
    """Against a finite difference, with rows of two w: the host's blocks may write over what a backward pass needs."""
    from teefusion_core.training.targets import Example

    model, step, gradients = built(host, backbone), 2e-2, []
    x, rows = randn(5, 2, *backbone.latent), torch.zeros(2, dtype=torch.long)
    half, w_B = torch.full((2,), 0.5), torch.tensor([1.0, W])
    example = Example(x, half, w_B, rows, rows, randn(6, *x.shape), randn(7, *x.shape), half)
    with torch.inference_mode(False), torch.enable_grad():
        for checkpointing in (False, True):
            distil = distillation(host, pack, backbone, model, gradient_checkpointing=checkpointing, **METHOD)
            weights = list(distil.student.update.parameters())
            start = torch.cat([0.1 * randn(number, *weight.shape).flatten() for number, weight in enumerate(weights)])

            def at(place, distil=distil, weights=weights):
                torch.nn.utils.vector_to_parameters(place, weights)
                return distil.loss(example)

            with distil.in_training():
                loss = at(start)
                gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, materialize_grads=True)])
                along = gradient / gradient.norm()
                slope = (at(start + step * along) - at(start - step * along)) / (2 * step)
            assert float(slope) == pytest.approx(float(gradient.norm()), rel=0.02)
            gradients.append(gradient)
    assert relative(*gradients) < EQUAL
