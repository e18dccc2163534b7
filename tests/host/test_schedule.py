"""Guidance that changes over the steps of a run, against runs of one step each."""

import logging

import pytest
import torch

from teefusion_core.training.loop_settings import TrainSettings

from .reflection_parts import counted, randn, relative

STEPS, LOW = 6, 0.5
SHAPES = {
    "interval": {"start": 0.3, "end": 0.7},
    "cosine down": {},
    "list": {"shares": (0.0, 1.0, 2.0, 0.5, 1.0, 0.25)},
}


@pytest.fixture(params=SHAPES)
def schedule(request, top):
    made = top.module("guidance.schedule").GuidanceSchedule
    return made(request.param, low=LOW, **SHAPES[request.param])


@pytest.fixture
def interval(top):
    return top.module("guidance.schedule").GuidanceSchedule("interval", 0.3, 0.7)


@pytest.fixture
def fuse(top, world):
    def apply(guidance, positive=None, model=None, **options):
        positive, options = positive or world.positive, {"gain": 0.05, "guidance_precision": "exact", **options}
        return top.pack.comfy_host.apply_fusion(model or world.model, positive, world.negative, guidance, **options)

    return apply


@pytest.fixture
def step_by_step(top, world):
    """Sample in runs of one step each, given a guider per step."""

    def run(guider_at, x, sigmas):
        for step in range(len(sigmas) - 1):
            x = sampled(top, guider_at(step), x, sigmas[step : step + 2])
        return x

    return run


def sampled(top, guider, x, sigmas, sampler="euler"):
    """Return the last state of a run from a state at the first sigma."""
    sampler = top.comfy.samplers.sampler_object(sampler) if isinstance(sampler, str) else sampler
    given = sampler, torch.zeros_like(x), torch.zeros_like(x), sigmas.clone()
    recorded = top.module("comfy_host.recording").record(guider, *given, start_BCHW=x)
    return recorded.states[-1]


def basic(top, model, positive):
    guider = top.host.custom_sampler.Guider_Basic(model)
    guider.set_conds(positive)
    return guider


def with_cfg(top, model, positive, negative, cfg):
    guider = top.comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative)
    guider.set_cfg(cfg)
    return guider


def guidance_at(top, world, schedule, w, sigma):
    """The guidance of the step from a noise level, written out."""
    if schedule.shape == "list":
        step = top.sigmas(world, STEPS).tolist().index(float(sigma))
        return LOW + SHAPES["list"]["shares"][step] * (w - LOW)
    sampling = world.model.get_model_object("model_sampling")
    return schedule.at(w, top.pack.comfy_host.position_of(sampling, float(sigma)))


@pytest.mark.parametrize("percent", (0.05, 0.3, 0.8))
@pytest.mark.parametrize("kind", ("flow", "eps", "v"))
def test_a_position_is_the_percentage_of_the_host(top, kind, percent):
    sampling = top.world(kind).model.get_model_object("model_sampling")
    sigma = float(torch.tensor(sampling.percent_to_sigma(percent), dtype=torch.float32))
    assert top.pack.comfy_host.position_of(sampling, sigma) == pytest.approx(percent, abs=1e-5)


def test_ends_of_sampling(top, world):
    sampling = world.model.get_model_object("model_sampling")
    assert top.pack.comfy_host.position_of(sampling, float(sampling.sigma_max)) == pytest.approx(0, abs=1e-6)
    assert top.pack.comfy_host.position_of(sampling, 0.0) == pytest.approx(1)


@pytest.mark.parametrize("w", (3.0, (1.0, 3.0)))
def test_a_student_has_the_guidance_of_each_step(top, world, fuse, step_by_step, schedule, w):
    sigmas, x = top.sigmas(world, STEPS), randn(1, 2, 16, 8, 8)
    w_B = torch.tensor(w).reshape(-1)
    alone = step_by_step(
        lambda step: basic(top, *fuse(guidance_at(top, world, schedule, w_B, sigmas[step]).tolist())), x, sigmas
    )
    together = sampled(top, basic(top, *fuse(w, schedule=schedule)), x, sigmas)
    constant = sampled(top, basic(top, *fuse(w)), x, sigmas)
    assert relative(together, alone) < 1e-6
    assert relative(constant, alone) > 1e-3


