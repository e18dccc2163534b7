"""Teacher with student on one ComfyUI model: trajectories, loss, a whole training, the file that comes of it."""

import os
from dataclasses import replace

import pytest
import torch

from teefusion_core.files.student_file import write_student
from teefusion_core.guidance.methods import METHODS
from teefusion_core.training.adapters import TRAINABLE
from teefusion_core.training.loop_settings import TrainSettings

from .distillation_parts import LATENT, NEGATIVE, ROWS, STEPS, TEXTS, example_of, shaken
from .reflection_parts import OTHER, PROMPT, randn, relative, weights_of


def network_of(world):
    return world.model.model.diffusion_model


def predicted(world, encoded, text, x_BCHW, sigma):
    context, extras = encoded[text][0]
    context, pooled = (t.clone().expand(len(x_BCHW), *t.shape[1:]) for t in (context, extras["pooled_output"]))
    with torch.no_grad():
        return network_of(world)(x_BCHW, sigma * 1000 * torch.ones(len(x_BCHW)), context=context, y=pooled)


class TestTrajectory:
    @pytest.mark.parametrize("negatives", [0.0, 1.0])
    def test_targets_are_guided_velocities_written_out(self, distil, world, encoded, negatives):
        trajectory = distil(negative_share=negatives).trajectory(0)
        null = NEGATIVE if negatives else ""
        assert trajectory.x_SBCHW.shape == (STEPS, ROWS, *LATENT) and 1 <= float(trajectory.w) <= 6
        for step in range(STEPS):
            for row in range(ROWS):
                x, sigma = trajectory.x_SBCHW[step, row : row + 1], trajectory.sigma_S[step]
                text = TEXTS[int(trajectory.prompt_SB[step, row])]
                cond, uncond = (predicted(world, encoded, t, x, sigma) for t in (text, null))
                expected = cond + trajectory.w * (cond - uncond)
                assert relative(trajectory.target_SBCHW[step, row : row + 1], expected) < 1e-3
                assert relative(trajectory.guidance_SBCHW[step, row : row + 1], trajectory.w * (cond - uncond)) < 1e-2

    def test_each_state_is_where_the_step_before_has_led(self, distil):
        trajectory = distil().trajectory(0)
        for step in range(STEPS - 1):
            move = (trajectory.sigma_S[step + 1] - trajectory.sigma_S[step]) * trajectory.target_SBCHW[step]
            assert relative(trajectory.x_SBCHW[step] + move, trajectory.x_SBCHW[step + 1]) < 1e-5

    def test_the_number_decides_the_trajectory(self, distil):
        first, again, other = distil().trajectory(3), distil().trajectory(3), distil().trajectory(4)
        assert all(torch.equal(vars(first)[name], vars(again)[name]) for name in vars(first))
        assert float(first.w) != float(other.w) and not torch.equal(first.x_SBCHW, other.x_SBCHW)

    def test_the_student_does_not_disturb_its_teacher(self, distil, world):
        plain, student = distil().trajectory(0), shaken(distil())
        with student.in_training():
            again = student.trajectory(0)
        assert all(torch.equal(vars(plain)[name], vars(again)[name]) for name in vars(plain))

    @pytest.mark.parametrize("target", ["secant", "re-evaluated"])
    def test_pictures_are_noised_anew_for_every_step(self, distil, world, target):
        pictures = [randn(n, 1, *LATENT) for n in range(len(TEXTS))]
        trajectory = distil(images=pictures, target=target).trajectory(0)
        base = world.model.model
        assert len({tuple(row.tolist()) for row in trajectory.prompt_SB}) > 1
        for step, sigma in enumerate(trajectory.sigma_S):
            clean = base.process_latent_in(torch.cat([pictures[n] for n in trajectory.prompt_SB[step].tolist()]))
            noise = (trajectory.x_SBCHW[step] - (1 - sigma) * clean) / sigma
            assert abs(float(noise.mean())) < 0.15 and abs(float(noise.std()) - 1) < 0.1

    def test_the_way_to_a_training_image_has_no_guidance_so_it_is_no_target(self, pack, distil):
        with pytest.raises(pack.errors.InvalidConfig, match="target is clean.*images"):
            distil(images=[randn(n, 1, *LATENT) for n in range(len(TEXTS))], target="clean")

    @pytest.mark.parametrize("options", [{"reflect_steps": 2}, {"inversion": "official"}], ids=str)
    def test_with_images_no_step_knows_its_place(self, pack, top, distil, world, options):
        guided, images = top.guider(world, scales=(5.5, 1.0, 5.5)), [randn(n, 1, *LATENT) for n in range(len(TEXTS))]
        with pytest.raises(pack.errors.InvalidConfig, match="reflect_steps"):
            distil(guider=guided, sampler=pack.comfy_host.ReflectionSampler(**options), images=images)

    def test_calibration_leads_away_from_the_empty_prompt_always(self, distil):
        beside = distil(negative_share=1.0).trajectory_beside(2.0, ROWS, 0, 2)
        assert not beside.null_SB.any()


