"""A sweep over strengths, against single runs."""

import pytest
import torch

from .reflection_parts import relative

VALUES = [0.6, 1.0, 1.5, 2.0, 2.4, 2.8, 3.2, 3.6]


@pytest.fixture
def student(top):
    return top.load("student")[0]


def sampled(top, model, positive, latent):
    import nodes

    world = top.world()
    given = model, 7, 4, 1.0, "euler", "normal", positive, world.negative, latent
    return nodes.KSampler().sample(*given)[0]["samples"]


def swept(top, model, latent, low, high, count, **options):
    world = top.world()
    node = top.pack.nodes["GuidanceSweep"]
    return node.execute(model, world.positive, world.negative, latent, low, high, count, "linear", **options).args


def test_eight_guidances_in_one_batch_are_eight_runs(top, world, student):
    latent = {"samples": torch.zeros(2, 16, 8, 8)}
    [model], [positive], [batch], sweep = swept(top, student, latent, 0.6, 3.6, 8)
    together = sampled(top, model, positive, batch)
    assert len(sweep.values) == 8 and all(scale > 1 for scale in sweep.effective)
    for row, w in enumerate(sweep.values):
        fused = top.pack.nodes["TeEFusionConditioning"].execute(student, world.positive, world.negative, w).args
        alone = sampled(top, *fused, {"samples": torch.zeros(1, 16, 8, 8)})
        assert relative(together[row : row + 1], alone) < 1e-5
    assert relative(together[:1], together[-1:]) > 1e-2


def test_the_effective_guidance_is_that_of_the_calibration(top, student):
    curve = top.module("guidance.calibration").Calibration.of(
        student.get_attachment(top.pack.comfy_host.STUDENT_KEY)["calibration"]
    )
    sweep = swept(top, student, top.empty(top.world()), 1.0, 3.0, 3)[3]
    assert curve.teacher[0] < sweep.effective[0] < sweep.effective[2] < curve.teacher[-1]
    assert sweep.effective[1] == pytest.approx(curve.effective(2.0))


def test_a_model_without_a_student_file_is_taken_for_the_published_one(top, world, caplog):
    for highest, warnings in ((14.0, 0), (20.0, 1)):
        caplog.clear()
        with caplog.at_level("INFO"):
            _, [positive], *_ = swept(top, world.model, top.empty(world), 2.0, highest, 2)
        assert "read as the published student" in caplog.text
        assert sum(record.levelname == "WARNING" for record in caplog.records) == warnings
    assert positive[0][1]["teefusion_guidance_timestep"].tolist() == [2000.0, 19968.0]


def test_all_rows_have_the_noise_and_the_mask_of_the_first_image(top, student):
    latent = {"samples": torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 16, 8, 8), "batch_index": [5, 6]}
    latent["noise_mask"] = torch.rand(2, 8, 8)
    [batch] = swept(top, student, latent, 1, 2, 3)[2]
    assert batch["batch_index"] == [5, 5, 5] and not batch["samples"].any()
    assert all(torch.equal(mask, latent["noise_mask"][0]) for mask in batch["noise_mask"])
    assert len(latent["samples"]) == 2


def test_a_guidance_lora_has_a_run_per_guidance(top, world):
    lora = top.load("student_guidance_lora")[0]
    models, prompts, latents, sweep = swept(top, lora, top.empty(world), 1, 3, 3)
    assert [len(part) for part in (models, prompts, latents)] == [3, 3, 3] and sweep.values == [1, 2, 3]
    fuse = top.pack.nodes["TeEFusionConditioning"].execute
    for number, w in enumerate(sweep.values):
        alone = sampled(top, *fuse(lora, world.positive, world.negative, w).args, top.empty(world))
        assert torch.equal(sampled(top, models[number], prompts[number], latents[number]), alone)


@pytest.fixture
def sharpener(top, world, add_folder, tmp_path):
    """The name of a sharpener file that allows alpha from 0 to 2."""
    files, made = top.module("files.sharpener_file"), top.module("prompts.sharpener")
    folder, width = add_folder("loras", tmp_path / "loras"), world.positive[0][0].shape[-1]
    torch.manual_seed(0)
    network = made.Sharpener(width, 16, 2)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    sizes = {"width": width, "hidden": 16, "heads": 2}
    info = files.SharpenerInfo("dice", **sizes, alpha=1.0, alpha_min=0.0, alpha_max=2.0, teacher="CFG", base="", step=1,
                               pack_version="0")  # fmt: skip
    files.write_sharpener(folder / "sharp.safetensors", network, info)
    return "sharp.safetensors"


