"""What can be trained of a network: LoRA factors, or copies of its parameters.

Shapes: O output width, I input width, R rank.
Source: LoRA, arXiv 2106.09685; the keys of `state` are those that ComfyUI's LoRA loaders read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import InvalidConfig
from ..guidance.architectures import Architecture
from ..reflection.low_rank import LowRank
from .update import Update, take_over

LORA, DIFF, FULL = "lora", "diff", "full"
PREFIX = "diffusion_model."
"""In front of every name in a student file."""


class Lora(Update):
    """An update scale * up @ down for every linear layer it is given, zero at the start."""

    mode = LORA

    def __init__(
        self, network: nn.Module, rank: int, *, layers: Iterable[str] = (), alpha: float | None = None, seed: int = 0
    ):
        """Make the factors, float32 where the network is.

        Args:
            network: holds the layers.
            rank: R, 1 or more; layers narrower than R use their own width.
            layers: paths of linear layers; by default all of the network.
            alpha: scale times R; None means scale 1.
            seed: of the random `down` factors.
        Raises:
            InvalidConfig: rank below 1, or no layer.
        """
        super().__init__(network)
        self.layers = list(layers) or linear_layers(network)
        if rank < 1 or not self.layers:
            raise InvalidConfig(f"rank is {rank} for {len(self.layers)} layers; give a rank of 1 or more and a network")
        self.scale = 1.0 if alpha is None else alpha / rank
        generator = torch.Generator().manual_seed(seed)
        self.down, self.up = nn.ParameterDict(), nn.ParameterDict()
        for path in self.layers:
            weight_OI = network.get_parameter(f"{path}.weight")
            outputs, inputs = weight_OI.shape
            r = min(rank, outputs, inputs)
            down_RI = torch.randn(r, inputs, generator=generator) / inputs**0.5
            self.down[_key(path)] = nn.Parameter(down_RI.to(weight_OI.device))
            self.up[_key(path)] = nn.Parameter(torch.zeros(outputs, r, device=weight_OI.device))

    def factors(self, path: str) -> tuple[Tensor, Tensor]:
        """Return up [O,R] times the scale with down [R,I] of a layer, differentiable."""
        return self.scale * self.up[_key(path)], self.down[_key(path)]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Add the update to what the layers return inside the block."""
        with ExitStack() as stack:
            for path in self.layers:
                hook = partial(self._added, path)
                stack.callback(self.network.get_submodule(path).register_forward_hook(hook).remove)
            yield

    def _added(self, path: str, layer: nn.Module, inputs: tuple, out: Tensor) -> Tensor:
        return LowRank(layer, *self.factors(path)).added(out, inputs[0])

    def state(self) -> dict[str, Tensor]:
        """Return the factors under the names that ComfyUI's LoRA loaders read, float16 on the CPU."""
        tensors = {}
        for path in self.layers:
            down, up = self.down[_key(path)], self.up[_key(path)]
            # the loader divides alpha by the rank of the file, which is smaller for a narrow layer
            tensors[f"{PREFIX}{path}.alpha"] = torch.tensor(self.scale * len(down))
            tensors[f"{PREFIX}{path}.lora_down.weight"] = _stored(down)
            tensors[f"{PREFIX}{path}.lora_up.weight"] = _stored(up)
        return tensors

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Go through the weights of the layers, the products of the factors added."""
        for path in self.layers:
            up_OR, down_RI = self.factors(path)
            yield f"{path}.weight", self.network.get_parameter(f"{path}.weight").float() + up_OR @ down_RI

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        parts = {"down": self.down, "up": self.up}
        ours = {f"{PREFIX}{p}.lora_{n}.weight": part[_key(p)] for p in self.layers for n, part in parts.items()}
        take_over(ours, {name: t for name, t in tensors.items() if not name.endswith(".alpha")})


class Whole(Update):
    """Copies of some parameters, trained as they are; float32, whatever the base is kept in."""

    mode = DIFF

    def __init__(self, network: nn.Module, names: Iterable[str]):
        """Copy the parameters of these names.

        Raises:
            InvalidConfig: no name.
        """
        super().__init__(network)
        self.names = list(names)
        if not self.names:
            raise InvalidConfig("no parameter of the network is to be trained; choose another part of it")
        self.copies = nn.ParameterDict(
            {_key(name): nn.Parameter(network.get_parameter(name).detach().float().clone()) for name in self.names}
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Exchange the parameters for the copies while their layers are at work inside the block.

        Only then: the host may load, freeze or patch the network in the middle of a training.
        """
        with ExitStack() as stack:
            for name in self.names:
                path, _, leaf = name.rpartition(".")
                module = self.network.get_submodule(path)
                own: list[nn.Parameter] = []
                back = partial(_put_back, leaf, own)
                stack.callback(back, module)  # after what no hook hears of, such as Ctrl-C
                exchange = partial(self._exchange, name, leaf, own)
                stack.callback(module.register_forward_pre_hook(exchange).remove)
                stack.callback(module.register_forward_hook(back, always_call=True).remove)
            yield

    def _exchange(self, name: str, leaf: str, own: list[nn.Parameter], module: nn.Module, inputs: tuple) -> None:
        own.append(module.get_parameter(leaf))
        module._parameters[leaf] = self.copies[_key(name)].to(own[0].dtype)

    def state(self) -> dict[str, Tensor]:
        """Return the differences from the base under the names that ComfyUI's LoRA loaders read."""
        return {file_name: _stored(self.copies[_key(n)] - self._base(n)) for n, file_name in self._file_names()}

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Go through the copies."""
        for name in self.names:
            yield name, self.copies[_key(name)]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        names = self._file_names()
        take_over({file_name: self.copies[_key(name)] for name, file_name in names}, tensors)
        with torch.no_grad():
            for name in self.names:
                self.copies[_key(name)] += self._base(name)

    def _base(self, name: str) -> Tensor:
        return self.network.get_parameter(name).detach().float()

    def _file_names(self) -> list[tuple[str, str]]:
        """Names of parameters with those in a file: x.weight is x.diff there, x.bias is x.diff_b."""
        ends = {"weight": "diff", "bias": "diff_b"}
        found = []
        for name in self.names:
            path, _, leaf = name.rpartition(".")
            found.append((name, f"{PREFIX}{path}.{ends[leaf]}" if leaf in ends else f"{PREFIX}{name}.diff"))
        return found


def _put_back(leaf: str, own: list[nn.Parameter], module: nn.Module, *_: object) -> None:
    while own:
        module._parameters[leaf] = own.pop()


def linear_layers(network: nn.Module) -> list[str]:
    """Paths of the layers that multiply by a matrix."""
    return [path for path, layer in network.named_modules() if path and isinstance(layer, nn.Linear)]


def _of_modulation(network: nn.Module, architecture: Architecture) -> list[str]:
    mark = architecture.modulation
    return [path for path in linear_layers(network) if architecture.embeds(path) or mark in path]


def _of_embedders(network: nn.Module, architecture: Architecture) -> list[str]:
    return [name for name, _ in network.named_parameters() if architecture.embeds(name)]


Maker = Callable[[nn.Module, Architecture, int, int], Update]
TRAINABLE: dict[str, Maker] = {
    "lora": lambda network, _, rank, seed: Lora(network, rank, seed=seed),
    "lora on modulation": lambda network, row, rank, seed: Lora(
        network, rank, layers=_of_modulation(network, row), seed=seed
    ),
    "embedders": lambda network, row, rank, seed: Whole(network, _of_embedders(network, row)),
    "everything": lambda network, row, rank, seed: Whole(network, [n for n, _ in network.named_parameters()]),
}
"""Name of what is trained -> how to make it from (network, architecture, rank, seed); only LoRA has a rank.

lora: every linear layer. lora on modulation: the embedders of time with pooled text, the layers that modulate by them.
embedders: these two themselves. everything: all parameters.
"""


def _key(name: str) -> str:
    """A name without dots, which a ParameterDict cannot hold."""
    return name.replace(".", "/")


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().half().cpu().contiguous()
