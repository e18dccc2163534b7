"""Laws of checkpoints over random contents, random damage."""

import logging
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from teefusion_core.files.state_file import read_tree, write_tree
from teefusion_core.training.checkpoint import CheckpointFolder

dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool])
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(lambda dtype, shape: torch.full(shape, 3).to(dtype), dtypes, shapes)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
keys = st.text(max_size=3) | st.sampled_from(["a", "a.b", "b", "__metadata__", ".", "0"])
trees = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@settings(max_examples=60)
@given(trees)
def test_a_tree_is_read_as_written(tree):
    with tempfile.TemporaryDirectory() as folder:
        write_tree(Path(folder) / "x.safetensors", tree)
        assert same(read_tree(Path(folder) / "x.safetensors"), tree)


@settings(max_examples=40)
@given(st.data())
def test_no_altered_byte_is_ever_trained_on(data):
    """Whatever byte of the newest changes, what is loaded is one of the two checkpoints, exactly."""
    logging.disable()
    contents = {step: ({"weights": {"a": torch.arange(5.0) + step}}, {"position": step}) for step in (1, 2)}
    with tempfile.TemporaryDirectory() as root:
        folder = CheckpointFolder(Path(root), "run", base="base")
        for step, (shared, own) in contents.items():
            folder.save(step, {"lr": 0.1}, shared, own)
        files = sorted((folder.path / "step-00000002").iterdir())
        path = data.draw(st.sampled_from(files))
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        stored = folder.load({"lr": 0.1})
    logging.disable(logging.NOTSET)
    assert same((stored.shared, stored.own)[0], contents[stored.step][0]) and stored.own == contents[stored.step][1]
    assert stored.step == 1 or path.suffix == ".json", "blank space of the manifest alone may change unnoticed"
