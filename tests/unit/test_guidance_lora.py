"""A LoRA whose strength is the guidance of each row."""

import pytest
import torch
from torch import nn

from teefusion_core.training.gradient_checkpointing import checkpointed
from teefusion_core.training.settings import DistillSettings
from teefusion_core.training.students.guidance_lora import GuidanceLora, GuidanceLoraStudent
from teefusion_core.training.students.student import MixedRows


class Network(nn.Module):
    """Two blocks over tokens, the second of which may flatten them."""

    def __init__(self, flat=False):
        super().__init__()
        self.blocks, self.flat = nn.ModuleList([nn.Sequential(nn.Linear(6, 6)), nn.Sequential(nn.Linear(6, 6))]), flat

    def forward(self, x_BLD):
        h_BLD = torch.tanh(self.blocks[0](x_BLD))
        if self.flat:
            return self.blocks[1](h_BLD.flatten(0, 1)).unflatten(0, h_BLD.shape[:2])
        return self.blocks[1](h_BLD)


class Prompts:
    """Nine prompts, four of a kind."""

    def __len__(self):
        return 9

    def kind(self, number):
        return number // 4

    def batch(self, numbers):
        return [[torch.tensor(numbers), {}]]


@pytest.fixture
def made():
    def make(flat=False, **settings):
        torch.manual_seed(0)
        network, settings = Network(flat), DistillSettings(method="guidance lora", rank=3, **settings)
        student = GuidanceLoraStudent(network, Prompts(), Prompts(), settings)
        with torch.no_grad():
            for weight in student.update.parameters():
                weight += 0.3 * torch.randn(weight.shape)
        return network, student

    return make


def predicted(network, student, x_BLD, w_B):
    with student.update.in_training():
        conditioning, guided = student.conditioned(range(len(w_B)), [0] * len(w_B), torch.tensor(w_B))
        with guided:
            return network(x_BLD)


def test_each_row_has_the_strength_of_its_own_w(made):
    network, student = made(guidance_min=1.0, guidance_max=5.0)
    x_BLD = torch.randn(4, 3, 6)
    with torch.no_grad():
        together = predicted(network, student, x_BLD, [0.0, 1.0, 3.0, 6.0])
        assert torch.equal(together[0], network(x_BLD)[0]), "w 0 is the base"
        for row, w in enumerate([0.0, 1.0, 3.0, 6.0]):
            torch.testing.assert_close(predicted(network, student, x_BLD[row, None], [w])[0], together[row])
        merged = Network()
        merged.load_state_dict(student.update.merged())
        torch.testing.assert_close(merged(x_BLD)[2], together[2], msg="strength 1 at the middle of the range, w 3")


def test_outside_of_a_guidance_it_changes_nothing(made):
    network, student = made()
    x_BLD = torch.randn(2, 3, 6)
    with student.update.in_training():
        inside = network(x_BLD)
    assert torch.equal(inside, network(x_BLD))


def test_rows_of_tokens_are_refused_only_with_several_w(made):
    network, student = made(flat=True)
    x_BLD = torch.randn(2, 3, 6)
    with pytest.raises(MixedRows, match=r"blocks\.1\.0 has 6 rows for a batch of 2"):
        predicted(network, student, x_BLD, [1.0, 2.0])
    assert student.update.strength is None
    same, alone = predicted(network, student, x_BLD, [2.0, 2.0]), predicted(network, student, x_BLD[1:], [2.0])
    torch.testing.assert_close(same[1:], alone)


def test_recomputed_blocks_have_the_strengths_of_their_own_pass(made):
    """Two passes of other w before one backward pass, which comes when neither w is set any more."""
    network, student = made()
    x_BLD = torch.randn(2, 3, 6, requires_grad=True)

    def loss():
        with student.update.in_training():
            total = sum(_guided(network, student, x_BLD, w_B).square().sum() for w_B in ([1.0, 4.0], [8.0, 2.0]))
            return torch.autograd.grad(total, list(student.update.parameters()))

    gradients = loss()
    with checkpointed(network):
        recomputed = loss()
    for one, again in zip(gradients, recomputed, strict=True):
        torch.testing.assert_close(one, again)
        assert one.abs().sum() > 0


def _guided(network, student, x_BLD, w_B):
    _, guided = student.conditioned([0, 1], [0, 0], torch.tensor(w_B))
    with guided:
        return network(x_BLD)


def test_its_file_is_a_lora_with_an_alpha_of_its_own_kind(made):
    network, student = made()
    tensors = student.file(teacher="t", base="b", step=3, calibration="").tensors
    for path in ("blocks.0.0", "blocks.1.0"):
        alpha, down, up = (tensors[f"diffusion_model.{path}.{end}"] for end in
                           ("alpha", "lora_down.weight", "lora_up.weight"))  # fmt: skip
        assert float(alpha) == 2 * len(down)
        stored = float(alpha) / len(down) * up.float() @ down.float()
        expected = student.update.up[path.replace(".", "/")] @ student.update.down[path.replace(".", "/")]
        torch.testing.assert_close(stored, expected, rtol=2e-3, atol=2e-3)
    other = GuidanceLora(network, 3)
    other.load(tensors)
    for name, weight in other.named_parameters():
        torch.testing.assert_close(weight, dict(student.update.named_parameters())[name], rtol=2e-3, atol=2e-3)


def test_its_file_says_at_which_w_the_strength_is_one(made):
    _, student = made(guidance_min=1.0, guidance_max=6.0)
    info = student.file(teacher="t", base="b", step=3, calibration="").info
    assert (info.method, info.mode, info.reference_guidance) == ("guidance lora", "lora", 3.5)
    assert student.strengths_to_preview() == [("w 1", 1.0), ("w 3.5", 3.5), ("w 6", 6.0)]
    assert student.kind(5, 0) == student.kind(6, 8) == 1
