"""The shipped workflows, read as a user's ComfyUI reads them."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest
from PIL import Image

REPO = Path(__file__).resolve().parent.parent.parent
FILES = {path.stem: path for path in sorted((REPO / "workflows").glob("*.json"))}
TEACHER_STUDENT, PUBLISHED = "01 Student beside teacher", "02 TeEFusion SD3-medium"
W2SD, Z_SAMPLING, LORA_GAP = "03 W2SD beside CFG", "04 Z-Sampling", "05 W2SD SD3.5 with a LoRA"
TRAINER, REPORT, ARITHMETIC = "06 Distill a student", "08 Guidance report", "09 Text arithmetic"
DEMOS = (TEACHER_STUDENT, W2SD, Z_SAMPLING, REPORT)
each_workflow = pytest.mark.parametrize("name", FILES)
each_demo = pytest.mark.parametrize("name", DEMOS)
each_with_words = pytest.mark.parametrize("name", (*DEMOS, ARITHMETIC))
each_student = pytest.mark.parametrize("name", (TEACHER_STUDENT, PUBLISHED))

FILE = re.compile(r"[\w.-]+\.safetensors")
OWN_FILE = re.compile(r"your_\w+\.safetensors")  # stands for one that the user chooses, so nothing offers it
URL = re.compile(r"https://huggingface\.co/[\w.-]+/[\w.-]+/resolve/main/[\w./-]+\.safetensors")
ANYTHING = "*"
OPTIONAL = {
    "DistillTrainer": {"clip", "vae", "positive", "null", "latents"},
    "W2SDTeacherSampler": {"weak_model", "weak_positive", "weak_negative"},
    "ReflectionGuider": {"weak_model", "weak_positive", "weak_negative"},
    "GuidanceReport": {"vae"},
    "CompareGrid": {f"images_{letter}" for letter in "bcdef"},
    "TextEmbeddingBlend": {"add", "subtract", "reference"},
}
SHOWING_PREVIEWS = {"KSampler", "SamplerCustomAdvanced", "W2SDTeacherSampler", "ZSampling", "DistillTrainer"}
SHOWING_PREVIEWS |= {"GuidanceReport"}
FOLDERS = {
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "TripleCLIPLoader": "text_encoders",
    "VAELoader": "vae",
}
HOLLOW = 7  # how the browser draws, saves an optional socket
TITLE_BAR = 30
FONT = 14  # pixels of a widget at full zoom
LARGEST_THUMBNAIL = 120_000  # bytes
TINY = "TinySD3Loader"
PREVIEW = 225  # what a sampler grows by, while it shows the picture at work


def load(name):
    return json.loads(FILES[name].read_bytes().decode("ascii"))


def by_title(workflow):
    return {node["title"]: node for node in workflow["nodes"]}


def source_of(workflow, node, socket):
    """Return the title of the node that feeds a socket."""
    link = next(item["link"] for item in node["inputs"] if item["name"] == socket)
    origin = next(entry[1] for entry in workflow["links"] if entry[0] == link)
    return next(other["title"] for other in workflow["nodes"] if other["id"] == origin)


def notes_of(workflow):
    return "\n".join(node["widgets_values"][0] for node in workflow["nodes"] if node["type"] == "MarkdownNote")


def passes(steps, *scales):
    """Count passes of a run: of CFG with one scale, of a reflection with three."""
    phases = [1 if scale in (0, 1) else 2 for scale in scales]
    return (steps - 1) * sum(phases) + phases[-1]


def rectangle(node):
    """Return left, top, right, bottom, with the title bar, with the preview of a sampler."""
    (x, y), (width, height) = node["pos"], node["size"]
    return x, y - TITLE_BAR, x + width, y + height + (PREVIEW if node["type"] in SHOWING_PREVIEWS else 0)


def frame(group):
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def overlap(one, other):
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def contains(outer, inner):
    return outer[0] <= inner[0] and outer[1] <= inner[1] and outer[2] >= inner[2] and outer[3] >= inner[3]


def test_the_promised_workflows_are_there():
    assert {TEACHER_STUDENT, PUBLISHED, W2SD, Z_SAMPLING, LORA_GAP, TRAINER, REPORT, ARITHMETIC} <= FILES.keys()


@each_workflow
def test_it_is_in_the_format_of_the_browser(name):
    workflow = load(name)
    assert workflow["version"] == 0.4
    numbers = [node["id"] for node in workflow["nodes"]]
    assert len(set(numbers)) == len(numbers) and max(numbers) == workflow["last_node_id"]
    links = [link[0] for link in workflow["links"]]
    assert len(set(links)) == len(links) and max(links) == workflow["last_link_id"]
    assert all(node["mode"] == 0 for node in workflow["nodes"])


@each_workflow
def test_links_agree_with_both_ends(name):
    workflow = load(name)
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for number, origin, from_slot, target, to_slot, kind in workflow["links"]:
        out, into = nodes[origin]["outputs"][from_slot], nodes[target]["inputs"][to_slot]
        assert number in out["links"] and into["link"] == number, number
        assert into["type"] == kind and kind in (out["type"], ANYTHING), number
    assert len(workflow["links"]) == sum(len(item["links"]) for node in nodes.values() for item in node["outputs"])
    sockets = [(node["type"], item) for node in nodes.values() for item in node["inputs"]]
    assert len(workflow["links"]) == sum(item["link"] is not None for _, item in sockets)
    for kind, item in sockets:
        optional = item["name"] in OPTIONAL.get(kind, ())
        assert (item.get("shape") == HOLLOW) == optional, item
        assert item["link"] is not None or optional, item


@each_workflow
def test_titles_name_one_node_each(name):
    titles = [node["title"].strip() for node in load(name)["nodes"]]
    assert all(titles) and len(set(titles)) == len(titles)


@each_workflow
def test_nodes_lie_apart_inside_their_groups(name):
    workflow = load(name)
    groups = workflow["groups"]
    assert all(group["title"] for group in groups)
    for one, other in combinations(workflow["nodes"], 2):
        assert not overlap(rectangle(one), rectangle(other)), (one["title"], other["title"])
    for one, other in combinations(groups, 2):
        assert not overlap(frame(one), frame(other)), (one["title"], other["title"])
    for node in workflow["nodes"]:
        around = [group["title"] for group in groups if contains(frame(group), rectangle(node))]
        assert len(around) == 1, (node["title"], around)


@each_workflow
def test_notes_are_short(name):
    texts = [node["widgets_values"][0] for node in load(name)["nodes"] if node["type"] == "MarkdownNote"]
    assert len(texts) >= 3
    assert all(20 < len(text.split()) < 120 for text in texts)
    # the newer renderer draws code spans in a colour that cannot be read on a note
    assert not any("`" in text for text in texts)


@each_workflow
def test_every_file_has_a_download(name):
    """All but a LoRA that the user chooses, of which a note tells."""
    for node in load(name)["nodes"]:
        files = [value for value in node["widgets_values"] if isinstance(value, str) and FILE.fullmatch(value)]
        if node["type"] == "LoraLoaderModelOnly":
            assert OWN_FILE.fullmatch(files[0]) and files[0] in notes_of(load(name)), node["title"]
            files = []
        models = node["properties"].get("models", [])
        assert [model["name"] for model in models] == files, node["title"]
        for model in models:
            assert model.keys() == {"name", "url", "directory"}, model
            assert URL.fullmatch(model["url"]), model
            assert model["directory"] == FOLDERS[node["type"]], model


@each_student
def test_students_are_sampled_with_one_pass(name):
    workflow = load(name)
    nodes = by_title(workflow)
    sampler, fusion = nodes["Student sampler"], nodes["TeEFusion Conditioning"]
    assert sampler["widgets_values"][3] == 1
    assert source_of(workflow, sampler, "model") == source_of(workflow, sampler, "positive") == fusion["title"]
    assert source_of(workflow, fusion, "positive") == "Prompt"
    assert source_of(workflow, fusion, "null") == source_of(workflow, sampler, "negative") == "Empty prompt"
    assert nodes["Empty prompt"]["widgets_values"] == [""] and nodes["Prompt"]["widgets_values"] != [""]


def test_teacher_with_student_differ_in_guidance_only():
    workflow = load(TEACHER_STUDENT)
    nodes = by_title(workflow)
    teacher, student = nodes["Teacher sampler"], nodes["Student sampler"]
    differing = [i for i in range(7) if teacher["widgets_values"][i] != student["widgets_values"][i]]
    assert differing == [3]  # cfg
    assert nodes["TeEFusion Conditioning"]["widgets_values"][0] == teacher["widgets_values"][3] - 1
    assert source_of(workflow, teacher, "latent_image") == source_of(workflow, student, "latent_image")
    assert source_of(workflow, teacher, "positive") == "Prompt"
    assert source_of(workflow, teacher, "negative") == "Empty prompt"
    assert nodes[source_of(workflow, teacher, "model")]["widgets_values"] == ["base"]
    assert nodes[source_of(workflow, nodes["TeEFusion Conditioning"], "model")]["widgets_values"] == ["student"]
    for who in ("teacher", "student"):
        picture = nodes[f"{who.title()} pictures"]
        assert picture["type"] == "SaveImage" and picture["widgets_values"] == [f"teefusion/{who}"]


@each_demo
def test_the_demo_prompt_is_in_the_words_of_its_note(name):
    nodes = by_title(load(name))
    known = set(re.findall(r"[a-z]+", nodes["Words that the model knows"]["widgets_values"][0].lower()))
    known |= {"a", "on", "to", "background"} | {f"{word}s" for word in known}
    words = re.findall(r"[a-z]+", nodes["Prompt"]["widgets_values"][0])
    assert words and set(words) <= known


def test_the_sum_is_the_whole_prompt_from_the_same_noise():
    workflow = load(ARITHMETIC)
    nodes = by_title(workflow)
    blend = nodes["Text Embedding Blend"]
    assert blend["widgets_values"] == [1.0, 1.0]
    sources = {"base": "Base prompt", "add": "Added prompt", "subtract": "Empty prompt", "reference": "Whole prompt"}
    assert {socket: source_of(workflow, blend, socket) for socket in sources} == sources
    words = {title: nodes[title]["widgets_values"][0] for title in sources.values()}
    assert words["Empty prompt"] == "" and f"{words['Base prompt']} {words['Added prompt']}" == words["Whole prompt"]
    known = set(re.findall(r"[a-z]+", nodes["Words that the model knows"]["widgets_values"][0].lower()))
    assert set(words["Whole prompt"].split()) <= known | {"a", "on", "background"}
    samplers = {"Whole sampler": "Whole prompt", "Base sampler": "Base prompt", "Sum sampler": blend["title"]}
    for title, positive in samplers.items():
        assert nodes[title]["widgets_values"] == nodes["Whole sampler"]["widgets_values"]
        assert source_of(workflow, nodes[title], "positive") == positive
        assert source_of(workflow, nodes[title], "negative") == "Empty prompt"
        assert source_of(workflow, nodes[title], "latent_image") == "Four empty pictures"
    assert source_of(workflow, nodes["Cosines of the sum"], "source") == blend["title"]


@each_with_words
def test_the_words_of_the_note_are_those_of_the_demo_world(name):
    from lab.demo_world.scenes import BACKGROUNDS, COLORS, RADIUS, RELATIONS, SHAPES

    note = by_title(load(name))["Words that the model knows"]["widgets_values"][0]
    listed = {key: set(words.split(", ")) for key, words in re.findall(r"- \*\*(\w+)\*\*: (.+)", note)}
    expected = {
        "colours": COLORS,
        "shapes": SHAPES,
        "sizes": RADIUS,
        "counts": ("one", "two"),
        "places": RELATIONS,
        "backgrounds": BACKGROUNDS,
    }
    assert listed == {key: set(words) for key, words in expected.items()}


def test_the_published_student_runs_as_its_authors_ran_it():
    workflow = load(PUBLISHED)
    nodes = by_title(workflow)
    assert nodes["TeEFusion Conditioning"]["widgets_values"] == [5.0, "official bf16"]
    assert nodes["Student sampler"]["widgets_values"][2:] == [50, 1, "euler", "normal", 1]
    assert nodes["One empty picture"]["widgets_values"] == [1024, 1024, 1]
    notes = notes_of(workflow)
    assert "CC-BY-NC" in notes and "Stability AI Community License" in notes


@pytest.mark.parametrize(
    ("name", "title", "model"), [(W2SD, "W2SD Teacher Sampler", "strong_model"), (Z_SAMPLING, "Z-Sampling", "model")]
)
def test_reflection_stands_beside_cfg_under_equal_conditions(name, title, model):
    workflow = load(name)
    nodes = by_title(workflow)
    plain, reflection = nodes["CFG sampler"], nodes[title]
    seed, fixed, steps, cfg, sampler, scheduler, denoise = plain["widgets_values"]
    assert (sampler, denoise) == ("euler", 1)
    assert reflection["widgets_values"][:3] == [seed, fixed, steps]
    assert reflection["widgets_values"][-5:] == [scheduler, denoise, -1, 1, "exact"]
    assert source_of(workflow, plain, "model") == source_of(workflow, reflection, model) == "Base model"
    sources = {"positive": "Prompt", "negative": "Empty prompt", "latent_image": "Four empty pictures"}
    for socket, source in sources.items():
        assert source_of(workflow, plain, socket) == source_of(workflow, reflection, socket) == source
    assert nodes["Base model"]["widgets_values"] == ["base"] and nodes["Empty prompt"]["widgets_values"] == [""]
    prompt = nodes["Prompt"]["widgets_values"][0]
    assert len(re.findall("circle|square|triangle|cross|ring", prompt)) == 2
    assert f"**{passes(steps, cfg)} passes**" in notes_of(workflow)


def test_w2sd_adds_nothing_but_the_weak_model():
    workflow = load(W2SD)
    nodes = by_title(workflow)
    cfg, scales = nodes["CFG sampler"]["widgets_values"][3], nodes["W2SD Teacher Sampler"]["widgets_values"][3:6]
    assert scales == [1, 1, cfg]  # with one network for both that is CFG, at first order
    assert nodes["Weak model"]["widgets_values"] == ["weak"]
    assert source_of(workflow, nodes["W2SD Teacher Sampler"], "weak_model") == "Weak model"
    cost = passes(20, *scales)
    assert f"**{cost} passes**" in notes_of(workflow) and f"**{cost // 2} steps** cost {cost} passes" in notes_of(
        workflow
    )


def test_z_sampling_is_compared_at_equal_guidance_and_equals_its_parts():
    workflow = load(Z_SAMPLING)
    nodes = by_title(workflow)
    seed, fixed, steps, cfg, inversion_cfg, scheduler, denoise, *operator = nodes["Z-Sampling"]["widgets_values"]
    assert nodes["CFG sampler"]["widgets_values"][3] == 2 * cfg - inversion_cfg
    assert nodes["Reflection Guider"]["widgets_values"][:4] == [cfg, inversion_cfg, cfg, "CFG"]
    assert nodes["Reflection Sampler"]["widgets_values"] == operator
    assert nodes["Random noise"]["widgets_values"] == [seed, fixed]
    assert nodes["Noise levels"]["widgets_values"] == [scheduler, steps, denoise]
    parts = {"noise": "Random noise", "guider": "Reflection Guider", "sampler": "Reflection Sampler"}
    parts |= {"sigmas": "Noise levels", "latent_image": "Four empty pictures"}
    assert {socket: source_of(workflow, nodes["Sampler of the parts"], socket) for socket in parts} == parts
    for node, socket in (("Reflection Guider", "strong_model"), ("Noise levels", "model")):
        assert source_of(workflow, nodes[node], socket) == "Base model"
    assert source_of(workflow, nodes["Reflection Guider"], "positive") == "Prompt"
    assert source_of(workflow, nodes["Reflection Guider"], "negative") == "Empty prompt"
    assert f"**{passes(steps, cfg, inversion_cfg, cfg)} passes**" in notes_of(workflow)


def test_the_lora_gap_is_one_base_with_the_settings_of_the_paper():
    workflow = load(LORA_GAP)
    nodes = by_title(workflow)
    sampler = nodes["W2SD Teacher Sampler"]
    strong, weak = (nodes[source_of(workflow, sampler, socket)] for socket in ("strong_model", "weak_model"))
    assert source_of(workflow, strong, "model") == source_of(workflow, weak, "model") == "SD3.5 medium"
    assert [strong["widgets_values"][1], weak["widgets_values"][1]] == [0.8, -1.5]
    assert strong["widgets_values"][0] == weak["widgets_values"][0]
    assert sampler["widgets_values"][2:] == [50, 1, 1, 5.5, "normal", 1, -1, 1, "exact"]
    assert source_of(workflow, sampler, "positive") == "Prompt"
    assert source_of(workflow, sampler, "negative") == "Empty prompt" and nodes["Empty prompt"]["widgets_values"] == [
        ""
    ]
    notes = notes_of(workflow)
    assert f"**{passes(50, 1, 1, 5.5)} passes**" in notes and f"28: {passes(28, 1, 1, 5.5)} passes" in notes
    assert "Stability AI Community License" in notes


def test_the_report_judges_teacher_and_student_under_equal_conditions():
    workflow = load(REPORT)
    nodes = by_title(workflow)
    teacher, student = nodes["Teacher report"], nodes["Student report"]
    assert teacher["widgets_values"] == student["widgets_values"]
    for socket in ("model", "sampler", "sigmas", "latent_image", "positive", "negative", "vae"):
        assert source_of(workflow, teacher, socket) == source_of(workflow, student, socket), socket
    assert source_of(workflow, student, "model") == "Base model" and nodes["Base model"]["widgets_values"] == ["base"]
    fusion = nodes["TeEFusion Conditioning"]
    assert fusion["widgets_values"][0] == nodes["Teacher guidance"]["widgets_values"][0] - 1
    assert source_of(workflow, nodes["Student guidance"], "conditioning") == fusion["title"]
    assert source_of(workflow, nodes["Teacher guidance"], "positive") == "Prompt"
    prompt, methods, _, _ = nodes["Compare Grid"]["widgets_values"]
    assert [prompt] == nodes["Prompt"]["widgets_values"] and len(methods.splitlines()) == 2


def test_what_runs_without_weights_shows_what_it_paints():
    """Made by `scripts/thumbnails.py`; a picture for weights that are not here would be made up."""
    here = {name for name in FILES if {n["type"] for n in load(name)["nodes"] if "Loader" in n["type"]} == {TINY}}
    pictured = {path.stem: path for path in (REPO / "workflows").glob("*.jpg")}
    assert pictured.keys() == here
    for name, path in pictured.items():
        with Image.open(path) as picture:
            assert picture.format == "JPEG" and picture.width == picture.height >= 400, name
        assert path.stat().st_size <= LARGEST_THUMBNAIL, name


@each_workflow
def test_letters_are_large_enough_to_be_drawn_when_it_opens(name):
    """Below a font of 8 pixels the browser draws empty boxes."""
    assert load(name)["extra"]["ds"]["scale"] * FONT >= 8
