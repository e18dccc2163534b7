"""Generated inputs: the counts of tests/host/test_campaign.py by kind."""

from functools import partial
from typing import Any

from ._host_tests import cells_of_this_host, outcomes

measure = partial(cells_of_this_host, "campaign")


def table(result: dict[str, Any]) -> list[list[str]]:
    kinds, hosts = outcomes(result)
    found = hosts[min(hosts)]
    rows = [[kind, *(found[kind, outcome] for outcome in ("right", "refused"))] for kind in kinds]
    total = [str(sum(int(row[column]) for row in rows)) for column in (1, 2)]
    return [["kind", "right result", "refused"], *rows, ["all", *total]]
