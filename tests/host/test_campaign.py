"""Generated inputs of every kind: each ends in a right result or in one of our errors, and writes nothing.

`scripts/bench.py campaign` runs this file, then writes the counts as a table.
"""

import io
import math
import os
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from teefusion_core.errors import TeEFusionError
from teefusion_core.files.image_file import opened
from teefusion_core.files.student_file import StudentInfo, read_student
from teefusion_core.files.text_file import read_text
from teefusion_core.guidance.flow import euler, sample
from teefusion_core.prompts.prompt_list import by_prompt, lines_of
from teefusion_core.reflection.operator import exact, reflected
from teefusion_core.training.checkpoint import CheckpointFolder

from .reflection_parts import randn
from .test_config import with_

INFO = StudentInfo("teefusion", "lora", 1.0, 8.0, 0.5, 1000.0, "exact", "CFG", "0123456789abcdef", 10, "0.1.0")
COUNTS: dict[str, Counter] = {}


def some(number):
    """Draw this many inputs, the same ones in every run."""
    return settings(
        max_examples=number, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip


@contextmanager
def counted(kind, folder=None):
    """Count a right result or a refusal; any other error, and any new file, is a failure."""
    before = None if folder is None else sorted(os.listdir(folder))
    count = COUNTS.setdefault(kind, Counter())
    try:
        yield
        count["right"] += 1
    except TeEFusionError as error:
        assert str(error) and "Traceback" not in str(error)
        count["refused"] += 1
    assert folder is None or sorted(os.listdir(folder)) == before


@some(500)
@given(st.one_of(
    st.text().map(str.encode), st.text().map(lambda text: b"\xef\xbb\xbf" + text.encode()), st.binary(),
    st.tuples(st.text(), st.sampled_from(["utf-16", "utf-32", "cp1252", "latin-1"])).map(
        lambda pair: pair[0].encode(pair[1], errors="ignore")
    ),
))  # fmt: skip
def test_texts(tmp_path_factory, data):
    path = scratch(tmp_path_factory) / "a.txt"
    path.write_bytes(data)
    with counted("text files", path.parent):
        text = read_text(path)
        assert data.removeprefix(b"\xef\xbb\xbf").decode().replace("\r\n", "\n").replace("\r", "\n") == text
        assert all(line == line.strip() != "" for line in lines_of(text))


MODES = {"1": "png", "L": "png", "LA": "png", "P": "gif", "RGB": "webp", "RGBA": "png", "CMYK": "tiff", "I;16": "png"}
MODES |= {"F": "tiff", "I": "tiff", "YCbCr": "jpg", "HSV": "tiff"}


@st.composite
def pictures(draw):
    mode, size = draw(st.sampled_from(sorted(MODES))), draw(st.tuples(st.integers(1, 20), st.integers(1, 20)))
    grey, file = draw(st.integers(0, 255)), io.BytesIO()
    image = Image.new("RGB", size, (grey,) * 3)
    if mode == "I;16":
        image = Image.fromarray(np.full(size[::-1], 257 * grey, np.uint16))
    elif mode == "HSV":
        mode = "RGB"
    else:
        image = image.convert(mode)
    image.save(file, {"jpg": "JPEG"}.get(MODES[mode], MODES[mode].upper()))
    data = file.getvalue()
    damage = draw(st.sampled_from(["none", "none", "cut", "flipped"]))
    place = draw(st.integers(0, len(data) - 1))
    if damage == "cut":
        return None, size, data[:place]
    if damage == "flipped":
        return None, size, data[:place] + bytes([data[place] ^ draw(st.integers(1, 255))]) + data[place + 1 :]
    return (None if mode in ("1", "P") else grey), size, data


@some(400)
@given(pictures(), st.sampled_from([".png", ".jpg", ".tiff"]))
def test_images(tmp_path_factory, made, suffix):
    grey, size, data = made
    path = scratch(tmp_path_factory) / f"a{suffix}"
    path.write_bytes(data)
    with counted("image files", path.parent):
        image = opened(path)
        assert image.mode == "RGB"
        if grey is not None:
            assert image.size == size and np.abs(np.asarray(image, dtype=float) - grey).max() <= 3
    path.unlink()


ANY = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 4), st.floats(-4, 4), st.sampled_from([math.nan, math.inf]),
    st.text(max_size=5),
    st.lists(st.text(max_size=3), max_size=2), st.dictionaries(st.text(max_size=2), st.integers(), max_size=1),
)  # fmt: skip


def names_of(pack):
    return sorted((section, name) for section, names in pack.comfy_host.config_rules.LEGAL.items() for name in names)


@some(500)
@given(data=st.data())
def test_configs(pack, tmp_path_factory, data):
    folder, rules = scratch(tmp_path_factory), pack.comfy_host.config_rules
    changes = data.draw(st.lists(st.tuples(st.sampled_from(names_of(pack)), ANY), min_size=1, max_size=3))
    config = with_(*((section, name, value) for (section, name), value in changes))
    with counted("config files", folder):
        try:
            sections = rules.checked(config)
            made = pack.comfy_host.from_file._settings(rules.DistillSettings, "distillation", sections["distillation"])
        except ValueError as error:
            assert isinstance(error, pack.errors.TeEFusionError), error
            raise TeEFusionError(str(error)) from error
        given = sections["distillation"]
        assert {name: type(value) for name, value in asdict(made).items() if name in given} == {
            name: type(value) for name, value in given.items()
        }
        assert all(value is not None for values in sections.values() for value in values.values())


