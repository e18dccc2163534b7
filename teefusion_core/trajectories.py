"""The teacher's own way from noise as training data.

No pictures are needed, every state is one that guidance really leads to, and an evaluation of the teacher serves
several steps of the student. (Algorithm 1 of the paper noises pictures instead, where low noise shows hardly any
guidance: the picture already agrees with its prompt.)

Shapes: B batch, C H W latent, N = C*H*W, S steps.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .distill import Velocity
from .errors import InvalidConfig
from .flow import Step, per_row, secant, shifted


@dataclass(frozen=True)
class Example:
    """What the student shall predict, row by row.

    Attributes:
        x_BCHW, sigma_B: where.
        w_B: at which guidance.
        prompt_B: of which prompt, numbers of the caller.
        target_BCHW: the velocity.
        guidance_BCHW: what of it the teacher's guidance adds to the unguided velocity.
        weight_B: how much the row counts.
    """

    x_BCHW: Tensor
    sigma_B: Tensor
    w_B: Tensor
    prompt_B: Tensor
    target_BCHW: Tensor
    guidance_BCHW: Tensor
    weight_B: Tensor


def jittered_grid(rows: int, num_steps: int, shift: float, generator: torch.Generator) -> Tensor:
    """Noise levels [S+1,B] from 1 to 0, the inner ones moved at random so that no schedule is learned by heart.

    Args:
        num_steps: S, 1 or more.
        shift: schedule shift of the base (SD3: 3); the grid is even before it.
        generator: on the CPU.
    """
    inner = torch.arange(1, num_steps)[:, None] + torch.rand(1, rows, generator=generator) - 0.5
    t_SB = torch.cat((torch.zeros(1, rows), inner, torch.full((1, rows), float(num_steps)))) / num_steps
    return shifted(1 - t_SB, shift)


def walk(teacher: Step, noise_BCHW: Tensor, sigma_SB: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield (x, sigma, secant of the teacher's move) for every step of the teacher from noise to a picture.

    Args:
        sigma_SB: noise levels [S+1,B], decreasing.
    """
    x_BCHW = noise_BCHW
    for sigma_from_B, sigma_to_B in pairwise(sigma_SB):
        with torch.no_grad():
            target_BCHW = secant(teacher, x_BCHW, sigma_from_B, sigma_to_B)
        yield x_BCHW, sigma_from_B, target_BCHW
        x_BCHW = x_BCHW + per_row(sigma_to_B - sigma_from_B, x_BCHW) * target_BCHW


class Replay:
    """The latest walks, from which batches are drawn in any order.

    A row weighs one over the mean square of what guidance adds in its step, found on the first walk: it is fifty
    times more in the first step than in the last, which would go unlearned. The loss then is 1 for a student without
    guidance, 0 for the teacher.
    """

    def __init__(self, walks: int):
        """Keep this many walks, 1 or more."""
        if walks < 1:
            raise InvalidConfig(f"replay keeps {walks} walks; keep one or more")
        self.walks: deque[Example] = deque(maxlen=walks)
        self.weight_S: list[float] = []

    def add(self, steps: Iterable[tuple[Tensor, Tensor, Tensor]], unguided: Velocity, w_B: Tensor, prompt_B: Tensor):
        """Keep a walk, its latents in half precision.

        Args:
            steps: what `walk` yields.
            unguided: velocity of the base with the same prompts.
            w_B: guidance that the teacher walked with.
            prompt_B: numbers of its prompts.
        Raises:
            InvalidConfig: another number of steps or rows than the walk before.
        """
        x, sigma, target = (list(column) for column in zip(*steps, strict=True))
        with torch.no_grad():
            guidance = [t - unguided(*at) for *at, t in zip(x, sigma, target, strict=True)]
        if not self.weight_S:
            self.weight_S = [1 / max(float(g.square().mean()), 1e-12) for g in guidance]
        length, rows = len(target), len(w_B)
        if len(self.weight_S) != length or (self.walks and len(self.walks[-1].w_B) != length * rows):
            raise InvalidConfig(
                f"a walk of {length} steps with {rows} rows, unlike the one before; keep both as they were"
            )
        weight_SB = torch.tensor(self.weight_S)[:, None].expand(length, rows)
        self.walks.append(
            Example(
                x_BCHW=torch.cat(x).half(),
                sigma_B=torch.cat(sigma),
                w_B=w_B.repeat(length),
                prompt_B=prompt_B.repeat(length),
                target_BCHW=torch.cat(target).half(),
                guidance_BCHW=torch.cat(guidance).half(),
                weight_B=weight_SB.flatten().to(w_B.device),
            )
        )

    def draw(self, rows: int, generator: torch.Generator) -> Example:
        """Pick rows at random, each from any walk, step and prompt."""
        walks = torch.randint(len(self.walks), (rows,), generator=generator).tolist()
        places = torch.randint(len(self.walks[-1].w_B), (rows,), generator=generator).tolist()
        picked = [(vars(self.walks[walk]), place) for walk, place in zip(walks, places, strict=True)]
        columns = {name: torch.stack([walk[name][place] for walk, place in picked]) for name in vars(self.walks[-1])}
        return Example(**{name: c.float() if c.is_floating_point() else c for name, c in columns.items()})


def replay_loss(student: Velocity, example: Example, along: float = 1.0) -> Tensor:
    """Weighted mean squared distance of the student's velocity from the teacher's.

    Args:
        student: velocity at the example's w and prompts, differentiable.
        along: how many times the error along the guidance counts. With 1, the plain mean square, a student that can
            not foretell the direction of the guidance exactly shrinks it: users then get less guidance than they set.
    Returns:
        Scalar loss.
    """
    error_BN = (student(example.x_BCHW, example.sigma_B) - example.target_BCHW).flatten(1)
    direction_BN = torch.nn.functional.normalize(example.guidance_BCHW.flatten(1), dim=1)
    along_B = (error_BN * direction_BN).sum(1).square() / error_BN.shape[1]
    return (example.weight_B * (error_BN.square().mean(1) + (along - 1) * along_B)).mean()
