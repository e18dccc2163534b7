"""The cells of test_composition.py with the patcher for dynamic VRAM, which is the default on NVIDIA GPUs.

`scripts/bench.py composition` runs this file too, on hosts that have this patcher.
"""

import pytest

from .composition_columns import COLUMNS, EQUAL, check_cell, columns_of
from .composition_parts import ROWS
from .dynamic_patcher import dynamic_vram
from .reflection_parts import Bench, weights_of

ROUNDED = 2e-3
"""Models keep the data type of their file, here float16; so a file with merged LoRAs that is saved has it as well."""

pytestmark = [pytest.mark.usefixtures("as_the_host_runs_nodes"), pytest.mark.extended]


@pytest.fixture(scope="module")
def top(host, pack):
    with dynamic_vram(host.comfy):
        yield Bench(host, pack)


@pytest.fixture(scope="module")
def columns(top, tmp_path_factory):
    return columns_of(top, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def before(columns, top):
    return weights_of(top.world().model)


@pytest.mark.parametrize("name", [column.name for column in COLUMNS])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_cell(row, name, columns, before, record_property):
    equal = ROUNDED if row.name == "model saved, reloaded" else EQUAL
    record_property("cell", "|".join((row.name, name, check_cell(row, columns[name], equal))))


def test_nothing_of_it_is_left_in_the_base(columns, top, before):
    top.assert_clean(top.world().model, before)
