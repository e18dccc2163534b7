"""A DICE sharpener from the trainer of students: learned on a frozen model, run by DICE Sharpen, one pass per step."""

from dataclasses import replace

import pytest
import torch

from teefusion_core.training.loop_settings import TrainSettings

from .distillation_parts import LATENT, ROWS, TEXTS, example_of, shaken
from .reflection_parts import PROMPT, counted, randn, relative, weights_of

LOOP = TrainSettings(steps=4, batch_size=12, learning_rate=3e-3, save_every=2, warmup_steps=1)
DICE = dict(method="dice", guidance_min=2.0, guidance_max=2.0, reuse=0, cache_size=1)
FILE, SIZE = "mine.safetensors", 0.05


@pytest.fixture
def teach(pack, distil, tmp_path):
    def make(name="run", loop=LOOP, whole=False, **options):
        parts = dict(root=tmp_path / "runs", name=name, teacher="CFG at scale 1 + w, euler", whole_model=whole)
        return pack.comfy_host.Training(distil(**DICE | options), loop, **parts)

    return make


@pytest.fixture
def sharpen(pack, tmp_path, add_folder):
    """The node on a file in a LoRA folder of the host."""
    add_folder("loras", tmp_path / "loras")

    @torch.inference_mode()  # as the host runs nodes
    def run(prompt, **given):
        return pack.nodes["DICESharpen"].execute(prompt, FILE, **given).args[0]

    return run


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_sharpener_alone(distil, world, checkpointing):
    distillation = shaken(distil(gradient_checkpointing=checkpointing, **DICE), SIZE)
    example = example_of(distillation.trajectory(0))
    with distillation.in_training():
        distillation.loss(example).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in distillation.student.update.parameters())
    assert all(weight.grad is None for weight in world.model.model.diffusion_model.parameters())


def test_the_node_gives_what_training_saw(pack, top, world, encoded, teach, sharpen, tmp_path):
    """The file gives the very velocity that the loss was taken from, so another picture than the base."""
    from lab.demo_world.measure import predictions

    training = teach(loop=replace(LOOP, steps=2, warmup_steps=0, learning_rate=1e-12, ema_decay=0.0))
    distillation = shaken(training.distillation, SIZE)
    x, sigma = randn(8, 2, *LATENT), torch.tensor(0.7)
    with torch.no_grad(), distillation.in_training():
        mine = distillation.velocity([0, 0], [0, 0], torch.full((2,), 2.0))(x, sigma.expand(2))
    student = training.run()
    student.file.write(tmp_path / "loras" / FILE)
    prompt, null = encoded[TEXTS[0]], encoded[""]
    sharp = sharpen(prompt, alpha=1.0, beta=0.0, null=null)
    with torch.inference_mode():
        seen = predictions(world.model, sharp, null, [(x, sigma), (x, sigma)], torch.zeros_like(x))[0]
        assert relative((x - seen) / sigma, mine) < 1e-4
        plain = top.euler(world, cfg=1.0, positive=prompt)
        with counted(world.model) as passes:
            assert relative(top.euler(world, cfg=1.0, positive=sharp), plain) > 0.02
        assert passes == [(0, 1)] * 3, "one pass per step"
        assert torch.equal(top.euler(world, cfg=1.0, positive=sharpen(prompt, alpha=0.0, beta=0.0, null=null)), plain)
    assert torch.equal(sharp[0][1]["pooled_output"], prompt[0][1]["pooled_output"])
    assert student.file.lora == {}


def test_the_file_says_what_it_is(teach, sharpen, world, pack, encoded, tmp_path):
    student = teach().run()
    info = student.file.info
    assert (info.method, info.width, info.alpha, info.step) == ("dice", 128, 1.0, LOOP.steps)
    assert info.teacher == "CFG at scale 1 + w, euler, w 2"
    assert info.base == pack.comfy_host.base_fingerprint(world.model)
    student.file.write(tmp_path / "loras" / FILE)
    with pytest.raises(ValueError, match="alpha is 3.*0 to 2"):
        sharpen(encoded[PROMPT], alpha=3.0, beta=0.0, null=encoded[""])
    loader = pack.nodes["TeEFusionStudentLoader"]
    with pytest.raises(pack.errors.CheckpointMismatch, match="DICE Sharpen"):
        loader.execute(FILE, world.model)