@some(300)
@given(data=st.data())
def test_student_files(tmp_path_factory, data):
    path = scratch(tmp_path_factory) / "a.safetensors"
    metadata, whole = INFO.metadata(), True
    for name in data.draw(st.lists(st.sampled_from([field.name for field in fields(StudentInfo)]), max_size=2)):
        value = data.draw(st.one_of(st.none(), st.text(max_size=6), st.sampled_from(["nan", "inf", "1e999", "[]"])))
        whole = False
        metadata = {key: text for key, text in metadata.items() if key != name} | ({name: value} if value else {})
    raw = save({"a": torch.ones(2)}, metadata)
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw, whole = data.draw(st.sampled_from([raw[:place], raw[:place] + b"\xff" + raw[place + 1 :]])), False
    path.write_bytes(raw)
    with counted("student files", path.parent):
        tensors, info = read_student(path)
        assert all(math.isfinite(value) for value in vars(info).values() if isinstance(value, float))
        assert not whole or (info == INFO and tensors["a"].tolist() == [1, 1])


@some(400)
@given(
    st.one_of(st.text(max_size=12), st.sampled_from(["..", ".", "a/b", "a\\b", "C:", "a\0", "x" * 300, "con/..", " a"]))
)
def test_run_names(tmp_path_factory, name):
    root = scratch(tmp_path_factory)
    with counted("run names", root):
        path = CheckpointFolder(root, name, base="b").path
        assert path.resolve().parent == root.resolve() and path.name == name


EXTRAS = st.dictionaries(
    st.sampled_from(["width", "guidance", "mask", "note", "control", "hooks"]),
    st.one_of(
        st.integers(0, 3), st.floats(0, 1), st.text(max_size=2), st.none(), st.just(torch.ones(1, 4)),
        st.just(torch.zeros(1, 4)), st.lists(st.integers(0, 2), max_size=2), st.builds(object),
    ), max_size=3,
)  # fmt: skip


@some(300)
@given(st.lists(st.tuples(EXTRAS, st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=5))
def test_prompts(pack, entries):
    """CONDITIONING with extra values and batches of rows: nothing of a row is lost in a batch."""
    with counted("conditioning"):
        conditioning = [
            [randn(n, rows, tokens, 4), {**extras, "pooled_output": randn(n + 50, rows, 3)}]
            for n, (extras, rows, tokens) in enumerate(entries)
        ]
        prompts = pack.comfy_host.Prompts([conditioning], "prompt")
        assert len(prompts) == sum(rows for _, rows, _ in entries)
        assert sorted(number for group in prompts.groups for number in group) == list(range(len(prompts)))
        for group in prompts.groups:
            [[context, extras]] = prompts.batch(group)
            for place, number in enumerate(group):
                alone, own = prompts.entries[number]
                assert torch.equal(context[place : place + 1], alone)
                assert torch.equal(extras["pooled_output"][place : place + 1], own["pooled_output"])
                assert extras.keys() == own.keys()
                for name in own.keys() - {"pooled_output"}:
                    same = torch.equal if isinstance(own[name], torch.Tensor) else lambda a, b: a is b or a == b
                    assert same(extras[name], own[name])


@some(300)
@given(st.lists(st.floats(1e-3, 20), min_size=1, max_size=6), st.floats(0.5, 4), st.floats(0.5, 4), st.booleans())
def test_schedules(levels, strong, weak, ends):
    """Euler and reflection on any schedule, against the solution of a linear field."""
    with counted("schedules"):
        sigmas = torch.tensor([*sorted(set(levels), reverse=True), *([0.0] if ends else [])], dtype=torch.float64)
        x, plain, turned = torch.ones(2, 3, dtype=torch.float64), 1.0, 1.0
        for here, after in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            down = after - here
            plain *= 1 + 0.1 * down
            turned *= (1 + 0.1 * down) * ((1 + 0.1 * strong * down) * (1 - 0.1 * weak * down) if after > 0 else 1)
        assert torch.allclose(sample(euler(growing(0.1)), x, sigmas), plain * x)
        step = reflected(euler(growing(0.1 * strong)), exact(growing(0.1 * weak)), euler(growing(0.1)))
        assert torch.allclose(sample(step, x, sigmas), turned * x)


def growing(rate):
    """Return the denoiser of the velocity rate * x."""
    return lambda x, sigma: x - sigma * rate * x


@some(200)
@given(st.integers(-2, 9), st.integers(0, 4))
def test_lists(num_images, num_prompts):
    with counted("lists of images"):
        groups = by_prompt(range(max(num_images, 0)), max(num_prompts, 1), "images")
        assert [item for group in groups for item in group] == list(range(num_images))


def scratch(tmp_path_factory) -> Path:
    """Return one folder for all examples: a new one for each would cost more than the test."""
    if not hasattr(scratch, "folder"):
        scratch.folder = tmp_path_factory.mktemp("campaign")
        for path in scratch.folder.iterdir():
            path.unlink()
    return scratch.folder


def test_the_campaign_was_large_and_saw_both_ends(record_property):
    assert sum(map(Counter.total, COUNTS.values())) >= 2000
    for kind, count in COUNTS.items():
        assert count["right"] and (count["refused"] or kind in ("conditioning", "schedules")), kind
        for outcome in ("right", "refused"):
            record_property("cell", f"{kind}|{outcome}|{count[outcome]}")
