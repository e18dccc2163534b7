"""Distill Trainer: from what is wired to a student that the other nodes take."""

import inspect
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from teefusion_core.guidance.calibration import Calibration
from teefusion_core.training.adapters import TRAINABLE

from .distillation_parts import precision_of
from .reflection_parts import OTHER, PROMPT, randn, relative, weights_of

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
NODE = "DistillTrainer"
SMALL = dict(
    prompts=f"{PROMPT}\n\n {OTHER}\n", name="mine", steps=6, batch_size=2, rank=2, guidance_max=6.0, width=64,
    height=64, teacher_steps=3, cache_size=1, images_per_trajectory=2, initial_gain_ratio=0.25, save_every=2,
    preview_every=3, calibration=0,
)  # fmt: skip


@pytest.fixture
def output(tmp_path, monkeypatch):
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    return tmp_path


@pytest.fixture
def shown(host, monkeypatch):
    """What the progress bar is given."""
    seen = []
    update = host.comfy.utils.ProgressBar.update_absolute
    monkeypatch.setattr(
        host.comfy.utils.ProgressBar,
        "update_absolute",
        lambda bar, value, total=None, preview=None: (seen.append((value, total, preview)), update(bar, value, total)),
    )
    return seen


@pytest.fixture
def train(pack, host, top, world, output, shown):
    """Run the node as the host does: every input a list, those not given at their defaults."""

    def run(**given):
        node = pack.nodes[NODE]
        wired = dict(
            model=world.model, guider=host.comfy.samplers.CFGGuider(world.model),
            sampler=host.comfy.samplers.sampler_object("euler"), clip=top.load("base")[1],
        )  # fmt: skip
        defaults = {item.id: item.default for item in node.GET_SCHEMA().inputs if hasattr(item, "default")}
        values = {**defaults, **wired, **SMALL, **given}
        lists = ("positive", "null", "latents")
        required = inspect.signature(node.execute).parameters
        taken = {name: value for name, value in values.items() if name in required and value is not None}
        return node.execute(**{k: v if k in lists else [v] for k, v in taken.items()}).args

    return run


def test_inputs_come_as_lists_and_the_node_shows_its_output(pack):
    schema = pack.nodes[NODE].GET_SCHEMA()
    assert schema.is_input_list and schema.is_output_node


def test_a_run_ends_in_a_student_that_the_other_nodes_take(pack, host, top, world, train, output, add_folder):
    before = weights_of(world.model)
    lora, losses, steps, path, trained = train()
    assert path == str(output / "loras" / "mine.safetensors") and steps == 6 == len(losses["loss"])
    top.assert_clean(world.model, before)
    add_folder("loras", output / "loras")
    student = pack.nodes["TeEFusionStudentLoader"].execute("mine.safetensors", world.model).args[0]
    prompt, null = world.positive, world.negative
    fused, positive = pack.nodes["TeEFusionConditioning"].execute(student, prompt, null, 3.0).args
    picture = top.euler(world, model=fused, cfg=1.0, positive=positive)
    at_once, positive = pack.nodes["TeEFusionConditioning"].execute(trained, prompt, null, 3.0).args
    assert torch.equal(top.euler(world, model=at_once, cfg=1.0, positive=positive), picture)
    # the same weights by the host's own loader of what the node hands on
    stock = host.comfy.sd.load_lora_for_models(world.model, None, lora, 1.0, 0)[0]
    stock.set_attachments(pack.comfy_host.STUDENT_KEY, student.get_attachment(pack.comfy_host.STUDENT_KEY))
    again, positive = pack.nodes["TeEFusionConditioning"].execute(stock, prompt, null, 3.0).args
    assert relative(top.euler(world, model=again, cfg=1.0, positive=positive), picture) < 1e-4


def test_by_dice_it_makes_a_sharpener_that_dice_sharpen_takes(pack, top, world, train, output, shown, add_folder):
    top.unload()  # what an earlier run has patched
    before = weights_of(world.model)
    lora, losses, steps, path, none = train(method="dice", guidance_min=2.0, guidance_max=2.0, learning_rate=3e-3)
    assert type(none).__name__ == "ExecutionBlocker" and "DICE Sharpen" in none.message
    assert lora == {} and steps == 6 == len(losses["loss"])
    top.assert_clean(world.model, before)
    kind, image, _ = shown[-1][2]
    pixels = np.asarray(image.convert("RGB"))
    assert kind == "JPEG" and pixels[:, pixels.shape[0] + 8 :].std() > 20, "pictures at alpha 0, 0.5, 1"
    assert path == str(output / "loras" / "mine.safetensors")
    add_folder("loras", output / "loras")
    given = dict(null=world.negative, model=world.model)
    sharp = pack.nodes["DICESharpen"].execute(world.positive, "mine.safetensors", 1.0, 0.0, **given).args[0]
    assert relative(sharp[0][0], world.positive[0][0]) > 1e-5


