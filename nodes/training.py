"""Node that makes students."""

from comfy_api.latest import io

from ..teefusion_core.comfy_host.sampling import schedulers
from ..teefusion_core.errors import reported_by
from ..teefusion_core.guidance.calibration import IMAGES_PER_W
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


def _combo(id: str, choices, default: str, tooltip: str, **options):
    return inp(io.Combo.Input, id, options=list(choices), default=default, tooltip=tooltip, **options)


def _text(id: str, default: str, tooltip: str, **options):
    return inp(io.String.Input, id, default=default, tooltip=tooltip, **options)


def _teacher() -> list:
    return [
        inp(io.Model.Input, "model", tooltip="The model that the student starts from. It is not changed."),
        inp(
            io.Guider.Input, "guider",
            tooltip="The teacher's guidance: CFGGuider, Reflection Guider or another guider that a single CFG scale "
            "sets. The trainer replaces its prompts. It sets the scale of CFGGuider to 1 + w. In Reflection Guider it "
            "sets final_cfg to 1 + w, and strong_cfg too if both are the same; weak_cfg stays.",
        ),
        inp(
            io.Sampler.Input, "sampler",
            tooltip="The teacher's sampler: euler, heun, Reflection Sampler or another one that adds no noise and "
            "keeps no history between steps. No ancestral, SDE or multistep samplers, such as dpmpp_2m.",
        ),
    ]  # fmt: skip


def _common() -> list:
    return [
        _text(
            "prompts", "", "Prompts that the teacher samples, one per line. Connect clip to encode them. No training "
            "images are needed.", multiline=True,
        ),
        _text(
            "name", "my_student", "Name of the run and of the student file, output/loras/NAME.safetensors. If a run of "
            "this name exists, training resumes from its last checkpoint.",
        ),
        _float(
            "guidance_min", 1.0, 0.0, 100.0, 0.1,
            "Smallest guidance w that the student learns. The teacher is set to the CFG scale 1 + w.",
        ),
        _float(
            "guidance_max", 8.0, 0.0, 100.0, 0.1,
            (
                "Largest guidance w that the student learns. The teacher is set to the CFG scale 1 + w. A student "
                "refuses values outside its range."
            ),
        ),
        _int(
            "steps", 1000, 1, 10_000_000, "Total number of training steps. To train longer, raise it and write steps "
            "in accept_changes.",
        ),
        _int(
            "teacher_steps", 20, 1, 1000,
            "Sampling steps of the teacher. Sample the student with about as many. More steps cost more teacher time.",
        ),
        _combo("scheduler", schedulers(), "normal", "Noise schedule of the teacher, as in KSampler."),
        _int("width", 1024, 16, 16384, "Width of the training images in pixels. Ignored with latents."),
        _int("height", 1024, 16, 16384, "Height of the training images in pixels. Ignored with latents."),
        _combo(
            "trainable", TRAINABLE, "lora",
            (
                "Which weights are trained. lora: all linear layers. lora on modulation: only the layers that "
                "read time and pooled text. embedders: only the embedders of time and pooled text. everything: "
                "all weights, which takes the most memory."
            ),
        ),
        _int("rank", 16, 1, 1024, "Rank of the LoRA. A higher rank can learn more and makes a larger file."),
        _int(
            "batch_size", 4, 1, 4096,
            "Examples per training step. A larger batch gives steadier training and takes more time and memory.",
        ),
        _float(
            "learning_rate", 5e-4, 1e-8, 1.0, 1e-6,
            "Peak learning rate of AdamW. It rises over the first 20 steps, then falls to 0. Lower it if loss rises.",
        ),
        _int(
            "preview_every", 100, 0, 1_000_000,
            "Training steps between previews at the smallest, middle and largest w. 0 shows the loss curve only.",
        ),
        # not named seed, which the interface would change after every run, so that no run could be resumed
        _int("run_seed", 0, 0, 2**53, "Seed of noise, prompts, guidance and initial weights."),
        _text(
            "accept_changes", "", "To resume a run with changed settings, list their names, separated by commas, e.g. "
            "steps, learning_rate. Any other change is refused.",
        ),
    ]  # fmt: skip


