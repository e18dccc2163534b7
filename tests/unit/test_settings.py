"""Settings of a distillation: strict types, from a file as from a node."""

from dataclasses import fields

import pytest

from teefusion_core.errors import InvalidConfig
from teefusion_core.training.loop_settings import TrainSettings
from teefusion_core.training.settings import OF_THE_STUDENT, DistillSettings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cache_size", 2.5), ("cache_size", True), ("cache_size", 0), ("rank", 2.5), ("rank", "16"), ("rank", 0),
        ("gradient_checkpointing", "no"), ("gradient_checkpointing", 1), ("guidance_min", "2"), ("guidance_min", -1.0),
        ("guidance_max", float("inf")), ("guidance_max", 0.5), ("reuse", float("nan")), ("negative_share", 1.5),
        ("teacher_steps", 0), ("scheduler", 3), ("method", ["teefusion"]), ("run_seed", -1), ("target", "x0"),
        ("timestep_sampling", "cosine"), ("trainable", "bias"),
    ],
)  # fmt: skip
def test_a_wrong_type_or_value_is_named(name, value):
    with pytest.raises(InvalidConfig) as error:
        DistillSettings(**{name: value})
    assert name in str(error.value) and repr(value) in str(error.value)


def test_every_field_has_a_rule():
    DistillSettings()
    TrainSettings(steps=1, learning_rate=1e-3, batch_size=1)


def test_a_sharpener_learns_one_guidance():
    assert DistillSettings(method="dice", guidance_min=2.0, guidance_max=2.0).guidance_max == 2.0
    with pytest.raises(InvalidConfig, match=r"1\.0"):
        DistillSettings(method="dice")


def test_w_is_drawn_a_little_beyond_its_range():
    low, high = DistillSettings(guidance_min=2.0, guidance_max=6.0, guidance_margin=0.25).drawn_guidance
    assert (low, high) == (1.5, 7.0)
    assert DistillSettings(guidance_min=0.0, guidance_max=6.0, guidance_margin=1.0).drawn_guidance == (0.0, 12.0)
    assert DistillSettings(guidance_min=2.0, guidance_max=6.0, guidance_margin=0.0).drawn_guidance == (2.0, 6.0)


def test_each_step_of_the_student_has_as_many_of_the_teacher():
    assert DistillSettings(teacher_steps=20).steps_learned == 20
    assert DistillSettings(teacher_steps=20, student_steps=5).steps_learned == 5
    with pytest.raises(InvalidConfig, match="student_steps is 5, but a sharpener"):
        DistillSettings(method="dice", guidance_min=2.0, guidance_max=2.0, student_steps=5)
    for student in (6, 40):
        with pytest.raises(InvalidConfig, match=f"teacher_steps is 20 and student_steps is {student}"):
            DistillSettings(teacher_steps=20, student_steps=student)


@pytest.mark.parametrize("given", [{"negative_share": 0.5}, {"trainable": "everything"}, {"trainable": "embedders"}])
def test_what_a_guidance_lora_cannot_be_is_named(given):
    [name] = given
    with pytest.raises(InvalidConfig, match=f"{name} is .*guidance lora"):
        DistillSettings(method="guidance lora", **given)


@pytest.mark.parametrize("method", ["guidance only", "distillcfg"])
def test_a_method_that_never_sees_negative_prompts_is_not_trained_with_them(method):
    with pytest.raises(InvalidConfig, match=f"negative_share is 0.5.*{method}"):
        DistillSettings(method=method, negative_share=0.5)


def test_what_does_not_shape_trajectories_is_a_setting():
    assert {field.name for field in fields(DistillSettings)} > OF_THE_STUDENT