@pytest.mark.parametrize("schedule", [shape for shape in SHAPES if shape != "list"], indirect=True)
def test_a_run_in_two_parts_is_the_whole(top, world, fuse, schedule):
    """Except for a list, which counts the steps of each run."""
    sigmas, x = top.sigmas(world, STEPS), randn(1, 1, 16, 8, 8)
    model, positive = fuse(3.0, schedule=schedule)
    first = sampled(top, basic(top, model, positive), x, sigmas[:4])
    second = sampled(top, basic(top, model, positive), first, sigmas[3:])
    assert relative(second, sampled(top, basic(top, model, positive), x, sigmas)) < 1e-6


@pytest.mark.parametrize("sampler", ("heun", "dpmpp_2s_ancestral", "dpmpp_2m"))
def test_samplers_with_other_noise_levels(top, world, fuse, schedule, sampler):
    sigmas, x = top.sigmas(world, STEPS), randn(1, 1, 16, 8, 8)
    fused = fuse(3.0, schedule=schedule)
    always = top.module("guidance.schedule").GuidanceSchedule("constant")
    assert sampled(top, basic(top, *fused), x, sigmas, sampler).isfinite().all()
    assert torch.equal(
        sampled(top, basic(top, *fuse(3.0, schedule=always)), x, sigmas, sampler),
        sampled(top, basic(top, *fuse(3.0)), x, sigmas, sampler),
    )


def test_prompts_with_masks_share_a_pass_each_with_its_own_schedule(top, world, fuse, schedule, interval):
    """As ConditioningCombine makes them; the negative prompt has no guidance at all."""
    sigmas, x = top.sigmas(world, STEPS), randn(1, 1, 16, 8, 8)
    left = torch.zeros(1, 8, 8)
    left[..., :4] = 1
    masks = [{"mask": mask, "mask_strength": 1.0, "set_area_to_bounds": False} for mask in (left, 1 - left)]

    def prompts(number):
        step = None if number is None else sigmas[number]
        sides = []
        for text, mask, curve in zip((world.positive, world.other), masks, (schedule, interval), strict=True):
            own = {"schedule": curve} if step is None else {}
            w = 3.0 if step is None else guidance_at(top, world, curve, 3.0, step)
            sides.append(fuse(w, [[text[0][0], {**text[0][1], **mask}]], **own))
        (model, one), (_, two) = sides
        return with_cfg(top, model, one + two, world.negative, 2.0)

    with counted(world.model) as seen:
        together = sampled(top, prompts(None), x, sigmas)
    assert [rows for _, rows in seen] == [3] * STEPS
    alone = x
    for number in range(STEPS):
        alone = sampled(top, prompts(number), alone, sigmas[number : number + 2])
    assert relative(together, alone) < 1e-6


def test_a_run_of_one_noise_level_takes_no_step(top, world, fuse, interval):
    """Split Sigmas makes one at its ends."""
    fused, positive = fuse(3.0, schedule=interval)
    x = randn(1, 1, 16, 8, 8)
    sampler, sigmas = top.comfy.samplers.sampler_object("euler"), top.sigmas(world, STEPS)[:1]
    out = basic(top, fused, positive).sample(x, torch.zeros_like(x), sampler, sigmas, disable_pbar=True)
    plain = basic(top, world.model, positive).sample(x, torch.zeros_like(x), sampler, sigmas, disable_pbar=True)
    assert torch.equal(out, plain)


