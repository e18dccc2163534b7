"""Node that makes students."""

from dataclasses import fields

from comfy_api.latest import io

from ..teefusion_core.comfy_host.sampling import schedulers
from ..teefusion_core.comfy_host.training.from_graph import graph_data, train_in_graph
from ..teefusion_core.errors import reported_by
from ..teefusion_core.guidance.methods import TAUGHT, TEEFUSION
from ..teefusion_core.training.adapters import TRAINABLE
from ..teefusion_core.training.loop_settings import TrainSettings
from ..teefusion_core.training.settings import DistillSettings
from ..teefusion_core.training.targets import TARGETS, TIMES
from ._schema import CATEGORY, inp, schema

DISPLAY_NAME = "Distill Trainer"


def _int(id: str, default: int, low: int, high: int, tooltip: str):
    return inp(io.Int.Input, id, default=default, min=low, max=high, tooltip=tooltip)


def _float(id: str, default: float, low: float, high: float, step: float, tooltip: str):
    return inp(io.Float.Input, id, default=default, min=low, max=high, step=step, tooltip=tooltip)


def _combo(id: str, options, default: str, tooltip: str):
    return inp(io.Combo.Input, id, options=list(options), default=default, tooltip=tooltip)


def _teacher() -> list:
    return [
        inp(io.Model.Input, "model", tooltip="The model that the student starts from. It is not changed."),
        inp(
            io.Guider.Input,
            "guider",
            tooltip=(
                "The teacher's guidance: CFGGuider, Reflection Guider, or another with one scale. The trainer sets its "
                "prompts with its scale."
            ),
        ),
        inp(
            io.Sampler.Input,
            "sampler",
            tooltip="The teacher's step, one without memory or noise of its own: euler, heun, Reflection Sampler.",
        ),
    ]


def _run() -> list:
    return [
        inp(
            io.String.Input,
            "prompts",
            default="",
            multiline=True,
            tooltip="What the teacher paints, one prompt per line; needs clip. No pictures are needed.",
        ),
        inp(
            io.String.Input,
            "name",
            default="my_student",
            tooltip=(
                "Name of the run with its file, output/loras/NAME.safetensors. A run of this name that was stopped "
                "goes on where it was."
            ),
        ),
        _int("steps", 1000, 1, 10_000_000, "Training steps in all, those of a run that goes on included."),
        _int("batch_size", 4, 1, 4096, "Examples per step. More is steadier, slower, takes more memory."),
        _float("learning_rate", 5e-4, 1e-8, 1.0, 1e-6, "Learning rate of AdamW; warms up over 20 steps, then falls."),
        _int("rank", 16, 1, 1024, "Rank of the LoRA; more can learn more and makes a larger file."),
        _float(
            "guidance_min", 1.0, 0.0, 100.0, 0.1, "Least guidance w of the student. The teacher's CFG scale is 1 + w."
        ),
        _float("guidance_max", 8.0, 0.0, 100.0, 0.1, "Largest guidance w. The student refuses what lies outside."),
        _int("width", 1024, 16, 16384, "Width of the teacher's pictures in pixels; not used with latents."),
        _int("height", 1024, 16, 16384, "Height of the teacher's pictures in pixels; not used with latents."),
        _int("teacher_steps", 20, 1, 1000, "Steps of the teacher's schedule; sample the student with about as many."),
        _combo("scheduler", schedulers(), "normal", "How noise levels are spaced."),
    ]


def _learned() -> list:
    return [
        _combo(
            "trainable",
            TRAINABLE,
            "lora",
            "lora: every linear layer. lora on modulation: the path of time and pooled text. embedders: the two "
            "embedders. everything: all weights.",
        ),
        _combo(
            "target",
            TARGETS,
            "secant",
            "What the student learns. secant: to land where the teacher's step lands. re-evaluated: the teacher's last "
            "prediction. clean: the way straight to its picture.",
        ),
        _combo(
            "timestep_sampling",
            TIMES,
            "between",
            "Where the teacher steps. grid: on the schedule. between: anywhere between its levels. even: anywhere, in "
            "steps of one length.",
        ),
    ]


def _walks() -> list:
    return [
        _int(
            "cache_size",
            16,
            1,
            100_000,
            "How many of the teacher's latest walks are drawn from; they are kept on disk.",
        ),
        _int("images_per_trajectory", 8, 1, 1024, "Pictures that the teacher paints at once."),
        _float(
            "reuse",
            1.0,
            0.0,
            1e6,
            0.1,
            "How often an example serves before the teacher walks anew; 0: all walks come first, none later.",
        ),
        _float(
            "negative_share", 0.0, 0.0, 1.0, 0.05, "Share of walks with a negative prompt in place of the empty one."
        ),
        _float(
            "initial_gain_ratio",
            0.0,
            0.0,
            4.0,
            0.05,
            "Strength of the guidance term at the start, as a share of the modulation. 0: as published, for SD3; small "
            "models need 0.25.",
        ),
    ]