def test_another_base_is_refused_where_the_model_is_connected(pack, world, encoded, teach, sharpen, tmp_path):
    teach(loop=replace(LOOP, steps=2)).run().file.write(tmp_path / "loras" / FILE)
    given = dict(alpha=1.0, beta=0.0, null=encoded[""])
    sharp = sharpen(encoded[PROMPT], model=world.model, **given)
    assert torch.equal(sharp[0][0], sharpen(encoded[PROMPT], **given)[0][0])
    with pytest.raises(pack.errors.CheckpointMismatch, match="^DICE Sharpen: mine.safetensors"):
        sharpen(encoded[PROMPT], model=world.weak, **given)


def test_a_model_that_guides_itself_is_refused_where_it_is_connected(
    pack, top, world, encoded, teach, sharpen, tmp_path
):
    teach(loop=replace(LOOP, steps=2)).run().file.write(tmp_path / "loras" / FILE)
    given = dict(alpha=1.0, beta=0.0, null=encoded[""])
    fused = pack.nodes["TeEFusionConditioning"].execute(world.model, world.positive, world.negative, 2.0).args[0]
    for model in (top.load("student")[0], top.load("student_guidance_lora")[0], fused):
        with pytest.raises(pack.errors.InvalidConfig, match="^DICE Sharpen: model .*guided twice"):
            sharpen(encoded[PROMPT], model=model, **given)


def test_stopped_halfway_it_ends_with_the_same_bits(teach):
    whole = teach("whole", reuse=1.0).run()
    asked = iter([False] * 3 + [True])
    part = teach("parts", reuse=1.0).run(should_stop=lambda: next(asked))
    assert not part.finished and len(part.losses) == 3
    rest = teach("parts", reuse=1.0).run()
    assert rest.losses == whole.losses
    assert all(torch.equal(rest.file.tensors[name], tensor) for name, tensor in whole.file.tensors.items())


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_models_without_a_place_for_the_term_are_fine(host, pack, top, kind, tmp_path):
    """A UNet, as of SD1.5 or SDXL, is refused to every other method."""
    from teefusion_core.training.settings import DistillSettings

    world, parts = top.world(kind), pack.comfy_host
    pooled = {"pooled_output": randn(1, 1, 8)}
    positives, nulls = (parts.Prompts([[[context, pooled]] for context, _ in prompt], "prompt")
                        for prompt in (world.positive, world.negative))  # fmt: skip
    teacher = parts.Teacher(host.comfy.samplers.CFGGuider(world.model), host.comfy.samplers.sampler_object("euler"))
    before = weights_of(world.model)

    def distillation(**options):
        settings = DistillSettings(**DICE | dict(teacher_steps=3, images_per_trajectory=2) | options)
        start = dict(latent_CHW=(world.channels, 8, 8))
        return parts.Distillation(world.model, teacher, positives, nulls, settings, **start)

    loop = TrainSettings(steps=24, batch_size=6, learning_rate=2e-3, ema_decay=0.0)
    student = parts.Training(distillation(), loop, root=tmp_path, name="run", teacher="CFG").run()
    assert student.file.info.width == 32 and sum(student.losses[-6:]) < sum(student.losses[:6])
    after = weights_of(world.model)
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    with pytest.raises(pack.errors.UnsupportedArchitecture):
        distillation(method="teefusion", guidance_max=3.0)


def test_a_range_of_guidance_and_the_whole_model_are_refused(pack, distil, teach):
    with pytest.raises(pack.errors.InvalidConfig, match="whole_model"):
        teach(whole=True)
    with pytest.raises(ValueError, match="1.0.*2.0"):
        distil(**DICE | dict(guidance_min=1.0))
    with pytest.raises(ValueError, match="guidance_max"):
        distil(guidance_min=2.0, guidance_max=2.0)  # one guidance for the other methods


def test_every_example_has_the_one_guidance_that_alpha_1_stands_for(distil):
    """A margin beyond the range, which others have, would mix guidances that one alpha cannot tell apart."""
    distillation = distil(guidance_margin=0.5, **DICE)
    assert [float(distillation.trajectory(number).w) for number in range(3)] == [2.0] * 3


def test_negatives_are_what_it_is_pushed_away_from(distil):
    distillation = shaken(distil(negative_share=1.0, **DICE), SIZE)
    trajectory = distillation.trajectory(0)
    assert set(trajectory.null_SB.flatten().tolist()) == {1} and trajectory.x_SBCHW.shape[1] == ROWS
    example = example_of(trajectory)
    with torch.no_grad():
        mine = distillation.velocity(example.prompt_B.tolist(), example.null_B.tolist(), example.w_B)
        other = distillation.velocity(example.prompt_B.tolist(), [0] * ROWS, example.w_B)
        assert relative(mine(example.x_BCHW, example.sigma_B), other(example.x_BCHW, example.sigma_B)) > 1e-4