def test_the_node_shows_curve_and_pictures(train, shown, top):
    train(vae=top.load("base")[2])
    assert [value for value, _, _ in shown][-6:] == [1, 2, 3, 4, 5, 6] and shown[-1][1] == 6
    kind, image, _ = shown[-1][2]
    assert kind == "JPEG" and isinstance(image, Image.Image)
    pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] > 1.5 * pixels.shape[0], "curve with pictures beside it"
    assert pixels[:, pixels.shape[0] + 8 :].std() > 20 and pixels[:, : pixels.shape[0]].std() > 5


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_pictures_in_between_change_nothing(train, trainable):
    watched = train(name="watched", preview_every=1, trainable=trainable)
    alone = train(name="alone", preview_every=0, trainable=trainable)
    assert watched[1] == alone[1]
    assert all(torch.equal(watched[0][name], tensor) for name, tensor in alone[0].items())


def test_at_the_end_student_and_teacher_are_compared(
    pack, host, world, train, output, add_folder, shown, monkeypatch, caplog
):
    """Cancelled then, it keeps the training; started again, it compares only."""
    monkeypatch.setattr(precision_of(pack), "_multiplies_bfloat16", lambda device: False)  # learns the same everywhere
    kind, asked = pack.comfy_host.Distillation, []
    made, beside = kind.trajectory, kind.trajectory_beside
    learned = dict(
        method="guidance lora", calibration=2, guidance_min=0.2, guidance_max=1.0, steps=40, learning_rate=1e-2,
        batch_size=8, cache_size=4, reuse=0, teacher_steps=4, rank=8, preview_every=0,
    )  # fmt: skip

    def cancelled(*args):
        host.comfy.model_management.interrupt_current_processing()
        return beside(*args)

    monkeypatch.setattr(kind, "trajectory_beside", cancelled)
    with caplog.at_level(logging.INFO), pytest.raises(host.comfy.model_management.InterruptProcessingException):
        train(**learned)
    assert "run again to calibrate" in caplog.text and not (output / "loras" / "mine.safetensors").exists()
    monkeypatch.setattr(kind, "trajectory_beside", beside)
    monkeypatch.setattr(kind, "trajectory", lambda *args, **told: asked.append(told) or made(*args, **told))
    caplog.clear()
    with caplog.at_level(logging.INFO):
        _, losses, steps, *_ = train(**learned)
    assert steps == 40 == len(losses["loss"]) and asked == [{}], "the forecast's only, of which nothing is told"
    assert "comparing student and teacher at w 1 of 5" in caplog.text
    add_folder("loras", output / "loras")
    student = pack.nodes["TeEFusionStudentLoader"].execute("mine.safetensors", world.model).args[0]
    curve = Calibration.of(student.get_attachment(pack.comfy_host.STUDENT_KEY)["calibration"])
    assert curve.teacher == pytest.approx([1 + w for w in curve.wanted], rel=0.01), "CFG"
    assert curve.after == pytest.approx(curve.teacher, rel=0.03), "what the teacher gives"
    assert max(abs(a - b) for a, b in zip(curve.before, curve.teacher, strict=True)) > 0.05, "which it did not"
    assert f"Calibrated for w from {curve.typed()}" in caplog.text
    assert np.asarray(shown[-1][2][1]).shape == (256, 512, 3), "the curve of the loss beside wanted and got"
    fuse = pack.nodes["TeEFusionConditioning"].execute
    fuse(student, world.positive, world.negative, curve.wanted[-1])
    if curve.wanted[-1] < 1.0:
        with pytest.raises(pack.errors.InvalidConfig, match=f"this student allows {curve.typed()}"):
            fuse(student, world.positive, world.negative, 1.0)


def test_cancel_keeps_the_work(host, top, world, train, output, shown, monkeypatch, caplog):
    before = weights_of(world.model)
    management = host.comfy.model_management

    def interrupted():
        if len(shown) == 4:
            raise management.InterruptProcessingException()

    whole = train(name="whole")
    shown.clear()
    with monkeypatch.context() as patch:
        patch.setattr(management, "throw_exception_if_processing_interrupted", interrupted)
        with caplog.at_level(logging.INFO), pytest.raises(management.InterruptProcessingException):
            train(name="stopped")
    assert "step 4" in caplog.messages[-1]
    top.assert_clean(world.model, before)
    assert not (output / "loras" / "stopped.safetensors").exists()
    assert (output / "teefusion_runs" / "stopped" / "step-00000004").is_dir()
    rest = train(name="stopped")
    assert rest[1] == whole[1]
    assert all(torch.equal(rest[0][name], tensor) for name, tensor in whole[0].items())