class TestStudent:
    def test_prompts_of_other_lengths_get_batches_of_their_own(self, pack, distil, world, encoded):
        distillation = distil()
        context, extras = encoded[OTHER][0]
        short = [[context[:, :12], extras]]
        distillation.student.positives = pack.comfy_host.Prompts([encoded[PROMPT], short, encoded[PROMPT]], "prompt")
        x, sigma, w = randn(8, 3, *LATENT), torch.tensor([0.7, 0.4, 0.2]), torch.tensor([1.0, 2.0, 3.0])
        with torch.no_grad():
            together = distillation.velocity([0, 1, 2], [0, 0, 0], w)(x, sigma)
            for row in range(3):
                one = slice(row, row + 1)
                alone = distillation.velocity([row], [0], w[one])(x[one], sigma[one])
                assert relative(alone, together[one]) < 1e-4
        assert distillation.student.positives.groups == [[0, 2], [1]]

    @pytest.mark.parametrize("kind", TRAINABLE)
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_gradients_reach_every_trained_weight(self, distil, world, kind, checkpointing):
        before = weights_of(world.model)
        distillation = distil(trainable=kind, gradient_checkpointing=checkpointing)
        shaken(distillation)
        trajectory = distillation.trajectory(0)
        grads = self.gradients(distillation, trajectory)
        assert all(grad is not None for grad in grads.values())
        silent = {name for name, grad in grads.items() if not grad.abs().sum() > 0}
        # the network throws away what the text asks in its last block
        assert all("joint_blocks/3/context_block" in name for name in silent), silent
        world_weights = weights_of(world.model)
        assert all(torch.equal(world_weights[name], value) for name, value in before.items())

    def gradients(self, distillation, trajectory):
        with distillation.in_training():
            distillation.loss(example_of(trajectory)).backward()
        return {name: parameter.grad for name, parameter in distillation.student.update.named_parameters()}

    @pytest.mark.parametrize("kind", ["lora", "everything"])
    def test_a_base_in_bfloat16_is_trained_in_full_precision(self, host, pack, distil, kind):
        path = pack.comfy_host.load_demo.__globals__["MODELS"] / "demo_sd3_base.safetensors"
        model = host.comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.bfloat16})
        distillation = shaken(distil(model=model, trainable=kind))
        trajectory = distillation.trajectory(0)
        assert {weight.dtype for weight in model.model.diffusion_model.parameters()} == {torch.bfloat16}
        grads = self.gradients(distillation, trajectory)
        assert {grad.dtype for grad in grads.values()} == {torch.float32}
        assert all(bool(grad.isfinite().all()) for grad in grads.values())


LOOP = TrainSettings(steps=30, batch_size=4, learning_rate=3e-3, save_every=10, warmup_steps=2)


