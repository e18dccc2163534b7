"""Count the rows that really go through a model, for the demo's table.

Linked only into the private ComfyUI of our scripts; it is no part of the published pack.
"""

from collections import OrderedDict

import comfy.model_base
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS = {}
KEPT_PROMPTS = 256

_rows: "OrderedDict[str, dict[str, dict[str, int]]]" = OrderedDict()


def _counted(original):
    def apply_model(self, x, *args, **kwargs):
        server = PromptServer.instance
        prompt, node = str(getattr(server, "last_prompt_id", "")), str(server.last_node_id)
        seen = _rows.setdefault(prompt, {}).setdefault(node, {"calls": 0, "rows": 0})
        seen["calls"] += 1
        seen["rows"] += int(x.shape[0])
        while len(_rows) > KEPT_PROMPTS:
            _rows.popitem(last=False)
        return original(self, x, *args, **kwargs)

    return apply_model


# below every wrapper, so that what a wrapper adds is counted as well
comfy.model_base.BaseModel._apply_model = _counted(comfy.model_base.BaseModel._apply_model)


@PromptServer.instance.routes.get("/probe/passes/{prompt_id}")
async def _passes(request):
    return web.json_response(_rows.get(request.match_info["prompt_id"], {}))
