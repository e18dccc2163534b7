"""The curve from the guidance that a user sets to the one that a student needs."""

import json

import pytest
import torch

from teefusion_core.guidance.calibration import Calibration, Measured, calibrated, ends_between

TRIED = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def point(w, gives, teacher=None):
    """The teacher gives 1 + w; the student gives what a function says."""
    return Measured(w, 1 + w if teacher is None else teacher, TRIED, [gives(at) for at in TRIED])


def curve_of(gives, wanted=(1.0, 2.0, 3.0), measure=None):
    points = [point(w, gives) for w in wanted]
    return calibrated(points, measure or (lambda one, w: gives(w)))


def test_a_student_that_keeps_its_word_is_left_as_it_is():
    curve = curve_of(lambda w: 1 + w)
    assert curve.wanted == curve.inner == [1.0, 2.0, 3.0] and curve.after == curve.before == curve.teacher


def test_a_student_of_a_constant_share_gets_more():
    curve = curve_of(lambda w: 1 + 0.7 * w)
    assert curve.inner == pytest.approx([w / 0.7 for w in (1.0, 2.0, 3.0)]) and curve.after == pytest.approx([2, 3, 4])
    assert curve.before == pytest.approx([1.7, 2.4, 3.1])
    between = curve.inner_of(torch.tensor([1.0, 1.5, 3.0], dtype=torch.float64))
    assert between.tolist() == pytest.approx([w / 0.7 for w in (1.0, 1.5, 3.0)])


def test_the_range_ends_where_the_student_no_longer_reaches_its_teacher():
    points = [point(w, lambda at: 1 + 0.5 * at) for w in (1.0, 2.0, 3.0, 4.0)]
    [end] = ends_between(points)
    assert end == pytest.approx(2.5, abs=0.06), "5 gives 3.5, as the teacher at 2.5"
    points = sorted([*points, point(end, lambda at: 1 + 0.5 * at)], key=lambda one: one.w)
    curve = calibrated(points, lambda one, w: 1 + 0.5 * w)
    assert curve.wanted == [1.0, 2.0, end] and curve.inner[-1] <= 5.0


def test_a_student_that_is_too_strong_at_the_lower_end_loses_that_end():
    curve = curve_of(lambda w: max(2.5, 1 + w))
    assert curve.wanted == [2.0, 3.0]


@pytest.mark.parametrize(
    "gives", [lambda w: 1.0, lambda w: 50.0, lambda w: float("nan")], ids=["weak", "strong", "NaN"]
)
def test_a_student_that_never_reaches_its_teacher_has_no_curve(gives):
    assert ends_between([point(w, gives) for w in (1.0, 2.0)]) == []
    assert curve_of(gives) is None


def test_a_dip_does_not_turn_the_curve_round():
    gives = dict(zip(TRIED, [1.0, 2.2, 1.9, 3.0, 3.8, 6.0], strict=True)).__getitem__
    curve = curve_of(gives, measure=lambda one, w: one.teacher)
    assert curve.inner == sorted(curve.inner) and all(0 <= w <= 5 for w in curve.inner)


def test_it_is_the_same_after_writing_and_reading():
    curve = curve_of(lambda w: 1 + 0.7 * w)
    again = Calibration.of(curve.json())
    for name, column in vars(curve).items():
        assert getattr(again, name) == pytest.approx(column, abs=1e-5)
    assert Calibration.of("") is None


BROKEN = {
    "no json": "{", "a number": "3", "other names": json.dumps({"w": [1, 2]}),
    "one point": json.dumps(dict.fromkeys(("wanted", "inner", "teacher", "before", "after"), [1.0])),
    "not finite": json.dumps(dict.fromkeys(("wanted", "inner", "teacher", "before", "after"), [1.0, float("nan")])),
    "wanted falls": json.dumps(dict.fromkeys(("wanted", "inner", "teacher", "before", "after"), [2.0, 1.0])),
    "columns of several lengths": json.dumps(
        {"wanted": [1, 2], "inner": [1, 2], "teacher": [1, 2], "before": [1, 2], "after": [1, 2, 3]}
    ),
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_what_is_no_calibration_is_refused(text):
    with pytest.raises(ValueError):
        Calibration.of(text)
