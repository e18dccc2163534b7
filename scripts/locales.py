"""Write the texts of the node schemas into locales/en/nodeDefs.json.

python3 scripts/locales.py    after a change of any text; locales/zh/nodeDefs.json is then changed by hand
"""

import argparse
import asyncio
import importlib.util
import json
import sys

from runner.places import ROOT
from runner.setup import enter_environment, set_up
from runner.stop import run, say

ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"


def node_defs(schemas) -> dict:
    """Return what the interface shows of every node, in the layout that ComfyUI reads."""
    return {
        schema.node_id: {
            "display_name": schema.display_name, "description": schema.description,
            "inputs": {item.id: {"name": item.display_name or item.id, "tooltip": item.tooltip}
                       for item in schema.inputs},
            "outputs": {str(i): {"name": item.display_name, "tooltip": item.tooltip}
                        for i, item in enumerate(schema.outputs)},
        }
        for schema in schemas
    }  # fmt: skip


def written(texts: dict) -> str:
    return json.dumps(texts, ensure_ascii=False, indent=2) + "\n"


def _schemas() -> list:
    """Load the pack as ComfyUI does, under a name of its own: the host has a module `nodes` too."""
    spec = importlib.util.spec_from_file_location("teefusion_pack", ROOT / "__init__.py")
    pack = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)

    async def nodes():
        return await (await pack.comfy_entrypoint()).get_node_list()

    return [node.GET_SCHEMA() for node in asyncio.run(nodes())]


def main() -> int:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    comfyui = set_up()
    enter_environment()

    sys.path.append(str(ROOT))  # last: the host has a module `nodes` too
    from lab.demo_world.host import use_comfy

    use_comfy(comfyui)
    ENGLISH.parent.mkdir(parents=True, exist_ok=True)
    ENGLISH.write_text(written(node_defs(_schemas())), encoding="utf-8")
    say(f"written to {ENGLISH}")
    return 0


if __name__ == "__main__":
    run(main)
