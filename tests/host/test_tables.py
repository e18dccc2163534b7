"""Every kind of method that the tables of docs/evidence_report.md compare, sampled by the host."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from teefusion_core.files.sharpener_file import SharpenerInfo, write_sharpener
from teefusion_core.prompts.sharpener import Sharpener

pytestmark = pytest.mark.extended
REPO = Path(__file__).resolve().parent.parent.parent
STUDENT = REPO / "models" / "demo_sd3_student.safetensors"
PROMPTS, FEW = 4, 2


@pytest.fixture(scope="module")
def bench(host):
    sys.path.insert(0, str(REPO / "scripts"))
    try:
        from lab.benches import _methods, _sampling, _study
    finally:
        sys.path.remove(str(REPO / "scripts"))
    return _methods, _sampling, _study


@pytest.fixture(scope="module")
def study(bench):
    return bench[2].Study(PROMPTS, FEW)


@pytest.fixture(scope="module")
def sampled(bench, study):
    """Return a function that samples an arm at a strength, every figure measured."""
    other = torch.randn(FEW, 16, 8, 8, generator=torch.Generator().manual_seed(1))

    def sample(arm, strength):
        with torch.inference_mode():
            return bench[1].sampled(study, arm, strength, other_BCHW=other)

    return sample


@pytest.fixture(scope="module")
def teachers(bench):
    return {arm.teacher or "base": arm for arm in bench[0].teachers()}


@pytest.fixture(scope="module")
def plain(sampled, teachers):
    return sampled(teachers["base"], 2.0)


@pytest.fixture(scope="module")
def student(bench, sampled):
    return sampled(bench[0].shipped(), 2.0)


@pytest.mark.parametrize(("name", "passes"), [("CFG", 2), ("W2SD", 3.9), ("Z-Sampling", 4.85)])
def test_teachers_cost_what_they_cost(sampled, teachers, name, passes):
    row = sampled(teachers[name], 1.0).row
    assert row["passes"] == pytest.approx(passes) and row["effective"] > 1


def test_cfg_amounts_to_its_scale(sampled, teachers, plain):
    assert sampled(teachers["CFG"], 2.0).row["effective"] == pytest.approx(3, abs=0.01)
    assert plain.row["effective"] == pytest.approx(1, abs=0.01) and plain.row["passes"] == 1


def test_matched_cfg_is_cfg(bench, sampled, teachers):
    arm = bench[0].matched(3.0)
    assert np.array_equal(sampled(arm, arm.grid[0]).images_BHW3, sampled(teachers["CFG"], 2.0).images_BHW3)


def test_a_student_takes_one_pass_for_more_guidance(student, plain):
    assert student.row["passes"] == 1 and student.row["effective"] > 1.5
    assert not np.array_equal(student.images_BHW3, plain.images_BHW3)


def test_the_same_pictures_each_time(bench, sampled, student):
    again = sampled(bench[0].shipped(), 2.0)
    assert np.array_equal(again.images_BHW3, student.images_BHW3)
    assert again.row["right"] == student.row["right"] and again.row["effective"] == student.row["effective"]


def test_the_untrained_term_fades_with_its_share(bench, sampled, plain):
    arm = bench[0].untrained(STUDENT)
    little, much = (sampled(arm, share).images_BHW3.astype(float) for share in (1e-6, 0.5))
    assert abs(little - plain.images_BHW3).max() <= 1 < abs(much - plain.images_BHW3).max()


def test_a_sharpener_is_sampled_at_its_alpha(bench, study, sampled, plain, tmp_path):
    width = study.first[0][0].shape[-1]
    info = SharpenerInfo("dice", width, 8, 2, 1.0, 0.0, 2.0, "any", "", 1, "0")
    path = tmp_path / "w2sd-dice-0.safetensors"
    write_sharpener(path, Sharpener(width, 8, 2), info)
    [wanted] = [wanted for wanted in bench[0].WANTED if wanted.method == bench[0].DICE]
    arm = bench[0].student_arm(wanted, 0, path, None)
    assert arm.knob == "alpha" and sampled(arm, 1.0).row["passes"] == 1
    assert np.array_equal(sampled(arm, 0.0).images_BHW3, plain.images_BHW3)
    assert not np.array_equal(sampled(arm, 2.0).images_BHW3, plain.images_BHW3)


def test_the_whole_measurement_on_two_prompts(bench, host, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    from lab.benches import _claims, _methods, _paper_tables, _report, tables

    monkeypatch.setattr(_report, "RESULTS", tmp_path)
    monkeypatch.setattr(_report, "ROOT", tmp_path)

    only = [wanted for wanted in _methods.WANTED if (wanted.method, wanted.teacher) == ("teefusion", "CFG")][:1]
    monkeypatch.setattr(_methods, "WANTED", only)
    monkeypatch.setattr(_methods, "SEEDS", (0,))
    for module in (_methods, tables):
        monkeypatch.setattr(module, "student_path", lambda wanted, seed: STUDENT)
    monkeypatch.setattr(_methods, "GRID", (1.0, 2.0))
    for name in ("NUM_PROMPTS", "FEW", "TWICE"):
        monkeypatch.setattr(tables, name, 2)
    result = tables.measure()
    assert tables.measure()["rows"] == result["rows"], "a row that is there is kept"
    assert {row["method"] for row in result["rows"]} == {
        "no guidance", "teacher", "untrained fusion", "teefusion", "CFG, matched"
    }  # fmt: skip
    assert [found["name"] for found in result["embedding"]][0] == "base" and len(result["embedding"]) == 2
    assert _claims.claims(result) and len(_paper_tables.table(result)) == 7
