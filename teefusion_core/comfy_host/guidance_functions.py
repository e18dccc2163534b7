"""Guidance functions: what other nodes put on a MODEL to act before CFG, instead of CFG or after CFG.

Shapes: B rows; the rest of a latent is any.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType, ModuleType

import comfy.model_patcher
import comfy.samplers
import torch
from torch import Tensor

from ..errors import InvalidConfig
from .origin import described

OPTIONS = ("sampler_pre_cfg_function", "sampler_cfg_function", "sampler_post_cfg_function")
BRANCHES_KEY = "sampler_calc_cond_batch_function"  # model option of the host
TOLERANCE = 1e-5
"""Relative difference of two answers below which they count as equal: rounding in float32."""
RANDOMNESS = 4
"""How many times larger than the spread of repeated answers the effect of a memory must be."""

log = logging.getLogger(__name__)


def guidance_functions(options: dict) -> list[tuple[str, Callable]]:
    """Return (name of the model option, function) of every guidance function, in the host's order."""
    found: list[tuple[str, Callable]] = []
    for name in OPTIONS:
        held = options.get(name) or []
        found += [(name, function) for function in (held if isinstance(held, list) else [held])]
    return found


def with_memory(network, options: dict, x: Tensor, sigmas: Tensor, scale: float) -> list[str]:
    """Return descriptions of the guidance functions whose answer depends on earlier calls.

    A function has a memory if its answer to one input differs when it has answered another input before. This is tried
    with made predictions of two neighbouring steps in the middle of the schedule: the later step alone, then the
    earlier and the later step, each time from the state that the function has now. That makes three calls without a
    pass of the network: functions that predict by themselves are given no prompt, and the host answers zero for that.
    The random numbers are the same each time. A function that brings its own random generator is tried once more, and
    is reported only if the effect of the memory is larger than its randomness. What the calls change in model options,
    in closures and in the objects there is put back; a tensor that is changed in place is not.

    Not found: a memory that is idle in the middle of the schedule, and functions that fail without a prompt.

    Args:
        network: the host's model object.
        options: model options of the run; not modified.
        x: a latent of the run [B,...], for its shape, type and device.
        sigmas: noise levels of the run [S+1].
        scale: CFG scale that the functions are called with.
    """
    functions = guidance_functions(options)
    if not functions or len(sigmas) < 2:
        return []
    others = {name: value for name, value in options.items() if name not in OPTIONS}
    trial = functools.partial(_remembers, network, x, sigmas, scale)
    if not trial(options):
        return []
    # a function under "sampler_cfg_function" stands alone, the others are lists
    alone = [{**others, name: function if name == OPTIONS[1] else [function]} for name, function in functions]
    guilty = [function for (_, function), own in zip(functions, alone, strict=True) if trial(own)]
    return [described(function) for function in guilty or [function for _, function in functions]]


def _remembers(network, x: Tensor, sigmas: Tensor, scale: float, options: dict) -> bool:
    generator = torch.Generator().manual_seed(0)
    first = (len(sigmas) - 2) // 2
    last = min(first + 1, len(sigmas) - 2)  # the final noise level is 0, at which no model is called
    steps = [
        (sigma.to(x) * x.new_ones(len(x)), [torch.randn(x.shape, generator=generator).to(x) for _ in range(3)])
        for sigma in (sigmas[first], sigmas[last])
    ]

    def answer(*order) -> Tensor:
        state = comfy.model_patcher.create_model_options_clone(options)
        with _put_back(guidance_functions(options)):
            for sigma, tensors in order:
                torch.manual_seed(0)
                latent, *predictions = (tensor.clone() for tensor in tensors)
                state[BRANCHES_KEY] = functools.partial(_given, predictions)
                out = comfy.samplers.sampling_function(network, latent, sigma, [], [], scale, model_options=state)
        return out

    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            alone, after = answer(steps[1]), answer(*steps)
            change = float((after - alone).norm())
            if not change > TOLERANCE * float(alone.norm()):
                return False
            return change > RANDOMNESS * float((answer(steps[1]) - alone).norm())
    except Exception as error:  # of somebody else's code on made inputs: the run itself shows whether it works
        log.debug("TeEFusion: guidance functions could not be tried: %r", error)
        return False


def _given(predictions: list[Tensor], args: dict) -> list[Tensor]:
    """Return made predictions in place of the network's; zeros for a branch that is left out, as the host does."""
    pairs = zip(args["conds"], predictions, strict=True)
    return [torch.zeros_like(made) if cond is None else made for cond, made in pairs]


@contextmanager
def _put_back(functions: list[tuple[str, Callable]]) -> Iterator[None]:
    """Put back the variables of the closures of functions, and what dictionaries, lists and objects there hold."""
    cells: dict[int, tuple] = {}
    held: dict[int, tuple] = {}

    def keep(value) -> None:
        if isinstance(value, MethodType):
            keep(value.__self__)
            keep(value.__func__)
        elif isinstance(value, functools.partial):
            keep(value.func)
        elif isinstance(value, FunctionType):
            for cell in value.__closure__ or ():
                if id(cell) not in cells and cell != CellType():
                    cells[id(cell)] = (cell, cell.cell_contents)
                    keep(cell.cell_contents)
        elif isinstance(value, (dict, list)):
            held.setdefault(id(value), (value, value.copy()))
        elif hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType)):
            held.setdefault(id(vars(value)), (vars(value), vars(value).copy()))

    for _, function in functions:
        keep(function)
    try:
        yield
    finally:
        for cell, before in cells.values():
            cell.cell_contents = before
        for container, before in held.values():
            if isinstance(container, list):
                container[:] = before
            elif [*map(id, container.values())] != [*map(id, before.values())] or container.keys() != before.keys():
                container.clear()
                container.update(before)


def name_what_is_not_finite(options: dict) -> None:
    """Make every guidance function raise an error when it turns finite predictions into NaN or infinity.

    Args:
        options: model options of one run; the functions in it are replaced.
    """
    for name in OPTIONS:
        if held := options.get(name):
            options[name] = [*map(_checked, held)] if isinstance(held, list) else _checked(held)


def _checked(function: Callable) -> Callable:
    @functools.wraps(function)
    def checked(args: dict):
        # tested before the call, because a function may change its inputs; read after it, to wait for the device once
        given = _finite([*args.get("conds_out", ()), args.get("cond_denoised"), args.get("denoised")])
        out = function(args)
        if bool(given & ~_finite(out if isinstance(out, (list, tuple)) else [out])):
            raise InvalidConfig(
                f"{described(function)} made NaN or infinite values at CFG scale {args['cond_scale']:g} and noise "
                f"level {float(args['sigma'].max()):.3g}. Choose another CFG scale, or remove its node"
            )
        return out

    return checked


def _finite(values) -> Tensor:
    tests = [torch.isfinite(value).all() for value in values if isinstance(value, Tensor)]
    return torch.stack(tests).all() if tests else torch.tensor(True)
