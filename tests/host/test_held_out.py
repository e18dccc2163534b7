"""The loss on a trajectory that training does not use."""

import pytest

from teefusion_core.training.loop_settings import TrainSettings

from .distillation_parts import shaken

WEIGHT = 3.0


def test_a_student_that_is_its_base_misses_the_whole_guidance(pack, distil):
    distillation = distil(method="guidance lora", nulls=("",), initial_gain_ratio=0.0, guidance_error_weight=WEIGHT)
    with distillation.in_training():
        own = dict(distillation.student.update.named_parameters())
        assert pack.comfy_host.HeldOut(distillation).loss(own) == pytest.approx(WEIGHT, rel=1e-3)


def test_it_falls_in_training_and_leaves_the_weights(pack, distil, tmp_path):
    found = []
    distillation = distil(reuse=0, cache_size=1, images_per_trajectory=8)
    held_out = pack.comfy_host.HeldOut(distillation)
    loop = TrainSettings(steps=30, batch_size=16, learning_rate=3e-3, save_every=0)
    training = pack.comfy_host.Training(distillation, loop, root=tmp_path, name="run", teacher="CFG")
    plain = training.run().file.tensors

    def on_step(report):
        if report.step in (1, 30):
            found.append(held_out.loss(report.average))
            assert held_out.loss(report.average) == found[-1]

    again = distil(reuse=0, cache_size=1, images_per_trajectory=8)
    held_out.distil = again
    training = pack.comfy_host.Training(again, loop, root=tmp_path, name="again", teacher="CFG")
    watched = training.run(on_step=on_step).file.tensors
    assert found[1] < 0.9 * found[0]
    assert all(bool((plain[name] == watched[name]).all()) for name in plain)


def test_it_depends_on_the_student(pack, distil):
    distillation = shaken(distil())
    with distillation.in_training():
        held_out = pack.comfy_host.HeldOut(distillation)
        average = {name: weight.detach().clone() for name, weight in distillation.student.update.named_parameters()}
        first = held_out.loss(average)
        assert held_out.loss({name: 2 * weight for name, weight in average.items()}) != first
