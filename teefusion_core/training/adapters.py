"""Trainable updates of a network: LoRA factors, or copies of its parameters.

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
from .update import Update, check_plain, copy_into

LORA, DIFF = "lora", "diff"
PREFIX = "diffusion_model."
"""Prefix of every name in a student file."""
LORA_ENDS = (".alpha", ".lora_down.weight", ".lora_up.weight")
DIFF_ENDS = {"weight": "diff", "bias": "diff_b"}
"""How the names of a LoRA and of differences end, as ComfyUI's LoRA loaders read them."""


class Lora(Update):
    """An update scale * up @ down of each given linear layer, zero at the start."""

    mode = LORA

    def __init__(
        self, network: nn.Module, rank: int, *, layers: Iterable[str] = (), alpha: float | None = None, seed: int = 0
    ):
        """Make the factors, float32 on the device of the network.

        Args:
            network: the network with the layers.
            rank: R, 1 or more; layers narrower than R use their own width.
            layers: paths of linear layers; by default all linear layers of the network.
            alpha: scale times R; None means scale 1.
            seed: seed of the random `down` factors.
        Raises:
            InvalidConfig: rank is below 1, or there are no layers.
        """
        super().__init__(network)
        self.layers = list(layers) or linear_layers(network)
        if rank < 1 or not self.layers:
            raise InvalidConfig(f"rank is {rank} for {len(self.layers)} layers; use 1 or more of both")
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
        """Return the factors of a layer, differentiable: up [O,R] times the scale, and down [R,I]."""
        return self.scale * self.up[_key(path)], self.down[_key(path)]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Add the update to the outputs of the layers inside the block."""
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
        """Yield the weights of the layers with the products of the factors added."""
        for path in self.layers:
            up_OR, down_RI = self.factors(path)
            yield f"{path}.weight", self.network.get_parameter(f"{path}.weight").float() + up_OR @ down_RI

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that `state` returned."""
        parts = {"down": self.down, "up": self.up}
        ours = {f"{PREFIX}{p}.lora_{n}.weight": part[_key(p)] for p in self.layers for n, part in parts.items()}
        copy_into(ours, {name: t for name, t in tensors.items() if not name.endswith(".alpha")})


