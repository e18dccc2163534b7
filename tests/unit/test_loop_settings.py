"""Settings of a run: what makes no sense is refused, the schedules are what they say."""

import math

import pytest

from teefusion_core.errors import InvalidConfig
from teefusion_core.training.loop_settings import SCHEDULES, TrainSettings

LEGAL = dict(steps=100, lr=1e-3, batch=4)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(lr=0), "lr is 0; give a finite number above 0"), (dict(lr=math.nan), "lr is nan"),
        (dict(lr=-1e-3), "lr"), (dict(lr=math.inf), "lr"), (dict(lr="1e-3"), "lr is '1e-3'"), (dict(lr=True), "lr"),
        (dict(batch=0), "batch is 0; give a whole number, 1 or more"), (dict(batch=1.5), "batch"),
        (dict(steps=0), "steps"), (dict(steps=-3), "steps"), (dict(steps=True), "steps"), (dict(steps=10.0), "steps"),
        (dict(accumulation=0), "accumulation"), (dict(clip=-1.0), "clip"), (dict(clip=math.nan), "clip"),
        (dict(warmup=-1), "warmup"), (dict(warmup=100), "warmup is 100 of 100 steps; give fewer"),
        (dict(schedule="polynomial"), "schedule is 'polynomial'; give one of constant, linear, cosine"),
        (dict(schedule=["linear"]), "schedule"), (dict(weight_decay=-0.1), "weight_decay"),
        (dict(beta1=1.0), "beta1"), (dict(beta2=math.nan), "beta2"), (dict(ema=1.0), "ema"), (dict(ema=-0.1), "ema"),
        (dict(save_every=-1), "save_every"), (dict(seed=-1), "seed"), (dict(seed=2**64), "seed"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(bad, message):
    with pytest.raises(InvalidConfig, match=f"^{message}"):
        TrainSettings(**LEGAL | bad)


def test_zero_turns_off_what_can_be_turned_off():
    TrainSettings(**LEGAL, clip=0, warmup=0, weight_decay=0, ema=0, save_every=0)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lr_rises_to_its_height_then_never_rises_again(schedule):
    settings = TrainSettings(**LEGAL, warmup=10, schedule=schedule)
    lr = [settings.lr_at(step) for step in range(settings.steps)]
    assert lr[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert lr[9] == lr[10] == 1e-3
    assert all(a >= b > 0 for a, b in zip(lr[10:], lr[11:], strict=False))


def test_schedules_in_the_middle_of_what_follows_warm_up():
    half = {name: TrainSettings(**LEGAL, warmup=20, schedule=name).lr_at(60) for name in SCHEDULES}
    assert half == pytest.approx({"constant": 1e-3, "linear": 5e-4, "cosine": 5e-4})
    quarter = TrainSettings(**LEGAL, schedule="cosine").lr_at(25)
    assert quarter == pytest.approx(1e-3 * math.cos(math.pi / 8) ** 2)


def test_the_average_forgets_the_start_first():
    settings = TrainSettings(**LEGAL, ema=0.5)
    assert [settings.ema_at(step) for step in (0, 2, 8, 90)] == pytest.approx([0.1, 0.25, 0.5, 0.5])
    assert TrainSettings(**LEGAL, ema=0.0).ema_at(50) == 0.0
