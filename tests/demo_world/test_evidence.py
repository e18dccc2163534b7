"""Conclusions of the tables, drawn from rows whose answer is known."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPO = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPO / "scripts"))
try:
    from lab.benches import _claims, _embedding, _methods, _paper_tables, _scores, _training_curves
    from lab.benches._report import packed, unpacked
finally:
    sys.path.remove(str(REPO / "scripts"))

GRID, NUM = (0.5, 2.0, 4.0), 100
STUDENT = "TeEFusion of W2SD (LoRA, 1000 steps)"
FIGURES = {"seconds": 60.0, "passes": 1.0, "milliseconds": 9.0, "saturation": 0.1, "contrast": 0.2, "clipped": 0.001}
FULL = {"effective": 2.5, "diversity": 0.1}


def signs(share, seed=0, num=NUM):
    """Right answers for a share of the prompts, the easy ones first."""
    order = np.random.default_rng(seed).permutation(num)
    return "".join("1" if order[n] < share * num else "0" for n in range(num))


def group(method, teacher="", trainable="", shares=(0.5, 0.9, 0.6), passes=1.0):
    """Rows of a method that is right for these shares of the prompts at 0.5, 2, 4."""
    rows = []
    for seed in (0, 1, 2) if trainable else (None,):
        for strength, share in zip(GRID, shares, strict=True):
            right = {name: signs(share) for name in (*_paper_tables.CATEGORIES, "overall")}
            row = {"method": method, "teacher": teacher, "trainable": trainable, "seed": seed, "knob": "w"}
            row |= {"budget": 1000 if trainable else None, "sampler": "euler", "strength": strength, "right": right}
            row |= FIGURES | {"passes": passes} | (FULL if strength == 2 else {})
            rows.append(row | ({"psnr": 20.0, "ssim": 0.9} if trainable and strength == 2 else {}))
    return rows


def result(**changed):
    """Everything that a measurement gives; `student`, `alone`, `layers`, `plain` change what its methods score."""
    shares = {"student": (0.5, 0.9, 0.6), "alone": (0.3, 0.7, 0.4), "layers": (0.2, 0.5, 0.3), "plain": (0.4, 0.8, 0.5)}
    shares |= changed
    rows = [
        *[row for row in group("no guidance", shares=(0.5, 0.5, 0.5)) if row["strength"] == 2],
        *group("teacher", "CFG", shares=(0.4, 0.8, 0.5), passes=2.0),
        *group("teacher", "W2SD", shares=(0.5, 0.9, 0.6), passes=3.9),
        *group("teefusion", "W2SD", "lora", shares["student"]),
        *group("guidance only", "W2SD", "lora", shares["alone"]),
        *group("distillcfg", "W2SD", "lora", shares["layers"]),
        *group("teefusion", "CFG", "lora", shares["plain"]),
    ]
    rows.append(group("CFG, matched", "CFG")[1] | {"of": STUDENT, "strength": 1.5})
    rows += [row | {"sampler": "dpmpp_2m"} for row in rows if row["method"] == "teefusion" and row["strength"] == 2]
    curve = {"method": "teefusion", "teacher": "W2SD", "trainable": "lora", "budget": 1000, "seconds": 600.0}
    falling = packed(1 + 3 * math.exp(-point / 10) for point in range(100))
    velocities = [{**row, "cosine": packed([0.99] * 20), "guidance_cosine": packed([0.8] * 20)} for row in rows[-2:]]
    made = {
        "settings": {"prompts": NUM, "steps": 20, "guidance": GRID, "threads": 1}, "rows": rows,
        "curves": [{**curve, "seed": seed, "losses": falling} for seed in (0, 1)],
        "velocities": velocities, "embedding": [],
        "missing": [{"student": "w2sd-lora-7.safetensors", "command": "python -m lab.demo_world.distill_student"}],
    }  # fmt: skip
    return made | {"claims": _claims.claims(made)}


def verdicts(made, text):
    """Verdicts of the claim whose text has these words."""
    [claim] = [claim for claim in made["claims"] if text in claim["claim"]]
    return [found["verdict"] for found in claim["results"]]


BELOW, ABOVE = (0.2, 0.5, 0.3), (0.5, 0.9, 0.6)
HOLD, FAIL = ["holds"] * 2, ["does not hold"] * 2
FULL_BEATS, ALONE_BEATS = "steps) beats G(psi(w)) alone", "alone of W2SD (LoRA, 1000 steps) beats DistillCFG"


class TestClaims:
    @pytest.mark.parametrize(
        ("changed", "text", "found"),
        [
            ({}, f"{STUDENT} reaches 95%", HOLD),
            ({"student": BELOW}, f"{STUDENT} reaches", FAIL),
            ({}, FULL_BEATS, HOLD),
            ({}, ALONE_BEATS, HOLD),
            ({"student": BELOW, "alone": ABOVE}, FULL_BEATS, FAIL),
            ({"alone": ABOVE}, FULL_BEATS, ["undecided"] * 2),
            ({}, "rise with their teachers", HOLD),
            ({"plain": (0.9, 0.95, 0.9)}, "rise with their teachers", FAIL),
            ({}, f"{STUDENT} is best inside", HOLD),
            ({"student": (0.3, 0.5, 0.9)}, f"{STUDENT} is best inside", ["holds", "does not hold"]),
        ],
    )
    def test_each_is_what_the_rows_say(self, changed, text, found):
        assert verdicts(result(**changed), text) == found

    def test_the_cost_is_that_of_the_rows(self):
        assert "at 1/3.9 of the passes" in result()["claims"][0]["claim"]

    def test_teachers_that_are_alike_tell_nothing(self):
        made = result()
        alike = [
            row | {"right": made["rows"][1]["right"]} if row["method"] == "teacher" else row for row in made["rows"]
        ]
        [claim] = [c for c in _claims.claims(made | {"rows": alike}) if "rise with their teachers" in c["claim"]]
        assert [(found["value"], found["verdict"]) for found in claim["results"]] == [(0, "undecided")] * 2

    def test_methods_that_are_not_there_are_not_compared(self):
        made = result()
        rows = [row for row in made["rows"] if row["method"] != "guidance only"]
        assert not [c for c in _claims.claims(made | {"rows": rows}) if "alone" in c["claim"]]

    def test_students_of_different_budgets_are_not_compared(self):
        made = result()
        rows = [row | {"budget": 500} if row["method"] == "guidance only" else row for row in made["rows"]]
        texts = [claim["claim"] for claim in _claims.claims(made | {"rows": rows}) if claim["paper"] == "Table 3"]
        assert texts == [f"{STUDENT} beats DistillCFG of W2SD (LoRA, 1000 steps)"]

    def test_matched_guidance_is_compared_too(self):
        [claim] = [c for c in result()["claims"] if "W2SD (LoRA, 1000 steps) beats CFG" in c["claim"]]
        assert [found["at"] for found in claim["results"]][2] == "CFG 2.50, its effective guidance"

    def test_every_figure_comes_with_its_interval(self):
        for claim in result()["claims"]:
            for found in claim["results"]:
                assert found["low"] <= found["value"] <= found["high"], claim["claim"]

    def test_claims_are_made_of_uncalibrated_students_too(self):
        made = result()
        rows = [
            row | {"uncalibrated": group("", shares=(0.1, 0.1, 0.1))[0]["right"]}
            if row["trainable"] and "effective" in row
            else row
            for row in made["rows"]
        ]
        [claim] = [c for c in _claims.claims(made | {"rows": rows}) if f"{STUDENT} reaches" in c["claim"]]
        found = {part["at"]: part["verdict"] for part in claim["results"]}
        assert found == {"own best strength": "holds", "w 2": "holds", "w 2, uncalibrated": "does not hold"}


class TestPower:
    """Two methods of one seed whose difference has a known variance."""

    @staticmethod
    def gap(a, b):
        return a - b

    def test_enough_prompts_make_the_interval_as_short_as_the_distance(self):
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.rand(1, 4000, generator=generator).double() for _ in range(2))
        needed = _scores.prompts_to_decide(self.gap, a, b, distance=0.05)
        deviation = float((a - b).std())
        assert needed == pytest.approx((1.96 * deviation / 0.05) ** 2, rel=0.1)

    def test_that_many_decide_a_gap_that_fewer_do_not(self):
        generator = torch.Generator().manual_seed(1)
        a, b = (torch.rand(1, 8000, generator=generator).double() for _ in range(2))
        needed = _scores.prompts_to_decide(self.gap, a, b, distance=0.02)

        def verdict(number):
            a_1N, b_1N = a[:, :number], b[:, :number]
            return _scores.estimate(self.gap, a_1N - (a_1N - b_1N).mean() + 0.02, b_1N)["verdict"]

        assert [verdict(needed // 2), verdict(needed * 2)] == ["undecided", "holds"]

    def test_prompts_do_not_help_against_seeds_that_differ(self):
        a = torch.cat([torch.zeros(1, 100), torch.ones(1, 100)]).double()
        assert _scores.prompts_to_decide(self.gap, a, torch.zeros_like(a), distance=0.02) is None


class TestEarly:
    def curves(self, falling):
        return [{"losses": packed(falling(point / 100) for point in range(100))}] * 2

    def test_a_fall_at_the_start_is_fast(self):
        assert _training_curves.early_share(self.curves(lambda x: math.exp(-10 * x)))["verdict"] == "holds"

    def test_an_even_fall_is_not(self):
        found = _training_curves.early_share(self.curves(lambda x: 1 - x))
        assert found["verdict"] == "does not hold" and found["value"] == pytest.approx(0.23, abs=0.02)


class TestScores:
    def test_each_half_is_scored_at_what_is_best_on_the_other(self):
        rows = group("teacher", "CFG", shares=(0.5, 0.5, 0.5))
        for row, right in zip(rows, ("10" * 50, "00" * 50, "01" * 50), strict=True):
            row["right"] = {"overall": right}
        best_KN, chosen = _scores.own_best(rows)
        assert chosen == [4.0, 0.5] and best_KN.sum() == 0

    def test_prompts_that_claim_nothing_do_not_count(self):
        row = {"right": {"relation": "1-0-1"}}
        assert float(_scores.values([row], "relation").nanmean()) == pytest.approx(2 / 3)

    def test_the_same_numbers_each_time(self):
        assert result() == result()


class TestMissing:
    def test_each_is_named_with_a_command_that_trains_it(self, monkeypatch, tmp_path):
        from lab.demo_world import distill_student

        monkeypatch.setattr(distill_student, "STUDENTS", tmp_path)
        file = _methods.WANTED[0].recipe(1).student
        file.write_bytes(b"")
        file.with_suffix(".json").write_text(json.dumps({"steps": 7}))
        found, missing = _methods.students()
        assert [(arm.teacher, arm.seed, arm.budget) for arm in found] == [("CFG", 1, 7)]
        commands = {row["student"]: row["command"] for row in missing}
        assert len(missing) == len(_methods.WANTED) * len(_methods.SEEDS) - 1
        alone = next(wanted for wanted in _methods.WANTED if wanted.method == "guidance only")
        rest = "--teacher W2SD --method 'guidance only' --seed 2 --ten-minutes"
        assert commands[alone.recipe(2).student.name] == f"python -m lab.demo_world.distill_student {rest}"


def test_packed_numbers_come_back():
    assert unpacked(packed([1.23456, -2, 0])) == [1.235, -2, 0]


class TestEmbedding:
    def test_cosines_of_a_vector_with_itself(self):
        x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).double()
        assert _embedding.cosines(x).tolist() == [[1, 0], [0, 1]]