def _advanced() -> list:
    return [
        _combo(
            "target", TARGETS, "secant",
            "Velocity that the student learns. Leave it at secant. secant: lands where the teacher's step lands. "
            "re-evaluated: the teacher's last prediction. clean: straight to the teacher's final image.",
        ),
        _combo(
            "timestep_sampling", TIMES, "jittered",
            "Noise levels of the teacher's steps. Leave it at jittered. schedule: those of the scheduler. jittered: "
            "random levels between them. uniform: random levels with equal spacing.",
        ),
        _int(
            "images_per_trajectory", 8, 1, 1024,
            "Images in a trajectory, which is one sampling run of the teacher. More images are faster per image and "
            "take more memory.",
        ),
        _int(
            "cache_size", 16, 1, 100_000,
            "How many of the teacher's latest trajectories are kept on disk and used for training.",
        ),
        _float(
            "reuse", 1.0, 0.0, 1e6, 0.1,
            "How many times each example is used, on average, before the teacher makes new ones. Higher values save "
            "teacher time. 0: all trajectories are made before training starts.",
        ),
        _float(
            "negative_share", 0.0, 0.0, 1.0, 0.05,
            "Share of trajectories that use a negative prompt instead of the empty one, 0 to 1. Above 0 it needs "
            "negative_prompts.",
        ),
        _float(
            "initial_gain_ratio", 0.0, 0.0, 4.0, 0.05,
            "Initial strength of the guidance term relative to the modulation vector. 0: the published gain, for SD3 "
            "and SD3.5. Use 0.25 for the demo model. Other families have no published gain: start with 0.25 too "
            "(untested).",
        ),
        inp(
            io.Boolean.Input, "gradient_checkpointing", default=False,
            tooltip="Saves memory; training takes about a third longer.",
        ),
        _int("save_every", 100, 0, 1_000_000, "Steps between checkpoints. 0: only at start, end and cancel."),
    ]  # fmt: skip


def _optional() -> list:
    return [
        inp(io.Clip.Input, "clip", optional=True, tooltip="Text encoders for prompts and negative_prompts."),
        inp(io.Vae.Input, "vae", optional=True, tooltip="Decodes the previews. Without it they are rough."),
        _text(
            "negative_prompts", "", "Negative prompts to learn, one per line. Set negative_share above 0 to use them.",
            multiline=True, optional=True,
        ),
        inp(
            io.Conditioning.Input, "positive", optional=True,
            tooltip="Encoded prompts (a list) instead of the text in prompts. With latents: the caption of each image.",
        ),
        inp(
            io.Conditioning.Input, "null", optional=True,
            tooltip="The encoded empty prompt, optionally followed by negative prompts. Required without clip.",
        ),
        inp(
            io.Latent.Input, "latents", optional=True,
            tooltip="Encoded training images. The teacher starts from them, with noise added, instead of from noise.",
        ),
        _combo(
            "method", TAUGHT, TEEFUSION,
            "How guidance enters the student. teefusion: as published; needs pooled text. guidance lora: guidance is "
            "the strength of a LoRA; for every model, also without pooled text, but not for negative prompts. "
            "teefusion split: for students that learn negative prompts. guidance only, distillcfg: for comparison. "
            "dice: trains a prompt sharpener for DICE Sharpen; set guidance_min and guidance_max to the same value.",
            optional=True,
        ),
        inp(
            io.Boolean.Input, "whole_model", default=False, optional=True,
            tooltip="Writes all weights to output/diffusion_models, instead of a small file to output/loras.",
        ),
        inp(
            io.Int.Input, "calibration", default=IMAGES_PER_W, min=0, max=1024, optional=True,
            tooltip="After training, compares student and teacher on new images, so that a guidance of 3 gives what "
            "the teacher gives at 3. Number of images for each of five values of w; more are more exact and take more "
            "time. 0: no calibration.",
        ),
        inp(
            io.Int.Input, "student_steps", default=0, min=0, max=1000, optional=True,
            tooltip="Number of sampling steps that the student learns, if fewer than teacher_steps, which must be a "
            "multiple: 8 with teacher_steps 32 merges each four steps of the teacher into one. Sample the student with "
            "exactly this number of steps and the same scheduler. 0: as many as the teacher.",
        ),
    ]  # fmt: skip


