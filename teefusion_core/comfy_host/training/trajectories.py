"""The teacher's trajectories, by number.

Shapes: B rows, C H W latent, S steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import ShapeMismatch
from ...guidance.cfg import cfg_scale_of
from ...training.settings import DistillSettings
from ...training.targets import Trajectory, levels, target_of
from ...training.trajectory_cache import generator_of
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
        grid_S: noise levels of the teacher's schedule.
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

    def make(self, number: int) -> Trajectory:
        """Return the trajectory with a number, always the same one; the student must be disabled."""
        # the word seeds the generator: another one would change every stored result
        generator = generator_of(self.settings.run_seed, "walk", number)
        low, high = self.settings.guidance_min, self.settings.guidance_max
        w = low + (high - low) * torch.rand((), generator=generator)
        sigma_S = levels(self.grid_S, self.settings.timestep_sampling, generator)
        trajectory = (self._from_images if self.images else self._from_noise)(sigma_S, w, generator)
        self.network.load()
        return trajectory

    def _from_noise(self, sigma_S: Tensor, w: Tensor, generator: torch.Generator) -> Trajectory:
        rows = self.settings.images_per_trajectory
        prompts, null = self.positives.pick(rows, generator), self._null(generator)
        noise_BCHW = torch.randn(rows, *self.latent_CHW, generator=generator)
        states, last = self._sample(prompts, null, noise_BCHW, sigma_S, w)
        steps = range(len(sigma_S) - 1)
        targets = [target_of(self.settings.target, states, last, sigma_S, step) for step in steps]
        return self._trajectory(states[:-1], targets, sigma_S, w, [prompts] * len(steps), null)

    def _from_images(self, sigma_S: Tensor, w: Tensor, generator: torch.Generator) -> Trajectory:
        """Take one step of the teacher from each noise level, each time from other images."""
        x, targets, prompts, null = [], [], [], self._null(generator)
        for step in range(len(sigma_S) - 1):
            picked = self.positives.pick(self.settings.images_per_trajectory, generator)
            latent_BCHW = torch.cat([self.images[number] for number in picked])
            noise_BCHW = torch.randn(latent_BCHW.shape, generator=generator)
            here_S = sigma_S[step : step + 2]
            states, last = self._sample(picked, null, noise_BCHW, here_S, w, latent_BCHW=latent_BCHW)
            clean = self.network.base.process_latent_in(latent_BCHW).to(states[0])
            targets.append(target_of(self.settings.target, [*states, clean], last, here_S, 0))
            x.append(states[0])
            prompts.append(picked)
        return self._trajectory(x, targets, sigma_S, w, prompts, null)

    def _sample(self, prompts: list[int], null: int, noise_BCHW: Tensor, sigma_S: Tensor, w: Tensor, **start):
        positive, negative = self.positives.batch(prompts), self.nulls.batch([null] * len(prompts))
        return self.teacher.sample(positive, negative, noise_BCHW, sigma_S, float(cfg_scale_of(w)), **start)

    def _trajectory(self, x, targets, sigma_S: Tensor, w: Tensor, prompts: list[list[int]], null: int) -> Trajectory:
        self.network.load()
        device = self.network.device
        x = [state.to(device) for state in x]
        guidance = [
            target.to(device)
            - self.network.velocity(state, sigma.to(state).expand(len(state)), self.positives.batch(numbers))
            for target, numbers, state, sigma in zip(targets, prompts, x, sigma_S[:-1], strict=True)
        ]
        prompt_SB = torch.tensor(prompts)
        return Trajectory(
            x_SBCHW=torch.stack(x).cpu(), sigma_S=sigma_S[:-1].cpu(), target_SBCHW=torch.stack(targets).cpu(),
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
    return [image.clone() for image in images]