def test_a_stopped_run_can_end_at_the_step_that_it_has_reached(host, train, output, shown, monkeypatch):
    management = host.comfy.model_management

    def interrupted():
        if len(shown) == 4:
            raise management.InterruptProcessingException()

    with monkeypatch.context() as patch:
        patch.setattr(management, "throw_exception_if_processing_interrupted", interrupted)
        with pytest.raises(management.InterruptProcessingException):
            train(name="early")
    shown.clear()
    _, losses, steps, path, _ = train(name="early", steps=4, accept_changes="steps")
    assert steps == 4 == len(losses["loss"]) and Path(path).is_file()


@pytest.mark.parametrize("trainable", ["lora", "everything"])
def test_cancel_before_a_picture_is_a_cancel(host, pack, train, monkeypatch, trainable):
    """On a base of 16 bits, where what is trained stands in for its weights as rounded copies."""
    path = Path(__file__).resolve().parent.parent.parent / "models" / "demo_sd3_base.safetensors"
    model = host.comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.bfloat16})
    management = host.comfy.model_management

    def interrupted(*args, **kwargs):
        raise management.InterruptProcessingException()

    before = weights_of(model)
    monkeypatch.setattr(pack.comfy_host.Distillation, "preview", interrupted)
    with pytest.raises(management.InterruptProcessingException):
        train(model=model, guider=host.comfy.samplers.CFGGuider(model), trainable=trainable, preview_every=1)
    assert all(torch.equal(weight, before[name]) for name, weight in weights_of(model).items())


def test_changes_are_accepted_by_the_names_of_the_inputs(pack, train):
    train(steps=3, preview_every=0)
    with pytest.raises(pack.errors.InvalidConfig, match="learning_rate.*0.01.*accept_changes"):
        train(learning_rate=0.01)
    changes = dict(steps=5, learning_rate=0.01, batch_size=1, rank=2, initial_gain_ratio=0.5, run_seed=1)
    _, losses, steps, *_ = train(preview_every=1, accept_changes=", ".join(changes), **changes)
    assert steps == 5 == len(losses["loss"])


def test_the_curve_of_a_resumed_run_is_whole(pack, train, monkeypatch):
    watch, drawn = pack.comfy_host.progress, []
    original = watch.loss_curve

    def spied(losses, *rest):
        drawn.append(list(losses))
        return original(losses, *rest)

    monkeypatch.setattr(watch, "loss_curve", spied)
    train(steps=3, preview_every=0)
    _, losses, *_ = train(steps=6, preview_every=0, accept_changes="steps")
    assert len(drawn[0]) <= 3 and drawn[-1] == losses["loss"]


def test_encoded_prompts_with_latents(top, train, output):
    clip = top.load("base")[1]
    positive, null = (
        [clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in texts] for texts in ([PROMPT, OTHER, OTHER], [""])
    )
    latents = [{"samples": randn(1, 2, 16, 8, 8)}, {"samples": randn(2, 1, 16, 8, 8)}]
    _, losses, *_ = train(prompts="", clip=None, positive=positive, null=null, latents=latents)
    assert len(losses["loss"]) == 6


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (dict(prompts=" \n"), "prompts"), (dict(clip=None), "clip"), (dict(rank=0), "rank is 0"),
        (dict(learning_rate=0.0), "0.0"), (dict(learning_rate=float("nan")), "nan"), (dict(name=""), "''"),
        (dict(guidance_min=7.0), "guidance_max"), (dict(name="../mine"), "../mine"), (dict(name="CON"), "CON"),
        (dict(name="a.safetensors"), "a.safetensors"),
        (dict(vae=SimpleNamespace(latent_channels=4)), "4 channels"), (dict(guider=object()), "object"),
        (dict(sampler="euler"), "str"), (dict(sampler="draws"), "noise"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_reported_before_the_first_step(pack, host, world, top, train, output, given, value):
    before = weights_of(world.model)
    if given.get("sampler") == "draws":
        given = dict(sampler=host.comfy.samplers.sampler_object("euler_ancestral"))
    with pytest.raises(pack.errors.TeEFusionError, match=f"^Distill Trainer: .*{value}"):
        train(**given)
    assert not list(output.iterdir())
    top.assert_clean(world.model, before)
