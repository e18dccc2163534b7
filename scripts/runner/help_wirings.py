"""What the pictures of the help pages show: the nodes of a wiring, and the workflows whose results are shown."""

from dataclasses import dataclass, field

from .comparison import WORKFLOW
from .graph import Json

FIRST_TEMPLATE = WORKFLOW.stem


@dataclass(frozen=True)
class Wiring:
    """What a picture shows: the titles of the nodes, column by column, from a workflow or from a graph given here."""

    columns: tuple[tuple[str, ...], ...]
    sizes: dict[str, tuple[int, int]]
    """Title -> width and height of the nodes that are open; the others show their title only."""
    workflow: str = ""
    graph: Json = field(default_factory=dict)
    run: bool = True


def _node(kind: str, title: str, **inputs: object) -> Json:
    return {"class_type": kind, "_meta": {"title": title}, "inputs": inputs}


# graphs that need files which only the user has; they are shown, not run
OWN_STUDENT = {
    "1": _node("TinySD3Loader", "Base model", variant="base"),
    "2": _node("CLIPTextEncode", "Prompt", clip=["1", 1], text="a large red circle"),
    "3": _node("CLIPTextEncode", "Empty prompt", clip=["1", 1], text=""),
    "4": _node("TeEFusionStudentLoader", "Load TeEFusion Student", model=["1", 0], student="my_student.safetensors"),
    "5": _node(
        "TeEFusionConditioning",
        "TeEFusion Conditioning",
        model=["4", 0],
        positive=["2", 0],
        null=["3", 0],
        guidance=3.0,
    ),
}
SCHEDULED = {
    "1": _node("TinySD3Loader", "Model", variant="base"),
    "2": _node("CLIPTextEncode", "Prompt", clip=["1", 1], text="a large red circle"),
    "3": _node("CLIPTextEncode", "Empty prompt", clip=["1", 1], text=""),
    "4": _node("GuidanceSchedule", "Guidance Schedule", shape="interval", start=20.0, end=80.0),
    "5": _node(
        "ScheduledCFGGuider", "CFG Guider with Schedule", model=["1", 0], positive=["2", 0], negative=["3", 0],
        schedule=["4", 0], cfg=4.0,
    ),
    "6": _node("SamplerCustomAdvanced", "Sampler", guider=["5", 0]),
}  # fmt: skip
METRICS = {
    "1": _node("VAEDecode", "VAE Decode"),
    "2": _node(
        "ScoreImages", "Score Images", images=["1", 0], prompts="a red fox in the snow\na bowl of oranges",
        clip="clip-vit-large-patch14.safetensors",
    ),
    "3": _node("PreviewAny", "Preview Any", source=["2", 0]),
}  # fmt: skip
PROMPTS, ENCODER, SAMPLER = ("Prompt", "Empty prompt"), (190, 80), (255, 0)
WIRINGS = {
    "TeEFusionConditioning": Wiring(
        (("Student model", *PROMPTS, "Three empty images"), ("TeEFusion Conditioning",), ("Student sampler",)),
        {"TeEFusion Conditioning": (285, 0), "Student sampler": SAMPLER}, FIRST_TEMPLATE, run=False,
    ),
    "TeEFusionStudentLoader": Wiring(
        (("Base model", *PROMPTS), ("Load TeEFusion Student",), ("TeEFusion Conditioning",)),
        {"Load TeEFusion Student": (310, 0), "TeEFusion Conditioning": (285, 0)}, graph=OWN_STUDENT, run=False,
    ),
    "TinySD3Loader": Wiring(
        (("Base model",), (*PROMPTS, "Four empty images"), ("CFG sampler",), ("Decode CFG",)),
        {"Base model": (210, 0), "Prompt": (210, 90), "CFG sampler": SAMPLER}, "03 W2SD beside CFG", run=False,
    ),
    "DistillTrainer": Wiring(
        (("Base model", "Teacher guidance", "Teacher sampler"), ("Distill Trainer",), ("Loss curve",)),
        {"Distill Trainer": (360, 0)}, "06 Distill a student", run=False,
    ),
    "W2SDTeacherSampler": Wiring(
        (("Base model", "Weak model", *PROMPTS, "Four empty images"), ("W2SD Teacher Sampler",), ("Decode W2SD",)),
        {"W2SD Teacher Sampler": (290, 0)}, "03 W2SD beside CFG",
    ),
    "ZSampling": Wiring(
        (("Base model", *PROMPTS, "Four empty images"), ("Z-Sampling",), ("Decode Z-Sampling",)),
        {"Z-Sampling": (290, 0)}, "04 Z-Sampling",
    ),
    "ReflectionGuider": Wiring(
        (("Base model", *PROMPTS),
         ("Reflection Guider", "Reflection Sampler", "Random noise", "Noise levels", "Four empty images"),
         ("Sampler of the parts",)),
        {"Reflection Guider": (270, 0), "Sampler of the parts": (210, 0)}, "04 Z-Sampling", run=False,
    ),
    "ReflectionSampler": Wiring(
        (("Reflection Guider", "Reflection Sampler", "Random noise", "Noise levels", "Four empty images"),
         ("Sampler of the parts",), ("Decode parts",)),
        {"Reflection Sampler": (250, 0), "Sampler of the parts": (210, 0)}, "04 Z-Sampling", run=False,
    ),
    "GuidanceReport": Wiring(
        (("Base model", "Student guidance", "Euler", "Noise levels", "Three empty images", *PROMPTS, "Teacher report"),
         ("Student report",), ("Plot",)),
        {"Student report": (260, 0), "Plot": (340, 300)}, "08 Guidance report",
    ),
    "CompareGrid": Wiring(
        (("Decode unguided", "Decode CFG", "Decode W2SD", "Decode student"), ("Compare Grid",), ("Result",)),
        {"Compare Grid": (270, 420), "Result": (360, 420)}, FIRST_TEMPLATE,
    ),
    "ScoreImages": Wiring(
        (("VAE Decode",), ("Score Images",), ("Preview Any",)), {"Score Images": (360, 280)}, graph=METRICS, run=False
    ),
    "DICESharpen": Wiring(
        (("Demo SD1.5", *PROMPTS, "Three empty images"), ("DICE Sharpen, alpha 1",),
         ("Sampler, alpha 1",)),
        {"DICE Sharpen, alpha 1": (330, 0), "Sampler, alpha 1": SAMPLER}, "15 Sharpened prompt", run=False,
    ),
    "GuidanceSchedule": Wiring(
        (("Interval schedule",), ("Interval guided",), ("Interval sampler",)),
        {"Interval schedule": (260, 380), "Interval guided": (285, 0), "Interval sampler": SAMPLER},
        "12 Guidance over time",
    ),
    "ScheduledCFGGuider": Wiring(
        (("Model", *PROMPTS, "Guidance Schedule"), ("CFG Guider with Schedule",), ("Sampler",)),
        {"CFG Guider with Schedule": (270, 0), "Sampler": (210, 0)}, graph=SCHEDULED, run=False,
    ),
    "GuidanceSweep": Wiring(
        (("Student", *PROMPTS, "Empty image"), ("Guidance Sweep",), ("Student sampler", "Sweep Grid")),
        {"Guidance Sweep": (285, 0), "Student sampler": SAMPLER}, "11 Guidance sweep", run=False,
    ),
    "SweepGrid": Wiring(
        (("Decode", "Guidance Sweep"), ("Sweep Grid",), ("Result",)),
        {"Sweep Grid": (270, 0), "Result": (420, 380)}, "11 Guidance sweep",
    ),
    "TextEmbeddingBlend": Wiring(
        (("Base prompt", "Added prompt", "Empty prompt", "Whole prompt"), ("Text Embedding Blend",),
         ("Cosines of the sum", "Sum sampler")),
        {"Base prompt": ENCODER, "Added prompt": ENCODER, "Whole prompt": ENCODER, "Text Embedding Blend": (250, 0),
         "Cosines of the sum": (230, 200)}, "09 Text arithmetic",
    ),
}  # fmt: skip
# workflow -> name of the file, titles of the nodes whose pictures it shows, ids of the nodes on whose pages it is
RESULTS = {
    FIRST_TEMPLATE: ("grid", ("Result",), ("CompareGrid", "TinySD3Loader")),
    "10 Student of 8 steps": ("student", ("Result",), ("TeEFusionConditioning",)),
    "03 W2SD beside CFG": ("w2sd", ("CFG images", "W2SD images"), ("W2SDTeacherSampler",)),
    "04 Z-Sampling": (
        "zigzag", ("CFG images", "Z-Sampling images"), ("ZSampling", "ReflectionGuider", "ReflectionSampler")
    ),
    "08 Guidance report": ("plot", ("Plot",), ("GuidanceReport",)),
    "06 Distill a student": ("own_student", ("Result",), ("DistillTrainer",)),
    "11 Guidance sweep": ("sweep", ("Result",), ("GuidanceSweep", "SweepGrid")),
    "12 Guidance over time": ("schedule", ("Result",), ("GuidanceSchedule", "ScheduledCFGGuider")),
    "15 Sharpened prompt": ("sharpened", ("Result",), ("DICESharpen",)),
    "09 Text arithmetic": ("sum", ("Whole images", "Base images", "Sum images"), ("TextEmbeddingBlend",)),
}  # fmt: skip
