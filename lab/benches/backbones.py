"""Which model families are supported: the cells of tests/host/test_backbones.py and test_guidance_lora_families.py."""

from functools import partial
from typing import Any

from ._host_tests import cells_of_this_host, outcomes

COLUMNS = ("family", "conditioning", "trainer", "loader", "guidance lora")
measure = partial(cells_of_this_host, "backbones", "guidance_lora_families")


def table(result: dict[str, Any]) -> list[list[str]]:
    rows, hosts = outcomes(result)
    lines = [[row, host, *(found.get((row, column), "") for column in COLUMNS)]
             for row in rows for host, found in hosts.items()]  # fmt: skip
    return [["model", "ComfyUI", *COLUMNS], *lines]
