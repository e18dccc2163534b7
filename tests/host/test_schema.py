"""Node schemas as the host sees them."""

import inspect


def test_every_node_describes_itself(pack):
    assert pack.nodes
    for node_id, node in pack.nodes.items():
        schema = node.GET_SCHEMA()
        assert node_id == schema.node_id and schema.display_name and schema.description, node_id
        assert schema.category.split("/")[0] == "TeEFusion", node_id
        info = node.GET_NODE_INFO_V1()
        assert info["name"] == node_id
        names = [item.id for item in schema.inputs]
        assert len(set(names + [item.id for item in schema.outputs])) == len(names) + len(schema.outputs), node_id
        for item in schema.inputs:
            assert item.tooltip, f"{node_id}.{item.id} has no tooltip"
        for item in schema.outputs:
            assert item.display_name, f"{node_id}.{item.id} has no name"


def test_execute_takes_exactly_the_inputs(pack):
    for node_id, node in pack.nodes.items():
        taken = set(inspect.signature(node.execute).parameters)
        assert taken == {item.id for item in node.GET_SCHEMA().inputs}, node_id


def test_sockets_of_conditioning_are_frozen(pack):
    schema = pack.nodes["TeEFusionConditioning"].GET_SCHEMA()
    inputs = [(item.id, item.get_io_type()) for item in schema.inputs]
    assert inputs == [
        ("model", "MODEL"),
        ("positive", "CONDITIONING"),
        ("null", "CONDITIONING"),
        ("guidance", "FLOAT"),
        ("guidance_precision", "COMBO"),
    ]
    assert [item.get_io_type() for item in schema.outputs] == ["MODEL", "CONDITIONING"]
    guidance, precision = schema.inputs[3], schema.inputs[4]
    assert (guidance.default, guidance.min, guidance.max, guidance.step) == (5.0, 0.0, 100.0, 0.01)
    assert precision.optional and precision.options == ["auto", "official bf16", "exact"]


def test_a_keyword_unknown_to_the_host_is_left_out(pack):
    import sys

    shim = sys.modules[f"{pack.module.__name__}.nodes._schema"]
    from comfy_api.latest import io

    built = shim.schema(node_id="x", display_name="X", category="c", inputs=[], outputs=[], keyword_of_2099=1)
    assert built.node_id == "x"
    assert shim.inp(io.Float.Input, "f", default=1.0, keyword_of_2099=1).default == 1.0
