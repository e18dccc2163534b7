"""Whether two sets of named tensors can stand for one another."""

from collections.abc import Mapping

from torch import Tensor


def first_shape_mismatch(
    ours: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> tuple[str, list[int] | None, list[int] | None] | None:
    """Return the first name whose tensors differ in shape, with the shapes: ours, given; None where one is missing.

    Returns:
        None where all fit.
    """
    shapes, others = ({name: list(tensor.shape) for name, tensor in which.items()} for which in (ours, given))
    odd = sorted(name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name))
    return (odd[0], shapes.get(odd[0]), others.get(odd[0])) if odd else None
