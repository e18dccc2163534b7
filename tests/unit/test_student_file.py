"""Student files: what is written is what is read, anything else is refused in words."""

import pickle
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from teefusion_core.errors import CheckpointMismatch
from teefusion_core.files import student_file
from teefusion_core.files.student_file import StudentInfo, check_base, read_student, write_student

from .pickles import trap

INFO = StudentInfo(
    method="teefusion",
    mode="lora",
    guidance_min=0.5,
    guidance_max=6.0,
    gain=0.1 + 0.2,
    guidance_embedding_scale=1000.0,
    guidance_precision="exact",
    teacher="Euler, CFG, 20 steps",
    base="0123456789abcdef",
    step=1200,
    pack_version="0.1.0",
)
TENSORS = {"a.alpha": torch.tensor(4.0), "a.lora_down.weight": torch.randn(4, 6).half()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "student.safetensors"


@pytest.fixture
def written(path):
    write_student(path, TENSORS, INFO)
    return path


def names_in(folder):
    return sorted(entry.name for entry in folder.iterdir())


class TestWriting:
    def test_what_is_written_is_read_back(self, written):
        tensors, info = read_student(written)
        assert info == INFO
        assert set(tensors) == set(TENSORS)
        for name, tensor in TENSORS.items():
            assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)

    def test_the_metadata_tells_a_person_what_the_file_is(self, written):
        with safe_open(written, "pt") as file:
            metadata = file.metadata()
        assert metadata["format"] == "teefusion-student/1"
        assert "CFG scale is 1 + w" in metadata["guidance_convention"]
        assert (metadata["guidance_min"], metadata["guidance_max"], metadata["step"]) == ("0.5", "6.0", "1200")
        assert len(metadata["teacher_sha256"]) == 64

    def test_the_hash_follows_the_teacher(self):
        other = replace(INFO, teacher="Z-Sampling")
        assert INFO.metadata()["teacher_sha256"] != other.metadata()["teacher_sha256"]

    def test_it_leaves_one_file(self, written):
        assert names_in(written.parent) == ["student.safetensors"]

    def test_others_may_read_it_as_they_may_any_new_file(self, written, tmp_path):
        plain = tmp_path / "plain"
        plain.touch()
        assert written.stat().st_mode == plain.stat().st_mode

    def test_a_failing_save_leaves_no_file(self, path, monkeypatch):
        monkeypatch.setattr(student_file, "save_file", _fail_half_way)
        with pytest.raises(OSError):
            write_student(path, TENSORS, INFO)
        assert names_in(path.parent) == []

    def test_a_failing_save_keeps_the_old_file(self, written, monkeypatch):
        before = written.read_bytes()
        monkeypatch.setattr(student_file, "save_file", _fail_half_way)
        with pytest.raises(OSError):
            write_student(written, TENSORS, replace(INFO, step=9))
        assert names_in(written.parent) == ["student.safetensors"] and written.read_bytes() == before


def _fail_half_way(tensors, path, metadata):
    path.write_bytes(b"half of a file")
    raise OSError("disk is full")


class TestRefusals:
    """The message names the file, what is wrong with it, what to do."""

    def refuse(self, path, match):
        with pytest.raises(CheckpointMismatch, match=match) as caught:
            read_student(path)
        assert str(caught.value).startswith(path.name)

    def test_a_missing_file(self, path):
        self.refuse(path, "is not there; choose a student file from the list")

    def test_a_folder(self, tmp_path):
        self.refuse(tmp_path, "is not there")

    @pytest.mark.parametrize("kept", [0, 4, 100, -1])
    def test_a_truncated_file(self, written, kept):
        written.write_bytes(written.read_bytes()[:kept])
        self.refuse(written, "is not a whole safetensors file .*; download or copy it again")

    def test_a_pickle_is_never_opened(self, path, tmp_path):
        path.write_bytes(trap(tmp_path / "opened"))
        self.refuse(path, r"not a whole safetensors file .* \(.ckpt, .pt and .pkl files can run code when opened")
        assert not (tmp_path / "opened").exists()
        pickle.loads(path.read_bytes())  # shows that the trap would have gone off
        assert (tmp_path / "opened").exists()

    def test_a_checkpoint_of_torch(self, path):
        torch.save(TENSORS, path)
        self.refuse(path, "not a whole safetensors file")

    def test_a_plain_lora(self, path):
        save_file(TENSORS, path)
        self.refuse(path, "says format None, a student file says 'teefusion-student/1'.* belong in a LoRA loader")

    def test_a_format_of_the_future(self, path):
        save_file(TENSORS, path, metadata=INFO.metadata() | {"format": "teefusion-student/2"})
        self.refuse(path, "says format 'teefusion-student/2'")

    @pytest.mark.parametrize("field", [f for f in INFO.__dataclass_fields__])
    def test_a_missing_field(self, path, field):
        metadata = INFO.metadata()
        del metadata[field]
        save_file(TENSORS, path, metadata=metadata)
        self.refuse(path, f"no usable {field} in its metadata; it was cut or edited")

    @pytest.mark.parametrize(
        ("field", "text"),
        [("gain", "loud"), ("guidance_min", ""), ("step", "1.5"), ("gain", "NaN"), ("guidance_max", "Infinity")],
    )
    def test_a_field_that_is_no_number(self, path, field, text):
        save_file(TENSORS, path, metadata=INFO.metadata() | {field: text})
        self.refuse(path, f"no usable {field} in its metadata; it was cut or edited")

    def test_another_base(self, written):
        _, info = read_student(written)
        with pytest.raises(CheckpointMismatch, match="0123456789abcdef.*f{16}"):
            check_base(info, "f" * 16, written)

    def test_the_right_base(self, written):
        _, info = read_student(written)
        assert check_base(info, INFO.base, written) is None
