"""Public node packs beside ours: each node equals its twin on stock parts, or is refused with a reason.

`scripts/packs.py` runs this file with a folder of packs, then writes its cells as a table.
"""

import pytest
import safetensors.torch

from . import packs_parts
from .composition_columns import COLUMNS, Student
from .composition_parts import CHANGES, NOTHING, SAME, STUDENT
from .packs_parts import AUTO, CFG, ROWS, SKIMMED, call
from .reflection_parts import randn, relative, weights_of

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
EQUAL, OTHER = 2e-4, 1e-3
CELLS = [(row, name) for row in ROWS for name in row.columns]


@pytest.fixture(scope="module")
def loaded(top, tmp_path_factory):
    custom_nodes = tmp_path_factory.mktemp("comfyui") / "custom_nodes"
    custom_nodes.mkdir()
    return {name: packs_parts.load(name, custom_nodes) for name in packs_parts.names()}


@pytest.fixture(scope="module")
def columns(top, loaded, tmp_path_factory):
    import folder_paths

    top.folder = tmp_path_factory.mktemp("packs")
    top.models = top.pack.comfy_host.load_demo.__globals__["MODELS"]
    layer = "lora_unet_joint_blocks_1_x_block_mlp_fc1"
    lora = {f"{layer}.lora_up.weight": randn(1, 1024, 2), f"{layer}.lora_down.weight": randn(2, 2, 256)}
    safetensors.torch.save_file({k: 0.3 * v for k, v in lora.items()}, top.folder / "packs_test.safetensors")
    folder_paths.add_model_folder_path("loras", str(top.folder))
    return {column.name: column(top) for column in COLUMNS}


@pytest.fixture(scope="module")
def before(columns, top):
    return weights_of(top.world().model)


class SampledBy(Student):
    """The student, sampled by a sampler of the pack."""

    def __init__(self, top, sample):
        super().__init__(top)
        self.sample = sample

    def run(self, setup):
        return self.sample(self.top, setup)


@pytest.mark.parametrize(("row", "name"), CELLS, ids=[f"{row.name}-{name}" for row, name in CELLS])
def test_cell(row, name, columns, top, before, loaded, record_property):
    assert loaded[row.pack], f"{row.pack} was not loaded"
    column = SampledBy(top, row.run) if row.run else columns[name]

    def change(setup):
        return row.change(top, setup)

    def tell(outcome, difference=0.0):
        version = packs_parts.version(row.pack)
        record_property("cell", "|".join((row.pack, version, row.name, name, outcome, f"{difference:.1e}")))

    setup = column.start(**row.settings, **row.own)
    if name in row.refused:
        with pytest.raises(top.pack.errors.InvalidConfig, match=row.refused[name]) as caught:
            column.ours(setup, change)
        tell(f"refused: {caught.value}")
        return
    if row.fails:
        for run in (column.ours, column.twin):
            with pytest.raises(row.fails):
                run(setup, change)
        with pytest.raises(row.fails):
            row.run(top, setup)
        return tell("fails on SD3 without this pack too")
    got, twin = column.ours(setup, change, before=row.first), column.twin(setup, change)
    difference = relative(got, twin)
    assert difference < EQUAL
    if row.run:
        unguided = column.run(setup)
        assert relative(got, unguided) > OTHER
        return tell(CHANGES, difference)
    plain = columns[name].ours(column.start(**row.settings), lambda setup: setup)
    if row.on_model and name == STUDENT:
        assert relative(column.ours(setup, change, before=True), got) < EQUAL, "the order of the nodes matters"
    if row.expected == CHANGES:
        assert relative(got, plain) > OTHER
    if row.expected in (SAME, NOTHING):
        assert relative(got, plain) < EQUAL
    tell(row.expected, difference)


def test_nothing_is_left_in_the_base(columns, top, before):
    top.assert_clean(top.world().model, before)


def test_skimmed_cfg_at_scale_zero_is_named(top, columns, loaded):
    skimmed = call("Skimmed CFG", model=top.world().model, Skimming_CFG=1.5)
    with pytest.raises(top.pack.errors.InvalidConfig, match=f"^Skimmed CFG of {SKIMMED} .*scale 0 "):
        top.reflect(top.world(), model=skimmed, scales=(3.0, 0.0, 3.0))


class TestTeachers:
    def teach(self, top, guider, sampler="euler"):
        if isinstance(sampler, str):
            sampler = top.comfy.samplers.sampler_object(sampler)
        world, host = top.world(), top.pack.comfy_host
        host.Teacher(guider, sampler).check(world.positive, world.negative, randn(3, 1, 16, 8, 8), CFG)

    def test_momentum(self, top, loaded):
        guider = top.comfy.samplers.CFGGuider(call("MomentumGuidance", model=top.world().model))
        with pytest.raises(top.pack.errors.InvalidConfig, match=f"^Momentum Guidance of {packs_parts.PERTURBED} "):
            self.teach(top, guider)

    def test_nag(self, top, loaded):
        world = top.world()
        sides = {"positive": world.positive, "negative": world.negative, "nag_negative": world.other}
        self.teach(top, call("NAGCFGGuider", model=world.model, latent_image=top.empty(world), **sides))

    def test_autoguidance(self, top, loaded):
        world = top.world()
        models = {"good_model": world.model, "bad_model": world.weak}
        sides = {"positive": world.positive, "negative": world.negative}
        guider = call("AutoGuidanceCFGGuider", swap_mode="dual_models_2x_vram", **models, **sides)
        with pytest.raises(top.pack.errors.TeacherFailed, match=f"pack {AUTO}: TypeError"):
            self.teach(top, guider)

    @pytest.mark.parametrize("name", ["exponential/res_2s", "multistep/res_2m"])
    def test_samplers_of_res4lyf_are_refused(self, top, loaded, name):
        """They insert a step at the smallest noise level, so their states are not those of the schedule."""
        guider = top.comfy.samplers.CFGGuider(top.world().model)
        sampler = call("ClownSampler_Beta", sampler_name=name, eta=0.0, seed=1)
        with pytest.raises(top.pack.errors.InvalidConfig, match="reports 5 states in 4 steps"):
            self.teach(top, guider, sampler)


def test_what_is_loaded(loaded):
    assert all(loaded.values()), loaded
