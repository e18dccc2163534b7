"""Sharpener files: what is written is what is read, anything else is refused in words."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from teefusion_core.errors import CheckpointMismatch, InvalidConfig
from teefusion_core.files.sharpener_file import SharpenerInfo, read_sharpener, write_sharpener
from teefusion_core.files.student_file import read_student
from teefusion_core.prompts.sharpener import Sharpener

from .pickles import trap

INFO = SharpenerInfo(
    method="dice", width=16, hidden=8, heads=2, alpha=1.0, alpha_min=0.0, alpha_max=1.5, teacher="Euler, CFG 5",
    base="", step=8000, pack_version="0.1.0",
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "sharp.safetensors"


@pytest.fixture
def network():
    return Sharpener(16, 8, 2)


@pytest.fixture
def written(path, network):
    write_sharpener(path, network, INFO)
    return path


def refuse(path, match):
    with pytest.raises(CheckpointMismatch, match=match) as caught:
        read_sharpener(path)
    assert str(caught.value).startswith(path.name)


def test_what_is_written_is_read_back(written, network):
    found, info = read_sharpener(written)
    assert info == INFO
    context, null = torch.randn(2, 5, 16), torch.randn(1, 3, 16)
    torch.testing.assert_close(found(context, null), network(context, null))
    assert all(torch.equal(weight, network.state_dict()[name]) for name, weight in found.state_dict().items())
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_it_leaves_one_file(written):
    assert [entry.name for entry in written.parent.iterdir()] == [written.name]


def test_half_precision_is_run_in_full(path, network):
    write_sharpener(path, network.half(), INFO)
    assert {weight.dtype for weight in read_sharpener(path)[0].state_dict().values()} == {torch.float32}


def test_the_sizes_must_be_those_of_the_network(path, network):
    with pytest.raises(AssertionError):
        write_sharpener(path, network, replace(INFO, width=17))


class TestRefusals:
    def test_a_missing_file(self, path):
        refuse(path, "is not there; choose a sharpener from the list")

    @pytest.mark.parametrize("kept", [0, 4, 100, -1])
    def test_a_truncated_file(self, written, kept):
        written.write_bytes(written.read_bytes()[:kept])
        refuse(written, "is not a whole safetensors file .*; download or copy it again")

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".pkl", ".ckpt"])
    def test_a_pickle(self, tmp_path, suffix):
        path = tmp_path / f"sharpener-snapshot{suffix}"
        path.write_bytes(trap(tmp_path / "opened"))
        refuse(path, "the DICE authors' own, are pickles: they can run code when opened, so they are not read")
        assert not (tmp_path / "opened").exists()

    def test_a_pickle_under_another_name(self, path, tmp_path):
        path.write_bytes(trap(tmp_path / "opened"))
        refuse(path, "not a whole safetensors file .* can run code when opened")
        assert not (tmp_path / "opened").exists()

    def test_a_plain_lora(self, path):
        save_file({"a.lora_down.weight": torch.zeros(2, 2)}, path)
        refuse(path, "says format None for method None, a sharpener file says 'teefusion-sharpener/1' for 'dice'")

    def test_a_format_of_the_future(self, path, network):
        save_file(network.state_dict(), path, metadata=INFO.metadata() | {"format": "teefusion-sharpener/2"})
        refuse(path, "says format 'teefusion-sharpener/2'")

    def test_another_method(self, path, network):
        save_file(network.state_dict(), path, metadata=INFO.metadata() | {"method": "other"})
        refuse(path, "for method 'other'")

    def test_a_sharpener_is_no_student(self, written):
        with pytest.raises(CheckpointMismatch, match="teefusion-sharpener/1"):
            read_student(written)

    @pytest.mark.parametrize("field", sorted(set(INFO.__dataclass_fields__) - {"method"}))
    def test_a_missing_field(self, path, network, field):
        metadata = INFO.metadata()
        del metadata[field]
        save_file(network.state_dict(), path, metadata=metadata)
        refuse(path, f"no usable {field} in its metadata; it was cut or edited")

    @pytest.mark.parametrize(("field", "text"), [("width", "wide"), ("alpha", "NaN"), ("heads", "2.0")])
    def test_a_field_that_is_no_number(self, path, network, field, text):
        save_file(network.state_dict(), path, metadata=INFO.metadata() | {field: text})
        refuse(path, f"no usable {field} in its metadata")

    def test_a_range_without_its_own_alpha(self, path, network):
        save_file(network.state_dict(), path, metadata=replace(INFO, alpha=3.0).metadata())
        refuse(path, "was trained at alpha 3, outside of its own range 0 to 1.5")

    @pytest.mark.parametrize("sizes", [{"width": -1}, {"heads": 3}, {"hidden": 0}])
    def test_sizes_that_no_network_has(self, path, network, sizes):
        save_file(network.state_dict(), path, metadata=replace(INFO, **sizes).metadata())
        refuse(path, "was edited, use the original file: a sharpener cannot be")

    @pytest.mark.parametrize("sizes", [{"width": 17}, {"hidden": 10}])
    def test_weights_of_another_size(self, path, network, sizes):
        save_file(network.state_dict(), path, metadata=replace(INFO, **sizes).metadata())
        refuse(path, "does not hold the sharpener that it describes .* is .* it should be")

    def test_a_missing_weight(self, written):
        weights = load_file(written)
        del weights["fc2.bias"]
        save_file(weights, written, metadata=INFO.metadata())
        refuse(written, "fc2.bias is missing, it should be")

    def test_a_weight_too_many(self, written):
        save_file(load_file(written) | {"fc3.bias": torch.zeros(2)}, written, metadata=INFO.metadata())
        refuse(written, "fc3.bias is .* it should be absent")


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5])
def test_alphas_of_the_range(alpha):
    assert INFO.check_alpha(alpha) is None


@pytest.mark.parametrize("alpha", [-0.1, 1.6, float("nan")])
def test_alphas_outside(alpha):
    with pytest.raises(InvalidConfig, match="1.5"):
        INFO.check_alpha(alpha)
