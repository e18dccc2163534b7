"""The loop: exact arithmetic, then every way in which a run ends too early."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from teefusion_core.errors import CheckpointMismatch, CheckpointNotSaved, InvalidConfig, TrainingDiverged
from teefusion_core.training.loop import TrainSettings, train

from .loop_parts import SETTINGS, Stop, Toy, Waves, names_in, opened, result, run, same


@pytest.fixture(scope="module")
def uninterrupted():
    """What a run that nothing happens to comes to."""
    torch.set_num_threads(1)
    return result(*run())


class TestArithmetic:
    def test_steps_equal_adamw_written_out(self):
        settings = TrainSettings(
            steps=12, learning_rate=0.05, batch_size=4, gradient_accumulation=2, max_grad_norm=0.3, warmup_steps=4,
            learning_rate_schedule="linear", weight_decay=0.1, beta1=0.8, beta2=0.95, ema_decay=0.7,
        )  # fmt: skip
        toy, trained = run(settings=settings, toy=Toy(noise=0.0))
        slow, data, clipped = Toy(noise=0.0), Waves(), 0
        weights = list(slow.module.parameters())
        first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
        average = [w.detach().clone() for w in weights]
        for step in range(12):
            losses = [slow.loss(data.next(4)) for _ in range(2)]
            mean = sum(losses) / 2
            gradients = torch.autograd.grad(mean, weights)
            assert mean.item() == pytest.approx(trained.losses[step], rel=1e-4)
            norm = math.sqrt(sum(float(g.square().sum()) for g in gradients))
            clipped += norm > 0.3
            lr = 0.05 * (step + 1) / 4 if step < 4 else 0.05 * (1 - (step - 4) / 8)
            decay = min(0.7, (1 + step) / (10 + step))
            with torch.no_grad():
                for w, g, m, v, a in zip(weights, gradients, first, second, average, strict=True):
                    g = g * min(1.0, 0.3 / norm)
                    m.copy_(0.8 * m + 0.2 * g)
                    v.copy_(0.95 * v + 0.05 * g * g)
                    w.mul_(1 - lr * 0.1)
                    hat = m / (1 - 0.8 ** (step + 1)), v / (1 - 0.95 ** (step + 1))
                    w.sub_(lr * hat[0] / (hat[1].sqrt() + 1e-8))
                    a.copy_(decay * a + (1 - decay) * w)
        assert clipped > 0
        for (name, mine), w, a in zip(toy.module.named_parameters(), weights, average, strict=True):
            torch.testing.assert_close(mine, w, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(trained.average[name], a, rtol=1e-3, atol=1e-5)

    def test_clip_0_does_not_clip(self):
        none, high = (replace(SETTINGS, max_grad_norm=limit) for limit in (0, 1e9))
        norms = []
        assert same(
            result(*run(settings=none, on_step=lambda r: norms.append(r.gradient_norm))), result(*run(settings=high))
        )
        assert max(norms) > 1

    def test_without_ema_the_average_is_the_weights(self, tmp_path):
        settings = replace(SETTINGS, ema_decay=0)
        toy, trained = run(opened(tmp_path), settings)
        assert same(trained.average, {name: w.detach() for name, w in toy.module.named_parameters()})
        assert "average.safetensors" not in names_in(tmp_path / "run" / "step-00000024")

    def test_half_precision_weights_have_a_float32_average(self):
        module = nn.Linear(3, 1).bfloat16()
        trained = train(module, Waves(), lambda e: (module(e[0].bfloat16()) - e[1]).square().mean(), SETTINGS)
        assert {a.dtype for a in trained.average.values()} == {torch.float32}


class TestCallers:
    def test_reports_tell_what_happened(self):
        reports = []
        toy, trained = run(on_step=reports.append)
        assert [r.step for r in reports] == list(range(1, 25)) and {r.steps for r in reports} == {24}
        assert [r.loss for r in reports] == trained.losses
        assert [r.learning_rate for r in reports] == [SETTINGS.learning_rate_at(step) for step in range(24)]
        assert {r.rows for r in reports} == {8}
        assert all(0 <= r.data_seconds <= r.seconds for r in reports)
        assert reports[0].average.keys() == dict(toy.module.named_parameters()).keys()
        assert trained.finished and trained.step == 24

    def test_a_run_is_a_function_of_its_seed(self, uninterrupted):
        assert same(result(*run()), uninterrupted)
        assert not same(result(*run(seed=6)), uninterrupted)

    def test_the_randomness_of_others_is_left_alone(self):
        torch.manual_seed(3)
        expected = torch.randn(4)
        torch.manual_seed(3)
        run()
        assert torch.equal(torch.randn(4), expected)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_work_is_saved_when_the_data_breaks_off_a_step(self, error, tmp_path, uninterrupted):
        """In the middle of an accumulated step, between two checkpoints."""

        class Cancelled(Waves):
            def next(self, rows):
                example = super().next(rows)
                if self.position == 2 * 13 + 2:
                    raise error
                return example

        settings = replace(SETTINGS, save_every=10)
        with pytest.raises(error):
            run(opened(tmp_path), settings, data=Cancelled())
        assert opened(tmp_path).steps()[-1] == 13
        assert same(result(*run(opened(tmp_path), settings)), uninterrupted)

    def test_gradients_are_not_left_behind(self):
        toy, _ = run()
        assert all(weight.grad is None for weight in toy.module.parameters())

    def test_nothing_to_train(self):
        with pytest.raises(InvalidConfig):
            train(nn.Linear(3, 1).requires_grad_(False), Waves(), lambda e: e, SETTINGS)

    @pytest.mark.parametrize("wrong", [lambda w: torch.zeros(()), lambda w: w.square()], ids=["constant", "no scalar"])
    def test_a_loss_that_is_none(self, wrong):
        module = nn.Linear(3, 1)
        with pytest.raises(InvalidConfig):
            train(module, Waves(), lambda e: wrong(module.weight), SETTINGS)


class TestStopping:
    @pytest.mark.parametrize("after", [0, 1, 7, 12])
    def test_a_stopped_run_resumes_bit_for_bit(self, tmp_path, uninterrupted, after):
        _, stopped = run(opened(tmp_path), should_stop=Stop(after))
        assert (stopped.step, stopped.finished) == (after, False)
        assert opened(tmp_path).steps()[-1] == after
        assert same(result(*run(opened(tmp_path))), uninterrupted)

    def test_a_finished_run_has_nothing_left_to_do(self, tmp_path, uninterrupted):
        run(opened(tmp_path))
        reports = []
        assert same(result(*run(opened(tmp_path), on_step=reports.append)), uninterrupted) and reports == []

    @pytest.mark.parametrize("where", ["on_step", "should_stop"])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_an_interrupt_waits_for_the_checkpoint(self, tmp_path, uninterrupted, where, error):
        calls = []

        def interrupt(*report):
            calls.append(report)
            if len(calls) == 8:
                raise error("enough")

        with pytest.raises(error, match="enough"):
            run(opened(tmp_path), **{where: interrupt})
        assert opened(tmp_path).steps()[-1] == (8 if where == "on_step" else 7)
        assert same(result(*run(opened(tmp_path))), uninterrupted)

    def test_weights_between_two_steps_are_never_saved(self, tmp_path, uninterrupted, monkeypatch):
        step, calls = torch.optim.AdamW.step, []

        def interrupted(optimizer, *arguments):
            calls.append(step(optimizer, *arguments))
            if len(calls) == 8:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.AdamW, "step", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(opened(tmp_path))
        assert opened(tmp_path).steps()[-1] == 6
        assert same(result(*run(opened(tmp_path))), uninterrupted)

    def test_a_longer_run_is_accepted_by_name(self, tmp_path):
        run(opened(tmp_path))
        longer = replace(SETTINGS, steps=30)
        with pytest.raises(InvalidConfig, match="steps.*24.*30"):
            run(opened(tmp_path), longer)
        _, trained = run(opened(tmp_path, accept_changes=["steps"]), longer)
        assert trained.step == len(trained.losses) == 30
        with pytest.raises(InvalidConfig, match="30.*24"):
            run(opened(tmp_path, accept_changes=["steps"]))

    def test_other_weights_are_refused(self, tmp_path):
        run(opened(tmp_path), should_stop=Stop(2))
        module = nn.Linear(3, 1)
        with pytest.raises(CheckpointMismatch, match="bias"):
            train(module, Waves(), lambda e: module(e[0]).mean(), SETTINGS, folder=opened(tmp_path))


class TestMishaps:
    def test_nan_in_the_data(self, tmp_path):
        toy = Toy()
        with pytest.raises(TrainingDiverged, match="step 8.*nan.*step 6"):
            run(opened(tmp_path), data=Waves(broken_at=15), toy=toy)
        assert opened(tmp_path).steps()[-1] == 6
        expected, _ = run(should_stop=Stop(7))
        assert same(dict(toy.module.named_parameters()), dict(expected.module.named_parameters()))

    def test_a_gradient_that_is_infinite(self):
        module = nn.Linear(3, 1)
        before = module.weight.detach().clone()

        def loss(example):
            return (module.weight - module.weight.detach()).abs().sum().sqrt()  # 0, of endless slope

        with pytest.raises(TrainingDiverged, match="step 1.*nan"):
            train(module, Waves(), loss, SETTINGS)
        assert torch.equal(module.weight, before)

    def test_the_run_resumes_once_the_data_is_mended(self, tmp_path, uninterrupted):
        with pytest.raises(TrainingDiverged):
            run(opened(tmp_path), data=Waves(broken_at=31))
        assert same(result(*run(opened(tmp_path))), uninterrupted)

    def test_a_disk_that_takes_nothing_is_reported_before_the_first_step(self, tmp_path):
        (tmp_path / "run").write_text("in the way")
        reports = []
        with pytest.raises(CheckpointNotSaved, match="step 0"):
            run(opened(tmp_path), on_step=reports.append)
        assert reports == []
