"""Forecast the memory of a computation by running it on tensors that have a shape and no data.

The operations are those of the real computation, in the same order, and every tensor lives as long as it would; only
the arithmetic is left out. A forecast therefore costs seconds and no memory, whatever the size of the network.
Not counted: the kernels and their scratch memory, and what the device's allocator rounds up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .gradient_checkpointing import replaced
from .update import is_plain

_READ = torch.ops.aten._local_scalar_dense.default
"""The operation by which code reads a number from a tensor."""


class LiveMemory(TorchDispatchMode):
    """Bytes of the live tensors on one device that were made inside the block, after each operation in it.

    Attributes:
        peak: the most bytes so far.
    """

    def __init__(self, device: torch.device | str = "cpu", shapes: FakeTensorMode | None = None) -> None:
        """Start with no tensors.

        Args:
            device: where memory is counted.
            shapes: the mode in which the operations are, if it computes shapes only.
        """
        super().__init__()
        self.device, self.shapes, self.peak = torch.device(device).type, shapes, 0
        self._live, self._paused = 0, False
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        """Run an operation, then record the live bytes."""
        if self._paused:
            return func(*args, **(kwargs or {}))
        leaves = _tensors((args, kwargs))
        if self.shapes is not None and func is not _READ and not all(isinstance(leaf, FakeTensor) for leaf in leaves):
            args, kwargs = tree_map_only(Tensor, self._shape_of, (args, kwargs))
            leaves = _tensors((args, kwargs))
        self._track(leaves, old=True)  # made before the block, or known already
        with torch._C.DisableTorchFunctionSubclass():  # as without this mode; loaders bring classes of their own
            out = func(*args, **(kwargs or {}))
        self._track(_tensors(out), old=False)
        self.add(0)
        return out

    def add(self, more: int) -> None:
        """Record a moment with more live bytes than those of the known tensors."""
        self.peak = max(self.peak, self._live + more)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Ignore the operations inside the block."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    def _shape_of(self, tensor: Tensor) -> Tensor:
        assert self.shapes is not None
        return tensor if isinstance(tensor, FakeTensor) else self.shapes.from_tensor(tensor)

    def _track(self, tensors: list[Tensor], *, old: bool) -> None:
        for tensor in tensors:
            if tensor.device.type == self.device:
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._add(storage, 0 if old else storage.nbytes())

    def _add(self, storage: torch.UntypedStorage, size: int) -> None:
        key = storage._cdata

        def freed(_: weakref.ref) -> None:
            del self._known[key]
            self._live -= size

        self._known[key] = weakref.ref(storage, freed)
        self._live += size


class _Shapes(FakeTensorMode):
    """Computes shapes only; a number that the code reads from a tensor without data is 1."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func is _READ:
            known = not isinstance(args[0], FakeTensor)
            return func(*args) if known else torch.ones((), dtype=args[0].dtype).item()
        return super().__torch_dispatch__(func, types, args, kwargs)


def shapes_of(network: nn.Module | None = None) -> FakeTensorMode:
    """Return a mode that computes shapes only: the one in which the network was made, else a new one."""
    weights = network.parameters() if network else ()
    return next((w.fake_mode for w in weights if isinstance(w, FakeTensor)), _Shapes(allow_non_fake_inputs=True))


@contextmanager
def without_data(network: nn.Module, trained: nn.Module | None = None) -> Iterator[FakeTensorMode]:
    """Leave out the arithmetic of all operations inside the block; its tensors have shapes only.

    Args:
        network: its tensors and attributes are restored after the block, as forward passes may store results there.
        trained: module whose parameters get no gradients inside the block.
    """
    modules = [*network.modules(), *(trained.modules() if trained else ())]
    before = [(held, dict(held)) for m in modules for held in (vars(m), m._parameters, m._buffers)]
    try:
        with shapes_of(network) as mode:
            for module in network.modules():
                weight = getattr(module, "weight", None)
                known = isinstance(weight, FakeTensor) or not isinstance(weight, Tensor) or is_plain(weight)
                if not known and hasattr(module, "out_features"):
                    module.forward = partial(_decoded_linear, module)  # loaders decode with code that reads the data
            for module in trained.modules() if trained else ():
                parameters: dict[str, Any] = module._parameters
                for name, weight in parameters.items():
                    parameters[name] = None if weight is None else mode.from_tensor(weight)
            yield mode
    finally:
        for held, content in before:
            held.clear()
            held.update(content)


def _decoded_linear(layer: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    """Compute a linear layer with quantised weights, which are decoded for each pass."""
    weight_OI = torch.empty(layer.out_features, layer.in_features, dtype=x.dtype, device=x.device)
    return nn.functional.linear(x, weight_OI, None if layer.bias is None else torch.empty_like(weight_OI[:, 0]))


def peak_of(work: Callable[[], object], device: torch.device, network: nn.Module, trained: nn.Module) -> int:
    """Return the peak bytes of a computation on a network, without its arithmetic.

    Args:
        work: runs the computation; its result is dropped.
        device: where memory is counted.
        network, trained: as in `without_data`.
    """
    with without_data(network, trained) as shapes, LiveMemory(device, shapes) as memory:
        work()
    return memory.peak


@contextmanager
def passes_without_data(network: nn.Module, memory: LiveMemory) -> Iterator[None]:
    """Replace the forward passes of a network by noise, inside the block, and count the memory that they would need.

    All other operations are computed, so code that looks at values, such as a sampler, runs as it always does.

    Args:
        network: the network.
        memory: counts the memory inside the block.
    """
    forward, modules = network.forward, list(network.modules())
    seen: dict[Hashable, tuple[Any, int]] = {}

    def noise(*args: Any, **kwargs: Any) -> Any:
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in _tensors((args, kwargs)))
        patches = tuple((type(module), len(module._forward_hooks)) for module in modules)  # differ between phases
        if (shapes, patches) not in seen:
            with memory.paused():
                with without_data(network) as mode, LiveMemory(memory.device, mode) as inside:
                    out = forward(*args, **kwargs)
                seen[shapes, patches] = tree_map_only(Tensor, _noise, out), inside.peak
        out, peak = seen[shapes, patches]
        memory.add(peak)
        return tree_map_only(Tensor, torch.clone, out)

    with replaced(network, noise):
        yield


def _noise(like: Tensor) -> Tensor:
    """Return noise, always the same: of zeros guidance functions would make NaN."""
    generator = torch.Generator(like.device).manual_seed(0)
    return torch.randn(like.shape, generator=generator, device=like.device).to(like.dtype)


def most_rows(peak: Callable[[int], int], available: int, limit: int) -> int:
    """Return how many rows, up to a limit, fit into the available bytes; 0 if not even one does.

    The peak is the largest of several moments, each linear in the rows. Between 1 and the limit it is therefore at most
    what a straight line gives, so this many rows surely fit.
    """
    one, many = peak(1), peak(limit)
    if many <= available or one > available:
        return limit if many <= available else 0
    return 1 + (available - one) * (limit - 1) // (many - one)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
