"""The trajectories of a teacher: what it samples, and the targets that a student learns from it.

Shapes: B rows, C H W latent, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...errors import InvalidConfig, ShapeMismatch
from ...files.tensor_file import not_finite, numbered
from ...guidance.cfg import cfg_scale_of
from ...training.settings import DistillSettings
from ...training.targets import Trajectory, levels, subdivided, target_of
from ...training.trajectory_cache import generator_of
from ..notes import each
from ..prompts.encoded import Prompts
from .network import Network
from .teacher import Teacher


@dataclass(frozen=True)
class TrajectoryMaker:
    """Makes trajectories with the teacher.

    Attributes:
        network: the model without guidance, to compute the guidance of a target.
        teacher: samples the trajectories.
        positives, nulls: prompts; the first of `nulls` is the empty prompt.
        settings: guidance range, noise levels, target, seed.
        grid_S: noise levels of the student's schedule; the teacher takes one or more steps from each to the next.
        latent_CHW: shape of the latents.
        images: latents [1,C,H,W] to start from; empty to start from noise.
    """

    network: Network
    teacher: Teacher
    positives: Prompts
    nulls: Prompts
    settings: DistillSettings
    grid_S: Tensor
    latent_CHW: tuple[int, ...]
    images: Sequence[Tensor]

    def make(self, number: int, said: str = "") -> Trajectory:
        """Return the trajectory with a number, always the same one; the student must be disabled.

        Args:
            said: text that the user sees before the number of the step; if it is empty, no line is shown.
        """
        # the word seeds the generator: another one would change every stored result
        generator = generator_of(self.settings.run_seed, "walk", number)
        low, high = self.settings.drawn_guidance
        return self._made(low + (high - low) * torch.rand((), generator=generator), generator, said)

    def make_beside(self, w: float, rows: int, number: int, steps: int) -> Trajectory:
        """Return some steps of a trajectory with guidance w that training does not use; its noise is that of any w.

        It leads away from the empty prompt: the effective guidance is measured against that.

        Args:
            rows: number of images.
            steps: number of its steps: the middle ones of as many equal parts.
        """
        maker = replace(self, settings=replace(self.settings, images_per_trajectory=rows, negative_share=0.0))
        generator = generator_of(self.settings.run_seed, "calibration", number)
        return maker._made(torch.tensor(w), generator, steps=steps)

    def _made(self, w: Tensor, generator: torch.Generator, said: str = "", steps: int | None = None) -> Trajectory:
        sigma_S = levels(self.grid_S, self.settings.timestep_sampling, generator)
        with self.teacher.telling(said and f"{said}, step", (len(sigma_S) - 1) * self._parts):
            made, null = (self._from_images if self.images else self._from_noise)(sigma_S, w, generator)
        parts = min(steps or len(made), len(made))
        # the middle of each part: both ends of a trajectory are guided more than its middle
        kept = ((torch.arange(parts) + 0.5) * len(made) / parts).long()
        made = [made[step] for step in kept.tolist()]
        trajectory = self._trajectory(made, null, sigma_S[kept], w, said and f"{said}, unguided step")
        self.network.load()
        return trajectory

    def _from_noise(self, sigma_S: Tensor, w: Tensor, generator: torch.Generator) -> tuple[list, int]:
        """Return state, target and prompts of each step, and the number of the prompt to lead away from."""
        rows = self.settings.images_per_trajectory
        prompts, null = self.positives.pick(rows, generator), self._null(generator)
        noise_BCHW = torch.randn(rows, *self.latent_CHW, generator=generator)
        states, last = self._sample(prompts, null, noise_BCHW, sigma_S, w)
        return [
            (state, target_of(self.settings.target, states, last, sigma_S, step), prompts)
            for step, state in enumerate(states[:-1])
        ], null

    def _from_images(self, sigma_S: Tensor, w: Tensor, generator: torch.Generator) -> tuple[list, int]:
        """Take one step of the teacher from each noise level, each time from other images."""
        steps, null = [], self._null(generator)
        for step in range(len(sigma_S) - 1):
            picked = self.positives.pick(self.settings.images_per_trajectory, generator)
            latent_BCHW = torch.cat([self.images[number] for number in picked])
            noise_BCHW = torch.randn(latent_BCHW.shape, generator=generator)
            here_S = sigma_S[step : step + 2]
            states, last = self._sample(picked, null, noise_BCHW, here_S, w, latent_BCHW=latent_BCHW)
            clean = self.network.base.process_latent_in(latent_BCHW).to(states[0])
            steps.append((states[0], target_of(self.settings.target, [*states, clean], last, here_S, 0), picked))
        return steps, null

    @property
    def _parts(self) -> int:
        """Number of steps of the teacher in one step of the student."""
        return self.settings.teacher_steps // self.settings.steps_learned

    def _sample(self, prompts: list[int], null: int, noise_BCHW: Tensor, sigma_S: Tensor, w: Tensor, **start):
        """Return the teacher's state at each level, and its last velocity before each level but the first."""
        positive, negative = self.positives.batch(prompts), self.nulls.batch([null] * len(prompts))
        levels_S, scale = subdivided(sigma_S, self._parts), float(cfg_scale_of(w))
        states, last = self.teacher.sample(positive, negative, noise_BCHW, levels_S, scale, **start)
        return states[:: self._parts], last[self._parts - 1 :: self._parts]

    def _trajectory(self, steps: list, null: int, sigma_S: Tensor, w: Tensor, said: str) -> Trajectory:
        self.network.load()
        device = self.network.device
        x, targets, prompts = zip(
            *((x.to(device), target.to(device), picked) for x, target, picked in steps), strict=True
        )
        guidance = [
            target - self.network.velocity(state, sigma.to(state).expand(len(state)), self.positives.batch(numbers))
            for state, target, numbers, sigma in each(said, zip(x, targets, prompts, sigma_S, strict=True))
        ]
        prompt_SB = torch.tensor(prompts)
        return Trajectory(
            x_SBCHW=torch.stack(x).cpu(), sigma_S=sigma_S.cpu(), target_SBCHW=torch.stack(targets).cpu(),
            guidance_SBCHW=torch.stack(guidance).cpu(), w=w, prompt_SB=prompt_SB,
            null_SB=torch.full_like(prompt_SB, null),
        )  # fmt: skip

    def _null(self, generator: torch.Generator) -> int:
        """Pick the empty prompt, or a negative one with the probability `negative_share`."""
        others = len(self.nulls) - 1
        if others and float(torch.rand((), generator=generator)) < self.settings.negative_share:
            return 1 + int(torch.randint(others, (), generator=generator))
        return 0


def checked_images(images: Sequence[Tensor], captions: int, channels: int) -> list[Tensor]:
    """Copy the latents of training images.

    Raises:
        ShapeMismatch: the images have several shapes, another latent space, or not one caption each.
        InvalidConfig: an image has NaN.
    """
    shapes = {tuple(image.shape[1:]) for image in images}
    if len(shapes) > 1:
        raise ShapeMismatch(f"the latents have shapes {sorted(shapes)}; use images of one size")
    if any(shape[0] != channels for shape in shapes):
        raise ShapeMismatch(
            f"the latents have {next(iter(shapes))[0]} channels, but the model uses {channels}; encode the "
            "images with the VAE of the model"
        )
    if images and len(images) != captions:
        raise ShapeMismatch(f"there are {len(images)} images and {captions} captions; give each image one caption")
    if lost := [number for number, image in enumerate(images, 1) if not_finite(image)]:
        raise InvalidConfig(
            f"the latents have NaN or infinite values in {numbered('image', lost)}; encode these images again, for "
            "example with a VAE in 32 bits, or leave them out"
        )
    return [image.clone() for image in images]