@pytest.mark.parametrize("scheduler", ("normal", "simple", "sgm_uniform", "karras", "beta"))
@pytest.mark.parametrize("steps", (7, 20))
def test_a_list_has_a_share_for_each_step_of_any_scheduler(top, world, scheduler, steps):
    host, make = top.pack.comfy_host, top.module("guidance.schedule").GuidanceSchedule
    sigmas = host.schedule(world.model, scheduler, steps, 1.0)
    schedule, sampling = make("list", shares=tuple(range(steps))), world.model.model.model_sampling
    position = host.Positions(schedule, sampling, sigmas.tolist())
    assert [position.schedule.share(position(sigma)) for sigma in sigmas[:-1].tolist()] == list(range(steps))
    between = (sigmas[2] + sigmas[3]).item() / 2
    assert position.schedule.share(position(between)) == 2


def test_a_curve_that_leaves_the_range_is_refused_before_the_run(top, world, fuse):
    student, make = world.model.clone(), top.module("guidance.schedule").GuidanceSchedule
    student.set_attachments(top.pack.comfy_host.STUDENT_KEY, {"guidance_min": 1.0, "guidance_max": 4.0})
    with pytest.raises(top.pack.errors.InvalidConfig, match="at 0 % of sampling guidance is 0, .* Schedule is 0$"):
        fuse(3.0, model=student, schedule=make("interval", 0.2, 0.8))
    with pytest.raises(top.pack.errors.InvalidConfig, match=r"at 50 % of sampling guidance is 6,"):
        fuse(3.0, model=student, schedule=make("list", shares=(1, 2)))
    fuse(3.0, model=student, schedule=make("interval", 0.2, 0.8, low=1.0))


def test_another_student_behind_the_node_names_the_step(top, world, fuse):
    make = top.module("guidance.schedule").GuidanceSchedule
    student = world.model.clone()
    student.set_attachments(top.pack.comfy_host.STUDENT_KEY, {"guidance_min": 1.0, "guidance_max": 4.0})
    model, _ = fuse(3.0, model=student)
    _, positive = fuse(3.0, schedule=make("list", shares=(1, 1, 2)))
    with pytest.raises(top.pack.errors.InvalidConfig, match="in step 3 of 3 guidance is 6"):
        sampled(top, basic(top, model, positive), randn(1, 1, 16, 8, 8), top.sigmas(world, 3))


def test_a_guidance_lora_takes_no_schedule(top, world, fuse, interval):
    student = world.model.clone()
    student.set_attachments(top.pack.comfy_host.STUDENT_KEY, {"method": "guidance lora", "reference_guidance": 4.0})
    with pytest.raises(top.pack.errors.InvalidConfig, match="guidance lora"):
        fuse(3.0, model=student, schedule=interval)


@pytest.mark.parametrize("kind", ("flow", "eps"))
def test_cfg_has_the_scale_of_each_step(top, kind, step_by_step, schedule):
    world = top.world(kind)
    sigmas, x = top.sigmas(world, STEPS), randn(1, 1, world.channels, 8, 8)

    def guider_at(step):
        scale = 1 + guidance_at(top, world, schedule, 3.0, sigmas[step])
        return with_cfg(top, world.model, world.positive, world.negative, scale)

    node = top.pack.nodes["ScheduledCFGGuider"]
    guider = node.execute(world.model, world.positive, world.negative, 4.0, schedule).args[0]
    # a step ends at a level above zero by a division and a multiplication, which round
    assert relative(sampled(top, guider, x, sigmas), step_by_step(guider_at, x, sigmas)) < 2e-6


def test_steps_outside_of_the_interval_cost_one_pass(top, world, interval, caplog):
    sigmas, x = top.sigmas(world, STEPS), randn(1, 1, 16, 8, 8)
    node = top.pack.nodes["ScheduledCFGGuider"]
    with counted(world.model) as seen, caplog.at_level(logging.INFO):
        sampled(top, node.execute(world.model, world.positive, world.negative, 4.0, interval).args[0], x, sigmas)
    inside = [guidance_at(top, world, interval, 3.0, sigma) > 0 for sigma in sigmas[:-1]]
    assert [rows for _, rows in seen] == [1 + guided for guided in inside] and 0 < sum(inside) < STEPS
    assert f"{STEPS} steps, {STEPS + sum(inside)} forward passes" in caplog.text