class TestTraining:
    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory):
        return tmp_path_factory.mktemp("runs")

    def training(self, pack, distil, root, name="run", loop=LOOP, **options):
        options = dict(reuse=0, cache_size=1, guidance_error_weight=1.0) | options
        return pack.comfy_host.Training(distil(**options), loop, root=root, name=name, teacher="CFG, Euler")

    def test_a_student_learns_and_its_file_works(self, pack, top, distil, world, encoded, tmp_path):
        before = weights_of(world.model)
        student = self.training(pack, distil, tmp_path, loop=replace(LOOP, batch_size=24)).run()
        assert student.finished and len(student.losses) == LOOP.steps
        assert sum(student.losses[-5:]) < 0.8 * sum(student.losses[:5])
        top.assert_clean(world.model, before)
        path = tmp_path / "student.safetensors"
        write_student(path, student.file.tensors, student.file.info)
        loaded = pack.comfy_host.load_student(world.model, path)
        assert loaded.get_attachment(pack.comfy_host.STUDENT_KEY)["step"] == LOOP.steps
        with pytest.raises(pack.errors.InvalidConfig, match="1 to 6"):
            pack.comfy_host.apply_fusion(loaded, encoded[PROMPT], encoded[""], 9.0)

    def test_stopped_halfway_it_ends_with_the_same_bits(self, pack, distil, tmp_path):
        whole = self.training(pack, distil, tmp_path, "whole", reuse=1.0).run()
        asked = iter([False] * 13 + [True])
        part = self.training(pack, distil, tmp_path, "parts", reuse=1.0).run(should_stop=lambda: next(asked))
        assert not part.finished and len(part.losses) == 13
        rest = self.training(pack, distil, tmp_path, "parts", reuse=1.0).run()
        assert rest.losses == whole.losses
        assert all(torch.equal(rest.file.tensors[name], tensor) for name, tensor in whole.file.tensors.items())

    def test_two_processes_cannot_train_one_run(self, pack, distil, tmp_path):
        first, second, other = (self.training(pack, distil, tmp_path, name) for name in ("run", "run", "other"))

        def start_others(report):
            with pytest.raises(pack.errors.InvalidConfig, match="run run is used by another process"):
                second.run()
            other.run(should_stop=lambda: True)

        asked = iter([False, True])
        first.run(start_others, should_stop=lambda: next(asked))
        second.run(should_stop=lambda: True)

    def test_only_the_run_itself_replaces_its_student(self, pack, distil, tmp_path):
        target, stop = tmp_path / "student.safetensors", {"should_stop": lambda: True}
        for _ in range(2):
            training = self.training(pack, distil, tmp_path)
            training.check_target(target)
            training.write(training.run(**stop), target)
        written = target.read_bytes()
        other = self.training(pack, distil, tmp_path, "another run with the same settings")
        for refused in (other.check_target, lambda path: other.write(other.run(**stop), path)):
            with pytest.raises(pack.errors.TargetExists, match=r"student\.safetensors"):
                refused(target)
        assert target.read_bytes() == written

    def test_a_student_that_cannot_be_written_points_at_the_checkpoints(self, pack, distil, tmp_path, monkeypatch):
        training = self.training(pack, distil, tmp_path)
        result = training.run(should_stop=lambda: True)
        monkeypatch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(pack.errors.NotWritten, match="mine.*No space left.*run"):
            training.write(result, tmp_path / "mine.safetensors")
        assert not list(tmp_path.glob("mine*"))

    def test_other_settings_or_data_are_named(self, pack, distil, tmp_path):
        stop = {"should_stop": lambda: True}
        self.training(pack, distil, tmp_path).run(**stop)
        with pytest.raises(pack.errors.InvalidConfig, match="guidance_max.*6.0.*5.0"):
            self.training(pack, distil, tmp_path, guidance_max=5.0).run(**stop)
        with pytest.raises(pack.errors.InvalidConfig, match="prompts"):
            self.training(pack, distil, tmp_path, texts=TEXTS[:2]).run(**stop)
        with pytest.raises(pack.errors.InvalidConfig, match="elsewhere"):
            self.training(pack, distil, tmp_path, "../elsewhere")

    @pytest.mark.parametrize(
        "change",
        [{"guidance_max": 5.0}, {"images_per_trajectory": 2}, {"run_seed": 1}, {"timestep_sampling": "uniform"},
         {"texts": [TEXTS[1], TEXTS[0], *TEXTS[2:]]}],
        ids=lambda change: next(iter(change)),
    )  # fmt: skip
    def test_accepted_changes_reach_the_trajectories_that_are_stored(self, pack, distil, tmp_path, change):
        self.training(pack, distil, tmp_path, loop=replace(LOOP, steps=2, warmup_steps=0)).run()
        training = self.training(pack, distil, tmp_path, **change)
        fresh = training.distillation.trajectory(0)
        cache = training._trajectories()
        cache.next(1)
        file, small = cache._files[0]
        assert torch.equal(small["prompt_SB"], fresh.prompt_SB) and torch.equal(small["w"], fresh.w)
        assert torch.equal(file.get_tensor("x_SBCHW"), fresh.x_SBCHW.half())

    def test_a_trajectory_with_nan_is_not_stored(self, pack, host, distil, world, tmp_path):
        class Failing(host.comfy.samplers.CFGGuider):
            def set_cfg(self, cfg):
                super().set_cfg(cfg if cfg < 3 else float("nan"))

        scales = [1 + float(distil().trajectory(number).w) for number in range(4)]
        lost = next(number for number, scale in enumerate(scales) if scale >= 3)
        training = self.training(pack, distil, tmp_path, guider=Failing(world.model), cache_size=4)
        with pytest.raises(pack.errors.InvalidConfig, match=f"NaN.*CFG scale {scales[lost]:.3g}.*guidance_max"):
            training._trajectories().next(1)
        assert len(list(tmp_path.rglob("trajectory-*"))) == lost

    def test_settings_of_the_student_keep_them(self, pack, distil, tmp_path):
        training = self.training(pack, distil, tmp_path, rank=2, method="guidance only", gradient_checkpointing=True)
        assert training.of_trajectories == self.training(pack, distil, tmp_path).of_trajectories

    @pytest.mark.parametrize("method", METHODS)
    @pytest.mark.parametrize("whole", [False, True])
    def test_every_method_is_sampled_as_it_was_trained(self, pack, distil, world, encoded, method, whole, tmp_path):
        from lab.demo_world.measure import predictions

        distillation = shaken(distil(method=method, guidance_max=8.0))
        x, sigma, w = randn(8, 2, *LATENT), torch.tensor(0.7), 3.5
        with torch.no_grad(), distillation.in_training():
            mine = distillation.velocity([0, 0], [0, 0], torch.full((2,), w))(x, sigma.expand(2))
            other = distillation.velocity([0, 0], [0, 0], torch.full((2,), 7.0))(x, sigma.expand(2))
        assert relative(other, mine) > 1e-3, "guidance is heard"
        stop = replace(LOOP, steps=1, warmup_steps=0, learning_rate=1e-12, ema_decay=0.0)
        where = dict(root=tmp_path, name="run", teacher="", whole_model=whole)
        student = pack.comfy_host.Training(distillation, stop, **where).run()
        path = tmp_path / "student.safetensors"
        write_student(path, student.file.tensors, student.file.info)
        loaded = pack.comfy_host.load_student(None if whole else world.model, path)
        assert loaded.get_attachment(pack.comfy_host.STUDENT_KEY)["method"] == method
        fused = pack.comfy_host.apply_fusion(loaded, encoded[TEXTS[0]], encoded[""], w)
        with torch.inference_mode():
            seen = predictions(*fused, encoded[""], [(x, sigma), (x, sigma)], torch.zeros_like(x))[0]
        assert relative((x - seen) / sigma, mine) < 3e-3

    def test_a_method_from_the_future_or_without_its_layers_is_refused(self, pack, distil, world, tmp_path):
        training = pack.comfy_host.Training(distil(), LOOP, root=tmp_path, name="run", teacher="")
        path = tmp_path / "student.safetensors"
        info = replace(training.file(1).info, method="telepathy")
        write_student(path, training.distillation.student.update.state(), info)
        with pytest.raises(pack.errors.CheckpointMismatch, match="telepathy"):
            pack.comfy_host.load_student(world.model, path)
        write_student(path, training.distillation.student.update.state(), replace(info, method="distillcfg"))
        with pytest.raises(pack.errors.CheckpointMismatch, match="distillcfg"):
            pack.comfy_host.load_student(world.model, path)


