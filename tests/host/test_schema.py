"""Node schemas as the host sees them. Names and order of the sockets are frozen in tests/guard/test_host_rules.py."""

import inspect
import sys

import pytest

TYPES = {
    "MODEL": "model strong_model weak_model", "VAE": "vae", "GUIDER": "guider", "SAMPLER": "sampler",
    "SIGMAS": "sigmas", "LATENT": "latent_image latents", "BOOLEAN": "gradient_checkpointing whole_model",
    "CONDITIONING": "positive null conditioning negative base add subtract reference weak_positive weak_negative",
    "IMAGE": "images images_a images_b images_c images_d images_e images_f",
    "GUIDANCE_READING": "beside", "GUIDANCE_SCHEDULE": "schedule", "GUIDANCE_SWEEP": "sweep",
    "STRING": "run_name prompts name accept_changes negative_prompts methods costs shares scores",
    "INT": "seed run_seed noise_seed steps reflect_steps rounds student_steps teacher_steps width height rank"
    " batch_size preview_every images_per_trajectory cache_size save_every image_size calibration count",
    "FLOAT": "guidance guidance_min guidance_max alpha beta add_weight subtract_weight strong_cfg weak_cfg final_cfg"
    " cfg inversion_cfg chats_alpha denoise learning_rate reuse negative_share initial_gain_ratio"
    " start end low_guidance lowest highest",
    "COMBO": "variant student sharpener scheduler trainable target timestep_sampling method inversion rule"
    " guidance_precision pickscore hps aesthetic image_reward shape spacing",
}  # fmt: skip
TYPE_OF = {name: kind for kind, names in TYPES.items() for name in names.split()}
OUTPUTS = {
    "TinySD3Loader": "MODEL CLIP VAE", "TeEFusionStudentLoader": "MODEL", "TeEFusionConditioning": "MODEL CONDITIONING",
    "DICESharpen": "CONDITIONING", "TextEmbeddingBlend": "CONDITIONING STRING", "W2SDTeacherSampler": "LATENT",
    "ZSampling": "LATENT", "ReflectionGuider": "GUIDER", "ReflectionSampler": "SAMPLER",
    "DistillTrainer": "LORA_MODEL LOSS_MAP INT STRING MODEL",
    "GuidanceReport": "LATENT IMAGE STRING STRING GUIDANCE_READING",
    "CompareGrid": "IMAGE", "ScoreImages": "STRING STRING",
    "GuidanceSchedule": "GUIDANCE_SCHEDULE", "ScheduledCFGGuider": "GUIDER",
    "GuidanceSweep": "MODEL CONDITIONING LATENT GUIDANCE_SWEEP", "SweepGrid": "IMAGE FLOAT STRING",
}  # fmt: skip
OPTIONAL = {
    "TeEFusionStudentLoader": "model", "TeEFusionConditioning": "guidance_precision schedule",
    "DICESharpen": "null negative model", "TextEmbeddingBlend": "add subtract reference",
    "W2SDTeacherSampler": "weak_model weak_positive weak_negative",
    "ReflectionGuider": "weak_model weak_positive weak_negative schedule",
    "DistillTrainer": "clip vae negative_prompts positive null latents method whole_model calibration student_steps",
    "GuidanceReport": "vae beside run_name",
    "CompareGrid": "images_b images_c images_d images_e images_f",
    "GuidanceSchedule": "shares", "GuidanceSweep": "sharpener", "SweepGrid": "scores",
}  # fmt: skip
CHOICES = {
    "variant": "base, weak, sd15, sd15_student_guidance_lora, student, student_8_steps, student_guidance_lora, "
    "student_negatives",
    "guidance_precision": "auto, official bf16, exact", "rule": "CFG, CHATS",
    "inversion": "exact, upper, official", "trainable": "lora, lora on modulation, embedders, everything",
    "target": "secant, re-evaluated, clean", "timestep_sampling": "schedule, jittered, uniform",
    "method": "teefusion, guidance only, distillcfg, teefusion split, dice, guidance lora",
    "shape": "constant, interval, linear up, linear down, cosine up, cosine down, list", "spacing": "linear, geometric",
}  # fmt: skip


@pytest.fixture
def schemas(pack):
    return {node_id: node.GET_SCHEMA() for node_id, node in pack.nodes.items()}


def test_every_node_describes_itself(pack, schemas):
    for node_id, schema in schemas.items():
        assert node_id == schema.node_id == pack.nodes[node_id].GET_NODE_INFO_V1()["name"]
        assert schema.display_name and schema.description and schema.category.split("/")[0] == "TeEFusion", node_id
        names = [item.id for item in (*schema.inputs, *schema.outputs)]
        assert len(set(names)) == len(names), node_id
        assert all(item.tooltip for item in schema.inputs) and all(item.display_name for item in schema.outputs), (
            node_id
        )


def test_execute_takes_exactly_the_inputs(pack, schemas):
    for node_id, schema in schemas.items():
        taken = list(inspect.signature(pack.nodes[node_id].execute).parameters)
        assert sorted(taken) == sorted(item.id for item in schema.inputs), node_id


def test_linked_inputs_leave_the_cache_on(pack, schemas):
    """The host gives None for a linked input; an error would make it run the node, and all behind it, every time."""
    for node_id, schema in schemas.items():
        node = pack.nodes[node_id]
        if any("fingerprint_inputs" in vars(kind) for kind in node.__mro__ if kind.__module__ == node.__module__):
            linked = {item.id: None for item in schema.inputs}
            stamps = {node.fingerprint_inputs(**linked) for _ in range(2)}
            assert len(stamps) == 1 and None not in stamps, node_id


def test_types_of_sockets_are_frozen(schemas):
    for node_id, schema in schemas.items():
        expected = TYPE_OF | {"clip": "COMBO" if node_id == "ScoreImages" else "CLIP"}
        assert all(item.get_io_type() == expected[item.id] for item in schema.inputs), node_id
        assert {item.id for item in schema.inputs if item.optional} == set(OPTIONAL.get(node_id, "").split()), node_id
        assert [item.get_io_type() for item in schema.outputs] == OUTPUTS[node_id].split()


def test_choices_are_frozen_and_new_ones_go_last(host, schemas):
    for item in (item for schema in schemas.values() for item in schema.inputs):
        if item.id in CHOICES:
            choices = CHOICES[item.id].split(", ")
            assert item.options[: len(choices)] == choices, item.id
        if item.id == "scheduler":
            assert item.options == list(host.comfy.samplers.KSampler.SCHEDULERS)


def test_a_keyword_unknown_to_the_host_is_left_out(pack):
    from comfy_api.latest import io

    shim = sys.modules[f"{pack.module.__name__}.nodes._schema"]
    built = shim.schema(node_id="x", display_name="X", category="c", inputs=[], outputs=[], keyword_of_2099=1)
    assert built.node_id == "x"
    assert shim.inp(io.Float.Input, "f", default=1.0, keyword_of_2099=1).default == 1.0
