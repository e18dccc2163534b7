"""Sums of prompts: the words of the demo world, with a claim that says what the whole prompt says."""

import random
import re
from collections import Counter

import pytest

from lab.demo_world.captions import VOCABULARY
from lab.demo_world.prompt_arithmetic import KINDS, sums
from lab.demo_world.scenes import draw_scene, place_objects
from lab.demo_world.verifier import judge

EVERY = sums(40)
each_kind = pytest.mark.parametrize("kind", KINDS)


def of(kind):
    return [entry for entry in EVERY if entry.kind == kind]


def words(text):
    return re.findall(r"[a-z]+", text)


def test_as_many_of_each_kind_as_asked_for_the_same_every_time():
    assert Counter(entry.kind for entry in EVERY) == dict.fromkeys(KINDS, 40)
    assert sums(40) == EVERY and sums(40, seed=6) != EVERY


@each_kind
def test_every_word_is_known(kind):
    for entry in of(kind):
        for text in (entry.base, entry.whole, *(text for _, text in entry.terms)):
            assert set(words(text)) <= set(VOCABULARY), text


@each_kind
def test_the_words_add_up(kind):
    """Counted word by word, the sum is the whole prompt."""
    for entry in of(kind):
        total = Counter(words(entry.base))
        for weight, text in entry.terms:
            for word in words(text):
                total[word] += int(weight)
        assert {word: count for word, count in total.items() if count} == Counter(words(entry.whole)), entry.spelled


@each_kind
def test_the_claim_says_what_the_words_say(kind):
    for entry in of(kind):
        facts = [word for group in entry.claim.groups for word in (group.color, group.shape, group.size)]
        facts += [*words(entry.claim.relation or ""), entry.claim.background or ""]
        assert set(filter(None, facts)) <= set(words(entry.whole))
        assert entry.whole.count("background") == (entry.claim.background is not None)
        assert len(entry.claim.groups) == len(re.findall(r"\ba (?:small|large)\b", entry.whole))


@each_kind
def test_a_picture_of_the_claim_is_right_that_of_another_is_not(kind):
    rng, entries = random.Random(1), of(kind)[:5]
    for entry, other in zip(entries, entries[1:], strict=False):
        picture = draw_scene(entry.claim, place_objects(entry.claim, rng), rng)
        assert judge(picture, entry.claim).overall
        assert not judge(picture, other.claim).overall or other.claim == entry.claim


def test_a_sum_can_be_read():
    assert re.fullmatch(r'"a \w+ \w+ \w+" \+ "on a \w+ background"', of("add a background")[0].spelled)
    assert re.fullmatch(r'"[\w ]+" - "[\w ]+"', of("take an object away")[0].spelled)
