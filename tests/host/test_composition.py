"""The nodes of this pack beside what users wire in: each cell works as its literal twin, or says why not.

`scripts/bench.py composition` runs this file, then writes its cells as a table.
"""

import pytest

from .composition_columns import COLUMNS
from .composition_parts import CHANGES, NOTHING, ROWS, SAME
from .reflection_parts import relative, weights_of

pytestmark = pytest.mark.usefixtures("as_the_host_runs_nodes")
EQUAL, OTHER = 2e-4, 1e-3


@pytest.fixture(scope="module")
def columns(top, tmp_path_factory):
    top.folder = tmp_path_factory.mktemp("saved")
    top.models = top.pack.comfy_host.load_demo.__globals__["MODELS"]
    return {column.name: column(top) for column in COLUMNS}


@pytest.fixture(scope="module")
def before(columns, top):
    """Weights of the base as they are before anything is wired."""
    return weights_of(top.world().model)


def unchanged(setup):
    return setup


@pytest.mark.parametrize("name", [column.name for column in COLUMNS])
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_cell(row, name, columns, top, before, record_property):
    column = columns[name]

    def change(setup):
        return row.change(top, setup)

    def tell(outcome):
        record_property("cell", "|".join((row.name, name, outcome)))

    setup = column.start(**row.settings, **row.own)
    if name in row.refused:
        with pytest.raises(top.pack.errors.InvalidConfig, match=row.refused[name]) as caught:
            column.ours(setup, change)
        tell(f"refused: {caught.value}")
        return
    got = column.ours(setup, change)
    if row.on_model:
        assert relative(column.ours(setup, change, before=True), got) < EQUAL, "the order of the nodes matters"
    plain = column.ours(column.start(**row.settings), unchanged)
    if row.expected in (SAME, NOTHING):
        assert relative(got, plain) < EQUAL
    if row.expected == NOTHING:
        assert relative(column.twin(setup, change), column.twin(setup, unchanged)) < EQUAL
    if row.expected == CHANGES:
        assert relative(got, column.twin(setup, change)) < EQUAL
        assert got.shape != plain.shape or relative(got, plain) > OTHER
    tell(row.expected)


def test_nothing_of_it_is_left_in_the_base(columns, top, before):
    top.assert_clean(top.world().model, before)
