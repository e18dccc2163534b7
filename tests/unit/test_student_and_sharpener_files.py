"""Files of students and of sharpeners: what is written is what is read, anything else is refused."""

import pickle
import re
import shlex
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from teefusion_core.errors import CheckpointMismatch, InvalidConfig
from teefusion_core.files import tensor_file
from teefusion_core.files.sharpener_file import SharpenerInfo, read_sharpener, write_sharpener
from teefusion_core.files.student_file import StudentInfo, check_base, read_student, write_student
from teefusion_core.prompts.sharpener import Sharpener

from .pickles import trap

STUDENT = StudentInfo(
    method="teefusion", mode="lora", guidance_min=0.5, guidance_max=6.0, gain=0.1 + 0.2,
    guidance_embedding_scale=1000.0, guidance_precision="exact", teacher="Euler, CFG, 20 steps",
    base="0123456789abcdef", step=1200, pack_version="0.1.0",
)  # fmt: skip
SHARPENER = SharpenerInfo(
    method="dice", width=16, hidden=8, heads=2, alpha=1.0, alpha_min=0.0, alpha_max=1.5, teacher="Euler, CFG 5",
    base="", step=8000, pack_version="0.1.0",
)  # fmt: skip
TENSORS = {"a.alpha": torch.tensor(4.0), "a.lora_down.weight": torch.randn(4, 6).half()}
NETWORK = Sharpener(16, 8, 2)
MAPS = Path("/proc/self/maps")

Kind = namedtuple("Kind", "info tensors read write")
KINDS = {
    "student": Kind(STUDENT, TENSORS, read_student, lambda path, info: write_student(path, TENSORS, info)),
    "sharpener": Kind(
        SHARPENER, NETWORK.state_dict(), read_sharpener, lambda path, info: write_sharpener(path, NETWORK, info)
    ),
}
LATER = {"calibration": "", "reference_guidance": 0.0, "student_steps": 0, "scheduler": ""}
"""Fields that files of earlier versions do not have."""
FIELDS = [
    (kind, field)
    for kind, one in KINDS.items()
    for field in one.info.__dataclass_fields__
    if field not in {"method", *LATER}
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.safetensors"


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def written(path, kind):
    kind.write(path, kind.info)
    return path


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


def refuse(kind, path, match=None):
    with pytest.raises(CheckpointMismatch, match=match) as caught:
        kind.read(path)
    assert str(caught.value).startswith(path.name)


class TestWriting:
    def test_a_student_is_read_as_written(self, path):
        write_student(path, TENSORS, STUDENT)
        tensors, info = read_student(path)
        assert info == STUDENT and set(tensors) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)

    def test_a_sharpener_is_read_as_written_and_run_in_full_precision(self, path):
        for network in (NETWORK, Sharpener(16, 8, 2).half()):
            write_sharpener(path, network, SHARPENER)
            found, info = read_sharpener(path)
            assert info == SHARPENER and not any(parameter.requires_grad for parameter in found.parameters())
            for name, weight in found.state_dict().items():
                assert weight.dtype == torch.float32 and torch.equal(weight, network.state_dict()[name].float())

    def test_the_metadata_describes_the_file(self, path):
        write_student(path, TENSORS, STUDENT)
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "teefusion-student/1" and "1 + w" in metadata["guidance_convention"]
        assert (metadata["guidance_min"], metadata["guidance_max"], metadata["step"]) == ("0.5", "6.0", "1200")
        other = replace(STUDENT, teacher="Z-Sampling").metadata()
        assert len(metadata["teacher_sha256"]) == 64 and metadata["teacher_sha256"] != other["teacher_sha256"]

    def test_the_other_suffix_of_safetensors_is_read(self, kind, written):
        assert kind.read(written.rename(written.with_suffix(".sft")))[1] == kind.info

    @pytest.mark.skipif(not MAPS.exists(), reason="only Linux lists the mapped files of a process")
    def test_a_file_that_was_read_is_not_mapped(self, kind, written):
        """Windows could not replace it by that of the next training."""
        with safe_open(written, "pt") as file:
            held = file.get_tensor(next(iter(file.keys())))
            assert str(written) in MAPS.read_text()
        del held, file
        read = kind.read(written)
        assert read and str(written) not in MAPS.read_text()

    def test_it_leaves_one_file_that_others_may_read(self, written, tmp_path):
        assert names_in(written.parent) == [written.name]
        plain = tmp_path / "plain"
        plain.touch()
        assert written.stat().st_mode == plain.stat().st_mode

    def test_a_failing_save_keeps_the_old_file_or_none(self, path, monkeypatch):
        def fail_half_way(tensors, path, metadata):
            path.write_bytes(b"half of a file")
            raise OSError("disk is full")

        for before in ([], [path.name]):
            content = path.read_bytes() if before else b""
            with monkeypatch.context() as patch, pytest.raises(OSError):
                patch.setattr(tensor_file, "save_file", fail_half_way)
                write_student(path, TENSORS, replace(STUDENT, step=9))
            assert names_in(path.parent) == before and (not before or path.read_bytes() == content)
            write_student(path, TENSORS, STUDENT)