class TestRefused:
    @pytest.mark.parametrize(
        ("shapes", "value"),
        [([(16, 8, 8)] * 2, "2.*4"), ([(16, 8, 8)] * 3 + [(16, 8, 16)], "one size"), ([(4, 8, 8)] * 4, "4.*16")],
        ids=["captions", "sizes", "channels"],
    )
    def test_pictures_that_do_not_fit(self, pack, distil, shapes, value):
        with pytest.raises(pack.errors.ShapeMismatch, match=value):
            distil(images=[randn(n, 1, *shape) for n, shape in enumerate(shapes)])

    def test_a_student_or_a_fused_model_as_base(self, pack, distil, world):
        student = pack.nodes["TinySD3Loader"].execute("student").args[0]
        fused, _ = pack.comfy_host.apply_fusion(world.model, world.positive, world.negative, 2.0)
        for model in (student, fused):
            with pytest.raises(pack.errors.InvalidConfig, match="base"):
                distil(model=model)

    def test_prompts_that_are_none(self, pack, distil, encoded):
        with pytest.raises(pack.errors.InvalidConfig, match="prompt"):
            distil(texts=[])
        with pytest.raises(pack.errors.InvalidConfig, match="prompt 1.*pooled_output"):
            distil(positives=pack.comfy_host.Prompts([[[encoded[PROMPT][0][0], {"pooled_output": None}]]], "prompt"))

    @pytest.mark.parametrize("extra", ["mask", "area", "control", "hooks", "start_percent", "end_percent"])
    def test_prompts_that_the_samplers_treat_in_their_own_way(self, pack, distil, encoded, extra):
        """The teacher would obey them, and the student would take their effect for guidance."""
        [[context, extras]] = encoded[PROMPT]
        with pytest.raises(pack.errors.InvalidConfig, match=f"prompt 1 has {extra}"):
            distil(positives=pack.comfy_host.Prompts([[[context, {**extras, extra: 0.0}]]], "prompt"))