def test_a_sharpener_has_an_alpha_per_row(top, world, pack, sharpener):
    given = top.empty(world), 0.0, 2.0, 3
    [model], [prompt], [batch], sweep = swept(top, world.model, *given, sharpener=sharpener)
    together = sampled(top, model, prompt, batch)
    for row, alpha in enumerate(sweep.values):
        own = pack.nodes["DICESharpen"].execute(world.positive, sharpener, alpha, 0.0, world.negative).args[0]
        assert relative(together[row : row + 1], sampled(top, world.model, own, top.empty(world))) < 1e-5
    assert sweep.name == "alpha"


def test_a_sweep_of_a_sharpener_has_one_mask(top, world, sharpener):
    """The host counts the tokens of a mask over all rows, so repeated rows would count them several times."""
    [[context_BLW, extras]] = world.positive
    masked = [[context_BLW, {**extras, "attention_mask": torch.ones(1, context_BLW.shape[1])}]]
    node = top.pack.nodes["GuidanceSweep"]
    given = world.model, masked, world.negative, top.empty(world), 0.0, 2.0, 3, "linear", sharpener
    [[[swept_BLW, kept]]] = node.execute(*given).args[1]
    assert len(swept_BLW) == 3 and len(kept["attention_mask"]) == 1 and kept is not masked[0][1]


def test_what_a_sweep_of_a_sharpener_cannot_do_is_said_before_anything_is_computed(top, world, student, sharpener):
    def refused(match, model=world.model, positive=world.positive, null=world.negative, highest=2.0):
        given = model, positive, null, top.empty(world), 0.0, highest, 3, "linear", sharpener
        with pytest.raises(top.pack.errors.InvalidConfig, match=f"^Guidance Sweep: {match}"):
            top.pack.nodes["GuidanceSweep"].execute(*given)

    two = [[torch.cat(2 * [context]), extras] for context, extras in world.positive]
    refused("positive holds a batch of 2 prompts", positive=two)
    refused("null holds a batch of 2 prompts", null=two)
    refused("positive holds 2 prompts", positive=2 * world.positive)
    refused("alpha is 3, .*0 to 2", highest=3.0)
    refused("model is already a student.*guided twice", model=student)


@pytest.mark.parametrize(("inputs", "warned"), [({}, True), ({"sharpener": "none"}, True), ({"sharpener": "a"}, False)])
def test_a_model_beside_the_sweep_is_wrong_for_a_student_only(pack, inputs, warned):
    sampler = {"model": ["base", 0], "positive": ["sweep", 1]}
    graph = {"sweep": {"class_type": "GuidanceSweep", "inputs": {"model": ["base", 0], **inputs}}}
    graph |= {"base": {"class_type": "UNETLoader"}, "sampler": {"class_type": "KSampler", "inputs": sampler}}
    assert bool(pack.comfy_host.unused_models(graph)) == warned


def test_the_grid_frames_the_best_and_refuses_other_images(top, student):
    sweep = swept(top, student, top.empty(top.world()), 1, 3, 3)[3]
    node, images = top.pack.nodes["SweepGrid"], [torch.rand(3, 16, 16, 3)]
    grid, best, report = node.execute(images, [sweep], [64], ['{"scores": {"clip": [1, 2, 3]}}']).args
    plain, middle, nothing = node.execute(images, [sweep], [64]).args
    assert (best, middle, nothing) == (3.0, 2.0, "") and "guidance 3" in report
    assert not torch.equal(grid, plain)
    with pytest.raises(top.pack.errors.InvalidConfig, match="4 images for a sweep of 3"):
        node.execute([*images, torch.rand(1, 16, 16, 3)], [sweep], [64])


@pytest.mark.parametrize("channels", [1, 2])
def test_the_grid_counts_clipped_colors_of_grey_images_as_they_are_saved(top, student, channels):
    sweep = swept(top, student, top.empty(top.world()), 1, 3, 3)[3]
    images = torch.full((3, 16, 16, channels), 0.5)
    images[..., 1:] = 1.0
    images[1, :4, :, 0] = 0.9 / 255  # saved as 0
    images[2, :4, :, 0] = 254.9 / 255  # saved as 254
    report = top.pack.nodes["SweepGrid"].execute([images], [sweep], [64]).args[2]
    assert report == f"More than 2 % clipped colors: {sweep.captions()[1]}.".replace("\n", " ")


def test_a_sharpener_that_was_written_anew_is_swept_anew(pack, add_folder, tmp_path):
    stamp = pack.nodes["GuidanceSweep"].fingerprint_inputs
    path = add_folder("loras", tmp_path / "loras") / "sharp.safetensors"
    path.write_bytes(b"one")
    first = stamp(sharpener=path.name)
    assert stamp(sharpener=path.name) == first and stamp() == stamp(sharpener="none")
    path.write_bytes(b"another")
    assert stamp(sharpener=path.name) != first