def test_a_reflection_guides_and_reflects_in_the_interval_only(top, world, step_by_step, interval):
    sigmas, x = top.sigmas(world, STEPS), randn(1, 1, 16, 8, 8)
    operator = top.pack.comfy_host.ReflectionSampler()
    node = top.pack.nodes["ReflectionGuider"]
    settings = world.model, world.positive, world.negative, 1.0, 1.0, 4.0, "CFG", 0.5, world.weak
    guider = node.execute(*settings, schedule=interval).args[0]
    together = sampled(top, guider, x, sigmas, operator)
    for step in range(STEPS):
        part = sigmas[step : step + 2]
        if guidance_at(top, world, interval, 3.0, sigmas[step]) > 0:
            x = sampled(top, node.execute(*settings).args[0], x, part, operator)
        else:
            x = sampled(top, basic(top, world.model, world.positive), x, part)
    assert relative(together, x) < 1e-6


def test_a_student_as_weak_model_has_its_schedule(top, world, fuse):
    always_low = top.module("guidance.schedule").GuidanceSchedule("list", low=LOW, shares=(0.0,))
    alone, scheduled, high = fuse(LOW), fuse(3.0, schedule=always_low), fuse(3.0)
    expected, low, other = (
        top.reflect(world, weak=model, weak_positive=positive).samples for model, positive in (alone, scheduled, high)
    )
    assert relative(low, expected) < 1e-5 and relative(other, expected) > 1e-3


def test_a_teacher_has_its_schedule_and_its_run_knows_it(top, world, interval, caplog):
    host, sigmas, noise = top.pack.comfy_host, top.sigmas(world, STEPS), randn(1, 1, 16, 8, 8)
    node, euler = top.pack.nodes["ScheduledCFGGuider"], top.comfy.samplers.sampler_object("euler")
    guider = node.execute(world.model, world.positive, world.negative, 1.0, interval).args[0]
    with caplog.at_level(logging.INFO):
        states, _ = host.Teacher(guider, euler).sample(world.positive, world.negative, noise, sigmas, 4.0)
    assert "forward passes" not in caplog.text, "the trainer's own lines stay"
    guider.set_cfg(4.0)
    start = world.model.get_model_object("model_sampling").noise_scaling(sigmas[0], noise, torch.zeros_like(noise))
    assert relative(states[-1], sampled(top, guider, start, sigmas)) < 1e-6
    assert guider.described() == {"schedule": interval.json()}


def test_a_student_learns_from_a_teacher_with_an_interval(top, world, distil, interval, tmp_path):
    host, node = top.pack.comfy_host, top.pack.nodes["ScheduledCFGGuider"]
    guiders = [
        node.execute(world.model, world.positive, world.negative, 1.0, curve).args[0]
        for curve in (interval, type(interval)("interval", 0.0, 0.5))
    ]
    one, other = (distil(guider=guider) for guider in guiders)
    assert host.identity_of(one) != host.identity_of(other)
    guidance_SBCHW = one.trajectory(0).guidance_SBCHW
    off = [not guidance.abs().max() > 1e-4 for guidance in guidance_SBCHW]
    assert off[0] and off[-1] and not all(off)
    trained = host.Training(
        one, TrainSettings(steps=2, batch_size=4, learning_rate=1e-3), root=tmp_path, name="run", teacher="CFG"
    ).run()
    assert trained.finished and trained.file.lora and max(trained.losses) < 100


def test_the_node_draws_its_curve(top):
    out = top.pack.nodes["GuidanceSchedule"].execute("list", 0.0, 100.0, 0.0, "0, 1, 2")
    assert out.args[0].share(0.5) == 1 and out.ui.as_dict()["images"]
    with pytest.raises(top.pack.errors.InvalidConfig, match="^Guidance Schedule: "):
        top.pack.nodes["GuidanceSchedule"].execute("interval", 50.0, 50.0, 0.0)
    top.pack.nodes["GuidanceSchedule"].execute("interval", 20.0, 80.0, 0.0, "a note on a list that is not used")
