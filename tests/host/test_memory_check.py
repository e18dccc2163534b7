"""Memory reported before the first step, against what the training then takes."""

import re

import pytest
import torch

from teefusion_core.training.loop_settings import TrainSettings

from ..unit.allocator import allocated

MIB = 2**20
CHECKPOINTING, EVERYTHING = dict(gradient_checkpointing=True, rank=32), dict(trainable="everything")
CASES = {
    "lora, one row": (dict(), 1), "lora": (dict(), 16),
    "checkpointing, one row": (CHECKPOINTING, 1), "checkpointing": (CHECKPOINTING, 32),
    "everything, one row": (EVERYTHING, 1), "everything": (EVERYTHING, 4),
    "everything, checkpointing": (EVERYTHING | CHECKPOINTING, 4),
    "mixed precision": (dict(mixed_precision=True), 16),
    "teacher": (dict(images_per_trajectory=64), 2),
    "long trajectory": (dict(teacher_steps=60, images_per_trajectory=8), 1),
    "guidance lora": (dict(method="guidance lora", initial_gain_ratio=0.0, nulls=("",)), 16),
}  # fmt: skip


def loop(batch):
    return TrainSettings(steps=2, batch_size=batch, learning_rate=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_tensors_within_a_tenth_of_the_allocators_peak(pack, distil, tmp_path, name):
    options, batch = CASES[name]
    distillation, needs = distil(reuse=0, cache_size=1, **options), []
    training = pack.comfy_host.Training(distillation, loop(batch), root=tmp_path, name="run", teacher="CFG")
    peak = allocated(lambda: training.run(on_forecast=needs.append))
    assert needs[0].peak - pack.comfy_host.memory_check.KERNELS == pytest.approx(peak, rel=0.1)


def test_trials_leave_nothing_behind(pack, distil, world):
    distillation = distil()
    before = torch.get_rng_state()
    with distillation.in_training():
        need = pack.comfy_host.memory_check.check_memory(distillation, loop(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(weight.grad is None for weight in distillation.student.update.parameters())
    assert "GiB" in str(need)


class TestTooLarge:
    def free(self, pack, monkeypatch, size):
        monkeypatch.setattr(pack.comfy_host.memory_check, "_free", lambda *_: size)

    def refused(self, pack, distillation, batch):
        with distillation.in_training(), pytest.raises(pack.errors.InvalidConfig) as caught:
            pack.comfy_host.memory_check.check_memory(distillation, loop(batch))
        return str(caught.value)

    def test_batch(self, pack, distil, monkeypatch):
        self.free(pack, monkeypatch, 120 * MIB)
        message = self.refused(pack, distil(), 64)
        assert "0.12 GiB" in message and "gradient_checkpointing" in message
        fitting = int(re.search(r"batch_size to (\d+)", message)[1])
        distillation = distil()
        with distillation.in_training():
            assert pack.comfy_host.memory_check.check_memory(distillation, loop(fitting)).peak <= 120 * MIB
            with pytest.raises(pack.errors.InvalidConfig):
                pack.comfy_host.memory_check.check_memory(distillation, loop(fitting + 1))

    def test_rows_of_a_trajectory(self, pack, distil, monkeypatch):
        self.free(pack, monkeypatch, 120 * MIB)
        message = self.refused(pack, distil(images_per_trajectory=64), 1)
        assert "images_per_trajectory" in message and "batch_size" not in message

    def test_before_anything_is_written(self, pack, distil, tmp_path, monkeypatch):
        self.free(pack, monkeypatch, 1 * MIB)
        training = pack.comfy_host.Training(distil(), loop(1), root=tmp_path, name="run", teacher="CFG")
        with pytest.raises(pack.errors.InvalidConfig, match="GiB"):
            training.run()
        assert not list(tmp_path.iterdir())


class TestAnotherKernel:
    """A kernel that torch knows nothing about, as other packs bring them."""

    @pytest.fixture
    def kernel(self):
        with torch.library._scoped_library("teefusion_tests", "FRAGMENT") as library:
            library.define("same(Tensor x) -> Tensor")
            library.impl("same", lambda x: x.clone(), "CPU")
            yield torch.ops.teefusion_tests.same

    def test_training_starts_without_a_forecast(self, pack, distil, tmp_path, kernel, caplog):
        distillation, needs = distil(), []
        layer = distillation.network.module.x_embedder
        training = pack.comfy_host.Training(distillation, loop(1), root=tmp_path, name="run", teacher="CFG")
        handle = layer.register_forward_hook(lambda layer, inputs, out: out + 0 * kernel(out.detach()))
        try:
            with caplog.at_level("INFO"):
                result = training.run(on_forecast=needs.append)
        finally:
            handle.remove()
        assert result.finished and needs == []
        assert "cannot be forecast" in caplog.text
