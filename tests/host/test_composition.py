"""The nodes of this pack beside what users wire in: each cell works as its literal twin, or says why not.

`scripts/bench.py composition` runs this file, then writes its cells as a table.
"""

import pytest

from .composition_columns import COLUMNS, check_cell, columns_of
from .composition_parts import ROWS
from .reflection_parts import weights_of

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")


@pytest.fixture(scope="module")
def columns(top, tmp_path_factory):
    return columns_of(top, tmp_path_factory.mktemp("saved"))


@pytest.fixture(scope="module")
def before(columns, top):
    """Weights of the base as they are before anything is wired."""
    return weights_of(top.world().model)


@pytest.mark.parametrize("name", [column.name for column in COLUMNS])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_cell(row, name, columns, before, record_property):
    record_property("cell", "|".join((row.name, name, check_cell(row, columns[name]))))


def test_nothing_of_it_is_left_in_the_base(columns, top, before):
    top.assert_clean(top.world().model, before)
