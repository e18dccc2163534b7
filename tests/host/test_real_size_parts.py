"""The parts of the benches `real_size` and `gpu`, on networks of the published layouts with depth 2."""

import pytest
import torch

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
DEPTH, PIXELS = 2, 128


@pytest.fixture(scope="module")
def parts(host):
    """Return the modules; they import the host."""
    from lab.benches import gpu
    from lab.real_size import random_model, runs

    return {"gpu": gpu, "runs": runs, "random_model": random_model.random_model}


def runs_of(parts, dtype):
    module, name = parts["runs"], "SD3.5-medium"
    return module.Runs(parts["random_model"](name, dtype, depth=DEPTH), module.random_lora(name, DEPTH), pixels=PIXELS)


@pytest.mark.parametrize("name", ["SD3-medium", "SD3.5-medium", "SD3.5-large"])
def test_the_published_layouts_have_their_sizes(parts, name):
    from lab.real_size.layouts import network_layout

    billions = sum(shape.numel() for shape in network_layout(name).values()) / 1e9
    assert billions == pytest.approx({"SD3-medium": 2.08, "SD3.5-medium": 2.47, "SD3.5-large": 8.15}[name], rel=0.01)


def test_a_lora_gap_is_as_far_from_float32_as_two_merged_models(parts):
    settings = ((1.0, 1.0, 5.5), 0.8, -1.5)
    single, half = (runs_of(parts, dtype) for dtype in (torch.float32, torch.bfloat16))
    exact = single.merged_step(*settings)
    relative = parts["runs"].relative
    assert relative(single.gap_step(*settings), exact) < 1e-5
    assert relative(half.gap_step(*settings), exact) < 1.1 * relative(half.merged_step(*settings), exact)
    assert relative(single.gap_step(settings[0], 0.8, 0.8), exact) > 1e-3, "the LoRA has to matter"


def test_every_method_takes_its_passes(parts):
    from lab.benches._cost import forward_passes

    runs = runs_of(parts, torch.float32)
    for method, passes in parts["runs"].PASSES.items():
        with forward_passes(runs.model) as counter:
            assert runs.step_seconds(method) > 0
        assert counter.rows == passes, method


def test_the_gpu_bench_runs(parts, monkeypatch):
    gpu = parts["gpu"]
    first = dict(list(gpu.TRAININGS.items())[:1])
    monkeypatch.setattr(gpu, "TRAININGS", first)
    monkeypatch.setattr(gpu, "ROUNDS", 2)
    with torch.inference_mode(False):
        found = gpu.measured("SD3-medium", PIXELS, compiled=(False,), depth=DEPTH)
    assert {row["method"] for row in found["steps"]} == set(parts["runs"].PASSES)
    assert 0 < found["gap"]["difference"] < 0.05 < found["gap"]["spread"]
    assert [row["euler"] for row in found["teacher_check"]] == ["accepted"] * 2
    assert all("earlier steps" in row["dpmpp_2m"] for row in found["teacher_check"])
    assert [row["foretold"] > 0 for row in found["training"]] == [True]
    assert len(gpu.table(found)) == 1 + len(parts["runs"].PASSES)