class ParameterCopies(Update):
    """Trainable float32 copies of some parameters, whatever the dtype of the base."""

    mode = DIFF

    def __init__(self, network: nn.Module, names: Iterable[str]):
        """Copy the named parameters.

        Raises:
            InvalidConfig: names is empty, or a parameter is quantised.
        """
        super().__init__(network)
        self.names = list(names)
        if not self.names:
            raise InvalidConfig("no parameter of this network would be trained; choose another value of trainable")
        check_plain(network, self.names, "training copies of the parameters")
        self.copies = nn.ParameterDict(
            {_key(name): nn.Parameter(network.get_parameter(name).detach().float().clone()) for name in self.names}
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the copies in place of the parameters while their layers run inside the block.

        Only while they run, because the host may load, freeze or patch the network at any other time.
        """
        with ExitStack() as stack:
            for name in self.names:
                path, _, leaf = name.rpartition(".")
                module = self.network.get_submodule(path)
                own: list[nn.Parameter] = []
                restore = partial(_restore, leaf, own)
                stack.callback(restore, module)  # for interrupts that skip the hooks
                swap_in = partial(self._swap_in, name, leaf, own)
                stack.callback(module.register_forward_pre_hook(swap_in).remove)
                stack.callback(module.register_forward_hook(restore, always_call=True).remove)
            yield

    def _swap_in(self, name: str, leaf: str, own: list[nn.Parameter], module: nn.Module, inputs: tuple) -> None:
        parameter = module._parameters[leaf]  # get_parameter refuses what torch.func has put there
        assert parameter is not None
        own.append(parameter)
        module._parameters[leaf] = self.copies[_key(name)].to(parameter.dtype)

    def state(self) -> dict[str, Tensor]:
        """Return the differences from the base under the names that ComfyUI's LoRA loaders read."""
        return {file_name: _stored(self.copies[_key(n)] - self._base(n)) for n, file_name in self._file_names()}

    def changed(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the copies."""
        for name in self.names:
            yield name, self.copies[_key(name)]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Load tensors that `state` returned."""
        names = self._file_names()
        copy_into({file_name: self.copies[_key(name)] for name, file_name in names}, tensors)
        with torch.no_grad():
            for name in self.names:
                self.copies[_key(name)] += self._base(name)

    def _base(self, name: str) -> Tensor:
        return self.network.get_parameter(name).detach().float()

    def _file_names(self) -> list[tuple[str, str]]:
        return [(name, _diff_name(name)) for name in self.names]


def _restore(leaf: str, own: list[nn.Parameter], module: nn.Module, *_: object) -> None:
    while own:
        module._parameters[leaf] = own.pop()


def linear_layers(network: nn.Module) -> list[str]:
    """Return the paths of all linear layers.

    Raises:
        InvalidConfig: the network has linear layers of quantised classes only, as scaled fp8 files have in ComfyUI.
    """
    found = [path for path, layer in network.named_modules() if path and isinstance(layer, nn.Linear)]
    if not found and (other := next((layer for layer in network.modules() if hasattr(layer, "in_features")), None)):
        raise InvalidConfig(
            f"the linear layers of this model are quantised ({type(other).__module__}), which a LoRA cannot be trained "
            "on; load the model in bfloat16, float16 or plain fp8"
        )
    return found


def _of_modulation(network: nn.Module, architecture: Architecture | None) -> list[str]:
    if architecture is None:
        raise InvalidConfig(
            f"trainable is lora on modulation, but which layers of a {type(network).__name__} model these are is "
            "unknown; choose lora"
        )
    mark = architecture.modulation
    return [path for path in linear_layers(network) if architecture.embeds(path) or mark in path]


LORA_LAYERS: dict[str, Callable[[nn.Module, Architecture | None], list[str]]] = {
    "lora": lambda network, _: linear_layers(network),
    "lora on modulation": _of_modulation,
}
"""Value of `trainable` -> paths of the layers that get a LoRA, from the network and its family."""


def _of_embedders(network: nn.Module, architecture: Architecture) -> list[str]:
    return [name for name, _ in network.named_parameters() if architecture.embeds(name)]


Maker = Callable[[nn.Module, Architecture, int, int], Update]


def _lora_maker(layers: Callable[[nn.Module, Architecture | None], list[str]]) -> Maker:
    return lambda network, row, rank, seed: Lora(network, rank, layers=layers(network, row), seed=seed)


TRAINABLE: dict[str, Maker] = {
    **{name: _lora_maker(layers) for name, layers in LORA_LAYERS.items()},
    "embedders": lambda network, row, rank, seed: ParameterCopies(network, _of_embedders(network, row)),
    "everything": lambda network, row, rank, seed: ParameterCopies(network, [n for n, _ in network.named_parameters()]),
}
"""Value of `trainable` -> how to make the update from (network, architecture, rank, seed); only LoRA uses the rank.

lora: every linear layer. lora on modulation: the embedders of the time and of the pooled text, and the modulation
layers. embedders: the parameters of these two embedders. everything: all parameters.
"""


def file_names(network: nn.Module, architecture: Architecture) -> dict[str, set[str]]:
    """Return the names of the tensors in a student file for each value of `trainable`."""
    parameters = [name for name, _ in network.named_parameters()]
    layers = {way: paths(network, architecture) for way, paths in LORA_LAYERS.items()}
    names = {"embedders": _of_embedders(network, architecture), "everything": parameters}
    return {
        **{way: {f"{PREFIX}{path}{end}" for path in paths for end in LORA_ENDS} for way, paths in layers.items()},
        **{way: {_diff_name(name) for name in chosen} for way, chosen in names.items()},
    }


def file_shapes(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the tensors of a student file must have on a network, with those that belong to them.

    Names that mean nothing to the network are left out.
    """
    known = {_diff_name(name): tuple(weight.shape) for name, weight in network.named_parameters()}
    wanted: dict[str, tuple[int, ...]] = {name: known[name] for name in tensors if name in known}
    for path in {name.removesuffix(end) for name in tensors for end in LORA_ENDS if name.endswith(end)}:
        if weight := known.get(f"{path}.diff"):
            alpha, down, up = (path + end for end in LORA_ENDS)
            rank = len(tensors[down]) if down in tensors and tensors[down].ndim else 0
            wanted |= {alpha: (), down: (rank, *weight[1:]), up: (weight[0], rank)}
    return wanted


def _diff_name(name: str) -> str:
    """Return the name of a difference in a file: x.weight becomes x.diff, and x.bias becomes x.diff_b."""
    path, _, leaf = name.rpartition(".")
    return f"{PREFIX}{path}.{DIFF_ENDS[leaf]}" if leaf in DIFF_ENDS else f"{PREFIX}{name}.diff"


def _key(name: str) -> str:
    """Replace the dots of a name, which a ParameterDict does not allow."""
    return name.replace(".", "/")


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().half().cpu().contiguous()
