"""Teacher with student on one copy of a ComfyUI model.

Shapes: B rows, C H W latent, S steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import comfy.model_management
import comfy.sampler_helpers
import comfy.samplers
import torch
from torch import Tensor, nn

from ...errors import InvalidConfig, ShapeMismatch
from ...guidance.architectures import Architecture, architecture_of, family_of
from ...guidance.cfg import cfg_scale_of
from ...guidance.flow import Velocity, velocity_of
from ...guidance.methods import DICE, METHODS, GuidanceEmbedder
from ...training.adapters import TRAINABLE, Update
from ...training.gradient_checkpointing import checkpointed
from ...training.guidance_term import Fusion, calibrated_gain
from ...training.out_of_place import out_of_place
from ...training.settings import DistillSettings
from ...training.sharpener_adapter import ALPHA, Sharpening
from ...training.targets import Example, Trajectory, levels, replay_loss, target_of
from ...training.trajectory_cache import generator_of
from ..guidance.patch import why_no_base
from ..prompts.encoded import Prompts
from ..sampling import schedule
from .teacher import Teacher

CALIBRATION_ROWS = 256
PIXELS = 8
"""To one latent, where the host does not say."""


class Distillation:
    """What a training asks for: trajectories of the teacher, the loss of the student."""

    def __init__(
        self,
        model,
        teacher: Teacher,
        positives: Prompts,
        nulls: Prompts,
        settings: DistillSettings,
        *,
        latent_CHW: Sequence[int] = (),
        pictures: Sequence[Tensor] = (),
    ):
        """Prepare a student whose update is zero; the model itself is not changed.

        Args:
            model: MODEL that the student starts from.
            teacher: whom it imitates.
            positives: prompts; with pictures, the caption of each.
            nulls: the encoded empty prompt first, then negative prompts.
            settings: how.
            latent_CHW: shape of the teacher's pictures where it paints from noise.
            pictures: LATENT samples [1,C,H,W] of one shape to start from instead.
        Raises:
            UnsupportedArchitecture: the model has no place for guidance, which a sharpener does not need.
            ShapeMismatch: pictures of several shapes or of another latent space, or not one caption each.
            InvalidConfig: a scheduler that the host does not have, or a base that is none.
        """
        if why := why_no_base(model):
            raise InvalidConfig(f"model {why}; a student would be trained on top of its guidance: connect the base")
        self.model, self.teacher, self.settings = model, teacher, settings
        self.positives, self.nulls = positives, nulls
        self.pictures = _checked(pictures, len(positives), model.model.latent_format.latent_channels)
        self.latent_CHW = tuple(self.pictures[0].shape[1:]) if self.pictures else tuple(latent_CHW)
        self.grid_S = schedule(model, settings.scheduler, settings.teacher_steps, 1.0)
        self.device = model.load_device
        self.load()
        self.update: Update
        self.fusion: Fusion | None = None
        if settings.method == DICE:
            width = positives.entries[0][0].shape[-1]
            self.update = Sharpening(self.base.diffusion_model, width, settings.run_seed)
        else:
            self._fuse(self.base.diffusion_model)

    @property
    def base(self):
        """The host's model around the network."""
        return self.model.model

    def load(self) -> None:
        """Have the base on its device, able to take part in a backward pass."""
        comfy.model_management.load_models_gpu([self.model], force_full_load=True)
        make_differentiable(self.base.diffusion_model)

    def check_teacher(self) -> None:
        """Try the teacher on one prompt.

        Raises:
            InvalidConfig: its sampler remembers or draws.
        """
        noise_1CHW = torch.randn(1, *self.latent_CHW, generator=generator_of(self.settings.run_seed, "check"))
        with self.update.disabled(), torch.no_grad():
            positive, negative = self.positives.batch([0]), self.nulls.batch([0])
            self.teacher.check(positive, negative, noise_1CHW, cfg_scale_of(self.settings.guidance_max))
            self.load()

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Hang the student on the model for the length of a training."""
        network = self.base.diffusion_model
        with ExitStack() as stack:
            stack.enter_context(_host_told())
            stack.enter_context(self.update.in_training())
            family = family_of(network)
            if family is not None and family.adds_in_place:
                stack.enter_context(out_of_place(network))
            if self.settings.gradient_checkpointing:
                stack.enter_context(checkpointed(network))
            yield

    def trajectory(self, number: int) -> Trajectory:
        """One trajectory of the teacher, always the same for the same number."""
        generator = generator_of(self.settings.run_seed, "walk", number)
        w = self.settings.guidance_min + (self.settings.guidance_max - self.settings.guidance_min) * torch.rand(
            (), generator=generator
        )
        sigma_S = levels(self.grid_S, self.settings.timestep_sampling, generator)
        with self.update.disabled(), torch.no_grad():
            trajectory = (self._from_pictures if self.pictures else self._from_noise)(sigma_S, w, generator)
            self.load()
        return trajectory

    def loss(self, example: Example) -> Tensor:
        """How far the student is from the teacher, for rows of the trajectories."""
        example = example.to(self.device)
        student = self.velocity(example.prompt_B.tolist(), example.null_B.tolist(), example.w_B)
        return replay_loss(student, example, self.settings.guidance_error_weight)

    def velocity(self, prompts: list[int], nulls: list[int] | None = None, w_B: Tensor | None = None) -> Velocity:
        """The network at prompts: guided by w away from nulls, or unguided; with the update where it is attached."""

        def at(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            out = torch.empty_like(x_BCHW)
            for rows in self._alike(prompts, nulls):
                numbers = [prompts[row] for row in rows]
                if nulls is None or w_B is None:
                    out[rows] = self._predict(x_BCHW[rows], sigma_B[rows], self.positives.batch(numbers))
                    continue
                positive, guidance = self._guided(numbers, [nulls[row] for row in rows], w_B[rows])
                with guidance:
                    out[rows] = self._predict(x_BCHW[rows], sigma_B[rows], positive)
            return out

        return at

    def sharpened(self, prompts: Sequence[int], nulls: Sequence[int], alpha: float = ALPHA) -> list:
        """Prompts of one length, nulls of one length as CONDITIONING, changed by the sharpener in training."""
        assert isinstance(self.update, Sharpening)
        [(context_BLE, extras)], [(null_BME, _)] = self.positives.batch(prompts), self.nulls.batch(nulls)
        return [[self.update.sharpened(context_BLE, null_BME, alpha), extras]]

    def _alike(self, prompts: list[int], nulls: list[int] | None) -> list[list[int]]:
        """Rows that can share a batch: prompts of as many tokens, nulls too where a sharpener reads them."""
        texts = [(self.positives, prompts)]
        if self.fusion is None and nulls is not None:
            texts.append((self.nulls, nulls))
        rows: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row in range(len(prompts)):
            rows[tuple(which.tokens(numbers[row]) for which, numbers in texts)].append(row)
        return list(rows.values())

    def _predict(self, x_BCHW: Tensor, sigma_B: Tensor, positive: list) -> Tensor:
        conds = comfy.sampler_helpers.convert_cond(positive)
        encode = comfy.samplers.encode_model_conds
        encoded = encode(self.base.extra_conds, conds, x_BCHW, self.device, "positive")[0]["model_conds"]
        given = {
            name: cond.process_cond(batch_size=len(x_BCHW), area=None, device=self.device).cond
            for name, cond in encoded.items()
        }
        options = self.model.model_options.get("transformer_options", {}).copy()
        denoised = self.base.apply_model(x_BCHW, sigma_B, **given, transformer_options=options)
        return velocity_of(denoised, x_BCHW, sigma_B)

    def _guided(self, prompts: list[int], nulls: list[int], w_B: Tensor) -> tuple[list, AbstractContextManager[None]]:
        """Prompts as the student is given them, with the block of code in which it computes."""
        if self.fusion is None:
            return self.sharpened(prompts, nulls), nullcontext()
        pooled_BP, null_BP = (
            which.pooled(numbers).to(self.device, torch.float32)
            for which, numbers in ((self.positives, prompts), (self.nulls, nulls))
        )
        term_BD = self.fusion.term(pooled_BP, null_BP, w_B, self.base.manual_cast_dtype or self.base.get_dtype())
        return self.positives.batch(prompts), self.fusion.added(term_BD)

    def _from_noise(self, sigma_S: Tensor, w: Tensor, generator: torch.Generator) -> Trajectory:
        rows = self.settings.images_per_trajectory
        prompts, null = self.positives.pick(rows, generator), self._null(generator)
        noise_BCHW = torch.randn(rows, *self.latent_CHW, generator=generator)
        states, last = self._teach(prompts, null, noise_BCHW, sigma_S, w)
        steps = range(len(sigma_S) - 1)
        targets = [target_of(self.settings.target, states, last, sigma_S, step) for step in steps]
        return self._trajectory(states[:-1], targets, sigma_S, w, [prompts] * len(steps), null)

    def _from_pictures(self, sigma_S: Tensor, w: Tensor, generator: torch.Generator) -> Trajectory:
        """A step of the teacher from each noise level, every time from other pictures."""
        x, targets, prompts, null = [], [], [], self._null(generator)
        for step in range(len(sigma_S) - 1):
            picked = self.positives.pick(self.settings.images_per_trajectory, generator)
            latent_BCHW = torch.cat([self.pictures[number] for number in picked])
            noise_BCHW = torch.randn(latent_BCHW.shape, generator=generator)
            here_S = sigma_S[step : step + 2]
            states, last = self._teach(picked, null, noise_BCHW, here_S, w, latent_BCHW=latent_BCHW)
            clean = self.base.process_latent_in(latent_BCHW).to(states[0])
            targets.append(target_of(self.settings.target, [*states, clean], last, here_S, 0))
            x.append(states[0])
            prompts.append(picked)
        return self._trajectory(x, targets, sigma_S, w, prompts, null)

    def _teach(self, prompts: list[int], null: int, noise_BCHW, sigma_S, w: Tensor, **start):
        positive, negative = self.positives.batch(prompts), self.nulls.batch([null] * len(prompts))
        return self.teacher.sample(positive, negative, noise_BCHW, sigma_S, float(cfg_scale_of(w)), **start)

    def _trajectory(self, x, targets, sigma_S: Tensor, w: Tensor, prompts: list[list[int]], null: int) -> Trajectory:
        self.load()
        x = [state.to(self.device) for state in x]
        guidance = [
            target.to(self.device) - self.velocity(numbers)(state, sigma.to(state).expand(len(state)))
            for target, numbers, state, sigma in zip(targets, prompts, x, sigma_S[:-1], strict=True)
        ]
        prompt_SB = torch.tensor(prompts)
        return Trajectory(
            x_SBCHW=torch.stack(x).cpu(),
            sigma_S=sigma_S[:-1].cpu(),
            target_SBCHW=torch.stack(targets).cpu(),
            guidance_SBCHW=torch.stack(guidance).cpu(),
            w=w,
            prompt_SB=prompt_SB,
            null_SB=torch.full_like(prompt_SB, null),
        )

    def _null(self, generator: torch.Generator) -> int:
        """The empty prompt, or now and then a negative one."""
        others = len(self.nulls) - 1
        if others and float(torch.rand((), generator=generator)) < self.settings.negative_share:
            return 1 + int(torch.randint(others, (), generator=generator))
        return 0

    def _fuse(self, network: nn.Module) -> None:
        """Make an update of the network with the term beside its pooled text."""
        settings, architecture = self.settings, architecture_of(network)
        make = TRAINABLE[settings.trainable]
        self.update = make(network, architecture, settings.rank, settings.run_seed)
        scale, precision = settings.guidance_embedding_scale, settings.guidance_precision
        gain, embedder = self._gain_and_embedder(network, architecture)
        self.fusion = Fusion(network, architecture, gain, scale, precision, settings.method, embedder)

    def _gain_and_embedder(self, network: nn.Module, architecture: Architecture) -> tuple[float, nn.Module | None]:
        """Constant of the term with the layers of its own, which are trained along with the update."""
        settings = self.settings
        if METHODS[settings.method].embeds:
            waves, (_, width) = architecture.sinusoid_width(network), architecture.widths(network)
            self.update.embedder = GuidanceEmbedder(waves, width, settings.run_seed).to(self.device)
            return 1.0, self.update.embedder
        return architecture.gain if settings.initial_gain_ratio == 0 else self._calibrated_gain(), None

    def _calibrated_gain(self) -> float:
        settings, rows = self.settings, min(CALIBRATION_ROWS, len(self.positives))
        network, evenly = self.base.diffusion_model, torch.linspace(0, 1, rows, device=self.device)
        pooled_BP = self.positives.pooled(range(rows)).to(self.device, torch.float32)
        null_1P = self.nulls.pooled([0]).to(self.device, torch.float32)
        w_B = settings.guidance_min + (settings.guidance_max - settings.guidance_min) * evenly
        row = architecture_of(network)
        return calibrated_gain(
            network,
            row,
            pooled_BP,
            null_1P,
            w_B,
            evenly.flip(0),
            share=settings.initial_gain_ratio,
            method=settings.method,
        )


@contextmanager
def _host_told() -> Iterator[None]:
    """Tell a host that asks, newer than 0.3.75, that gradients are wanted: some of its fused kernels have none."""
    if not hasattr(comfy.model_management, "in_training"):
        yield
        return
    before = comfy.model_management.in_training
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def make_differentiable(network: nn.Module) -> None:
    """Replace weights that a loader made in inference mode, which autograd could not keep, by equal ones.

    They are replaced one at a time: no second copy of the model is ever held.
    """
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_inference():
                setattr(module, name, nn.Parameter(parameter.clone(), requires_grad=False))
            else:
                parameter.requires_grad_(False)
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_inference():
                module.register_buffer(name, buffer.clone(), persistent=name not in module._non_persistent_buffers_set)


def _checked(pictures: Sequence[Tensor], captions: int, channels: int) -> list[Tensor]:
    shapes = {tuple(picture.shape[1:]) for picture in pictures}
    if len(shapes) > 1:
        raise ShapeMismatch(f"the latents have shapes {sorted(shapes)}; use pictures of one size")
    if any(shape[0] != channels for shape in shapes):
        raise ShapeMismatch(
            f"the latents have {next(iter(shapes))[0]} channels, the model works on {channels}; encode the pictures "
            "with the VAE of the model"
        )
    if pictures and len(pictures) != captions:
        raise ShapeMismatch(f"there are {len(pictures)} pictures, {captions} captions; give each picture one")
    return [picture.clone() for picture in pictures]


def latent_shape(model, width: int, height: int) -> tuple[int, int, int]:
    """Return [C,H,W] of the latent of a picture, given its size in pixels."""
    latent_format = model.model.latent_format
    ratio = getattr(latent_format, "spacial_downscale_ratio", PIXELS)
    return latent_format.latent_channels, height // ratio, width // ratio
