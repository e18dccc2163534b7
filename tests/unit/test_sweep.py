"""Strengths of a sweep, and what its scores say."""

import json
import math

import pytest

from teefusion_core.errors import InvalidConfig
from teefusion_core.guidance.sweep import Sweep, best_of, scores_by_metric, strengths, verdict


def scored(**metrics):
    return json.dumps({"pictures": [], "scores": metrics})


def test_equal_distances_and_equal_ratios():
    assert strengths(0, 3, 4, "linear") == [0, 1, 2, 3]
    assert strengths(0.5, 4, 4, "geometric") == [0.5, 1, 2, 4]
    assert strengths(0.6, 3.8, 8, "linear")[1] == 1.06


@pytest.mark.parametrize(
    "given, value",
    [
        ((1, 3, 1, "linear"), "1"),
        ((1, 3, 65, "linear"), "65"),
        ((3, 1, 4, "linear"), "3"),
        ((2, 2, 4, "linear"), "2"),
        ((-1, 1, 4, "linear"), "-1"),
        ((0, math.nan, 4, "linear"), "nan"),
        ((1, 1.02, 4, "linear"), "closer"),
        ((0, 1, 4, "geometric"), "0"),
        ((0, 1, 4, "zigzag"), "zigzag"),
    ],
)
def test_what_is_no_sweep_is_refused(given, value):
    with pytest.raises(InvalidConfig, match=value):
        strengths(*given)


def test_captions_have_the_effective_guidance_where_it_is_known():
    sweep = Sweep("guidance", [1, 2.5], [2.125, None])
    assert sweep.captions() == ["guidance 1\nas CFG 2.12", "guidance 2.5"]


def test_scores_of_one_batch_or_of_single_images():
    assert scores_by_metric([scored(clip=[1, 2], hps=[3, None])], 2)["clip"] == [1, 2]
    assert math.isnan(scores_by_metric([scored(hps=[3, None])], 2)["hps"][1])
    assert scores_by_metric([scored(clip=[1]), scored(clip=[2])], 2) == {"clip": [1, 2]}
    assert scores_by_metric([], 2) == {}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"scores": 1}', '{"scores": {"clip": 1}}', scored(clip=[1])])
def test_what_are_no_scores_of_these_images_is_refused(text):
    with pytest.raises(InvalidConfig, match="scores"):
        scores_by_metric([text], 2)


def test_the_best_has_the_best_mean_rank_whatever_the_scale():
    assert best_of({}) is None and best_of({"clip": [1, math.nan]}) is None
    assert best_of({"clip": [1, 3, 2]}) == 1
    assert best_of({"clip": [10, 30, 20], "hps": [0.3, 0.1, 0.2], "pick": [1, 2, 3]}) == 2


def test_of_equal_images_the_one_with_the_lower_guidance_is_the_best():
    tied = {"clip": [0.5, 0.9, 0.9]}
    assert best_of(tied) == 1 and best_of({"clip": [2.0, 2.0], "hps": [1.0, 1.0]}) == 0
    said = verdict(Sweep("guidance", [1, 2, 3], [None] * 3), tied, [0.0] * 3).splitlines()
    assert said[0] == "Best: guidance 2" and said[1].startswith("clip: best at guidance 2 ")


def test_the_verdict_names_the_best_and_clipped_images():
    sweep = Sweep("guidance", [1, 2, 3], [2.0, 3.0, 4.0])
    said = verdict(sweep, {"clip": [1.0, 3.0, 2.0]}, [0.0, 0.0, 0.3])
    assert said.splitlines()[0] == "Best: guidance 2 as CFG 3.00" and said.splitlines()[-1].endswith("CFG 4.00.")
    assert verdict(sweep, {}, [0.0, 0.0, 0.0]) == ""
