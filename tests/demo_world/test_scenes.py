"""The world of shapes: what is drawn, what is kept out of training."""

import random

import numpy as np
import pytest

from lab.demo_world import scenes
from lab.demo_world.scenes import Group, Scene, claim_of, corrupt, place_objects, random_scene

DRAWS = 10_000
HELD_OUT = [1, 26]  # among one small ring in every colour on every background


@pytest.fixture(scope="module")
def training():
    rng = random.Random(0)
    return [scenes.sample_picture(rng) for _ in range(DRAWS)]


def test_training_never_draws_a_held_out_scene(training):
    seen = {scene for scene, _ in training}
    rng = random.Random(1)
    kept_out = [scenes.sample_picture(rng, held_out=True)[0] for _ in range(500)]
    assert not any(scene.held_out for scene in seen)
    assert all(scene.held_out for scene in kept_out) and not seen & set(kept_out)


def test_one_scene_in_ten_is_held_out():
    rng = random.Random(2)
    share = np.mean([random_scene(rng).held_out for _ in range(DRAWS)])
    assert share == pytest.approx(1 / scenes.HELD_OUT_SHARE, abs=0.015)


def test_the_split_is_the_same_in_every_process():
    """Pinned scenes of either part: a checksum, unlike hash(), does not change from run to run."""
    rings = [
        Scene(ground, (Group(1, color, "ring", "small"),)) for ground in scenes.BACKGROUNDS for color in scenes.COLORS
    ]
    assert [i for i, scene in enumerate(rings) if scene.held_out] == HELD_OUT


def test_every_fact_of_the_world_is_drawn(training):
    groups = [group for scene, _ in training for group in scene.groups]
    assert {g.color for g in groups} == set(scenes.COLORS) and {g.shape for g in groups} == set(scenes.SHAPES)
    assert {g.count for g in groups} == {1, 2} and {g.size for g in groups} == {"small", "large"}
    assert {scene.background for scene, _ in training} == set(scenes.BACKGROUNDS)
    assert {scene.relation for scene, _ in training} == {None, "left of", "right of", "above", "below"}
    assert {scene.place for scene, _ in training} == {None, "left", "right", "top", "bottom"}


def test_the_same_seed_draws_the_same_pictures():
    (a, first), (b, second) = (scenes.sample_picture(random.Random(7)) for _ in range(2))
    assert a == b and np.array_equal(first, second)
    assert first.shape == (scenes.SIZE, scenes.SIZE, 3) and first.dtype == np.uint8
    assert not np.array_equal(first, scenes.sample_picture(random.Random(8))[1])


def test_objects_are_inside_apart_related():
    rng = random.Random(3)
    for _ in range(300):
        scene = random_scene(rng)
        objects = place_objects(scene, rng) or []
        for i, o in enumerate(objects):
            assert o.radius < o.x < scenes.SIZE - o.radius and o.radius < o.y < scenes.SIZE - o.radius
            assert all(max(abs(o.x - p.x), abs(o.y - p.y)) > o.radius + p.radius for p in objects[:i])
        if objects and scene.relation:
            sides = [[(o.x, o.y) for o in objects if o.group == group] for group in (0, 1)]
            assert scenes.relation_margin(scene.relation, *sides) >= scenes.RELATION_MARGIN


@pytest.mark.parametrize(
    ("relation", "margin"), [("left of", 10.0), ("right of", -30.0), ("above", -20.0), ("below", 0.0)]
)
def test_the_margin_of_a_relation_by_hand(relation, margin):
    assert scenes.relation_margin(relation, [(10.0, 20.0), (20.0, 32.0)], [(30.0, 20.0), (40.0, 12.0)]) == margin


def test_a_claim_says_nothing_untrue_of_its_scene():
    rng = random.Random(4)
    drawn = [random_scene(rng) for _ in range(1000)]
    claims = [claim_of(scene, rng) for scene in drawn]
    for scene, claim in zip(drawn, claims, strict=True):
        assert claim.background in (None, scene.background)
        assert (claim.relation, claim.place) == (scene.relation, scene.place)
        for said, true in zip(claim.groups, scene.groups, strict=True):
            assert (said.count, said.color, said.shape) == (true.count, true.color, true.shape)
            assert said.size in (None, true.size)
    assert 0.1 < np.mean([claim.background is None for claim in claims]) < 0.2


def test_corrupted_claims_are_mostly_wrong():
    rng = random.Random(6)
    claims = [claim_of(random_scene(rng), rng) for _ in range(2000)]
    assert 0.5 < np.mean([corrupt(claim, rng) != claim for claim in claims]) < 0.95