def _kept() -> list:
    return [
        inp(
            io.Boolean.Input,
            "gradient_checkpointing",
            default=False,
            tooltip="Less memory for about a third more time.",
        ),
        _int("save_every", 100, 0, 1_000_000, "Steps between checkpoints; 0: at start, end, stop only."),
        _int("preview_every", 100, 0, 1_000_000, "Steps between pictures of the student in the node; 0: none."),
        # not named seed, which the interface would change after every run, so that no run could go on
        _int("run_seed", 0, 0, 2**53, "Seed of all that is random."),
        inp(
            io.String.Input,
            "accept_changes",
            default="",
            tooltip="Inputs that may differ from those the run was begun with, separated by commas, e.g. steps, rank.",
        ),
    ]


def _optional() -> list:
    return [
        inp(io.Clip.Input, "clip", optional=True, tooltip="Encodes prompts with negative_prompts."),
        inp(
            io.String.Input,
            "negative_prompts",
            default="",
            multiline=True,
            optional=True,
            tooltip="Prompts that guidance leads away from now and then, one per line; see negative_share.",
        ),
        inp(
            io.Conditioning.Input,
            "positive",
            optional=True,
            tooltip="Encoded prompts instead of texts, a list; with latents the caption of each.",
        ),
        inp(
            io.Conditioning.Input,
            "null",
            optional=True,
            tooltip="The encoded empty prompt; needed without clip. Negative prompts may follow it.",
        ),
        inp(
            io.Latent.Input,
            "latents",
            optional=True,
            tooltip="Encoded pictures that the teacher steps from; not connected: it paints from noise.",
        ),
        inp(io.Vae.Input, "vae", optional=True, tooltip="Shows the student's pictures as they are, else roughly."),
        inp(
            io.Boolean.Input,
            "whole_model",
            default=False,
            optional=True,
            tooltip=(
                "Write all weights of the student, to output/diffusion_models, instead of what changes the base, to "
                "output/loras."
            ),
        ),
        inp(
            io.Combo.Input,
            "method",
            options=list(TAUGHT),
            default=TEEFUSION,
            optional=True,
            tooltip=(
                "How guidance enters the student. teefusion: times the prompt, as published; takes negative prompts. "
                "w alone, distillcfg: for comparison. teefusion split: embeds prompt and negative each whole, where "
                "F(c - n) means little. dice: a sharpener of prompts instead, for DICE Sharpen; "
                "give guidance_min and guidance_max one number."
            ),
        ),
    ]


class DistillTrainer(io.ComfyNode):
    """Distil any wired teacher into a student of one pass per step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DistillTrainer",
            display_name=DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Teaches a student to do in 1 pass per step what a teacher does in 2 or more: wire the teacher as "
                "GUIDER with SAMPLER, give prompts, run. Cancel at any time; the next run goes on."
            ),
            search_aliases=["distill", "guidance distillation", "train student", "lora trainer", "teefusion training"],
            is_input_list=True,
            is_output_node=True,
            is_experimental=True,
            inputs=[*_teacher(), *_run(), *_learned(), *_walks(), *_kept(), *_optional()],
            outputs=[
                io.Custom("LORA_MODEL").Output(
                    "lora", display_name="LORA_MODEL", tooltip="For Load LoRA Model, SaveLoRA."
                ),
                io.Custom("LOSS_MAP").Output("losses", display_name="LOSS_MAP", tooltip="For Plot Loss Graph."),
                io.Int.Output("steps_done", display_name="steps", tooltip="Steps trained in all."),
                io.String.Output("file", display_name="file", tooltip="The student file, for Load TeEFusion Student."),
            ],
        )

    @classmethod
    def execute(
        cls, model, guider, sampler, prompts, name, steps, batch_size, learning_rate, rank, guidance_min, guidance_max,
        width, height, teacher_steps, scheduler, trainable, target, timestep_sampling, cache_size,
        images_per_trajectory, reuse, negative_share, initial_gain_ratio, gradient_checkpointing, save_every,
        preview_every, run_seed, accept_changes, clip=(None,), negative_prompts=("",), positive=(), null=(), latents=(),
        vae=(None,), whole_model=(False,), method=(TEEFUSION,),
    ) -> io.NodeOutput:  # fmt: skip
        """Train, with errors that carry the node's name; every input comes as a list."""
        given = locals()
        with reported_by(DISPLAY_NAME):
            shared = {field.name: given[field.name][0] for field in fields(DistillSettings) if field.name in given}
            settings = DistillSettings(**shared, seed=run_seed[0])
            loop = TrainSettings(
                steps=steps[0], batch=batch_size[0], lr=learning_rate[0], warmup=min(20, steps[0] - 1),
                schedule="linear", save_every=save_every[0], seed=run_seed[0],
            )  # fmt: skip
            data = graph_data(clip[0], prompts[0], negative_prompts[0], positive, null, latents)
            student, path = train_in_graph(
                model[0], guider[0], sampler[0], data, settings, loop, name=name[0], pixels=(width[0], height[0]),
                accept=accept_changes[0], whole=whole_model[0], preview_every=preview_every[0], vae=vae[0],
            )  # fmt: skip
        return io.NodeOutput(student.update, {"loss": student.losses}, student.info.step, str(path))