def changed(encoded, text, part, change):
    """The CONDITIONING of a text with another tensor."""
    context, extras = encoded[text][0]
    return [[change(context), extras]] if part == "tokens" else [[context, {**extras, part: change(extras[part])}]]


CHANGES = {
    "narrower": lambda tensor: tensor[..., :-1],
    "wider": lambda tensor: torch.nn.functional.pad(tensor, (0, 3)),
    "NaN": lambda tensor: tensor * torch.nan,
    "infinite": lambda tensor: tensor.clone().index_fill_(-1, torch.tensor([0]), torch.inf),
}


@pytest.mark.parametrize("name", ["prompt", "null"])
@pytest.mark.parametrize("part", ["tokens", "pooled_output"])
@pytest.mark.parametrize("change", CHANGES)
def test_prompts_that_the_model_cannot_take_are_named(distil, pack, encoded, change, part, name):
    text = TEXTS[1] if name == "prompt" else NEGATIVE
    given = {**encoded, text: changed(encoded, text, part, CHANGES[change])}
    with (
        pytest.raises(pack.errors.TeEFusionError, match=f"^{name} .*2") as caught,
        pytest.MonkeyPatch.context() as patch,
    ):
        for key, value in given.items():
            patch.setitem(encoded, key, value)
        distil()
    said = {"narrower": "of width", "wider": "of width"}.get(change, "NaN")
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_latents_that_are_nan_are_named(distil, pack, value):
    images = [torch.zeros(1, *LATENT) for _ in TEXTS]
    images[2][0, 3, 0, 0] = value
    with pytest.raises(pack.errors.InvalidConfig, match="latents have NaN.* in image 3;"):
        distil(images=images)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_teacher_that_makes_nan_is_refused_before_the_first_step(distil, pack, host, world, value):
    model = world.model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, given: apply(given["input"], given["timestep"], **given["c"]) * value
    )
    distillation = distil(guider=host.comfy.samplers.CFGGuider(model))
    with pytest.raises(
        pack.errors.InvalidConfig, match="teacher makes NaN or infinite values in step 1 at CFG scale 8.25"
    ):
        distillation.check_teacher()


def test_a_vae_of_other_channels_is_refused(pack, world):
    class Other:
        latent_channels = 4

    with pytest.raises(pack.errors.CheckpointMismatch, match="4 channels, .* 16"):
        pack.comfy_host.check_vae(Other(), world.model)
    pack.comfy_host.check_vae(world.vae, world.model)