class TestRefusals:
    """The message begins with the name of the file."""

    def test_nothing_there(self, kind, path):
        refuse(kind, path)
        refuse(kind, path.parent)

    @pytest.mark.parametrize("kept", [0, 4, 100, -1])
    def test_a_truncated_file(self, kind, written, kept):
        written.write_bytes(written.read_bytes()[:kept])
        refuse(kind, written)

    @pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin", ".pkl", ".ckpt"])
    def test_a_pickle_is_never_opened(self, kind, tmp_path, suffix):
        path, opened = tmp_path / f"mine{suffix}", tmp_path / "opened"
        path.write_bytes(trap(opened))
        refuse(kind, path)
        assert not opened.exists()
        pickle.loads(path.read_bytes())  # shows that the trap would have gone off
        assert opened.exists()

    def test_the_advice_for_a_pickle_can_be_followed(self, kind, tmp_path):
        """In the folder that it names, from which python finds the pack."""
        path = tmp_path / "my weights.pt"
        torch.save(TENSORS, path)
        with pytest.raises(CheckpointMismatch) as caught:
            kind.read(path)
        found = re.search(r"in the folder (.*): python (-m .*)$", str(caught.value))
        subprocess.run([sys.executable, *shlex.split(found[2])], cwd=found[1], check=True, timeout=100)
        assert load_file(path.with_suffix(".safetensors")).keys() == TENSORS.keys()

    def test_a_checkpoint_of_torch(self, kind, path):
        torch.save(TENSORS, path)
        refuse(kind, path)

    @pytest.mark.parametrize("changed", [None, {"format": "teefusion-other/2"}, {"method": "telepathy"}])
    def test_another_format_or_method(self, kind, path, changed):
        if changed == {"method": "telepathy"} and kind.info is STUDENT:
            return  # whoever loads it knows the methods: tests/host/test_distillation.py
        save_file(kind.tensors, path, metadata=changed and kind.info.metadata() | changed)
        refuse(kind, path, "".join(changed.values()) if changed else "None")

    def test_a_sharpener_is_no_student(self, path):
        write_sharpener(path, NETWORK, SHARPENER)
        refuse(KINDS["student"], path, "teefusion-sharpener/1")

    def test_a_file_of_an_earlier_version_is_read(self, path):
        metadata = {name: text for name, text in STUDENT.metadata().items() if name not in LATER}
        save_file(TENSORS, path, metadata=metadata)
        assert read_student(path)[1] == STUDENT and vars(STUDENT).items() >= LATER.items()

    @pytest.mark.parametrize(("name", "field"), FIELDS)
    def test_a_missing_field(self, path, name, field):
        metadata = KINDS[name].info.metadata()
        del metadata[field]
        save_file(KINDS[name].tensors, path, metadata=metadata)
        refuse(KINDS[name], path, field)

    @pytest.mark.parametrize(
        ("name", "field", "text"),
        [
            ("student", "gain", "loud"), ("student", "guidance_min", ""), ("student", "step", "1.5"),
            ("student", "gain", "NaN"), ("student", "guidance_max", "Infinity"), ("sharpener", "width", "wide"),
            ("sharpener", "alpha", "NaN"), ("sharpener", "heads", "2.0"),
        ],
    )  # fmt: skip
    def test_a_field_that_is_no_number(self, path, name, field, text):
        save_file(KINDS[name].tensors, path, metadata=KINDS[name].info.metadata() | {field: text})
        refuse(KINDS[name], path, field)

    def test_another_base(self):
        assert check_base(STUDENT.base, STUDENT.base, Path("a student")) is None
        with pytest.raises(CheckpointMismatch, match=f"{STUDENT.base}.*{'f' * 16}"):
            check_base(STUDENT.base, "f" * 16, Path("a student"))


class TestSharpeners:
    @pytest.mark.parametrize(
        "changed", [{"alpha": 3.0}, {"width": -1}, {"heads": 3}, {"hidden": 0}, {"width": 17}, {"hidden": 10}], ids=str,
    )  # fmt: skip
    def test_numbers_that_do_not_fit_the_weights(self, path, changed):
        save_file(NETWORK.state_dict(), path, metadata=replace(SHARPENER, **changed).metadata())
        refuse(KINDS["sharpener"], path)

    def test_a_weight_too_few_or_too_many(self, path):
        write_sharpener(path, NETWORK, SHARPENER)
        weights = load_file(path)
        save_file({name: weights[name] for name in weights.keys() - {"fc2.bias"}}, path, metadata=SHARPENER.metadata())
        refuse(KINDS["sharpener"], path, "fc2.bias")
        save_file(weights | {"fc3.bias": torch.zeros(2)}, path, metadata=SHARPENER.metadata())
        refuse(KINDS["sharpener"], path, "fc3.bias")

    @pytest.mark.parametrize(("alpha", "legal"), [(0.0, 1), (1.5, 1), (-0.1, 0), (1.6, 0), (float("nan"), 0)])
    def test_the_range_of_alpha(self, alpha, legal):
        if legal:
            return SHARPENER.check_alpha(alpha)
        with pytest.raises(InvalidConfig, match="1.5"):
            SHARPENER.check_alpha(alpha)
