"""A teacher and its student on one copy of a ComfyUI model.

Shapes: B rows, C H W latent, S steps.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import comfy.model_management
import torch
from torch import Tensor

from ...errors import InvalidConfig
from ...guidance.cfg import cfg_scale_of
from ...guidance.flow import Velocity, euler_along, sample
from ...training.mixed_precision import mixed_precision
from ...training.settings import DistillSettings
from ...training.students import STUDENTS
from ...training.students.student import MixedRows
from ...training.targets import CLEAN, REEVALUATED, SECANT, Example, Trajectory, replay_loss
from ...training.trajectory_cache import generator_of
from ..guidance.attachments import why_no_base
from ..prompts.encoded import Prompts
from ..prompts.prompt_check import check_prompts
from ..sampling import schedule
from ..weights import merged
from .network import Network
from .teacher import CHECK_STEPS, Teacher
from .trajectory_maker import TrajectoryMaker, checked_images


def check_negative_share(nulls: Prompts, settings: DistillSettings) -> None:
    """Refuse negative prompts that are never used, and a share of negative prompts without any.

    Args:
        nulls: the empty prompt, then negative prompts.
        settings: with their share of the trajectories.
    """
    share, negatives = settings.negative_share, len(nulls) - 1
    if bool(share) != bool(negatives):
        raise InvalidConfig(
            f"negative_share is {share:g}, and there are {negatives} negative prompts, so the setting has no effect; "
            "give both or none of them"
        )


def _check_start_from_images(teacher: Teacher, settings: DistillSettings) -> None:
    """Refuse what has no meaning where each step of the teacher starts from another image."""
    if settings.target == CLEAN:
        raise InvalidConfig(
            "target is clean, but with images it leads to the training image, which has no guidance in it; choose "
            f"{SECANT} or {REEVALUATED}, or train from prompts alone"
        )
    if teacher.depends_on_schedule:
        raise InvalidConfig(
            "reflect_steps or inversion official is set, but with images the teacher starts every step from another "
            "image; set reflect_steps to -1 and inversion to exact, or train from prompts alone"
        )


class Distillation:
    """Teacher, student and prompts: the trajectories to learn from, and the loss."""

    def __init__(
        self,
        model,
        teacher: Teacher,
        positives: Prompts,
        nulls: Prompts,
        settings: DistillSettings,
        *,
        latent_CHW: Sequence[int] = (),
        images: Sequence[Tensor] = (),
    ):
        """Make a student that predicts what its base does; the model itself is not changed.

        Args:
            model: MODEL that the student starts from.
            teacher: teacher to imitate.
            positives: prompts; with images, the caption of each.
            nulls: the encoded empty prompt first, then negative prompts.
            settings: settings of the distillation.
            latent_CHW: shape of the latents if the teacher starts from noise.
            images: LATENT samples [1,C,H,W] of one shape to start from instead.
        Raises:
            UnsupportedArchitecture: the model has no embedder of pooled text, which students with a guidance term need.
            ShapeMismatch: the prompts are of other text encoders; or the images have several shapes, another latent
                space, or not one caption each.
            InvalidConfig: the host does not have the scheduler, the model is not a base, or a prompt or an image has
                NaN.
        """
        if why := why_no_base(model):
            raise InvalidConfig(f"model {why}, so a student would be trained on top of its guidance; connect the base")
        if images:
            _check_start_from_images(teacher, settings)
        check_prompts(positives.entries, model, "prompt")
        check_prompts(nulls.entries, model, "null")
        self.model, self.teacher, self.settings = merged(model), teacher, settings
        if self.model is not model:
            teacher.follow(model, self.model)
        self.positives, self.nulls = positives, nulls
        self.images = checked_images(images, len(positives), model.model.latent_format.latent_channels)
        self.latent_CHW = tuple(self.images[0].shape[1:]) if self.images else tuple(latent_CHW)
        self.grid_S = schedule(model, settings.scheduler, settings.steps_learned, 1.0)
        self.network = Network(self.model)
        where = {"device": self.network.device, "dtype": self.network.dtype}
        self.student = STUDENTS[settings.method](self.network.module, positives, nulls, settings, **where)
        self._maker = TrajectoryMaker(
            self.network, teacher, positives, nulls, settings, self.grid_S, self.latent_CHW, self.images
        )

    def check_teacher(self) -> None:
        """Try the teacher on one prompt.

        Raises:
            InvalidConfig: the sampler of the teacher keeps a history or adds noise.
        """
        noise_1CHW = torch.randn(1, *self.latent_CHW, generator=generator_of(self.settings.run_seed, "check"))
        with self.student.update.disabled(), torch.no_grad():
            positive, negative = self.positives.batch([0]), self.nulls.batch([0])
            with self.teacher.telling("checking the teacher, step", CHECK_STEPS):
                self.teacher.check(positive, negative, noise_1CHW, cfg_scale_of(self.settings.drawn_guidance[1]))
            self.network.load()

    @contextmanager
    def in_training(self) -> Iterator[None]:
        """Apply the student to the network inside the block, ready for a backward pass."""
        checkpointing = self.settings.gradient_checkpointing
        with self.network.in_training(gradient_checkpointing=checkpointing), self.student.update.in_training():
            yield

    def trajectory(self, number: int, images: int | None = None, said: str = "") -> Trajectory:
        """Return the teacher's trajectory with a number, always the same one.

        Args:
            number: number of the trajectory.
            images: its rows; None uses `images_per_trajectory`.
            said: text that the user sees before the number of the step; if it is empty, no line is shown.
        """
        settings = replace(self.settings, images_per_trajectory=images or self.settings.images_per_trajectory)
        with self.student.update.disabled(), torch.no_grad(), self.precision():
            return replace(self._maker, settings=settings).make(number, said)

    def trajectory_beside(self, w: float, rows: int, number: int, steps: int) -> Trajectory:
        """Return some steps of a trajectory of the teacher with guidance w that training does not use."""
        with self.student.update.disabled(), torch.no_grad():
            return self._maker.make_beside(w, rows, number, steps)

    def loss(self, example: Example) -> Tensor:
        """Return the loss of the student against the teacher, for rows of the trajectories."""
        example = example.to(self.network.device)
        student = self.velocity(example.prompt_B.tolist(), example.null_B.tolist(), example.w_B)
        with self.precision():
            return replay_loss(student, example, self.settings.guidance_error_weight)

    def precision(self) -> AbstractContextManager[object]:
        """Return a context with the precision of a training step and of the trajectories for it."""
        wanted = self.settings.mixed_precision
        return mixed_precision(self.network.device, self.network.dtype) if wanted else nullcontext()

    def velocity(self, prompts: Sequence[int], nulls: Sequence[int], w_B: Tensor) -> Velocity:
        """Return the student's velocity field.

        Args:
            prompts, nulls: numbers of B prompts, and of the prompts that guidance leads away from.
            w_B: guidance.
        """

        def grouped() -> list[list[int]]:
            groups: dict[Hashable, list[int]] = defaultdict(list)
            for row, (prompt, null) in enumerate(zip(prompts, nulls, strict=True)):
                own_w = float(w_B[row]) if self.student.one_w_per_batch else None
                groups[self.student.kind(prompt, null), own_w].append(row)
            return list(groups.values())

        def at(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            try:
                return predicted(x_BCHW, sigma_B)
            except MixedRows:
                self.student.one_w_per_batch = True
                return predicted(x_BCHW, sigma_B)

        def predicted(x_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
            out_BCHW = torch.empty_like(x_BCHW)
            for rows in grouped():
                positive, guided = self.student.conditioned(
                    [prompts[row] for row in rows], [nulls[row] for row in rows], w_B[rows]
                )
                with guided:
                    out_BCHW[rows] = self.network.velocity(x_BCHW[rows], sigma_B[rows], positive)
            return out_BCHW

        return at

    def preview(self, prompt: int, w: float) -> Tensor:
        """Sample the student with Euler on its schedule; return LATENT samples [1,C,H,W] on the CPU."""
        sampling, device = self.model.get_model_object("model_sampling"), self.network.device
        generator = torch.Generator().manual_seed(self.settings.run_seed)
        noise_1CHW = torch.randn(1, *self.latent_CHW, generator=generator).to(device)
        velocity = self.velocity([prompt], [0], torch.tensor([w], device=device))

        def interruptible(x_1CHW: Tensor, sigma: Tensor) -> Tensor:
            comfy.model_management.throw_exception_if_processing_interrupted()
            return velocity(x_1CHW, sigma[None])

        sigmas_S = self.grid_S.to(device)
        start_1CHW = sampling.noise_scaling(sigmas_S[0], noise_1CHW, torch.zeros_like(noise_1CHW))
        x_1CHW = sample(euler_along(interruptible), start_1CHW, sigmas_S)
        latent_1CHW = sampling.inverse_noise_scaling(sigmas_S[-1], x_1CHW)
        return self.network.base.process_latent_out(latent_1CHW).cpu()
