"""Every long wait tells how far it is, and the user can cancel it."""

import logging
import re
import shutil

import pytest
import torch

from .reflection_parts import OTHER, PROMPT, weights_of
from .test_trainer_node import output, shown, train  # noqa: F401  fixtures

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
PHASES = [
    "encoding prompt 1 of 2", "encoding prompt 1 of 1", "preparing the model for training",
    "GiB of disk space", "checking the teacher, step 1 of 5", "forecasting the memory", "beside the model",
    "the teacher makes trajectory 1 of 2, step 1 of 3", "the teacher makes trajectory 1 of 2, unguided step 1 of 3",
    "trajectory 1 of 2 took", "step 1/6", "the teacher makes trajectory 2 of 2, step 1 of 3",
    "making preview image 1 of 6", "step 6/6", "6 steps, last loss",
]  # fmt: skip
CANCELLED = [phase for phase in PHASES if not re.search("took|6/6|loss", phase)]


class Lines(logging.Handler):
    """Collects what the node tells, and calls `react` with each line."""

    def __init__(self, react=lambda text: None):
        super().__init__(logging.INFO)
        self.texts, self.react = [], react

    def emit(self, record):
        self.texts.append(record.getMessage().removeprefix("TeEFusion: "))
        self.react(self.texts[-1])


@pytest.fixture
def listen(pack, monkeypatch):
    """Attach Lines to the notes, all of whose lines are told."""
    notes = pack.comfy_host.notes
    monkeypatch.setattr(notes, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(pack.comfy_host.progress, "SECONDS_BETWEEN_LINES", -1.0)
    before, attached = notes.log.level, []

    def attach(**options):
        attached.append(Lines(**options))
        notes.log.addHandler(attached[-1])
        notes.log.setLevel(logging.INFO)
        return attached[-1].texts

    yield attach
    notes.log.setLevel(before)
    for handler in attached:
        notes.log.removeHandler(handler)


def run(train, **options):  # noqa: F811
    return train(images_per_trajectory=2, teacher_steps=3, batch_size=2, steps=6, preview_every=6, **options)


def test_each_phase_tells_how_far_it_is_in_order(train, listen):  # noqa: F811
    texts = listen()
    run(train)
    first = {phase: next((n for n, text in enumerate(texts) if phase in text), None) for phase in PHASES}
    assert None not in first.values() and list(first.values()) == sorted(first.values()), (first, texts)
    assert any(re.search(r"step 3 of 5, \d+ s left", text) for text in texts), "the time that is left"


@pytest.mark.parametrize("phase", CANCELLED)
def test_cancel_in_each_phase(host, top, world, train, listen, output, phase):  # noqa: F811
    management, before = host.comfy.model_management, weights_of(world.model)
    lines = listen(react=lambda text: phase in text and management.interrupt_current_processing(True))
    try:
        with pytest.raises(management.InterruptProcessingException):
            run(train)
    finally:
        management.interrupt_current_processing(False)
    later = [text for text in lines[[phase in text for text in lines].index(True) + 1 :] if "stopped" not in text]
    assert len(later) <= 1, "nothing that takes long follows"
    top.assert_clean(world.model, before)
    modules = world.model.model.diffusion_model.modules()
    assert all(module.forward.__func__ is type(module).forward for module in modules), "a replaced forward was left"
    files = [path for path in output.rglob("*") if path.is_file()]
    assert not [path for path in files if ".part" in path.name or path.parent.name == "loras"]
    assert all((path / "checkpoint.json").is_file() for path in output.rglob("step-*"))


def test_a_cancelled_run_is_resumed_to_the_same_student(host, train, listen):  # noqa: F811
    management = host.comfy.model_management
    whole = run(train, name="whole")
    cancels = iter([True])
    phase = "trajectory 2 of 2, unguided"
    listen(react=lambda text: phase in text and management.interrupt_current_processing(next(cancels, False)))
    with pytest.raises(management.InterruptProcessingException):
        run(train, name="cancelled")
    again = run(train, name="cancelled")
    assert whole[1] == again[1] and all(torch.equal(again[0][name], tensor) for name, tensor in whole[0].items())


def test_encoding_tells_before_the_first_prompt(pack, top, listen):
    texts, clip = listen(), top.load("base")[1]
    encoded = list(pack.comfy_host.encoded(clip, [PROMPT, OTHER]))
    assert len(encoded) == 2 and texts[0] == "encoding prompt 1 of 2" and texts[1].startswith("encoding prompt 2 of 2,")


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(pack, train, output, monkeypatch):  # noqa: F811
    usage = shutil.disk_usage(output)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=100_000))
    with pytest.raises(
        pack.errors.NotWritten, match=r"disk space \(.* trajectories .* checkpoints .* student\).*cache_size"
    ):
        train()
    assert not list(output.iterdir())