class DistillTrainer(io.ComfyNode):
    """Distill any wired teacher into a student of one pass per step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Describe the node to the host."""
        return schema(
            node_id="DistillTrainer",
            display_name=DISPLAY_NAME,
            category=CATEGORY,
            description=(
                "Trains a student that needs 1 forward pass per step to imitate a teacher that needs 2 or more. "
                "Connect the teacher as GUIDER and SAMPLER, enter prompts and run. You can cancel at any time and "
                "resume later."
            ),
            search_aliases=[
                "distill",
                "guidance distillation",
                "train student",
                "teacher to student",
                "lora trainer",
                "faster model",
            ],
            is_input_list=True,
            is_output_node=True,
            is_experimental=True,
            inputs=[*_teacher(), *_common(), *_advanced(), *_optional()],
            outputs=[
                io.Custom("LORA_MODEL").Output(
                    "lora",
                    display_name="LORA_MODEL",
                    tooltip="The trained weights, for Load LoRA Model or Save LoRA Weights.",
                ),
                io.Custom("LOSS_MAP").Output(
                    "losses", display_name="LOSS_MAP", tooltip="The loss of every training step, for Plot Loss Graph."
                ),
                io.Int.Output("steps_done", display_name="steps", tooltip="Number of finished training steps."),
                io.String.Output("file", display_name="file", tooltip="The student file, for Load TeEFusion Student."),
                io.Model.Output(
                    "student",
                    display_name="student",
                    tooltip="The new student, for TeEFusion Conditioning. A whole model or a sharpener is not loaded "
                    "here: choose its file in Load TeEFusion Student or DICE Sharpen.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, name, whole_model=False, **_) -> int:
        """Run again when the student file was removed."""
        name, whole_model = (value[0] if isinstance(value, list | tuple) else value for value in (name, whole_model))
        return _trainer().times_lost(str(name), bool(whole_model))

    @classmethod
    def execute(
        cls, model, guider, sampler, prompts, name, guidance_min, guidance_max, steps, teacher_steps, scheduler, width,
        height, trainable, rank, batch_size, learning_rate, preview_every, run_seed, accept_changes, target,
        timestep_sampling, images_per_trajectory, cache_size, reuse, negative_share, initial_gain_ratio,
        gradient_checkpointing, save_every, clip=(None,), vae=(None,), negative_prompts=("",), positive=(), null=(),
        latents=(), method=(TEEFUSION,), whole_model=(False,), calibration=(IMAGES_PER_W,), student_steps=(0,),
    ) -> io.NodeOutput:  # fmt: skip
        """Train the student; every input arrives as a list."""
        with reported_by(DISPLAY_NAME):
            settings = DistillSettings(
                guidance_min=guidance_min[0], guidance_max=guidance_max[0], teacher_steps=teacher_steps[0],
                scheduler=scheduler[0], timestep_sampling=timestep_sampling[0], target=target[0],
                images_per_trajectory=images_per_trajectory[0], cache_size=cache_size[0], reuse=reuse[0],
                negative_share=negative_share[0], trainable=trainable[0], rank=rank[0],
                initial_gain_ratio=initial_gain_ratio[0], method=method[0],
                gradient_checkpointing=gradient_checkpointing[0], run_seed=run_seed[0],
                student_steps=student_steps[0],
            )  # fmt: skip
            loop = TrainSettings(
                steps=steps[0], batch_size=batch_size[0], learning_rate=learning_rate[0],
                warmup_steps=min(20, steps[0] - 1), learning_rate_schedule="linear", save_every=save_every[0],
            )  # fmt: skip
            trainer = _trainer()
            given = (clip[0], prompts[0], negative_prompts[0], positive, null, latents)
            data = trainer.graph_data(model[0], settings.method, *given)
            trained, path = trainer.train_in_graph(
                model[0], guider[0], sampler[0], data, settings, loop, name=name[0], pixels=(width[0], height[0]),
                accept_changes=f"{accept_changes[0]}, warmup_steps",  # which follows steps
                whole_model=whole_model[0], preview_every=preview_every[0],
                vae=vae[0], calibration=calibration[0],
            )  # fmt: skip
            student = trainer.student_in_graph(model[0], path, settings, whole_model[0])
        return io.NodeOutput(trained.file.lora, {"loss": trained.losses}, trained.file.info.step, str(path), student)


def _trainer():
    """Import the trainer where it is used: it is a third of this pack, and most graphs train nothing."""
    from ..teefusion_core.comfy_host.training import from_graph

    return from_graph
