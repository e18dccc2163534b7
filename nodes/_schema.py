"""Node schemas that keep working on a host that knows fewer keywords.

Older hosts reject a keyword they do not know, which would take the whole pack down with it; here
such a keyword is left out, so that an old host merely shows a little less.
"""

import dataclasses
import inspect

from comfy_api.latest import io

CATEGORY = "TeEFusion"


def schema(**keywords) -> io.Schema:
    """Build a node schema from the keywords that this host knows."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in keywords.items() if name in known})


def inp(kind, id: str, **keywords):
    """Build an input, e.g. `inp(io.Float.Input, "guidance", default=5.0)`, with the known keywords."""
    # read off the code, since building a signature takes ten times as long, for a hundred inputs at every start
    code = inspect.unwrap(kind.__init__).__code__
    known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return kind(id, **{name: value for name, value in keywords.items() if name in known})
