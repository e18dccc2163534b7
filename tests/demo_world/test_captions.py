"""Captions: every word known, every caption short enough, every fact said."""

import ast
import random
import re
from pathlib import Path

import pytest

from lab.demo_world import captions
from lab.demo_world.captions import VOCABULARY, caption, held_out_prompts
from lab.demo_world.scenes import BACKGROUNDS, COLORS, SHAPES, Group, Scene, claim_of, corrupt, random_scene

REPO = Path(__file__).resolve().parent.parent.parent


def num_tokens():
    """Read the length of the text encoder off the source, since importing it needs a ComfyUI."""
    tree = ast.parse((REPO / "teefusion_core" / "comfy_host" / "demo_model.py").read_text(encoding="ascii"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "NUM_TOKENS":
            return ast.literal_eval(node.value)
    raise AssertionError("NUM_TOKENS is gone")


@pytest.fixture(scope="module")
def written():
    rng = random.Random(0)
    claims = [claim_of(random_scene(rng), rng) for _ in range(10_000)]
    claims += [corrupt(claim, rng) for claim in claims[:2000]]
    return [(caption(claim, rng), claim) for claim in claims]


def test_every_word_is_in_the_vocabulary(written):
    used = {word for text, _ in written for word in text.split()}
    assert used <= set(VOCABULARY)
    # the rest is for people who type negative prompts, an empty scene, or two groups without saying how they lie
    assert set(VOCABULARY) - used <= {"no", "without", "empty", "and"}


def test_words_are_plain_sorted_without_doubles(written):
    assert list(VOCABULARY) == sorted(set(VOCABULARY)) and not set(COLORS) & set(BACKGROUNDS)
    for text, _ in written:
        assert " ".join(re.findall("[a-z]+", text)) == text


def test_captions_fit_the_text_encoder(written):
    room = num_tokens() - 2  # start token, end token
    assert room == 22
    assert max(len(text.split()) for text, _ in written) <= longest() <= room


def longest():
    """The number of words when every choice falls on its longest wording."""

    def words(texts):
        return max(len(text.replace("{}", "x").split()) for text in texts)

    def rows(table):
        return words(text for row in table.values() for text in row)

    phrase = rows(captions.COUNTS) + rows(captions.SIZES) + 1 + rows(captions.NOUNS)
    middle = max(rows(captions.RELATION_WORDS), 1)
    two = words(captions.OPENINGS) + phrase + middle + phrase + words(captions.GROUND_WORDS)
    one = words(captions.OPENINGS) + phrase + rows(captions.PLACE_WORDS) + words(captions.GROUND_WORDS)
    return max(one, two)


def test_a_caption_says_all_of_its_claim(written):
    for text, claim in written:
        words = text.split()
        for group in claim.groups:
            nouns = captions.NOUNS.get(group.shape, (group.shape,))
            forms = nouns if group.count == 1 else [captions.plural(noun) for noun in nouns]
            assert group.color in words and any(form in words for form in forms)
            assert any(count in words for count in captions.COUNTS[group.count])
        sizes = [size for size, forms in captions.SIZES.items() if any(form in words for form in forms)]
        assert set(sizes) == {group.size for group in claim.groups} - {None}
        if claim.relation:
            assert any(form in text for form in captions.RELATION_WORDS[claim.relation])
        if claim.place:
            assert any(form in text for form in captions.PLACE_WORDS[claim.place])
        assert [b for b in BACKGROUNDS if b in words] == ([claim.background] if claim.background else [])


def test_one_claim_has_many_wordings():
    claim = Scene("white", (Group(1, "red", "cross", "small"), Group(1, "blue", "ring", None)), relation="above")
    rng = random.Random(1)
    texts = {caption(claim, rng) for _ in range(200)}
    assert len(texts) > 50
    assert "a small red cross above a blue ring on white" in texts | {caption(claim, rng) for _ in range(5000)}


@pytest.mark.parametrize("noun", [*SHAPES, "disc", "plus", "rhombus"])
def test_plurals(noun):
    irregular = {"cross": "crosses", "plus": "pluses", "rhombus": "rhombuses"}
    assert captions.plural(noun) == irregular.get(noun, noun + "s")


def test_held_out_prompts_say_every_fact_of_a_held_out_scene():
    for _, claim in held_out_prompts(200):
        assert claim.held_out and claim.background and all(group.size for group in claim.groups)


def test_held_out_prompts_are_the_same_list_for_the_same_seed():
    prompts = held_out_prompts(64)
    assert prompts == held_out_prompts(64) and prompts[:16] == held_out_prompts(16)
    assert prompts != held_out_prompts(64, seed=1)
    assert len({text for text, _ in prompts}) > 60
