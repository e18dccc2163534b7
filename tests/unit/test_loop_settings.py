"""Settings of a run: what makes no sense is refused, the schedules are what they say."""

import math

import pytest

from teefusion_core.errors import InvalidConfig
from teefusion_core.training.loop_settings import SCHEDULES, TrainSettings

LEGAL = dict(steps=100, learning_rate=1e-3, batch_size=4)


BAD = {
    "learning_rate": (0, -1e-3, math.nan, math.inf, "1e-3", True), "batch_size": (0, 1.5),
    "steps": (0, -3, True, 10.0), "gradient_accumulation": (0,), "max_grad_norm": (-1.0, math.nan),
    "warmup_steps": (-1, 100), "learning_rate_schedule": ("polynomial", ["linear"]), "weight_decay": (-0.1,),
    "beta1": (1.0,), "beta2": (math.nan,), "ema_decay": (1.0, -0.1), "save_every": (-1,),
}  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_settings_are_refused_by_name_and_value(name, value):
    with pytest.raises(InvalidConfig) as refused:
        TrainSettings(**LEGAL | {name: value})
    assert str(refused.value).startswith(f"{name} is {value!r}")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_rises_to_its_height_then_never_rises_again(schedule):
    settings = TrainSettings(**LEGAL, warmup_steps=10, learning_rate_schedule=schedule)
    lr = [settings.learning_rate_at(step) for step in range(settings.steps)]
    assert lr[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert lr[9] == lr[10] == 1e-3
    assert all(a >= b > 0 for a, b in zip(lr[10:], lr[11:], strict=False))


def test_schedules_in_the_middle_of_what_follows_warm_up():
    half = {
        name: TrainSettings(**LEGAL, warmup_steps=20, learning_rate_schedule=name).learning_rate_at(60)
        for name in SCHEDULES
    }
    assert half == pytest.approx({"constant": 1e-3, "linear": 5e-4, "cosine": 5e-4})
    quarter = TrainSettings(**LEGAL, learning_rate_schedule="cosine").learning_rate_at(25)
    assert quarter == pytest.approx(1e-3 * math.cos(math.pi / 8) ** 2)


def test_the_average_forgets_the_start_first():
    settings = TrainSettings(**LEGAL, ema_decay=0.5)
    assert [settings.ema_decay_at(step) for step in (0, 2, 8, 90)] == pytest.approx([0.1, 0.25, 0.5, 0.5])
    assert TrainSettings(**LEGAL, ema_decay=0.0).ema_decay_at(50) == 0.0
